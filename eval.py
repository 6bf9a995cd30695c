"""Evaluation: a model directory on problem files, by chain of thought or by program; greedy, maj@k and pass@k.

    python eval.py --model DIR --problems FILE[,FILE] --formats cot,pot [--samples 16 --temperature 0.7] --to DIR

Prints a table; writes DIR/results.json and, per problem file and format, DIR/NAME.FORMAT.jsonl with a record per
problem. Figures carry 95 % intervals over problems: Wilson's for greedy and maj@k (right or wrong), normal for pass@k
(a share).
"""

import json
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

import runtime
from data import InputError, answers, atomic_write, problems, prompts, write_jsonl
from data.problems import Problem
from data.sandbox import Sandbox
from data.tokenizer import Tokenizer
from generate import Sampling, generate
from model import Transformer, from_pretrained
from options import option
from reward import completion_text, predictions, rule_rewards


@dataclass
class Config:
    model: str = option("", "Hugging Face model directory")
    problems: list[str] = option([], "problem files (ours, GSM8K, MAWPS/ASDiv CSV, SVAMP), comma-separated")
    formats: list[str] = option(["cot"], "cot, pot or both")
    template: str = option("plain", "prompt template: plain, deepseek or qwen")
    samples: int = option(1, "K completions a problem; maj@k and pass@k are given for k = 1, 2, 4 ... K")
    temperature: float = option(0.0, "0 is greedy (one sample); the paper's maj@64 uses 0.7")
    top_p: float = option(1.0, "nucleus sampling")
    max_new_tokens: int = option(512, "longest completion")
    max_rows: int = option(256, "completions decoded at once")
    limit: int = option(0, "only the first so many problems of each file; 0 is all")
    seed: int = option(0, "seed of the samples")
    device: str = option("auto", "auto, cpu or cuda")
    to: str = option("", "directory of results.json and the records; empty writes none")


def wilson(right: float, total: int) -> tuple[float, float]:
    """95 % interval of a share, e.g. wilson(8, 10) = (0.490, 0.943)."""
    z, share = 1.959964, right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, centre - half), min(1.0, centre + half)


def normal(values: list[float]) -> tuple[float, float]:
    """95 % interval of a mean of shares, by the normal approximation."""
    n, mean = len(values), sum(values) / len(values)
    half = 1.959964 * math.sqrt(sum((v - mean) ** 2 for v in values) / max(n - 1, 1) / n)
    if half == 0:  # all right or all wrong: the approximation fails
        return wilson(sum(values), n)
    return max(0.0, mean - half), min(1.0, mean + half)


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, from n samples: 1 - C(n - right, k) / C(n, k)."""
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def majority(predicted: list[str | None]) -> str | None:
    """The answer most samples agree on, equal answers counted together; the first seen wins a tie; None abstains."""
    classes: list[list[str]] = []
    for answer in predicted:
        if answer is None:
            continue
        for members in classes:
            if members[0] == answer or answers.compare(members[0], answer).equal:
                members.append(answer)
                break
        else:
            classes.append([answer])
    return max(classes, key=len)[0] if classes else None


def evaluate(
    model: Transformer,
    tokenizer: Tokenizer,
    items: list[Problem],
    format: str,
    sampling: Sampling,
    template: str = "plain",
    sandbox: Sandbox | None = None,
    max_rows: int = 256,
    progress: Callable[[int], None] | None = None,
) -> tuple[dict, list[dict]]:
    """Solve every problem `sampling.samples` times. Returns (metrics, a record per problem).

    metrics: accuracy (mean over all samples) with its interval, maj@k and pass@k for k = 1, 2, 4 ... K, mean length,
    shares without an answer and truncated.
    """
    encoded = encode_prompts(tokenizer, items, format, template)
    for item, ids in zip(items, encoded, strict=True):
        if len(ids) >= model.config.context:
            raise InputError(
                f"problem {item.id}: its prompt has {len(ids)} tokens, "
                f"the model's context is {model.config.context}; leave it out"
            )
    sampling = replace(sampling, stop=tuple(prompts.stop_strings(format, template)))
    groups = generate(model, tokenizer, encoded, sampling, max_rows, progress=progress)
    texts = [completion_text(tokenizer, sample, sampling.stop) for group in groups for sample in group]
    K = sampling.samples
    predicted = predictions(texts, format, template, sandbox)
    rewards = rule_rewards([item.answer for item in items for _ in range(K)], predicted)
    records = []
    for i, (item, group) in enumerate(zip(items, groups, strict=True)):
        own = slice(i * K, (i + 1) * K)
        parts = zip(texts[own], predicted[own], rewards[own], group, strict=True)
        attempts = [
            {"text": text, "answer": answer, "right": bool(right), "finish": sample.finish, "tokens": len(sample.ids)}
            for text, answer, right, sample in parts
        ]
        records.append({"id": item.id, "question": item.question, "answer": item.answer, "attempts": attempts})
    return summarise(records), records


def summarise(records: list[dict]) -> dict:
    """The metrics of `evaluate` from its records."""
    n, K = len(records), len(records[0]["attempts"])
    attempts = [attempt for record in records for attempt in record["attempts"]]
    right = [sum(attempt["right"] for attempt in record["attempts"]) for record in records]
    shares = [count / K for count in right]
    metrics = {
        "problems": n,
        "samples": K,
        "accuracy": sum(shares) / n,
        "interval": wilson(sum(right), n) if K == 1 else normal(shares),
        "no_answer": sum(attempt["answer"] is None for attempt in attempts) / len(attempts),
        "truncated": sum(attempt["finish"] == "length" for attempt in attempts) / len(attempts),
        "tokens": sum(attempt["tokens"] for attempt in attempts) / len(attempts),
    }
    k = 1
    while 1 < K and k <= K:
        voted = [majority([a["answer"] for a in record["attempts"][:k]]) for record in records]
        votes = rule_rewards([record["answer"] for record in records], voted)
        metrics[f"maj@{k}"], metrics[f"maj@{k}_interval"] = sum(votes) / n, wilson(sum(votes), n)
        chances = [pass_at_k(K, count, k) for count in right]
        metrics[f"pass@{k}"], metrics[f"pass@{k}_interval"] = sum(chances) / n, normal(chances)
        k = k * 2 if k * 2 <= K or k == K else K
    return metrics


def encode_prompts(tokenizer: Tokenizer, items: list[Problem], format: str, template: str) -> list[list[int]]:
    """Ids of each problem's prompt."""
    return prompts.encode(tokenizer, [prompts.prompt(item.question, format, template) for item in items], template)


