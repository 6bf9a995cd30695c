"""Rollouts: sample completions of problems, judge them, label their steps (algorithm 1, lines 7 and 8).

GRPO samples and judges in every step. The command below writes the same rollouts to a file,
for what learns from samples of a fixed model: reward models (train_reward.py), DPO (train_dpo.py).

    python rollout.py --model runs/demo/sft/model --problems runs/demo/data/train.jsonl --to runs/samples.jsonl
    python rollout.py ... --step_samples 8                      also label every step, as Math-Shepherd does
"""

import shutil
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from runtime.options import option

from data import prompts
from data.chat import load_tokenizer
from data.io import InputError, read_jsonl, write_jsonl
from data.problems import readers
from data.problems.problem import Problem, as_row
from data.sandbox.sandbox import Sandbox
from data.tokenizer import Tokenizer, check_tokenizer
from generate import Sample, Sampling, completion_text, generate
from model import Transformer
from reward import Programs, predictions, step_ends, verdict
from runtime.distributed import World, seeded, setup, use_kernels
from runtime.hf import from_pretrained
from runtime.run import SamplingOptions, command


@dataclass
class Config(SamplingOptions):
    model: str = option("", "model directory to sample from", required=True)
    to: str = option("", "file of rollouts to write", required=True)
    samples: int = option(16, "completions of each problem", least=1)
    temperature: float = option(1.0, "sampling temperature; 0: greedy", least=0)
    step_samples: int = option(0, "completions that label a step; 0: no labels", least=0)
    chunk: int = option(64, "problems between two savings", least=1)
    first: int = option(0, "number of problems to pass over", least=0)
    limit: int = option(0, "problems used, after those; 0: all", least=0)
    seed: int = option(0, "seed of the samples", least=0)
    kernels: str = option("fast", "plain: without accelerators", choices=("fast", "plain"))
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))


@dataclass
class Rollout:
    """One question with its G completions. Every list but `prompt` has an entry for each of them."""

    problem: Problem
    format: str  # "cot" or "pot"
    prompt: list[int]
    samples: list[Sample]
    verdicts: list[float] = field(default_factory=list)  # 1 if the answer is right, else 0
    rewards: list[float] = field(default_factory=list)  # what training maximizes
    advantages: list = field(default_factory=list)  # a number, or a number for each token
    step_ends: list[list[int]] = field(default_factory=list)  # index of each step's last token
    step_rewards: list[list[float]] = field(default_factory=list)  # scores of a reward model
    step_labels: list[list[float]] = field(default_factory=list)  # see label_steps
    ref_logprobs: list[list[float]] = field(default_factory=list)  # PPO: of each token
    values: list[list[float]] = field(default_factory=list)  # PPO: V(s_t) of each token
    returns: list[list[float]] = field(default_factory=list)  # PPO: what V(s_t) should have been

    @property
    def group(self) -> tuple[list[int], list[list[int]]]:
        """The token ids of the prompt and of the completions."""
        return self.prompt, [sample.ids for sample in self.samples]


LISTS = [field.name for field in fields(Rollout)][4:]  # from "verdicts" on; they may be empty


@dataclass
class Sampler:
    """A model that samples, whole on every process, with what sampling and judging need."""

    model: Transformer
    tokenizer: Tokenizer
    template: str = "plain"
    max_rows: int = 256  # completions decoded at once
    sandbox: Sandbox | None = None  # runs the programs of format "pot"
    world: World = field(default_factory=World)

    def __post_init__(self):
        self.programs = Programs(self.sandbox) if self.sandbox else None


# ---- Sampling and judging ------------------------------------------------------------------------


def sample_rollouts(
    sampler: Sampler, problems: list[Problem], formats: list[str], sampling: Sampling
) -> list[Rollout]:
    """Sample G completions of each problem. The formats, "cot" or "pot", take turns. The random stream
    of a problem depends on the seed and on its place in the list alone."""
    rollouts = []
    for problem, format in zip(problems, cycle(formats), strict=False):
        text = prompts.problem_prompt(problem, format, sampler.template)
        [prompt] = prompts.encode(sampler.tokenizer, [text], sampler.template)
        rollouts.append(Rollout(problem, format, prompt, []))
    complete(sampler, rollouts, sampling, list(range(len(rollouts))))
    return rollouts


