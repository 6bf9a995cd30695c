"""What an evaluation writes: a run that can be stopped and continued, results.json, and the table.

TO/NAME.FORMAT.jsonl     the records of a finished task
TO/results.json          figures, settings, model, versions, machine; at the end
TO/table.md              the table
TO/partial/              until then: settings, chunks of records, figures of finished tasks
"""

import datetime
import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy
import sympy
import torch

from data.io import InputError, atomic_write, write_jsonl
from evaluation.solve import Solver
from evaluation.tasks import Tasks
from runtime.distributed import World
from runtime.run import Interrupt, Interrupted

# Options that may change between two runs into the same folder: they do not change the figures of a
# task
FREE = ("to", "device", "kernels", "max_rows", "chunk", "benchmarks", "formats")


class Saved:
    """The finished parts of a run in `config.to`; in memory only if that is empty.

    As a context manager it delays SIGTERM and Ctrl-C to the end of a chunk, saves that, and raises
    Interrupted.
    """

    def __init__(self, config, world: World):
        """Raises InputError, with the option's name, if the folder has results of other settings."""
        self.config, self.world = config, world
        self.to = Path(config.to) if config.to else None
        self.results: dict[str, dict] = {}  # task name -> figures
        self.chunks: dict[str, dict[int, dict]] = {}  # task name -> start -> records, seconds
        self.interrupt = Interrupt()
        self.weights = fingerprint(Path(config.model))
        self.before: dict = {}  # results.json at the start of the run
        if self.to is None:
            return

        # finished runs
        self.partial = self.to / "partial"
        path = self.to / "results.json"
        if path.exists():
            self.before = read_json(path)
            if "settings" not in self.before:
                raise InputError(
                    f"{path}: from an earlier version of eval.py; give another --to, or remove it"
                )
            self._compare(self.before["settings"] | {"weights": self.before["model"]["sha256"]})
            self.results = dict(self.before["results"])

        # the run that was stopped
        path = self.partial / "settings.json"
        if path.exists():
            self._compare(read_json(path))
            for result in self.partial.glob("*.result"):
                self.results[result.stem] = read_json(result)
        world.barrier()
        if world.is_main:
            write_json(path, self._settings())

    def _settings(self) -> dict:
        return {**vars(self.config), "weights": self.weights}

    def _compare(self, other: dict) -> None:
        for name, value in self._settings().items():
            if name in FREE or other.get(name) == value:
                continue
            reason = f"holds results made with --{name} {other.get(name)}, not {value}"
            if name == "weights":
                reason = f"holds results of other weights than {self.config.model} has now"
            raise InputError(f"{self.to}: {reason}; give another --to, or remove that folder")

    def __enter__(self) -> "Saved":
        if self.to:
            self.interrupt.start()
        return self

    def __exit__(self, *_) -> None:
        self.interrupt.stop()

    def missing(
        self,
        name: str,
        total: int,
        size: int,
    ) -> Iterator[tuple[int, int]]:
        """The ranges of problems of a task that are not solved yet, each at most `size` long.

        The caller solves a range and calls `add` before it takes the next.
        """
        chunks = self.chunks.setdefault(name, {})
        if self.to:
            for path in sorted((self.partial / name).glob("*.json")):
                chunks[int(path.stem)] = read_json(path)
        start = 0
        while start < total:
            if start in chunks:
                start += len(chunks[start]["records"])
                continue
            later = [other for other in chunks if other > start]
            yield start, min([start + size, total, *later])
            if signum := self.interrupt.requested(self.world):
                raise Interrupted(signum, self.partial)

    def add(
        self,
        name: str,
        start: int,
        records: list[dict],
        seconds: float,
    ) -> None:
        """Save a chunk."""
        self.chunks[name][start] = {"seconds": seconds, "records": records}
        if self.to and self.world.is_main:
            write_json(self.partial / name / f"{start:08d}.json", self.chunks[name][start])

    def records(self, name: str) -> list[dict]:
        """All records of a task, in the order of its problems."""
        records = []
        for _, chunk in sorted(self.chunks[name].items()):
            records += chunk["records"]
        return records

    def seconds(self, name: str) -> float:
        """The time that a task has taken."""
        return sum(chunk["seconds"] for chunk in self.chunks[name].values())

    def finish(self, name: str, figures: dict) -> None:
        """Save the figures and records of a finished task."""
        self.results[name] = figures
        if self.to and self.world.is_main:
            write_jsonl(self.to / f"{name}.jsonl", self.records(name))
            write_json(self.partial / f"{name}.result", figures)
            shutil.rmtree(self.partial / name)
        del self.chunks[name]

    def close(
        self,
        results: dict,
        planned: Tasks,
        solver: Solver,
    ) -> None:
        """Write results.json and the table, and remove the parts."""
        if not (self.to and self.world.is_main):
            return
        if results.keys() <= self.before.get("results", {}).keys():  # nothing is new
            shutil.rmtree(self.partial)
            return
        sandbox = self.before.get("sandbox")
        if solver.sandbox is not None:
            active, missing = solver.sandbox.isolation, solver.sandbox.missing
            sandbox = {"active": list(active), "missing": dict(missing)}
        results = self.before.get("results", {}) | results
        document = {
            "results": results,
            "absent": planned.absent,
            "bad": planned.bad,
            "settings": vars(self.config),
            "model": {"directory": str(Path(self.config.model).resolve()), "sha256": self.weights},
            "sandbox": sandbox,
            "prover": solver.prover.version if solver.prover else self.before.get("prover"),
            "versions": versions(),
            "machine": machine(self.world),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": sum(figures["seconds"] for figures in results.values()),
        }
        with atomic_write(self.to / "table.md") as file:
            file.write(markdown(results, planned))
        write_json(self.to / "results.json", document, indent=2)
        shutil.rmtree(self.partial)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value, indent: int | None = None) -> None:
    with atomic_write(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=indent)


