"""Few-shot prompts: how the problems of a benchmark are put to a model.

`FewShot` writes exemplars first, then the problem in the same form. The exemplars come from

- data/problems/exemplars.toml, which was written for this project (`FewShot.ours`)
- a file in the layout of the paper's evaluation, the cot-prompts of BIG-Bench Hard, or the dev
  folder of MMLU (`FewShot.load`)
"""

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data.io import InputError
from data.problems import readers
from data.problems.benchmarks import Benchmark
from data.problems.problem import LETTERS, Problem, statement
from data.prompts import problem_prompt, program, response_text, stop_strings
from data.sandbox.unit_tests import COMPLETION_STOPS

EXEMPLARS = Path(__file__).parents[1] / "data" / "problems" / "exemplars.toml"


@dataclass(frozen=True)
class FewShot:
    """How problems are put to a model: exemplars, then the problem in the same form."""

    question: Callable[[Problem], str]  # the part of a prompt that shows the problem
    stop: tuple[str, ...]  # strings that end a completion
    # The Python program in a completion, which prints its answer. None if there is no program, and
    # for formats without programs.
    program: Callable[[str], str | None]
    exemplars: dict[str, tuple[str, ...]] = field(default_factory=dict)  # group -> its exemplars
    group: Callable[[Problem], str] = lambda problem: ""  # the group of a problem
    headers: dict[str, str] = field(default_factory=dict)  # group -> text before its exemplars
    separator: str = "\n\n"
    where: str = ""  # the file of the exemplars, for messages
    one_text: bool = False  # the exemplars are one text, which cannot be shortened

    @property
    def shots(self) -> int:
        """How many exemplars there are."""
        return min(map(len, self.exemplars.values()), default=0)

    def prompt(self, problem: Problem, shots: int | None = None) -> str:
        """The prompt of a problem after the first `shots` exemplars (None: all of them).

        Raises InputError if there are fewer, or if the exemplars are one text.
        """
        group = self.group(problem)
        if self.exemplars and group not in self.exemplars:
            raise InputError(
                f"{self.where}: no exemplars for {group!r} (problem {problem.id}); add them"
            )
        texts = self.exemplars.get(group, ())
        if shots is not None and self.one_text:
            raise InputError(
                f"{self.where}: the exemplars are one text, which cannot be shortened to {shots}; "
                "use a model with a longer context, or leave --prompts out"
            )
        if shots is not None and not 0 <= shots <= len(texts):
            raise InputError(f"{shots} exemplars wanted, there are {len(texts)}")
        header = [self.headers[group]] if group in self.headers else []
        return self.separator.join([*header, *texts[:shots], self.question(problem)])

    @classmethod
    def ours(
        cls,
        benchmark: Benchmark | None,
        format: str,
        shots: int | None = None,
        template: str = "plain",
    ) -> "FewShot":
        """The exemplars of this project.

        shots: how many; None takes as many as the paper, or for "tool" as many as there are.
        There are no exemplars without a benchmark, and none by default in "deepseek" and "qwen",
        which are the templates of chat models. Raises InputError if there are too few.
        """
        name = benchmark.name if benchmark else ""
        rows = [row for row in _exemplar_rows(benchmark) if format in row]
        if shots is None:
            shots = 0
            if benchmark and template == "plain":
                shots = min(benchmark.shots, max(1, len(rows)))
        if shots and template != "plain":
            raise InputError(
                f"template {template!r} is for chat models, which get no exemplars; use plain"
            )
        if not 0 <= shots <= len(rows):
            raise InputError(
                f"{name or 'problem file'}: {shots} exemplars of {format} wanted, "
                f"there are {len(rows)}; ask for that many, or for 0"
            )

        texts = []
        for row in rows[:shots]:
            question = problem_prompt(exemplar_problem(row, benchmark.kind), format, template)
            texts.append(question + response_text(row[format], format, template))
        stop = stop_strings(format, template)
        if name == "humaneval" and template == "plain":
            stop = COMPLETION_STOPS
        return cls(
            lambda problem: problem_prompt(problem, format, template),
            tuple(stop),
            lambda text: program(text, format, template),
            {"": tuple(texts)},
            where=EXEMPLARS.name,
        )

    @classmethod
    def load(cls, path: str | Path, benchmark: Benchmark, format: str) -> "FewShot":
        """The exemplars of other authors. Raises InputError.

        path: a JSON file in the layout of the paper's evaluation,
        {name: {few_shot_prompt, stop_words, template}}, the folder cot-prompts of BIG-Bench Hard,
        or the folder dev of MMLU.
        """
        path = Path(path)
        if not path.is_dir():
            return _paper_prompts(path, benchmark, format)
        return _bbh_prompts(path) if any(path.glob("*.txt")) else _mmlu_prompts(path)


