import json
import re
import tomllib

import pytest

from data import answers
from data.io import InputError
from data.problems.benchmarks import BENCHMARKS, find, load
from data.problems.problem import Problem, is_chinese, statement
from data.prompts import problem_prompt, prompt, response_text
from data.sandbox.sandbox import Sandbox
from data.sandbox.unit_tests import COMPLETION_STOPS, passed, test_program
from evaluation.few_shot import EXEMPLARS, FewShot, exemplar_problem

CHOICE = Problem("1", "How many?", "B", kind="choice", choices=("3", "4"))
CHOICE_ZH = Problem("1", "有几个？", "B", lang="zh", kind="choice", choices=("3", "4"))
FUNCTION = Problem(
    "1",
    "def f():",
    "",
    kind="code",
    task={"prompt": "def f():\n    '''F'''\n", "tests": "", "entry_point": "f"},
)
THEOREM = Problem(
    "1",
    "S.",
    "",
    kind="proof",
    task={
        "header": "theory",
        "informal_statement": "S.",
        "informal_proof": "P.",
        "formal_statement": "theorem t",
    },
)


# ---- Exemplars

SETS = tomllib.loads(EXEMPLARS.read_text(encoding="utf-8"))
OF = {
    b.exemplars: b for b in reversed(BENCHMARKS.values()) if b.exemplars
}  # set -> the first benchmark with it
ROWS = [
    pytest.param(name, row, id=f"{name}-{i}")
    for name, rows in SETS.items()
    for i, row in enumerate(rows)
]


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=1) as sandbox:
        yield sandbox


@pytest.mark.parametrize("name, row", ROWS)
def test_exemplars_come_to_their_answers(sandbox, name, row):
    kind = OF[name].kind
    for format in {"cot", "tool"} & set(row):
        found = answers.extract(row[format])
        assert answers.compare(row["answer"], found).equal, format
        assert kind != "text" or found == row["answer"]
    programs = [(row["pot"], None)] if "pot" in row else []
    programs += re.findall(
        r"```python\n(.*?)```\n```output\n(.*?)\n```", row.get("tool", ""), re.DOTALL
    )
    assert ("tool" in row) == (len(programs) > ("pot" in row))
    for code, printed in programs:
        result = sandbox.run(code)
        assert result.status == "ok", result
        found = result.stdout.strip()
        assert found == printed if printed else answers.compare(row["answer"], found).equal
    if kind == "choice":
        assert row["answer"] in "ABCD"[: len(row["choices"])] and len(set(row["choices"])) == len(
            row["choices"]
        )
    if kind == "code":
        program = test_program(exemplar_problem(row, "code"), row["code"])
        assert passed(sandbox.run(program.code).stdout, program.secret)
        wrong = test_program(exemplar_problem(row, "code"), "pass")
        assert not passed(sandbox.run(wrong.code).stdout, wrong.secret)
    if (
        kind == "proof"
    ):  # every step of the sketch is left to Sledgehammer, and each comment is of the informal proof
        steps = re.findall(r"^ *(?:have|obtain|show)\b", row["proof"], re.MULTILINE)
        assert len(steps) == row["proof"].count("sledgehammer") > 2
        for comment in re.findall(r"\(\* (.*?) \*\)", row["proof"]):
            assert comment in row["informal_proof"]
        assert row["proof"].strip().startswith("proof -") and row["proof"].strip().endswith("qed")
    assert is_chinese(row.get("question", "")) == name.endswith("zh")


def test_the_sets_are_those_of_the_benchmarks():
    assert set(SETS) == set(OF)
    for benchmark in BENCHMARKS.values():
        rows = SETS.get(benchmark.exemplars, [])
        for format in benchmark.formats:
            have = sum(format in row for row in rows)
            assert have >= (min(3, benchmark.shots) if format == "tool" else benchmark.shots), (
                benchmark.name,
                format,
            )
        keys = [row.get("question") or row["informal_statement"] for row in rows]
        assert len(set(keys)) == len(keys)


def test_no_exemplar_is_from_a_benchmark_or_the_papers_prompts(real):
    """No twelve words or Chinese characters in a row that a test problem or a published prompt has
    too.
    """

    def runs(text):
        units = re.findall(r"[\u3400-\u9fff]|\w+", text.lower())
        return {tuple(units[i : i + 12]) for i in range(len(units) - 11)}

    folder = real("SOURCES.md").parent
    ours = set().union(
        *(runs(" ".join(map(str, row.values()))) for rows in SETS.values() for row in rows)
    )
    texts = [
        " ".join([p.question, p.solution or "", *p.choices, *p.task.values()])
        for name in BENCHMARKS
        if find(name, folder)
        for p in load(name, folder)
    ]
    published = ("bbh/cot-prompts/*", "*/few_shot_prompts.*", "minif2f/*/*")
    texts += [
        path.read_text().replace("\\n", "\n")
        for pattern in published
        for path in folder.glob(pattern)
    ]
    assert len(ours) > 1000 and len(texts) > 20_000
    assert [text[:80] for text in texts if ours & runs(text)] == []


