r"""Reads problems from our JSONL and from the files in which benchmarks are published.

`load` recognizes the kind of a file by its content. For each kind a function makes a problem from
a row. A row without a field that it needs is an InputError, which names file, line and field.
"""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from data import answers, prompts
from data.io import InputError, read_jsonl, write_jsonl
from data.problems.problem import (
    KINDS,
    LETTERS,
    Problem,
    as_row,
    is_chinese,
)
from data.problems.templates import WordTemplate, parse_number


def check_lengths(
    tokenizer, problems: list[Problem], formats: list[str], template: str, context: int
) -> None:
    """Raise InputError for a problem whose prompt leaves no room in the model's context."""
    for format in dict.fromkeys(formats):
        encoded = prompts.encode_prompts(tokenizer, problems, format, template)
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
    """The problems of a file, or of all files in a folder and in the folders below it.

    Raises InputError with file and line for what cannot be read, and for a file without problems.
    With a list `bad`, a record that cannot be used is left out, and its message is appended to the
    list. A broken file is still an error.
    """
    path = Path(path)
    problems = []
    for file in _files(path) if path.is_dir() else [path]:
        text = _text(file)
        records, parse = _records(file, text)
        for line, record in records:
            try:
                problems.append(parse(_object(record, f"{file}:{line}"), file, line))
            except InputError as error:
                if bad is None:
                    raise
                bad.append(str(error))
    if not problems:
        raise InputError(f"{path}: holds no problem; give a file with at least one")
    return problems


def save(path, problems: Iterable[Problem]) -> int:
    """Write problems as JSONL, without empty fields, the whole file or nothing. Returns how
    many."""
    return write_jsonl(path, map(as_row, problems))


# ---- Files and their records ---------------------------------------------------------------------

_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".csv", ".tsv")


def _files(folder: Path) -> list[Path]:
    found = [
        path
        for path in folder.rglob("*")
        if path.name.endswith(_SUFFIXES) and not path.name.startswith(".")
    ]
    # 2.json before 10.json
    return sorted(found, key=lambda path: re.sub(r"\d+", lambda n: n[0].zfill(9), str(path)))


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path}: cannot be read ({reason}); give a JSONL, CSV or JSON problem file"
        ) from None
    except UnicodeDecodeError:
        raise InputError(
            f"{path}: not UTF-8 text; give a JSONL, CSV or JSON problem file"
        ) from None


def _records(path: Path, text: str) -> tuple[Iterable[tuple[int, object]], Callable]:
    """(the records of a file as (line, record), the function that makes a problem of a record).

    A record is an object, the text of an object, or the cells of a row.
    """
    start = text.lstrip()[:1]
    if start == "[":
        records = list(_list_records(path, text))
        return records, _reader([record for _, record in records])
    if start == "{":
        try:
            whole = json.loads(text)
        except json.JSONDecodeError:
            lines = [
                (number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()
            ]
            return lines, _reader(line for _, line in lines)
        if isinstance(whole.get("examples"), list):
            return list(enumerate(whole["examples"], 1)), _bbh
        return [(1, whole)], _reader([whole])
    if "\t" in text.split("\n", 1)[0]:
        return _table(text, "\t"), _mgsm_table
    rows = _table(text, ",")
    letters = any(re.fullmatch(r"\s*[A-D]\s*", cells[-1]) for _, cells in rows)
    if letters and "Question" not in rows[0][1]:
        return rows, _mmlu
    return ((line, (count, row)) for line, count, row in _header_table(path, text)), _word_problem


def _table(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
    return [(reader.line_num, cells) for cells in reader if cells]


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


def _list_records(path: Path, text: str) -> Iterator[tuple[int, object]]:
    """The objects of a JSON list. They are parsed separately, so that an error has a line."""
    decoder, position = json.JSONDecoder(), text.index("[") + 1
    while True:
        position = re.compile(r"[\s,]*").match(text, position).end()
        if text[position : position + 1] == "]":
            return
        line = text.count("\n", 0, position) + 1
        try:
            row, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}:{error.lineno}: not valid JSON ({error.msg}); correct the file"
            ) from None
        yield line, row


