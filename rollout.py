"""Rollouts: sample completions of problems, judge them by the rule, and label their steps (algorithm 1, lines 7 and 8).

GRPO calls `rollout` every step. The command below writes the same lines to a file, for what learns from samples of a
fixed model: reward models (train_reward.py), DPO's pairs (train_dpo.py), a look at what a model does.

    python rollout.py --model runs/demo/sft/model --problems runs/demo/data/train.jsonl --to runs/samples.jsonl
    python rollout.py ... --step_samples 8                      also label every step, as Math-Shepherd does

A step's label is the share of `step_samples` completions, sampled from the step's end, that reach the gold answer; the
last step has nothing left to sample, its label is the completion's own reward.
"""

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from data import prompts
from data.io import InputError, read_jsonl, write_jsonl
from data.problems import readers
from data.problems.problem import Problem, as_row
from data.sandbox.sandbox import Sandbox
from data.tokenizer import Tokenizer, check_tokenizer
from generate import Sample, Sampling, generate
from model import Transformer
from reward import Programs, completion_text, predictions, rule_rewards, step_ends
from runtime.distributed import World, seeded, setup, use_kernels
from runtime.hf import from_pretrained
from runtime.options import option
from runtime.run import command


@dataclass
class Config:
    model: str = option("", "model directory to sample from", required=True)
    problems: list[str] = option([], "files of training problems with answers", required=True)
    to: str = option("", "file of rollouts to write", required=True)
    formats: list[str] = option(
        ["cot"], "in turn over the questions", choices=("cot", "pot"), required=True
    )
    sandbox: str = option("best-effort", "isolation of programs", choices=("strict", "best-effort"))
    template: str = option("plain", "prompt template", choices=("plain", "deepseek", "qwen"))
    samples: int = option(16, "completions of each problem", least=1)
    step_samples: int = option(0, "completions that label a step; 0: no labels", least=0)
    temperature: float = option(1.0, "sampling temperature", least=0)
    max_new_tokens: int = option(1024, "longest completion", least=1)
    max_rows: int = option(256, "completions decoded at once by one process", least=1)
    chunk: int = option(64, "problems between two savings", least=1)
    first: int = option(0, "number of problems to pass over", least=0)
    limit: int = option(0, "problems used, after those; 0: all", least=0)
    seed: int = option(0, "seed of the samples", least=0)
    kernels: str = option("fast", "plain: definitions alone", choices=("fast", "plain"))
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))


@dataclass
class Rollout:
    """One question with its G completions, as sampled and as judged."""

    problem: Problem
    format: str
    prompt: list[int]
    samples: list[Sample]  # G
    rewards: list[float]  # G: what the policy is trained on
    advantages: list  # G: a number, or with process supervision a number for each token
    rule: list[float] = field(
        default_factory=list
    )  # G: 1 if the answer is right, else 0; empty: the same as rewards
    step_ends: list[list[int]] = field(
        default_factory=list
    )  # G x steps: place of each step's last token
    step_rewards: list[list[float]] = field(
        default_factory=list
    )  # G x steps, of a process reward model
    step_labels: list[list[float]] = field(
        default_factory=list
    )  # G x steps, by sampling: see label_steps
    ref_logprobs: list[list[float]] = field(
        default_factory=list
    )  # G x tokens, of the reference (PPO; as what follows)
    values: list[list[float]] = field(
        default_factory=list
    )  # G x tokens: V(s_t), of the state before each token
    returns: list[list[float]] = field(
        default_factory=list
    )  # G x tokens: what V(s_t) should have been


