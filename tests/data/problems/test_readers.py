import gzip
import json
import random

import pytest

from data.io import InputError
from data.problems.problem import Problem
from data.problems.readers import load, save


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return path


# a record of each published layout, and the problem in it
CHOICE = {"kind": "choice", "choices": ("x", "y", "z")}
LAYOUTS = {
    "gsm8k_of_the_paper": (
        {"question": "Q?", "answer": "18", "cot": "9 * 2 = <<9*2=18>>18", "id": "gsm8k-test-0"},
        Problem("gsm8k-test-0", "Q?", "18"),
    ),
    "math": (
        {
            "problem": "Q?",
            "level": "Level 5",
            "type": "Algebra",
            "solution": r"So $x = \boxed{\frac{1}{2}}$.",
        },
        Problem(
            "math-f-1",
            "Q?",
            r"\frac{1}{2}",
            r"So $x = \boxed{\frac{1}{2}}$.",
            "math/Algebra/Level 5",
        ),
    ),
    "math_with_answers": (
        {
            "problem": "Q?",
            "solution": "S",
            "answer": "7",
            "subject": "Geometry",
            "level": 2,
            "unique_id": "test/geometry/1.json",
        },
        Problem("math-test/geometry/1.json", "Q?", "7", "S", "math/Geometry/2"),
    ),
    "ocw": (
        {"problem": "Q?", "solution": "S", "answer": "1.6", "id": "0"},
        Problem("ocw-0", "Q?", "1.6", "S", "ocw"),
    ),
    "sat": (
        {"id": "3", "question": "Q?", "options": "A) x B) y C) z", "Answer": "B"},
        Problem("sat-3", "Q?", "B", source="sat", **CHOICE),
    ),
    "sat_with_full_stops": (
        {
            "id": "3",
            "question": "Q?",
            "options": "A. Class A has more. B. $x$ C. 1.5",
            "Answer": "C",
        },
        Problem(
            "sat-3",
            "Q?",
            "C",
            source="sat",
            kind="choice",
            choices=("Class A has more.", "$x$", "1.5"),
        ),
    ),
    "agieval_choice": (
        {
            "passage": None,
            "question": "Q?\\\\\n",
            "options": ["(A)x", "(B)y", "(C) z"],
            "label": "C",
            "answer": None,
        },
        Problem("f-1", "Q?", "C", source="agieval/f", **CHOICE),
    ),
    "agieval_several_letters": (
        {
            "passage": "P.",
            "question": "Q?",
            "options": ["(A)x", "(B)y", "(C) z"],
            "label": "C A",
            "answer": None,
        },
        Problem("f-1", "P.\nQ?", "AC", source="agieval/f", **CHOICE),
    ),
    "agieval_options": (
        {
            "passage": None,
            "question": "Q?",
            "options": {"A": "x", "B": "y", "C": "z"},
            "label": "C",
        },
        Problem("f-1", "Q?", "C", source="agieval/f", **CHOICE),
    ),
    "agieval_cloze": (
        {
            "passage": None,
            "question": "求 $a$",
            "options": None,
            "label": None,
            "answer": "$5$;$10$",
        },
        Problem("f-1", "求 $a$", "$(5, 10)$", source="agieval/f", lang="zh"),
    ),
    "mmlu_stem": (
        {"question": "Q?", "options": ["x", "y", "z"], "answer": "A", "topic": "physics", "id": 7},
        Problem("mmlu_stem-7", "Q?", "A", source="mmlu_stem/physics", **CHOICE),
    ),
    "cmath": (
        {"grade": 3, "question": "几个？", "golden": "45", "reasoning_step": 2, "num_digits": 2},
        Problem("cmath-1", "几个？", "45", source="cmath/3", lang="zh"),
    ),
    "mgsm_zh": (
        {
            "dataset": "mgsm-zh",
            "id": "4",
            "messages": [{"role": "user", "content": "几个？"}],
            "answer": "1,800",
        },
        Problem("mgsm_zh-4", "几个？", "1800", source="mgsm_zh", lang="zh"),
    ),
    "humaneval": (
        {
            "task_id": "HumanEval/9",
            "prompt": "def f():\n",
            "canonical_solution": "    return 1\n",
            "test": "def check(g):",
            "entry_point": "f",
        },
        Problem("HumanEval/9", "def f():", "", "    return 1\n", "humaneval", kind="code"),
    ),
    "mbpp": (
        {
            "text": "Q?",
            "code": "def f():\r\n  return 1",
            "task_id": 11,
            "test_setup_code": "",
            "test_list": ["assert f()"],
            "challenge_test_list": [],
        },
        Problem("mbpp-11", "Q?", "", "def f():\n  return 1", "mbpp", kind="code"),
    ),
    "minif2f": (
        {
            "problem_name": "p",
            "formal_statement": "theorem p",
            "informal_statement": "Q?",
            "informal_proof": "P",
            "header": "theory",
            "id": "test-0",
        },
        Problem("minif2f-p", "Q?", "", None, "minif2f/f", kind="proof"),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts(tmp_path, name):
    row, problem = LAYOUTS[name]
    assert load(write(tmp_path / "f.jsonl", row)) == [problem]
    compressed = tmp_path / "g" / "f.jsonl.gz"
    compressed.parent.mkdir()
    compressed.write_bytes(gzip.compress((tmp_path / "f.jsonl").read_bytes()))
    (found,) = load(compressed)
    assert (found.question, found.answer) == (problem.question, problem.answer)


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_read_can_be_saved_and_read_again(tmp_path, name):
    problems = load(write(tmp_path / "f.jsonl", LAYOUTS[name][0]))
    save(tmp_path / "again.jsonl", problems)
    again = load(tmp_path / "again.jsonl")
    assert again == problems and again[0].task == problems[0].task
    assert all(
        value for value in json.loads((tmp_path / "again.jsonl").read_text()).values()
    )  # no empty field


def test_tasks(tmp_path):
    def task(name):
        return load(write(tmp_path / "f.jsonl", LAYOUTS[name][0]))[0].task

    assert task("humaneval") == {
        "prompt": "def f():\n",
        "tests": "def check(g):",
        "entry_point": "f",
    }
    assert task("mbpp") == {"prompt": "Q?", "tests": "assert f()", "entry_point": ""}
    assert task("minif2f") == {
        "header": "theory",
        "formal_statement": "theorem p",
        "informal_statement": "Q?",
        "informal_proof": "P",
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_field_that_is_missing_or_empty_is_named(tmp_path, name):
    """A record without a field that it needs is an error with its line. With a list for bad
    records, this record alone is left out."""
    row, _ = LAYOUTS[name]
    good = LAYOUTS[name][0] | ({"id": "other"} if "id" in row else {})
    free = {
        "id",
        "cot",
        "level",
        "type",
        "subject",
        "unique_id",
        "passage",
        "other",
        "topic",
        "grade",
        "dataset",
        "reasoning_step",
        "num_digits",
        "canonical_solution",
        "test_setup_code",
        "challenge_test_list",
        "problem_name",
    } | ({"solution"} if "answer" in row else set())
    needed = [field for field in row if field not in free and row[field] is not None]
    assert needed
    instead = {("math_with_answers", "answer"): "solution"}  # the next place of the answer
    for field in needed:
        for broken in (
            {k: v for k, v in row.items() if k != field},
            row | {field: None},
            row | {field: ""},
        ):
            path = write(tmp_path / "f.jsonl", good, broken)
            with pytest.raises(
                InputError, match=f"^{path}:2: .*'{instead.get((name, field), field)}'"
            ):
                load(path)
            bad = []
            assert len(load(path, bad)) == 1 and len(bad) == 1 and f"{path}:2: " in bad[0]


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("math", {"solution": "So $x = 5$."}, r"no \\boxed{} in 'solution'"),
        ("math", {"solution": r"So \boxed{5"}, r"no \\boxed{} in 'solution'"),
        ("sat", {"Answer": "D"}, "answer 'D' is not the letter of any of the 3 options"),
        ("sat", {"Answer": "AB"}, "answer 'AB' is not"),
        ("sat", {"options": "A) x C) y"}, "option .* does not begin with"),
        ("agieval_choice", {"label": "E"}, "answer 'E' is not the letter of any of the 3 options"),
        (
            "agieval_choice",
            {"options": ["(A)x", "(C)y"]},
            r"option '\(C\)y' does not begin with \(B\)",
        ),
        ("agieval_choice", {"options": ["(A)x", "(B)"]}, "option .* does not begin with"),
        ("agieval_choice", {"passage": ["P."]}, "a problem without 'passage'"),
        ("mmlu_stem", {"answer": "1"}, "answer '1' is not"),
        ("mmlu_stem", {"options": ["x", " "]}, "'options' must be a list without empty entries"),
        ("mgsm_zh", {"messages": "几个？"}, "'messages' must be a list"),
        ("mbpp", {"test_list": "assert f()"}, "'test_list' must be a list"),
    ],
)
def test_records_that_contradict_themselves(tmp_path, name, change, message):
    path = write(tmp_path / "f.jsonl", LAYOUTS[name][0], LAYOUTS[name][0] | change)
    with pytest.raises(InputError, match=f"^{path}:2: {message}"):
        load(path)


def test_our_own_choices_are_checked(tmp_path):
    row = {"question": "Q?", "answer": "B", "kind": "choice", "choices": ["x", "y"]}
    assert load(write(tmp_path / "f.jsonl", row)) == [
        Problem("f-1", "Q?", "B", kind="choice", choices=("x", "y"))
    ]
    for change, message in [
        ({"answer": "C"}, "answer 'C'"),
        ({"choices": []}, "'choices'"),
        ({"kind": "essay"}, "'kind'"),
        ({"kind": "code"}, "'prompt'"),
        ({"kind": "proof", "task": {"header": "h"}}, "'formal_"),
    ]:
        with pytest.raises(InputError, match=f":1: .*{message}"):
            load(write(tmp_path / "f.jsonl", row | change))


@pytest.mark.parametrize(
    "solution, answer",
    [
        (
            r"First $\boxed{1}$ is wrong; it is $\boxed{\frac{1}{\sqrt{2}}}$. The answer is 1 over a root.",
            r"\frac{1}{\sqrt{2}}",
        ),
        (r"Either \boxed{2} or $\boxed{5}$.", "2, 5"),
        (r"It is \fbox{3}.", "3"),
        (r"It is \boxed 7.", "7"),
        (r"\boxed{\text{(A)}}", r"\text{(A)}"),
        (r"\boxed{\{1, 2\}} is the set of 2 numbers.", r"\{1, 2\}"),
    ],
)
def test_the_last_box_is_the_answer(tmp_path, solution, answer):
    row = LAYOUTS["math"][0] | {"solution": solution}
    found = load(write(tmp_path / "f.jsonl", row))[0].answer
    assert found == answer or found.rstrip(".") == answer


def test_math_as_its_authors_publish_it(tmp_path):
    for subject, number in [("algebra", 10), ("algebra", 2), ("geometry", 1)]:
        path = tmp_path / subject / f"{number}.json"
        path.parent.mkdir(exist_ok=True)
        row = LAYOUTS["math"][0] | {"problem": f"{subject} {number}?", "type": subject.title()}
        path.write_text(json.dumps(row, indent=4))
    problems = load(tmp_path)
    assert [p.id for p in problems] == ["math-algebra/2", "math-algebra/10", "math-geometry/1"]
    assert [p.source for p in problems] == ["math/Algebra/Level 5"] * 2 + ["math/Geometry/Level 5"]
    (tmp_path / "algebra" / "2.json").write_text(
        json.dumps({"problem": "Q", "level": "Level 1", "type": "Algebra"})
    )
    with pytest.raises(
        InputError, match=f"^{tmp_path}/algebra/2.json:1: a problem without 'solution'"
    ):
        load(tmp_path)


def test_mmlu(tmp_path):
    path = tmp_path / "world_religions_test.csv"
    path.write_text('"Which, of two\nlines?",a,"b ""c""",d,e,B\nQ?,1,2,3,4,D\n')
    first, second = load(path)
    assert first == Problem(
        "mmlu-world_religions_test-2",
        "Which, of two\nlines?",
        "B",
        None,
        "mmlu/world_religions",
        kind="choice",
        choices=("a", 'b "c"', "d", "e"),
    )
    assert second.answer == "D"
    for row, message in [
        ("Q?,1,2,3,4,E\n", "answer 'E'"),
        ("Q?,1,2,3,D\n", "not a question, four"),
        ("Q?,1,,3,4,A\n", "not a question, four"),
    ]:
        path.write_text("Q?,1,2,3,4,D\n" + row)
        with pytest.raises(InputError, match=f"^{path}:2: {message}"):
            load(path)


def test_bbh_and_mgsm_tables(tmp_path):
    path = tmp_path / "snarks.json"
    path.write_text(
        json.dumps({"canary": "c", "examples": [{"input": "Q?\nOptions:\n(A) x", "target": "(A)"}]})
    )
    assert load(path) == [
        Problem("bbh-snarks-1", "Q?\nOptions:\n(A) x", "(A)", None, "bbh/snarks", kind="text")
    ]
    path.write_text(json.dumps({"examples": [{"input": "Q?", "target": ""}]}))
    with pytest.raises(InputError, match=f"^{path}, example 1: a problem without 'target'"):
        load(path)
    path = tmp_path / "mgsm_de.tsv"
    path.write_text('Wie viele "Eier?\t1,200\nUnd\t3\n')
    assert load(path)[0] == Problem(
        "mgsm_de-1", 'Wie viele "Eier?', "1200", source="mgsm_de", lang="de"
    )
    path.write_text("Wie viele?\t3\nUnd\n")
    with pytest.raises(InputError, match=f"^{path}:2: not a question, a tab"):
        load(path)


def test_sanitized_mbpp_is_a_list(tmp_path):
    row = {
        "source_file": "s",
        "task_id": 602,
        "prompt": "Q?",
        "code": "def f(): ...",
        "test_imports": ["import math"],
        "test_list": ["assert f()"],
    }
    (tmp_path / "f.json").write_text(json.dumps([row], indent=2))
    (problem,) = load(tmp_path / "f.json")
    assert problem.id == "mbpp-602" and problem.task["setup"] == "import math"


def test_bad_records_are_counted_in_any_order(tmp_path):
    """In any order of good and bad lines, each good line is read and each bad line is named, also
    if it is the first."""
    rows = [json.dumps(LAYOUTS["mmlu_stem"][0] | {"id": i}) for i in range(6)]
    broken = [
        "{not json",
        "[1]",
        '"text"',
        json.dumps({"question": "Q?", "options": ["x"], "answer": "B", "topic": "t"}),
        "null",
    ]
    for seed in range(20):
        lines = rows + broken
        random.Random(seed).shuffle(lines)
        lines.insert(0, "{")
        (tmp_path / "f.jsonl").write_text("\n".join(lines))
        bad = []
        assert sorted(p.id for p in load(tmp_path / "f.jsonl", bad)) == [
            f"mmlu_stem-{i}" for i in range(6)
        ]
        assert [int(message.split(":")[1]) for message in bad] == [
            number for number, line in enumerate(lines, 1) if line not in rows
        ]
    for text in ("{\n{\n", "", " \n\n"):
        (tmp_path / "f.jsonl").write_text(text)
        with pytest.raises(InputError, match="holds no problem"):
            load(tmp_path / "f.jsonl", [])


def test_a_line_may_hold_any_separator_of_unicode(tmp_path):
    row = {"question": "a\u2028b\x85c\x0cd", "answer": "1"}
    (tmp_path / "f.jsonl").write_text(
        json.dumps(row, ensure_ascii=False) + "\n" + json.dumps(row) + "\n"
    )
    assert [p.question for p in load(tmp_path / "f.jsonl")] == [row["question"]] * 2