def _object(record, where: str):
    """The object in the text of a line. A record that is parsed already is returned as it is."""
    if isinstance(record, str):
        try:
            record = json.loads(record)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{where}: not valid JSON ({error.msg}); correct or remove the line"
            ) from None
        if not isinstance(record, dict):
            raise InputError(f"{where}: not a JSON object; each line must be one")
    if not isinstance(record, (dict, list, tuple)):
        raise InputError(f"{where}: not a JSON object; a list of problems is needed")
    return record


def _reader(records: Iterable) -> Callable:
    """The function that makes problems of the objects of a file. The fields of the first object
    that can be parsed decide."""
    for record in records:
        try:
            row = _object(record, "")
        except InputError:
            continue
        if not isinstance(row, dict):
            continue
        for names, parse in _BY_FIELDS:
            if names <= set(row):
                return parse
        return _gsm8k if "####" in str(row.get("answer")) else _ours
    return _ours


# ---- Fields --------------------------------------------------------------------------------------


def _field(row: dict, name: str, where: str) -> str:
    """A field that must be there, as text; 51.0 is written 51."""
    value = row.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None or isinstance(value, (dict, list, bool)) else str(value).strip()
    if not text:
        raise InputError(f"{where}: a problem without {name!r}; add it or remove the line")
    return text


def _list_field(row: dict, name: str, where: str) -> list[str]:
    value = row.get(name)
    if not isinstance(value, list) or not value or not all(str(item).strip() for item in value):
        raise InputError(
            f"{where}: {name!r} must be a list without empty entries; correct it or remove the line"
        )
    return [str(item).strip() for item in value]


def _letter(label: str, choices: list[str], where: str, several: bool = False) -> str:
    """The letter of an answer, "(B)" or "B"; with `several` also "ACD". It must belong to an
    option."""
    letters = re.sub(r"[() .,]", "", label)
    unknown = set(letters) - set(LETTERS[: len(choices)])
    if not letters or unknown or len(letters) > (len(choices) if several else 1):
        raise InputError(
            f"{where}: answer {label!r} is not the letter of any of the {len(choices)} options; "
            "correct it or remove the line"
        )
    return "".join(sorted(set(letters)))


def _lettered(options: list[str], where: str) -> list[str]:
    """The options without the "(A)", "A)" or "A." at their start."""
    for letter, option in zip(LETTERS, options, strict=False):
        if not re.match(rf"\(?{letter}[).]\s*\S", option):
            raise InputError(
                f"{where}: option {option[:20]!r} does not begin with ({letter}) and a text; "
                "correct it or remove the problem"
            )
    return [re.split(r"[).]", option, maxsplit=1)[1].strip() for option in options]


def _lang(text: str) -> str:
    return "zh" if is_chinese(text) else "en"


# ---- A problem of a record -----------------------------------------------------------------------


