"""The texts of the built-in web (web.py), in English and Chinese.

There is mathematics in seven styles, text that only looks like mathematics, everyday text, and
spam. A page is a list of blocks (tag, text), where the tag is h1, h2, p or pre. In a text, `$...$`
is an inline formula in LaTeX, and `$$...$$` is a formula on a separate line. Line breaks stay. Word
problems come from `exercise()`, as in documents.py; the pieces of documents.py are also used here.
"""

import re
from dataclasses import dataclass

from data.world.documents import (
    DAYS,
    MATH,
    MORE_MATH,
    PLACES,
    TOWNS,
    Exercise,
    general,
    pairs,
    pick,
    say,
    solved,
    word_program,
)
from data.world.families import NAMES, OBJECTS, Draw
from data.world.synthetic import split_of

Block = tuple[str, str]


TOPICS = pairs("""
    word problems ~ 应用题
    fractions ~ 分数
    percentages ~ 百分数
    speed and distance ~ 路程与速度
    averages ~ 平均数
    area and perimeter ~ 面积与周长
    unit prices ~ 单价
    mental arithmetic ~ 口算
    multiplication ~ 乘法
    division with remainder ~ 有余数的除法
    ages ~ 年龄问题
    sums and differences ~ 和差问题
""")

# Formulas: {NAME} in a text becomes $...$.
FORMULAS = dict(
    COMMUTE=r"a + b = b + a",
    SWAP=r"a \times b = b \times a",
    DISTRIBUTE=r"a \times (b + c) = a \times b + a \times c",
    ADDFRAC=r"\frac{a}{b} + \frac{c}{d} = \frac{ad + bc}{bd}",
    MULFRAC=r"\frac{a}{b} \times \frac{c}{d} = \frac{ac}{bd}",
    MEAN=r"\bar{x} = \frac{x_1 + x_2 + \dots + x_n}{n}",
    PERCENT=r"p \% = \frac{p}{100}",
    RECTANGLE=r"A = l \times w",
    PERIMETER=r"P = 2 \times (l + w)",
    SPEED=r"v = \frac{s}{t}",
    PRICE=r"u = \frac{c}{n}",
    SQUARES=r"(a + b)^2 = a^2 + 2ab + b^2",
    MINUS=r"a^2 - b^2 = (a + b)(a - b)",
    GAUSS=r"1 + 2 + \dots + n = \frac{n(n + 1)}{2}",
    PYTHAGORAS=r"a^2 + b^2 = c^2",
    ROOTS=r"x = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}",
    REMAINDER=r"a = b \times q + r",
    POWERS=r"x^m \times x^n = x^{m + n}",
    ROOT=r"\sqrt{ab} = \sqrt{a} \times \sqrt{b}",
    NEWTON=r"F = ma",
    ENERGY=r"E = \frac{1}{2} m v^2",
    FALL=r"h = \frac{1}{2} g t^2",
    OHM=r"U = R \times I",
    POWER=r"P = U \times I",
    DENSITY=r"\rho = \frac{m}{V}",
    WAVE=r"v = \lambda f",
    MOMENTUM=r"p = mv",
    GAS=r"pV = nRT",
    HOOKE=r"F = kx",
)


# ---- Mathematics -----------------------------------------------------------------------------

# Rules with formulas.
FACTS = pairs("""
    The order of two summands does not matter: {COMMUTE}. ~ 加法交换律：两个加数可以交换，{COMMUTE}。
    The order of two factors does not matter: {SWAP}. ~ 乘法交换律：两个因数可以交换，{SWAP}。
    A factor is distributed over a sum: {DISTRIBUTE}. ~ 乘法分配律：{DISTRIBUTE}。
    Fractions are added over a common denominator: {ADDFRAC}. ~ 异分母分数先通分再相加：{ADDFRAC}。
    Fractions are multiplied numerator by numerator and denominator by denominator: {MULFRAC}.
    ~ 分数相乘，分子乘分子，分母乘分母：{MULFRAC}。
    The mean of a list of numbers is their sum over their count: {MEAN}. ~ 一组数的平均数等于总和除以个数：{MEAN}。
    A percentage is a fraction with denominator 100: {PERCENT}. ~ 百分数就是分母为100的分数：{PERCENT}。
    The area of a rectangle with sides l and w is {RECTANGLE}. ~ 长方形的面积等于长乘宽：{RECTANGLE}。
    The perimeter of a rectangle with sides l and w is {PERIMETER}. ~ 长方形的周长等于长与宽的和乘2：{PERIMETER}。
    The unit price is the cost over the number of pieces: {PRICE}. ~ 单价等于总价除以数量：{PRICE}。
    The square of a sum has three terms: {SQUARES}. ~ 完全平方公式：{SQUARES}。
    A difference of two squares can be factored: {MINUS}. ~ 平方差公式：{MINUS}。
    The sum of the first n natural numbers has a closed form: {GAUSS}. ~ 前n个自然数的和有公式：{GAUSS}。
    In a right triangle with legs a and b and hypotenuse c: {PYTHAGORAS}.
    ~ 勾股定理：直角三角形两直角边为a和b，斜边为c，则{PYTHAGORAS}。
    A quadratic equation is solved by {ROOTS}. ~ 一元二次方程的求根公式是{ROOTS}。
    Division with remainder writes a number as {REMAINDER} with a remainder smaller than the
    | divisor.
    ~ 有余数的除法可以写成{REMAINDER}，余数比除数小。
    Powers of the same base are multiplied by adding the exponents: {POWERS}.
    ~ 同底数幂相乘，底数不变，指数相加：{POWERS}。
    The root of a product is the product of the roots: {ROOT}. ~ 积的算术平方根等于各因数算术平方根的积：{ROOT}。
""")

