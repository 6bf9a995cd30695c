"""Train a byte-level BPE tokenizer, and save it as a Hugging Face tokenizer.json.

A regular expression cuts a text into pre-tokens (a word, a digit, a run of Han characters, ...).
Inside a pre-token, neighboring tokens are merged. Each step of training adds the merge of the pair
that occurs most often.

    python -m data.train_tokenizer --input corpus.jsonl notes.txt --vocab_size 4096 --to runs/tokenizer
"""

import heapq
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path

import regex

from data.io import (
    CommandParser,
    InputError,
    at_least,
    in_batches,
    jsonl_files,
    read_jsonl,
    run_cli,
)
from data.tokenizer import Tokenizer, cores, visible, well_formed

# The pre-tokens of the tokenizers that `train` makes. Every character matches one of the lines.
# Oniguruma (the tokenizers library), Rust (tiktoken) and the regex module read the pattern alike.
PATTERN = "|".join(
    [
        r"'(?:[sdmtSDMT]|[lL][lL]|[vV][eE]|[rR][eE])",  # English contractions
        r"\p{N}",  # each digit alone: numbers of any length are read digit by digit
        r"[\p{Han}&&[^\p{N}]]+",  # a run of Han characters
        # a word, with the space, backslash or bracket before it
        r"[^\r\n\p{L}\p{N}\p{Han}]?[\p{L}\p{M}&&[^\p{Han}]]+",
        r" ?[^\s\p{L}\p{N}\p{Han}]+[\r\n]*",  # punctuation and symbols
        r"\s*[\r\n]+",
        r"\s+(?!\S)",  # indentation; its last space belongs to the next word
        r"\s+",
    ]
)


def train(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Iterable[str] = ("<|endoftext|>",),
    workers: int | None = None,
    log: Callable[[str], None] | None = None,
) -> Tokenizer:
    """Learn a byte-level BPE from `texts`.

    The ids are the 256 bytes, then the merges in the order of learning, then the special tokens.
    Each merge joins the most frequent pair inside pre-tokens, and among equals the pair with the
    lowest ids, so the result depends only on the texts. A pair that occurs once gets no token:
    little text gives fewer than vocab_size tokens.

    special_tokens: the first is the end of text. workers: processes that count pre-tokens (None:
    as many as cores). log: receives lines about the progress. Raises InputError if vocab_size has
    no room for the bytes and the special tokens, or without text.
    """
    special_tokens = list(special_tokens)
    twice = len(set(special_tokens)) < len(special_tokens)
    if twice or not special_tokens or not all(special_tokens):
        raise InputError(
            f"special tokens {special_tokens}: give at least one (the end of text), "
            "none of them empty or twice"
        )
    smallest = 256 + len(special_tokens)
    if vocab_size < smallest:
        raise InputError(
            f"vocab_size {vocab_size} is too small: 256 bytes and {len(special_tokens)} special "
            f"tokens need at least {smallest}"
        )
    log = log or (lambda line: None)
    words = _count_words(texts, workers or cores(), log)
    if not words:
        raise InputError(
            "no text to train the tokenizer on; give at least one text that is not empty"
        )
    tokens = [bytes([byte]) for byte in range(256)]
    merges = []
    for left, right in _learn_merges(words, vocab_size - smallest, log):
        merges.append(f"{visible(tokens[left])} {visible(tokens[right])}")
        tokens.append(tokens[left] + tokens[right])
    return Tokenizer(*_documents(tokens, merges, special_tokens))


