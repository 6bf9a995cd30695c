"""data/mine/dedup.py against exact Jaccard similarity, brute force over all pairs, and dictionaries."""

import json
import random
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.io import InputError, write_jsonl
from data.mine import dedup
from data.mine.dedup import (
    Settings,
    acceptance,
    band_keys,
    banding,
    deduplicate,
    normalize_url,
    signatures,
    similarity,
)

# ---- URLs ------------------------------------------------------------------------------------------------------------

SAME = [
    "http://example.com/a/b?x=1&y=2",
    "https://example.com/a/b?x=1&y=2",
    "HTTP://WWW.EXAMPLE.COM/a/b?x=1&y=2",
    "http://example.com:80/a/b?x=1&y=2",
    "https://example.com:443/a/b/?x=1&y=2",
    "http://example.com./a/b?x=1&y=2",
    "http://user:pass@example.com/a/b?x=1&y=2",
    "example.com/a/b?x=1&y=2",
    "example.com:80/a/b?x=1&y=2",
    "//example.com/a/b?x=1&y=2",
    " http://example.com/a/b?x=1&y=2\n",
    "http://example.com/a/b?y=2&x=1",
    "http://example.com/a/b?x=1&y=2#part",
    "http://example.com/a/b?x=1&&y=2&",
    "http://example.com/a/b/index.html?x=1&y=2",
    "http://example.com/a/b/Default.aspx?x=1&y=2",
    "http://example.com/a/./c/../b?x=1&y=2",
    "http://example.com/%61/b?x=1&y=2",
    "http://example.com/a/b;jsessionid=1A2B?x=1&y=2",
    "http://example.com/a/b?utm_source=n&x=1&y=2&utm_medium=m&fbclid=Iw&gclid=C&PHPSESSID=0a&sessionid=3",
    "http://example.com/a/b?x=1&y=2&sid=0123456789abcdef0123456789abcdef",
]
DIFFERENT = [
    "http://example.com/a/b?x=1&y=2",
    "http://example.com/a/b?x=1",
    "http://example.com/a/b?x=2&y=1",
    "http://example.com/A/b?x=1&y=2",
    "http://example.com:8080/a/b?x=1&y=2",
    "http://m.example.com/a/b?x=1&y=2",
    "http://example.org/a/b?x=1&y=2",
    "http://example.com/a%2Fb?x=1&y=2",
    "http://example.com/a/b?x=1%26y=2",
    "http://example.com/a/b/index?x=1&y=2",
    "http://example.com/a/b?x=1&y=2&sid=75",
    "http://example.com/a/b?x=1&y=2&message=utm_source",
    "ftp://example.com/a/b?x=1&y=2",
]


def test_spellings_of_one_address_are_one():
    assert {normalize_url(url) for url in SAME} == {SAME[0]}


def test_different_addresses_stay_different():
    assert len({normalize_url(url) for url in DIFFERENT}) == len(DIFFERENT)


@pytest.mark.parametrize(
    "url, wanted",
    [
        (
            "https://www.Example.com/a/%7Eb/index.html?utm_source=x&z=1&y=2#top",
            "http://example.com/a/~b?y=2&z=1",
        ),
        ("http://example.com", "http://example.com"),
        ("http://example.com/index.php", "http://example.com"),
        ("http://www.com/", "http://www.com"),
        ("http://例子.cn/数学?q=二", "http://xn--fsqu00a.cn/%E6%95%B0%E5%AD%A6?q=%E4%BA%8C"),
        ("http://[2001:DB8::1]:80/x", "http://[2001:db8::1]/x"),
        ("http://e.com/100%/a%2fb", "http://e.com/100%25/a%2Fb"),
        ("http://e.com/%%34", "http://e.com/%254"),
        ("http://[broken/x", "http://[broken/x"),
        ("http://e.com:port/x", "http://e.com:port/x"),
        ("mailto:A@b.c#d", "mailto:A@b.c"),
        ("", "http://"),
    ],
)
def test_normalized(url, wanted):
    assert normalize_url(url) == wanted


