"""Evaluation: a model on the paper's benchmarks or on problem files (sections 2.3 and 3.2).

    python eval.py --model DIR --data FOLDER [--benchmarks gsm8k,math] [--formats cot,pot] --to DIR
    python eval.py --model DIR --problems FILE[,FILE] [--samples 16 --temperature 0.7] --to DIR

Solves by chain of thought (cot), by program (pot) or with tools (tool). Prints a table and writes
DIR/results.json (figures, settings, versions), DIR/table.md and DIR/NAME.FORMAT.jsonl, a record for
each problem. The same command continues a run that was stopped. Every figure has a 95 % interval
over problems.

How far the figures can be trusted, and whether two of them differ:

    python -m evaluation.audit --help
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from runtime.options import option

from tqdm import tqdm

from data.answers import paper_rules
from data.chat import load_tokenizer
from data.io import InputError
from data.problems import contamination
from data.prompts import FORMATS, TEMPLATES
from data.sandbox.prover import NO_PROVER, Prover, find_prover
from data.tokenizer import Tokenizer, check_tokenizer
from evaluation import judge, report
from evaluation.metrics import summarize
from evaluation.solve import Solver
from evaluation.tasks import Task, check_options, make_tasks, start_sandbox
from generate import Sampling
from runtime.distributed import World, prepare, setup
from runtime.hf import from_pretrained
from runtime.run import command


@dataclass
class Config:
    model: str = option("", "Hugging Face model directory")
    # problems
    data: str = option("", "folder with the benchmarks' files")
    benchmarks: list[str] = option([], "names; none: the paper's that are in --data; or all")
    problems: list[str] = option([], "problem files of a layout in docs/data.md")
    limit: int = option(0, "only the first problems of each; 0: all", least=0)
    shards: list[str] = option([], "training data as token shards: counts problems seen there")
    corpus: list[str] = option([], "the same for JSONL files of text or of responses")
    # prompts
    formats: list[str] = option(
        [], "none: those the paper reports, cot for a file", choices=FORMATS
    )
    shots: int = option(-1, "exemplars; -1: the paper's number, 0 in a chat template", least=-1)
    prompts: str = option("", "the authors' few-shot prompts, JSON file or folder; empty: ours")
    template: str = option("plain", "prompt template", choices=TEMPLATES)
    system: str = option("", "system message of --template chat; empty: the template's")
    # samples
    samples: int = option(1, "K for each problem, for maj@k and pass@k, k = 1, 2, 4 ... K", least=1)
    temperature: float = option(0.0, "0: greedy; the paper's maj@64 uses 0.7", least=0)
    top_p: float = option(1.0, "nucleus sampling", above=0, most=1)
    max_new_tokens: int = option(0, "0: the benchmark's limit, 512 for a file", least=0)
    seed: int = option(0, "of the samples", least=0)
    # programs and proofs
    rounds: int = option(4, "programs that a tool-integrated solution may run", least=1)
    sandbox: str = option(
        "best-effort",
        "strict: refuse to run programs if a protection is missing",
        choices=("strict", "best-effort"),
    )
    isabelle: str = option("", "folder of Isabelle; empty: $ISABELLE_HOME or the PATH")
    afp: str = option("", "folder thys of the Archive of Formal Proofs (two problems need it)")
    prover_seconds: float = option(600.0, "limit for the check of a proof", above=0)
    # the run
    max_rows: int = option(256, "completions decoded at once", least=1)
    chunk: int = option(256, "problems between two saves", least=1)
    bf16: bool | None = option(None, "products in bfloat16; none: on GPUs")
    kernels: str = option("fast", "plain: without accelerators", choices=("fast", "plain"))
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))
    to: str = option("", "directory for the results; empty: only print the table")


def check(config: Config) -> None:
    """Raises InputError for options that do not fit together."""
    check_options(config)
    if config.temperature == 0 and config.samples > 1:
        raise InputError(
            "--samples above 1 needs --temperature above 0: greedy samples are all the same"
        )


def solve_chunk(
    solver: Solver,
    task: Task,
    config: Config,
    indices: range,
    progress: Callable[[int], None],
) -> list[dict]:
    """The records of some of a task's problems."""
    sampling = Sampling(
        samples=config.samples,
        temperature=config.temperature,
        top_p=config.top_p,
        max_new_tokens=task.max_new_tokens,
        seed=config.seed,
    )
    problems = [task.problems[i] for i in indices]
    records = solver.solve(
        problems,
        task.format,
        sampling,
        task.few_shot,
        indices,
        progress,
    )
    if task.format == "cot" and task.benchmark:
        add_paper_verdicts(problems, records, task.benchmark.name, config)
    return records


