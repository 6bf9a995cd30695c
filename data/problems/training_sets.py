"""Makes training sets from public word problems.

A row of MAWPS or ASDiv is a template (templates.py). It gives a program of thought and a chain of
thought (section 3.1 of the paper), and any number of variants with other numbers and words. The
calculator marks in GSM8K's solutions give programs too.

    python -m data.problems.training_sets word-problems --data DIR --to DIR [--copies 20]
        [--solved 0.8] [--fold 0] [--lines] [--seed 0] [--formats pot]
    python -m data.problems.training_sets gsm8k --data DIR --to DIR [--valid 200] [--seed 0]
        [--formats cot,pot]
"""

import ast
import math
import operator
import random
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from data.io import (
    CommandParser,
    InputError,
    at_least,
    run_cli,
    write_jsonl,
)
from data.problems.problem import Problem
from data.problems.readers import gsm8k_rows, load, save, word_problem_rows
from data.problems.templates import Rewording, WordTemplate, number_text

# ---- GSM8K programs ------------------------------------------------------------------------------


def calculator_program(marked: str, answer: str) -> str | None:
    """A program of thought from the calculator marks of GSM8K, or None if it does not give the
    answer.

    Each <<expression=value>> becomes an assignment. An earlier value is replaced by the variable
    that has it. The last line prints the last variable.

    >>> print(calculator_program("He has <<3*4=12>>12, then <<12-2=10>>10.", "10"))
    a = 3 * 4
    b = a - 2
    print(b)
    """
    values: dict[str, Fraction] = {}  # variable -> exact value
    names: dict[Fraction, str] = {}  # value in the marks -> variable
    lines = []
    try:
        for expression, stated in re.findall(r"<<([^<>=]*)=([^<>=]*)>>", marked):
            code, value = _calculate(expression, names, values)
            stated = Fraction(re.sub(r"[$,%\s]", "", stated))
            if abs(value - stated) > abs(stated) / 100:
                return None
            name = chr(ord("a") + len(lines))
            if name > "z":
                return None
            lines.append(f"{name} = {code}")
            values[name] = value
            names[stated] = name
        if not lines or abs(value - Fraction(answer)) > abs(Fraction(answer)) / 10**6:
            return None
    except (ValueError, ZeroDivisionError, SyntaxError):
        return None
    return "\n".join([*lines, f"print({name})"])


def _calculate(
    expression: str, names: dict[Fraction, str], values: dict[str, Fraction]
) -> tuple[str, Fraction]:
    """(Python code, exact value) of the expression in a mark.

    Raises ValueError, SyntaxError or ZeroDivisionError.
    """
    expression = re.sub(r"[$,\s]", "", expression)
    expression = re.sub(r"(\d*\.?\d+)%", r"(\1/100)", expression)
    plain = re.fullmatch(r"(?:\d+\.?\d*|\.\d+|[-+*/()])+", expression)
    if not plain or re.search(r"\*\*|//", expression):
        raise ValueError(expression)

    def with_variable(match: re.Match) -> str:
        number = Fraction(match[0])
        return names.get(number, number_text(number))

    code = re.sub(r"\d+\.?\d*|\.\d+", with_variable, expression)
    tree = ast.parse(code, mode="eval").body
    operators = {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
    }

    def value(node) -> Fraction:
        match node:
            case ast.Constant():
                return Fraction(str(node.value))
            case ast.Name():
                return values[node.id]
            case ast.UnaryOp(op=ast.USub()):
                return -value(node.operand)
            case ast.UnaryOp(op=ast.UAdd()):
                return value(node.operand)
            case ast.BinOp():
                return operators[type(node.op)](value(node.left), value(node.right))
        raise ValueError(expression)

    return ast.unparse(tree), value(tree)


# ---- Training sets -------------------------------------------------------------------------------


def question_key(question: str) -> str:
    """The question without numbers, case, spaces and punctuation. The key is equal for questions
    that differ only in their numbers or placeholders.

    >>> question_key("Joan has 5 apples.") == question_key("joan has number0 apples .")
    True
    """
    masked = re.sub(r"number\d+|\d+(?:[.,/]\d+)*", "#", question.lower())
    return re.sub(r"[^\w#]|_", "", masked)