def judge(sampler: Sampler, rollouts: list[Rollout]) -> None:
    """Fill in the verdicts: is the answer right? Programs of all rollouts run at the same time."""
    found: dict[int, list[float]] = {}
    for format, places in places_by_format(rollouts, sampler.world).items():
        stop = prompts.stop_strings(format, sampler.template)
        samples = [sample for i in places for sample in rollouts[i].samples]
        texts = [completion_text(sampler.tokenizer, sample, stop) for sample in samples]
        answers = iter(predictions(texts, format, sampler.template, sampler.programs))
        for i in places:
            gold = rollouts[i].problem.answer
            found[i] = [verdict(gold, next(answers)) for _ in rollouts[i].samples]
    for i, verdicts in sampler.world.gather_dict(found).items():
        rollouts[i].verdicts = verdicts
    if sampler.programs:
        sampler.programs.started.clear()


def validate(sampler: Sampler, problems: list[Problem], config) -> dict[str, float]:
    """Greedy accuracy on held-out problems, for each of `config.formats`."""
    greedy = Sampling(temperature=0.0, max_new_tokens=config.max_new_tokens)
    accuracy = {}
    for format in dict.fromkeys(config.formats):
        rollouts = sample_rollouts(sampler, problems, [format], greedy)
        judge(sampler, rollouts)
        right = sum(rollout.verdicts[0] for rollout in rollouts)
        accuracy[f"valid/{format}"] = right / len(rollouts)
    return accuracy


def label_steps(sampler: Sampler, rollouts: list[Rollout], sampling: Sampling) -> None:
    """Fill in step_ends and step_labels of judged rollouts (Math-Shepherd's soft labels). A label is the
    share of `sampling.samples` completions from the step's end that are right; after the last step it
    is the verdict. Equal beginnings of a group are completed once.
    """
    starts: dict[tuple, Rollout] = {}  # (number of the group, *ids of the beginning)
    for r, rollout in enumerate(rollouts):
        rollout.step_ends = [step_ends(sampler.tokenizer, s.ids) for s in rollout.samples]
        for sample, ends in zip(rollout.samples, rollout.step_ends, strict=True):
            for end in ends[:-1]:
                begun = sample.ids[: end + 1]
                start = Rollout(rollout.problem, rollout.format, rollout.prompt + begun, [])
                starts[r, *begun] = start
    keys = [seeded(rollouts[r].problem.id, tuple(begun)) for r, *begun in starts]
    begun = [ids for _, *ids in starts]
    complete(sampler, list(starts.values()), sampling, keys, begun)
    judge(sampler, list(starts.values()))
    shares = {key: sum(start.verdicts) / len(start.verdicts) for key, start in starts.items()}
    for r, rollout in enumerate(rollouts):
        rollout.step_labels = []
        for g, sample in enumerate(rollout.samples):
            ends = rollout.step_ends[g][:-1]
            labels = [shares[r, *sample.ids[: end + 1]] for end in ends]
            rollout.step_labels.append([*labels, rollout.verdicts[g]])


def complete(
    sampler: Sampler,
    rollouts: list[Rollout],
    sampling: Sampling,
    keys: list[int],
    begun: list[list[int]] | None = None,
) -> None:
    """Fill in the samples of rollouts. keys: the random stream of each. begun: ids at the end of each
    prompt that belong to the completions. A program starts when its completion ends, while others are
    still sampled."""
    found: dict[int, list[Sample]] = {}
    for format, places in places_by_format(rollouts, sampler.world).items():
        beginnings = [begun[i] if begun else [] for i in places]
        stop = prompts.stop_strings(format, sampler.template)
        groups = generate(
            sampler.model,
            sampler.tokenizer,
            [rollouts[i].prompt for i in places],
            replace(sampling, stop=stop, max_rows=sampler.max_rows),
            keys=[keys[i] for i in places],
            on_sample=partial(start_program, sampler, format, beginnings),
        )
        for i, beginning, group in zip(places, beginnings, groups, strict=True):
            found[i] = [replace(sample, ids=beginning + sample.ids) for sample in group]
    for i, samples in sampler.world.gather_dict(found).items():
        rollouts[i].samples = samples


def start_program(
    sampler: Sampler, format: str, beginnings: list[list[int]], number: int, _: int, sample: Sample
) -> None:
    """Start the program of a completion that has just ended, of prompt `number`."""
    if sampler.programs:
        whole = replace(sample, ids=beginnings[number] + sample.ids)
        stop = prompts.stop_strings(format, sampler.template)
        text = completion_text(sampler.tokenizer, whole, stop)
        sampler.programs.start(prompts.program(text, format, sampler.template))


def places_by_format(rollouts: list[Rollout], world: World) -> dict[str, list[int]]:
    """This process's share of the rollouts, by number, for each format: stop strings differ."""
    places: dict[str, list[int]] = {}
    for i in range(world.rank, len(rollouts), world.size):
        places.setdefault(rollouts[i].format, []).append(i)
    return places


# ---- Files ---------------------------------------------------------------------------------------


