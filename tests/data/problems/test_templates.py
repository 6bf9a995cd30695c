import ast
import contextlib
import io
import math
import random
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.problems.readers import word_problem_rows
from data.problems.templates import Rewording, WordTemplate, number_text, parse_number


def template(question, numbers, equation):
    return WordTemplate(question, tuple(map(parse_number, numbers.split())), equation)


@pytest.mark.parametrize(
    "text, written",
    [
        ("56.0", "56"),
        ("1215", "1215"),
        ("10.50", "10.5"),
        ("0.05", "0.05"),
        ("5.00", "5"),
        ("-2.5", "-2.5"),
        ("0.3333333333333333", "1/3"),
        ("4.166666666666667", "25/6"),
        ("0.3333", "0.3333"),
        ("0.4698", "0.4698"),
    ],
)
def test_number_text(text, written):
    assert number_text(parse_number(text)) == written


@given(st.integers(-(10**6), 10**6), st.integers(0, 6))
def test_finite_decimals_are_written_exactly(digits, places):
    number = Fraction(digits, 10**places)
    text = number_text(number)
    assert Fraction(text) == number and "/" not in text and not ("." in text and text.endswith("0"))


@pytest.mark.parametrize(
    "equation, program, cot",
    [
        ("- number0 number1", "5 - 3", "5 - 3 = 2"),
        ("* + number0 number1 2.0", "(5 + 3) * 2", "5 + 3 = 8\n8 * 2 = 16"),
        ("+ * number0 number1 number2", "5 * 3 + 0.5", "5 * 3 = 15\n15 + 0.5 = 15.5"),
        ("- number0 - number1 number2", "5 - (3 - 0.5)", "3 - 0.5 = 2.5\n5 - 2.5 = 2.5"),
        ("+ number0 - number1 number2", "5 + 3 - 0.5", "3 - 0.5 = 2.5\n5 + 2.5 = 7.5"),
        ("/ number0 / number1 number2", "5 / (3 / 0.5)", "3 / 0.5 = 6\n5 / 6 = 0.8333"),
        ("* / number0 number1 3.0", "5 / 3 * 3", "5 / 3 = 1.6667\n1.6667 * 3 = 5"),
        ("/ number0 number3", "5 / (1/6)", "5 / (1/6) = 30"),
        ("+ number3 number3", "1/6 + 1/6", "1/6 + 1/6 = 0.3333"),
        ("+ number1 number0", "5 + 3", "5 + 3 = 8"),  # in the order of the question
        ("* number2 + number1 number0", "(5 + 3) * 0.5", "5 + 3 = 8\n8 * 0.5 = 4"),
        ("* 2.0 number0", "2 * 5", "2 * 5 = 10"),
        ("- number1 number0", "3 - 5", "3 - 5 = -2"),
        ("number1", "3", ""),
    ],
)
def test_program_and_cot(equation, program, cot):
    made = template("q", "5.0 3 0.5 0.16666666666666666", equation)
    last = cot.rpartition("= ")[2] or "3"
    assert made.program() == f"print({program})"
    assert made.cot() == (cot + "\n" if cot else "") + f"The answer is {last}."
    assert made.value() == Fraction(eval(program)).limit_denominator(1000)


def test_program_of_an_operation_a_line():
    made = template("q", "5.0 3 0.5 0.16666666666666666", "/ * number2 + number1 number0 number3")
    assert made.program(lines=True) == "a = 5 + 3\nb = a * 0.5\nc = b / (1/6)\nprint(c)"
    assert template("q", "3", "number0").program(lines=True) == "print(3)"


TREES = st.recursive(
    st.integers(0, 5), lambda child: st.tuples(st.sampled_from("+-*/"), child, child), max_leaves=6
)


def prefix(tree):
    return (
        f"number{tree}"
        if isinstance(tree, int)
        else f"{tree[0]} {prefix(tree[1])} {prefix(tree[2])}"
    )


def exact(node):
    """The oracle: Python's parser, with Fractions."""
    if isinstance(node, ast.Expression):
        return exact(node.body)
    if isinstance(node, ast.Constant):
        return Fraction(str(node.value))
    left, right = exact(node.left), exact(node.right)
    return {
        ast.Add: left + right,
        ast.Sub: left - right,
        ast.Mult: left * right,
        ast.Div: left / right if right else None,
    }[type(node.op)]


