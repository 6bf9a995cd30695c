"""What a problem is: its question, its answer, and how a response to it is judged."""

import re
from dataclasses import asdict, dataclass, field

KINDS = ("answer", "choice", "text", "code", "proof")
LETTERS = "ABCDEFGHIJ"  # of the options of a choice


@dataclass(frozen=True)
class Problem:
    """A problem. `kind` says how a response is judged:

    - "answer": the two answers have the same value
    - "choice": the response names the letter of the right option
    - "text": the response gives the same short text
    - "code": the program passes the tests
    - "proof": a prover accepts the proof
    """

    id: str
    question: str  # of a choice without its options
    answer: str  # "" for code and proof
    solution: str | None = None
    source: str = ""
    lang: str = "en"
    kind: str = "answer"
    choices: tuple[str, ...] = ()  # the options of a choice without their letters, A first
    # For code: prompt, tests, and entry_point ("" if the tests name the function).
    # For proof: header, formal_statement, informal_statement, informal_proof.
    task: dict = field(default_factory=dict, compare=False)


def statement(problem: Problem) -> str:
    """The question as the model reads it. A choice comes with its options, a programming task with
    its tests, a theorem with its informal and its formal statement."""
    task = problem.task
    if problem.kind == "choice":
        options = zip(LETTERS, problem.choices, strict=False)
        lines = [f"({letter}) {choice}" for letter, choice in options]
        return "\n".join([problem.question, *lines])
    if problem.kind == "code" and task["entry_point"]:
        return f"Complete this Python function.\n```python\n{task['prompt'].rstrip()}\n```"
    if problem.kind == "code":
        return f"{problem.question}\nThe program must pass these tests:\n{task['tests']}"
    if problem.kind == "proof":  # the layout of Draft, Sketch, and Prove (Jiang et al., 2022)
        return (
            f"(*### Problem\n\n{task['informal_statement'].strip()}\n\n### Solution\n\n"
            f"{task['informal_proof'].strip()} *)\n\nFormal:\n{task['formal_statement'].strip()}"
        )
    return problem.question


def as_row(problem: Problem) -> dict:
    """The problem as an object for JSONL, without empty fields. `Problem(**row)` makes the problem
    again, except that JSON turns the tuple of choices into a list.

    >>> as_row(Problem("1", "What is 5 - 3?", "2"))
    {'id': '1', 'question': 'What is 5 - 3?', 'answer': '2', 'lang': 'en'}
    """
    row = {name: value for name, value in asdict(problem).items() if value}
    if problem.kind == "answer":
        del row["kind"]
    return row


def is_chinese(text: str) -> bool:
    """Whether the text has a Chinese character."""
    return re.search(r"[\u3400-\u9fff]", text) is not None
