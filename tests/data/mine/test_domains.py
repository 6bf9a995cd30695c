"""domains.py on a small crawl: counts, prefixes, the questionnaire, the rule."""

import itertools
import json
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.io import InputError
from data.mine import domains as D

# A small crawl: (url, kept, title)
PAGES = [
    *((f"https://www.School.example/math/{i}.html", i < 6, f"Fractions {i}") for i in range(8)),
    *((f"http://school.example/news/{i}.html", False, f"News {i}") for i in range(20)),
    *((f"http://school.example/{i}.html", False, "") for i in range(4)),
    *((f"http://sums.example/viewtopic?t={i}", i != 3, "") for i in range(5)),
    *((f"http://sums.example/book/one/{i}", True, "") for i in range(3)),
    *((f"http://garden.example/{i}", i == 0, "") for i in range(10)),
    *((f"http://almost.example/a/{i}", i == 0, "") for i in range(9)),
    ("mailto:nobody", True, ""),
    ("http://[", True, ""),
]
segments = st.lists(
    st.sampled_from(["a", "ab", "b", "math", "数学", "x y", "\x85", "#"]), max_size=4
)


def table(pages=PAGES, **settings):
    counts = D.domain_counts((url, kept) for url, kept, _ in pages)
    names = D.math_domains(counts, **settings)
    return D.domain_table(counts, D.prefix_counts(pages, names), names)


@pytest.mark.parametrize(
    "url, expected",
    [
        (
            "https://www.A.example:8080/math/algebra/1.html",
            ["a.example", "a.example/math", "a.example/math/algebra"],
        ),
        (
            "http://a.example/math/algebra/",
            ["a.example", "a.example/math", "a.example/math/algebra"],
        ),
        ("http://a.example/math", ["a.example"]),
        ("http://a.example", ["a.example"]),
        ("a.example/viewtopic?u=http://b.example/c/d", ["a.example", "a.example/viewtopic"]),
        ("http://a.example/a//b/c/d/e", ["a.example", "a.example/a", "a.example/a/b"]),
        ("http://me:secret@a.example/q/1#/x/y", ["a.example", "a.example/q"]),
        ("http://a.example/q;sid=1/2", ["a.example"]),
        ("http://a.example/my notes/1", ["a.example", "a.example/my%20notes"]),
    ],
)
def test_prefixes(url, expected):
    assert D.prefixes(url) == expected


def test_the_ten_percent_rule():
    counts = D.domain_counts((url, kept) for url, kept, _ in PAGES)
    assert counts == {
        "school.example": [32, 6],
        "sums.example": [8, 7],
        "garden.example": [10, 1],
        "almost.example": [9, 1],
    }
    assert D.math_domains(counts) == [
        "sums.example",
        "school.example",
        "almost.example",
    ]  # more than a tenth
    assert D.math_domains(counts, minimum=10) == ["school.example"]
    assert D.math_domains(counts, share=0.5) == ["sums.example"]


def test_table_shows_what_a_person_needs():
    rows = {row.domain: row for row in table()}
    school = rows["school.example"]
    assert {name: (p.total, p.kept) for name, p in school.prefixes.items()} == {
        "school.example": (32, 6),
        "school.example/math": (8, 6),
        "school.example/news": (20, 0),
    }
    assert school.questions() == [
        "school.example",
        "school.example/math",
    ]  # no page of the news was kept
    assert school.questions(most=1) == ["school.example"] and school.questions(minimum=9) == [
        "school.example"
    ]
    # /book has the same pages as /book/one: the question is about the longer prefix.
    assert rows["sums.example"].questions() == [
        "sums.example",
        "sums.example/book/one",
        "sums.example/viewtopic",
    ]
    text = D.table_text(table())
    assert "sums.example: 7 of 8 pages kept (88 %)" in text
    assert "school.example/math   6 of 8 pages kept (75 %)" in text
    assert "- https://www.School.example/math/7.html   Fractions 7" in text
    assert (
        text.count("    + https://www.School.example/math/") == 2 * 3
    )  # three for the domain, three for the prefix
    plain = json.loads(json.dumps(D.table_rows(table())))
    assert plain[1]["prefixes"][1]["prefix"] == "school.example/math"
    assert sorted(title for _, title in plain[1]["prefixes"][1]["other_examples"]) == [
        "Fractions 6",
        "Fractions 7",
    ]


