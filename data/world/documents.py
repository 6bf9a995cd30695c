"""Pre-training documents of the built-in world: general, math and code.

General documents are about people, towns, shops, animals and days. A document has a few pieces. A
piece is written by a function (lang, draw, exercise) -> text. The facts of the world are fixed (a
person always lives in the same town), so that a model can learn them. `exercise()` returns a word
problem of the document's split. For documents without an exercise, synthetic.py keeps the splits
apart by a hash of the text.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from math import lcm

from data.world.families import NAMES, OBJECTS, Draw, SyntheticProblem


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Split lines of "English ~ Chinese". A line that begins with ~ or | continues the line above.

    >>> pairs("cat ~ 猫")
    (('cat', '猫'),)
    """
    text = re.sub(r"\n\s*~ ", " ~ ", re.sub(r"\n\s*\| ", " ", text))
    return tuple(tuple(line.strip().split(" ~ ")) for line in text.strip().splitlines())


def words(text: str) -> tuple[list[str], ...]:
    """Split rows at commas, and fields at spaces.

    >>> words("cat 猫, dog 狗")
    (['cat', '猫'], ['dog', '狗'])
    """
    return tuple(row.split() for row in text.split(","))


# English and Chinese.
TOWNS = words(
    "Rosefield 玫瑰镇, Millbrook 磨坊镇, Northport 北港, Lakeside 湖滨镇, Stonebridge 石桥镇, "
    "Greenhill 青山镇, Westford 西津镇, Sunvale 阳谷镇"
)
JOBS = words(
    "baker 面包师, teacher 老师, farmer 农民, doctor 医生, painter 画家, driver 司机, cook 厨师, nurse 护士, "
    "singer 歌手, sailor 水手, writer 作家"
)
PLACES = words(
    "school 学校, market 市场, park 公园, library 图书馆, station 车站, museum 博物馆, river 河边"
)
DAYS = words(
    "Monday 星期一, Tuesday 星期二, Wednesday 星期三, Thursday 星期四, "
    "Friday 星期五, Saturday 星期六, Sunday 星期日"
)
WEATHER = words("sunny 晴朗, windy 有风, cold 寒冷, warm 温暖, cloudy 多云")
# Animal and food in English, the same in Chinese, legs, weight in kg, top speed in km an hour.
ANIMALS = words(
    "cat fish 猫 鱼 4 4 48, dog meat 狗 肉 4 20 45, horse grass 马 草 4 500 70, "
    "cow hay 牛 干草 4 600 40, "
    "hen corn 母鸡 玉米 2 2 14, duck seeds 鸭子 种子 2 1 10, rabbit carrots 兔子 胡萝卜 4 2 50, "
    "goat leaves 山羊 树叶 4 60 16"
)

