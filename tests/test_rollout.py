"""rollout.py: labels of steps by sampling, files, a command that goes on where it was stopped."""

import json
import re
import sys
from dataclasses import replace

import pytest
import training
from training import PROBLEMS, in_tests, one_error

import rollout as module
from data.io import InputError, read_jsonl
from data.prompts import encode, problem_prompt
from data.sandbox.sandbox import Sandbox
from generate import Sample, Sampling, generate
from reward import Programs, step_ends
from rollout import (
    Rollout,
    Sampler,
    judge,
    label_steps,
    load_rollouts,
    sample_rollouts,
    save_rollouts,
)
from runtime.hf import from_pretrained
from runtime.run import command as run_program


@pytest.fixture
def policy(tiny):
    return from_pretrained(tiny.root / "model")


def completion(tokenizer, text: str, eos: bool = True) -> Sample:
    ids = tokenizer.encode(text) + [tokenizer.eos_id] * eos
    return Sample(ids, [0.0] * len(ids), [True] * len(ids), "eos" if eos else "length")


def test_a_step_is_labelled_by_what_is_sampled_from_its_end(tiny, policy, monkeypatch):
    """The share of right answers among completions of the beginning, sampled here once more; the last step's label is
    the completion's own reward, and an equal beginning is sampled once."""
    texts = [
        " 1 + 2 = 3.\nSo the answer is 3.",
        " 1 + 2 = 3.\nSo the answer is 2.",
        " The answer is 3.",
    ]
    item = PROBLEMS[2]  # its answer is 3
    prompt = encode(tiny.tokenizer, [problem_prompt(item, "cot")])[0]
    samples = [completion(tiny.tokenizer, text) for text in texts]
    one = Rollout(item, "cot", prompt, samples, [1.0, 0.0, 1.0])
    asked = []
    monkeypatch.setattr(module, "generate", lambda *a, **k: asked.append(a[2]) or generate(*a, **k))
    sampling = Sampling(40, 1.0, 1.0, 14, seed=5)
    label_steps(Sampler(policy, tiny.tokenizer, max_rows=16), [one], sampling)
    assert one.step_ends == [step_ends(tiny.tokenizer, sample.ids) for sample in samples]
    assert [len(labels) for labels in one.step_labels] == [2, 2, 1]
    assert [labels[-1] for labels in one.step_labels] == [1.0, 0.0, 1.0]
    beginning = samples[0].ids[: one.step_ends[0][0] + 1]
    assert asked == [[prompt + beginning]] and tiny.tokenizer.decode(beginning).endswith("\n")
    assert one.step_labels[0][0] == one.step_labels[1][0]
    many = replace(sampling, samples=400, seed=6, max_rows=64)
    other = generate(policy, tiny.tokenizer, [prompt + beginning], many)[0]
    right = (
        sum("answer is 3" in tiny.tokenizer.decode(beginning + sample.ids) for sample in other)
        / 400
    )
    assert (
        0.02 < right
        and abs(one.step_labels[0][0] - right) < 4 * (right * (1 - right) / 40) ** 0.5 + 0.02
    )


def test_lines_of_programs_are_steps_too(tiny, policy):
    samples = [
        completion(tiny.tokenizer, "\na = 1\nb = 2\nprint(a + b)"),
        completion(tiny.tokenizer, "\na = 1", False),
    ]
    prompt = encode(tiny.tokenizer, [problem_prompt(PROBLEMS[2], "pot")])[0]
    one = Rollout(PROBLEMS[2], "pot", prompt, samples, [1.0, 0.0])
    with Sandbox(workers=1) as sandbox:
        sampler = Sampler(policy, tiny.tokenizer, max_rows=16, sandbox=sandbox)
        label_steps(sampler, [one], Sampling(6, 0.5, 1.0, 14))
    assert [len(labels) for labels in one.step_labels] == [3, 1]
    assert one.step_labels[0][1] > 0.5  # having got so far, the policy knows how to end it
    assert one.step_labels[1] == [0.0]


class Noting(training.Calculator):
    """Notes when a program begins, and when somebody waits for it."""

    def __init__(self, events):
        self.events = events

    def start(self, code):
        self.events.append(code)
        return super().start(code)


def test_programs_run_while_others_are_written(tiny, policy, monkeypatch):
    """The same rollouts and step labels as when all is judged in the end; a program is started once, and at once."""
    events, original, decode = [], module.generate, policy.decode
    monkeypatch.setattr(policy, "decode", lambda *args: events.append("decode") or decode(*args))
    sampling = Sampling(6, 0.9, 1.0, 16, seed=4)

    def sampled(sandbox):
        sampler = Sampler(policy, tiny.tokenizer, max_rows=5, sandbox=sandbox)
        found = sample_rollouts(sampler, PROBLEMS, ["pot", "cot"], sampling)
        judge(sampler, found)
        label_steps(sampler, found, sampling)
        return found

    early = sampled(Noting(events))
    programs = [event for event in events if event != "decode"]
    assert len(programs) > 5
    first = [i for i, event in enumerate(events) if event != "decode"][:5]
    assert all("decode" in events[i:] for i in first), "programs were started when all was sampled"
    monkeypatch.setattr(
        module, "generate", lambda *args, keys, on_sample: original(*args, keys=keys)
    )
    assert early == sampled(Noting([])) and 0 < sum(sum(one.verdicts) for one in early) < 36
    assert any(
        label not in (0, 1) for one in early for labels in one.step_labels for label in labels
    )


