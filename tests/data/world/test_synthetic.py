"""synthetic.py: the problems are right, the splits share nothing, and files are complete."""

import contextlib
import io
import itertools
import json
import os
import re
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.io import InputError
from data.world import synthetic as S
from data.world.families import FAMILIES, fields

ALL = list(itertools.chain(*FAMILIES.values()))
CALCULATION = re.compile(r"(?<![\w./])(\(?\d[\d\s./*+()-]*?) = (\d+(?:\.\d+)?(?:/\d+)?)")


def value(expression):
    """The exact rational value of an arithmetic expression; 3/4 is a division."""
    return eval(re.sub(r"\d+(?:\.\d+)?", r'Fraction("\g<0>")', expression), {"Fraction": Fraction})


def check_calculations(text):
    """Check every "a op b = c" of a text; every "=" belongs to one. Returns how many there are."""
    found = CALCULATION.findall(text)
    assert len(found) == text.count("="), text
    for left, right in found:
        assert value(left) == value(right), f"{left} = {right} in {text!r}"
    return len(found)


def printed(program):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(program, {})
    return out.getvalue().rstrip("\n")


def sample(count, split="train", seed=0, **kwargs):
    return [S.problem(i, split, seed, **kwargs) for i in range(count)]


@pytest.fixture(scope="module")
def problems():
    """500 problems of every level and language. Every family is there many times."""
    result = []
    for level, lang in itertools.product(S.LEVELS, S.LANGS):
        result += sample(500, lang=lang, level=level)
    return result


def test_the_checker_finds_errors():
    assert (
        check_calculations(
            "Half: 80 * 25 / 100 = 20.\n1/4 + 1/3 = 7/12\n15 * 2.5 = 37.5 km. (3 + 4) / 2 = 3.5"
        )
        == 4
    )
    for wrong in ("3 + 4 = 8", "1/4 + 1/3 = 2/7", "15 * 2.5 = 37", "x = 3"):
        with pytest.raises(AssertionError):
            check_calculations(wrong)


def test_all_families_appear(problems):
    assert {p.family for p in problems} == {family.name for family in ALL}
    assert len(ALL) >= 15
    for level, families in FAMILIES.items():
        assert {family.level for family in families} == {level}


def test_cot_pot_tool_and_answer_agree(problems):
    for p in problems:
        final = {"en": f"The answer is {p.answer}.", "zh": f"答案是{p.answer}。"}[p.lang]
        assert p.cot.split("\n")[-1] == final
        # The last step ends with the answer, exactly as it is written.
        assert CALCULATION.findall(p.cot)[-1][1] == p.answer, p
        assert printed(p.pot) == p.answer, p
        text, program, output, end = re.fullmatch(
            r"(.+)\n```python\n(.+)\n```\n```output\n(.+)\n```\n(.+)", p.tool, re.S
        ).groups()
        assert (program, output) == (p.pot, p.answer)
        assert f"\\boxed{{{p.answer}}}" in end and text


def test_calculations_are_right(problems):
    for p in problems:
        steps = p.cot.split("\n")[:-1]
        assert all(check_calculations(step) == 1 for step in steps), p


def test_answers_are_in_lowest_terms_and_positive(problems):
    kinds = set()
    for p in problems:
        assert re.fullmatch(r"\d+|\d+/\d+|\d+\.\d+", p.answer), p
        assert value(p.answer) > 0
        if "/" in p.answer:
            assert str(Fraction(p.answer)) == p.answer
            kinds.add("fraction")
        elif "." in p.answer:
            assert str(Decimal(p.answer).normalize()) == p.answer
            kinds.add("decimal")
        else:
            kinds.add("integer")
    assert kinds == {"integer", "fraction", "decimal"}


def test_levels_differ_in_steps(problems):
    for p in problems:
        steps = len(p.cot.split("\n")) - 1
        assert steps in {1: {1}, 2: {2}, 3: {3}, 4: {3, 4}, 5: {4}}[p.level], p
    # Numbers are small at the levels that a small model should solve.
    largest = dict.fromkeys(S.LEVELS, 0)
    for p in problems:
        numbers = map(int, re.findall(r"\d+", p.cot))
        largest[p.level] = max(largest[p.level], *numbers)
    assert largest[1] <= 100 and largest[2] <= 100 and max(largest.values()) < 1000


