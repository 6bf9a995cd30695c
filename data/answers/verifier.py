r"""A second opinion on answers, held out from training: whether two answers are the same, by SymPy.

It shares no code with data/answers/comparison.py and data/answers/expressions.py and is never a training reward: a policy learns the
quirks of the checker that rewards it, so an evaluation needs one that it has not met. Where the two disagree a person
should look. It reads less than the first verifier and says so: `agree` is None where it cannot tell.

LaTeX or Python's notation is rewritten to one arithmetic expression, parsed by Python's own parser into a tree of few
kinds of node, built as a SymPy number or expression within limits of size, and compared exactly where both are
rational, otherwise by value to 30 digits, at seeded points where there are variables.
"""

import ast
import re
from functools import lru_cache

import sympy

MAX_LENGTH, MAX_NODES, MAX_EXPONENT = 400, 120, 2000
_DIGITS = 30


def agree(gold: str, prediction: str | None) -> bool | None:
    """True or False where both answers are read, None where one of them is not. Never raises, never hangs."""
    if prediction is None or not prediction.strip():
        return False
    sides = _read(gold), _read(prediction)
    if None in sides:
        same = _plain(gold) == _plain(prediction)
        return True if same else None
    try:
        return _same(*sides)
    except Exception:  # whatever SymPy makes of values that it cannot compare
        return None


def stated(text: str) -> str | None:
    r"""The answer of a completion: the only \boxed{}, else what follows the last "answer is", "####" or 答案是.
    None also where there are several boxes: which of them count is for a person to say."""
    boxes = set()
    for match in re.finditer(r"\\f?box(?:ed)?\{", text):
        depth = 1
        for place in range(match.end(), len(text)):
            depth += (text[place] == "{") - (text[place] == "}")
            if depth == 0:
                boxes.add(text[match.end() : place].strip())
                break
    if boxes:
        return boxes.pop() or None if len(boxes) == 1 else None
    markers = list(re.finditer(r"answer\s*(?:is|:)\s*:?|####|答案(?:是|为|：|:)", text, re.I))
    if not markers:
        return None
    line = text[markers[-1].end() :].strip().partition("\n")[0]
    return re.split(r"\.(?=\s|$)|。|，(?=[因由])", line)[0].strip(" *:") or None


def _plain(text: str) -> str:
    text = re.sub(r"\\(?:text|mbox|textbf|mathrm|boxed)\s*\{([^{}]*)\}", r"\1", text)
    return re.sub(r"[\s$.()（）{}\\*]+", "", text).casefold()


# ---------------------------------------------------------------------------------------------------- reading

# What an answer is: ("value" or "percent", expression), ("tuple", brackets, parts), ("set" or "list", "", parts),
# ("relation", sign, left, right), ("matrix", rows), ("letter", "A").

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
    except Exception:  # whatever SymPy or Python's parser make of it: not read
        return None


def _clean(text: str) -> str:
    text = (
        text.replace("\\left", "")
        .replace("\\right", "")
        .replace("\\!", "")
        .replace("\\,", "")
        .replace("\\;", "")
    )
    text = re.sub(r"\\(?:[dt]|c)frac", r"\\frac", text)
    text = re.sub(r"(?<!\\)\$|\\\(|\\\)|\\\[|\\\]|\\\$|\\displaystyle|\*\*(?=\s|$)", "", text)
    text = text.replace("\\{", "{").replace("\\}", "}").replace("\\%", "%")
    text = text.replace("^\\circ", "").replace("^{\\circ}", "")
    text = re.sub(r"\\(?:text|mbox|textbf|textnormal|mathrm)\s*\{\s*(and|or)\s*\}", ",", text)
    if re.search(r"\d", text):
        text = re.sub(r"\\(?:text|mbox|textbf|textnormal)\s*\{[^{}]*\}(?:\^\{?[23]\}?)?", "", text)
    text = re.sub(r"\\(?:text|mbox|textbf|mathrm)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<=\d)\s*(?:percent|pct|percentage)\b", "%", text)
    text = (
        re.sub(r"\s+(?:and|or)\s+", ",", text)
        .replace("，", ",")
        .replace("；", ";")
        .replace("：", ":")
    )
    text = re.sub(r"^\s*[€£¥]|(?<=\d)\s*[€£¥]|(?<!\\)\\ |~", "", text)
    return text.strip().rstrip(".").strip()


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
    relation = re.sub(r"\\le(?:q|qslant)?\b|≤", "<=", re.sub(r"\\ge(?:q|qslant)?\b|≥", ">=", text))
    relation = (
        re.sub(r"\\lt\b", "<", re.sub(r"\\gt\b", ">", relation))
        .replace("\\neq", "!=")
        .replace("\\ne", "!=")
    )
    parts = [part.strip() for part in re.split(r"(<=|>=|!=|<|>|==|=)", relation)]
    if len(parts) == 3 and not re.search(r"[,;]", relation):
        left, sign, right = parts
        named = re.fullmatch(r"[A-Za-z](?:_\{?\w\}?)?(?:\([a-z]\))?", left) and sign in ("=", "==")
        if named and not re.search(
            r"(?<![a-zA-Z\\])[a-z](?![a-zA-Z])", right
        ):  # x = 5, but not y = 2x
            return _answer(right)
        return "relation", sign.replace("==", "="), _expression(left), _expression(right)
    if len(parts) > 3 and not re.search(r"[,;]", relation):
        return None
    if (member := text.partition("\\in"))[1] and not text[
        len(member[0]) + 3 : len(member[0]) + 4
    ].isalpha():
        return _answer(member[2].strip())
    pieces = _split(text)
    if len(pieces) > 1:
        if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?%?", text.replace(" ", "")):
            return _answer(re.sub(r"[,\s]", "", text))
        return "list", "", tuple(_answer(piece) for piece in pieces)
    if text[:1] in _OPEN and text[-1:] in _CLOSE and _closes(text) == len(text) - 1:
        inside = [_answer(piece) for piece in _split(text[1:-1])]
        ends = text[0] + text[-1]
        if ends == "{}":
            return "set", "", tuple(inside)
        if len(inside) > 1:
            return "tuple", ends, tuple(inside)
        return inside[0] if inside else None
    if "\\pm" in text:
        return "list", "", tuple(_answer(text.replace("\\pm", sign)) for sign in "+-")
    if text.endswith("%"):
        return "percent", _expression(text.rstrip("% "))
    return "value", _expression(text)


