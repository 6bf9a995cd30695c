"""The families of word problems: wordings, solution steps and programs, in English and Chinese.

A family is a function that draws numbers. The decorator holds the texts, one on a line:

    en, zh   a wording of the question
    --       a step of the solution, English ~ Chinese
    py       a line of the program, which prints exactly the answer

Fields in braces: n, m, k are different people. o and p are different kinds of objects (o1, p1: the
singular; u, w: the Chinese measure words). Every other field is a number that the function
returned; `answer` is one of them. `|` marks where a distractor sentence may stand; a line that
begins with `|` continues the line above. Both languages show the same fields, so that a problem can
be told in either language. The type of a number says how it is written: int, Fraction (3/4),
Decimal (2.5).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import gcd
from string import Formatter

# English, Chinese.
NAMES = tuple(
    name.split()
    for name in (
        "Tom 小明",
        "Mia 小红",
        "Sam 小刚",
        "Anna 小丽",
        "Ben 小华",
        "Lily 小芳",
        "Jack 小军",
        "Emma 小云",
        "Leo 小杰",
        "Rosa 小美",
        "Max 小东",
        "Nina 小玲",
        "Paul 小强",
        "Kate 小雪",
        "Omar 小龙",
        "Zoe 小燕",
    )
)
# Plural, singular, Chinese noun, Chinese measure word.
OBJECTS = tuple(
    row.split()
    for row in (
        "apples apple 苹果 个",
        "pens pen 钢笔 支",
        "books book 书 本",
        "stamps stamp 邮票 张",
        "cards card 卡片 张",
        "marbles marble 弹珠 颗",
        "eggs egg 鸡蛋 个",
        "cakes cake 蛋糕 块",
        "balls ball 球 个",
        "cups cup 杯子 个",
        "oranges orange 橙子 个",
        "shells shell 贝壳 枚",
        "coins coin 硬币 枚",
        "pears pear 梨 个",
        "candies candy 糖果 颗",
        "toys toy 玩具 件",
    )
)
# Sentences with a number d that does not matter. Person q and object r (measure word s) are not in
# the problem.
DISTRACTORS = {
    "en": (
        "{q} has {d} {r}.",
        "{q} lives {d} km away.",
        "{q} is {d} years old.",
        "It is {d} degrees outside.",
        "{q} saw {d} birds in the park.",
        "{q} takes bus number {d}.",
    ),
    "zh": (
        "{q}有{d}{s}{r}。",
        "{q}住在{d}公里外。",
        "{q}今年{d}岁。",
        "外面气温{d}度。",
        "{q}在公园看到{d}只鸟。",
        "{q}坐{d}路公交车。",
    ),
}
DISTRACTOR_RATE = {1: 0.0, 2: 0.1, 3: 0.25, 4: 0.5, 5: 1.0}  # for each level

Draw = Callable[[int, int], int]  # draw(low, high): a random integer, bounds included


@dataclass(frozen=True)
class Family:
    name: str
    level: int
    wordings: dict[str, tuple[str, ...]]  # for each language
    cot: dict[str, str]  # for each language: a step on a line, without the final sentence
    pot: str
    numbers: Callable[[Draw], dict]
    people: str  # the fields of people in use: letters of nmk
    objects: str  # the fields of objects in use: letters of op
    key_slots: tuple[str, ...]  # fields that every wording shows: equal questions have equal keys


@dataclass(frozen=True)
class SyntheticProblem:
    """A problem with a solution in three formats. `answer` is an int, a fraction or a decimal."""

    id: str
    question: str
    answer: str
    cot: str  # the steps, one on a line, then the final sentence
    pot: str  # a program that prints the answer
    tool: str  # text, the program, the output, the final sentence with \boxed{}
    level: int
    lang: str
    family: str
    key: str  # decides the split


FAMILIES: dict[int, list[Family]] = {level: [] for level in range(1, 6)}


def fields(template: str) -> set[str]:
    """
    >>> sorted(fields("{n} has {a} {o}."))
    ['a', 'n', 'o']
    """
    return {name for _, name, _, _ in Formatter().parse(template) if name}


def family(level: int, texts: str) -> Callable:
    """Register a function draw -> {field: number}, with texts (see the top), as a family."""
    lines: dict[str, list[str]] = {"en": [], "zh": [], "--": [], "py": []}
    texts = re.sub(r"\n\s*\+ ", " ", re.sub(r"\n\s*\|", " |", texts))
    for line in texts.strip().splitlines():
        kind, _, text = line.strip().partition(" ")
        lines[kind].append(text)
    steps = [line.split(" ~ ") for line in lines["--"]]

    # The fields that each wording shows. A measure word and a singular belong to their object.
    object_of = {"o1": "o", "u": "o", "p1": "p", "w": "p"}
    shown = []
    for wording in lines["en"] + lines["zh"]:
        shown.append({object_of.get(field, field) for field in fields(wording)})
    used = set.union(*shown)

    def register(numbers: Callable[[Draw], dict]) -> Callable[[Draw], dict]:
        FAMILIES[level].append(
            Family(
                name=numbers.__name__,
                level=level,
                wordings={lang: tuple(lines[lang]) for lang in ("en", "zh")},
                cot={
                    "en": "\n".join(step[0] for step in steps),
                    "zh": "\n".join(step[-1] for step in steps),
                },
                pot="\n".join(lines["py"]),
                numbers=numbers,
                people="".join(slot for slot in "nmk" if slot in used),
                objects="".join(slot for slot in "op" if slot in used),
                key_slots=tuple(sorted(set.intersection(*shown))),
            )
        )
        return numbers

    return register


# ---- Level 1: one step, small numbers --------------------------------------------------------


@family(
    1,
    """
    en {n} has {a} {o}. {m} gives {n} {b} more. How many {o} does {n} have now?
    en {n} had {a} {o} and then bought {b} more. How many {o} does {n} have now?
    en {n} found {a} {o} in the morning and {b} {o} in the afternoon. How many {o} did {n} find in
    + all?
    en There are {a} {o} in the bag. {n} puts in {b} more. How many {o} are in the bag now?
    zh {n}有{a}{u}{o}，{m}又给了{n}{b}{u}。{n}现在有多少{u}{o}？
    zh {n}原有{a}{u}{o}，又买了{b}{u}。一共有多少{u}{o}？
    zh 袋子里有{a}{u}{o}，{n}又放进{b}{u}。袋子里现在有多少{u}{o}？
    -- There are {a} + {b} = {answer} {o}. ~ 共有 {a} + {b} = {answer} {u}{o}。
    py print({a} + {b})
