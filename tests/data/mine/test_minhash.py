"""minhash.py against exact Jaccard similarity."""

import random
from itertools import combinations

import numpy as np
import pytest
from edits import edited, random_text
from hypothesis import given
from hypothesis import strategies as st

from data.mine import ngrams
from data.mine.minhash import acceptance, band_keys, banding, signatures, similarity


def grams(text, n=5):
    """The set of word n-grams; a short text has a single n-gram."""
    words = text.split()
    last = max(len(words) - n, 0)
    return {tuple(words[i : i + n]) for i in range(last + 1)}


def jaccard(a, b):
    a, b = grams(a), grams(b)
    return len(a & b) / len(a | b)


def exact_similarities(first, second):
    """The exact similarity of each pair: [pairs]."""
    pairs = zip(first, second, strict=True)
    return np.array([jaccard(a, b) for a, b in pairs])


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
    rng = random.Random(length)
    pairs = 400 if length < 100 else 120
    first = [random_text(rng, length) for _ in range(pairs)]
    second = [edited(rng, text, edits) or "x" for text in first]
    exact = exact_similarities(first, second)
    estimates = similarity(
        signatures(first, permutations),
        signatures(second, permutations),
    )
    errors = estimates - exact
    variance = (exact * (1 - exact)).mean()
    expected = np.sqrt(variance / permutations)  # standard error of an estimate
    assert abs(errors.mean()) <= 4 * expected / np.sqrt(pairs) + 1e-12
    assert errors.std() <= 1.3 * expected + 1e-12


def test_every_place_is_a_draw():
    """Every place agrees as often as the texts are similar; no place is worse than the others."""
    rng = random.Random(3)
    first = [random_text(rng, 20) for _ in range(2000)]
    second = [edited(rng, text, 1) for text in first]
    exact = exact_similarities(first, second).mean()
    equal = signatures(first) == signatures(second)
    errors = np.abs(equal.mean(0) - exact)
    assert errors.max() < 5 * np.sqrt(exact * (1 - exact) / 2000)


@given(texts=st.lists(st.text("ab 数学.\n", max_size=30), max_size=8), cut=st.integers(0, 8))
def test_a_text_has_the_same_signature_in_any_batch(texts, cut):
    whole = signatures(texts, 16, 3)
    assert whole.shape == (len(texts), 16)
    assert whole.dtype == np.uint32
    before = signatures(texts[:cut], 16, 3)
    after = signatures(texts[cut:], 16, 3)
    assert np.array_equal(whole, np.concatenate([before, after]))


def test_the_batch_size_changes_nothing(monkeypatch):
    rng = random.Random(0)
    texts = [random_text(rng, rng.randrange(60)) for _ in range(50)]
    whole = signatures(texts)
    monkeypatch.setattr(ngrams, "_BATCH", 100)
    assert len(list(ngrams.batches(texts))) > 20
    assert np.array_equal(signatures(texts), whole)


def test_what_a_signature_depends_on():
    def sign(text, seed=0):
        return signatures([text], seed=seed)[0].tolist()

    # Case and punctuation do not matter, but every word does.
    assert sign("A, b: c\nd (e) F!") == sign("a b c d e f") != sign("a b c d e f g")
    # A short text has a single n-gram, of all its words.
    assert not set(sign("a b c")) & set(sign("a b d"))
    # No words, no n-grams.
    assert sign("") == sign("?! ...") == [0xFFFFFFFF] * 128
    assert not set(sign("a b c d e f g", seed=1)) & set(sign("a b c d e f g"))
    assert signatures([]).shape == (0, 128)


def test_seeds_are_independent():
    """The mean over seeds approaches the truth as the mean of independent draws does."""
    rng = random.Random(5)
    a = random_text(rng, 80)
    b = edited(rng, a, 4)
    estimates = []
    for seed in range(100):
        first, second = signatures([a, b], seed=seed)
        estimates.append((first == second).mean())
    exact = jaccard(a, b)
    expected = np.sqrt(exact * (1 - exact) / 128 / 100)
    assert abs(np.mean(estimates) - exact) < 4 * expected
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
        equal = signed[i, :12] == signed[j, :12]
        same = equal.reshape(4, 3).all(1)
        assert np.array_equal(keys[i] == keys[j], same)
    # A key depends on the band.
    first, second = keys.T[:2].tolist()
    assert not set(first) & set(second)


def similarities(texts):
    """The exact Jaccard similarity of all pairs: [texts, texts]."""
    sets = [grams(text) for text in texts]
    columns = {gram: i for i, gram in enumerate(set().union(*sets))}
    member = np.zeros((len(texts), len(columns)), np.float32)
    for row, some in enumerate(sets):
        member[row, [columns[gram] for gram in some]] = 1
    both = member @ member.T
    sizes = member.sum(1)
    return both / (sizes[:, None] + sizes - both)


def test_recall_and_precision_of_near_pairs():
    """Against the exact similarity of all pairs, many of them close to the threshold.

    At least 95 % of the pairs above it are found, and pairs found below it are a few standard
    errors away at most.
    """
    # Texts, and three edited copies of each.
    rng = random.Random(11)
    texts = []
    for _ in range(90):
        size = rng.choice([40, 100, 300, 600])
        text = random_text(rng, size)
        texts.append(text)
        for _ in range(3):
            rate = rng.choice([0.003, 0.01, 0.02, 0.03, 0.05])
            texts.append(edited(rng, text, round(size * rate) or 1))

    # All pairs: the exact similarity, candidates of LSH, and pairs that count as near.
    first, second = np.triu_indices(len(texts), 1)
    exact = similarities(texts)[first, second]
    signed = signatures(texts)
    keys = band_keys(signed, *banding(0.8, 128))
    candidate = (keys[first] == keys[second]).any(1)
    estimate = similarity(signed[first], signed[second])
    accepted = candidate & (estimate >= acceptance(0.8, 128))

    # Many pairs are close to the threshold.
    near = exact >= 0.8
    assert near.sum() > 250
    assert (near & (exact < 0.85)).sum() > 60
    assert (~near & (exact > 0.7)).sum() > 60

    # Recall
    assert candidate[near].mean() >= 0.99
    assert accepted[near].mean() >= 0.95
    assert accepted[exact >= 0.85].mean() >= 0.99

    # Precision
    assert near[accepted].mean() >= 0.8
    assert (exact[accepted] >= 0.75).mean() >= 0.95
    assert exact[accepted].min() > 0.6
    assert candidate[exact < 0.3].mean() < 0.01
