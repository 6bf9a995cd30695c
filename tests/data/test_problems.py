import ast
import csv
import json
import os
import random
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import InputError, problems, read_jsonl, run_cli
from data.problems import (
    Problem,
    WordTemplate,
    calculator_program,
    load,
    number_text,
    parse_number,
    question_key,
    save,
)

DATA = Path(os.environ.get("MATH_DATA", Path(__file__).parents[2] / "../shared/data"))


def real(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is missing; set MATH_DATA to the folder of the data")
    return path


def template(question, numbers, equation):
    return WordTemplate(question, tuple(map(parse_number, numbers.split())), equation)


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Question", "Numbers", "Equation", "Answer", "group_nums"])
        writer.writerows([*row, "[1]"] for row in rows)


# ---- Files -----------------------------------------------------------------------------------------------------------

def test_our_jsonl_round_trips(tmp_path):
    written = [Problem("1", "What is 2 + 2?", "4", "2 + 2 = 4", "made", "en"), Problem("2", "二加三？", "5", lang="zh")]
    assert save(tmp_path / "p.jsonl", written) == 2
    assert load(tmp_path / "p.jsonl") == written
    (tmp_path / "q.jsonl").write_text('{"question": "Q", "answer": 4.0}\n\n{"question": "R", "answer": 0}\n')
    assert load(tmp_path / "q.jsonl") == [Problem("q-1", "Q", "4"), Problem("q-3", "R", "0")]


def test_gsm8k(tmp_path):
    row = {"question": "How many?", "answer": "He has 3*4=<<3*4=12>>12.\nThen 12*100=<<12*100=1200>>1,200.\n#### 1,200"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    assert load(tmp_path / "train.jsonl") == [Problem(
        "gsm8k-train-1", "How many?", "1200", "He has 3*4=12.\nThen 12*100=1,200.", "gsm8k")]


def test_csv_fills_placeholders(tmp_path):
    eleven = " ".join(f"{n}.0" for n in range(20, 31))
    write_csv(tmp_path / "m.csv", [
        ("Ann 's dog ate number0 of number1 bones , did n't it ?", "3.50 12.0", "- number1 number0", "8.5"),
        ("a number1 b number10 c number0", eleven, "+ number10 number1", "51.0"),
        ("She drank number0 cup .", "0.16666666666666666", "number0", "0.16666666666666666")])
    first, second, third = load(tmp_path / "m.csv")
    assert first == Problem("m-1", "Ann's dog ate 3.5 of 12 bones, didn't it?", "8.5", source="m")
    assert (second.question, second.answer) == ("a 21 b 30 c 20", "51")  # number1 is not the start of number10
    assert third.question == "She drank 1/6 cup."


def test_svamp(tmp_path):
    rows = [{"ID": "chal-1", "Body": "Dan had $ 3.", "Question": "How much?", "Answer": 1.0, "Type": "Subtraction"}]
    (tmp_path / "s.json").write_text(json.dumps(rows, indent=4))
    assert load(tmp_path / "s.json") == [Problem("chal-1", "Dan had $ 3. How much?", "1", source="svamp")]


@pytest.mark.parametrize("text, message", [
    ('{"question": "Q", "answer": "1"}\n{"question": "R"}\n', ":2: a problem without 'answer'"),
    ('{"question": "Q", "answer": "1"}\n{"question": "R", "answer": " "}\n', ":2: a problem without 'answer'"),
    ('{"answer": "1"}\n', ":1: a problem without 'question'"),
    ('{"question": "Q", "answer": "x #### 1"}\n{"question": "R", "answer": "2"}\n', ":2: no '#### N'"),
    ('{"question": "Q", "answer": "1"}\n{"question', ":2: not valid JSON"),
    ('[\n{"Body": "B", "Question": "Q", "Answer": 1},\n{"Body": "B", "Answer": 1}\n]', ":3: .* without 'Question'"),
    ('[\n{"Body": "B",\n"Question": "Q", "Answer": }\n]', ":3: not valid JSON"),
    ('[{"Body": "B", "Question": "Q", "Answer": 1}', ":1: not valid JSON"),
    ("[1]", ":1: not a JSON object"),
    ("[]", ": holds no problem"),
    ("", ":1: no column 'Question'"),
    ("Question,Answer\nQ,1\n", ":1: no column 'Numbers'"),
    ("Question,Numbers,Equation,Answer\n", ": holds no problem"),
    ("Question,Numbers,Equation,Answer\nQ,1,number0,1\nQ number1,1,number0,1\n", ":3: number1 is used"),
    ("Question,Numbers,Equation,Answer\nQ,1,+ number0,1\n", ":2: equation '\\+ number0' ends too early"),
    ("Question,Numbers,Equation,Answer\nQ,1,number0 number0,1\n", ":2: equation 'number0 number0' goes on"),
    ("Question,Numbers,Equation,Answer\nQ,1,/ number0 0.0,1\n", ":2: .*correct or remove the row"),
    ("Question,Numbers,Equation,Answer\nQ,x,number0,1\n", ":2: 'x' is not a number"),
    ("Question,Numbers,Equation,Answer\nQ,1,number0,\n", ":2: a problem without 'Answer'"),
])
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


@pytest.mark.parametrize("name, count", [
    ("gsm8k/train.jsonl", 7473), ("gsm8k/test.jsonl", 1319), ("word-problems/SVAMP.json", 1000),
    ("word-problems/mawps_asdiv_train.csv", 3138), ("word-problems/mawps_fold0.csv", 384)])
def test_real_files(name, count):
    found = load(real(name))
    assert len(found) == count == len({problem.id for problem in found})
    for problem in found:
        assert "number0" not in problem.question and "<<" not in (problem.solution or "")
        Fraction(problem.answer)


# ---- Numbers and templates -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, written", [
    ("56.0", "56"), ("1215", "1215"), ("10.50", "10.5"), ("0.05", "0.05"), ("5.00", "5"), ("-2.5", "-2.5"),
    ("0.3333333333333333", "1/3"), ("4.166666666666667", "25/6"), ("0.3333", "0.3333"), ("0.4698", "0.4698")])
