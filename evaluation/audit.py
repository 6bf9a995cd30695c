"""The audit: how far an accuracy can be trusted, and whether two differ.

    python -m evaluation.audit --model DIR --problems FILE[,FILE] [--formats cot,pot] --to DIR
    python -m evaluation.audit compare DIR_A DIR_B [--to FILE.json]    two directories of eval.py

Prints a table of robustness and writes DIR/audit.json and DIR/audit.md, with kinds of error and
votes. Rows are the problems as they are, the same problems changed (data/problems/perturb.py),
other prompts, other temperatures, short and long problems, strict judging. Columns are problem
files and formats. Each row is compared with the original on the same problems, pair by pair. All
rows but the temperatures are greedy.
"""

import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from runtime.options import option

import numpy as np

from data.chat import load_tokenizer
from data.io import InputError, atomic_write, run_cli
from data.problems.perturb import PERTURBATIONS, perturb
from data.problems.problem import Problem
from data.prompts import FORMATS, TEMPLATES
from data.tokenizer import check_tokenizer
from evaluation import diagnosis
from evaluation.few_shot import FewShot
from evaluation.metrics import wilson
from evaluation.report import (
    fingerprint,
    markdown_table,
    percent,
    read_json,
    text_table,
    with_interval,
    write_json,
)
from evaluation.significance import (
    RESAMPLES,
    bootstrap,
    change,
    compare_command,
    difference,
    p_value,
    shares,
)
from evaluation.solve import Solver, zero_shot
from evaluation.tasks import Task, check_options, make_tasks, start_sandbox
from generate import Sampling
from runtime.distributed import setup, use_kernels
from runtime.hf import from_pretrained
from runtime.run import command

# (problems, sampling, prompts, template) -> a record for each problem
Solve = Callable[[Sequence[Problem], Sampling, FewShot, str], list[dict]]


@dataclass
class Config:
    model: str = option("", "Hugging Face model directory")
    # problems
    data: str = option("", "folder with the benchmarks' files")
    benchmarks: list[str] = option([], "names; none: the paper's that are in --data; or all")
    problems: list[str] = option([], "problem files (ours, GSM8K, MAWPS, ASDiv, SVAMP)")
    limit: int = option(0, "only the first problems of each; 0: all", least=0)
    # prompts
    formats: list[str] = option(
        [], "none: those the paper reports, cot for a file", choices=FORMATS
    )
    shots: int = option(-1, "exemplars; -1: the paper's number, 0 in a chat template", least=-1)
    prompts: str = option("", "the authors' few-shot prompts, JSON file or folder; empty: ours")
    template: str = option("plain", "prompt template", choices=TEMPLATES)
    system: str = option("", "system message of --template chat; empty: the template's")
    # samples
    temperatures: list[float] = option([0.3, 0.7, 1.0], "rows of the table", above=0)
    samples: int = option(4, "for each problem, at each temperature", least=1)
    max_new_tokens: int = option(0, "0: the benchmark's limit, 512 for a file", least=0)
    seed: int = option(0, "of the changed problems and of the samples", least=0)
    # programs
    rounds: int = option(4, "programs that a tool-integrated solution may run", least=1)
    sandbox: str = option(
        "best-effort",
        "strict: refuse to run programs if a protection is missing",
        choices=("strict", "best-effort"),
    )
    # the run
    max_rows: int = option(256, "completions decoded at once", least=1)
    kernels: str = option("fast", "plain: without accelerators", choices=("fast", "plain"))
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))
    to: str = option("", "directory for the results; empty: only print the table")


# --------------------------------------------------------------------------------------------------
# Other prompts

_LABELS = {
    "Question:": "Q:",
    "Answer:": "A:",
    "Solution:": "S:",
    "Program:": "Python:",
    "问题：": "题：",
    "解答：": "答：",
    "求解：": "解：",
    "程序：": "代码：",
}


