r"""The rules of the paper's own evaluation, to compare with the paper's tables. Do not train with
them.

This file restates github.com/deepseek-ai/DeepSeek-Math, evaluation/: where it finds the answer of
each benchmark, and when two answers are equal. These answers are equal there, although they are
not, and the rules here repeat that on purpose:

- numbers within 0.001 of each other, whatever their size: 0.0005 and 0.0009
- a number that is 100 times larger or smaller, with a percent sign or without, also inside a tuple:
  500 and 5, 0.5 and 50
- numbers without their commas: 1,8 and 18
- brackets of any shape: an open and a closed interval
- two expressions with the same readable prefix: 2**10 and 2**11, n=1,2,3 and n=2,3,4
- unions and lists in which each part equals some part of the other
- several options, of which the letter whose first place is last counts (Gaokao-MathQA)

These are different there, although they are equal: \frac{\pi}{2} and 1.5708, since \pi is a
variable, and two equal negative numbers of OCW.

The original uses a simplifier, a clock and eval(). Here an evaluation at fixed points (values.py)
with limits that are counts, and the parser of expressions.py, take their place. The results may
differ for sums, integrals, derivatives and limits, which are compared as text here, and for
equalities that the simplifier does not find.
"""

import ast
import math
import re
import warnings

from data.answers.expressions import Parser
from data.answers.paper_latex import read_prefix, worked_out
from data.answers.trees import Unreadable, kind, symbols
from data.answers.values import MP, identical, values

MAX_LENGTH = 4000  # characters of an answer; longer ones are compared as they are
MAX_MATH = 1000  # characters of an expression
MAX_DEPTH = 20  # tuples in tuples
INVALID = "[invalid]"
BENCHMARKS = (
    "gsm8k",
    "math",
    "sat",
    "ocw",
    "mmlu_stem",
    "mgsm_zh",
    "cmath",
    "gaokao_mathcloze",
    "gaokao_mathqa",
)

_UNREADABLE = (
    Unreadable,
    RecursionError,
    OverflowError,
    ZeroDivisionError,
    ValueError,
    TypeError,
    MemoryError,
    SyntaxError,
)


# ---- extraction ----------------------------------------------------------------------------------


