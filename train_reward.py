"""Reward models (paper 4.1.2 to 4.2, after Math-Shepherd): one score a completion, or one at the end of every step.

    outcome    the last token's score; its label: is the answer right?
    process    each step's last token; its label: do completions sampled from there reach the answer?
               soft: the share that does; hard: 1 where any does

A model with a linear score head instead of the LM head, trained by cross-entropy of sigmoid(score) against the label,
the mean over all labelled tokens of the batch. The paper: from DeepSeekMath-Base 7B, learning rate 2e-5. Data are files
of rollout.py, of PRM800K or of Math-Shepherd. With --history a share of the training set, the paper's 10 % (4.1.4), is
replayed from older files.

    python train_reward.py --kind process --init runs/demo/pretrain/model --data samples.jsonl --to runs/process
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from batch import cut_group, forward_flops, micro_batches, token_scores
from data import prompts
from data.io import InputError, read_jsonl
from data.tokenizer import Tokenizer, check_tokenizer
from generate import Sampling
from reward import RewardModel, solution_score, step_ends
from rollout import Sampler, judge, label_steps, load_rollouts, sample_rollouts, save_rollouts
from runtime.distributed import World, seeded, setup, shard, shuffled
from runtime.hf import from_pretrained
from runtime.optim import Work, adamw, clip_grad_norm, lr_linear_decay, set_lr
from runtime.options import option, parse, read_toml
from runtime.run import Run, command


@dataclass
class Config:
    kind: str = option("outcome", "what is scored", choices=("outcome", "process"))
    init: str = option("", "base model or reward model to start from", required=True)
    data: list[str] = option([], "files of rollout.py, PRM800K or Math-Shepherd", required=True)
    to: str = option("", "run directory; the result is TO/model", required=True)
    labels: str = option(
        "soft", "soft: share that is right; hard: 1 if any is", choices=("soft", "hard")
    )
    history: list[str] = option([], "files trained on earlier, of which a share is replayed")
    replay: float = option(0.1, "share of the training set from --history", least=0, below=1)
    valid: str = option("", "such a file held out for validation")
    template: str = option("plain", "prompt template", choices=("plain", "deepseek", "qwen"))
    context: int = option(4096, "longest prompt and completion; others are left out", least=1)
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
    bf16: bool | None = option(None, "matrix products in bfloat16; none: on GPUs")
    compile: bool | None = option(None, "compile the blocks with torch.compile; none: on GPUs")
    kernels: str = option("fast", "fast; plain: definitions alone", choices=("fast", "plain"))
    # the run
    valid_every: int = option(100, "steps between validations", least=1)
    save_every: int = option(100, "steps between checkpoints", least=1)
    keep: int = option(2, "checkpoints kept", least=1)
    seed: int = option(0, "seed of the order, and of what is replayed", least=0)
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))


@dataclass
class Labelled:
    """A question's completions with their labelled tokens: places [G][...] count from 0, labels [G][...] in [0, 1]."""

    prompt: list[int]
    completions: list[list[int]]
    places: list[list[int]]
    labels: list[list[float]]
    rule: list[float]  # 1 where the answer is right; empty where the file does not say

    def part(self, members: list[int]) -> "Labelled":
        pick = [
            [values[g] for g in members] for values in (self.completions, self.places, self.labels)
        ]
        return Labelled(self.prompt, *pick, [self.rule[g] for g in members] if self.rule else [])

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.completions))


# ---------------------------------------------------------------------------------------------------------------------
# Data


def load_labelled(path: str, config: Config, tokenizer: Tokenizer) -> tuple[list[Labelled], int]:
    """The questions of a file, whose kind is told from its first line; and the number of completions left out because
    they are longer than the context. Raises InputError naming file and line."""
    first = next(read_jsonl(path), (0, {}))[1]
    if "responses" in first:
        found = _rollouts(path, config, tokenizer)
    elif isinstance(first.get("label"), dict):
        found = _from_text(_prm800k(path), config, tokenizer)
    elif "input" in first and "label" in first:
        found = _from_text(_math_shepherd(path), config, tokenizer)
    else:
        raise InputError(f"{path}: its first line is none of rollout.py, PRM800K or Math-Shepherd")
    kept, left_out = [], 0
    for one in found:
        fitting = [
            g
            for g, ids in enumerate(one.completions)
            if len(one.prompt) + len(ids) <= config.context
        ]
        left_out += len(one.completions) - len(fitting)
        if fitting:
            kept.append(one.part(fitting))
    if not kept:
        raise InputError(f"{path}: no labelled completion of at most {config.context} tokens")
    return kept, left_out


