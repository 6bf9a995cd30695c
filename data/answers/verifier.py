r"""A second verifier that training never uses: whether two answers are the same, by SymPy.

A policy learns the peculiarities of the verifier that rewards it. An evaluation therefore needs
another one, which shares no code with comparison.py and expressions.py. Where the two disagree, a
person should look. This verifier reads fewer answers than the first: `agree` is None where it
cannot tell.

It rewrites LaTeX or Python notation to an arithmetic expression, parses that with Python's own
parser, and builds a SymPy expression from a few kinds of nodes, within limits of size. Rational
values are compared exactly, others to 30 digits, with fixed values for the variables.
"""

import ast
import re
from functools import lru_cache

import sympy

MAX_LENGTH, MAX_NODES, MAX_EXPONENT = 400, 120, 2000
_DIGITS = 30


def agree(gold: str, prediction: str | None) -> bool | None:
    """Whether two answers are equal; None if one of them cannot be read. Never raises, never hangs.

    >>> agree("1/2", "0.5"), agree("x + 1", "1 + x"), agree("2", "3")
    (True, True, False)
    """
    if prediction is None or not prediction.strip():
        return False
    sides = _read(gold), _read(prediction)
    if None in sides:
        same = _plain(gold) == _plain(prediction)
        return True if same else None
    try:
        return _same(*sides)
    except Exception:  # SymPy cannot compare the values
        return None


def stated(text: str) -> str | None:
    r"""The answer of a completion: the only \boxed{}, else the text after the last "answer is",
    "####" or 答案是. None if there are several different boxes: a person should say which of them
    count."""
    boxes = set()
    for match in re.finditer(r"\\f?box(?:ed)?\{", text):
        depth = 1
        for place in range(match.end(), len(text)):
            depth += (text[place] == "{") - (text[place] == "}")
            if depth == 0:
                boxes.add(text[match.end() : place].strip())
                break
    if len(boxes) > 1:
        return None
    if boxes:
        return boxes.pop() or None
    markers = list(re.finditer(r"answer\s*(?:is|:)\s*:?|####|答案(?:是|为|：|:)", text, re.I))
    if not markers:
        return None
    line = text[markers[-1].end() :].strip().partition("\n")[0]
    return re.split(r"\.(?=\s|$)|。|，(?=[因由])", line)[0].strip(" *:") or None


def _plain(text: str) -> str:
    text = re.sub(r"\\(?:text|mbox|textbf|mathrm|boxed)\s*\{([^{}]*)\}", r"\1", text)
    return re.sub(r"[\s$.()（）{}\\*]+", "", text).casefold()


# ---- reading -------------------------------------------------------------------------------------

# An answer is ("value" or "percent", expression), ("tuple", brackets, parts), ("set" or "list",
# "", parts), ("relation", sign, left, right), ("matrix", rows), or ("letter", "A").

_OPEN, _CLOSE = "([{", ")]}"


@lru_cache(4096)
def _read(text: str):
    text = text.strip()
    if len(text) > MAX_LENGTH:
        return None
    try:
        if "\\boxed" in text:
            text = stated(text) or text
        return _answer(_clean(text))
    except Exception:  # SymPy or Python's parser cannot read it
        return None


def _clean(text: str) -> str:
    for command in ("\\left", "\\right", "\\!", "\\,", "\\;"):
        text = text.replace(command, "")
    text = re.sub(r"\\(?:[dt]|c)frac", r"\\frac", text)
    text = re.sub(r"(?<!\\)\$|\\\(|\\\)|\\\[|\\\]|\\\$|\\displaystyle|\*\*(?=\s|$)", "", text)
    text = re.sub(r"\\([{}%])", r"\1", text)
    text = re.sub(r"\^(?:\\circ|\{\\circ\})", "", text)
    text = re.sub(r"\\(?:text|mbox|textbf|textnormal|mathrm)\s*\{\s*(and|or)\s*\}", ",", text)
    if re.search(r"\d", text):
        text = re.sub(r"\\(?:text|mbox|textbf|textnormal)\s*\{[^{}]*\}(?:\^\{?[23]\}?)?", "", text)
    text = re.sub(r"\\(?:text|mbox|textbf|mathrm)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<=\d)\s*(?:percent|pct|percentage)\b", "%", text)
    text = re.sub(r"\s+(?:and|or)\s+", ",", text)
    text = text.translate(str.maketrans("，；：", ",;:"))
    text = re.sub(r"^\s*[€£¥]|(?<=\d)\s*[€£¥]|(?<!\\)\\ |~", "", text)
    return text.strip().rstrip(".").strip()


