r"""Code problems: the program that runs a completion and then its tests, and prints a secret only when all have passed.

The sandbox (sandbox.py) runs it. What a completion may do to pass without solving its task, and what stops that:
- end early (sys.exit, os._exit, a file of its own that ends): the secret is not printed;
- print what a passed test prints: the secret is new for each program, and output of the completion goes nowhere;
- define `check` itself, or replace exec, print, AssertionError or another builtin: the tests are compiled before the
  completion runs, run in a namespace of their own with builtins as they were, and define their own `check`;
- return an object that is equal to everything: a value of a class whose comparison or difference the completion
  defines may not be returned to the tests.
The completion runs in the same process as its tests, so one that searches the interpreter's frames for the secret, or
changes modules that tests import, can still cheat: this keeps out what a model stumbles on, not an attacker. No verdict
without running in a process apart could promise more.
"""

import re
import secrets
from typing import NamedTuple

from data.problems.problem import Problem

# The CPU time that a sandbox for tests allows. MBPP's own solution of problem 123 takes 4 to 5.
CPU_SECONDS = 15
# The body of a function has ended where one of these begins.
COMPLETION_STOPS = ("\ndef", "\nclass", "\nif __name__", "\nprint", "\n#")


class TestProgram(NamedTuple):
    """Passed if the sandbox's Result has status "ok" and `passed(stdout, secret)`."""

    __test__ = False  # pytest: not a class of tests

    code: str
    secret: str


def passed(stdout: str, secret: str) -> bool:
    return stdout.strip() == secret


def test_program(problem: Problem, completion: str) -> TestProgram:
    """The program that tests a completion: for HumanEval the rest of the function, or the whole of it in a ```python
    block; for MBPP a program, in a ```python block or bare. Raises ValueError for a problem that is not code."""
    if problem.kind != "code":
        raise ValueError(f"problem {problem.id} is of kind {problem.kind}, not code")
    secret = secrets.token_hex(16)
    task = problem.task
    tests = "\n".join([task.get("setup", ""), task["tests"]])
    if task["entry_point"]:
        tests += f"\ncheck({task['entry_point']})"
    # the secret stands in the tests' last line, not in a variable that the completion could read by its name
    return TestProgram(
        _DRIVER.format(
            solution=solution(problem, completion), tests=f"{tests}\n_report({secret!r})"
        ),
        secret,
    )


test_program.__test__ = False


def solution(problem: Problem, completion: str) -> str:
    """The program that a completion stands for, without tests."""
    prompt, entry_point = problem.task["prompt"], problem.task["entry_point"]
    blocks = re.findall(r"```(?:python|py)?[^\S\n]*\n(.*?)(?:```|\Z)", completion, re.DOTALL)
    defines = (
        rf"^(?:async\s+)?def\s+{re.escape(entry_point)}\b"
        if entry_point
        else r"^(?:def|class|from|import)\b"
    )
    whole = next((block for block in blocks if re.search(defines, block, re.MULTILINE)), None)
    if whole is None and re.match(defines, completion.lstrip()):
        whole = completion.lstrip()
    if not entry_point:
        return whole or (blocks[0] if blocks else completion)
    if (
        whole is not None
    ):  # the prompt brings imports and helpers; its unfinished function is defined anew
        return f"{prompt}\n{whole}"
    body = blocks[0] if blocks else completion
    body = body[
        : min((at for stop in COMPLETION_STOPS if (at := body.find(stop)) >= 0), default=len(body))
    ]
    return prompt.rstrip() + ("" if body.startswith("\n") else "\n") + body


_DRIVER = """\
def _main(solution, tests):
    import builtins, io, sys, types

    out, stdout, pristine = sys.stdout, io.TextIOBase(), dict(vars(builtins))
    stdout.write = len
    execute, functions = exec, types.FunctionType
    tests = compile(tests, "<tests>", "exec", dont_inherit=True)
    module = types.ModuleType("solution")
    sys.modules["solution"], sys.stdout = module, stdout

    compared = {{"__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__sub__", "__rsub__", "__contains__"}}

    def forged(value, depth=0):
        if any(kind.__module__ == "solution" and compared & set(vars(kind)) for kind in type(value).__mro__):
            return True
        if depth < 4 and isinstance(value, (list, tuple, set, frozenset, dict)):
            return any(forged(one, depth + 1) for one in (value.items() if isinstance(value, dict) else value))
        return False

    def guarded(function):
        def call(*args, **kwargs):
            value = function(*args, **kwargs)
            if forged(value):
                raise TypeError("the solution returned an object that compares in a way of its own")
            return value

        return call

    def report(secret):
        out.write(secret)
        out.flush()

    execute(compile(solution, "<solution>", "exec", dont_inherit=True), vars(module))
    names = vars(module).items()
    namespace = {{name: guarded(value) if isinstance(value, functions) else value for name, value in names}}
    namespace.update(__builtins__=pristine, _report=report)
    execute(tests, namespace)


_main({solution!r}, {tests!r})
"""
