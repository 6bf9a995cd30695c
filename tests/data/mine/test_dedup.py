"""dedup.py against brute force over all pairs, and against dictionaries."""

import json
import random
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations

import numpy as np
import pytest
from edits import edited, random_text
from hypothesis import given, settings
from hypothesis import strategies as st

from data.io import InputError, write_jsonl
from data.mine import dedup
from data.mine.dedup import Settings, deduplicate
from data.mine.minhash import acceptance, signatures
from data.mine.urls import normalize_url


def page(url, text):
    return {"url": url, "text": text, "lang": "en", "date": "2020-01-01"}


def write_store(folder, shards):
    for number, pages in shards.items():
        write_jsonl(folder / f"part-{number:05d}.jsonl", pages)
    return folder


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts_left(folder):
    texts = []
    for path in sorted(folder.glob("part-*.jsonl")):
        texts += [row["text"] for row in read(path)]
    return texts


LONG = "one two three four five six seven eight nine ten " * 3


def test_order_of_reasons_and_what_is_kept(tmp_path):
    rng = random.Random(1)
    base = random_text(rng, 300)
    other = random_text(rng, 300)
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
    # The page at 3:2 was dropped by URL, so the same text stays at 7:1.
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
    assert report["url"] == {"in": 6, "out": 4}
    assert report["texts"] == {"in": 11, "out": 9}
    assert report["exact"] == {"in": 9, "out": 6}
    assert report["bands"] == {"in": 11, "out": 4}