_RELATIONS = (
    (r"\\ge(?:q|qslant)?\b|≥", ">="),
    (r"\\le(?:q|qslant)?\b|≤", "<="),
    (r"\\gt\b", ">"),
    (r"\\lt\b", "<"),
    (r"\\neq?", "!="),
)


def _answer(text: str):
    if re.fullmatch(r"\(?[A-Z]\)?", text):
        return "letter", text.strip("()")
    if matrix := re.fullmatch(
        r"\\begin\{([pbv]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", text, re.S
    ):
        rows = [row for row in re.split(r"\\\\", matrix[2]) if row.strip()]
        return "matrix", tuple(tuple(_expression(cell) for cell in row.split("&")) for row in rows)
    if "\\cup" in text:
        return "set", "", tuple(_answer(part.strip()) for part in text.split("\\cup"))
    relation = text
    for pattern, sign in _RELATIONS:
        relation = re.sub(pattern, sign, relation)
    parts = [part.strip() for part in re.split(r"(<=|>=|!=|<|>|==|=)", relation)]
    if len(parts) == 3 and not re.search(r"[,;]", relation):
        left, sign, right = parts
        named = re.fullmatch(r"[A-Za-z](?:_\{?\w\}?)?(?:\([a-z]\))?", left) and sign in ("=", "==")
        has_variable = re.search(r"(?<![a-zA-Z\\])[a-z](?![a-zA-Z])", right)
        if named and not has_variable:  # x = 5, but not y = 2x
            return _answer(right)
        return "relation", sign.replace("==", "="), _expression(left), _expression(right)
    if len(parts) > 3 and not re.search(r"[,;]", relation):
        return None
    _, member, inside = text.partition("\\in")
    if member and not inside[:1].isalpha():
        return _answer(inside.strip())
    pieces = _split(text)
    if len(pieces) > 1:
        thousands = re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?%?", text.replace(" ", ""))
        if thousands:
            return _answer(re.sub(r"[,\s]", "", text))
        return "list", "", tuple(map(_answer, pieces))
    brackets = text[:1] in _OPEN and text[-1:] in _CLOSE
    if brackets and _closes(text) == len(text) - 1:
        inside = tuple(map(_answer, _split(text[1:-1])))
        ends = text[0] + text[-1]
        if ends == "{}":
            return "set", "", inside
        if len(inside) > 1:
            return "tuple", ends, inside
        return inside[0] if inside else None
    if "\\pm" in text:
        return "list", "", tuple(_answer(text.replace("\\pm", sign)) for sign in "+-")
    if text.endswith("%"):
        return "percent", _expression(text.rstrip("% "))
    return "value", _expression(text)


def _split(text: str) -> list[str]:
    """Cut the text at commas and semicolons outside brackets."""
    pieces, depth = [""], 0
    for character in text:
        depth += (character in _OPEN) - (character in _CLOSE)
        if character in ",;" and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return [piece.strip() for piece in pieces if piece.strip()]


