"""HTML to text beside resiliparse: pages a second, and the share of formulas that are kept.

    python bench/pages.py [--repeats 9] [--pages 200] [--files FILE.warc.gz ...]

There are two kinds of pages. Generated ones look like a page of a course, a blog or an
encyclopedia, with a dozen formulas each, written in one of the ways in `KINDS`. Those of --files
are the readable HTML responses of WARC files. Page by page the same bytes go through each way in
turn, in the reverse order in the next repeat; times are of the processor, as medians.

All ways begin with UTF-8 bytes, which they decode, parse and turn into text; none detects an
encoding or a language. Decoding in Python, and parsing together with the extraction, are faster
than resiliparse's steps for bytes, so its plain extraction is also timed that way ("plain
decoded"). Its main-content mode is shown as well. A formula is kept if its LaTeX is in the text,
apart from spaces; for AsciiMath its source counts too.
"""

import html
import json
import os
import platform
import random
import statistics
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

try:
    from fastwarc import ArchiveIterator, WarcRecordType
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree
except ImportError:
    sys.exit("error: fastwarc and resiliparse are missing: pip install fastwarc resiliparse")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.io import CommandParser, at_least, run_cli
from data.mine.html_text import html_text

WORDS = (
    "the of and to in is that for it as with be on by this are or an from at which we can have not "
    "let where each function value number proof term sequence limit point set line area sum each "
    "such then given follows"
).split()


def formula(draw: random.Random) -> tuple[str, str, str]:
    """(LaTeX, MathML, AsciiMath) of a formula. Random numbers make it unique."""
    a, b = draw.randrange(100, 10**6), draw.randrange(100, 10**6)

    def row(*parts: str) -> str:
        return "<mrow>" + "".join(parts) + "</mrow>"

    x, n, i = "<mi>x</mi>", "<mi>n</mi>", "<mi>i</mi>"
    na, nb, plus, equals = f"<mn>{a}</mn>", f"<mn>{b}</mn>", "<mo>+</mo>", "<mo>=</mo>"
    square = f"<msup>{x}<mn>2</mn></msup>"
    lower = f"<munderover><mo>∑</mo>{row(i, equals, na)}{n}</munderover>"
    alpha = f"<msub><mi>α</mi>{na}</msub>"
    formulas = [
        (
            rf"x^2+{a}x={b}",
            row(square, plus, na, x, equals, nb),
            f"x^2+{a}x={b}",
        ),
        (
            rf"\frac{{{a}}}{{x+{b}}}",
            f"<mfrac>{na}{row(x, plus, nb)}</mfrac>",
            f"{a}/(x+{b})",
        ),
        (
            rf"\sqrt{{x^2+{a}}}\le {b}",
            row(f"<msqrt>{row(square, plus, na)}</msqrt>", "<mo>≤</mo>", nb),
            f"sqrt(x^2+{a}) <= {b}",
        ),
        (
            rf"\sum_{{i={a}}}^n i^{{{b}}}",
            row(lower, f"<msup>{i}{nb}</msup>"),
            f"sum_(i={a})^n i^{b}",
        ),
        (
            rf"\alpha_{{{a}}}\in\mathbb{{R}},x\ne {b}",
            row(alpha, "<mo>∈</mo><mi>ℝ</mi><mo>,</mo>", x, "<mo>≠</mo>", nb),
            f"alpha_{a} in RR,x != {b}",
        ),
    ]
    return draw.choice(formulas)


KINDS = (
    "text $",
    "text \\(",
    "environment",
    "MathJax script",
    "MathJax 3",
    "KaTeX",
    "Wikipedia",
    "MathML",
    "MathML annotated",
    "AsciiMath",
    "WordPress image",
    "image class",
    "image address",
    "data-latex",
)


