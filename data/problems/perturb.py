"""The same problem, asked another way: what an evaluation's robustness is measured with.

`perturb(problem, name, seed)` gives the changed problem, or None where the change does not apply or would not surely be
right. Every change but "numbers" keeps the answer (of a choice: the option; "options" moves its letter). "numbers"
computes the new answer: a built-in problem from its family, any other from the chain of its worked solution
(data/answers/equations.py), where every step is read for certain. The ideas are those of GSM-Plus (arXiv 2402.19255) and
GSM-Symbolic (arXiv 2410.05229); rules, not a model, make the changes, so that they are the same for everyone.
"""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from data.answers.equations import Tree, equations, leaves, value
from data.io import InputError
from data.problems import retelling
from data.problems.problem import LETTERS, Problem, is_chinese
from data.problems.templates import WordTemplate, number_text

Change = Callable[[Problem, random.Random], Problem | None]


def perturb(problem: Problem, name: str, seed: int = 0) -> Problem | None:
    """The problem with one of PERTURBATIONS applied, under the same id; None where that does not apply. Depends on the
    seed and the problem alone. Raises InputError for an unknown name."""
    if name not in PERTURBATIONS:
        raise InputError(f"perturbation {name!r}: unknown; give one of {', '.join(PERTURBATIONS)}")
    if problem.kind not in (
        "answer",
        "choice",
    ):  # programs, proofs and puzzles over words depend on their very text
        return None
    changed = PERTURBATIONS[name](problem, random.Random(f"{seed}:{name}:{problem.id}"))
    same = changed is None or (changed.question, changed.choices) == (
        problem.question,
        problem.choices,
    )
    return None if same else changed


def _asked(problem: Problem, question: str, solution: str | None = None) -> Problem:
    return replace(problem, question=question, solution=solution)


# ---- Names and things ------------------------------------------------------------------------------------------------

# Given names that are hardly ever anything else: no May, Mark, Rose, Jordan, Paris.
_SHE = (
    "Alice Amanda Amelia Amy Andrea Angela Anna Annie Barbara Beth Betty Brenda Carla Caroline Cindy Claire Daisy "
    "Deborah Diana Donna Elaine Elena Ella Ellen Emily Emma Erica Eva Fiona Gina Hannah Heather Helen Isabella "
    "Jackie Jane Janet Janice Jenna Jennifer Jenny Jessica Jill Joan Joanna Judy Julia Julie Karen Kate Kathy "
    "Katie Kristen Laura Lauren Leah Lena Linda Lisa Liz Lucy Maria Marie Martha Mary Megan Melanie "
    "Melissa Mia Michelle Molly Monica Nancy Natalie Nicole Nina Nora Olivia Pam Patricia Paula Rachel Rebecca "
    "Rita Rosa Ruth Samantha Sara Sarah Sharon Sophia Sophie Stacy Stephanie Susan Suzanne Tanya Teresa Tina "
    "Vanessa Vicky Wendy Yolanda Zoe"
).split()
_HE = (
    "Aaron Adam Alan Albert Andrew Andy Anthony Arthur Ben Benjamin Bob Bobby Brad Brandon Brian Bruce Bryan "
    "Carl Carlos Charles Chris Daniel Danny David Dennis Derek Diego Donald Doug Edward Eric Ethan Eugene Evan "
    "Fred Gary George Greg Hank Harold Harry Henry Howard Ian Isaac Jacob Jake James Jason Jeff Jeremy Jerry Jim "
    "Jimmy Joe Joey John Johnny Jose Joseph Josh Joshua Juan Justin Keith Ken Kenny Kevin Kyle Larry Leo Leon "
    "Logan Luis Luke Marcus Mario Martin Matt Matthew Michael Miguel Mike Nathan Nicholas Noah Oliver Omar Oscar "
    "Patrick Paul Pedro Peter Philip Ralph Randy Raymond Richard Rob Robert Roger Ron Ronald Roy Ryan Samuel "
    "Scott Sean Simon Stephen Steve Steven Ted Terry Thomas Tim Timmy Timothy Toby Tom Tommy Tony Travis Tyler "
    "Victor Vincent Walter Wayne William Zach"
).split()
_ZH = tuple("小" + c for c in "明红刚丽华芳军云杰美东玲强雪龙燕亮英林敏伟宁兰青")
# What may follow a Chinese name: 小红花 and 小龙虾 are none.
_AFTER_ZH = (
    "(?=[有买现的和、，与把给比用吃看读写做走跑骑坐家一从今原在是想共又先后身每说问"
    "养种折剪画收得去还带拿付两])"
)
_SPELT = re.compile(
    r"\b(?:letters?|alphabet\w*|spell\w*|initials?|vowels?|rhym\w*|anagrams?)\b|字母|笔画|名字",
    re.I,
)
# Things that any sentence has room for, by turns: nothing is made of them and nothing grows on them.
_THINGS = tuple(
    row.split()
    for row in (
        "marble:marbles bead:beads sticker:stickers shell:shells button:buttons stamp:stamps",
        "pencil:pencils pen:pens crayon:crayons marker:markers",
        "peach:peaches pear:pears plum:plums banana:bananas",
    )
)


