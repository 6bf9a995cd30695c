r"""The rules by which the paper's own tables were made, for comparing with them: not for training, not for trust.

A restatement of what github.com/deepseek-ai/DeepSeek-Math, evaluation/, does: where each benchmark's answer is looked
for, and when two answers count as equal. What it takes for equal that is not, on purpose repeated here:
  - numbers within 0.001 of each other, whatever their size: 0.0005 for 0.0009;
  - a number 100 times larger or smaller, percent sign or not: 500 for 5, 0.5 for 50, also in the parts of a tuple;
  - numbers without their commas: 1,8 for 18;
  - brackets of any shape: an open interval for a closed one;
  - two expressions with the same readable prefix: 2**10 for 2**11, n=1,2,3 for n=2,3,4;
  - unions and lists as sets of parts of which each finds some other;
  - any one of several options: the letter that first occurs last (Gaokao-MathQA).
And what it denies: \pi is a variable, so \frac{\pi}{2} is not 1.5708; two equal negative numbers of OCW.

Its simplifier and its clock are replaced by evaluation at fixed points (values.py), bounded by counts, and its eval()
of answers by our parser. Where that may differ from the original: sums, integrals, derivatives and limits, which are
compared as text here, and equalities that its simplifier does not find.
"""

import ast
import math
import re
import warnings

from data.answers.expressions import Parser
from data.answers.paper_latex import read_prefix, worked_out
from data.answers.trees import Unreadable, kind, symbols
from data.answers.values import MP, identical, values

MAX_LENGTH = 4000  # characters of one answer; longer ones are compared as they are
MAX_MATH = 1000  # characters of one expression
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


# ---------------------------------------------------------------------------------------------------- extraction


def paper_extract(
    text: str, benchmark: str, question: str = "", zero_shot: bool = False
) -> str | list[str]:
    """The answer that the paper's evaluation finds in a completion; for MATH and MathCloze a list. `zero_shot`: the
    rule for the instruction-tuned models, who answer without exemplars. Without an answer: a placeholder or ""."""
    if benchmark not in BENCHMARKS:
        raise ValueError(
            f"the paper has no rule for {benchmark}; it has for {', '.join(BENCHMARKS)}"
        )
    marks = {
        "gsm8k": "Q: ",
        "cmath": "问题：",
        "gaokao_mathcloze": "问题 ",
        "gaokao_mathqa": "问题 ",
    }
    if not zero_shot or benchmark not in (
        "gsm8k",
        "math",
        "cmath",
        "mgsm_zh",
    ):  # what follows is the next problem
        text = (
            text if benchmark == "mgsm_zh" else text.split(marks.get(benchmark, "Problem:"), 1)[0]
        )
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
        answer = (
            text.split("答案是", 1)[1].strip().split("\n")[0].strip()
            if "答案是" in text
            else "placeholder"
        )
        return (
            answer
            if benchmark == "gaokao_mathqa"
            else [answer.strip("$") if "答案是" in text else answer]
        )
    if benchmark == "cmath" and not zero_shot and "答案是" in text:
        line = text.split("答案是", 1)[1].strip().split("\n")[0]
        numbers = re.findall(r"-?\d+\.?\d*", line.strip("：").strip("。"))
        return numbers[-1] if numbers else INVALID
    answers = _answers(text)
    return answers[-1] if answers else ""


def _answers(text: str) -> list[str]:
    """All that the general rule finds: a Minerva sentence, else boxes, else "he answer is", else what a program
    printed last, else the last number."""
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
        normalise(answer.strip().split("\n")[0].lstrip(":").rstrip(".").rstrip("/"))
        for answer in found
    ]


def _boxed(text: str) -> list[str]:
    found = []
    for piece in text.split("boxed{")[1:]:
        depth = 0
        for match in re.finditer("[{}]", piece):
            depth += 1 if match[0] == "{" else -1
            if (
                depth < 0
            ):  # a percent sign after the box brings the brace in with it, and no percent sign
                found.append(
                    piece[
                        : match.end()
                        if piece[match.end() : match.end() + 1] == "%"
                        else match.start()
                    ]
                )
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


