"""Evaluation: a model directory on the paper's benchmarks or on problem files, by chain of thought, by program, with
tools; greedy, maj@k and pass@k.

    python eval.py --model DIR --data FOLDER [--benchmarks gsm8k,math] [--formats cot,pot] [--shots 0] --to DIR
    python eval.py --model DIR --problems FILE[,FILE] --formats cot,pot [--samples 16 --temperature 0.7] --to DIR
    python eval.py --audit ...     how far the figures can be trusted: a table of changed problems (evaluation/audit.py)

Prints a table; writes DIR/results.json (figures, settings, versions), DIR/table.md and, per benchmark and format,
DIR/NAME.FORMAT.jsonl with a record per problem. Stopped at any moment, the same command goes on from there. Figures
carry 95 % intervals over problems: Wilson's for greedy and maj@k (right or wrong), normal for pass@k (a share).
"""

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

import runtime
from data import prompts
from data.answers import paper_rules
from data.io import InputError
from data.problems import benchmarks, contamination, readers
from data.problems.problem import Problem
from data.sandbox.prover import NO_PROVER, Prover, find_prover
from data.sandbox.sandbox import Sandbox
from data.tokenizer import Tokenizer, check_tokenizer
from evaluation import report, solve
from evaluation.few_shot import FewShot
from generate import Sampling, generate
from model import Transformer
from runtime.hf import from_pretrained
from runtime.options import option


@dataclass
class Config:
    model: str = option("", "Hugging Face model directory")
    # what is asked
    data: str = option("", "folder of the benchmarks' files")
    benchmarks: list[str] = option(
        [], "names of benchmarks; none: the paper's that are in --data; all: others too"
    )
    problems: list[str] = option(
        [], "problem files (ours, GSM8K, MAWPS/ASDiv CSV, SVAMP), comma-separated"
    )
    limit: int = option(0, "only the first so many problems of each; 0 is all")
    shards: list[str] = option(
        [], "token shards it was trained on: which problems stand there is said beside a score"
    )
    corpus: list[str] = option(
        [], "the same for JSONL of text, or of question and response; files or folders"
    )
    # the audit
    audit: bool = option(
        False, "a robustness table in place of the one figure; writes audit.json and audit.md"
    )
    temperatures: list[float] = option(
        [0.3, 0.7, 1.0], "of the audit's sweep, with --samples completions (1 means 4)"
    )
    # how it is asked
    formats: list[str] = option(
        [], "cot, pot, tool; none: what the paper reports for a benchmark, cot for a file"
    )
    shots: int = option(
        -1,
        "exemplars before a benchmark's question; -1: the paper's number, 0 with a chat template",
    )
    prompts: str = option(
        "", "the authors' few-shot prompts (a JSON file, or a folder with some) instead of ours"
    )
    template: str = option("plain", "prompt template: plain, deepseek or qwen")
    # how it answers
    samples: int = option(
        1, "K completions a problem; maj@k and pass@k are given for k = 1, 2, 4 ... K"
    )
    temperature: float = option(0.0, "0 is greedy (one sample); the paper's maj@64 uses 0.7")
    top_p: float = option(1.0, "nucleus sampling")
    max_new_tokens: int = option(
        0, "longest completion; 0: the benchmark's own limit, 512 for a file"
    )
    rounds: int = option(4, "programs that a tool-integrated solution may run")
    sandbox: str = option(
        "best-effort", "strict refuses to run programs where a protection is missing"
    )
    isabelle: str = option(
        "", "Isabelle's folder; empty: $ISABELLE_HOME or the PATH; without it no proof is checked"
    )
    afp: str = option(
        "", "folder thys of the Archive of Formal Proofs, which two problems of miniF2F need"
    )
    prover_seconds: float = option(600.0, "limit for the check of one proof")
    # how it runs
    max_rows: int = option(256, "completions decoded at once")
    chunk: int = option(256, "problems solved between two savings")
    seed: int = option(0, "seed of the samples")
    device: str = option("auto", "auto, cpu or cuda")
    to: str = option("", "directory of results.json and the records; empty writes none")


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def wilson(right: float, total: int) -> tuple[float, float]:
    """95 % interval of a share, e.g. wilson(8, 10) = (0.490, 0.943)."""
    z, share = 1.959964, right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = (
        z
        * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
        / (1 + z * z / total)
    )
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