def check_tokenizer(tokenizer: Tokenizer, model: Transformer, where: str) -> None:
    if tokenizer.vocab_size > model.config.vocab_size:
        raise InputError(
            f"{where}: its tokenizer has {tokenizer.vocab_size} ids, its embedding {model.config.vocab_size} rows; "
            "the checkpoint and the tokenizer do not belong together"
        )


def table(results: dict) -> str:
    """The results as text: a line per problem file and format."""
    lines = [f"{'problems':<28} {'format':<6} {'n':>5}  {'accuracy (95 %)':<22} other"]
    for name, metrics in results.items():
        file, format = name.rsplit(".", 1)
        low, high = metrics["interval"]
        accuracy = f"{100 * metrics['accuracy']:5.1f} % ({100 * low:.1f} - {100 * high:.1f})"
        k, other = metrics["samples"], ""
        if k > 1:
            other = f"maj@{k} {100 * metrics[f'maj@{k}']:.1f} %  pass@{k} {100 * metrics[f'pass@{k}']:.1f} %  "
        other += f"no answer {100 * metrics['no_answer']:.1f} %"
        lines.append(f"{file:<28} {format:<6} {metrics['problems']:>5}  {accuracy:<22} {other}")
    return "\n".join(lines)


def main(config: Config) -> dict:
    if not config.model or not config.problems:
        raise InputError("--model DIR and --problems FILE are needed")
    for format in config.formats:
        if format not in ("cot", "pot"):
            raise InputError(f"--formats {format}: unknown; use cot, pot or both")
    if config.temperature == 0 and config.samples > 1:
        raise InputError("--samples above 1 needs --temperature above 0: greedy samples are all the same")
    if config.limit < 0:
        raise InputError(f"--limit {config.limit}: give a number of problems, or 0 for all")
    files: dict[str, list[Problem]] = {}
    for path in config.problems:
        if Path(path).stem in files:
            raise InputError(f"--problems {path}: another file has this name too, and results are told apart by it")
        items = problems.load(path)
        files[Path(path).stem] = items[: config.limit] if config.limit else items
    world = runtime.setup(config.device)
    tokenizer, model = Tokenizer.load(config.model), from_pretrained(config.model, world.device)
    check_tokenizer(tokenizer, model, config.model)
    results = {}
    with Sandbox() if "pot" in config.formats else nullcontext() as sandbox:
        for file, items in files.items():
            for format in config.formats:
                name = f"{file}.{format}"
                sampling = Sampling(
                    config.samples, config.temperature, config.top_p, config.max_new_tokens, seed=config.seed
                )
                with tqdm(total=len(items) * config.samples, desc=name, disable=None, file=sys.stderr) as bar:
                    metrics, records = evaluate(
                        model, tokenizer, items, format, sampling, config.template, sandbox, config.max_rows, bar.update
                    )
                results[name] = metrics
                if config.to:
                    write_jsonl(Path(config.to) / f"{name}.jsonl", records)
    if config.to:
        with atomic_write(Path(config.to) / "results.json") as out:
            json.dump(results, out, indent=2)
    print(table(results))
    return results


if __name__ == "__main__":
    runtime.command(main, Config)
