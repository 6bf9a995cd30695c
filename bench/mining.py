"""The data engine on a built-in web and on one ten times as large: seconds and memory of each step.

    python bench/mining.py [--pages 2000] [--times 10]

Both runs have shards of 1,000 pages, one process, the same number of examples, and partitions in
proportion to the pages, which keeps the memory constant. Peak memory is the resident set of the
process with Python and its libraries, which are also measured alone. docs/mining.md multiplies the
rates of the steps, per core, to a crawl of 40 billion pages.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data.io import CommandParser, at_least, run_cli  # noqa: E402

EXAMPLES = 400
IMPORTS = "import data.mine.loop, torch"


def peak(words: list[str]) -> float:
    """MB of the largest resident set of a command. Raises CalledProcessError if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(status, words)
    return usage.ru_maxrss / 1024


def mine(folder: Path, pages: int, partitions: int) -> dict:
    """Make a web and mine it. Returns memory, seconds and sizes."""
    web, to = folder / "web", folder / "run"
    words = ["-m", "data.world.web", "--to", web, "--pages", pages]
    words += ["--domains", max(40, pages // 25), "--seed_pages", EXAMPLES]
    command = [sys.executable, *map(str, words)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    options = dict(
        crawl=web / "crawl",
        positives=web / "seed" / "positives.jsonl",
        benchmarks=web / "benchmark",
        to=to,
        annotate="auto",
        keep_tokens=60 * pages,
        rounds=2,
        stop=1,
        examples=EXAMPLES,
        rate=0.5,
        width=64,
        partitions=partitions,
        workers=1,
    )
    memory = peak(["-m", "data.mine", *(f"--{name}={value}" for name, value in options.items())])
    steps: dict[str, float] = {}
    for line in (to / "timing.jsonl").read_text().splitlines():
        row = json.loads(line)
        name = row["step"]
        if name[-1].isdigit():  # a step of a round
            name = name.rsplit("_", 1)[0]
        steps[name] = steps.get(name, 0.0) + row["seconds"]
    report = json.loads((to / "report.json").read_text())
    text = sum(path.stat().st_size for path in (to / "pages").glob("*.jsonl"))
    everything = sum(path.stat().st_size for path in to.rglob("*") if path.is_file())
    crawl = sum(path.stat().st_size for path in (web / "crawl").iterdir())
    return {
        "pages": pages,
        "partitions": partitions,
        "MB": memory,
        "seconds": steps,
        "text MB": text / 1e6,
        "crawl MB": crawl / 1e6,
        "run MB": everything / 1e6,
        "clean": report["clean"]["out"],
    }


def main() -> None:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=at_least(1), default=2000)
    parser.add_argument("--times", type=at_least(1), default=10)
    options = parser.parse_args()
    name = platform.processor() or platform.machine()
    print(f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"memory of Python with the imports: {peak(['-c', IMPORTS]):.0f} MB")
    for factor in (1, options.times):
        with tempfile.TemporaryDirectory() as folder:
            found = mine(Path(folder), factor * options.pages, 2 * factor)
        pages, seconds = found["pages"], found["seconds"]
        print(
            f"\n{pages:,} pages ({found['crawl MB']:.1f} MB of WARC, {found['text MB']:.1f} MB of "
            f"text), {found['partitions']} partitions: {found['MB']:.0f} MB, "
            f"{sum(seconds.values()):.0f} s, {found['run MB']:.0f} MB on disk"
        )
        for name, value in seconds.items():
            print(f"    {name:<14} {value:8.2f} s   {1e6 * value / pages:8.0f} us a page")


if __name__ == "__main__":
    run_cli(main)
