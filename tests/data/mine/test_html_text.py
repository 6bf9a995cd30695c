"""html_text.py: text with formulas, encodings, and languages."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mine import html_text as module
from data.mine.html_text import html_text, language

needs_libraries = pytest.mark.skipif(
    module.HTMLTree is None, reason="fastwarc or resiliparse is not installed"
)

MATHML = "<mrow><mi>x</mi><mo>&lt;</mo><msup><mi>y</mi><mn>2</mn></msup></mrow>"
NOTE = '<annotation encoding="application/x-tex">x \\lt y^2</annotation>'
KATEX = (
    '<span class="katex"><span class="katex-mathml"><math display="WAY"><semantics>'
    f'{MATHML}{NOTE}</semantics></math></span><span class="katex-html" aria-hidden="true"><span>x</span>'
    "<span>&lt;y2</span></span></span>"
)
WIKI = (
    '<span class="mwe-math-element"><span class="mwe-math-mathml-WAY" style="display: none;"><math alttext="n">'
    rf'<semantics>{MATHML}<annotation encoding="application/x-tex">{{\displaystyle x&lt;z}}</annotation>'
    '</semantics></math></span><img src="/media/math/render/svg/0" class="mwe-math-fallback-image-WAY" '
    r'alt="{\displaystyle x&lt;z}"></span>'
)


@needs_libraries
@pytest.mark.parametrize(
    "markup, latex",
    [
        ("$x&lt;y$", "$x<y$"),
        (r"\(x\)", "$x$"),
        (r"\[x\]", "$$x$$"),
        (r"\begin{align}a&amp;=b\end{align}", r"$$\begin{aligned} a&=b \end{aligned}$$"),
        (
            '<span class="MathJax_Preview">x</span><span class="MathJax">x</span><script type="math/tex">x<y</script>',
            "$x<y$",
        ),
        ('<script type="math/tex; mode=display">% <![CDATA[\nx<y %]]></script>', "\n$$x<y$$\n"),
        (f'<script type="math/mml"><math>{MATHML}</math></script>', "$x<y^2$"),
        ('<script type="math/asciimath">x/2</script>', r"$\frac{x}{2}$"),
        (f"<math>{MATHML}</math>", "$x<y^2$"),
        (f"<m:math xmlns:m='m'>{MATHML}</m:math>", "$x<y^2$"),
        (f'<math display="block">{MATHML}</math>', "\n$$x<y^2$$\n"),
        (f"<math alttext='q'>{MATHML}</math>", "$q$"),
        (f"<math><semantics>{MATHML}{NOTE}</semantics></math>", r"$x \lt y^2$"),
        (KATEX, r"$x \lt y^2$"),
        (KATEX.replace("WAY", "block"), "\n" + r"$$x \lt y^2$$" + "\n"),
        ('<span class="katex"><span class="katex-html">x2</span></span>', "x2"),
        (WIKI, "$x<z$"),
        (
            '<img class="mwe-math-fallback-image-display" src="/math/0.svg" alt="{\\displaystyle x}">',
            "\n$$x$$\n",
        ),
        (
            f'<mjx-container><mjx-math></mjx-math><mjx-assistive-mml><math display="block">{MATHML}</math></mjx-assistive-mml>'
            "</mjx-container>",
            "\n$$x<y^2$$\n",
        ),
        (
            '<img src="https://s0.wp.com/latex.php?latex=x%5E2%2By&amp;bg=fff" alt="x^2+y" class="latex">',
            "$x^2+y$",
        ),
        ('<img src="https://latex.codecogs.com/gif.latex?%5Cinline%20x+y">', "$x+y$"),
        (
            '<img src="https://www.zhihu.com/equation?tex=E%3Dmc" alt="E=mc"> by latex',
            "$E=mc$ by latex",
        ),
        ('<img class="tex" src="/math/0.png" alt="$a_1$">', "$a_1$"),
        ('<img src="/math/cat.png" alt="a cat">', ""),
        ('<span data-latex="x_1"><i>x</i><b data-latex="no">1</b></span>', "$x_1$"),
        ('<span class="ztext-math" data-tex="\\pi">&pi;</span>', r"$\pi$"),
        ("`ls`", "`ls`"),
        ('<script src="/ASCIIMathML.js"></script>`x/2`', r"$\frac{x}{2}$"),
    ],
)
def test_formulas_are_kept_once(markup, latex):
    text = html_text(f"<html><body><p>before {markup} after</p></body></html>")
    assert re.sub(r" *\n *", "\n", text) == re.sub(
        r" *\n *", "\n", f"before {latex} after"
    ).replace("  ", " ")
    assert html_text(f"<p>before {markup} after</p>".encode()) == text


@needs_libraries
def test_paragraphs_and_omitted_parts():
    text = html_text("""<html><head><title>T</title><style>p {}</style><script>var x = "$y$";</script></head><body>
        <nav><a href=/>Home</a></nav><div class="navbar">links</div><h1>Title</h1><p>One\n  two<br>three</p><p>Four</p>
        <ul><li>a<li>b</ul><pre>  code\n    more</pre><img alt="a cat" src="c"><noscript>no</noscript>
        <div class="sidebar">side</div><footer>foot</footer></body></html>""")
    assert text == "Title\n\nOne two\nthree\n\nFour\n\n  • a\n  • b\n  code\n    more"
    assert html_text("<body class='sidebar'><p>all of it</p></body>") == "all of it"
    assert html_text("") == html_text(b"<p></p>") == "" and html_text("math") == "math"


@needs_libraries
def test_encodings():
    for encoding in ("utf-8", "gb2312", "big5", "gb18030"):
        body = "<p>勾股定理：直角三角形斜邊".replace("邊", "邊" if encoding != "gb2312" else "边")
        expected = body[3:]
        assert html_text(body.encode(encoding), encoding) == expected
        meta = f'<meta charset="{encoding}">'
        assert html_text((meta + body).encode(encoding)) == expected
    assert (
        html_text("<p>café".encode())
        == html_text("<p>café".encode("latin-1"), "iso-8859-1")
        == "café"
    )
    assert html_text(b"\xef\xbb\xbf<p>\xc3\xa9", "latin-1") == "é"
    assert html_text(b"<p>\xff\xfe\xfa ok", "no such encoding")
    assert html_text("<p>half \ud800 a pair") == "half ? a pair"


@needs_libraries
@settings(max_examples=60)
@given(
    st.lists(
        st.sampled_from(
            [
                "<math>",
                "</math>",
                "<script type='math/tex'>",
                "</script>",
                "<img class=tex alt='x'",
                ">",
                "<mi>",
                "$",
                "\\(",
                "`",
                "<p>",
                "x",
                "&lt;",
                "latex.php?latex=",
                "\0",
                "\ud7ff",
            ]
        ),
        max_size=30,
    ).map("".join)
)
def test_any_markup_gives_text(html):
    assert isinstance(html_text(html), str)
    assert isinstance(html_text(html.encode()), str)


@needs_libraries
def test_open_markup_takes_no_time():
    for piece in (
        "<math>",
        "<math ",
        "<script type=math/tex>",
        "<script math/",
        "<img ",
        "<img tex",
        "<p data-tex=x>",
        "$$",
        "\\begin{align}",
        "`",
    ):
        assert isinstance(html_text(piece * 10_000 + "latex"), str)
    for piece in ("annotation tex ", "<", "a", "<mrow>"):
        assert isinstance(html_text("<math>" + "<" + piece * 10_000 + "</math>"), str)


def test_language():
    assert (
        language("plain text", "en-US") == "en"
        and language("plain", "zho") == "zh"
        and language("", None) == ""
    )
    assert language("这是一道数学题", "en") == "zh"
    assert (
        language("これは数学の問題です", "") == "ja" and language("이것은 수학 문제", "en") == "ko"
    )
    assert language("设 $f(x)=x^2+1$ 为函数，求导数", "") == "zh"
    assert language("Only one word, 数学, is Chinese in this sentence of English", "en") == "en"
    assert language("x", "unknown language") == "" and language("x", "fr;q=0.5") == "fr"
