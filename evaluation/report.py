"""What an evaluation leaves behind: parts of a run that can be stopped, results.json, and the table.

TO/NAME.FORMAT.jsonl     records of a finished benchmark and format
TO/results.json          figures, settings, model, versions, machine: written when all is finished
TO/table.md              the table
TO/partial/              until then: the settings, chunks of records, figures of what has finished
"""

import datetime
import hashlib
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import sympy
import torch

from data.io import InputError, atomic_write, write_jsonl
from runtime import Interrupt, Interrupted, World

# Options that do not change what a benchmark's figures are, or of which each value has figures of its own
FREE = ("to", "device", "max_rows", "chunk", "benchmarks", "formats")


class Saved:
    """The finished parts of a run in `config.to` (only in memory where that is ""). A context manager: within it a
    SIGTERM or Ctrl-C waits for the end of a chunk, which is saved, and raises Interrupted."""

    def __init__(self, config, world: World):
        """Raises InputError, naming the option, where the folder holds results of other settings."""
        self.config, self.world = config, world
        self.to = Path(config.to) if config.to else None
        self.results: dict[str, dict] = {}  # NAME.FORMAT -> figures
        self.parts: dict[
            str, dict[int, tuple[list[dict], float]]
        ] = {}  # NAME.FORMAT -> start -> (records, seconds)
        self.interrupt, self.began = Interrupt(), time.time()
        self.sha256 = fingerprint(Path(config.model))
        self.before: dict = {}  # what results.json said when the run began
        if self.to is None:
            return
        self.folder = self.to / "partial"
        path = self.to / "results.json"
        if path.exists():
            self.before = json.loads(path.read_text(encoding="utf-8"))
            if "settings" not in self.before:
                raise InputError(
                    f"{path}: was not written by this version of eval.py; give another --to, or remove it"
                )
            self._compare(self.before["settings"] | {"weights": self.before["model"]["sha256"]})
            self.results = dict(self.before["results"])
        path = self.folder / "settings.json"
        settings = {**vars(config), "weights": self.sha256}
        if path.exists():
            self._compare(json.loads(path.read_text(encoding="utf-8")))
            for one in self.folder.glob("*.result"):
                self.results[one.stem] = json.loads(one.read_text(encoding="utf-8"))
        world.barrier()
        if world.main:
            _write_json(path, settings)

    def _compare(self, other: dict) -> None:
        for name, value in {**vars(self.config), "weights": self.sha256}.items():
            if name not in FREE and other.get(name) != value:
                if name == "weights":
                    reason = f"holds results of other weights than {self.config.model} has now"
                else:
                    reason = f"holds results made with --{name} {other.get(name)}, not {value}"
                raise InputError(f"{self.to}: {reason}; give another --to, or remove that folder")

    def __enter__(self) -> "Saved":
        if self.to:
            self.interrupt.start()
        return self

    def __exit__(self, *_) -> None:
        self.interrupt.stop()

    def missing(self, name: str, total: int, chunk: int) -> Iterator[tuple[int, int]]:
        """The ranges of problems still to be solved, at most `chunk` long. What is solved is added between them."""
        parts = self.parts.setdefault(name, {})
        if self.to:
            for path in sorted((self.folder / name).glob("*.json")):
                row = json.loads(path.read_text(encoding="utf-8"))
                parts[int(path.stem)] = row["records"], row["seconds"]
        start = 0
        while start < total:
            if start in parts:
                start += len(parts[start][0])
                continue
            end = min([start + chunk, total, *(other for other in parts if other > start)])
            yield start, end
            if signum := self.interrupt.requested(self.world):
                raise Interrupted(signum, self.folder)

    def add(self, name: str, start: int, records: list[dict], seconds: float) -> None:
        self.parts[name][start] = records, seconds
        if self.to and self.world.main:
            _write_json(
                self.folder / name / f"{start:08d}.json", {"seconds": seconds, "records": records}
            )

    def records(self, name: str) -> tuple[list[dict], float]:
        """(all records in their order, seconds that they took)."""
        parts = [self.parts[name][start] for start in sorted(self.parts[name])]
        return [record for records, _ in parts for record in records], sum(
            seconds for _, seconds in parts
        )

    def finish(self, name: str, figures: dict) -> None:
        self.results[name] = figures
        records, _ = self.records(name)
        del self.parts[name]
        if self.to and self.world.main:
            write_jsonl(self.to / f"{name}.jsonl", records)
            _write_json(self.folder / f"{name}.result", figures)
            shutil.rmtree(self.folder / name)

    def close(self, results: dict, absent: dict, bad: dict, sandbox, prover) -> None:
        """Write results.json and the table, and remove the parts."""
        if not (self.to and self.world.main):
            return
        if (
            results.keys() <= self.before.get("results", {}).keys()
        ):  # nothing is new: what stands there stays
            shutil.rmtree(self.folder)
            return
        protections = self.before.get("sandbox")
        if sandbox is not None:
            protections = {"active": list(sandbox.isolation), "missing": dict(sandbox.missing)}
        everything = self.before.get("results", {}) | results
        document = {
            "results": everything,
            "absent": absent,
            "bad": bad,
            "settings": vars(self.config),
            "model": {"directory": str(Path(self.config.model).resolve()), "sha256": self.sha256},
            "sandbox": protections,
            "prover": prover.version if prover else self.before.get("prover"),
            "versions": versions(),
            "machine": machine(self.world),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": sum(one["seconds"] for one in everything.values()),
        }
        with atomic_write(self.to / "table.md") as file:
            file.write(markdown(everything, absent, bad))
        _write_json(self.to / "results.json", document, indent=2)
        shutil.rmtree(self.folder)