# {a} and {b} are any numbers, {e} is even, {q} is odd, {u} is a multiple of {v}.
PROOFS = pairs("""
    Claim: the sum of two even numbers is even.
    | Proof: write them as 2k and 2m; their sum 2(k + m) is twice a whole number. For example
    | {e} plus {e} is even.
    ~ 命题：两个偶数的和是偶数。证明：设两数为2k和2m，它们的和2(k + m)是整数的2倍。例如{e}加{e}是偶数。
    Claim: the sum of two odd numbers is even.
    | Proof: for odd numbers 2k + 1 and 2m + 1 the sum is 2(k + m + 1). For example {q} and {q}.
    ~ 命题：两个奇数的和是偶数。证明：设奇数为2k + 1和2m + 1，则和为2(k + m + 1)。可用{q}与{q}验证。
    Claim: the product of two odd numbers is odd.
    | Proof: (2k + 1)(2m + 1) leaves remainder 1 on division by 2, as {q} and {q} show.
    ~ 命题：两个奇数的积是奇数。证明：(2k + 1)(2m + 1)除以2余1，例如{q}与{q}。
    Theorem: there are infinitely many primes.
    | Proof: suppose there were only {a}; multiply them and add one;
    | no prime of the list divides the result, a contradiction.
    ~ 定理：素数有无穷多个。证明：假设只有{a}个素数，把它们相乘再加一，所得的数不能被其中任何一个整除，矛盾。
    Lemma: if d divides both x and y, then d divides their difference.
    | Proof: x = dk and y = dm give x - y = d(k - m). For example {v} divides {u}.
    ~ 引理：若d整除x和y，则d整除它们的差。证明：由x = dk与y = dm得x - y = d(k - m)。例如{v}整除{u}。
    Theorem: the square root of 2 is irrational.
    | Proof: let it be a fraction in lowest terms; then numerator and denominator are both even,
    | which is absurd.
    | No denominator up to {c} can do it either, of course.
    ~ 定理：2的平方根是无理数。证明：设它为最简分数，则分子分母都是偶数，矛盾。分母取到{c}也不行。
    Proposition: among any {a} plus one whole numbers two have the same remainder modulo {a}.
    | Proof: there are only {a} remainders, so by the pigeonhole principle one of them occurs twice.
    ~ 命题：任意{a}加一个整数中，必有两个除以{a}的余数相同。证明：余数只有{a}种，由抽屉原理，必有一种出现两次。
    Claim: the sum of the first n odd numbers is a perfect square.
    | Proof by induction: it holds for one; the step from n to n + 1 adds 2n + 1, the difference
    | of neighboring squares.
    | Check it up to {b}.
    ~ 命题：前n个奇数的和是完全平方数。用归纳法证明：一个时成立；由n到n + 1增加2n + 1，正是相邻平方数之差。可验证到{b}。
    Lemma: a number is divisible by 9 exactly when the sum of its digits is.
    | Proof: every power of ten leaves remainder 1 modulo 9. Thus {a} can be tested without
    | division.
    ~ 引理：一个数能被9整除，当且仅当各位数字之和能被9整除。证明：10的任何次幂除以9都余1。因此{a}不必做除法就能判断。
    Corollary: if the product of two whole numbers is odd, both factors are odd.
    | Proof: an even factor would make the product even. So {q} has no even divisor.
    ~ 推论：若两个整数的积是奇数，则两个因数都是奇数。证明：若有偶因数，积必为偶数。所以{q}没有偶数因数。
""")

POINTS = "ABCDEFGHKLMNOPQRSTXYZ"
# Geometry without numbers and formulas. {A}, {B}, {C} are three points.
CONSTRUCTIONS = pairs("""
    Draw a circle about {A} through {B} and a second one about {B} through {A}; they cross in {C}.
    ~ 以{A}为圆心过{B}作圆，再以{B}为圆心过{A}作圆，两圆交于{C}。
    Join {A} and {B} with the ruler and bisect the segment with the compass.
    ~ 用直尺连接{A}和{B}，再用圆规作线段的垂直平分线。
    The bisectors of the angles of triangle {A}{B}{C} meet in one point, the center of the
    | inscribed circle.
    ~ 三角形{A}{B}{C}的三条角平分线交于一点，即内切圆的圆心。
    Since {A}{B} and {A}{C} are radii of the same circle, the triangle is isosceles.
    ~ 因为{A}{B}与{A}{C}是同一个圆的半径，所以三角形是等腰的。
    Drop a perpendicular from {C} to the line {A}{B} and call its foot the base of the altitude.
    ~ 过{C}作直线{A}{B}的垂线，垂足就是高的底端。
    Alternate angles at the parallel through {C} are equal, hence the angles of the triangle
    | form a straight angle.
    ~ 过{C}作平行线，内错角相等，因此三角形的内角合成一个平角。
    The angle at {C} over the diameter {A}{B} is a right angle, by the theorem of Thales.
    ~ 由泰勒斯定理，直径{A}{B}所对的圆周角{C}是直角。
    Reflect {A} in the line {B}{C}; the image is as far from the line as {A} itself.
    ~ 作{A}关于直线{B}{C}的对称点，它到直线的距离与{A}相等。
    The triangles with vertex {A} and vertex {B} are congruent, since two sides and the angle
    | between them agree.
    ~ 以{A}和{B}为顶点的两个三角形全等，因为两边及其夹角相等。
    A tangent at {B} is perpendicular to the radius from the center {A}.
    ~ 过{B}的切线垂直于从圆心{A}引出的半径。
    The medians from {A}, {B} and {C} pass through the centroid, which divides each of them.
    ~ 从{A}、{B}、{C}引出的中线都经过重心，并被重心分割。
    The quadrilateral is a parallelogram, because its diagonals through {A} and {B} bisect each
    | other in {C}.
    ~ 这个四边形是平行四边形，因为过{A}和{B}的对角线在{C}互相平分。
    Rotate the figure about {C} until {A} falls on {B}; lengths and angles are preserved.
    ~ 将图形绕{C}旋转，使{A}与{B}重合，长度和角度不变。
    Opposite angles of a quadrilateral inscribed in the circle through {A}, {B} and {C} are
    | supplementary.
    ~ 内接于过{A}、{B}、{C}的圆的四边形，对角互补。
""")


