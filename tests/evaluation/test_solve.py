"""evaluation/solve.py: prompts that fit, programs between the lines, where an answer stands and
whether it is right.
"""

import re
from types import SimpleNamespace

import pytest
from evaluating import evaluate
from test_generate import bigram_model

from data.problems.benchmarks import BENCHMARKS
from data.problems.problem import Problem
from data.prompts import prompt
from data.sandbox.sandbox import Result, Sandbox
from data.train_tokenizer import train
from evaluation.few_shot import FewShot
from evaluation.judge import judge, plain_text, right_by_paper, stated_answer
from evaluation.solve import Solver, Tool, blocks, output_text, session, zero_shot
from generate import Sampling


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=2, cpu_seconds=1) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def tokenizer():
    return train(
        [
            "Question: What is 2 + 3?\nAnswer: The answer is 5.\n```python\nprint(1)\n```\n```output\n"
        ]
        * 3,
        300,
        workers=1,
    )


# --------------------------------------------------------------------------------------------------
# Prompts


def fit(tokenizer, few_shot, problems, context):
    """The prompts in a model's context, with room for 64 tokens."""
    model = SimpleNamespace(config=SimpleNamespace(context=context))
    return Solver(model, tokenizer).fit(few_shot, problems, 64)


def exhaustive(tokenizer, way, item, shots, room, context):
    """`fit` by trying every number of exemplars."""
    for k in range(shots, -1, -1):
        ids = tokenizer.encode(way.prompt(item, k))
        if k and len(ids) + room <= context or not k:
            return (ids if len(ids) < context else []), k


@pytest.mark.parametrize("name", ["gsm8k", "cmath", "mmlu"])
def test_as_many_exemplars_as_fit(tokenizer, name):
    way = FewShot.ours(BENCHMARKS[name], "cot")
    choices = ("1", "2", "3", "4") if name == "mmlu" else ()
    items = [
        Problem(
            str(n), "How many? " + "more " * n, "1", kind=BENCHMARKS[name].kind, choices=choices
        )
        for n in (1, 5, 80, 400)
    ]
    found = set()
    for context in (300, 700, 1100, 4000):
        fitted = fit(tokenizer, way, items, context)
        assert fitted == [
            exhaustive(tokenizer, way, item, way.shots, 64, context) for item in items
        ]
        found |= {(bool(ids), k) for ids, k in fitted}
    assert {(True, 0), (True, way.shots), (False, 0)} < found and len(found) > 4


def test_zero_shot_is_the_prompt_of_training(tokenizer):
    item = Problem("p", "What is 2 + 3?", "5")
    (found,) = fit(tokenizer, zero_shot("pot"), [item], 256)
    assert found == (tokenizer.encode(prompt(item.question, "pot")), 0)


# --------------------------------------------------------------------------------------------------
# Programs between the lines


def test_blocks():
    assert blocks("a\n```python\nx = 1\n```\nb\n```python\n\nprint(x)") == "x = 1\nprint(x)"
    assert blocks("```\nx = 1\n```") == blocks("```output\n3\n```") == ""


def test_a_block_sees_what_earlier_blocks_left(sandbox):
    earlier = [
        "import math\nx = 5\nprint('early')",
        "def f(y):\n    return x + y\nz = 1\n1 / 0\nz = 2",
        "exit()",
    ]
    result = sandbox.run(session(earlier, "print(f(2), z, math.floor(2.5))"))
    assert result == Result(
        "ok", "7 1 2\n", ""
    )  # what stands before an error has been done, and nothing else printed
    assert (
        sandbox.run(session(["x = 1"], "print(x)\nprint(y)")).error
        == "NameError: name 'y' is not defined"
    )
    assert sandbox.run(session(["x = 1"], "print(")).error.startswith("SyntaxError")
    assert session([], "print(1)") == "print(1)"


def test_what_the_model_is_shown():
    assert output_text(Result("ok", "3\n4\n", "")) == "3\n4"
    assert output_text(Result("error", "3\n", "ValueError: no")) == "3\nValueError: no"
    assert (
        output_text(Result("timeout", "", "more than 5 CPU seconds")) == "more than 5 CPU seconds"
    )
    assert output_text(Result("ok", "x" * 5000 + "end", "")) == "x" * 997 + "end"
    assert "```" not in output_text(Result("ok", "```python\n1\n```", ""))


