"""Prompts: the text that a model is given for a question, and what training appends to it; few-shot prompts.

Three templates. "plain" is a few tokens long, for small models. "deepseek" is the format of the paper's models, with
their instructions for chain of thought and for reasoning with programs. "qwen" is ChatML, of Qwen's models.
Formats (section 3.1): "cot" chain of thought, "pot" program of thought, "tool" reasoning with programs run in between;
for evaluation "code" (a program that tests are run on) and "proof" (an Isabelle proof sketch).
A question with Chinese characters gets the Chinese wording.

`FewShot` puts the problems of a benchmark to a model, with exemplars before them or without: our own
(data/problems/exemplars.toml), those of the paper's evaluation or other files of that layout, BIG-Bench Hard's and MMLU's.
"""

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data.io import InputError
from data.problems.benchmarks import Benchmark
from data.problems.readers import LETTERS, Problem, is_chinese
from data.problems.readers import load as load_problems

FORMATS = ("cot", "pot", "tool")  # that training knows
ALL_FORMATS = (*FORMATS, "code", "proof")
TEMPLATES = ("plain", "deepseek", "qwen")

_PLAIN = {  # (format, is Chinese) -> (before the question, before the response)
    ("cot", False): ("Question:", "Answer:"),
    ("cot", True): ("问题：", "解答："),
    ("pot", False): ("Question:", "Program:"),
    ("pot", True): ("问题：", "程序："),
    ("tool", False): ("Question:", "Solution:"),
    ("tool", True): ("问题：", "求解："),
    ("code", False): ("Task:", "Program:"),
    ("code", True): ("任务：", "程序："),
    ("proof", False): ("Informal:", ""),
    ("proof", True): ("Informal:", ""),
}
_INSTRUCTIONS = {
    ("cot", False): r"Please reason step by step, and put your final answer within \boxed{}.",
    ("cot", True): r"请通过逐步推理来解答问题，并把最终答案放置于\boxed{}中。",
    ("pot", False): "Please write a Python program that computes the answer and prints it.",
    ("pot", True): "请编写一个Python程序来计算并打印出答案。",
    (
        "tool",
        False,
    ): "Please integrate natural language reasoning with programs to solve the problem above, "
    r"and put your final answer within \boxed{}.",
    ("tool", True): r"请结合自然语言和Python程序语言来解答问题，并把最终答案放置于\boxed{}中。",
    ("code", False): "Please write the Python program in a ```python block.",
    ("code", True): "请编写Python程序，并放在```python代码块中。",
    (
        "proof",
        False,
    ): "Please prove the theorem in Isabelle: write the steps of the informal solution as a structured "
    "proof, and leave each step's own proof to sledgehammer.",
}
_INSTRUCTIONS["proof", True] = _INSTRUCTIONS["proof", False]
_CHOICE_INSTRUCTIONS = {
    (
        "cot",
        False,
    ): r"Please reason step by step, and put the letter of the right option within \boxed{}.",
    ("cot", True): r"请通过逐步推理来解答问题，并把正确选项的字母放置于\boxed{}中。",
    ("pot", False): "Please write a Python program that prints the letter of the right option.",
    ("pot", True): "请编写一个Python程序来打印出正确选项的字母。",
    (
        "tool",
        False,
    ): "Please integrate natural language reasoning with programs to solve the problem above, "
    r"and put the letter of the right option within \boxed{}.",
    (
        "tool",
        True,
    ): r"请结合自然语言和Python程序语言来解答问题，并把正确选项的字母放置于\boxed{}中。",
}
_CHOICE_PLAIN = {
    False: "Answer with the letter of the right option.",
    True: "请用正确选项的字母作答。",
}


def _check(format: str, template: str) -> None:
    if format not in ALL_FORMATS:
        raise InputError(f"format {format!r}: unknown; give one of {', '.join(ALL_FORMATS)}")
    if template not in TEMPLATES:
        raise InputError(f"template {template!r}: unknown; give one of {', '.join(TEMPLATES)}")


def statement(problem: Problem) -> str:
    """The question as it is shown to a model: with its options, with the tests its program must pass, with the informal
    and the formal statement of a theorem."""
    task = problem.task
    if problem.kind == "choice":
        options = (
            f"({letter}) {choice}" for letter, choice in zip(LETTERS, problem.choices, strict=False)
        )
        return "\n".join([problem.question, *options])
    if problem.kind == "code" and task["entry_point"]:
        return f"Complete this Python function.\n```python\n{task['prompt'].rstrip()}\n```"
    if problem.kind == "code":
        return f"{problem.question}\nThe program must pass these tests:\n{task['tests']}"
    if problem.kind == "proof":  # the layout of Draft, Sketch, and Prove (Jiang et al., 2022)
        return (
            f"(*### Problem\n\n{task['informal_statement'].strip()}\n\n### Solution\n\n"
            f"{task['informal_proof'].strip()} *)\n\nFormal:\n{task['formal_statement'].strip()}"
        )
    return problem.question