def reworded(few_shot: FewShot, rewrite: Callable[[str], str]) -> FewShot:
    """The prompts with question, exemplars and stop strings rewritten."""
    exemplars = {g: tuple(map(rewrite, texts)) for g, texts in few_shot.exemplars.items()}
    return replace(
        few_shot,
        question=lambda problem: rewrite(few_shot.question(problem)),
        exemplars=exemplars,
        stop=tuple(map(rewrite, few_shot.stop)),
    )


def other_labels(text: str) -> str:
    return re.sub(rf"(?m)^(?:{'|'.join(_LABELS)})", lambda match: _LABELS[match[0]], text)


def small_letters(text: str) -> str:
    return re.sub(r"\(([A-J])\)", lambda match: f"({match[1].lower()})", text)


def other_prompts(
    problems: Sequence[Problem], format: str, few_shot: FewShot, template: str
) -> dict[str, tuple[FewShot, str]]:
    """Row -> (prompts, template) of other ways to ask the same question."""
    rows: dict[str, tuple[FewShot, str]] = {}
    if template == "plain":
        rows["prompt Q: A:"] = reworded(few_shot, other_labels), template
    for other in TEMPLATES[:2]:
        if other != template:
            rows[f"prompt {other}"] = zero_shot(format, other), other
    if any(problem.kind == "choice" for problem in problems):
        rows["small letters"] = reworded(few_shot, small_letters), template
    return rows


# --------------------------------------------------------------------------------------------------
# A column of the table


def cell(records: list[dict], original: list[dict] | None = None, verdict: str = "right") -> dict:
    """The figures of a row: n, accuracy, interval.

    Against `original`, the records of the same problems in the same order, also "change"
    (`difference`) and "kept", the share of the right problems that are still right.
    """
    values = shares(records, verdict)
    if set(values) <= {0, 1}:
        interval = wilson(sum(values), len(values))
    else:
        interval = bootstrap(np.asarray(values), RESAMPLES, 0)
    found = {"n": len(values), "accuracy": sum(values) / len(values), "interval": interval}
    if original is not None:
        before = shares(original)
        still = [value for value, was in zip(values, before, strict=True) if was == 1]
        found["change"] = difference(before, values)
        found["kept"] = sum(still) / len(still) if still else None
    return found


def audit(
    task: Task,
    solve: Solve,
    template: str,
    sampling: Sampling,
    temperatures: Sequence[float],
    progress: Callable[[str], None] = lambda row: None,
) -> dict:
    """A column of the table and what belongs to it.

    sampling: samples and seed of the rows with a temperature. progress: called with the name of
    each row before it is solved. Returns "rows" (name -> `cell`), "left_out" (change -> number of
    problems that it does not apply to), "consistency", "errors", "verifiers" and "votes".
    """
    if task.format == "proof":
        raise InputError("proofs have no answers to audit; leave their benchmarks out")
    problems, few_shot = task.problems, task.few_shot
    greedy = replace(sampling, samples=1, temperature=0.0)

    # the problems as they are
    progress("original")
    original = solve(problems, greedy, few_shot, template)
    by_id = {record["id"]: record for record in original}
    if len(by_id) < len(problems):
        raise InputError("two problems have the same id; give each problem another id")
    rows, left_out = {"original": cell(original)}, {}
    verdicts = {id: [first_right(record)] for id, record in by_id.items()}

    # changed problems
    for name in PERTURBATIONS:
        changed = [perturb(problem, name, sampling.seed) for problem in problems]
        changed = [problem for problem in changed if problem]
        left_out[name] = len(problems) - len(changed)
        if not changed:
            continue
        progress(name)
        records = solve(changed, greedy, few_shot, template)
        rows[name] = cell(records, [by_id[record["id"]] for record in records])
        for record in records:
            verdicts[record["id"]].append(first_right(record))

    # other prompts, other temperatures
    for name, (other, its_template) in other_prompts(
        problems, task.format, few_shot, template
    ).items():
        progress(name)
        rows[name] = cell(solve(problems, greedy, other, its_template), original)
    sampled = {}
    for temperature in temperatures:
        name = f"temperature {temperature:g}"
        progress(name)
        settings = replace(sampling, temperature=temperature)
        sampled[temperature] = solve(problems, settings, few_shot, template)
        rows[name] = cell(sampled[temperature], original)

    # parts of the original
    for name, records in diagnosis.halves(problems, original).items():
        rows[name] = cell(records)
    rows["strict"] = cell(original, original, "strict")

    column = {
        "rows": rows,
        "left_out": left_out,
        "consistency": consistency(list(verdicts.values())),
        "errors": diagnosis.count_errors(original, task.format),
        "verifiers": diagnosis.second_opinion(original, task.format),
    }
    if sampled and sampling.samples > 1:
        nearest = min(sampled, key=lambda temperature: abs(temperature - 0.7))
        column["votes"] = {"temperature": nearest, **diagnosis.votes(sampled[nearest])}
    return column