def mean(
    values: list[float], sections: list[str], binary: bool
) -> tuple[float, tuple[float, float]]:
    """(mean, 95 % interval) of a value a problem: the mean of the sections' means. Of one section Wilson's interval if
    the values are 0 and 1, else the normal one; of several the normal one of a stratified sample."""
    groups: dict[str, list[float]] = {}
    for section, value in zip(sections, values, strict=True):
        groups.setdefault(section, []).append(value)
    if len(groups) == 1:
        return sum(values) / len(values), wilson(sum(values), len(values)) if binary else normal(
            values
        )
    means = [sum(group) / len(group) for group in groups.values()]
    centre = sum(means) / len(means)
    errors = [(normal(group)[1] - normal(group)[0]) / 2 for group in groups.values()]
    half = math.sqrt(sum(error**2 for error in errors)) / len(groups)
    return centre, (max(0.0, centre - half), min(1.0, centre + half))


def vote(predicted: Sequence[str | None], same: Callable[[str, str], bool]) -> list[int | None]:
    """For k = 1 ... K: the place of the answer that most of the first k samples agree on. Equal answers count together
    (under that of the first of them); the first seen wins a tie; None abstains."""
    heads: list[int] = []  # place of the first member of each class
    counts: list[int] = []
    known: dict[str, int] = {}  # answer -> class, so that an answer is compared once
    best, winners = 0, []
    for place, answer in enumerate(predicted):
        if answer is not None:
            if answer not in known:
                equal = (c for c, head in enumerate(heads) if same(predicted[head], answer))
                known[answer] = next(equal, len(heads))
                if known[answer] == len(heads):
                    heads.append(place)
                    counts.append(0)
            c = known[answer]
            counts[c] += 1
            if (counts[c], -c) > (counts[best], -best):
                best = c
        winners.append(heads[best] if heads else None)
    return winners


def majority(predicted: Sequence[str | None]) -> str | None:
    """The answer most samples agree on; see `vote`."""
    winner = vote(predicted, lambda a, b: solve.same("answer", a, b))[-1:]
    return predicted[winner[0]] if winner and winner[0] is not None else None


# ---------------------------------------------------------------------------------------------------------------------
# Solving and counting