""",
)
def add(r):
    a, b = r(2, 20), r(2, 10)
    return dict(a=a, b=b, answer=a + b)


@family(
    1,
    """
    en {n} has {a} {o}. {n} gives {b} of them to {m}. How many {o} does {n} have left?
    en {n} had {a} {o} and lost {b}. How many {o} are left?
    en There were {a} {o} in the basket. {n} took out {b}. How many {o} are left in the basket?
    zh {n}有{a}{u}{o}，送给{m}{b}{u}。{n}还剩多少{u}{o}？
    zh {n}有{a}{u}{o}，丢了{b}{u}。还剩多少{u}{o}？
    zh 篮子里有{a}{u}{o}，{n}拿走{b}{u}。还剩多少{u}{o}？
    -- There are {a} - {b} = {answer} {o} left. ~ 还剩 {a} - {b} = {answer} {u}{o}。
    py print({a} - {b})
""",
)
def take(r):
    b, left = r(2, 10), r(2, 15)
    return dict(a=b + left, b=b, answer=left)


@family(
    1,
    """
    en {n} has {a} boxes. Each box holds {b} {o}. How many {o} does {n} have?
    en {n} puts {b} {o} in each of {a} bags. How many {o} does {n} need?
    en There are {a} rows with {b} {o} in each row on the table of {n}. How many {o} are there?
    zh {n}有{a}个盒子，每个盒子里有{b}{u}{o}。一共有多少{u}{o}？
    zh {n}有{a}个袋子，每袋装{b}{u}{o}。共需要多少{u}{o}？
    zh {n}把{o}摆成{a}行，每行{b}{u}。一共有多少{u}{o}？
    -- There are {a} * {b} = {answer} {o}. ~ 共有 {a} * {b} = {answer} {u}{o}。
    py print({a} * {b})
