"""The paper's benchmarks: where their files are, how they are solved and scored, how many problems
they have.

    python -m data.problems.benchmarks --data DIR      lists the benchmarks in a folder

docs/data.md says where each set is published.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from data.io import CommandParser, InputError, run_cli
from data.problems.problem import Problem
from data.problems.readers import load as load_file


@dataclass(frozen=True)
class Benchmark:
    name: str
    title: str
    lang: str
    kind: str  # of the problems: one of data.problems.problem.KINDS
    files: tuple[str, ...]  # places in a data folder; the first that exists is used
    count: int  # number of problems as published
    formats: tuple[str, ...]  # that the paper reports: cot, pot, tool; code; proof
    shots: int  # exemplars in the paper's few-shot evaluation, or the usual number
    exemplars: str  # the name of a set in data/problems/exemplars.toml
    max_new_tokens: int = 1024
    average: str = "problems"  # or "sections": the score is the mean of the sections' means
    paper: str = ""  # the tables that report it; "" for a set that the paper does not use


def _deepseek(*paths: str) -> tuple[str, ...]:
    """The places of files of the paper's evaluation: with the name of its folder, and without."""
    return *(f"deepseek-math-eval/{path}" for path in paths), *paths


_LIST = (
    Benchmark(
        "gsm8k",
        "GSM8K",
        "en",
        "answer",
        ("gsm8k/test.jsonl", *_deepseek("gsm8k/test.jsonl")),
        1319,
        ("cot", "pot", "tool"),
        8,
        "grade_school_en",
        paper="1, 2, 3, 5, 6, 8",
    ),
    Benchmark(
        "math",
        "MATH",
        "en",
        "answer",
        (
            "MATH/test",
            "math/test",
            "math/test.jsonl",
            "MATH/test.jsonl",
            *_deepseek("math/test.jsonl"),
        ),
        5000,
        ("cot", "pot", "tool"),
        4,
        "competition_en",
        paper="1, 2, 3, 5, 6, 8",
    ),
    Benchmark(
        "sat",
        "SAT May 2023",
        "en",
        "choice",
        _deepseek("sat/test.jsonl"),
        32,
        ("cot",),
        4,
        "sat_en",
        paper="1, 2, 8",
    ),
    Benchmark(
        "ocw",
        "OCW courses",
        "en",
        "answer",
        _deepseek("ocw/test.jsonl"),
        272,
        ("cot",),
        4,
        "ocw_en",
        paper="1, 2, 8",
    ),
    Benchmark(
        "mmlu_stem",
        "MMLU-STEM",
        "en",
        "choice",
        _deepseek("mmlu_stem/test.jsonl"),
        3018,
        ("cot",),
        4,
        "stem_choice_en",
        paper="1, 2, 8",
    ),
    Benchmark(
        "mgsm_zh",
        "MGSM-zh",
        "zh",
        "answer",
        (*_deepseek("mgsm_zh/mgsm_zh.jsonl"), "mgsm/mgsm_zh.tsv"),
        250,
        ("cot", "tool"),
        6,
        "grade_school_zh",
        paper="5",
    ),
    Benchmark(
        "cmath",
        "CMATH",
        "zh",
        "answer",
        _deepseek("cmath/test.jsonl"),
        1098,
        ("cot", "tool"),
        6,
        "grade_school_zh",
        paper="1, 2, 5, 8",
    ),
    Benchmark(
        "gaokao_mathcloze",
        "Gaokao-MathCloze",
        "zh",
        "answer",
        _deepseek("agieval/gaokao-mathcloze.jsonl"),
        118,
        ("cot",),
        5,
        "cloze_zh",
        paper="1, 2, 8",
    ),
    Benchmark(
        "gaokao_mathqa",
        "Gaokao-MathQA",
        "zh",
        "choice",
        _deepseek("agieval/gaokao-mathqa.jsonl"),
        351,
        ("cot",),
        5,
        "choice_zh",
        paper="1, 2, 8",
    ),
    Benchmark(
        "mmlu",
        "MMLU",
        "en",
        "choice",
        ("mmlu/test", "mmlu/data/test"),
        14042,
        ("cot",),
        5,
        "choice_en",
        paper="4, 7",
    ),
    Benchmark(
        "bbh",
        "BIG-Bench Hard",
        "en",
        "text",
        ("bbh/bbh", "bbh"),
        6511,
        ("cot",),
        3,
        "reasoning_en",
        average="sections",
        paper="4, 7",
    ),
    Benchmark(
        "humaneval",
        "HumanEval",
        "en",
        "code",
        ("humaneval/HumanEval.jsonl.gz", "humaneval/HumanEval.jsonl"),
        164,
        ("code",),
        0,
        "",
        paper="4, 7",
    ),
    Benchmark(
        "mbpp",
        "MBPP",
        "en",
        "code",
        ("mbpp/mbpp.jsonl", "mbpp/mbpp_test.jsonl"),
        500,
        ("code",),
        3,
        "programs_en",
        paper="4, 7",
    ),
    Benchmark(
        "minif2f_valid",
        "miniF2F-valid",
        "en",
        "proof",
        _deepseek("minif2f/validation.jsonl"),
        244,
        ("proof",),
        3,
        "minif2f",
        2048,
        paper="3, 9",
    ),
    Benchmark(
        "minif2f_test",
        "miniF2F-test",
        "en",
        "proof",
        _deepseek("minif2f/test.jsonl"),
        244,
        ("proof",),
        3,
        "minif2f",
        2048,
        paper="3, 9",
    ),
    # The paper does not use these two. The first is not the SAT of May 2023.
    Benchmark(
        "agieval_sat",
        "AGIEval SAT-Math",
        "en",
        "choice",
        ("agieval/sat-math.jsonl",),
        220,
        ("cot",),
        4,
        "sat_en",
    ),
    Benchmark(
        "agieval_aqua",
        "AGIEval AQuA-RAT",
        "en",
        "choice",
        ("agieval/aqua-rat.jsonl",),
        254,
        ("cot",),
        4,
        "choice_en",
    ),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _LIST}


