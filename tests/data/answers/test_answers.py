"""Answers: extraction, comparison, limits, and the public cases of other graders."""

import json
import threading
import time
from fractions import Fraction

import pytest
import sympy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.answers import compare, extract


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}} is it", r"\frac{1}{2}"),
        (r"\boxed{1}. No: \boxed{2}", "2"),  # the last
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),  # escaped braces do not count
        (r"\boxed{12", None),  # cut off
        (r"\boxed{2}, \boxed{3} and \boxed{5}", "2, 3, 5"),
        ("2+2=4\n#### 4", "4"),
        ("#### -1,234", "-1,234"),
        ("The answer is 5 apples.", "5 apples"),
        ("The answer is 3.5. It was easy.", "3.5"),
        ("Final answer: $x+1$", "$x+1$"),
        ("所以答案是12。", "12"),
        ("答案为 3/4", "3/4"),
        (r"\boxed{7}. I think the answer is reasonable.", "7"),  # a phrase without a value
        (r"The answer is 6. Wait, \boxed{7}", "7"),
        (r"\boxed{7}. Correction: the answer is 8.", "8"),
        (r"<think> \boxed{1} </think> \boxed{2}", "2"),
        ("no answer here: 5", None),
        ("", None),
    ],
)
def test_extract(text, answer):
    assert extract(text) == answer


def test_last_number_only_on_request():
    assert extract("it costs 3 and then 1,234.5 dollars") is None
    assert extract("it costs 3 and then 1,234.5 dollars", fallback_last_number=True) == "1,234.5"
    assert extract("so -5", fallback_last_number=True) == "-5"
    assert extract("hence $x = 3$ holds", fallback_last_number=True) == "x = 3"
    assert extract("nothing", fallback_last_number=True) is None


EQUAL = [
    ("5", "5.0"),
    ("1234", "1,234"),
    ("-3", "−3"),
    ("12", "１２"),
    ("35", "三十五"),
    ("3/4", "四分之三"),
    ("30000", "3万"),
    ("1/2", r"\frac{1}{2}"),
    ("1/2", r"\dfrac12"),
    ("1/2", "Fraction(1, 2)"),
    ("3/2", "1 1/2"),
    ("3/2", r"1\frac{1}{2}"),
    ("-3/2", r"-1\frac{1}{2}"),
    ("0.5", "1/2"),
    ("50%", "50"),
    ("50%", "0.5"),
    (r"50\%", "1/2"),
    ("$5", "5"),
    ("5", r"5 \text{ cm}"),
    ("5", "5 apples"),
    ("90", r"90^\circ"),
    ("12", "x = 12"),
    (r"\frac{\sqrt{3}}{2}", "sqrt(3)/2"),
    (r"\frac{\pi}{2}", "pi/2"),
    (r"e^{16}-1", "-1 + exp(16)"),
    ("14-i", "14.0 - 1.0*I"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt 2}{2}"),
    ("3, 4", "[3, 4]"),
    ("3, 4", "4, 3"),
    (r"\{3,4\}", "{4, 3}"),
    (r"1 \pm \sqrt{2}", r"1+\sqrt2, 1-\sqrt2"),
    ("(1, 2)", "(1.0, 2)"),
    ("[5]", "5"),
    (r"(-\infty, 3]", "(-oo, 3]"),
    (r"x \ge 2", r"[2, \infty)"),
    ("0 < x < 1", "(0, 1)"),
    ("(x+1)^2", "x**2 + 2*x + 1"),
    (r"\log 2", "ln(2)"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "Matrix([[1, 2], [3, 4]])"),
    ("C", "(C) 12"),
    ("Even", r"\text{even}"),
    ("2:4", "1:2"),
    ("y = 2x + 1", "2x - y + 1 = 0"),
    ("204_5", "54"),
    (r"3 \times 10^{4}", "30000"),
    ("1e-05", "0.00001"),
    ("pi/2", "1.5707963267948966"),
    ("0.3", "0.30000000000000004"),
    ("1/3", "0.3333"),
    ("100, 200", "100,200"),
    (r"\binom{5}{2}", "10"),
    ("5!", "120"),
    (r"\sqrt[3]{-8}", "-2"),
    ("|x|", "Abs(x)"),
    ("2^{100}", str(2**100)),
]
DIFFERENT = [
    ("5", "500"),
    ("50", "0.5"),
    ("0.0009", "0.0005"),
    ("18", "1,8"),
    ("[0,1]", "(0,1)"),
    ("[0,1]", "(0,1]"),
    ("(1,-3)", "(1,-2)"),
    ("5", "-5"),
    ("234", "1,234"),
    ("2", "12"),
    ("5 cm", "5 m"),
    ("(3, 1)", "(1, 3)"),
    ("x", "y"),
    ("|x|", "x"),
    ("x + 1", "x"),
    ("x > 5", "x < 5"),
    ("x > 5", "x >= 5"),
    ("12:00", "1:00"),
    (r"\pm 3", "3"),
    (r"\sqrt{2}", "1.4"),
    ("7.78", "7.77"),
    ("1/3", "0.33"),
    (r"\frac{1}{2}", "2"),
    ("1,2", "1,3"),
    ("A", "B"),
    ("2x + z = 1", "1"),
    ("yes", "no"),
    ("5", "5 or 6"),
    ("262537412640768744", "exp(pi*sqrt(163))"),
    ("5m", "5"),
    ("{1, 2}", "{1, 2, 3}"),
    ("1 2", "2"),
    ("3 + 4", "3"),
    ("10^{-60}", "0"),
]


