import csv
import itertools
import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

from data.io import InputError, read_jsonl, run_cli
from data.problems import training_sets
from data.problems.problem import Problem
from data.problems.readers import gsm8k_rows, load, save
from data.problems.training_sets import calculator_program, question_key


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Question", "Numbers", "Equation", "Answer", "group_nums"])
        writer.writerows([*row, "[1]"] for row in rows)


# ---- Files ---------------------------------------------------------------------------------------


def test_our_jsonl_round_trips(tmp_path):
    written = [
        Problem("1", "What is 2 + 2?", "4", "2 + 2 = 4", "made", "en"),
        Problem("2", "二加三？", "5", lang="zh"),
    ]
    assert save(tmp_path / "p.jsonl", written) == 2
    assert load(tmp_path / "p.jsonl") == written
    (tmp_path / "q.jsonl").write_text(
        '{"question": "Q", "answer": 4.0}\n\n{"question": "R", "answer": 0}\n'
    )
    assert load(tmp_path / "q.jsonl") == [Problem("q-1", "Q", "4"), Problem("q-3", "R", "0")]


def test_gsm8k(tmp_path):
    row = {
        "question": "How many?",
        "answer": "He has 3*4=<<3*4=12>>12.\nThen 12*100=<<12*100=1200>>1,200.\n#### 1,200",
    }
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    assert load(tmp_path / "train.jsonl") == [
        Problem("gsm8k-train-1", "How many?", "1200", "He has 3*4=12.\nThen 12*100=1,200.", "gsm8k")
    ]


def test_csv_fills_placeholders(tmp_path):
    eleven = " ".join(f"{n}.0" for n in range(20, 31))
    write_csv(
        tmp_path / "m.csv",
        [
            (
                "Ann 's dog ate number0 of number1 bones , did n't it ?",
                "3.50 12.0",
                "- number1 number0",
                "8.5",
            ),
            ("a number1 b number10 c number0", eleven, "+ number10 number1", "51.0"),
            ("She drank number0 cup .", "0.16666666666666666", "number0", "0.16666666666666666"),
        ],
    )
    first, second, third = load(tmp_path / "m.csv")
    assert first == Problem("m-1", "Ann's dog ate 3.5 of 12 bones, didn't it?", "8.5", source="m")
    assert (second.question, second.answer) == (
        "a 21 b 30 c 20",
        "51",
    )  # number1 is not the start of number10
    assert third.question == "She drank 1/6 cup."


