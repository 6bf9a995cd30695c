"""Word problems: our JSONL, GSM8K, MAWPS/ASDiv and SVAMP files, and the training sets made from them.

A problem is {id, question, answer, solution?, source, lang}. `load` tells the kind of a file from its content.
A MAWPS/ASDiv row is a template (numbers left out of the text, an equation in prefix form): `WordTemplate` turns it into
a program of thought (section 3.1 of the paper), a chain of thought, and any number of variants with other numbers.

    python -m data.problems word-problems --data DIR --to DIR [--seed 0] [--copies 20] [--fold 0] [--formats pot]
    python -m data.problems gsm8k --data DIR --to DIR [--seed 0] [--valid 200] [--formats cot,pot]
"""

import argparse
import ast
import csv
import functools
import io
import json
import math
import operator
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path

from data import InputError, read_jsonl, run_cli, write_jsonl


@dataclass(frozen=True)
class Problem:
    id: str
    question: str
    answer: str
    solution: str | None = None
    source: str = ""
    lang: str = "en"


def load(path) -> list[Problem]:
    """Problems of a file, whose kind is told from its content: JSONL of ours or of GSM8K, the CSV of MAWPS/ASDiv, the
    JSON of SVAMP. Raises InputError naming file and line for what cannot be read and for an empty file."""
    path = Path(path)
    start = _read_text(path).lstrip()[:1]
    if start == "[":
        problems = list(_svamp(path))
    elif start == "{":
        first = next(read_jsonl(path))[1]
        if "####" in str(first.get("answer")):
            problems = [problem for problem, _ in _gsm8k(path)]
        else:
            problems = list(_ours(path))
    else:
        problems = [_csv_problem(path, *row) for row in _csv_rows(path)]
    if not problems:
        raise InputError(f"{path}: holds no problem; give a file with at least one")
    return problems


def save(path, problems: Iterable[Problem]) -> int:
    """Write problems as JSONL (atomically), without the fields that are None; returns how many."""
    return write_jsonl(path, ({k: v for k, v in asdict(p).items() if v is not None} for p in problems))


# ---- Readers ---------------------------------------------------------------------------------------------------------

def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a JSONL, CSV or JSON problem file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; give a JSONL, CSV or JSON problem file") from None


def _field(row: dict, name: str, where: str) -> str:
    """A field that must be there, as text; 51.0 is written 51."""
    value = row.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None or isinstance(value, (dict, list, bool)) else str(value).strip()
    if not text:
        raise InputError(f"{where}: a problem without {name!r}; add it or remove the line")
    return text


def _ours(path: Path) -> Iterator[Problem]:
    for line, row in read_jsonl(path):
        where = f"{path}:{line}"
        solution = row.get("solution")
        yield Problem(id=str(row.get("id", f"{path.stem}-{line}")), question=_field(row, "question", where),
                      answer=_field(row, "answer", where), solution=None if solution is None else str(solution),
                      source=str(row.get("source", "")), lang=str(row.get("lang", "en")))


def _gsm8k(path: Path) -> Iterator[tuple[Problem, str]]:
    """(problem, its solution with the <<expression=value>> marks of the calculator)."""
    for line, row in read_jsonl(path):
        where = f"{path}:{line}"
        marked, found, answer = _field(row, "answer", where).rpartition("####")
        answer = answer.strip().replace(",", "")
        if not found or not answer:
            raise InputError(f"{where}: no '#### N' at the end of the answer; add it or remove the line")
        solution = re.sub(r"<<[^<>]*>>", "", marked).strip()
        question = _field(row, "question", where)
        yield Problem(f"gsm8k-{path.stem}-{line}", question, answer, solution, source="gsm8k"), marked


