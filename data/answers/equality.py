"""Whether two expression trees are the same answer: by value in strict mode, with form let go in relaxed mode."""

from dataclasses import dataclass
from fractions import Fraction

from data.answers.trees import (
    NEGATED,
    Unreadable,
    add,
    as_matrix,
    is_name,
    is_percent,
    kind,
    multiply,
    negate,
    power,
    scalar,
    stated_value,
    symbols,
)
from data.answers.values import identical, proportional, rounds_to

INFINITY = ("const", "inf")


@dataclass
class Mode:
    relaxed: bool
    steps: int = 5000  # comparisons of numbers that one pair of answers may take

    def spend(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise Unreadable("too many comparisons")


def same(a, b, mode: Mode) -> bool:
    mode.spend()
    if a == b:
        return True
    relaxed = mode.relaxed
    if relaxed and (kind(a) != "rel" or kind(b) != "rel"):
        a, b = stated_value(a), stated_value(b)
    kinds = kind(a), kind(b)
    if kinds == ("number", "number"):
        return _same_percent(a, b, relaxed)
    if relaxed and "union" in kinds and {"rel", "list"} & set(kinds):  # x < 1 or x > 2
        a, b = _as_union(a), _as_union(b)
        kinds = kind(a), kind(b)
    if "rel" in kinds:
        return _same_relation(a, b, mode)
    if "matrix" in kinds:
        a, b = as_matrix(a), as_matrix(b)
        return (
            kind(a) == kind(b) == "matrix"
            and len(a) == len(b)
            and all(_all_same(left, right, mode) for left, right in zip(a[1:], b[1:], strict=True))
        )
    if (
        relaxed and "seq" in kinds and kinds[0] != kinds[1]
    ):  # [5] is 5; [1, 2, 3] a list; (1, 2) is 1, 2
        seq, other = (a, b) if kinds[0] == "seq" else (b, a)
        if seq[1:3] == ("[", "]") and len(seq) == 4:
            return same(seq[3], other, mode)
        if (
            kind(other) in ("list", "blanks")
            and seq[1:3] in (("(", ")"), ("[", "]"))
            and _all_same(seq[3:], other[1:], mode)
        ):
            return True
        if seq[1:3] == ("[", "]") and (len(seq) > 5 or any(kind(x) == "seq" for x in seq[3:])):
            return same(("list", *seq[3:]), other, mode)
    if kinds[0] == kinds[1] == "seq":
        if relaxed:  # [(1, 2)] is (1, 2)
            a, b = _only_item(a, b), _only_item(b, a)
        return a[1:3] == b[1:3] and _all_same(a[3:], b[3:], mode)
    if kinds[0] == kinds[1] == "ratio":
        if len(a) != len(b) or 0 in a[1:] or 0 in b[1:]:
            return _all_same(a[1:], b[1:], mode)
        scale = [
            multiply(scalar(x), power(scalar(y), Fraction(-1)))
            for x, y in zip(a[1:], b[1:], strict=True)
        ]
        return all(identical(scale[0], s) for s in scale[1:])
    if "blanks" in kinds and set(kinds) <= {"blanks", "list"}:  # in order
        return (relaxed or kinds[0] == kinds[1]) and _all_same(a[1:], b[1:], mode)
    if kinds[0] == kinds[1] == "list" and not relaxed:
        return len(a) == len(b) and _same_in_any_order(a[1:], b[1:], mode)
    if (
        kinds[0] == kinds[1] or relaxed and set(kinds) <= {"set", "list", "blanks"}
    ):  # nor does repetition matter
        return all(any(same(x, y, mode) for y in b[1:]) for x in a[1:]) and all(
            any(same(x, y, mode) for x in a[1:]) for y in b[1:]
        )
    if relaxed and set(kinds) == {"set", "number"}:
        elements = a if kinds[0] == "set" else b
        return len(elements) == 2 and same(elements[1], b if kinds[0] == "set" else a, mode)
    return False


def _all_same(left, right, mode: Mode) -> bool:
    return len(left) == len(right) and all(
        same(x, y, mode) for x, y in zip(left, right, strict=True)
    )


def _only_item(seq, other):
    is_list_of_one = (
        seq[1:3] == ("[", "]") and len(seq) == 4 and kind(seq[3]) == "seq" != kind(other[-1])
    )
    return seq[3] if is_list_of_one else seq


def _same_in_any_order(left, right, mode: Mode) -> bool:
    """Each of `left` is one of `right`, which is then used up; strict equality being transitive, the first will do."""
    remaining = list(right)
    for x in left:
        found = next((k for k, y in enumerate(remaining) if same(x, y, mode)), None)
        if found is None:
            return False
        remaining.pop(found)
    return True


def _same_percent(a, b, relaxed: bool) -> bool:
    percent = [is_percent(a), is_percent(b)]
    bare = [n[1] if is_percent else n for n, is_percent in zip((a, b), percent, strict=True)]
    if percent[0] == percent[1] or relaxed and _same_number(*bare, relaxed):
        return _same_number(*bare, relaxed)
    scaled = [
        multiply(Fraction(1, 100), n) if is_percent else n
        for n, is_percent in zip(bare, percent, strict=True)
    ]
    return _same_number(*scaled, relaxed)


def _same_number(a, b, relaxed: bool) -> bool:
    return identical(a, b) or relaxed and (rounds_to(a, b) or rounds_to(b, a))


# ---------------------------------------------------------------------------------------------------- relations


def _same_relation(a, b, mode: Mode) -> bool:
    if kind(a) != "rel" or kind(b) != "rel":
        interval, other = (_interval(a), b) if kind(a) == "rel" else (_interval(b), a)
        return mode.relaxed and interval is not None and same(interval, other, mode)
    (operators_a, left), (operators_b, right) = (_oriented(a), _oriented(b))
    if operators_a != operators_b:
        return False
    if len(left) == 2 or set(operators_a) == {"="}:
        if any(kind(term) != "number" for term in (*left, *right)):  # (x, y) = (1, 2)
            return _all_same(left, right, mode)
        return all(
            proportional(*pair, operators_a[0] in ("=", "!="))
            for pair in zip(_differences(left), _differences(right), strict=True)
        )
    return _all_same(left, right, mode)


def _oriented(relation):
    """Operators and terms, with < and <= instead of > and >=."""
    operators, terms = relation[1], relation[2:]
    if set(operators) <= {">", ">="}:
        return tuple(NEGATED[o] for o in reversed(operators)), terms[::-1]
    return operators, terms


def _differences(terms):
    return [add(scalar(x), negate(scalar(y))) for x, y in zip(terms, terms[1:], strict=False)]


def _interval(relation):
    """x > 5 as (5, inf), 0 < f(x) <= 1 as (0, 1], 1 <= |x| <= 2 as [-2, -1] with [1, 2], for a name between constants;
    else None."""
    operators, terms = _oriented(relation)
    if len(terms) == 2 and operators[0] in ("<", "<="):
        if is_name(terms[0]) and not symbols(terms[1]):
            operators, terms = ("<", *operators), (negate(INFINITY), *terms)
        elif is_name(terms[1]) and not symbols(terms[0]):
            operators, terms = (*operators, "<"), (*terms, INFINITY)
    if len(terms) != 3 or not set(operators) <= {"<", "<="} or not is_name(terms[1]):
        return None
    low, name, high = terms
    opening, closing = "(" if operators[0] == "<" else "[", ")" if operators[1] == "<" else "]"
    if isinstance(name, tuple) and name[:2] == ("call", "abs"):
        mirrored = {"(": ")", "[": "]", ")": "(", "]": "["}
        if low == negate(INFINITY):
            return ("seq", mirrored[closing], closing, negate(high), high)
        return (
            "union",
            ("seq", mirrored[closing], mirrored[opening], negate(high), negate(low)),
            ("seq", opening, closing, low, high),
        )
    return ("seq", opening, closing, low, high)


def _as_union(node):
    """x < 1 or x > 2, as a list of relations or as one relation in |x|, as a union of intervals, where it is one."""
    parts = node[1:] if kind(node) == "list" else [node] if kind(node) == "rel" else []
    intervals = [_interval(part) if kind(part) == "rel" else None for part in parts]
    if not parts or None in intervals:
        return node
    flat = [piece for one in intervals for piece in (one[1:] if kind(one) == "union" else [one])]
    return ("union", *flat)
