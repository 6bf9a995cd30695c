"""Random texts, and edited copies of them."""


def words(rng, count, vocabulary=2000):
    """Random words."""
    return [f"w{rng.randrange(vocabulary)}" for _ in range(count)]


def random_text(rng, count):
    return " ".join(words(rng, count))


def edited(rng, text, edits):
    """Replace, remove or add some words of a text."""
    result = text.split()
    for _ in range(edits):
        at = rng.randrange(len(result) + 1)
        result[at : at + rng.randrange(2)] = words(rng, rng.randrange(2))
    return " ".join(result)