def evaluate(
    model: Transformer,
    tokenizer: Tokenizer,
    items: Sequence[Problem],
    format: str,
    sampling: Sampling,
    template: str = "plain",
    sandbox: Sandbox | None = None,
    max_rows: int = 256,
    progress: Callable[[int], None] | None = None,
    way: FewShot | None = None,
    shots: int | None = None,
    keys: Sequence[int] | None = None,
    rounds: int = 4,
    prover: Prover | None = None,
    prover_seconds: float = 600,
    benchmark: str = "",
) -> tuple[dict, list[dict]]:
    """Solve every problem `sampling.samples` times. Returns (`summarise(records)`, a record per problem).

    `way` makes the prompts (default: the question alone in `template`), with `shots` of its exemplars (default: all) or
    as many as the context has room for. `keys` name the random streams (default: the place in items), so that samples
    do not depend on how problems are divided.

    A record is {"id", "question", "answer", "kind", "section" (subject, task), "shots" (exemplars shown),
    "prompt_tokens", "attempts"}; its attempts, one a sample, are {"text", "answer" (str or None), "finish", "tokens"
    (written by the model itself), "right" and "reason" (relaxed), "strict" and "strict_reason"}; for pot and tool also
    "program" (status of the last program, "none" if there was none) and "error" (its last line, where it failed), for
    tool "rounds". finish: "eos", "stop", "length"; "prompt": the prompt left no room, nothing was asked; "rounds": it
    asked for more programs than `rounds`. "paper": right by the paper's rules, for a chain of thought on a `benchmark`
    that they know. For proof also "proof" (solve.check_proofs); "right" is None where none was checked.
    """
    way, K, context = (
        way or solve.zero_shot(format, template),
        sampling.samples,
        model.config.context,
    )
    room = min(sampling.max_new_tokens, context // 4)
    asked = solve.fit(
        tokenizer, way, items, way.shots if shots is None else shots, room, context, template
    )
    fitting = [i for i, (ids, _) in enumerate(asked) if ids]
    keys = list(range(len(items))) if keys is None else keys
    tool = solve.Tool(tokenizer, sandbox, rounds) if format == "tool" else None
    groups = generate(
        model,
        tokenizer,
        [asked[i][0] for i in fitting],
        replace(sampling, stop=tuple(way.stop)),
        max_rows,
        keys=[keys[i] for i in fitting],
        on_stop=tool,
        progress=progress,
    )
    places = [(p, g) for p in range(len(fitting)) for g in range(K)]
    solved = [items[fitting[p]] for p, _ in places]
    samples = [sample for group in groups for sample in group]
    read = solve.read(solved, samples, way, format, tokenizer, sandbox, tool, places)
    if format == "proof":
        solve.check_proofs(solved, read, prover, prover_seconds)
    found, unasked = iter(read), {"text": "", "answer": None, "finish": "prompt", "tokens": 0}
    if format == "proof":
        unasked["proof"] = "failed" if prover else "no prover"
    records = []
    for item, (ids, shown) in zip(items, asked, strict=True):
        attempts = [next(found) if ids else dict(unasked) for _ in range(K)]
        for one in attempts:
            solve.judge(item, one)
            if format == "cot" and benchmark in paper_rules.BENCHMARKS:
                one["paper"] = solve.paper_right(item, one["text"], benchmark, template != "plain")
        records.append(
            {
                "id": item.id,
                "question": item.question,
                "answer": item.answer,
                "kind": item.kind,
                "section": benchmarks.section(item),
                "shots": shown,
                "prompt_tokens": len(ids),
                "attempts": attempts,
            }
        )
        if progress and not ids:
            progress(K)
    return summarise(records), records


def summarise(records: list[dict], average: str = "problems") -> dict:
    """The figures of records of one benchmark and format.

    accuracy (mean over all samples) and strict, each with its interval, None where proofs were not checked; reasons:
    how often which (of the relaxed verdict; "strict_..." why a right answer is not strictly so); shares no_answer,
    truncated, no_room (prompt too long for the context); shots, tokens: means; programs, proofs: how often which
    status; rounds: mean; paper: accuracy by the paper's rules; maj@k and pass@k with intervals for k = 1, 2, 4 ... K;
    sections: accuracy of each part, where there are several. `average` "sections" makes accuracy, strict, paper, maj@k
    and pass@k means over the parts' means.
    """
    n, K = len(records), len(records[0]["attempts"])
    parts = [record["section"] for record in records]
    over = parts if average == "sections" else [""] * n
    attempts = [attempt for record in records for attempt in record["attempts"]]
    checked = all(attempt["right"] is not None for attempt in attempts)
    right = [sum(bool(attempt["right"]) for attempt in record["attempts"]) for record in records]
    strict = [sum(bool(attempt["strict"]) for attempt in record["attempts"]) for record in records]
    reasons = Counter(attempt["reason"] for attempt in attempts)
    reasons.update(
        f"strict_{a['strict_reason']}" for a in attempts if a["right"] and not a["strict"]
    )
    metrics: dict = {"problems": n, "samples": K}
    metrics["accuracy"], metrics["interval"] = mean([count / K for count in right], over, K == 1)
    metrics["strict"], metrics["strict_interval"] = mean(
        [count / K for count in strict], over, K == 1
    )
    if not checked:
        metrics |= dict.fromkeys(("accuracy", "interval", "strict", "strict_interval"))
    metrics |= {
        "reasons": dict(sorted(reasons.items())),
        "no_answer": sum(attempt["answer"] is None for attempt in attempts) / len(attempts),
        "truncated": sum(attempt["finish"] == "length" for attempt in attempts) / len(attempts),
        "no_room": sum(attempt["finish"] == "prompt" for attempt in attempts) / len(attempts),
        "shots": sum(record["shots"] for record in records) / n,
        "tokens": sum(attempt["tokens"] for attempt in attempts) / len(attempts),
    }
    if "paper" in attempts[0]:
        counts = [sum(attempt["paper"] for attempt in record["attempts"]) for record in records]
        metrics["paper"], metrics["paper_interval"] = mean(
            [count / K for count in counts], over, K == 1
        )
    if programs := Counter(attempt["program"] for attempt in attempts if "program" in attempt):
        metrics["programs"] = dict(sorted(programs.items()))
    if rounds := [attempt["rounds"] for attempt in attempts if "rounds" in attempt]:
        metrics["rounds"] = sum(rounds) / len(rounds)
    if proofs := Counter(attempt["proof"] for attempt in attempts if "proof" in attempt):
        metrics["proofs"] = dict(sorted(proofs.items()))
    if len(set(parts)) > 1 and checked:
        shares = {
            part: [count / K for count, own in zip(right, parts, strict=True) if own == part]
            for part in parts
        }
        metrics["sections"] = {part: sum(own) / len(own) for part, own in shares.items()}
    if K == 1 or not checked:
        return metrics
    voted = []  # for each problem: is the answer that the first k agree on right, k = 1 ... K
    for record in records:
        own, kind = record["attempts"], record["kind"]
        if kind in ("code", "proof"):  # there is nothing to vote on
            break
        winners = vote([a["answer"] for a in own], lambda a, b, kind=kind: solve.same(kind, a, b))
        voted.append([float(place is not None and own[place]["right"]) for place in winners])
    for k in sorted({2**i for i in range(K.bit_length())} | {K}):
        if voted:
            metrics[f"maj@{k}"], metrics[f"maj@{k}_interval"] = mean(
                [curve[k - 1] for curve in voted], over, True
            )
        chances = [pass_at_k(K, count, k) for count in right]
        metrics[f"pass@{k}"], metrics[f"pass@{k}_interval"] = mean(chances, over, False)
    return metrics


# ---------------------------------------------------------------------------------------------------------------------
# The command


@dataclass
class Task:
    """A benchmark or a file, solved one way."""

    name: str  # NAME.FORMAT
    items: list[Problem]
    format: str
    way: FewShot
    own: bool  # its exemplars are ours
    max_new_tokens: int
    benchmark: benchmarks.Benchmark | None = None


def check(config: Config) -> None:
    if not config.model or not (config.problems or config.data):
        raise InputError("--model DIR and --problems FILE or --data FOLDER are needed")
    for format in config.formats:
        if format not in prompts.FORMATS:
            raise InputError(
                f"--formats {format}: unknown; use {', '.join(prompts.FORMATS)}, or several of them"
            )
    if config.temperature == 0 and config.samples > 1 and not config.audit:
        raise InputError(
            "--samples above 1 needs --temperature above 0: greedy samples are all the same"
        )
    if config.sandbox not in ("strict", "best-effort"):
        raise InputError(f"--sandbox {config.sandbox}: unknown; use strict or best-effort")
    if config.data and not Path(config.data).is_dir():
        raise InputError(
            f"--data {config.data}: not a folder; give the one that holds the benchmarks' files"
        )
    if not config.data and (config.benchmarks or config.prompts or config.shots > 0):
        raise InputError(
            "--benchmarks, --prompts and --shots need --data FOLDER, where the benchmarks' files are"
        )
    if any(temperature <= 0 for temperature in config.temperatures):
        raise InputError("--temperatures: each must be above 0; 0 is the row called original")
    least = dict(limit=0, shots=-1, max_new_tokens=0, rounds=1, samples=1, max_rows=1, chunk=1)
    for name, bound in least.items():
        if getattr(config, name) < bound:
            raise InputError(f"--{name} {getattr(config, name)}: must be at least {bound}")
    Sampling(config.samples, config.temperature, config.top_p)  # refuses what is out of range
    prompts.prompt("", "cot", config.template)


def plan(config: Config) -> tuple[list[Task], dict[str, list[str]], dict[str, list[str]]]:
    """(tasks, {absent benchmark: places where it was looked for}, {benchmark: messages about its bad records})."""
    tasks, absent, bad = [], {}, {}
    names = config.benchmarks if config.data else []
    if config.data and names in ([], ["all"]):
        names = [name for name, one in benchmarks.BENCHMARKS.items() if one.paper or names]
    for name in dict.fromkeys(names):
        one, messages = benchmarks.get(name), []
        if benchmarks.find(name, config.data) is None:
            absent[name] = [str(Path(config.data) / place) for place in one.files]
            continue
        try:
            items = benchmarks.load(name, config.data, messages)
        except InputError as error:
            bad[name] = [*messages, f"not evaluated: {error}"]
            continue
        if messages:
            bad[name] = messages
        for format in (
            one.formats if one.kind in ("code", "proof") else config.formats or one.formats
        ):
            way, own = way_of(config, one, format)
            limit = config.max_new_tokens or one.max_new_tokens
            tasks.append(
                Task(
                    f"{name}.{format}", items[: config.limit or None], format, way, own, limit, one
                )
            )
    for path in config.problems:
        items = readers.load(path)[: config.limit or None]
        for format in config.formats or ["cot"]:
            way = solve.zero_shot(format, config.template)
            tasks.append(
                Task(
                    f"{Path(path).stem}.{format}",
                    items,
                    format,
                    way,
                    True,
                    config.max_new_tokens or 512,
                )
            )
    for name, count in Counter(task.name for task in tasks).items():
        if count > 1:
            raise InputError(
                f"{name}: there are two of this name, and results are told apart by it; rename a file"
            )
    if not tasks:
        reasons = [f"{name}: {messages[-1]}" for name, messages in bad.items()]
        reasons += [f"{name}: looked for {places[0]}" for name, places in absent.items()]
        raise InputError(
            f"--data {config.data}: there is no benchmark to evaluate; {'; '.join(reasons)}"
        )
    if config.prompts and all(task.own for task in tasks):
        FewShot.load(config.prompts, benchmarks.get("gsm8k"), "cot")  # says what is wrong with it
        raise InputError(
            f"--prompts {config.prompts}: has no prompt for any of the benchmarks; leave it out"
        )
    return tasks, absent, bad


def way_of(config: Config, benchmark: benchmarks.Benchmark, format: str) -> tuple[FewShot, bool]:
    """(how the problems are put, whether by our exemplars). Where --prompts has none for a benchmark and format that
    was not asked for by name, ours are used, and the results say so."""
    shots = None if config.shots < 0 else config.shots
    if config.prompts:
        try:
            way = FewShot.load(config.prompts, benchmark, format)
        except InputError:
            if config.benchmarks not in ([], ["all"]) and (
                config.formats or len(benchmark.formats) == 1
            ):
                raise
        else:
            if shots is None or shots == way.shots:
                return way, False
            if way.one_text or shots > way.shots:
                held = f"{config.prompts} has {way.shots} for {benchmark.name}"
                raise InputError(f"--shots {shots}: {held}; leave --shots out")
            return replace(
                way, exemplars={group: texts[:shots] for group, texts in way.exemplars.items()}
            ), False
    return FewShot.ours(benchmark, format, shots, config.template), True


def run_task(
    task: Task, config: Config, saved: report.Saved, model, tokenizer, sandbox, prover, world
) -> dict:
    """Solve what is not saved yet, a chunk at a time; returns the figures."""
    sampling = Sampling(
        config.samples, config.temperature, config.top_p, task.max_new_tokens, seed=config.seed
    )
    total = len(task.items)
    bar = tqdm(
        total=total * config.samples,
        desc=task.name,
        disable=None if world.main else True,
        file=sys.stderr,
    )
    with bar:
        for start, end in saved.missing(task.name, total, config.chunk):
            bar.update(start * config.samples - bar.n)
            began, own = time.perf_counter(), range(start + world.rank, end, world.size)
            records = []
            if own:
                records = evaluate(
                    model,
                    tokenizer,
                    [task.items[i] for i in own],
                    task.format,
                    sampling,
                    config.template,
                    sandbox,
                    config.max_rows,
                    bar.update,
                    way=task.way,
                    keys=own,
                    rounds=config.rounds,
                    prover=prover,
                    prover_seconds=config.prover_seconds,
                    benchmark=task.benchmark.name if task.benchmark else "",
                )[1]
            parts = world.all_gather_objects(records)
            records = [parts[i % world.size][i // world.size] for i in range(end - start)]
            saved.add(task.name, start, records, time.perf_counter() - began)
    records, seconds = saved.records(task.name)
    metrics = summarise(records, task.benchmark.average if task.benchmark else "problems")
    written = metrics["tokens"] * metrics["problems"] * metrics["samples"]
    timing = {"seconds": seconds, "tokens_per_second": written / seconds}
    said = [NO_PROVER] if task.format == "proof" and prover is None else []
    said += ["--prompts has none for it; with our exemplars"] if config.prompts and task.own else []
    note = {"note": "; ".join(said)} if said else {}
    return {
        "format": task.format,
        "max_new_tokens": task.max_new_tokens,
        **metrics,
        **timing,
        **note,
    }


def start_sandbox(mode: str) -> Sandbox:
    try:
        return Sandbox(min(8, os.cpu_count() or 1), mode=mode)
    except RuntimeError as error:
        raise InputError(f"{error}; --formats cot needs none") from None


def overlaps(tasks: list[Task], config: Config, tokenizer: Tokenizer) -> dict[str, dict]:
    """NAME.FORMAT -> what data.problems.contamination finds of its problems in the training data."""
    together = {task.name.rpartition(".")[0]: task.items for task in tasks}
    found = contamination.overlap(
        together, contamination.documents(config.shards, tokenizer, config.corpus)
    )
    return {task.name: found["benchmarks"][task.name.rpartition(".")[0]] for task in tasks}


def main(config: Config) -> dict:
    check(config)
    tasks, absent, bad = plan(config)
    world = runtime.setup(config.device)
    tokenizer, model = (
        Tokenizer.load(config.model),
        from_pretrained(config.model, world.device, world.dtype),
    )
    check_tokenizer(tokenizer, model, config.model)
    saved, sandbox, prover = None if config.audit else report.Saved(config, world), None, None
    left = [task for task in tasks if saved is None or task.name not in saved.results]
    with ExitStack() as stack:
        if any(task.format in ("pot", "tool", "code") for task in left):
            sandbox = stack.enter_context(start_sandbox(config.sandbox))
        if saved is None:
            from evaluation import audit  # it imports this file

            return audit.run(config, tasks, model, tokenizer, sandbox, world)
        if any(task.format == "proof" for task in left):
            prover = find_prover(config.isabelle or None, config.afp or None)
            stack.callback(lambda: prover and prover.close())
        seen = (
            overlaps(left, config, tokenizer) if left and (config.shards or config.corpus) else {}
        )
        stack.enter_context(saved)
        for task in left:
            figures = run_task(task, config, saved, model, tokenizer, sandbox, prover, world)
            if task.name in seen:
                figures["contamination"] = contamination.beside(
                    saved.records(task.name)[0], seen[task.name]
                )
            saved.finish(task.name, figures)
    results = {task.name: saved.results[task.name] for task in tasks}
    saved.close(results, absent, bad, sandbox, prover)
    if world.main:
        print(report.table(results, absent, bad))
    return results


if __name__ == "__main__":
    runtime.command(main, Config)
