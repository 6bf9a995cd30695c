"""A seeded, endless world of word problems and documents in English and Chinese, so that all runs with no download.

    python -m data.world.synthetic --to DIR

Train, validation and test never share a problem: a problem's key (family, names, objects, numbers: everything that all
its wordings show) is hashed, and the hash says which split it belongs to. So the same problem in other words, with a
distractor, or in the other language stays in its split. Every index has a generator of its own: what `problem(i)` is
does not depend on which others were asked for.
"""

import argparse
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.io import InputError, run_cli, write_jsonl
from data.world import documents as documents
from data.world.families import DISTRACTOR_RATE, DISTRACTORS, FAMILIES, NAMES, OBJECTS, Family

SPLITS = ("train", "valid", "test")
LANGS = ("en", "zh")
LEVELS = tuple(FAMILIES)
FORMATS = ("cot", "pot", "tool")
KINDS = tuple(documents.KINDS)
ANSWER = {"en": "The answer is {}.", "zh": "答案是{}。"}
TOOL_LEAD = {"en": "Let me compute this with Python.", "zh": "用 Python 计算。"}


@dataclass(frozen=True)
class SyntheticProblem:
    """A problem with its solution in the three formats; `answer` is an int, a fraction (3/4) or a finite decimal."""

    id: str
    question: str
    answer: str
    cot: str  # steps, one a line, then the final sentence
    pot: str  # a program that prints the answer
    tool: str  # text, the program, its output, the final sentence with \boxed{}
    level: int
    lang: str
    family: str
    key: str  # what the split is decided by


def split_of(key: str) -> str:
    """The split that owns a key: 90 % train, 5 % valid, 5 % test. Fixed for ever, the same on every machine."""
    bucket = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") % 100
    return "train" if bucket < 90 else "valid" if bucket < 95 else "test"


def generator(*name) -> Callable[[int, int], int]:
    """A named source of integers: draw(low, high), both included. Built on random() alone, which no Python changes."""
    uniform = random.Random("/".join(map(str, name))).random
    return lambda low, high: low + int(uniform() * (high - low + 1))


def choose(name: str, wanted, allowed: tuple) -> tuple:
    """`wanted` (None: all, one value, or several) as a tuple of allowed values. Raises InputError."""
    values = (
        allowed
        if wanted is None
        else tuple(wanted)
        if isinstance(wanted, list | tuple)
        else (wanted,)
    )
    for value in values:
        if value not in allowed:
            raise InputError(
                f"{name} {value!r} is unknown; choose from {', '.join(map(str, allowed))}"
            )
    if not values:
        raise InputError(f"{name} is empty; choose from {', '.join(map(str, allowed))}")
    return values


def distinct(
    draw: Callable[[int, int], int], count: int, size: int, taken: Sequence[int] = ()
) -> list[int]:
    """`count` different integers below `size`, none of them in `taken`."""
    found: list[int] = []
    while len(found) < count:
        candidate = draw(0, size - 1)
        if candidate not in found and candidate not in taken:
            found.append(candidate)
    return found


# --- Problems -------------------------------------------------------------------------------------------------------


def problem(
    index: int, split: str = "train", seed: int = 0, lang=None, level=None
) -> SyntheticProblem:
    """Problem number `index` of a split; equal arguments give equal problems.

    lang ("en", "zh") and level (1 one step .. 5 four steps and a distractor) may be one value, several, or None: all.
    The two languages of one (index, split, seed, level) tell the same problem. Raises InputError.
    """
    choose("split", split, SPLITS)
    langs, levels = choose("lang", lang, LANGS), choose("level", level, LEVELS)
    draw = generator("problem", seed, split, index)
    lang, level = langs[draw(0, len(langs) - 1)], levels[draw(0, len(levels) - 1)]
    families = FAMILIES[level]
    while True:  # about twenty rounds for valid and test: each owns a twentieth of the keys
        family = families[draw(0, len(families) - 1)]
        numbers = family.numbers(draw)
        people = distinct(draw, len(family.people), len(NAMES))
        objects = distinct(draw, len(family.objects), len(OBJECTS))
        slots = dict(numbers)
        slots.update(zip(family.people, people, strict=True))
        slots.update(zip(family.objects, objects, strict=True))
        key = f"{family.name}:" + ",".join([f"{slot}={slots[slot]}" for slot in family.key_slots])
        if split_of(key) == split:
            return tell(
                f"{split}-{seed}-{index}-{lang}{level}",
                key,
                family,
                lang,
                numbers,
                people,
                objects,
                draw,
            )