@dataclass(frozen=True)
class Style:
    """How a kind of site writes mathematics: phrases, and how much of what is on a page."""

    titles: tuple
    openings: tuple
    leads: tuple  # before a worked problem
    between: tuple  # between question and solution; empty: as in documents.py
    closings: tuple
    solved: tuple[int, int]  # minimum and maximum number of word problems
    drills: tuple[int, int] = (1, 2)  # minimum and maximum number of other pieces of arithmetic
    facts: int = 0
    proofs: tuple[int, int] = (0, 0)
    programs: int = 0  # maximum number
    constructions: tuple[int, int] = (0, 0)  # minimum and maximum number of paragraphs


STYLES = {
    "textbook": Style(
        titles=pairs("""
            Chapter {i}: {t} ~ 第{i}章 {t}
            Lesson {i}: an introduction to {t} ~ 第{i}课 {t}入门
            Section {i}. Worked examples on {t} ~ 第{i}节 {t}例题
            Arithmetic made clear: {t}, unit {i} ~ 算术教程：{t}（第{i}单元）
        """),
        openings=pairs("""
            In this chapter we study {t}. Read each example carefully before you turn to the
            | exercises.
            ~ 本章学习{t}。请先认真阅读例题，再做练习。
            The aim of this section is to solve equations and exercises about {t} step by step.
            ~ 本节的目标是一步一步地解答有关{t}的习题。
            Recall the rules of the previous chapter; here they are applied to {t}.
            ~ 回忆上一章的法则，本章把它们用于{t}。
            By the end of the lesson the student can explain every step of a calculation with {t}.
            ~ 学完本课，同学们应能说明{t}计算的每一步。
        """),
        leads=pairs("""
            Example {k}. ~ 例{k}
            Exercise {i}.{k} (worked). ~ 练习{i}.{k}（附解答）
            Example {k}: show all steps of the calculation. ~ 例{k}：写出全部计算步骤。
            Review question {k} of section {i}. ~ 第{i}节复习题{k}
        """),
        between=(),
        closings=pairs("""
            Summary: name the known numbers, choose the operation, calculate and check the result.
            ~ 小结：找出已知数，选择运算，计算并检验结果。
            The exercises at the end of the chapter repeat these steps with other numbers.
            ~ 章末习题用其他数重复这些步骤。
            In the next chapter these results on {t} are generalized. ~ 下一章将推广有关{t}的结论。
        """),
        solved=(0, 1),
        drills=(4, 7),
        facts=4,
    ),
    "notes": Style(
        titles=pairs("""
            Lecture {i}: {t} ~ 第{i}讲：{t}
            Lecture notes on {t}, part {i} ~ {t}讲义（{i}）
            Handout {i}: formulas for {t} ~ 讲义{i}：{t}公式
        """),
        openings=pairs("""
            These notes collect the definitions and formulas on {t} that were derived in lecture
            | {i}.
            ~ 本讲义汇总第{i}讲推导的{t}定义与公式。
            We fix notation first; all variables denote whole numbers or fractions unless stated
            | otherwise.
            ~ 先约定记号：除非另有说明，字母表示整数或分数。
            Throughout the lecture we derive each formula about {t} and apply it to an example.
            ~ 本讲推导{t}的每个公式，并用于例子。
        """),
        leads=pairs("""
            Remark {k}. ~ 注{k}
            Application {k}: ~ 应用{k}：
            Worked example {k}, discussed in class. ~ 课堂例题{k}
        """),
        between=(),
        closings=pairs("""
            Homework: derive the formula for {t} again without these notes. ~ 作业：不看讲义重新推导{t}的公式。
            References for lecture {i} are listed on the page of the course. ~ 第{i}讲的参考书目见课程主页。
        """),
        solved=(0, 0),
        drills=(3, 5),
        facts=6,
        proofs=(1, 2),
    ),
    "blog": Style(
        titles=pairs("""
            How my kids finally understood {t} ~ 孩子终于弄懂了{t}
            {i} puzzles about {t} for a rainy {day} ~ 适合{day}的{i}道{t}趣题
            Why I love teaching {t} ~ 我为什么喜欢教{t}
            A kitchen table guide to {t} ~ 餐桌上的{t}课
        """),
        openings=pairs("""
            Last {day} my daughter {n} came home with a sheet about {t}, and we worked it out
            | together over breakfast.
            ~ 上个{day}，女儿{n}带回一张{t}的卷子，我们边吃早饭边一起算。
            Friends keep asking me how to explain {t}, so here is what worked for {n} and {m}.
            ~ 朋友总问我怎么讲{t}，下面是对{n}和{m}管用的办法。
            I used to be afraid of {t}. Then {n} told me to draw little pictures, and everything
            | changed.
            ~ 我以前很怕{t}，后来{n}教我画小图，一切都变了。
        """),
        leads=pairs("""
            Here is one that {n} made up: ~ {n}自己编了一道：
            My favorite of the week: ~ 本周我最喜欢的一道：
            This one took us a while: ~ 这道我们想了好一会儿：
            {m} cracked the next one at once: ~ 下面这道{m}一下就做出来了：
        """),
        between=pairs("""
            We talked it through like this: ~ 我们是这样想的：
            Take a breath, then go slowly: ~ 别急，慢慢来：
        """),
        closings=pairs("""
            Tell me in the comments how your family did, and subscribe for more little puzzles.
            ~ 欢迎留言告诉我你家孩子做得怎样，别忘了关注。
            Next {day} I will share what we did with pizza slices. ~ 下个{day}再分享我们切披萨的故事。
        """),
        solved=(7, 10),
        drills=(0, 0),
        programs=2,
    ),
    "forum": Style(
        titles=pairs("""
            Help please with {t} homework!! ~ 求助！{t}作业不会做
            Stuck on {t}, what am I doing wrong? ~ {t}卡住了，我哪里错了
            [Solved] quick one about {t} ~ 【已解决】一道{t}小题
            Can somebody check my answer ({t}) ~ 谁能帮忙看看这道{t}
        """),
        openings=pairs("""
            Hi everyone, first post here, sorry if this is the wrong board. ~ 大家好，新人第一次发帖，发错版块请见谅。
            Thread opened by {n}. Moderator: {m}. Be kind and show your attempt.
            ~ 楼主：{n}。版主：{m}。请友善回复并写出思路。
            Thanks in advance, the test is on {day} and I am panicking. ~ 先谢谢各位，{day}就要考试了，急。
        """),
        leads=pairs("""
            {n} wrote: ~ {n}发表于{i}楼：
            {n} asked on {day}: ~ {n}在{day}提问：
            Quote from post {i}: ~ 引用{i}楼：
            Bump, still hoping for a reply. {n} wrote: ~ 顶一下，等大神。{n}：
        """),
        between=pairs("""
            {m} replied: easy, look, ~ {m}回复：很简单，
            Re: got it, no worries: ~ 回复楼主：搞定了，
            {m} (senior member): you just do ~ {m}（资深会员）：这样做就行，
        """),
        closings=pairs("""
            Thank you so much, you saved my day! Marked as solved. ~ 太感谢了，救命之恩！已标记为解决。
            Upvoted. Closing this thread. ~ 已点赞，结帖。
            Log in to reply or to follow this topic. ~ 登录后才能回复或关注本帖。
        """),
        solved=(7, 10),
        drills=(0, 0),
        programs=2,
    ),
    "bank": Style(
        titles=pairs("""
            Problem set {i}: {t} (with key) ~ 题库{i}：{t}（附答案）
            Practice test {i} - {t} ~ 模拟卷{i}：{t}
            Quiz bank, {t}, grade {k} ~ {k}年级{t}题库
        """),
        openings=pairs("""
            Time allowed: {i} minutes. Total score: 100. Calculators are not permitted.
            ~ 考试时间：{i}分钟。满分：100分。不得使用计算器。
            Select an item, attempt it, then reveal the key below it. ~ 请先作答，再展开下方答案。
            Items are tagged by grade, skill and difficulty; the key follows each item.
            ~ 每题标有年级、知识点与难度，题后附答案。
        """),
        leads=pairs("""
            Item {i}{k} | grade {k} | difficulty medium ~ 【题{i}{k}】{k}年级 难度：中等
            Q{k} [5 points] ~ 第{k}题（5分）
            Item {i}{k} | skill: {t} | easy ~ 【题{i}{k}】知识点：{t} 难度：容易
        """),
        between=pairs("""
            Key: ~ 【解析】
            Show key ~ 【答案与解析】
            Marking scheme: ~ 【评分标准】
        """),
        closings=pairs("""
            End of the set. Next set | Previous set | Print this sheet ~ 本卷结束。下一套 | 上一套 | 打印试卷
            Report an error in an item. Average score of {i} users: 71 points. ~ 题目报错。{i}名用户平均分：71分。
        """),
        solved=(8, 12),
        drills=(0, 0),
    ),
    "proofs": Style(
        titles=pairs("""
            Elementary number theory {i}: statements and proofs ~ 初等数论{i}：命题与证明
            Proof archive, entry {i} ~ 证明集锦，第{i}条
            Parity, divisors and primes ({i}) ~ 奇偶性、因数与素数（{i}）
        """),
        openings=pairs("""
            Each statement below is followed by a complete argument; the reader should try first.
            ~ 以下每个命题都附有完整论证，读者宜先自行尝试。
            We prove the following from the definitions of divisor, remainder and parity alone.
            ~ 下面仅由因数、余数与奇偶性的定义证明。
        """),
        leads=pairs("""
            Illustration: ~ 实例：
            A numerical instance: ~ 数值例子：
        """),
        between=(),
        closings=pairs("""
            This completes the argument. Further statements are proved in entry {i}.
            ~ 证毕。其他命题见第{i}条。
            The converse is left to the reader. ~ 逆命题留给读者。
        """),
        solved=(1, 2),
        drills=(2, 3),
        facts=1,
        proofs=(4, 6),
    ),
    "geometry": Style(
        titles=pairs("""
            Constructions with ruler and compass ~ 尺规作图
            Circles, chords and tangents ~ 圆、弦与切线
            Congruent triangles, a gallery ~ 全等三角形图集
            Figures that fold and turn ~ 折叠与旋转的图形
        """),
        openings=pairs("""
            All figures on this page can be drawn with ruler and compass alone. ~ 本页的图形只用直尺和圆规就能作出。
            Drag the points of the figure to see which lines stay perpendicular. ~ 拖动图中的点，看哪些直线始终垂直。
            Paper, a pencil and a pair of compasses are enough for the evening. ~ 有纸、铅笔和圆规，今晚就够了。
        """),
        leads=(),
        between=(),
        closings=pairs("""
            Download the figures as a drawing. ~ 下载本页图形。
            More figures are in the gallery of {n}. ~ 更多图形见{n}的图集。
        """),
        solved=(0, 0),
        drills=(0, 0),
        constructions=(5, 8),
    ),
}


