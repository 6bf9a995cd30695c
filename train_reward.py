"""Reward models (paper 4.1.2 to 4.2, after Math-Shepherd): a score of a completion, or of each of its steps.

    outcome    the score at the last token; its label: is the answer right?
    process    a score at the last token of each step; its label: do completions sampled from there reach the answer?
               soft: the share that does; hard: 1 if any does

    for step in 1..M:
        a batch of questions with their labeled completions
        minimize the cross-entropy of sigmoid(score) against the labels (reward_loss)

The model has a linear score head in place of the LM head. The paper starts from DeepSeekMath-Base 7B, with a learning
rate of 2e-5. Data are files of rollout.py, or public files of labeled steps. With --history a share of the training set,
the paper's 10 % (4.1.4), is replayed from older files.

    python train_reward.py --kind process --init runs/demo/pretrain/model --data samples.jsonl --to runs/process
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from runtime.options import option, parse, read_toml

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from batch import cut_group, micro_batches, token_scores
from data import prompts
from data.chat import load_tokenizer
from data.io import InputError
from data.problems.step_labels import Solution, math_shepherd, prm800k, stepwise
from data.rows import read_rows
from data.tokenizer import Tokenizer, check_tokenizer
from generate import Sampling
from reward import RewardModel, solution_score, step_ends
from rollout import Sampler, judge, label_steps, load_rollouts, sample_rollouts, save_rollouts
from runtime.distributed import World, seeded, setup, shard, shuffled
from runtime.hf import from_pretrained
from runtime.optim import Work, adamw, clip_grad_norm, forward_flops, lr_linear_decay, set_lr
from runtime.run import Run, command


@dataclass
class Config:
    kind: str = option("outcome", "what is scored", choices=("outcome", "process"))
    init: str = option("", "base model or reward model to start from", required=True)
    data: list[str] = option(
        [], "files of rollout.py, or of labeled steps (docs/data.md)", required=True
    )
    to: str = option("", "run directory; the result is TO/model", required=True)
    labels: str = option(
        "soft", "soft: share that is right; hard: 1 if any is", choices=("soft", "hard")
    )
    history: list[str] = option([], "files trained on earlier, of which a share is replayed")
    replay: float = option(0.1, "share of the training set from --history", least=0, below=1)
    valid: str = option("", "such a file held out for validation")
    template: str = option("plain", "prompt template", choices=prompts.TEMPLATES)
    system: str = option("", "system message of --template chat; empty: the template's")
    context: int = option(0, "longest prompt and completion; 0: by the model", least=0)
    # optimization
    questions: int = option(16, "questions a step, with all their completions", least=1)
    steps: int = option(500, "optimizer steps", least=1)
    lr: float = option(2e-5, "learning rate, constant after the warm-up", least=0)
    warmup: int = option(0, "steps of linear warm-up", least=0)
    decay: float = option(0.0, "last share of the steps, where the rate falls", least=0, most=1)
    weight_decay: float = option(0.1, "AdamW weight decay, on matrices", least=0)
    beta2: float = option(0.95, "AdamW beta2 (beta1 is 0.9)", least=0, below=1)
    max_grad_norm: float = option(1.0, "largest norm of the gradient; 0: any", least=0)
    micro_tokens: int = option(16_384, "tokens of one forward and backward pass", least=1)
    activation_checkpointing: bool | None = option(None, "recompute activations; none: if needed")
    bf16: bool | None = option(None, "products in bfloat16; none: on GPUs, and where faster")
    compile: bool | None = option(None, "compile the blocks with torch.compile; none: on GPUs")
    kernels: str = option("fast", "plain: without accelerators", choices=("fast", "plain"))
    # the run
    valid_every: int = option(100, "steps between validations", least=1)
    save_every: int = option(100, "steps between checkpoints", least=1)
    keep: int = option(2, "checkpoints kept", least=1)
    seed: int = option(0, "seed of the order, and of what is replayed", least=0)
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))


@dataclass
class Labeled:
    """A question with G completions and their labeled tokens.

    places [G][...]: index of each labeled token in its completion. labels [G][...]: numbers from 0 to 1.
    verdicts [G]: 1 if the answer is right, else 0; empty where the file does not say.
    """

    prompt: list[int]
    completions: list[list[int]]
    places: list[list[int]]
    labels: list[list[float]]
    verdicts: list[float]

    def part(self, members: list[int]) -> "Labeled":
        """The same question with some of its completions, by number."""
        return Labeled(
            self.prompt,
            [self.completions[g] for g in members],
            [self.places[g] for g in members],
            [self.labels[g] for g in members],
            [self.verdicts[g] for g in members] if self.verdicts else [],
        )

    @property
    def group(self) -> tuple[list[int], list[list[int]]]:
        return self.prompt, self.completions

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.completions))


# ----------------------------------------------------------------------------------------------------
# Data

KINDS = "rollout.py, PRM800K, Math-Shepherd, TRL (prompt, completions, labels) or ProcessBench"


def load_labeled(path: str, config: Config, tokenizer: Tokenizer) -> tuple[list[Labeled], int]:
    """The questions of a file, and the number of completions left out as longer than the context.

    The first line says what kind of file it is. Raises InputError with file and line.
    """
    _, first = next(read_rows(path), ("", {}))
    if not first:
        raise InputError(f"{path}: holds no row; give a file with at least one")
    if "responses" in first:
        found = _rollouts(path, config, tokenizer)
    elif isinstance(first.get("label"), dict):
        found = _encode(prm800k(path), config, tokenizer)
    elif "completions" in first or "steps" in first:
        found = _encode(stepwise(path), config, tokenizer)
    elif "conversations" in first or ("input" in first and ("label" in first or "value" in first)):
        found = _encode(math_shepherd(path), config, tokenizer)
    else:
        raise InputError(f"{path}: its first row is none of {KINDS}")

    groups, left_out = [], 0
    for group in found:
        room = config.context - len(group.prompt)
        fitting = [g for g, ids in enumerate(group.completions) if len(ids) <= room]
        left_out += len(group.completions) - len(fitting)
        if fitting:
            groups.append(group.part(fitting))
    if not groups:
        raise InputError(f"{path}: no labeled completion of at most {config.context} tokens")
    return groups, left_out


def load_files(paths: list[str], config: Config, tokenizer: Tokenizer) -> tuple[list[Labeled], int]:
    """load_labeled of several files."""
    groups: list[Labeled] = []
    left_out = 0
    for path in paths:
        found, count = load_labeled(path, config, tokenizer)
        groups += found
        left_out += count
    return groups, left_out


def _rollouts(path: str, config: Config, tokenizer: Tokenizer) -> Iterator[Labeled]:
    """Completions sampled by rollout.py: labels are verdicts, or the step labels of label_steps."""
    for number, rollout in enumerate(load_rollouts(path, tokenizer), 1):
        completions = [sample.ids for sample in rollout.samples]
        if config.kind == "outcome":
            places = [[len(ids) - 1] for ids in completions]
            labels = [[verdict] for verdict in rollout.verdicts]
        elif rollout.step_labels:
            places, labels = rollout.step_ends, rollout.step_labels
        else:
            advice = "write the file by rollout.py with --step_samples"
            raise InputError(f"{path}:{number}: no step_labels; {advice}")
        yield Labeled(rollout.prompt, completions, places, labels, rollout.verdicts)


def _encode(
    solutions: Iterator[Solution], config: Config, tokenizer: Tokenizer
) -> Iterator[Labeled]:
    """Solutions as token ids; a step is a line."""
    for solution in solutions:
        question = prompts.prompt(solution.question, "cot", config.template)
        (prompt,) = prompts.encode(tokenizer, [question], config.template)
        lines = [" ".join(text.split()) for text, _ in solution.steps]
        response = prompts.response_text("\n".join(lines), "cot", config.template)
        ids = [*tokenizer.encode(response), tokenizer.eos_id]
        verdicts = [] if solution.verdict is None else [solution.verdict]

        if config.kind == "outcome":
            if verdicts:
                yield Labeled(prompt, [ids], [[len(ids) - 1]], [verdicts], verdicts)
        elif all(lines):  # no step is empty
            places, labels = [], []
            ends = step_ends(tokenizer, ids)
            for place, (_, label) in zip(ends, solution.steps, strict=True):
                if label is not None:
                    places.append(place)
                    labels.append(label)
            yield Labeled(prompt, [ids], [places], [labels], verdicts)


def with_replay(
    new: list[Labeled], history: list[Labeled], share: float, seed: int
) -> list[Labeled]:
    """The training set: all new questions, and so many of history that they are `share` of the whole (4.1.4).

    90 new questions and a share of 0.1 make 100: ten come from history. They are drawn without repetition as long as
    history lasts.
    """
    count = round(len(new) * share / (1 - share)) if history else 0
    draw = np.random.default_rng([seed, 1])
    chosen: list[int] = []
    while len(chosen) < count:
        chosen += draw.permutation(len(history)).tolist()
    return new + [history[i] for i in chosen[:count]]


# ----------------------------------------------------------------------------------------------------
# The loss


def reward_loss(scores: Tensor, labels: Tensor, count: int) -> Tensor:
    """Cross-entropy of sigmoid(score) against the label, summed and divided by `count`, the labels of the batch.

    scores, labels [S] -> loss [].
    """
    return F.binary_cross_entropy_with_logits(scores, labels, reduction="sum") / count


def label_tensor(groups: list[Labeled], kind: str) -> Tensor:
    """The labels of all labeled tokens, in order: float32 [S]. kind "hard": 1 where a soft label is above 0."""
    labels: list[float] = []
    for group in groups:
        for row in group.labels:
            labels += row
    soft = torch.tensor(labels)
    return (soft > 0).float() if kind == "hard" else soft


def reward_scores(model, groups: list[Labeled]) -> Tensor:
    """The score [S] of every labeled token, in order. Its sigmoid is the probability."""
    places = []
    for group in groups:
        places += group.places
    return token_scores(model, [group.group for group in groups], places)


def batch_loss(model, groups: list[Labeled], config: Config, world: World) -> dict:
    """Mean loss and accuracy over the labeled tokens of all processes. Adds up the gradient of the loss.

    Every process holds all groups and takes its share of the micro-batches, in equal number.
    """
    parts = []
    for group in groups:
        for members in cut_group(group.prompt, group.completions, config.micro_tokens):
            parts.append(group.part(members))
    count = sum(len(row) for group in groups for row in group.labels)
    sizes = [part.tokens for part in parts]
    total = torch.zeros(2, device=world.device)
    for micro in micro_batches(sizes, config.micro_tokens, world.size)[world.rank]:
        # The processes call a sharded model equally often, so one without groups runs without effect.
        chosen = [parts[i] for i in micro or [0]]
        scores = reward_scores(model, chosen)  # [S]
        labels = label_tensor(chosen, config.labels).to(world.device)  # [S]
        loss = reward_loss(scores, labels, count)
        loss = loss if micro else 0.0 * loss
        loss.backward()
        if micro:
            accuracy = ((scores > 0) == (labels > 0.5)).sum() / count
            total += torch.stack([loss.detach(), accuracy])
    mean_loss, accuracy = world.all_sum(total).tolist()
    return {"loss": mean_loss, "accuracy": accuracy, "labels": count}


# ----------------------------------------------------------------------------------------------------
# Validation


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative. Ties count half.

    0.5 where there is only one kind.
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (counts.cumsum() - (counts - 1) / 2)[
        inverse
    ]  # from 1; equal scores share their mean rank
    n = int(positive.sum())
    m = len(scores) - n
    return float((rank[positive].sum() - n * (n + 1) / 2) / (n * m)) if n and m else 0.5


def calibration_error(probability: np.ndarray, label: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: |mean probability - mean label| of each tenth of [0, 1], weighted by its tokens."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [abs((probability - label)[place == i].sum()) for i in range(bins)]
    return float(sum(gaps) / len(label))


@torch.no_grad()
def score_groups(model, groups: list[Labeled], micro_tokens: int, world: World) -> list[list]:
    """[question][completion][label]: the scores of all labeled tokens, on every process."""
    found: dict[int, list[list[float]]] = {}
    sizes = [group.tokens for group in groups]
    for micro in micro_batches(sizes, micro_tokens, world.size)[world.rank]:
        scores = iter(reward_scores(model, [groups[i] for i in micro or [0]]).tolist())
        for i in micro:
            found[i] = [[next(scores) for _ in row] for row in groups[i].places]
    for part in world.all_gather_objects(found):
        found |= part
    return [found[i] for i in range(len(groups))]


def validate(model, groups: list[Labeled], config: Config, world: World) -> dict:
    """Measures on held-out questions.

    valid_loss, valid_accuracy, valid_auc, valid_calibration_error: of all labeled tokens.
    best_of_n, random_of_n: how often the best-scored completion of a question is right, and a random one.
    valid_auc_within: the mean over questions of the area under the curve within a question. The area over all tokens
    is large already for a model that tells easy questions from hard ones, which does not help best-of-N or GRPO.
    """
    rows = score_groups(model, groups, config.micro_tokens, world)
    flat = [score for question in rows for completion in question for score in completion]
    scores = torch.tensor(flat)  # [S]
    labels = label_tensor(groups, config.labels)  # [S]
    positive = (labels > 0.5).numpy()
    metrics = {
        "valid_loss": reward_loss(scores, labels, len(labels)).item(),
        "valid_accuracy": float(((scores > 0).numpy() == positive).mean()),
        "valid_auc": auc(scores.numpy(), positive),
        "valid_calibration_error": calibration_error(scores.sigmoid().numpy(), labels.numpy()),
    }

    # Questions with several judged completions: does the score find the right ones?
    best, random, within = [], [], []
    for group, question in zip(groups, rows, strict=True):
        if len(group.verdicts) > 1:
            verdicts = np.array(group.verdicts)
            solution_scores = np.array([solution_score(completion) for completion in question])
            best.append(verdicts[solution_scores.argmax()])
            random.append(verdicts.mean())
            if 0 < verdicts.sum() < len(verdicts):
                within.append(auc(solution_scores, verdicts > 0))
    if best:
        metrics["best_of_n"] = float(np.mean(best))
        metrics["random_of_n"] = float(np.mean(random))
    if within:
        metrics["valid_auc_within"] = float(np.mean(within))
    return metrics


# ----------------------------------------------------------------------------------------------------
# Training


def main(config: Config) -> None:
    world = setup(config.device, config.kernels, config.bf16, config.compile)
    run = Run(config, world)

    # --- labeled questions, new ones and a share of older ones (4.1.4)
    tokenizer = load_tokenizer(run.init, config.template, config.system)
    model = from_pretrained(run.init, world.device, score=config.kind)
    check_tokenizer(tokenizer, model, run.init)
    new, left_out = load_files(config.data, config, tokenizer)
    history, _ = load_files(config.history, config, tokenizer)
    held_out, _ = load_files([config.valid] if config.valid else [], config, tokenizer)
    groups = with_replay(new, history, config.replay, config.seed)
    counts = {"questions": len(groups), "replayed": len(groups) - len(new), "left_out": left_out}
    run.say(f"{len(groups)} questions, {counts['replayed']} of them from history")
    run.say(f"{left_out} completions longer than {config.context} tokens left out")

    model = shard(model, world)
    optimizer = adamw(model, config.lr, (0.9, config.beta2), config.weight_decay)
    run.checkpointing(model, tokens=max(config.micro_tokens, config.context))
    start, _ = run.resume(model, optimizer)
    order = shuffled(len(groups), config.seed)
    for _ in range(start * config.questions):
        next(order)
    if start == 0 and held_out:
        run.log(0, validate(model, held_out, config, world))

    for step in range(start + 1, config.steps + 1):
        run.phase("update")

        # --- a batch of questions with all their completions
        batch = [groups[next(order)] for _ in range(config.questions)]

        # --- the gradient of the mean cross-entropy of the labels
        metrics = batch_loss(model, batch, config, world)

        # --- one step of AdamW
        factor = lr_linear_decay(step, config.warmup, config.steps, config.decay)
        rate = set_lr(optimizer, config.lr * factor)
        norm = clip_grad_norm(model, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        # --- validate, log, save
        run.phase("validate")
        metrics |= {"grad_norm": norm, "lr": rate}
        if held_out and (step % config.valid_every == 0 or step == config.steps):
            metrics |= validate(model, held_out, config, world)
        flops = 3 * forward_flops(model.config, [group.group for group in batch], last=True)
        run.log(step, metrics, Work(sum(group.tokens for group in batch), flops))
        run.checkpoint(step, model, tokenizer, optimizer)
    run.finish(model, tokenizer, counts)


# ----------------------------------------------------------------------------------------------------
# Training on between the outer iterations of GRPO (4.1.4). `grpo` is a train_grpo.Config.

STEP_SAMPLES = 8  # completions from the end of a step that label it


def load_model(grpo, iteration: int, tokenizer: Tokenizer, world: World) -> RewardModel | None:
    """The reward model of an outer iteration, which counts from 0; None where the rule is the reward."""
    if grpo.reward == "rule":
        return None
    kind = grpo.reward.removesuffix("_model")
    return RewardModel(directory(grpo, iteration), kind, tokenizer, world.device, world.dtype)


def directory(grpo, iteration: int) -> Path:
    """Where the reward model of an outer iteration stands."""
    renewed = iteration and grpo.reward_questions
    return Path(grpo.to) / f"reward_{iteration}" / "model" if renewed else Path(grpo.reward_model)


def check_options(grpo) -> None:
    """Raise InputError for options of the reward that do not go together, and for a bad --reward_config."""
    learned, renewed = grpo.reward != "rule", getattr(grpo, "reward_questions", 0)
    if learned and not grpo.reward_model:
        raise InputError(f"--reward {grpo.reward} needs --reward_model DIR, of train_reward.py")
    if not learned and (grpo.reward_model or renewed):
        needs = "need --reward outcome_model or process_model"
        raise InputError(f"--reward_model and --reward_questions {needs}")
    if renewed and grpo.iterations == 1:
        raise InputError("--reward_questions needs --iterations above 1: it acts between them")
    if renewed:
        renewal_options(grpo)


def renewal_options(grpo) -> Config:
    """The options of training on: --reward_config. Raises InputError.

    Without `history` in it, a share of what the first reward model was trained on is replayed, where
    its run directory says what that was.
    """
    given = ["--config", grpo.reward_config] if grpo.reward_config else []
    options = parse(Config, given, partial=True)
    first = Path(grpo.reward_model).parent / "config.toml"
    if not options.history and grpo.reward_model and first.exists():
        options.history = [path for path in read_toml(first).get("data", []) if Path(path).exists()]
    return options


def renew(grpo, iteration: int, sampler: Sampler, problems: list) -> None:
    """Label new samples of the policy, and train the reward model on with them and with older data.

    Leaves reward_data/iteration_I.jsonl and reward_I/model in the run directory. What is there already
    is kept.
    """
    world = sampler.world
    folder = Path(grpo.to) / "reward_data"
    data = [folder / f"iteration_{i}.jsonl" for i in range(1, iteration + 1)]
    if not world.broadcast_object(data[-1].exists()):
        order = shuffled(len(problems), seeded(grpo.seed, "reward", iteration))
        chosen = [problems[next(order)] for _ in range(grpo.reward_questions)]
        seed = seeded(grpo.seed, "reward samples", iteration)
        sampling = Sampling(grpo.samples, grpo.temperature, 1.0, grpo.max_new_tokens, seed=seed)
        rollouts = sample_rollouts(sampler, chosen, grpo.formats, sampling)
        judge(sampler, rollouts)
        if grpo.reward == "process_model":
            more = replace(sampling, samples=STEP_SAMPLES, seed=seeded(seed, "steps"))
            label_steps(sampler, rollouts, more)
        world.barrier()
        if world.is_main:
            save_rollouts(data[-1], rollouts, sampler.tokenizer)
        world.barrier()
    if not world.broadcast_object(directory(grpo, iteration).exists()):
        options = renewal_options(grpo)
        main(
            replace(
                options,
                kind=grpo.reward.removesuffix("_model"),
                init=str(directory(grpo, iteration - 1)),
                data=[str(data[-1])],
                history=options.history + [str(path) for path in data[:-1]],
                to=str(directory(grpo, iteration).parent),
                seed=seeded(grpo.seed, "reward model", iteration),
                device=grpo.device,
                bf16=grpo.bf16,
                kernels=grpo.kernels,
            )
        )


if __name__ == "__main__":
    command(main, Config)
