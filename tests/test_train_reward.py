"""Reward models: labels of all kinds of files, the loss, measures against sklearn's definitions, replay, whole runs."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import (
    assert_close,
    assert_same_run,
    assert_same_start,
    gradients,
    metrics,
    options,
    refusal,
    run,
)

from data import prompts
from data.io import InputError
from data.train_tokenizer import train
from reward import step_ends
from rollout import load_rollouts
from runtime.distributed import World
from runtime.hf import from_pretrained
from train_reward import (
    Config,
    Labeled,
    auc,
    batch_loss,
    calibration_error,
    load_labeled,
    reward_scores,
    validate,
    with_replay,
)

POINTS = [
    ["runtime.run.Run.log", 3, "before"],  # before the first checkpoint
    ["runtime.run.Run.log", 8, "after"],  # between two
    ["runtime.checkpoint.Checkpoints.write", 2, "after"],
]


@pytest.fixture(scope="module")
def runs(killed):
    return killed("reward", POINTS)


@pytest.fixture
def scorer(tiny):
    return from_pretrained(tiny.root / "process", score="process")


def settings(tiny, **changes) -> Config:
    return Config(**{"kind": "process", "context": 96, "init": str(tiny.root / "base"), **changes})


# ---------------------------------------------------------------------------------------------------------------------
# Data


def test_rollouts_give_labels_of_completions_or_of_steps(tiny):
    path = str(tiny.root / "samples.jsonl")
    rollouts = load_rollouts(path)
    for kind in ("outcome", "process"):
        groups, left_out = load_labeled(path, settings(tiny, kind=kind), tiny.tokenizer)
        assert left_out == 0 and len(groups) == len(rollouts)
        for one, group in zip(rollouts, groups, strict=True):
            assert group.prompt == one.prompt and group.verdicts == one.verdicts
            assert group.completions == [sample.ids for sample in one.samples]
            if kind == "outcome":
                assert group.labels == [[reward] for reward in one.verdicts]
                assert group.places == [[len(sample.ids) - 1] for sample in one.samples]
            else:
                assert group.labels == one.step_labels and group.places == one.step_ends


def test_completions_longer_than_the_context_are_counted(tiny):
    path = str(tiny.root / "samples.jsonl")
    whole, _ = load_labeled(path, settings(tiny), tiny.tokenizer)
    sizes = sorted(len(one.prompt) + len(ids) for one in whole for ids in one.completions)
    context = sizes[len(sizes) // 2]
    groups, left_out = load_labeled(path, settings(tiny, context=context), tiny.tokenizer)
    kept = [len(one.prompt) + len(ids) for one in groups for ids in one.completions]
    assert (
        sorted(kept) == [size for size in sizes if size <= context]
        and left_out == len(sizes) - len(kept) > 0
    )
    assert all(
        len(one.completions) == len(one.labels) == len(one.places) == len(one.verdicts)
        for one in groups
    )


def text_of(tiny, one: Labeled) -> tuple[str, str, list[str]]:
    """Question's prompt, response, and the text up to each labeled place."""
    ids = one.completions[0]
    return (
        tiny.tokenizer.decode(one.prompt),
        tiny.tokenizer.decode(ids),
        [tiny.tokenizer.decode(ids[: place + 1]).strip() for place in one.places[0]],
    )


SHEPHERD = {
    "input": "Ann has 2 pens and buys 3. How many? Step 1: 2 + 3 = 5. ки\nStep 2: She gives 1. 5 + 1 = 6. ки\n"
    "Step 3: The answer is: 6 ки",
    "label": "Ann has 2 pens and buys 3. How many? Step 1: 2 + 3 = 5. +\nStep 2: She gives 1. 5 + 1 = 6. -\n"
    "Step 3: The answer is: 6 -",
    "task": "GSM8K",
}


def in_turns(marked: str) -> dict:
    """The row of Math-Shepherd as RLHFlow has it."""
    chat = []
    for step in marked.split("\n"):
        chat += [("user", step[:-1].strip()), ("assistant", step[-1])]
    return {"conversations": [{"role": role, "content": text} for role, text in chat]}


@pytest.mark.parametrize(
    "row",
    [
        SHEPHERD,
        {"input": SHEPHERD["input"], "value": ["+", "-", "-"]},  # OpenRLHF
        in_turns(SHEPHERD["label"]),
    ],
)
def test_math_shepherd(tiny, tmp_path, row):
    path = tmp_path / "shepherd.jsonl"
    path.write_text(json.dumps(row) + "\n")
    ((one,), _) = load_labeled(str(path), settings(tiny), tiny.tokenizer)
    prompt, response, beginnings = text_of(tiny, one)
    assert prompt == prompts.prompt("Ann has 2 pens and buys 3. How many?")
    lines = ["Step 1: 2 + 3 = 5.", "Step 2: She gives 1. 5 + 1 = 6.", "Step 3: The answer is: 6"]
    assert response == " " + "\n".join(lines) and one.completions[0][-1] == tiny.tokenizer.eos_id
    assert beginnings == ["\n".join(lines[:n]) for n in (1, 2, 3)]
    assert one.labels == [[1.0, 0.0, 0.0]] and one.verdicts == [0.0]
    ((one,), _) = load_labeled(str(path), settings(tiny, kind="outcome"), tiny.tokenizer)
    assert one.labels == [[0.0]] and one.places == [[len(one.completions[0]) - 1]]