def _rollouts(path: str, config: Config, tokenizer: Tokenizer) -> Iterator[Labelled]:
    for number, one in enumerate(load_rollouts(path, tokenizer), 1):
        rule = one.verdicts
        completions = [sample.ids for sample in one.samples]
        if config.kind == "outcome":
            places, labels = [[len(ids) - 1] for ids in completions], [[reward] for reward in rule]
        elif not one.step_labels:
            raise InputError(
                f"{path}:{number}: no step_labels; write the file by rollout.py with --step_samples"
            )
        else:
            places, labels = one.step_ends, one.step_labels
        yield Labelled(one.prompt, completions, places, labels, rule)


Steps = tuple[
    str, list[tuple[str, float | None]], float | None
]  # question, (step, label), is the answer right?


def _prm800k(path: str) -> Iterator[Steps]:
    """Human ratings of steps: -1 is wrong, 0 and 1 are not. The path of chosen steps, and each other rated step after
    the steps chosen before it (whose labels count once)."""
    for number, row in read_jsonl(path):
        try:
            question, before = row["question"]["problem"], []
            for step in row["label"]["steps"]:
                rated = step["completions"] or []
                chosen = step.get("chosen_completion")
                chosen = step["human_completion"] if chosen is None else rated[chosen]
                for other in rated:
                    if other is not chosen and other["rating"] is not None:
                        label = float(other["rating"] >= 0)
                        yield (
                            question,
                            [*((text, None) for text, _ in before), (other["text"], label)],
                            None,
                        )
                if chosen is None:  # nobody went on from here
                    break
                rating = chosen.get("rating")
                before.append((chosen["text"], None if rating is None else float(rating >= 0)))
            if any(label is not None for _, label in before):
                solved = row["label"].get("finish_reason")
                yield question, before, {"solution": 1.0, "found_error": 0.0}.get(solved)
        except (KeyError, TypeError, IndexError) as error:
            raise InputError(
                f"{path}:{number}: not a line of PRM800K ({type(error).__name__}: {error})"
            ) from None


def _math_shepherd(path: str) -> Iterator[Steps]:
    """{input, label}: a question and its "Step 1: ..." lines, each ending in the tag ки, where label has + or -."""
    for number, row in read_jsonl(path):
        text, marked = row.get("input"), row.get("label")
        if not isinstance(text, str) or not isinstance(marked, str) or "Step 1:" not in text:
            raise InputError(
                f"{path}:{number}: not a line of Math-Shepherd; it needs input with steps, and label"
            )
        tags = [match.start() for match in re.finditer("ки", text)]
        signs = [
            marked[place - k : place - k + 1] for k, place in enumerate(tags)
        ]  # a tag is one letter longer
        if not tags or not set(signs) <= {"+", "-"}:
            raise InputError(f"{path}:{number}: label is not input with + or - in place of each ки")
        at = text.index("Step 1:")
        steps = [step.removeprefix("ки") for step in re.split("(?=ки)", text[at:])][: len(tags)]
        labels = [float(sign == "+") for sign in signs]
        yield text[:at].strip(), list(zip(steps, labels, strict=True)), labels[-1]


def _from_text(found: Iterator[Steps], config: Config, tokenizer: Tokenizer) -> Iterator[Labelled]:
    for question, steps, right in found:
        (prompt,) = prompts.encode(
            tokenizer, [prompts.prompt(question, "cot", config.template)], config.template
        )
        lines = [" ".join(text.split()) for text, _ in steps]  # a step is a line
        ids = tokenizer.encode(prompts.response_text("\n".join(lines), "cot", config.template)) + [
            tokenizer.eos_id
        ]
        if config.kind == "outcome":
            if right is not None:
                yield Labelled(prompt, [ids], [[len(ids) - 1]], [[right]], [right])
            continue
        if not all(lines):
            continue  # a step without text
        pairs = zip(step_ends(tokenizer, ids), (label for _, label in steps), strict=True)
        chosen = [(place, label) for place, label in pairs if label is not None]
        places, labels = ([pair[i] for pair in chosen] for i in (0, 1))
        yield Labelled(prompt, [ids], [places], [labels], [] if right is None else [right])