@given(TREES)
def test_programs_mean_their_equation_and_need_their_parentheses(tree):
    # numbers in general position, so that two different expressions have different values
    numbers = "7919 104729 1299709.5 15485863 0.0317 179424673"
    try:
        made = template("q", numbers, prefix(tree))
        value = made.value()
    except ZeroDivisionError:
        return
    program = made.program().removeprefix("print(")[:-1]

    def direct(node):
        if isinstance(node, int):
            return Fraction(numbers.split()[node])
        a, b = direct(node[1]), direct(node[2])
        return {"+": a + b, "-": a - b, "*": a * b}[node[0]] if node[0] != "/" else a / b

    assert value == direct(tree) == exact(ast.parse(program, mode="eval"))
    leaves = (
        []
        if isinstance(tree, int)
        else [int(c) for c in prefix(tree).replace("number", "") if c.isdigit()]
    )
    if len(leaves) != len(set(leaves)):
        return  # n - (n - n) is n - n - n with other signs: repeated numbers may cancel
    opened = []
    for position, character in enumerate(program):
        if character == "(":
            opened.append(position)
        elif character == ")":
            start = opened.pop()
            without = program[:start] + program[start + 1 : position] + program[position + 1 :]
            try:
                assert exact(ast.parse(without, mode="eval")) != value
            except TypeError:  # a division by zero in the changed one
                pass


@pytest.mark.parametrize(
    "equation, answer, agrees",
    [
        ("* number0 number1", "15.0", True),
        ("/ number0 number1", "1.67", True),
        ("/ number0 number1", "1.7", True),
        ("/ number0 number1", "1.6", False),
        ("/ number0 number1", "2.0", False),
        ("* number0 number1", "14.0", False),
    ],
)
def test_agreement(equation, answer, agrees):
    assert template("q", "5 3", equation).agrees(answer) == agrees


CASES = [
    ("number0 of number1", "12.0 7.0", "- number0 number1"),
    ("number0 in number1", "36.0 12.0", "/ number0 number1"),
    ("number0 and number1 and number2", "10.22 11.73 6.0", "+ number0 number1"),
    ("number0 and number1 and number2", "3 5 3", "* number0 + number0 number1"),
    ("number0 dozen", "7.0", "* number0 12.0"),
    ("number0 % of number1", "20 6000", "* * number0 0.01 number1"),
    ("number0 and number1", "0.16666666666666666 0.5", "+ number0 number1"),
    ("number0 then number1", "5 3", "/ number0 number1"),
]


@pytest.mark.parametrize("case", CASES)
def test_resampled_numbers_keep_their_kind(case):
    original, rng = template(*case), random.Random(0)
    variants = [original.resample(rng) for _ in range(50)]
    assert len(set(variants)) > 4
    for variant in variants:
        assert (variant.question, variant.equation) == (original.question, original.equation)
        for old, new in zip(original.numbers, variant.numbers, strict=True):
            assert (old.denominator == 1) == (new.denominator == 1)
            assert old / 2 <= new <= 2 * old or old < 10 and 2 <= new <= 9 or new < 1 and old < 1
            assert (
                len(number_text(new).partition(".")[2]) <= len(number_text(old).partition(".")[2])
                or old < 1
            )
        assert len(set(variant.numbers)) == len(set(original.numbers))
        for old, new in zip(original._results(), variant._results(), strict=True):
            assert new > 0 and (new.denominator == 1 or old.denominator > 1)


def test_resampling_keeps_what_the_equation_depends_on():
    rng = random.Random(0)
    # equal numbers stay equal: the equation's number0 may have meant number1
    same = template("number0 and number1 and number2", "4 4 9", "+ + number0 number0 number2")
    assert all(v.numbers[0] == v.numbers[1] for v in (same.resample(rng) for _ in range(20)))
    # a number equal to a constant of the equation stays: the constant may be that number
    constant = template("number0 pens for each of number1 friends", "8 4", "* number0 4.0")
    assert all(
        v.numbers[1] == 4 and v.value() == 4 * v.numbers[0]
        for v in (constant.resample(rng) for _ in range(20))
    )
    # where no draw fits, the template itself: 1 never changes, and 1 - 1 has no other numbers
    fixed = template("number0 number1", "1 1", "- number0 number1")
    assert fixed.resample(rng) == fixed and same.resample(rng, tries=0) is same


