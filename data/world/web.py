"""A small web, seeded and endless like the rest of the built-in world: a crawl for the data engine (data/mine) with the
truth about every page, so that what was mined can be scored.

    python -m data.world.web --to DIR --pages 5000 --domains 300 [--seed 0] [--langs en,zh] [--levels 1,2] [--jsonl]

    DIR/crawl/part-00000.warc.gz ...   HTML pages, 1000 a file (--jsonl: part-00000.jsonl of {url, text, lang, date})
    DIR/truth.jsonl                    a line a page: {url, kind, style?, lang, domain, copy?, copy_of?, planted?}
    DIR/seed/positives.jsonl, negatives.jsonl   pages that a classifier can begin with; none of them is in the crawl
    DIR/benchmark/english.jsonl ...    problem files; the questions named in `planted` stand on pages of the crawl

Kinds of page: math (in seven styles), physics, accounting, sports and code, which share much of its vocabulary,
general, and spam. Sites: all of one kind, or mixed, with the mathematics under one path. Some sites hold pages in both
languages. `copy` says how a page repeats the earlier page `copy_of`: "url" (the same page with a session or tracking id
in its address), "mirror" (the same bytes on another site) or "near" (small edits, the boilerplate of another site).

The seed corpus knows two of the seven styles, in one language: as in section 2.1 of the paper, the first round of
mining lacks diversity, and what it finds on the way, by sites, must enrich it.

Word problems are of the train split, but for the planted ones, which are of the test split. Every page has a generator
of its own: page 17 of a (seed, domains, langs, levels, benchmark) is the same however many pages were asked for.
"""

import argparse
import gzip
import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from urllib.parse import urlsplit

from data.io import InputError, atomic_write, run_cli, write_jsonl
from data.world import web_texts as texts
from data.world.documents import pick, say
from data.world.synthetic import LANGS, LEVELS, choose, generator, problem

# Sites by turns, so that any twenty in a row hold all kinds.
SITE_KINDS = (
    "math general mixed physics math general copies code math mixed general accounting math general mixed "
    "sports math general copies spam"
).split()
SEED_STYLES = ("textbook", "notes")
# The style that a site is mostly of, by turns: most of them of the three full of word problems.
MAIN_STYLES = "textbook bank forum notes blog proofs bank forum geometry blog".split()
# The style that stands beside another on a site: what is found leads on to what is not, round by round.
BESIDE = {
    "textbook": "notes",
    "notes": "proofs",
    "proofs": "bank",
    "bank": "forum",
    "forum": "blog",
    "blog": "geometry",
    "geometry": "blog",
}
# The path under which a site keeps pages of a style or kind; {i} is the number of the page.
PATHS = {
    "textbook": ("/book/chapter-{i}.html", "/textbook/arithmetic/{i}"),
    "notes": ("/lectures/notes-{i}.html", "/courses/math/{i}"),
    "blog": ("/blog/post-{i}", "/diary/2021/entry-{i}"),
    "forum": ("/viewtopic.php?f=2&t={i}", "/questions/{i}/help"),
    "bank": ("/problems/{i}", "/tiku/item?id={i}"),
    "geometry": ("/figures/{i}.html", "/gallery/geometry/{i}"),
    "proofs": ("/wiki/Proof_{i}", "/theorems/{i}.html"),
    "math": ("/math/{i}.html", "/q/{i}", "/shuxue/{i}.html"),
    "general": ("/news/{i}.html", "/{i}.html", "/pages/show?page={i}"),
    "physics": ("/physics/{i}.html", "/wuli/{i}"),
    "accounting": ("/accounting/{i}.html", "/reports/{i}"),
    "sports": ("/sports/{i}.html", "/matches/{i}"),
    "code": ("/code/{i}.html", "/tutorials/{i}"),
    "spam": ("/{i}", "/go?offer={i}"),
}
FORMULA_FORMS = ("dollar", "script", "mathml", "paren", "katex", "image")
ELSEWHERE = 10**9  # pages from here on are not in the crawl: the seed corpus comes from there
SHARD = 1000  # pages a file