def renamed(problem: Problem, rng: random.Random) -> Problem | None:
    """People under other names, of the same gender, and some things exchanged for others of their sort, throughout."""
    if one := retelling.told(problem):
        other = retelling.with_other_names(one, rng)
        return other and _asked(problem, other.question())
    texts = [problem.question, *problem.choices, problem.answer if problem.kind == "answer" else ""]
    whole = "\n".join(texts)
    if _SPELT.search(whole):
        return None
    swap: dict[str, str] = {}
    if is_chinese(whole):
        names = [name for name in _ZH if name in whole]
        if any(
            not re.match(_AFTER_ZH, whole[m.end() :])
            for name in names
            for m in re.finditer(name, whole)
        ):
            return None
        swap = dict(
            zip(
                names,
                rng.sample([name for name in _ZH if name not in whole], len(names)),
                strict=True,
            )
        )
        pattern = "|".join(names)
    else:
        words = set(re.findall(r"[A-Za-z]+", whole))
        for group in (_SHE, _HE):
            # a name beside another capital is a surname, a place or a title, and stays
            names = [
                name
                for name in group
                if name in words
                and not re.search(
                    rf"(?<![.?!\n]) [A-Z][a-z]*\.? {name}\b|\b{name}(?:'s)? (?!I\b)[A-Z]", whole
                )
            ]
            other = [name for name in group if name not in words]
            swap |= (
                dict(zip(names, rng.sample(other, len(names)), strict=True))
                if len(names) <= len(other)
                else {}
            )
        lower = whole.lower()
        for row in _THINGS:
            pairs = [pair.split(":") for pair in row]
            used = [pair for pair in pairs if re.search(rf"\b{pair[0]}", lower)]
            free = [pair for pair in pairs if pair not in used]
            for old, new in zip(used, rng.sample(free, min(len(used), len(free))), strict=False):
                swap |= {
                    a: b
                    for pair in zip(old, new, strict=True)
                    for a, b in (pair, map(str.capitalize, pair))
                }
        pattern = r"\b(?:" + "|".join(sorted(map(re.escape, swap), key=len, reverse=True)) + r")\b"
    if not swap:
        return None
    question, *choices, answer = (
        re.sub(pattern, lambda match: swap[match[0]], text) for text in texts
    )
    return replace(
        problem,
        question=question,
        choices=tuple(choices),
        solution=None,
        answer=answer if problem.kind == "answer" else problem.answer,
    )


# ---- Other words -----------------------------------------------------------------------------------------------------


def retold(problem: Problem, rng: random.Random) -> Problem | None:
    """Another of the built-in wordings."""
    one = retelling.told(problem)
    other = one and retelling.with_other_words(one, rng)
    return other and _asked(problem, other.question(), problem.solution)


