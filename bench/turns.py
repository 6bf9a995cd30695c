"""Two programs measured in turn: each a child process of its own, in its own environment, that works when told to.

A side is a command. Its process calls `serve(work)`: it says that it is ready, then for every line on its standard
input does one unit of work and answers with a line of JSON; at the end of the input it answers with its peak memory.
The one who measures (`alternate`) lets one side work while the others wait, so that a slow minute of the machine hits
all alike. Beside the clock's seconds stand those of the processor, which others on the machine disturb less.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).with_name("results.jsonl")


def serve(work: Callable[[int], dict], warmup: int = 2) -> None:
    """The child's side: work(number of the round) -> what it measured; "seconds" (if absent) and "cpu" are added."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(warmup):
        work(number)

    def say(row: dict) -> None:
        print(json.dumps(row), file=answers, flush=True)

    say({"ready": True})
    for number, _ in enumerate(sys.stdin):
        began, cpu = time.perf_counter(), time.process_time()
        row = work(warmup + number)
        say({"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, **row})
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    say({"peak_mb": unit * peak / 1e6, "peak_above_imports_mb": unit * (peak - before) / 1e6})


def alternate(sides: dict[str, list[str]], rounds: int, environment: dict | None = None) -> dict[str, dict]:
    """Run the sides in turn, another one beginning each round. Returns {side: {"rows": [...], "peak_mb": ...}}."""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    children = {}
    try:
        for name, command in sides.items():
            children[name] = subprocess.Popen(command, env={**os.environ, **(environment or {})}, **pipes)
            _answer(name, children[name])  # one after the other: each starts on an idle machine
        rows = {name: [] for name in sides}
        names = list(sides)
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                children[name].stdin.write("go\n")
                rows[name].append(_answer(name, children[name]))
        found = {}
        for name, child in children.items():
            child.stdin.close()
            found[name] = {"rows": rows[name], **_answer(name, child)}
            child.wait()
        return found
    finally:
        for child in children.values():
            child.kill()
            child.wait()


def _answer(name: str, child: subprocess.Popen) -> dict:
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"error: {name} ended with exit code {child.wait()}; its messages stand above")
    return json.loads(line)


def median(rows: list[dict], key: str = "seconds") -> tuple[float, float, float]:
    """(median, least, most) of a column."""
    values = [row[key] for row in rows]
    return statistics.median(values), min(values), max(values)


def record(name: str, settings: dict, found: dict) -> None:
    """Append a comparison to bench/results.jsonl: what was measured, the machine, versions and our commit."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent)
    row = {"bench": name, "when": time.strftime("%Y-%m-%d %H:%M"), "commit": commit.stdout.strip(), **machine(),
           "settings": settings, "found": found}  # fmt: skip
    with open(RESULTS, "a") as file:
        file.write(json.dumps(row) + "\n")


def machine() -> dict:
    """The processor's name, cores, memory and Python's version."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": name, "cores": os.cpu_count(), "memory_gib": round(memory, 1), "python": platform.python_version()}