@pytest.mark.parametrize(("gold", "prediction"), EQUAL)
def test_equal(gold, prediction):
    assert compare(gold, prediction) == (True, "equal")
    assert compare(prediction, gold) == (True, "equal")


@pytest.mark.parametrize(("gold", "prediction"), DIFFERENT)
def test_different(gold, prediction):
    assert not compare(gold, prediction).equal
    assert not compare(prediction, gold).equal


def test_reasons():
    assert compare("5", None).reason == compare("5", " ").reason == "no_answer"
    assert compare("5", "6").reason == "value"
    assert compare("[0,1]", "(0,1)").reason == "format"
    assert compare("5", "(1, 2)").reason == "format"
    assert compare("5", "what is it?").reason == "not_parsed"
    assert compare("5", "9**9**9").reason == "not_parsed"


@pytest.mark.parametrize(
    ("gold", "prediction"),
    [
        ("5", "5 cm"),
        ("50%", "50"),
        ("5", "x = 5"),
        ("1/3", "0.3333"),
        ("3, 4", "(3, 4)"),
        ("Even", "even"),
    ],
)
def test_strict_lets_nothing_go(gold, prediction):
    assert compare(gold, prediction).equal
    assert not compare(gold, prediction, strict=True).equal
    assert not compare(prediction, gold, strict=True).equal


def test_strict_is_about_values():
    pairs = [
        ("50%", "1/2"),
        ("0.5", r"\frac{1}{2}"),
        (r"\sqrt{12}", "2*sqrt(3)"),
        ("{1, 2}", "{2, 1}"),
    ]
    for gold, prediction in pairs:
        assert compare(gold, prediction, strict=True).equal


fractions = st.fractions(min_value=-1000, max_value=1000, max_denominator=50)


@given(fractions, fractions)
def test_rationals_agree_with_fraction(a, b):
    written = rf"\frac{{{b.numerator}}}{{{b.denominator}}}"
    assert compare(str(a), written).equal == (a == b)
    assert compare(str(a), str(Fraction(b)), strict=True).equal == (a == b)


@given(st.integers(-(10**9), 10**9))
def test_integers_in_many_forms(n):
    for form in (
        f"{n:,}",
        f"{n}.00",
        f"${n}$",
        rf"\boxed{{{n}}}",
        f"x = {n}",
        f"{n} apples",
        f"{n}/1",
    ):
        assert compare(str(n), form).equal
        assert not compare(str(n + 1), form).equal


X, Y = sympy.symbols("x y")
expressions = st.recursive(
    st.sampled_from([X, Y, sympy.pi, sympy.sqrt(2), sympy.Integer(3), sympy.Rational(2, 7)]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] * pair[1]),
        inner.map(lambda e: e**2),
        inner.map(sympy.sin),
        inner.map(sympy.exp),
    ),
    max_leaves=5,
)


