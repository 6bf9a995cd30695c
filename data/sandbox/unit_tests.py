r"""Tests of programming problems: a program that runs a completion and then the tests, and prints
a secret if all tests have passed. The sandbox (sandbox.py) runs it.

A completion may try to pass without solving the task. This stops it:

- It ends early (sys.exit, os._exit): then the secret is not printed.
- It prints what a passed test prints: the secret is new for each program, and the output of the
  completion is dropped.
- It defines `check`, or replaces exec, print, AssertionError or another builtin: the tests are
  compiled before the completion runs. They run in another namespace with the original builtins,
  and define `check` again.
- It returns an object that equals everything: the tests receive no value of a class in which the
  completion defines comparison or difference.

The completion and the tests run in the same process. A completion that searches the frames of the
interpreter for the secret, or changes modules that the tests import, can still cheat. This stops
the tricks that a model finds by chance, not an attacker. Only a separate process could promise
more.
"""

import re
import secrets
from typing import NamedTuple

from data.problems.problem import Problem

# The body of a function has ended where one of these begins.
COMPLETION_STOPS = ("\ndef", "\nclass", "\nif __name__", "\nprint", "\n#")


class TestProgram(NamedTuple):
    """A program with a secret. The tests have passed if the sandbox's Result has status "ok" and
    `passed(stdout, secret)` is true."""

    __test__ = False  # for pytest: this is not a class of tests

    code: str
    secret: str


def passed(stdout: str, secret: str) -> bool:
    """Whether the program has printed the secret, and nothing else."""
    return stdout.strip() == secret


def test_program(problem: Problem, completion: str) -> TestProgram:
    """The program that tests a completion.

    A completion of HumanEval is the rest of the function, or the whole function in a ```python
    block. A completion of MBPP is a program, with or without a ```python block. Raises ValueError
    for a problem that is not code.
    """
    if problem.kind != "code":
        raise ValueError(f"problem {problem.id} is of kind {problem.kind}, not code")
    secret = secrets.token_hex(16)
    task = problem.task
    tests = "\n".join([task.get("setup", ""), task["tests"]])
    if task["entry_point"]:
        tests += f"\ncheck({task['entry_point']})"
    # The secret is in the last line of the tests, not in a variable that the completion could read.
    tests += f"\n_report({secret!r})"
    return TestProgram(_DRIVER.format(solution=solution(problem, completion), tests=tests), secret)


test_program.__test__ = False


def solution(problem: Problem, completion: str) -> str:
    """The program of a completion, without tests."""
    prompt, entry_point = problem.task["prompt"], problem.task["entry_point"]
    blocks = re.findall(r"```(?:python|py)?[^\S\n]*\n(.*?)(?:```|\Z)", completion, re.DOTALL)
    defines = r"^(?:def|class|from|import)\b"
    if entry_point:
        defines = rf"^(?:async\s+)?def\s+{re.escape(entry_point)}\b"
    whole = next((block for block in blocks if re.search(defines, block, re.MULTILINE)), None)
    if whole is None and re.match(defines, completion.lstrip()):
        whole = completion.lstrip()
    if not entry_point:
        return whole or (blocks[0] if blocks else completion)
    if whole is not None:  # the prompt has imports and helpers; the function is defined again
        return f"{prompt}\n{whole}"
    body = blocks[0] if blocks else completion
    ends = [body.find(stop) for stop in COMPLETION_STOPS if stop in body]
    body = body[: min(ends, default=len(body))]
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

    compared = {{"__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"}}
    compared |= {{"__sub__", "__rsub__", "__contains__"}}

    def forged(value, depth=0):
        for kind in type(value).__mro__:
            if kind.__module__ == "solution" and compared & set(vars(kind)):
                return True
        if depth < 4 and isinstance(value, (list, tuple, set, frozenset, dict)):
            items = value.items() if isinstance(value, dict) else value
            return any(forged(item, depth + 1) for item in items)
        return False

    def guarded(function):
        def call(*args, **kwargs):
            value = function(*args, **kwargs)
            if forged(value):
                raise TypeError("the solution returned an object that defines its comparison")
            return value

        return call

    def report(secret):
        out.write(secret)
        out.flush()

    execute(compile(solution, "<solution>", "exec", dont_inherit=True), vars(module))
    namespace = dict(vars(module))
    for name, value in namespace.items():
        if isinstance(value, functions):
            namespace[name] = guarded(value)
    namespace.update(__builtins__=pristine, _report=report)
    execute(tests, namespace)


_main({solution!r}, {tests!r})
"""