def test_distractors_add_a_sentence_and_change_nothing(problems, monkeypatch):
    for level in S.LEVELS:
        monkeypatch.setitem(S.DISTRACTOR_RATE, level, 0)
    with_one = dict.fromkeys(S.LEVELS, 0)
    for number, p in enumerate(problems):
        plain = S.problem(number % 500, lang=p.lang, level=p.level)
        assert (plain.key, plain.cot, plain.pot) == (p.key, p.cot, p.pot)
        if plain.question != p.question:
            with_one[p.level] += 1
            start = len(os.path.commonprefix([plain.question, p.question]))
            added = p.question[start : start + len(p.question) - len(plain.question)]
            assert p.question == plain.question[:start] + added + plain.question[start:]
            assert len(re.findall(r"\d+", added)) == 1 and len(re.findall("[.。]", added)) == 1
    assert with_one[1] == 0 and with_one[5] == 1000
    for level, rate in ((2, 0.1), (3, 0.25), (4, 0.5)):
        assert abs(with_one[level] / 1000 - rate) < 0.06


def test_texts_are_short_and_complete(problems):
    for p in problems:
        assert not re.search(r"[{|~]|  | \.|\s$|[.?]\w", re.sub(r"\d\.\d", "1", p.question)), (
            p.question
        )
        assert not re.search(r"[{}|~]|  ", p.cot), p.cot
        assert 1 <= len(p.pot.split("\n")) <= 5
        if p.lang == "en":
            assert p.question.isascii() and p.cot.isascii()
            assert 8 <= len(p.question.split()) <= 50, p.question
            assert p.question.endswith("?")
        else:
            assert not re.search("[a-z]", p.question + p.cot) and p.question.endswith("？")
            assert len(p.question) <= 90


def test_people_and_objects_are_different(problems):
    """Different fields have different people and different kinds of objects."""
    for p in problems:
        slots = dict(slot.split("=") for slot in p.key.split(":")[1].split(","))
        people = [slots[s] for s in "nmk" if s in slots]
        assert len(people) == len(set(people))
        assert "o" not in slots or slots["o"] != slots.get("p")


def test_all_wordings_show_the_numbers_that_decide_the_answer():
    """The key has what all wordings show; every other number must follow from it."""
    for family in ALL:
        reserved = set("nmkopuw") | {"o1", "p1"}
        answers, shown = {}, [f for f in family.key_slots if f not in reserved]
        draw = S.generator("test", family.name)
        for _ in range(3000):
            numbers = family.numbers(draw)
            assert not reserved & set(numbers), family.name
            key = tuple(str(numbers[f]) for f in shown)
            assert answers.setdefault(key, numbers["answer"]) == numbers["answer"], (
                family.name,
                key,
            )
        for wordings in family.wordings.values():
            assert len(wordings) >= 2
            for wording in wordings:
                assert set(shown) <= fields(wording)
                assert fields(wording) - reserved == set(shown), f"{family.name}: {wording}"
                assert wording.count("|") == (family.level > 1)


