"""decontaminate.py against sets of tuples in Python, and with planted questions of benchmarks."""

import functools
import json
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.io import InputError, write_jsonl
from data.mine import decontaminate, store
from data.mine.benchmark_files import Item, read_benchmarks
from data.mine.decontaminate import Index, decontaminate_shard
from data.mine.ngrams import unit_hashes

TEN = "one two three four five six seven eight nine ten"


def index(folder, *rows):
    write_jsonl(folder / "b.jsonl", rows)
    return Index.build(folder)


# ---- The rule --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, found",
    [
        (f"so {TEN} so", [("question", TEN)]),
        (
            "so ONE, two\nthree\tfour -- five (six) [seven] eight: nine... Ten!",
            [("question", "one, two\nthree\tfour -- five (six) [seven] eight: nine... ten")],
        ),
        (TEN[: TEN.rindex(" ")], []),  # nine of ten
        (TEN.replace("five", "five and"), []),
        (f"{TEN} eleven twelve", [("question", f"{TEN} eleven twelve")]),
        (f"{TEN} eleven x {TEN}", [("question", f"{TEN} eleven"), ("question", TEN)]),
        ("x equals seven", [("answer", "x equals seven")]),
        ("that x equals, seven", [("answer", "x equals, seven")]),
        ("x equals", []),
        ("seven x equals", []),
        ("eighteen", []),
        ("a b c d e f g h i", [("solution", "a b c d e f g h i")]),
        ("a b c d e f g h", []),
        (
            "小明有三个苹果，小红有五个",
            [("question", "小明有三个苹果,小红有五个")],  # NFKC changes the comma
        ),
        ("他说小明有３个苹果", []),
        ("小明有三个苹果。小红", []),  # nine characters
        ("", []),
    ],
)
def test_the_rule(tmp_path, text, found):
    known = index(
        tmp_path,
        {"question": f"{TEN} eleven twelve", "answer": "x equals seven"},
        {
            "question": "小明有三个苹果，小红有五个",
            "answer": "eighteen",
            "solution": "a b c d e f g h i",
        },
    )
    assert [(match.field, match.text) for match in known.matches([text])[0]] == found
    assert known.counts == {
        "files": 1,
        "passed_over": 0,
        "problems": 2,
        "texts": 5,
        "long": 2,
        "short": 2,
        "ignored": 1,
        "grams": 3 + 3 + 2,
    }


def test_text_between_two_matches_is_in_neither(tmp_path):
    letters = "a b c d e f g h i j k"
    known = index(tmp_path, {"question": f"{TEN} and {letters}"})
    assert [match.text for match in known.matches([f"{TEN} or {letters}"])[0]] == [TEN, letters]
    assert [match.text for match in known.matches([f"{TEN} and {letters}"])[0]] == [
        f"{TEN} and {letters}"
    ]


ALPHABET = "a b c d e 数 学 题".split()
sequences = st.lists(st.sampled_from(ALPHABET), max_size=14)
page_texts = st.lists(st.sampled_from(ALPHABET), max_size=60)


@settings(max_examples=40)
@given(
    items=st.lists(sequences, min_size=1, max_size=6),
    pages=st.lists(page_texts, max_size=4),
    cut=st.integers(0, 4),
    planted=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 20)), max_size=3
    ),
)
def test_against_sets_of_tuples(tmp_path_factory, items, pages, cut, planted):
    for item, page, at in planted:
        if item < len(items) and page < len(pages):
            pages[page][at:at] = items[item]
    folder = tmp_path_factory.mktemp("b")
    known = index(
        folder, *({"question": " ".join(item) or ".", "id": i} for i, item in enumerate(items))
    )

    def grams(units, n):
        return {tuple(units[k : k + n]) for k in range(len(units) - n + 1)}

    wanted = []
    for page in pages:
        whole = {
            i
            for i, item in enumerate(items)
            if 3 <= len(item) < 10 and tuple(item) in grams(page, len(item))
        }
        parts = {i for i, item in enumerate(items) if grams(item, 10) & grams(page, 10)}
        wanted.append(whole | parts)
    texts = [" ".join(page) for page in pages]
    found = known.matches(texts)
    for page, here, there in zip(pages, found, wanted, strict=True):
        assert bool(here) == bool(there) and {int(match.id) for match in here} <= there
        for match in here:  # a match is in both texts
            units, item = match.text.split(), items[int(match.id)]
            assert tuple(units) in grams(page, len(units)) and tuple(units) in grams(
                item, len(units)
            )
            assert len(units) >= 10 or units == item
    assert found == known.matches(texts[:cut]) + known.matches(texts[cut:])
    known.save(folder / "index.npz")
    again = Index.load(folder / "index.npz")
    assert (
        again.matches(texts) == found
        and again.items == known.items
        and again.counts == known.counts
    )