def test_number_text(text, written):
    assert number_text(parse_number(text)) == written


@given(st.integers(-10**6, 10**6), st.integers(0, 6))
def test_finite_decimals_are_written_exactly(digits, places):
    number = Fraction(digits, 10**places)
    text = number_text(number)
    assert Fraction(text) == number and "/" not in text and not ("." in text and text.endswith("0"))


@pytest.mark.parametrize("equation, program, cot", [
    ("- number0 number1", "5 - 3", "5 - 3 = 2"),
    ("* + number0 number1 2.0", "(5 + 3) * 2", "5 + 3 = 8\n8 * 2 = 16"),
    ("+ * number0 number1 number2", "5 * 3 + 0.5", "5 * 3 = 15\n15 + 0.5 = 15.5"),
    ("- number0 - number1 number2", "5 - (3 - 0.5)", "3 - 0.5 = 2.5\n5 - 2.5 = 2.5"),
    ("+ number0 - number1 number2", "5 + 3 - 0.5", "3 - 0.5 = 2.5\n5 + 2.5 = 7.5"),
    ("/ number0 / number1 number2", "5 / (3 / 0.5)", "3 / 0.5 = 6\n5 / 6 = 0.8333"),
    ("* / number0 number1 3.0", "5 / 3 * 3", "5 / 3 = 1.6667\n1.6667 * 3 = 5"),
    ("/ number0 number3", "5 / (1/6)", "5 / (1/6) = 30"),
    ("+ number3 number3", "1/6 + 1/6", "1/6 + 1/6 = 0.3333"),
    ("number1", "3", "")])
def test_program_and_cot(equation, program, cot):
    made = template("q", "5.0 3 0.5 0.16666666666666666", equation)
    last = cot.rpartition("= ")[2] or "3"
    assert made.program() == f"print({program})"
    assert made.cot() == (cot + "\n" if cot else "") + f"The answer is {last}."
    assert made.value() == Fraction(eval(program)).limit_denominator(1000)


TREES = st.recursive(st.integers(0, 5), lambda child: st.tuples(st.sampled_from("+-*/"), child, child), max_leaves=6)


def prefix(tree):
    return f"number{tree}" if isinstance(tree, int) else f"{tree[0]} {prefix(tree[1])} {prefix(tree[2])}"


def exact(node):
    """The oracle: Python's own parser, in Fractions."""
    if isinstance(node, ast.Expression):
        return exact(node.body)
    if isinstance(node, ast.Constant):
        return Fraction(str(node.value))
    left, right = exact(node.left), exact(node.right)
    return {ast.Add: left + right, ast.Sub: left - right, ast.Mult: left * right,
            ast.Div: left / right if right else None}[type(node.op)]