@pytest.mark.parametrize(
    "name, format", [(b.name, f) for b in BENCHMARKS.values() for f in b.formats]
)
def test_own_prompts(name, format):
    """The exemplars as training would write them, then the problem; fewer when asked; what follows
    a response in the same form is a stop.
    """
    benchmark = BENCHMARKS[name]
    fewshot = FewShot.ours(benchmark, format)
    problem = (
        exemplar_problem(SETS[benchmark.exemplars][-1], benchmark.kind)
        if benchmark.exemplars
        else FUNCTION
    )
    alone = problem_prompt(problem, format)
    whole = fewshot.prompt(problem)
    assert fewshot.shots == (min(3, benchmark.shots) if format == "tool" else benchmark.shots)
    assert whole.endswith(alone) and fewshot.prompt(problem, 0) == alone
    assert whole.count(alone.split("\n")[-1]) >= min(1, fewshot.shots)
    rows = [row for row in SETS.get(benchmark.exemplars, []) if format in row][: fewshot.shots]
    position = 0
    for row in rows:
        text = problem_prompt(exemplar_problem(row, benchmark.kind), format) + response_text(
            row[format], format
        )
        assert (position := whole.index(text, position)) >= 0
        position += len(text)
        own = exemplar_problem(row, benchmark.kind)
        following = response_text(row[format], format) + "\n\n" + problem_prompt(own, format)
        cut = min(at for stop in fewshot.stop if (at := following.find(stop)) >= 0)
        # nothing of the response is lost, but for what a tool's output would be
        assert cut >= (
            following.index("```output")
            if format == "tool"
            else len(response_text(row[format], format))
        )
    if fewshot.shots > 1:
        lengths = [len(fewshot.prompt(problem, n)) for n in range(fewshot.shots + 1)]
        assert lengths == sorted(set(lengths)) and lengths[-1] == len(whole)
    with pytest.raises(
        InputError, match=f"{fewshot.shots + 1} exemplars wanted, there are {fewshot.shots}"
    ):
        fewshot.prompt(problem, fewshot.shots + 1)


def test_own_programs_and_templates():
    gsm8k = BENCHMARKS["gsm8k"]
    assert FewShot.ours(gsm8k, "pot").program("\nprint(1)\n") == "print(1)"
    assert FewShot.ours(gsm8k, "cot").program("print(1)") is None
    assert FewShot.ours(gsm8k, "cot", template="qwen").prompt(Problem("1", "Q?", "2")) == prompt(
        "Q?", "cot", "qwen"
    )
    assert FewShot.ours(None, "pot").prompt(Problem("1", "Q?", "2")) == prompt("Q?", "pot")
    assert FewShot.ours(BENCHMARKS["humaneval"], "code").stop == COMPLETION_STOPS
    assert "<|im_end|>" in FewShot.ours(BENCHMARKS["humaneval"], "code", template="qwen").stop
    with pytest.raises(InputError, match="9 exemplars of cot wanted, there are 8"):
        FewShot.ours(gsm8k, "cot", 9)
    with pytest.raises(
        InputError, match="ocw: 1 exemplars of pot wanted, there are 0; ask for that many, or for 0"
    ):
        FewShot.ours(BENCHMARKS["ocw"], "pot")
    with pytest.raises(InputError, match="'qwen' is for chat models"):
        FewShot.ours(gsm8k, "cot", 2, "qwen")


# ---- Prompts of others


def write_prompts(tmp_path, **entries):
    (tmp_path / "p.json").write_text(json.dumps(entries))
    return tmp_path / "p.json"


ENTRY = {
    "few_shot_prompt": "Q: 1+1\nA: 2",
    "stop_words": ["\nQ:"],
    "template": "{few_shot_prompt}\n\nQ: {question}\nA: {partial_answer}",
}