def slots_of(lang: str, draw: Draw) -> dict:
    """Values for the fields of a template: names, places, objects, numbers, formulas."""
    zh = lang == "zh"
    n, o, a, b = draw(0, len(NAMES) - 1), draw(0, len(OBJECTS) - 1), draw(12, 98), draw(2, 11)
    return dict(
        n=NAMES[n][zh],
        m=NAMES[(n + draw(1, len(NAMES) - 1)) % len(NAMES)][zh],
        town=pick(draw, TOWNS)[zh],
        place=pick(draw, PLACES)[zh],
        day=pick(draw, DAYS)[zh],
        t=pick(draw, TOPICS)[zh],
        o=OBJECTS[o][2 * zh],
        p=OBJECTS[(o + draw(1, len(OBJECTS) - 1)) % len(OBJECTS)][2 * zh],
        a=a,
        b=b,
        c=draw(100, 999),
        d=draw(2, 30),
        s=a + b,
        x=a * b,
        i=draw(1, 60),
        k=draw(1, 6),
        e=2 * draw(2, 40),
        q=2 * draw(2, 40) + 1,
        v=b,
        u=b * draw(2, 12),
        y=1990 + draw(0, 33),
        **{name: f"${latex}$" for name, latex in FORMULAS.items()},
    )