def _svamp(path: Path) -> Iterator[Problem]:
    """A JSON list of objects, read one by one so that an error has its line."""
    text, decoder, count = _read_text(path), json.JSONDecoder(), 0
    position = text.index("[") + 1
    while True:
        position = re.compile(r"[\s,]*").match(text, position).end()
        if text[position:position + 1] == "]":
            return
        where = f"{path}:{text.count(chr(10), 0, position) + 1}"
        try:
            row, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); correct the file") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: not a JSON object; a list of problems is needed")
        count += 1
        body, question, answer = (_field(row, name, where) for name in ("Body", "Question", "Answer"))
        yield Problem(str(row.get("ID", f"{path.stem}-{count}")), f"{body} {question}", answer, source="svamp")


def _csv_rows(path: Path) -> Iterator[tuple[int, dict, "WordTemplate"]]:
    """(number of the row, the row, its template) of a MAWPS/ASDiv CSV."""
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""))
    needed = ("Question", "Numbers", "Equation", "Answer")
    if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
        raise InputError(f"{path}:1: no column {missing[0]!r}; give JSONL, the CSV of MAWPS/ASDiv or the JSON of SVAMP")
    for count, row in enumerate(reader, 1):
        where = f"{path}:{reader.line_num}"
        question, equation, _ = (_field(row, name, where) for name in ("Question", "Equation", "Answer"))
        try:
            numbers = tuple(parse_number(text) for text in (row["Numbers"] or "").split())
            template = WordTemplate(question, numbers, equation)
            template.text(), template.value(), parse_number(row["Answer"].strip())
        except (InputError, ValueError, ZeroDivisionError) as error:
            raise InputError(f"{where}: {error}; correct or remove the row") from None
        yield count, row, template


def _csv_problem(path: Path, count: int, row: dict, template: "WordTemplate") -> Problem:
    answer = re.sub(r"\.0+$", "", row["Answer"].strip())
    return Problem(f"{path.stem}-{count}", template.text(), answer, source=path.stem)


# ---- Numbers and templates -------------------------------------------------------------------------------------------

def parse_number(text: str) -> Fraction:
    """The number of a text, exactly. A float that is a fraction written out, such as 0.16666666666666666, is 1/6."""
    try:
        number = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{text!r} is not a number") from None
    near = number.limit_denominator(1000)
    return near if number.denominator > 10**6 and abs(number - near) < Fraction(1, 10**9) else number


def number_text(number: Fraction) -> str:
    """8 for 8, 0.25 for 1/4, 1/6 for 1/6: without trailing zeros, and exact."""
    rest, twos, fives = number.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    places = max(twos, fives)
    if rest > 1 or places == 0:
        return str(number)
    digits = str(abs(number) * 10**places).zfill(places + 1)
    return f"{'-' * (number < 0)}{digits[:-places]}.{digits[-places:]}"


def rounded_text(number: Fraction) -> str:
    """`number_text` of the number rounded to 4 decimals."""
    return number_text(round(number, 4))


_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


@functools.cache
def _parse(equation: str):
    """The tree of a prefix equation: (op, left, right), a placeholder's index (int) or a constant (Fraction)."""
    tokens = iter(equation.split())

    def node():
        token = next(tokens, None)
        if token is None:
            raise InputError(f"equation {equation!r} ends too early")
        if token in _OPERATORS:
            return token, node(), node()
        placeholder = re.fullmatch(r"number(\d+)", token)
        return int(placeholder[1]) if placeholder else parse_number(token)

    tree = node()
    if next(tokens, None) is not None:
        raise InputError(f"equation {equation!r} goes on after its end")
    return tree


def _leaves(tree) -> Iterator[int | Fraction]:
    if isinstance(tree, tuple):
        yield from _leaves(tree[1])
        yield from _leaves(tree[2])
    else:
        yield tree