def _formats(text: str) -> list[str]:
    formats = text.split(",")
    if unknown := [name for name in formats if name not in ("cot", "pot")]:
        raise InputError(
            f"--formats {text}: unknown format {unknown[0]!r}; use cot, pot or cot,pot"
        )
    return formats


def _write(to: Path, files: dict[str, list]) -> None:
    """Write problems or rows under each name, and print the counts. Raises InputError for an empty
    file, which nothing could use."""
    for name, rows in files.items():
        if not rows:
            raise InputError(f"{to / name}: would be empty; the data has too few problems")
    for name, rows in files.items():
        save(to / name, rows) if isinstance(rows[0], Problem) else write_jsonl(to / name, rows)
        print(f"{to / name}: {len(rows)} rows")


def _sft_row(question: str, response: str, format: str) -> dict:
    return {"question": question, "response": response, "format": format, "lang": "en"}


def word_problems(
    data: Path,
    copies: int = 20,
    solved: float = 0.8,
    fold: int = 0,
    lines: bool = False,
    formats: str = "pot",
    seed: int = 0,
) -> dict[str, list]:
    """Training sets from MAWPS and ASDiv without a fold of MAWPS; test sets from that fold and
    SVAMP.

    A training question is dropped if the fold or SVAMP has it too, also with other numbers. 5 % of
    the training templates are held out for tuning, before anything is made from the others. A
    share `solved` of the others is for instruction tuning, with solutions. The rest is for GRPO,
    with answers only: where a small model has learned the solutions, nearly all of its samples are
    right, and a group of right samples teaches GRPO nothing.

    copies: variants of each question. lines: programs with an operation on each line. Returns file
    name -> problems or rows. Raises InputError for bad options and for files that cannot be read.
    """
    if not 0 < solved < 1:
        raise InputError(f"--solved {solved}: must be between 0 and 1, a share of the questions")
    formats = _formats(formats)
    test = {
        "test_mawps.jsonl": load(data / f"mawps_fold{fold}.csv"),
        "test_svamp.jsonl": load(data / "SVAMP.json"),
    }
    test_keys = {_key(problem) for problem in test["test_mawps.jsonl"] + test["test_svamp.jsonl"]}
    templates = _templates(data / "mawps_asdiv_train.csv", test_keys)

    # Divide the questions: held out, with solutions, with answers only
    keys = sorted(templates)
    random.Random(f"{seed}:valid").shuffle(keys)
    cut = math.ceil(len(keys) / 20)
    held_out = set(keys[:cut])
    unsolved = set(keys[cut + math.ceil(solved * (len(keys) - cut)) :])
    questions = []
    for key in keys[cut:]:
        questions += [template.question for _, template in templates[key]]
    rewording = Rewording(questions)

    reserved = test_keys | held_out  # other names may turn a question into one of these
    valid, rl, sft, text = [], [], [], []
    for key, group in templates.items():
        for name, template in group:
            if key in held_out:
                question, answer = template.text(), template.answer()
                solution = template.cot()
                valid.append(Problem(name, question, answer, solution, source="mawps_asdiv"))
                continue
            rng = random.Random(f"{seed}:{name}")
            variants = {template: None}  # a dict keeps the order
            for _ in range(copies):
                numbers = template.resample(rng)
                variant = replace(numbers, question=rewording(template.question, rng))
                if question_key(variant.text()) not in reserved:
                    variants[variant] = None
            for index, variant in enumerate(variants):
                question = variant.text()
                if key in unsolved:
                    id = f"{name}-{index}"
                    rl.append(Problem(id, question, variant.answer(), source="mawps_asdiv"))
                    text.append({"text": question})
                    continue
                responses = {"cot": variant.cot(), "pot": variant.program(lines)}
                for format in formats:
                    sft.append(_sft_row(question, responses[format], format))
                    text.append({"text": f"{question}\n{responses[format]}"})
    return {"sft.jsonl": sft, "rl.jsonl": rl, "valid.jsonl": valid, "text.jsonl": text, **test}


def _key(problem: Problem) -> str:
    return question_key(problem.question)


