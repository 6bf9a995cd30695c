"""The oracle of training is a naive BPE: it counts all pairs before each merge."""

import itertools
import json
import subprocess
import sys
from collections import Counter

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import CHINESE, CODE, CORPUS, ENGLISH, LATEX, any_text, mixed

from data.io import InputError
from data.tokenizer import Tokenizer
from data.train_tokenizer import PATTERN, _count_words, main, train

# The split pattern


@given(st.one_of(any_text, mixed))
@settings(max_examples=300)
def test_pattern_loses_nothing_and_keeps_kinds_apart(text):
    pieces = regex.findall(PATTERN, text, regex.V1)
    assert "".join(pieces) == text
    for piece in pieces:
        assert not regex.search(r"\p{N}", piece) or len(piece) == 1
        assert not regex.search(r"\p{Han}", piece) or regex.fullmatch(r"\p{Han}+", piece)


def test_pattern_on_hand_made_text():
    def cut(text):
        return regex.findall(PATTERN, text, regex.V1)

    assert cut("I'll pay $12.50, ok?") == [
        "I",
        "'ll",
        " pay",
        " $",
        "1",
        "2",
        ".",
        "5",
        "0",
        ",",
        " ok",
        "?",
    ]
    assert cut("中文abc，答案是42。") == ["中文", "abc", "，", "答案是", "4", "2", "。"]
    assert cut(r"\frac{x}{2} (a+b)") == ["\\frac", "{x", "}{", "2", "}", " (", "a", "+b", ")"]
    assert cut("x = 1\n\n    y") == ["x", " =", " ", "1", "\n\n", "   ", " y"]
    assert cut("naïve e\u0301te\u0301") == ["naïve", " e\u0301te\u0301"]


def test_digits_stand_alone():
    tokenizer = train(["2024 2024 10000 x10 =10 12:30 " * 200], 500)
    assert [tokenizer.decode([id]) for id in tokenizer.encode("2024x10000")] == list("2024x10000")
    digits = set(b"0123456789")
    assert all(len(token) == 1 for token in tokenizer._bpe.ids if digits & set(token))


# Training


def naive_merges(texts, limit):
    """BPE by its definition: count all pairs before each merge; among equals take the lowest
    ids."""
    words = Counter(word for text in texts for word in regex.findall(PATTERN, text, regex.V1))
    words = {word: (list(word.encode()), count) for word, count in words.items()}
    merges = []
    while len(merges) < limit:
        pairs = Counter()
        for ids, count in words.values():
            for pair in itertools.pairwise(ids):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        for word, (ids, count) in words.items():
            merged = []
            for id in ids:
                if merged and (merged[-1], id) == best:
                    merged[-1] = 256 + len(merges)
                else:
                    merged.append(id)
            words[word] = merged, count
        merges.append(best)
    return merges


def learned_merges(tokenizer):
    ids = tokenizer._bpe.ids
    return [(ids[left], ids[right]) for left, right in tokenizer._bpe.merges]


@pytest.mark.parametrize("texts", [[ENGLISH, LATEX], [CHINESE], [CODE[:1500]]])
def test_trainer_equals_naive_trainer(texts):
    assert learned_merges(train(texts, 257 + 150)) == naive_merges(texts, 150)


@settings(max_examples=200)
@given(st.lists(st.text("aab ", max_size=20), min_size=1, max_size=8).filter(any))
def test_trainer_equals_naive_trainer_on_repetitive_text(texts):
    assert learned_merges(train(texts, 300)) == naive_merges(texts, 43)


def test_training_is_deterministic_and_the_same_in_parallel():
    texts = [f"{text} {index} {index % 97}x" for index in range(1600) for text in CORPUS]
    assert sum(map(len, texts)) > 2 << 22  # three chunks
    hashes = {train(order, 500, workers=n).hash for order, n in ((texts, 2), (reversed(texts), 1))}
    words = Counter(word for text in texts for word in regex.findall(PATTERN, text, regex.V1))
    assert _count_words(texts, 2, lambda line: None) == {w.encode(): n for w, n in words.items()}
    assert len(hashes) == 1


def test_training_input_errors():
    with pytest.raises(InputError, match="vocab_size 256 is too small.* 257"):
        train(["text"], 256)
    assert train(["text"], 257).vocab_size == 257
    assert (
        train(["text text"], 1000).vocab_size == 257 + 3
    )  # t e, te x, tex t; then no pair occurs twice
    for texts in ([], [""]):
        with pytest.raises(InputError, match="no text"):
            train(texts, 300)
    for special in ([], [""], ["<a>", "<a>"]):
        with pytest.raises(InputError, match="special tokens"):
            train(["text"], 300, special)


def test_command(tmp_path):
    (tmp_path / "a.txt").write_text(3 * (ENGLISH + LATEX))
    rows = [
        {"text": CHINESE},
        {"question": "How many?", "response": "Many"},
        {"question": "Q", "solution": "S"},
    ]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        sys.executable,
        "-m",
        "data.train_tokenizer",
        "--vocab_size",
        "400",
        "--to",
        str(tmp_path / "out"),
        "--input",
    ]
    done = subprocess.run(
        [*command, tmp_path / "a.txt", tmp_path / "b.jsonl"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert regex.search(r"\[ *\d+\.\d s\] 400 tokens in", done.stderr)
    texts = [3 * (ENGLISH + LATEX), CHINESE, "How many?", "Many", "Q", "S"]
    assert Tokenizer.load(tmp_path / "out").hash == train(texts, 400).hash

    done = subprocess.run([*command, tmp_path / "missing.txt"], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and "missing.txt: cannot be read" in done.stderr


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b'{"text": "x"}\n{"answer": "1"}\n', "a.jsonl:2: needs a string"),
        ("a.jsonl", b'{"text": 1}\n', "a.jsonl:1: needs a string"),
        ("a.txt", b"\xff\xfe", "a.txt: not UTF-8"),
        ("a.txt", b"", "no text"),
    ],
)
def test_command_refuses_bad_input(tmp_path, monkeypatch, name, content, message):
    (tmp_path / name).write_bytes(content)
    options = [
        "--input",
        str(tmp_path / name),
        "--vocab_size",
        "300",
        "--to",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr(sys, "argv", ["train_tokenizer", *options])
    with pytest.raises(InputError, match=message):
        main()
    assert not (tmp_path / "out").exists()