def test_resampling_is_seeded():
    case = template(*CASES[0])
    draws = [
        [case.resample(rng) for _ in range(5)]
        for rng in (random.Random(1), random.Random(1), random.Random(2))
    ]
    assert draws[0] == draws[1] != draws[2]


def test_real_templates_agree_with_their_programs(real):
    rows = list(word_problem_rows(real("word-problems/mawps_asdiv_train.csv")))
    wrong = [row["Question"] for _, row, made in rows if not made.agrees(row["Answer"])]
    assert len(wrong) == 8
    for _, row, made in rows[::7]:
        value = float(eval(made.program().removeprefix("print")))
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(made.program(lines=True), {})
        assert math.isclose(float(printed.getvalue()), value, rel_tol=1e-12)
        stack = []  # another way to read prefix form
        for token in reversed(row["Equation"].split()):
            if token in "+-*/":
                a, b = stack.pop(), stack.pop()
                stack.append({"+": a + b, "-": a - b, "*": a * b}[token] if token != "/" else a / b)
            else:
                index = token.removeprefix("number")
                stack.append(float(row["Numbers"].split()[int(index)] if token != index else token))
        assert value == pytest.approx(stack[0], rel=1e-9) and len(stack) == 1
        assert value == pytest.approx(float(made.cot().split()[-1].rstrip(".")), abs=5.1e-5)


# ---- GSM8K programs ------------------------------------------------------------------------------


# --- Rewording ---

QUESTIONS = [
    "Joan found number0 seashells on the beach . Then Sam gave Joan number1 seashells .",
    "Joan gave number0 apples to Sam . On Monday she gave number1 dollars to Ann .",
    "In the bag of Joan there is one apple . Joan puts in number0 apples .",
    "On Monday Sam bought number0 boxes for number1 dollars , and Ann one box for number2 dollars .",
    "joan has number0 boxes and number1 seashells .",
]


def words_kept(old, new, name, thing):
    """Whether `new` is `old` except for an exchange of names and things, without regard to case."""
    pairs = set(zip(old.lower().split(), new.lower().split(), strict=True))
    changed = {a: b for a, b in pairs if a != b}
    return len(dict(pairs)) == len(pairs) and all(
        a in kind and b in kind
        for a, b in changed.items()
        for kind in (name if a in name else thing,)
    )


def test_what_is_exchanged():
    rewording = Rewording(QUESTIONS)
    assert rewording.names == ["Ann", "Joan", "Sam"]  # Monday is a day, On begins a sentence
    assert rewording.things == {
        "apples": "apple",
        "boxes": "box",
        "seashells": "seashells",
    }  # dollars are a unit


@given(st.integers(0, 10_000), st.sampled_from(QUESTIONS))
def test_a_word_is_exchanged_everywhere_or_nowhere(seed, question):
    new = Rewording(QUESTIONS)(question, random.Random(seed))
    things = {"apples", "boxes", "seashells", "apple", "box"}
    assert words_kept(question, new, {"joan", "sam", "ann"}, things), new
    assert re.findall(r"number\d", new) == re.findall(r"number\d", question)
    assert (
        new == new.lower()
        or re.match("[A-Z]", new)
        and not re.search(r"\b(joan|sam|ann)\b|[.] [a-z]", new)
    ), new


def test_exchanges_happen_and_are_seeded():
    rewording = Rewording(QUESTIONS)
    several = [rewording(QUESTIONS[2], random.Random(seed)) for seed in range(60)]
    assert several == [rewording(QUESTIONS[2], random.Random(seed)) for seed in range(60)]
    assert "In the bag of Ann there is one box . Ann puts in number0 boxes ." in several
    assert sum(text == text.lower() for text in several) in range(5, 30)  # a quarter


def test_nothing_to_exchange_with():
    assert (
        Rewording([])("Joan has number0 apples .", random.Random(1)).lower()
        == "joan has number0 apples ."
    )


def test_real_questions_keep_their_numbers(real):
    rows = list(word_problem_rows(real("word-problems/mawps_asdiv_train.csv")))
    questions = [template.question for _, _, template in rows]
    rewording, rng = Rewording(questions), random.Random(0)
    assert len(rewording.names) > 100 and len(rewording.things) > 100
    for question in questions:
        new = rewording(question, rng)
        assert re.findall(r"number\d+", new) == re.findall(r"number\d+", question)
        assert len(new.split()) == len(question.split())