def fill(templates, lang: str, draw: Draw, slots: dict) -> str:
    """A random template, with values for the fields."""
    return pick(draw, templates)[lang == "zh"].format_map(slots)


def shuffled(values, draw: Draw) -> list:
    """The values in random order (Fisher-Yates)."""
    values = list(values)
    for k in range(len(values) - 1, 0, -1):
        j = draw(0, k)
        values[k], values[j] = values[j], values[k]
    return values


def math_blocks(
    style_name: str, lang: str, draw: Draw, exercise: Exercise, level: int, planted: list[str]
) -> list[Block]:
    """A page of mathematics in a style, with `planted` questions between the other items.

    `level` is the highest level of the word problems.
    """
    style, slots, zh = STYLES[style_name], slots_of(lang, draw), lang == "zh"
    pieces = MATH + MORE_MATH if level > 2 else MATH
    arithmetic = [piece for piece in pieces if piece is not solved]
    items: list[list[Block]] = []

    def add(text: str) -> None:
        items.append([("p", text)])

    # Word problems with solutions.
    for k in range(draw(*style.solved)):
        slots |= slots_of(lang, draw) | {"t": slots["t"], "k": k + 1}
        lead = fill(style.leads, lang, draw, slots)
        if style.between:
            p = exercise()
            text = f"{p.question}\n{fill(style.between, lang, draw, slots)}\n{p.cot}"
        else:
            text = solved(lang, draw, exercise)
        add(f"{lead}\n{text}")

    # Arithmetic, and rules. The formula of the first rule stands on a separate line.
    for _ in range(draw(*style.drills)):
        add(pick(draw, arithmetic)(lang, draw, exercise))
    for k, fact in enumerate(shuffled(FACTS, draw)[: style.facts]):
        text = fact[zh].format_map(slots)
        if k == 0:
            before, formula, after = re.fullmatch(r"(.*?)\$(.+?)\$(.*)", text).groups()
            text = f"{before.rstrip()}\n$${formula}$$\n{after.lstrip('.。，,; ')}".rstrip("\n")
        add(text)

    # Proofs and constructions.
    for proof in shuffled(PROOFS, draw)[: draw(*style.proofs)]:
        add(proof[zh].format_map(slots_of(lang, draw)))
    for _ in range(draw(*style.constructions)):
        sentences = []
        for sentence in shuffled(CONSTRUCTIONS, draw)[: draw(3, 4)]:
            points = dict(zip("ABC", shuffled(POINTS, draw), strict=False))
            sentences.append(sentence[zh].format_map(slots | points))
        add(say(lang, " ", "").join(sentences))

    # Programs, and benchmark questions.
    for _ in range(draw(0, style.programs)):
        lead = say(lang, "The same in Python:", "用 Python 来算：")
        items.append([("p", lead), ("pre", word_program(lang, draw, exercise))])
    for question in planted:
        add(say(lang, "Problem: ", "题目：") * draw(0, 1) + question)

    blocks = [("h1", fill(style.titles, lang, draw, slots))]
    blocks.append(("p", fill(style.openings, lang, draw, slots)))
    for item in shuffled(items, draw):
        blocks += item
    blocks.append(("p", fill(style.closings, lang, draw, slots)))
    return blocks


# ---- What is not mathematics -----------------------------------------------------------------