def save_rollouts(path: Path, rollouts: list[Rollout], tokenizer: Tokenizer) -> None:
    """A line for each question: fields of the problem, format, prompt, responses, and the lists of a
    Rollout that are not empty. A response is {ids, logprobs, mask, finish, text}."""
    rows = []
    for rollout in rollouts:
        row = as_row(rollout.problem) | {"format": rollout.format, "prompt": rollout.prompt}
        row["responses"] = [asdict(s) | {"text": tokenizer.decode(s.ids)} for s in rollout.samples]
        row |= {name: values for name in LISTS if (values := getattr(rollout, name))}
        rows.append(row)
    write_jsonl(path, rows)


def load_rollouts(path: str | Path, tokenizer: Tokenizer | None = None) -> list[Rollout]:
    """What `save_rollouts` wrote, bit for bit. With a tokenizer, the ids must be their text in it.
    Raises InputError naming file and line."""
    rollouts = []
    for number, row in read_jsonl(path):
        try:
            lists = {name: row.pop(name) for name in LISTS if name in row}
            responses = row.pop("responses")
            texts = [response.pop("text") for response in responses]
            samples = [Sample(**response) for response in responses]
            format, prompt = row.pop("format"), row.pop("prompt")
            problem = Problem(**row | {"choices": tuple(row.get("choices", ()))})
            if {len(lists["verdicts"]), *map(len, lists.values())} != {len(samples)}:
                raise TypeError("a list without an entry for each response")
        except (KeyError, TypeError, AttributeError) as error:
            reason = f"not a rollout ({type(error).__name__}: {error}); "
            reason += "rollout.py and train_grpo.py write them"
            raise InputError(f"{path}:{number}: {reason}") from None
        if tokenizer and texts != [tokenizer.decode(sample.ids) for sample in samples]:
            reason = "its ids are not its text in the vocabulary of the model; "
            reason += "sample with a model that has the same tokenizer"
            raise InputError(f"{path}:{number}: {reason}")
        rollouts.append(Rollout(problem, format, prompt, samples, **lists))
    return rollouts


# ---- The command ---------------------------------------------------------------------------------


def main(config: Config) -> None:
    if config.temperature == 0 and max(config.samples, config.step_samples) > 1:
        raise InputError("--temperature must be above 0: greedy samples are all the same")
    target = Path(config.to)
    if target.exists():
        raise InputError(f"--to {target}: exists; give another name, or remove it")
    world = setup(config.device, config.kernels)
    tokenizer = load_tokenizer(config.model, config.template, config.system)
    model = from_pretrained(config.model, world.device, world.dtype)
    check_tokenizer(tokenizer, model, config.model)
    use_kernels(model.config, world)
    problems = readers.load_all(config.problems)[config.first :][: config.limit or None]
    if not problems:
        raise InputError(f"--first {config.first}: no problem is left; lower it")

    # Each chunk is a file, so that a stopped command goes on. The folder's name stands for the options.
    free = ("to", "device", "kernels", "max_rows")
    options = [(name, value) for name, value in vars(config).items() if name not in free]
    folder = target.with_name(f".{target.name}.{seeded(options):x}")
    sampling = Sampling(config.samples, config.temperature, 1.0, config.max_new_tokens)
    with Sandbox() if "pot" in config.formats else nullcontext() as sandbox:
        sampler = Sampler(model, tokenizer, config.template, config.max_rows, sandbox, world)
        for start in range(0, len(problems), config.chunk):
            path = folder / f"{start:08d}.jsonl"
            if world.broadcast_object(path.exists()):
                continue
            chunk = problems[start : start + config.chunk]
            turn = start % len(config.formats)
            formats = config.formats[turn:] + config.formats[:turn]
            sampling.seed = seeded(config.seed, "rollout", start)
            rollouts = sample_rollouts(sampler, chunk, formats, sampling)
            judge(sampler, rollouts)
            if config.step_samples:
                seed = seeded(config.seed, "steps", start)
                more = replace(sampling, samples=config.step_samples, seed=seed)
                label_steps(sampler, rollouts, more)
            world.barrier()  # no process may find the file of a chunk that another still samples
            if world.is_main:
                save_rollouts(path, rollouts, tokenizer)
                right = sum(sum(rollout.verdicts) for rollout in rollouts)
                share = right / len(rollouts) / config.samples
                done = start + len(chunk)
                print(f"{done}/{len(problems)} problems, {share:.1%} right", flush=True)
    if world.is_main:
        rows = (row for path in sorted(folder.iterdir()) for _, row in read_jsonl(path))
        count = write_jsonl(target, rows)
        print(f"wrote {count} problems with {config.samples} completions each to {target}")
        shutil.rmtree(folder)
    world.barrier()


if __name__ == "__main__":
    command(main, Config)
