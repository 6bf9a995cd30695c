"""benchmark_files.py: the layouts of benchmark files, and bad files."""

import csv
import gzip
import re

import pytest

from data.io import InputError
from data.mine.benchmark_files import read_benchmarks
from data.problems import readers


def test_formats(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    lines = '{"question": "Q1", "answer": "A1", "id": "one", "grade": "no"}\n\n{"problem": "Q2", "golden": 2.5}\n'
    write("a.jsonl", lines)
    write("b.jsonl.gz", gzip.compress(lines.encode()))
    write("g.jsonl", '{"question": "Q", "answer": "<<1+1=2>>2\\n#### 2"}')
    write(
        "math/algebra/1.json",
        '{"problem": "P", "level": "Level 1", "type": "Algebra", "solution": "S"}',
    )
    write(
        "bbh.json",
        '{"canary": "c", "examples": [{"input": "I1", "target": "T1"}, {"input": "I2", "target": "T2"}]}',
    )
    write(
        "list.json",
        '[{"input": "I", "output": ["O1", "O2"], "other": {"solution": "S", "source": "no"}}]',
    )
    chat = '{"id": "0", "messages": [{"role": "user", "content": "C"}], "answer": "18"}'
    write("chat.jsonl", chat + '\n{"question": "x"}')
    write(
        "svamp.json",
        '[{"ID": "c", "Body": "B.", "Question": "Q?", "Answer": 3.0, "Equation": "no"}]',
    )
    write("plain.tsv", "Q1\t18\nQ2\t19\n")
    write("header.csv", "Question,Options,Answer\nQ1,no,A1\n")
    write("mmlu.csv", "Q1,no,no,no,no,A\n")
    write("README.md", "not a benchmark")
    with open(tmp_path / "mawps.csv", "w", newline="") as file:
        csv.writer(file).writerow(["Question", "Numbers", "Equation", "Answer"])
        csv.writer(file).writerow(["number0 + number1 ?", "1 2", "+ number0 number1", "3"])
    items, counts = read_benchmarks(tmp_path)
    by_file = {}
    for item in items:
        by_file.setdefault(item.benchmark, []).append(tuple(item[1:]))
    two = [
        ("one", "question", "Q1"),
        ("one", "answer", "A1"),
        ("2", "problem", "Q2"),
        ("2", "golden", "2.5"),
    ]
    assert by_file == {
        "a.jsonl": two,
        "b.jsonl.gz": two,
        "g.jsonl": [
            ("1", "question", "Q"),
            ("1", "answer", "<<1+1=2>>2\n#### 2"),
            ("1", "answer", "2\n#### 2"),
        ],
        "math/algebra/1.json": [("1", "problem", "P"), ("1", "solution", "S")],
        "bbh.json": [
            ("1", "input", "I1"),
            ("1", "target", "T1"),
            ("2", "input", "I2"),
            ("2", "target", "T2"),
        ],
        "list.json": [
            ("1", "input", "I"),
            ("1", "output", "O1"),
            ("1", "output", "O2"),
            ("1", "solution", "S"),
        ],
        "chat.jsonl": [("0", "content", "C"), ("0", "answer", "18"), ("2", "question", "x")],
        "svamp.json": [("c", "question", "B. Q?"), ("c", "answer", "3")],
        "plain.tsv": [
            ("1", "question", "Q1"),
            ("1", "answer", "18"),
            ("2", "question", "Q2"),
            ("2", "answer", "19"),
        ],
        "header.csv": [("2", "question", "Q1"), ("2", "answer", "A1")],
        "mmlu.csv": [("1", "question", "Q1"), ("1", "answer", "A")],
        "mawps.csv": [("mawps-1", "question", "1 + 2?"), ("mawps-1", "answer", "3")],
    }
    assert counts == {"files": 12, "passed_over": 1, "problems": 17, "texts": len(items)}


@pytest.mark.parametrize(
    "name", ["gsm8k/test.jsonl", "word-problems/SVAMP.json", "word-problems/mawps_fold0.csv"]
)
def test_files_of_known_benchmarks(real, tmp_path, name):
    (tmp_path / real(name).name).symlink_to(real(name).resolve())
    texts = {item.text for item in read_benchmarks(tmp_path)[0]}
    loaded = readers.load(real(name))
    assert all(problem.question in texts for problem in loaded)
    if name.startswith("gsm8k"):
        assert all(
            any(text.startswith(problem.solution) for text in texts) for problem in loaded[:50]
        )


@pytest.mark.parametrize(
    "name, content, message",
    [
        (None, None, "nowhere: no such folder"),
        ("README.md", "text", "contains no benchmark"),
        ("a.jsonl", "", "a.jsonl: contains no problem"),
        ("a.json", "[]", "a.json: contains no problem"),
        ("a.csv", "", "a.csv: contains no problem"),
        ("a.jsonl", '{"question": "Q"}\n{"question": "Q"\n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", '{"question": "Q"}\n{"answer": "A"}\n', "a.jsonl: problem 2 has no question"),
        ("a.jsonl", '{"question": "Q"}\n3\n', "a.jsonl: problem 2 has no question"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz: cannot be read"),
        ("a.jsonl.gz", gzip.compress(b"{}", mtime=0)[:-9], "a.jsonl.gz: cannot be read"),
        ("a.jsonl", b"\xff\xfe", "a.jsonl: not UTF-8"),
    ],
)
def test_bad_benchmarks_are_named(tmp_path, name, content, message):
    folder = tmp_path / ("folder" if name else "nowhere")
    if name:
        folder.mkdir()
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_benchmarks(folder)
    assert "\n" not in str(error.value)
