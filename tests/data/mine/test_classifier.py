"""classifier.py against simple SGD (one text at a time, float64) and the fastText library."""

import functools
import itertools
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from data.io import InputError
from data.mine import classifier, ngrams
from data.mine.classifier import Settings, Table, bucket_numbers, count_words, load, train
from data.mine.ngrams import unit_hashes

SMALL = Settings(width=8, buckets=97, epochs=2, rate=3.0, min_count=2)
MATH = "theorem proof sum x^2 = integral lemma 证 明 数".split()
OTHER = "market game price the team news money of 新 闻".split()


def make_texts(words: list[str], count: int, seed: int, length: int = 30) -> list[str]:
    """Texts with half of the words of this kind; the other words are of both kinds or rare."""
    draw = random.Random(seed)
    rare = [f"rare{seed}{i}" for i in range(200)]
    pick = [words, MATH + OTHER, MATH + OTHER + rare]
    texts = []
    for _ in range(count):
        size = draw.randrange(length)
        texts.append(" ".join(draw.choice(draw.choice(pick)) for _ in range(size)))
    return texts


POSITIVES, NEGATIVES = make_texts(MATH, 40, 1), make_texts(OTHER, 45, 2)


def features(text: str, words: set[str], settings: Settings) -> list:
    """The features of a text: kept words as strings, n-grams as bucket numbers."""
    parts = [*text.split(), "</s>"]  # these texts have no CJK character inside a word
    found = [part for part in parts if part in words]
    for n in range(2, settings.ngrams + 1):
        for i in range(len(parts) - n + 1):
            gram = unit_hashes([" ".join(parts[i : i + n])], "space")
            found.append(int(dict(bucket_numbers(gram, settings))[n][0]))
    return found


def kept_words(texts: list[str], settings: Settings) -> set[str]:
    return {
        word
        for word, count in Counter(" </s> ".join([*texts, ""]).split()).items()
        if count >= settings.min_count
    }


def plain_sgd(positives, negatives, settings, seed) -> dict:
    """The weight of each feature after SGD as in fastText, with two output vectors."""
    texts = [*positives, *negatives]
    words = kept_words(texts, settings)
    bags = [features(text, words, settings) for text in texts]
    by_hash = sorted(words, key=lambda word: int(unit_hashes([word], "space").values[0]))
    buckets = {feature for feature in itertools.chain(*bags) if isinstance(feature, int)}
    rows = [*by_hash, *sorted(buckets)]
    start = classifier.initial_vectors(0, len(rows), settings.width, seed).astype(np.float64)
    vectors = dict(zip(rows, start, strict=True))
    output = np.zeros((2, settings.width))
    counts = np.array([len(text.split()) + 1 for text in texts])
    for block, rates in classifier.schedule(counts, settings, seed):
        for i, rate in zip(block, rates, strict=True):
            if not bags[i]:
                continue
            mean = sum(vectors[f] for f in bags[i]) / len(bags[i])
            p = np.exp(output @ mean)
            p /= p.sum()
            label = np.array([0, 1] if i < len(positives) else [1, 0])
            error = rate * (label - p)
            change = error @ output / len(bags[i])
            output += error[:, None] * mean
            for f in bags[i]:
                vectors[f] = vectors[f] + change
    return {f: v @ (output[1] - output[0]) for f, v in vectors.items()}


@pytest.mark.parametrize("block", [1, 7, 64])
def test_training_is_plain_sgd(block, monkeypatch):
    monkeypatch.setattr(classifier, "_BLOCK", block)
    found = train(POSITIVES, NEGATIVES, SMALL, seed=3)
    wanted = plain_sgd(POSITIVES, NEGATIVES, SMALL, seed=3)
    assert max(map(abs, wanted.values())) > 0.5  # it has learned
    words = {f: w for f, w in wanted.items() if isinstance(f, str)}
    assert len(found.words) == len(words)
    values, known = Table(found.words, found.word_weights).find(
        unit_hashes([" ".join(words)], "space").values
    )
    assert known.all()
    np.testing.assert_allclose(values, list(words.values()), rtol=1e-4, atol=1e-5)
    buckets = {f: w for f, w in wanted.items() if isinstance(f, int)}
    np.testing.assert_allclose(
        found.bucket_weights[list(buckets)], list(buckets.values()), rtol=1e-4, atol=1e-5
    )
    assert set(np.flatnonzero(found.bucket_weights)) <= set(buckets)


def test_rate_falls_with_the_words_that_are_done():
    settings = Settings(rate=1.0, epochs=2)
    sizes = np.array([1, 2, 5])
    (first, rates), (second, later) = classifier.schedule(sizes, settings, 0)
    assert rates[0] == 1
    assert rates[1] == 1 - sizes[first[0]] / 16
    assert later[0] == 0.5
    assert later[2] == 1 - (16 - sizes[second[2]]) / 16


