"""mathml.py, asciimath.py and latex.py against LaTeX written by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mine.asciimath import asciimath
from data.mine.latex import normal_delimiters, tidy
from data.mine.mathml import attribute, mathml

A, B, N, X, I = "<mi>a</mi>", "<mi>b</mi>", "<mi>n</mi>", "<mi>x</mi>", "<mi>i</mi>"  # noqa: E741
ONE, TWO = "<mn>1</mn>", "<mn>2</mn>"


def row(*parts):
    return "<mrow>" + "".join(parts) + "</mrow>"


@pytest.mark.parametrize(
    "markup, latex",
    [
        (f"{X}<mo>=</mo><mfrac>{ONE}{TWO}</mfrac>", r"x=\frac{1}{2}"),
        (f"<math xmlns='m'><mstyle><msup>{X}<mn>10</mn></msup></mstyle></math>", "x^{10}"),
        (f"<msup>{row(A, '<mo>+</mo>', B)}{TWO}</msup>", "{a+b}^2"),
        (f"<msup>{row(A, B)}{TWO}</msup>", "{ab}^2"),
        (f"<msubsup>{A}{I}{TWO}</msubsup>{B}", "a_i^2 b"),
        ("<msup><mi>f</mi><mo>′</mo></msup><mo>(</mo><mi>x</mi><mo>)</mo>", "f'(x)"),
        (f"<msqrt>{A}<mo>&#x2212;</mo>{B}</msqrt>", r"\sqrt{a-b}"),
        (f"<mroot>{X}<mn>3</mn></mroot>", r"\sqrt[3]{x}"),
        (
            f"<munderover><mo>&sum;</mo>{row(I, '<mo>=</mo>', ONE)}{N}</munderover>{A}",
            r"\sum_{i=1}^n a",
        ),
        (
            f"<munder><mi>lim</mi>{row(X, '<mo>→</mo><mn>0</mn>')}</munder><mi>sin</mi><mo>&#x2061;</mo>{X}",
            r"\lim_{x\to 0}\sin x",
        ),
        (
            f"<mover>{X}<mo>¯</mo></mover><mover>{A}<mo>→</mo></mover><munder>{B}<mo>_</mo></munder>",
            r"\bar{x}\vec{a}\underline{b}",
        ),
        (
            f"<mover><mo>=</mo><mtext>def</mtext></mover><munder>{A}{B}</munder>",
            r"\overset{\text{def}}{=}\underset{b}{a}",
        ),
        (f"<mfrac linethickness='0'>{N}{I}</mfrac>", r"{n \atop i}"),
        (f"<mfenced open='[' close=')'>{A}{B}</mfenced>", "[a,b)"),
        (
            f"<mo>(</mo><mtable><mtr><mtd>{A}</mtd><mtd>{B}</mtd></mtr><mtr><mtd>{ONE}</mtd><mtd>{TWO}</mtd></mtr></mtable>"
            "<mo>)</mo>",
            r"\begin{pmatrix}a & b \\ 1 & 2\end{pmatrix}",
        ),
        (
            f"<mo>{{</mo><mtable><mtr><mtd>{A}</mtd><mtd><mtext>if&nbsp;</mtext>{B}</mtd></mtr></mtable>",
            r"\begin{cases}a & \text{if }b\end{cases}",
        ),
        (
            f"<mmultiscripts><mi>F</mi>{ONE}<none/><mprescripts/>{TWO}<none/></mmultiscripts>",
            "{}_2F_1",
        ),
        (
            "<mi>α</mi><mi>x</mi><mo>∈</mo><mi>ℝ</mi><mo>,</mo><mi>𝐯</mi><mi>𝑥</mi><mo>&le;</mo><mi>∞</mi>",
            r"\alpha x\in\mathbb{R},\mathbf{v}x\le\infty",
        ),
        (
            "<mi mathvariant='double-struck'>Z</mi><mi>rank</mi><mi mathvariant='bold'>u</mi>",
            r"\mathbb{Z}\mathrm{rank}\mathbf{u}",
        ),
        ("<mo>{</mo><mn>50</mn><mo>%</mo><mo>}</mo>", r"\{50\%\}"),
        (
            f"<semantics>{X}<annotation encoding='x'>no</annotation></semantics><mphantom>{A}</mphantom>",
            "x",
        ),
        ("<m:mfrac xmlns:m='m'><m:mn>1</m:mn><m:mi>x</m:mi></m:mfrac>", r"\frac{1}{x}"),
        (f"<mfrac>{A}<mfrac>{B}{N}</mfrac></mfrac><mspace/>{X}", r"\frac{a}{\frac{b}{n}} x"),
        (f"<mfrac>{ONE}</mfrac><msup>{A}", "1a"),  # missing parts and ends
    ],
)
def test_mathml(markup, latex):
    assert mathml(markup) == latex


@settings(max_examples=60)
@given(
    st.text(alphabet=list('<>/mrowisupfac "=&;x1'))
    | st.lists(
        st.sampled_from(
            [
                "<mrow>",
                "</mrow>",
                "<mi>x</mi>",
                "<msup>",
                "</msup>",
                "<mfrac/>",
                "</math>",
                "<mtable>",
                "<mtr>",
                "&lt;",
            ]
        ),
        max_size=40,
    ).map("".join)
)
def test_mathml_accepts_anything(markup):
    assert isinstance(mathml(markup), str)


def test_mathml_nested_without_end():
    assert mathml("<mrow>" * 3000 + "<mi>x</mi>") is not None
    assert (
        mathml("<msqrt>" * 100 + "<mi>x</mi>" + "</msqrt>" * 100)
        == r"\sqrt{" * 100 + "x" + "}" * 100
    )


@pytest.mark.parametrize(
    "source, latex",
    [
        ("sum_(i=1)^n i^3=((n(n+1))/2)^2", r"\sum_{i=1}^n i^3=(\frac{n(n+1)}{2})^2"),
        ("x=(-b+-sqrt(b^2-4ac))/(2a)", r"x=\frac{-b\pm\sqrt{b^2-4ac}}{2a}"),
        (
            "[[a,b],[c,d]]((1,2),(3,4))",
            r"\begin{bmatrix}a & b \\ c & d\end{bmatrix}"
            r"\begin{pmatrix}1 & 2 \\ 3 & 4\end{pmatrix}",
        ),
        ("lim_(h->0) alpha x", r"\lim_{h\to 0}\alpha x"),
        ("abs(x) <= oo", r"|x|\le\infty"),
        ("root(3)(x) frac{1}{2} hat y", r"\sqrt[3]{x}\frac{1}{2}\hat{y}"),
        ('1/2/3 "if " x in RR', r"\frac{1}{2}/3\text{if }x\in\mathbb{R}"),
        ("a_1^2/b", r"\frac{a_1^2}{b}"),
        ("))(", "))("),
        ("x^", "x^"),
        ("", ""),
    ],
)
def test_asciimath(source, latex):
    assert asciimath(source) == latex


@settings(max_examples=60)
@given(
    st.lists(
        st.sampled_from(
            ["(", ")", "[", "]", "{:", "/", "^", "_", "x", "sqrt", "frac", "root", "12", '"', ","]
        ),
        max_size=30,
    ).map(" ".join)
    | st.text(max_size=20)
)
def test_asciimath_accepts_anything(source):
    assert isinstance(asciimath(source), str)


def test_asciimath_nested_without_end():
    assert asciimath("(" * 3000) == "(" * 3000
    rows = ",".join(f"[{i}]" for i in range(100))
    assert asciimath(f"({rows}x)") == f"({rows}x)"  # fast: it does not try every way to split


@pytest.mark.parametrize(
    "latex, expected",
    [
        (r"{\displaystyle x^{2}}", "x^{2}"),
        (r"\displaystyle {a}+{b}", "{a}+{b}"),
        ("{a}+{b}", "{a}+{b}"),
        ("$$ x $$", "x"),
        (r"\( x \)", "x"),
        ("$a$ and $b$", "$a$ and $b$"),
        ("% <![CDATA[\nx < 1 % a comment\n+ 50\\% %]]>", r"x < 1 + 50\%"),
        (r"\begin{align*}a&=b\\ c&=d\end{align*}", r"\begin{aligned} a&=b\\ c&=d \end{aligned}"),
        (r"\begin{equation}x\end{equation}", "x"),
        (r"\inline \dpi{120} \frac{1}{2}", r"\frac{1}{2}"),
        (" \n ", ""),
    ],
)
def test_tidy(latex, expected):
    assert tidy(latex) == expected
    assert tidy(expected) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        (r"Let \(x^2\) be, \[ y = 1 \] so.", "Let $x^2$ be, $$y = 1$$ so."),
        (r"It costs $5 and \(x\) is $6.", "It costs $5 and $x$ is $6."),
        (r"\$5, \(x\), 6$", r"\$5, $x$, 6$"),
        (r"\begin{align} a &= b \end{align}", r"$$\begin{aligned} a &= b \end{aligned}$$"),
        (r"$$\begin{align} a \end{align}$$", r"$$\begin{aligned} a \end{aligned}$$"),
        (r"$x \text{ with \(y\)}$ stays", r"$x \text{ with \(y\)}$ stays"),
        (r"rows \\[2pt] and \\(x) stay", r"rows \\[2pt] and \\(x) stay"),
        ("\\( not over\n\na paragraph \\)", "\\( not over\n\na paragraph \\)"),
        (r"\begin{tabular}{l}x\end{tabular}", r"\begin{tabular}{l}x\end{tabular}"),
    ],
)
def test_delimiters(text, expected):
    assert normal_delimiters(text) == expected
    assert normal_delimiters(expected) == expected


def test_open_delimiters_take_no_time():
    for piece in ("\\(", "\\[", "$", "$$ ", "\\begin{align}"):
        assert normal_delimiters((piece + " x ") * 20_000)


def test_attributes():
    tag = """img data-alt="no" alt='a &lt; "b"' src=x.png class = "tex" """
    assert [attribute(tag, name) for name in ("alt", "src", "class", "id")] == [
        'a < "b"',
        "x.png",
        "tex",
        None,
    ]
    assert attribute('html xml:lang="de" lang=""', "lang") == ""
