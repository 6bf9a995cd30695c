r"""Reads problems from our JSONL and from the files in which benchmarks are published.

`load` recognizes the kind of a file by its content. For each kind a function makes a problem from
a row. A row without a field that it needs is an InputError, which names file, line and field.
"""

import csv
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from data import prompts
from data.io import InputError, read_jsonl, write_jsonl
from data.problems.chats import is_chat
from data.problems.fields import (
    boxed_answer,
    check_row,
    field,
    language,
    letter,
    lettered,
    list_field,
)
from data.problems.problem import KINDS, Problem, as_row
from data.problems.published import BETTER, QUESTIONS, check_answer, published, stated_answer
from data.problems.templates import WordTemplate, parse_number
from data.rows import COLUMNS, data_files, first_line, read_records, read_text


def check_lengths(tokenizer, problems: list[Problem], config, context: int) -> None:
    """Raise InputError for a problem whose prompt leaves no room in the model's context."""
    for format in dict.fromkeys(config.formats):
        texts = [prompts.problem_prompt(problem, format, config.template) for problem in problems]
        encoded = prompts.encode(tokenizer, texts, config.template)
        for problem, ids in zip(problems, encoded, strict=True):
            if len(ids) >= context:
                source = f" ({problem.source})" if problem.source else ""
                reason = f"the prompt is as long as the model's context, {context}; leave it out"
                raise InputError(f"problem {problem.id}{source}: {reason}")


def load_all(paths: Iterable[str]) -> list[Problem]:
    """The problems of several files; see `load`."""
    problems = []
    for path in paths:
        problems += load(path)
    return problems


def load(path, bad: list[str] | None = None) -> list[Problem]:
    """The problems of a file, of all files in a folder and in the folders below it, or of a data
    set on the Hugging Face Hub (data.rows.data_files).

    Raises InputError with file and line for what cannot be read, and for a file without problems.
    With a list `bad`, a record that cannot be used is left out, and its message is appended to the
    list. A broken file is still an error.
    """
    problems = []
    for file in data_files(path):
        records, parse = _records(file)
        for line, record in records:
            try:
                problems.append(parse(_checked(record, f"{file}:{line}"), file, line))
            except InputError as error:
                if bad is None:
                    raise
                bad.append(str(error))
    if not problems:
        raise InputError(f"{path}: holds no problem; give a file with at least one")
    return problems


def _checked(record, where: str):
    if isinstance(record, InputError):
        raise record
    if is_chat(record):  # Open-Reasoner-Zero: the row is a chat
        return {"conversations": record}
    if not isinstance(record, (dict, tuple)):
        raise InputError(f"{where}: not a JSON object; each row must be one")
    if isinstance(record, dict):
        check_row(record, where, learned=False)
    return record


def save(path, problems: Iterable[Problem]) -> int:
    """Write problems as JSONL, without empty fields, the whole file or nothing. Returns how
    many."""
    return write_jsonl(path, map(as_row, problems))


# ---- Files and their records ---------------------------------------------------------------------


def _records(path: Path) -> tuple[Iterable[tuple[int, object]], Callable]:
    """(the records of a file as (line, record), the function that makes a problem of a record).

    A record is an object, the cells of a row, or an InputError.
    """
    if path.name.endswith(COLUMNS) or first_line(path).lstrip()[:1] in ("[", "{", ""):
        return _with_reader(read_records(path))
    text = read_text(path)
    if "\t" in text.split("\n", 1)[0]:
        rows = _table(path, text, "\t")
        return _with_reader(read_records(path)) if _is_header(rows) else (rows, _mgsm_table)
    rows = _table(path, text, ",")
    if _is_header(rows) and not {"Numbers", "Equation"} & set(rows[0][1]):
        return _with_reader(read_records(path))
    letters = any(re.fullmatch(r"\s*[A-D]\s*", cells[-1]) for _, cells in rows)
    if letters and "Question" not in rows[0][1]:
        return rows, _mmlu
    return ((line, (count, row)) for line, count, row in _header_table(path, text)), _word_problem


def _table(path: Path, text: str, delimiter: str) -> list[tuple[int, tuple[str, ...]]]:
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
    try:
        return [(reader.line_num, tuple(cells)) for cells in reader if cells]
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV ({error}); correct it") from None


def _is_header(rows: list[tuple[int, tuple[str, ...]]]) -> bool:
    """Whether the first row names a question and something else."""
    names = {cell.strip().lower() for cell in rows[0][1]} if rows else set()
    return len(names) > 1 and not names.isdisjoint(QUESTIONS)


