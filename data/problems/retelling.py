"""Recognizes built-in problems (data/world/synthetic.py) and retells them: with other people and
things, with other numbers, or in other words.

A question is matched against every wording of every family. It is recognized if exactly one of
them fits, and if the solution, where there is one, is the solution of that family. The result
stays in the split of the original, so it is never a training problem.
"""

import functools
import random
import re
from dataclasses import dataclass, replace
from string import Formatter

from data.problems.problem import Problem
from data.world.families import (
    DISTRACTORS,
    FAMILIES,
    NAMES,
    OBJECTS,
    Family,
    fields,
)
from data.world.synthetic import ANSWER, LANGS, distinct, split_of

# slot of a thing -> fields of (the plural or the noun, the singular, the measure word)
_OBJECT = {"o": ("o", "o1", "u"), "p": ("p", "p1", "w")}
_NUMBER = r"\d+(?:\.\d+)?(?:/\d+)?"
TRIES = 400  # draws before giving up; about one in twenty is in a test split


@dataclass(frozen=True)
class Parts:
    """The parts of a built-in question."""

    family: Family
    wording: str
    lang: str
    people: dict[str, int]  # slot -> place in NAMES
    things: dict[str, int]  # slot -> place in OBJECTS
    numbers: dict[str, str]  # slot -> text
    extra: str  # the distractor sentence with the space after it, or ""

    def key(self) -> str:
        """The key of data.world.synthetic, which decides the split."""
        slots = {**self.numbers, **self.people, **self.things}
        parts = [f"{slot}={slots[slot]}" for slot in self.family.key_slots]
        return f"{self.family.name}:{','.join(parts)}"

    def slots(self) -> dict[str, str]:
        """field -> text"""
        column = LANGS.index(self.lang)
        texts = dict(self.numbers)
        for slot, i in self.people.items():
            texts[slot] = NAMES[i][column]
        for slot, i in self.things.items():
            words = OBJECTS[i]
            plural, singular, measure = _OBJECT[slot]
            texts[plural] = words[2 * column]
            texts[singular] = words[1]
            texts[measure] = words[3]
        return texts

    def question(self) -> str:
        return self.wording.format_map(self.slots()).replace("|", self.extra)


def recognize(problem: Problem) -> Parts | None:
    """The parts of a problem, or None if it is not built in, or if several wordings fit it."""
    if problem.source != "synthetic" or problem.lang not in LANGS:
        return None
    fitting = []
    for family, wording, pattern in _patterns(problem.lang):
        match = pattern.fullmatch(problem.question)
        parts = match and _parts(family, wording, problem.lang, match.groupdict())
        if not parts:
            continue
        steps = _pattern(family.cot[problem.lang], problem.lang)
        if problem.solution is None or re.fullmatch(steps, problem.solution.rpartition("\n")[0]):
            fitting.append(parts)
    return fitting[0] if len(fitting) == 1 else None


def with_other_words(parts: Parts, rng: random.Random) -> Parts | None:
    """Another wording of the same family. It may name another person."""
    known = set(parts.slots())
    others = []
    for wording in parts.family.wordings[parts.lang]:
        missing = fields(wording) - known
        has_place = "|" in wording or not parts.extra
        if wording != parts.wording and missing <= {"n", "m", "k"} and has_place:
            others.append((wording, sorted(missing)))
    if not others:
        return None
    wording, missing = rng.choice(others)
    taken = [*parts.people.values(), *_in_extra(parts, NAMES)]
    people = distinct(rng.randint, len(missing), len(NAMES), taken)
    people = dict(zip(missing, people, strict=True))
    return replace(parts, wording=wording, people=parts.people | people)


def with_other_names(parts: Parts, rng: random.Random) -> Parts | None:
    """Other people and things in all slots. None of them is in the distractor sentence."""
    split = split_of(parts.key())
    taken_people = [*parts.people.values(), *_in_extra(parts, NAMES)]
    taken_things = [*parts.things.values(), *_in_extra(parts, OBJECTS)]
    for _ in range(TRIES):
        people = distinct(rng.randint, len(parts.people), len(NAMES), taken_people)
        things = distinct(rng.randint, len(parts.things), len(OBJECTS), taken_things)
        other = replace(
            parts,
            people=dict(zip(parts.people, people, strict=True)),
            things=dict(zip(parts.things, things, strict=True)),
        )
        if split_of(other.key()) == split:
            return other
    return None


