"""evaluation/audit.py and evaluation/diagnosis.py: by hand, by solvers whose answers are known, by
the command."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from runtime.options import check

import pytest
from evaluating import evaluate

from data import answers
from data.io import InputError
from data.problems.perturb import PERTURBATIONS, perturb
from data.problems.problem import Problem
from data.problems.readers import save
from data.problems.retelling import recognize
from data.world import synthetic
from evaluation import audit
from evaluation.audit import other_prompts, reworded
from evaluation.diagnosis import ERRORS, count_errors, halves, kind_of_error, second_opinion, votes
from evaluation.judge import judge
from evaluation.solve import zero_shot
from evaluation.tasks import Task
from generate import Sampling
from runtime.hf import from_pretrained

ROOT = Path(__file__).parents[2]


def built_in(count, lang="en", levels=(1, 2)):
    made = [synthetic.problem(i, "test", lang=lang, level=levels) for i in range(count)]
    return [Problem(p.id, p.question, p.answer, p.cot, "synthetic", p.lang) for p in made]


def attempt(text, gold="7", answer="", finish="eos", **other):
    """As Solver.solve makes them; the answer is found in the text unless it is given."""
    found = answers.extract(text) if answer == "" else answer
    one = {"text": text, "answer": found, "finish": finish, "tokens": 3, **other}
    judge(Problem("p", "q", gold), one)
    return one


# --------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize(
    "kind, why, one, format",
    [
        ("truncated", "ended by length", attempt("The answer is 8", finish="length"), "cot"),
        ("truncated", "ended by rounds", attempt("", finish="rounds", program="error"), "tool"),
        ("truncated", "ended by prompt", attempt("", finish="prompt"), "cot"),
        (
            "program error",
            "NameError: x",
            attempt("print(x)", answer=None, program="error", error="NameError: x"),
            "pot",
        ),
        (
            "program error",
            "status ok, nothing printed",
            attempt("x = 7", answer=None, program="ok"),
            "pot",
        ),
        ("no answer", "nothing found", attempt("Sorry", answer=None, program="none"), "pot"),
        ("no answer", "nothing found", attempt("I do not know. 8?"), "cot"),
        (
            "format",
            "7 stands in the text, the answer found is None",
            attempt("3 + 4 = 7, so it is this."),
            "cot",
        ),
        (
            "format",
            "7 stands in the text, the answer found is None",
            attempt("It is clearly 7"),
            "cot",
        ),
        (
            "format",
            "7 stands in the text, the answer found is 3",
            attempt("3 + 4 = 7.\nThe answer is 3."),
            "cot",
        ),
        ("arithmetic", "3 + 4 = 8 is false", attempt("3 + 4 = 8\nThe answer is 8."), "cot"),
        (
            "arithmetic",
            "3 + 4 = 8 is false",
            attempt("3 + 4 = 8. 8 + 1 = 9. The answer is 9."),
            "cot",
        ),
        ("set-up", "12, not 7", attempt("3 * 4 = 12\nThe answer is 12."), "cot"),
        ("set-up", "12, not 7", attempt("The answer is 12."), "cot"),
        (
            "set-up",
            "12, not 7",
            attempt("print(3 * 4)  # 3 + 4 = 8", answer="12", program="ok"),
            "pot",
        ),
        # the right value comes before a slip of arithmetic, running out of tokens before everything
        (
            "format",
            "7 stands in the text, the answer found is 8",
            attempt("1 + 1 = 3. 3 + 4 = 7. The answer is 8."),
            "cot",
        ),
        ("truncated", "ended by length", attempt("3 + 4 = 8", finish="length"), "cot"),
    ],
)
def test_kinds_of_error(kind, why, one, format):
    assert not one["right"] and kind_of_error("7", one, format) == (kind, why)


def test_an_answer_that_only_the_second_verifier_takes():
    one = attempt("The answer is 8.", "7") | {
        "text": "The answer is 7."
    }  # as if the first had read 8
    assert kind_of_error("7", one, "cot")[0] == "verifier mismatch"
    opinion = second_opinion([{"id": "a", "answer": "7", "attempts": [one]}], "cot")
    assert (
        opinion["counts"] == {"wrong, second right": 1}
        and opinion["agreement"] == 0
        and opinion["disputed"] == 1
    )


def test_counts_of_errors_and_examples():
    records = [
        {
            "id": f"p{i}",
            "question": "q",
            "answer": "7",
            "kind": "answer",
            "attempts": [attempt(f"3 + 4 = {n}\nThe answer is {n}.") for n in (7, 8 + i)],
        }
        for i in range(5)
    ]
    found = count_errors(records, "cot")
    assert list(found) == list(ERRORS) and found["arithmetic"]["count"] == 5
    assert found["arithmetic"]["share"] == 0.5 and sum(one["count"] for one in found.values()) == 5
    assert [example["id"] for example in found["arithmetic"]["examples"]] == ["p0", "p1", "p2"]
    opinion = second_opinion(records, "cot")
    assert (
        opinion["counts"] == {"right, second right": 5, "wrong, second wrong": 5}
        and opinion["agreement"] == 1
    )


def test_relaxed_rules_alone():
    records = [
        {
            "id": "a",
            "answer": "1/2",
            "attempts": [
                attempt("The answer is 50%.", "1/2"),
                attempt("The answer is many.", "1/2"),
            ],
        }
    ]
    opinion = second_opinion(records, "cot")
    assert opinion["counts"] == {"right, second right": 1, "wrong, second unread": 1}
    loose = 1 - records[0]["attempts"][0]["strict"]
    assert opinion["right but not strictly"] == loose and opinion["agreement"] == 1


# --------------------------------------------------------------------------------------------------
# Votes, halves, prompts


def test_votes_by_hand():
    def record(gold, *answers):
        return {
            "answer": gold,
            "attempts": [attempt(f"The answer is {a}." if a else "", gold) for a in answers],
        }

    found = votes(
        [
            record("1/2", "0.5", "1/2", "50%", "3"),  # three agree, rightly
            record("4", "5", "5", "5", "5"),  # four, wrongly
            record("4", "4", "5", "", ""),  # a tie: the first
            record("4", "", "", "", ""),  # nobody
        ]
    )
    assert found["samples"] == 4 and found["agreement"] == pytest.approx((0.75 + 1 + 0.25 + 0) / 4)
    assert found["accuracy"] == 0.5 and found["distinct_answers"] == pytest.approx(
        (2 + 1 + 2 + 0) / 4
    )
    assert found["distinct_texts"] == pytest.approx((4 + 1 + 3 + 1) / 16)
    assert [(b["to"], b["n"], b["share"], b["accuracy"]) for b in found["bins"]] == [
        (0.25, 2, 0.125, 0.5),
        (0.75, 1, 0.75, 1.0),
        (1.0, 1, 1.0, 0.0),
    ]
    assert found["calibration_error"] == pytest.approx((2 * 0.375 + 0.25 + 1) / 4)


def test_halves_by_length_and_by_steps():
    items = [
        Problem(str(i), "q" * n, "1", s)
        for i, (n, s) in enumerate(
            [(5, "1 + 1 = 2"), (9, None), (2, "x"), (7, "1 + 1 = 2\n2 + 1 = 3")]
        )
    ]
    records = [{"id": item.id} for item in items]
    found = {
        name: [record["id"] for record in half] for name, half in halves(items, records).items()
    }
    assert found == {
        "short (up to 5)": ["0", "2"],
        "long (more than 5)": ["1", "3"],
        "few steps (up to 1)": ["0"],
        "many steps (more than 1)": ["3"],
    }
    assert halves(items[:1] * 3, records[:3]) == {}  # all alike


def test_other_prompts_ask_the_same():
    choice = Problem("c", "Which is 7?", "B", kind="choice", choices=("3", "7"))
    plain = zero_shot("cot")
    found = other_prompts([choice], "cot", plain, "plain")
    assert list(found) == ["prompt Q: A:", "prompt deepseek", "small letters"]
    prompt = plain.prompt(choice)
    way, template = found["prompt Q: A:"]
    assert template == "plain" and prompt.startswith("Question: ")
    assert (
        way.prompt(choice) == prompt.replace("Question:", "Q:").replace("Answer:", "A:") != prompt
    )
    assert set(way.stop) == {
        stop.replace("Question:", "Q:").replace("问题：", "题：") for stop in plain.stop
    }
    assert "(b) 7" in found["small letters"][0].prompt(choice) and "(B) 7" in prompt
    assert found["prompt deepseek"][1] == "deepseek" and "User: " in found["prompt deepseek"][
        0
    ].prompt(choice)
    assert list(other_prompts([Problem("a", "q", "1")], "cot", plain, "deepseek")) == [
        "prompt plain"
    ]
    assert reworded(plain, str.upper).prompt(choice) == prompt.upper()


# --------------------------------------------------------------------------------------------------
# The whole column


def solver(knows):
    """evaluate() of someone who solves what `knows(problem)` says, and otherwise is off by a
    thousand."""
    calls = []

    def solved(items, sampling, way, template):
        calls.append((len(items), sampling.temperature, sampling.samples, template))
        records = []
        for item in items:
            texts = [f"The answer is {item.answer if knows(item) else 1000}."] * sampling.samples
            attempts = [attempt(text, item.answer) for text in texts]
            records.append(
                {
                    "id": item.id,
                    "question": item.question,
                    "answer": item.answer,
                    "kind": item.kind,
                    "attempts": attempts,
                }
            )
        return records

    return solved, calls


def audited(knows, items, sampling=None, temperatures=(0.3, 0.7, 1.0), format="cot"):
    """(the column of a solver, its calls)."""
    solved, calls = solver(knows)
    task = Task(f"test.{format}", items, format, zero_shot(format), 64)
    return audit.audit(task, solved, "plain", sampling or Sampling(4), temperatures), calls


def test_someone_who_knows_the_questions_by_heart():
    items = built_in(40)
    known = {item.question for item in items}
    sampling = Sampling(3, 0.7, seed=4)
    found, calls = audited(lambda item: item.question in known, items, sampling, (0.3, 1.0))
    rows = found["rows"]
    assert (
        rows["original"]["accuracy"]
        == rows["strict"]["accuracy"]
        == rows["temperature 1"]["accuracy"]
        == 1
    )
    for name in PERTURBATIONS:
        if name == "options":  # no problem has any
            assert name not in rows and found["left_out"][name] == 40
            continue
        row, change = rows[name], rows[name]["change"]
        assert row["n"] + found["left_out"][name] == 40 and row["accuracy"] == row["kept"] == 0
        assert (change["difference"], change["interval"]) == (-1, (-1, -1))
        assert (change["worse"], change["better"]) == (row["n"], 0)
        assert change["p"] == pytest.approx(2 * 0.5 ** row["n"])
    assert found["consistency"]["right"] == 1 and found["consistency"]["right in all"] == 0
    assert 8 < found["consistency"]["changes a problem"] <= 9
    assert found["votes"]["temperature"] in (0.3, 1.0) and found["votes"][
        "distinct_texts"
    ] == pytest.approx(1 / 3)
    assert all(temperature == 0 and samples == 1 for _, temperature, samples, _ in calls[:-2])
    assert [(t, k) for _, t, k, _ in calls[-2:]] == [(0.3, 3), (1.0, 3)]
    assert {"plain", "deepseek"} == {template for *_, template in calls}
    halves = [row for name, row in rows.items() if name.startswith(("short", "long"))]
    assert len(halves) == 2 and sum(row["n"] for row in halves) == 40 and "change" not in halves[0]


def test_someone_who_understands():
    found, _ = audited(lambda item: True, built_in(30, levels=(3, 4)))
    assert all(row["accuracy"] == 1 for row in found["rows"].values())
    assert found["consistency"]["right in all"] == 1 and all(
        e["count"] == 0 for e in found["errors"].values()
    )


def test_pairs_are_pairs():
    """Who fails on every third original only gains by a change, on exactly those problems."""
    items = built_in(30)
    failing = {item.question for item in items[::3]}
    found, _ = audited(lambda item: item.question not in failing, items, temperatures=())
    row = found["rows"]["instructed"]
    assert row["accuracy"] == 1 and (row["change"]["better"], row["change"]["worse"]) == (10, 0)
    assert row["change"]["difference"] == pytest.approx(1 / 3) and row["kept"] == 1
    assert (
        found["consistency"]["right"]
        == found["consistency"]["right in all"]
        == pytest.approx(2 / 3)
    )
    assert found["errors"]["set-up"]["count"] == 10 and "votes" not in found


def test_what_an_audit_refuses():
    with pytest.raises(InputError, match="two problems have the same id"):
        audited(lambda item: True, built_in(2) * 2)
    with pytest.raises(InputError, match="proofs have no answers"):
        audited(lambda item: True, built_in(2), format="proof")


# --------------------------------------------------------------------------------------------------
# The command, on a model with random weights


def run(*arguments):
    command = [sys.executable, "-m", "evaluation.audit", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments, shown",
    [(["--help"], "--temperatures X,.."), (["compare", "--help"], "DIR_A DIR_B")],
)
def test_help(arguments, shown):
    done = run(*arguments)
    assert done.returncode == 0 and shown in done.stdout, done.stderr


def test_command(tiny, tmp_path):
    items = built_in(3)
    save(tmp_path / "few.jsonl", items)
    options = [
        "--model",
        str(tiny.root / "model"),
        "--problems",
        str(tmp_path / "few.jsonl"),
        "--formats",
        "cot,pot",
        "--samples",
        "2",
        "--temperatures",
        "0.7",
        "--max_new_tokens",
        "8",
        "--device",
        "cpu",
    ]
    done = run(*options, "--to", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert (
        list(document["columns"]) == ["few.cot", "few.pot"] and document["settings"]["samples"] == 2
    )
    text = (tmp_path / "out" / "audit.md").read_text()
    for name in (
        "original",
        "renamed",
        "numbers",
        "prompt Q: A:",
        "prompt deepseek",
        "temperature 0.7",
        "strict",
    ):
        assert name in document["columns"]["few.cot"]["rows"] and f"| {name} |" in text
        assert re.search(rf"^{re.escape(name)}  ", done.stdout, re.M)
    # a row is what evaluate gives for the changed problems
    model = from_pretrained(tiny.root / "model")
    changed = [other for item in items if (other := perturb(item, "distractor", 0))]
    metrics, _ = evaluate(
        model, tiny.tokenizer, changed, "cot", Sampling(temperature=0, max_new_tokens=8)
    )
    assert document["columns"]["few.cot"]["rows"]["distractor"]["accuracy"] == metrics["accuracy"]
    assert recognize(changed[0]) is None  # the sentence is none of the family's own


def test_a_stopped_audit_keeps_its_columns(tiny, tmp_path, monkeypatch):
    save(tmp_path / "few.jsonl", built_in(2))
    config = audit.Config(
        model=str(tiny.root / "model"),
        problems=[str(tmp_path / "few.jsonl")],
        formats=["cot"],
        temperatures=[0.7],
        max_new_tokens=4,
        device="cpu",
        to=str(tmp_path / "out"),
    )
    first = audit.main(config)
    whole = audit.audit
    monkeypatch.setattr(
        audit, "audit", lambda *given: pytest.fail("a finished column was made again")
    )
    assert audit.main(config)["columns"] == json.loads(json.dumps(first["columns"]))
    asked = []
    monkeypatch.setattr(
        audit, "audit", lambda task, *rest: asked.append(task.format) or whole(task, *rest)
    )
    both = audit.main(dataclasses.replace(config, formats=["cot", "pot"]))
    assert asked == ["pot"] and list(both["columns"]) == ["few.cot", "few.pot"]
    with pytest.raises(InputError, match="audit.json: is of another model or of other settings"):
        audit.main(dataclasses.replace(config, seed=1))


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "--model DIR and --problems FILE or --data FOLDER are needed"),
        (
            {"model": "x", "problems": ["y"], "temperatures": [0, 0.7]},
            "--temperatures 0,0.7: out of range",
        ),
        ({"model": "x", "problems": ["none.jsonl"]}, "none.jsonl: cannot be read"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        config = audit.Config(**options)
        check(config)
        audit.main(config)


def test_a_cell_by_hand():
    def records(*right):
        return [
            {"id": str(i), "attempts": [{"right": bool(r), "strict": False}]}
            for i, r in enumerate(right)
        ]

    one = audit.cell(records(1, 0, 1, 1), records(1, 1, 0, 0))
    assert (one["n"], one["accuracy"], one["kept"]) == (4, 0.75, 0.5)
    assert (one["change"]["a"], one["change"]["b"]) == (0.5, 0.75)
    assert (one["change"]["better"], one["change"]["worse"], one["change"]["p"]) == (2, 1, 1)
    assert audit.cell(records(0, 1), records(0, 0))["kept"] is None and "kept" not in audit.cell(
        records(0, 1)
    )
    assert audit.cell(records(1, 1), records(1, 1), "strict")["accuracy"] == 0