def rollout(
    policy: Transformer,
    tokenizer: Tokenizer,
    items: list[Problem],
    formats: list[str],
    template: str,
    sampling: Sampling,
    max_rows: int,
    sandbox: Sandbox | None,
    world: World,
    seconds: dict | None = None,
) -> list[Rollout]:
    """Sample G completions of each item and judge them by the rule; formats [Q], a format of each item. `seconds`
    receives "judge": how long this process judged, or waited for programs, when nothing was left to sample.

    Processes share the items and exchange results: all return all. Random streams hang on (seed, place in the batch),
    so any number of processes draws the same samples.
    """
    own = range(world.rank, len(items), world.size)
    mine: dict[int, Rollout] = {}
    for format in dict.fromkeys(formats):  # stop strings differ by format
        members = [i for i in own if formats[i] == format]
        questions = prompts.encode_prompts(tokenizer, [items[i] for i in members], format, template)
        stop = tuple(prompts.stop_strings(format, template))
        asked = policy, tokenizer, questions, replace(sampling, stop=stop), max_rows, members
        told = [items[i] for i in members], format, template, sandbox
        groups, rewards, waited = sample_and_judge(*asked, *told)
        for i, *parts in zip(members, questions, groups, rewards, strict=True):
            mine[i] = Rollout(items[i], format, *parts, advantages=[])
        if seconds is not None:
            seconds["judge"] = seconds.get("judge", 0.0) + waited
    everything = {i: one for part in world.all_gather_objects(mine) for i, one in part.items()}
    return [everything[i] for i in range(len(items))]


def sample_and_judge(
    policy: Transformer,
    tokenizer: Tokenizer,
    questions: list[list[int]],
    sampling: Sampling,
    max_rows: int,
    keys: list[int],
    items: list[Problem],
    format: str,
    template: str,
    sandbox: Sandbox | None,
    begun: list[list[int]] | None = None,
) -> tuple[list[list[Sample]], list[list[float]], float]:
    """Complete each question (token ids) and judge by the rule: samples, rewards, and the seconds that judging took
    when all were there. A program runs from when its completion ends, while others are still being written. begun: ids
    at the end of each question that are the beginning of its completions, and are put in front of the samples."""
    programs = (
        Programs(sandbox, tokenizer, format, template, sampling.stop)
        if format == "pot" and sandbox
        else None
    )

    def whole(number: int, sample: Sample) -> Sample:
        return replace(sample, ids=[*begun[number], *sample.ids]) if begun else sample

    def ended(number: int, _: int, sample: Sample) -> None:
        if programs:
            programs.begin(whole(number, sample))

    groups = generate(policy, tokenizer, questions, sampling, max_rows, keys=keys, on_sample=ended)
    groups = [[whole(number, sample) for sample in group] for number, group in enumerate(groups)]
    began = time.perf_counter()
    rewards = judge(tokenizer, items, groups, format, template, programs or sandbox)
    return groups, rewards, time.perf_counter() - began


def judge(
    tokenizer: Tokenizer,
    items: list[Problem],
    groups: list[list[Sample]],
    format: str,
    template: str,
    sandbox: Sandbox | Programs | None,
) -> list[list[float]]:
    """The rule's reward of each sample of each item, in one call of the sandbox."""
    stop = tuple(prompts.stop_strings(format, template))
    texts = [completion_text(tokenizer, sample, stop) for group in groups for sample in group]
    golds = [item.answer for item, group in zip(items, groups, strict=True) for _ in group]
    rewards = iter(rule_rewards(golds, predictions(texts, format, template, sandbox)))
    return [[next(rewards) for _ in group] for group in groups]