def test_threads_and_batches_change_nothing(monkeypatch):
    monkeypatch.setattr(classifier, "_SLICE", 16)
    one = train(POSITIVES, NEGATIVES, SMALL, seed=1)
    monkeypatch.setattr(classifier, "_COUNTED", 100)
    monkeypatch.setattr(ngrams, "_BATCH", 50)
    other = train(iter(POSITIVES), iter(NEGATIVES), SMALL, seed=1, threads=3)
    for name in ("words", "word_weights", "bucket_weights"):
        assert (getattr(one, name) == getattr(other, name)).all()
    assert (train(POSITIVES, NEGATIVES, SMALL, seed=2).word_weights != one.word_weights).all()


def test_margins_are_plain_means():
    found = train(POSITIVES, NEGATIVES, SMALL)
    words = kept_words(POSITIVES + NEGATIVES, SMALL)
    table = Table(found.words, found.word_weights)
    texts = [
        *make_texts(MATH, 10, 3),
        *make_texts(OTHER, 10, 4),
        "",
        "never seen",
        "alone",
        "数",
        " \n",
    ]
    for text, margin in zip(texts, found.margins(texts), strict=True):
        weights = [
            table.find(unit_hashes([f], "space").values)[0][0]
            if isinstance(f, str)
            else found.bucket_weights[f]
            for f in features(text, words, SMALL)
        ]
        mean = np.mean(weights) if weights else 0.0
        assert margin == pytest.approx(mean, rel=1e-5, abs=1e-6)


def test_margins_do_not_saturate():
    """Where probabilities are 1 or 0, margins still differ, in the same order."""
    few = trained()
    sure = replace(
        few, word_weights=few.word_weights * 100, bucket_weights=few.bucket_weights * 100
    )
    texts = [*make_texts(MATH, 300, 13), *make_texts(OTHER, 300, 14), "", "theorem " * 1000]
    margins = sure.margins(texts)
    scores = classifier._sigmoid(margins)
    assert margins.dtype == np.float32 and np.isfinite(margins).all()
    assert (scores == 1).sum() > 50
    assert len(np.unique(scores)) < 0.9 * len(np.unique(margins))
    assert (
        len(np.unique(margins)) >= len(set(texts)) - 5
    )  # a few have no known word, or the same words
    assert (np.diff(scores[np.argsort(margins)]) >= 0).all()
    assert scores.min() >= 0 and scores.max() <= 1
    np.testing.assert_allclose(margins, 100 * few.margins(texts), rtol=1e-4, atol=1e-4)


@hypothesis_settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(12)), batch=st.sampled_from([1, 40, 400, 10**6]))
def test_a_margin_does_not_depend_on_other_texts(order, batch):
    texts = [*make_texts(MATH, 6, 5, 80), "", *make_texts(OTHER, 5, 6, 80)]
    before, ngrams._BATCH = ngrams._BATCH, batch
    try:
        together = trained().margins(texts[i] for i in order)
    finally:
        ngrams._BATCH = before
    assert together.dtype == np.float32
    assert together.tolist() == [trained().margins([texts[i]])[0] for i in order]


@functools.cache
def trained() -> classifier.Classifier:
    return train(POSITIVES, NEGATIVES, SMALL)


def test_new_texts_are_classified():
    texts = make_texts(MATH, 100, 7) + make_texts(OTHER, 100, 8)
    labels = np.repeat([True, False], 100)
    long = [len(text.split()) > 9 for text in texts]
    right = []
    for seed in range(6):
        model = train(POSITIVES, NEGATIVES, SMALL, seed=seed)
        right.append((model.margins(texts) > 0) == labels)
    assert np.mean(right, 0)[long].mean() > 0.85


@pytest.mark.parametrize("rate, width", [(0.1, 256), (0.5, 64)])
def test_as_accurate_as_the_library(rate, width, tmp_path):
    """The mean accuracy differs by half a point at most: barely trained (0.1, 256), or well."""
    fasttext = pytest.importorskip(
        "fasttext", reason="needs the fasttext package: pip install fasttext"
    )
    positives = make_texts(MATH, 400, 9, 60)
    negatives = make_texts(OTHER, 400, 10, 60)
    texts = make_texts(MATH, 1000, 11, 60) + make_texts(OTHER, 1000, 12, 60)
    labels = np.repeat([True, False], 1000)
    rows = [f"__label__math {text}" for text in positives]
    rows += [f"__label__other {text}" for text in negatives]
    path = tmp_path / "train.txt"
    ours, theirs = [], []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        library = fasttext.train_supervised(
            str(path),
            dim=width,
            lr=rate,
            wordNgrams=3,
            minCount=3,
            epoch=3,
            bucket=2**16,
            thread=1,
            seed=seed,
            verbose=0,
        )
        # The method of the library's Python class fails with NumPy 2, so call the method inside.
        found = [
            dict((b, a) for a, b in library.f.predict(text + "\n", 2, 0.0, "strict"))
            for text in texts
        ]
        theirs.append([row["__label__math"] for row in found])
        chosen = Settings(width=width, rate=rate, buckets=2**16)
        model = train(positives, negatives, chosen, seed)
        ours.append(classifier._sigmoid(model.margins(texts)))
    ours, theirs = np.array(ours), np.array(theirs)
    accuracy = ((ours > 0.5) == labels).mean()
    library_accuracy = ((theirs > 0.5) == labels).mean()
    assert library_accuracy > 0.9
    assert abs(accuracy - library_accuracy) <= 0.005
    assert np.corrcoef(ours.mean(0), theirs.mean(0))[0, 1] > 0.97