@dataclass(frozen=True)
class Site:
    """A domain and what it holds."""

    host: str
    kind: str
    lang: str
    other_lang: str  # of a quarter of the pages of a bilingual site; else equal to lang
    sections: tuple[
        tuple[str, str, str, int], ...
    ]  # kind, style of mathematics or "", path, weight
    formulas: str  # how its HTML writes them
    encoding: str
    name: str
    secure: bool
    navigation: tuple[int, ...]
    footer: int


@dataclass(frozen=True)
class Head:
    """What is known of a page before it is written."""

    number: int
    site: int
    kind: str
    style: str
    lang: str
    url: str
    copy: str = ""
    original: int = -1  # the number of the page it copies


@dataclass(frozen=True)
class Page:
    url: str
    kind: str
    style: str
    lang: str
    date: str
    title: str
    text: str  # without the boilerplate of the site
    html: bytes
    encoding: str
    copy: str
    copy_of: str
    planted: tuple[str, ...]  # ids of benchmark questions

    def row(self) -> dict:
        return {"url": self.url, "text": self.text, "lang": self.lang, "date": self.date}

    def truth(self) -> dict:
        domain = urlsplit(self.url).hostname.removeprefix("www.")
        fields = dict(
            kind=self.kind,
            style=self.style,
            lang=self.lang,
            domain=domain,
            copy=self.copy,
            copy_of=self.copy_of,
            planted=list(self.planted),
        )
        return {"url": self.url} | {name: value for name, value in fields.items() if value}