def replayed(
    new: list[Labelled], history: list[Labelled], share: float, seed: int
) -> list[Labelled]:
    """The training set: all of `new`, and so many questions of history that they are `share` of the whole (4.1.4).

    replayed(90 questions, history, 0.1, seed) has 100, ten of them from history. They are drawn without repetition as
    long as history lasts.
    """
    count = round(len(new) * share / (1 - share)) if history else 0
    draw, chosen = np.random.default_rng([seed, 1]), []
    while len(chosen) < count:
        chosen += draw.permutation(len(history)).tolist()
    return new + [history[i] for i in chosen[:count]]


# ---------------------------------------------------------------------------------------------------------------------
# Loss and measures


def hard(labels: list[float], kind: str) -> list[float]:
    """Math-Shepherd's labels: soft is the share of completions that are right; hard is 1 where any is."""
    return [float(label > 0) for label in labels] if kind == "hard" else labels


def wanted(groups: list[Labelled], labels: str) -> torch.Tensor:
    """The labels of all labelled tokens of the groups, in order: float32 [S]."""
    return torch.tensor(
        [label for one in groups for row in one.labels for label in hard(row, labels)]
    )


def reward_scores(model, groups: list[Labelled]) -> torch.Tensor:
    """The score [S] of every labelled token of the groups, in order: sigmoid gives the probability."""
    places = [row for one in groups for row in one.places]
    return token_scores(model, [(one.prompt, one.completions) for one in groups], places)


