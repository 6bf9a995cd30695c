"""Rewards: what a completion answers, and whether that is right (paper 4.1: the rule part of the reward).

`predictions` turns completions into answers (the text's own, or what its program prints); `rule_rewards` compares them
with the gold answers. Rewards, evaluation and majority voting all go through here, and so through data.answers.
"""

from collections.abc import Sequence

from data import InputError, answers, prompts
from data.sandbox import Sandbox
from data.tokenizer import Tokenizer
from generate import Sample


def completion_text(tokenizer: Tokenizer, sample: Sample, stop: Sequence[str] = ()) -> str:
    """What a completion says: its ids decoded, without the stop string that ended it."""
    text = tokenizer.decode(sample.ids)
    if sample.finish == "stop":
        text = text[: min((at for s in stop if (at := text.rfind(s)) >= 0), default=len(text))]
    return text


def predictions(
    texts: Sequence[str], format: str, template: str = "plain", sandbox: Sandbox | None = None
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
    programs = [prompts.program(text, format, template) for text in texts]
    runnable = [i for i, program in enumerate(programs) if program]
    found: list[str | None] = [None] * len(texts)
    for i, result in zip(runnable, sandbox.run_many([programs[i] for i in runnable]), strict=True):
        lines = result.stdout.strip().splitlines() if result.status == "ok" else []
        found[i] = lines[-1].strip() if lines else None
    return found


def rule_rewards(golds: Sequence[str], predicted: Sequence[str | None]) -> list[float]:
    """1.0 where the prediction equals the gold answer, else 0.0."""
    return [float(p is not None and answers.compare(gold, p).equal) for gold, p in zip(golds, predicted, strict=True)]