@given(TREES)
def test_programs_mean_their_equation_and_need_their_parentheses(tree):
    # numbers in general position, so that two different expressions have different values
    numbers = "7919 104729 1299709.5 15485863 0.0317 179424673"
    try:
        made = template("q", numbers, prefix(tree))
        value = made.value()
    except ZeroDivisionError:
        return
    program = made.program().removeprefix("print(")[:-1]

    def direct(node):
        if isinstance(node, int):
            return Fraction(numbers.split()[node])
        a, b = direct(node[1]), direct(node[2])
        return {"+": a + b, "-": a - b, "*": a * b}[node[0]] if node[0] != "/" else a / b

    assert value == direct(tree) == exact(ast.parse(program, mode="eval"))
    leaves = [] if isinstance(tree, int) else [int(c) for c in prefix(tree).replace("number", "") if c.isdigit()]
    if len(leaves) != len(set(leaves)):
        return  # n - (n - n) is n - n - n with other signs: repeated numbers may cancel
    opened = []
    for position, character in enumerate(program):
        if character == "(":
            opened.append(position)
        elif character == ")":
            start = opened.pop()
            without = program[:start] + program[start + 1:position] + program[position + 1:]
            try:
                assert exact(ast.parse(without, mode="eval")) != value
            except TypeError:  # a division by zero in the changed one
                pass


@pytest.mark.parametrize("equation, answer, agrees", [
    ("* number0 number1", "15.0", True), ("/ number0 number1", "1.67", True), ("/ number0 number1", "1.7", True),
    ("/ number0 number1", "1.6", False), ("/ number0 number1", "2.0", False), ("* number0 number1", "14.0", False)])
def test_agreement(equation, answer, agrees):
    assert template("q", "5 3", equation).agrees(answer) == agrees


CASES = [
    ("number0 of number1", "12.0 7.0", "- number0 number1"),
    ("number0 in number1", "36.0 12.0", "/ number0 number1"),
    ("number0 and number1 and number2", "10.22 11.73 6.0", "+ number0 number1"),
    ("number0 and number1 and number2", "3 5 3", "* number0 + number0 number1"),
    ("number0 dozen", "7.0", "* number0 12.0"),
    ("number0 % of number1", "20 6000", "* * number0 0.01 number1"),
    ("number0 and number1", "0.16666666666666666 0.5", "+ number0 number1"),
    ("number0 then number1", "5 3", "/ number0 number1")]


@pytest.mark.parametrize("case", CASES)
def test_resampled_numbers_keep_their_kind(case):
    original, rng = template(*case), random.Random(0)
    variants = [original.resample(rng) for _ in range(50)]
    assert len(set(variants)) > 4
    for variant in variants:
        assert (variant.question, variant.equation) == (original.question, original.equation)
        for old, new in zip(original.numbers, variant.numbers, strict=True):
            assert (old.denominator == 1) == (new.denominator == 1)
            assert old / 2 <= new <= 2 * old or old < 10 and 2 <= new <= 9 or new < 1 and old < 1
            assert len(number_text(new).partition(".")[2]) <= len(number_text(old).partition(".")[2]) or old < 1
        assert len(set(variant.numbers)) == len(set(original.numbers))
        for old, new in zip(original._results(), variant._results(), strict=True):
            assert new > 0 and (new.denominator == 1 or old.denominator > 1)


def test_resampling_keeps_what_the_equation_depends_on():
    rng = random.Random(0)
    # equal numbers stay equal: the equation's number0 may have meant number1
    same = template("number0 and number1 and number2", "4 4 9", "+ + number0 number0 number2")
    assert all(v.numbers[0] == v.numbers[1] for v in (same.resample(rng) for _ in range(20)))
    # a number equal to a constant of the equation stays: the constant may be that number
    constant = template("number0 pens for each of number1 friends", "8 4", "* number0 4.0")
    assert all(v.numbers[1] == 4 and v.value() == 4 * v.numbers[0] for v in (constant.resample(rng) for _ in range(20)))
    # where no draw fits, the template itself: 1 is never changed, and 1 - 1 leaves no choice
    fixed = template("number0 number1", "1 1", "- number0 number1")
    assert fixed.resample(rng) == fixed and same.resample(rng, tries=0) is same