def _closes(text: str) -> int:
    """The place where the first bracket closes, -1 if it does not."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0:
            return place
    return -1


# ---- expressions ---------------------------------------------------------------------------------

_FUNCTIONS = {
    name: getattr(sympy, name)
    for name in (
        "sqrt sin cos tan cot sec csc asin acos atan log ln exp Abs factorial binomial Rational"
    ).split()
}
_NAMES = {
    "pi": sympy.pi,
    "E": sympy.E,
    "e": sympy.E,
    "I": sympy.I,
    "i": sympy.I,
    "oo": sympy.oo,
    "inf": sympy.oo,
}


# Fractions, roots and powers without braces inside, as Python writes them
_INNERMOST = (
    (r"\\frac\s*(\d)\s*(\d)", r"((\1)/(\2))"),
    (r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))"),
    (r"\\frac\s*\{([^{}]*)\}\s*(\d)", r"((\1)/(\2))"),
    (r"\\frac\s*(\d)\s*\{([^{}]*)\}", r"((\1)/(\2))"),
    (r"\\sqrt\s*\[([^\[\]]*)\]\s*\{([^{}]*)\}", r"((\2)**(1/(\1)))"),
    (r"\\sqrt\s*\{([^{}]*)\}", r" sqrt(\1)"),
    (r"\\sqrt\s*(\w)", r" sqrt(\1)"),
    (r"\^\s*\{([^{}]*)\}", r"**(\1)"),
)
_SIGNS = (
    (r"\\(?:times|cdot)|×|·", "*"),
    (r"\\div|÷", "/"),
    (r"\^", "**"),
    (r"\\infty|∞", " oo "),
    (r"\\pi|π", " pi "),
    (r"√\s*(\w+)", r"sqrt(\1)"),
    ("−", "-"),
    (r"\|", ""),
)


def _expression(text: str) -> sympy.Expr:
    """Raises ValueError or SyntaxError if the text is not an expression, or too large."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.strip())
    if "\\" not in text:  # a unit at the end
        text = re.sub(r"(?<=[\d)}])\s*(?:[a-zA-Z]{3,}|[一-鿿]+)[\s.]*$", "", text)
    for _ in range(20):  # the innermost first
        before = text
        for pattern, replacement in _INNERMOST:
            text = re.sub(pattern, replacement, text)
        if re.search(r"[A-Za-z]_", text):
            text = re.sub(r"_\s*\{?(\w+)\}?", "", text)
        if text == before:
            break
    if re.match(r"-?\d+\s*\(\(\d+\)/", text):  # a mixed number
        text = re.sub(r"(?<=\d)\s*(?=\(\(\d+\)/\(\d+\)\))", "+", text)
    for pattern, replacement in _SIGNS:
        text = re.sub(pattern, replacement, text)
    text = re.sub(
        r"\\(sin|cos|tan|cot|sec|csc|ln|log|exp)(?:\*\*\(?(\d)\)?)?\s*\(?([A-Za-z0-9]+)\)?",
        lambda m: f"({m[1]}({m[3]})**{m[2] or 1})",
        text,
    )
    text = re.sub(
        r"(?<=[\d)])\s*(?=[A-Za-z(])|(?<=\))\s*(?=\d)|(?<=[a-z])\s+(?=[A-Za-z(])", "*", text
    )
    if "\\" in text or "{" in text:
        raise ValueError(text)
    tree = ast.parse(text.strip(), mode="eval").body
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise ValueError("too large")
    return _build(tree, text.strip())


def _build(node, code: str) -> sympy.Expr:
    match node:
        case ast.Constant(value=int() | float() | complex()):
            literal = ast.get_source_segment(code, node)
            if exponent := re.search(r"[eE]([-+]?\d+)", literal):
                if abs(int(exponent[1])) > 100:
                    raise ValueError("too large")
            if literal[-1] in "jJ":
                return sympy.Rational(literal[:-1]) * sympy.I
            return sympy.Rational(literal)
        case ast.Name(id=name):
            if name in _NAMES:
                return _NAMES[name]
            if len(name) > 2:
                raise ValueError(name)
            return sympy.Mul(*(sympy.Symbol(letter) for letter in name))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return (
                -_build(operand, code) if isinstance(node.op, ast.USub) else _build(operand, code)
            )
        case ast.BinOp(left=left, right=right):
            a, b = _build(left, code), _build(right, code)
            match node.op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div():
                    if b == 0:
                        raise ValueError("division by zero")
                    return a / b
                case ast.Pow():
                    digits = len(str(max(abs(a.p), a.q))) if a.is_Rational else 1
                    if b.is_number and abs(b) * digits > MAX_EXPONENT:
                        raise ValueError("too large")
                    return a**b
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            values = [_build(argument, code) for argument in arguments]
            if name in ("factorial", "binomial", "exp") and any(
                abs(v) > 500 for v in values if v.is_number
            ):
                raise ValueError("too large")
            return _FUNCTIONS[name](*values)
    raise ValueError(code)