def rated(text, rating):
    return {"text": text, "rating": rating, "flagged": False}


PRM = {
    "question": {"problem": "What is 2 + 3?", "ground_truth_answer": "5"},
    "label": {
        "steps": [
            {
                "completions": [rated("Add\nthem.", 1), rated("Cry.", -1)],
                "human_completion": None,
                "chosen_completion": 0,
            },
            {
                "completions": [rated("It is 6.", -1)],
                "human_completion": rated("It is 5.", None),
                "chosen_completion": None,
            },
            {
                "completions": [rated("Maybe 5.", 0), rated("Skip", None)],
                "human_completion": None,
                "chosen_completion": 0,
            },
        ],
        "finish_reason": "solution",
    },
}


def test_prm800k(tiny, tmp_path):
    path = tmp_path / "prm800k.jsonl"
    path.write_text(json.dumps(PRM) + "\n")
    groups, _ = load_labeled(str(path), settings(tiny), tiny.tokenizer)
    found = [(*text_of(tiny, one)[1:], one.labels, one.verdicts) for one in groups]
    assert found == [
        (" Cry.", ["Cry."], [[0.0]], []),
        (" Add them.\nIt is 6.", ["Add them.\nIt is 6."], [[0.0]], []),
        # a step that a human wrote has no rating; neutral is not wrong
        (
            " Add them.\nIt is 5.\nMaybe 5.",
            ["Add them.", "Add them.\nIt is 5.\nMaybe 5."],
            [[1.0, 1.0]],
            [1.0],
        ),
    ]
    ((one,), _) = load_labeled(str(path), settings(tiny, kind="outcome"), tiny.tokenizer)
    assert one.labels == [[1.0]] and text_of(tiny, one)[1] == " Add them.\nIt is 5.\nMaybe 5."


TRL = {"prompt": "What is 2 + 3?", "completions": ["Add.", "It is 6."], "labels": [True, False]}
BENCH = {"problem": "What is 2 + 3?", "steps": ["Add.", "It is 6.", "So 6."], "label": 1}


@pytest.mark.parametrize(
    ("row", "labels", "verdict"),
    [
        (TRL, [1.0, 0.0], 0.0),
        (TRL | {"labels": [1, 1]}, [1.0, 1.0], 1.0),
        (BENCH, [1.0, 0.0], 0.0),  # what follows the first wrong step has no label
        (BENCH | {"label": -1, "id": "x"}, [1.0, 1.0, 1.0], 1.0),
    ],
)
def test_stepwise_supervision(tiny, tmp_path, row, labels, verdict):
    path = tmp_path / "steps.json"
    path.write_text(json.dumps([row]))
    ((one,), _) = load_labeled(str(path), settings(tiny), tiny.tokenizer)
    steps = row.get("completions", row.get("steps"))
    prompt, response, beginnings = text_of(tiny, one)
    assert prompt == prompts.prompt("What is 2 + 3?")
    assert response == " " + "\n".join(steps)
    assert beginnings == ["\n".join(steps[: n + 1]) for n in range(len(labels))]
    assert one.labels == [labels] and one.verdicts == [verdict]


@given(st.integers(1, 300), st.integers(1, 40), st.sampled_from([0.0, 0.1, 0.5]), st.integers(0, 3))
def test_replay_is_the_share_asked_for(new, old, share, seed):
    groups, history = list(range(new)), list(range(1000, 1000 + old))
    found = with_replay(groups, history, share, seed)
    count = len(found) - new
    assert found[:new] == groups and set(found[new:]) <= set(history)
    assert abs(count - share * len(found)) <= 0.5
    repeats = [found[new:].count(one) for one in history]
    assert max(repeats) - min(repeats) <= 1  # all of history before any of it comes again


def test_a_tenth_is_exactly_a_tenth():
    found = with_replay(list(range(90)), list(range(1000, 1400)), 0.1, 0)
    assert len(found) == 100 and sum(one >= 1000 for one in found) == 10
    assert with_replay([1, 2], [], 0.1, 0) == [1, 2]
    assert with_replay(list(range(90)), list(range(1000, 1400)), 0.1, 1)[90:] != found[90:]


# ---------------------------------------------------------------------------------------------------------------------
# Loss and measures


