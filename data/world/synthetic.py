"""A seeded, endless world of word problems and documents, in English and Chinese, without a
download.

    python -m data.world.synthetic --to DIR

    DIR/train.jsonl, valid.jsonl, test.jsonl     problems: {id, question, answer, solution, ...}
    DIR/sft.jsonl                                examples: {question, response, format, lang}
    DIR/documents/KIND.jsonl, valid_KIND.jsonl   documents for pre-training: general, math, code

Train, validation and test never share a problem. A problem has a key: family, names, objects and
numbers, which all wordings of the problem show. A hash of the key decides the split. So the same
problem with another wording, with a distractor, or in the other language is in the same split.
Every index has a separate random generator: problem(i) does not depend on other problems.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from runtime.options import option, parse

from data.io import InputError, run_cli, write_jsonl
from data.world import documents
from data.world.families import (
    DISTRACTOR_RATE,
    DISTRACTORS,
    FAMILIES,
    NAMES,
    OBJECTS,
    Draw,
    Family,
    SyntheticProblem,
)

SPLITS = ("train", "valid", "test")
LANGS = ("en", "zh")
LEVELS = tuple(FAMILIES)
FORMATS = ("cot", "pot", "tool")
KINDS = tuple(documents.KINDS)
ANSWER = {"en": "The answer is {}.", "zh": "答案是{}。"}
TOOL_LEAD = {"en": "Let me compute this with Python.", "zh": "用 Python 计算。"}


# ---- Random choices --------------------------------------------------------------------------


def split_of(key: str) -> str:
    """The split of a key: 90 % train, 5 % valid, 5 % test. It never changes, on any machine."""
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    bucket = int.from_bytes(digest, "big") % 100
    if bucket < 90:
        return "train"
    return "valid" if bucket < 95 else "test"


def generator(*name) -> Draw:
    """A source of random integers, seeded by a name: draw(low, high) includes both bounds.

    It uses only random(), which is the same in every version of Python.
    """
    uniform = random.Random("/".join(map(str, name))).random
    return lambda low, high: low + int(uniform() * (high - low + 1))


def choose(name: str, wanted, allowed: tuple) -> tuple:
    """`wanted` (None: all, one value, or several) as a tuple of allowed values.

    Raises InputError, which names the argument `name`.

    >>> choose("lang", "en", LANGS), choose("lang", None, LANGS)
    (('en',), ('en', 'zh'))
    """
    if wanted is None:
        return allowed
    values = tuple(wanted) if isinstance(wanted, list | tuple) else (wanted,)
    for value in values:
        if value not in allowed:
            raise InputError(f"{name} {value!r}: unknown; choose from {_listed(allowed)}")
    if not values:
        raise InputError(f"{name} is empty; choose from {_listed(allowed)}")
    return values


def _listed(values: tuple) -> str:
    return ", ".join(map(str, values))


def distinct(
    draw: Draw,
    count: int,
    size: int,
    taken: Sequence[int] = (),
) -> list[int]:
    """`count` different integers below `size` that are not in `taken`."""
    chosen: list[int] = []
    while len(chosen) < count:
        candidate = draw(0, size - 1)
        if candidate not in chosen and candidate not in taken:
            chosen.append(candidate)
    return chosen


# ---- Problems --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plot:
    """A problem before it has a wording: numbers by field, and indices of names and objects."""

    family: Family
    numbers: dict
    people: list[int]  # in NAMES
    objects: list[int]  # in OBJECTS

    @property
    def key(self) -> str:
        slots = dict(self.numbers)
        slots.update(zip(self.family.people, self.people, strict=True))
        slots.update(zip(self.family.objects, self.objects, strict=True))
        values = ",".join(f"{slot}={slots[slot]}" for slot in self.family.key_slots)
        return f"{self.family.name}:{values}"


def problem(
    index: int,
    split: str = "train",
    seed: int | str = 0,
    lang=None,
    level=None,
) -> SyntheticProblem:
    """Problem number `index` of a split. Equal arguments give equal problems.

    lang ("en", "zh") and level (1: one step, .. 5: four steps and a distractor) can be one value,
    several, or None for all. For the same index, split, seed and level, the two languages have the
    same problem. Raises InputError.
    """
    choose("split", split, SPLITS)
    langs, levels = choose("lang", lang, LANGS), choose("level", level, LEVELS)
    draw = generator("problem", seed, split, index)
    lang, level = documents.pick(draw, langs), documents.pick(draw, levels)
    while True:  # about twenty turns for valid and test, which have a twentieth of the keys each
        plot = _draw_plot(FAMILIES[level], draw)
        if split_of(plot.key) == split:
            return _tell(f"{split}-{seed}-{index}-{lang}{level}", plot, lang, draw)


def _draw_plot(families: list[Family], draw: Draw) -> Plot:
    family = documents.pick(draw, families)
    numbers = family.numbers(draw)
    people = distinct(draw, len(family.people), len(NAMES))
    objects = distinct(draw, len(family.objects), len(OBJECTS))
    return Plot(family, numbers, people, objects)


def _tell(
    id: str,
    plot: Plot,
    lang: str,
    draw: Draw,
) -> SyntheticProblem:
    """Put a problem into words. The wording and the distractor are not part of the key."""
    family, column = plot.family, LANGS.index(lang)

    # The text of every field.
    slots = dict(plot.numbers)
    for slot, i in zip(family.people, plot.people, strict=True):
        slots[slot] = NAMES[i][column]
    for (noun, singular, measure), i in zip(
        (("o", "o1", "u"), ("p", "p1", "w")), plot.objects, strict=False
    ):
        slots[noun] = OBJECTS[i][2 * column]
        slots[singular], slots[measure] = OBJECTS[i][1], OBJECTS[i][3]

    # The question, perhaps with a distractor.
    question = documents.pick(draw, family.wordings[lang]).format_map(slots)
    extra = ""
    if draw(1, 100) <= 100 * DISTRACTOR_RATE[family.level]:
        extra = _distractor(plot, lang, draw) + " " * (lang == "en")
    question = question.replace("|", extra)

    # The three solutions.
    answer = str(plot.numbers["answer"])
    pot = family.pot.format_map(slots)
    cot = family.cot[lang].format_map(slots) + "\n" + ANSWER[lang].format(answer)
    boxed = ANSWER[lang].format(f"$\\boxed{{{answer}}}$")
    tool = f"{TOOL_LEAD[lang]}\n```python\n{pot}\n```\n```output\n{answer}\n```\n{boxed}"
    return SyntheticProblem(
        id, question, answer, cot, pot, tool, family.level, lang, family.name, plot.key
    )


def _distractor(plot: Plot, lang: str, draw: Draw) -> str:
    """A sentence with a number that does not matter, about another person or object."""
    (person,) = distinct(draw, 1, len(NAMES), plot.people)
    (thing,) = distinct(draw, 1, len(OBJECTS), plot.objects)
    column = LANGS.index(lang)
    return documents.pick(draw, DISTRACTORS[lang]).format(
        q=NAMES[person][column],
        r=OBJECTS[thing][2 * column],
        s=OBJECTS[thing][3],
        d=draw(2, 40),
    )


# ---- Documents -------------------------------------------------------------------------------


def document(
    index: int,
    kind: str,
    split: str = "train",
    seed: int = 0,
    lang=None,
    level=None,
) -> str:
    """Pre-training document number `index` of a kind ("general", "math", "code") and a split.

    lang and level (of the word problems inside) as in `problem`. These problems are in the split of
    the document. No text is in two splits. Raises InputError.
    """
    return document_row(index, kind, split, seed, lang, level)["text"]


def document_row(
    index: int,
    kind: str,
    split: str,
    seed: int,
    lang,
    level,
) -> dict:
    """The same as a row {text, source, lang}."""
    choose("kind", kind, KINDS)
    choose("split", split, SPLITS)
    langs, levels = choose("lang", lang, LANGS), choose("level", level, LEVELS)
    draw = generator("document", kind, seed, split, index)
    lang = documents.pick(draw, langs)
    exercises = 0  # in this attempt

    def exercise() -> SyntheticProblem:
        nonlocal exercises
        exercises += 1
        return problem(draw(0, 2**31), split, f"documents-{seed}", lang, levels)

    while True:
        exercises = 0
        text = documents.compose(kind, lang, draw, exercise, max(levels))
        # A text with a word problem of this split cannot be a text of another split.
        if exercises or split_of(text) == split:
            return {
                "text": text,
                "source": kind,
                "lang": lang,
            }


# ---- Files -----------------------------------------------------------------------------------


@dataclass
class Config:
    to: str = option("", "folder for the files", required=True)
    seed: int = option(0, "seed of the world", least=0)
    train: int = option(20_000, "problems in train.jsonl", least=0)
    valid: int = option(500, "problems in valid.jsonl", least=0)
    test: int = option(500, "problems in test.jsonl", least=0)
    documents: int = option(10_000, "documents of each kind; 1/20 as many for validation", least=0)
    formats: list[str] = option(
        ["cot", "pot"],
        "formats in sft.jsonl; repeated: more often",
        required=True,
        choices=FORMATS,
    )
    sft_formats: str = option(
        "all",
        "formats of each problem; alternate: in turn",
        choices=("all", "alternate"),
    )
    levels: list[int] = option(
        [1, 2, 3, 4, 5], "levels of the problems: 1 (one step) to 5", required=True, choices=LEVELS
    )
    langs: list[str] = option(["en", "zh"], "languages", required=True, choices=LANGS)


def problem_row(p: SyntheticProblem) -> dict:
    return {
        "id": p.id,
        "question": p.question,
        "answer": p.answer,
        "solution": p.cot,
        "source": "synthetic",
        "lang": p.lang,
        "level": p.level,
    }


def sft_rows(problems: Iterator[SyntheticProblem], config: Config) -> Iterator[dict]:
    """Training examples: each problem in every format, or in one format, in turn."""
    for number, p in enumerate(problems):
        formats = config.formats
        if config.sft_formats == "alternate":
            formats = [formats[number % len(formats)]]
        for name in formats:
            response = getattr(p, name)
            yield {"question": p.question, "response": response, "format": name, "lang": p.lang}


def write_files(config: Config) -> None:
    """Write all files that the top of this file lists."""
    folder, seed = Path(config.to), config.seed
    chosen = (config.langs, config.levels)

    def problems(split: str) -> Iterator[SyntheticProblem]:
        for index in range(getattr(config, split)):
            yield problem(index, split, seed, *chosen)

    def document_rows(kind: str, split: str, count: int) -> Iterator[dict]:
        for index in range(count):
            yield document_row(index, kind, split, seed, *chosen)

    for split in SPLITS:
        write_jsonl(folder / f"{split}.jsonl", map(problem_row, problems(split)))
    write_jsonl(folder / "sft.jsonl", sft_rows(problems("train"), config))
    validation = -(-config.documents // 20)
    for kind in KINDS:
        rows = document_rows(kind, "train", config.documents)
        write_jsonl(folder / "documents" / f"{kind}.jsonl", rows)
        rows = document_rows(kind, "valid", validation)
        write_jsonl(folder / "documents" / f"valid_{kind}.jsonl", rows)


def main(argv: list[str] | None = None) -> None:
    config = parse(Config, argv, description=__doc__)
    write_files(config)
    counts = ", ".join(f"{getattr(config, split)} {split}" for split in SPLITS)
    print(f"wrote {counts} problems and {config.documents} documents of each kind to {config.to}")


if __name__ == "__main__":
    run_cli(main)
