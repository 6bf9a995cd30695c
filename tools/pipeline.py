"""Run a whole pipeline, from data to a GRPO-trained model and its evaluation, one command after the other.

    python -m tools.pipeline configs/demo/pipeline.toml [--to runs/demo] [--data DIR] [--seed 0] [--only STAGE,STAGE]

The pipeline file lists stages; each stage is a few commands that can also be typed by hand ({to}, {data} and {seed} are
filled in). A stage that has finished is not run again: delete its mark in TO/stages/ to repeat it. A stage that was
killed is started again and goes on from its own checkpoint. At the end: the table of results and TO/summary.json.
"""

import json
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from data.io import CommandParser, InputError, at_least, atomic_write, run_cli


def load(path: str) -> dict:
    """The pipeline file: {stage: [{name, seconds, run}]} and, where it ends with a table, rows and columns. Raises
    InputError."""
    try:
        pipeline = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        reason = f"{path}: cannot be read ({error.strerror})"
        raise InputError(
            f"{reason}; give a pipeline file such as configs/demo/pipeline.toml"
        ) from None
    except ValueError as error:  # not TOML or not UTF-8
        raise InputError(f"{path}: not valid TOML ({error})") from None
    for number, stage in enumerate(pipeline.get("stage", []), 1):
        for key in ("name", "seconds", "run"):
            if key not in stage:
                raise InputError(f"{path}: stage {number} has no {key!r}")
    needed = ["stage"] + ["rows", "columns"] * any(key in pipeline for key in ("rows", "columns"))
    for key in needed:  # the last two are needed at the very end: better said now
        if not pipeline.get(key):
            raise InputError(f"{path}: no {'[[stage]]' if key == 'stage' else key} in it")
    return pipeline


def call(words: list[str]) -> int:
    """Run a command; returns its exit code. Ctrl-C and SIGTERM are passed on to it and its end is waited for: a trainer
    saves a checkpoint first (subprocess.run would kill it a moment later)."""
    try:
        process = subprocess.Popen(words)
    except OSError as error:
        raise InputError(
            f"{words[0]}: cannot be run ({error.strerror}); correct the stage's command"
        ) from None
    signals = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(s, lambda signum, frame: process.send_signal(signum)) for s in signals]
    try:
        return process.wait()
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def run_stage(stage: dict, values: dict, mark: Path) -> float:
    """Run a stage's commands; returns its seconds, those of an earlier, interrupted try included."""
    partial = mark.with_suffix(".partial")
    before = json.loads(partial.read_text())["seconds"] if partial.exists() else 0.0
    start = time.time()
    for command in stage["run"]:
        words = [
            word.format(**values) for word in shlex.split(command)
        ]  # in this order: a path may hold spaces
        if words[0] == "python":
            words[0] = sys.executable
        print(
            "$ " + shlex.join(["python", *words[1:]] if words[0] == sys.executable else words),
            flush=True,
        )
        code = call(words)
        seconds = before + time.time() - start
        if code:
            with atomic_write(partial) as file:
                json.dump({"seconds": seconds}, file)
            stopped = f"stage {stage['name']} stopped (exit code {code})"
            print(f"{stopped}; the same command goes on from here", file=sys.stderr)
            sys.exit(code if code > 0 else 128 - code)
    with atomic_write(mark) as file:
        json.dump({"seconds": seconds}, file)
    partial.unlink(missing_ok=True)
    return seconds


def summarise(pipeline: dict, to: Path, seconds: dict[str, float]) -> dict:
    """{"accuracy": {row: {column: share}}, "interval": ..., "seconds": {stage: s}} from the evaluations' results."""
    accuracy, interval = {}, {}
    for row in pipeline["rows"]:
        path = to / "eval" / row / "results.json"
        if not path.exists():
            raise InputError(
                f"{path}: not written by any stage; an evaluation with --to {path.parent} must"
            )
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        if missing := [name for name in pipeline["columns"].values() if name not in results]:
            raise InputError(
                f"{path}: holds no results of {missing[0]}, a column; there are {', '.join(results)}"
            )
        accuracy[row] = {
            column: results[name]["accuracy"] for column, name in pipeline["columns"].items()
        }
        interval[row] = {
            column: results[name]["interval"] for column, name in pipeline["columns"].items()
        }
    return {"accuracy": accuracy, "interval": interval, "seconds": seconds}