def hook(tool, tokenizer, *texts):
    answers = tool([(n, 0, tokenizer.encode(text)) for n, text in enumerate(texts)])
    return [None if ids is None else tokenizer.decode(ids) for ids in answers]


def test_the_hook_runs_what_waits(tokenizer, sandbox):
    tool = Tool(tokenizer, sandbox, rounds=2)
    first = "One.\n```python\na = 4\nprint(a)\n```\n```output"
    other = "Two.\n```python\nprint(1 / 0)\n```\n```output"
    assert hook(tool, tokenizer, first, other, "No.\n```output", "Three.\nQuestion:") == [
        "\n4\n```\n",
        "\nZeroDivisionError: division by zero\n```\n",
        None,
        None,
    ]
    text = f"{first}\n4\n```\nAnd\n```python\nprint(a + 1)\n```\n```output\n"
    assert hook(tool, tokenizer, text) == ["5\n```\n"]  # the newline is there already
    assert hook(tool, tokenizer, f"{text}5\n```\n```python\nprint(a + 2)\n```\n```output") == [
        None
    ]  # a third
    assert tool.exhausted == {(0, 0)} and [result.status for _, result in tool.runs[1, 0]] == [
        "error"
    ]
    assert hook(tool, tokenizer, f"{first}\n4\n```\nNow what?\n```output") == [
        None
    ]  # nothing new to run


def test_a_block_that_had_to_be_ended_is_not_run_again(tokenizer, sandbox):
    tool = Tool(tokenizer, sandbox, rounds=4)
    first = "```python\nwhile True: pass\n```\n```output"
    ((said,),) = [hook(tool, tokenizer, first)]
    assert "CPU seconds" in said
    assert hook(tool, tokenizer, f"{first}{said}```python\nprint(2)\n```\n```output") == [
        "\n2\n```\n"
    ]


class Script:
    """A tokenizer of a few long pieces beside single characters."""

    add_bos, bos_id = False, None

    def __init__(self, *pieces):
        self.pieces = [*pieces, *(chr(i) for i in range(128))]
        self.vocab_size, self.eos_id = len(self.pieces) + 1, len(self.pieces)

    def encode(self, text):
        return [len(self.pieces) - 128 + ord(c) for c in text]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode_bytes(self, ids, special=False):
        return "".join(self.pieces[i] for i in ids if i != self.eos_id).encode()

    def decode(self, ids):
        return self.decode_bytes(ids).decode()


COMPUTE, ASK = "\nI compute.\n```python\nx = 6 * 7\nprint(x)\n```\n", "```output"
AGAIN, BOXED = "Once more.\n```python\nprint(x + 1)\n```\n", r"It is $\boxed{42}$."


def writes(pieces, after_output):
    """A model that writes the pieces, then after each output's last character the piece (None: EOS)
    given.
    """
    tokenizer = Script(*pieces)
    colon, newline = tokenizer.encode(":\n")
    chain = {colon: {0: 1.0}} | {i: {i + 1: 1.0} for i in range(len(pieces) - 1)}
    chain[len(pieces) - 1] = {tokenizer.eos_id: 1.0}
    chain[newline] = {tokenizer.eos_id if after_output is None else after_output: 1.0}
    model = bigram_model(chain, tokenizer.vocab_size, context=512)
    model.config.eos_id = tokenizer.eos_id
    return model, tokenizer