def reward_gradient(model, groups: list[Labelled], config: Config, world: World) -> dict:
    """Accumulate the gradient of the mean cross-entropy over all processes' labelled tokens; returns it and the share
    of tokens on the right side of 1/2. Every process holds all groups and takes its share."""
    parts = [
        one.part(members)
        for one in groups
        for members in cut_group(one.prompt, one.completions, config.micro_tokens)
    ]
    count = sum(len(row) for one in parts for row in one.labels)
    total = torch.zeros(2, device=world.device)
    for micro in micro_batches([one.tokens for one in parts], config.micro_tokens, world.size)[
        world.rank
    ]:
        chosen = [parts[i] for i in micro or [0]]
        scores, labels = (
            reward_scores(model, chosen),
            wanted(chosen, config.labels).to(world.device),
        )
        loss = F.binary_cross_entropy_with_logits(scores, labels, reduction="sum") / count
        if not micro:  # nothing left for this process: run along without loss
            loss = 0.0 * loss
        loss.backward()
        if micro:
            right = ((scores > 0) == (labels > 0.5)).sum() / count
            total += torch.stack([loss.detach(), right])
    loss, right = world.all_sum(total).tolist()
    return {"loss": loss, "accuracy": right, "labels": count}


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a positive scores above a negative (ties count half); 0.5 where there is only one kind."""
    values, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (counts.cumsum() - (counts - 1) / 2)[inverse]  # from 1, the mean rank of equal scores
    n = int(positive.sum())
    m = len(scores) - n
    return float((rank[positive].sum() - n * (n + 1) / 2) / (n * m)) if n and m else 0.5


def calibration_error(probability: np.ndarray, label: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: |mean probability - mean label| of each tenth of [0, 1], weighted by its tokens."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [abs((probability - label)[place == i].sum()) for i in range(bins)]
    return float(sum(gaps) / len(label))


@torch.no_grad()
def validate(model, groups: list[Labelled], config: Config, world: World) -> dict:
    """On held-out questions: loss, accuracy, area under the ROC curve and calibration of labelled tokens; and, of
    questions with several judged completions, how often the best-scored one is right, how often one is at random, and
    the mean over questions of the area under the curve within a question: the area over all tokens is large already
    for a model that tells easy questions from hard ones, which is of no use to best-of-N or GRPO."""
    found = []
    for micro in micro_batches([one.tokens for one in groups], config.micro_tokens, world.size)[
        world.rank
    ]:
        chosen = [groups[i] for i in micro or [0]]
        scores = iter(reward_scores(model, chosen).tolist())
        if micro:
            found += [(i, [[next(scores) for _ in row] for row in groups[i].places]) for i in micro]
    found = dict(pair for part in world.all_gather_objects(found) for pair in part)
    scores = torch.tensor([score for i in range(len(groups)) for row in found[i] for score in row])
    labels = wanted(groups, config.labels)
    groups_found = [
        (np.array(one.rule), np.array([*map(solution_score, found[i])]))
        for i, one in enumerate(groups)
    ]
    several = [(rule, score) for rule, score in groups_found if len(rule) > 1]
    mixed = [(rule, score) for rule, score in several if 0 < rule.sum() < len(rule)]
    positive = (labels > 0.5).numpy()
    metrics = {
        "valid_loss": F.binary_cross_entropy_with_logits(scores, labels).item(),
        "valid_accuracy": float(((scores > 0).numpy() == positive).mean()),
        "valid_auc": auc(scores.numpy(), positive),
        "valid_calibration_error": calibration_error(scores.sigmoid().numpy(), labels.numpy()),
    }
    if several:
        metrics["best_of_n"] = float(np.mean([rule[score.argmax()] for rule, score in several]))
        metrics["random_of_n"] = float(np.mean([rule.mean() for rule, _ in several]))
    if mixed:
        metrics["valid_auc_within"] = float(
            np.mean([auc(score, rule > 0) for rule, score in mixed])
        )
    return metrics


# ---------------------------------------------------------------------------------------------------------------------
# Training


def main(config: Config) -> None:
    world = setup(config.device, config.kernels, config.bf16, config.compile)
    run = Run(config, world)
    tokenizer = Tokenizer.load(config.init)
    model = from_pretrained(config.init, world.device, score=config.kind)
    check_tokenizer(tokenizer, model, config.init)

    def load(paths: list[str]) -> tuple[list[Labelled], int]:
        parts = [load_labelled(path, config, tokenizer) for path in paths]
        return [one for part, _ in parts for one in part], sum(count for _, count in parts)

    (new, left_out), (history, _) = load(config.data), load(config.history)
    valid = load([config.valid])[0] if config.valid else []
    groups = replayed(new, history, config.replay, config.seed)
    counts = {"questions": len(groups), "replayed": len(groups) - len(new), "left_out": left_out}
    run.say(
        f"{len(groups)} questions, {counts['replayed']} of them from history; "
        f"{left_out} completions longer than {config.context} tokens left out"
    )
    model = shard(model, world)
    optimizer = adamw(model, config.lr, (0.9, config.beta2), config.weight_decay)
    run.checkpointing(model, tokens=max(config.micro_tokens, config.context))
    start, _ = run.resume(model, optimizer)
    order = shuffled(len(groups), config.seed)
    for _ in range(start * config.questions):
        next(order)
    if start == 0 and valid:
        run.log(0, validate(model, valid, config, world))
    for step in range(start + 1, config.steps + 1):
        run.phase("update")
        factor = lr_linear_decay(step, config.warmup, config.steps, config.decay)
        rate = set_lr(optimizer, config.lr * factor)
        chosen = [groups[next(order)] for _ in range(config.questions)]
        metrics = reward_gradient(model, chosen, config, world)
        metrics |= {"grad_norm": clip_grad_norm(model, config.max_grad_norm), "lr": rate}
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        run.phase("validate")
        if valid and (step % config.valid_every == 0 or step == config.steps):
            metrics |= validate(model, valid, config, world)
        pairs = [(one.prompt, one.completions) for one in chosen]
        flops = 3 * forward_flops(model.config, pairs, last=True)
        run.log(step, metrics, Work(sum(one.tokens for one in chosen), flops))
        run.checkpoint(step, model, tokenizer, optimizer)
    run.finish(model, tokenizer, counts)


# ---------------------------------------------------------------------------------------------------------------------
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