def label_steps(
    policy: Transformer,
    tokenizer: Tokenizer,
    rollouts: list[Rollout],
    template: str,
    sampling: Sampling,
    max_rows: int,
    sandbox: Sandbox | None,
    world: World,
) -> None:
    """Fill in step_ends and step_labels: of every step, the share of `sampling.samples` completions from its end that
    are right (Math-Shepherd's soft label; the hard one is whether any is). Processes share the work: all get all.

    Equal beginnings within a group are sampled once.
    """
    for one in rollouts:
        one.step_ends = [step_ends(tokenizer, sample.ids) for sample in one.samples]
        one.step_labels = [
            [reward] * len(ends) for reward, ends in zip(one.rewards, one.step_ends, strict=True)
        ]
    found: dict[tuple, float] = {}
    for format in dict.fromkeys(one.format for one in rollouts):
        own = [
            r
            for r, one in enumerate(rollouts)
            if one.format == format and r % world.size == world.rank
        ]
        steps = [
            (r, tuple(sample.ids[: end + 1]))
            for r in own
            for sample, ends in zip(rollouts[r].samples, rollouts[r].step_ends, strict=True)
            for end in ends[:-1]
        ]
        jobs = list(dict.fromkeys(steps))
        asked = [[*rollouts[r].prompt, *beginning] for r, beginning in jobs]
        stop = tuple(prompts.stop_strings(format, template))
        keys = [seeded(rollouts[r].problem.id, beginning) for r, beginning in jobs]
        begun = [list(beginning) for _, beginning in jobs]
        told = policy, tokenizer, asked, replace(sampling, stop=stop), max_rows, keys
        items = [rollouts[r].problem for r, _ in jobs]
        rewards = sample_and_judge(*told, items, format, template, sandbox, begun)[1]
        found.update((job, sum(row) / len(row)) for job, row in zip(jobs, rewards, strict=True))
    found = {job: share for part in world.all_gather_objects(found) for job, share in part.items()}
    for r, one in enumerate(rollouts):
        for sample, ends, labels in zip(one.samples, one.step_ends, one.step_labels, strict=True):
            labels[:-1] = [found[r, tuple(sample.ids[: end + 1])] for end in ends[:-1]]


# ---------------------------------------------------------------------------------------------------------------------
# Files


def save_rollouts(path: Path, rollouts: list[Rollout], tokenizer: Tokenizer) -> None:
    """A line a question: {id, question, answer, format, prompt, responses}; a response is {text, ids, logprobs, mask,
    reward, advantage, finish} and, where there are any, those of _OPTIONAL."""

    def response(one: Rollout, g: int) -> dict:
        sample = one.samples[g]
        row = {"text": tokenizer.decode(sample.ids), **asdict(sample), "reward": one.rewards[g]}
        for name, values in (
            ("advantage", one.advantages),
            *((name, getattr(one, name)) for name in _OPTIONAL),
        ):
            if values:
                row[name] = values[g]
        return row

    def row(one: Rollout) -> dict:
        responses = [response(one, g) for g in range(len(one.samples))]
        return {
            **as_row(one.problem),
            "format": one.format,
            "prompt": one.prompt,
            "responses": responses,
        }

    write_jsonl(path, map(row, rollouts))


_FIELDS = (
    "solution",
    "source",
    "lang",
    "kind",
    "task",
)  # of a problem, beside its id, question and answer
_OPTIONAL = (
    "rule",
    "step_ends",
    "step_rewards",
    "step_labels",
    "ref_logprobs",
    "values",
    "returns",
)


def load_rollouts(path: Path) -> list[Rollout]:
    """What `save_rollouts` wrote, bit for bit: a step that was sampled before a crash is not sampled again. Raises
    InputError naming file and line."""
    rollouts = []
    for number, row in read_jsonl(path):
        try:
            given = {key: row[key] for key in _FIELDS if key in row} | {
                "choices": tuple(row.get("choices", ()))
            }
            problem = Problem(row["id"], row["question"], row["answer"], **given)
            responses = row["responses"]
            samples = [Sample(r["ids"], r["logprobs"], r["mask"], r["finish"]) for r in responses]
            rewards = [r["reward"] for r in responses]
            names = ("advantage", *_OPTIONAL)  # of every response or of none
            optional = [
                [r[name] for r in responses] if name in responses[0] else [] for name in names
            ]
            rollouts.append(
                Rollout(problem, row["format"], row["prompt"], samples, rewards, *optional)
            )
        except (KeyError, TypeError, IndexError) as error:
            reason = f"not a rollout ({type(error).__name__}: {error}); rollout.py and train_grpo.py write them"
            raise InputError(f"{path}:{number}: {reason}") from None
    return rollouts


