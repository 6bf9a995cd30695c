"""Run a pipeline: from data to a model trained by GRPO and its evaluation, one command after
another.

    python -m tools.pipeline configs/demo/pipeline.toml [--to runs/demo] [--seed 0] [--only
    STAGE,STAGE]

The pipeline file lists stages. A stage is a few commands that can also be typed by hand; {to},
{data}, {seed} and {configs} are filled in. A finished stage is not run again: to repeat it, delete
its mark in TO/stages/. A stage that was stopped starts again and continues from its own checkpoint.
At the end come a table of results and TO/summary.json.
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
    """The pipeline file: stage, a list of {name, seconds, run}; optionally rows and columns of a
    table.

    Raises InputError.
    """
    try:
        pipeline = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); "
            "give a pipeline file such as configs/demo/pipeline.toml"
        ) from None
    except ValueError as error:  # not TOML or not UTF-8
        raise InputError(f"{path}: not valid TOML ({error})") from None
    for number, stage in enumerate(pipeline.get("stage", []), 1):
        for key in ("name", "seconds", "run"):
            if key not in stage:
                raise InputError(f"{path}: stage {number} has no {key!r}")
    if not pipeline.get("stage"):
        raise InputError(f"{path}: no [[stage]] in it")
    if "rows" in pipeline or "columns" in pipeline:  # a table needs both
        for key in ("rows", "columns"):
            if not pipeline.get(key):
                raise InputError(f"{path}: no {key} in it")
    return pipeline


def call(words: list[str]) -> int:
    """Run a command and return its exit code.

    Passes Ctrl-C and SIGTERM on and waits: a trainer saves a checkpoint before it ends.
    (subprocess.run would kill it a moment later.)
    """
    try:
        process = subprocess.Popen(words)
    except OSError as error:
        raise InputError(
            f"{words[0]}: cannot be run ({error.strerror}); correct the stage's command"
        ) from None

    def forward(signum, frame) -> None:
        process.send_signal(signum)

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, forward) for number in signals]
    try:
        return process.wait()
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def run_stage(stage: dict, values: dict, mark: Path) -> float:
    """Run a stage's commands and write its mark.

    Returns its seconds, with those of earlier tries that were stopped. Ends the program if a
    command fails.
    """
    partial = mark.with_suffix(".partial")
    before = json.loads(partial.read_text())["seconds"] if partial.exists() else 0.0
    start = time.time()
    for command in stage["run"]:
        words = [word.format(**values) for word in shlex.split(command)]  # a path may have spaces
        print(f"$ {shlex.join(words)}", flush=True)
        if words[0] == "python":
            words[0] = sys.executable
        code = call(words)
        if code:
            write_json(partial, {"seconds": before + time.time() - start})
            print(
                f"stage {stage['name']} stopped (exit code {code}); the same command continues",
                file=sys.stderr,
            )
            sys.exit(code if code > 0 else 128 - code)
    seconds = before + time.time() - start
    write_json(mark, {"seconds": seconds})
    partial.unlink(missing_ok=True)
    return seconds


def write_json(path: Path, value: dict, indent: int | None = None) -> None:
    with atomic_write(path) as file:
        json.dump(value, file, indent=indent)


def summarize(pipeline: dict, to: Path, seconds: dict[str, float]) -> dict:
    """The results of the evaluations in TO/eval/ROW, and the seconds of each stage.

    {"accuracy": {row: {column: share}}, "interval": ..., "seconds": {stage: s}}
    """
    summary: dict = {"accuracy": {}, "interval": {}, "seconds": seconds}
    columns = pipeline["columns"]
    for row in pipeline["rows"]:
        path = to / "eval" / row / "results.json"
        if not path.exists():
            raise InputError(
                f"{path}: no stage has written it; an evaluation with --to {path.parent} must"
            )
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        for name in columns.values():
            if name not in results:
                raise InputError(
                    f"{path}: has no results of {name}, a column; there are {', '.join(results)}"
                )
        for key in ("accuracy", "interval"):
            summary[key][row] = {column: results[name][key] for column, name in columns.items()}
    return summary


def table(summary: dict) -> str:
    """The summary as text."""
    columns = list(next(iter(summary["accuracy"].values())))
    lines = ["accuracy, % (95 % interval)   " + "".join(f"{column:>24}" for column in columns)]
    for row, values in summary["accuracy"].items():
        line = f"{row:<30}"
        for column in columns:
            low, high = summary["interval"][row][column]
            cell = f"{100 * values[column]:.1f} ({100 * low:.1f} - {100 * high:.1f})"
            line += f"{cell:>24}"
        lines.append(line)
    seconds = summary["seconds"]
    lines.append("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    lines.append(f"in all {sum(seconds.values()) / 60:.1f} minutes")
    return "\n".join(lines)


def check_commands(pipeline: dict, path: str, values: dict) -> None:
    """Raises InputError for a command with an unknown name in braces."""
    for stage in pipeline["stage"]:
        for command in stage["run"]:
            try:
                command.format(**values)
            except (LookupError, ValueError):
                known = ", ".join("{" + name + "}" for name in values)
                raise InputError(
                    f"{path}: {command}: the names in braces must be among {known}"
                ) from None


def check_settings(to: Path, data: str, seed: int) -> None:
    """Write the settings, or raise InputError if the directory was made with others."""
    record = to / "stages" / "settings.json"
    settings = json.dumps({"data": data, "seed": seed})
    if record.exists() and record.read_text() != settings:
        raise InputError(
            f"{to} was made with {record.read_text()}, not {settings}; "
            f"give another --to or remove {to}"
        )
    with atomic_write(record) as file:
        file.write(settings)


def main() -> None:
    parser = CommandParser(
        prog="python -m tools.pipeline",
        description="Run a pipeline of stages. Finished stages are kept.",
    )
    parser.add_argument("pipeline", help="pipeline file, e.g. configs/demo/pipeline.toml")
    parser.add_argument("--to", help="run directory (default: runs/ and the pipeline's folder)")
    parser.add_argument("--data", default="", help="folder of problem files, if one is needed")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of all that is drawn")
    parser.add_argument("--only", default="", help="only these stages, comma-separated")
    args = parser.parse_args()

    # read and check everything first
    pipeline = load(args.pipeline)
    stages = pipeline["stage"]
    names = [stage["name"] for stage in stages]
    if pipeline.get("needs_data") and not Path(args.data or "-").is_dir():
        raise InputError(f"--data {args.data or '(empty)'}: not a folder; {pipeline['needs_data']}")
    only = [name for name in args.only.split(",") if name]
    for name in only:
        if name not in names:
            raise InputError(f"--only {name}: no such stage; there are {', '.join(names)}")
    configs = Path(args.pipeline).parent
    to = Path(args.to or Path("runs") / configs.name)
    values = {"to": str(to), "data": args.data, "seed": args.seed, "configs": str(configs)}
    check_commands(pipeline, args.pipeline, values)
    check_settings(to, args.data, args.seed)

    # run the stages
    seconds: dict[str, float] = {}
    for number, stage in enumerate(stages, 1):
        name = stage["name"]
        mark = to / "stages" / f"{name}.json"
        heading = f"[{number}/{len(names)}] {name}"
        if mark.exists():
            seconds[name] = json.loads(mark.read_text())["seconds"]
            print(f"{heading}: finished before, in {seconds[name]:.0f} s", flush=True)
        elif not only or name in only:
            left = sum(later["seconds"] for later in stages[number - 1 :])
            estimate = f"about {stage['seconds']} s, all that is left {left / 60:.1f} min"
            print(f"\n{heading}: {estimate}", flush=True)
            seconds[name] = run_stage(stage, values, mark)

    # the results
    if len(seconds) == len(names) and "rows" in pipeline:
        summary = summarize(pipeline, to, seconds)
        write_json(to / "summary.json", summary, indent=2)
        print(f"\n{table(summary)}\nwritten to {to / 'summary.json'}")


if __name__ == "__main__":
    run_cli(main)
