"""The data engine on a built-in web and on one ten times as large: seconds of each step, and the memory that it took.

    python bench/mining.py [--pages 2000] [--times 10]

Both runs have shards of 1,000 pages, one process, the same number of examples, and partitions in proportion to the
pages, which is how memory stays what it was. Peak memory is the resident set of the process and includes Python with
its libraries, which is measured by itself. The steps' rates, per core, are what docs/mining.md multiplies out to a
crawl of 40 billion pages.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data.io import run_cli  # noqa: E402

EXAMPLES = 400
IMPORTS = "import data.mine.loop, torch"


def peak(words: list[str]) -> float:
    """MB of the largest resident set of a command. Raises CalledProcessError where it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, env=environment
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(status, words)
    return usage.ru_maxrss / 1024


def one(folder: Path, pages: int, partitions: int) -> dict:
    """Make a web, mine it; the memory, the seconds and sizes."""
    web, to = folder / "web", folder / "run"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "data.world.web",
            "--to",
            web,
            "--pages",
            str(pages),
            "--domains",
            str(max(40, pages // 25)),
            "--seed_pages",
            str(EXAMPLES),
        ],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
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
        name = row["step"].rsplit("_", 1)[0] if row["step"][-1].isdigit() else row["step"]
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=2000)
    parser.add_argument("--times", type=int, default=10)
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    print(f"memory of Python with the imports: {peak(['-c', IMPORTS]):.0f} MB")
    for factor in (1, options.times):
        with tempfile.TemporaryDirectory() as folder:
            found = one(Path(folder), factor * options.pages, 2 * factor)
        print(
            f"\n{found['pages']:,} pages ({found['crawl MB']:.1f} MB of WARC, {found['text MB']:.1f} MB of text), "
            f"{found['partitions']} partitions: {found['MB']:.0f} MB, {sum(found['seconds'].values()):.0f} s, "
            f"{found['run MB']:.0f} MB on disk"
        )
        for name, seconds in found["seconds"].items():
            print(
                f"    {name:<14} {seconds:8.2f} s   {1e6 * seconds / found['pages']:8.0f} us a page"
            )


if __name__ == "__main__":
    run_cli(main)