# Sentences about a person, town, shop, animal or day. A text begins with the first sentence.
GENERAL = {
    "person": pairs("""
        {n} lives in {town} and is {age} years old. ~ {n}住在{town}，今年{age}岁。
        {n} is a {job}. ~ {n}是一名{job}。
        {n} has a {animal} that eats {food}. ~ {n}养了一只{animal}，它吃{food}。
        Every {day} {n} goes to the {place} with {m}. ~ 每到{day}，{n}和{m}一起去{place}。
        {n} likes {o} more than {p}. ~ 比起{p}，{n}更喜欢{o}。
        The best friend of {n} is {m}, a {job2} from {town2}. ~ {n}最好的朋友是{town2}的{job2}{m}。
    """),
    "town": pairs("""
        {town} is a town of about {people} people. ~ {town}大约有{people}人。
        The {place} of {town} is {km} km from the {place2}. ~ {town}的{place}离{place2}有{km}公里。
        Every {day} there is a market, where people sell {o} and {p}. ~ 每到{day}都有集市，人们卖{o}和{p}。
        {n}, a {job}, lives in {town}. ~ {job}{n}住在{town}。
        A bus goes from {town} to {town3} {buses} times a day. ~ 每天有{buses}班车从{town}开往{town3}。
        On {day} the weather in {town} was {weather}. ~ {day}，{town}的天气{weather}。
    """),
    "shop": pairs("""
        {n} has a small shop in {town}. ~ {n}在{town}有一家小店。
        One {o1} costs {price} dollars and one {p1} {price2} dollars.
        ~ 店里一{u}{o}{price}元，一{w}{p}{price2}元。
        The shop opens at {open} o'clock and is closed on {day}. ~ 小店{open}点开门，{day}休息。
        {m} often buys {o} there. ~ {m}常去那里买{o}。
        Most people come to the shop for {p}. ~ 来店里的人大多买{p}。
        The shop stands between the {place} and the {place2}. ~ 小店在{place}和{place2}之间。
    """),
    "animal": pairs("""
        The {animal} is an animal with {legs} legs. ~ {animal}有{legs}条腿。
        It eats {food} and weighs about {kg} kg. ~ 它吃{food}，重约{kg}公斤。
        A {animal} can run {speed} km an hour. ~ {animal}每小时能跑{speed}公里。
        {n} from {town} has {count} of them. ~ {town}的{n}养了{count}只。
        {m} saw a {animal} near the {place}. ~ {m}在{place}附近看见过一只{animal}。
        A {animal} and a {animal2} together have {both} legs. ~ 一只{animal}和一只{animal2}一共有{both}条腿。
    """),
    "story": pairs("""
        On {day} {n} and {m} went to the {place}. ~ {day}，{n}和{m}一起去{place}。
        It was a {weather} day. ~ 那天天气{weather}。
        They took {o} and {p} with them. ~ 他们带了{o}和{p}。
        On the way they met a {animal} and gave it {food}. ~ 路上遇到一只{animal}，他们喂它{food}。
        {n} told a story about {town}. ~ {n}讲了一个{town}的故事。
        {m} was home again at {open} o'clock. ~ {m}{open}点回到家。
    """),
}


Exercise = Callable[[], SyntheticProblem]
Piece = Callable[[str, Draw, Exercise], str]


def pick(draw: Draw, values):
    """A random element."""
    return values[draw(0, len(values) - 1)]


def say(lang: str, english: str, chinese: str) -> str:
    """The text in this language."""
    return english if lang == "en" else chinese


def general(lang: str, draw: Draw, exercise: Exercise) -> str:
    """Three to five sentences about a person, town, shop, animal or day."""
    zh = lang == "zh"
    kind = pick(draw, tuple(GENERAL))
    # Two people i and j, and two objects o and p. All facts follow from these numbers.
    i, o = draw(0, len(NAMES) - 1), draw(0, len(OBJECTS) - 1)
    j = (i + draw(1, len(NAMES) - 1)) % len(NAMES)
    p = (o + draw(1, len(OBJECTS) - 1)) % len(OBJECTS)
    home, friend_home = i * 3 % len(TOWNS), j * 3 % len(TOWNS)
    animal = ANIMALS[i * 5 % len(ANIMALS)] if kind == "person" else pick(draw, ANIMALS)
    second = pick(draw, [other for other in ANIMALS if other is not animal])
    place = draw(0, len(PLACES) - 1)
    slots = dict(
        n=NAMES[i][zh],
        age=20 + i * 7 % 40,
        job=JOBS[i % len(JOBS)][zh],
        town=TOWNS[home][zh],
        m=NAMES[j][zh],
        job2=JOBS[j % len(JOBS)][zh],
        town2=TOWNS[friend_home][zh],
        town3=TOWNS[(home + 3) % len(TOWNS)][zh],
        people=1000 * (3 + home * 7 % 20),
        buses=2 + home,
        animal=animal[2 * zh],
        food=animal[2 * zh + 1],
        legs=animal[4],
        kg=animal[5],
        speed=animal[6],
        animal2=second[2 * zh],
        both=int(animal[4]) + int(second[4]),
        count=draw(2, 9),
        place=PLACES[place][zh],
        place2=PLACES[(place + draw(1, len(PLACES) - 1)) % len(PLACES)][zh],
        day=pick(draw, DAYS)[zh],
        weather=pick(draw, WEATHER)[zh],
        km=draw(2, 9),
        open=draw(6, 10),
        o=OBJECTS[o][2 * zh],
        o1=OBJECTS[o][1],
        u=OBJECTS[o][3],
        price=2 + o * 5 % 11,
        p=OBJECTS[p][2 * zh],
        p1=OBJECTS[p][1],
        w=OBJECTS[p][3],
        price2=2 + p * 5 % 11,
    )
    first, *rest = GENERAL[kind]
    chosen = [first] + [rest.pop(draw(0, len(rest) - 1)) for _ in range(draw(2, 4))]
    return say(lang, " ", "").join(sentence[zh] for sentence in chosen).format_map(slots)


