"""Two programs measured in turn: each a child process of its own, in its own environment, that works when told to.

A side is a command. Its process calls `serve(work)`: it says that it is ready and what it has imported, then for every
line on its standard input does one unit of work and answers with a line of JSON; at the end of the input it answers
with its peak memory. The one who measures (`alternate`) lets one side work while the others wait, so that a slow minute
of the machine hits all alike. Beside the clock's seconds stand those of the processor, which others on the machine
disturb less.

A comparison (grpo_step.py, sampling.py, pretrain.py) is one file that is run by both Pythons: its `main` starts the
sides (`sides`), after it has seen that both models give the same log-probs (`check_same`).
"""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from data.io import InputError

RESULTS = Path(__file__).with_name("results.jsonl")
PACKAGES = ("torch", "numpy", "transformers", "trl", "accelerate", "datasets")
DTYPES = ("float32", "bfloat16")

# ---------------------------------------------------------------------------------------------------------------------
# The child's side


def serve(work: Callable[[int], dict], warmup: int = 2) -> None:
    """work(number of the round) -> what it measured; "seconds" (if absent) and "cpu" are added."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    before = peak_bytes()
    for number in range(warmup):
        work(number)

    def say(row: dict) -> None:
        print(json.dumps(row), file=answers, flush=True)

    say({"versions": versions()})
    for number, _ in enumerate(sys.stdin):
        began, cpu = time.perf_counter(), time.process_time()
        row = work(warmup + number)
        say({"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, **row})
    peak = peak_bytes()
    say({"peak_mb": peak / 1e6, "peak_above_imports_mb": (peak - before) / 1e6})


def peak_bytes() -> int:
    """The most memory that this process had resident, since its start or since `reset_peak`.

    Linux's VmHWM: `ru_maxrss` also counts what the process that started this one held.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return (1 if sys.platform == "darwin" else 1024) * resource.getrusage(
        resource.RUSAGE_SELF
    ).ru_maxrss


def reset_peak() -> None:
    """Count the peak from now on, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def versions() -> dict[str, str]:
    """Of Python and of those packages that this process has imported."""
    found = {name: version(name) for name in PACKAGES if name in sys.modules}
    return {"python": platform.python_version(), **found}


def trainer_steps(make: Callable) -> Callable[[], None]:
    """make(callback) -> a transformers Trainer. Returns a function that lets the Trainer, which runs in a thread of its
    own, make one step, and waits for its end."""
    import threading

    from transformers import TrainerCallback

    asked, done = threading.Semaphore(0), threading.Semaphore(0)

    class Turns(TrainerCallback):
        """A step is made when it is asked for."""

        def on_step_begin(self, *_, **__):
            asked.acquire()

        def on_step_end(self, *_, **__):
            done.release()

    thread = threading.Thread(target=make(Turns()).train, daemon=True)
    thread.start()

    def step() -> None:
        asked.release()
        while not done.acquire(timeout=1):
            if not thread.is_alive():
                sys.exit(1)

    return step


def print_logprobs(side: str, folder: str, prompts: list[list[int]]) -> None:
    """Print the log-prob of each prompt, the sum over its tokens, by the side's model in float32."""
    import torch

    if side == "ours":
        from runtime.hf import from_pretrained

        model = from_pretrained(folder)
        logits = [model.logits(model(torch.tensor(ids))) for ids in prompts]
    else:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        logits = [model(torch.tensor([ids])).logits[0] for ids in prompts]
    sums = [
        row[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None]).sum().item()
        for row, ids in zip(logits, prompts, strict=True)
    ]
    print(json.dumps(sums))


# ---------------------------------------------------------------------------------------------------------------------
# A comparison's options and commands


