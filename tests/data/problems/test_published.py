r"""Problems of each published layout. Each row has the fields of the set it is named after, in our
words."""

import json
import random

import pytest

from data.answers import compare
from data.io import InputError
from data.problems.readers import load

PIPE = "A pipe fills 3 tanks an hour. How many tanks does it fill in 4 hours?"
WORKED = "In one hour the pipe fills 3 tanks.\nIn 4 hours it fills 3 * 4 = 12."
BOXED = WORKED + "\nSo the answer is $\\boxed{12}$."
USER, SYSTEM = {"role": "user", "content": PIPE}, {"role": "system", "content": "Be brief."}
QWEN = f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{PIPE}<|im_end|>\n<|im_start|>assistant"
VERL = {"data_source": "pipes", "ability": "math", "extra_info": {"split": "train", "index": 3}}

# layout: (row, answer)
LAYOUTS = {
    "verl": (VERL | {"prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "12"}}),
    "verl_system": (VERL | {"prompt": [SYSTEM, USER], "reward_model": {"ground_truth": 12.0}}),
    "verl_boxed": (VERL | {"prompt": [USER], "reward_model": {"ground_truth": "\\boxed{12}"}}),
    "verl_gsm8k": {
        "data_source": "pipes",
        "prompt": [{"role": "user", "content": PIPE + " Write the answer after ####."}],
        "reward_model": {"style": "rule", "ground_truth": "12"},
        "extra_info": {"index": 1, "question": PIPE, "answer": WORKED + "\n#### 12"},
    },
    "skywork": (VERL | {"prompt": [USER], "reward_model": {"ground_truth": '["12"]'}}),
    "dapo_processed": {"prompt": PIPE, "solution": "12", "reward_model": {"ground_truth": "12"}},
    "trl_ground_truth": {"prompt": [SYSTEM, USER], "ground_truth": "12"},
    "trl_solution": {"prompt": [USER], "solution": BOXED},
    "trl_text": {"prompt": PIPE, "answer": 12},
    "rlvr": {"messages": [USER], "ground_truth": "12", "dataset": "pipes"},
    "openmathinstruct_1": {
        "question": PIPE,
        "expected_answer": "12",
        "predicted_answer": "11",
        "generated_solution": WORKED,
        "is_correct": False,
    },
    "openmathinstruct_2": {"problem": PIPE, "generated_solution": BOXED, "expected_answer": "12"},
    "metamath": {
        "query": PIPE,
        "response": WORKED + "\n#### 12\nThe answer is: 12",
        "original_question": "Another?",
        "type": "Rephrased",
    },
    "numina": {
        "source": "olympiads",
        "problem": PIPE,
        "solution": BOXED,
        "messages": [USER, {"role": "assistant", "content": BOXED}],
    },
    "numina_answers": {
        "problem": PIPE,
        "solution": WORKED,
        "answer": "12",
        "problem_type": "Algebra",
        "question_type": "math-word-problem",
    },
    "alpaca": {"instruction": PIPE, "input": "", "output": BOXED},
    "mathinstruct": {"source": "cot", "instruction": PIPE, "output": WORKED + " The answer is 12"},
    "deepscaler": {"problem": PIPE, "answer": "12", "solution": WORKED},
    "big_math": {"prompt": PIPE, "solution": "12", "source": "orca_math", "solve_rate": 0.4},
    "aime": {"id": 60, "problem": PIPE, "solution": WORKED, "answer": "12", "year": "2024"},
    "aime_capitals": {"ID": "2024-I-1", "Problem": PIPE, "Solution": WORKED, "Answer": 12},
    "amc": {"id": 0, "problem": PIPE, "answer": 12.0, "url": "u"},
    "olympiadbench": {
        "id": 1606,
        "question": PIPE,
        "solution": [WORKED],
        "final_answer": ["12"],
        "context": None,
        "is_multiple_answer": False,
    },
    "open_reasoner_zero": [
        {"from": "human", "value": PIPE},
        {"from": "assistant", "ground_truth": {"value": "12"}},
    ],
    "sharegpt": {
        "conversations": [{"from": "human", "value": PIPE}, {"from": "gpt", "value": BOXED}]
    },
    "open_reasoner_zero_columns": {
        "0": {"from": "human", "value": PIPE},
        "1": {"from": "assistant", "ground_truth": {"value": "12", "pass_rate": None}},
    },
    "synthetic_1": {
        "prompt": PIPE,
        "verification_info": '{"ground_truth": "12"}',
        "gold_standard_solution": WORKED,
    },
    "areal": {"query_id": "1", "prompt": PIPE, "solutions": ["\\boxed{12}"]},
    "camel": {"role_1": "Mathematician", "message_1": PIPE, "message_2": BOXED},
    "mawps_json": {
        "Question": "A pipe fills N_00 tanks an hour. How many tanks does it fill in N_01 hours?",
        "Numbers": "3 4",
        "Equation": "* N_00 N_01",
        "Answer": 12.0,
    },
    "simplerl": {"input": "<|im_start|>...", "question": PIPE, "answer": BOXED, "gt_answer": "12"},
    "verl_as_text": {"prompt": json.dumps([USER]), "reward_model": "{'ground_truth': '12'}"},
    "verl_as_python": {"prompt": str([SYSTEM, USER]), "reward_model": {"ground_truth": "12"}},
    "simplerl_rendered": {"input": QWEN, "gt_answer": "12", "output": BOXED},
    "gsm_hard": {"input": PIPE, "code": "def solution(): ...", "target": 12.0},
    "tora": {"idx": 0, "question": PIPE, "gt_cot": BOXED, "gt": "12", "code": ["x"], "pred": ["9"]},
    "answer_is_a_solution": {"question": PIPE, "answer": WORKED, "solution": BOXED},
    "multiarith": {"question": PIPE, "final_ans": "12"},
    "addsub": {"iIndex": 1, "sQuestion": PIPE, "lEquations": ["X=3*4"], "lSolutions": [12.0]},
    "asdiv": {
        "body": "A pipe fills 3 tanks an hour.",
        "question": "How many tanks does it fill in 4 hours?",
        "answer": "12 (tanks)",
        "formula": "3*4=12",
    },
    "minerva": {"problem": PIPE, "solution": BOXED, "type": "Physics", "idx": 0},
    "gsm8k_with_calculator": {"question": PIPE, "answer": WORKED + " <<3*4=12>>\n#### 12"},
    "orca_math_that_states_it": {"question": PIPE, "answer": WORKED + "\nThe answer is 12."},
    "carp": {"content": PIPE, "answer": "12", "steps": WORKED},
    "calc_x": {
        "question": PIPE,
        "chain": "<result>12</result>",
        "result": "12",
        "result_float": 12.0,
    },
    "math23k": {"id": "1", "original_text": PIPE, "equation": "x=3*4", "ans": "12"},
    "u_math": {"problem_statement": PIPE, "golden_answer": "12", "has_image": False, "image": None},
    "list_as_python_writes_it": {"problem": PIPE, "answer": "['12\\n']", "type": "Physics"},
    "mawps_of_tora": {"input": PIPE, "target": 12.0},
    "openr1": {
        "problem": PIPE,
        "solution": WORKED,
        "answer": "12",
        "generations": [BOXED, BOXED],
        "messages": [USER, {"role": "assistant", "content": BOXED}],
    },
}
LAYOUTS["dapo"] = VERL | {
    "prompt": [{"role": "user", "content": f"Solve it step by step.\n\n{PIPE}"}],
    "reward_model": {"ground_truth": "12", "style": "rule-lighteval/MATH_v2"},
}


def shuffled(row, seed):
    """The row with its columns in another order."""
    if not isinstance(row, dict):
        return row
    columns = list(row.items())
    random.Random(seed).shuffle(columns)
    return dict(columns)


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
    row = LAYOUTS[name]
    problems = load(write(tmp_path / "f.jsonl", row, shuffled(row, 1), shuffled(row, 2)))
    questions = {problem.question for problem in problems}
    assert {problem.answer for problem in problems} == {"12"}
    assert questions == {f"Solve it step by step.\n\n{PIPE}" if name == "dapo" else PIPE}
    assert len({problem.id for problem in problems}) == 3
    assert {problem.kind for problem in problems} == {"answer"}


@pytest.mark.parametrize("name", [name for name in LAYOUTS if "zero" not in name])
def test_other_columns_do_not_matter(tmp_path, name):
    row = {"uuid": "x-1", "difficulty": 0.5, "tags": ["a", "b"], "empty": None} | LAYOUTS[name]
    (problem,) = load(write(tmp_path / "f.jsonl", row))
    (expected,) = load(write(tmp_path / "f.jsonl", LAYOUTS[name]))
    assert problem == expected


@pytest.mark.parametrize("name", ["verl", "verl_gsm8k", "numina", "olympiadbench", "rlvr"])
def test_parquet_reads_the_same(tmp_path, name):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [LAYOUTS[name], LAYOUTS[name] | {"more": "x"}]
    table = pyarrow.Table.from_pylist([{"more": None} | row for row in rows])
    parquet.write_table(table, tmp_path / "f.parquet")
    assert load(tmp_path / "f.parquet") == load(write(tmp_path / "f.jsonl", *rows))


def test_a_list_after_hashes_keeps_its_commas(tmp_path):
    rows = [{"query": PIPE, "response": f"{WORKED}\n#### {n}"} for n in ("1,200", "3, 5")]
    assert [p.answer for p in load(write(tmp_path / "f.jsonl", *rows))] == ["1200", "3, 5"]


def test_a_mixed_number_of_ape210k(tmp_path):
    row = {"original_text": PIPE, "segmented_text": PIPE, "equation": "x=4+5/11", "ans": "4(5/11)"}
    (problem,) = load(write(tmp_path / "f.jsonl", row))
    assert compare(problem.answer, "49/11").equal


def test_several_answers_of_asdiv(tmp_path):
    row = {"body": "Body.", "question": "Q?", "answer": "7 (cut-outs); 9 (red pens)"}
    (problem,) = load(write(tmp_path / "f.jsonl", row))
    assert compare(problem.answer, "7, 9").equal


def test_answers_that_are_no_sentences(tmp_path):
    long = "x = " + ", ".join(rf"\frac{{{n} \pi}}{{48}}" for n in range(1, 20))
    answers = ["Mrs. Hilt", "10 hours and 30 minutes.", "x = 5 and y = 3", "$y = 3 x$.", long]
    rows = [{"question": PIPE, "answer": answer, "license": "CC"} for answer in answers]
    assert [problem.answer for problem in load(write(tmp_path / "f.jsonl", *rows))] == answers


def test_csv_with_a_header(tmp_path):
    (tmp_path / "f.csv").write_text(f'id,Problem,Answer\n7,"{PIPE}",12\n')
    (tmp_path / "f.tsv").write_text(f"question\tanswer\n{PIPE}\t12\n")
    for name in ("f.csv", "f.tsv"):
        (problem,) = load(tmp_path / name)
        assert (problem.question, problem.answer) == (PIPE, "12")


def test_source_and_solution(tmp_path):
    rows = [LAYOUTS["numina"], LAYOUTS["verl"], LAYOUTS["dapo_processed"]]
    problems = [load(write(tmp_path / "f.jsonl", row))[0] for row in rows]
    assert [problem.source for problem in problems] == ["olympiads", "pipes", "f"]
    assert [problem.solution for problem in problems] == [BOXED, None, None]


OPTIONS = ["9 tanks", "10 tanks", "12 tanks", "7"]
LETTERED = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", OPTIONS, strict=True))
CHOICES = {
    "mmlu": {"question": PIPE, "choices": OPTIONS, "answer": 2, "subject": "algebra"},
    "an_option_is_a_number": {"question": PIPE, "choices": ["2", "9", "12"], "answer": 2},
    "mmlu_pro": {
        "question": PIPE,
        "options": OPTIONS,
        "answer": "C",
        "answer_index": 2,
        "category": "math",
    },
    "aqua": {
        "question": PIPE,
        "options": [f"{letter}){text}" for letter, text in zip("ABCD", OPTIONS, strict=True)],
        "rationale": WORKED,
        "correct": "C",
    },
    "mathqa": {
        "Problem": PIPE,
        "Rationale": WORKED,
        "options": "a ) 9 tanks , b ) 10 tanks , c ) 12 tanks , d ) 7",
        "correct": "c",
    },
    "arc": {
        "question": PIPE,
        "choices": {"text": OPTIONS, "label": ["1", "2", "3", "4"]},
        "answerKey": "3",
    },
    "says_right": {"question": PIPE, "options": OPTIONS, "correct": True, "answer": "C"},
    "agieval": {
        "query": PIPE,
        "choices": [f"({letter}){text}" for letter, text in zip("ABCD", OPTIONS, strict=True)],
        "gold": [2],
    },
    "columns": {
        "question": PIPE,
        **dict(zip("ABCD", OPTIONS, strict=True)),
        "answer": "C",
    },
    "options_in_the_question": {
        "prompt": [{"role": "user", "content": f"{PIPE}\n\n{LETTERED}"}],
        "options": dict(zip("ABCD", OPTIONS, strict=True)),
        "final_answer": "C",
    },
    "letters": {
        "question": PIPE,
        "options": dict(zip("ABCD", OPTIONS, strict=True)),
        "answer": "12 tanks",
        "answer_idx": "C",
    },
}


@pytest.mark.parametrize("name", CHOICES)
def test_choices(tmp_path, name):
    row = CHOICES[name]
    for problem in load(
        write(tmp_path / "f.jsonl", row, shuffled(row, 1) if "A" not in row else row)
    ):
        assert (problem.question, problem.kind) == (PIPE, "choice")
        assert list(problem.choices) == row.get("choices", OPTIONS) or name in ("agieval", "arc")
        assert problem.choices[2][:2] == "12" and problem.answer == "C"


def test_options_that_are_numbers(tmp_path):
    """A number is then an option, and not its place."""
    row = {"question": PIPE, "options": [1, 2, 12, 3], "answer": 12}
    arc = {"question": PIPE, "choices": {"text": [1, 2, 12]}, "answerKey": "C"}
    small = {"question": PIPE, "options": [2, 3, 1, 0], "answer": 1}
    for problem in load(write(tmp_path / "f.jsonl", row, arc, small)):
        assert problem.answer == "C"


def test_sciq(tmp_path):
    row = {"question": PIPE, "correct_answer": "12", "distractor1": "9", "distractor2": "10"}
    (problem,) = load(write(tmp_path / "f.jsonl", row))
    assert sorted(problem.choices) == ["10", "12", "9"]
    assert problem.choices["ABC".index(problem.answer)] == "12"


def test_gpqa(tmp_path):
    row = {"Question": PIPE, "Correct Answer": OPTIONS[2]}
    row |= {f"Incorrect Answer {n}": OPTIONS[k] for n, k in ((1, 0), (2, 1), (3, 3))}
    row |= {"Explanation": WORKED, "Pre-Revision Question": "Another?"}
    (problem,) = load(write(tmp_path / "f.jsonl", row))
    assert sorted(problem.choices) == sorted(OPTIONS)
    assert problem.choices["ABCD".index(problem.answer)] == OPTIONS[2]
    assert load(write(tmp_path / "f.jsonl", row)) == [problem]


NEEDS = "a problem needs question, problem, query"


@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": "A page."}, f"no question among text; {NEEDS}"),
        ({"prompt": PIPE}, f"no answer among prompt; {NEEDS}"),
        (
            {"prompt": [USER], "reward_model": {"style": "rule"}},
            "no answer among prompt, reward_mo",
        ),
        ({"prompt": PIPE, "label": True}, "no answer among prompt, label"),
        (
            {"question": PIPE, "solution": BOXED, "label": 1},
            "label is '1', and the solution's answer is '12'; remove one of the fields",
        ),
        ({"problem": PIPE, "solution": BOXED, "label": "algebra"}, "label is 'algebra', and"),
        (
            {"question": PIPE, "answer": float("nan")},
            ("a problem without 'answer'", "no answer am"),
        ),
        ({"question": PIPE, "final_answer": float("inf")}, "no answer among question, final_an"),
        ({"question": PIPE, "final_answer": 10**400}, "the answer is a solution without"),
        ({"prompt": [USER, USER], "answer": "12"}, "a chat with 2 messages of the user"),
        ({"problem": PIPE, "solution": WORKED}, "the answer is a solution without"),
        ({"question": PIPE, "answer": WORKED}, "the answer is a solution without"),
        ({"question": PIPE, "answer": "The pipe fills 12 tanks = 3 * 4."}, "the answer is a sol"),
        ({"question": PIPE, "answer": "It is 12."}, "the answer is a solution without"),
        (
            {"question": PIPE, "answer": "这根管子装满了12个水箱。"},
            "the answer is a solution without",
        ),
        ({"question": PIPE, "output": BOXED, "correct": False}, "no answer among question, outp"),
        ({"prompt": PIPE, "answer": "12", "images": ["a.png"]}, "it has 'images', and only texts"),
        ({"question": PIPE, "answer": "12", "image": "a.png"}, "it has 'image', and only texts"),
        ({"problem": PIPE, "solution": BOXED, "result": "ok"}, "result is 'ok', and the solution"),
        (
            {"problem": PIPE, "solution": WORKED, "answer": "proof"},
            "the answer is 'proof', not a v",
        ),
        ({"problem": PIPE, "answer": "notfound", "type": "x"}, "the answer is 'notfound'"),
        ({"question": PIPE, "answer": "None", "solution": WORKED}, "the answer is 'None', not a v"),
        ({"question": PIPE, "choices": OPTIONS, "answer": "F"}, "no field says which of the 4"),
        ({"question": PIPE, "choices": ["x"] * 11, "answer": "A"}, "11 options; at most 10"),
    ],
)
def test_what_is_no_problem(tmp_path, row, message):
    good = {"prompt": PIPE, "ground_truth": "12"}
    for rows, line in (((row,), 1), ((good, row), 2)):
        path = write(tmp_path / "f.jsonl", *rows)
        with pytest.raises(InputError) as error:
            load(path)
        messages = message if isinstance(message, tuple) else (message,)
        assert str(error.value).removeprefix(f"{path}:{line}: ").startswith(messages)
        assert "\n" not in str(error.value)
    bad = []
    assert len(load(path, bad)) == 1 and len(bad) == 1