@dataclass(frozen=True)
class WordTemplate:
    """A question with placeholders number0, number1, ..., the numbers that fill them, and a prefix equation over them,
    such as `/ + number0 number1 2.0`. Arithmetic is exact. Raises InputError for an equation that cannot be read, or
    where text or equation name a number that is not there."""

    question: str
    numbers: tuple[Fraction, ...]
    equation: str

    def __post_init__(self):
        used = [leaf for leaf in _leaves(_parse(self.equation)) if isinstance(leaf, int)]
        used += [int(index) for index in re.findall(r"number(\d+)", self.question)]
        if max(used, default=-1) >= len(self.numbers):
            raise InputError(f"number{max(used)} is used, but there are {len(self.numbers)} numbers")

    def text(self) -> str:
        """The question with its numbers, spaced as people write (the files have a space before each full stop)."""
        filled = re.sub(r"number(\d+)", lambda match: number_text(self.numbers[int(match[1])]), self.question)
        filled = re.sub(r"\s+(n['’]t|['’](?:s|re|ve|ll|d|m))\b", r"\1", filled)
        return re.sub(r"\s+([.,?!;:%)])(?!\d)", r"\1", re.sub(r"\(\s+", "(", filled)).strip()

    def value(self) -> Fraction:
        """The equation's value."""
        return self._results()[-1]

    def answer(self) -> str:
        """The value, exact: an integer, a finite decimal or a fraction."""
        return number_text(self.value())

    def program(self) -> str:
        """One line of Python, with no parentheses that arithmetic does not need: print((5 + 3) / 2)."""
        return f"print({self._infix(_parse(self.equation))[0]})"

    def cot(self) -> str:
        """One operation a line, then the answer; results are rounded to 4 decimals, what follows from them is not."""
        lines: list[str] = []
        _, result = self._chain(_parse(self.equation), lines)
        return "\n".join([*lines, f"The answer is {result}."])

    def agrees(self, answer: str) -> bool:
        """Whether the equation gives this answer, to 1e-3 of it or to half of its last decimal."""
        stated, places = Fraction(answer), len(answer.rstrip("0").partition(".")[2])
        tolerance = abs(stated) / 1000
        if places:  # a whole number is not taken for a rounded one: 55 is not 54.545, nor 3 an answer of 2.5
            tolerance = max(tolerance, Fraction(1, 2 * 10**places))
        return abs(self.value() - stated) <= tolerance

    def resample(self, rng: random.Random, tries: int = 300) -> "WordTemplate":
        """The same question with other numbers of like size and kind.

        Every operation's result stays what it was: above zero, whole, or finite in 4 decimals. The template itself
        comes back when no draw of `tries` fits. Equal numbers stay equal, since the annotators told numbers apart by
        value (`+ number0 number0` may mean two numbers that happen to be 3); for the same reason a number equal to a
        constant of the equation stays. Different numbers stay different.
        """
        constants = {leaf for leaf in _leaves(_parse(self.equation)) if isinstance(leaf, Fraction)}
        results = self._results()
        for _ in range(tries):
            drawn = {number: number if number in constants else _draw(number, rng) for number in self.numbers}
            if len(set(drawn.values())) < len(drawn):
                continue
            variant = replace(self, numbers=tuple(drawn[number] for number in self.numbers))
            try:
                if all(map(_alike, results, variant._results())):
                    return variant
            except ZeroDivisionError:
                continue
        return self

    def _leaf(self, leaf: int | Fraction) -> Fraction:
        return self.numbers[leaf] if isinstance(leaf, int) else leaf

    def _results(self) -> list[Fraction]:
        """The result of each operation, the last being the value. Raises ZeroDivisionError."""
        results = []

        def walk(tree):
            if not isinstance(tree, tuple):
                return self._leaf(tree)
            left, right = walk(tree[1]), walk(tree[2])
            results.append(_OPERATORS[tree[0]](left, right))
            return results[-1]

        value = walk(_parse(self.equation))
        return results or [value]

    def _infix(self, tree) -> tuple[str, int]:
        """(text, precedence): 1 for a sum, 2 for a product or a fraction, 3 for a number."""
        if not isinstance(tree, tuple):
            text = number_text(self._leaf(tree))
            return text, 2 if "/" in text else 3
        op, precedence = tree[0], _PRECEDENCE[tree[0]]
        (left, left_level), (right, right_level) = self._infix(tree[1]), self._infix(tree[2])
        if left_level < precedence:
            left = f"({left})"
        if right_level < precedence or right_level == precedence and op in "-/":
            right = f"({right})"
        return f"{left} {op} {right}", precedence

    def _chain(self, tree, lines: list[str]) -> tuple[Fraction, str]:
        if not isinstance(tree, tuple):
            value = self._leaf(tree)
            return value, number_text(value)
        op = tree[0]
        (left, left_text), (right, right_text) = self._chain(tree[1], lines), self._chain(tree[2], lines)
        if op in "*/":  # 5 / 1/6 would read as 5/6
            left_text, right_text = (f"({t})" if "/" in t else t for t in (left_text, right_text))
        value = _OPERATORS[op](left, right)
        lines.append(f"{left_text} {op} {right_text} = {rounded_text(value)}")
        return value, rounded_text(value)