def test_a_hash_collision_is_not_a_match(tmp_path, monkeypatch):
    """All hashes are the same, so everything is a hit, but only equal text is a match."""
    monkeypatch.setattr(
        decontaminate, "ngram_hashes", lambda units, n: _same(decontaminate_ngrams(units, n))
    )
    known = index(tmp_path, {"question": TEN}, {"question": "x equals seven"})
    assert known.matches(["v w x y z", f"so {TEN}", "q x equals seven"])[0] == []
    assert [bool(found) for found in known.matches(["v w x y z", f"so {TEN}"])] == [False, True]


decontaminate_ngrams = decontaminate.ngram_hashes


def _same(hashes):
    return type(hashes)(np.full_like(hashes.values, 7), hashes.offsets)


@given(
    st.text(
        st.one_of(
            st.sampled_from("aZ09 ß\u00d7\u00bf\u2019\u3040\u303f\u9fff数🙂𝑥한\ue000\U00040000"),
            st.characters(),
        ),
        max_size=30,
    )
)
def test_units_are_those_of_the_hashes(text):
    """The regular expression that checks hits splits as the hashes do."""
    units = decontaminate._units(text)
    hashes = unit_hashes([text]).values
    assert len(hashes) == len(units)
    assert hashes.tolist() == [int(unit_hashes([unit]).values[0]) for unit in units]


# ---- Real benchmarks -------------------------------------------------------------------------


def disguised(rng, question):
    """The question with a different case, punctuation, line breaks and full-width digits."""
    question = question.upper() if rng.random() < 0.5 else question.swapcase()
    question = re.sub(
        r"[,.?!'’，。？！、]", lambda _: rng.choice([" ", "\n", " - ", "……", "; "]), question
    )
    question = re.sub(
        " ", lambda _: rng.choice([" ", "\n", "  ", " <b> ".replace("b", "/")]), question
    )
    return question.translate(str.maketrans("0123456789", "０１２３４５６７８９"))


def documents(count):
    """Real English text, which comes with Python."""
    from pydoc_data.topics import topics

    texts = [text for _, text in sorted(topics.items()) if len(text) > 500]
    return (texts * count)[:count]