def _templates(path: Path, test_keys: set[str]) -> dict[str, list[tuple[str, WordTemplate]]]:
    """question key -> (name, template) of each row with that key.

    Rows that differ only in their numbers have the same key. Left out are rows whose question is
    in a test set, and rows whose equation does not give the answer.
    """
    templates: dict[str, list[tuple[str, WordTemplate]]] = {}
    rows = dropped = wrong = 0
    for count, row, template in word_problem_rows(path):
        rows += 1
        key = question_key(template.text())
        if key in test_keys:
            dropped += 1
        elif not template.agrees(row["Answer"]):
            wrong += 1
        else:
            templates.setdefault(key, []).append((f"{path.stem}-{count}", template))
    print(
        f"{path}: {rows} rows, {dropped} dropped (the question is in a test set), "
        f"{wrong} left out (equation and answer disagree), {len(templates)} different questions"
    )
    return templates


def gsm8k(data: Path, valid: int = 200, formats: str = "cot,pot", seed: int = 0) -> dict[str, list]:
    """Training sets from GSM8K's train.jsonl, and a test set from test.jsonl.

    valid: training problems that are held out for tuning.
    Returns file name -> problems or rows. Raises InputError.
    """
    formats = _formats(formats)
    test = load(data / "test.jsonl")
    test_keys = set(map(_key, test))
    train = list(gsm8k_rows(data / "train.jsonl"))
    kept = [(problem, marked) for problem, marked in train if _key(problem) not in test_keys]
    if not 0 < valid < len(kept):
        raise InputError(
            f"--valid {valid}: must be between 1 and {len(kept) - 1}, since there are {len(kept)} "
            "training problems"
        )
    random.Random(f"{seed}:valid").shuffle(kept)
    held_out = [problem for problem, _ in kept[:valid]]
    kept = kept[valid:]

    sft, text, programs = [], [], 0
    for problem, marked in kept:
        response = f"{problem.solution}\nThe answer is {problem.answer}."
        text.append({"text": f"{problem.question}\n{response}"})
        if "cot" in formats:
            sft.append(_sft_row(problem.question, response, "cot"))
        program = calculator_program(marked, problem.answer)
        programs += program is not None
        if program and "pot" in formats:
            sft.append(_sft_row(problem.question, program, "pot"))
    dropped = len(train) - len(held_out) - len(kept)
    print(
        f"{data / 'train.jsonl'}: {len(train)} rows, {dropped} dropped (the question is in the "
        f"test set), {len(held_out)} held out, programs for {programs} of {len(kept)}"
    )
    return {
        "sft.jsonl": sft,
        "rl.jsonl": [problem for problem, _ in kept],
        "valid.jsonl": held_out,
        "test.jsonl": test,
        "text.jsonl": text,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        prog="python -m data.problems.training_sets",
        description="Make training sets from word problems.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    text = "MAWPS, ASDiv and SVAMP: mawps_*.csv and SVAMP.json"
    words = commands.add_parser("word-problems", help=text)
    text = "variants of each question with other numbers and words (default: 20)"
    words.add_argument("--copies", type=at_least(0), default=20, metavar="N", help=text)
    text = "share of the questions with solutions, for sft.jsonl (default: 0.8)"
    words.add_argument("--solved", type=float, default=0.8, metavar="X", help=text)
    text = "the fold of MAWPS for the test, 0 to 4 (default: 0)"
    words.add_argument("--fold", type=int, choices=range(5), default=0, metavar="N", help=text)
    text = "programs with an operation on each line, for process supervision"
    words.add_argument("--lines", action="store_true", help=text)
    words.set_defaults(run=word_problems, formats="pot")

    school = commands.add_parser("gsm8k", help="GSM8K: train.jsonl and test.jsonl")
    text = "training problems that are held out for tuning (default: 200)"
    school.add_argument("--valid", type=at_least(1), default=200, metavar="N", help=text)
    school.set_defaults(run=gsm8k, formats="cot,pot")
    for command in (words, school):
        command.add_argument("--data", type=Path, required=True, metavar="DIR", help="input folder")
        command.add_argument("--to", type=Path, required=True, metavar="DIR", help="output folder")
        command.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
        command.add_argument("--formats", help="cot, pot or cot,pot")
    options = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v is not None}
    options.pop("command")
    make, to = options.pop("run"), options.pop("to")
    _write(to, make(**options))


if __name__ == "__main__":
    run_cli(main)