def add_paper_verdicts(problems, records: list[dict], benchmark: str, config: Config) -> None:
    """Judge chains of thought by the paper's rules too, on the benchmarks that they know."""
    if benchmark not in paper_rules.BENCHMARKS:
        return
    zero_shot = config.template != "plain"
    for problem, record in zip(problems, records, strict=True):
        for attempt in record["attempts"]:
            text = attempt["text"]
            right = judge.right_by_paper(problem, text, benchmark, zero_shot)
            attempt["paper"] = right


def solve_task(
    solver: Solver,
    task: Task,
    config: Config,
    saved: report.Saved,
    world: World,
) -> list[dict]:
    """The records of a task. Solves the chunks that are not saved yet, each by all processes."""
    total = len(task.problems)
    bar = tqdm(
        total=total * config.samples,
        desc=task.name,
        disable=None if world.is_main else True,
        file=sys.stderr,
    )
    with bar:
        for start, end in saved.missing(task.name, total, config.chunk):
            bar.update(start * config.samples - bar.n)
            began = time.perf_counter()

            # each process solves every size-th problem
            share = range(start + world.rank, end, world.size)
            records = []
            if share:
                records = solve_chunk(solver, task, config, share, bar.update)
            shares = world.all_gather_objects(records)

            # in the order of the problems
            records = []
            for i in range(end - start):
                position, process = divmod(i, world.size)
                records.append(shares[process][position])
            seconds = time.perf_counter() - began
            saved.add(task.name, start, records, seconds)
    return saved.records(task.name)


def figures_of(
    task: Task,
    config: Config,
    records: list[dict],
    seconds: float,
    prover: Prover | None,
) -> dict:
    """What results.json says of a task."""
    average = "problems"
    if task.benchmark:
        average = task.benchmark.average
    metrics = summarize(records, average)
    samples = metrics["problems"] * metrics["samples"]
    figures = {
        "format": task.format,
        "max_new_tokens": task.max_new_tokens,
        **metrics,
        "seconds": seconds,
        "tokens_per_second": metrics["tokens"] * samples / seconds,
    }
    notes = []
    if task.format == "proof" and prover is None:
        notes.append(NO_PROVER)
    if config.prompts and task.our_exemplars:
        notes.append("--prompts has none for it; with our exemplars")
    if notes:
        figures["note"] = "; ".join(notes)
    return figures


def find_overlaps(tasks: list[Task], config: Config, tokenizer: Tokenizer) -> dict[str, dict]:
    """Task name -> which of its problems stand in the training data."""
    problems = {task.source: task.problems for task in tasks}
    documents = contamination.documents(config.shards, tokenizer, config.corpus)
    found = contamination.overlap(problems, documents)["benchmarks"]
    return {task.name: found[task.source] for task in tasks}


def main(config: Config) -> dict:
    # --- options, model, earlier results
    check(config)
    planned = make_tasks(config)
    world = setup(config.device, config.kernels, config.bf16, compile=False)
    tokenizer = load_tokenizer(config.model, config.template, config.system)
    model = from_pretrained(config.model, world.device, world.dtype)
    check_tokenizer(tokenizer, model, config.model)
    prepare(model, world, trained=False)
    solver = Solver(
        model,
        tokenizer,
        config.template,
        max_rows=config.max_rows,
        rounds=config.rounds,
        prover_seconds=config.prover_seconds,
    )
    saved = report.Saved(config, world)
    tasks = planned.tasks
    unfinished = [task for task in tasks if task.name not in saved.results]

    with ExitStack() as stack:
        # --- what programs and proofs need
        if any(task.needs_sandbox for task in unfinished):
            solver.sandbox = stack.enter_context(start_sandbox(config.sandbox))
        if any(task.format == "proof" for task in unfinished):
            solver.prover = find_prover(config.isabelle or None, config.afp or None)
            if solver.prover:
                stack.callback(solver.prover.close)

        # --- which problems the model may have seen in training
        overlaps = {}
        if unfinished and (config.shards or config.corpus):
            overlaps = find_overlaps(unfinished, config, tokenizer)

        # --- solve, judge, count
        stack.enter_context(saved)
        for task in unfinished:
            records = solve_task(solver, task, config, saved, world)
            seconds = saved.seconds(task.name)
            figures = figures_of(task, config, records, seconds, solver.prover)
            if task.name in overlaps:
                seen = overlaps[task.name]
                figures["contamination"] = contamination.beside(records, seen)
            saved.finish(task.name, figures)

    # --- results
    results = {task.name: saved.results[task.name] for task in tasks}
    saved.close(results, planned, solver)
    if world.is_main:
        print(report.table(results, planned))
    return results


if __name__ == "__main__":
    command(main, Config)