pieces = st.sampled_from(
    [
        "http:",
        "https:",
        "HTTP:",
        "ftp:",
        "//",
        "/",
        "www.",
        "WWW.",
        "example.com",
        "例子.cn",
        ":80",
        ":443",
        ":8080",
    ]
    + [
        ":",
        ".",
        "..",
        "/.",
        "/..",
        "index.html",
        "/index.php",
        "?",
        "&",
        "a=1",
        "b",
        "utm_x=1",
        "sid=1",
        "#",
        "%",
    ]
    + [
        "%2e",
        "%2F",
        "%25",
        "%41",
        ";jsessionid=1",
        "@",
        "[",
        "]",
        "[::1]",
        " ",
        "\x00",
        "é",
        "\ud800",
        "~",
        "+",
    ]
    + ["ß.de", "．", "xn--"]
)


@settings(max_examples=400)
@given(st.one_of(st.text(max_size=30), st.lists(pieces, max_size=10).map("".join)))
@example("http://www.www.www.com/index.html/index.html/")
@example("http://a//../index.html")
def test_normalizing_again_changes_nothing(url):
    once = normalize_url(url)
    assert normalize_url(once) == once


# ---- Signatures ------------------------------------------------------------------------------------------------------


def grams(text, n=5):
    words = text.split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} or {tuple(words)}


def jaccard(a, b, n=5):
    a, b = grams(a, n), grams(b, n)
    return len(a & b) / len(a | b)


def words(rng, count, vocabulary=2000):
    return [f"w{rng.randrange(vocabulary)}" for _ in range(count)]


def edited(rng, text, edits):
    """The text with some words replaced, removed or added."""
    result = text.split()
    for _ in range(edits):
        at = rng.randrange(len(result) + 1)
        result[at : at + rng.randrange(2)] = words(rng, rng.randrange(2))
    return " ".join(result)


@pytest.mark.parametrize("permutations", [128, 100])
@pytest.mark.parametrize(
    "length, edits", [(2, 1), (6, 1), (8, 1), (12, 2), (30, 2), (150, 4), (600, 30)]
)
def test_estimate_is_without_bias(length, edits, permutations):
    """Over many pairs the mean error is within its sampling error of 0, for texts shorter than the signature (most
    places are then filled from others) as for long ones; so is its spread what that of 128 independent draws is."""
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


def test_one_place_means_one_draw():
    """Every place alone agrees as often as the texts are similar: none is worse than the others."""
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


def test_many_chunks_are_one_batch(monkeypatch):
    rng = random.Random(0)
    texts = [" ".join(words(rng, rng.randrange(60))) for _ in range(50)]
    whole = signatures(texts)
    monkeypatch.setattr(dedup._chunks, "__defaults__", (100,))
    assert len(list(dedup._chunks(texts))) > 20 and np.array_equal(signatures(texts), whole)


def test_what_a_signature_sees():
    one, two, case, short, other, empty, signs = signatures(
        ["a b c d e f", "a b c d e f g", "A, b: c\nd (e) F!", "a b c", "a b d", "", "?! ..."]
    )
    assert np.array_equal(one, case) and not np.array_equal(one, two)
    assert not (short == other).any()  # one gram each, of all their words
    assert (empty == 0xFFFFFFFF).all() and (signs == 0xFFFFFFFF).all()
    assert (
        signatures(["a b c d e f g h i j"] * 2, seed=1) != signatures(["a b c d e f g h i j"] * 2)
    ).all()
    assert signatures([]).shape == (0, 128)


def test_seeds_are_independent():
    """The mean over seeds comes nearer to the truth as it does for independent draws."""
    rng = random.Random(5)
    a = " ".join(words(rng, 80))
    b = edited(rng, a, 4)
    estimates = [
        float(similarity(signatures([a], seed=s), signatures([b], seed=s))[0]) for s in range(100)
    ]
    exact = jaccard(a, b)
    assert abs(np.mean(estimates) - exact) < 4 * np.sqrt(exact * (1 - exact) / 128 / 100)
    assert len(set(estimates)) > 5


def test_signatures_are_the_same_for_ever():
    """Signatures are kept on disk: a change here would make them wrong without a word."""
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


