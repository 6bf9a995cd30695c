"""Answers of every category with other answers that are nearly the same, and hostile strings. A
seed makes all of them."""

import random
import re
from fractions import Fraction


def category_makers(rng: random.Random) -> dict:
    """name -> function that makes (answer, the same value in another notation)."""
    whole = lambda low=1, high=999: rng.randint(low, high)  # noqa: E731
    signed = lambda: rng.choice([-1, 1]) * whole()  # noqa: E731
    prime = lambda: rng.choice([2, 3, 5, 7, 11, 13])  # noqa: E731

    def integer():
        n = signed()
        return str(n), f"{n}.0"

    def thousands():
        n = rng.randint(1000, 10**9)
        return f"{n:,}", str(n)

    def decimal():
        n = signed()
        return f"{n}.{rng.randint(1, 9)}5", ""

    def fraction():
        a, b = signed(), whole(2, 99)
        return f"{a}/{b}", rf"{'-' * (a < 0)}\frac{{{2 * abs(a)}}}{{{2 * b}}}"

    def latex_fraction():
        a, b = whole(), whole(2, 99)
        return rf"\frac{{{a}}}{{{b}}}", f"Fraction({a}, {b})"

    def mixed():
        a, b, c = whole(1, 20), whole(1, 6), whole(7, 12)
        return rf"{a}\frac{{{b}}}{{{c}}}", str(a + Fraction(b, c))

    def percent():
        n = whole()
        return rf"{n}\%", f"{n}/100"

    def money():
        n = whole()
        return rf"\${n}", f"{n} dollars"

    def unit():
        n, (short, long) = (
            whole(),
            rng.choice(
                [
                    ("cm", "centimeters"),
                    ("kg", "千克"),
                    ("km/h", "kilometers per hour"),
                    ("m^2", "square meters"),
                    ("元", "yuan"),
                ]
            ),
        )
        return f"{n} {short}", f"{n} {long}"

    def surd():
        n, p = whole(2, 99), prime()
        return rf"{n}\sqrt{{{p}}}", f"{n}*sqrt({p})"

    def constant():
        n = whole(2, 99)
        return rf"\frac{{{n}\pi}}{{7}}", f"{n}*pi/7"

    def expression():
        a, b, c = whole(2, 99), whole(2, 99), whole(2, 99)
        return f"{a}x^2+{b}x-{c}", f"{b}*x - {c} + {a}*x**2"

    def equation():
        a, b = whole(2, 99), signed()
        return f"y={a}x+{abs(b)}", f"{a}*x - y + {abs(b)} = 0"

    def point():
        a, b = signed(), whole()
        return f"({a}, {b})", f"({a}.0,{b})"

    def values():
        a, b = whole(1, 99), whole(100, 199)
        return rf"\{{{a}, {b}\}}", f"{{{b}, {a}}}"

    def interval():
        a, b = whole(1, 99), whole(100, 199)
        left, right = rng.choice("(["), rng.choice(")]")
        return f"{left}{a}, {b}{right}", rf"\left{left}{a},{b}\right{right}"

    def union():
        a, b = whole(1, 99), whole(100, 199)
        return (
            rf"(-\infty,{a}]\cup({b},\infty)",
            f"Union(Interval(-oo, {a}), Interval.open({b}, oo))",
        )

    def matrix():
        a, b, c, d = (whole() for _ in range(4))
        return (
            rf"\begin{{pmatrix}}{a}&{b}\\{c}&{d}\end{{pmatrix}}",
            f"Matrix([[{a}, {b}], [{c}, {d}]])",
        )

    def complex_number():
        a, b = signed(), whole()
        return f"{a}+{b}i", f"({a}+{b}j)"

    def letter():
        return rng.choice("ABCD"), ""

    def time():
        h, m = rng.randint(13, 23), rng.randint(10, 59)
        return f"{h}:{m}", f"{h - 12}:{m} PM"

    def ratio():
        a, b = whole(60, 99), whole(100, 199)
        return f"{a}:{b}", f"{2 * a}:{2 * b}"

    def chinese():
        return "".join(rng.choice("一二三四五六七八九") + place for place in "百十") + rng.choice(
            "一二三"
        ), ""

    def power():
        a, b = whole(2, 9), whole(2, 9)
        return f"{a}^{{{b}}}", str(a**b)

    def printed():
        a, b = whole(2, 99), whole(2, 99)
        return f"-{a} + exp({b})", f"e^{{{b}}}-{a}"

    def blanks():
        a, b = whole(1, 99), whole(100, 199)
        return f"${a}$;${b}$", f"{a}; {b}.0"

    def inequality():
        a = signed()
        return rf"x \ge {a}", f"{a} <= x"

    return {
        name: made
        for name, made in locals().items()
        if callable(made) and name not in ("whole", "signed", "prime")
    }