def test_a_file_of_prompts(tmp_path):
    problem = Problem("1", r"What is {partial_answer} \1 of {question}?", "2")
    path = write_prompts(tmp_path, cot_gsm_8_shot=ENTRY)
    fewshot = FewShot.load(path, BENCHMARKS["gsm8k"], "cot")
    assert fewshot.prompt(problem).startswith("Q: 1+1\nA: 2\n\nQ: What is {") and fewshot.stop == (
        "\nQ:",
    )
    assert fewshot.prompt(problem).endswith("\nA:") and fewshot.program("print(1)") is None
    with pytest.raises(
        InputError,
        match=f"^{path}: cot_gsm_8_shot: the exemplars are one text, which cannot be short",
    ):
        fewshot.prompt(problem, 4)
    other = write_prompts(
        tmp_path, **{"gsm8k.cot": ENTRY | {"stop_words": ["!"]}, "cot_gsm_8_shot": ENTRY}
    )
    assert FewShot.load(other, BENCHMARKS["gsm8k"], "cot").stop == (
        "!",
    )  # one's own name goes first


def test_the_prompt_by_the_kind_of_theorem(tmp_path):
    template = (
        "{few_shot_prompt[tag].strip()}\n\nInformal:\n{question.strip()}\n{partial_answer.strip()}"
    )
    entry = ENTRY | {"few_shot_prompt": {"numbertheory": "N", "other": "O"}, "template": template}
    fewshot = FewShot.load(
        write_prompts(tmp_path, minif2f_isabelle=entry), BENCHMARKS["minif2f_test"], "proof"
    )
    assert fewshot.prompt(THEOREM) == f"O\n\nInformal:\n{statement(THEOREM)}"
    task = THEOREM.task | {"formal_statement": "theorem mathd_numbertheory_1"}
    assert fewshot.prompt(Problem("1", "S.", "", kind="proof", task=task)).startswith("N\n\n")


@pytest.mark.parametrize(
    "entries, message",
    [
        ({}, "has no prompt for gsm8k by cot; add one named 'gsm8k.cot'"),
        (
            {"cot_gsm_8_shot": {"template": ""}},
            "cot_gsm_8_shot: needs few_shot_prompt, stop_words and template",
        ),
        (
            {"cot_gsm_8_shot": ENTRY | {"template": "{question}"}},
            "must begin with {few_shot_prompt}",
        ),
        (
            {"cot_gsm_8_shot": ENTRY | {"template": "{few_shot_prompt} Q"}},
            "must begin with {few_shot_prompt} and contain",
        ),
        ({"cot_gsm_8_shot": ENTRY | {"few_shot_prompt": ["a"]}}, "few_shot_prompt must be a text"),
        ({"cot_gsm_8_shot": ENTRY | {"stop_words": "Q"}}, "stop_words must be a list"),
    ],
)
def test_bad_files_of_prompts(tmp_path, entries, message):
    path = write_prompts(tmp_path, **entries)
    with pytest.raises(InputError, match=f"^{path}: .*{re.escape(message)}"):
        FewShot.load(path, BENCHMARKS["gsm8k"], "cot")


def test_unreadable_prompts(tmp_path):
    with pytest.raises(InputError, match="none.json: cannot be read"):
        FewShot.load(tmp_path / "none.json", BENCHMARKS["gsm8k"], "cot")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match="bad.json: not JSON"):
        FewShot.load(tmp_path / "bad.json", BENCHMARKS["gsm8k"], "cot")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: no data file in this folder"):
        FewShot.load(tmp_path / "folder", BENCHMARKS["mmlu"], "cot")


def test_programs_of_the_papers_prompts(sandbox, tmp_path):
    function = "def solution():\n    apples = 3 * 4\n    return apples"
    path = write_prompts(
        tmp_path,
        pal_gsm_8_shot=ENTRY | {"few_shot_prompt": function},
        pal_math_4_shot=ENTRY | {"few_shot_prompt": "The imports required for this program are"},
    )
    fewshot = FewShot.load(path, BENCHMARKS["gsm8k"], "pot")
    assert sandbox.run(fewshot.program("\n\n\n" + function)).stdout == "12\n"
    assert fewshot.program("I do not know.") is None
    fewshot = FewShot.load(path, BENCHMARKS["math"], "pot")
    text = (
        "\n```\nx = symbols('x')\nanswer = solve(x**2 - 4, x)\n```\nThe imports required for this program are\n"
        "```python\nfrom sympy import *\n```\nI hope my solution is correct."
    )
    assert sandbox.run(fewshot.program(text)).stdout == "[-2, 2]\n"
    assert (
        fewshot.program("```\nanswer = 1\n```") is None
    )  # the paper counts no program without its second block