def test_splits_share_nothing():
    questions = {split: {} for split in S.SPLITS}
    for split, count in (("train", 24_000), ("valid", 4_000), ("test", 4_000)):
        for seed in (0, 1):
            for p in sample(count // 2, split, seed):
                assert S.split_of(p.key) == split
                assert (
                    questions[split].setdefault(p.question, p.key) == p.key
                )  # the text determines the key
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not questions[a].keys() & questions[b].keys()
        assert not set(questions[a].values()) & set(questions[b].values())
    # The world is large: there are few repetitions within a split.
    assert len(questions["train"]) > 20_000 and len(questions["test"]) > 3_400


def test_the_hash_is_fixed():
    shares = [S.split_of(f"key {i}") for i in range(20_000)]
    for split, share in (("train", 0.90), ("valid", 0.05), ("test", 0.05)):
        assert abs(shares.count(split) / 20_000 - share) < 0.007
    # Old data sets keep their splits. Digests are from `b2sum -l 32`, as numbers modulo 100.
    for key, digest in DIGESTS.items():
        bucket = int(digest, 16) % 100
        assert S.split_of(key) == (
            "train" if bucket < 90 else "valid" if bucket < 95 else "test"
        ), key


DIGESTS = {"": "1271cf25", "key 0": "0c94d9df", "key 27": "68f8b927"}  # train, test, valid


@settings(max_examples=60)
@given(st.integers(0, 10**9), st.sampled_from(S.SPLITS), st.integers(0, 10**6))
def test_equal_arguments_give_equal_problems(index, split, seed):
    p = S.problem(index, split, seed)
    assert (
        p
        == S.problem(index, split, seed)
        == S.problem(index, split, seed, lang=p.lang, level=p.level)
    )
    other = "zh" if p.lang == "en" else "en"
    translated = S.problem(index, split, seed, lang=other, level=p.level)
    assert (translated.key, translated.answer, translated.pot.count("\n")) == (
        p.key,
        p.answer,
        p.pot.count("\n"),
    )
    for kind in S.KINDS:
        assert S.document(index, kind, split, seed) == S.document(index, kind, split, seed)


def test_a_problem_does_not_depend_on_the_process():
    code = (
        "from data.world import synthetic as S; print(ascii([S.problem(7, s).question for s in S.SPLITS] + "
        "[S.document(7, k) for k in S.KINDS]))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    here = [S.problem(7, s).question for s in S.SPLITS] + [S.document(7, k) for k in S.KINDS]
    assert seen == {ascii(here) + "\n"}


def test_seeds_and_splits_differ():
    questions, ids = set(), set()
    for split, seed in itertools.product(S.SPLITS, (0, 1)):
        problems = sample(50, split, seed)
        questions.add(tuple(p.question for p in problems))
        ids |= {p.id for p in problems}
    assert len(questions) == 6 and len(ids) == 300


def test_languages_and_levels_can_be_chosen():
    mixed = sample(600)
    assert {p.level for p in mixed} == {1, 2, 3, 4, 5} and {p.lang for p in mixed} == {"en", "zh"}
    some = sample(100, lang="zh", level=(2, 3))
    assert {p.lang for p in some} == {"zh"} and {p.level for p in some} == {2, 3}


# ---- Documents --------------------------------------------------------------------------------


@pytest.mark.parametrize("lang", S.LANGS)
def test_math_documents_are_right(lang):
    count = sum(check_calculations(S.document(i, "math", lang=lang)) for i in range(800))
    assert count > 3000


def test_long_addition_writes_the_digits_of_the_sum():
    seen = 0
    for i in range(600):
        for line in S.document(i, "math", lang="en").split("\n"):
            if line.startswith("To add") and "write" in line:
                total = re.search(r"= (\d+)\.$", line)[1]
                assert "".join(reversed(re.findall(r"write (\d+)", line))) == total
                seen += 1
    assert seen > 50


@pytest.mark.parametrize("lang", S.LANGS)
def test_programs_of_documents_print_what_they_say(lang):
    head = {"en": "# Output:\n", "zh": "# 输出：\n"}[lang]
    for i in range(400):
        text = S.document(i, "code", lang=lang)
        before = ""
        for part in re.split(r"\n\n(?=# )", text):
            program, output = part.split(head)
            assert printed(program) == re.sub("^# ?", "", output, flags=re.M), part
            before += part
        assert program.startswith("# ")


def test_facts_about_a_person_never_change():
    homes = {}
    for i in range(1500):
        for name, town in re.findall(
            r"(\w+) lives in (\w+) and is", S.document(i, "general", lang="en")
        ):
            homes.setdefault(name, set()).add(town)
    assert len(homes) == 16 and all(len(towns) == 1 for towns in homes.values())


@pytest.mark.parametrize("kind", S.KINDS)
def test_documents_stay_in_their_split(kind, monkeypatch):
    inner, original = [], S.problem
    monkeypatch.setattr(S, "problem", lambda *a, **k: inner.append(original(*a, **k)) or inner[-1])
    texts = {}
    for split, count in (("train", 1500), ("valid", 200), ("test", 200)):
        inner.clear()
        texts[split] = {S.document(i, kind, split) for i in range(count)}
        assert len(texts[split]) > 0.9 * count
        assert {S.split_of(p.key) for p in inner} == (set() if kind == "general" else {split})
        for text in texts[split]:
            assert not re.search(r"[|~]|\{[a-z]", text) and len(text) > 10
            if kind == "general":
                assert S.split_of(text) == split
    assert not texts["train"] & texts["valid"] and not texts["train"] & texts["test"]
    assert not texts["valid"] & texts["test"]


def test_documents_have_problems_of_the_chosen_levels(monkeypatch):
    inner, original = [], S.problem
    monkeypatch.setattr(S, "problem", lambda *a, **k: inner.append(original(*a, **k)) or inner[-1])
    for i in range(60):
        S.document(i, "math", level=(1, 2), lang="en")
    assert {p.level for p in inner} == {1, 2} and {p.lang for p in inner} == {"en"}


# ---- Command line -----------------------------------------------------------------------------


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_command_writes_all_files(tmp_path, capsys):
    sizes = "--train 30 --valid 5 --test 7 --documents 41".split()
    S.main([*sizes, *f"--to {tmp_path} --seed 3 --levels 1,2 --formats cot,tool".split()])
    assert "30 train" in capsys.readouterr().out
    assert sorted(
        str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()
    ) == sorted(
        ["train.jsonl", "valid.jsonl", "test.jsonl", "sft.jsonl"]
        + [f"documents/{kind}.jsonl" for kind in S.KINDS]
        + [f"documents/valid_{kind}.jsonl" for kind in S.KINDS]
    )
    for split, count in (("train", 30), ("valid", 5), ("test", 7)):
        expected = sample(count, split, 3, level=(1, 2))
        for row, p in zip(rows(tmp_path / f"{split}.jsonl"), expected, strict=True):
            assert row == {
                "id": p.id,
                "question": p.question,
                "answer": p.answer,
                "solution": p.cot,
                "source": "synthetic",
                "lang": p.lang,
                "level": p.level,
            }
    sft = rows(tmp_path / "sft.jsonl")
    assert [row["format"] for row in sft] == ["cot", "tool"] * 30
    for number, row in enumerate(sft):
        p = S.problem(number // 2, "train", 3, level=(1, 2))
        assert row == {
            "question": p.question,
            "response": getattr(p, row["format"]),
            "format": ("cot", "tool")[number % 2],
            "lang": p.lang,
        }
    for kind in S.KINDS:
        for prefix, split, count in (("", "train", 41), ("valid_", "valid", 3)):
            written = rows(tmp_path / "documents" / f"{prefix}{kind}.jsonl")
            assert [row["text"] for row in written] == [
                S.document(i, kind, split, 3, level=(1, 2)) for i in range(count)
            ]
            assert all(
                row.keys() == {"text", "source", "lang"} and row["source"] == kind
                for row in written
            )
            assert all(
                (row["lang"] == "zh") == bool(re.search("[一-鿿]", row["text"])) for row in written
            )


def test_formats_can_alternate(tmp_path):
    sizes = "--train 6 --valid 0 --test 0 --documents 0 --langs en".split()
    formats = "--formats cot,pot,tool --sft_formats alternate".split()
    S.main(["--to", str(tmp_path), *sizes, *formats])
    assert [row["format"] for row in rows(tmp_path / "sft.jsonl")] == ["cot", "pot", "tool"] * 2
    assert rows(tmp_path / "valid.jsonl") == []


@pytest.mark.parametrize(
    "option, named",
    [
        (["--levels", "1,9"], "--levels 1,9: unknown; choose 1, 2, 3, 4 or 5"),
        (["--levels", "one"], "--levels one: needs an integer"),
        (["--langs", "fr"], "--langs fr: unknown"),
        (["--langs="], "--langs is needed"),
        (["--formats", "cot,essay"], "--formats cot,essay: unknown"),
        (["--sft_formats", "some"], "--sft_formats some: unknown"),
        (["--train", "-1"], "--train -1"),
        (["--documents", "-3"], "--documents -3"),
    ],
)
def test_bad_options_are_named(tmp_path, option, named):
    with pytest.raises(InputError, match=re.escape(named)) as error:
        S.main(["--to", str(tmp_path / "new"), *option])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_bad_options_exit_with_2(tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, named in (
        (["--to", str(tmp_path / "x"), "--levels", "7"], "--levels 7"),
        (["--to", str(tmp_path / "file")], str(tmp_path / "file")),
        (["--to", str(tmp_path / "x"), "--train", "many"], "--train"),
        ([], "--to"),
    ):
        run = subprocess.run(
            [sys.executable, "-m", "data.world.synthetic", *arguments],
            capture_output=True,
            text=True,
        )
        assert run.returncode == 2 and named in run.stderr and "Traceback" not in run.stderr


@pytest.mark.parametrize(
    "call",
    [
        lambda: S.problem(0, split="dev"),
        lambda: S.problem(0, lang="fr"),
        lambda: S.problem(0, level=6),
        lambda: S.problem(0, level=()),
        lambda: S.document(0, "poems"),
        lambda: S.document(0, "math", split="dev"),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises(InputError, match="choose from"):
        call()