def _split(text: str) -> list[str]:
    """At commas and semicolons outside brackets."""
    pieces, depth = [""], 0
    for character in text:
        depth += (character in _OPEN) - (character in _CLOSE)
        if character in ",;" and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return [piece.strip() for piece in pieces if piece.strip()]


def _closes(text: str) -> int:
    depth = 0
    for place, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0:
            return place
    return -1


# ---------------------------------------------------------------------------------------------------- expressions

_FUNCTIONS = {
    name: getattr(sympy, name)
    for name in "sqrt sin cos tan cot sec csc asin acos atan log ln exp Abs factorial binomial Rational".split()
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


def _expression(text: str) -> sympy.Expr:
    """Raises ValueError or SyntaxError for what is not an expression within the limits."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.strip())
    text = (
        re.sub(r"(?<=[\d)}])\s*(?:[a-zA-Z]{3,}|[一-鿿]+)[\s.]*$", "", text)
        if "\\" not in text
        else text
    )
    for _ in range(20):  # innermost first
        before = text
        text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"((\1)/(\2))", text)
        text = re.sub(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))", text)
        text = re.sub(r"\\frac\s*\{([^{}]*)\}\s*(\d)", r"((\1)/(\2))", text)
        text = re.sub(r"\\frac\s*(\d)\s*\{([^{}]*)\}", r"((\1)/(\2))", text)
        text = re.sub(r"\\sqrt\s*\[([^\[\]]*)\]\s*\{([^{}]*)\}", r"((\2)**(1/(\1)))", text)
        text = re.sub(r"\\sqrt\s*\{([^{}]*)\}", r" sqrt(\1)", text)
        text = re.sub(r"\\sqrt\s*(\w)", r" sqrt(\1)", text)
        text = re.sub(r"\^\s*\{([^{}]*)\}", r"**(\1)", text)
        text = re.sub(r"_\s*\{?(\w+)\}?", "", text) if re.search(r"[A-Za-z]_", text) else text
        if text == before:
            break
    text = (
        re.sub(r"(?<=\d)\s*(?=\(\(\d+\)/\(\d+\)\))", "+", text)
        if re.match(r"-?\d+\s*\(\(\d+\)/", text)
        else text
    )
    text = (
        re.sub(r"\\(?:times|cdot)|×|·", "*", text)
        .replace("\\div", "/")
        .replace("÷", "/")
        .replace("^", "**")
    )
    text = (
        text.replace("\\infty", " oo ")
        .replace("∞", " oo ")
        .replace("\\pi", " pi ")
        .replace("π", " pi ")
    )
    text = re.sub(r"√\s*(\w+)", r"sqrt(\1)", text).replace("−", "-").replace("|", "")
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


# ---------------------------------------------------------------------------------------------------- comparing


def _same(a, b) -> bool | None:
    kinds = {a[0], b[0]}
    if kinds == {"value"} or kinds == {"percent"}:
        return _equal(a[1], b[1])
    if kinds == {"value", "percent"}:  # 50% is 0.5, and 50 too
        percent, value = (a, b) if a[0] == "percent" else (b, a)
        return _equal(percent[1], value[1]) or _equal(percent[1] / 100, value[1])
    if kinds == {"letter"}:
        return a[1] == b[1]
    if kinds == {"relation"}:
        return _same_relation(a, b)
    if kinds == {"matrix"}:
        shapes = [[len(row) for row in m[1]] for m in (a, b)]
        return shapes[0] == shapes[1] and all(
            _equal(x, y) for r, s in zip(a[1], b[1], strict=True) for x, y in zip(r, s, strict=True)
        )
    if kinds == {"tuple"}:
        return a[1] == b[1] and len(a[2]) == len(b[2]) and _all(map(_same, a[2], b[2]))
    if kinds <= {"set", "list"}:
        return (
            len(a[2]) == len(b[2])
            and all(any(_same(x, y) for y in b[2]) for x in a[2])
            and all(any(_same(x, y) for x in a[2]) for y in b[2])
        )
    if kinds <= {"tuple", "list", "set"}:  # (1, 2) beside 1, 2; but {1, 2} is no point
        return None if "list" in kinds else False
    if "letter" in kinds or "matrix" in kinds:
        return None
    return False


def _all(verdicts) -> bool | None:
    verdicts = list(verdicts)
    return False if False in verdicts else None if None in verdicts else True


def _points(*expressions) -> list[dict]:
    symbols = sorted(set().union(*(e.free_symbols for e in expressions)), key=str)
    return [
        {s: sympy.Rational(7 * k + 3 * i + 2, 5 + i) for i, s in enumerate(symbols)}
        for k in (1, 2, 3)
    ]


def _equal(a, b) -> bool:
    """Equal as numbers, at all points where there are variables."""
    if a == b or a.is_Rational and b.is_Rational:
        printed = (
            a.is_Rational and b.is_Rational and max(a.q, b.q) > 10**9
        )  # a float: 0.30000000000000004
        return bool(a == b or printed and abs(a - b) <= abs(b) / 10**12)
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