def tell(
    name: str, key: str, family: Family, lang: str, numbers: dict, people, objects, draw
) -> SyntheticProblem:
    """Put a problem into words. What is drawn here (wording, distractor) is not part of the key."""
    column = LANGS.index(lang)
    slots = dict(numbers)
    slots.update((slot, NAMES[i][column]) for slot, i in zip(family.people, people, strict=True))
    for (slot, singular, measure), i in zip(
        (("o", "o1", "u"), ("p", "p1", "w")), objects, strict=False
    ):
        slots[slot] = OBJECTS[i][2 * column]
        slots[singular], slots[measure] = OBJECTS[i][1], OBJECTS[i][3]
    wordings = family.wordings[lang]
    question = wordings[draw(0, len(wordings) - 1)].format_map(slots)
    extra = ""
    if draw(1, 100) <= 100 * DISTRACTOR_RATE[family.level]:
        extra = distractor(lang, people, objects, draw) + " " * (lang == "en")
    question = question.replace("|", extra)
    answer = str(numbers["answer"])
    pot = family.pot.format_map(slots)
    cot = family.cot[lang].format_map(slots) + "\n" + ANSWER[lang].format(answer)
    boxed = ANSWER[lang].format(f"$\\boxed{{{answer}}}$")
    tool = f"{TOOL_LEAD[lang]}\n```python\n{pot}\n```\n```output\n{answer}\n```\n{boxed}"
    return SyntheticProblem(
        name, question, answer, cot, pot, tool, family.level, lang, family.name, key
    )


def distractor(lang: str, people, objects, draw) -> str:
    (person,) = distinct(draw, 1, len(NAMES), people)
    (thing,) = distinct(draw, 1, len(OBJECTS), objects)
    column, templates = LANGS.index(lang), DISTRACTORS[lang]
    return templates[draw(0, len(templates) - 1)].format(
        q=NAMES[person][column], r=OBJECTS[thing][2 * column], s=OBJECTS[thing][3], d=draw(2, 40)
    )


# --- Documents ------------------------------------------------------------------------------------------------------


def document(
    index: int, kind: str, split: str = "train", seed: int = 0, lang=None, level=None
) -> str:
    """Pre-training document number `index` of a kind ("general", "math", "code") and split.

    lang and level (of the word problems within) as in `problem`; the problems are of the document's own split. No
    document text is in two splits. Raises InputError.
    """
    return document_row(index, kind, split, seed, lang, level)["text"]


def document_row(index: int, kind: str, split: str, seed: int, lang, level) -> dict:
    choose("kind", kind, KINDS)
    choose("split", split, SPLITS)
    langs, levels = choose("lang", lang, LANGS), choose("level", level, LEVELS)
    draw = generator("document", kind, seed, split, index)
    lang = langs[draw(0, len(langs) - 1)]
    held = 0  # word problems in this attempt

    def exercise() -> tuple[str, str, str, str]:
        nonlocal held
        held += 1
        p = problem(draw(0, 2**31), split, f"documents-{seed}", lang, levels)
        return p.question, p.answer, p.cot, p.pot

    while True:
        held = 0
        text = documents.compose(kind, lang, draw, exercise, max(levels))
        # A text with a word problem of this split cannot be a text of another.
        if held or split_of(text) == split:
            return {"text": text, "source": kind, "lang": lang}


