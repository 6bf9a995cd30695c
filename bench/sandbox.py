"""What a sandboxed program costs, by kind of program, number of workers and protections.

    python bench/sandbox.py [--programs 200] [--repeats 5] [--workers 1,2]

Programs differ (numbers are drawn), so no cache knows them. In every repeat the kinds and settings
run in turn. programs/s: by the clock, the median over repeats, and the best. CPU ms: user and
system time of the server and its programs for one program, which other load changes less; 1000 /
CPU ms is what one free core can do.
"""

import os
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.io import CommandParser, at_least, run_cli
from data.sandbox.sandbox import Sandbox

KINDS = {
    "print(1)": "print({a})",
    "arithmetic": "total = 0\nfor i in range({a}, {a} + 1000):\n"
    "    total += i * i % {b}\nprint(total)",
    "Rational": "from sympy import Rational\nprint(Rational({a}, {b}) + Rational(1, 3))",
    "quadratic": "from sympy import *\nx = symbols('x')\nprint(solve(x**2 - {s} * x + {p}, x))",
    "linear system": "from sympy import *\nx, y = symbols('x y')\n"
    "print(solve([x + y - {s}, {a} * x - y], [x, y]))",
    "imports": "import re, heapq, hashlib, datetime, typing\n"
    "print(hashlib.md5(b'{a}').hexdigest())",
}
SETTINGS = {
    "all": (),
    "no hook": ("hook",),
    "no seccomp": ("seccomp",),
    "limits and hook only": ("namespaces", "privileges", "landlock", "seccomp"),
}


def programs(kind: str, count: int, start: int) -> list[str]:
    """`count` different programs of a kind. Another start gives other programs."""
    found = []
    for i in range(start, start + count):
        a, b = i + 2, 3 * i + 7
        found.append(KINDS[kind].format(a=a, b=b, s=a + b, p=a * b))
    return found


def server_seconds(sandbox: Sandbox) -> float:
    """User and system time of the servers and their ended programs (Linux)."""
    total = 0
    for server in sandbox._servers:
        guard = server.process.pid
        for child in Path(f"/proc/{guard}/task/{guard}/children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=at_least(1), default=200)
    parser.add_argument("--repeats", type=at_least(1), default=5)
    parser.add_argument("--workers", default="1,2")
    options = parser.parse_args()
    load = os.getloadavg()
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, {load}"
    )
    rows = []  # (workers, kind, setting)
    counts = list(map(int, options.workers.split(",")))
    for workers in counts:
        rows += [(workers, kind, "all") for kind in KINDS]
    for setting in list(SETTINGS)[1:]:
        rows += [(counts[-1], kind, setting) for kind in ("print(1)", "quadratic")]

    sandboxes: dict[tuple[int, str], Sandbox] = {}
    found: dict[tuple, list] = {row: [] for row in rows}
    try:
        # start
        for workers, _, setting in rows:
            if (workers, setting) not in sandboxes:
                start = time.perf_counter()
                sandbox = Sandbox(workers, _without=SETTINGS[setting])
                sandboxes[workers, setting] = sandbox
                seconds, active = time.perf_counter() - start, ", ".join(sandbox.isolation)
                print(f"{workers} workers, {setting}: started in {seconds:.2f} s: {active}")

        # measure
        for repeat in range(options.repeats):
            for row in rows:
                workers, kind, setting = row
                sandbox = sandboxes[workers, setting]
                texts = programs(kind, options.programs, 1000 * repeat)
                before, start = server_seconds(sandbox), time.perf_counter()
                results = sandbox.run_many(texts)
                seconds = time.perf_counter() - start
                failed = [result for result in results if result.status != "ok"]
                assert not failed, failed[0]
                found[row].append((seconds, server_seconds(sandbox) - before))
    finally:
        for sandbox in sandboxes.values():
            sandbox.close()

    # report
    print(f"\n{'workers':>7}  {'program':<14} {'protections':<20}", end="")
    print(f" {'programs/s':>10} {'best':>6} {'CPU ms':>7}")
    for (workers, kind, setting), times in found.items():
        rates = [options.programs / seconds for seconds, _ in times]
        cost = statistics.median(cpu for _, cpu in times) * 1000 / options.programs
        rate = f"{statistics.median(rates):>10.0f} {max(rates):>6.0f}"
        print(f"{workers:>7}  {kind:<14} {setting:<20} {rate} {cost:>7.1f}")
    print(f"\nload at the end {os.getloadavg()}")


if __name__ == "__main__":
    run_cli(main)