def test_choices_in_the_papers_words(tmp_path):
    names = ("cot_mmlu_stem_4_shot", "cot_gaokao_mathqa_5_shot", "cot_math_sat_4_shot")
    path = write_prompts(tmp_path, **dict.fromkeys(names, ENTRY))

    def ask(name, problem):
        text = FewShot.load(path, BENCHMARKS[name], "cot").prompt(problem)
        return text.removeprefix("Q: 1+1\nA: 2\n\nQ: ").removesuffix("\nA:")

    stem = Problem("1", "How many?", "B", None, "mmlu_stem/x", "en", "choice", ("3", "4"))
    assert ask("mmlu_stem", stem).endswith("right choice? Explain your answer.\n(A) 3, (B) 4")
    sat = Problem("1", "How many?", "B", None, "sat", "en", "choice", ("3", "4"))
    assert ask("sat", sat).endswith("right choice? Explain your answer.\n(A) 3 (B) 4")
    assert ask("gaokao_mathqa", CHOICE_ZH) == "有几个？\n从以下选项中选择:    (A)3 (B)4"


def test_the_papers_prompts(real):
    path = real("deepseek-math-eval/few_shot_prompts.json")
    asked = {(b.name, f) for b in BENCHMARKS.values() for f in b.formats}
    entries, used = json.loads(path.read_text()), set()
    for name, format in sorted(asked):
        try:
            fewshot = FewShot.load(path, BENCHMARKS[name], format)
        except InputError as error:
            assert "has no prompt for" in str(error)
            continue
        used.add(fewshot.where.rpartition(": ")[2])
        kind = BENCHMARKS[name].kind
        problem = {"choice": CHOICE, "proof": THEOREM}.get(kind, Problem("1", "Q?", "2"))
        text = fewshot.prompt(problem)
        entry = entries[fewshot.where.rpartition(": ")[2]]
        exemplars = entry["few_shot_prompt"]
        assert text.startswith((exemplars["other"] if kind == "proof" else exemplars).strip())
        assert (
            "{" + "question" not in text and "partial_answer" not in text and text == text.rstrip()
        )
        assert list(fewshot.stop) == entry["stop_words"]
    assert used == set(entries)


def test_the_papers_own_programs_run(real, sandbox):
    """The solutions inside its two prompts for programs (the one called "4 shot" has 5): each is
    found, runs, and prints one value, but for one that names a variable which it never sets.
    """
    failed = []
    path = real("deepseek-math-eval/few_shot_prompts.json")
    for name, before, count in [
        ("gsm8k", "# solution in Python:", 8),
        ("math", "SymPy object.", 5),
    ]:
        fewshot = FewShot.load(path, BENCHMARKS[name], "pot")
        parts = fewshot.exemplars[""][0].split(before)[1:]
        assert len(parts) == count
        for part in parts:
            completion = part[
                : min(
                    (at for stop in fewshot.stop if (at := part.find(stop)) >= 0), default=len(part)
                )
            ]
            result = sandbox.run(fewshot.program(completion))
            if result.status == "ok":
                assert len(result.stdout.splitlines()) == 1, result
            else:
                failed.append((name, result.error))
    assert failed == [("math", "NameError: name 'n_value' is not defined")]


def test_big_bench_hard_prompts(real):
    fewshot = FewShot.load(real("bbh/cot-prompts"), BENCHMARKS["bbh"], "cot")
    assert len(fewshot.exemplars) == 27 and fewshot.shots == 3
    problem = Problem("1", "not True is", "False", None, "bbh/boolean_expressions", kind="text")
    text = fewshot.prompt(problem)
    assert (
        text.endswith("\n\nQ: not True is\nA: Let's think step by step.") and "canary" not in text
    )
    assert text.count("\nQ: ") == 4 and fewshot.prompt(problem, 1).count("\nQ: ") == 2
    header = fewshot.prompt(problem, 0).split("\n\n")[0]
    assert text.startswith(header) and "Boolean" in header
    with pytest.raises(InputError, match="cot-prompts: no exemplars for 'x'"):
        fewshot.prompt(Problem("1", "Q", "A", None, "bbh/x", kind="text"))


def test_mmlu_prompts(real):
    fewshot = FewShot.load(real("mmlu/dev"), BENCHMARKS["mmlu"], "cot")
    assert len(fewshot.exemplars) == 57 and fewshot.shots == 5
    problem = Problem("1", "Q?", "A", None, "mmlu/anatomy", kind="choice", choices=("x", "y"))
    assert len(re.findall(r"\nAnswer: The answer is \([A-D]\)\.\n", fewshot.prompt(problem))) == 5
    assert fewshot.prompt(problem, 2).count("Question: ") == 3
