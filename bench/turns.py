"""Measures programs in turn: each is a process in its own environment that works when it is told.

A side is a command. Its process calls `serve(work)`: it reports that it is ready and what it has
imported. For every line on its standard input it does one unit of work and answers with a line of
JSON. At the end of the input it reports its peak memory. `alternate` lets one side work while the
others wait, so that a slow minute of the machine hits all alike. Beside the clock's seconds stand
those of the processor, which other programs on the machine disturb less.

A comparison (grpo_step.py, sampling.py, pretrain.py) is one file that all sides run: its `main`
starts the sides (`side_commands`) after it has checked that their models give the same log-probs
(`check_same`). The sides are ours, a peer (--peer), and an earlier revision of ours (--before).
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

from data.io import CommandParser, InputError, at_least

RESULTS = Path(__file__).with_name("results.jsonl")
PACKAGES = ("torch", "numpy", "transformers", "trl", "accelerate", "datasets")
DTYPES = ("float32", "bfloat16")

# --------------------------------------------------------------------------------------------------
# A side's process


def serve(work: Callable[[int], dict], warmup: int = 2) -> None:
    """Do `work(number of the round)` when told. It returns what it measured.

    "seconds" (if it is missing) and "cpu" are added.
    """
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
        times = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        say(times | row)
    peak = peak_bytes()
    say({"peak_mb": peak / 1e6, "peak_above_imports_mb": (peak - before) / 1e6})


def peak_bytes() -> int:
    """Peak resident memory of this process since its start or since `reset_peak`.

    Linux's VmHWM: `ru_maxrss` also counts what the parent process held.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak() -> None:
    """Count the peak from now on, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def versions() -> dict[str, str]:
    """Versions of Python and of those packages that this process has imported."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        if name in sys.modules:
            found[name] = version(name)
    return found


def trainer_steps(make: Callable) -> Callable[[], None]:
    """A function that makes one step of a transformers Trainer and waits for its end.

    make(callback) -> the Trainer, which runs in a thread of its own.
    """
    import threading

    from transformers import TrainerCallback

    begin, done = threading.Semaphore(0), threading.Semaphore(0)

    class Turns(TrainerCallback):
        """A step begins when `begin` is released."""

        def on_step_begin(self, *_, **__):
            begin.acquire()

        def on_step_end(self, *_, **__):
            done.release()

    thread = threading.Thread(target=make(Turns()).train, daemon=True)
    thread.start()

    def step() -> None:
        begin.release()
        while not done.acquire(timeout=1):
            if not thread.is_alive():
                sys.exit(1)

    return step


def print_logprobs(side: str, folder: str, prompts: list[list[int]]) -> None:
    """Print the log-prob of each prompt (sum over its tokens) by the side's model in float32."""
    import torch

    if side == "ours":
        from runtime.hf import from_pretrained

        model = from_pretrained(folder)
        logits = [model.logits(model(torch.tensor(ids))) for ids in prompts]
    else:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        logits = [model(torch.tensor([ids])).logits[0] for ids in prompts]
    sums = []
    for row, ids in zip(logits, prompts, strict=True):
        logp = row[:-1].log_softmax(-1)
        sums.append(logp.gather(1, torch.tensor(ids[1:])[:, None]).sum().item())
    print(json.dumps(sums))


# --------------------------------------------------------------------------------------------------
# A comparison's options and commands


def arguments(description: str, rounds: int) -> argparse.ArgumentParser:
    """The options of every comparison. --side and --check are for the processes that it starts."""
    parser = CommandParser(description=description.splitlines()[0])
    parser.add_argument("--peer", help="Python of the peer's environment; without it ours alone")
    parser.add_argument("--before", help="checkout of an earlier revision of ours: one more side")
    parser.add_argument("--rounds", type=at_least(1), default=rounds)
    parser.add_argument("--threads", type=at_least(1), default=2)
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the arithmetic")
    parser.add_argument("--peer_dtype", choices=DTYPES, help="of the peer's, where it differs")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--check", nargs=2, help=argparse.SUPPRESS)
    return parser


def own_options(Config, text: str, known: tuple[str, ...], defaults: dict):
    """A trainer's Config with the comparison's defaults, changed by --ours KEY=VALUE,...

    Raises InputError for an option that is not `known`: it would be recorded without being used.
    """
    from runtime.options import parse

    values = {name: str(value) for name, value in defaults.items()}
    for pair in text.split(","):
        if not pair:
            continue
        name, _, value = pair.partition("=")
        if name not in known:
            raise InputError(
                f"--ours {pair}: not an option of this comparison; use KEY=VALUE of "
                f"{', '.join(known)}"
            )
        values[name] = value
    return parse(Config, [f"--{name}={value}" for name, value in values.items()], partial=True)


