"""HTML to text beside resiliparse's plain extraction: pages a second, and the share of formulas that are kept.

    python bench/pages.py [--repeats 9] [--pages 200] [--files FILE.warc.gz ...]

The pages are of two kinds. Generated ones have what a page of a course, a blog or an encyclopedia has around its text,
and a dozen formulas each, written in one of the ways that `KINDS` names. Those of --files are the HTML responses of
WARC files that can be read. Page by page, the same bytes go through each in turn, from the first to the last and back
in the next repeat; what is counted is the time of the processor, and medians are taken. All begin with bytes that they
are told to be UTF-8, which they decode, parse and turn into text; none detects an encoding or a language. As decoding
in Python and parsing along with extraction are faster than resiliparse's steps for bytes, its plain extraction is timed
that way as well ("plain decoded"). A formula counts as kept if its LaTeX is in the text, spaces aside; for AsciiMath
its source counts too. Resiliparse's main-content mode is shown as well.
"""

import argparse
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

from data.mine.html_text import html_text

WORDS = (
    "the of and to in is that for it as with be on by this are or an from at which we can have not let where each "
    "function value number proof term sequence limit point set line area sum each such then given follows"
).split()


def formula(draw: random.Random) -> tuple[str, str, str]:
    """(LaTeX, MathML, AsciiMath) of one formula; numbers make it one of a kind."""
    a, b = draw.randrange(100, 10**6), draw.randrange(100, 10**6)

    def row(*parts: str) -> str:
        return "<mrow>" + "".join(parts) + "</mrow>"

    x, n, i = "<mi>x</mi>", "<mi>n</mi>", "<mi>i</mi>"
    na, nb, plus, equals = f"<mn>{a}</mn>", f"<mn>{b}</mn>", "<mo>+</mo>", "<mo>=</mo>"
    return draw.choice(
        [
            (
                rf"x^2+{a}x={b}",
                row(f"<msup>{x}<mn>2</mn></msup>", plus, na, x, equals, nb),
                f"x^2+{a}x={b}",
            ),
            (rf"\frac{{{a}}}{{x+{b}}}", f"<mfrac>{na}{row(x, plus, nb)}</mfrac>", f"{a}/(x+{b})"),
            (
                rf"\sqrt{{x^2+{a}}}\le {b}",
                row(
                    f"<msqrt>{row(f'<msup>{x}<mn>2</mn></msup>', plus, na)}</msqrt>",
                    "<mo>≤</mo>",
                    nb,
                ),
                f"sqrt(x^2+{a}) <= {b}",
            ),
            (
                rf"\sum_{{i={a}}}^n i^{{{b}}}",
                row(
                    f"<munderover><mo>∑</mo>{row(i, equals, na)}{n}</munderover>",
                    f"<msup>{i}{nb}</msup>",
                ),
                f"sum_(i={a})^n i^{b}",
            ),
            (
                rf"\alpha_{{{a}}}\in\mathbb{{R}},x\ne {b}",
                row(
                    f"<msub><mi>α</mi>{na}</msub>",
                    "<mo>∈</mo><mi>ℝ</mi><mo>,</mo>",
                    x,
                    "<mo>≠</mo>",
                    nb,
                ),
                f"alpha_{a} in RR,x != {b}",
            ),
        ]
    )


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
        note = note and f'<annotation encoding="application/x-tex">{html.escape(note)}</annotation>'
        return (
            f'<math xmlns="http://www.w3.org/1998/Math/MathML"{" display=block" * block}><semantics>{mathml}{note}'
            "</semantics></math>"
        )

    if kind == "KaTeX":
        shown = "".join(
            f'<span class="mord mathnormal" style="margin-right:0.03em;">{c}</span>'
            for c in "x=y+1"
        )
        inner = (
            f'<span class="katex"><span class="katex-mathml">{math(latex)}</span>'
            f'<span class="katex-html" aria-hidden="true"><span class="base">{shown}</span></span></span>'
        )
        return f'<span class="katex-display">{inner}</span>' if display else inner
    styled, way, address = (
        "{\\displaystyle " + latex + "}",
        "display" if display else "inline",
        quote(latex, safe=""),
    )
    return {
        "text $": html.escape(f"$${latex}$$" if display else f"${latex}$"),
        "text \\(": html.escape(rf"\[{latex}\]" if display else rf"\({latex}\)"),
        "environment": html.escape(rf"\begin{{equation}}{latex}\end{{equation}}"),
        "MathJax script": '<span class="MathJax_Preview"></span>'
        f'<script type="math/tex{"; mode=display" * display}">{latex}</script>',
        "MathJax 3": f'<mjx-container class="MathJax"{" display=true" * display}><mjx-math><mjx-mi><mjx-c></mjx-c>'
        f"</mjx-mi></mjx-math><mjx-assistive-mml>{math(block=display)}</mjx-assistive-mml></mjx-container>",
        "Wikipedia": f'<span class="mwe-math-element"><span class="mwe-math-mathml-{way} mwe-math-mathml-a11y" '
        f'style="display: none;">{math(styled, display)}</span><img src="/api/rest_v1/media/math/render/'
        f'svg/0f" class="mwe-math-fallback-image-{way}" alt="{html.escape(styled)}"></span>',
        "MathML": math(block=display),
        "MathML annotated": math(latex, display),
        "AsciiMath": html.escape(f"`{ascii}`"),
        "WordPress image": f'<img src="https://s0.wp.com/latex.php?latex={address}&amp;bg=ffffff" '
        f'alt="{html.escape(latex)}" class="latex">',
        "image class": f'<img src="/img/f.png" class="tex" alt="${html.escape(latex)}$">',
        "image address": f'<img src="https://latex.codecogs.com/gif.latex?{address}">',
        "data-latex": f'<span class="formula" data-latex="{html.escape(latex)}"><i>x</i></span>',
    }[kind]