def fingerprint(model: Path) -> str:
    """sha256 of the configuration, tokenizer and weights of a model directory, with their names."""
    whole = hashlib.sha256()
    paths = [*model.glob("*.safetensors*"), model / "config.json", model / "tokenizer.json"]
    for path in sorted(paths):
        if path.exists():
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
            whole.update(path.name.encode() + digest)
    return whole.hexdigest()


def versions() -> dict[str, str | None]:
    """Versions of Python, the libraries and this code: its commit, with "+" if files were changed
    since.
    """
    commit = None
    try:
        commit = git("rev-parse", "HEAD")
        if git("status", "--porcelain", "-uno"):
            commit += "+"
    except (OSError, subprocess.CalledProcessError):
        pass  # no git, or a copy without its history
    libraries = {module.__name__: module.__version__ for module in (torch, sympy, numpy)}
    return {
        "python": platform.python_version(),
        **libraries,
        "commit": commit,
    }


def git(*arguments: str) -> str:
    command = ["git", "-C", Path(__file__).parents[1], *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def machine(world: World) -> dict:
    device = platform.processor() or platform.machine()
    if world.device.type == "cuda":
        device = torch.cuda.get_device_name(world.device)
    return {
        "system": platform.platform(),
        "device": device,
        "processes": world.size,
        "threads": torch.get_num_threads(),
    }


# --------------------------------------------------------------------------------------------------
# The table


def percent(share: float | None) -> str:
    """A share as text, e.g. "12.3 %"; "" for None."""
    return "" if share is None else f"{100 * share:.1f} %"


def with_interval(share: float, interval: tuple[float, float]) -> str:
    """e.g. "12.3 % (10.1 - 14.5)"."""
    low, high = interval
    return f"{percent(share)} ({100 * low:.1f} - {100 * high:.1f})"


def rows(results: dict) -> tuple[list[str], list[list[str]]]:
    """(headings, a row of texts for each task)."""
    # columns that only some evaluations have
    K = max((figures["samples"] for figures in results.values()), default=1)
    optional = [f"maj@{K}", f"pass@{K}"] if K > 1 else []
    if any("paper" in figures for figures in results.values()):
        optional.append("paper")
    seen = any("contamination" in figures for figures in results.values())

    headings = ["problems", "format", "n", "accuracy (95 %)", "strict", *optional]
    headings += ["seen"] if seen else []
    headings += ["no answer", "cut off", "no room", "shots", "tokens", "tokens/s"]
    lines = []
    for name, figures in results.items():
        file, format = name.rsplit(".", 1)
        line = [file, format, str(figures["problems"])]
        if figures["accuracy"] is None:
            line += ["not checked", ""]
        else:
            line.append(with_interval(figures["accuracy"], figures["interval"]))
            line.append(percent(figures["strict"]))
        line += [percent(figures.get(key)) for key in optional]
        if seen:
            line.append(percent(figures.get("contamination", {}).get("share")))
        line += [percent(figures[key]) for key in ("no_answer", "truncated", "no_room")]
        line.append(f"{figures['shots']:.1f}")
        line += [f"{figures[key]:.0f}" for key in ("tokens", "tokens_per_second")]
        lines.append(line)
    return headings, lines


def notes(results: dict, planned: Tasks) -> list[str]:
    """What the table does not show: statuses of programs, problems seen, absent benchmarks, bad
    records.
    """
    lines = []
    for name, figures in results.items():
        if figures.get("programs"):
            counts = [f"{status} {count}" for status, count in figures["programs"].items()]
            lines.append(f"{name}: programs: {', '.join(counts)}")
        seen = figures.get("contamination")
        if seen and seen["problems"]:
            clean, overlapping = seen["clean"], seen["overlapping"]
            lines.append(
                f"{name}: seen: {seen['problems']} questions share ten words with the training "
                f"data, {seen['whole']} have all of theirs there; accuracy of those "
                f"{percent(overlapping['accuracy']) or 'none'}, "
                f"of the other {clean['problems']} {percent(clean['accuracy']) or 'none'}"
            )
        if figures.get("note"):
            lines.append(f"{name}: {figures['note']}")
    for name, places in planned.absent.items():
        lines.append(f"absent: {name} (looked for {', '.join(places)})")
    for name, messages in planned.bad.items():
        if messages[-1].startswith("not evaluated: "):
            lines.append(f"{name}: {messages[-1]}")
            messages = messages[:-1]
        if messages:
            lines.append(f"bad records left out of {name}: {len(messages)}")
        lines += [f"    {message}" for message in messages[:5]]
    return lines


def text_table(headings: list[str], lines: list[list[str]], left: int | None = None) -> str:
    """A table for the terminal. The first `left` columns (None: all) are aligned left, the others
    right.
    """
    lines = [headings, *lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for line in lines:
        cells = []
        for i, (cell, width) in enumerate(zip(line, widths, strict=True)):
            at_left = left is None or i < left
            cells.append(cell.ljust(width) if at_left else cell.rjust(width))
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)


def markdown_table(headings: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(results: dict, planned: Tasks) -> str:
    """The table and the notes for the terminal."""
    return "\n".join([text_table(*rows(results), left=2), *notes(results, planned)])


def markdown(results: dict, planned: Tasks) -> str:
    """The table and the notes as Markdown."""
    points = [f"- {note.strip()}" for note in notes(results, planned)]
    return "\n".join([markdown_table(*rows(results)), "", *points]) + "\n"