def load_samples(path: str, tokenizer: Tokenizer, init: str) -> Iterator[tuple[int, Rollout]]:
    """(Line number, rollout) of a file that a model learns from as it was sampled: nothing is encoded again. Raises
    InputError also where ids are not their text in this vocabulary, that of the model directory `init`."""
    for (number, row), one in zip(read_jsonl(path), load_rollouts(path), strict=True):
        for response in row["responses"]:
            if tokenizer.decode(response["ids"]) != response.get("text"):
                reason = f"its ids are not its text in the vocabulary of {init}"
                raise InputError(
                    f"{path}:{number}: {reason}; sample with a model that has the same tokenizer"
                )
        yield number, one


def main(config: Config) -> None:
    if config.temperature <= 0 and (config.samples > 1 or config.step_samples > 1):
        raise InputError("--temperature must be above 0: greedy samples are all the same")
    if Path(config.to).exists():
        raise InputError(f"--to {config.to}: exists; give another name, or remove it")
    world = setup(config.device, config.kernels)
    tokenizer = Tokenizer.load(config.model)
    policy = from_pretrained(config.model, world.device, world.dtype)
    check_tokenizer(tokenizer, policy, config.model)
    use_kernels(policy.config, world)
    items = [item for path in config.problems for item in readers.load(path)][config.first :]
    items = items[: config.limit or None]
    if not items:
        raise InputError(f"--first {config.first}: no problem is left; lower it")
    target = Path(config.to)
    parts = target.with_name(f".{target.name}.parts")
    settings = parts / "settings.json"
    elsewhere = ("to", "device", "kernels", "max_rows", "sandbox")  # do not shape the samples
    shaping = {name: value for name, value in vars(config).items() if name not in elsewhere}
    if world.is_main:
        if settings.exists() and json.loads(settings.read_text()) != shaping:
            raise InputError(
                f"{parts}: samples of a stopped command with other options; remove it, or repeat that one"
            )
        write_jsonl(settings, [shaping])
    sampling = Sampling(config.samples, config.temperature, 1.0, config.max_new_tokens)
    with Sandbox(mode=config.sandbox) if "pot" in config.formats else nullcontext() as sandbox:
        for start in range(0, len(items), config.chunk):
            path = parts / f"{start:08d}.jsonl"
            if world.broadcast_object(path.exists()):
                continue
            chunk = items[start : start + config.chunk]
            formats = [config.formats[(start + i) % len(config.formats)] for i in range(len(chunk))]
            ours = replace(sampling, seed=seeded(config.seed, "rollout", start))
            shared = config.max_rows, sandbox, world
            rollouts = rollout(policy, tokenizer, chunk, formats, config.template, ours, *shared)
            if config.step_samples:
                again = replace(
                    sampling, samples=config.step_samples, seed=seeded(config.seed, "steps", start)
                )
                label_steps(policy, tokenizer, rollouts, config.template, again, *shared)
            world.barrier()
            if world.is_main:
                save_rollouts(path, rollouts, tokenizer)
                right = sum(sum(one.rewards) for one in rollouts) / (len(rollouts) * config.samples)
                print(
                    f"{start + len(chunk)}/{len(items)} problems, {100 * right:.1f} % right",
                    flush=True,
                )
    if world.is_main:
        rows = (row for part in sorted(parts.glob("*.jsonl")) for _, row in read_jsonl(part))
        print(
            f"wrote {write_jsonl(target, rows)} problems with {config.samples} completions each to {target}"
        )
        for part in [*parts.glob("*.jsonl"), settings]:
            part.unlink()
        parts.rmdir()
    world.barrier()


if __name__ == "__main__":
    command(main, Config)
