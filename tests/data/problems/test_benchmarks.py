import json
import re

import pytest

from data import answers
from data.io import InputError
from data.problems import benchmarks
from data.problems.benchmarks import BENCHMARKS, find, load, section
from data.problems.problem import KINDS, Problem
from data.problems.readers import load as load_file
from data.prompts import ALL_FORMATS


@pytest.fixture
def folder(real):
    return real("SOURCES.md").parent


@pytest.fixture
def here(folder):
    def problems(name):
        if find(name, folder) is None:
            pytest.skip(f"{BENCHMARKS[name].files[0]} is missing in {folder}")
        return load(name, folder)

    return problems


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_real_benchmarks_are_whole(here, name):
    benchmark, problems = BENCHMARKS[name], here(name)
    assert len(problems) == benchmark.count == len({problem.id for problem in problems})
    assert {problem.kind for problem in problems} == {benchmark.kind}
    assert {problem.lang for problem in problems} == {benchmark.lang}
    for problem in problems:
        assert problem.question and answers.compare(problem.answer, problem.answer).equal == (
            benchmark.kind not in ("code", "proof")
        )
        if benchmark.kind == "choice":
            assert set(problem.answer) <= set("ABCDEFGH"[: len(problem.choices)]) and all(
                problem.choices
            )
            assert name not in ("sat", "gaokao_mathqa") or not any(
                re.match(r"\(?A[).]", c) for c in problem.choices
            )


@pytest.mark.parametrize(
    "name, sections, one, size",
    [  # counts of grep and wc
        ("mmlu", 57, "professional_law", 1534),
        ("bbh", 23, "logical_deduction", 750),
        ("cmath", 6, "6", 198),
        ("mmlu_stem", 18, "high_school_mathematics", 270),
    ],
)
def test_sections(here, name, sections, one, size):
    found = [section(problem) for problem in here(name)]
    assert len(set(found)) == sections and found.count(one) == size


def test_known_problems(here):
    """A problem of each set, which was looked up in the file by hand."""
    assert here("gaokao_mathcloze")[1].answer == "$(5, 10)$"
    several = [p.answer for p in here("gaokao_mathqa") if len(p.answer) > 1]
    assert several == ["AD", "ACD", "ABD", "AC", "BCD", "CD", "AC"]
    assert here("cmath")[1].answer == "45" and here("mgsm_zh")[2].answer == "70000"
    assert [p.id for p in here("mbpp")][::499] == ["mbpp-11", "mbpp-510"]
    assert here("humaneval")[0].task["entry_point"] == "has_close_elements"
    assert len(here("agieval_aqua")[0].choices) == 5


def test_two_editions_agree(here, folder):
    ours = {p.question: p.answer for p in here("mgsm_zh")}
    table = load_file(folder / "mgsm/mgsm_zh.tsv")
    assert {p.question: p.answer for p in table} == ours and len(table) == 250
    assert all(
        p.task["tests"] == q.task["tests"] and p.solution == q.solution and p.id == q.id
        for p, q in zip(here("mbpp"), load_file(folder / "mbpp/mbpp_test.jsonl"), strict=True)
    )


def test_several_blanks_are_compared_in_order(here):
    gold = here("gaokao_mathcloze")[1].answer
    for right in ("5, 10", "$5$;$10$", "5；10", "(5,10)"):
        assert answers.compare(gold, right).equal, right
    for wrong in ("10, 5", "5", "5, 10, 15", "5, 11"):
        assert not answers.compare(gold, wrong).equal, wrong


# ---- Without real data ---------------------------------------------------------------------------


def test_the_table_is_in_order():
    for name, benchmark in BENCHMARKS.items():
        assert (
            name == benchmark.name
            and benchmark.kind in KINDS
            and set(benchmark.formats) <= set(ALL_FORMATS)
        )
        assert (
            benchmark.files
            and benchmark.count > 0
            and benchmark.average in ("problems", "sections")
        )
    assert sum(bool(benchmark.paper) for benchmark in BENCHMARKS.values()) == 15


@pytest.mark.parametrize("place", BENCHMARKS["gsm8k"].files)
def test_any_accepted_place_is_found(tmp_path, place):
    assert find("gsm8k", tmp_path) is None
    with pytest.raises(
        InputError, match=f"^{tmp_path}: GSM8K is not there; put it at gsm8k/test.jsonl"
    ):
        load("gsm8k", tmp_path)
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"question": "Q?", "answer": "#### 3"}))
    assert find("gsm8k", tmp_path) == path and load("gsm8k", tmp_path)[0].answer == "3"


def test_unknown_and_misplaced(tmp_path):
    with pytest.raises(InputError, match="'gsm9k': unknown; there are gsm8k, math"):
        find("gsm9k", tmp_path)
    (tmp_path / "sat").mkdir()
    (tmp_path / "sat/test.jsonl").write_text(json.dumps({"question": "Q?", "answer": "3"}))
    with pytest.raises(
        InputError, match="problem test-1 is of kind answer, SAT May 2023 has choice"
    ):
        load("sat", tmp_path)


def test_bad_records_are_returned_on_request(tmp_path):
    (tmp_path / "cmath").mkdir()
    path = tmp_path / "cmath/test.jsonl"
    path.write_text('{"question": "几个？", "golden": "3"}\n{"question": "几个？", "golden": ""}\n')
    with pytest.raises(InputError, match=f"^{path}:2: a problem without 'golden'"):
        load("cmath", tmp_path)
    bad = []
    assert len(load("cmath", tmp_path, bad)) == 1
    assert bad == [f"{path}:2: a problem without 'golden'; add it or remove the line"]


def test_sections_of_sources():
    def of(source):
        return section(Problem("1", "Q?", "1", source=source))

    assert (
        of("math/Algebra/Level 5") == "Algebra"
        and of("gsm8k") == "gsm8k"
        and of("mmlu/anatomy") == "anatomy"
    )
    assert {of(f"bbh/logical_deduction_{n}_objects") for n in ("three", "five", "seven")} == {
        "logical_deduction"
    }
    assert of("bbh/reasoning_about_colored_objects") == "reasoning_about_colored_objects"


def test_the_command_counts(tmp_path, capsys):
    (tmp_path / "cmath").mkdir()
    (tmp_path / "cmath/test.jsonl").write_text(
        '{"question": "几个？", "golden": "3"}\n{"golden": "4"}\n'
    )
    benchmarks.main(["--data", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        rf"cmath +1098 +1 +1  {tmp_path}/cmath/test.jsonl", next(x for x in lines if "cmath" in x)
    )
    assert (
        f"    {tmp_path}/cmath/test.jsonl:2: a problem without 'question'; add it or remove the line"
        in lines
    )
    assert sum("absent: " in line for line in lines) == len(BENCHMARKS) - 1


def test_the_command_needs_a_folder(tmp_path):
    with pytest.raises(InputError, match="not a folder; give the folder"):
        benchmarks.main(["--data", str(tmp_path / "absent")])
