"""Rewards: a verdict by the rule (is the answer right?), and scores of a reward model (4.1.2, 4.1.3).

`predictions` turns completions into answers: from the text, or from what its program prints.
`verdict` compares an answer with the right one. Training, evaluation and voting all do it this way.
`RewardModel` is a model that train_reward.py has trained. `step_ends` says where a step ends.
What training maximizes is another number: `completion_rewards` in train_grpo.py.
"""

from collections.abc import Sequence
from concurrent.futures import Future

import torch

from batch import Group, cut_group, micro_batches, token_scores
from data import answers, prompts
from data.io import InputError
from data.sandbox.sandbox import Result, Sandbox
from data.tokenizer import Tokenizer
from runtime.distributed import World
from runtime.hf import from_pretrained

# ---- The rule ------------------------------------------------------------------------------------


def predictions(
    texts: Sequence[str],
    format: str,
    template: str = "plain",
    sandbox: "Sandbox | Programs | None" = None,
) -> list[str | None]:
    """The answer of each completion: found in the text (cot), or the last line it prints (pot).

    None where there is none: no answer, no program, a program that fails or prints nothing.
    """
    if format == "cot":
        return [answers.extract(text) for text in texts]
    if format != "pot":
        raise InputError(f"format {format!r} has no rule; use cot or pot")
    if sandbox is None:
        raise ValueError("programs need a sandbox to run in")
    programs = [prompts.program(text, format, template) for text in texts]
    return [printed(result) for result in run_programs(programs, sandbox)]


def verdict(gold: str, prediction: str | None) -> float:
    """1.0 where the prediction equals the right answer, else 0.0."""
    return float(prediction is not None and answers.compare(gold, prediction).equal)


class Programs:
    """A sandbox whose programs may start before their results are needed. Equal programs run once."""

    def __init__(self, sandbox: Sandbox):
        self.sandbox = sandbox
        self.started: dict[str, Future[Result]] = {}

    def start(self, program: str | None) -> None:
        if program and program not in self.started:
            self.started[program] = self.sandbox.start(program)

    def run_many(self, programs: Sequence[str]) -> list[Result]:
        for program in programs:
            self.start(program)
        return [self.started[program].result() for program in programs]


def run_programs(
    programs: Sequence[str | None], sandbox: "Sandbox | Programs"
) -> list[Result | None]:
    """The result of each program; None where there is none."""
    results = iter(sandbox.run_many([program for program in programs if program]))
    return [next(results) if program else None for program in programs]


def printed(result: Result | None) -> str | None:
    """The last line that a program printed; None if it failed or printed nothing."""
    lines = result.stdout.strip().splitlines() if result and result.status == "ok" else []
    return lines[-1].strip() if lines else None


# ---- Reward models -------------------------------------------------------------------------------


def step_ends(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """The index of each step's last token, the paper's index(j). A step is a line that is not blank.

    It ends with the token that holds its newline, and the last step ends with the last token (EOS).
    Example: the tokens "1+2", "=3", "\\n", "\\n", "So", " 3", EOS have the ends 2 and 6.
    """
    ends = []
    begun = False  # the line has text
    for place, id in enumerate(ids):
        before, newline, after = tokenizer.decode_bytes([id]).rpartition(b"\n")
        if newline and (begun or before.strip()):
            ends.append(place)
            begun = False
        begun = begun or bool(after.strip())
    last = len(ids) - 1
    if not ends or (begun and ends[-1] != last):
        ends.append(last)
    ends[-1] = last  # blank lines and EOS at the end belong to the last step
    return ends


class RewardModel:
    """A trained reward model: the probability that a completion is right ("outcome"), or each step of
    it ("process"). Whole on every process and without gradient, like the sampler.

    Raises InputError for a model of another kind, or with another tokenizer than the policy's.
    """

    def __init__(
        self, directory, kind: str, tokenizer: Tokenizer, device="cpu", dtype=torch.float32
    ):
        self.kind, self.tokenizer = kind, tokenizer
        if Tokenizer.load(directory).hash != tokenizer.hash:
            reason = "its tokenizer is not the policy's, whose ids it is to score"
            raise InputError(f"{directory}: {reason}; train it from a model with that tokenizer")
        self.model = from_pretrained(directory, device, dtype, score=kind)

    @torch.no_grad()
    def __call__(self, groups: list[Group], micro_tokens: int = 16_384) -> list[list[list[float]]]:
        """Scores of [group][completion][step]; an outcome model scores the last token alone.

        At most `micro_tokens` go through the model at once, or one longer completion.
        """
        ends = [self.ends(completions) for _, completions in groups]
        scores: list = [[None] * len(completions) for _, completions in groups]
        # Cut groups that are too long: (number of the group, numbers of completions)
        parts, sizes = [], []
        for i, (prompt, completions) in enumerate(groups):
            for members in cut_group(prompt, completions, micro_tokens):
                parts.append((i, members))
                sizes.append(len(prompt) + sum(len(completions[g]) for g in members))
        for micro in micro_batches(sizes, micro_tokens)[0]:
            chosen = [parts[number] for number in micro]
            packed = [(groups[i][0], [groups[i][1][g] for g in members]) for i, members in chosen]
            places = [(i, g) for i, members in chosen for g in members]
            logits = token_scores(self.model, packed, [ends[i][g] for i, g in places])
            values = iter(logits.sigmoid().tolist())
            for i, g in places:
                scores[i][g] = [next(values) for _ in ends[i][g]]
        return scores

    def ends(self, completions: list[list[int]]) -> list[list[int]]:
        """The indices at which each completion is scored."""
        if self.kind == "outcome":
            return [[len(ids) - 1] for ids in completions]
        return [step_ends(self.tokenizer, ids) for ids in completions]

    def score(self, rollouts: list, micro_tokens: int, world: World) -> None:
        """Fill in step_ends and step_rewards of rollouts; the processes share the work."""
        mine = range(world.rank, len(rollouts), world.size)
        scores = self([rollouts[i].group for i in mine], micro_tokens)
        found = dict(zip(mine, scores, strict=True))
        for i, rewards in world.gather_dict(found).items():
            rollouts[i].step_rewards = rewards
            rollouts[i].step_ends = self.ends(rollouts[i].group[1])


def solution_score(scores: Sequence[float]) -> float:
    """The score of a whole completion: that of its weakest step (Math-Shepherd, 3.4)."""
    return min(scores)