# ---- Our exemplars -------------------------------------------------------------------------------


def _exemplar_rows(benchmark: Benchmark | None) -> list[dict]:
    if benchmark is None:
        return []
    return tomllib.loads(EXEMPLARS.read_text(encoding="utf-8")).get(benchmark.exemplars, [])


def exemplar_problem(row: dict, kind: str) -> Problem:
    """The problem that an exemplar of data/problems/exemplars.toml solves."""
    task = {}
    if kind == "code":
        task = {"prompt": row["question"], "tests": row["tests"].strip(), "entry_point": ""}
    elif kind == "proof":
        names = ("informal_statement", "informal_proof", "formal_statement")
        task = {name: row[name] for name in names}
    return Problem(
        "exemplar",
        row.get("question", ""),
        row.get("answer", ""),
        kind=kind,
        choices=tuple(row.get("choices", ())),
        task=task,
    )


# ---- The prompts of the paper's evaluation -------------------------------------------------------

# (benchmark, format) -> name in the authors' file. Another file may say "gsm8k.cot" instead.
_PAPER_NAMES = {
    ("gsm8k", "cot"): "cot_gsm_8_shot",
    ("gsm8k", "pot"): "pal_gsm_8_shot",
    ("math", "cot"): "cot_minerva_math_4_shot",
    ("math", "pot"): "pal_math_4_shot",
    ("sat", "cot"): "cot_math_sat_4_shot",
    ("ocw", "cot"): "cot_ocwcourses_4_shot",
    ("mmlu_stem", "cot"): "cot_mmlu_stem_4_shot",
    ("cmath", "cot"): "cot_cmath_6_shot",
    ("gaokao_mathcloze", "cot"): "cot_gaokao_mathcloze_5_shot",
    ("gaokao_mathqa", "cot"): "cot_gaokao_mathqa_5_shot",
    ("minif2f_valid", "proof"): "minif2f_isabelle",
    ("minif2f_test", "proof"): "minif2f_isabelle",
}


def _paper_prompts(path: Path, benchmark: Benchmark, format: str) -> FewShot:
    where, entry = _paper_entry(path, benchmark, format)
    template = re.fullmatch(
        r"\{few_shot_prompt[^{}]*\}(.*\{question[^{}]*\}.*)", str(entry["template"]), re.DOTALL
    )
    if not template:
        raise InputError(
            f"{where}: the template must begin with {{few_shot_prompt}} and contain {{question}}"
        )
    text, stop = entry["few_shot_prompt"], entry["stop_words"]
    texts = text if isinstance(text, dict) else {"": text}
    if not all(isinstance(value, str) for value in texts.values()):
        raise InputError(f"{where}: few_shot_prompt must be a text, or texts by tag")
    if not isinstance(stop, list):
        raise InputError(f"{where}: stop_words must be a list")

    after = re.sub(r"\{partial_answer[^{}]*\}", "", template[1])

    def question(problem: Problem) -> str:
        return re.sub(r"\{question[^{}]*\}", lambda _: _paper_statement(problem), after).rstrip()

    def tag(problem: Problem) -> str:  # miniF2F has exemplars for number theory and for the rest
        return "numbertheory" if "numbertheory" in problem.task["formal_statement"] else "other"

    first = next(iter(texts.values()))
    if format == "pot" and "def solution():" in first:
        find_program = _solution_program
    elif format == "pot" and "imports required" in first:
        find_program = _answer_program
    else:

        def find_program(completion: str) -> str | None:
            return program(completion, format)

    return FewShot(
        question,
        tuple(map(str, stop)),
        find_program,
        {name: (text.strip(),) for name, text in texts.items()},
        tag if isinstance(text, dict) else lambda problem: "",
        separator="",
        where=where,
        one_text=True,
    )