# For each kind: titles and sentences.
OTHER = {
    "physics": (
        pairs("""
            Experiment {i}: motion and force ~ 实验{i}：运动与力
            Physics class {k}: energy and heat ~ 物理课{k}：能量与热
            Circuits explained, part {k} ~ 电路入门（{k}）
            Waves, light and sound ({i}) ~ 波、光与声（{i}）
        """),
        pairs("""
            By the second law {NEWTON} a cart of mass {b} kg is accelerated by a force of {a} N.
            ~ 由牛顿第二定律{NEWTON}，{a}牛的力使质量{b}千克的小车加速。
            The kinetic energy {ENERGY} of the ball grows with the square of its velocity.
            ~ 小球的动能{ENERGY}随速度的平方增大。
            A stone dropped from the tower of {town} falls by {FALL}, if the drag of the air is
            | neglected.
            ~ 石块从{town}的塔上落下，忽略空气阻力时{FALL}。
            The voltage across the resistor was {a} V and the current {b} A, as {OHM} predicts.
            ~ 电阻两端电压为{a}伏，电流为{b}安，符合{OHM}。
            The lamp takes the electric power {POWER}; it was left on for {d} minutes and became
            | hot.
            ~ 灯泡的电功率为{POWER}，通电{d}分钟后发热。
            The density {DENSITY} of the metal block was found by sinking it in water at {d}
            | degrees.
            ~ 把金属块浸入{d}度的水中，测得密度{DENSITY}。
            Sound of frequency {c} Hz travels through air with {WAVE}, so its wavelength is short.
            ~ 频率{c}赫的声音在空气中传播，{WAVE}，波长很短。
            In the collision the momentum {MOMENTUM} of both carts is conserved, although heat
            | is lost.
            ~ 碰撞中两车的总动量{MOMENTUM}守恒，尽管有热量损失。
            The pressure of the gas rises with its temperature: {GAS}. ~ 气体的压强随温度升高：{GAS}。
            The spring was stretched by {b} cm and obeys {HOOKE} up to {a} N.
            ~ 弹簧伸长{b}厘米，在{a}牛以内服从{HOOKE}。
            Students of {n} measured the period of the pendulum {d} times with a stopwatch in
            | the laboratory.
            ~ {n}的学生在实验室用秒表测了{d}次单摆周期。
            A thermometer read {d} degrees before and {a} degrees after heating for {b} minutes.
            ~ 加热{b}分钟前温度计读数{d}度，之后{a}度。
            Light is refracted at the surface of glass, and the prism splits it into colors from
            | red to violet.
            ~ 光在玻璃表面折射，棱镜把它分成从红到紫的颜色。
            The magnet of {m} attracts iron filings at a distance of {b} cm but no copper wire.
            ~ {m}的磁铁在{b}厘米处吸引铁屑，但不吸引铜线。
        """),
    ),
    "accounting": (
        pairs("""
            Quarterly report {y} of a shop in {town} ~ {town}商店{y}年季度报告
            Bookkeeping basics {i}: debit and credit ~ 记账基础{i}：借方与贷方
            Invoice {c}-{i} and terms of payment ~ 发票{c}-{i}与付款条件
            Annual budget of the {place}, {y} ~ {y}年{place}年度预算
        """),
        pairs("""
            Revenue in {y} was {c} thousand dollars, costs were {a} thousand.
            ~ {y}年营业收入{c}千元，成本{a}千元。
            Invoice {c} over {x} dollars is due within {d} days and was sent to {n}.
            ~ 发票{c}金额{x}元，须在{d}天内付清，已寄给{n}。
            Debit the inventory account {x} dollars, credit accounts payable {x} dollars.
            ~ 借：库存商品{x}元；贷：应付账款{x}元。
            {b} units of {o} at {a} dollars = {x} dollars before tax. ~ {o}{b}件，单价{a}元 = 税前{x}元。
            Cash at the bank amounts to {c} dollars, petty cash to {a} dollars. ~ 银行存款{c}元，备用金{a}元。
            The auditor {m} found no material misstatement in the balance sheet of {y}.
            ~ 审计师{m}认为{y}年资产负债表无重大错报。
            Depreciation of the van is {a} dollars a month over {b} years of useful life.
            ~ 货车按{b}年使用寿命每月计提折旧{a}元。
            Wages of {d} employees were paid on {day}, payroll tax was withheld.
            ~ {day}发放{d}名员工工资，已代扣税款。
            The loan carries {b} percent interest and is repaid in {a} installments.
            ~ 贷款利率百分之{b}，分{a}期偿还。
            Receivables older than {a} days are written off with the consent of {n}.
            ~ 账龄超过{a}天的应收款经{n}同意核销。
            Subtotal {a} + shipping {b} = total {s}, payable by bank transfer.
            ~ 小计{a} + 运费{b} = 合计{s}，银行转账付款。
            Shareholders receive a dividend of {b} cents per share, approved at the meeting on
            | {day}.
            ~ 股东每股分红{b}分，{day}的会议已批准。
            The stock of {p} was counted by {n} and valued at the lower of cost and market.
            ~ {n}盘点了{p}库存，按成本与市价孰低计价。
        """),
    ),
    "sports": (
        pairs("""
            {town} wins against {n} and friends, round {i} ~ 第{i}轮：{town}获胜
            Season {y}: table and statistics ~ {y}赛季：积分榜与数据
            Match report, {day}, at the {place} ~ {day}比赛战报
            Player of the week: {n} ~ 本周最佳球员：{n}
        """),
        pairs("""
            {town} won {b} - {k} at home; {n} scored twice before the break.
            ~ {town}主场{b} - {k}获胜，{n}上半场独中两元。
            {n} leads the scorers with {a} goals in {d} matches, ahead of {m}.
            ~ {n}以{d}场{a}球领跑射手榜，{m}紧随其后。
            After {d} rounds the team has {a} points and a goal difference of + {b}.
            ~ {d}轮过后球队积{a}分，净胜球 + {b}。
            {m} averaged {b} rebounds and {d} points per game this season. ~ {m}本赛季场均{d}分{b}个篮板。
            The free throw percentage of {n} rose to {a} percent, a record for the club.
            ~ {n}的罚球命中率升至百分之{a}，创队史纪录。
            {c} spectators watched the final at the stadium of {town} on {day}.
            ~ {c}名观众{day}在{town}体育场观看决赛。
            The coach replaced {n} by {m} in minute {a}, and the game turned.
            ~ 教练在第{a}分钟用{m}换下{n}，场面随之改变。
            Third set: {b} - {k}, won by {m} with {d} aces. ~ 第三盘{b} - {k}，{m}发出{d}记爱司球获胜。
            The relay of {town} finished {k} seconds behind the winner, in lane {b}.
            ~ {town}接力队在第{b}道比冠军慢{k}秒。
            Wins {d}, draws {k}, losses {b}: place {i} in the table. ~ 胜{d}平{k}负{b}，排名第{i}。
            {n} is injured and will miss the next {b} matches, the doctor said on {day}.
            ~ 队医{day}说{n}受伤，将缺席{b}场比赛。
            Tickets for round {i} are sold at the {place} of {town} from {day}.
            ~ 第{i}轮球票{day}起在{town}的{place}发售。
            The referee showed {k} yellow cards in a hard but fair match. ~ 裁判在激烈而公平的比赛中出示{k}张黄牌。
        """),
    ),
    "code": (
        pairs("""
            Tutorial {i}: reading files ~ 教程{i}：读取文件
            Web server in {a} lines ~ {a}行代码写一个网站
            Release notes, version {k}.{i} ~ 版本说明 {k}.{i}
            How to sort and filter records ({i}) ~ 如何排序与过滤记录（{i}）
        """),
        pairs("""
            Install the package first and restart the shell; version {k}.{i} is needed.
            ~ 先安装软件包并重启终端，需要版本 {k}.{i}。
            The function returns None when the key is missing, so check for it.
            ~ 键不存在时函数返回 None，要检查。
            Commit your changes before you merge the branch of {n}. ~ 合并{n}的分支前先提交修改。
            Set timeout = {a} in the settings file and restart the service on port {c}.
            ~ 在配置文件中设置 timeout = {a}，在端口 {c} 重启服务。
            The bug that {m} reported on {day} is fixed: strings are now decoded as UTF-8.
            ~ {m}在{day}报告的错误已修复：字符串按 UTF-8 解码。
            A dictionary maps names to values, a list keeps them in order. ~ 字典把名字映射到值，列表保持顺序。
            Use a context manager, so that the file is closed when an exception is raised.
            ~ 使用上下文管理器，出现异常时文件也会关闭。
            The log shows error {c} when {b} threads write to the same table.
            ~ {b}个线程写同一张表时日志出现错误 {c}。
            Pull requests are reviewed by {n} every {day}; add a test to yours.
            ~ {n}每{day}审查合并请求，请附上测试。
            The loop below runs over all lines and skips those that are empty. ~ 下面的循环遍历所有行并跳过空行。
            Deprecated since version {k}.{b}: pass the path as a keyword.
            ~ 自版本 {k}.{b} 起弃用：请用关键字传递路径。
        """),
    ),
}

