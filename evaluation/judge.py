"""What a completion answers, and whether that is right.

`read_answers` turns completions into attempts (dicts with text and answer), `judge` adds the
verdicts. Answers go through data.answers; code is run against its tests; proofs are checked by
Isabelle.
"""

import functools
import re
from collections.abc import Callable, Sequence

from data import answers
from data.answers import paper_rules
from data.problems.problem import Problem
from data.sandbox.prover import Prover, prove
from data.sandbox.sandbox import Result, Sandbox
from data.sandbox.unit_tests import passed, test_program
from reward import printed, run_programs

# --------------------------------------------------------------------------------------------------
# Where the answer stands


def read_chains(problems: Sequence[Problem], attempts: list[dict]) -> None:
    """cot: add "answer", as the text states it."""
    for problem, attempt in zip(problems, attempts, strict=True):
        attempt |= stated_answer(problem, attempt["text"])


def read_programs(
    problems: Sequence[Problem],
    attempts: list[dict],
    program: Callable[[str], str | None],
    sandbox: Sandbox,
) -> None:
    """pot: add "answer", the last line that the program prints, and the program's status."""
    programs = [program(attempt["text"]) for attempt in attempts]
    results = run_programs(programs, sandbox)
    for problem, attempt, result in zip(problems, attempts, results, strict=True):
        attempt |= normalize(problem, printed(result))
        add_status(attempt, result)


def read_code(problems: Sequence[Problem], attempts: list[dict], sandbox: Sandbox) -> None:
    """code: add "answer", "passed" or "failed", and the status of the program with its tests.

    Equal solutions of a problem run once.
    """
    tests: dict = {}  # (problem, text) -> its program with tests
    keys = []
    for problem, attempt in zip(problems, attempts, strict=True):
        key = problem.id, attempt["text"]
        keys.append(key)
        if key not in tests:
            tests[key] = test_program(problem, attempt["text"])
    programs = [test.code for test in tests.values()]
    results = dict(zip(tests, sandbox.run_many(programs), strict=True))
    for key, attempt in zip(keys, attempts, strict=True):
        result = results[key]
        success = passed(result.stdout, tests[key].secret)
        if result.status != "ok":
            success = False
        attempt["answer"] = "passed" if success else "failed"
        add_status(attempt, result)


def read_proofs(
    problems: Sequence[Problem], attempts: list[dict], prover: Prover | None, seconds: float
) -> None:
    """proof: add "proof", the status of data.sandbox.isabelle.Check, and "error", why it is not
    proved.

    Without a prover the status is "no prover", or "refused" for a text that is no proof by its form
    alone.
    """
    by_problem: dict[str, list[dict]] = {}
    for problem, attempt in zip(problems, attempts, strict=True):
        by_problem.setdefault(problem.id, []).append(attempt)
    distinct = {problem.id: problem for problem in problems}
    for id, problem in distinct.items():
        texts = [attempt["text"] for attempt in by_problem[id]]
        checks = prove(problem, texts, prover, seconds)
        for attempt, check in zip(by_problem[id], checks, strict=True):
            attempt["proof"] = check.status
            if not prover:
                unchecked = {"error": "no prover", "failed": "refused"}
                attempt["proof"] = unchecked[check.status]
            if check.reason:
                attempt["error"] = check.reason


def add_status(attempt: dict, result: Result | None) -> None:
    """Add "program", the status of the run ("none" without a program), and "error" if it failed."""
    attempt["program"] = result.status if result else "none"
    if result and result.error:
        attempt["error"] = result.error


def stated_answer(problem: Problem, text: str) -> dict:
    """`normalize` of the answer that a text states."""
    if problem.kind == "text":
        stated = re.findall(r"(?i)\banswer is:?[^\S\n]*(.*)", text)
        if stated:
            last = stated[-1].strip().removesuffix(".")
            return normalize(problem, last.strip() or None)
    answer = answers.extract(text)
    if problem.kind == "choice" and answer is None:
        return {"answer": answers.choice(text, problem.choices)}  # a last "(B)"
    return normalize(problem, answer)