_ALONE = (
    r"(?=[.,;?]|$| (?:in|on|for|at|to|do|does|did|is|are|was|were|will|after|by|over|during|from|now|if|"
    r"and)\b)"
)
# put before a full stop: not one of these
_ABBREVIATED = r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\b[A-Z])"
_WORDS = {  # (pattern, replacements): the meaning stays in any sentence
    "en": (
        (rf"\bin all\b{_ALONE}", ("in total", "altogether")),
        (r"\baltogether\b", ("in all", "in total")),
        (rf"\bin total\b{_ALONE}", ("altogether", "in all")),
        (r"\bbuys\b", ("purchases",)),
        (r"\bbought\b", ("purchased",)),
        (r"\bbuying\b", ("purchasing",)),
        (r"\bto buy\b", ("to purchase",)),
        (r"\bchildren\b", ("kids",)),
        (r"\bkids\b", ("children",)),
        (r"\bevery (day|week|month|year)\b", (r"each \1",)),
        (r"\bgives away\b", ("hands out",)),
        (r"\bgave away\b", ("handed out",)),
        (r"\btwice as (many|much|old|long)\b", (r"two times as \1",)),
        (r"\bHow much money (do|does|did|will|is)\b", (r"What amount of money \1",)),
        (r"\bHow many ([a-z]+s) (do|does|did|are|were|will|can)\b", (r"What number of \1 \2",)),
    ),
    "zh": (
        ("一共", ("总共", "合计")),
        ("总共", ("一共", "合计")),
        ("还剩(?!下)", ("还剩下",)),
        ("每天", ("每一天",)),
        ("又买了", ("后来又买了",)),
        ("(?<![又来])买了", ("购买了",)),
        ("现在有多少", ("如今有多少",)),
        ("今年(?=\\d+岁|多少岁|几岁)", ("现在",)),
        ("需要多少", ("要用多少",)),
    ),
}


def paraphrased(problem: Problem, rng: random.Random) -> Problem | None:
    """Other words of the same meaning, two short sentences joined, and the question asked more politely."""
    zh = is_chinese(problem.question)
    question = problem.question
    parts: dict[
        str, str
    ] = {}  # what was put in is not replaced again: in all -> altogether -> in total

    def keep(match: re.Match, choices: tuple[str, ...]) -> str:
        mark = chr(0xE000 + len(parts))
        parts[mark] = match.expand(rng.choice(choices))
        return mark

    for pattern, choices in _WORDS["zh" if zh else "en"]:
        question = re.sub(pattern, lambda match, choices=choices: keep(match, choices), question)
    for mark, text in parts.items():
        question = question.replace(mark, text)
    before, asked = _question(question)
    if asked is None:
        return _asked(problem, question, problem.solution)
    if zh:
        asked = rng.choice(("请问", "请算一算：")) + asked
    else:
        names = "|".join((*_SHE, *_HE))
        joined = rf"^([^.?!\n]*[a-z])\. ((?:{names}|I) [^.?!\n]*\.(?: |$))"
        before = re.sub(joined, rng.choice((r"\1, and \2", r"\1; \2")), before, count=1)
        if asked.startswith(("How ", "What ", "In how ", "After how ")):
            asked = (
                rng.choice(("Work this out: ", "Can you tell this: "))
                + asked[0].lower()
                + asked[1:]
            )
    return _asked(problem, before + asked, problem.solution)


def question_first(problem: Problem, rng: random.Random) -> Problem | None:
    """The question before what is known."""
    before, asked = _question(problem.question)
    if asked is None or not before.strip():
        return None
    known = {True: ("已知：", "条件如下："), False: ("This is known: ", "Here are the facts. ")}
    zh = is_chinese(problem.question)
    before = re.sub("，$", "。", before.strip())
    return _asked(
        problem,
        asked.strip() + ("" if zh else " ") + rng.choice(known[zh]) + before,
        problem.solution,
    )


def _question(text: str) -> tuple[str, str | None]:
    """(what comes before, the question), where a text's only question is its last sentence; else (text, None). Of a
    Chinese text with a single sentence, the clause after the last comma."""
    text = text.rstrip()
    if is_chinese(text):
        parts = re.fullmatch(r"(.*[。；！]|.*，|)([^。；！，？?]*[？?])", text, re.S)
    else:
        parts = re.fullmatch(rf"(.*(?:{_ABBREVIATED}\.|!)\s+|)([A-Z][^?!]*?\?)", text, re.S)
        if parts and re.search(rf"(?:{_ABBREVIATED}\.|!)\s+[A-Z]", parts[2]):
            parts = None
    if parts is None or re.search("[?？]", parts[1]):
        return text, None
    return parts[1], parts[2]


_UNDER_20 = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_MONTH = (
    r"\b(?:January|February|March|April|May|June|July|August|September|October|November|December) $"
)
_DIGITS_ZH = "零一二三四五六七八九"