""",
)
def groups(r):
    a, b = r(2, 9), r(2, 9)
    return dict(a=a, b=b, answer=a * b)


@family(
    1,
    """
    en {n} shares {a} {o} equally among {b} friends. How many {o} does each friend get?
    en {n} puts {a} {o} into {b} boxes, the same number in each. How many {o} are in each box?
    en {b} children share {a} {o} from {n} equally. How many {o} does each child get?
    zh {n}把{a}{u}{o}平均分给{b}个朋友。每人得到多少{u}？
    zh {n}把{a}{u}{o}平均放进{b}个盒子。每盒多少{u}？
    -- Each gets {a} / {b} = {answer} {o}. ~ 每份 {a} / {b} = {answer} {u}{o}。
    py print({a} // {b})
""",
)
def share(r):
    b, each = r(2, 9), r(2, 9)
    return dict(a=b * each, b=b, answer=each)


@family(
    1,
    """
    en {n} has {a} {o}. {m} has {b} more {o} than {n}. How many {o} does {m} have?
    en {n} made {a} {o} and {m} made {b} more than {n}. How many {o} did {m} make?
    zh {n}有{a}{u}{o}，{m}比{n}多{b}{u}。{m}有多少{u}{o}？
    zh {n}做了{a}{u}{o}，{m}比{n}多做{b}{u}。{m}做了多少{u}？
    -- {m} has {a} + {b} = {answer} {o}. ~ {m}有 {a} + {b} = {answer} {u}{o}。
    py print({a} + {b})
""",
)
def more(r):
    a, b = r(2, 20), r(2, 10)
    return dict(a=a, b=b, answer=a + b)


@family(
    1,
    """
    en {n} has {a} {o}. {m} has {b} fewer {o} than {n}. How many {o} does {m} have?
    en {n} has {a} {o}, which is {b} more than {m} has. How many {o} does {m} have?
    zh {n}有{a}{u}{o}，{m}比{n}少{b}{u}。{m}有多少{u}{o}？
    zh {n}有{a}{u}{o}，比{m}多{b}{u}。{m}有多少{u}{o}？
    -- {m} has {a} - {b} = {answer} {o}. ~ {m}有 {a} - {b} = {answer} {u}{o}。
    py print({a} - {b})
""",
)
def fewer(r):
    b, left = r(2, 10), r(2, 15)
    return dict(a=b + left, b=b, answer=left)


@family(
    1,
    """
    en One {o1} costs {a} dollars. How much do {b} {o} cost {n}?
    en {n} buys {b} {o} at {a} dollars each. How much does {n} pay?
    zh 一{u}{o}{a}元。{n}买{b}{u}要付多少元？
    zh {n}买了{b}{u}{o}，每{u}{a}元。{n}要付多少元？
    -- The cost is {a} * {b} = {answer} dollars. ~ 共 {a} * {b} = {answer} 元。
    py print({a} * {b})
""",
)
def price(r):
    a, b = r(2, 9), r(2, 9)
    return dict(a=a, b=b, answer=a * b)


# ---- Level 2: two steps ----------------------------------------------------------------------


@family(
    2,
    """
    en {n} has {a} {o}, gets {b} more and then gives away {c}. |How many {o} does {n} have left?
    en {n} had {a} {o}. {m} gave {n} {b} and later {n} lost {c}. |How many {o} does {n} have now?
    en A van carries {a} {o} of {n}. {b} more are put in and {c} are taken out.
    |How many {o} are in it now?
    zh {n}有{a}{u}{o}，又得到{b}{u}，然后送出{c}{u}。|{n}还剩多少{u}{o}？
    zh {n}原有{a}{u}{o}，{m}给了{n}{b}{u}，后来丢了{c}{u}。|{n}现在有多少{u}{o}？
    -- First {a} + {b} = {x} {o}. ~ 先有 {a} + {b} = {x} {u}。
    -- Then {x} - {c} = {answer} {o}. ~ 再剩 {x} - {c} = {answer} {u}。
    py x = {a} + {b}
    py print(x - {c})
""",
)
def gain_lose(r):
    a, b = r(3, 20), r(2, 10)
    c = r(2, min(12, a + b - 2))
    return dict(a=a, b=b, c=c, x=a + b, answer=a + b - c)


@family(
    2,
    """
    en {n} buys {a} {o} at {b} dollars each and pays with {c} dollars.
    |How much change does {n} get?
    en One {o1} costs {b} dollars. {n} has {c} dollars and buys {a}.
    |How many dollars does {n} have left?
    zh {n}买{a}{u}{o}，每{u}{b}元，付了{c}元。|应找回多少元？
    zh 一{u}{o}{b}元，{n}有{c}元，买了{a}{u}。|{n}还剩多少元？
    -- The cost is {a} * {b} = {x} dollars. ~ 花费 {a} * {b} = {x} 元。
    -- Left: {c} - {x} = {answer} dollars. ~ 剩下 {c} - {x} = {answer} 元。
    py x = {a} * {b}
    py print({c} - x)
""",
)
def change(r):
    a, b = r(2, 6), r(2, 6)
    left = r(1, 10)
    return dict(a=a, b=b, c=a * b + left, x=a * b, answer=left)


@family(
    2,
    """
    en {n} packs {a} {o} into bags of {b}, as many full bags as possible.
    |How many {o} are left over?
    en {n} has {a} {o}. Every {b} {o} fill one box.
    |How many {o} remain when no more boxes can be filled?
    zh {n}把{a}{u}{o}每{b}{u}装一袋，尽量装满。|还剩多少{u}？
    zh {n}有{a}{u}{o}，每{b}{u}装满一盒。|装不满一盒的有多少{u}？
    -- Full: {b} * {q} = {x} {o}. ~ 装满 {b} * {q} = {x} {u}。
    -- Left: {a} - {x} = {answer}. ~ 剩下 {a} - {x} = {answer} {u}。
    py print({a} % {b})
""",
)
def remainder(r):
    b, q = r(3, 7), r(2, 6)
    left = r(1, b - 1)
    return dict(a=b * q + left, b=b, q=q, x=b * q, answer=left)


@family(
    2,
    """
    en {n} is {a} years old. {m} is {b} times as old. |How old will {m} be in {c} years?
    en {m} is {b} times as old as {n}, who is {a}. |What will be the age of {m} after {c} years?
    zh {n}今年{a}岁，{m}的年龄是{n}的{b}倍。|{c}年后{m}多少岁？
    zh {m}的年龄是{n}的{b}倍，{n}{a}岁。|再过{c}年{m}多少岁？
    -- {m} is {a} * {b} = {x} now. ~ {m}今年 {a} * {b} = {x} 岁。
    -- In {c} years: {x} + {c} = {answer}. ~ {c}年后 {x} + {c} = {answer} 岁。
    py x = {a} * {b}
    py print(x + {c})
""",
)
def age_times(r):
    a, b, c = r(3, 10), r(2, 4), r(2, 10)
    return dict(a=a, b=b, c=c, x=a * b, answer=a * b + c)


@family(
    2,
    """
    en The garden of {n} is {a} m long and {b} m wide. |What is its perimeter in m?
    en {n} walks once around a field {a} m long and {b} m wide. |How many m does {n} walk?
    zh {n}的花园长{a}米，宽{b}米。|周长是多少米？
    zh {n}绕长{a}米、宽{b}米的场地走一圈。|一共走了多少米？
    -- {a} + {b} = {x}
    -- Perimeter: {x} * 2 = {answer} m. ~ 周长 {x} * 2 = {answer} 米。
    py x = {a} + {b}
    py print(x * 2)
""",
)
def perimeter(r):
    b = r(2, 10)
    a = b + r(1, 6)
    return dict(a=a, b=b, x=a + b, answer=(a + b) * 2)


@family(
    2,
    """
    en {n} has {a} {o}. {m} has {b} times as many. |How many {o} do they have together?
    en {n} picked {a} {o} and {m} picked {b} times as many as {n}. |How many {o} did both pick?
    zh {n}有{a}{u}{o}，{m}的{o}是{n}的{b}倍。|两人一共有多少{u}？
    zh {n}摘了{a}{u}{o}，{m}摘的是{n}的{b}倍。|两人共摘多少{u}？
    -- {m} has {a} * {b} = {x} {o}. ~ {m}有 {a} * {b} = {x} {u}。
    -- Together: {a} + {x} = {answer}. ~ 一共 {a} + {x} = {answer} {u}。
    py x = {a} * {b}
    py print({a} + x)
""",
)
def times_total(r):
    a, b = r(3, 10), r(2, 4)
    return dict(a=a, b=b, x=a * b, answer=a * b + a)


@family(
    2,
    """
    en {n} has {a} red {o} and {b} blue {o}. |What fraction of the {o} are red?
    en In the box of {n} there are {a} red and {b} blue {o}. |What fraction of all {o} are red?
    zh {n}有{a}{u}红{o}和{b}{u}蓝{o}。|红色的占全部的几分之几？
    zh {n}的盒子里有{a}{u}红{o}、{b}{u}蓝{o}。|红{o}占几分之几？
    -- In all: {a} + {b} = {x} {o}. ~ 共有 {a} + {b} = {x} {u}。
    -- Red: {a} / {x} = {answer}. ~ 红色占 {a} / {x} = {answer}。
    py from fractions import Fraction
    py print(Fraction({a}, {a} + {b}))
""",
)
def red_fraction(r):
    a, b = r(1, 9), r(1, 9)
    return dict(a=a, b=b, x=a + b, answer=Fraction(a, a + b))


def percent(r: Draw, most: int) -> tuple[int, int, int]:
    """(whole, percentage, part), all integers. The whole is from 20 to `most`."""
    p = (10, 20, 25, 30, 40, 50, 60, 75)[r(0, 7)]
    unit = 100 // gcd(100, p)
    whole = unit * r(-(-20 // unit), most // unit)
    return whole, p, whole * p // 100


@family(
    2,
    """
    en {n} had {a} {o} and sold {p_}% of them. |How many {o} are left?
    en {n} gave {p_}% of {a} {o} to {m}. |How many {o} does {n} still have?
    zh {n}有{a}{u}{o}，卖出{p_}%。|还剩多少{u}？
    zh {n}把{a}{u}{o}的{p_}%给了{m}。|{n}还有多少{u}？
    -- {p_}% is {a} * {p_} / 100 = {x} {o}. ~ {p_}%是 {a} * {p_} / 100 = {x} {u}。
    -- Left: {a} - {x} = {answer}. ~ 剩下 {a} - {x} = {answer} {u}。
    py x = {a} * {p_} // 100
    py print({a} - x)
""",
)
def percent_left(r):
    a, p, x = percent(r, 60)
    return dict(a=a, p_=p, x=x, answer=a - x)


# ---- Level 3: three steps; fractions, percent, decimals --------------------------------------


@family(
    3,
    """
    en A book of {n} has {a} pages. {n} has read {f} of it. |How many pages are left?
    en {n} must read {a} pages and has finished {f} of them. |How many pages are still to read?
    zh {n}的一本书有{a}页，已经读了{f}。|还剩多少页？
    zh {n}要读{a}页书，读完了{f}。|还要读多少页？
    -- 1/{q} is {a} / {q} = {x} pages. ~ 1/{q}是 {a} / {q} = {x} 页。
    -- Read: {x} * {t} = {y}. ~ 读了 {x} * {t} = {y} 页。
    -- Left: {a} - {y} = {answer}. ~ 剩下 {a} - {y} = {answer} 页。
    py x = {a} // {q}
    py print({a} - x * {t})
""",
)
def fraction_left(r):
    q = r(3, 9)
    f = Fraction(r(2, q - 1), q)  # the question and the steps show 2/4 as 1/2
    t, q, x = f.numerator, f.denominator, r(4, 30)
    return dict(a=q * x, f=f, q=q, t=t, x=x, y=x * t, answer=q * x - x * t)


@family(
    3,
    """
    en One {o1} costs {a} dollars. Today the price is {p_}% lower.
    |How much does {n} pay for {b} {o}?
    en {n} buys {b} {o}. The price of {a} dollars each is cut by {p_}%.
    |How many dollars does {n} pay?
    zh 一{u}{o}{a}元，今天降价{p_}%。|{n}买{b}{u}要付多少元？
    zh {n}买{b}{u}{o}，原价每{u}{a}元，降价{p_}%。|{n}共付多少元？
    -- Cut: {a} * {p_} / 100 = {x}. ~ 降了 {a} * {p_} / 100 = {x} 元。
    -- Price: {a} - {x} = {y}. ~ 现价 {a} - {x} = {y} 元。
    -- Pay: {y} * {b} = {answer} dollars. ~ 共付 {y} * {b} = {answer} 元。
    py x = {a} * {p_} // 100
    py print(({a} - x) * {b})
""",
)
def percent_off(r):
    a, p, x = percent(r, 100)
    b = r(2, 8)
    return dict(a=a, p_=p, b=b, x=x, y=a - x, answer=(a - x) * b)


@family(
    3,
    """
    en {n} has {a} {o}, {m} has {b} and {k} has {c}. |What is the average number of {o}?
    en {n}, {m} and {k} sold {a}, {b} and {c} {o}. |How many {o} did each sell on average?
    zh {n}、{m}、{k}分别有{a}、{b}、{c}{u}{o}。|平均每人多少{u}？
    zh {n}卖了{a}{u}{o}，{m}卖了{b}{u}，{k}卖了{c}{u}。|平均每人卖多少{u}？
    -- {a} + {b} = {x}
    -- {x} + {c} = {y}
    -- Average: {y} / 3 = {answer}. ~ 平均 {y} / 3 = {answer} {u}。
    py x = {a} + {b} + {c}
    py print(x // 3)
""",
)
def average(r):
    a, b, c = r(4, 60), r(4, 60), r(4, 58)
    c += -(a + b + c) % 3
    return dict(a=a, b=b, c=c, x=a + b, y=a + b + c, answer=(a + b + c) // 3)


@family(
    3,
    """
    en {n} cycles at {a} km an hour for {b} hours and then walks at {c} km an hour for {d} hours.
       |How many km is that in all?
    en A trip of {n}: {b} hours by bike at {a} km per hour, {d} hours on foot at {c} km per hour.
    |How long is it in km?
    zh {n}骑车每小时{a}千米，骑了{b}小时，又步行{d}小时，每小时{c}千米。|一共走了多少千米？
    zh {n}先骑车{b}小时，速度每小时{a}千米，再以每小时{c}千米步行{d}小时。|全程多少千米？
    -- By bike: {a} * {b} = {x} km. ~ 骑车 {a} * {b} = {x} 千米。
    -- On foot: {c} * {d} = {y} km. ~ 步行 {c} * {d} = {y} 千米。
    -- In all: {x} + {y} = {answer} km. ~ 一共 {x} + {y} = {answer} 千米。
    py x = {a} * {b}
    py y = {c} * {d}
    py print(x + y)
""",
)
def trip(r):
    a, b, c, d = r(5, 14), r(2, 6), r(3, 6), r(2, 5)
    if r(0, 2) == 0:
        # Half hours at an odd speed: the product is never whole, so the program prints a decimal.
        a, b = a | 1, Decimal(2 * b + 1) / 2
    return dict(a=a, b=b, c=c, d=d, x=a * b, y=c * d, answer=a * b + c * d)


@family(
    3,
    """
    en {a} {o} cost {b} dollars. {n} buys {c} {o} with {d} dollars. |How many dollars are left?
    en {n} has {d} dollars. The price of {a} {o} is {b} dollars.
    |How many dollars are left after {n} buys {c} {o}?
    zh {a}{u}{o}共{b}元。{n}有{d}元，买了{c}{u}。|还剩多少元？
    zh {n}带了{d}元，{a}{u}{o}卖{b}元。|{n}买{c}{u}后还剩多少元？
    -- Each: {b} / {a} = {x} dollars. ~ 每{u} {b} / {a} = {x} 元。
    -- Cost: {x} * {c} = {y}. ~ 花费 {x} * {c} = {y} 元。
    -- Left: {d} - {y} = {answer}. ~ 剩下 {d} - {y} = {answer} 元。
    py x = {b} / {a}
    py print({d} - x * {c})
""",
)
def unit_price(r):
    quarters = r(1, 3)
    x = r(0, 7) + Decimal(quarters) / 4
    a = 2 * r(1, 4) if quarters == 2 else 4
    c = 2 * r(1, 4) + 1  # odd: cost and rest are not whole, so the program prints a decimal
    y = x * c
    d = int(y) + r(1, 20)
    return dict(a=a, b=int(x * a), c=c, d=d, x=x, y=y, answer=d - y)


@family(
    3,
    """
    en {n} buys {a} {o} at {b} dollars each and {c} {p} at {d} dollars each.
    |How much does {n} pay in all?
    en A {o1} costs {b} dollars and a {p1} {d} dollars. {n} buys {a} {o} and {c} {p}.
    |What is the total in dollars?
    zh {n}买了{a}{u}{o}，每{u}{b}元，又买了{c}{w}{p}，每{w}{d}元。|一共付多少元？
    zh 一{u}{o}{b}元，一{w}{p}{d}元。{n}买{a}{u}{o}和{c}{w}{p}。|共要多少元？
    -- For {o}: {a} * {b} = {x}. ~ {o} {a} * {b} = {x} 元。
    -- For {p}: {c} * {d} = {y}. ~ {p} {c} * {d} = {y} 元。
    -- Total: {x} + {y} = {answer} dollars. ~ 一共 {x} + {y} = {answer} 元。
    py x = {a} * {b}
    py y = {c} * {d}
    py print(x + y)
""",
)
def two_prices(r):
    a, b, c, d = r(2, 9), r(2, 15), r(2, 9), r(2, 12)
    return dict(a=a, b=b, c=c, d=d, x=a * b, y=c * d, answer=a * b + c * d)


@family(
    3,
    """
    en {n} ate {f} of a cake, {m} ate {g} and {k} ate {h}. |What fraction of the cake is left?
    en Of one pie, {n} got {f}, {m} got {g} and {k} got {h}. |What fraction of the pie remains?
    zh 一个蛋糕，{n}吃了{f}，{m}吃了{g}，{k}吃了{h}。|还剩几分之几？
    zh {n}分到一块饼的{f}，{m}分到{g}，{k}分到{h}。|还剩几分之几？
    -- {f} + {g} = {x}
    -- {x} + {h} = {y}
    -- Left: 1 - {y} = {answer}. ~ 剩下 1 - {y} = {answer}。
    py from fractions import Fraction as F
    py print(1 - F(1, {i}) - F(1, {j}) - F(1, {l}))
""",
)
def fraction_rest(r):
    i, j, k = ((4, 5, 6, 8, 10, 12)[r(0, 5)] for _ in range(3))
    f, g, h = Fraction(1, i), Fraction(1, j), Fraction(1, k)
    return dict(f=f, g=g, h=h, i=i, j=j, l=k, x=f + g, y=f + g + h, answer=1 - f - g - h)


# ---- Level 4: three or four steps, larger numbers --------------------------------------------


@family(
    4,
    """
    en {n} buys {a} {o} at {b} dollars and {c} {p} at {d} dollars each, and pays with {e} dollars.
       |How much change does {n} get?
    en {n} had {e} dollars, bought {a} {o} for {b} dollars each and {c} {p} for {d} each.
    |How much money is left?
    zh {n}买{a}{u}{o}，每{u}{b}元，买{c}{w}{p}，每{w}{d}元，付了{e}元。|应找回多少元？
    zh {n}有{e}元，买了{a}{u}{b}元的{o}和{c}{w}{d}元的{p}。|还剩多少元？
    -- For {o}: {a} * {b} = {x}. ~ {o} {a} * {b} = {x} 元。
    -- For {p}: {c} * {d} = {y}. ~ {p} {c} * {d} = {y} 元。
    -- Cost: {x} + {y} = {z}. ~ 共 {x} + {y} = {z} 元。
    -- Left: {e} - {z} = {answer}. ~ 剩 {e} - {z} = {answer} 元。
    py x = {a} * {b}
    py y = {c} * {d}
    py print({e} - x - y)
""",
)
def change_two(r):
    a, b, c, d = r(2, 12), r(3, 25), r(2, 12), r(3, 25)
    z = a * b + c * d
    e = z + r(1, 60)
    return dict(a=a, b=b, c=c, d=d, e=e, x=a * b, y=c * d, z=z, answer=e - z)


@family(
    4,
    """
    en {n} covers a wall {a} m long and {b} m high, with a door of {c} square m, at {d} dollars per
    + square m.
       |How much does it cost?
    en A wall is {a} m by {b} m and has a window of {c} square m.
       |What does {n} pay to paint it at {d} dollars per square m?
    zh {n}粉刷一面长{a}米、高{b}米的墙，门占{c}平方米，每平方米{d}元。|共要多少元？
    zh 一面墙长{a}米、高{b}米，窗户{c}平方米。|{n}按每平方米{d}元粉刷要付多少元？
    -- Wall: {a} * {b} = {x}. ~ 墙面 {a} * {b} = {x} 平方米。
    -- To cover: {x} - {c} = {y}. ~ 要刷 {x} - {c} = {y} 平方米。
    -- Cost: {y} * {d} = {answer}. ~ 共 {y} * {d} = {answer} 元。
    py x = {a} * {b} - {c}
    py print(x * {d})
""",
)
def wall(r):
    a, b, c, d = r(4, 18), r(3, 6), r(2, 6), r(2, 9)
    return dict(a=a, b=b, c=c, d=d, x=a * b, y=a * b - c, answer=(a * b - c) * d)


@family(
    4,
    """
    en {n} and {m} are {a} years old together. {m} is {b} times as old as {n}.
    |How old will {n} be in {c} years?
    en {m} is {b} times as old as {n}, and their ages add up to {a}.
    |What is the age of {n} after {c} years?
    zh {n}和{m}的年龄和是{a}岁，{m}的年龄是{n}的{b}倍。|{c}年后{n}多少岁？
    zh {m}的年龄是{n}的{b}倍，两人共{a}岁。|再过{c}年{n}多少岁？
    -- Parts: {b} + 1 = {x}. ~ 共 {b} + 1 = {x} 份。
    -- {n} is {a} / {x} = {y}. ~ {n}今年 {a} / {x} = {y} 岁。
    -- In {c} years: {y} + {c} = {answer}. ~ {c}年后 {y} + {c} = {answer} 岁。
    py x = {a} // ({b} + 1)
    py print(x + {c})
""",
)
def age_sum(r):
    b, y, c = r(2, 7), r(3, 20), r(2, 20)
    return dict(a=y * (b + 1), b=b, c=c, x=b + 1, y=y, answer=y + c)


@family(
    4,
    """
    en {n} spends {f} of the money on {o} and {g} of the rest on {p}.
    |What fraction of the money is left?
    en {n} uses {f} of a prize to buy {o}, then {g} of what is left to buy {p}.
    |What fraction of the prize remains?
    zh {n}用{f}的钱买{o}，又用剩下的{g}买{p}。|还剩全部钱的几分之几？
    zh {n}把奖金的{f}买了{o}，再把余下的{g}买了{p}。|还剩奖金的几分之几？
    -- After {o}: 1 - {f} = {x}. ~ 买{o}后 1 - {f} = {x}。
    -- For {p}: {x} * {g} = {y}. ~ {p}用 {x} * {g} = {y}。
    -- Left: {x} - {y} = {answer}. ~ 剩下 {x} - {y} = {answer}。
    py from fractions import Fraction as F
    py x = 1 - F({i}, {j})
    py print(x - x * F({s}, {t}))
""",
)
def rest_fraction(r):
    j, t = r(3, 9), r(3, 9)
    f, g = Fraction(r(1, j - 1), j), Fraction(r(1, t - 1), t)
    i, j, s, t, x = f.numerator, f.denominator, g.numerator, g.denominator, 1 - f
    return dict(f=f, g=g, i=i, j=j, s=s, t=t, x=x, y=x * g, answer=x - x * g)


@family(
    4,
    """
    en The tank of {n} holds {a} liters and has {b} liters in it. A tap adds {c} liters a minute, a
    + leak loses {d}.
       |In how many minutes is it full?
    en {n} fills a tank of {a} liters. It has {b} liters now; each minute {c} liters flow in and
    + {d} flow out.
       |After how many minutes is it full?
    zh {n}的水箱能装{a}升，现有{b}升，每分钟流进{c}升，漏掉{d}升。|几分钟后装满？
    zh {n}给{a}升的水箱加水，已有{b}升，每分钟进{c}升、出{d}升。|多少分钟装满？
    -- To fill: {a} - {b} = {x}. ~ 还要 {a} - {b} = {x} 升。
    -- Per minute: {c} - {d} = {y}. ~ 每分钟 {c} - {d} = {y} 升。
    -- Minutes: {x} / {y} = {answer}. ~ 需 {x} / {y} = {answer} 分钟。
    py x = {a} - {b}
    py print(x // ({c} - {d}))
""",
)
def tank(r):
    y, t, d, b = r(2, 12), r(3, 40), r(2, 9), r(5, 90)
    return dict(a=b + y * t, b=b, c=y + d, d=d, x=y * t, y=y, answer=t)


@family(
    4,
    """
    en {n} has {a} lessons of {b} minutes with a break of {c} minutes between two lessons.
       |How many minutes is it from start to end?
    en {n} watches {a} films of {b} minutes each and rests {c} minutes between films.
    |How many minutes does it take?
    zh {n}上{a}节课，每节{b}分钟，两节课之间休息{c}分钟。|从开始到结束共多少分钟？
    zh {n}看{a}部影片，每部{b}分钟，两部之间休息{c}分钟。|一共多少分钟？
    -- {a} * {b} = {x} minutes. ~ {a} * {b} = {x} 分钟。
    -- Breaks: {a} - 1 = {y}. ~ 休息 {a} - 1 = {y} 次。
    -- {y} * {c} = {z} minutes. ~ {y} * {c} = {z} 分钟。
    -- In all: {x} + {z} = {answer}. ~ 共 {x} + {z} = {answer} 分钟。
    py x = {a} * {b}
    py y = ({a} - 1) * {c}
    py print(x + y)
""",
)
def lessons(r):
    a, b, c = r(3, 8), 5 * r(4, 14), r(3, 20)
    return dict(a=a, b=b, c=c, x=a * b, y=a - 1, z=(a - 1) * c, answer=a * b + (a - 1) * c)


# ---- Level 5: four steps and a distractor ----------------------------------------------------


@family(
    5,
    """
    en The shop of {n} has {a} boxes of {b} {o}. It sells 1/{c} of all {o} and gets {d} new ones.
       |How many {o} are there now?
    en {n} fills {a} boxes with {b} {o} each, sells 1/{c} of all {o} and then makes {d} more.
       |How many {o} does {n} have?
    zh {n}的商店有{a}箱{o}，每箱{b}{u}，卖出全部的1/{c}，又进货{d}{u}。|现在有多少{u}{o}？
    zh {n}装了{a}箱{o}，每箱{b}{u}，卖掉全部的1/{c}，又做了{d}{u}。|{n}现在有多少{u}{o}？
    -- {a} * {b} = {x} {o}. ~ {a} * {b} = {x} {u}。
    -- Sold: {x} / {c} = {y}. ~ 卖出 {x} / {c} = {y} {u}。
    -- Left: {x} - {y} = {z}. ~ 剩下 {x} - {y} = {z} {u}。
    -- Now: {z} + {d} = {answer}. ~ 现在 {z} + {d} = {answer} {u}。
    py x = {a} * {b}
    py y = x - x // {c}
    py print(y + {d})
""",
)
def stock(r):
    c = r(2, 9)
    a, b, d = r(3, 24), c * r(2, 24 // c + 1), r(5, 99)
    x = a * b
    return dict(a=a, b=b, c=c, d=d, x=x, y=x // c, z=x - x // c, answer=x - x // c + d)


@family(
    5,
    """
    en {n} has {e} dollars, earns {a} dollars a day for {b} days and buys {c} {o} at {d} dollars
    + each.
       |How many dollars does {n} have then?
    en {n} works {b} days for {a} dollars a day, has {e} dollars saved and pays {d} dollars for
    + each of {c} {o}.
       |How much money is left?
    zh {n}有{e}元，每天挣{a}元，工作{b}天，又买{c}{u}{o}，每{u}{d}元。|{n}还有多少元？
    zh {n}工作{b}天，每天挣{a}元，原有存款{e}元，花钱买{c}{u}{d}元的{o}。|还剩多少元？
    -- Earned: {a} * {b} = {x}. ~ 挣了 {a} * {b} = {x} 元。
    -- {e} + {x} = {y}
    -- Spent: {c} * {d} = {z}. ~ 花了 {c} * {d} = {z} 元。
    -- Left: {y} - {z} = {answer}. ~ 剩下 {y} - {z} = {answer} 元。
    py x = {e} + {a} * {b}
    py print(x - {c} * {d})
""",
)
def savings(r):
    a, b, c, e = r(12, 80), r(3, 9), r(2, 9), r(10, 200)
    y = e + a * b
    d = r(2, min(60, (y - 1) // c))
    return dict(a=a, b=b, c=c, d=d, e=e, x=a * b, y=y, z=c * d, answer=y - c * d)


@family(
    5,
    """
    en {n} drives {a} km an hour for {b} hours. The car needs {c} liters per 100 km, a liter costs
    + {d} dollars.
       |How many dollars does the fuel cost?
    en The car of {n} uses {c} liters of fuel per 100 km at {d} dollars a liter. It runs {b} hours
    + at {a} km per hour.
       |What does the fuel cost?
    zh {n}开车每小时{a}千米，开了{b}小时，每100千米用油{c}升，每升{d}元。|油费多少元？
    zh {n}的车每100千米用油{c}升，油价每升{d}元，以每小时{a}千米开了{b}小时。|油费是多少元？
    -- {a} * {b} = {x} km. ~ {a} * {b} = {x} 千米。
    -- {x} / 100 = {y}
    -- Fuel: {y} * {c} = {z} liters. ~ 用油 {y} * {c} = {z} 升。
    -- Cost: {z} * {d} = {answer}. ~ 油费 {z} * {d} = {answer} 元。
    py x = {a} * {b} // 100
    py print(x * {c} * {d})
""",
)
def fuel(r):
    a = (20, 25, 40, 50, 60, 75, 80, 100)[r(0, 7)]
    unit = 100 // gcd(100, a)
    b, c, d = unit * r(1 + (unit == 1), max(1, 9 // unit)), r(4, 12), r(2, 9)
    y = a * b // 100
    return dict(a=a, b=b, c=c, d=d, x=a * b, y=y, z=y * c, answer=y * c * d)


@family(
    5,
    """
    en Shop A sells {a} {o} for {b} dollars, shop B sells {c} {o} for {d} dollars.
       |How many dollars does {n} save by buying {e} {o} in shop B?
    en {a} {o} cost {b} dollars in shop A; {c} {o} cost {d} dollars in shop B.
       |{n} needs {e} {o}. How much less does {n} pay in shop B?
    zh 甲店{a}{u}{o}卖{b}元，乙店{c}{u}{o}卖{d}元。|{n}在乙店买{e}{u}比甲店省多少元？
    zh {o}在甲店{a}{u}{b}元，在乙店{c}{u}{d}元。|{n}买{e}{u}，在乙店少付多少元？
    -- A: {b} / {a} = {x} each. ~ 甲店每{u} {b} / {a} = {x} 元。
    -- B: {d} / {c} = {y} each. ~ 乙店每{u} {d} / {c} = {y} 元。
    -- {x} - {y} = {z}
    -- Saved: {z} * {e} = {answer}. ~ 省 {z} * {e} = {answer} 元。
    py x = {b} // {a}
    py y = {d} // {c}
    py print((x - y) * {e})
""",
)
def best_price(r):
    a, c, y, z, e = r(2, 9), r(2, 9), r(2, 20), r(1, 9), r(3, 40)
    return dict(a=a, b=a * (y + z), c=c, d=c * y, e=e, x=y + z, y=y, z=z, answer=z * e)


@family(
    5,
    """
    en {n} has {a} {o}. {m} has {b} times as many as {n}. {k} has {c} fewer than {m}.
    |How many {o} do the three have?
    en {m} has {b} times as many {o} as {n}, {k} has {c} fewer than {m}, and {n} has {a}.
       |How many {o} do {n}, {m} and {k} have together?
    zh {n}有{a}{u}{o}，{m}的是{n}的{b}倍，{k}比{m}少{c}{u}。|三人一共有多少{u}？
    zh {m}的{o}是{n}的{b}倍，{k}比{m}少{c}{u}，{n}有{a}{u}。|{n}、{m}、{k}共有多少{u}？
    -- {m}: {a} * {b} = {x}. ~ {m} {a} * {b} = {x} {u}。
    -- {k}: {x} - {c} = {y}. ~ {k} {x} - {c} = {y} {u}。
    -- {a} + {x} = {z}
    -- In all: {z} + {y} = {answer}. ~ 一共 {z} + {y} = {answer} {u}。
    py x = {a} * {b}
    py y = x - {c}
    py print({a} + x + y)
""",
)
def chain(r):
    a, b = r(6, 60), r(2, 6)
    c = r(2, a * b - 2)
    return dict(a=a, b=b, c=c, x=a * b, y=a * b - c, z=a * b + a, answer=a * b + a + a * b - c)


@family(
    5,
    """
    en The school of {n} has {a} students and {p_}% are girls. The boys form teams of {b}, each
    + with {c} {o}.
       |How many {o} do the boys need?
    en {p_}% of the {a} students in the school of {n} are girls. Teams of {b} boys get {c} {o} each.
       |How many {o} do all teams of boys get?
    zh {n}的学校有{a}名学生，{p_}%是女生。男生每{b}人一队，每队{c}{u}{o}。|男生共需多少{u}？
    zh {n}的学校{a}名学生中{p_}%是女生，男生{b}人一队，每队分到{c}{u}{o}。|所有男生队共分到多少{u}？
    -- Girls: {a} * {p_} / 100 = {x}. ~ 女生 {a} * {p_} / 100 = {x} 人。
    -- Boys: {a} - {x} = {y}. ~ 男生 {a} - {x} = {y} 人。
    -- Teams: {y} / {b} = {z}. ~ {y} / {b} = {z} 队。
    -- {z} * {c} = {answer} {o}. ~ {z} * {c} = {answer} {u}。
    py x = {a} - {a} * {p_} // 100
    py print(x // {b} * {c})
""",
)
def teams(r):
    p = (20, 25, 40, 50, 60, 75)[r(0, 5)]
    b, c = r(2, 10), r(2, 6)
    boys, unit = 100 - p, 100 // gcd(100, p)
    step = (
        unit * b // gcd(b, unit * boys // 100)
    )  # the smallest number of students that gives whole teams
    a = step * r(-(-40 // step), 300 // step)
    x = a * p // 100
    return dict(a=a, p_=p, b=b, c=c, x=x, y=a - x, z=(a - x) // b, answer=(a - x) // b * c)
