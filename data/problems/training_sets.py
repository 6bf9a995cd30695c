"""Training sets made from public word problems; programs from GSM8K's calculator marks. `Problem`, `load`, `save`.

Reading files is data/problems/readers.py's. A MAWPS or ASDiv row is a template (data/problems/templates.py) that gives a program of
thought (section 3.1 of the paper), a chain of thought, and any number of variants with other numbers and words.

    python -m data.problems.training_sets word-problems --data DIR --to DIR [--seed 0] [--copies 20] [--solved 0.8] [--fold 0]
    python -m data.problems.training_sets gsm8k --data DIR --to DIR [--seed 0] [--valid 200] [--formats cot,pot]
"""

import argparse
import ast
import math
import operator
import random
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from data.io import InputError, run_cli, write_jsonl
from data.problems.problem import Problem
from data.problems.readers import gsm8k_rows, load, save, word_problem_rows
from data.problems.templates import Rewording, WordTemplate, number_text

__all__ = ["Problem", "load", "save"]  # read and written here by the trainers


# ---- GSM8K programs --------------------------------------------------------------------------------------------------


def calculator_program(marked: str, answer: str) -> str | None:
    """A program of thought from GSM8K's calculator marks: each <<expression=value>> becomes an assignment, a value
    found earlier is referred to by its variable, the last line prints. None where it does not come to the answer."""
    found: dict[str, Fraction] = {}  # variable -> exact value
    names: dict[Fraction, str] = {}  # value as written in the marks -> variable
    lines = []
    try:
        for expression, stated in re.findall(r"<<([^<>=]*)=([^<>=]*)>>", marked):
            code, value = _calculate(expression, names, found)
            stated = Fraction(re.sub(r"[$,%\s]", "", stated))
            if abs(value - stated) > abs(stated) / 100:
                return None
            name = chr(ord("a") + len(lines))
            if name > "z":
                return None
            lines.append(f"{name} = {code}")
            found[name], names[stated] = value, name
        if not lines or abs(value - Fraction(answer)) > abs(Fraction(answer)) / 10**6:
            return None
    except (ValueError, ZeroDivisionError, SyntaxError):
        return None
    return "\n".join([*lines, f"print({name})"])


def _calculate(
    expression: str, names: dict[Fraction, str], found: dict[str, Fraction]
) -> tuple[str, Fraction]:
    """(Python code, exact value) of a mark's expression. Raises ValueError, SyntaxError or ZeroDivisionError."""
    expression = re.sub(r"[$,\s]", "", expression)
    expression = re.sub(r"(\d*\.?\d+)%", r"(\1/100)", expression)
    if not re.fullmatch(r"(?:\d+\.?\d*|\.\d+|[-+*/()])+", expression) or re.search(
        r"\*\*|//", expression
    ):
        raise ValueError(expression)

    def refer(match):
        number = Fraction(match[0])
        return names.get(number, number_text(number))

    tree = ast.parse(re.sub(r"\d+\.?\d*|\.\d+", refer, expression), mode="eval").body
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
                return found[node.id]
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                return (
                    -value(node.operand) if isinstance(node.op, ast.USub) else value(node.operand)
                )
            case ast.BinOp():
                return operators[type(node.op)](value(node.left), value(node.right))
        raise ValueError(expression)

    return ast.unparse(tree), value(tree)


# ---- Training sets ---------------------------------------------------------------------------------------------------


def question_key(question: str) -> str:
    """What is left of a question without its numbers, case, spaces and punctuation: equal for questions that are the
    same, and for those that differ in nothing but their numbers or placeholders."""
    masked = re.sub(r"number\d+|\d+(?:[.,/]\d+)*", "#", question.lower())
    return re.sub(r"[^\w#]|_", "", masked)


def _formats(text: str) -> list[str]:
    formats = text.split(",")
    if unknown := [name for name in formats if name not in ("cot", "pot")]:
        raise InputError(
            f"--formats {text}: unknown format {unknown[0]!r}; give cot, pot or cot,pot"
        )
    return formats


def _write(to: Path, files: dict[str, list]) -> None:
    """Problems or rows under each name, with the counts printed. An empty file is an error: nothing can use it."""
    for name, rows in files.items():
        if not rows:
            raise InputError(f"{to / name}: would be empty; the data hold too few problems")
    for name, rows in files.items():
        save(to / name, rows) if isinstance(rows[0], Problem) else write_jsonl(to / name, rows)
        print(f"{to / name}: {len(rows)} rows")


def _sft_row(question: str, response: str, format: str) -> dict:
    return {"question": question, "response": response, "format": format, "lang": "en"}