# ---------------------------------------------------------------------------------------------------- normalisation


def normalise(text: str) -> str:
    """An answer as the paper's evaluation writes it before comparing."""
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
    r"""\frac12 and \frac1{2} with braces; the text as it is where a \frac ends it."""
    head, *pieces = text.split("\\frac")
    for piece in pieces:
        if piece.startswith("{"):
            head += "\\frac" + piece
        elif len(piece) < 2:
            return text
        else:
            head += f"\\frac{{{piece[0]}}}" + (
                piece[1:] if piece[1] == "{" else f"{{{piece[1]}}}{piece[2:]}"
            )
    return head


def _slash(text: str) -> str:
    """3/4 as a fraction, where both sides are plain integers, or roots."""
    parts = text.split("/")
    if len(parts) != 2:
        return text
    try:
        written = [part if "sqrt" in part else str(int(part)) for part in parts]
    except ValueError:
        return text
    return "\\frac{%s}{%s}" % tuple(written) if "/".join(written) == text else text  # noqa: UP031


# ---------------------------------------------------------------------------------------------------- equality


def paper_equal(gold: str | list[str], prediction: str | list[str], benchmark: str) -> bool:
    """Whether the paper's evaluation counts `prediction` (from `paper_extract`) as right. `gold` is prepared as theirs:
    for MATH what `paper_extract` finds in the solution, for MathCloze one normalised item a blank, else the string."""
    if benchmark in ("sat", "mmlu_stem"):
        return prediction.lower() == gold.lower()
    if benchmark == "gaokao_mathqa":
        places = {letter: prediction.find(letter) for letter in "ABCD" if letter in prediction}
        return bool(places) and max(places, key=places.get) == gold
    if benchmark == "gaokao_mathcloze":
        found = list(dict.fromkeys(part for answer in prediction for part in _blanks(answer)))[
            -len(gold) :
        ]
        return len(found) == len(gold) and all(
            _correct(g, p) for g, p in zip(gold, found, strict=True)
        )
    if benchmark == "ocw":
        return _ocw_equal(gold, prediction)
    if benchmark == "math":
        gold = list(dict.fromkeys(gold))
        prediction = list(dict.fromkeys(prediction))[-len(gold) :]
    return _correct(gold, prediction)


def _blanks(answer: str) -> list[str]:
    """Cut at semicolons, and at commas outside brackets; a bracket counts up from the last cut."""
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
        return all(map(any, matches)) and (
            not prediction
            or all(any(row[k] for row in matches) for k in range(len(prediction[:64])))
        )
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
    if (
        None not in rows
        and len(rows[0]) == len(rows[1])
        and all(_parts_equal(p.split("&"), g.split("&"), depth) for p, g in zip(*rows, strict=True))
    ):
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
    if not text.startswith(("\\begin{pmatrix}", "\\begin{bmatrix}")) or not text.endswith(
        ("\\end{pmatrix}", "\\end{bmatrix}")
    ):
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
        return (
            isinstance(x, MP.mpf)
            and isinstance(y, MP.mpf)
            and math.isclose(float(x), float(y), abs_tol=1e-3)
        )
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
        _check_python(text)  # what LaTeX cannot be, Python may be
        tree = Parser(text).whole()
        if kind(tree) != "number":
            raise error
        return tree


def _check_python(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 5or is read, with a warning
        ast.parse(text.strip(), mode="eval")


# ---------------------------------------------------------------------------------------------------- OCW courses

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
    *"square ways integers dollars mph inches ft hours km units \\ldots sue points feet minutes digits "
    "cents degrees cm gm pounds meters meals edges students childrentickets multiples".split(),
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
    """By the kind of the gold answer: a number, an equation, or an expression, which must be the same text."""
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
    text = (
        text.removeprefix("\\[")
        .removesuffix("\\]")
        .replace("\\left(", "(")
        .replace("\\right)", ")")
    )
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
