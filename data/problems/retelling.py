"""Built-in problems (data/world/synthetic.py) read back: which family, wording, names, things and numbers a question has.

A question is matched against every wording of every family; what fits exactly one of them, and whose solution (where
there is one) is that family's, can be told again with other people and things, other numbers, or in other words. What
comes out stays in the split that the original belongs to, so that it can never be a training problem.
"""

import functools
import random
import re
from dataclasses import dataclass, replace
from string import Formatter

from data.problems.problem import Problem
from data.world.families import DISTRACTORS, FAMILIES, NAMES, OBJECTS, Family, fields
from data.world.synthetic import ANSWER, LANGS, distinct, split_of

# object slot: (field of the plural or noun, of the singular, of the measure word)
_OBJECT = {"o": ("o", "o1", "u"), "p": ("p", "p1", "w")}
_NUMBER = r"\d+(?:\.\d+)?(?:/\d+)?"
TRIES = 400  # draws before giving up; one in twenty lands in a test split


@dataclass(frozen=True)
class Told:
    """A question taken apart. people and things: places in NAMES and OBJECTS by slot; numbers: as written, by slot."""

    family: Family
    wording: str
    lang: str
    people: dict[str, int]
    things: dict[str, int]
    numbers: dict[str, str]
    extra: str  # the distractor sentence, with the space after it; or ""

    def key(self) -> str:
        """data.world.synthetic's key: what the split is decided by."""
        slots = {**self.numbers, **self.people, **self.things}
        return f"{self.family.name}:" + ",".join(
            f"{slot}={slots[slot]}" for slot in self.family.key_slots
        )

    def slots(self) -> dict[str, str]:
        """The text of every field."""
        column = LANGS.index(self.lang)
        texts = {**self.numbers, **{slot: NAMES[i][column] for slot, i in self.people.items()}}
        for slot, i in self.things.items():
            plural, singular, measure = _OBJECT[slot]
            texts |= {
                plural: OBJECTS[i][2 * column],
                singular: OBJECTS[i][1],
                measure: OBJECTS[i][3],
            }
        return texts

    def question(self) -> str:
        return self.wording.format_map(self.slots()).replace("|", self.extra)


def told(problem: Problem) -> Told | None:
    """None for a problem that is not built in, or that reads as one of several."""
    if problem.source != "synthetic" or problem.lang not in LANGS:
        return None
    found = []
    for family, wording, pattern in _patterns(problem.lang):
        match = pattern.fullmatch(problem.question)
        if match and (one := _read(family, wording, problem.lang, match.groupdict())):
            steps = _pattern(family.cot[problem.lang], problem.lang)
            if problem.solution is None or re.fullmatch(
                steps, problem.solution.rpartition("\n")[0]
            ):
                found.append(one)
    return found[0] if len(found) == 1 else None


def with_other_words(one: Told, rng: random.Random) -> Told | None:
    """Another wording of the same family; it may name a further person."""
    known = {*one.slots()}
    others = []
    for wording in one.family.wordings[one.lang]:
        missing = fields(wording) - known
        if (
            wording != one.wording
            and missing <= {"n", "m", "k"}
            and ("|" in wording or not one.extra)
        ):
            others.append((wording, sorted(missing)))
    if not others:
        return None
    wording, missing = rng.choice(others)
    taken = [*one.people.values(), *_in_text(one, NAMES)]
    people = dict(zip(missing, distinct(rng.randint, len(missing), len(NAMES), taken), strict=True))
    return replace(one, wording=wording, people=one.people | people)


def with_other_names(one: Told, rng: random.Random) -> Told | None:
    """All people and things others than before, none of them in the distractor sentence either."""
    split = split_of(one.key())
    taken = (
        [*one.people.values(), *_in_text(one, NAMES)],
        [*one.things.values(), *_in_text(one, OBJECTS)],
    )
    for _ in range(TRIES):
        people = distinct(rng.randint, len(one.people), len(NAMES), taken[0])
        things = distinct(rng.randint, len(one.things), len(OBJECTS), taken[1])
        other = replace(
            one,
            people=dict(zip(one.people, people, strict=True)),
            things=dict(zip(one.things, things, strict=True)),
        )
        if split_of(other.key()) == split:
            return other
    return None