def test_resampling_is_seeded():
    case = template(*CASES[0])
    draws = [[case.resample(rng) for _ in range(5)] for rng in (random.Random(1), random.Random(1), random.Random(2))]
    assert draws[0] == draws[1] != draws[2]


def test_real_templates_agree_with_their_programs():
    rows = list(problems._csv_rows(real("word-problems/mawps_asdiv_train.csv")))
    wrong = [row["Question"] for _, row, made in rows if not made.agrees(row["Answer"])]
    assert len(wrong) == 8
    for _, row, made in rows[::7]:
        value = float(eval(made.program().removeprefix("print")))
        stack = []  # another way to read prefix form
        for token in reversed(row["Equation"].split()):
            if token in "+-*/":
                a, b = stack.pop(), stack.pop()
                stack.append({"+": a + b, "-": a - b, "*": a * b}[token] if token != "/" else a / b)
            else:
                index = token.removeprefix("number")
                stack.append(float(row["Numbers"].split()[int(index)] if token != index else token))
        assert value == pytest.approx(stack[0], rel=1e-9) and len(stack) == 1
        assert value == pytest.approx(float(made.cot().split()[-1].rstrip(".")), abs=5.1e-5)


# ---- GSM8K programs --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("marked, answer, program", [
    ("48/2 = <<48/2=24>>24, 48+24 = <<48+24=72>>72", "72", "a = 48 / 2\nb = 48 + a\nprint(b)"),
    ("<<1,000*.5=500>>500 $<<$500-20%*500=400>>", "400", "a = 1000 * 0.5\nb = a - 20 / 100 * a\nprint(b)"),
    ("<<2*3=6>> <<3+3=6>> <<6*6=36>>", "36", "a = 2 * 3\nb = 3 + 3\nc = b * b\nprint(c)"),
    ("<<(2+3)*4=20>> <<20/-5=-4>>", "-4", "a = (2 + 3) * 4\nb = a / -5\nprint(b)"),
    ("<<10/3=3.33>>3.33, <<3.33*3=9.99>>", "10", "a = 10 / 3\nb = a * 3\nprint(b)"),
    ("<<48/2=24>>", "25", None),  # does not come to the answer
    ("<<48/2=30>><<48/2=24>>", "24", None),  # a mark is wrong
    ("<<2**3=8>>", "8", None), ("<<x+1=8>>", "8", None), ("<<1/0=8>>", "8", None), ("<<(2+=8>>", "8", None),
    ("no marks", "8", None)])
def test_calculator_program(marked, answer, program, capsys):
    assert calculator_program(marked, answer) == program
    if program:
        exec(program, {})
        assert float(capsys.readouterr().out) == pytest.approx(float(answer))


def test_real_gsm8k_programs(capsys):
    pairs = list(problems._gsm8k(real("gsm8k/train.jsonl")))[::10]
    programs = [(calculator_program(marked, problem.answer), problem.answer) for problem, marked in pairs]
    assert sum(program is not None for program, _ in programs) > 0.9 * len(pairs)
    for program, answer in programs:
        if program:
            exec(program, {})
            assert float(capsys.readouterr().out) == pytest.approx(float(answer), rel=1e-5)


# ---- Training sets ---------------------------------------------------------------------------------------------------

def test_question_key():
    assert question_key("Tom 's number0 cats ate number1 fish .") == question_key("Tom's 12 cats  ate 3.5 fish")
    assert question_key("She drank 1/6 cup.") == question_key("she drank number0 cup .")
    assert question_key("Tom has number0 cats") != question_key("Tom had number0 cats")


@pytest.fixture
def folder(tmp_path):
    """40 train questions; three of them are in the tests in other clothes, one has a wrong answer."""
    names = [chr(ord("a") + i) * 3 for i in range(40 - 26)] + [chr(ord("a") + i) for i in range(26)]
    rows = [(f"{name} has number0 of number1 apples . How many more ?", f"{3 + i}.0 {40 + i}.0", "- number1 number0",
             "37.0") for i, name in enumerate(names)]
    rows[5] = (*rows[5][:3], "36.0")
    write_csv(tmp_path / "mawps_asdiv_train.csv", rows)
    fold = [rows[0], (rows[1][0].upper().replace("NUMBER", "number"), "9 99", *rows[1][2:3], "90")]
    write_csv(tmp_path / "mawps_fold2.csv", fold)
    svamp = [{"ID": "1", "Body": f"{names[2]} has 1 of 2 apples", "Question": "How many more?", "Answer": 1.0}]
    (tmp_path / "SVAMP.json").write_text(json.dumps(svamp))
    return tmp_path