def table(summary: dict) -> str:
    columns = list(next(iter(summary["accuracy"].values())))
    lines = ["accuracy, % (95 % interval)   " + "".join(f"{column:>24}" for column in columns)]
    for row, values in summary["accuracy"].items():
        intervals = summary["interval"][row]
        cells = [
            f"{100 * values[c]:.1f} ({100 * intervals[c][0]:.1f} - {100 * intervals[c][1]:.1f})"
            for c in columns
        ]
        lines.append(f"{row:<30}" + "".join(f"{cell:>24}" for cell in cells))
    lines.append(
        "seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in summary["seconds"].items())
    )
    lines.append(f"in all {sum(summary['seconds'].values()) / 60:.1f} minutes")
    return "\n".join(lines)


def main() -> None:
    parser = CommandParser(description="Run a pipeline of stages. Finished stages are kept.")
    parser.add_argument("pipeline", help="pipeline file, e.g. configs/demo/pipeline.toml")
    parser.add_argument("--to", help="run directory (default: runs/ and the pipeline's folder)")
    parser.add_argument("--data", default="", help="folder of problem files, if it needs one")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--only", default="", help="only these stages, comma-separated")
    args = parser.parse_args()
    pipeline = load(args.pipeline)
    if pipeline.get("needs_data") and not Path(args.data or "-").is_dir():
        raise InputError(f"--data {args.data or '(empty)'}: not a folder; {pipeline['needs_data']}")
    to = Path(args.to or Path("runs") / Path(args.pipeline).parent.name)
    only = [name for name in args.only.split(",") if name]
    names = [stage["name"] for stage in pipeline["stage"]]
    if unknown := [name for name in only if name not in names]:
        raise InputError(f"--only {unknown[0]}: no such stage; there are {', '.join(names)}")
    values = {
        "to": str(to),
        "data": args.data,
        "seed": args.seed,
        "configs": str(Path(args.pipeline).parent),
    }
    for stage in pipeline["stage"]:
        for command in stage["run"]:
            try:
                command.format(**values)
            except (LookupError, ValueError):
                known = ", ".join("{" + name + "}" for name in values)
                raise InputError(
                    f"{args.pipeline}: {command}: what stands in braces must be one of {known}"
                ) from None
    settings, record = (
        json.dumps({"data": args.data, "seed": args.seed}),
        to / "stages" / "settings.json",
    )
    if record.exists() and record.read_text() != settings:
        raise InputError(
            f"{to} was made with {record.read_text()}, not {settings}; give another --to or remove {to}"
        )
    with atomic_write(record) as file:
        file.write(settings)

    seconds = {}
    for number, stage in enumerate(pipeline["stage"], 1):
        name, mark = stage["name"], to / "stages" / f"{stage['name']}.json"
        if mark.exists():
            seconds[name] = json.loads(mark.read_text())["seconds"]
            print(
                f"[{number}/{len(names)}] {name}: finished before, in {seconds[name]:.0f} s",
                flush=True,
            )
        elif not only or name in only:
            left = sum(later["seconds"] for later in pipeline["stage"][number - 1 :])
            estimate = f"about {stage['seconds']} s, the whole rest {left / 60:.1f} min"
            print(f"\n[{number}/{len(names)}] {name}: {estimate}", flush=True)
            seconds[name] = run_stage(stage, values, mark)
    if len(seconds) == len(names) and "rows" in pipeline:
        summary = summarise(pipeline, to, seconds)
        with atomic_write(to / "summary.json") as file:
            json.dump(summary, file, indent=2)
        print("\n" + table(summary) + f"\nwritten to {to / 'summary.json'}")


if __name__ == "__main__":
    run_cli(main)
