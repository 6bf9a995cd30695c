import random
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.answers.verifier import agree, stated

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "gold, prediction, expected",
    [
        ("12", "12", True),
        ("12", "12.0", True),
        ("12", "13", False),
        ("-5", "5", False),
        ("1,234", "1234", True),
        ("1/2", r"\frac{1}{2}", True),
        ("1/2", "0.5", True),
        (r"\frac12", "2/4", True),
        (r"3\frac{1}{2}", "7/2", True),
        ("0.3", "0.30000000000000004", True),
        ("0.3", "0.3000001", False),
        ("1/3", "0.3333", False),
        ("50%", "0.5", True),
        ("50%", "50", True),
        ("50%", r"50\%", True),
        ("50%", "5", False),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        (r"\sqrt{8}", "2*sqrt(2)", True),
        (r"\sqrt{8}", "2.83", False),
        (r"\frac{\pi}{2}", "pi/2", True),
        ("-1 + e^{16}", "-1 + exp(16)", True),
        ("14 - i", "14.0 - 1.0*I", True),
        ("(x+1)^2", "x^2+2x+1", True),
        ("(x+1)^2", "x^2+1", False),
        (r"\sin^2 x + \cos^2 x", "1", True),
        ("(1, 2)", "(1,2)", True),
        ("(1, 2)", "(2, 1)", False),
        ("[0,1)", "[0,1]", False),
        ("[0,1)", "[0, 1)", True),
        (r"\{1, 2\}", r"\{2, 1\}", True),
        ("1, 2", "2 and 1", True),
        ("1, 2", "1, 2, 3", False),
        ("1, 2", "(1, 2)", None),
        (r"1 \pm \sqrt{2}", r"1+\sqrt{2}, 1-\sqrt{2}", True),
        ("x = 5", "5", True),
        ("x = 5", "y = 6", False),
        ("x < 3", "3 > x", True),
        ("x < 3", "x <= 3", False),
        ("x < 3", "-x > -3", True),
        ("2x + 4y = 3", "4x+8y=6", True),
        (r"(-\infty, 2) \cup (3, 4]", r"(3,4] \cup (-\infty,2)", True),
        (
            r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
            r"\begin{bmatrix}1&2\\3&4\end{bmatrix}",
            True,
        ),
        (
            r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
            r"\begin{pmatrix}1&2\\3&5\end{pmatrix}",
            False,
        ),
        ("C", "(C)", True),
        ("C", "D", False),
        ("Evelyn", r"\text{Evelyn}", True),
        ("Evelyn", "Ann", None),
        ("5 apples", "5", True),
        (r"5\text{ cm}^2", "5", True),
        ("$18", "18", True),
        ("12个", "12", True),
        ("7", None, False),
        ("7", " ", False),
        ("7", "many", None),
        ("", "7", None),
        # too large, or not mathematics
        ("9**9**9", "1", None),
        ("factorial(100000)", "1", None),
        ("__import__('os').system('true')", "0", None),
        ("[x for x in (1, 2)]", "1", None),
        ("1e9999999", "1", None),
        ("lambda: 1", "1", None),
        ("1/0", "1", None),
    ],
)
def test_examples(gold, prediction, expected):
    assert agree(gold, prediction) is expected
    if prediction is not None and prediction.strip() and gold:
        assert agree(prediction, gold) is expected  # in both orders


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"So \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{2}} is it", r"\frac{1}{2}"),
        (r"\boxed{5} or \boxed{6}", None),
        (r"\boxed{5}, so \boxed{5}", "5"),
        (r"\boxed{5", None),
        ("The answer is 7.", "7"),
        ("The answer is 7.5. Good.", "7.5"),
        ("answer: 3\nThe answer is: 4 apples", "4 apples"),
        ("#### 18\n", "18"),
        ("答案是12。", "12"),
        ("No.", None),
        ("Final Answer: The final answer is $10,455$. I hope so.", "$10,455$"),
        ("The answer is", None),
        ("", None),
    ],
)
def test_stated(text, answer):
    assert stated(text) == answer


@given(
    st.integers(-(10**6), 10**6),
    st.integers(1, 999),
    st.integers(-(10**6), 10**6),
    st.integers(1, 999),
)
def test_fractions(a, b, c, d):
    expected = a * d == b * c
    for left in (f"{a}/{b}", rf"\frac{{{a}}}{{{b}}}"):
        assert agree(left, rf"\dfrac{{{c}}}{{{d}}}") is expected
    assert agree(f"{a}/{b}", f"{a * 3}/{b * 3}") is True


def test_no_text_is_too_odd():
    rng = random.Random(0)
    seeds = [
        r"\frac{1}{2}",
        "(1, 2]",
        r"\sqrt[3]{x+1}",
        "x^2+3x=5",
        r"\begin{pmatrix}1&2\end{pmatrix}",
        "sin(3)**10",
    ]
    alphabet = "0123456789+-*/^(){}[],.\\ xyie=<>%$&九!_|"
    for _ in range(1500):
        text = list(rng.choice(seeds))
        for _ in range(rng.randint(1, 6)):
            text.insert(rng.randrange(len(text) + 1), rng.choice(alphabet))
        assert agree("".join(text), rng.choice(seeds)) in (True, False, None)
    for text in (
        "(" * 399,
        "sqrt(" * 70,
        "9" * 400,
        "^".join("9" * 90),
        "x**" * 90 + "x",
        "1" + "+1" * 199,
        "-" * 399,
    ):
        assert agree(text, "7") in (False, None)


def test_it_runs_in_any_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(agree(r"\sqrt{2}/2", r"1/\sqrt{2}")))
    thread.start()
    thread.join()
    assert found == [True]


def test_it_is_held_out_from_training():
    """No trainer, no module that a trainer imports, and no module of the first verifier imports
    this verifier, and it shares no code with the first."""
    importing = {}
    for path in [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/**/*.py")]:
        text = path.read_text(encoding="utf-8")
        names = set(re.findall(r"^\s*(?:from|import) ([\w.]+)", text, re.M))
        for package, members in re.findall(r"^\s*from ([\w.]+) import \(?([^\n)]*)", text, re.M):
            names |= {f"{package}.{member.strip()}" for member in members.split(",")}
        importing[path.relative_to(ROOT).as_posix()] = names
    readers = [name for name, read in importing.items() if "data.answers.verifier" in read]
    assert [name for name in readers if not name.startswith("tests/")] == [
        "evaluation/diagnosis.py"
    ]
    trainers = [name for name in importing if name.startswith("train_")]
    assert len(trainers) == 6
    for name in [*trainers, "reward.py", "rollout.py", "evaluation/judge.py"]:
        assert not importing[name] & {"evaluation.diagnosis", "data.answers.verifier"}
    verifier = importing["data/answers/verifier.py"]
    assert not [name for name in verifier if name.startswith("data")]