# ---- Mathematics -----------------------------------------------------------------------------


def column_sum(lang: str, draw: Draw, exercise: Exercise) -> str:
    """Addition, digit by digit from the right."""
    top = 10 ** draw(2, 3) - 1
    a, b = draw(10, top), draw(10, top)
    steps, carry, x, y = [], 0, a, b
    while x or y:
        total = x % 10 + y % 10 + carry
        step = f"{x % 10} + {y % 10}" + f" + {carry}" * (carry > 0) + f" = {total}"
        x, y, carry = x // 10, y // 10, total // 10
        digit = total % 10 if x or y else total
        steps.append(say(lang, f"{step}, write {digit}", f"{step}，写{digit}"))
    return say(
        lang,
        f"To add {a} and {b}, start from the right: {'; '.join(steps)}. So {a} + {b} = {a + b}.",
        f"计算{a}加{b}，从个位开始：{'；'.join(steps)}。所以 {a} + {b} = {a + b}。",
    )


def difference(lang: str, draw: Draw, exercise: Exercise) -> str:
    """Subtraction: first the tens, then the ones."""
    b = draw(11, 89)
    a = b + draw(2, 110)
    tens, ones = b // 10 * 10, b % 10
    steps = f"{a} - {tens} = {a - tens}, {a - tens} - {ones} = {a - b}"
    return say(
        lang,
        f"To take {b} from {a}, take away {tens} and then {ones}: {steps}.",
        f"{a}减{b}，先减{tens}再减{ones}：{steps}。",
    )


def product(lang: str, draw: Draw, exercise: Exercise) -> str:
    """Multiplication by one digit: tens and ones separately."""
    a, b = draw(11, 99), draw(2, 9)
    tens, ones = a // 10 * 10, a % 10
    steps = (
        f"{tens} * {b} = {tens * b}, {ones} * {b} = {ones * b}, {tens * b} + {ones * b} = {a * b}"
    )
    return say(
        lang,
        f"{a} times {b}: {steps}. So {a} * {b} = {a * b}.",
        f"{a}乘{b}：{steps}。所以 {a} * {b} = {a * b}。",
    )


def division(lang: str, draw: Draw, exercise: Exercise) -> str:
    b, q = draw(2, 12), draw(2, 12)
    left = draw(0, b - 1)
    a = b * q + left
    why = f"{b} * {q} = {b * q}, {a} - {b * q} = {left}"
    return say(
        lang,
        f"{a} divided by {b} is {q} remainder {left}: {why}.",
        f"{a}除以{b}得{q}余{left}：{why}。",
    )


def table(lang: str, draw: Draw, exercise: Exercise) -> str:
    a, start = draw(2, 15), draw(1, 5)
    rows = ", ".join(f"{a} * {i} = {a * i}" for i in range(start, start + draw(4, 7)))
    return say(lang, f"Times table of {a}: {rows}.", f"{a}的乘法表：{rows}。")


def drill(lang: str, draw: Draw, exercise: Exercise) -> str:
    """Small sums and products, and the reverse: the steps of solutions consist of these."""
    rows = []
    for _ in range(draw(8, 16)):
        a, b, c, d = draw(1, 24), draw(1, 16), draw(2, 9), draw(2, 10)
        kinds = (
            f"{a} + {b} = {a + b}",
            f"{a + b} - {b} = {a}",
            f"{c} * {d} = {c * d}",
            f"{c * d} / {c} = {d}",
        )
        rows.append(pick(draw, kinds))
    return say(lang, f"Practice: {', '.join(rows)}.", f"练习：{', '.join(rows)}。")


def fraction_facts(lang: str, draw: Draw, exercise: Exercise) -> str:
    p, q = draw(2, 9), draw(2, 9)
    common, total = lcm(p, q), Fraction(1, p) + Fraction(1, q)
    steps = (
        f"1/{p} = {common // p}/{common}, 1/{q} = {common // q}/{common}, 1/{p} + 1/{q} = {total}"
    )
    return say(
        lang,
        f"To add 1/{p} and 1/{q}, use the denominator {common}: {steps}.",
        f"1/{p}加1/{q}，通分到{common}：{steps}。",
    )