def prompt(
    question: str, format: str = "cot", template: str = "plain", kind: str = "answer"
) -> str:
    """The text given to the model; `response_text` follows it directly. `question` is a problem's `statement`, `kind`
    its kind, of which "choice" has wordings of its own. Raises InputError for unknown names."""
    _check(format, template)
    chinese = is_chinese(question)
    if template == "plain":
        before, after = _PLAIN[format, chinese]
        if kind == "choice":
            question = f"{question}\n{_CHOICE_PLAIN[chinese]}"
        between = "" if chinese else "\n" if format == "proof" else " "
        return f"{before}{between}{question}\n{after}".rstrip("\n")
    table = _CHOICE_INSTRUCTIONS if kind == "choice" and format in FORMATS else _INSTRUCTIONS
    instruction = table[format, chinese]
    if template == "deepseek":
        return f"User: {question}\n{instruction}\n\nAssistant:"
    return (
        f"<|im_start|>system\n{instruction}<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )


def encode(tokenizer, texts: list[str], template: str = "plain") -> list[list[int]]:
    """Ids of prompts, with BOS in front where the tokenizer wants one. ChatML's markers become their special ids."""
    bos = [tokenizer.bos_id] if tokenizer.add_bos else []
    if template != "qwen":
        return [bos + ids for ids in tokenizer.encode_batch(texts)]
    special = tokenizer.special
    pieces = [[p for p in re.split(r"(<\|im_(?:start|end)\|>)", text) if p] for text in texts]
    ids = [
        [i for p in parts for i in ([special[p]] if p in special else tokenizer.encode(p))]
        for parts in pieces
    ]
    return [bos + one for one in ids]


def encode_prompts(
    tokenizer, problems: list[Problem], format: str, template: str = "plain"
) -> list[list[int]]:
    """The ids of the prompt of each problem."""
    texts = [problem_prompt(problem, format, template) for problem in problems]
    return encode(tokenizer, texts, template)


def response_text(response: str, format: str = "cot", template: str = "plain") -> str:
    """Exactly the text that training appends after the prompt, before EOS. `response` is an SFT line's: for pot, the
    bare program. Space or newline belongs to the response, since a prompt that ends in a space splits tokens badly."""
    _check(format, template)
    if format in ("pot", "code") and template != "plain":
        response = f"```python\n{response.strip()}\n```"
    separator = {"plain": " " if format == "cot" else "\n", "deepseek": " ", "qwen": ""}[template]
    return separator + response.strip()


def stop_strings(format: str = "cot", template: str = "plain") -> list[str]:
    """Strings at which sampling ends besides EOS: where the model starts a question of its own (a base model does not
    know EOS), and for tool where it waits for a program's output."""
    _check(format, template)
    stops = {
        "plain": ["\nQuestion:", "\n问题："],
        "deepseek": ["\nUser:"],
        "qwen": ["<|im_end|>", "<|im_start|>"],
    }
    if template == "plain" and format in ("code", "proof"):
        return ["\nTask:", "\n任务："] if format == "code" else ["\nInformal:"]
    return stops[template] + (["```output"] if format == "tool" else [])


def program(text: str, format: str = "pot", template: str = "plain") -> str | None:
    """The Python code of a completion: in "plain" pot the whole text, otherwise the last ```python block (one that the
    end of the text cut off counts). None where there is no code, and for cot and proof."""
    _check(format, template)
    if format in ("cot", "proof"):
        return None
    if format in ("pot", "code") and template == "plain":
        code = text
    else:
        blocks = re.findall(r"```python[^\S\n]*\n(.*?)(?:```|\Z)", text, re.DOTALL)
        code = blocks[-1] if blocks else ""
    return code.strip() or None


# ---- Few-shot prompts ------------------------------------------------------------------------------------------------

COMPLETION_STOPS = (
    "\ndef",
    "\nclass",
    "\nif __name__",
    "\nprint",
    "\n#",
)  # where the body of a function has ended


@dataclass(frozen=True)
class FewShot:
    """How a benchmark's problems are put to a model: exemplars, then the problem in the same form.

    `stop`: strings at which sampling ends. `program(text)`: the code of a completion, which prints its answer; None
    where there is none, and where the format has no programs. `shots`: how many exemplars there are."""

    question: Callable[[Problem], str]  # the problem's own part of a prompt
    stop: tuple[str, ...]
    program: Callable[[str], str | None]
    exemplars: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by group
    group: Callable[[Problem], str] = lambda problem: ""  # whose exemplars a problem is given
    headers: dict[str, str] = field(default_factory=dict)  # by group, before the exemplars
    separator: str = "\n\n"
    where: str = ""  # the file they are from, for messages
    one_text: bool = False  # the exemplars are one text, which cannot be shortened

    @property
    def shots(self) -> int:
        return min(map(len, self.exemplars.values()), default=0)

    def prompt(self, problem: Problem, shots: int | None = None) -> str:
        """The text given to the model, with the first `shots` exemplars (None: all). Raises InputError."""
        group = self.group(problem)
        if self.exemplars and group not in self.exemplars:
            raise InputError(
                f"{self.where}: has no exemplars for {group!r} (problem {problem.id}); add them"
            )
        texts = self.exemplars.get(group, ())
        if shots is not None and self.one_text:
            raise InputError(
                f"{self.where}: its exemplars are one text, which cannot be shortened to {shots}; use a "
                "model with a longer context, or leave --prompts out"
            )
        if shots is not None and not 0 <= shots <= len(texts):
            raise InputError(f"{shots} exemplars wanted, there are {len(texts)}")
        header = [self.headers[group]] if group in self.headers else []
        return self.separator.join([*header, *texts[:shots], self.question(problem)])

    @classmethod
    def own(
        cls,
        benchmark: Benchmark | None,
        format: str,
        shots: int | None = None,
        template: str = "plain",
    ) -> "FewShot":
        """Our exemplars: as many as the paper has, or of "tool" as there are. Zero-shot with shots=0, without a
        benchmark, and in "deepseek" and "qwen", the templates of chat models. Raises InputError for too few."""
        name, rows = (
            (benchmark.name, _exemplar_rows(benchmark.exemplars)) if benchmark else ("", [])
        )
        rows = [row for row in rows if format in row]
        if shots is None:
            shots = (
                min(benchmark.shots, max(1, len(rows))) if benchmark and template == "plain" else 0
            )
        if shots and template != "plain":
            raise InputError(
                f"template {template!r} is for chat models, which are asked without exemplars; use plain"
            )
        if not 0 <= shots <= len(rows):
            raise InputError(
                f"{name or 'problem file'}: {shots} exemplars of {format} wanted, there are {len(rows)}; "
                "ask for that many, or for 0"
            )
        texts = tuple(
            problem_prompt(exemplar_problem(row, benchmark.kind), format, template)
            + response_text(row[format], format, template)
            for row in rows[:shots]
        )
        stop = (
            COMPLETION_STOPS
            if name == "humaneval" and template == "plain"
            else stop_strings(format, template)
        )
        return cls(
            lambda problem: problem_prompt(problem, format, template),
            tuple(stop),
            lambda text: program(text, format, template),
            {"": texts},
            where=_EXEMPLARS.name,
        )

    @classmethod
    def load(cls, path: str | Path, benchmark: Benchmark, format: str) -> "FewShot":
        """The prompts of a file in the layout of the paper's evaluation ({name: {few_shot_prompt, stop_words,
        template}}), of BIG-Bench Hard's folder of cot-prompts, or of MMLU's dev folder. Raises InputError."""
        path = Path(path)
        if path.is_dir():
            return _bbh_prompts(path) if any(path.glob("*.txt")) else _mmlu_prompts(path)
        return _paper_prompts(path, benchmark, format)


def problem_prompt(problem: Problem, format: str, template: str = "plain") -> str:
    """A problem's prompt without exemplars. A function to be completed stands alone in "plain", as HumanEval's authors
    give it; without the newline at its end, which belongs to the completion."""
    if template == "plain" and problem.kind == "code" and problem.task["entry_point"]:
        return problem.task["prompt"].rstrip()
    return prompt(statement(problem), format, template, problem.kind)


_EXEMPLARS = Path(__file__).parent / "problems" / "exemplars.toml"


def _exemplar_rows(name: str) -> list[dict]:
    return tomllib.loads(_EXEMPLARS.read_text(encoding="utf-8")).get(name, [])


def exemplar_problem(row: dict, kind: str) -> Problem:
    """The problem that an exemplar of data/problems/exemplars.toml solves."""
    task = {}
    if kind == "code":
        task = {"prompt": row["question"], "tests": row["tests"].strip(), "entry_point": ""}
    elif kind == "proof":
        task = {
            name: row[name] for name in ("informal_statement", "informal_proof", "formal_statement")
        }
    return Problem(
        "exemplar",
        row.get("question", ""),
        row.get("answer", ""),
        kind=kind,
        choices=tuple(row.get("choices", ())),
        task=task,
    )


# The prompts of the paper's evaluation: (benchmark, format) -> name. Another file may name one "gsm8k.cot" instead.
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
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a JSON file or folder of prompts"
        ) from None
    except ValueError as error:
        raise InputError(
            f"{path}: not JSON in UTF-8 ({error}); give a JSON file or folder of prompts"
        ) from None
    names = (f"{benchmark.name}.{format}", _PAPER_NAMES.get((benchmark.name, format), ""))
    name = next((name for name in names if isinstance(entries, dict) and name in entries), None)
    if name is None:
        raise InputError(
            f"{path}: has no prompt for {benchmark.name} by {format}; add one named {names[0]!r}, or "
            "leave --prompts out"
        )
    entry, where = entries[name], f"{path}: {name}"
    if not isinstance(entry, dict) or not {"few_shot_prompt", "stop_words", "template"} <= set(
        entry
    ):
        raise InputError(f"{where}: needs few_shot_prompt, stop_words and template")
    template = re.fullmatch(
        r"\{few_shot_prompt[^{}]*\}(.*\{question[^{}]*\}.*)", str(entry["template"]), re.DOTALL
    )
    if not template:
        raise InputError(
            f"{where}: the template must begin with {{few_shot_prompt}} and hold {{question}}"
        )
    text, stop = entry["few_shot_prompt"], entry["stop_words"]
    texts = text if isinstance(text, dict) else {"": text}
    if not all(isinstance(one, str) for one in texts.values()):
        raise InputError(f"{where}: few_shot_prompt must be a text, or texts by tag")
    if not isinstance(stop, list):
        raise InputError(f"{where}: stop_words must be a list")

    after = re.sub(r"\{partial_answer[^{}]*\}", "", template[1])

    def question(problem: Problem) -> str:
        return re.sub(r"\{question[^{}]*\}", lambda _: _paper_statement(problem), after).rstrip()

    def tag(problem: Problem) -> str:
        return "numbertheory" if "numbertheory" in problem.task["formal_statement"] else "other"

    programs = _solution_program, _answer_program
    find = next(
        (
            find
            for find, sign in zip(programs, ("def solution():", "imports required"), strict=True)
            if format == "pot" and sign in next(iter(texts.values()))
        ),
        lambda text: program(text, format),
    )
    return FewShot(
        question,
        tuple(map(str, stop)),
        find,
        {name: (text.strip(),) for name, text in texts.items()},
        tag if isinstance(text, dict) else lambda problem: "",
        separator="",
        where=where,
        one_text=True,
    )