def with_other_numbers(one: Told, answer: str, rng: random.Random) -> tuple[Told, str, str] | None:
    """(told, answer, solution) with numbers drawn anew, and another answer."""
    split = split_of(one.key())
    for _ in range(TRIES):
        numbers = one.family.numbers(rng.randint)
        other = replace(one, numbers={slot: str(numbers[slot]) for slot in one.numbers})
        if str(numbers["answer"]) != answer and split_of(other.key()) == split:
            steps = one.family.cot[one.lang].format_map({**other.slots(), **numbers})
            return (
                other,
                str(numbers["answer"]),
                steps + "\n" + ANSWER[one.lang].format(numbers["answer"]),
            )
    return None


def _in_text(one: Told, words: tuple) -> list[int]:
    """Names or things of the distractor sentence."""
    column = LANGS.index(one.lang) * (1 if words is NAMES else 2)
    return [i for i, row in enumerate(words) if row[column] in one.extra]


# ---- Matching --------------------------------------------------------------------------------------------------------


@functools.cache
def _patterns(lang: str) -> list[tuple[Family, str, re.Pattern]]:
    return [
        (family, wording, re.compile(_pattern(wording, lang)))
        for families in FAMILIES.values()
        for family in families
        for wording in family.wordings[lang]
    ]


@functools.cache
def _pattern(template: str, lang: str) -> str:
    """A regular expression for what a template can become; a field that comes twice must be the same twice."""
    text, seen = "", set()
    for literal, field, _, _ in Formatter().parse(template):
        plain, bar, rest = (literal or "").partition("|")
        text += re.escape(plain) + (_extra(lang) + re.escape(rest) if bar else "")
        if field:
            text += f"(?P={field})" if field in seen else f"(?P<{field}>{_field(field, lang)})"
            seen.add(field)
    return text


def _field(field: str, lang: str) -> str:
    column = LANGS.index(lang)
    words = {
        "n": (NAMES, column),
        "o": (OBJECTS, 2 * column),
        "o1": (OBJECTS, 1),
        "u": (OBJECTS, 3),
    }
    words |= {"m": words["n"], "k": words["n"], "p": words["o"], "p1": words["o1"], "w": words["u"]}
    if field not in words:
        return _NUMBER
    rows, place = words[field]
    return "|".join(sorted({row[place] for row in rows}, key=len, reverse=True))


def _extra(lang: str) -> str:
    known = {"q": _field("n", lang), "r": _field("o", lang), "s": _field("u", lang), "d": _NUMBER}
    sentences = []
    for template in DISTRACTORS[lang]:
        parts = [
            re.escape(literal) + (f"(?:{known[field]})" if field else "")
            for literal, field, _, _ in Formatter().parse(template)
        ]
        sentences.append("".join(parts))
    return f"(?P<extra_>(?:(?:{'|'.join(sentences)}){' ' if lang == 'en' else ''})?)"


def _read(family: Family, wording: str, lang: str, groups: dict) -> Told | None:
    """None where singular and plural, or two people, or two things, do not go together."""
    column, extra = LANGS.index(lang), groups.pop("extra_", "")
    people = {
        slot: [row[column] for row in NAMES].index(groups.pop(slot))
        for slot in "nmk"
        if slot in groups
    }
    things = {}
    for slot, faces in _OBJECT.items():
        given = [
            (place, groups.pop(face))
            for place, face in zip((2 * column, 1, 3), faces, strict=True)
            if face in groups
        ]
        if given:
            rows = [
                i
                for i, row in enumerate(OBJECTS)
                if all(row[place] == text for place, text in given)
            ]
            if len(rows) != 1:
                return None
            things[slot] = rows[0]
    for values in (people, things):
        if len(set(values.values())) < len(values):
            return None
    return Told(family, wording, lang, people, things, groups, extra)