@pytest.fixture(scope="module")
def benchmarks(real, tmp_path_factory):
    """GSM8K's test set and the Chinese MGSM: their folder, their index, and their questions."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for name in ("gsm8k/test.jsonl", "mgsm/mgsm_zh.tsv"):
        (folder / name).parent.mkdir()
        (folder / name).symlink_to(real(name).resolve())
    items, counts = read_benchmarks(folder)
    assert counts["problems"] == 1319 + 250
    questions = {
        name: [item for item in items if item.benchmark == name and item.field == "question"]
        for name in ("gsm8k/test.jsonl", "mgsm/mgsm_zh.tsv")
    }
    return folder, Index.build(folder), questions


@pytest.mark.parametrize("name, count", [("gsm8k/test.jsonl", 1319), ("mgsm/mgsm_zh.tsv", 250)])
def test_every_planted_question_is_found(benchmarks, name, count):
    _, known, questions = benchmarks
    rng = random.Random(0)
    assert len(questions[name]) == count
    planted = rng.sample(questions[name], 200)
    pages = [
        text[:2000] + "\n" + disguised(rng, item.text) + text[2000:4000]
        for item, text in zip(planted, documents(len(planted)), strict=True)
    ]
    for item, found in zip(planted, known.matches(pages), strict=True):
        assert any(match[:3] == item[:3] for match in found)
    assert not any(known.matches([text[:4000] for text in documents(200)]))


def test_real_solutions_are_found_with_marks_and_without(benchmarks, real):
    _, known, _ = benchmarks
    line = json.loads(real("gsm8k/test.jsonl").read_text().splitlines()[3])["answer"]
    for text in (line, re.sub("<<.*?>>", "", line)):
        assert {match.id for match in known.matches([f"Here it goes: {text}"])[0]} == {"4"}


def test_other_chinese_problems_by_brute_force(real, tmp_path):
    """On another Chinese benchmark, the index finds the same questions as sets of tuples."""
    (tmp_path / "mgsm_zh.tsv").symlink_to(real("mgsm/mgsm_zh.tsv").resolve())
    known = Index.build(tmp_path)
    lines = real("deepseek-math-eval/cmath/test.jsonl").read_text().splitlines()
    texts = [json.loads(line)["question"] for line in lines] + [
        item.text for item in known.items[:10:2]
    ]

    def grams(text):
        units = decontaminate._units(text)
        return {tuple(units[k : k + 10]) for k in range(len(units) - 9)}

    everything = set().union(*(grams(item.text) for item in known.items))
    assert known.counts["short"] == 0
    wanted = [bool(grams(text) & everything) for text in texts]
    assert [bool(found) for found in known.matches(texts)] == wanted
    assert sum(wanted[:-5]) < 20 and all(wanted[-5:])


def test_bad_index(tmp_path):
    with pytest.raises(InputError, match="index.npz: cannot be read"):
        Index.load(tmp_path / "index.npz")
    for content in (b"", b"nonsense"):
        (tmp_path / "index.npz").write_bytes(content)
        with pytest.raises(InputError, match="index.npz: not an index"):
            Index.load(tmp_path / "index.npz")
    np.savez(tmp_path / "index.npz", a=np.zeros(1))
    with pytest.raises(InputError, match="index.npz: not an index"):
        Index.load(tmp_path / "index.npz")


# ---- Shards ----------------------------------------------------------------------------------


def test_shard(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    known = index(
        tmp_path / "benchmarks", {"question": TEN, "id": 5}, {"question": "x equals seven"}
    )
    known.save(tmp_path / "index.npz")
    pages = [
        {"url": f"u{i}", "text": f"page {i} of many", "lang": "en", "date": ""} for i in range(40)
    ]
    pages[7]["text"] += f". {TEN.title()}! And x equals seven"
    pages[30]["text"] = f"{TEN} eleven"
    source = tmp_path / "part-00000.jsonl"
    files = source, tmp_path / "index.npz", tmp_path / "to.jsonl", tmp_path / "drops.jsonl"
    write_jsonl(source, pages)
    for size in (1, 100, 2**22):
        batches = functools.partial(store.page_batches, characters=size)
        monkeypatch.setattr(decontaminate, "page_batches", batches)
        counts = decontaminate_shard(*files)
        assert counts == {"in": 40, "out": 38, "dropped": 2, "cut": 0, "benchmark b.jsonl": 2}
        left = [json.loads(line) for line in (tmp_path / "to.jsonl").read_text().splitlines()]
        assert left == pages[:7] + pages[8:30] + pages[31:]
        drops = [json.loads(line) for line in (tmp_path / "drops.jsonl").read_text().splitlines()]
        first = {"benchmark": "b.jsonl", "id": "5", "field": "question", "text": TEN}
        second = {"benchmark": "b.jsonl", "id": "2", "field": "question", "text": "x equals seven"}
        assert drops == [
            {"line": 8, "url": "u7", "page": True, "matches": [first, second]},
            {"line": 31, "url": "u30", "page": True, "matches": [first]},
        ]
    # A new index with the same name is used.
    index(tmp_path / "benchmarks", {"question": "page 3 of many"}).save(tmp_path / "index.npz")
    counts = decontaminate_shard(*files)
    assert counts["dropped"] == 1
    write_jsonl(source, [])
    counts = decontaminate_shard(*files)
    assert (
        counts == {"in": 0, "out": 0, "dropped": 0, "cut": 0}
        and (tmp_path / "to.jsonl").read_text() == ""
    )
    source.write_text('{"url": "u"}\n')
    with pytest.raises(InputError, match="part-00000.jsonl:1: not a page"):
        decontaminate_shard(*files)


def test_only_paragraphs_with_a_match_are_cut(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    known = index(tmp_path / "benchmarks", {"question": TEN, "id": 5})
    known.save(tmp_path / "index.npz")
    half = " ".join(TEN.split()[:5]), " ".join(TEN.split()[5:])
    texts = [
        f"before\n\n{TEN}, that is it\n \nafter",
        TEN,
        "",
        "as it was\n\n\nhere",
        "\n\n".join(half),
        f"a\n\n{half[0]}\n\n{TEN}\n\n{half[1]}",
    ]
    source = tmp_path / "part-00000.jsonl"
    write_jsonl(source, ({"url": str(i), "text": text} for i, text in enumerate(texts)))
    files = source, tmp_path / "index.npz", tmp_path / "to.jsonl", tmp_path / "drops.jsonl"
    counts = decontaminate_shard(*files, part="paragraph")
    assert counts == {"in": 6, "out": 3, "dropped": 3, "cut": 1, "benchmark b.jsonl": 4}
    left = [json.loads(line) for line in (tmp_path / "to.jsonl").read_text().splitlines()]
    # A match across paragraphs drops the page, also if only the cut brings them together.
    assert left == [
        {"url": "0", "text": "before\n\nafter"},
        {"url": "2", "text": ""},
        {"url": "3", "text": texts[3]},
    ]
    rows = [json.loads(line) for line in (tmp_path / "drops.jsonl").read_text().splitlines()]
    assert [(row["line"], row["page"]) for row in rows] == [
        (1, False),
        (2, True),
        (5, True),
        (6, True),
    ]
    with pytest.raises(InputError, match="part 'line': unknown; choose one of page, paragraph"):
        decontaminate_shard(*files, part="line")


def test_no_texts(tmp_path):
    assert index(tmp_path, {"question": TEN}).matches([]) == []
    assert index(tmp_path, {"question": "Q"}).matches(["Q", ""]) == [[], []]
    assert index(tmp_path, {"question": "Q"}).items == [Item("b.jsonl", "1", "question", "Q")]