def _paper_statement(problem: Problem) -> str:
    """A question as the paper's evaluation words it: options follow on one line."""
    if problem.kind != "choice":
        return statement(problem).strip()
    chinese = problem.lang == "zh"
    space, between = "" if chinese else " ", ", " if problem.source.startswith("mmlu") else " "
    options = between.join(
        f"({letter}){space}{one}" for letter, one in zip(LETTERS, problem.choices, strict=False)
    )
    if chinese:
        return f"{problem.question}\n从以下选项中选择:    {options}"
    return f"{problem.question}\nWhat of the following is the right choice? Explain your answer.\n{options}"


def _solution_program(text: str) -> str | None:
    """A function `solution`, whose value is the answer."""
    return f"{text.strip()}\n\nprint(solution())" if "def solution" in text else None


def _answer_program(text: str) -> str | None:
    """A block of code that sets `answer`, then a block of its imports; anything else is no program (as in the paper's
    evaluation)."""
    parts = text.split("```")
    if len(parts) != 5:
        return None
    code, imports = (re.sub(r"^python\b", "", part).strip() for part in (parts[1], parts[3]))
    return f"{imports}\n\n{code}\n\nprint(answer)"


def _bbh_prompts(folder: Path) -> FewShot:
    """BIG-Bench Hard: a file a task: a line of warning, "-----", what the task is, and "Q: ... A: ..." exemplars."""
    exemplars, headers = {}, {}
    for path in sorted(folder.glob("*.txt")):
        header, *texts = (
            path.read_text(encoding="utf-8").rpartition("-----\n")[2].strip().split("\n\nQ: ")
        )
        if not texts:
            raise InputError(
                f"{path}: no exemplar that begins with 'Q: '; this is no prompt of BIG-Bench Hard"
            )
        headers[path.stem], exemplars[path.stem] = (
            header,
            tuple("Q: " + text.strip() for text in texts),
        )
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
    """MMLU's five development questions of each subject, with the letter alone for an answer."""
    exemplars: dict[str, tuple[str, ...]] = {}
    for problem in load_problems(folder):
        text = problem_prompt(problem, "cot") + response_text(
            f"The answer is ({problem.answer}).", "cot"
        )
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
    """The subject or task of a problem, as its file is named."""
    return problem.source.partition("/")[2]