def get(name: str) -> Benchmark:
    """The benchmark of this name. Raises InputError."""
    if name not in BENCHMARKS:
        raise InputError(f"benchmark {name!r}: unknown; there are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def find(name: str, folder: str | Path) -> Path | None:
    """The file or folder of a benchmark in a data folder, or None if it is absent."""
    paths = [Path(folder) / place for place in get(name).files]
    return next((path for path in paths if path.exists()), None)


def load(name: str, folder: str | Path, bad: list[str] | None = None) -> list[Problem]:
    """The test problems of a benchmark.

    Raises InputError if the benchmark is absent, and for a bad record with file and line. With a
    list `bad`, bad records are left out and their messages are appended to the list.
    """
    benchmark, path = get(name), find(name, folder)
    if path is None:
        raise InputError(
            f"{folder}: {benchmark.title} is not there; put it at {' or '.join(benchmark.files)} "
            "(docs/data.md says where to get it)"
        )
    problems = load_file(path, bad)
    for problem in problems:
        if problem.kind != benchmark.kind:
            raise InputError(
                f"{path}: problem {problem.id} is of kind {problem.kind}, {benchmark.title} has "
                f"{benchmark.kind}; this is another file"
            )
    if name == "mbpp":  # 1 to 10 are for prompts, 511 to 974 for training
        return [p for p in problems if 11 <= int(p.id.removeprefix("mbpp-")) <= 510]
    return problems


def section(problem: Problem) -> str:
    """The part of a benchmark that a problem belongs to: a subject of MMLU or MATH, a grade of
    CMATH, a task of BBH. In BBH the puzzles of three, five and seven objects are a single task, so
    that it has 23 tasks, as in the paper."""
    parts = problem.source.split("/")
    name = parts[1] if len(parts) > 1 else parts[0]
    return re.sub("_(three|five|seven)_objects", "", name)


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        prog="python -m data.problems.benchmarks",
        description="List the benchmarks in a data folder.",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="data folder")
    folder = parser.parse_args(arguments).data
    if not folder.is_dir():
        raise InputError(
            f"--data {folder}: not a folder; give the folder with the benchmarks' files"
        )
    print(f"{'name':<17} {'published':>9} {'found':>6} {'bad':>4}  place")
    for name, benchmark in BENCHMARKS.items():
        path, bad = find(name, folder), []
        count = len(load(name, folder, bad)) if path else 0
        place = path or f"absent: {benchmark.files[0]}"
        print(f"{name:<17} {benchmark.count:>9} {count:>6} {len(bad):>4}  {place}")
        for message in bad[:5]:
            print(f"    {message}")


if __name__ == "__main__":
    run_cli(main)