@settings(max_examples=8)
@given(st.randoms(use_true_random=False), st.integers(1, 6))
def test_shards_and_their_order_change_nothing(rng, shards):
    pages = list(PAGES) * 3 + [
        (f"http://sums.example/big/{i}", i % 3 == 0, f"{i}") for i in range(300)
    ]
    names = D.math_domains(D.domain_counts((url, kept) for url, kept, _ in pages))
    whole = D.prefix_counts(pages, names)
    rng.shuffle(pages)
    parts = [pages[k::shards] for k in range(shards)]
    counts = D.merge_domains(
        D.domain_counts((url, kept) for url, kept, _ in part) for part in parts
    )
    assert D.math_domains(counts) == names
    stored = [
        json.loads(
            json.dumps(
                {name: asdict(prefix) for name, prefix in D.prefix_counts(part, names).items()}
            )
        )
        for part in parts
    ]
    merged = D.merge_prefixes(
        {name: D.Prefix(**fields) for name, fields in part.items()} for part in stored
    )
    assert merged == whole


# ---- under ----


@settings(max_examples=50)
@given(
    st.lists(segments, max_size=6),
    st.lists(segments, max_size=6),
    st.sampled_from(["/", "?q=1", "#f"]),
)
def test_under_is_a_comparison_of_segments(names, urls, end):
    clean = [
        [part.replace(" ", "%20").replace("\x85", "%20") for part in name if part != "#"]
        for name in names
    ]
    urls = [[part for part in url if part != "#"] for url in urls]
    found = D.under(
        ["/".join(["a.example", *name]) for name in clean],
        ["http://www.a.example/" + "/".join(url) + end for url in urls],
    )
    plain = [[part.replace(" ", "%20").replace("\x85", "%20") for part in url] for url in urls]
    assert found == [any(url[: len(name)] == name for name in clean) for url in plain]


def test_under_compares_hosts():
    urls = [
        "http://a.example/x",
        "http://www.a.example",
        "http://b.a.example/x",
        "http://a.example.org/",
        "nonsense",
    ]
    assert D.under(["a.example"], urls) == [True, True, False, False, False]
    assert D.under([], urls) == [False] * 5


def test_under_does_not_look_at_every_prefix():
    class Counted(str):
        compared = 0

        def __eq__(self, other):
            Counted.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    names = [Counted(f"host{i}.example/math") for i in range(5000)]
    assert D.under(names, [f"http://host{i}.example/math/1" for i in range(200)]) == [True] * 200
    assert Counted.compared < 2000


# ---- Annotation ----


def test_annotation_file(tmp_path):
    path = tmp_path / "math.txt"
    path.write_text(
        "# sites\n\nhttps://www.School.example/math/   # seen by me\nsums.example\n"
        "# no: sums.example/book\nschool.example/math\n数学.example/题\n",
        encoding="utf-8",
    )
    assert D.read_annotations(path) == ["school.example/math", "sums.example", "数学.example/题"]