# ---- LSH -------------------------------------------------------------------------------------------------------------


def test_banding_by_hand():
    assert banding(0.8, 128) == (
        21,
        6,
    )  # 1 - (1 - 0.8^6)^21 = 0.9983; with 7 rows and 18 bands 0.9855
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
    assert not set(keys[:, 0].tolist()) & set(
        keys[:, 1].tolist()
    )  # the same values in another band are another key


# ---- The whole -------------------------------------------------------------------------------------------------------


def page(url, text):
    return {"url": url, "text": text, "lang": "en", "date": "2020-01-01"}


def write_store(folder, shards):
    for number, pages in shards.items():
        write_jsonl(folder / f"part-{number:05d}.jsonl", pages)
    return folder


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts_left(folder):
    return [row["text"] for path in sorted(folder.glob("part-*.jsonl")) for row in read(path)]


LONG = "one two three four five six seven eight nine ten " * 3


def test_order_of_reasons_and_what_is_kept(tmp_path):
    rng = random.Random(1)
    base = " ".join(words(rng, 300))
    other = " ".join(words(rng, 300))
    store = write_store(
        tmp_path / "store",
        {
            3: [
                page("http://a.com/1", base),
                page("http://www.a.com/1/", other),
                page("", "short"),
                page("", ""),
            ],
            7: [
                page("http://b.com", other),
                page("http://c.com", base),
                page("http://d.com", base[: base.rindex(" ")]),
                page("http://b.com/#x", "never seen"),
                page("", "short"),
                page("", ""),
                page("", "!?"),
            ],
        },
    )
    report = deduplicate(store, tmp_path / "clean", tmp_path / "work", Settings(partitions=2))
    # the page at 3:2 went by its URL, so its text lives on at 7:1
    assert texts_left(tmp_path / "clean") == [base, "short", "", other, "!?"]
    assert read(tmp_path / "clean/drops/part-00003.jsonl") == [
        {"line": 2, "url": "http://www.a.com/1/", "reason": "url", "kept": [3, 1]}
    ]
    found = [
        (row["line"], row["reason"], row["kept"])
        for row in read(tmp_path / "clean/drops/part-00007.jsonl")
    ]
    assert found == [
        (2, "exact", [3, 1]),
        (3, "near", [3, 1]),
        (4, "url", [7, 1]),
        (5, "exact", [3, 3]),
        (6, "exact", [3, 4]),
    ]
    assert report["clean"] == {"in": 11, "out": 5, "url": 2, "exact": 3, "near": 1}
    assert report["hash"] == {"pages": 11, "without_url": 5}
    assert report["url"] == {"in": 6, "out": 4} and report["texts"] == {"in": 11, "out": 9}
    assert report["exact"] == {"in": 9, "out": 6} and report["bands"] == {"in": 11, "out": 4}