def commands(script: str, options: argparse.Namespace, peer: str) -> dict[str, list[str]]:
    """Side -> Python and script: "ours", with --before "before", with --peer the name `peer`."""
    found = {"ours": [sys.executable, script]}
    if options.before:
        earlier = Path(options.before) / "bench" / Path(script).name
        found["before"] = [sys.executable, str(earlier)]
    if options.peer:
        found[peer] = [options.peer, script]
    return found


def role(side: str) -> str:
    """The name by which a side's script knows itself: an earlier revision is "ours" too."""
    return "ours" if side == "before" else side


def side_commands(
    found: dict[str, list[str]], options: argparse.Namespace, folder: str, *more: str
) -> dict[str, list[str]]:
    """The commands of the sides, which use the model in `folder`. --ours is for our sides alone."""
    sides = {}
    for name, command in found.items():
        words = ["--side", role(name), folder, "--threads", str(options.threads), *more]
        if role(name) == "ours":
            words += ["--dtype", options.dtype]
            if getattr(options, "ours", ""):
                words += ["--ours", options.ours]
        else:
            words += ["--dtype", options.peer_dtype or options.dtype]
        sides[name] = [*command, *words]
    return sides


def check_same(found: dict[str, list[str]], folder: str, tolerance: float) -> None:
    """Raises InputError if the sides' log-probs differ by more than `tolerance` (nats)."""
    sums = {}
    for name, command in found.items():
        words = [*command, "--check", role(name), folder]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"{' '.join(command)}: {done.stderr.strip() or 'it failed'}")
        sums[name] = json.loads(done.stdout)
    for values in sums.values():
        for a, b in zip(sums["ours"], values, strict=True):
            if not math.isclose(a, b, rel_tol=0, abs_tol=tolerance):
                raise InputError(f"the models do not give the same log-probs: {sums}")


def settings(options: argparse.Namespace) -> dict:
    """The options of a comparison, as they are recorded."""
    hidden = ("peer", "before", "side", "check")
    chosen = {name: value for name, value in vars(options).items() if name not in hidden}
    return chosen | {"peer_dtype": options.peer_dtype or options.dtype}


# --------------------------------------------------------------------------------------------------
# Measuring


def alternate(
    sides: dict[str, list[str]], rounds: int, environment: dict | None = None
) -> dict[str, dict]:
    """Run the sides in turn; each round begins with another one.

    Returns {side: {"versions": {...}, "rows": [...], "peak_mb": ...}}.
    """
    names, children, found = list(sides), {}, {}
    environment = os.environ | (environment or {})
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    try:
        # start one after the other: each on an idle machine
        for name, command in sides.items():
            children[name] = subprocess.Popen(command, env=environment, **pipes)
            found[name] = _answer(name, children[name]) | {"rows": []}

        # rounds
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                children[name].stdin.write("go\n")
                found[name]["rows"].append(_answer(name, children[name]))

        # peaks
        for name, child in children.items():
            child.stdin.close()
            found[name] |= _answer(name, child)
            child.wait()
        return found
    finally:
        for child in children.values():
            child.kill()
            child.wait()


def _answer(name: str, child: subprocess.Popen) -> dict:
    line = child.stdout.readline()
    if not line:
        code = child.wait()
        raise SystemExit(f"error: {name} ended with exit code {code}; its messages stand above")
    return json.loads(line)


def median(rows: list[dict], key: str = "seconds") -> tuple[float, float, float]:
    """(median, least, most) of a column."""
    values = [row[key] for row in rows]
    return statistics.median(values), min(values), max(values)


def print_ratios(found: dict[str, dict]) -> None:
    """How many times as fast ours is as each other side."""
    ours = median(found["ours"]["rows"])[0]
    for name, side in found.items():
        if name != "ours":
            print(f"{name} / ours: {median(side['rows'])[0] / ours:.2f}", flush=True)


def record(name: str, options: dict, found: dict) -> None:
    """Append a comparison to bench/results.jsonl, with the machine, versions and our commit."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, cwd=RESULTS.parent)
    row = {
        "bench": name,
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "commit": commit.stdout.strip(),
        **machine(),
        "settings": options,
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