def percent_facts(lang: str, draw: Draw, exercise: Exercise) -> str:
    p, a = 5 * draw(1, 19), 20 * draw(1, 25)
    steps = f"{a} * {p} / 100 = {a * p // 100}"
    return say(
        lang,
        f"{p}% means {p} out of 100, that is {Fraction(p, 100)}. So {p}% of {a} is {steps}.",
        f"{p}%就是每100里有{p}，即{Fraction(p, 100)}。{a}的{p}%是 {steps}。",
    )


# Fields: a, b, s = a + b, d = a * b, e = 2 s, f = a + 2 b, g = 60 b.
DEFINITIONS = pairs("""
    The perimeter of a rectangle: ({a} + {b}) * 2 = {e}, twice its two sides.
    ~ 长方形的周长：({a} + {b}) * 2 = {e}。
    The area of a rectangle is length times width: {a} * {b} = {d}. ~ 长方形的面积是长乘宽：{a} * {b} = {d}。
    The average is the sum divided by the count: ({a} + {f}) / 2 = {s}.
    ~ 平均数是总和除以个数：({a} + {f}) / 2 = {s}。
    Speed is distance divided by time: {d} / {b} = {a} km an hour.
    ~ 速度是路程除以时间：{d} / {b} = {a} 千米每小时。
    The unit price is the cost divided by the number: {d} / {b} = {a}. ~ 单价是总价除以数量：{d} / {b} = {a}。
    {b} times as many as {a} is {a} * {b} = {d}. ~ {a}的{b}倍是 {a} * {b} = {d}。
    {b} more than {a} is {a} + {b} = {s}; {b} fewer than {s} is {s} - {b} = {a}.
    ~ 比{a}多{b}是 {a} + {b} = {s}。
    An hour has 60 minutes, so {b} hours have {b} * 60 = {g} minutes.
    ~ 一小时有60分钟，{b}小时是 {b} * 60 = {g} 分钟。
    A number is even when 2 divides it: {e} is even. ~ 能被2整除的数是偶数：{e}是偶数。
""")


def definition(lang: str, draw: Draw, exercise: Exercise) -> str:
    a, b = draw(2, 30), draw(2, 9)
    slots = dict(a=a, b=b, s=a + b, d=a * b, e=2 * (a + b), f=a + 2 * b, g=60 * b)
    return pick(draw, DEFINITIONS)[lang == "zh"].format_map(slots)


def solved(lang: str, draw: Draw, exercise: Exercise) -> str:
    """A word problem and its solution."""
    p = exercise()
    titled = say(
        lang, f"Problem: {p.question}\nSolution: {p.cot}", f"题目：{p.question}\n解：{p.cot}"
    )
    return pick(draw, (f"{p.question}\n{p.cot}", titled))


MATH: tuple[Piece, ...] = (drill, drill, solved, solved)
# Pieces that word problems of level 3 and above also need.
MORE_MATH: tuple[Piece, ...] = (
    column_sum,
    difference,
    product,
    division,
    table,
    fraction_facts,
    percent_facts,
    definition,
)


# ---- Programs --------------------------------------------------------------------------------