def word_problems(
    data: Path,
    to: Path,
    seed: int = 0,
    copies: int = 20,
    fold: int = 0,
    formats: str = "pot",
    solved: float = 0.8,
    lines: bool = False,
) -> None:
    """Train on MAWPS and ASDiv without a fold of MAWPS, test on that fold and on SVAMP.

    A train question is dropped if the fold or SVAMP has it too, be it with other numbers. 5 % of the train templates
    are held out for tuning before anything is made from the others. Of those, a share `solved` is for instruction
    tuning, with solutions; the others are for GRPO, with answers alone. On questions whose solutions it was taught a
    small model's samples are nearly all right, and a group that is all right teaches GRPO nothing."""
    if not 0 < solved < 1:
        raise InputError(f"--solved {solved}: must be between 0 and 1, a share of the questions")
    formats = _formats(formats)
    test = {
        "test_mawps.jsonl": load(data / f"mawps_fold{fold}.csv"),
        "test_svamp.jsonl": load(data / "SVAMP.json"),
    }
    tested = {question_key(problem.question) for problems in test.values() for problem in problems}
    path = data / "mawps_asdiv_train.csv"
    templates: dict[
        str, list[tuple[str, WordTemplate]]
    ] = {}  # rows that differ in numbers alone stay together
    rows = dropped = wrong = 0
    for count, row, template in word_problem_rows(path):
        rows += 1
        key = question_key(template.text())
        if key in tested:
            dropped += 1
        elif not template.agrees(row["Answer"]):
            wrong += 1
        else:
            templates.setdefault(key, []).append((f"{path.stem}-{count}", template))
    print(
        f"{path}: {rows} rows, {dropped} dropped (their question is in a test set), "
        f"{wrong} left out (equation and answer disagree), {len(templates)} different questions"
    )

    keys = sorted(templates)
    random.Random(f"{seed}:valid").shuffle(keys)
    cut = math.ceil(len(keys) / 20)
    held_out, unsolved = set(keys[:cut]), set(keys[cut + math.ceil(solved * (len(keys) - cut)) :])
    rewording = Rewording(
        template.question for key in keys if key not in held_out for _, template in templates[key]
    )
    reserved = tested | held_out  # other names may make a question one of these
    valid, rl, sft, text = [], [], [], []
    for key, group in templates.items():
        for name, template in group:
            problem = Problem(
                name, template.text(), template.answer(), template.cot(), source="mawps_asdiv"
            )
            if key in held_out:
                valid.append(problem)
                continue
            rng = random.Random(f"{seed}:{name}")
            variants = {template: None}
            for _ in range(copies):
                variant = replace(
                    template.resample(rng), question=rewording(template.question, rng)
                )
                if question_key(variant.text()) not in reserved:
                    variants[variant] = None
            for index, variant in enumerate(variants):
                question = variant.text()
                responses = {"cot": variant.cot(), "pot": variant.program(lines)}
                if key in unsolved:
                    rl.append(
                        Problem(f"{name}-{index}", question, variant.answer(), source="mawps_asdiv")
                    )
                    text.append({"text": question})
                else:
                    sft += [_sft_row(question, responses[format], format) for format in formats]
                    text += [{"text": f"{question}\n{responses[format]}"} for format in formats]
    _write(to, {"sft.jsonl": sft, "rl.jsonl": rl, "valid.jsonl": valid, "text.jsonl": text, **test})


def gsm8k(data: Path, to: Path, seed: int = 0, valid: int = 200, formats: str = "cot,pot") -> None:
    """Train on GSM8K's train.jsonl but for `valid` problems held out for tuning; test on its test.jsonl."""
    formats = _formats(formats)
    test = load(data / "test.jsonl")
    tested = {question_key(problem.question) for problem in test}
    train = list(gsm8k_rows(data / "train.jsonl"))
    kept = [
        (problem, marked)
        for problem, marked in train
        if question_key(problem.question) not in tested
    ]
    if not 0 < valid < len(kept):
        raise InputError(
            f"--valid {valid}: must be between 1 and {len(kept) - 1}, the train problems there are"
        )
    random.Random(f"{seed}:valid").shuffle(kept)
    held_out, kept = [problem for problem, _ in kept[:valid]], kept[valid:]
    sft, programs = [], 0
    for problem, marked in kept:
        if "cot" in formats:
            sft.append(
                _sft_row(
                    problem.question, f"{problem.solution}\nThe answer is {problem.answer}.", "cot"
                )
            )
        program = calculator_program(marked, problem.answer)
        programs += program is not None
        if program and "pot" in formats:
            sft.append(_sft_row(problem.question, program, "pot"))
    dropped = len(train) - len(held_out) - len(kept)
    print(
        f"{data / 'train.jsonl'}: {len(train)} rows, {dropped} dropped (their question is in the test set), "
        f"{len(held_out)} held out, programs for {programs} of {len(kept)}"
    )
    text = [
        {"text": f"{problem.question}\n{problem.solution}\nThe answer is {problem.answer}."}
        for problem, _ in kept
    ]
    _write(
        to,
        {
            "sft.jsonl": sft,
            "rl.jsonl": [problem for problem, _ in kept],
            "valid.jsonl": held_out,
            "test.jsonl": test,
            "text.jsonl": text,
        },
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.problems.training_sets",
        description="Training sets from word problems.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    words = commands.add_parser(
        "word-problems", help="MAWPS, ASDiv and SVAMP: mawps_*.csv and SVAMP.json"
    )
    words.add_argument(
        "--copies",
        type=int,
        default=20,
        help="variants of each question with other numbers and words",
    )
    words.add_argument(
        "--solved",
        type=float,
        default=0.8,
        help="share of the questions with solutions, for sft.jsonl",
    )
    words.add_argument("--fold", type=int, default=0, help="the fold of MAWPS to test on, 0 to 4")
    words.add_argument(
        "--lines",
        action="store_true",
        help="programs of an operation a line, for process supervision",
    )
    words.set_defaults(run=word_problems, formats="pot")
    school = commands.add_parser("gsm8k", help="GSM8K: train.jsonl and test.jsonl")
    school.add_argument("--valid", type=int, default=200, help="train problems held out for tuning")
    school.set_defaults(run=gsm8k, formats="cot,pot")
    for command in (words, school):
        command.add_argument("--data", type=Path, required=True, help="folder of the files")
        command.add_argument("--to", type=Path, required=True, help="folder to write to")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--formats", help="comma list of cot, pot")
    options = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v is not None}
    options.pop("command")
    options.pop("run")(**options)


if __name__ == "__main__":
    run_cli(main)
