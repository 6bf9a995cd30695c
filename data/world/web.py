"""A small seeded web: a crawl for the data engine (data/mine), with the truth about every page.

    python -m data.world.web --to DIR [--pages 5000] [--domains 300]

    DIR/crawl/part-00000.warc.gz ...  HTML pages, 1000 in a file
                                      (--jsonl: part-00000.jsonl of {url, text, lang, date})
    DIR/truth.jsonl                   for each page {url, kind, style?, lang, domain, copy?,
                                      copy_of?, planted?}
    DIR/seed/positives.jsonl          a seed corpus for the classifier, which is not in the crawl
    DIR/seed/negatives.jsonl          pages that are not mathematics
    DIR/benchmark/english.jsonl ...   problem files; pages of the crawl contain the questions that
                                      `planted` names

Kinds of pages: math (in seven styles); physics, accounting, sports and code, which have much of the
same vocabulary; general; and spam. Sites have pages of one kind, or of several kinds with
mathematics under one path. Some sites have pages in both languages. `copy` says how a page repeats
the earlier page `copy_of`: "url" (the same page, with a session or tracking id in the address),
"mirror" (the same bytes on another site) or "near" (small edits, on another site).

The seed corpus has two of the seven styles, in one language. As in section 2.1 of the paper, the
first round of mining lacks diversity, and the sites that it finds must enrich it.

Word problems are from the train split, except the planted ones, which are from the test split.
Every page has a separate random generator: page 17 of a (seed, domains, langs, levels, benchmark)
does not depend on the number of pages.
"""

import gzip
import html
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from runtime.options import option, parse

from data.io import InputError, atomic_write, run_cli, write_jsonl
from data.world import web_texts as texts
from data.world.documents import pick, say
from data.world.families import Draw, SyntheticProblem
from data.world.synthetic import LANGS, LEVELS, choose, generator, problem

# The kinds of sites, in turn: any twenty sites in a row have all kinds.
SITE_KINDS = (
    "math general mixed physics math general copies code math mixed general accounting math "
    "general mixed sports math general copies spam"
).split()
SEED_STYLES = ("textbook", "notes")
# The main style of a site, in turn. Three of the styles have many word problems.
MAIN_STYLES = "textbook bank forum notes blog proofs bank forum geometry blog".split()
# The second style of a site: pages of a style that is found lead to pages of the next style.
BESIDE = {
    "textbook": "notes",
    "notes": "proofs",
    "proofs": "bank",
    "bank": "forum",
    "forum": "blog",
    "blog": "geometry",
    "geometry": "blog",
}
# Paths of the pages of a style or kind; {i} is the number of the page.
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
ELSEWHERE = 10**9  # pages from this number on are not in the crawl; the seed corpus uses them
SHARD = 1000  # pages in a file
LANGUAGES = {"en": "english", "zh": "chinese"}


class Section(NamedTuple):
    """Pages of a site with the same kind, style and path."""

    kind: str
    style: str  # of mathematics, else ""
    path: str
    weight: int


@dataclass(frozen=True)
class Site:
    """A domain."""

    host: str
    kind: str
    lang: str
    other_lang: str  # of a quarter of the pages
    sections: tuple[Section, ...]
    formulas: str  # the form of formulas in HTML
    encoding: str
    name: str
    secure: bool
    navigation: tuple[int, ...]
    footer: int


@dataclass(frozen=True)
class Head:
    """Facts about a page before it is written."""

    number: int
    site: int
    kind: str
    style: str
    lang: str
    url: str
    copy: str = ""
    original: int = -1  # the number of the copied page


