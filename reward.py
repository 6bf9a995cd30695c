"""Rewards: by the rule (is the answer right?), by an outcome model, by a process model (paper 4.1.2, 4.1.3).

`predictions` turns completions into answers (the text's own, or what its program prints); `rule_rewards` compares them
with the gold answers. Rewards, evaluation and majority voting all go through here, and so through data.answers.
`RewardModel` is a model that train_reward.py has trained; `step_ends` says where a reasoning step ends.
"""

from collections.abc import Sequence
from concurrent.futures import Future

import torch

from batch import Group, cut_group, micro_batches, token_scores
from data import answers, prompts
from data.io import InputError
from data.sandbox.sandbox import Result, Sandbox
from data.tokenizer import Tokenizer
from generate import Sample
from runtime.hf import from_pretrained


def completion_text(tokenizer: Tokenizer, sample: Sample, stop: Sequence[str] = ()) -> str:
    """What a completion says: its ids decoded, without the stop string that ended it, one that its last id completes.
    (An earlier one is followed by a tool's output and stays.)"""
    text = tokenizer.decode_bytes(sample.ids)
    if sample.finish == "stop":
        before = len(tokenizer.decode_bytes(sample.ids[:-1]))
        ends = [
            at for s in map(str.encode, stop) if (at := text.rfind(s)) >= 0 and at + len(s) > before
        ]
        text = text[: min(ends, default=len(text))]
    return text.decode("utf-8", errors="replace")


def predictions(
    texts: Sequence[str],
    format: str,
    template: str = "plain",
    sandbox: "Sandbox | Programs | None" = None,
) -> list[str | None]:
    """The answer of each completion: extracted from the text (cot), or the last line its program prints (pot).

    None where there is none: no answer in the text, no program, or a program that fails or prints nothing.
    """
    if format == "cot":
        return [answers.extract(text) for text in texts]
    if format != "pot":
        raise InputError(f"format {format!r} has no rule reward; use cot or pot")
    if sandbox is None:
        raise ValueError("programs need a sandbox to run in")
    return [
        printed(result)
        for result in run_programs([prompts.program(t, format, template) for t in texts], sandbox)
    ]


def run_programs(
    programs: Sequence[str | None], sandbox: "Sandbox | Programs"
) -> list[Result | None]:
    """The result of each program; None where there is none."""
    results = iter(sandbox.run_many([program for program in programs if program]))
    return [next(results) if program else None for program in programs]


class Programs:
    """Programs of completions that are still being sampled, told as each one ends and run meanwhile; then a sandbox
    whose `run_many` waits for what is left. Equal programs run once."""

    def __init__(
        self,
        sandbox: Sandbox,
        tokenizer: Tokenizer,
        format: str,
        template: str,
        stop: Sequence[str],
    ):
        self.sandbox, self.tokenizer, self.told = sandbox, tokenizer, (format, template)
        self.stop = stop
        self.started: dict[str, Future[Result]] = {}

    def begin(self, sample: Sample) -> None:
        program = prompts.program(completion_text(self.tokenizer, sample, self.stop), *self.told)
        if program:
            self._start(program)

    def _start(self, program: str) -> Future[Result]:
        if program not in self.started:
            self.started[program] = self.sandbox.start(program)
        return self.started[program]

    def run_many(self, programs: Sequence[str]) -> list[Result]:
        started = [self._start(program) for program in programs]
        return [future.result() for future in started]


def printed(result: Result | None) -> str | None:
    """The answer of a program: the last line it printed. None where it failed or printed nothing."""
    lines = result.stdout.strip().splitlines() if result and result.status == "ok" else []
    return lines[-1].strip() if lines else None


def rule_rewards(golds: Sequence[str], predicted: Sequence[str | None]) -> list[float]:
    """1.0 where the prediction equals the gold answer, else 0.0."""
    return [
        float(p is not None and answers.compare(gold, p).equal)
        for gold, p in zip(golds, predicted, strict=True)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Learned rewards


def step_ends(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """The place of each step's last token, the paper's index(j). A step is a line with something on it, of a chain of
    thought or of a program; it ends with the token that holds its newline, the last one with the last token (EOS).

    Example: the tokens "1+2", "=3", "\\n", "\\n", "So", " 3", EOS have the steps' ends 2 and 6.
    """
    ends, begun = [], False  # begun: something stands on the line
    for place, id in enumerate(ids):
        before, newline, after = tokenizer.decode_bytes([id]).rpartition(b"\n")
        if newline and (begun or before.strip()):
            ends.append(place)
            begun = False
        begun = begun or bool(after.strip())
    if not ends or (begun and ends[-1] != len(ids) - 1):
        ends.append(len(ids) - 1)
    ends[-1] = len(ids) - 1  # what is blank at the end belongs to the last step, EOS too
    return ends


class RewardModel:
    """A reward model for use: the probability that a completion ("outcome") or each of its steps ("process") is right.

    Whole on every process and without gradient, as the sampler's copy of the policy is.
    """

    def __init__(
        self, directory, kind: str, tokenizer: Tokenizer, device="cpu", dtype=torch.float32
    ):
        """Raises InputError for a model of another kind, or one made with another tokenizer than the policy's."""
        self.kind, self.tokenizer = kind, tokenizer
        if Tokenizer.load(directory).hash != tokenizer.hash:
            reason = "its tokenizer is not the policy's, whose ids it is to score"
            raise InputError(f"{directory}: {reason}; train it from a model with that tokenizer")
        self.model = from_pretrained(directory, device, dtype, score=kind)

    @torch.no_grad()
    def __call__(self, groups: list[Group], micro_tokens: int = 16_384) -> list[list[list[float]]]:
        """Scores of [group][completion][step]: of every step's end, or of the end alone for an outcome model. At most
        `micro_tokens` go through the model at once, or one completion that is longer with its question."""
        ends = [self.places(completions) for _, completions in groups]
        found: list = [[None] * len(completions) for _, completions in groups]
        parts = [
            (i, members)
            for i, group in enumerate(groups)
            for members in cut_group(*group, micro_tokens)
        ]
        cut = [(groups[i][0], [groups[i][1][g] for g in members]) for i, members in parts]
        sizes = [len(prompt) + sum(map(len, completions)) for prompt, completions in cut]
        for micro in micro_batches(sizes, micro_tokens)[0]:
            places = [(i, g) for part in micro for i, members in [parts[part]] for g in members]
            flat = [ends[i][g] for i, g in places]
            values = iter(
                token_scores(self.model, [cut[part] for part in micro], flat).sigmoid().tolist()
            )
            for i, g in places:
                found[i][g] = [next(values) for _ in ends[i][g]]
        return found

    def places(self, completions: list[list[int]]) -> list[list[int]]:
        """Where each completion is scored."""
        if self.kind == "outcome":
            return [[len(ids) - 1] for ids in completions]
        return [step_ends(self.tokenizer, ids) for ids in completions]


def solution_score(scores: Sequence[float]) -> float:
    """The score of a whole completion: that of its weakest step (Math-Shepherd, 3.4); an outcome model gives one."""
    return min(scores)