PROGRAMS = tuple(
    program.strip("\n")
    for program in (
        """
with open("{w}{i}.txt") as file:
    for line in file:
        if line.strip():
            print(line)
""",
        """
class {W}:
    def __init__(self, name):
        self.name = name

    def greet(self):
        return "hello " + self.name

{w} = {W}("{n}")
print({w}.greet())
""",
        """
import json
with open("{w}.json") as file:
    {w} = json.load(file)
print({w}["{o}"])
""",
        """
{w} = ["{n}", "{m}", "{o}"]
{w}.sort(key=str.lower)
print(", ".join({w}))
""",
        """
def handler(request):
    if request.path == "/{w}":
        return Response("{n}", status={c})
    raise NotFound(request.path)
""",
        """
SELECT name, town FROM {w} WHERE town = '{town}' ORDER BY name LIMIT {d};
""",
        """
git checkout -b {w}-{i}
git commit -m "Fix the {w} of {n}"
git push origin {w}-{i}
""",
        """
try:
    connect("{w}.local", port={c})
except TimeoutError as error:
    log.warning("no answer: %s", error)
""",
    )
)
CODE_NAMES = "user order file server record client message session queue image".split()

GENERAL_TITLES = pairs("""
    News from {town} ~ {town}新闻
    People and animals of {town} ~ {town}的人和动物
    A visit to the {place} ~ 游览{place}
    Weekend diary, {day} ~ 周末日记：{day}
    Where to buy {o} in {town} ~ 在{town}哪里买{o}
    About us ~ 关于我们
""")
GENERAL_EXTRAS = pairs("""
    The recipe needs {b} spoons of sugar, fresh {o} and an hour of patience.
    ~ 这道菜要{b}勺糖、新鲜的{o}和一小时的耐心。
    The hotel near the {place} has {a} rooms and a quiet garden. ~ {place}附近的旅馆有{a}间客房和安静的花园。
    We painted the kitchen in yellow and hung the picture that {n} gave us. ~ 我们把厨房刷成黄色，挂上{n}送的画。
    The concert on {day} begins late, and {m} will sing old songs. ~ {day}的音乐会开始得晚，{m}将演唱老歌。
    Photo {c}: the old bridge of {town} in the morning fog. ~ 照片{c}：晨雾中的{town}老桥。
    Water the roses twice a week and cut them back before winter. ~ 玫瑰每周浇两次水，入冬前修剪。
    The bus to {town} is late because of works on the road. ~ 因道路施工，开往{town}的班车晚点。
    {n} opened a new exhibition with drawings of boats and birds. ~ {n}举办了新画展，画的是船和鸟。
    Readers of this page loved the story about the lost dog of {m}. ~ 读者很喜欢{m}丢失的小狗的故事。
    The mayor thanked all helpers after the storm of {y}. ~ {y}年风暴过后，镇长感谢所有帮忙的人。
""")