def _write_json(path: Path, value, indent: int | None = None) -> None:
    with atomic_write(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=indent)


def fingerprint(model: Path) -> str:
    """sha256 of a model directory's configuration, tokenizer and weights, by name."""
    whole = hashlib.sha256()
    for path in sorted(
        [*model.glob("*.safetensors*"), model / "config.json", model / "tokenizer.json"]
    ):
        if path.exists():
            with open(path, "rb") as file:
                whole.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def versions() -> dict[str, str | None]:
    """Of Python, of what computes, and of this code: its commit, with "+" where files differ from it; None if none."""
    root, commit = Path(__file__).parents[1], None
    try:
        commit = _git(root, "rev-parse", "HEAD") + (
            "+" if _git(root, "status", "--porcelain", "-uno") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        pass  # no git, or a copy without its history
    modules = {module.__name__: module.__version__ for module in (torch, sympy, numpy)}
    return {"python": platform.python_version(), **modules, "commit": commit}


def _git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", root, *words], capture_output=True, text=True, check=True
    ).stdout.strip()


def machine(world: World) -> dict:
    gpu = world.device.type == "cuda"
    device = (
        torch.cuda.get_device_name(world.device)
        if gpu
        else platform.processor() or platform.machine()
    )
    return {
        "system": platform.platform(),
        "device": device,
        "processes": world.size,
        "threads": torch.get_num_threads(),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The table


def rows(results: dict) -> tuple[list[str], list[list[str]]]:
    """(headings, a row of texts for each benchmark and format)."""
    K = max((figures["samples"] for figures in results.values()), default=1)
    voted = [f"maj@{K}", f"pass@{K}"] if K > 1 else []
    voted += ["paper"] if any("paper" in figures for figures in results.values()) else []
    seen = ["seen"] if any("contamination" in figures for figures in results.values()) else []
    headings = [
        "problems",
        "format",
        "n",
        "accuracy (95 %)",
        "strict",
        *voted,
        *seen,
        "no answer",
        "cut off",
        "no room",
        "shots",
        "tokens",
        "tokens/s",
    ]
    lines = []
    for name, one in results.items():
        file, format = name.rsplit(".", 1)
        if one["accuracy"] is None:
            accuracy, strict = "not checked", ""
        else:
            low, high = one["interval"]
            accuracy = f"{100 * one['accuracy']:.1f} % ({100 * low:.1f} - {100 * high:.1f})"
            strict = f"{100 * one['strict']:.1f} %"
        shares = [one.get(key) for key in voted] + [
            one.get("contamination", {}).get("share")
        ] * len(seen)
        shares += [one[key] for key in ("no_answer", "truncated", "no_room")]
        texts = ["" if share is None else f"{100 * share:.1f} %" for share in shares]
        numbers = [f"{one['shots']:.1f}", f"{one['tokens']:.0f}", f"{one['tokens_per_second']:.0f}"]
        lines.append([file, format, str(one["problems"]), accuracy, strict, *texts, *numbers])
    return headings, lines


def notes(results: dict, absent: dict, bad: dict) -> list[str]:
    """What the table does not show: programs that failed, benchmarks that are absent, records that were left out."""
    lines = []
    for name, one in results.items():
        if one.get("programs"):
            counts = ", ".join(f"{status} {count}" for status, count in one["programs"].items())
            lines.append(f"{name}: programs: {counts}")
        if (seen := one.get("contamination")) and seen["problems"]:
            parts = [seen[part] for part in ("clean", "overlapping")]
            scores = [
                "none" if p["accuracy"] is None else f"{100 * p['accuracy']:.1f} %" for p in parts
            ]
            lines.append(
                f"{name}: seen: {seen['problems']} questions share ten words with the training data, "
                f"{seen['whole']} have all of theirs there; accuracy of those {scores[1]}, "
                f"of the other {parts[0]['problems']} {scores[0]}"
            )
        if one.get("note"):
            lines.append(f"{name}: {one['note']}")
    lines += [f"absent: {name} (looked for {', '.join(places)})" for name, places in absent.items()]
    for name, messages in bad.items():
        *shown, last = messages
        if not last.startswith("not evaluated: "):
            shown.append(last)
        else:
            lines.append(f"{name}: {last}")
        if shown:
            lines.append(f"bad records left out of {name}: {len(shown)}")
        lines += [f"    {message}" for message in shown[:5]]
    return lines


def table(results: dict, absent: dict, bad: dict) -> str:
    headings, lines = rows(results)
    widths = [max(len(line[i]) for line in [headings, *lines]) for i in range(len(headings))]
    texts = []
    for line in [headings, *lines]:
        cells = zip(line, widths, [str.ljust] * 2 + [str.rjust] * (len(line) - 2), strict=True)
        texts.append("  ".join(pad(cell, width) for cell, width, pad in cells))
    return "\n".join([*texts, *notes(results, absent, bad)])


def markdown(results: dict, absent: dict, bad: dict) -> str:
    headings, lines = rows(results)
    texts = [f"| {' | '.join(line)} |" for line in [headings, ["---"] * len(headings), *lines]]
    return (
        "\n".join([*texts, "", *(f"- {note.strip()}" for note in notes(results, absent, bad))])
        + "\n"
    )