def test_svamp(tmp_path):
    rows = [
        {
            "ID": "chal-1",
            "Body": "Dan had $ 3.",
            "Question": "How much?",
            "Answer": 1.0,
            "Type": "Subtraction",
        }
    ]
    (tmp_path / "s.json").write_text(json.dumps(rows, indent=4))
    assert load(tmp_path / "s.json") == [
        Problem("chal-1", "Dan had $ 3. How much?", "1", source="svamp")
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"question": "Q", "answer": "1"}\n{"question": "R"}\n', ":2: a problem without 'answer'"),
        (
            '{"question": "Q", "answer": "1"}\n{"question": "R", "answer": " "}\n',
            ":2: a problem without 'answer'",
        ),
        ('{"answer": "1"}\n', ":1: no question among answer; a problem needs question, problem,"),
        (
            '{"question": "Q", "answer": "x #### 1"}\n{"question": "R", "answer": "2"}\n',
            ":2: no '#### N'",
        ),
        ('{"question": "Q", "answer": "1"}\n{"question', ":2: not valid JSON"),
        (
            '[\n{"Body": "B", "Question": "Q", "Answer": 1},\n{"Body": "B", "Answer": 1}\n]',
            ":3: .* without 'Question'",
        ),
        ('[\n{"Body": "B",\n"Question": "Q", "Answer": }\n]', ":3: not valid JSON"),
        ('[{"Body": "B", "Question": "Q", "Answer": 1}', ":1: not valid JSON"),
        ("[1]", ":1: not a JSON object"),
        ("[]", ": holds no problem"),
        (f"question,answer\n{'Q' * 200_000},1\n", ":2: not CSV .field larger than"),
        ("", ": holds no problem"),
        ("Question,Equation,Answer\nQ,number0,1\n", ":1: no column 'Numbers'"),
        ("Question,Numbers,Equation,Answer\n", ": holds no problem"),
        (
            "Question,Numbers,Equation,Answer\nQ,1,number0,1\nQ number1,1,number0,1\n",
            ":3: number1 is used",
        ),
        (
            "Question,Numbers,Equation,Answer\nQ,1,+ number0,1\n",
            ":2: equation '\\+ number0' ends too early",
        ),
        (
            "Question,Numbers,Equation,Answer\nQ,1,number0 number0,1\n",
            ":2: equation 'number0 number0' goes on",
        ),
        (
            "Question,Numbers,Equation,Answer\nQ,1,/ number0 0.0,1\n",
            ":2: .*correct or remove the row",
        ),
        ("Question,Numbers,Equation,Answer\nQ,x,number0,1\n", ":2: 'x' is not a number"),
        ("Question,Numbers,Equation,Answer\nQ,1,number0,\n", ":2: a problem without 'Answer'"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path, text, message):
    (tmp_path / "bad").write_text(text)
    with pytest.raises(InputError, match=f"^{tmp_path}/bad{message}"):
        load(tmp_path / "bad")


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="none.jsonl: cannot be read"):
        load(tmp_path / "none.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        load(tmp_path / "binary")


@pytest.mark.parametrize(
    "name, count",
    [
        ("gsm8k/train.jsonl", 7473),
        ("gsm8k/test.jsonl", 1319),
        ("word-problems/SVAMP.json", 1000),
        ("word-problems/mawps_asdiv_train.csv", 3138),
        ("word-problems/mawps_fold0.csv", 384),
    ],
)
def test_real_files(real, name, count):
    found = load(real(name))
    assert len(found) == count == len({problem.id for problem in found})
    for problem in found:
        assert "number0" not in problem.question and "<<" not in (problem.solution or "")
        Fraction(problem.answer)


# ---- Numbers and templates -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "marked, answer, program",
    [
        ("48/2 = <<48/2=24>>24, 48+24 = <<48+24=72>>72", "72", "a = 48 / 2\nb = 48 + a\nprint(b)"),
        (
            "<<1,000*.5=500>>500 $<<$500-20%*500=400>>",
            "400",
            "a = 1000 * 0.5\nb = a - 20 / 100 * a\nprint(b)",
        ),
        ("<<2*3=6>> <<3+3=6>> <<6*6=36>>", "36", "a = 2 * 3\nb = 3 + 3\nc = b * b\nprint(c)"),
        ("<<(2+3)*4=20>> <<20/-5=-4>>", "-4", "a = (2 + 3) * 4\nb = a / -5\nprint(b)"),
        ("<<10/3=3.33>>3.33, <<3.33*3=9.99>>", "10", "a = 10 / 3\nb = a * 3\nprint(b)"),
        ("<<48/2=24>>", "25", None),  # does not come to the answer
        ("<<48/2=30>><<48/2=24>>", "24", None),  # a mark is wrong
        ("<<2**3=8>>", "8", None),
        ("<<x+1=8>>", "8", None),
        ("<<1/0=8>>", "8", None),
        ("<<(2+=8>>", "8", None),
        ("no marks", "8", None),
    ],
)
def test_calculator_program(marked, answer, program, capsys):
    assert calculator_program(marked, answer) == program
    if program:
        exec(program, {})
        assert float(capsys.readouterr().out) == pytest.approx(float(answer))


def test_real_gsm8k_programs(real, capsys):
    pairs = list(gsm8k_rows(real("gsm8k/train.jsonl")))[::10]
    programs = [
        (calculator_program(marked, problem.answer), problem.answer) for problem, marked in pairs
    ]
    assert sum(program is not None for program, _ in programs) > 0.9 * len(pairs)
    for program, answer in programs:
        if program:
            exec(program, {})
            assert float(capsys.readouterr().out) == pytest.approx(float(answer), rel=1e-5)