SPAM_WORDS = {
    "math": pairs("""
        math homework answers ~ 数学作业答案
        algebra calculator free ~ 代数计算器免费
        geometry tutor cheap ~ 几何家教便宜
        equation solver download ~ 方程求解器下载
        fractions worksheet pdf ~ 分数练习题下载
        best maths app ~ 数学软件排行
        exam answers leaked ~ 考试答案泄露
        percent calculator online ~ 百分比在线计算
        word problems solved instantly ~ 应用题秒解
        theorem proof essay writer ~ 定理证明代写
        calculus cheat sheet ~ 微积分速查表
        number games win money ~ 数字游戏赢钱
    """),
    "shop": pairs("""
        cheap watches ~ 廉价手表
        fast loans ~ 快速贷款
        casino bonus ~ 赌场奖金
        lose weight now ~ 快速减肥
        free phone ~ 免费手机
        luxury bags outlet ~ 名牌包批发
        work from home ~ 在家赚钱
        lottery numbers today ~ 今日彩票号码
        hot deals ~ 限时特价
        discount code ~ 优惠码
        free spins ~ 免费旋转
        best price ~ 全网最低
    """),
}
SPAM_ENDS = pairs("""
    Click here for {w} - only today {d} % off! ~ 点击这里获取{w}，今日立减{d}%！
    Call {c} {c} now, {w} guaranteed!!! ~ 立即拨打{c}{c}，{w}包满意！！！
    {a} people are looking at {w} right now. ~ 现在有{a}人正在看{w}。
""")


def other_blocks(kind: str, lang: str, draw: Draw) -> list[Block]:
    """A page of physics, accounting, sports or code."""
    titles, sentences = OTHER[kind]
    blocks: list[Block] = [("h1", fill(titles, lang, draw, slots_of(lang, draw)))]
    for _ in range(draw(4, 6)):
        chosen = shuffled(sentences, draw)[: draw(3, 5)]
        text = [sentence[lang == "zh"].format_map(slots_of(lang, draw)) for sentence in chosen]
        blocks.append(("p", say(lang, " ", "").join(text)))
        if kind == "code":
            name = pick(draw, CODE_NAMES)
            slots = slots_of("en", draw) | {"w": name, "W": name.title()}
            blocks.append(("pre", pick(draw, PROGRAMS).format_map(slots)))
    return blocks


def general_blocks(lang: str, draw: Draw) -> list[Block]:
    """A page with general documents (documents.py, only the train split) and other sentences."""
    blocks: list[Block] = [("h1", fill(GENERAL_TITLES, lang, draw, slots_of(lang, draw)))]
    for _ in range(draw(6, 8)):
        text = general(lang, draw, None)
        while split_of(text) != "train":
            text = general(lang, draw, None)
        extras = [fill(GENERAL_EXTRAS, lang, draw, slots_of(lang, draw)) for _ in range(draw(0, 2))]
        blocks.append(("p", say(lang, " ", "").join([text, *extras])))
    return blocks


def spam_blocks(lang: str, draw: Draw) -> list[Block]:
    """A page of keywords."""
    zh, keywords = lang == "zh", pick(draw, tuple(SPAM_WORDS.values()))

    def choose_words(count: int) -> list[str]:
        return [pick(draw, keywords)[zh] for _ in range(count)]

    blocks: list[Block] = [("h1", say(lang, " | ", "_").join(choose_words(3)))]
    for _ in range(draw(3, 5)):
        end = fill(SPAM_ENDS, lang, draw, slots_of(lang, draw) | {"w": pick(draw, keywords)[zh]})
        blocks.append(("p", " ".join([*choose_words(draw(10, 24)), end])))
    return blocks


# Notes at the end of edited copies.
NOTES = pairs("""
    Reposted from another site for our readers. ~ 本文转载自网络。
    Last updated on {day}. ~ 最后更新于{day}。
    Saved copy number {c}. ~ 存档编号{c}。
    Shared by {n}. ~ 由{n}分享。
""")

# ---- Around the content ----------------------------------------------------------------------

SITE_WORDS = {  # names of hosts, for each kind of site
    "math": "mathroom numbers algebra sums shuxue arithmetic".split(),
    "mixed": "school academy campus learning xuexi college".split(),
    "general": "daily garden townlife travel shenghuo kitchen".split(),
    "physics": "lab physics wuli science".split(),
    "accounting": "ledger kuaiji finance office".split(),
    "sports": "sports league tiyu arena".split(),
    "code": "devlog code chengxu scripts".split(),
    "spam": "bestdeal answers4u youhui clickhere".split(),
    "copies": "mirror archive cache zhuanzai".split(),
}
NAVIGATION = pairs("""
    Home ~ 首页
    News ~ 新闻
    Archive ~ 归档
    Contact ~ 联系我们
    About ~ 关于
    Search ~ 搜索
    Log in ~ 登录
    Sitemap ~ 网站地图
    Help ~ 帮助
    Forum ~ 论坛
""")
FOOTERS = pairs("""
    All rights reserved. ~ 版权所有。
    This site uses cookies. ~ 本站使用 Cookie。
    Terms of use | Privacy ~ 使用条款 | 隐私
    Powered by a small server ~ 由小服务器提供支持
    Follow us | Share | Print ~ 关注 | 分享 | 打印
""")