def test_a_program_is_started_once(tiny):
    events = []
    programs = Programs(Noting(events))
    for program in ("print(1)", "print(1)", "print(7)", None):
        programs.start(program)
    assert events == ["print(1)", "print(7)"]
    assert [
        one.stdout for one in programs.run_many(["print(1)", "a = 2\nprint(a)", "print(7)"])
    ] == ["1", "2", ""]
    assert events == ["print(1)", "print(7)", "a = 2\nprint(a)"]


def test_files_keep_everything(tiny, tmp_path):
    rollouts = load_rollouts(tiny.root / "samples.jsonl")
    assert len(rollouts) == 6 and all(one.step_labels and not one.advantages for one in rollouts)
    rollouts[0].advantages = [[0.5, -0.25]] * 6
    rollouts[1].rewards, rollouts[1].step_rewards = [0.0] * 6, [[0.1]] * 6
    rollouts[2].problem = replace(
        rollouts[2].problem, kind="choice", choices=("3", "4"), answer="B"
    )
    save_rollouts(tmp_path / "again.jsonl", rollouts, tiny.tokenizer)
    assert load_rollouts(tmp_path / "again.jsonl") == rollouts
    (tmp_path / "again.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(InputError, match=r"again.jsonl:1: not a rollout \(KeyError: 'responses'\)"):
        load_rollouts(tmp_path / "again.jsonl")


def command(tiny, to, monkeypatch, **changes) -> int:
    arguments = dict(
        model=tiny.root / "model",
        problems=tiny.root / "problems.jsonl",
        to=to,
        samples=3,
        step_samples=2,
        chunk=2,
        max_new_tokens=14,
        formats="cot",
        device="cpu",
    )
    pairs = [(f"--{name}", str(value)) for name, value in (arguments | changes).items()]
    monkeypatch.setattr(sys, "argv", ["rollout.py", *(text for pair in pairs for text in pair)])
    with in_tests():
        try:
            run_program(module.main, module.Config)
        except SystemExit as stop:
            return stop.code
    return 0


def test_the_command_goes_on_where_it_was_stopped(tiny, tmp_path, monkeypatch, capsys):
    assert command(tiny, tmp_path / "whole.jsonl", monkeypatch) == 0
    save, calls = module.save_rollouts, []

    def stop_at_the_third(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        save(*args)

    monkeypatch.setattr(module, "save_rollouts", stop_at_the_third)
    assert command(tiny, tmp_path / "stopped.jsonl", monkeypatch) == 130
    assert not (tmp_path / "stopped.jsonl").exists()
    capsys.readouterr()
    # other options are not mixed with these
    assert command(tiny, tmp_path / "other.jsonl", monkeypatch, samples=4) == 0 and len(calls) == 6
    assert command(tiny, tmp_path / "stopped.jsonl", monkeypatch) == 0 and len(calls) == 7
    assert (tmp_path / "stopped.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "other.jsonl",
        "stopped.jsonl",
        "whole.jsonl",
    ]
    rows = [row for _, row in read_jsonl(tmp_path / "whole.jsonl")]
    assert [row["id"] for row in rows] == [item.id for item in PROBLEMS]
    assert all(len(row["responses"]) == len(row["step_labels"]) == 3 for row in rows)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model=""), "--model is needed: .*"),
        (dict(formats="tool"), "--formats tool: unknown; choose cot or pot"),
        (dict(samples=0), "--samples 0: out of range; give an integer at least 1"),
        (dict(first=-1), "--first -1: out of range; give an integer at least 0"),
        (dict(temperature=0), "--temperature must be above 0: .*"),
        (dict(first=6), "--first 6: no problem is left; lower it"),
        (dict(problems="none.jsonl"), "none.jsonl: cannot be read .*"),
    ],
)
def test_bad_input_is_one_line(tiny, tmp_path, monkeypatch, capsys, changes, message):
    code = command(tiny, tmp_path / "out.jsonl", monkeypatch, **changes)
    assert re.fullmatch(message, one_error(code, capsys.readouterr().err))
    assert not list(tmp_path.iterdir())


def test_first_and_limit(tiny, tmp_path, monkeypatch):
    assert command(tiny, tmp_path / "part.jsonl", monkeypatch, first=1, limit=3) == 0
    assert (
        command(tiny, tmp_path / "part.jsonl", monkeypatch, first=2, limit=3) == 2
    )  # what is there is not lost
    ids = [json.loads(line)["id"] for line in (tmp_path / "part.jsonl").read_text().splitlines()]
    assert ids == ["p1", "p2", "p3"]