def page(draw: random.Random, kind: str) -> tuple[str, list[tuple[str, str]]]:
    """(HTML, formulas as (LaTeX, AsciiMath)) of one page."""

    def prose(n: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(n))

    def links(n: int) -> str:
        return "".join(
            f'<li class="item"><a href="/{draw.randrange(999)}/{prose(1)}">{prose(2)}</a></li>'
            for _ in range(n)
        )

    formulas, blocks = [], []
    for _ in range(12):
        latex, mathml, ascii = formula(draw)
        formulas.append((latex, ascii))
        display = draw.random() < 0.3
        one = markup(kind, latex, mathml, ascii, display)
        blocks.append(
            f"<p>{prose(60)}</p><div>{one}</div><p>{prose(20)}</p>"
            if display
            else f"<p>{prose(50)} {one} {prose(40)} <a href='/{prose(1)}'>{prose(2)}</a>.</p>"
        )
    for at, one in (
        (4, f"<table>{'<tr><td>1</td><td>two</td></tr>' * 8}</table>"),
        (8, f"<ul>{links(6)}</ul>"),
    ):
        blocks.insert(at, f"<h2>{prose(3)}</h2>{one}")
    loads = {"AsciiMath": "/ASCIIMathML.js", "KaTeX": "/katex.min.js"}.get(
        kind, "/MathJax.js?config=TeX-AMS"
    )
    style = "".join(
        f".c{k} {{ margin: {k}px; color: #0{k % 10}f; padding: 0 {k}em; }}\n" for k in range(200)
    )
    data = json.dumps([prose(8) for _ in range(60)])
    return (
        f"""<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{prose(4)}</title>
<style>{style}</style><script src="{loads}"></script><script>var a = {data};</script></head>
<body class="home"><header><a href="/">{prose(2)}</a></header><nav class="navbar"><ul>{links(40)}</ul></nav>
<div class="container"><main><article><h1>{prose(5)}</h1>{"".join(blocks)}</article></main>
<aside class="sidebar"><ul>{links(30)}</ul></aside></div><footer><ul>{links(15)}</ul>{prose(12)}</footer>
<script>{"window.dataLayer.push(1);" * 40}</script></body></html>""",
        formulas,
    )


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
    """Seconds of each way for all pages, a value a repeat."""
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
        for record in ArchiveIterator(
            open(path, "rb"), record_types=WarcRecordType.response, auto_decode="all"
        ):
            if record.is_http_parsed and (record.http_content_type or "").startswith("text/html"):
                found.append(record.reader.read())
    except OSError as error:
        print(f"{path}: {error}", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--pages", type=int, default=200, help="generated pages, over all kinds")
    parser.add_argument(
        "--files", nargs="*", default=[], help="WARC files, whose HTML pages are timed too"
    )
    given = parser.parse_args()

    draw = random.Random(0)
    made = [
        (kind, *page(draw, kind))
        for kind in KINDS
        for _ in range(max(1, given.pages // len(KINDS)))
    ]
    kept, total = {name: Counter() for name in WAYS}, Counter()
    for kind, source, formulas in made:
        total[kind] += len(formulas)
        for name, way in WAYS.items():
            text = "".join(way(source.encode()).split())
            kept[name][kind] += sum(
                any("".join(one.split()) in text for one in pair[: 1 + (kind == "AsciiMath")])
                for pair in formulas
            )
    names = "".join(f"{name:>15}" for name in WAYS)
    print(f"{'formulas kept':18}{names}")
    for kind in [*KINDS, "all"]:
        shares = [
            one.total() / total.total() if kind == "all" else one[kind] / total[kind]
            for one in kept.values()
        ]
        print(f"{kind:18}" + "".join(f"{share:15.3f}" for share in shares))

    sets = {"generated": [source.encode() for _, source, _ in made]}
    real = [data for path in given.files for data in responses(path)]
    if real:
        sets["files"] = real
    found = {}
    print(f"\n{'pages a second':18}{names}   ours / plain (lowest to highest), / plain decoded")
    for label, pages in sets.items():
        seconds = timed(pages, given.repeats)
        rates = {name: len(pages) / statistics.median(values) for name, values in seconds.items()}
        ratios = [
            [p / o for o, p in zip(seconds["ours"], seconds[peer], strict=True)]
            for peer in ("plain", "plain decoded")
        ]
        ratio, decoded = map(statistics.median, ratios)
        print(
            f"{label:18}"
            + "".join(f"{rate:15.0f}" for rate in rates.values())
            + f"   {ratio:.3f} ({min(ratios[0]):.3f} to {max(ratios[0]):.3f}), {decoded:.3f}"
        )
        size = sum(map(len, pages)) / len(pages)
        found[label] = {
            **rates,
            "ours / plain": ratio,
            "ours / plain decoded": decoded,
            "pages": len(pages),
            "bytes a page": round(size),
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
    main()