def neighbors(answer: str, rng: random.Random) -> list[str]:
    """Answers with another value: a digit or a letter changed, the sign changed, a bracket
    changed, two terms of a tuple or a matrix exchanged."""
    found = []
    for match in re.finditer(
        r"\d", answer
    ):  # the functions above make no fraction of 0, no 1^n and no 0 times x
        other = rng.choice([c for c in "23456789" if c != match[0]])
        found.append(answer[: match.start()] + other + answer[match.end() :])
    for match in re.finditer("[一二三四五六七八九]", answer):
        found.append(
            answer[: match.start()]
            + rng.choice([c for c in "四五六七八九" if c != match[0]])
            + answer[match.end() :]
        )
    if re.fullmatch(r"\(?[A-Z]\)?", answer):
        found.append(
            re.sub("[A-Z]", lambda m: rng.choice([c for c in "ABCDE" if c != m[0]]), answer)
        )
    if (
        re.search(r"[1-9]", answer)
        and re.match(r"-?[\d\\$]", answer)
        and not re.search("[:=]|begin", answer)
    ):
        found.append(answer[1:] if answer[0] == "-" else "-" + answer)
    inner = re.fullmatch(r"([(\[])([^()\[\]]*),([^()\[\]]*)([)\]])", answer)
    if inner:
        left, a, b, right = inner.groups()
        found.append(f"{'[' if left == '(' else '('}{a},{b}{right}")
        found.append(f"{left}{a},{b}{']' if right == ')' else ')'}")
        if a.strip() != b.strip():
            found.append(f"{left}{b},{a}{right}")
            found.append(
                f"{left}-{a.strip().lstrip('-')},{b}{right}"
                if a.strip()[0] != "-"
                else f"{left}{a.strip()[1:]},{b}{right}"
            )
    for a, b in (
        ("+", "-"),
        (r"\ge", r"\le"),
        ("cup", "cap"),
        ("PM", "AM"),
        ("cm", "mm"),
        ("dollars", "euros"),
    ):
        if a in answer:
            found.append(answer.replace(a, b, 1))
    if ";" in answer:
        found.append(";".join(reversed(answer.split(";"))))
    if cells := re.fullmatch(r"(.*pmatrix\})(\d+)&(\d+)(\\.*)", answer):
        if cells[2] != cells[3]:
            found.append(f"{cells[1]}{cells[3]}&{cells[2]}{cells[4]}")
    return found


SOUP = [
    *"0129xyeEI!%/*+-,;:=<>()[]{}|.^_&$#~'\"@ jé三十点分元½①٣२Ⅷ⅓²\u2028\u3000\ud800\udfff\x00\x7f\u202e😀\t\n\\",
    "**",
    r"\frac",
    r"\sqrt",
    r"\pm",
    r"\cup",
    "exp(",
    "log(",
    "10000",
    r"\{",
    r"\}",
    r"\text{",
    "cm",
    "and",
    r"\infty",
    r"\\",
    r"\begin{pmatrix}",
    r"\end{pmatrix}",
    r"\boxed{",
    r"\(",
    r"\)",
    r"\[",
    r"\]",
    "$$",
    "####",
    "The answer is ",
    "答案是",
    "选",
    "分之",
    "百分之",
    "Matrix([[",
    "Interval(",
    "Union(",
    "Fraction(",
    "9" * 30,
    "</think>",
    "I hope",
    r"\left",
    r"\right",
    "oo",
    "PM",
    ":30",
    "1e9",
    "e9999",
    "!",
    "999",
    "^{",
    r"\binom",
    "km/h",
    "^2",
    "x",
    "sin",
    "floor(",
    r"\circ",
    r"\textcircled{",
    "np.float64(",
    "if",
    "or ",
]


def hostile(rng: random.Random, seeds: list[str]) -> str:
    """A string of random tokens, a changed answer, a deeply nested answer, or an answer that is
    repeated many times."""
    kind = rng.randrange(5)
    if kind == 0:
        return "".join(rng.choice(SOUP) for _ in range(rng.randint(1, 40)))
    if kind == 1:
        text = list(rng.choice(seeds))
        for _ in range(rng.randint(1, 6)):
            place = rng.randint(0, len(text))
            text[place : place + rng.randint(0, 2)] = rng.choice(SOUP)
        return "".join(text)
    if kind == 2:
        unit = "".join(rng.choice(SOUP) for _ in range(rng.randint(1, 3)))
        return unit * rng.choice([3, 10, 30, 300 // len(unit) + 1]) + rng.choice(SOUP)
    if kind == 3:
        opening, closing = rng.choice(
            [
                ("(", ")"),
                ("[", "]"),
                (r"\{", r"\}"),
                ("{", "}"),
                (r"\frac{", "}{2}"),
                (r"\sqrt{", "}"),
                ("sin(", ")"),
                (r"\boxed{", "}"),
                ("1,(", ")"),
                ("-(", ")"),
                ("2^{", "}"),
                (r"\{\pm1=", r"\}"),
                ("exp(", ")"),
                (r"\text{", "}"),
            ]
        )
        depth = rng.choice([2, 3, 3, 5, 5, 8, 15, 60])
        return opening * depth + rng.choice(seeds) + closing * (depth - rng.choice([0, 0, 1]))
    return rng.choice(["+", ",", "=", " and ", ";", ":", "^", "*", "<", r"\cup"]).join(
        rng.choice(seeds) for _ in range(rng.choice([2, 2, 3, 3, 5, 8, 40]))
    )