class Web:
    """The pages of a web of `domains` sites. langs and levels (of the word problems) as in data.world.synthetic.problem;
    `benchmark`: questions in each language, of which the first half may be planted. Raises InputError."""

    def __init__(
        self, domains: int = 300, seed: int = 0, langs=None, levels=None, benchmark: int = 60
    ):
        if domains < len(SITE_KINDS):
            raise InputError(
                f"--domains {domains}: too few for all kinds of site; give {len(SITE_KINDS)} or more"
            )
        self.domains, self.seed, self.benchmark_size = domains, seed, benchmark
        self.langs, self.levels = choose("langs", langs, LANGS), choose("levels", levels, LEVELS)

    # --- Sites ---

    @cached_property
    def sites(self) -> list[Site]:
        return [self._site(d) for d in range(self.domains)]

    def _site(self, d: int) -> Site:
        draw = generator("web site", self.seed, d)
        kind, turn = SITE_KINDS[d % len(SITE_KINDS)], d // len(SITE_KINDS) + d % len(SITE_KINDS)
        lang = self.langs[draw(0, len(self.langs) - 1)]
        other = self.langs[-1 - self.langs.index(lang)] if draw(1, 3) == 1 else lang
        first = MAIN_STYLES[turn % len(MAIN_STYLES)]
        second = BESIDE[first]

        def section(kind: str, style: str, paths: str, weight: int):
            return kind, style, pick(draw, PATHS[paths]), weight

        if kind == "math":
            path = pick(draw, PATHS[first])
            sections = [
                ("math", first, path, 60),
                ("math", second, path, 25),
                section("general", "", "general", 10),
            ]
        elif kind == "mixed":
            path = pick(draw, PATHS["math"])
            rest = pick(draw, ("physics", "accounting", "sports", "code"))
            sections = [
                ("math", first, path, 25),
                ("math", second, path, 15),
                section("general", "", "general", 45),
                section(rest, "", rest, 15),
            ]
        else:
            only = "general" if kind == "copies" else kind
            sections = [section(only, "", only, 1)]
        word = pick(draw, texts.SITE_WORDS[kind])
        return Site(
            host=("www." if draw(0, 1) else "") + f"{word}{d}.example",
            kind=kind,
            lang=lang,
            other_lang=other,
            sections=tuple(sections),
            formulas=FORMULA_FORMS[draw(0, len(FORMULA_FORMS) - 1)],
            encoding="gb2312" if (lang, other, draw(1, 3)) == ("zh", "zh", 1) else "utf-8",
            name=f"{word.title()} {d}",
            secure=draw(1, 10) > 3,
            navigation=tuple(draw(0, len(texts.NAVIGATION) - 1) for _ in range(draw(3, 6))),
            footer=draw(0, len(texts.FOOTERS) - 1),
        )

    # --- Benchmark ---

    @cached_property
    def benchmark(self) -> dict[str, list[dict]]:
        """Problem files: by language word problems of the test split, and short sums that only an exact match finds."""
        files: dict[str, list[dict]] = {}
        for lang in self.langs:
            files[{"en": "english", "zh": "chinese"}[lang]] = [
                {
                    "id": f"{lang}-{k}",
                    "question": p.question,
                    "answer": p.answer,
                    "source": "synthetic",
                    "lang": lang,
                }
                for k in range(self.benchmark_size)
                for p in [problem(k, "test", f"benchmark-{self.seed}", lang, self.levels)]
            ]
        draw = generator("web benchmark", self.seed)
        files["short"] = [
            {
                "id": f"short-{k}",
                "question": say(lang, f"What is {a} times {b}?", f"{a}乘{b}等于几？"),
                "answer": str(a * b),
                "source": "synthetic",
                "lang": lang,
            }
            for k in range(self.benchmark_size // 4)
            for lang, a, b in [(self.langs[k % len(self.langs)], draw(1001, 9999), draw(13, 99))]
        ]
        return files

    @cached_property
    def _plantable(self) -> dict[str, list[dict]]:
        """The first half of every benchmark file, by language."""
        rows = [row for file in self.benchmark.values() for row in file[: len(file) // 2]]
        return {lang: [row for row in rows if row["lang"] == lang] for lang in self.langs}

    # --- Pages ---

    def head(self, i: int) -> Head:
        """Where page i stands and what it is; cheap."""
        draw = generator("web page", self.seed, i)
        d = int(self.domains * (draw(0, 2**20 - 1) / 2**20) ** 1.5)  # some sites are large
        site = self.sites[d]
        copies = site.kind == "copies"
        if i < ELSEWHERE and (copies or draw(1, 100) <= 4):
            for _ in range(20 * bool(i)):
                original = self.head(draw(0, i - 1))
                if not original.copy:
                    return self._copy(i, d if copies else -1, original, draw)
        sections = site.sections
        at = draw(1, sum(weight for *_, weight in sections))
        for kind, style, path, weight in sections:  # noqa: B007
            at -= weight
            if at <= 0:
                break
        lang = site.other_lang if draw(1, 4) == 1 else site.lang
        return Head(
            i, d, kind, style, lang, f"http{'s' * site.secure}://{site.host}{path.format(i=i)}"
        )

    def _copy(self, i: int, d: int, original: Head, draw) -> Head:
        if d < 0:
            copy, url, d = "url", with_tracking(original.url, draw), original.site
        elif draw(0, 1):
            copy, url = "mirror", re.sub("//[^/]+", "//" + self.sites[d].host, original.url)
            url += f"{'&' if '?' in url else '?'}copy={i}"  # a page may be mirrored twice
        else:
            copy, url = "near", f"http://{self.sites[d].host}/archive/{i}.html"
        return Head(i, d, original.kind, original.style, original.lang, url, copy, original.number)

    def page(self, i: int) -> Page:
        """Page number i; it may copy an earlier one."""
        return self._write(self.head(i))

    def _write(self, head: Head) -> Page:
        i = head.number
        source = self.head(head.original) if head.copy else head
        blocks, planted = self._blocks(source)
        site = self.sites[head.site]
        draw = generator("web copy", self.seed, i)
        if head.copy == "near":
            blocks = edited(blocks, head.lang, draw)
        elif head.copy:
            site = self.sites[source.site]
        draw = generator("web date", self.seed, i)
        date = f"{draw(2019, 2023)}-{draw(1, 12):02}-{draw(1, 28):02}"
        return Page(
            url=head.url,
            kind=head.kind,
            style=head.style,
            lang=head.lang,
            date=date,
            title=blocks[0][1],
            text="\n\n".join(text for _, text in blocks),
            html=to_html(blocks, site, head.lang),
            encoding=site.encoding,
            copy=head.copy,
            copy_of=source.url if head.copy else "",
            planted=tuple(planted),
        )

    def _blocks(self, head: Head) -> tuple[list[texts.Block], list[str]]:
        """The content of an original page, and the ids of the benchmark questions on it."""
        draw, lang = generator("web text", self.seed, head.number), head.lang
        if head.kind == "general":
            return texts.general_blocks(lang, draw), []
        if head.kind == "spam":
            return texts.spam_blocks(lang, draw), []
        if head.kind != "math":
            return texts.other_blocks(head.kind, lang, draw), []

        def exercise() -> tuple[str, str, str, str]:
            p = problem(draw(0, 2**31), "train", f"web-{self.seed}", lang, self.levels)
            return p.question, p.answer, p.cot, p.pot

        planted = []
        if draw(1, 15) == 1 and head.number < ELSEWHERE and self._plantable[lang]:
            planted = [pick(draw, self._plantable[lang]) for _ in range(draw(1, 2))]
        questions = [row["question"] for row in planted]
        blocks = texts.math_blocks(head.style, lang, draw, exercise, max(self.levels), questions)
        return blocks, sorted({row["id"] for row in planted})

    def seed_pages(self, count: int, positive: bool) -> Iterator[dict]:
        """`count` pages of the seed corpus. Positives: mathematics in SEED_STYLES in the first language, from sites of
        their own. Negatives: pages of this web but no mathematics, which a random page of the real one hardly ever is.
        """
        number = ELSEWHERE
        for i in range(ELSEWHERE, ELSEWHERE + count):
            if positive:
                style = SEED_STYLES[i % len(SEED_STYLES)]
                head = Head(
                    i,
                    0,
                    "math",
                    style,
                    self.langs[0],
                    f"https://handbook{i % 9}.example/{style}/{i}.html",
                )
            else:
                while (head := self.head(number)).kind == "math":
                    number += 1
                number += 1
            yield self._write(head).row()


def with_tracking(url: str, draw: Callable[[int, int], int]) -> str:
    """The same page at another address: a tracking or session id, a fragment."""
    number = draw(10**6, 10**9)
    extra = pick(
        draw,
        (
            f"utm_source=mail&utm_campaign={number}",
            f"fbclid={number}",
            f"PHPSESSID={number:x}",
            f"sessionid={number:x}",
            f"gclid={number:x}",
            f"#comment-{number}",
        ),
    )
    if extra.startswith("#"):
        return url + extra
    return url + ("&" if "?" in url else "?") + extra


def edited(
    blocks: list[texts.Block], lang: str, draw: Callable[[int, int], int]
) -> list[texts.Block]:
    """The blocks with one to three small edits: a short paragraph left out, a word before the title, a note at the end.
    No number or name changes: a word problem with another name may be of another split."""
    cut, title, note = draw(0, 1), draw(0, 1), draw(0, 1)
    shortest = min(blocks[1:], key=lambda block: len(block[1]))
    cut = cut and 15 * len(shortest[1]) < sum(len(text) for _, text in blocks)
    blocks = [block for block in blocks if not (cut and block is shortest)]
    if title:
        blocks[0] = ("h1", say(lang, "Archive: ", "存档：") + blocks[0][1])
    if note or not (cut or title):
        blocks.append(("p", texts.fill(texts.NOTES, lang, draw, texts.slots_of(lang, draw))))
    return blocks


# --- HTML -----------------------------------------------------------------------------------------------------------

SYMBOLS = dict(times="×", cdot="·", pm="±", dots="…", rho="ρ", lambda_="λ")


def mathml(latex: str) -> str:
    """The MathML of the LaTeX that FORMULAS use: \\frac, \\sqrt, \\bar, powers, indices, a few symbols."""
    tokens = re.findall(r"\\[a-z]+|\\.|\d+|[^\s]", latex)

    def atom() -> str:
        token = tokens.pop(0)
        if token == "{":
            inside = row()
            tokens.pop(0)
            return inside
        if token == "\\frac":
            return f"<mfrac>{atom()}{atom()}</mfrac>"
        if token == "\\sqrt":
            return f"<msqrt>{atom()}</msqrt>"
        if token == "\\bar":
            return f"<mover>{atom()}<mo>¯</mo></mover>"
        if token in ("\\rho", "\\lambda"):
            return f"<mi>{SYMBOLS[token[1:].replace('lambda', 'lambda_')]}</mi>"
        if token[0] == "\\":
            return f"<mo>{SYMBOLS.get(token[1:], token[1:])}</mo>"
        tag = "mi" if token.isalpha() else "mn" if token.isdigit() else "mo"
        return f"<{tag}>{token}</{tag}>"

    def row() -> str:
        parts: list[str] = []
        while tokens and tokens[0] != "}":
            if tokens[0] in "^_":
                tag = "msup" if tokens.pop(0) == "^" else "msub"
                parts.append(f"<{tag}>{parts.pop()}{atom()}</{tag}>")
            else:
                parts.append(atom())
        return f"<mrow>{''.join(parts)}</mrow>"

    return row()


def formula_html(latex: str, display: bool, form: str) -> str:
    """A formula in one of the forms in which the web writes mathematics."""
    plain, mode = html.escape(latex), ' display="block"' * display
    if form == "script":
        return f'<script type="math/tex{"; mode=display" * display}">{latex}</script>'
    if form == "mathml":
        return f'<math xmlns="http://www.w3.org/1998/Math/MathML"{mode}>{mathml(latex)}</math>'
    if form == "katex":
        annotation = f'<annotation encoding="application/x-tex">{plain}</annotation>'
        return (
            f'<span class="katex{"-display" * display}"><span class="katex-mathml"><math{mode}><semantics>'
            f'{mathml(latex)}{annotation}</semantics></math></span><span class="katex-html" aria-hidden="true">'
            f'<span class="base">{html.escape(re.sub(r"[{}$^_]|[a-z]{3,}", "", latex.replace(chr(92), "")))}</span>'
            "</span></span>"
        )
    if form == "image":
        name = blake2b(latex.encode(), digest_size=6).hexdigest()
        return f'<img class="{"display" if display else "inline"} latex" src="/latex/{name}.png" alt="{plain}">'
    left, right = ("\\[", "\\]") if display else ("\\(", "\\)")
    if form == "dollar":
        left = right = "$$" if display else "$"
    return left + plain + right


FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$")


def to_html(blocks: list[texts.Block], site: Site, lang: str) -> bytes:
    """The page as the site sends it: content between header, navigation and footer."""

    def paragraph(text: str) -> str:
        parts, at = [], 0
        for match in FORMULA.finditer(text):
            parts.append(html.escape(text[at : match.start()], quote=False))
            parts.append(formula_html(match[1] or match[2], bool(match[1]), site.formulas))
            at = match.end()
        parts.append(html.escape(text[at:], quote=False))
        return "".join(parts).replace("\n", "<br>\n")

    zh = lang == "zh"
    body = []
    for tag, text in blocks:
        inside = (
            f"<code>{html.escape(text, quote=False)}</code>" if tag == "pre" else paragraph(text)
        )
        body.append(f"<{tag}>{inside}</{tag}>")
    links = "".join(
        f'<li><a href="/{k}">{texts.NAVIGATION[k][zh]}</a></li>' for k in site.navigation
    )
    mathjax = '<script src="/mathjax/tex-chtml.js" async></script>\n' * (
        site.formulas in ("dollar", "paren", "script")
    )
    content = "\n".join(body)
    page = f"""<!DOCTYPE html>
<html lang="{lang}">
<head>
<meta charset="{site.encoding}">
<title>{html.escape(blocks[0][1], quote=False)} - {site.name}</title>
{mathjax}<style>body {{ max-width: 50em; margin: auto }} nav li {{ display: inline }}</style>
</head>
<body>
<header><a href="/">{site.name}</a></header>
<nav><ul>{links}</ul></nav>
<main>
{content}
</main>
<footer>© {site.name}. {texts.FOOTERS[site.footer][zh]}</footer>
</body>
</html>
"""
    # Servers that say gb2312 mean its superset.
    return page.encode("gb18030" if site.encoding == "gb2312" else "utf-8")


# --- Files ----------------------------------------------------------------------------------------------------------


def warc_record(kind: str, headers: dict[str, str], block: bytes) -> bytes:
    """A WARC/1.0 record as a gzip member of its own, so that a reader can begin at any record."""
    name = blake2b(kind.encode() + repr(headers).encode() + block, digest_size=16).hexdigest()
    name = "-".join((name[:8], name[8:12], name[12:16], name[16:20], name[20:]))
    fields = {
        "WARC-Type": kind,
        "WARC-Record-ID": f"<urn:uuid:{name}>",
        **headers,
        "Content-Length": str(len(block)),
    }
    head = "WARC/1.0\r\n" + "".join(f"{key}: {value}\r\n" for key, value in fields.items()) + "\r\n"
    return gzip.compress(head.encode() + block + b"\r\n\r\n", compresslevel=6, mtime=0)


def page_record(page: Page) -> bytes:
    """The response record of a page."""
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset={page.encoding}\r\n"
        f"Content-Length: {len(page.html)}\r\n\r\n"
    )
    return warc_record(
        "response",
        {
            "WARC-Target-URI": page.url,
            "WARC-Date": f"{page.date}T12:00:00Z",
            "Content-Type": "application/http; msgtype=response",
        },
        head.encode() + page.html,
    )


def write_web(
    directory: Path, web: Web, pages: int, seed_pages: int, jsonl: bool
) -> dict[str, int]:
    """Write what the command below promises; returns counts by kind of page and of copy."""
    counts: dict[str, int] = {}
    truths = []
    for shard, start in enumerate(range(0, pages, SHARD)):
        numbers = range(start, min(start + SHARD, pages))
        made = [web.page(i) for i in numbers]
        path = directory / "crawl" / f"part-{shard:05}"
        if jsonl:
            write_jsonl(path.with_suffix(".jsonl"), (page.row() for page in made))
        else:
            with atomic_write(path.with_suffix(".warc.gz"), "wb") as file:
                file.write(
                    warc_record(
                        "warcinfo",
                        {
                            "WARC-Date": "2023-12-31T00:00:00Z",
                            "Content-Type": "application/warc-fields",
                        },
                        b"software: data.world.web\r\nformat: WARC File Format 1.0\r\n",
                    )
                )
                for page in made:
                    file.write(page_record(page))
        for page in made:
            truths.append(page.truth())
            for name in (
                page.kind,
                page.copy and f"{page.copy} copies",
                page.planted and "planted",
            ):
                if name:
                    counts[name] = counts.get(name, 0) + 1
    write_jsonl(directory / "truth.jsonl", truths)
    write_jsonl(directory / "seed" / "positives.jsonl", web.seed_pages(seed_pages, positive=True))
    write_jsonl(directory / "seed" / "negatives.jsonl", web.seed_pages(seed_pages, positive=False))
    for name, rows in web.benchmark.items():
        if rows:
            write_jsonl(directory / "benchmark" / f"{name}.jsonl", rows)
    return counts


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.world.web", description="Write a small built-in web."
    )
    parser.add_argument(
        "--to", required=True, metavar="DIR", help="crawl/, seed/, benchmark/ and truth.jsonl"
    )
    parser.add_argument("--pages", type=int, default=5000, metavar="N")
    parser.add_argument("--domains", type=int, default=300, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seed_pages",
        type=int,
        metavar="N",
        help="positives and as many negatives of the seed corpus (default: pages / 10)",
    )
    parser.add_argument(
        "--benchmark",
        type=int,
        default=60,
        metavar="N",
        help="benchmark questions in each language",
    )
    parser.add_argument(
        "--langs", default="en,zh", help="the first is the language of the seed corpus"
    )
    parser.add_argument(
        "--levels", default="1,2,3,4,5", help="difficulties of the word problems, 1 (one step) to 5"
    )
    parser.add_argument(
        "--jsonl", action="store_true", help="write the crawl as JSONL pages, not as WARC"
    )
    options = parser.parse_args(arguments)

    seed_pages = -(-options.pages // 10) if options.seed_pages is None else options.seed_pages
    for name, value, least in (
        ("pages", options.pages, 1),
        ("seed_pages", seed_pages, 0),
        ("benchmark", options.benchmark, 0),
    ):
        if not least <= value <= ELSEWHERE:
            raise InputError(f"--{name} {value}: must be from {least} to {ELSEWHERE}")
    try:
        levels = [int(level) for level in options.levels.split(",")]
    except ValueError:
        raise InputError(
            f"--levels {options.levels!r} is not a list of numbers; write for example 1,2"
        ) from None
    levels = choose("--levels", levels, LEVELS)
    langs = choose("--langs", options.langs.split(","), LANGS)
    web = Web(options.domains, options.seed, langs, levels, options.benchmark)
    counts = write_web(Path(options.to), web, options.pages, seed_pages, options.jsonl)
    parts = ", ".join(f"{counts[name]} {name}" for name in sorted(counts))
    print(f"wrote {options.pages} pages to {options.to}: {parts}")


if __name__ == "__main__":
    run_cli(main)