def random_store(folder, rng, families=60, shards=4):
    """Pages in families of edited copies, some with the URL or the text of another; (folder, pages by id)."""
    pages = []
    for family in range(families):
        text = " ".join(words(rng, rng.choice([3, 12, 60, 200, 400])))
        for copy in range(rng.choice([1, 1, 2, 3, 6])):
            pages.append(page(f"http://s{family}.com/{copy}", text))
            text = edited(rng, text, rng.choice([0, 1, 1, 3, 8])) or "empty"
    for _ in range(families // 4):
        pages.append(page(rng.choice(pages)["url"] + "?utm_source=x", " ".join(words(rng, 50))))
    rng.shuffle(pages)
    size = -(-len(pages) // shards)
    parts = {number: pages[number * size : (number + 1) * size] for number in range(shards)}
    return write_store(folder, parts), {
        (n, i + 1): one for n, part in parts.items() for i, one in enumerate(part)
    }


def components(nodes, edges):
    """{node: the least of its component}, by union-find."""
    parent = {node: node for node in nodes}

    def root(node):
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in edges:
        a, b = sorted((root(a), root(b)))
        parent[b] = a
    return {node: root(node) for node in nodes}


def naive(pages, near):
    """{id: (reason, kept)} by dictionaries, and union-find over all pairs for which near(text, text)."""
    drops, alive = {}, sorted(pages)
    for reason, key in (
        ("url", lambda one: normalize_url(one["url"])),
        ("exact", lambda one: one["text"]),
    ):
        seen = {}
        for i in alive:
            if (kept := seen.setdefault(key(pages[i]), i)) != i:
                drops[i] = reason, kept
        alive = [i for i in alive if i not in drops]
    edges = [pair for pair in combinations(alive, 2) if near(*pair)]
    return drops | {i: ("near", kept) for i, kept in components(alive, edges).items() if kept != i}


def found_drops(folder):
    return {
        (int(path.stem[5:]), row["line"]): (row["reason"], tuple(row["kept"]))
        for path in folder.glob("drops/*.jsonl")
        for row in read(path)
    }


@pytest.mark.parametrize("seed", range(3))
def test_against_brute_force_with_the_same_estimate(tmp_path, seed):
    """Bands and stars find what comparing the signatures of all pairs and union-find do."""
    store, pages = random_store(tmp_path / "store", random.Random(seed))
    ids = sorted(pages)
    signed = dict(zip(ids, signatures([pages[i]["text"] for i in ids]), strict=True))
    wanted = naive(pages, lambda a, b: (signed[a] == signed[b]).mean() >= acceptance(0.8, 128))
    report = deduplicate(store, tmp_path / "clean", tmp_path / "work", Settings(partitions=2))
    assert found_drops(tmp_path / "clean") == wanted
    assert report["clean"]["out"] == len(pages) - len(wanted) == len(texts_left(tmp_path / "clean"))
    assert {reason for reason, _ in wanted.values()} == {"url", "exact", "near"}


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
    """Against the exact similarity of all pairs, of which many lie about the threshold: at least 95 % of those above
    it are found, and what is found below it lies within a few standard errors."""
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


def clean_files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.jsonl")
    }


def test_workers_and_partitions_change_nothing(tmp_path):
    store, pages = random_store(tmp_path / "store", random.Random(9), families=40)
    reports = []
    for name, partitions in (("a", 1), ("b", 3), ("c", 8)):
        reports.append(
            deduplicate(
                store, tmp_path / name, tmp_path / f"work_{name}", Settings(partitions=partitions)
            )
        )
    with ProcessPoolExecutor(2) as pool:
        deduplicate(
            store, tmp_path / "d", tmp_path / "work_d", Settings(partitions=3), map=pool.map
        )
    first = clean_files(tmp_path / "a")
    assert len(first) == 8 and all(clean_files(tmp_path / name) == first for name in "bcd")
    assert reports[0]["clean"] == reports[1]["clean"] == reports[2]["clean"]


def test_killed_anywhere_it_goes_on_and_repeats_nothing(tmp_path):
    store, pages = random_store(tmp_path / "store", random.Random(2), families=12, shards=2)
    deduplicate(store, tmp_path / "whole", tmp_path / "work", Settings(partitions=2))
    steps = len(list((tmp_path / "work/done").iterdir()))

    class Killed(Exception):
        pass

    def repeated(*_):
        raise AssertionError("a step that was finished ran again")

    calls = []

    def run(stop):
        def dying(function, tasks):
            for task in tasks:
                if task[0].exists():
                    task = task[0], repeated
                elif len(calls) > stop:
                    (work / "urls/.00000.npy.1.tmp").write_bytes(
                        b"half"
                    )  # of the step that was cut short
                    raise Killed
                else:
                    calls.append(task[0].name)
                yield function(task)

        return deduplicate(store, tmp_path / "killed", work, Settings(partitions=2), map=dying)

    work = tmp_path / "killed_work"
    for stop in range(0, steps - 1, 4):
        with pytest.raises(Killed):
            run(stop)
    report = run(steps)
    assert len(calls) == len(set(calls)) == steps
    assert clean_files(tmp_path / "killed") == clean_files(tmp_path / "whole")
    assert report == deduplicate(
        store, tmp_path / "whole", tmp_path / "work", Settings(partitions=2)
    )


@given(
    edges=st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(lambda e: e[0] != e[1]),
        max_size=40,
    )
)
@settings(max_examples=30)
def test_stars_are_the_components(tmp_path_factory, edges):
    folder = tmp_path_factory.mktemp("stars")
    plan = dedup.Plan(folder, folder, folder, Settings(partitions=3), (0, 1))
    ids = [(n % 2) << 32 | n // 2 for n in range(31)]  # of two shards
    rows = np.array([(ids[a], ids[b]) for a, b in edges], np.uint64).reshape(-1, 2)
    rows = np.concatenate([rows, rows[:, ::-1]])
    for part in range(3):
        these = rows[part::3]
        dedup._scatter(plan.file("edges0", part), these, dedup._partition(these[:, 0], 3), 3)
    turn, before = 0, None
    while (graph := [dedup.large_star(plan, part, turn) for part in range(3)]) != before:
        for part in range(3):
            dedup.small_star(plan, part, turn)
        turn, before = turn + 1, graph
    for part in range(3):
        dedup.drop_near(plan, part, turn)
    drops = np.concatenate([plan.drops("near", number) for number in (0, 1)]).tolist()
    wanted = components(sorted(ids), [(ids[a], ids[b]) for a, b in edges])
    assert sorted(map(tuple, drops)) == sorted(
        (i, least) for i, least in wanted.items() if i != least
    )
    assert turn <= 8


def test_a_long_chain_takes_few_turns(tmp_path):
    """Neighbours of neighbours: what a page is dropped for may be far from it, and is still the first."""
    plan = dedup.Plan(tmp_path, tmp_path, tmp_path, Settings(partitions=1), (0,))
    order = np.random.default_rng(0).permutation(5000).astype(np.uint64)
    rows = np.stack([order[1:], order[:-1]], axis=1)
    rows = np.concatenate([rows, rows[:, ::-1]])
    dedup._scatter(plan.file("edges0", 0), rows, np.zeros(len(rows), np.int64), 1)
    turn, before = 0, None
    while (graph := dedup.large_star(plan, 0, turn)) != before:
        dedup.small_star(plan, 0, turn)
        turn, before = turn + 1, graph
    assert turn <= 12 and graph["edges"] == 2 * 4999
    dedup.drop_near(plan, 0, turn)
    assert (plan.drops("near", 0)[:, 1] == 0).all()


def test_many_pages_under_one_key_cost_what_they_are(tmp_path):
    """A template that hundreds of pages share is compared a few times a page, and still becomes one cluster."""
    rng = random.Random(0)
    template = " ".join(words(rng, 300))
    pages = [page("", f"{template} number {i}") for i in range(300)]
    store = write_store(tmp_path / "s", {0: pages})
    report = deduplicate(store, tmp_path / "c", tmp_path / "w", Settings(partitions=1))
    assert report["pairs"]["candidates"] < 10 * 300 and report["clean"]["out"] == 1


# ---- Bad input -------------------------------------------------------------------------------------------------------


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="nowhere: no shards"):
        deduplicate(tmp_path / "nowhere", tmp_path / "c", tmp_path / "w")
    with pytest.raises(InputError, match="empty: no page"):
        deduplicate(write_store(tmp_path / "empty", {0: []}), tmp_path / "c", tmp_path / "w0")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/part-00000.jsonl").write_text(
        '{"url": "u", "text": "t"}\n{"url": "u", "text": null}\n'
    )
    with pytest.raises(InputError, match="part-00000.jsonl:2: not a page"):
        deduplicate(tmp_path / "bad", tmp_path / "c", tmp_path / "w1")
    store = write_store(tmp_path / "store", {0: [page("", "text")]})
    deduplicate(store, tmp_path / "c", tmp_path / "w2")
    with pytest.raises(InputError, match="setup.json: of a run with other settings"):
        deduplicate(store, tmp_path / "c", tmp_path / "w2", Settings(threshold=0.7))
    for bad in (
        {"threshold": 0},
        {"threshold": 1.1},
        {"partitions": 0},
        {"permutations": 4},
        {"ngram": 0},
    ):
        with pytest.raises(InputError, match=next(iter(bad))):
            Settings(**bad)