@dataclass(frozen=True)
class Page:
    """A page of the web."""

    url: str
    kind: str
    style: str
    lang: str
    date: str
    title: str
    text: str  # without header, navigation and footer of the site
    html: bytes
    encoding: str
    copy: str
    copy_of: str
    planted: tuple[str, ...]  # ids of benchmark questions

    def row(self) -> dict:
        """The page as a line of a store."""
        return {"url": self.url, "text": self.text, "lang": self.lang, "date": self.date}

    def truth(self) -> dict:
        """The truth about the page, without empty fields."""
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
    """The pages of a web of `domains` sites.

    langs and levels (of the word problems) as in data.world.synthetic.problem. `benchmark` is the
    number of questions in each language; the first half may be planted. Raises InputError.
    """

    def __init__(
        self, domains: int = 300, seed: int = 0, langs=None, levels=None, benchmark: int = 60
    ):
        if domains < len(SITE_KINDS):
            raise InputError(
                f"--domains {domains}: too few for all kinds of sites; "
                f"give {len(SITE_KINDS)} or more"
            )
        self.domains = domains
        self.seed = seed
        self.langs = choose("langs", langs, LANGS)
        self.levels = choose("levels", levels, LEVELS)
        self.benchmark_size = benchmark

    # ---- Sites ----

    @cached_property
    def sites(self) -> list[Site]:
        return [self._site(number) for number in range(self.domains)]

    def _site(self, number: int) -> Site:
        draw = generator("web site", self.seed, number)
        kind = SITE_KINDS[number % len(SITE_KINDS)]
        lang = pick(draw, self.langs)
        other = self.langs[-1 - self.langs.index(lang)] if draw(1, 3) == 1 else lang
        sections = self._sections(number, kind, draw)
        word = pick(draw, texts.SITE_WORDS[kind])
        return Site(
            host=("www." if draw(0, 1) else "") + f"{word}{number}.example",
            kind=kind,
            lang=lang,
            other_lang=other,
            sections=tuple(sections),
            formulas=pick(draw, FORMULA_FORMS),
            encoding="gb2312" if (lang, other, draw(1, 3)) == ("zh", "zh", 1) else "utf-8",
            name=f"{word.title()} {number}",
            secure=draw(1, 10) > 3,
            navigation=tuple(draw(0, len(texts.NAVIGATION) - 1) for _ in range(draw(3, 6))),
            footer=draw(0, len(texts.FOOTERS) - 1),
        )

    def _sections(self, number: int, kind: str, draw: Draw) -> list[Section]:
        turn = number // len(SITE_KINDS) + number % len(SITE_KINDS)
        style = MAIN_STYLES[turn % len(MAIN_STYLES)]

        def other(kind: str, weight: int) -> Section:
            return Section(kind, "", pick(draw, PATHS[kind]), weight)

        if kind == "math":
            path = pick(draw, PATHS[style])
            return [
                Section("math", style, path, 60),
                Section("math", BESIDE[style], path, 25),
                other("general", 10),
            ]
        if kind == "mixed":
            path = pick(draw, PATHS["math"])
            rest = pick(draw, ("physics", "accounting", "sports", "code"))
            return [
                Section("math", style, path, 25),
                Section("math", BESIDE[style], path, 15),
                other("general", 45),
                other(rest, 15),
            ]
        return [other("general" if kind == "copies" else kind, 1)]

    # ---- Benchmark ----

    @cached_property
    def benchmark(self) -> dict[str, list[dict]]:
        """Problem files: {name: rows}.

        For each language, word problems of the test split. In "short", sums that match only as a
        whole text.
        """
        files: dict[str, list[dict]] = {}
        for lang in self.langs:
            rows = files[LANGUAGES[lang]] = []
            for k in range(self.benchmark_size):
                p = problem(k, "test", f"benchmark-{self.seed}", lang, self.levels)
                rows.append(_benchmark_row(f"{lang}-{k}", p.question, p.answer, lang))
        draw = generator("web benchmark", self.seed)
        rows = files["short"] = []
        for k in range(self.benchmark_size // 4):
            lang = self.langs[k % len(self.langs)]
            a, b = draw(1001, 9999), draw(13, 99)
            question = say(lang, f"What is {a} times {b}?", f"{a}乘{b}等于几？")
            rows.append(_benchmark_row(f"short-{k}", question, str(a * b), lang))
        return files

    @cached_property
    def _plantable(self) -> dict[str, list[dict]]:
        """The first half of every benchmark file, by language."""
        result: dict[str, list[dict]] = {lang: [] for lang in self.langs}
        for rows in self.benchmark.values():
            for row in rows[: len(rows) // 2]:
                result[row["lang"]].append(row)
        return result

    # ---- Pages ----

    def head(self, i: int) -> Head:
        """Facts about page i. This is cheap."""
        draw = generator("web page", self.seed, i)
        number = int(self.domains * (draw(0, 2**20 - 1) / 2**20) ** 1.5)  # some sites are large
        site = self.sites[number]

        # A copy of an earlier page that is not a copy.
        only_copies = site.kind == "copies"
        if i < ELSEWHERE and (only_copies or draw(1, 100) <= 4):
            for _ in range(20 if i else 0):
                original = self.head(draw(0, i - 1))
                if not original.copy:
                    return self._copy(i, number if only_copies else -1, original, draw)

        # A page of a random section, by weight.
        left = draw(1, sum(section.weight for section in site.sections))
        for section in site.sections:  # noqa: B007
            left -= section.weight
            if left <= 0:
                break
        lang = site.other_lang if draw(1, 4) == 1 else site.lang
        url = f"http{'s' * site.secure}://{site.host}{section.path.format(i=i)}"
        return Head(i, number, section.kind, section.style, lang, url)

    def _copy(self, i: int, site: int, original: Head, draw: Draw) -> Head:
        """The head of page i, a copy on a site (-1: on the site of the original)."""
        if site < 0:
            copy, url, site = "url", with_tracking(original.url, draw), original.site
        elif draw(0, 1):
            copy, url = "mirror", re.sub("//[^/]+", "//" + self.sites[site].host, original.url)
            url += f"{'&' if '?' in url else '?'}copy={i}"  # a page may have two mirrors on a site
        else:
            copy, url = "near", f"http://{self.sites[site].host}/archive/{i}.html"
        return replace(original, number=i, site=site, url=url, copy=copy, original=original.number)

    def page(self, i: int) -> Page:
        """Page number i. It may copy an earlier page."""
        return self._write(self.head(i))

    def _write(self, head: Head) -> Page:
        source = self.head(head.original) if head.copy else head
        blocks, planted = self._blocks(source)
        site = self.sites[head.site]
        if head.copy == "near":
            draw = generator("web copy", self.seed, head.number)
            blocks = edited(blocks, head.lang, draw)
        elif head.copy:  # the same bytes as the original
            site = self.sites[source.site]
        draw = generator("web date", self.seed, head.number)
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
        """The content of a page that is not a copy, and the ids of the planted questions."""
        draw, lang = generator("web text", self.seed, head.number), head.lang
        if head.kind == "general":
            return texts.general_blocks(lang, draw), []
        if head.kind == "spam":
            return texts.spam_blocks(lang, draw), []
        if head.kind != "math":
            return texts.other_blocks(head.kind, lang, draw), []

        def exercise() -> SyntheticProblem:
            return problem(draw(0, 2**31), "train", f"web-{self.seed}", lang, self.levels)

        planted = []
        if draw(1, 15) == 1 and head.number < ELSEWHERE and self._plantable[lang]:
            planted = [pick(draw, self._plantable[lang]) for _ in range(draw(1, 2))]
        questions = [row["question"] for row in planted]
        blocks = texts.math_blocks(head.style, lang, draw, exercise, max(self.levels), questions)
        return blocks, sorted({row["id"] for row in planted})

    def seed_pages(self, count: int, positive: bool) -> Iterator[dict]:
        """`count` pages of the seed corpus.

        Positives are mathematics in SEED_STYLES, in the first language, on sites that the crawl
        does not have. Negatives are pages of this web that are not mathematics, as random pages of
        the real web nearly always are.
        """
        number = ELSEWHERE
        for i in range(ELSEWHERE, ELSEWHERE + count):
            if positive:
                style = SEED_STYLES[i % len(SEED_STYLES)]
                url = f"https://handbook{i % 9}.example/{style}/{i}.html"
                head = Head(i, 0, "math", style, self.langs[0], url)
            else:
                while (head := self.head(number)).kind == "math":
                    number += 1
                number += 1
            yield self._write(head).row()


def _benchmark_row(id: str, question: str, answer: str, lang: str) -> dict:
    return {"id": id, "question": question, "answer": answer, "source": "synthetic", "lang": lang}


def with_tracking(url: str, draw: Draw) -> str:
    """Another address of the same page: with a tracking id, a session id or a fragment."""
    number = draw(10**6, 10**9)
    extras = (
        f"utm_source=mail&utm_campaign={number}",
        f"fbclid={number}",
        f"PHPSESSID={number:x}",
        f"sessionid={number:x}",
        f"gclid={number:x}",
        f"#comment-{number}",
    )
    extra = pick(draw, extras)
    if extra.startswith("#"):
        return url + extra
    return url + ("&" if "?" in url else "?") + extra


def edited(blocks: list[texts.Block], lang: str, draw: Draw) -> list[texts.Block]:
    """The blocks with one to three small edits.

    A short paragraph is left out, a word stands before the title, or a note stands at the end. No
    number or name changes, because a problem with another name could be in another split.
    """
    cut, title, note = draw(0, 1), draw(0, 1), draw(0, 1)
    shortest = min(blocks[1:], key=lambda block: len(block[1]))
    cut = cut and 15 * len(shortest[1]) < sum(len(text) for _, text in blocks)
    blocks = [block for block in blocks if not (cut and block is shortest)]
    if title:
        blocks[0] = ("h1", say(lang, "Archive: ", "存档：") + blocks[0][1])
    if note or not (cut or title):
        blocks.append(("p", texts.fill(texts.NOTES, lang, draw, texts.slots_of(lang, draw))))
    return blocks


# ---- HTML ------------------------------------------------------------------------------------

SYMBOLS = dict(times="×", cdot="·", pm="±", dots="…", rho="ρ", lambda_="λ")


def mathml(latex: str) -> str:
    """MathML of the LaTeX in FORMULAS: \\frac, \\sqrt, \\bar, powers, indices and a few symbols."""
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
    """A formula in one of the FORMULA_FORMS, which are common on the web."""
    plain, mode = html.escape(latex), ' display="block"' * display
    if form == "script":
        return f'<script type="math/tex{"; mode=display" * display}">{latex}</script>'
    if form == "mathml":
        return f'<math xmlns="http://www.w3.org/1998/Math/MathML"{mode}>{mathml(latex)}</math>'
    if form == "katex":
        annotation = f'<annotation encoding="application/x-tex">{plain}</annotation>'
        letters = re.sub(r"[{}$^_]|[a-z]{3,}", "", latex.replace("\\", ""))
        return (
            f'<span class="katex{"-display" * display}">'
            f'<span class="katex-mathml"><math{mode}><semantics>{mathml(latex)}{annotation}'
            '</semantics></math></span><span class="katex-html" aria-hidden="true">'
            f'<span class="base">{html.escape(letters)}</span></span></span>'
        )
    if form == "image":
        name = blake2b(latex.encode(), digest_size=6).hexdigest()
        kind = "display" if display else "inline"
        return f'<img class="{kind} latex" src="/latex/{name}.png" alt="{plain}">'
    if form == "dollar":
        return f"$${plain}$$" if display else f"${plain}$"
    return f"\\[{plain}\\]" if display else f"\\({plain}\\)"


FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$")


def to_html(blocks: list[texts.Block], site: Site, lang: str) -> bytes:
    """The page as bytes: the content between header, navigation and footer of the site."""

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
    # Servers that declare gb2312 send the superset gb18030.
    return page.encode("gb18030" if site.encoding == "gb2312" else "utf-8")


# ---- Files -----------------------------------------------------------------------------------


def warc_record(kind: str, headers: dict[str, str], block: bytes) -> bytes:
    """A WARC/1.0 record as a separate gzip member, so that a reader can begin at any record."""
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


def write_shard(path: Path, pages: list[Page], jsonl: bool) -> None:
    """Write pages as a file of the crawl; `path` has no suffix."""
    if jsonl:
        write_jsonl(path.with_suffix(".jsonl"), (page.row() for page in pages))
        return
    headers = {"WARC-Date": "2023-12-31T00:00:00Z", "Content-Type": "application/warc-fields"}
    info = b"software: data.world.web\r\nformat: WARC File Format 1.0\r\n"
    with atomic_write(path.with_suffix(".warc.gz"), "wb") as file:
        file.write(warc_record("warcinfo", headers, info))
        for page in pages:
            file.write(page_record(page))


def write_web(folder: Path, web: Web, pages: int, seed_pages: int, jsonl: bool) -> dict[str, int]:
    """Write all files that the top of this file lists. Returns counts by kind of page and copy."""
    counts: Counter = Counter()
    truth = []
    for shard, start in enumerate(range(0, pages, SHARD)):
        batch = [web.page(i) for i in range(start, min(start + SHARD, pages))]
        write_shard(folder / "crawl" / f"part-{shard:05}", batch, jsonl)
        for page in batch:
            truth.append(page.truth())
            counts[page.kind] += 1
            if page.copy:
                counts[f"{page.copy} copies"] += 1
            if page.planted:
                counts["planted"] += 1
    write_jsonl(folder / "truth.jsonl", truth)
    write_jsonl(folder / "seed" / "positives.jsonl", web.seed_pages(seed_pages, positive=True))
    write_jsonl(folder / "seed" / "negatives.jsonl", web.seed_pages(seed_pages, positive=False))
    for name, rows in web.benchmark.items():
        if rows:
            write_jsonl(folder / "benchmark" / f"{name}.jsonl", rows)
    return counts


@dataclass
class Config:
    to: str = option("", "folder for the files", required=True)
    pages: int = option(5000, "pages of the crawl", least=1, most=ELSEWHERE)
    domains: int = option(300, "sites", least=len(SITE_KINDS))
    seed: int = option(0, "seed of the web", least=0)
    seed_pages: int | None = option(
        None, "positives, and negatives, in seed/; none: pages / 10", least=0
    )
    benchmark: int = option(60, "benchmark questions in each language", least=0)
    langs: list[str] = option(
        ["en", "zh"],
        "languages; the first is that of the seed corpus",
        required=True,
        choices=LANGS,
    )
    levels: list[int] = option(
        [1, 2, 3, 4, 5], "levels of the problems: 1 (one step) to 5", required=True, choices=LEVELS
    )
    jsonl: bool = option(False, "write the crawl as JSONL pages, not as WARC")


def main(argv: list[str] | None = None) -> None:
    config = parse(Config, argv, description=__doc__)
    seed_pages = -(-config.pages // 10) if config.seed_pages is None else config.seed_pages
    web = Web(config.domains, config.seed, config.langs, config.levels, config.benchmark)
    counts = write_web(Path(config.to), web, config.pages, seed_pages, config.jsonl)
    parts = ", ".join(f"{counts[name]} {name}" for name in sorted(counts))
    print(f"wrote {config.pages} pages to {config.to}: {parts}")


if __name__ == "__main__":
    run_cli(main)
