from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.answers.equations import equations, leaves, value
from data.problems.readers import gsm8k_rows
from data.world import synthetic


def read(text):
    found, unread = equations(text)
    return [(equation.text, equation.holds()) for equation in found], unread


@pytest.mark.parametrize(
    "text, expected, unread",
    [
        ("There are 15 - 4 = 11 eggs left.", [("15 - 4 = 11", True)], 0),
        (
            "20% is 35 * 20 / 100 = 7 books.\nLeft: 35 - 7 = 29.",
            [("35 * 20 / 100 = 7", True), ("35 - 7 = 29", False)],
            0,
        ),
        ("First 5 + 2 = 7. 3 + 4 = 8", [("5 + 2 = 7", True), ("3 + 4 = 8", False)], 0),
        (
            "She pays $5*$4=<<5*4=20>>$20, so 20% of 50 = 10",
            [("5*4 = 20", True), ("20% * 50 = 10", True)],
            0,
        ),
        ("80,000 x 1.5 = $120,000", [("80000*1.5 = 120000", True)], 0),
        ("$\\frac{3}{4} \\times 8 = 6$", [("(3)/(4) * 8 = 6", True)], 0),
        ("平均 30 ÷ 3 ＝ 10 个。", [("30 / 3 = 10", True)], 0),
        ("3 + 4 = 7 = 2 * 4", [("3 + 4 = 7", True), ("7 = 2 * 4", False)], 0),
        ("5 * 4 apples = 20 apples = 2*10", [("5 * 4 = 20", True), ("20 = 2*10", True)], 0),
        ("-5 + 3 = -2", [("-5 + 3 = -2", True)], 0),
        ("1/4 + 1/3 = 7/12", [("1/4 + 1/3 = 7/12", True)], 0),
        ("5 / 0 = 3", [("5 / 0 = 3", False)], 0),
        # correctly rounded to the digits that are written
        ("10/3 = 3.33", [("10/3 = 3.33", True)], 0),
        ("10/3 = 3.34", [("10/3 = 3.34", False)], 0),
        ("10/3 = 3", [("10/3 = 3", False)], 0),
        ("3.33 * 3 = 10", [("3.33 * 3 = 10", True)], 0),
        ("1.25 * 3 = 3.76", [("1.25 * 3 = 3.76", False)], 0),
        ("100 - 40 = 60%", [("100 - 40 = 60%", True)], 0),
        ("100 - 40 = 50%", [("100 - 40 = 50%", False)], 0),
        # not certain: counted, not judged
        ("2x + 3 = 7", [], 1),
        ("f(3) = 9", [], 1),
        ("a = b", [], 1),
        ("2^3 = 8", [], 1),
        ("x = 5", [], 1),
        ("=", [], 1),
        ("3 apples + 4 apples = 9 apples", [], 1),
        ("12 - 3 apples + 2 = 1", [], 1),
        ("1 + 1 = 2y", [], 1),
        ("3 = 3", [], 0),
        ("5 >= 3 + 4, a <= 2 + 1", [], 0),
        ("2 + 2 != 5 and 1 + 1 ≈= 3", [], 0),
        ("2 + 2 = __import__('os')", [], 1),
        ("9**9 = 3", [], 1),
        ("7 // 2 = 3", [], 1),
    ],
)
def test_examples(text, expected, unread):
    assert read(text) == (expected, unread)


NUMBERS = st.integers(0, 999)


@given(
    NUMBERS, st.sampled_from("+-*/"), NUMBERS, st.sampled_from("+-*/"), NUMBERS, st.integers(1, 5)
)
def test_sums_are_judged_as_python_does(a, first, b, second, c, off):
    text = f"{a} {first} {b} {second} {c}"
    try:
        result = eval(
            "".join(f"F({part})" if part.isdigit() else part for part in text.split()),
            {"F": Fraction},
        )
    except ZeroDivisionError:
        return
    found, unread = equations(f"So {text} = {result} in all.")
    assert unread == 0 and found[0].holds() and value(found[0].left) == result
    assert list(leaves(found[0].left)) == [a, b, c]
    assert not equations(f"So {text} = {result + off} in all.")[0][0].holds()


@given(st.text("0123456789+-*/=.%$()x, \n\\^{}元", max_size=60))
def test_no_text_is_too_odd(text):
    found, unread = equations(text)
    assert unread >= 0 and all(isinstance(equation.holds(), bool) for equation in found)


def test_long_texts_take_no_time_to_speak_of():
    many = 50_000
    for text in (
        "a " * many + "= 3",
        "(" * many + "= 3",
        "1+" * many + "1 = 3",
        "1 = " * many,
        "- 1 " * many + "=",
    ):
        assert all(len(equation.text) < 400 for equation in equations(text)[0])


def test_every_step_of_the_built_in_problems_holds():
    for lang in synthetic.LANGS:
        for level in synthetic.LEVELS:
            for index in range(60):
                problem = synthetic.problem(index, lang=lang, level=level)
                steps = problem.cot.splitlines()[:-1]
                found, unread = equations(problem.cot)
                assert unread == 0 and len(found) == len(steps), problem.cot
                assert all(equation.holds() for equation in found), problem.cot


def test_solutions_of_gsm8k(real):
    """Nearly all equations in the solutions of GSM8K hold. The others were checked by hand: they
    are errors of the authors, and sentences like "1/3 of the total = 48", of which only a part is
    arithmetic."""
    texts = [marked for _, marked in gsm8k_rows(real("gsm8k/train.jsonl"))]
    found = [equation for text in texts for equation in equations(text)[0]]
    false = [equation for equation in found if not equation.holds()]
    assert len(found) > 19_000 and len(false) < 0.01 * len(found)
