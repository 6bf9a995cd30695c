import ast
import warnings

import pytest

from data.problems import benchmarks
from data.problems.problem import Problem
from data.sandbox.sandbox import Sandbox
from data.sandbox.unit_tests import passed, solution, test_program


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=2, cpu_seconds=15) as sandbox:
        yield sandbox


@pytest.fixture
def passes(sandbox):
    def run(problem, completion):
        program = test_program(problem, completion)
        result = sandbox.run(program.code)
        return result.status == "ok" and passed(result.stdout, program.secret)

    return run


PROMPT = '''from typing import List

def helper(x):
    return x + 1

def largest(numbers: List[int]) -> int:
    """The largest number, or 0.
    >>> largest([1, 3])
    3
    """
'''
TESTS = """
METADATA = {}

def check(candidate):
    assert candidate([1, 3, 2]) == 3
    assert candidate([]) == 0
    assert abs(candidate([-4.0, -2.5]) + 2.5) < 1e-6
    assert helper(1) == 2
"""
FUNCTION = Problem(
    "HumanEval/x",
    PROMPT.strip(),
    "",
    source="humaneval",
    kind="code",
    task={"prompt": PROMPT, "tests": TESTS, "entry_point": "largest"},
)
BODY = "    return max(numbers, default=0)\n"
SCRIPT = Problem(
    "mbpp-x",
    "Write a function to add.",
    "",
    source="mbpp",
    kind="code",
    task={
        "prompt": "Write a function to add.",
        "tests": "assert add(1, 2) == 3\nassert add(0, 0) == 0",
        "entry_point": "",
    },
)


@pytest.mark.parametrize(
    "completion",
    [
        BODY,
        "\n" + BODY,
        BODY + "\n\ndef other(x):\n    raise ValueError(\n",  # the text after the body is cut off
        BODY + "\nprint(largest([1]))\n",
        BODY + "\n# Tests\nassert False\n",
        BODY + "\nif __name__ == '__main__':\n  1/0\n",
        "    if not numbers:\n        return 0\n\n    best = max(numbers)\n    # that is all\n    return best",
        "Here it is:\n```python\ndef largest(numbers):\n    return max(numbers, default=0)\n```\nDone.",
        "```python\nimport math\n\n\ndef largest(numbers: List[int]) -> int:\n"
        + BODY,  # cut off after the code
        "First an example:\n```python\nlargest([1])\n```\n```python\ndef largest(numbers):\n"
        + BODY
        + "```",
        "```\n" + BODY + "```",
        "def largest(numbers):\n" + BODY,
        "    print('thinking' * 10_000)\n" + BODY,
    ],
)
def test_right_completions_pass(passes, completion):
    assert passes(FUNCTION, completion)


@pytest.mark.parametrize(
    "completion",
    [
        "    pass\n",
        "",
        "    return max(numbers)\n",
        "    return 3\n",
        "```python\nprint(3)\n```",
        "    return (\n",
        "I do not know.",
        "    import sys\n    sys.exit(0)\n",
        "    import os\n    os._exit(0)\n",
        "```python\ndef largest(numbers): return 3\nraise SystemExit\n```",
        "```python\ndef largest(numbers): return 3\nimport os\nos._exit(0)\n```",
        "```python\ndef largest(numbers): return 3\ndef check(candidate): pass\n```",
        "```python\ndef largest(numbers): return 3\nimport builtins\nbuiltins.exec = lambda *a: None\n"
        "builtins.compile = lambda *a, **k: None\n```",
        "```python\ndef largest(numbers): return max([0, *numbers])\nimport builtins\nbuiltins.abs = lambda x: 0\n"
        "builtins.AssertionError = str\n```",
        "```python\ndef largest(numbers): return 3\nimport builtins\n"
        "builtins.exec = lambda code, names: [names['_report'](c) for c in code.co_consts if len(str(c)) == 32]\n```",
        "```python\nclass Any:\n    def __eq__(self, other): return True\n    def __add__(self, other): return 0\n"
        "def largest(numbers): return Any()\n```",
        "```python\nclass Any(list):\n    def __eq__(self, other): return True\n"
        "class More(Any): pass\ndef largest(numbers): return More()\n```",
        "```python\nimport sys\ndef largest(numbers): return 3\nsys.stdout.write('passed')\nprint('0' * 32)\n```",
        "```python\ndef largest(numbers): return 3\nfor name, value in list(globals().items()):\n"
        "    if isinstance(value, str): print(value)\nprint(open(__file__).read())\n```",
        "```python\nimport atexit, sys\ndef largest(numbers): sys.exit(0)\natexit.register(print, 'ok')\n```",
        "```python\nimport threading, os\nthreading.Thread(target=os._exit, args=(0,)).start()\n"
        "def largest(numbers):\n    while True: pass\n```",
    ],
)
def test_wrong_and_cheating_completions_do_not_pass(passes, completion):
    assert not passes(FUNCTION, completion)