def first_right(record: dict) -> bool:
    return bool(record["attempts"][0]["right"])


def consistency(verdicts: list[list[bool]]) -> dict:
    """How many problems are right in all their forms. verdicts: of each problem, the original
    first.
    """
    verdicts = [problem for problem in verdicts if len(problem) > 1]
    n = len(verdicts)
    return {
        "problems": n,
        "right": sum(problem[0] for problem in verdicts) / n if n else None,
        "right in all": sum(map(all, verdicts)) / n if n else None,
        "changes a problem": sum(len(problem) - 1 for problem in verdicts) / n if n else None,
    }


# --------------------------------------------------------------------------------------------------
# The report


def robustness_table(columns: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """(headings, lines): accuracy, change against the original with its interval, p and n of each
    column.
    """
    headings = ["row"]
    for name in columns:
        headings += [name, "change, points", "p", "n"]
    names = dict.fromkeys(name for column in columns.values() for name in column["rows"])
    lines = []
    for name in names:
        line = [name]
        for column in columns.values():
            row = column["rows"].get(name)
            if row is None:
                line += ["", "", "", ""]
                continue
            line.append(with_interval(row["accuracy"], row["interval"]))
            changed = row.get("change")
            line += [change(changed), p_value(changed["p"])] if changed else ["", ""]
            line.append(str(row["n"]))
        lines.append(line)
    return headings, lines


def markdown(document: dict) -> str:
    """audit.md."""
    settings = [f"{name} {value}" for name, value in document["settings"].items()]
    parts = [
        "# Audit",
        f"Model: {document['model']}. {', '.join(settings)}.",
        "Accuracy with its 95 % interval; change against the original on the same problems, in "
        "points, with the 95 % interval of a paired bootstrap; p of McNemar's exact test "
        "(temperatures: of a sign-flip test).",
        markdown_table(*robustness_table(document["columns"])),
    ]
    for name, column in document["columns"].items():
        parts += column_markdown(name, column)
    return "\n\n".join(parts) + "\n"


def column_markdown(name: str, column: dict) -> list[str]:
    """The paragraphs about a column."""
    parts = [f"## {name}"]
    steady = column["consistency"]
    if steady["problems"]:
        parts.append(
            f"Right as they are: {percent(steady['right'])} of {steady['problems']} problems; in "
            f"that and all changed forms ({steady['changes a problem']:.1f} each): "
            f"{percent(steady['right in all'])}."
        )
    missing = [f"{row} {count}" for row, count in column["left_out"].items() if count]
    if missing:
        parts.append(f"Problems that a change does not apply to: {', '.join(missing)}.")

    second = column["verifiers"]
    counts = [f"{key}: {count}" for key, count in second["counts"].items()]
    parts.append(
        f"Second verifier: {', '.join(counts)}; agreement "
        f"{percent(second['agreement'])} where it can tell. Right by the relaxed rules alone: {second['right but not strictly']}."
    )
    votes = column.get("votes")
    if votes:
        parts.append(
            f"Votes of {votes['samples']} samples at temperature {votes['temperature']:g}: "
            f"majority right {percent(votes['accuracy'])}, mean share of the majority "
            f"{percent(votes['agreement'])}, {votes['distinct_answers']:.2f} different answers a "
            f"problem, {percent(votes['distinct_texts'])} of the texts different; gap of share and "
            f"accuracy {percent(votes['calibration_error'])}."
        )
        lines = []
        for row in votes["bins"]:
            share = f"{row['above']:g} to {row['to']:g}" if row["above"] < 1 else "1"
            lines.append([share, str(row["n"]), percent(row["share"]), percent(row["accuracy"])])
        headings = ["share of the majority", "n", "mean share", "accuracy"]
        parts.append(markdown_table(headings, lines))

    parts.append("Wrong answers, each of the first kind that fits:")
    lines = []
    for kind, found in column["errors"].items():
        rule = diagnosis.ERRORS[kind]
        lines.append([kind, str(found["count"]), percent(found["share"]), rule])
    parts.append(markdown_table(["kind", "count", "share", "rule"], lines))
    for kind, found in column["errors"].items():
        for example in found["examples"]:
            text = example["text"].strip().replace("\n", " / ")
            parts.append(
                f"- {kind}, {example['id']}: {example['why']}. {example['question']!r} "
                f"({example['answer']}): {text[:400]!r}"
            )
    return parts


# --------------------------------------------------------------------------------------------------
# The command

# Options that make the figures what they are
SETTINGS = (
    "limit",
    "shots",
    "prompts",
    "template",
    "system",
    "temperatures",
    "samples",
    "max_new_tokens",
)
SETTINGS += ("rounds", "seed")


def main(config: Config) -> dict:
    """A column for each task but proofs. The same command continues an audit that was stopped
    between two columns.
    """
    # options and earlier columns
    check_options(config)
    tasks = [task for task in make_tasks(config).tasks if task.format != "proof"]
    if not tasks:
        raise InputError("proofs have no answers to audit; name other benchmarks")
    world = setup(config.device, config.kernels)
    if world.size > 1:
        raise InputError("an audit runs in one process; start it without torchrun")
    document = {
        "model": config.model,
        "sha256": fingerprint(Path(config.model)),
        "settings": {name: getattr(config, name) for name in SETTINGS},
        "columns": {},
    }
    path = Path(config.to) / "audit.json"
    if config.to and path.exists():
        before = read_json(path)
        if any(before[key] != document[key] for key in ("sha256", "settings")):
            raise InputError(
                f"{path}: is of another model or of other settings; give another --to, or remove it"
            )
        document["columns"] = before["columns"]
    columns = document["columns"]
    unfinished = [task for task in tasks if task.name not in columns]

    # model
    tokenizer = load_tokenizer(config.model, config.template, config.system)
    model = from_pretrained(config.model, world.device, world.dtype)
    check_tokenizer(tokenizer, model, config.model)
    use_kernels(model.config, world)
    solver = Solver(model, tokenizer, max_rows=config.max_rows, rounds=config.rounds)

    # columns
    with ExitStack() as stack:
        if any(task.needs_sandbox for task in unfinished):
            solver.sandbox = stack.enter_context(start_sandbox(config.sandbox))
        for task in unfinished:
            columns[task.name] = audit_task(task, solver, config)
            if config.to:
                write_json(path, document, indent=2)
                with atomic_write(path.with_suffix(".md")) as out:
                    out.write(markdown(document))
    print(text_table(*robustness_table({task.name: columns[task.name] for task in tasks})))
    return document


def audit_task(task: Task, solver: Solver, config: Config) -> dict:
    """`audit` of a task by a model."""

    def solve(problems, sampling, few_shot, template):
        with_template = replace(solver, template=template)
        return with_template.solve(problems, task.format, sampling, few_shot)

    def progress(row: str) -> None:
        print(f"{task.name}: {row}", file=sys.stderr)

    sampling = Sampling(config.samples, max_new_tokens=task.max_new_tokens, seed=config.seed)
    return audit(task, solve, config.template, sampling, config.temperatures, progress)


if __name__ == "__main__":
    if sys.argv[1:2] == ["compare"]:
        run_cli(lambda: compare_command(sys.argv[2:]))
    else:
        command(main, Config)