def rows_of(path):
    return [row for _, row in read_jsonl(path)]


def test_word_problem_sets(folder, capsys):
    problems.main(["word-problems", "--data", str(folder), "--to", str(folder / "to"), "--fold", "2", "--copies", "4",
                   "--formats", "cot,pot"])
    assert "40 rows, 3 dropped (their question is in a test set), 1 left out" in capsys.readouterr().out
    rl, valid = load(folder / "to/rl.jsonl"), load(folder / "to/valid.jsonl")
    tests = load(folder / "to/test_mawps.jsonl") + load(folder / "to/test_svamp.jsonl")
    assert len(tests) == 3 and len(valid) == 2
    keys = [{question_key(p.question) for p in side} for side in (rl, valid, tests)]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    assert len(keys[0]) == 40 - 3 - 1 - 2 and len(rl) == len(keys[0]) * 5  # with its 4 variants
    assert len({p.question for p in rl}) == len(rl) == len({p.id for p in rl})

    answers = {p.question: p.answer for p in rl}
    sft, text = rows_of(folder / "to/sft.jsonl"), rows_of(folder / "to/text.jsonl")
    assert [set(row) for row in sft] == [{"question", "response", "format", "lang"}] * (2 * len(rl))
    for row in sft:
        if row["format"] == "pot":
            assert eval(row["response"].removeprefix("print")) == int(answers[row["question"]])
        else:
            assert row["response"].endswith(f"\nThe answer is {answers[row['question']]}.")
    assert {row["text"].splitlines()[0] for row in text} == set(answers)

    before = (folder / "to/sft.jsonl").read_bytes()
    problems.main(["word-problems", "--data", str(folder), "--to", str(folder / "to"), "--fold", "2", "--copies", "4"])
    assert {row["format"] for row in rows_of(folder / "to/sft.jsonl")} == {"pot"}
    problems.main(["word-problems", "--data", str(folder), "--to", str(folder / "to"), "--fold", "2", "--copies", "4",
                   "--formats", "cot,pot"])
    assert (folder / "to/sft.jsonl").read_bytes() == before


def test_gsm8k_sets(tmp_path):
    rows = [{"question": f"{'abcdefghijklmnopqrst'[i]}: 3 * {i}?", "answer": f"<<3*{i}={3 * i}>>\n#### {3 * i}"}
            for i in range(20)]
    rows[4]["answer"] = "No marks.\n#### 12"
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text(json.dumps(rows[7]) + "\n")
    problems.main(["gsm8k", "--data", str(tmp_path), "--to", str(tmp_path / "to"), "--valid", "3"])
    rl, valid = load(tmp_path / "to/rl.jsonl"), load(tmp_path / "to/valid.jsonl")
    assert len(rl) == 16 and len(valid) == 3 and len(load(tmp_path / "to/test.jsonl")) == 1
    assert {p.question for p in rl + valid} == {row["question"] for row in rows} - {rows[7]["question"]}
    sft = rows_of(tmp_path / "to/sft.jsonl")
    train = {p.question for p in rl}
    assert [r["question"] for r in sft if r["format"] == "cot"] == [p.question for p in rl]
    assert {r["question"] for r in sft if r["format"] == "pot"} == train - {rows[4]["question"]}
    with pytest.raises(InputError, match="--valid 19: must be between 1 and 18"):
        problems.gsm8k(tmp_path, tmp_path / "to", valid=19)


def test_command_errors(folder, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as raised:
            run_cli(lambda: problems.main(["word-problems", "--data", str(folder), "--to", "x", *arguments]))
        assert raised.value.code == 2
        return capsys.readouterr().err

    assert "mawps_fold3.csv: cannot be read" in run("--fold", "3")
    assert run("--fold", "2", "--formats", "pot,essay").endswith("unknown format 'essay'; give cot, pot or cot,pot\n")
    write_csv(folder / "mawps_asdiv_train.csv", [])
    assert "would be empty" in run("--fold", "2")
    assert not Path("x").exists()