# ---- Training sets -------------------------------------------------------------------------------


def test_question_key():
    assert question_key("Tom 's number0 cats ate number1 fish .") == question_key(
        "Tom's 12 cats  ate 3.5 fish"
    )
    assert question_key("She drank 1/6 cup.") == question_key("she drank number0 cup .")
    assert question_key("Tom has number0 cats") != question_key("Tom had number0 cats")


@pytest.fixture
def folder(tmp_path):
    """40 training questions. Three of them are also in the tests with other words, and one has a
    wrong answer."""
    names = [chr(ord("a") + i) * 3 for i in range(40 - 26)] + [chr(ord("a") + i) for i in range(26)]
    rows = [
        (
            f"{name} has number0 of number1 apples . How many more ?",
            f"{3 + i}.0 {40 + i}.0",
            "- number1 number0",
            "37.0",
        )
        for i, name in enumerate(names)
    ]
    rows[5] = (*rows[5][:3], "36.0")
    write_csv(tmp_path / "mawps_asdiv_train.csv", rows)
    fold = [rows[0], (rows[1][0].upper().replace("NUMBER", "number"), "9 99", *rows[1][2:3], "90")]
    write_csv(tmp_path / "mawps_fold2.csv", fold)
    svamp = [
        {
            "ID": "1",
            "Body": f"{names[2]} has 1 of 2 apples",
            "Question": "How many more?",
            "Answer": 1.0,
        }
    ]
    (tmp_path / "SVAMP.json").write_text(json.dumps(svamp))
    return tmp_path


def rows_of(path):
    return [row for _, row in read_jsonl(path)]


def test_word_problem_sets(folder, capsys):
    training_sets.main(
        [
            "word-problems",
            "--data",
            str(folder),
            "--to",
            str(folder / "to"),
            "--fold",
            "2",
            "--copies",
            "4",
            "--formats",
            "cot,pot",
        ]
    )
    assert (
        "40 rows, 3 dropped (the question is in a test set), 1 left out" in capsys.readouterr().out
    )
    rl, valid = load(folder / "to/rl.jsonl"), load(folder / "to/valid.jsonl")
    tests = load(folder / "to/test_mawps.jsonl") + load(folder / "to/test_svamp.jsonl")
    assert len(tests) == 3 and len(valid) == 2
    sft, text = rows_of(folder / "to/sft.jsonl"), rows_of(folder / "to/text.jsonl")
    keys = [{question_key(p.question) for p in side} for side in (rl, valid, tests)]
    keys.append({question_key(row["question"]) for row in sft})
    assert not any(a & b for a, b in itertools.combinations(keys, 2))
    assert (len(keys[0]), len(keys[3])) == (
        6,
        28,
    )  # 40 - 3 - 1 - 2 = 34 questions, four fifths of them with solutions
    assert len(rl) == 6 * 5 and len(sft) == 2 * 28 * 5  # each with its 4 variants, in 2 formats
    assert len({p.question for p in rl}) == len(rl) == len({p.id for p in rl})
    assert all(p.solution is None for p in rl)

    for row in sft:
        assert set(row) == {"question", "response", "format", "lang"}
        small, large = map(int, re.findall(r"\d+", row["question"]))
        if row["format"] == "pot":
            assert row["response"] == f"print({large} - {small})"
        else:
            assert (
                row["response"]
                == f"{large} - {small} = {large - small}\nThe answer is {large - small}."
            )
    # documents: questions with solutions, and unsolved questions alone
    text = [row["text"] for row in text]
    assert [one for one in text if "\n" in one] == [
        f"{row['question']}\n{row['response']}" for row in sft
    ]
    assert {one for one in text if "\n" not in one} == {p.question for p in rl}

    before = (folder / "to/sft.jsonl").read_bytes()
    training_sets.main(
        [
            "word-problems",
            "--data",
            str(folder),
            "--to",
            str(folder / "to"),
            "--fold",
            "2",
            "--copies",
            "4",
        ]
    )
    assert {row["format"] for row in rows_of(folder / "to/sft.jsonl")} == {"pot"}
    training_sets.main(
        [
            "word-problems",
            "--data",
            str(folder),
            "--to",
            str(folder / "to"),
            "--fold",
            "2",
            "--copies",
            "4",
            "--formats",
            "cot,pot",
        ]
    )
    assert (folder / "to/sft.jsonl").read_bytes() == before


