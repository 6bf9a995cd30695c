"""What is evaluated: each benchmark or problem file in each format is a task.

`make_tasks` reads the options of eval.py and of evaluation/audit.py that choose problems and
prompts.
"""

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from data.io import InputError
from data.problems import benchmarks, readers
from data.problems.problem import Problem
from data.sandbox.sandbox import Sandbox
from evaluation.few_shot import FewShot
from evaluation.solve import zero_shot


@dataclass
class Task:
    """A benchmark or a file, solved in one format."""

    name: str  # NAME.FORMAT
    problems: list[Problem]
    format: str
    few_shot: FewShot
    max_new_tokens: int
    benchmark: benchmarks.Benchmark | None = None
    our_exemplars: bool = True  # False: those of --prompts

    @property
    def source(self) -> str:
        """The name of the benchmark or the file."""
        return self.name.rpartition(".")[0]

    @property
    def needs_sandbox(self) -> bool:
        return self.format in ("pot", "tool", "code")


@dataclass
class Tasks:
    """The tasks, and what could not be evaluated."""

    tasks: list[Task]
    absent: dict[str, list[str]]  # benchmark -> the places where its file should be
    bad: dict[str, list[str]]  # benchmark -> messages about records that cannot be read


def check_options(config) -> None:
    """Raises InputError for options that do not fit together."""
    if not config.model or not (config.problems or config.data):
        raise InputError("--model DIR and --problems FILE or --data FOLDER are needed")
    if config.data and not Path(config.data).is_dir():
        raise InputError(
            f"--data {config.data}: not a folder; give the folder that has the benchmarks' files"
        )
    if not config.data and (config.benchmarks or config.prompts or config.shots > 0):
        raise InputError(
            "--benchmarks, --prompts and --shots need --data FOLDER with the benchmarks' files"
        )


def make_tasks(config) -> Tasks:
    """The tasks of a configuration. Raises InputError if there are none or two of the same name."""
    tasks, absent, bad = [], {}, {}

    # benchmarks
    names = config.benchmarks if config.data else []
    if config.data and names in ([], ["all"]):
        known = benchmarks.BENCHMARKS.values()
        names = [benchmark.name for benchmark in known if benchmark.paper or names]
    for name in dict.fromkeys(names):
        benchmark, messages = benchmarks.get(name), []
        if benchmarks.find(name, config.data) is None:
            absent[name] = [str(Path(config.data) / place) for place in benchmark.files]
            continue
        try:
            problems = benchmarks.load(name, config.data, messages)
        except InputError as error:
            bad[name] = [*messages, f"not evaluated: {error}"]
            continue
        if messages:
            bad[name] = messages
        formats = config.formats or benchmark.formats
        if benchmark.kind in ("code", "proof"):
            formats = benchmark.formats
        for format in formats:
            task = Task(
                name=f"{name}.{format}",
                problems=problems[: config.limit or None],
                format=format,
                few_shot=FewShot.ours(None, format, 0, config.template),
                max_new_tokens=config.max_new_tokens or benchmark.max_new_tokens,
                benchmark=benchmark,
            )
            task.few_shot, task.our_exemplars = choose_prompts(config, benchmark, format)
            tasks.append(task)

    # problem files
    for path in config.problems:
        problems = readers.load(path)[: config.limit or None]
        for format in config.formats or ["cot"]:
            tasks.append(
                Task(
                    name=f"{Path(path).stem}.{format}",
                    problems=problems,
                    format=format,
                    few_shot=zero_shot(format, config.template),
                    max_new_tokens=config.max_new_tokens or 512,
                )
            )

    # what makes no sense
    for name, count in Counter(task.name for task in tasks).items():
        if count > 1:
            raise InputError(f"{name}: there are two of this name in the results; rename a file")
    if not tasks:
        reasons = [f"{name}: {messages[-1]}" for name, messages in bad.items()]
        reasons += [f"{name}: looked for {places[0]}" for name, places in absent.items()]
        raise InputError(
            f"--data {config.data}: there is no benchmark to evaluate; {'; '.join(reasons)}"
        )
    if config.prompts and all(task.our_exemplars for task in tasks):
        FewShot.load(config.prompts, benchmarks.get("gsm8k"), "cot")  # may say what is wrong
        raise InputError(f"--prompts {config.prompts}: has no prompt for any of the benchmarks")
    return Tasks(tasks, absent, bad)


def choose_prompts(config, benchmark: benchmarks.Benchmark, format: str) -> tuple[FewShot, bool]:
    """(prompts of a benchmark, True if their exemplars are ours).

    Ours stand in for a benchmark and format that --prompts does not have, unless the command names
    both.
    """
    shots = None if config.shots < 0 else config.shots
    if not config.prompts:
        return FewShot.ours(benchmark, format, shots, config.template), True
    try:
        few_shot = FewShot.load(config.prompts, benchmark, format)
    except InputError:
        benchmark_named = config.benchmarks not in ([], ["all"])
        if benchmark_named and (config.formats or len(benchmark.formats) == 1):
            raise
        return FewShot.ours(benchmark, format, shots, config.template), True
    if shots is None or shots == few_shot.shots:
        return few_shot, False
    if few_shot.one_text or shots > few_shot.shots:
        held = f"{config.prompts} has {few_shot.shots} for {benchmark.name}"
        raise InputError(f"--shots {shots}: {held}; leave --shots out")
    exemplars = {group: texts[:shots] for group, texts in few_shot.exemplars.items()}
    return replace(few_shot, exemplars=exemplars), False


def start_sandbox(mode: str) -> Sandbox:
    """A sandbox with a worker for each core, at most 8. Raises InputError if it cannot start."""
    try:
        return Sandbox(min(8, os.cpu_count() or 1), mode=mode)
    except RuntimeError as error:
        raise InputError(f"{error}; --formats cot needs none") from None
