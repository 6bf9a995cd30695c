"""web.py: pages, the truth about them, HTML, the seed corpus and the files."""

import gzip
import html
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest

from data.io import InputError
from data.mine.ngrams import ngram_hashes, unit_hashes
from data.problems.readers import load
from data.world import synthetic as S
from data.world import web as W
from data.world import web_texts as texts

COUNT = 700


@pytest.fixture(scope="module")
def web():
    return W.Web(domains=60)


@pytest.fixture(scope="module")
def pages(web):
    return [web.page(i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def exercised():
    """(pages, the problems that their making drew)."""
    drawn, original = [], W.problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(W, "problem", lambda *a, **k: drawn.append(original(*a, **k)) or drawn[-1])
        web = W.Web(domains=60, seed=5, levels=(1, 2))
        made = [web.page(i) for i in range(300)]
    return made, drawn


def planted_ids(pages):
    return set(itertools.chain(*(page.planted for page in pages)))


def visible(page):
    """The text of the main part of a page, without tags."""
    body = page.html.decode("gb18030" if page.encoding == "gb2312" else "utf-8")
    body = re.search("<main>(.*)</main>", body, re.S)[1]
    return html.unescape(re.sub("<[^>]+>", "", body))


def test_a_page_does_not_depend_on_the_others(web, pages):
    assert W.Web(domains=60).page(COUNT - 1) == pages[COUNT - 1]
    assert [web.page(i) for i in (17, 3)] == [pages[17], pages[3]]
    for other in (W.Web(domains=60, seed=1), W.Web(domains=61), W.Web(domains=60, langs="en")):
        assert [other.page(i).text for i in range(20)] != [page.text for page in pages[:20]]


def test_pages_do_not_depend_on_the_process(pages):
    code = "from data.world.web import Web; print(ascii([Web(60).page(i) for i in range(9)]))"
    for seed in ("1", "2"):
        seen = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        assert seen == ascii(pages[:9]) + "\n"


def test_all_kinds_of_page_and_site(web, pages):
    kinds = Counter(page.kind for page in pages)
    assert set(kinds) == {"math", "general", "physics", "accounting", "sports", "code", "spam"}
    assert 0.25 < kinds["math"] / COUNT < 0.45 and min(kinds.values()) > 0.02 * COUNT
    styles = {(page.style, page.lang) for page in pages if page.kind == "math"}
    assert {style for style, _ in styles} == set(texts.STYLES) and len(styles) > 1.5 * len(
        texts.STYLES
    )
    assert all(not page.style for page in pages if page.kind != "math")
    assert {site.formulas for site in web.sites} == set(W.FORMULA_FORMS)
    assert {site.encoding for site in web.sites} == {"utf-8", "gb2312"}
    for page in pages:
        assert (page.lang == "zh") == bool(re.search("[一-鿿]", page.text))
        assert not re.search(
            r"\{[A-Za-z_]+\d?\}|~ |^\s*\|", re.sub(r"\$+[^$]+\$+", "", page.text)
        ), page.text
    assert len({page.url for page in pages}) == COUNT
    assert len({page.text for page in pages if not page.copy}) == sum(
        not page.copy for page in pages
    )


def test_the_truth_about_sites(web, pages):
    """On mixed sites a folder has all the mathematics and nothing else."""
    by_kind = {}
    for i, page in enumerate(pages):
        if not page.copy:
            site = web.sites[web.head(i).site]
            assert urlsplit(page.url).hostname == site.host
            folder = urlsplit(page.url).path.rpartition("/")[0]
            by_kind.setdefault(site.kind, []).append((page.kind, site.host, folder))
    for kind in ("physics", "accounting", "sports", "code", "spam", "general"):
        assert {what for what, *_ in by_kind[kind]} == {kind}
    assert {what for what, *_ in by_kind["math"]} == {"math", "general"}
    mixed = by_kind["mixed"]
    assert 0.25 < sum(what == "math" for what, *_ in mixed) / len(mixed) < 0.55
    math = {(host, folder) for what, host, folder in mixed if what == "math"}
    assert math and not math & {(host, folder) for what, host, folder in mixed if what != "math"}


def test_copies_are_what_they_are_called(pages):
    at = {page.url: i for i, page in enumerate(pages)}
    grams = ngram_hashes(unit_hashes([page.text for page in pages]), 5)
    seen, near = Counter(page.copy for page in pages), []
    assert min(seen[copy] for copy in ("url", "mirror", "near")) > 15 and seen[""] > 0.7 * COUNT
    for i, page in enumerate(pages):
        assert bool(page.copy) == bool(page.copy_of)
        if not page.copy:
            continue
        original = pages[at[page.copy_of]]
        assert at[original.url] < i and not original.copy
        assert (page.kind, page.style, page.lang, page.planted) == (
            original.kind,
            original.style,
            original.lang,
            original.planted,
        )
        hosts = [urlsplit(url).hostname for url in (page.url, original.url)]
        assert (hosts[0] == hosts[1]) == (page.copy == "url")
        if page.copy == "near":
            one, other = set(grams[i].tolist()), set(grams[at[original.url]].tolist())
            near.append(len(one & other) / len(one | other))
            assert page.text != original.text
        else:
            assert page.html == original.html and page.text == original.text
        if page.copy == "url":
            assert page.url.startswith(original.url)
    assert 0.8 < min(near) < 0.95
    # Pages that are not copies of each other are far from it.
    originals = [set(grams[i].tolist()) for i, page in enumerate(pages) if not page.copy][:250]
    for a, b in itertools.combinations(originals, 2):
        assert len(a & b) / len(a | b) < 0.5


def test_only_planted_problems_are_from_the_test_split(exercised):
    made, drawn = exercised
    web = W.Web(domains=60, seed=5, levels=(1, 2))
    questions = {row["id"]: row["question"] for row in itertools.chain(*web.benchmark.values())}
    planted = {questions[name] for name in planted_ids(made)}
    assert len(planted) > 0
    splits = Counter(S.split_of(p.key) for p in drawn)
    assert splits["train"] > 200 and splits["valid"] == 0
    assert {p.question for p in drawn if S.split_of(p.key) == "test"} <= set(questions.values())
    assert {p.level for p in drawn} == {1, 2}
    held_out = [p.question for p in drawn if S.split_of(p.key) == "test"]
    for page in made:
        for question in held_out:
            stands = question in page.text
            assert not stands or question in {questions[name] for name in page.planted}
        for name in page.planted:
            assert questions[name] in page.text and page.kind == "math"


def test_a_part_of_the_benchmark_is_planted(web, pages):
    rows = {row["id"]: row for row in itertools.chain(*web.benchmark.values())}
    assert len(rows) == 60 + 60 + 15
    for row in rows.values():
        if row["id"].startswith("short"):
            a, b = map(int, re.findall(r"\d+", row["question"]))
            assert row["answer"] == str(a * b)
            assert 3 <= len(unit_hashes([row["question"]])[0]) <= 9
        else:
            number = int(row["id"].partition("-")[2])
            p = S.problem(number, "test", "benchmark-0", row["lang"])
            assert (row["question"], row["answer"], S.split_of(p.key)) == (
                p.question,
                p.answer,
                "test",
            )
    planted = planted_ids(pages)
    assert {name.partition("-")[0] for name in planted} == {"en", "zh", "short"}
    assert all(int(name.partition("-")[2]) < (7 if "short" in name else 30) for name in planted)
    for page in pages:
        here = {name for name, row in rows.items() if row["question"] in page.text}
        assert here == set(page.planted)
        flat = " ".join(visible(page).split())
        assert all(rows[name]["question"] in flat for name in page.planted)


def test_mathematical_pages_are_full_of_worked_problems():
    web = W.Web(domains=40, langs="en", levels=(1, 2))
    math = [page for page in (web.page(i) for i in range(300)) if page.kind == "math"]
    assert {page.lang for page in math} == {"en"}
    assert sum(
        page.text.count("The answer is") + page.text.count("# Output:") for page in math
    ) > 5 * len(math)
    assert any("print(" in page.text for page in math)
    checked = 0
    for page in math:
        for left, right in re.findall(
            r"(\d+ [-+*] \d+) = (\d+)(?![/.\d])(?= |,|\.|$)", page.text, re.M
        ):
            checked += 1
            assert eval(left) == int(right)
    assert checked > 1000


def test_near_mathematics_looks_like_it(pages):
    """Physics has formulas, accounting has equations, spam has the words of mathematics."""
    by_kind = {
        kind: " ".join(page.text for page in pages if page.kind == kind)
        for kind in ("physics", "accounting", "spam")
    }
    assert by_kind["physics"].count("$") > 100 and by_kind["accounting"].count(" = ") > 10
    assert "代数" in by_kind["spam"] and "应用题" in by_kind["spam"]


# ---- HTML ----


@pytest.mark.parametrize(
    "latex, expected",
    [
        (r"\frac{a}{b}", "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>"),
        ("x_1^2", "<msup><msub><mi>x</mi><mn>1</mn></msub><mn>2</mn></msup>"),
        (
            r"\sqrt{ab} = 12",
            "<msqrt><mrow><mi>a</mi><mi>b</mi></mrow></msqrt><mo>=</mo><mn>12</mn>",
        ),
        (r"p \% \times \rho", "<mi>p</mi><mo>%</mo><mo>×</mo><mi>ρ</mi>"),
        (r"x^{m + n}", "<msup><mi>x</mi><mrow><mi>m</mi><mo>+</mo><mi>n</mi></mrow></msup>"),
    ],
)
def test_mathml(latex, expected):
    assert W.mathml(latex) == f"<mrow>{expected}</mrow>"


@pytest.mark.parametrize("name", texts.FORMULAS)
def test_every_formula_is_well_formed(name):
    latex = texts.FORMULAS[name]
    tree = ElementTree.fromstring(W.mathml(latex))
    arity = {"mfrac": 2, "msup": 2, "msub": 2, "mover": 2, "msqrt": 1}
    for element in tree.iter():
        assert len(element) == arity.get(element.tag, len(element))
        assert "\\" not in (element.text or "")
    letters = re.sub(r"\\[a-z]+", "", latex)
    shown = "".join(element.text for element in tree.iter("mi") if element.text.isascii())
    assert shown == re.sub("[^A-Za-z]", "", letters)
    for form in W.FORMULA_FORMS:
        for display in (False, True):
            written = W.formula_html(latex, display, form)
            assert form == "mathml" or latex in html.unescape(written)
            assert ("display" in written or "$$" in written or "\\[" in written) == display


def test_html_has_the_text(pages):
    forms = Counter()
    for page in pages[:250]:
        body = page.html.decode("gb18030" if page.encoding == "gb2312" else "utf-8")
        assert f'<meta charset="{page.encoding}">' in body and f'<html lang="{page.lang}">' in body
        forms.update(
            re.findall(r"class=\"katex\"|math/tex|<math xmlns|class=\"inline latex\"|\\\(|\$", body)
        )
        flat = visible(page)
        for paragraph in page.text.split("\n\n"):
            for line in paragraph.split("\n"):
                assert "$" in line or line in flat, line
    assert len(forms) >= 5
    shared = Counter(
        re.search(r"<nav>.*?</nav>", page.html.decode("utf-8", "ignore"))[0] for page in pages
    )
    assert len(shared) > 30  # navigation differs between sites


# ---- Seed corpus ----


def test_seed_corpus_lacks_diversity(web, pages):
    at = {page.url for page in pages}
    positives, negatives = (list(web.seed_pages(40, positive)) for positive in (True, False))
    assert len(positives) == len(negatives) == 40
    for row in positives + negatives:
        assert row.keys() == {"url", "text", "lang", "date"} and row["url"] not in at
    assert len({row["url"] for row in positives + negatives}) == 80
    assert {row["lang"] for row in positives} == {"en"} and {row["lang"] for row in negatives} == {
        "en",
        "zh",
    }
    openings = {
        style: [english.partition("{")[0] for english, _ in texts.STYLES[style].openings]
        for style in texts.STYLES
    }
    seen = set()
    for row in positives:
        opening = row["text"].split("\n\n")[1]
        seen |= {style for style, starts in openings.items() if opening.startswith(tuple(starts))}
    assert seen == set(W.SEED_STYLES)
    text = "\n".join(row["text"] for row in positives)
    for row in itertools.chain(*web.benchmark.values()):
        assert row["question"] not in text
    numbers = {row["url"]: i for i, row in enumerate(negatives)}
    kinds = Counter(
        head.kind
        for head in map(web.head, range(W.ELSEWHERE, W.ELSEWHERE + 80))
        if head.url in numbers
    )
    assert sum(kinds.values()) == 40 and "math" not in kinds and len(kinds) >= 4
    assert list(web.seed_pages(10, True)) == positives[:10]
    assert next(W.Web(domains=20, langs=["zh", "en"]).seed_pages(1, True))["lang"] == "zh"


# ---- Files ----


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def records(path):
    """A small WARC reader: [(headers, content)]. Every record is a gzip member."""
    data, found = path.read_bytes(), []
    assert data.count(b"\x1f\x8b\x08") >= 1
    data = gzip.decompress(data)
    while data:
        head, data = data.split(b"\r\n\r\n", 1)
        version, *lines = head.decode().split("\r\n")
        assert version == "WARC/1.0"
        headers = dict(line.split(": ", 1) for line in lines)
        size = int(headers["Content-Length"])
        assert data[size : size + 4] == b"\r\n\r\n"
        found.append((headers, data[:size]))
        data = data[size + 4 :]
    return found


def test_command_writes_all_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(W, "SHARD", 50)
    options = "--pages 120 --domains 40 --seed 3 --levels 1,2 --benchmark 8".split()
    W.main(["--to", str(tmp_path / "warc"), *options])
    assert "wrote 120 pages" in capsys.readouterr().out
    W.main(["--to", str(tmp_path / "jsonl"), *options, "--jsonl"])
    web = W.Web(40, 3, ["en", "zh"], [1, 2], 8)
    made = [web.page(i) for i in range(120)]
    same = [
        "truth.jsonl",
        "seed/positives.jsonl",
        "seed/negatives.jsonl",
        *(f"benchmark/{name}.jsonl" for name in ("english", "chinese", "short")),
    ]
    for name in same:
        assert (tmp_path / "warc" / name).read_bytes() == (tmp_path / "jsonl" / name).read_bytes()
    for kind, end in (("warc", "warc.gz"), ("jsonl", "jsonl")):
        found = sorted(
            str(p.relative_to(tmp_path / kind)) for p in (tmp_path / kind).rglob("*") if p.is_file()
        )
        assert found == sorted([*same, *(f"crawl/part-0000{k}.{end}" for k in range(3))])
    assert rows(tmp_path / "warc" / "truth.jsonl") == [page.truth() for page in made]
    crawl = tmp_path / "jsonl" / "crawl"
    crawled = [rows(crawl / f"part-0000{k}.jsonl") for k in range(3)]
    assert list(itertools.chain(*crawled)) == [page.row() for page in made]
    assert rows(tmp_path / "warc" / "seed" / "positives.jsonl") == list(web.seed_pages(12, True))
    for name, file in web.benchmark.items():
        assert [p.question for p in load(tmp_path / "warc" / "benchmark" / f"{name}.jsonl")] == [
            row["question"] for row in file
        ]
    for k, start in enumerate((0, 50, 100)):
        (info, _), *responses = records(tmp_path / "warc" / "crawl" / f"part-0000{k}.warc.gz")
        assert info["WARC-Type"] == "warcinfo"
        assert [headers["WARC-Target-URI"] for headers, _ in responses] == [
            page.url for page in made[start : start + 50]
        ]
        assert len({headers["WARC-Record-ID"] for headers, _ in responses}) == len(responses)
        for (headers, block), page in zip(responses, made[start:], strict=False):
            assert (
                headers["WARC-Date"] == f"{page.date}T12:00:00Z"
                and headers["WARC-Type"] == "response"
            )
            assert block.split(b"\r\n\r\n", 1)[1] == page.html
            assert f"charset={page.encoding}".encode() in block


def test_each_record_is_a_gzip_member(web):
    record = W.page_record(web.page(0))
    assert record.startswith(b"\x1f\x8b") and gzip.decompress(record).endswith(b"</html>\n\r\n\r\n")


def test_fastwarc_reads_them(tmp_path):
    warc = pytest.importorskip("fastwarc.warc")
    W.main(["--to", str(tmp_path), "--pages", "60", "--domains", "20"])
    web = W.Web(20)
    with open(tmp_path / "crawl" / "part-00000.warc.gz", "rb") as file:
        for i, record in enumerate(
            warc.ArchiveIterator(file, record_types=warc.WarcRecordType.response)
        ):
            page = web.page(i)
            assert (
                record.headers["WARC-Target-URI"] == page.url
                and record.http_charset == page.encoding
            )
            assert record.reader.read() == page.html
    assert i == 59


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--domains", "5"], "--domains 5: out of range; give an integer at least 20"),
        (["--pages", "0"], "--pages 0: out of range"),
        (["--levels", "one"], "--levels one: needs an integer"),
        (["--levels", "9"], "--levels 9: unknown"),
        (["--langs", "fr"], "--langs fr: unknown"),
        (["--seed_pages", "-1"], "--seed_pages -1"),
        (["--benchmark", "-1"], "--benchmark -1"),
    ],
)
def test_bad_options_are_named(tmp_path, options, reason):
    with pytest.raises(InputError, match=reason):
        W.main(["--to", str(tmp_path / "web"), *options])
    assert not (tmp_path / "web").exists()