def paper_extract(
    text: str, benchmark: str, question: str = "", zero_shot: bool = False
) -> str | list[str]:
    """The answer that the paper's evaluation finds in a completion.

    It is a list for MATH and MathCloze, and a placeholder or "" without an answer. zero_shot: use
    the rule for instruction-tuned models, which answer without exemplars. Raises ValueError for a
    benchmark without a rule.
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(f"the paper has no rule for {benchmark}; use {', '.join(BENCHMARKS)}")
    # A base model goes on with the next problem: cut there.
    marks = {
        "gsm8k": "Q: ",
        "cmath": "问题：",
        "gaokao_mathcloze": "问题 ",
        "gaokao_mathqa": "问题 ",
    }
    whole = zero_shot and benchmark in ("gsm8k", "math", "cmath")
    if not whole and benchmark != "mgsm_zh":
        text = text.split(marks.get(benchmark, "Problem:"), 1)[0]
    if benchmark == "math":
        return _math_answers(text, question)
    if benchmark == "gsm8k" and not zero_shot:
        numbers = re.findall(r"-?\d+\.?\d*", text)
        return numbers[-1] if numbers else INVALID
    if benchmark in ("sat", "mmlu_stem"):
        found = re.search(r"the final answer is \(?([abcd])\)?", text.lower())
        return found[1].upper() if found else "placeholder"
    if benchmark == "ocw":
        return _ocw_answer(text)
    if benchmark in ("gaokao_mathcloze", "gaokao_mathqa"):
        answer = "placeholder"
        if "答案是" in text:
            answer = text.split("答案是", 1)[1].strip().split("\n")[0].strip()
        return answer if benchmark == "gaokao_mathqa" else [answer.strip("$")]
    if benchmark == "cmath" and not zero_shot and "答案是" in text:
        line = text.split("答案是", 1)[1].strip().split("\n")[0]
        numbers = re.findall(r"-?\d+\.?\d*", line.strip("：").strip("。"))
        return numbers[-1] if numbers else INVALID
    answers = _answers(text)
    return answers[-1] if answers else ""


def _answers(text: str) -> list[str]:
    """The answers by the general rule: a Minerva sentence, else boxes, else "he answer is", else
    the last output of a program, else the last number."""
    if "final answer is $" in text and "$. I hope" in text:
        found = [text.split("final answer is $", 1)[1].split("$. I hope", 1)[0].strip()]
    elif "boxed" in text:
        found = _boxed(text)
    elif "he answer is" in text:
        found = [text.rsplit("he answer is", 1)[1].strip()]
    elif printed := _printed(text):
        found = [printed]
    else:
        found = re.findall(r"-?\d*\.?\d+", text.replace(",", ""))[-1:]
    return [
        normalize(answer.strip().split("\n")[0].lstrip(":").rstrip(".").rstrip("/"))
        for answer in found
    ]


def _boxed(text: str) -> list[str]:
    found = []
    for piece in text.split("boxed{")[1:]:
        depth = 0
        for match in re.finditer("[{}]", piece):
            depth += 1 if match[0] == "{" else -1
            if depth < 0:
                # Before a percent sign the closing brace belongs to the answer (and the sign does
                # not).
                percent = piece[match.end() : match.end() + 1] == "%"
                found.append(piece[: match.end() if percent else match.start()])
                break
    return found


def _printed(text: str) -> str:
    return text.rsplit("```output", 1)[1].split("```")[0].strip() if "```output" in text else ""


def _math_answers(text: str, question: str) -> list[str]:
    found = []
    for answer in _answers(text):
        if "separated by commas" in question and not any(c in answer for c in "()[]"):
            found += [part.strip() for part in answer.split(",")]
        else:
            found += [part.strip() for part in re.split(r"\\text\{\s*and\s*\}", answer)]
    return found


def _ocw_answer(text: str) -> str:
    for line in text.split("\n"):
        _, found, rest = line.partition("final answer is ")
        end = rest.rfind(". I hope it is correct", 0, len(rest) - 1)
        if found and end >= 0:
            return rest[:end]
    return INVALID


# ---- normalization -------------------------------------------------------------------------------


def normalize(text: str) -> str:
    """An answer in the form in which the paper's evaluation compares it."""
    if len(text) > MAX_LENGTH:
        return text
    text = text.strip().replace("\n", "").rstrip(".").replace("\\!", "")
    if text.startswith("\\text{") and text.endswith("}"):
        text = text.split("{", 1)[1][:-1]
    for old, new in (
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("cfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
    ):
        text = text.replace(old, new)
    text = re.sub(r"\\text{.*?}$", "", text).strip() or text  # a unit at the end
    text = text.replace("^{\\circ}", "").strip().replace("^\\circ", "").strip()
    text = re.sub(r"\{(?:c|m)?m\}(?:\^[23])?", "", text).strip()
    text = re.sub(r"p\.m\.$", "", text).strip()
    text = re.sub(r"(\d)\s*t$", r"\1", text).strip()
    for old, new in (
        ("\\$", ""),
        ("$", ""),
        ("x\\in", ""),
        ("\\%", "%"),
        (" .", " 0."),
        ("{.", "{0."),
        ("\\cdot", ""),
        ("infinity", "\\infty"),
    ):
        text = text.replace(old, new)
    if "\\infty" not in text:
        text = text.replace("inf", "\\infty")
    for old, new in (("+\\inity", "\\infty"), ("\\mathbf", ""), ("\\mathrm", "")):
        text = text.replace(old, new)
    text = re.sub(r"\\mbox{.*?}", "", text)
    if "j" in text and "i" not in text:
        text = text.replace("j", "i")
    text = re.sub(r"(\d+)\.0+$", r"\1", re.sub(r"(\d+)\.0+([^\d])", r"\1\2", text))
    if not text:
        return text
    text = "0" + text if text[0] == "." else text
    for name in ("sqrt", "tan"):
        text = re.sub(rf"\\{name}(-?[0-9.a-zA-Z]+)", rf"\\{name}{{\1}}", text)
        text = re.sub(rf"\\{name}\s+(\w+)$", rf"\\{name}{{\1}}", text)
    return re.sub(r"(?:\\|,|\.)+$", "", _slash(_braced_fractions(text.replace(" ", ""))))


def _braced_fractions(text: str) -> str:
    r"""Write \frac12 and \frac1{2} with braces. A text that ends in \frac stays as it is."""
    head, *pieces = text.split("\\frac")
    for piece in pieces:
        if piece.startswith("{"):
            head += "\\frac" + piece
        elif len(piece) < 2:
            return text
        else:
            rest = piece[1:] if piece[1] == "{" else f"{{{piece[1]}}}{piece[2:]}"
            head += f"\\frac{{{piece[0]}}}{rest}"
    return head


def _slash(text: str) -> str:
    """Write 3/4 as a fraction, if both sides are plain integers or roots."""
    parts = text.split("/")
    if len(parts) != 2:
        return text
    try:
        written = [part if "sqrt" in part else str(int(part)) for part in parts]
    except ValueError:
        return text
    return "\\frac{%s}{%s}" % tuple(written) if "/".join(written) == text else text  # noqa: UP031


# ---- equality ------------------------------------------------------------------------------------


def paper_equal(gold: str | list[str], prediction: str | list[str], benchmark: str) -> bool:
    """Whether the paper's evaluation counts `prediction`, a result of `paper_extract`, as right.

    gold: for MATH what `paper_extract` finds in the solution, for MathCloze a normalized item for
    each blank, else the string.
    """
    if benchmark in ("sat", "mmlu_stem"):
        return prediction.lower() == gold.lower()
    if benchmark == "gaokao_mathqa":
        places = {letter: prediction.find(letter) for letter in "ABCD" if letter in prediction}
        return bool(places) and max(places, key=places.get) == gold
    if benchmark == "gaokao_mathcloze":
        found = []
        for answer in prediction:
            found += _blanks(answer)
        found = list(dict.fromkeys(found))[-len(gold) :]
        if len(found) != len(gold):
            return False
        return all(_correct(g, p) for g, p in zip(gold, found, strict=True))
    if benchmark == "ocw":
        return _ocw_equal(gold, prediction)
    if benchmark == "math":
        gold = list(dict.fromkeys(gold))
        prediction = list(dict.fromkeys(prediction))[-len(gold) :]
    return _correct(gold, prediction)


def _blanks(answer: str) -> list[str]:
    """Cut the answer at semicolons, and at commas outside brackets. Brackets count from the last
    cut."""
    parts, depth, start = [], 0, 0
    answer += ";"
    for k, c in enumerate(answer):
        if c == ";" or c == "," and depth == 0:
            parts.append(answer[start:k].strip())
            depth, start = 0, k + 1
        else:
            depth += (c in "([{") - (c in ")]}")
    return parts


def _correct(gold, prediction) -> bool:
    if isinstance(gold, list) and isinstance(prediction, list):
        matches = [[_correct(g, p) for p in prediction[:64]] for g in gold[:64]]
        places = range(len(prediction[:64]))
        columns = [any(row[k] for row in matches) for k in places]
        return all(map(any, matches)) and all(columns)
    if isinstance(gold, list) or isinstance(prediction, list):
        raise TypeError("a list of answers beside a single answer")
    if "\\cup" in gold and "\\cup" in prediction:
        return _correct(gold.split("\\cup"), prediction.split("\\cup"))
    try:
        if abs(float(prediction.replace(",", "")) - float(gold.replace(",", ""))) < 1e-3:
            return True
    except ValueError:
        pass
    return bool(gold) and prediction == gold or _math_equal(prediction, gold)


def _digits(text: str) -> float | None:
    text = text.replace(",", "")
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return float(text[:-1].removesuffix("\\")) / 100 if text.endswith("%") else None
    except ValueError:
        return None


def _math_equal(prediction: str, gold: str, depth: int = 0) -> bool:
    if prediction == gold:
        return True
    numbers = _digits(prediction), _digits(gold)
    if None not in numbers:
        return any(
            math.isclose(scaled, numbers[0], abs_tol=1e-3)
            for scaled in (numbers[1] / 100, numbers[1], numbers[1] * 100)
        )
    if not prediction or depth > MAX_DEPTH or max(len(prediction), len(gold)) > MAX_LENGTH:
        return False
    gold, prediction = gold.strip(), prediction.strip()
    if all(re.match(r"[(\[].+[)\]]", side) for side in (gold, prediction)):
        if _parts_equal(prediction[1:-1].split(","), gold[1:-1].split(","), depth):
            return True
    rows = _matrix_rows(prediction), _matrix_rows(gold)
    if None not in rows and len(rows[0]) == len(rows[1]):
        pairs = [(p.split("&"), g.split("&")) for p, g in zip(*rows, strict=True)]
        if all(_parts_equal(p, g, depth) for p, g in pairs):
            return True
    sides = [side.split("=") for side in (prediction, gold)]
    if len(sides[0]) == len(sides[1]) == 2:
        p, g = (f"{left.strip()} - ({right.strip()})" for left, right in sides)
        if _symbolic_equal(p, g) or _symbolic_equal(f"-({p})", g):
            return True
    elif len(sides[0]) == 2 and len(sides[0][0].strip()) <= 2 and len(sides[1]) == 1:
        if _math_equal(sides[0][1], gold, depth + 1):
            return True
    elif len(sides[1]) == 2 and len(sides[1][0].strip()) <= 2 and len(sides[0]) == 1:
        if _math_equal(prediction, sides[1][1], depth + 1):
            return True
    return _symbolic_equal(prediction, gold)


def _parts_equal(predictions: list[str], golds: list[str], depth: int) -> bool:
    return len(predictions) == len(golds) and all(
        _math_equal(p, g, depth + 1) for p, g in zip(predictions, golds, strict=True)
    )


def _matrix_rows(text: str) -> list[str] | None:
    starts = text.startswith(("\\begin{pmatrix}", "\\begin{bmatrix}"))
    if not starts or not text.endswith(("\\end{pmatrix}", "\\end{bmatrix}")):
        return None
    return [row.strip() for row in text[15:-13].split("\\\\") if row.strip()]


def _symbolic_equal(a: str, b: str) -> bool:
    try:
        a, b = _value(a), _value(b)
        if identical(a, b):
            return True
        if symbols(a) | symbols(b):
            return False
        x, y = (values(tree, range(1))[0] for tree in (a, b))
        real = isinstance(x, MP.mpf) and isinstance(y, MP.mpf)
        return real and math.isclose(float(x), float(y), abs_tol=1e-3)
    except _UNREADABLE:
        return False


def _value(text: str):
    if len(text) > MAX_MATH:
        raise Unreadable("too long")
    try:
        return worked_out(read_prefix(text))
    except Unreadable as error:
        if not text.isascii() or re.search(r"[\\^$%\[{]", text):
            raise error
        _check_python(text)  # it is not LaTeX, but it may be Python
        tree = Parser(text).whole()
        if kind(tree) != "number":
            raise error
        return tree


def _check_python(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python reads 5or with a warning
        ast.parse(text.strip(), mode="eval")


# ---- OCW courses ---------------------------------------------------------------------------------

_OCW_UNITS = (
    "eV",
    " \\mathrm{~kg} \\cdot \\mathrm{m} / \\mathrm{s}",
    " kg m/s",
    "kg*m/s",
    "kg",
    "m/s",
    "m / s",
    "m s^{-1}",
    "\\text{ m/s}",
    " \\mathrm{m/s}",
    " \\text{ m/s}",
    "g/mole",
    "g/mol",
    "\\mathrm{~g}",
    "\\mathrm{~g} / \\mathrm{mol}",
    "W",
    "erg/s",
    "years",
    "year",
    "cm",
    "\\mathrm{m}",
    "\\mathrm{~m}",
    "\\mathrm{s}",
    "\\mathrm{~s}",
    "\\mathrm{cm}",
    "\\mathrm{~cm}",
)
_TEX_REPLACED = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
)
_TEX_REMOVED = (
    *"square ways integers dollars mph inches ft hours km units \\ldots sue points feet minutes "
    "digits cents degrees cm gm pounds meters meals edges students childrentickets multiples".split(),
    "\\text{s}",
    "\\text{.}",
    "\\text{\ns}",
    "\\text{}^2",
    "\\text{}^3",
    "\\text{\n}",
    "\\text{}",
    "\\mathrm{th}",
    "^\\circ",
    "^{\\circ}",
    "\\;",
    ",\\!",
    "{,}",
    '"',
    "\\dots",
)


def _ocw_equal(gold: str, prediction: str) -> bool:
    """The rule depends on the gold answer: a number, an equation, or an expression, whose text
    must be the same."""
    if not prediction or max(len(gold), len(prediction)) > MAX_LENGTH:
        return False
    try:
        float(gold)
    except ValueError:
        if "=" in gold:
            trees = _equation(prediction), _equation(gold)
            return trees[0] is not None and trees[0] == trees[1]
        return _tex(prediction) == _tex(gold)
    p, g = _ocw_number(prediction), _ocw_number(gold)
    if None in (p, g):
        return False
    if any(abs(x) <= 1e-8 for x in (p, g, p - g)):
        return abs(p - g) < 0.01 * (p + g) / 2  # never where both are negative, or 0
    return abs(p - g) <= 1e-8 + 1e-5 * abs(g)


def _ocw_number(text: str) -> float | None:
    for unit in _OCW_UNITS:
        text = text.replace(unit, "").strip()
    text = text.strip("$")
    for read in (_python_number, _value):
        try:
            tree = read(text)
            value = values(tree, range(1))[0]
            if not symbols(tree) and isinstance(value, MP.mpf):
                return float(value)
        except _UNREADABLE:
            continue
    return None


def _python_number(text: str):
    text = re.sub(r"(?<=\d)_(?=\d)", "", text)
    if not re.fullmatch(r"[\d\s.eE()*/+-]{1,200}", text, re.A):
        raise Unreadable("no arithmetic")
    _check_python(text)
    tree = Parser(text).whole()
    return tree[1] if isinstance(tree, tuple) and tree[0] == "dec" else tree


def _equation(text: str):
    text = text.removeprefix("\\[").removesuffix("\\]")
    text = text.replace("\\left(", "(").replace("\\right)", ")")
    text = text.replace("\\\\", "\\").strip("$")
    try:
        tree = read_prefix(text) if len(text) <= MAX_MATH else None
        is_equation = isinstance(tree, tuple) and tree[:2] == ("rel", "=") and tree[2] != tree[3]
        return tree if is_equation and any(map(symbols, tree[2:])) else None
    except _UNREADABLE:
        return None


def _tex(text: str) -> str:
    text = text.split("=")[-1]
    for old, new in _TEX_REPLACED:
        text = text.replace(old, new)
    for old in _TEX_REMOVED:
        text = text.replace(old, "")
    if text.count("$") > 1:
        text = re.sub(r"(.*?)(\$)(.*?)(\$)(.*)", r"$\3$", text)
    for name in ("text", "textbf", "overline"):
        text = re.sub(rf"(\\{name}\{{)(.*?)(\}})", r"\2", text)
    text = re.sub(r"(\\boxed\{)(.*)(\})", r"\2", text)
    text = re.sub(r"(frac)([^{])(.)", r"frac{\2}{\3}", text)
    text = re.sub(r"(sqrt)([^{])", r"sqrt{\2}", text).replace("$", "")
    return text.replace(",", "") if text.replace(",", "").isdigit() else text