# A comment (English, Chinese) and a program. n is a name, o an object; other fields are numbers.
PROGRAMS = tuple(
    (comment, program.strip("\n"))
    for comment, program in (
        (
            ("Add the numbers in a list.", "求列表中各数的和。"),
            """
numbers = [{a}, {b}, {c}, {d}]
print(sum(numbers))""",
        ),
        (
            ("Add the numbers from 1 to {c}.", "求1到{c}的和。"),
            """
total = 0
for i in range(1, {c} + 1):
    total = total + i
print(total)""",
        ),
        (
            ("The area of a rectangle.", "求长方形的面积。"),
            """
def area(length, width):
    return length * width

print(area({a}, {b}))""",
        ),
        (
            ("The largest and the smallest number.", "求最大数和最小数。"),
            """
numbers = [{a}, {b}, {d}]
print(max(numbers), min(numbers))""",
        ),
        (
            ("Keep the even numbers.", "留下偶数。"),
            """
numbers = [{a}, {b}, {c}, {d}]
print([x for x in numbers if x % 2 == 0])""",
        ),
        (
            ("What {n} pays for {a} {o}.", "{n}买{a}件{o}要付多少。"),
            """
price = {{"{o}": {b}}}
cost = {a} * price["{o}"]
print(cost)""",
        ),
        (
            ("Greet {n}.", "向{n}问好。"),
            """
name = "{n}"
print("Hello, " + name)""",
        ),
        (
            ("Halve a number until it is odd.", "不断除以2，直到得到奇数。"),
            """
x = {a} * 8
while x % 2 == 0:
    x = x // 2
print(x)""",
        ),
        (
            ("Compare two numbers.", "比较两个数。"),
            """
a = {a}
b = {b}
if a > b:
    print("a is larger")
else:
    print("a is not larger")""",
        ),
        (
            ("Add two fractions.", "两个分数相加。"),
            """
from fractions import Fraction
print(Fraction(1, {c}) + Fraction({b}, {d}))""",
        ),
        (
            ("Take {p}% of a number.", "求一个数的{p}%。"),
            """
def percent(x, p):
    return x * p / 100

print(percent({a}, {p}))""",
        ),
        (
            ("Quotient and remainder.", "求商和余数。"),
            """
q = {a} // {c}
r = {a} % {c}
print(q, r)""",
        ),
        (
            ("The average of three numbers.", "求三个数的平均数。"),
            """
x = {a} + {b} + {d}
print(x / 3)""",
        ),
        (
            ("The greatest common divisor.", "求最大公约数。"),
            """
import math
print(math.gcd({a}, {b}))""",
        ),
        (
            ("Count down from {s}.", "从{s}开始倒数。"),
            """
for i in range({s}, 0, -1):
    print(i)""",
        ),
        (
            ("The times table of {c}.", "{c}的乘法表。"),
            """
for i in range(1, {s}):
    print({c}, "*", i, "=", {c} * i)""",
        ),
        (
            ("Sort the numbers.", "给数排序。"),
            """
numbers = [{a}, {d}, {b}]
print(sorted(numbers))""",
        ),
    )
)


def output(program: str) -> str:
    """What a program of this file prints. It runs without a sandbox: never pass other programs."""
    lines: list[str] = []
    exec(program, {"print": lambda *values: lines.append(" ".join(map(str, values)))})
    return "\n".join(lines)


def commented(comment: str, program: str, printed: str, lang: str) -> str:
    """A program between a comment and the output."""
    head = say(lang, "# Output:", "# 输出：")
    result = printed.replace("\n", "\n# ")
    return f"# {comment}\n{program}\n{head}\n# {result}"


def snippet(lang: str, draw: Draw, exercise: Exercise) -> str:
    """A small program."""
    zh = lang == "zh"
    comment, program = pick(draw, PROGRAMS)
    slots = dict(
        a=draw(2, 60),
        b=draw(2, 60),
        c=draw(2, 12),
        d=draw(2, 30),
        p=10 * draw(1, 9),
        s=draw(3, 6),
        n=pick(draw, NAMES)[zh],
        o=pick(draw, OBJECTS)[2 * zh],
    )
    program = program.format_map(slots)
    return commented(comment[zh].format_map(slots), program, output(program), lang)


def word_program(lang: str, draw: Draw, exercise: Exercise) -> str:
    """A word problem as a comment, and the program that answers it."""
    p = exercise()
    return commented(p.question, p.pot, p.answer, lang)


CODE: tuple[Piece, ...] = (snippet, word_program)

# For each kind: pieces, minimum and maximum number in a document, and the separator.
KINDS = {
    "general": ((general,), 1, 3, "\n"),
    "math": (MATH, 2, 4, "\n"),
    "code": (CODE, 1, 3, "\n\n"),
}


def compose(kind: str, lang: str, draw: Draw, exercise: Exercise, level: int) -> str:
    """A document of a kind; `level` is the highest level of the word problems in it."""
    pieces, fewest, most, between = KINDS[kind]
    if kind == "math" and level > 2:
        pieces = MORE_MATH + pieces
    count = draw(fewest, most)
    return between.join(pick(draw, pieces)(lang, draw, exercise) for _ in range(count))