def _paper_entry(path: Path, benchmark: Benchmark, format: str) -> tuple[str, dict]:
    """(file and name for messages, the entry of a benchmark and a format)."""
    advice = "give a JSON file or a folder of prompts"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON in UTF-8 ({error}); {advice}") from None

    names = (f"{benchmark.name}.{format}", _PAPER_NAMES.get((benchmark.name, format), ""))
    name = next((name for name in names if isinstance(entries, dict) and name in entries), None)
    if name is None:
        raise InputError(
            f"{path}: has no prompt for {benchmark.name} by {format}; add one named {names[0]!r}, "
            "or leave --prompts out"
        )
    entry, where = entries[name], f"{path}: {name}"
    needed = {"few_shot_prompt", "stop_words", "template"}
    if not isinstance(entry, dict) or not needed <= set(entry):
        raise InputError(f"{where}: needs few_shot_prompt, stop_words and template")
    return where, entry


def _paper_statement(problem: Problem) -> str:
    """A question in the wording of the paper's evaluation, with its options on one line."""
    if problem.kind != "choice":
        return statement(problem).strip()
    chinese = problem.lang == "zh"
    space = "" if chinese else " "
    between = ", " if problem.source.startswith("mmlu") else " "
    letters = zip(LETTERS, problem.choices, strict=False)
    options = between.join(f"({letter}){space}{choice}" for letter, choice in letters)
    if chinese:
        return f"{problem.question}\n从以下选项中选择:    {options}"
    ask = "What of the following is the right choice? Explain your answer."
    return f"{problem.question}\n{ask}\n{options}"


def _solution_program(text: str) -> str | None:
    """The program of a completion that defines `solution`, which returns the answer."""
    return f"{text.strip()}\n\nprint(solution())" if "def solution" in text else None


def _answer_program(text: str) -> str | None:
    """The program of a completion with two blocks: code that sets `answer`, then its imports.

    Anything else is no program, as in the paper's evaluation.
    """
    parts = text.split("```")
    if len(parts) != 5:
        return None
    code, imports = (re.sub(r"^python\b", "", part).strip() for part in (parts[1], parts[3]))
    return f"{imports}\n\n{code}\n\nprint(answer)"


# ---- BIG-Bench Hard and MMLU ---------------------------------------------------------------------


def _bbh_prompts(folder: Path) -> FewShot:
    """BIG-Bench Hard has a file for each task: a line of warning, "-----", a description of the
    task, and exemplars "Q: ... A: ..."."""
    exemplars, headers = {}, {}
    for path in sorted(folder.glob("*.txt")):
        after = path.read_text(encoding="utf-8").rpartition("-----\n")[2]
        header, *texts = after.strip().split("\n\nQ: ")
        if not texts:
            raise InputError(
                f"{path}: no exemplar begins with 'Q: '; this is not a prompt of BIG-Bench Hard"
            )
        headers[path.stem] = header
        exemplars[path.stem] = tuple("Q: " + text.strip() for text in texts)
    return FewShot(
        lambda problem: f"Q: {problem.question}\nA: Let's think step by step.",
        ("\nQ:",),
        lambda text: None,
        exemplars,
        _part,
        headers,
        where=str(folder),
    )


def _mmlu_prompts(folder: Path) -> FewShot:
    """MMLU has five development questions for each subject. Their answers are a letter alone."""
    exemplars: dict[str, tuple[str, ...]] = {}
    for problem in readers.load(folder):
        response = response_text(f"The answer is ({problem.answer}).", "cot")
        text = problem_prompt(problem, "cot") + response
        exemplars[_part(problem)] = (*exemplars.get(_part(problem), ()), text)
    return FewShot(
        lambda problem: problem_prompt(problem, "cot"),
        tuple(stop_strings("cot")),
        lambda text: None,
        exemplars,
        _part,
        where=str(folder),
    )


def _part(problem: Problem) -> str:
    """The subject or the task of a problem, which is the name of its file."""
    return problem.source.partition("/")[2]