# ---- comparing -----------------------------------------------------------------------------------


def _same(a, b) -> bool | None:
    kinds = {a[0], b[0]}
    if kinds == {"value"} or kinds == {"percent"}:
        return _equal(a[1], b[1])
    if kinds == {"value", "percent"}:  # 50% is 0.5, and 50 too
        if a[0] == "value":
            a, b = b, a
        percent, value = a[1], b[1]
        return _equal(percent, value) or _equal(percent / 100, value)
    if kinds == {"letter"}:
        return a[1] == b[1]
    if kinds == {"relation"}:
        return _same_relation(a, b)
    if kinds == {"matrix"}:
        shapes = [[len(row) for row in m[1]] for m in (a, b)]
        if shapes[0] != shapes[1]:
            return False
        rows = zip(a[1], b[1], strict=True)
        return all(all(map(_equal, left, right)) for left, right in rows)
    if kinds == {"tuple"}:
        (_, ends, left), (_, other_ends, right) = a, b
        if ends != other_ends or len(left) != len(right):
            return False
        return _all(map(_same, left, right))
    if kinds <= {"set", "list"}:
        left, right = a[2], b[2]
        if len(left) != len(right):
            return False
        for x in left:
            if not any(_same(x, y) for y in right):
                return False
        return all(any(_same(x, y) for x in left) for y in right)
    if kinds <= {"tuple", "list", "set"}:  # (1, 2) may be 1, 2; but {1, 2} is not a point
        return None if "list" in kinds else False
    if "letter" in kinds or "matrix" in kinds:
        return None
    return False


def _all(verdicts) -> bool | None:
    verdicts = list(verdicts)
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _points(*expressions) -> list[dict]:
    symbols = sorted(set().union(*(e.free_symbols for e in expressions)), key=str)
    points = []
    for k in (1, 2, 3):
        point = {s: sympy.Rational(7 * k + 3 * i + 2, 5 + i) for i, s in enumerate(symbols)}
        points.append(point)
    return points


def _equal(a, b) -> bool:
    """Whether two expressions are equal as numbers; with variables, at all points."""
    if a == b:
        return True
    if a.is_Rational and b.is_Rational:
        printed_float = max(a.q, b.q) > 10**9  # as 0.30000000000000004
        return bool(printed_float and abs(a - b) <= abs(b) / 10**12)
    if a.is_infinite or b.is_infinite:
        return False
    return all(_near(a.subs(point), b.subs(point)) for point in _points(a, b))


def _near(a, b) -> bool:
    difference = abs(sympy.N(a - b, _DIGITS + 10, maxn=200))
    return bool(difference <= sympy.Float(10) ** (-_DIGITS) * (1 + abs(sympy.N(b, _DIGITS))))


def _same_relation(a, b) -> bool | None:
    (_, sign, left, right), (_, other, left_b, right_b) = a, b
    first, second = left - right, left_b - right_b
    turned = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
    ratios = []
    for point in _points(first, second):
        x, y = sympy.N(first.subs(point), _DIGITS), sympy.N(second.subs(point), _DIGITS)
        if y == 0:
            return None
        ratios.append(x / y)
    if not all(_near(ratios[0], ratio) for ratio in ratios) or ratios[0] == 0:
        return False
    return other == (sign if ratios[0] > 0 or sign in ("=", "!=") else turned[sign])