def number_words(problem: Problem, rng: random.Random) -> Problem | None:
    """Whole numbers up to 99 in words. Sums of money, percentages, decimals, fractions, times stay in digits."""
    if re.search(r"[\\^_=]", problem.question):  # formulas
        return None
    zh = is_chinese(problem.question)
    if zh:
        pattern = r"(?<![\d./:：%A-Za-z年月])\d{1,2}(?![\d.,/:：%％A-Za-z分月日号时点])"
    else:
        pattern = r"(?<![\w.,/:$€£%#-])\d{1,2}(?!\w|[.,/:]\d|\s*%|\s*/|-\d| \d+/|, \d{4}| percent| [ap]\.?m\b)"

    def write(match: re.Match) -> str:
        number, following = int(match[0]), match.string[match.end() : match.end() + 1]
        if zh:
            return (
                "两"
                if number == 2 and following and match.string[match.start() - 1] != "第"
                else _in_zh(number)
            )
        if re.search(_MONTH, match.string[: match.start()]):
            return match[0]
        words = _in_words(number)
        return (
            words.capitalize()
            if re.search(r"(?:^|[.?!]\s)$", match.string[: match.start()])
            else words
        )

    return _asked(problem, re.sub(pattern, write, problem.question), problem.solution)


def _in_words(number: int) -> str:
    if number < 20:
        return _UNDER_20[number]
    return _TENS[number // 10 - 2] + (f"-{_UNDER_20[number % 10]}" if number % 10 else "")


def _in_zh(number: int) -> str:
    if number < 10:
        return _DIGITS_ZH[number]
    tens, ones = divmod(number, 10)
    return (_DIGITS_ZH[tens] if tens > 1 else "") + "十" + (_DIGITS_ZH[ones] if ones else "")


# ---- Another sentence, another layout --------------------------------------------------------------------------------

# Sentences that change nothing in a problem that does not speak of what they speak of (the pattern beside each).
_IRRELEVANT = {
    "en": (
        ("A bus with the number {} on it passes by.", "bus|pass"),
        (
            "A sign on the wall says that the building has {} windows.",
            "window|building|wall|house|sign",
        ),
        ("The radio says that it has rained on {} islands far away.", "radio|rain|island"),
        ("Somebody else is reading page {} of a novel.", "page|novel|book|read"),
        (
            "A team on television wins its match with {} points.",
            "team|television|match|point|score|win",
        ),
        ("The museum in another town has {} paintings.", "museum|town|paint|art"),
    ),
    "zh": (
        ("一辆{}路公共汽车开了过去。", "车"),
        ("墙上的牌子说这座楼有{}扇窗户。", "窗|楼|墙|层"),
        ("收音机里说远方有{}座岛下了雨。", "岛|雨|收音机"),
        ("另外一个人正在读小说的第{}页。", "页|书|读|小说"),
        ("电视里一支球队得了{}分。", "球|分|队"),
        ("另一座城市的博物馆有{}幅油画。", "馆|画|城"),
    ),
}


def distractor(problem: Problem, rng: random.Random) -> Problem | None:
    """A sentence with a number that has nothing to do with the problem, before the last sentence."""
    text, zh = problem.question.rstrip(), is_chinese(problem.question)
    ends = list(re.finditer(r"[。！；]" if zh else rf"{_ABBREVIATED}[.!?]\s+(?=[A-Z])", text))
    ends = [match for match in ends if match.end() < len(text)]
    place = ends[-1].end() if ends else 0
    used = set(re.findall(r"\d+", text))
    number = rng.choice([n for n in range(11, 99) if str(n) not in used])
    fitting = [
        sentence
        for sentence, about in _IRRELEVANT["zh" if zh else "en"]
        if not re.search(about, text, re.I)
    ]
    if not fitting:
        return None
    sentence = rng.choice(fitting).format(number) + ("" if zh else " ")
    return _asked(problem, text[:place] + sentence + text[place:], problem.solution)


def layout(problem: Problem, rng: random.Random) -> Problem | None:
    """Every sentence on a line of its own, units written out: $5 as 5 dollars, 20% as 20 percent, km as kilometers;
    in Chinese spaces around numbers, 千米 as 公里."""
    text = problem.question.strip()
    if is_chinese(text):
        if "\\" not in text and "$" not in text:
            text = text.replace("千米", "公里")
            text = re.sub(
                r"(?<=[\u4e00-\u9fff，。])(?=\d)|(?<=[\d%])(?=[\u4e00-\u9fff])", " ", text
            )
        return _asked(problem, re.sub(r"([。！])(?=.)", r"\1\n", text), problem.solution)
    if "\\" not in text and text.count("$") == len(re.findall(r"\$\d", text)):  # no formulas
        money = r"\$(\d[\d,]*(?:\.\d+)?)(?![\d.,]*\d)(?! ?(?:million|billion|thousand|k\b|dollars|[-/]))"
        text = re.sub(money, lambda m: f"{m[1]} dollar{'' if m[1] == '1' else 's'}", text)
        text = re.sub(r"(?<=\d) ?%", " percent", text)
        for short, long in (
            ("km", "kilometers"),
            ("cm", "centimeters"),
            ("m", "meters"),
            ("kg", "kilograms"),
        ):
            before = r"(?:(?<=\d )|(?<=\d)(?<!\$\d)|(?<=\bin )|(?<=\bmany ))(?<!\b1 )"
            text = re.sub(rf"{before}{short}\b(?!/)", f" {long}", text)
        text = re.sub(r" +", " ", text)
    return _asked(
        problem,
        re.sub(rf"([a-z\d]{_ABBREVIATED}[.!?]) +(?=[A-Z])", r"\1\n", text),
        problem.solution,
    )


def instructed(problem: Problem, rng: random.Random) -> Problem | None:
    """An instruction before the question."""
    sentences = {
        False: ("Solve this problem.", "Please answer the following question carefully."),
        True: ("请解答下面的题目。", "请认真回答下面的问题。"),
    }
    sentence = rng.choice(sentences[is_chinese(problem.question)])
    return _asked(problem, f"{sentence}\n{problem.question}", problem.solution)


# Options that speak of other options, or that stand in an order of their own
_TOGETHER = re.compile(
    r"\b(?:all|none|both|neither|either|any) of\b|\b(?:both|neither|only|and|or) \(?[A-E]\b|above|"
    r"以上|以下|都[对是不]|[①②③]|\b[A-E] (?:and|or) [A-E]\b",
    re.I,
)


def options(problem: Problem, rng: random.Random) -> Problem | None:
    """The options of a multiple choice in another order; the right one has another letter."""
    if problem.kind != "choice" or len(set(problem.choices)) < max(2, len(problem.choices)):
        return None
    if any(_TOGETHER.search(option) for option in problem.choices):
        return None
    right = problem.choices[LETTERS.index(problem.answer)]
    order = list(problem.choices)
    while order.index(right) == LETTERS.index(problem.answer):
        rng.shuffle(order)
    return replace(problem, choices=tuple(order), answer=LETTERS[order.index(right)], solution=None)


# ---- Other numbers ---------------------------------------------------------------------------------------------------

# Values that a solution may bring in by itself (halves, weeks, dozens, percents): in a question they stay as they are.
_CONSTANTS = {
    Fraction(n)
    for n in (
        0,
        1,
        2,
        3,
        4,
        7,
        10,
        12,
        16,
        24,
        25,
        28,
        30,
        31,
        36,
        50,
        52,
        60,
        100,
        180,
        360,
        365,
        1000,
    )
} | {Fraction(1, n) for n in (2, 4, 5, 10, 20, 100)}
# Where these stand, other numbers may take another turning or make no sense.
_TURNING = re.compile(
    r"\b(?:if|unless|whichever|cheape\w+|better|exceed\w*|overtime|minimum|maximum|at least|at most|"
    r"round\w*|additional|above|below|first|over \$?\d|limit|until|digits?|prime|even|odd|"
    r"o'clock|[ap]\.?m)\b|\d:\d\d|ratio|probab",
    re.I,
)
_NUMBER = re.compile(r"(?<![\w.,/:-])\d+(?:,\d{3})*(?:\.\d+)?(?!\w|[.,/:-]\d|-\w)")
_FIXED_AFTER = re.compile(
    r" (?:hours?|days?|weeks?|months?|times|minutes?|nights?) (?:an?|per|each|every|out)\b|"
    r"(?:th|st|nd|rd)\b| (?:sides?|corners?|legs?|wheels?)\b"
)


def numbers(problem: Problem, rng: random.Random) -> Problem | None:
    """Other numbers of like size, and the answer that they have."""
    if one := retelling.told(problem):
        found = retelling.with_other_numbers(one, problem.answer, rng)
        return found and replace(
            problem, question=found[0].question(), answer=found[1], solution=found[2]
        )
    if problem.kind != "answer" or is_chinese(problem.question) or problem.solution is None:
        return None
    made = chain(problem)
    if made is None:
        return None
    template, places = made
    for _ in range(20):
        other = template.resample(rng)
        fits = other.answer() != template.answer() and all(
            new <= 100 or old > 100 or not re.match(r" ?%| percent", problem.question[end:])
            for (_, end), old, new in zip(places, template.numbers, other.numbers, strict=True)
        )
        if fits:
            break
    else:
        return None
    question = problem.question
    for (start, end), number in sorted(zip(places, other.numbers, strict=True), reverse=True):
        old, new = question[start:end], number_text(number)
        if missing := len(old.partition(".")[2]) - len(
            new.partition(".")[2]
        ):  # $2.50 becomes $3.00
            new += ("" if "." in new else ".") + "0" * missing
        if "," in old:
            whole, point, rest = new.partition(".")
            new = re.sub(r"(?<=\d)(?=(?:\d{3})+$)", ",", whole) + point + rest
        question = question[:start] + new + question[end:]
    return replace(problem, question=question, answer=other.answer(), solution=None)


def chain(problem: Problem) -> tuple[WordTemplate, list[tuple[int, int]]] | None:
    """(equation of the whole solution over the numbers that can change, their places in the question), or None.

    A number can change if the question has it once, in digits, and the solution uses it; if it is none of _CONSTANTS
    and no step results in it. Everything else must be certain: each "=" of the solution is read and holds exactly,
    each number in it is the question's, an earlier result or a known constant, each result is used, the last is the
    answer. A constant that could come from a changing number (one more, twice, the rest of 100) rules all out, and so
    does a number that may be the count of what the question lists.
    """
    steps, unread = equations(re.sub(r"(?i)\n?(?:the answer is|####).*$", "", problem.solution))
    if unread or not steps or _TURNING.search(problem.question):
        return None
    places: dict[Fraction, list[tuple[int, int]]] = {}
    for match in _NUMBER.finditer(problem.question):
        places.setdefault(Fraction(match[0].replace(",", "")), []).append(match.span())
    words = {
        Fraction(i)
        for i in range(1, 100)
        if re.search(rf"\b{_in_words(i)}\b", problem.question, re.I)
    }
    results = [step.right for step in steps]
    try:
        answer = Fraction(problem.answer)
    except ValueError:
        return None
    if (
        any(isinstance(r, tuple) for r in results)
        or len(set(results)) < len(results)
        or results[-1] != answer
    ):
        return None
    written = [
        Fraction(text.replace(",", ""))
        for text in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", problem.question)
    ]
    free = [
        number
        for number, spans in places.items()
        if written.count(number) == 1
        and number not in _CONSTANTS | words
        and number not in results
        and not _FIXED_AFTER.match(problem.question[spans[0][1] :])
        and not (1900 <= number < 2100 and "," not in problem.question[slice(*spans[0])])
    ]  # a year
    used = {leaf for step in steps for leaf in leaves(step.left)}
    free = [number for number in free if number in used]
    if any(len(list(leaves(step.left))) in free for step in steps):  # 5 tests, and then five scores
        return None
    near = {other for n in free for other in (n + 1, n - 1, 2 * n, n / 2, 100 - n, n / 100, n / 10)}
    trees: dict[Fraction, Tree | str] = {}  # result -> its tree, over "number0", ...
    spent = set()

    def grow(tree):
        if isinstance(tree, tuple):
            left, right = grow(tree[1]), grow(tree[2])
            return left and right and f"{tree[0]} {left} {right}"
        if tree in trees:
            spent.add(tree)
            return None if tree in places else trees[tree]
        if tree in free:
            return f"number{free.index(tree)}"
        known = tree in places or tree in words or tree in _CONSTANTS
        return number_text(tree) if known and (tree not in near or tree in places) else None

    for step, result in zip(steps, results, strict=True):
        grown = grow(step.left)
        if grown is None or value(step.left) != result:
            return None
        trees[result] = grown
    if not free or spent != set(results[:-1]):
        return None
    text = trees[results[-1]]
    if any(f"number{i}" not in text.split() for i in range(len(free))):
        return None
    return WordTemplate("", tuple(free), text), [places[number][0] for number in free]


PERTURBATIONS: dict[str, Change] = {
    "renamed": renamed,
    "retold": retold,
    "paraphrased": paraphrased,
    "question first": question_first,
    "number words": number_words,
    "numbers": numbers,
    "distractor": distractor,
    "layout": layout,
    "instructed": instructed,
    "options": options,
}