@pytest.mark.parametrize(
    ("pieces", "after", "answer", "finish", "rounds", "tokens"),
    [
        ((COMPUTE, ASK, BOXED), 2, "42", "eos", 1, 4),  # in words
        ((COMPUTE, ASK), None, "42", "eos", 1, 3),  # no words: the last output
        (
            (COMPUTE, ASK, AGAIN, ASK),
            2,
            "43",
            "rounds",
            3,
            8,
        ),  # x is known in later blocks; for ever, but for the limit
        ((COMPUTE,), None, "42", "eos", 1, 2),  # the output was not asked for
        ((BOXED,), None, "42", "eos", 0, 2),  # no program
        ((COMPUTE, "I stop."), None, "42", "eos", 1, 3),
    ],
)
def test_tool_integrated_reasoning(sandbox, pieces, after, answer, finish, rounds, tokens):
    model, tokenizer = writes(pieces, after)
    item = Problem("p", "What is 6 x 7?", "42")
    metrics, (record,) = evaluate(
        model,
        tokenizer,
        [item],
        "tool",
        Sampling(temperature=0, max_new_tokens=200),
        sandbox=sandbox,
        rounds=3,
    )
    (attempt,) = record["attempts"]
    assert (attempt["answer"], attempt["finish"], attempt["rounds"]) == (answer, finish, rounds)
    assert attempt["tokens"] == tokens  # without the output's, of which each character is one
    assert attempt["right"] == (answer == "42") == (metrics["accuracy"] == 1)
    assert attempt["program"] == ("ok" if rounds else "none") and metrics["programs"] == {
        attempt["program"]: 1
    }
    outputs = re.findall(r"```output\n(.*)\n```\n", attempt["text"])
    assert outputs == (
        ["42", "43", "43"] if finish == "rounds" else ["42"] if ASK in pieces else []
    )


def test_an_output_that_fills_the_context_ends_the_sample(sandbox):
    model, tokenizer = writes(("\n```python\nprint('7' * 900)\n```\n", ASK, BOXED), 2)
    _, (record,) = evaluate(
        model,
        tokenizer,
        [Problem("p", "?", "42")],
        "tool",
        Sampling(temperature=0, max_new_tokens=300),
        sandbox=sandbox,
    )
    (attempt,) = record["attempts"]
    assert (attempt["finish"], attempt["tokens"]) == ("length", 2) and attempt[
        "answer"
    ] == "7" * 900


# --------------------------------------------------------------------------------------------------
# Answers of every kind

CHOICE = Problem("c", "Which?", "B", kind="choice", choices=("10", "12", "1/2", "none of these"))


@pytest.mark.parametrize(
    ("text", "answer", "right", "strict"),
    [
        ("The answer is B.", "B", True, True),
        ("The answer is (B).", "B", True, True),
        (r"So \boxed{12}.", "B", True, False),  # its value
        (r"So \boxed{\text{(B) } 12}.", "B", True, False),
        ("The answer is 0.5.", "C", False, False),
        ("The answer is 11.", None, False, False),  # no option
        ("The answer is A and B.", "AB", False, False),
        ("I do not know", None, False, False),
    ],
)
def test_choices(text, answer, right, strict):
    one = stated_answer(CHOICE, text)
    judge(CHOICE, one)
    assert (one["answer"], one["right"], one["strict"]) == (answer, right, strict)
    assert one["reason"] == ("equal" if right else "no_answer" if answer is None else "value")
    assert one["strict_reason"] == ("format" if right and not strict else one["reason"])


def test_several_options_may_be_right():
    item = Problem("c", "Which?", "ACD", kind="choice", choices=("1", "2", "3", "4"))
    for text, right in (
        (r"\boxed{ACD}", True),
        ("The answer is A, C and D.", True),
        (r"\boxed{AC}", False),
    ):
        one = stated_answer(item, text)
        judge(item, one)
        assert one["right"] == one["strict"] == right


@pytest.mark.parametrize(
    ("gold", "text", "right", "strict"),
    [
        ("valid", "... So the answer is valid.", True, True),
        ("(C)", "So the answer is (C).", True, True),
        ("(C)", "So the answer is C.", True, False),
        ("True", "So the answer is true", True, False),
        ("] ) }", "So the answer is ] ) }.", True, True),
        ("] ) }", "So the answer is ] } ).", False, False),
        ("apple bear cat", "the answer is 1.\nSo the answer is apple bear cat.", True, True),
        ("-12", "So the answer is 12.", False, False),
    ],
)
def test_short_texts(gold, text, right, strict):
    item = Problem("t", "?", gold, kind="text")
    one = stated_answer(item, text)
    judge(item, one)
    assert (one["right"], one["strict"]) == (right, strict)