def markup(kind: str, latex: str, mathml: str, ascii: str, display: bool) -> str:
    """HTML of a formula as one kind of page writes it."""

    def math(note: str = "", block: bool = False) -> str:
        if note:
            encoding = "application/x-tex"
            note = f'<annotation encoding="{encoding}">{html.escape(note)}</annotation>'
        return (
            f'<math xmlns="http://www.w3.org/1998/Math/MathML"{" display=block" * block}>'
            f"<semantics>{mathml}{note}</semantics></math>"
        )

    styled, address = "{\\displaystyle " + latex + "}", quote(latex, safe="")
    way = "display" if display else "inline"
    escaped = html.escape(latex)
    match kind:
        case "text $":
            return html.escape(f"$${latex}$$" if display else f"${latex}$")
        case "text \\(":
            return html.escape(rf"\[{latex}\]" if display else rf"\({latex}\)")
        case "environment":
            return html.escape(rf"\begin{{equation}}{latex}\end{{equation}}")
        case "MathJax script":
            mode = "; mode=display" * display
            preview = '<span class="MathJax_Preview"></span>'
            return f'{preview}<script type="math/tex{mode}">{latex}</script>'
        case "MathJax 3":
            return (
                f'<mjx-container class="MathJax"{" display=true" * display}><mjx-math><mjx-mi>'
                "<mjx-c></mjx-c></mjx-mi></mjx-math><mjx-assistive-mml>"
                f"{math(block=display)}</mjx-assistive-mml></mjx-container>"
            )
        case "KaTeX":
            style = 'class="mord mathnormal" style="margin-right:0.03em;"'
            shown = "".join(f"<span {style}>{c}</span>" for c in "x=y+1")
            inner = (
                f'<span class="katex"><span class="katex-mathml">{math(latex)}</span>'
                '<span class="katex-html" aria-hidden="true"><span class="base">'
                f"{shown}</span></span></span>"
            )
            return f'<span class="katex-display">{inner}</span>' if display else inner
        case "Wikipedia":
            return (
                f'<span class="mwe-math-element"><span class="mwe-math-mathml-{way} '
                f'mwe-math-mathml-a11y" style="display: none;">{math(styled, display)}</span>'
                '<img src="/api/rest_v1/media/math/render/svg/0f" '
                f'class="mwe-math-fallback-image-{way}" alt="{html.escape(styled)}"></span>'
            )
        case "MathML":
            return math(block=display)
        case "MathML annotated":
            return math(latex, display)
        case "AsciiMath":
            return html.escape(f"`{ascii}`")
        case "WordPress image":
            return (
                f'<img src="https://s0.wp.com/latex.php?latex={address}&amp;bg=ffffff" '
                f'alt="{escaped}" class="latex">'
            )
        case "image class":
            return f'<img src="/img/f.png" class="tex" alt="${escaped}$">'
        case "image address":
            return f'<img src="https://latex.codecogs.com/gif.latex?{address}">'
        case "data-latex":
            return f'<span class="formula" data-latex="{escaped}"><i>x</i></span>'
    raise ValueError(kind)


def page(draw: random.Random, kind: str) -> tuple[str, list[tuple[str, str]]]:
    """(HTML, formulas as (LaTeX, AsciiMath)) of one page."""

    def prose(n: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(n))

    def link() -> str:
        address = f"/{draw.randrange(999)}/{prose(1)}"
        return f'<li class="item"><a href="{address}">{prose(2)}</a></li>'

    def links(n: int) -> str:
        return "".join(link() for _ in range(n))

    # paragraphs with formulas, a table and a list between them
    formulas, blocks = [], []
    for _ in range(12):
        latex, mathml, ascii = formula(draw)
        formulas.append((latex, ascii))
        display = draw.random() < 0.3
        written = markup(kind, latex, mathml, ascii, display)
        if display:
            blocks.append(f"<p>{prose(60)}</p><div>{written}</div><p>{prose(20)}</p>")
        else:
            end = f"{prose(40)} <a href='/{prose(1)}'>{prose(2)}</a>"
            blocks.append(f"<p>{prose(50)} {written} {end}.</p>")
    table = f"<table>{'<tr><td>1</td><td>two</td></tr>' * 8}</table>"
    for at, block in ((4, table), (8, f"<ul>{links(6)}</ul>")):
        blocks.insert(at, f"<h2>{prose(3)}</h2>{block}")

    # what stands around the text
    scripts = {"AsciiMath": "/ASCIIMathML.js", "KaTeX": "/katex.min.js"}
    script = scripts.get(kind, "/MathJax.js?config=TeX-AMS")
    style = ""
    for k in range(200):
        style += f".c{k} {{ margin: {k}px; color: #0{k % 10}f; padding: 0 {k}em; }}\n"
    data = json.dumps([prose(8) for _ in range(60)])
    text = f"""<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{prose(4)}</title>
<style>{style}</style><script src="{script}"></script><script>var a = {data};</script></head>
<body class="home"><header><a href="/">{prose(2)}</a></header>
<nav class="navbar"><ul>{links(40)}</ul></nav>
<div class="container"><main><article><h1>{prose(5)}</h1>{"".join(blocks)}</article></main>
<aside class="sidebar"><ul>{links(30)}</ul></aside></div>
<footer><ul>{links(15)}</ul>{prose(12)}</footer>
<script>{"window.dataLayer.push(1);" * 40}</script></body></html>"""
    return text, formulas


def plain(data: bytes) -> str:
    return extract_plain_text(HTMLTree.parse_from_bytes(data, "utf-8"))


