"""Published verdicts, and published outputs of programs, are those that we come to."""

import json

from bench.regrade import labeled, trajectories
from data.sandbox.sandbox import Sandbox


def test_labels_of_published_solutions(real):
    assert labeled(real("gsm8k/example_model_solutions.jsonl")) == (5276, [])


def test_tool_integrated_solutions_run_to_what_they_report(real):
    """The first 150 of 1,319; of them one ends in a program that is no Python. `python -m
    bench.regrade` runs all.
    """
    path = real("tool-integrated/tora-code-34b-v1.0-gsm8k-test.jsonl")
    with Sandbox(workers=2) as sandbox:
        counts, differences = trajectories(path, sandbox, 150)
    assert counts["solutions"] == counts["verdicts equal"] == 150
    assert counts["programs"] == counts["outputs equal"] == counts["answers equal"] == 149
    assert [(one["line"], one["ours"]) for one in differences] == [(147, None)]


def test_differences_are_found(tmp_path):
    """A label that is wrong, an output and an answer that the program does not come to."""
    solution = {"solution": "3 + 4 = 7\nA: 7", "is_correct": True}
    wrong = solution | {"is_correct": False}
    models = ("6b_finetuning", "6b_verification", "175b_finetuning")
    row = {"ground_truth": "A: 7", **dict.fromkeys(models, solution), "175b_verification": wrong}
    (tmp_path / "labeled.jsonl").write_text(json.dumps(row))
    total, (one,) = labeled(tmp_path / "labeled.jsonl")
    assert total == 4 and (one["model"], one["label"], one["ours"]) == (
        "175b_verification",
        False,
        True,
    )

    text = "```python\nx = 3\nprint(x)\n```\n```output\n3\n```\n```python\nprint(x + 1)\n```\n```output\n{}\n```\n"
    text += r"So \boxed{{{}}}."
    rows = [
        {"code": [text.format(*told)], "pred": [reported], "gt": "4"}
        for told, reported in (((4, 4), "4"), ((5, 4), "4"), ((4, 4), "6"))
    ]
    (tmp_path / "tool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with Sandbox(workers=1) as sandbox:
        counts, differences = trajectories(tmp_path / "tool.jsonl", sandbox)
    assert counts["programs"] == 6 and counts["outputs equal"] == 5 and counts["answers equal"] == 2
    assert [(one["line"], one["what"]) for one in differences] == [(2, "output"), (3, "answer")]
    assert (counts["right, reported"], counts["right, ours"]) == (2, 3)