_LETTERS = re.compile(r"\W*([A-J])(?:(?:\W|and|和|与)*([A-J]))*\W*")  # A, ACD, "A, C and D"


def normalize(problem: Problem, said: str | None) -> dict:
    """{"answer"}: for a choice the letters. If the text is more than letters, also {"said": that
    text}.
    """
    if said is None or problem.kind != "choice":
        return {"answer": said}
    if _LETTERS.fullmatch(said):
        letters = set(re.findall("[A-J]", said))
        return {"answer": "".join(sorted(letters))}
    chosen = answers.choice(said, problem.choices)
    return {"answer": chosen, "said": said}


# --------------------------------------------------------------------------------------------------
# Is it right?


PROOFS = {
    "proved": (True, "equal"),
    "failed": (False, "value"),
    "timeout": (False, "value"),
}


def judge(problem: Problem, attempt: dict) -> None:
    """Add "right" and "reason" by the relaxed rules, "strict" and "strict_reason" by the strict
    ones.

    The reasons are those of data.answers.Verdict; code and proofs that fail have "value". Strictly,
    a choice is right only as letters alone. A proof that was not checked is None in both.
    """
    if problem.kind == "proof":
        right, reason = PROOFS.get(attempt["proof"], (None, "not_checked"))
        verdict = right, reason, right, reason
    else:
        letters_alone = "said" not in attempt
        answer = attempt["answer"]
        verdict = _verdict(problem.kind, problem.answer, answer, letters_alone)
    attempt["right"], attempt["reason"] = verdict[:2]
    attempt["strict"], attempt["strict_reason"] = verdict[2:]


@functools.lru_cache(65_536)
def _verdict(
    kind: str, gold: str, answer: str | None, letters_alone: bool
) -> tuple[bool, str, bool, str]:
    """(right, reason, strictly right, reason)."""
    if answer is None:
        return False, "no_answer", False, "no_answer"
    if kind == "answer":
        relaxed = answers.compare(gold, answer)
        strict = answers.compare(gold, answer, strict=True)
        return relaxed.equal, relaxed.reason, strict.equal, strict.reason
    if kind == "code":
        right = strict = answer == "passed"
    elif kind == "choice":
        right = answer == gold
        strict = right and letters_alone
    else:
        right = plain_text(gold) == plain_text(answer)
        strict = gold.strip() == answer.strip()
    reason = "equal" if right else "value"
    strict_reason = "equal" if strict else "format" if right else "value"
    return right, reason, strict, strict_reason


def right_by_paper(
    problem: Problem,
    text: str,
    benchmark: str,
    zero_shot: bool,
) -> bool:
    """Does the paper's evaluation (data/answers/paper_rules.py) count this chain of thought as
    right?

    Its rules for base models look for the wording of the authors' exemplars.
    """
    question = problem.question
    gold: str | list[str] = problem.answer
    if benchmark == "math":
        solution = problem.solution or ""
        gold = paper_rules.paper_extract(solution, benchmark, question)
    elif benchmark == "gaokao_mathcloze":
        blanks = [problem.answer]
        if problem.answer.startswith("$("):  # $(a, b)$: two blanks
            blanks = problem.answer[2:-2].split(", ")
        gold = [paper_rules.normalize(blank) for blank in blanks]
    predicted = paper_rules.paper_extract(text, benchmark, question, zero_shot)
    return paper_rules.paper_equal(gold, predicted, benchmark)


def same_answer(a: str, b: str, kind: str = "answer") -> bool:
    """True if two answers to a problem of this kind are equal."""
    if kind != "answer":
        return plain_text(a) == plain_text(b)
    short = max(len(a), len(b)) < 100
    if short and a.isdecimal() and b.isdecimal():  # most pairs of a vote
        return int(a) == int(b)
    return answers.compare(a, b).equal


def plain_text(text: str) -> str:
    """A short text without case, brackets around the whole, quotes, full stop and doubled spaces."""
    text = text.strip().strip(".\"'`*").strip()
    text = re.sub(r"\s+", " ", text).casefold()
    if re.fullmatch(r"\([^()]*\)", text):
        return text[1:-1]
    return text
