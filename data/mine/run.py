"""How the steps of a run are executed: in this process, in several, or on a Dask cluster."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from data.io import InputError
from data.mine.store import run_task, shard_name, shard_numbers


@contextmanager
def executor(where: str, workers: int) -> Iterator[Callable]:
    """A `map` that runs tasks where --executor says: "processes" or "dask://HOST:PORT".

    Raises InputError.
    """
    if where.startswith("dask://"):
        try:
            from distributed import Client
        except ImportError:
            raise InputError(
                f"--executor {where} needs Dask: pip install 'dask[distributed]'"
            ) from None
        try:
            client = Client(f"tcp://{where.removeprefix('dask://')}", timeout=5)
        except (OSError, ValueError) as error:
            raise InputError(f"--executor {where}: no scheduler answers there ({error})") from None
        with client, client.get_executor(pure=False) as pool:
            yield pool.map
    elif where != "processes":
        raise InputError(f"--executor {where}: unknown; give processes or dask://HOST:PORT")
    elif workers == 1:
        yield map
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield pool.map


class Run:
    """A run directory, and the `map` that executes the steps."""

    def __init__(self, config, map: Callable):
        self.config = config
        self.map = map
        self.to = Path(config.to)
        self.pages = 0  # pages left after deduplication

    def step(self, name: str, function: Callable, tasks: Iterable[tuple]) -> list[dict]:
        """Run function(*task) for every task; return the counts in the order of the tasks.

        A task that has a marker, TO/done/NAME-I.json, is not run again.
        """
        jobs = []
        for i, arguments in enumerate(tasks):
            jobs.append((self.marker(f"{name}-{i:05d}"), function, *arguments))
        start = time.perf_counter()
        counts = list(self.map(run_task, jobs))
        self.log_time(name, start)
        return counts

    def marker(self, name: str) -> Path:
        return self.to / "done" / f"{name}.json"

    def log_time(self, name: str, start: float) -> None:
        """Add the duration of a step to TO/timing.jsonl.

        Durations are not in the report, because a repeated run must write the same report.
        """
        row = {"step": name, "seconds": round(time.perf_counter() - start, 3)}
        with open(self.to / "timing.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def round_folder(self, number: int) -> Path:
        return self.to / f"round_{number}"

    def files(self, folder: str, suffix: str = ".jsonl") -> list[Path]:
        """The files in a folder of the run, one for each shard of TO/clean."""
        names = [Path(shard_name(number)) for number in shard_numbers(self.to / "clean")]
        return [self.to / folder / name.with_suffix(suffix) for name in names]

    def over_shards(self, name: str, function: Callable, *columns) -> list[dict]:
        """Run a step over the shards of TO/clean: function(shard, *values) for each shard.

        A column is a list with a value for each shard, or a single value for all shards.
        """
        shards = self.files("clean")
        lists = [
            column if isinstance(column, list) else [column] * len(shards) for column in columns
        ]
        return self.step(name, function, zip(shards, *lists, strict=True))


def total(counts: Iterable[dict]) -> dict:
    """Sum the counts that are integers.

    >>> total([{"pages": 2, "sha256": "a"}, {"pages": 3, "sha256": "b"}])
    {'pages': 5}
    """
    sums: Counter = Counter()
    for row in counts:
        sums.update({name: value for name, value in row.items() if isinstance(value, int)})
    return dict(sums)