def _documents(
    tokens: list[bytes], merges: list[str], special_tokens: list[str]
) -> tuple[dict, dict]:
    """(tokenizer.json, tokenizer_config.json) of a tokenizer that `train` learned."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id, "content": text, **flags}
            for id, text in enumerate(special_tokens, len(tokens))
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {visible(token): id for id, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": special_tokens[0],
        "clean_up_tokenization_spaces": False,
    }
    return document, config


def _count_chunk(chunk: list[str]) -> Counter[str]:
    split, words = regex.compile(PATTERN, regex.V1), Counter()
    for text in chunk:
        words.update(split.findall(well_formed(text)))
    return words


def _count_words(
    texts: Iterable[str], workers: int, log: Callable[[str], None]
) -> dict[bytes, int]:
    """pre-token -> how often it occurs. This process counts the first chunk, so that little text
    starts no other processes."""
    chunks = in_batches(texts, 2**22)
    first = next(chunks, [])
    words, characters = _count_chunk(first), sum(map(len, first))
    second = next(chunks, None)
    if second is not None:
        with ProcessPoolExecutor(workers) as pool:
            running = deque()  # short, so that a corpus may be larger than memory
            for chunk in chain([second], chunks):
                running.append(pool.submit(_count_chunk, chunk))
                if len(running) > 2 * workers:
                    words.update(running.popleft().result())
                characters += sum(map(len, chunk))
                log(f"read {characters / 1e6:.0f} M characters")
            for future in running:
                words.update(future.result())
    log(f"counted {len(words):,} different pre-tokens in {characters / 1e6:.1f} M characters")
    return {word.encode(): count for word, count in words.items()}


def _learn_merges(
    words: dict[bytes, int], limit: int, log: Callable[[str], None]
) -> Iterator[tuple[int, int]]:
    """Yield up to `limit` pairs of ids to merge. The i-th pair makes the id 256 + i."""
    spelled = [list(word) for word in words]  # the ids of each word so far
    counts = list(words.values())
    pair_count: dict[tuple[int, int], int] = defaultdict(int)
    # pair -> words that may have it; some of them have lost it
    found_in: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (word, count) in enumerate(zip(spelled, counts, strict=True)):
        for pair in zip(word, word[1:], strict=False):
            pair_count[pair] += count
            found_in[pair].append(index)
    # Counts of known pairs only fall. So the count of an entry may be too high, never too low: it
    # is checked when the entry reaches the top, and the entry is put back with its true count.
    heap = [(-count, pair) for pair, count in pair_count.items()]
    heapq.heapify(heap)

    made = 256
    while heap and made < 256 + limit:
        count, pair = heapq.heappop(heap)
        if -count != pair_count[pair]:
            if pair_count[pair] > 1:
                heapq.heappush(heap, (-pair_count[pair], pair))
            continue
        if -count < 2:
            break
        left, right = pair
        new_pairs = set()
        for index in set(found_in.pop(pair)):
            word, count = spelled[index], counts[index]
            i = 0
            while i < len(word) - 1:
                if word[i] == left and word[i + 1] == right:
                    if i > 0:
                        pair_count[word[i - 1], left] -= count
                        new = word[i - 1], made
                        pair_count[new] += count
                        found_in[new].append(index)
                        new_pairs.add(new)
                    if i + 2 < len(word):
                        pair_count[right, word[i + 2]] -= count
                        new = made, word[i + 2]
                        pair_count[new] += count
                        found_in[new].append(index)
                        new_pairs.add(new)
                    word[i : i + 2] = [made]
                i += 1
        del pair_count[pair]
        for new in new_pairs:
            if pair_count[new] > 1:
                heapq.heappush(heap, (-pair_count[new], new))
        yield pair
        made += 1
        if made % 1024 == 0:
            log(f"{made - 256:,} of {limit:,} merges")


# ---- Command -------------------------------------------------------------------------------------


def _read_texts(paths: list[str]) -> Iterator[str]:
    """The texts of JSONL rows (text, or question with response or solution) and of text files."""
    for path in jsonl_files(paths):
        if path.suffix == ".jsonl":
            for number, row in read_jsonl(path):
                names = ("text", "question", "response", "solution")
                fields = [row[name] for name in names if row.get(name) is not None]
                if not fields or not all(isinstance(field, str) for field in fields):
                    raise InputError(
                        f"{path}:{number}: needs a string in text, or question with response or "
                        "solution"
                    )
                yield from fields
        else:
            try:
                with open(path, encoding="utf-8", newline="") as file:
                    while lines := file.readlines(1 << 20):
                        yield "".join(lines)
            except OSError as error:
                raise InputError(
                    f"{path}: cannot be read ({error.strerror}); give a text or JSONL file"
                ) from None
            except UnicodeDecodeError:
                raise InputError(
                    f"{path}: not UTF-8 text; give a UTF-8 text or JSONL file"
                ) from None


def main() -> None:
    parser = CommandParser(
        prog="python -m data.train_tokenizer", description="Train a byte-level BPE tokenizer."
    )
    files = "JSONL or text files, or folders of JSONL files"
    parser.add_argument("--input", nargs="+", required=True, metavar="FILE", help=files)
    size = "number of tokens: 256 bytes, merges and special tokens"
    parser.add_argument("--vocab_size", type=at_least(257), required=True, metavar="N", help=size)
    parser.add_argument("--to", required=True, metavar="DIR", help="folder for tokenizer.json")
    special = "special tokens; the first is the end of text (default: <|endoftext|>)"
    parser.add_argument(
        "--special_tokens", nargs="+", default=["<|endoftext|>"], metavar="TOKEN", help=special
    )
    options = parser.parse_args()
    begin = time.monotonic()

    def log(line: str) -> None:
        print(f"[{time.monotonic() - begin:6.1f} s] {line}", file=sys.stderr, flush=True)

    tokenizer = train(
        _read_texts(options.input), options.vocab_size, options.special_tokens, log=log
    )
    tokenizer.save(options.to)
    few = "" if tokenizer.vocab_size == options.vocab_size else " (no other pair occurs twice)"
    log(f"{tokenizer.vocab_size:,} tokens{few} in {Path(options.to) / 'tokenizer.json'}")


if __name__ == "__main__":
    run_cli(main)