def test_rules_of_the_paper():
    """Its rules for base models take GSM8K's last number, and of a choice only "the final answer
    is".
    """
    item = Problem("p", "?", "1200", solution=r"It is $\boxed{\frac{1}{2}}$.")
    assert right_by_paper(item, "In all 1200", "gsm8k", False) and stated_answer(
        item, "In all 1200"
    ) == {"answer": None}
    assert not right_by_paper(item, "1200 and 1 in all", "gsm8k", False)
    assert right_by_paper(item, "The final answer is $0.5$. I hope it is correct.", "math", False)
    assert right_by_paper(CHOICE, "The final answer is (B).", "mmlu_stem", False)
    assert not right_by_paper(CHOICE, "The answer is (B).", "mmlu_stem", False)
    cloze = Problem("z", "两个空", "$(5, 10)$", lang="zh")
    assert right_by_paper(cloze, "所以答案是$5;10$", "gaokao_mathcloze", False)
    assert not right_by_paper(cloze, "所以答案是$10;5$", "gaokao_mathcloze", False)


def test_plain_text():
    assert plain_text(' "Yes." ') == plain_text("(yes)") == "yes"
    assert plain_text("(a) or (b)") == "(a) or (b)"  # not brackets around the whole


def test_code_is_judged_by_its_tests(sandbox):
    """A model that returns its argument: right for one task, wrong for the other; the third is
    never asked.
    """
    pieces = ("\n    return x",)
    tokenizer = Script(*pieces)
    model = bigram_model(
        {tokenizer.encode(":")[0]: {0: 1.0}, 0: {tokenizer.eos_id: 1.0}}, tokenizer.vocab_size, 200
    )
    model.config.eos_id = tokenizer.eos_id

    def task(name, value, text=""):
        code = f"def f(x):{text}"
        tests = f"def check(f):\n    assert f(3) == {value}\n"
        return Problem(
            name, code, "", kind="code", task={"prompt": code, "tests": tests, "entry_point": "f"}
        )

    items = [
        task("same", 3),
        task("double", 6),
        task("long", 3, "  # " + "x" * 300 + "\n    pass\n    if x:"),
    ]
    metrics, records = evaluate(
        model, tokenizer, items, "code", Sampling(temperature=0, max_new_tokens=9), sandbox=sandbox
    )
    found = [record["attempts"][0] for record in records]
    assert [(one["answer"], one["right"], one["finish"]) for one in found] == [
        ("passed", True, "eos"),
        ("failed", False, "eos"),
        (None, False, "prompt"),
    ]
    assert found[1]["error"] == "AssertionError" and metrics["programs"] == {"ok": 1, "error": 1}
    assert metrics["no_room"] == pytest.approx(1 / 3) and metrics["accuracy"] == pytest.approx(
        1 / 3
    )


STATEMENT = {
    "header": "theory t imports Main begin",
    "formal_statement": 'theorem t: "1 + 1 = (2::nat)"',
    "informal_statement": "Show it.",
    "informal_proof": "Clear.",
}


class Accepts:
    """A prover that accepts every theory (its protocol's tests are tests/data/test_prover.py's)."""

    version = "none"

    def check(self, theory_source, name, timeout):
        from data.sandbox.isabelle import Check

        return Check("proved")


@pytest.mark.parametrize(
    ("sketch", "prover", "accuracy", "status"),
    [
        ("by simp", Accepts(), 1.0, "proved"),
        ("sorry", Accepts(), 0.0, "failed"),
        ("by simp", None, None, "no prover"),
        ("sorry", None, None, "refused"),
    ],
)
def test_proofs_have_no_accuracy_without_a_prover(sketch, prover, accuracy, status):
    tokenizer = Script(f"\n{sketch}")
    model = bigram_model(
        {tokenizer.encode('"')[0]: {0: 1.0}, 0: {tokenizer.eos_id: 1.0}}, tokenizer.vocab_size, 400
    )
    model.config.eos_id = tokenizer.eos_id
    item = Problem("t", "Show it.", "", kind="proof", task=STATEMENT)
    metrics, (record,) = evaluate(
        model, tokenizer, [item], "proof", Sampling(temperature=0, max_new_tokens=9), prover=prover
    )
    assert metrics["accuracy"] == metrics["strict"] == accuracy and metrics["proofs"] == {status: 1}
    assert (
        record["attempts"][0]["text"].strip() == sketch and record["attempts"][0]["proof"] == status
    )