def _header_table(path: Path, text: str) -> Iterator[tuple[int, int, dict]]:
    """(line, number of the row, row) of a MAWPS/ASDiv CSV."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    needed = ("Question", "Numbers", "Equation", "Answer")
    if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
        raise InputError(
            f"{path}:1: no column {missing[0]!r}; "
            "give JSONL, the CSV of MAWPS/ASDiv or the JSON of SVAMP"
        )
    for count, row in enumerate(reader, 1):
        yield reader.line_num, count, row


def _with_reader(records: Iterator[tuple[int, object]]) -> tuple[Iterable, Callable]:
    """(the records, the function that makes problems of them). The fields of the first object
    decide."""
    before = []
    for line, row in records:
        before.append((line, row))
        if isinstance(row, dict):
            return itertools.chain(before, records), _reader(row)
    return before, published


def _reader(row: dict) -> Callable:
    fields = set(row)
    for names, parse in _BY_FIELDS:
        if names <= fields:
            return parse
    if fields == {"input", "target"} and isinstance(row["target"], str):
        return _bbh
    if "kind" in row:
        return _ours
    if {"problem", "solution", "answer", "id"} == fields:
        return _math
    if {"question", "answer"} <= fields and BETTER.isdisjoint(map(str.lower, fields)):
        return _gsm8k if "####" in str(row["answer"]) else _ours
    return published


# ---- A problem of a record -----------------------------------------------------------------------


def _ours(row: dict, path: Path, line: int) -> Problem:
    where = f"{path}:{line}"
    kind, solution, task = str(row.get("kind", "answer")), row.get("solution"), row.get("task", {})
    if kind not in KINDS or not isinstance(task, dict):
        raise InputError(f"{where}: 'kind' must be one of {', '.join(KINDS)} and 'task' an object")
    choices = list_field(row, "choices", where) if kind == "choice" else []
    answer = "" if kind in ("code", "proof") else field(row, "answer", where)
    if kind == "answer":
        stated = stated_answer(answer)
        answer = check_answer(stated, where) if stated else published(row, path, line).answer
    needed = {
        "code": ("prompt", "tests"),
        "proof": ("header", "formal_statement", "informal_statement"),
    }
    for name in needed.get(kind, ()):
        field(task, name, where)
    return Problem(
        id=str(row.get("id", f"{path.stem}-{line}")),
        question=field(row, "question", where),
        answer=letter(answer, choices, where, True) if choices else answer,
        solution=None if solution is None else str(solution),
        source=str(row.get("source", "")),
        lang=str(row.get("lang", "en")),
        kind=kind,
        choices=tuple(choices),
        task=task,
    )


def _gsm8k_marked(row: dict, path: Path, line: int) -> tuple[Problem, str]:
    """(problem, solution with the <<expression=value>> marks of the calculator)."""
    where = f"{path}:{line}"
    marked, found, answer = field(row, "answer", where).rpartition("####")
    answer = answer.strip().replace(",", "")
    if not found or not answer:
        raise InputError(
            f"{where}: no '#### N' at the end of the answer; add it or remove the line"
        )
    solution = re.sub(r"<<[^<>]*>>", "", marked).strip()
    return Problem(
        f"gsm8k-{path.stem}-{line}", field(row, "question", where), answer, solution, "gsm8k"
    ), marked


def _gsm8k(row: dict, path: Path, line: int) -> Problem:
    return _gsm8k_marked(row, path, line)[0]


def gsm8k_rows(path) -> Iterator[tuple[Problem, str]]:
    """(problem, solution with the calculator's marks) of each row of a GSM8K file."""
    for line, row in read_jsonl(path):
        yield _gsm8k_marked(row, Path(path), line)


def _svamp(row: dict, path: Path, line: int) -> Problem:
    body, question, answer = (
        field(row, name, f"{path}:{line}") for name in ("Body", "Question", "Answer")
    )
    return Problem(
        str(row.get("ID", f"{path.stem}-{line}")), f"{body} {question}", answer, source="svamp"
    )


def _word_problem(record: tuple[int, dict], path: Path, line: int) -> Problem:
    count, row = record
    answer = re.sub(r"\.0+$", "", field(row, "Answer", f"{path}:{line}"))
    return Problem(
        f"{path.stem}-{count}", _template(row, f"{path}:{line}").text(), answer, source=path.stem
    )


def _numbered(row: dict, path: Path, line: int) -> Problem:
    """MAWPS as JSON, with N_00, N_01 ... for number0, number1 ..."""
    texts = {name: field(row, name, f"{path}:{line}") for name in ("Question", "Equation")}
    texts = {name: re.sub(r"N_0*(\d+)", r"number\1", text) for name, text in texts.items()}
    return _word_problem((line, row | texts), path, line)


def word_problem_rows(path) -> Iterator[tuple[int, dict, WordTemplate]]:
    """(number of the row, the row, the template) of each row of a MAWPS/ASDiv CSV."""
    for line, count, row in _header_table(Path(path), read_text(Path(path))):
        yield count, row, _template(row, f"{path}:{line}")


def _template(row: dict, where: str) -> WordTemplate:
    question, equation, answer = (
        field(row, name, where) for name in ("Question", "Equation", "Answer")
    )
    try:
        numbers = tuple(parse_number(text) for text in (row["Numbers"] or "").split())
        template = WordTemplate(question, numbers, equation)
        template.text(), template.value(), parse_number(answer)
    except (InputError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{where}: {error}; correct or remove the row") from None
    return template


def _math(row: dict, path: Path, line: int) -> Problem:
    r"""MATH: {problem, level, type, solution with \boxed{}}, in a file for each problem or on a
    line. OCW courses: {problem, solution, answer}, without a level."""
    where, solution = f"{path}:{line}", str(row.get("solution") or "")
    question, level = field(row, "problem", where), row.get("level")
    if level is None:
        answer = field(row, "answer", where)
        return Problem(f"ocw-{row.get('id', line)}", question, answer, solution or None, "ocw")
    if row.get("answer"):
        answer = field(row, "answer", where)
    else:
        answer = boxed_answer(field(row, "solution", where))
        if not answer:
            raise InputError(
                f"{where}: no \\boxed{{}} in 'solution'; add the answer or remove the problem"
            )
    subject = str(row.get("type") or row.get("subject") or path.parent.name)
    place = f"{path.parent.name}/{path.stem}" if path.suffix == ".json" else f"{path.stem}-{line}"
    name = row.get("unique_id") or row.get("id") or place
    return Problem(f"math-{name}", question, answer, solution or None, f"math/{subject}/{level}")


def _sat(row: dict, path: Path, line: int) -> Problem:
    """SAT of May 2023: {question, options "A) ... B) ...", Answer}."""
    where = f"{path}:{line}"
    choices = lettered(re.split(r"\s(?=[B-E][).] )", field(row, "options", where)), where)
    return Problem(
        f"sat-{row.get('id', line)}",
        field(row, "question", where),
        letter(field(row, "Answer", where), choices, where),
        None,
        "sat",
        "en",
        "choice",
        tuple(choices),
    )


def _agieval(row: dict, path: Path, line: int) -> Problem:
    """AGIEval: {passage, question, options, label} of a choice, {question, answer} of a cloze.
    Several answers "$5$;$10$" of a cloze are the answers of the blanks in order."""
    where, source = f"{path}:{line}", f"agieval/{path.stem}"
    question = field(row, "question", where).rstrip("\\\n ")
    question = f"{field(row, 'passage', where)}\n{question}" if row.get("passage") else question
    lang = "zh" if path.stem.startswith("gaokao") else language(question)
    common = {"id": f"{path.stem}-{line}", "question": question, "source": source, "lang": lang}
    if not row.get("options") and not row.get("label"):
        blanks = [blank.strip() for blank in field(row, "answer", where).split(";")]
        return Problem(answer=blanks[0] if len(blanks) == 1 else _in_order(blanks), **common)
    if isinstance(row.get("options"), dict):  # Qwen2.5-Math's edition
        row = row | {"options": [f"({key}) {text}" for key, text in row["options"].items()]}
    choices = lettered(list_field(row, "options", where), where)
    # Seven problems of Gaokao-MathQA have several right options.
    label = letter(field(row, "label", where), choices, where, several=True)
    return Problem(answer=label, kind="choice", choices=tuple(choices), **common)


def _in_order(blanks: list[str]) -> str:
    """The answers of several blanks as a tuple, which data.answers compares in order (unlike a
    list)."""
    return "$(" + ", ".join(blank.strip("$") for blank in blanks) + ")$"


def _mmlu_stem(row: dict, path: Path, line: int) -> Problem:
    where = f"{path}:{line}"
    choices = list_field(row, "options", where)
    return Problem(
        f"mmlu_stem-{row.get('id', line)}",
        field(row, "question", where),
        letter(field(row, "answer", where), choices, where),
        None,
        f"mmlu_stem/{row.get('topic', '')}",
        "en",
        "choice",
        tuple(choices),
    )


def _mmlu(cells: list[str], path: Path, line: int) -> Problem:
    """MMLU: question, options A to D, letter. The subject is the name of the file."""
    where, subject = f"{path}:{line}", re.sub(r"_(?:dev|val|test)$", "", path.stem)
    if len(cells) != 6 or not all(cell.strip() for cell in cells):
        raise InputError(
            f"{where}: not a question, four options and a letter; correct or remove the row"
        )
    question, *choices, label = (cell.strip() for cell in cells)
    return Problem(
        f"mmlu-{path.stem}-{line}",
        question,
        letter(label, choices, where),
        None,
        f"mmlu/{subject}",
        "en",
        "choice",
        tuple(choices),
    )


def _cmath(row: dict, path: Path, line: int) -> Problem:
    where = f"{path}:{line}"
    return Problem(
        f"cmath-{row.get('id', line)}",
        field(row, "question", where),
        field(row, "golden", where),
        source=f"cmath/{row.get('grade', '')}",
        lang="zh",
    )


def _messages(row: dict, path: Path, line: int) -> Problem:
    """MGSM-zh in the paper's evaluation: a chat whose first message is the question."""
    where = f"{path}:{line}"
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
        raise InputError(
            f"{where}: 'messages' must be a list that begins with the question; "
            "correct it or remove the line"
        )
    question = field(messages[0], "content", where)
    source = str(row.get("dataset", path.stem)).replace("-", "_")
    return Problem(
        f"{source}-{row.get('id', line)}",
        question,
        field(row, "answer", where).replace(",", ""),
        source=source,
        lang=language(question),
    )


def _mgsm_table(cells: list[str], path: Path, line: int) -> Problem:
    """MGSM: question TAB answer. The language is the end of the name of the file."""
    if len(cells) != 2 or not all(cell.strip() for cell in cells):
        raise InputError(
            f"{path}:{line}: not a question, a tab and an answer; correct or remove the line"
        )
    question, answer = (cell.strip() for cell in cells)
    lang = re.search(r"_([a-z]{2})$", path.stem)
    return Problem(
        f"{path.stem}-{line}",
        question,
        answer.replace(",", ""),
        source=path.stem,
        lang=lang[1] if lang else language(question),
    )


def _bbh(row: dict, path: Path, line: int) -> Problem:
    """BIG-Bench Hard: {input, target}, with the options in the input. `line` counts the
    examples."""
    where = f"{path}, example {line}"
    if not isinstance(row, dict):
        raise InputError(f"{where}: not a JSON object; correct or remove it")
    return Problem(
        f"bbh-{path.stem}-{line}",
        field(row, "input", where),
        field(row, "target", where),
        source=f"bbh/{path.stem}",
        kind="text",
    )


def _humaneval(row: dict, path: Path, line: int) -> Problem:
    where = f"{path}:{line}"
    task = {
        "prompt": str(row.get("prompt") or ""),
        "tests": field(row, "test", where),
        "entry_point": field(row, "entry_point", where),
    }
    return Problem(
        field(row, "task_id", where),
        field(row, "prompt", where),
        "",
        row.get("canonical_solution"),
        "humaneval",
        kind="code",
        task=task,
    )


def _mbpp(row: dict, path: Path, line: int) -> Problem:
    """MBPP: {text, code, task_id, test_list, test_setup_code}. Other editions have `prompt`,
    `test` and `test_imports`."""
    where = f"{path}:{line}"
    question = field(row, "prompt" if "prompt" in row else "text", where)
    tests = list_field(row, "test" if "test" in row else "test_list", where)
    setup = "\n".join(
        [str(row.get("test_setup_code") or ""), *(row.get("test_imports") or [])]
    ).strip()
    task = {"prompt": question, "tests": "\n".join(tests), "entry_point": ""} | (
        {"setup": setup} if setup else {}
    )
    code = field(row, "code", where).replace("\r\n", "\n")
    return Problem(
        f"mbpp-{field(row, 'task_id', where)}", question, "", code, "mbpp", kind="code", task=task
    )


def _minif2f(row: dict, path: Path, line: int) -> Problem:
    """miniF2F in Isabelle: {problem_name, header, formal_statement, informal_statement,
    informal_proof}."""
    where = f"{path}:{line}"
    names = ("header", "formal_statement", "informal_statement", "informal_proof")
    task = {name: field(row, name, where) for name in names}
    return Problem(
        f"minif2f-{row.get('problem_name') or row.get('id', line)}",
        task["informal_statement"],
        "",
        None,
        f"minif2f/{path.stem}",
        kind="proof",
        task=task,
    )


# (fields, the reader of files with these fields)
_BY_FIELDS: list[tuple[set[str], Callable]] = [
    ({"formal_statement", "header"}, _minif2f),
    ({"task_id", "entry_point"}, _humaneval),
    ({"task_id", "code"}, _mbpp),
    ({"question", "golden"}, _cmath),
    ({"messages", "answer", "dataset"}, _messages),
    ({"options", "Answer"}, _sat),
    ({"passage", "question"}, _agieval),
    ({"options", "answer", "topic"}, _mmlu_stem),
    ({"problem", "level"}, _math),
    ({"Body", "Question", "Answer"}, _svamp),
    ({"Question", "Numbers", "Equation", "Answer"}, _numbered),
]
