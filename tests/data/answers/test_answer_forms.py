"""Answers of every kind and notation: which are the same in both modes, which differ and why;
options of multiple choice; extraction."""

import time

import pytest

from data.answers import choice, compare, extract
from data.answers.units import unit

SAME = [  # also in strict mode
    ("5 cm", "5 centimeters"),
    ("5 cm", "5 厘米"),
    (r"15\mbox{ cm}^2", "15 square centimeters"),
    (r"15 \text{ cm}^2", "15平方厘米"),
    ("60 km/h", "60 kilometers per hour"),
    ("60 km/h", "60千米/小时"),
    ("5 m/s", r"5 \text{ m/s}"),
    ("$5", "5 dollars"),
    (r"\$5", r"\$5.00"),
    ("5元", "¥5"),
    (r"90^\circ", "90 degrees"),
    ("90°", "90度"),
    (r"10^\circ C", "10 ℃"),
    ("5 feet tall", "5 ft"),
    ("20 dollars in total", "$20"),
    ("3千克", "3 kg"),
    ("2 hours", "2小时"),
    (r"\sin 30^\circ", "1/2"),
    (r"\cos(60^\circ)", "0.5"),
    ("2 t", "2t"),
    ("1.5万", "15000"),
    ("1.23456万", "12345.6"),
    ("三分之二", "2/3"),
    ("百分之五十", "50%"),
    ("一又三分之二", "5/3"),
    ("三点五", "3.5"),
    ("负三", "-3"),
    ("二〇二四", "2024"),
    ("三百零五", "305"),
    ("2亿", "200000000"),
    ("pi/2", r"\frac{\pi}{2}"),
    ("-1 + exp(16)", "e^{16}-1"),
    ("Fraction(1, 2)", "1/2"),
    ("(1+2j)", "1+2i"),
    ("{1, 2}", r"\{2, 1\}"),
    ("2**10", "1024"),
    ("3.0", "3"),
    ("1e-05", "10^{-5}"),
    ("Rational(1,2)", "0.5"),
    ("sqrt(2)/2", r"\frac{1}{\sqrt{2}}"),
    ("Matrix([[1],[2]])", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ("Matrix([1, 2])", r"\begin{bmatrix}1\\2\end{bmatrix}"),
    ("{x: 2}", "x = 2"),
    ("oo", r"\infty"),
    ("FiniteSet(1, 2)", r"\{1,2\}"),
    ("Interval(0, 1)", "[0,1]"),
    ("Interval.open(0, 1)", "(0,1)"),
    ("Interval.Ropen(0, 1)", "[0,1)"),
    ("Interval.Lopen(0, 1)", "(0,1]"),
    ("Interval(0, oo)", r"[0,\infty)"),
    ("Union(Interval.open(-oo, 1), Interval.open(2, oo))", r"(-\infty,1)\cup(2,\infty)"),
    ("(-oo < x) & (x < 3)", "x<3"),
    ("(0 <= x) & (x < 3)", r"0 \le x < 3"),
    ("Eq(x, 2)", "x=2"),
    ("np.float64(0.5)", "1/2"),
    ("Decimal('0.5')", "1/2"),
    ("[1 2 3]", "[1, 2, 3]"),
    ("factorial(5)", "120"),
    ("binomial(5, 2)", "10"),
    ("log(8, 2)", "3"),
    (r"\log_2 8", "3"),
    ("3:45 PM", "15:45"),
    ("下午3点45分", "15:45"),
    ("3 PM", "15:00"),
    ("3 p.m.", "3:00 PM"),
    ("60:80", "3:4"),
    ("$5$;$10$", "5;10"),
    (r"1-5\mathrm{i}", "1-5i"),
    (r"y=\pm\sqrt{3}x", "y = sqrt(3)*x, y = -sqrt(3)*x"),
    (r"\frac{1}{2}x", "x/2"),
    ("1{,}000", "1000"),
    (r"\left(\frac{1}{\mathrm{e}},1\right)", "(1/e, 1)"),
    ("(B)", "B"),
    (r"\textcircled{1}\textcircled{3}", "①③"),
    ("7", r"\boxed{7}"),
    (r"\[ 9 \]", "9"),
    (r"1\frac{1}{2}", "3/2"),
    ("I*sqrt(3)", r"\sqrt{3}i"),
]
RELAXED = [  # equal, but different in strict mode
    ("5 cm", "5"),
    ("$5", "5"),
    ("5 apples", "5"),
    ("5 apples", "5 people"),
    (r"90^\circ", "90"),
    ("50%", "50"),
    ("[3, 4]", "3, 4"),
    ("[(1, 2)]", "(1, 2)"),
    ("[{x: 1}, {x: 3}]", "1, 3"),
    ("{x: 2}", "2"),
    ("True", "true"),
    ("3:45", "3:45 PM"),
    ("①, ③", "①③"),
    ("x < 1 or x > 2", r"(-\infty,1)\cup(2,\infty)"),
    ("|x| < 2", "(-2,2)"),
    (r"2 \le |x| < 3", r"(-3,-2] \cup [2, 3)"),
    (r"\{x \mid x \ge 2\}", r"[2,\infty)"),
    ("5;10", "5, 10"),
    ("about 5", "5"),
    (r"\approx 3.14", "3.14"),
    ("(3 cm, 4 cm)", "(3, 4)"),
    ("Yes", "yes."),
    ("1/3", "0.33333"),
]
DIFFERENT = [  # (answer, answer, reason), in both modes
    ("5 cm", "5 m", "unit"),
    ("$5", "€5", "unit"),
    ("100 cm", "1 m", "unit"),
    ("5 cm", "7 cm", "value"),
    ("90^\\circ", "90 cm", "unit"),
    ("5元", "5角", "unit"),
    ("60 km/h", "60 m/s", "unit"),
    ("5 cm^2", "5 cm", "unit"),
    ("5 km", "5 mi", "unit"),
    ("3:45 PM", "3:45 AM", "value"),
    ("12:30", "4:10", "value"),
    ("5;10", "10;5", "value"),
    ("1,234", "234, 1", "format"),
    ("(1,2)", "(2,1)", "value"),
    ("True", "False", "value"),
    ("①③", "①④", "value"),
    ("[0,1)", "[0,1]", "format"),
    ("Interval(0,1)", "Interval.open(0,1)", "format"),
    ("5", "(5, 6)", "format"),
    ("{1,2}", "{1,3}", "value"),
    ("x=2", "x=3", "value"),
    ("5", "", "no_answer"),
    ("5", "9**9**9", "not_parsed"),
    ("5", "what is it?", "not_parsed"),
    ("3:4", "4:3", "value"),
    ("yes", "no", "value"),
    ("2 t", "2 s", "unit"),
    ("1.5万", "1500", "value"),
    ("三分之二", "三分之一", "value"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_same_in_both_modes(a, b):
    for strict in (True, False):
        assert compare(a, b, strict) == compare(b, a, strict) == (True, "equal")


@pytest.mark.parametrize(("a", "b"), RELAXED)
def test_same_in_relaxed_mode_only(a, b):
    assert compare(a, b).equal and compare(b, a).equal
    assert not compare(a, b, strict=True).equal and not compare(b, a, strict=True).equal


@pytest.mark.parametrize(("a", "b", "reason"), DIFFERENT)
def test_different_with_reason(a, b, reason):
    for strict in (True, False):
        assert compare(a, b, strict) == compare(b, a, strict) == (False, reason)


def test_percent_is_no_money_and_a_unit_alone_is_a_reason_in_strict_mode():
    assert compare("50%", "$50").reason == "unit"
    assert (
        compare("5 cm", "5", strict=True).reason == compare("5", "$5", strict=True).reason == "unit"
    )


def test_strict_lists_keep_count_and_tuples_order():
    assert compare("1, 2, 2", "2, 1, 2", strict=True).equal
    assert not compare("1, 2, 2", "1, 1, 2", strict=True).equal
    assert (
        not compare("1, 2, 2", "1, 2", strict=True).equal
        and not compare("1, 2", "1, 2, 2", strict=True).equal
    )


def test_units_by_hand():
    assert unit("cm") == unit("centimetres") == unit("厘米") != unit("m")
    assert unit("km/h") == unit("kilometers per hour") == unit("千米/小时".replace("千米", "km"))
    dimensions, factor = unit("cm^2")
    assert dimensions == (("length", 2),) and factor == unit("cm")[1] ** 2
    assert unit("km/h")[1] * 36 == 10 * unit("m/s")[1]  # 3.6 km/h is 1 m/s
    assert unit("apples") == unit("apple") and unit("apples")[0][0][1] == 0
    assert unit("liters")[0] == unit("cubic meters")[0]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (
            "Final Answer: The final answer is $\\frac{1}{2}$. I hope it is correct.",
            "$\\frac{1}{2}$",
        ),
        ("It rose. The answer is 50%.", "50%"),
        (r"so \boxed{\frac{1}{\sqrt{\frac{2}{3}}}} holds", r"\frac{1}{\sqrt{\frac{2}{3}}}"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"{ \boxed{5} and more", "5"),
        (r"} \boxed{5}", "5"),
        ("#### 1\n#### 2", "2"),
        ("The answer is (B)", "(B)"),
        ("the correct option is C", "C"),
        ("所以选B。", "B"),
        ("故选：C", "C"),
        ("The answer is 5. My answer is good.", "5"),
        ("The answer is yes.", "yes"),
        ("The answer is 5. No: the answer is 6.", "6"),
        ("故选(A)", "(A)"),
        ("答案是 B", "B"),
        ("答案：3.5元", "3.5元"),
        ("It costs $5 or \\(x\\). The answer is $6", "$6"),
        (r"答案是$\textcircled{2}\textcircled{3}$。", "②③"),
        ("选择", None),
        ("answer", None),
    ],
)
def test_extract_forms(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (B).", "B"),
        ("B) 12", "B"),
        ("B", "B"),
        ("(C)", "C"),
        ("选B", "B"),
        ("故选：C", "C"),
        ("I think (A) is wrong, so (D)", "D"),
        (r"\boxed{\text{C}}", "C"),
        ("The answer is 12.", "B"),
        (r"\boxed{1/2}", "C"),
        ("The answer is 0.5", "C"),
        ("The answer is 40%", "D"),
        ("The answer is 7.", None),
        ("The answer is E.", None),
        ("A cat sat.", None),
        ("", None),
        ("12", "B"),
        ("the answer is B because it is 12", "B"),
        ("x", "A"),
    ],
)
def test_choice(text, letter):
    assert choice(text, ["x", "12", r"$\frac{1}{2}$", r"40\%"]) == letter
    assert choice(text, ["(A)x", "(B) 12", r"(C) $\frac{1}{2}$", r"(D) 40\%"]) == letter