def _draw(number: Fraction, rng: random.Random) -> Fraction:
    """A number of like size (half to double; below 10, any digit) and kind: whole and as round, decimal, fraction."""
    if number <= 0 or number == 1:
        return number
    text = number_text(number)
    if "/" in text:
        below = rng.choice((2, 3, 4, 5, 6, 8, 9, 10, 12))
        low, high = math.ceil(number * below / 2), math.floor(min(2 * number, 1 if number < 1 else 2 * number) * below)
        drawn = Fraction(rng.randint(max(1, low), max(1, high)), below)
        return number if drawn.denominator == 1 else drawn
    unit = Fraction(1, 10 ** len(text.partition(".")[2]))
    while unit >= 1 and number % (10 * unit) == 0 and number >= 100 * unit:
        unit *= 10  # 6000 becomes a multiple of 100, 120 of 10, 123 of 1
    size = int(number / unit)
    low, high = (2 if unit == 1 else 1, 9) if size < 10 else (size // 2, 2 * size)
    drawn = rng.randint(low, high) * unit
    return number if unit < 1 and drawn.denominator == 1 else drawn


def _alike(old: Fraction, new: Fraction) -> bool:
    if old.denominator == 1 and new.denominator > 1 or old * 10000 % 1 == 0 and new * 10000 % 1:
        return False
    return new > 0 if old > 0 else new >= 0 if old == 0 else True


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


def _calculate(expression: str, names: dict[Fraction, str], found: dict[str, Fraction]) -> tuple[str, Fraction]:
    """(Python code, exact value) of a mark's expression. Raises ValueError, SyntaxError or ZeroDivisionError."""
    expression = re.sub(r"[$,\s]", "", expression)
    expression = re.sub(r"(\d*\.?\d+)%", r"(\1/100)", expression)
    if not re.fullmatch(r"(?:\d+\.?\d*|\.\d+|[-+*/()])+", expression) or re.search(r"\*\*|//", expression):
        raise ValueError(expression)

    def refer(match):
        number = Fraction(match[0])
        return names.get(number, number_text(number))

    tree = ast.parse(re.sub(r"\d+\.?\d*|\.\d+", refer, expression), mode="eval").body
    operators = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}

    def value(node) -> Fraction:
        match node:
            case ast.Constant():
                return Fraction(str(node.value))
            case ast.Name():
                return found[node.id]
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                return -value(node.operand) if isinstance(node.op, ast.USub) else value(node.operand)
            case ast.BinOp():
                return _OPERATORS[operators[type(node.op)]](value(node.left), value(node.right))
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
        raise InputError(f"--formats {text}: unknown format {unknown[0]!r}; give cot, pot or cot,pot")
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