def naive_loss(model, groups: list[Labeled], hard: bool) -> torch.Tensor:
    """Cross-entropy at each labeled token, its sequence run alone."""
    losses = []
    for one in groups:
        for ids, places, labels in zip(one.completions, one.places, one.labels, strict=True):
            scores = model.score(model(torch.tensor(one.prompt + ids)))[:, 0]
            for place, label in zip(places, labels, strict=True):
                p, label = (
                    scores[len(one.prompt) + place].sigmoid(),
                    float(label > 0) if hard else label,
                )
                losses.append(-(label * p.log() + (1 - label) * (1 - p).log()))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("micro_tokens", [60, 10_000])
def test_gradient_of_the_cross_entropy(tiny, scorer, labels, micro_tokens):
    config = settings(tiny, labels=labels, micro_tokens=micro_tokens)
    groups, _ = load_labeled(f"{tiny.root}/samples.jsonl", config, tiny.tokenizer)
    for number, one in enumerate(groups):
        one.labels = [
            [(0.0, 0.25, 1.0)[(number + g + k) % 3] for k in range(len(r))]
            for g, r in enumerate(one.labels)
        ]
    expected = naive_loss(scorer, groups, labels == "hard")
    expected.backward()
    wanted = gradients(scorer)
    found = batch_loss(scorer, groups, config, World())
    assert found["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert found["labels"] == sum(len(row) for one in groups for row in one.labels)
    assert_close(gradients(scorer), wanted)


def test_gradients_do_not_depend_on_micro_batches_or_processes(alone, together):
    assert_close(alone[4]["reward"], alone[1]["reward"])
    assert_close(torch.load(together / "gradients.pt")["reward"], alone[1]["reward"])


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_auc_is_the_chance_of_the_right_order(pairs):
    scores, positive = (np.array(column) for column in zip(*pairs, strict=True))
    wins = [float(p > n) + (p == n) / 2 for p in scores[positive] for n in scores[~positive]]
    assert auc(scores, positive) == pytest.approx(np.mean(wins) if wins else 0.5)


def test_calibration_error_by_hand():
    probability = np.array([0.05, 0.07, 0.55, 0.55, 1.0])
    label = np.array([0.0, 0.0, 1.0, 0.0, 1.0])
    # tenths: 0.06 against 0 (2 tokens), 0.55 against 0.5 (2), 1 against 1
    assert calibration_error(probability, label) == pytest.approx((2 * 0.06 + 2 * 0.05 + 0) / 5)


def test_best_of_n_takes_the_highest_score(tiny, scorer):
    """Completions with scores known in advance: the one whose weakest step is the best."""
    groups, _ = load_labeled(f"{tiny.root}/samples.jsonl", settings(tiny), tiny.tokenizer)
    with torch.no_grad():
        scores = [
            reward_scores(scorer, [one]).split([len(row) for row in one.places]) for one in groups
        ]
    expected, random, within = [], [], []
    for one, rows in zip(groups, scores, strict=True):
        weakest = [row.min().item() for row in rows]
        judged = list(zip(weakest, one.verdicts, strict=True))
        pairs = [(a, b) for a, x in judged for b, y in judged if x > y]
        within += [np.mean([(a > b) + (a == b) / 2 for a, b in pairs])] if pairs else []
        expected.append(one.verdicts[weakest.index(max(weakest))])
        random.append(np.mean(one.verdicts))
    found = validate(scorer, groups, settings(tiny, micro_tokens=100), World())
    assert found["best_of_n"] == pytest.approx(np.mean(expected))
    assert found["random_of_n"] == pytest.approx(np.mean(random))
    assert within and found["valid_auc_within"] == pytest.approx(np.mean(within))
    with torch.no_grad():
        assert found["valid_loss"] == pytest.approx(
            naive_loss(scorer, groups, False).item(), rel=1e-5
        )
    assert found["valid_auc"] > 0.7  # it was trained on these


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs


def test_a_killed_run_is_the_same_run(runs):
    out, _ = runs
    assert_same_run(out / "whole", out / "killed")


def test_the_run_itself(runs, tiny):
    rows = metrics(runs[0] / "whole")
    assert [row["step"] for row in rows] == list(range(11))
    assert [row["step"] for row in rows if "best_of_n" in row] == [0, 3, 6, 9, 10]
    assert rows[0]["valid_loss"] == pytest.approx(np.log(2))  # a new head says 1/2 to everything
    assert rows[-1]["valid_loss"] < rows[0]["valid_loss"] - 0.05
    summary = json.loads((runs[0] / "whole" / "summary.json").read_text())
    assert (
        summary["questions"] == 8 and summary["replayed"] == 2
    )  # 6 new: a quarter of the whole from history


def test_two_processes_train_the_same_model(runs, together):
    assert_same_start(metrics(together / "reward"), metrics(runs[0] / "whole"))


def test_training_goes_on_from_a_reward_model(tiny, tmp_path):
    """As between GRPO's iterations: the score head is kept."""
    run("reward", tiny.root, tmp_path / "on", init=tiny.root / "process", steps=1, lr=1e-9)
    rows = metrics(tmp_path / "on")
    assert rows[0]["valid_auc"] > 0.7
    weight = from_pretrained(tmp_path / "on" / "model", score="process").score.weight
    torch.testing.assert_close(
        weight, from_pretrained(tiny.root / "process", score="process").score.weight
    )


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def spoil(tiny, tmp_path, **changes):
    row = json.loads((tiny.root / "samples.jsonl").read_text().splitlines()[0])
    row["responses"][0]["text"] = changes.pop("text", row["responses"][0]["text"])
    row |= changes
    return json.dumps({name: value for name, value in row.items() if value is not None})


@pytest.mark.parametrize(
    "text, changes, message",
    [
        (None, {}, "{}/bad.jsonl: cannot be read .*"),
        ("", {}, "{}/bad.jsonl: holds no row; give a file with at least one"),
        ('{"id": "a"}', {}, "{}/bad.jsonl: its first row is none of .*"),
        ('{"responses": []}', {}, "{}/bad.jsonl:1: not a rollout .*"),
        (
            dict(text="other"),
            {},
            "{}/bad.jsonl:1: its ids are not its text in the vocabulary of .*",
        ),
        (dict(step_labels=None), {}, "{}/bad.jsonl:1: .*--step_samples"),
        (dict(verdicts=None), {}, r"{}/bad.jsonl:1: not a rollout .KeyError: 'verdicts'.*"),
        (dict(verdicts=[1.0]), {}, r"{}/bad.jsonl:1: not a rollout .TypeError: a list without .*"),
        (
            {**SHEPHERD, "label": "Step 1: +"},
            {},
            "{}/bad.jsonl:1: label is not input with . or - in place of each ки",
        ),
        (
            json.dumps({"prompt": "Q?", "completions": ["a", "b"], "labels": [True]}),
            {},
            "{}/bad.jsonl:1: no solution with labels of its steps; it needs prompt, .*",
        ),
        (
            json.dumps({"problem": "Q?", "steps": ["a", "b"], "label": 10**30}),
            {},
            "{}/bad.jsonl:1: no solution with labels of its steps; it needs prompt, .*",
        ),
        ({**PRM, "question": {}}, {}, "{}/bad.jsonl:1: not a line of PRM800K .*"),
        (SHEPHERD, dict(context=5), "{}/bad.jsonl: no labeled completion of at most 5 tokens"),
        (SHEPHERD, dict(kind="both"), "--kind both: unknown; choose outcome or process"),
        (SHEPHERD, dict(labels="none"), "--labels none: unknown; choose soft or hard"),
        (
            SHEPHERD,
            dict(replay=1),
            "--replay 1: out of range; give a finite number at least 0 and below 1",
        ),
        (SHEPHERD, dict(questions=0), "--questions 0: out of range; give an integer at least 1"),
        (SHEPHERD, dict(init="{}/none"), "{}/none.*"),
        (SHEPHERD, dict(to=""), "--to is needed: .*"),
    ],
)
def test_bad_input_is_one_line(tiny, tmp_path, monkeypatch, capsys, text, changes, message):
    if isinstance(text, dict) and "input" not in text and "question" not in text:
        text = spoil(tiny, tmp_path, **text)
    if text is not None:
        (tmp_path / "bad.jsonl").write_text(text if isinstance(text, str) else json.dumps(text))
    changes = {"data": tmp_path / "bad.jsonl", "valid": "", "history": "", **changes}
    changes = {name: str(value).replace("{}", str(tmp_path)) for name, value in changes.items()}
    said = refusal(
        "reward", options("reward", tiny.root, tmp_path / "run", **changes), monkeypatch, capsys
    )
    assert re.fullmatch(message.replace("{}", re.escape(str(tmp_path))), said), said
    assert not (tmp_path / "run").exists()


def test_samples_of_another_vocabulary(tiny):
    other = train([chr(i) * 9 for i in range(300, 900)], 400, workers=1)
    with pytest.raises(
        InputError, match="samples.jsonl:1: its ids are not its text in the vocabulary of"
    ):
        load_labeled(f"{tiny.root}/samples.jsonl", settings(tiny), other)


def test_steps_of_text_are_where_step_ends_says(tiny, tmp_path):
    (tmp_path / "s.jsonl").write_text(json.dumps(SHEPHERD))
    ((one,), _) = load_labeled(str(tmp_path / "s.jsonl"), settings(tiny), tiny.tokenizer)
    assert one.places[0] == step_ends(tiny.tokenizer, one.completions[0])