# --- Files ----------------------------------------------------------------------------------------------------------


def sft_rows(
    problems: Iterable[SyntheticProblem], formats: tuple[str, ...], every: bool
) -> Iterator[dict]:
    """Training lines: each problem in every format, or in one format each by turns."""
    for number, p in enumerate(problems):
        for name in formats if every else formats[number % len(formats) :][:1]:
            yield {
                "question": p.question,
                "response": getattr(p, name),
                "format": name,
                "lang": p.lang,
            }


def write_files(
    directory: Path, counts: dict[str, int], seed: int, langs, levels, formats, every: bool
) -> None:
    """Write what the command below promises; counts: problems by split, and "documents" of each kind."""

    def problems(split: str) -> Iterator[SyntheticProblem]:
        return (problem(index, split, seed, langs, levels) for index in range(counts[split]))

    for split in SPLITS:
        write_jsonl(
            directory / f"{split}.jsonl",
            (
                {
                    "id": p.id,
                    "question": p.question,
                    "answer": p.answer,
                    "solution": p.cot,
                    "source": "synthetic",
                    "lang": p.lang,
                    "level": p.level,
                }
                for p in problems(split)
            ),
        )
    write_jsonl(directory / "sft.jsonl", sft_rows(problems("train"), formats, every))
    for kind in KINDS:
        for split, prefix, share in (("train", "", 1), ("valid", "valid_", 20)):
            write_jsonl(
                directory / "documents" / f"{prefix}{kind}.jsonl",
                (
                    document_row(index, kind, split, seed, langs, levels)
                    for index in range(-(-counts["documents"] // share))
                ),
            )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.world.synthetic", description="Write the built-in world to files."
    )
    parser.add_argument(
        "--to", required=True, metavar="DIR", help="train, valid, test, sft .jsonl and documents/"
    )
    parser.add_argument("--seed", type=int, default=0)
    for split, default in (("train", 20_000), ("valid", 500), ("test", 500)):
        parser.add_argument(
            f"--{split}",
            type=int,
            default=default,
            metavar="N",
            help=f"problems (default {default})",
        )
    parser.add_argument(
        "--documents",
        type=int,
        default=10_000,
        metavar="N",
        help="documents of each kind (default 10000), plus a twentieth for validation",
    )
    parser.add_argument(
        "--formats", default="cot,pot", help="of the lines of sft.jsonl, among cot,pot,tool"
    )
    parser.add_argument(
        "--sft_formats", default="all", help="all: a line in each format; alternate: one, by turns"
    )
    parser.add_argument("--levels", default="1,2,3,4,5", help="difficulties, 1 (one step) to 5")
    parser.add_argument("--langs", default="en,zh")
    options = parser.parse_args(arguments)

    counts = {name: getattr(options, name) for name in (*SPLITS, "documents")}
    for name, count in counts.items():
        if count < 0:
            raise InputError(f"--{name} {count} is negative; give 0 or more")
    try:
        levels = [int(level) for level in options.levels.split(",")]
    except ValueError:
        raise InputError(
            f"--levels {options.levels!r} is not a list of numbers; write for example 1,2"
        ) from None
    levels = choose("--levels", levels, LEVELS)
    langs = choose("--langs", options.langs.split(","), LANGS)
    formats = choose("--formats", options.formats.split(","), FORMATS)
    (every,) = choose("--sft_formats", options.sft_formats, ("all", "alternate"))
    directory = Path(options.to)
    try:
        write_files(directory, counts, options.seed, langs, levels, formats, every == "all")
    except OSError as error:
        raise InputError(
            f"--to {directory} cannot be written ({error.strerror}); give a directory"
        ) from None
    print(
        f"wrote {', '.join(f'{counts[split]} {split}' for split in SPLITS)} problems and "
        f"{options.documents} documents of each kind to {directory}"
    )


if __name__ == "__main__":
    run_cli(main)