def with_other_numbers(
    parts: Parts, answer: str, rng: random.Random
) -> tuple[Parts, str, str] | None:
    """(parts, answer, solution) with new numbers and another answer."""
    split = split_of(parts.key())
    for _ in range(TRIES):
        numbers = parts.family.numbers(rng.randint)
        new = str(numbers["answer"])
        texts = {slot: str(numbers[slot]) for slot in parts.numbers}
        other = replace(parts, numbers=texts)
        if new != answer and split_of(other.key()) == split:
            steps = parts.family.cot[parts.lang]
            steps = steps.format_map({**other.slots(), **numbers})
            last = ANSWER[parts.lang].format(new)
            return other, new, f"{steps}\n{last}"
    return None


def _in_extra(parts: Parts, words: tuple) -> list[int]:
    """The places of the names or things that the distractor sentence has."""
    column = LANGS.index(parts.lang) * (1 if words is NAMES else 2)
    return [i for i, row in enumerate(words) if row[column] in parts.extra]


# ---- Matching ------------------------------------------------------------------------------------


@functools.cache
def _patterns(lang: str) -> list[tuple[Family, str, re.Pattern]]:
    """(family, wording, regular expression of the wording) of all families."""
    patterns = []
    for families in FAMILIES.values():
        for family in families:
            for wording in family.wordings[lang]:
                patterns.append((family, wording, re.compile(_pattern(wording, lang))))
    return patterns


@functools.cache
def _pattern(template: str, lang: str) -> str:
    """A regular expression for the texts that a template gives. A field that occurs twice has the
    same text twice."""
    text, seen = "", set()
    for literal, field, _, _ in Formatter().parse(template):
        plain, bar, rest = (literal or "").partition("|")
        text += re.escape(plain) + (_extra(lang) + re.escape(rest) if bar else "")
        if field:
            text += f"(?P={field})" if field in seen else f"(?P<{field}>{_field(field, lang)})"
            seen.add(field)
    return text


def _field(field: str, lang: str) -> str:
    """A regular expression for the texts of a field."""
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
    """A regular expression for a distractor sentence, or for nothing."""
    known = {"q": _field("n", lang), "r": _field("o", lang), "s": _field("u", lang), "d": _NUMBER}
    sentences = []
    for template in DISTRACTORS[lang]:
        sentence = ""
        for literal, field, _, _ in Formatter().parse(template):
            sentence += re.escape(literal) + (f"(?:{known[field]})" if field else "")
        sentences.append(sentence)
    return f"(?P<extra_>(?:(?:{'|'.join(sentences)}){' ' if lang == 'en' else ''})?)"


def _parts(family: Family, wording: str, lang: str, groups: dict) -> Parts | None:
    """The parts in the groups of a match. None if singular and plural are of different things, or
    if two people or two things are the same."""
    column, extra = LANGS.index(lang), groups.pop("extra_", "")
    names = [row[column] for row in NAMES]
    people = {slot: names.index(groups.pop(slot)) for slot in "nmk" if slot in groups}
    things = {}
    for slot, forms in _OBJECT.items():
        words = {}  # column of OBJECTS -> the word in the question
        for place, form in zip((2 * column, 1, 3), forms, strict=True):
            if form in groups:
                words[place] = groups.pop(form)
        if not words:
            continue
        fitting = []
        for i, row in enumerate(OBJECTS):
            if all(row[place] == text for place, text in words.items()):
                fitting.append(i)
        if len(fitting) != 1:
            return None
        things[slot] = fitting[0]
    for values in (people, things):
        if len(set(values.values())) < len(values):
            return None
    return Parts(family, wording, lang, people, things, groups, extra)