def random_store(folder, rng, families=60, shards=4):
    """Families of edited copies; some pages share a URL or text. Returns (folder, {id: page})."""
    pages = []
    for family in range(families):
        text = random_text(rng, rng.choice([3, 12, 60, 200, 400]))
        for copy in range(rng.choice([1, 1, 2, 3, 6])):
            pages.append(page(f"http://s{family}.com/{copy}", text))
            text = edited(rng, text, rng.choice([0, 1, 1, 3, 8])) or "empty"
    for _ in range(families // 4):
        pages.append(page(rng.choice(pages)["url"] + "?utm_source=x", random_text(rng, 50)))
    rng.shuffle(pages)
    size = -(-len(pages) // shards)
    parts = {number: pages[number * size : (number + 1) * size] for number in range(shards)}
    by_id = {}
    for number, part in parts.items():
        for line, row in enumerate(part, 1):
            by_id[number, line] = row
    return write_store(folder, parts), by_id


def components(nodes, edges):
    """{node: the least node of the component}, by union-find."""
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
    """{id: (reason, kept)} by dictionaries, and by union-find over all pairs with near(id, id)."""
    drops, alive = {}, sorted(pages)
    for reason, key in (
        ("url", lambda page: normalize_url(page["url"])),
        ("exact", lambda page: page["text"]),
    ):
        seen = {}
        for i in alive:
            if (kept := seen.setdefault(key(pages[i]), i)) != i:
                drops[i] = reason, kept
        alive = [i for i in alive if i not in drops]
    edges = [pair for pair in combinations(alive, 2) if near(*pair)]
    for i, kept in components(alive, edges).items():
        if kept != i:
            drops[i] = "near", kept
    return drops


def found_drops(folder):
    drops = {}
    for path in folder.glob("drops/*.jsonl"):
        number = int(path.stem.removeprefix("part-"))
        for row in read(path):
            drops[number, row["line"]] = row["reason"], tuple(row["kept"])
    return drops


@pytest.mark.parametrize("seed", range(3))
def test_against_brute_force_with_the_same_estimate(tmp_path, seed):
    """Bands and stars give the same result as comparing all pairs, and union-find."""
    store, pages = random_store(tmp_path / "store", random.Random(seed))
    least = acceptance(0.8, 128)
    signed = {}
    for i, row in pages.items():
        (signed[i],) = signatures([row["text"]])

    def near(a, b):
        return (signed[a] == signed[b]).mean() >= least

    wanted = naive(pages, near)
    report = deduplicate(store, tmp_path / "clean", tmp_path / "work", Settings(partitions=2))
    assert found_drops(tmp_path / "clean") == wanted
    left = texts_left(tmp_path / "clean")
    assert report["clean"]["out"] == len(pages) - len(wanted) == len(left)
    assert {reason for reason, _ in wanted.values()} == {"url", "exact", "near"}


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


def test_a_killed_run_continues_and_repeats_nothing(tmp_path):
    store, pages = random_store(tmp_path / "store", random.Random(2), families=12, shards=2)
    deduplicate(store, tmp_path / "whole", tmp_path / "work", Settings(partitions=2))
    steps = len(list((tmp_path / "work/done").iterdir()))

    class Killed(Exception):
        pass

    def repeated(*_):
        raise AssertionError("a finished step ran again")

    calls = []

    def run(stop):
        def dying(function, tasks):
            for task in tasks:
                if task[0].exists():
                    task = task[0], repeated
                elif len(calls) > stop:
                    # A half-written file of the interrupted step.
                    (work / "urls/.00000.npy.1.tmp").write_bytes(b"half")
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
        st.lists(st.integers(0, 30), min_size=2, max_size=2, unique=True),
        max_size=40,
    )
)
@settings(max_examples=30)
def test_stars_are_the_components(tmp_path_factory, edges):
    folder = tmp_path_factory.mktemp("stars")
    plan = dedup.Plan(folder, folder, folder, Settings(partitions=3), (0, 1))
    ids = [(n % 2) << 32 | n // 2 for n in range(31)]  # in two shards
    edges = [(ids[a], ids[b]) for a, b in edges]
    rows = np.array(edges, np.uint64).reshape(-1, 2)
    rows = np.concatenate([rows, rows[:, ::-1]])
    for part in range(3):
        these = rows[part::3]
        plan.write_partitions("edges0", part, these)
    turn, before = 0, None
    while (graph := [dedup.large_star(plan, part, turn) for part in range(3)]) != before:
        for part in range(3):
            dedup.small_star(plan, part, turn)
        turn, before = turn + 1, graph
    for part in range(3):
        dedup.drop_near(plan, part, turn)
    drops = [plan.read_drops("near", number) for number in (0, 1)]
    drops = np.concatenate(drops).tolist()
    wanted = components(sorted(ids), edges)
    assert sorted(map(tuple, drops)) == sorted(
        (i, least) for i, least in wanted.items() if i != least
    )
    assert turn <= 8


def test_a_long_chain_takes_few_turns(tmp_path):
    """A page may be dropped for one that is not similar to it, and this is still the first page."""
    plan = dedup.Plan(tmp_path, tmp_path, tmp_path, Settings(partitions=1), (0,))
    order = np.random.default_rng(0).permutation(5000).astype(np.uint64)
    rows = np.stack([order[1:], order[:-1]], axis=1)
    rows = np.concatenate([rows, rows[:, ::-1]])
    plan.write_partitions("edges0", 0, rows)
    turn, before = 0, None
    while (graph := dedup.large_star(plan, 0, turn)) != before:
        dedup.small_star(plan, 0, turn)
        turn, before = turn + 1, graph
    assert turn <= 12 and graph["edges"] == 2 * 4999
    dedup.drop_near(plan, 0, turn)
    assert (plan.read_drops("near", 0)[:, 1] == 0).all()


def test_a_key_of_many_pages_is_cheap(tmp_path):
    """Pages that share a template are compared a few times each, and still become a cluster."""
    rng = random.Random(0)
    template = random_text(rng, 300)
    pages = [page("", f"{template} number {i}") for i in range(300)]
    store = write_store(tmp_path / "s", {0: pages})
    report = deduplicate(store, tmp_path / "c", tmp_path / "w", Settings(partitions=1))
    assert report["pairs"]["candidates"] < 10 * 300 and report["clean"]["out"] == 1


# ---- Bad input -------------------------------------------------------------------------------


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
    with pytest.raises(InputError, match="setup.json: from a run with other settings"):
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