def test_no_variant_is_a_question_of_the_tests(tmp_path):
    """Sam's question about cakes is in the test fold. So Joan's question must not become Sam's."""

    def told(name, thing):
        return (
            f"Once {name} had number0 {thing} and ate number1 .",
            "9.0 4.0",
            "- number0 number1",
            "5.0",
        )

    names, things = ("Joan", "Sam", "Ann"), ("cakes", "pears", "plums")
    train = [
        told(name, thing) for name in names for thing in things if (name, thing) != ("Sam", "cakes")
    ]
    write_csv(tmp_path / "mawps_asdiv_train.csv", train)
    write_csv(tmp_path / "mawps_fold0.csv", [told("Sam", "cakes")])
    (tmp_path / "SVAMP.json").write_text(
        '[{"ID": "1", "Body": "b", "Question": "q", "Answer": 1.0}]'
    )
    files = training_sets.word_problems(tmp_path, copies=40)
    questions = {question_key(row["question"]) for row in files["sft.jsonl"]}
    questions |= {question_key(problem.question) for problem in files["rl.jsonl"]}
    (held_out,) = {question_key(problem.question) for problem in files["valid.jsonl"]}
    everything = {question_key(told(name, thing)[0]) for name in names for thing in things}
    assert questions == everything - {question_key(told("Sam", "cakes")[0]), held_out}


def test_gsm8k_sets(tmp_path):
    rows = [
        {
            "question": f"{'abcdefghijklmnopqrst'[i]}: 3 * {i}?",
            "answer": f"<<3*{i}={3 * i}>>\n#### {3 * i}",
        }
        for i in range(20)
    ]
    rows[4]["answer"] = "No marks.\n#### 12"
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text(json.dumps(rows[7]) + "\n")
    training_sets.main(
        ["gsm8k", "--data", str(tmp_path), "--to", str(tmp_path / "to"), "--valid", "3"]
    )
    rl, valid = load(tmp_path / "to/rl.jsonl"), load(tmp_path / "to/valid.jsonl")
    assert len(rl) == 16 and len(valid) == 3 and len(load(tmp_path / "to/test.jsonl")) == 1
    assert {p.question for p in rl + valid} == {row["question"] for row in rows} - {
        rows[7]["question"]
    }
    sft = rows_of(tmp_path / "to/sft.jsonl")
    train = {p.question for p in rl}
    assert [r["question"] for r in sft if r["format"] == "cot"] == [p.question for p in rl]
    assert {r["question"] for r in sft if r["format"] == "pot"} == train - {rows[4]["question"]}
    with pytest.raises(InputError, match="--valid 19: must be between 1 and 18"):
        training_sets.gsm8k(tmp_path, valid=19)


def test_command_errors(folder, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as raised:
            run_cli(
                lambda: training_sets.main(
                    ["word-problems", "--data", str(folder), "--to", "x", *arguments]
                )
            )
        assert raised.value.code == 2
        return capsys.readouterr().err

    assert "mawps_fold3.csv: cannot be read" in run("--fold", "3")
    assert run("--fold", "2", "--formats", "pot,essay").endswith(
        "unknown format 'essay'; use cot, pot or cot,pot\n"
    )
    write_csv(folder / "mawps_asdiv_train.csv", [])
    assert "would be empty" in run("--fold", "2")
    assert not Path("x").exists()
