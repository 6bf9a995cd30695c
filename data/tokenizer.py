"""Byte-level BPE: read a Hugging Face tokenizer.json, and encode with tiktoken.

A regular expression cuts a text into pre-tokens (a word, a digit, a run of Han characters, ...).
Inside a pre-token, neighboring tokens are merged, and the merge that was learned first is done
first. Tokens are byte strings. With all 256 single bytes among them, every text can be encoded, and
decoding returns it.

`Tokenizer` reads the files that train_tokenizer.py writes, and those of published models that have a
byte-level BPE. It gives the ids of the tokenizers library. The file follows a text on its way to
ids: added tokens, normalizer, pre-tokenizer, merges. At its end are tables of characters.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from unicodedata import is_normalized, normalize

import regex
import tiktoken

from data.io import InputError, atomic_write, find_model, read_json


class Tokenizer:
    """A byte-level BPE tokenizer. It gives the same ids as the tokenizers library.

    special: text of a special token -> id
    vocab_size: the highest id + 1
    eos_id, bos_id: ids of end and beginning of text; bos_id is None if there is none
    chat: the chat template of the model, if it is used; see data/chat.py
    add_bos: whether the model expects a sequence to begin with bos_id (`encode` adds nothing)
    """

    def __init__(self, document: dict, config: dict, name: str = "tokenizer.json"):
        """document, config: the content of tokenizer.json and of tokenizer_config.json. Raises
        InputError if they need something that is not supported."""
        self._document, self._config = document, dict(config)
        try:
            self._setup(document, self._config)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise InputError(
                f"{name}: not a tokenizer.json as the tokenizers library writes it "
                f"({type(error).__name__}: {error}); give a directory that holds one"
            ) from None

    def _setup(self, document: dict, config: dict) -> None:
        model = document["model"]
        # An added token that is in the vocabulary too keeps the id that it has there.
        added = {
            row["content"]: row | {"id": model["vocab"].get(row["content"], row["id"])}
            for row in document.get("added_tokens") or []
            if row["content"]
        }
        self._normalizers = _read_normalizer(document.get("normalizer"))
        self._steps = _read_pre_tokenizer(document.get("pre_tokenizer"))
        if {part["type"] for part in _parts(document.get("decoder"), "decoders")} != {"ByteLevel"}:
            raise InputError("the decoder is not ByteLevel; give a byte-level BPE")
        self._bpe = _BPE(model, added, _tiktoken_pattern(self._steps))
        self._encode_piece_cached = lru_cache(maxsize=1 << 17)(self._encode_piece)

        self.special = {text: row["id"] for text, row in added.items() if row.get("special")}
        self._special_ids = set(self.special.values())
        raw = {text: row for text, row in added.items() if not row.get("normalized", True)}
        normalized = {self._normalize(text): added[text] for text in added if text not in raw}
        self._raw_added, self._added = _AddedTokens(raw), _AddedTokens(normalized)
        self._special_tokens = _AddedTokens(added, special=True)
        # Whether a text needs nothing but the BPE
        self._direct = not (self._normalizers or self._raw_added.pattern or self._added.pattern)

        self.vocab_size = max(self._bpe.bytes) + 1
        self.chat: Any = None
        ids = model["vocab"] | {text: row["id"] for text, row in added.items()}
        self._set_ends(document.get("post_processor"), config, ids)

    def _set_ends(self, post_processor: dict | None, config: dict, ids: dict[str, int]) -> None:
        """Set eos_id, bos_id and add_bos. ids: text -> id, of all tokens."""
        eos_id = _role_id("eos_token", config, ids)
        if eos_id is None:
            raise InputError(
                "no end-of-text token; give eos_token in a tokenizer_config.json beside it"
            )
        self.eos_id = eos_id
        template_bos = _read_post_processor(post_processor)
        bos_id = _role_id("bos_token", config, ids)
        self.bos_id = template_bos if bos_id is None else bos_id
        add_bos = config.get("add_bos_token")
        self.add_bos = template_bos is not None if add_bos is None else bool(add_bos)
        if self.add_bos and self.bos_id is None:
            raise InputError(
                "add_bos_token is set without a bos_token; name one in tokenizer_config.json"
            )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Load a tokenizer.json (or that of a directory) and the files beside it. Raises InputError.

        The end-of-text token is eos_token in tokenizer_config.json or, in older directories, in
        special_tokens_map.json; else eos_token_id in generation_config.json or config.json.
        """
        path = Path(path)
        file = path if path.is_file() else path / "tokenizer.json"
        find_model(file)
        document = read_json(file)
        return cls(document, _read_config(file, document), str(file))

    def save(self, directory: str | os.PathLike) -> None:
        """Write tokenizer.json and tokenizer_config.json, for tokenizers, transformers and vLLM.

        Beside a config.json of model_type qwen2, transformers 5 uses the split pattern of Qwen2.
        """
        files = {"tokenizer_config.json": self._config, "tokenizer.json": self._document}
        for name, content in files.items():
            with atomic_write(Path(directory) / name) as file:
                json.dump(content, file, ensure_ascii=False, indent=1)

    @cached_property
    def hash(self) -> str:
        """sha256 (hex) of everything that decides the ids."""
        bpe = self._bpe
        vocabulary = sorted((visible(token), id) for token, id in bpe.ids.items())
        merges = [[visible(left), visible(right)] for left, right in bpe.merges]
        added = [sorted(self.special.items())]
        for rows in (self._raw_added.rows, self._added.rows):
            names = ("id", "single_word", "lstrip", "rstrip")
            flags = {text: [row.get(name) for name in names] for text, row in rows.items()}
            added.append(sorted((text, flags[text]) for text in flags if text not in self.special))
        normalizers = [astuple(change) for change in self._normalizers]
        steps = [astuple(step) if step.kind == "split" else [step.kind] for step in self._steps]
        unknown = [bpe.unk_id, bpe.fuse_unk] if bpe.missing else []
        content = [vocabulary, merges, added, [bpe.ignore_merges, normalizers, steps, *unknown]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without BOS and EOS. Lone surrogates become U+FFFD.

        The text of a special token is text like any other, so data cannot forge a special token.
        """
        if self._direct and self._bpe.can_split(text):
            return self._bpe.encode_text(text)
        ids = []
        for part, id in self._raw_added.cut(well_formed(text)):
            if id is not None:
                ids.append(id)
                continue
            for piece, id in self._added.cut(self._normalize(part)):
                ids += self._encode_normalized(piece) if id is None else [id]
        return ids

    def split_special(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The parts of a text that holds special tokens, as the text of a chat template does: ("", id)
        for a special token, else (text, None). `encode` has the ids of the other parts."""
        return self._special_tokens.cut(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text, on all cores if tiktoken alone gives the ids."""
        if self._direct and all(map(self._bpe.can_split, texts)):
            return self._bpe.encode_texts(texts)
        return [self.encode(text) for text in texts]

    def decode_bytes(self, ids: Iterable[int], special: bool = False) -> bytes:
        """The bytes of `ids`. Special tokens give their text with `special`, else no bytes. Ids
        beyond the vocabulary, which a padded model head has, give no bytes."""
        hidden = () if special else self._special_ids
        return b"".join(self._bpe.bytes.get(id, b"") for id in ids if id not in hidden)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `decode_bytes`, with U+FFFD where the bytes are not UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def _normalize(self, text: str) -> str:
        for normalizer in self._normalizers:
            text = normalizer.apply(text)
        return text

    def _encode_normalized(self, text: str) -> list[int]:
        if self._bpe.can_split(text):
            return self._bpe.encode_text(text)
        return [id for piece in self._cut(text) for id in self._encode_piece_cached(piece)]

    def _cut(self, text: str) -> list[str]:
        """The pre-tokens of a text, by the steps of the file."""
        pieces, stand_ins = [text], _stand_ins(text)
        for step in self._steps:
            pieces = step.apply(pieces, stand_ins)
        return pieces

    def _encode_piece(self, piece: str) -> list[int]:
        """The ids of a pre-token."""
        data = _to_bytes(piece) if _Step("bytes") in self._steps else piece.encode()
        return self._bpe.encode_bytes(data)


def check_tokenizer(tokenizer: Tokenizer, model, where: str) -> None:
    """Raise InputError if `tokenizer` has ids for which `model` has no row in its embedding."""
    rows = model.config.vocab_size
    if tokenizer.vocab_size > rows:
        raise InputError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} ids, the embedding only {rows} "
            "rows; the tokenizer does not belong to this checkpoint"
        )


def well_formed(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which JSON can escape and UTF-8 cannot encode."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- Reading the files ---------------------------------------------------------------------------


def _read_config(file: Path, document: dict) -> dict:
    """tokenizer_config.json, with the end-of-text token that another file names."""
    names = ("tokenizer_config", "special_tokens_map", "generation_config", "config")
    files = [file.with_name(f"{name}.json") for name in names]
    config, roles, generation, model = (read_json(f) if f.is_file() else {} for f in files)
    if "added_tokens_decoder" not in config:  # as transformers reads it
        config |= {role: roles[role] for role in ("eos_token", "bos_token") if roles.get(role)}
    eos_id = generation.get("eos_token_id")
    eos_id = model.get("eos_token_id") if eos_id is None else eos_id
    if config.get("eos_token") is not None or eos_id is None:
        return config
    eos_id = eos_id[0] if isinstance(eos_id, list) else eos_id
    rows = document.get("added_tokens") or []
    config["eos_token"] = next((row["content"] for row in rows if row.get("id") == eos_id), None)
    if config["eos_token"] is None:
        raise InputError(
            f"{file}: eos_token_id {eos_id} of the model's config is not an added token"
        )
    return config


def _role_id(role: str, config: dict, ids: dict[str, int]) -> int | None:
    """The id of the token that `config` names for a role; None if it names none."""
    token = config.get(role)
    text = token["content"] if isinstance(token, dict) else token
    id = ids.get(text)
    if id is None and text is not None:
        raise InputError(f"{role} {text!r} of tokenizer_config.json is not in the vocabulary")
    return id


def _read_post_processor(post_processor: dict | None) -> int | None:
    """The id of the token that the post-processor puts first, or None."""
    for part in _parts(post_processor, "processors"):
        if part["type"] in ("RobertaProcessing", "BertProcessing"):
            return part["cls"][1]
        if part["type"] not in ("ByteLevel", "TemplateProcessing"):
            raise InputError(
                f"post_processor {part['type']} is not supported; ByteLevel, TemplateProcessing, "
                "RobertaProcessing and BertProcessing are"
            )
        if part["type"] == "TemplateProcessing" and "SpecialToken" in part["single"][0]:
            return part["special_tokens"][part["single"][0]["SpecialToken"]["id"]]["ids"][0]
    return None


def _parts(step: dict | None, key: str) -> list[dict]:
    """The steps of a part of tokenizer.json. A Sequence has several, in `key`."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [part for inner in step[key] for part in _parts(inner, key)]
    return [step]


# ---- From a text to ids: added tokens, normalizer, pre-tokenizer, merges -------------------------


class _AddedTokens:
    """Added tokens, by their text. Only those that are special are searched, or only the others."""

    def __init__(self, rows: dict[str, dict], special: bool = False):
        self.rows, self.special = rows, special
        self.pattern = None  # the leftmost token, and there the longest; None: nothing is searched
        if any(bool(row.get("special")) == special for row in rows.values()):
            longest_first = sorted(rows, key=len, reverse=True)
            self.pattern = regex.compile("|".join(map(regex.escape, longest_first)))

    def cut(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The tokens, as ("", id), and the texts between them, as (text, None). A token that is not
        searched is a part of the text around it."""
        done = 0
        for match in self.pattern.finditer(text) if self.pattern else ():
            row, (start, end) = self.rows[match[0]], match.span()
            neighbors = text[max(0, start - 1) : start] + text[end : end + 1]
            neighbors = neighbors.translate(_stand_ins(neighbors))
            inside_word = row.get("single_word") and regex.search(r"\w", neighbors)
            if bool(row.get("special")) != self.special or inside_word:
                continue
            if row.get("lstrip"):
                start = max(done, len(text[:start].rstrip(_SPACES)))
            if row.get("rstrip"):
                end = len(text) - len(text[end:].lstrip(_SPACES))
            if start > done:
                yield text[done:start], None
            if start < end:
                yield "", row["id"]
            done = end
        if done < len(text):
            yield text[done:], None


@dataclass(frozen=True)
class _Normalizer:
    """A change of the text before it is cut."""

    kind: str  # "Replace", "Prepend" or a normal form of Unicode
    pattern: str  # what is changed; "" for Prepend
    new: str  # what Replace and Prepend write

    def apply(self, text: str) -> str:
        if self.kind == "Replace":
            return _compile(self.pattern).sub(lambda _: self.new, text)
        if self.kind == "Prepend":
            return self.new + text if text else text
        if is_normalized(self.kind, text):
            return text
        return _compile(self.pattern).sub(lambda part: normalize(self.kind, part[0]), text)


def _read_normalizer(normalizer: dict | None) -> list[_Normalizer]:
    changes = []
    for part in _parts(normalizer, "normalizers"):
        kind, pattern, new = part["type"], rf"[^{_NEW_MARKS}]+", ""
        if kind == "Replace":
            pattern, new = _read_pattern(part["pattern"]), part["content"]
        elif kind == "Prepend":
            pattern, new = "", part["prepend"]
        elif kind not in ("NFC", "NFD", "NFKC", "NFKD"):
            raise InputError(
                f"normalizer {kind} is not supported; NFC, NFD, NFKC, NFKD, Replace and Prepend are"
            )
        if not isinstance(new, str):
            raise InputError(f"normalizer {kind}: {new!r} is not a text")
        changes.append(_Normalizer(kind, pattern, new))
    return changes


# Whether a piece joins the one before it: (is that one a match, is this one a match)
_JOINS = {
    "Contiguous": ((False, False), (True, True)),
    "MergedWithPrevious": ((False, True),),
    "MergedWithNext": ((True, False),),
}


@dataclass(frozen=True)
class _Step:
    """A step of the pre-tokenizer: "split" cuts each piece of the text as a Split of tokenizer.json
    does, "prefix" puts a space in front of it, "bytes" writes its bytes as visible characters."""

    kind: str
    pattern: str = ""  # this field and the next two are for "split"
    behavior: str = ""
    invert: bool = False

    def apply(self, pieces: list[str], stand_ins: dict[int, str]) -> list[str]:
        if self.kind == "prefix":
            return [piece if piece.startswith(" ") else f" {piece}" for piece in pieces]
        if self.kind == "bytes":
            return [visible(piece.encode()) for piece in pieces]
        return [part for piece in pieces for part in self._split(piece, stand_ins)]

    def _split(self, text: str, stand_ins: dict[int, str]) -> list[str]:
        """The parts of a piece. The pattern sees the text with `stand_ins`."""
        seen = text.translate(stand_ins) if stand_ins else text
        cuts = [0]  # every second part is a match
        for match in _compile(self.pattern).finditer(seen):
            cuts += match.span()
        cuts.append(len(text))
        if self.behavior == "Isolated":
            return [text[start:end] for start, end in pairwise(cuts) if start < end]
        parts, before = [], None
        for i, (start, end) in enumerate(pairwise(cuts)):
            is_match = bool(i % 2) != self.invert
            # An empty match cuts too, unless it is right after a match.
            if start == end and (i % 2 == 0 or (i > 1 and start == cuts[i - 1])):
                continue
            if (before, is_match) in _JOINS.get(self.behavior, ()):
                parts[-1] += text[start:end]
            elif self.behavior != "Removed" or not is_match:
                parts.append(text[start:end])
            before = is_match
        return [part for part in parts if part]


def _read_pre_tokenizer(pre_tokenizer: dict | None) -> list[_Step]:
    """The steps, in order. At the end "bytes" goes without saying."""
    steps = []
    for part in _parts(pre_tokenizer, "pretokenizers"):
        if part["type"] == "ByteLevel":
            if part.get("add_prefix_space", True):
                steps.append(_Step("prefix"))
            if part.get("use_regex", True):
                steps.append(_Step("split", _GPT2, "Isolated"))
            steps.append(_Step("bytes"))
        elif part["type"] == "Digits":
            behavior = "Isolated" if part.get("individual_digits") else "Contiguous"
            steps.append(_Step("split", _DIGIT, behavior))
        elif part["type"] == "Punctuation":
            steps.append(_Step("split", _PUNCTUATION, part.get("behavior", "Isolated")))
        elif part["type"] == "Split":
            pattern = _read_pattern(part["pattern"])
            steps.append(_Step("split", pattern, part["behavior"], bool(part.get("invert"))))
        else:
            raise InputError(
                f"pre_tokenizer {part['type']} is not supported; Split, Digits, Punctuation and "
                "ByteLevel are"
            )
    for step in steps:
        if step.kind == "split":
            _compile(step.pattern)
            if step.behavior not in ("Removed", "Isolated", *_JOINS):
                raise InputError(f"pre_tokenizer behavior {step.behavior} is not supported")
    if steps.count(_Step("bytes")) != 1:
        raise InputError(
            "the pre_tokenizer has no ByteLevel (a SentencePiece tokenizer?); give a byte-level BPE"
        )
    return steps[:-1] if steps[-1] == _Step("bytes") else steps


def _read_pattern(pattern: dict) -> str:
    if "String" in pattern:
        return regex.escape(pattern["String"])
    # After {1,3} a plus repeats in Oniguruma. In the other two it makes the braces possessive.
    return regex.sub(r"\{1,\d*\}\+", "+", pattern["Regex"])


@lru_cache
def _compile(split: str) -> regex.Pattern:
    # V1 has nested sets, as Oniguruma has, and MULTILINE gives ^ and $ of lines.
    try:
        return regex.compile(split, regex.V1 | regex.MULTILINE)
    except regex.error as error:
        raise InputError(f"split pattern {split!r} is not supported ({error})") from None


class _BPE:
    """The model of a tokenizer.json: it turns the bytes of a pre-token into ids.

    ids, bytes: token -> id, without the added tokens; id -> bytes, with them
    merges: pairs of tokens, in order
    missing: bytes that the vocabulary lacks, as one that was trained without a full alphabet
    """

    def __init__(self, model: dict, added: dict[str, dict], pattern: str | None):
        """pattern: with it tiktoken cuts a text into pre-tokens; None if there is none."""
        self.ids, self.merges = _read_model(model, added)
        # A pre-token in the vocabulary is a token, even if no merges lead to it.
        self.ignore_merges = bool(model.get("ignore_merges"))
        self.missing = {byte for byte in _IN_UTF8 if bytes([byte]) not in self.ids}
        # In their place stands this token, if there is one: one for a run of them with fuse_unk.
        self.unk_id, self.fuse_unk = None, bool(model.get("fuse_unk"))
        if model.get("unk_token") is not None and self.missing:
            self.unk_id = model["vocab"].get(model["unk_token"])
            if self.unk_id is None:
                raise InputError(f"unk_token {model['unk_token']!r} is not in the vocabulary")
        self.bytes = {id: _to_bytes(text) or text.encode() for text, id in model["vocab"].items()}
        self.bytes |= {row["id"]: text.encode() for text, row in added.items()}
        if len(self.bytes) != len({*model["vocab"], *added}):
            raise InputError("two tokens have the same id; correct the vocabulary")
        if not 0 <= min(self.bytes) <= max(self.bytes) < 2**31:
            raise InputError("an id is below 0 or has more than 31 bits; correct the vocabulary")
        # ids of a pair -> (rank of the merge, id of the token that it makes)
        self._merge_of = {
            (self.ids[left], self.ids[right]): (rank, self.ids[left + right])
            for rank, (left, right) in enumerate(self.merges)
        }
        self.ranks = _tiktoken_ranks(self.ids, self.merges, self.ignore_merges)
        self.splits = False  # whether tiktoken can cut a text into pre-tokens too
        self.id_of_rank = None  # None if ranks are ids, as in all published files that we know
        if self.ranks:
            encoding = _tiktoken(pattern, self.ranks) if pattern else None
            self.splits = encoding is not None
            self._tiktoken = encoding or _tiktoken(r"[\s\S]+", self.ranks)
            id_of_rank = {rank: self.ids[token] for token, rank in self.ranks.items()}
            if any(id != rank for rank, id in id_of_rank.items()):
                self.id_of_rank = id_of_rank

    def can_split(self, text: str) -> bool:
        """Whether `encode_text` can encode the text: it has no byte that the vocabulary lacks, and not
        so much white space in a row that tiktoken may exhaust its stack."""
        if not self.splits or (len(text) > 500_000 and regex.search(r"\s{500000}", text)):
            return False
        data = well_formed(text).encode()
        return not self.missing or len(data.translate(None, bytes(self.missing))) == len(data)

    def encode_text(self, text: str) -> list[int]:
        """The ids of all pre-tokens of a text."""
        return self._map(self._tiktoken.encode_ordinary(text))

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        """`encode_text` of each text, on all cores."""
        ranks = self._tiktoken.encode_ordinary_batch(texts, num_threads=cores())
        return [self._map(row) for row in ranks]

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of a pre-token."""
        if self.ignore_merges and data in self.ids:
            return [self.ids[data]]
        if self.unk_id is None:
            data = data.translate(None, bytes(self.missing))
        if self.ranks is not None and (self.unk_id is None or self.missing.isdisjoint(data)):
            return self._map(self._tiktoken._encode_single_piece(data)) if data else []
        # Plain BPE, for unknown bytes and for an order of merges that tiktoken's ranks cannot
        # express: the merge that is first in the list is done first.
        ids = []
        for i, byte in enumerate(data):
            fused = self.fuse_unk and i and data[i - 1] in self.missing and byte in self.missing
            if not fused:
                ids.append(self.ids.get(bytes([byte]), self.unk_id))
        while True:
            pairs = enumerate(pairwise(ids))
            found = [(self._merge_of[pair], i) for i, pair in pairs if pair in self._merge_of]
            if not found:
                return ids
            (_, made), i = min(found)
            ids[i : i + 2] = [made]

    def _map(self, ranks: list[int]) -> list[int]:
        return ranks if self.id_of_rank is None else [self.id_of_rank[rank] for rank in ranks]


def _read_model(model: dict, added: dict) -> tuple[dict[bytes, int], list[tuple[bytes, bytes]]]:
    """(token -> id without the added tokens, merges in order)."""
    if model.get("type", "BPE") != "BPE":
        raise InputError(
            f"model type {model['type']} is not supported; give a byte-level BPE tokenizer.json"
        )
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise InputError(
                f"model option {option}={model[option]!r} is not supported; give a byte-level BPE"
            )
    vocab = model["vocab"]
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    # Added tokens, and entries that are not byte-level, are never made from bytes.
    never = added.keys() - {left + right for left, right in merges}
    token = {text: _to_bytes(text) for text in vocab if text not in never or len(text) == 1}
    ids = {data: vocab[text] for text, data in token.items() if data is not None}
    pairs = []
    for number, (left, right) in enumerate(merges, 1):
        pair = (token.get(left), token.get(right))
        if not (pair[0] in ids and pair[1] in ids and pair[0] + pair[1] in ids):
            raise InputError(f"merge {number} ({left} {right}) has tokens outside the vocabulary")
        pairs.append(pair)
    return ids, list(dict.fromkeys(reversed(pairs)))[::-1]  # of equal merges the last one counts


# ---- tiktoken: ranks and pattern -----------------------------------------------------------------


def _tiktoken_ranks(
    ids: dict[bytes, int], merges: list[tuple[bytes, bytes]], ignore_merges: bool
) -> dict[bytes, int] | None:
    """token -> rank with which tiktoken encodes as the merges do. None if there is no such ranking.

    The two are different rules. A list of merges names pairs. tiktoken joins any pair whose
    concatenation has a rank, the lowest rank first, and takes a whole pre-token that has a rank.
    They agree for two kinds of lists:

    - Trained lists. Each token has a single merge, and encoding the bytes of the token ends with
      that merge (`_ends_with`).
    - Lists that were made from ranks, as LLaMA-3's. Each token has a merge for every way to cut it
      into two known tokens.
    """
    products = [left + right for left, right in merges]
    order = {token: rank for rank, token in enumerate(dict.fromkeys(products))}
    last_merge = {}  # token -> the merge with which encoding its bytes ends
    for pair, token in zip(merges, products, strict=True):
        if token not in last_merge and _ends_with(pair, last_merge, order):
            last_merge[token] = pair
    exact = len(last_merge) == len(order)  # the text of each token gives the token
    if len(order) < len(products):  # made from ranks
        exact = exact or ignore_merges
        # Every cut of a token is a merge, and the merges of a token stand together.
        exact = exact and sum(_count_cuts(token, ids) for token in order) == len(products)
        exact = exact and sum(a != b for a, b in pairwise(products)) == len(order) - 1
    # With ignore_merges a token without a merge is a whole pre-token, and nothing else may give it.
    unmerged = [token for token in ids if token not in order and len(token) > 1 and ignore_merges]
    if not exact or any(_count_cuts(token, ids) for token in unmerged):
        return None
    tokens = [*(token for token in ids if len(token) == 1), *order, *unmerged]
    if all(a < b for a, b in pairwise(ids[token] for token in order)):
        return {token: ids[token] for token in tokens}  # ids are ranks: only their order matters
    return {token: rank for rank, token in enumerate(tokens)}


def _count_cuts(token: bytes, ids: dict[bytes, int]) -> int:
    """In how many ways a token can be cut into two known tokens."""
    return sum(token[:i] in ids and token[i:] in ids for i in range(1, len(token)))


def _ends_with(
    pair: tuple[bytes, bytes], last_merge: dict[bytes, tuple[bytes, bytes]], rank: dict[bytes, int]
) -> bool:
    """Whether encoding the bytes of left + right, by rank, has (left, right) as its last step.

    It has not if an earlier merge joins something across the border. This function goes back in
    time from the last step and undoes the tokens at the border, the youngest first. So it sees
    every pair that meets at the border.
    """
    left, right = pair
    before = rank[left + right]  # an earlier merge across the border prevents the pair
    if any(len(part) > 1 and part not in last_merge for part in pair):
        return False  # the part comes later, or its text does not give it
    while left in last_merge or right in last_merge:
        if rank.get(left, -1) > rank.get(right, -1):
            before, left = rank[left], last_merge[left][1]
        else:  # of equal merges the leftmost is first, so the border precedes what is right of it
            before, right = rank[right] + 1, last_merge[right][0]
        if rank.get(left + right, before) < before:
            return False
    return True


def _tiktoken_pattern(steps: list[_Step]) -> str | None:
    """The pattern with which tiktoken cuts a text as the steps do; None if there is none.

    tiktoken keeps the matches and drops the text between them, as Split does that is Removed and
    inverted. An Isolated Split keeps this text: the second alternative matches it.
    """
    if not steps:
        return r"[\s\S]+"
    step = steps[0]
    if len(steps) > 1 or step.kind != "split":
        return None
    probe = "a1 Bc.\n\n  x  中'd2,345\t"  # tiktoken has no piece for a match of empty text
    if any(not match[0] for match in _compile(step.pattern).finditer(probe)):
        return None
    pattern = f"(?m:{step.pattern})"
    if step.behavior == "Isolated":
        return rf"{pattern}|(?:(?!{pattern})[\s\S])+"
    return pattern if step.behavior == "Removed" and step.invert else None


def _tiktoken(pattern: str, ranks: dict[bytes, int]) -> tiktoken.Encoding | None:
    """None if tiktoken cannot read the pattern."""
    try:
        return tiktoken.Encoding("BPE", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except ValueError:
        return None


# ---- Characters: bytes as visible ones, versions of Unicode, and the tables ----------------------


def visible(token: bytes) -> str:
    return "".join(_CHAR[byte] for byte in token)


def _to_bytes(visible: str) -> bytes | None:
    """The bytes that a vocabulary entry stands for; None if the entry is not byte-level."""
    try:
        return visible.translate(_BYTE).encode("latin-1")
    except UnicodeEncodeError:
        return None


def _stand_ins(text: str) -> dict[int, str]:
    """For `str.translate`: what stands for the characters of `text` that Unicode 16 lacks."""
    if text.isascii():
        return {}
    found = bytes(_UNASSIGNED.encode_ordinary(text)).decode()
    return {ord(char): _stand_in(char) for char in found}


@lru_cache
def _stand_in(char: str) -> str:
    """The next character that is not assigned in the newest Unicode either."""
    if _NEW_DIGITS.match(char):
        return _NEW_DIGIT
    return _compile(rf"[\p{{Cn}}--{_NEW_DIGIT}]").search(_every_character(), ord(char))[0]


@lru_cache
def _every_character() -> str:
    return "".join(map(chr, range(sys.maxunicode + 1)))


def _characters(ranges: str) -> str:
    """The set of a regular expression for ranges of code points, such as "7FD 898-89F"."""
    codes = regex.sub("[0-9A-F]+", lambda code: rf"\U{code[0]:>08}", ranges)
    return "[" + codes.replace(" ", "") + "]"


# The default expression of a ByteLevel pre-tokenizer, from GPT-2
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES = "".join(chr(c) for c in range(0x3001) if regex.match(r"\s", chr(c)))
# tokenizer.json writes a byte as a visible character. Printable Latin-1 stands for itself, the
# other 68 bytes are U+0100 and the following, in order.
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
_CHAR = {byte: chr(byte) for byte in _VISIBLE}
_CHAR |= {byte: chr(256 + i) for i, byte in enumerate(_HIDDEN)}
# For `str.translate`. The 68 characters themselves are not byte-level.
_BYTE = {byte: "\uffff" for byte in _HIDDEN} | {ord(char): byte for byte, char in _CHAR.items()}
_IN_UTF8 = [*range(0xC0), *range(0xC2, 0xF5)]  # the other bytes are in no text
# The libraries know different versions of Unicode. Oniguruma and tiktoken know 16, the regex module
# knows a newer one: `_stand_ins` hides what is new. Here tiktoken finds it; ids are its bytes.
_UNASSIGNED = _tiktoken(r"\p{Cn}", {bytes([byte]): byte for byte in range(256)})
# The Digits step knows Unicode 17. These digits have a stand-in that is not assigned and that only
# this step knows.
_NEW_DIGITS, _NEW_DIGIT = regex.compile(_characters("11DE0-11DE9 16FF4-16FF6")), "\u0379"
_DIGIT = rf"[\p{{N}}{_NEW_DIGIT}]"
# The Punctuation step knows Unicode 7.
_NEW_PUNCTUATION = _characters(
    "61D 9FD A76 C77 C84 1B4E-1B4F 1B7D-1B7F 2E43-2E4F 2E52-2E5D 10D6E 10EAD 10F55-10F59 "
    "10F86-10F89 113D4-113D8 1144B-1144F 1145A-1145D 11660-1166C 116B9 1183B 11944-11946 119E2 "
    "11A3F-11A46 11A9A-11AA2 11B00-11B09 11BE1 11C41-11C45 11C70-11C71 11EF7-11EF8 11F43-11F4F "
    "11FFF 12FF1-12FF2 16D6D-16D6F 16E97-16E9A 16FE2 1E5FF 1E95E-1E95F"
)
_PUNCTUATION = rf"[\p{{P}}$+<=>^`|~\u166D\U000111C9--{_NEW_PUNCTUATION}]"
# The normalizers know Unicode 9. To them, these marks and compositions are plain characters.
_NEW_MARKS = _characters(
    "7FD 897-89F 8CA-8D3 9FE C3C D3B-D3C EBA 1715 1ABF-1ACE 1DF6-1DFA 32FF A7F2-A7F4 A82C AB69 "
    "105C9 105E4 10781-107BA 10D24-10D27 10D69-10D6D 10EAB-10EAC 10EFD-10EFF 10F46-10F85 11070 "
    "1133B 11383-113D0 1145E 11839-1183A 11938-11943 119E0-11A99 11D42-11D97 11F41-11F42 "
    "1611E-1612F 16D67-16D6A 16FF0-16FF1 1CCD6-1CCF9 1E030-1E08F 1E130-1E136 1E2AE-1E2EF "
    "1E4EC-1E5EF 1F16C 1FBF0-1FBF9"
)