PRIMES = [p for p in range(2, 900) if all(p % q for q in range(2, p))]
HEAVY = {  # each breaks a limit
    "coprime denominators": "+".join(f"1/{p}^{19000 // p.bit_length()}" for p in PRIMES)[:990],
    "matrix product": "*".join(["Matrix([[x,y],[y,x]])"] * 45),
    "nested signs": r"\{\pm1=" * 30 + "1" + r"\}" * 30,
    "sets of sets": r"\{"
    + ",".join(r"\{" + ",".join("abcdfghjk") + r"\}" for _ in range(40))
    + r"\}",
    "surds": r"\{" + ",".join(rf"(\sqrt{{{i}}},\sqrt{{{i + 1}}})" for i in range(2, 40)) + r"\}",
    "powers": "+".join(f"{c}^{d}" for c in "abcdefghjk" for d in "mnopqrstuvw"),
    "tiny root": r"\sqrt[10^{-4000}]{2}",
    "floor": "floor(cosh(999999999))",
    "percent": "5" + "%" * 900,
    "tower": "2^" * 40 + "2",
    "spaces": "1a" + " " * 900 + "!",
    "numerals": "三分之" * 300,
    "array": "[" + "1 " * 480 + "]",
    "conjunctions": "(x<1)&" * 160 + "(x<2)",
    "units": "5 km/" * 190,
    "factorials": "*".join(["1000!"] * 190),
}
LONG = {
    "parentheses": r"\(" * 50_000,
    "dollars": "$x" * 50_000,
    "boxes": r"\boxed{" * 15_000,
    "closed": r"\boxed{1}" * 12_000,
    "nested boxes": r"\boxed{" * 8_000 + "}" * 8_000,
    "hashes": "#### 5\n" * 15_000,
    "phrases": "The answer is $x$. " * 6_000,
    "spaces": "answer" + " " * 100_000 + "5",
    "picked": "选" + " " * 100_000,
    "答案": "答案" + " " * 100_000,
    "thousands": "1,111" * 20_000,
    "letters": "a" * 100_000,
    "thinking": "</think>" * 12_000,
    "slashes": "\\" * 100_001,
    "options": "(A)" * 30_000,
    "formulas": r"$x+\frac{1}{2}$ " * 6_000,
}


@pytest.mark.parametrize("name", HEAVY)
def test_no_expression_takes_long(name):
    text, slowest = HEAVY[name], 0
    for other in (
        "1",
        text + "+1",
        text.replace("x", "y").replace("2", "3").replace("a", "w"),
        text[::-1],
    ):
        for strict in (False, True):
            start = time.process_time()
            forth, back = compare(text, other, strict), compare(other, text, strict)
            slowest = max(slowest, time.process_time() - start)
            assert forth.equal == back.equal
    assert slowest < 4


@pytest.mark.parametrize("name", LONG)
def test_no_text_takes_long(name):
    start = time.process_time()
    (
        extract(LONG[name], True),
        extract("The answer is " + LONG[name], True),
        choice(LONG[name], ["1", "2"]),
    )
    compare("5", LONG[name]), compare(LONG[name], LONG[name] + "1")
    assert time.process_time() - start < 4