@pytest.mark.parametrize(
    "completion, right",
    [
        ("def add(a, b):\n    return a + b\n", True),
        ("```python\ndef add(a, b):\n    return a + b\n```", True),
        ("Sure.\n```python\nadd = lambda a, b: a + b\n```", True),
        ("```python\nadd(1, 2)\n```\n```python\ndef add(a, b):\n    return a + b\n```", True),
        ("def add(a, b):\n    return a * b\n", False),
        ("", False),
        ("def add(a, b):\n    return a + b\nexit()", False),
        ("class S(int):\n    __eq__ = lambda a, b: True\ndef add(a, b):\n    return S()", False),
        (
            "def add(a, b):\n    return a + b\nif __name__ == '__main__':\n    print(add(int(input()), 2))",
            True,
        ),
    ],
)
def test_programs_with_assertions(passes, completion, right):
    assert passes(SCRIPT, completion) == right


def test_setup_comes_before_the_tests(passes):
    task = SCRIPT.task | {"tests": "assert add(one, 2) == 3", "setup": "one = 1"}
    problem = Problem("mbpp-y", "Q", "", kind="code", task=task)
    assert passes(problem, "def add(a, b): return a + b") and not passes(
        problem, "def add(a, b): return 0"
    )


def test_a_class_without_comparisons_may_be_returned(passes):
    """A named tuple that the completion defines equals a tuple, by the rule of tuples."""
    code = "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef add(a, b): return P(a, b)"
    problem = Problem(
        "mbpp-z", "Q", "", kind="code", task=SCRIPT.task | {"tests": "assert add(1, 2) == (1, 2)"}
    )
    assert passes(problem, code)


def test_the_secret_is_new_each_time_and_the_tests_see_the_last_definition():
    first, second = test_program(FUNCTION, BODY), test_program(FUNCTION, BODY)
    assert first.secret != second.secret and len(first.secret) == 32 and first.secret in first.code
    assert solution(FUNCTION, BODY) == PROMPT.rstrip() + "\n" + BODY
    assert solution(SCRIPT, "x = 1") == "x = 1"
    assert not passed("", first.secret) and not passed(f"0{first.secret}", first.secret)
    with pytest.raises(ValueError, match="not code"):
        test_program(Problem("1", "Q", "2"), "")


# ---- Real benchmarks -----------------------------------------------------------------------------


def verdicts(sandbox, problems, completions):
    programs = [
        test_program(p, completion) for p, completion in zip(problems, completions, strict=True)
    ]
    results = sandbox.run_many([program.code for program in programs])
    return {
        p.id: result.status == "ok" and passed(result.stdout, program.secret)
        for p, program, result in zip(problems, programs, results, strict=True)
    }


def test_humaneval(real, sandbox):
    problems = benchmarks.load("humaneval", real("humaneval/HumanEval.jsonl.gz").parents[1])
    assert len(problems) == 164
    assert set(verdicts(sandbox, problems, [p.solution for p in problems]).values()) == {True}
    assert set(verdicts(sandbox, problems, ["    pass"] * 164).values()) == {False}


def test_mbpp(real, sandbox):
    problems = benchmarks.load("mbpp", real("mbpp/mbpp.jsonl").parents[1])
    assert len(problems) == 500
    assert set(verdicts(sandbox, problems, [p.solution for p in problems]).values()) == {True}
    some = problems[::5]  # the others fail too, but it takes a minute
    assert set(verdicts(sandbox, some, [without_bodies(p.solution) for p in some]).values()) == {
        False
    }


def without_bodies(code):
    """The program with `pass` as the body of every function."""
    with warnings.catch_warnings(action="ignore"):  # "\\w" in some of the programs
        tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.Pass()]
    return ast.unparse(tree)


def test_a_whole_function_is_taken_as_well(real, sandbox):
    problems = benchmarks.load("humaneval", real("humaneval/HumanEval.jsonl.gz").parents[1])[::8]
    programs = [
        test_program(p, f"Sure:\n```python\n{p.task['prompt']}{p.solution}```\nThis works.")
        for p in problems
    ]
    for program, result in zip(
        programs, sandbox.run_many([program.code for program in programs]), strict=True
    ):
        assert passed(result.stdout, program.secret)