def word_problems(data: Path, to: Path, seed: int = 0, copies: int = 20, fold: int = 0, formats: str = "pot") -> None:
    """Train on MAWPS and ASDiv without a fold of MAWPS, test on that fold and on SVAMP.

    A train question is dropped if the fold or SVAMP has it too, be it with other numbers. 5 % of the train templates
    are held out for tuning before anything is made from the others."""
    formats = _formats(formats)
    test = {"test_mawps.jsonl": load(data / f"mawps_fold{fold}.csv"), "test_svamp.jsonl": load(data / "SVAMP.json")}
    tested = {question_key(problem.question) for problems in test.values() for problem in problems}
    path = data / "mawps_asdiv_train.csv"
    templates: dict[str, list[tuple[str, WordTemplate]]] = {}  # rows that differ in numbers alone stay together
    rows = dropped = wrong = 0
    for count, row, template in _csv_rows(path):
        rows += 1
        key = question_key(template.text())
        if key in tested:
            dropped += 1
        elif not template.agrees(row["Answer"]):
            wrong += 1
        else:
            templates.setdefault(key, []).append((f"{path.stem}-{count}", template))
    print(f"{path}: {rows} rows, {dropped} dropped (their question is in a test set), "
          f"{wrong} left out (equation and answer disagree), {len(templates)} different questions")

    keys = sorted(templates)
    random.Random(f"{seed}:valid").shuffle(keys)
    held_out = set(keys[:math.ceil(len(keys) / 20)]) if len(keys) > 1 else set()
    valid, rl, sft, text = [], [], [], []
    for key, group in templates.items():
        for name, template in group:
            problem = Problem(name, template.text(), template.answer(), template.cot(), source="mawps_asdiv")
            if key in held_out:
                valid.append(problem)
                continue
            rng = random.Random(f"{seed}:{name}")
            variants = dict.fromkeys([template, *(template.resample(rng) for _ in range(copies))])
            for index, variant in enumerate(variants):
                question, cot = variant.text(), variant.cot()
                rl.append(replace(problem, id=f"{name}-{index}", question=question, answer=variant.answer(),
                                  solution=cot))
                responses = {"cot": cot, "pot": variant.program()}
                sft += [_sft_row(question, responses[format], format) for format in formats]
                text.append({"text": f"{question}\n{cot}"})
    _write(to, {"sft.jsonl": sft, "rl.jsonl": rl, "valid.jsonl": valid, "text.jsonl": text, **test})


def gsm8k(data: Path, to: Path, seed: int = 0, valid: int = 200, formats: str = "cot,pot") -> None:
    """Train on GSM8K's train.jsonl but for `valid` problems held out for tuning; test on its test.jsonl."""
    formats = _formats(formats)
    test = load(data / "test.jsonl")
    tested = {question_key(problem.question) for problem in test}
    train = list(_gsm8k(data / "train.jsonl"))
    kept = [(problem, marked) for problem, marked in train if question_key(problem.question) not in tested]
    if not 0 < valid < len(kept):
        raise InputError(f"--valid {valid}: must be between 1 and {len(kept) - 1}, the train problems there are")
    random.Random(f"{seed}:valid").shuffle(kept)
    held_out, kept = [problem for problem, _ in kept[:valid]], kept[valid:]
    sft, programs = [], 0
    for problem, marked in kept:
        if "cot" in formats:
            sft.append(_sft_row(problem.question, f"{problem.solution}\nThe answer is {problem.answer}.", "cot"))
        program = calculator_program(marked, problem.answer)
        programs += program is not None
        if program and "pot" in formats:
            sft.append(_sft_row(problem.question, program, "pot"))
    dropped = len(train) - len(held_out) - len(kept)
    print(f"{data / 'train.jsonl'}: {len(train)} rows, {dropped} dropped (their question is in the test set), "
          f"{len(held_out)} held out, programs for {programs} of {len(kept)}")
    text = [{"text": f"{problem.question}\n{problem.solution}\nThe answer is {problem.answer}."} for problem, _ in kept]
    _write(to, {"sft.jsonl": sft, "rl.jsonl": [problem for problem, _ in kept], "valid.jsonl": held_out,
                "test.jsonl": test, "text.jsonl": text})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.problems", description="Training sets from word problems.")
    commands = parser.add_subparsers(dest="command", required=True)
    words = commands.add_parser("word-problems", help="MAWPS, ASDiv and SVAMP: mawps_*.csv and SVAMP.json")
    words.add_argument("--copies", type=int, default=20, help="variants of each question with other numbers")
    words.add_argument("--fold", type=int, default=0, help="the fold of MAWPS to test on, 0 to 4")
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