@pytest.mark.parametrize(
    "line, reason",
    [
        ("school.example/math notes", "contains a space"),
        ("school.example/math?page=1", "query"),
        ("mathematics", "host"),
        ("/math", "host"),
        ("http://", "host"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, reason):
    path = tmp_path / "math.txt"
    path.write_text(f"sums.example\n{line}\n")
    with pytest.raises(InputError, match=f"math.txt:2: .*{reason}"):
        D.read_annotations(path)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(InputError, match="none.txt: cannot be read"):
        D.read_annotations(tmp_path / "none.txt")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        D.read_annotations(tmp_path / "bytes")


@settings(max_examples=50)
@given(st.lists(st.text(st.characters(), max_size=8), min_size=1, max_size=5))
def test_every_prefix_can_be_written_and_read(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("names") / "math.txt"
    url = "http://a.example/" + "/".join(parts) + "/"
    names = D.prefixes(url, depth=9)
    D.write_annotations(path, names, "made by\na rule")
    assert D.read_annotations(path) == names
    assert path.read_text(encoding="utf-8").startswith("# made by\n# a rule\n")
    assert all(D.under([name], [url]) == [True] for name in names)


def run(path, answers, rows=None):
    """Run the questionnaire with these answers. Returns (counts, the text shown)."""
    shown, left = [], iter(answers)

    def ask(prompt):
        answer = next(left)
        if isinstance(answer, type):
            raise answer
        return answer

    counts = D.annotate(rows or table(), path, ask, shown.append)
    assert next(left, None) is None, "some answers were not used"
    return counts, "\n".join(shown)


def test_questionnaire(tmp_path):
    path = tmp_path / "math.txt"
    # Questions: sums, school, school/math, almost/a. Accepting sums.example covers its prefixes.
    counts, shown = run(path, ["Y", "no", "what?", "", "yes", "s"])
    assert counts == {"yes": 2, "no": 1, "skip": 1, "left": 0}
    assert D.read_annotations(path) == ["sums.example", "school.example/math"]
    assert (
        "sums.example/viewtopic   " not in shown
        and "school.example/math   6 of 8 pages kept (75 %)" in shown
    )
    # Again: the only question is about the skipped prefix.
    counts, shown = run(path, ["n"])
    assert counts == {"yes": 0, "no": 1, "skip": 0, "left": 0} and "almost.example/a" in shown
    assert run(path, []) == ({"yes": 0, "no": 0, "skip": 0, "left": 0}, "")


@pytest.mark.parametrize("stop", ["q", EOFError, KeyboardInterrupt])
def test_questionnaire_keeps_answers_when_it_stops(tmp_path, stop):
    path = tmp_path / "math.txt"
    path.write_text("# mine\nother.example/x", encoding="utf-8")  # no newline at the end
    counts, _ = run(path, ["n", "y", stop])
    assert counts == {"yes": 1, "no": 1, "skip": 0, "left": 4}
    assert path.read_text(encoding="utf-8") == (
        "# mine\nother.example/x\n# no: sums.example\nsums.example/book/one\n"
    )


def test_every_answer_is_in_the_file_before_the_next_question(tmp_path):
    path, seen = tmp_path / "math.txt", []

    def ask(prompt):
        seen.append(len(D.read_annotations(path)) if path.exists() else 0)
        return "y" if len(seen) % 2 else "n"

    D.annotate(table(), path, ask, lambda text: None)
    assert seen == [0, 1, 1, 2]  # sums, school (no), school/math, almost/a (no)


def test_questionnaire_refuses_a_bad_file(tmp_path):
    path = tmp_path / "math.txt"
    path.write_text("not a prefix\n")
    with pytest.raises(InputError, match="math.txt:1"):
        run(path, [])


def test_auto_chooses_only_the_mathematical_part():
    # Enough of school.example was kept, but its news pages are not mathematics.
    assert D.auto_annotate(table(), share=0.15) == ["sums.example", "school.example/math"]
    assert D.auto_annotate(table(), share=0.15, minimum=9) == []
    assert D.auto_annotate(table(), share=0.8) == ["sums.example/book/one"]
    assert D.auto_annotate(table(), share=0.9) == ["sums.example/book/one"]
    assert D.auto_annotate(table(), share=0.1) == [
        "sums.example",
        "school.example/math",
        "almost.example/a",
    ]


def test_auto_sees_pages_in_no_folder():
    pages = [(f"http://a.example/math/{i}", True, "") for i in range(10)]
    assert D.auto_annotate(table(pages)) == ["a.example/math"]
    loose = [(f"http://a.example/{i}.html", False, "") for i in range(5)]
    assert D.auto_annotate(table(pages + loose)) == ["a.example/math"]
    some = [(url, True, "") for url, *_ in loose]
    assert D.auto_annotate(table(pages + some)) == ["a.example"]


@settings(max_examples=50)
@given(st.lists(st.tuples(segments, st.booleans()), max_size=40), st.sampled_from([0.1, 0.25, 0.5]))
def test_auto_prefixes_are_apart_and_above_the_share(pages, share):
    pages = [
        ("http://a.example/" + "/".join(p for p in parts if p != "#"), kept, "")
        for parts, kept in pages
    ]
    rows = table(pages)
    names = D.auto_annotate(rows, share)
    for name, other in itertools.permutations(names, 2):
        assert not D.under([name], ["http://" + other])[0]
    for name in names:
        inside = [kept for url, kept, _ in pages if name in D.prefixes(url)]
        assert sum(inside) > share * len(inside) and len(inside) >= 3