@settings(max_examples=60)
@given(expressions)
@example(X * Y)
def test_reads_what_sympy_prints_and_latex(expression):
    """The oracle is sympy: its two printers and its expansion write the same value."""
    for other in (sympy.latex(expression), str(sympy.expand(expression))):
        verdict = compare(str(expression), other)  # only towers of exp may be refused
        assert verdict.equal or verdict.reason == "not_parsed" and "exp(exp" in str(expression), (
            expression,
            other,
        )
    changed = expression * sympy.Rational(1001, 1000)
    assert changed == 0 or not compare(str(expression), str(changed)).equal


HOSTILE = [
    "9**9**9",
    "9^{9^{9^9}}",
    "exp(exp(exp(exp(5))))",
    "(((9!)!)!)!",
    "(" * 500 + "1" + ")" * 500,
    "-" * 900 + "1",
    "x^" * 300 + "x",
    "1e999999999",
    "10^{-10^{10}}",
    "+".join(["sqrt(x)"] * 120),
    "1:" * 300 + "1",
    "a" * 100_000,
    "{1" * 300,
    r"\pm1" * 100,
    "(" + r"\pm " * 30 + "1)",
    ",".join(f"x+sqrt({i})" for i in range(90)),
    "1" * 4999,
    r"\frac{" * 200 + "1" + "}{2}" * 200,
    "sin(" * 30 + "1" + ")" * 30,
    "x<" * 400 + "y",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_effort_is_bounded(text):
    start = time.process_time()
    for other in ("1", text + "+1", text.replace("x", "y") + " "):
        compare(text, other), compare(other, text), extract(other)
    assert time.process_time() - start < 2


SOUP = [
    *"0129xyeEI!%/*+-,;:=<>()[]{}|.^_&$ jé三十",
    "**",
    r"\frac",
    r"\sqrt",
    r"\pm",
    r"\cup",
    "exp(",
    "log(",
    "10000",
    r"\{",
    r"\}",
    r"\text{",
    "cm",
    "and",
    r"\infty",
    r"\\",
    r"\begin{pmatrix}",
]


@settings(max_examples=150)
@given(st.lists(st.sampled_from(SOUP), max_size=16), st.data())
def test_never_raises_and_symmetric(tokens, data):
    a = "".join(tokens)
    b = data.draw(st.sampled_from([a + "0", a + " cm", "".join(reversed(tokens)), "x" + a]))
    for strict in (False, True):
        assert compare(a, b, strict).equal == compare(b, a, strict).equal
        assert not a.strip() or compare(a, a, strict).equal
    extract(a)


def test_plain_numbers_are_fast():
    pairs = [("42", "42"), ("1/2", r"\frac{1}{2}"), ("1,234", "1235")]
    best = min(_seconds(pairs) for _ in range(5))
    assert best / 600 < 100e-6


def _seconds(pairs):
    start = time.perf_counter()
    for _ in range(200):
        for a, b in pairs:
            compare(a, b)
    return time.perf_counter() - start


def test_threads_agree():
    verdicts = []
    job = lambda: verdicts.append([compare(*pair).equal for pair in EQUAL])  # noqa: E731
    threads = [threading.Thread(target=job) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(verdicts) == 4 and all(all(v) for v in verdicts)


def test_public_cases(real):
    """All of them are right. bench/answers.py compares with Math-Verify."""
    cases = [
        case
        for case in map(json.loads, real("grader/cases.jsonl").open(encoding="utf-8"))
        if not case["flags"]
    ]
    wrong = {True: [], False: []}
    for case in cases:
        gold, prediction = (
            case[f"{side}_form"] == "text"
            and extract(case[side], fallback_last_number=True)
            or case[side]
            for side in ("gold", "pred")
        )
        if compare(gold, prediction).equal != case["equal"]:
            wrong[case["equal"]].append(case["id"])
    assert len(cases) > 200
    assert not wrong[False], f"wrongly accepted: {wrong[False]}"
    assert not wrong[True], f"wrongly rejected: {wrong[True]}"