def arguments(description: str, rounds: int) -> argparse.ArgumentParser:
    """The options that every comparison has. --side and --check are for its own children."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument(
        "--peer", help="the Python of the peer's environment; without one ours runs alone"
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the arithmetic")
    parser.add_argument("--peer_dtype", choices=DTYPES, help="of the peer's, where it is another")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--check", nargs=2, help=argparse.SUPPRESS)
    return parser


def own_options(Config, given: str, known: tuple[str, ...], defaults: dict):
    """A trainer's Config with the comparison's defaults, changed by --ours KEY=VALUE,... Raises InputError for an
    option that is not among the `known`: it would be recorded without being used."""
    from runtime.options import parse

    pairs = [pair for pair in given.split(",") if pair]
    for pair in pairs:
        if pair.partition("=")[0] not in known:
            raise InputError(
                f"--ours {pair}: not an option of this comparison; use KEY=VALUE of {', '.join(known)}"
            )
    return parse(
        Config,
        [f"--{name}={value}" for name, value in defaults.items()] + [f"--{pair}" for pair in pairs],
    )


def commands(script: str, given: argparse.Namespace, peer: str) -> dict[str, list[str]]:
    """{side: Python and script}: ours, and where --peer is given the one named `peer`."""
    pythons = {"ours": sys.executable} | ({peer: given.peer} if given.peer else {})
    return {name: [python, script] for name, python in pythons.items()}


def sides(
    found: dict[str, list[str]], given: argparse.Namespace, folder: str, *options: str
) -> dict[str, list[str]]:
    """The commands of the sides, which work with the model in `folder`. Options that only ours has are left to it."""
    own = ["--ours", given.ours] if getattr(given, "ours", "") else []
    return {
        name: [*command, "--side", name, folder, "--threads", str(given.threads), *options]
        + (
            ["--dtype", given.dtype, *own]
            if name == "ours"
            else ["--dtype", given.peer_dtype or given.dtype]
        )
        for name, command in found.items()
    }


def check_same(found: dict[str, list[str]], folder: str, tolerance: float) -> None:
    """Raises InputError where the sides' models give log-probs that are further apart than `tolerance` (nats)."""
    sums = {}
    for name, command in found.items():
        told = subprocess.run([*command, "--check", name, folder], capture_output=True, text=True)
        if told.returncode:
            raise InputError(f"{' '.join(command)}: {told.stderr.strip() or 'it failed'}")
        sums[name] = json.loads(told.stdout)
    first, last = list(sums.values())[0], list(sums.values())[-1]
    if not all(
        math.isclose(a, b, rel_tol=0, abs_tol=tolerance) for a, b in zip(first, last, strict=True)
    ):
        raise InputError(f"the two models do not give the same log-probs: {sums}")


def settings(given: argparse.Namespace) -> dict:
    """The options of a comparison as they are recorded."""
    chosen = {
        name: value for name, value in vars(given).items() if name not in ("peer", "side", "check")
    }
    return chosen | {"peer_dtype": given.peer_dtype or given.dtype}


# ---------------------------------------------------------------------------------------------------------------------
# The one who measures


def alternate(
    sides: dict[str, list[str]], rounds: int, environment: dict | None = None
) -> dict[str, dict]:
    """Run the sides in turn, another one beginning each round.

    Returns {side: {"versions": {...}, "rows": [...], "peak_mb": ...}}.
    """
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    children, found = {}, {}
    try:
        for name, command in sides.items():
            children[name] = subprocess.Popen(
                command, env={**os.environ, **(environment or {})}, **pipes
            )
            found[name] = _answer(
                name, children[name]
            )  # one after the other: each starts on an idle machine
        rows = {name: [] for name in sides}
        names = list(sides)
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                children[name].stdin.write("go\n")
                rows[name].append(_answer(name, children[name]))
        for name, child in children.items():
            child.stdin.close()
            found[name] |= {"rows": rows[name], **_answer(name, child)}
            child.wait()
        return found
    finally:
        for child in children.values():
            child.kill()
            child.wait()


def _answer(name: str, child: subprocess.Popen) -> dict:
    line = child.stdout.readline()
    if not line:
        raise SystemExit(
            f"error: {name} ended with exit code {child.wait()}; its messages stand above"
        )
    return json.loads(line)


def median(rows: list[dict], key: str = "seconds") -> tuple[float, float, float]:
    """(median, least, most) of a column."""
    values = [row[key] for row in rows]
    return statistics.median(values), min(values), max(values)


def record(name: str, settings: dict, found: dict) -> None:
    """Append a comparison to bench/results.jsonl: what was measured, the machine, versions and our commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent
    )
    row = {
        "bench": name,
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "commit": commit.stdout.strip(),
        **machine(),
        "settings": settings,
        "found": found,
    }
    with open(RESULTS, "a") as file:
        file.write(json.dumps(row) + "\n")


def machine() -> dict:
    """The processor's name, cores, memory, and the versions of Python and torch."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "python": platform.python_version(),
        "torch": version("torch"),
    }
