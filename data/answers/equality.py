"""Whether two expression trees are the same answer: by value in strict mode; relaxed mode also
accepts another form of the same answer."""

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

_INFINITY = ("const", "inf")


@dataclass
class Mode:
    relaxed: bool
    steps: int = 5000  # comparisons that a pair of answers may take

    def spend(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise Unreadable("too many comparisons")


def same(a, b, mode: Mode) -> bool:
    """Whether two trees are the same answer. Raises Unreadable beyond the limits."""
    mode.spend()
    if a == b:
        return True
    relaxed = mode.relaxed
    if relaxed and (kind(a) != "rel" or kind(b) != "rel"):
        a, b = stated_value(a), stated_value(b)
    kinds = {kind(a), kind(b)}
    if kinds == {"number"}:
        return _same_percent(a, b, relaxed)

    # Relations, unions and matrices
    if relaxed and (kinds == {"union", "rel"} or kinds == {"union", "list"}):  # x < 1 or x > 2
        a, b = _as_union(a), _as_union(b)
        kinds = {kind(a), kind(b)}
    if "rel" in kinds:
        return _same_relation(a, b, mode)
    if "matrix" in kinds:
        return _same_matrix(as_matrix(a), as_matrix(b), mode)

    # Points, intervals, ratios
    if relaxed and "seq" in kinds and len(kinds) == 2:
        seq, other = (a, b) if kind(a) == "seq" else (b, a)
        verdict = _same_as_sequence(seq, other, mode)
        if verdict is not None:
            return verdict
    if kinds == {"seq"}:
        if relaxed:  # [(1, 2)] is (1, 2)
            a, b = _without_list(a, b), _without_list(b, a)
        if a[1:3] != b[1:3]:  # the brackets
            return False
        return _all_same(a[3:], b[3:], mode)
    if kinds == {"ratio"}:
        return _same_ratio(a, b, mode)

    # Lists and sets
    if "number" in kinds:
        if not relaxed or kinds != {"set", "number"}:
            return False
        elements, number = (a, b) if kind(a) == "set" else (b, a)
        if len(elements) != 2:
            return False
        return same(elements[1], number, mode)
    left, right = a[1:], b[1:]
    if kinds == {"blanks"} or relaxed and kinds == {"blanks", "list"}:  # in order
        return _all_same(left, right, mode)
    if kinds == {"list"} and not relaxed:
        return _same_in_any_order(left, right, mode)
    if len(kinds) == 1 or relaxed and kinds <= {"set", "list", "blanks"}:
        return _same_elements(left, right, mode)
    return False


def _all_same(left, right, mode: Mode) -> bool:
    if len(left) != len(right):
        return False
    for x, y in zip(left, right, strict=True):
        if not same(x, y, mode):
            return False
    return True


def _same_matrix(a, b, mode: Mode) -> bool:
    if kind(a) != "matrix" or kind(b) != "matrix" or len(a) != len(b):
        return False
    for left, right in zip(a[1:], b[1:], strict=True):
        if not _all_same(left, right, mode):
            return False
    return True


def _same_as_sequence(seq, other, mode: Mode) -> bool | None:
    """Whether a sequence in brackets is the same as an answer of another kind; None if only the
    other rules can tell. [5] is 5, [1, 2, 3] is a list, (1, 2) is 1, 2."""
    brackets, items = seq[1] + seq[2], seq[3:]
    if brackets == "[]" and len(items) == 1:
        return same(items[0], other, mode)
    if kind(other) in ("list", "blanks") and brackets in ("()", "[]"):
        if _all_same(items, other[1:], mode):
            return True
    if brackets == "[]":
        has_points = any(kind(item) == "seq" for item in items)
        if len(items) > 2 or has_points:
            return same(("list", *items), other, mode)
    return None


def _without_list(seq, other):
    """The point of a list with one point, if the other sequence is a point."""
    if seq[1:3] != ("[", "]") or len(seq) != 4:
        return seq
    has_point = kind(seq[3]) == "seq"
    return seq[3] if has_point and kind(other[-1]) != "seq" else seq


def _same_ratio(a, b, mode: Mode) -> bool:
    left, right = a[1:], b[1:]
    if len(left) != len(right) or 0 in left or 0 in right:
        return _all_same(left, right, mode)
    scales = []
    for x, y in zip(left, right, strict=True):
        inverse = power(scalar(y), Fraction(-1))
        scales.append(multiply(scalar(x), inverse))
    return all(identical(scales[0], scale) for scale in scales[1:])


def _same_in_any_order(left, right, mode: Mode) -> bool:
    """Each item of `left` takes one item of `right`. Strict equality is transitive, so the first
    match is as good as any other."""
    if len(left) != len(right):
        return False
    remaining = list(right)
    for x in left:
        for place, y in enumerate(remaining):
            if same(x, y, mode):
                remaining.pop(place)
                break
        else:
            return False
    return True


def _same_elements(left, right, mode: Mode) -> bool:
    """Equality of sets: order and repetition do not matter."""
    for x in left:
        if not any(same(x, y, mode) for y in right):
            return False
    for y in right:
        if not any(same(x, y, mode) for x in left):
            return False
    return True


def _same_percent(a, b, relaxed: bool) -> bool:
    if is_percent(b):
        a, b = b, a
    if not is_percent(a):
        return _same_number(a, b, relaxed)
    percent = a[1]
    if is_percent(b):
        return _same_number(percent, b[1], relaxed)
    if relaxed and _same_number(percent, b, relaxed):
        return True
    share = multiply(Fraction(1, 100), percent)
    return _same_number(share, b, relaxed)


def _same_number(a, b, relaxed: bool) -> bool:
    if identical(a, b):
        return True
    return relaxed and (rounds_to(a, b) or rounds_to(b, a))


# ---- Relations -----------------------------------------------------------------------------------


def _same_relation(a, b, mode: Mode) -> bool:
    if kind(a) != "rel" or kind(b) != "rel":
        if not mode.relaxed:
            return False
        relation, other = (a, b) if kind(a) == "rel" else (b, a)
        interval = _interval(relation)
        return interval is not None and same(interval, other, mode)
    operators_a, left = _oriented(a)
    operators_b, right = _oriented(b)
    if operators_a != operators_b:
        return False
    if len(left) > 2 and set(operators_a) != {"="}:
        return _all_same(left, right, mode)
    terms = (*left, *right)
    if any(kind(term) != "number" for term in terms):  # (x, y) = (1, 2)
        return _all_same(left, right, mode)
    any_sign = operators_a[0] in ("=", "!=")
    for x, y in zip(_differences(left), _differences(right), strict=True):
        if not proportional(x, y, any_sign):
            return False
    return True


def _oriented(relation):
    """(operators, terms) with < and <= instead of > and >=."""
    operators, terms = relation[1], relation[2:]
    if not set(operators) <= {">", ">="}:
        return operators, terms
    turned = tuple(NEGATED[operator] for operator in reversed(operators))
    return turned, terms[::-1]


def _differences(terms):
    differences = []
    for x, y in zip(terms, terms[1:], strict=False):
        differences.append(add(scalar(x), negate(scalar(y))))
    return differences


def _interval(relation):
    """The interval of a name between constants, else None.

    x > 5 is (5, inf), 0 < f(x) <= 1 is (0, 1], and 1 <= |x| <= 2 is [-2, -1] with [1, 2].
    """
    operators, terms = _oriented(relation)
    if len(terms) == 2 and operators[0] in ("<", "<="):
        if is_name(terms[0]) and not symbols(terms[1]):
            operators = ("<", *operators)
            terms = (negate(_INFINITY), *terms)
        elif is_name(terms[1]) and not symbols(terms[0]):
            operators = (*operators, "<")
            terms = (*terms, _INFINITY)
    if len(terms) != 3 or not set(operators) <= {"<", "<="}:
        return None
    if not is_name(terms[1]):
        return None
    low, name, high = terms
    opening = "(" if operators[0] == "<" else "["
    closing = ")" if operators[1] == "<" else "]"
    interval = ("seq", opening, closing, low, high)
    if not isinstance(name, tuple) or name[:2] != ("call", "abs"):
        return interval

    # |x|: the interval and its mirror image
    mirrored_opening = "(" if closing == ")" else "["
    mirrored_closing = ")" if opening == "(" else "]"
    if low == negate(_INFINITY):
        return ("seq", mirrored_opening, closing, negate(high), high)
    mirror = ("seq", mirrored_opening, mirrored_closing, negate(high), negate(low))
    return ("union", mirror, interval)


def _as_union(node):
    """A list of relations (x < 1 or x > 2), or a relation in |x|, as a union of intervals. Any
    other node is returned as it is."""
    parts = []
    if kind(node) == "list":
        parts = node[1:]
    elif kind(node) == "rel":
        parts = [node]
    pieces = []
    for part in parts:
        interval = _interval(part) if kind(part) == "rel" else None
        if interval is None:
            return node
        if kind(interval) == "union":
            pieces += interval[1:]
        else:
            pieces.append(interval)
    return ("union", *pieces) if pieces else node