def main_content(data: bytes) -> str:
    return extract_plain_text(HTMLTree.parse_from_bytes(data, "utf-8"), main_content=True)


def plain_decoded(data: bytes) -> str:
    return extract_plain_text(data.decode("utf-8", "replace"))


WAYS = {
    "ours": lambda data: html_text(data, "utf-8"),
    "plain": plain,
    "plain decoded": plain_decoded,
    "main content": main_content,
}


def timed(pages: list[bytes], repeats: int) -> dict[str, list[float]]:
    """Way -> seconds for all pages in each repeat."""
    seconds = {name: [0.0] * (repeats + 1) for name in WAYS}
    for repeat in range(repeats + 1):  # one to warm up
        for data in pages:
            for name in list(WAYS)[:: 1 if repeat % 2 else -1]:
                began = time.process_time()
                WAYS[name](data)
                seconds[name][repeat] += time.process_time() - began
    return {name: values[1:] for name, values in seconds.items()}


def responses(path: str) -> list[bytes]:
    """HTML of the responses in a WARC file, up to where it cannot be read."""
    found = []
    try:
        with open(path, "rb") as file:
            kind = WarcRecordType.response
            for record in ArchiveIterator(file, record_types=kind, auto_decode="all"):
                content = record.http_content_type or ""
                if record.is_http_parsed and content.startswith("text/html"):
                    found.append(record.reader.read())
    except OSError as error:
        print(f"{path}: {error}", file=sys.stderr)
    return found


def count_kept(pages: list[tuple]) -> tuple[dict[str, Counter], Counter]:
    """(way -> kind -> formulas kept, kind -> formulas) of pages (kind, HTML, formulas)."""
    kept: dict[str, Counter] = {name: Counter() for name in WAYS}
    total: Counter = Counter()
    for kind, source, formulas in pages:
        total[kind] += len(formulas)
        for name, way in WAYS.items():
            text = "".join(way(source.encode()).split())
            for latex, ascii in formulas:
                accepted = [latex, ascii] if kind == "AsciiMath" else [latex]
                kept[name][kind] += any("".join(one.split()) in text for one in accepted)
    return kept, total


def main() -> None:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=at_least(1), default=9)
    parser.add_argument(
        "--pages", type=at_least(1), default=200, help="generated pages, over all kinds"
    )
    parser.add_argument("--files", nargs="*", default=[], help="WARC files whose pages are timed")
    options = parser.parse_args()

    # formulas
    draw, made = random.Random(0), []
    for kind in KINDS:
        for _ in range(max(1, options.pages // len(KINDS))):
            made.append((kind, *page(draw, kind)))
    kept, total = count_kept(made)
    names = "".join(f"{name:>15}" for name in WAYS)
    print(f"{'formulas kept':18}{names}")
    for kind in KINDS:
        shares = [counts[kind] / total[kind] for counts in kept.values()]
        print(f"{kind:18}" + "".join(f"{share:15.3f}" for share in shares))
    shares = [counts.total() / total.total() for counts in kept.values()]
    print(f"{'all':18}" + "".join(f"{share:15.3f}" for share in shares))

    # speed
    sets = {"generated": [source.encode() for _, source, _ in made]}
    real = []
    for path in options.files:
        real += responses(path)
    if real:
        sets["files"] = real
    found: dict[str, dict] = {}
    print(f"\n{'pages a second':18}{names}   ours / plain (lowest to highest), / plain decoded")
    for label, pages in sets.items():
        seconds = timed(pages, options.repeats)
        rates = {name: len(pages) / statistics.median(values) for name, values in seconds.items()}
        ratios = {}
        for peer in ("plain", "plain decoded"):
            pairs = zip(seconds["ours"], seconds[peer], strict=True)
            ratios[peer] = [theirs / ours for ours, theirs in pairs]
        plainly, decoded = (statistics.median(values) for values in ratios.values())
        least, most = min(ratios["plain"]), max(ratios["plain"])
        shown = "".join(f"{rate:15.0f}" for rate in rates.values())
        print(f"{label:18}{shown}   {plainly:.3f} ({least:.3f} to {most:.3f}), {decoded:.3f}")
        found[label] = {
            **rates,
            "ours / plain": plainly,
            "ours / plain decoded": decoded,
            "pages": len(pages),
            "bytes a page": round(sum(map(len, pages)) / len(pages)),
        }
    machine = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "resiliparse": version("resiliparse"),
        "fastwarc": version("fastwarc"),
        "python": platform.python_version(),
    }
    print(json.dumps({**found, **machine}))


if __name__ == "__main__":
    run_cli(main)