def test_a_rare_word_has_no_weight_but_its_ngrams_do():
    settings = Settings(width=4, buckets=10_000, min_count=3)
    found = train(["a a a b"], ["c c c"], settings)
    hashes = unit_hashes(["a b c"], "space").values
    assert sorted(found.words.tolist()) == sorted([int(hashes[0]), int(hashes[2])])
    bigram = dict(bucket_numbers(unit_hashes(["a b"], "space"), settings))[2]
    assert found.bucket_weights[bigram] != 0
    assert np.count_nonzero(found.bucket_weights) == 10  # aa ab b/ aaa aab ab/ cc c/ ccc cc/


def test_explained_shares_sum_to_the_margin():
    text = POSITIVES[3]
    shares = trained().explain(text, 10**6)
    (margin,) = trained().margins([text])
    assert sum(share for _, share in shares) == pytest.approx(margin, abs=1e-5)
    sizes = [abs(share) for _, share in shares]
    assert sizes == sorted(sizes, reverse=True)
    assert trained().explain(text, 2) == shares[:2]
    assert dict(trained().explain("", 5)).keys() == {"</s>"}
    assert dict(trained().explain("theorem 证明", 10)).keys() == {
        "theorem",
        "证",
        "明",
        "</s>",
        "theorem 证",
        "证 明",
        "明 </s>",
        "theorem 证 明",
        "证 明 </s>",
    }


@given(
    st.lists(st.integers(1, 2**64 - 1), unique=True, max_size=60),
    st.lists(st.integers(1, 2**64 - 1), max_size=9),
)
def test_table_is_a_dictionary(keys, others):
    values = np.arange(len(keys)) * 3
    wanted = dict(zip(keys, values.tolist(), strict=True))
    table = Table(np.array(keys, np.uint64), values)
    queries = [*keys, *others, *others]
    found, known = table.find(np.array(queries, np.uint64))
    assert known.tolist() == [key in wanted for key in queries]
    assert found.tolist() == [wanted.get(key, 0) for key in queries]


def test_table_with_many_collisions():
    keys = np.arange(1, 200, dtype=np.uint64) | np.uint64(2**64 - 2**32)
    found, known = Table(keys[::2], np.arange(100)).find(keys)
    assert known.tolist() == [i % 2 == 0 for i in range(199)]
    assert found[::2].tolist() == list(range(100))


@given(st.lists(st.integers(0, 20), max_size=80), st.integers(1, 5))
def test_count_words(values, least):
    before, classifier._COUNTED = classifier._COUNTED, 7
    try:
        found = count_words(np.array(values, np.uint64), least)
    finally:
        classifier._COUNTED = before
    assert found.tolist() == sorted(
        value for value, count in Counter(values).items() if count >= least
    )


def test_saved_and_loaded(tmp_path):
    path = tmp_path / "deep" / "classifier.npz"
    trained().save(path)
    back = load(path)
    assert (
        back.settings == trained().settings
        and (back.margins(POSITIVES) == trained().margins(POSITIVES)).all()
    )
    first = path.read_bytes()
    back.save(path)
    assert path.read_bytes() == first and list(path.parent.iterdir()) == [path]


def test_a_file_that_is_not_a_classifier(tmp_path):
    whole = tmp_path / "whole.npz"
    trained().save(whole)
    data = whole.read_bytes()
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "objects.npz", about=np.array([{}], dtype=object))
    files = {
        "cut.npz": data[:-100],
        "short.npz": data[:50],
        "empty.npz": b"",
        "text.npz": b"hello",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in [*files, "other.npz", "objects.npz", "missing.npz", "."]:
        with pytest.raises(InputError, match=f"(?s){tmp_path}.*classifier"):
            load(tmp_path / name)


def test_bad_input():
    with pytest.raises(InputError, match="the positives have no text"):
        train([], ["a"], SMALL)
    with pytest.raises(InputError, match="the negatives have no text"):
        train(["a"], ["", " "], SMALL)
    for settings, name in (
        (Settings(width=0), "width"),
        (Settings(buckets=2**32), "buckets"),
        (Settings(rate=float("nan")), "rate"),
    ):
        with pytest.raises(InputError, match=f"classifier: {name} is"):
            train(["a"], ["b"], settings)
    with pytest.raises(InputError, match="threads"):
        train(["a"], ["b"], SMALL, threads=0)
