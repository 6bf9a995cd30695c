"""minhash.py against exact Jaccard similarity."""

import random
from itertools import combinations

import numpy as np
import pytest
from edits import edited, words
from hypothesis import given
from hypothesis import strategies as st

from data.mine import ngrams
from data.mine.minhash import acceptance, band_keys, banding, signatures, similarity


def grams(text, n=5):
    words = text.split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} or {tuple(words)}


def jaccard(a, b, n=5):
    a, b = grams(a, n), grams(b, n)
    return len(a & b) / len(a | b)


# ---- Signatures ------------------------------------------------------------------------------


@pytest.mark.parametrize("permutations", [128, 100])
@pytest.mark.parametrize(
    "length, edits", [(2, 1), (6, 1), (8, 1), (12, 2), (30, 2), (150, 4), (600, 30)]
)
def test_estimate_is_without_bias(length, edits, permutations):
    """Over many pairs, the mean error is 0 within the sampling error.

    This holds for texts shorter than the signature (most places are then copied from others) and
    for long texts. The spread is that of independent draws.
    """
    rng, pairs = random.Random(length), 400 if length < 100 else 120
    first = [" ".join(words(rng, length)) for _ in range(pairs)]
    second = [edited(rng, text, edits) or "x" for text in first]
    exact = np.array([jaccard(a, b) for a, b in zip(first, second, strict=True)])
    errors = similarity(*(signatures(texts, permutations) for texts in (first, second))) - exact
    expected = np.sqrt(
        (exact * (1 - exact)).mean() / permutations
    )  # standard error of one estimate
    assert abs(errors.mean()) <= 4 * expected / np.sqrt(pairs) + 1e-12
    assert errors.std() <= 1.3 * expected + 1e-12


def test_every_place_is_a_draw():
    """Every place agrees as often as the texts are similar; no place is worse than the others."""
    rng = random.Random(3)
    first = [" ".join(words(rng, 20)) for _ in range(2000)]
    second = [edited(rng, text, 1) for text in first]
    exact = np.mean([jaccard(a, b) for a, b in zip(first, second, strict=True)])
    share = (signatures(first) == signatures(second)).mean(0)
    assert np.abs(share - exact).max() < 5 * np.sqrt(exact * (1 - exact) / 2000)


@given(texts=st.lists(st.text("ab 数学.\n", max_size=30), max_size=8), cut=st.integers(0, 8))
def test_a_text_has_the_same_signature_in_any_batch(texts, cut):
    whole = signatures(texts, 16, 3)
    assert whole.shape == (len(texts), 16) and whole.dtype == np.uint32
    assert np.array_equal(
        whole, np.concatenate([signatures(texts[:cut], 16, 3), signatures(texts[cut:], 16, 3)])
    )


def test_the_batch_size_changes_nothing(monkeypatch):
    rng = random.Random(0)
    texts = [" ".join(words(rng, rng.randrange(60))) for _ in range(50)]
    whole = signatures(texts)
    monkeypatch.setattr(ngrams, "_BATCH", 100)
    assert len(list(ngrams.batches(texts))) > 20
    assert np.array_equal(signatures(texts), whole)


def test_what_a_signature_depends_on():
    one, two, case, short, other, empty, signs = signatures(
        ["a b c d e f", "a b c d e f g", "A, b: c\nd (e) F!", "a b c", "a b d", "", "?! ..."]
    )
    assert np.array_equal(one, case) and not np.array_equal(one, two)
    assert not (short == other).any()  # a single n-gram each, of all their words
    assert (empty == 0xFFFFFFFF).all() and (signs == 0xFFFFFFFF).all()
    assert (
        signatures(["a b c d e f g h i j"] * 2, seed=1) != signatures(["a b c d e f g h i j"] * 2)
    ).all()
    assert signatures([]).shape == (0, 128)


def test_seeds_are_independent():
    """The mean over seeds approaches the truth as the mean of independent draws does."""
    rng = random.Random(5)
    a = " ".join(words(rng, 80))
    b = edited(rng, a, 4)
    estimates = [
        float(similarity(signatures([a], seed=s), signatures([b], seed=s))[0]) for s in range(100)
    ]
    exact = jaccard(a, b)
    assert abs(np.mean(estimates) - exact) < 4 * np.sqrt(exact * (1 - exact) / 128 / 100)
    assert len(set(estimates)) > 5


def test_signatures_never_change():
    """Signatures are stored on disk. A change would make stored ones wrong without a warning."""
    assert signatures(["one two three four five six"], 8).tolist() == [FIXED]


FIXED = [
    1629267931,
    4184396829,
    4184396829,
    4184396829,
    1629267931,
    4184396829,
    1629267931,
    1629267931,
]


# ---- LSH -------------------------------------------------------------------------------------


def test_banding_by_hand():
    # 1 - (1 - 0.8^6)^21 = 0.9983. With 7 rows and 18 bands it would be 0.9855.
    assert banding(0.8, 128) == (21, 6)
    assert banding(1.0, 128) == (1, 128)
    assert acceptance(0.8, 100) == pytest.approx(0.76)


def test_band_keys_are_equal_where_bands_are():
    rng = np.random.default_rng(0)
    signed = rng.integers(0, 2, (200, 13)).astype(np.uint32)
    keys = band_keys(signed, 4, 3)
    for i, j in combinations(range(200), 2):
        same = [
            (signed[i, 3 * k : 3 * k + 3] == signed[j, 3 * k : 3 * k + 3]).all() for k in range(4)
        ]
        assert (keys[i] == keys[j]).tolist() == same
    assert not set(keys[:, 0].tolist()) & set(keys[:, 1].tolist())  # a key depends on the band


def similarities(texts):
    """The exact Jaccard similarity of all pairs: [texts, texts]."""
    names = {}
    rows = [[names.setdefault(gram, len(names)) for gram in grams(text)] for text in texts]
    member = np.zeros((len(texts), len(names)), np.float32)
    for row, columns in enumerate(rows):
        member[row, columns] = 1
    both, sizes = member @ member.T, member.sum(1)
    return both / (sizes[:, None] + sizes - both)


def test_recall_and_precision_of_near_pairs():
    """Against the exact similarity of all pairs, many of them close to the threshold.

    At least 95 % of the pairs above it are found, and pairs found below it are a few standard
    errors away at most.
    """
    rng, texts = random.Random(11), []
    for _ in range(90):
        text = " ".join(words(rng, rng.choice([40, 100, 300, 600])))
        rates = [rng.choice([0.003, 0.01, 0.02, 0.03, 0.05]) for _ in range(3)]
        texts += [
            text,
            *(edited(rng, text, round(len(text.split()) * rate) or 1) for rate in rates),
        ]
    upper = np.triu_indices(len(texts), 1)
    exact, signed = similarities(texts)[upper], signatures(texts)
    keys = band_keys(signed, *banding(0.8, 128))
    candidate = (keys[upper[0]] == keys[upper[1]]).any(1)
    found = candidate & (similarity(signed[upper[0]], signed[upper[1]]) >= acceptance(0.8, 128))
    near = exact >= 0.8
    assert (
        near.sum() > 250
        and (near & (exact < 0.85)).sum() > 60
        and ((exact > 0.7) & ~near).sum() > 60
    )
    assert candidate[near].mean() >= 0.99
    assert found[near].mean() >= 0.95 and found[exact >= 0.85].mean() >= 0.99
    assert (
        near[found].mean() >= 0.8
        and (exact[found] >= 0.75).mean() >= 0.95
        and exact[found].min() > 0.6
    )
    assert candidate[exact < 0.3].mean() < 0.01