def _ours(row: dict, path: Path, line: int) -> Problem:
    where = f"{path}:{line}"
    kind, solution, task = str(row.get("kind", "answer")), row.get("solution"), row.get("task", {})
    if kind not in KINDS or not isinstance(task, dict):
        raise InputError(f"{where}: 'kind' must be one of {', '.join(KINDS)} and 'task' an object")
    choices = _list_field(row, "choices", where) if kind == "choice" else []
    answer = "" if kind in ("code", "proof") else _field(row, "answer", where)
    needed = {
        "code": ("prompt", "tests"),
        "proof": ("header", "formal_statement", "informal_statement"),
    }
    for name in needed.get(kind, ()):
        _field(task, name, where)
    return Problem(
        id=str(row.get("id", f"{path.stem}-{line}")),
        question=_field(row, "question", where),
        answer=_letter(answer, choices, where, True) if choices else answer,
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
    marked, found, answer = _field(row, "answer", where).rpartition("####")
    answer = answer.strip().replace(",", "")
    if not found or not answer:
        raise InputError(
            f"{where}: no '#### N' at the end of the answer; add it or remove the line"
        )
    solution = re.sub(r"<<[^<>]*>>", "", marked).strip()
    return Problem(
        f"gsm8k-{path.stem}-{line}", _field(row, "question", where), answer, solution, "gsm8k"
    ), marked


def _gsm8k(row: dict, path: Path, line: int) -> Problem:
    return _gsm8k_marked(row, path, line)[0]


def gsm8k_rows(path) -> Iterator[tuple[Problem, str]]:
    """(problem, solution with the calculator's marks) of each row of a GSM8K file."""
    for line, row in read_jsonl(path):
        yield _gsm8k_marked(row, Path(path), line)


def _svamp(row: dict, path: Path, line: int) -> Problem:
    body, question, answer = (
        _field(row, name, f"{path}:{line}") for name in ("Body", "Question", "Answer")
    )
    return Problem(
        str(row.get("ID", f"{path.stem}-{line}")), f"{body} {question}", answer, source="svamp"
    )


def _word_problem(record: tuple[int, dict], path: Path, line: int) -> Problem:
    count, row = record
    answer = re.sub(r"\.0+$", "", _field(row, "Answer", f"{path}:{line}"))
    return Problem(
        f"{path.stem}-{count}", _template(row, f"{path}:{line}").text(), answer, source=path.stem
    )


def word_problem_rows(path) -> Iterator[tuple[int, dict, WordTemplate]]:
    """(number of the row, the row, the template) of each row of a MAWPS/ASDiv CSV."""
    for line, count, row in _header_table(Path(path), _text(Path(path))):
        yield count, row, _template(row, f"{path}:{line}")


def _template(row: dict, where: str) -> WordTemplate:
    question, equation, answer = (
        _field(row, name, where) for name in ("Question", "Equation", "Answer")
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
    question, level = _field(row, "problem", where), row.get("level")
    if level is None:
        answer = _field(row, "answer", where)
        return Problem(f"ocw-{row.get('id', line)}", question, answer, solution or None, "ocw")
    if row.get("answer"):
        answer = _field(row, "answer", where)
    else:
        answer = answers.extract(_through_last_box(_field(row, "solution", where)))
        if not answer:
            raise InputError(
                f"{where}: no \\boxed{{}} in 'solution'; add the answer or remove the problem"
            )
    subject = str(row.get("type") or row.get("subject") or path.parent.name)
    place = f"{path.parent.name}/{path.stem}" if path.suffix == ".json" else f"{path.stem}-{line}"
    name = row.get("unique_id") or row.get("id") or place
    return Problem(f"math-{name}", question, answer, solution or None, f"math/{subject}/{level}")


def _through_last_box(solution: str) -> str:
    """The solution up to the end of the last box, so that the text after it cannot be the
    answer."""
    start = max(solution.rfind(r"\boxed"), solution.rfind(r"\fbox"))
    if start < 0:
        return ""
    box = re.compile(r"\\(?:boxed|fbox)\s*([^\s{]*)").match(solution, start)
    if box[1]:  # \boxed 5
        return solution[: box.end()]
    depth = 0
    for brace in re.compile(r"\\.|[{}]", re.S).finditer(solution, box.end()):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return solution[: brace.end()]
    return ""


def _sat(row: dict, path: Path, line: int) -> Problem:
    """SAT of May 2023: {question, options "A) ... B) ...", Answer}."""
    where = f"{path}:{line}"
    choices = _lettered(re.split(r"\s(?=[B-E][).] )", _field(row, "options", where)), where)
    return Problem(
        f"sat-{row.get('id', line)}",
        _field(row, "question", where),
        _letter(_field(row, "Answer", where), choices, where),
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
    question = _field(row, "question", where).rstrip("\\\n ")
    question = f"{row['passage'].strip()}\n{question}" if row.get("passage") else question
    lang = "zh" if path.stem.startswith("gaokao") else _lang(question)
    common = {"id": f"{path.stem}-{line}", "question": question, "source": source, "lang": lang}
    if not row.get("options") and not row.get("label"):
        blanks = [blank.strip() for blank in _field(row, "answer", where).split(";")]
        return Problem(answer=blanks[0] if len(blanks) == 1 else _in_order(blanks), **common)
    choices = _lettered(_list_field(row, "options", where), where)
    # Seven problems of Gaokao-MathQA have several right options.
    label = _letter(_field(row, "label", where), choices, where, several=True)
    return Problem(answer=label, kind="choice", choices=tuple(choices), **common)


def _in_order(blanks: list[str]) -> str:
    """The answers of several blanks as a tuple, which data.answers compares in order (unlike a
    list)."""
    return "$(" + ", ".join(blank.strip("$") for blank in blanks) + ")$"


def _mmlu_stem(row: dict, path: Path, line: int) -> Problem:
    where = f"{path}:{line}"
    choices = _list_field(row, "options", where)
    return Problem(
        f"mmlu_stem-{row.get('id', line)}",
        _field(row, "question", where),
        _letter(_field(row, "answer", where), choices, where),
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
        _letter(label, choices, where),
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
        _field(row, "question", where),
        _field(row, "golden", where),
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
    question = _field(messages[0], "content", where)
    source = str(row.get("dataset", path.stem)).replace("-", "_")
    return Problem(
        f"{source}-{row.get('id', line)}",
        question,
        _field(row, "answer", where).replace(",", ""),
        source=source,
        lang=_lang(question),
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
        lang=lang[1] if lang else _lang(question),
    )


def _bbh(row: dict, path: Path, line: int) -> Problem:
    """BIG-Bench Hard: {input, target}, with the options in the input. `line` counts the
    examples."""
    where = f"{path}, example {line}"
    if not isinstance(row, dict):
        raise InputError(f"{where}: not a JSON object; correct or remove it")
    return Problem(
        f"bbh-{path.stem}-{line}",
        _field(row, "input", where),
        _field(row, "target", where),
        source=f"bbh/{path.stem}",
        kind="text",
    )


def _humaneval(row: dict, path: Path, line: int) -> Problem:
    where = f"{path}:{line}"
    task = {
        "prompt": str(row.get("prompt") or ""),
        "tests": _field(row, "test", where),
        "entry_point": _field(row, "entry_point", where),
    }
    return Problem(
        _field(row, "task_id", where),
        _field(row, "prompt", where),
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
    question = _field(row, "prompt" if "prompt" in row else "text", where)
    tests = _list_field(row, "test" if "test" in row else "test_list", where)
    setup = "\n".join(
        [str(row.get("test_setup_code") or ""), *(row.get("test_imports") or [])]
    ).strip()
    task = {"prompt": question, "tests": "\n".join(tests), "entry_point": ""} | (
        {"setup": setup} if setup else {}
    )
    code = _field(row, "code", where).replace("\r\n", "\n")
    return Problem(
        f"mbpp-{_field(row, 'task_id', where)}", question, "", code, "mbpp", kind="code", task=task
    )


def _minif2f(row: dict, path: Path, line: int) -> Problem:
    """miniF2F in Isabelle: {problem_name, header, formal_statement, informal_statement,
    informal_proof}."""
    where = f"{path}:{line}"
    names = ("header", "formal_statement", "informal_statement", "informal_proof")
    task = {name: _field(row, name, where) for name in names}
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
    ({"formal_statement"}, _minif2f),
    ({"task_id", "entry_point"}, _humaneval),
    ({"task_id", "code"}, _mbpp),
    ({"golden"}, _cmath),
    ({"messages"}, _messages),
    ({"options", "Answer"}, _sat),
    ({"passage"}, _agieval),
    ({"options"}, _mmlu_stem),
    ({"problem"}, _math),
    ({"Body"}, _svamp),
]
