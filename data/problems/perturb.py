"""Changes a problem, to measure how robust a model is.

`perturb(problem, name, seed)` returns the changed problem, or None if the change does not apply,
or if it is not certain that it is right. All changes but "numbers" keep the answer ("options"
keeps the option and changes its letter). "numbers" computes the new answer: for a built-in problem
from the family, for any other problem from the equations of the worked solution
(data/answers/equations.py), if every step can be read with certainty.

The ideas are from GSM-Plus (arXiv 2402.19255) and GSM-Symbolic (arXiv 2410.05229). Rules make the
changes, not a model, so they are the same for everyone.
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
    """The problem after a change from PERTURBATIONS, with the same id. None if the change does not
    apply.

    It depends only on the seed and the problem. Raises InputError for an unknown name.
    """
    if name not in PERTURBATIONS:
        raise InputError(f"perturbation {name!r}: unknown; use one of {', '.join(PERTURBATIONS)}")
    # Programs, proofs and puzzles about words depend on the exact text.
    if problem.kind not in ("answer", "choice"):
        return None
    changed = PERTURBATIONS[name](problem, random.Random(f"{seed}:{name}:{problem.id}"))
    if changed is None:
        return None
    same = changed.question == problem.question and changed.choices == problem.choices
    return None if same else changed


def _with_question(problem: Problem, question: str, solution: str | None = None) -> Problem:
    return replace(problem, question=question, solution=solution)


# ---- Names and things ----------------------------------------------------------------------------

# First names that are rarely anything else: no May, Mark, Rose, Jordan, Paris
_SHE = (
    "Alice Amanda Amelia Amy Andrea Angela Anna Annie Barbara Beth Betty Brenda Carla Caroline "
    "Cindy Claire Daisy Deborah Diana Donna Elaine Elena Ella Ellen Emily Emma Erica Eva Fiona "
    "Gina Hannah Heather Helen Isabella Jackie Jane Janet Janice Jenna Jennifer Jenny Jessica "
    "Jill Joan Joanna Judy Julia Julie Karen Kate Kathy Katie Kristen Laura Lauren Leah Lena "
    "Linda Lisa Liz Lucy Maria Marie Martha Mary Megan Melanie Melissa Mia Michelle Molly Monica "
    "Nancy Natalie Nicole Nina Nora Olivia Pam Patricia Paula Rachel Rebecca Rita Rosa Ruth "
    "Samantha Sara Sarah Sharon Sophia Sophie Stacy Stephanie Susan Suzanne Tanya Teresa Tina "
    "Vanessa Vicky Wendy Yolanda Zoe"
).split()
_HE = (
    "Aaron Adam Alan Albert Andrew Andy Anthony Arthur Ben Benjamin Bob Bobby Brad Brandon Brian "
    "Bruce Bryan Carl Carlos Charles Chris Daniel Danny David Dennis Derek Diego Donald Doug "
    "Edward Eric Ethan Eugene Evan Fred Gary George Greg Hank Harold Harry Henry Howard Ian "
    "Isaac Jacob Jake James Jason Jeff Jeremy Jerry Jim Jimmy Joe Joey John Johnny Jose Joseph "
    "Josh Joshua Juan Justin Keith Ken Kenny Kevin Kyle Larry Leo Leon Logan Luis Luke Marcus "
    "Mario Martin Matt Matthew Michael Miguel Mike Nathan Nicholas Noah Oliver Omar Oscar "
    "Patrick Paul Pedro Peter Philip Ralph Randy Raymond Richard Rob Robert Roger Ron Ronald Roy "
    "Ryan Samuel Scott Sean Simon Stephen Steve Steven Ted Terry Thomas Tim Timmy Timothy Toby "
    "Tom Tommy Tony Travis Tyler Victor Vincent Walter Wayne William Zach"
).split()
_ZH = tuple("小" + c for c in "明红刚丽华芳军云杰美东玲强雪龙燕亮英林敏伟宁兰青")
# The characters that may follow a Chinese name: 小红花 and 小龙虾 are not names.
_AFTER_ZH = (
    "(?=[有买现的和、，与把给比用吃看读写做走跑骑坐家一从今原在是想共又先后身每说问"
    "养种折剪画收得去还带拿付两])"
)
_SPELT = re.compile(
    r"\b(?:letters?|alphabet\w*|spell\w*|initials?|vowels?|rhym\w*|anagrams?)\b|字母|笔画|名字",
    re.I,
)
# Things that fit in any sentence and can replace each other within a row
_THINGS = tuple(
    row.split()
    for row in (
        "marble:marbles bead:beads sticker:stickers shell:shells button:buttons stamp:stamps",
        "pencil:pencils pen:pens crayon:crayons marker:markers",
        "peach:peaches pear:pears plum:plums banana:bananas",
    )
)


def renamed(problem: Problem, rng: random.Random) -> Problem | None:
    """Other names of the same gender for all people, and other things of the same sort for some
    things."""
    if parts := retelling.recognize(problem):
        other = retelling.with_other_names(parts, rng)
        return other and _with_question(problem, other.question())
    texts = [problem.question, *problem.choices, problem.answer if problem.kind == "answer" else ""]
    whole = "\n".join(texts)
    if _SPELT.search(whole):
        return None
    if is_chinese(whole):
        swap = _chinese_names(whole, rng)
        pattern = "|".join(swap)
    else:
        swap = _english_names(whole, rng) | _things(whole, rng)
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


def _chinese_names(text: str, rng: random.Random) -> dict[str, str]:
    """name -> other name. Empty if something in the text may not be a name."""
    names = [name for name in _ZH if name in text]
    for name in names:
        for match in re.finditer(name, text):
            if not re.match(_AFTER_ZH, text[match.end() :]):
                return {}
    others = [name for name in _ZH if name not in text]
    return dict(zip(names, rng.sample(others, len(names)), strict=True))


def _english_names(text: str, rng: random.Random) -> dict[str, str]:
    """name -> other name. A name beside another capital is a surname, a place or a title, and
    stays."""
    words = set(re.findall(r"[A-Za-z]+", text))
    swap: dict[str, str] = {}
    for group in (_SHE, _HE):
        names = []
        for name in group:
            beside = rf"(?<![.?!\n]) [A-Z][a-z]*\.? {name}\b|\b{name}(?:'s)? (?!I\b)[A-Z]"
            if name in words and not re.search(beside, text):
                names.append(name)
        others = [name for name in group if name not in words]
        if len(names) <= len(others):
            swap |= dict(zip(names, rng.sample(others, len(names)), strict=True))
    return swap


def _things(text: str, rng: random.Random) -> dict[str, str]:
    """thing -> other thing, singular and plural, with a capital and without."""
    lower, swap = text.lower(), {}
    for row in _THINGS:
        pairs = [pair.split(":") for pair in row]
        used = [pair for pair in pairs if re.search(rf"\b{pair[0]}", lower)]
        free = [pair for pair in pairs if pair not in used]
        drawn = rng.sample(free, min(len(used), len(free)))
        for old, new in zip(used, drawn, strict=False):
            for a, b in zip(old, new, strict=True):
                swap[a], swap[a.capitalize()] = b, b.capitalize()
    return swap


# ---- Other words ---------------------------------------------------------------------------------


def retold(problem: Problem, rng: random.Random) -> Problem | None:
    """Another built-in wording."""
    parts = retelling.recognize(problem)
    other = parts and retelling.with_other_words(parts, rng)
    return other and _with_question(problem, other.question(), problem.solution)


_ALONE = (
    r"(?=[.,;?]|$| (?:in|on|for|at|to|do|does|did|is|are|was|were|will|after|by|over|during|from|now|"
    r"if|and)\b)"
)
# before a full stop: not after an abbreviation
_ABBREVIATED = r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\b[A-Z])"
_WORDS = {  # (pattern, replacements) that keep the meaning of any sentence
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
    """Other words of the same meaning, two short sentences joined, and a more polite question."""
    zh = is_chinese(problem.question)
    text = problem.question
    # A mark stands for each replacement, so that it is not replaced again: in all -> altogether
    replacements: dict[str, str] = {}

    def mark(match: re.Match, choices: tuple[str, ...]) -> str:
        character = chr(0xE000 + len(replacements))
        replacements[character] = match.expand(rng.choice(choices))
        return character

    for pattern, choices in _WORDS["zh" if zh else "en"]:
        text = re.sub(pattern, lambda match, choices=choices: mark(match, choices), text)
    for character, replacement in replacements.items():
        text = text.replace(character, replacement)

    before, question = _split_question(text)
    if question is None:
        return _with_question(problem, text, problem.solution)
    if zh:
        question = rng.choice(("请问", "请算一算：")) + question
    else:
        names = "|".join((*_SHE, *_HE))
        joined = rf"^([^.?!\n]*[a-z])\. ((?:{names}|I) [^.?!\n]*\.(?: |$))"
        before = re.sub(joined, rng.choice((r"\1, and \2", r"\1; \2")), before, count=1)
        if question.startswith(("How ", "What ", "In how ", "After how ")):
            start = rng.choice(("Work this out: ", "Can you tell this: "))
            question = start + question[0].lower() + question[1:]
    return _with_question(problem, before + question, problem.solution)


def question_first(problem: Problem, rng: random.Random) -> Problem | None:
    """The question before the facts."""
    before, question = _split_question(problem.question)
    if question is None or not before.strip():
        return None
    zh = is_chinese(problem.question)
    known = {True: ("已知：", "条件如下："), False: ("This is known: ", "Here are the facts. ")}
    facts = rng.choice(known[zh]) + re.sub("，$", "。", before.strip())
    text = question.strip() + ("" if zh else " ") + facts
    return _with_question(problem, text, problem.solution)


def _split_question(text: str) -> tuple[str, str | None]:
    """(the text before the question, the question) if the last sentence is the only question, else
    (text, None). In a Chinese text with a single sentence the question is the clause after the last
    comma."""
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
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_MONTH = (
    r"\b(?:January|February|March|April|May|June|July|August|September|October|November|December) $"
)
_DIGITS_ZH = "零一二三四五六七八九"


def number_words(problem: Problem, rng: random.Random) -> Problem | None:
    """Whole numbers up to 99 in words. Money, percentages, decimals, fractions and times keep
    digits."""
    if re.search(r"[\\^_=]", problem.question):  # formulas
        return None
    zh = is_chinese(problem.question)
    if zh:
        pattern = r"(?<![\d./:：%A-Za-z年月])\d{1,2}(?![\d.,/:：%％A-Za-z分月日号时点])"
    else:
        pattern = (
            r"(?<![\w.,/:$€£%#-])\d{1,2}"
            r"(?!\w|[.,/:]\d|\s*%|\s*/|-\d| \d+/|, \d{4}| percent| [ap]\.?m\b)"
        )

    def write(match: re.Match) -> str:
        number, before = int(match[0]), match.string[: match.start()]
        if zh:
            following = match.string[match.end() : match.end() + 1]
            pair = number == 2 and following and match.string[match.start() - 1] != "第"
            return "两" if pair else _in_zh(number)
        if re.search(_MONTH, before):
            return match[0]
        words = _in_words(number)
        return words.capitalize() if re.search(r"(?:^|[.?!]\s)$", before) else words

    return _with_question(problem, re.sub(pattern, write, problem.question), problem.solution)


def _in_words(number: int) -> str:
    if number < 20:
        return _UNDER_20[number]
    return _TENS[number // 10 - 2] + (f"-{_UNDER_20[number % 10]}" if number % 10 else "")


def _in_zh(number: int) -> str:
    if number < 10:
        return _DIGITS_ZH[number]
    tens, ones = divmod(number, 10)
    return (_DIGITS_ZH[tens] if tens > 1 else "") + "十" + (_DIGITS_ZH[ones] if ones else "")


# ---- Another sentence, another layout ------------------------------------------------------------

# (a sentence with a number, a pattern for its topic). It changes nothing in a problem without the
# topic.
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
    """A sentence before the last one, with a number that has nothing to do with the problem."""
    text, zh = problem.question.rstrip(), is_chinese(problem.question)
    ends = list(re.finditer(r"[。！；]" if zh else rf"{_ABBREVIATED}[.!?]\s+(?=[A-Z])", text))
    ends = [match for match in ends if match.end() < len(text)]
    place = ends[-1].end() if ends else 0
    used = set(re.findall(r"\d+", text))
    number = rng.choice([n for n in range(11, 99) if str(n) not in used])
    sentences = _IRRELEVANT["zh" if zh else "en"]
    fitting = [sentence for sentence, topic in sentences if not re.search(topic, text, re.I)]
    if not fitting:
        return None
    sentence = rng.choice(fitting).format(number) + ("" if zh else " ")
    return _with_question(problem, text[:place] + sentence + text[place:], problem.solution)


def layout(problem: Problem, rng: random.Random) -> Problem | None:
    """Every sentence on a separate line, and units in words: 5 dollars for $5, 20 percent for 20%,
    kilometers for km. In Chinese spaces around numbers, and 公里 for 千米."""
    text = problem.question.strip()
    if is_chinese(text):
        if "\\" not in text and "$" not in text:
            text = text.replace("千米", "公里")
            text = re.sub(
                r"(?<=[\u4e00-\u9fff，。])(?=\d)|(?<=[\d%])(?=[\u4e00-\u9fff])", " ", text
            )
        return _with_question(problem, re.sub(r"([。！])(?=.)", r"\1\n", text), problem.solution)
    if "\\" not in text and text.count("$") == len(re.findall(r"\$\d", text)):  # no formulas
        money = (
            r"\$(\d[\d,]*(?:\.\d+)?)(?![\d.,]*\d)"
            r"(?! ?(?:million|billion|thousand|k\b|dollars|[-/]))"
        )
        text = re.sub(money, lambda m: f"{m[1]} dollar{'' if m[1] == '1' else 's'}", text)
        text = re.sub(r"(?<=\d) ?%", " percent", text)
        units = dict(km="kilometers", cm="centimeters", m="meters", kg="kilograms")
        for short, long in units.items():
            before = r"(?:(?<=\d )|(?<=\d)(?<!\$\d)|(?<=\bin )|(?<=\bmany ))(?<!\b1 )"
            text = re.sub(rf"{before}{short}\b(?!/)", f" {long}", text)
        text = re.sub(r" +", " ", text)
    text = re.sub(rf"([a-z\d]{_ABBREVIATED}[.!?]) +(?=[A-Z])", r"\1\n", text)
    return _with_question(problem, text, problem.solution)


def instructed(problem: Problem, rng: random.Random) -> Problem | None:
    """An instruction before the question."""
    sentences = {
        False: ("Solve this problem.", "Please answer the following question carefully."),
        True: ("请解答下面的题目。", "请认真回答下面的问题。"),
    }
    sentence = rng.choice(sentences[is_chinese(problem.question)])
    return _with_question(problem, f"{sentence}\n{problem.question}", problem.solution)


# Options that mention other options, or whose order matters
_TOGETHER = re.compile(
    r"\b(?:all|none|both|neither|either|any) of\b|\b(?:both|neither|only|and|or) \(?[A-E]\b|above|"
    r"以上|以下|都[对是不]|[①②③]|\b[A-E] (?:and|or) [A-E]\b",
    re.I,
)


def options(problem: Problem, rng: random.Random) -> Problem | None:
    """The options of a multiple choice in another order, so that the right option has another
    letter."""
    if problem.kind != "choice" or len(set(problem.choices)) < max(2, len(problem.choices)):
        return None
    if problem.answer not in LETTERS:  # several options are right
        return None
    if any(_TOGETHER.search(option) for option in problem.choices):
        return None
    right = problem.choices[LETTERS.index(problem.answer)]
    order = list(problem.choices)
    while order.index(right) == LETTERS.index(problem.answer):
        rng.shuffle(order)
    return replace(problem, choices=tuple(order), answer=LETTERS[order.index(right)], solution=None)


# ---- Other numbers -------------------------------------------------------------------------------

# Numbers that a solution may introduce (halves, weeks, dozens, percent). In a question they stay.
_CONSTANTS = set(
    map(
        Fraction,
        "0 1 2 3 4 7 10 12 16 24 25 28 30 31 36 50 52 60 100 180 360 365 1000 "
        "1/2 1/4 1/5 1/10 1/20 1/100".split(),
    )
)
# With these words other numbers may need another solution, or make no sense.
_TURNING = re.compile(
    r"\b(?:if|unless|whichever|cheape\w+|better|exceed\w*|overtime|minimum|maximum|at least|"
    r"at most|round\w*|additional|above|below|first|over \$?\d|limit|until|digits?|prime|even|odd|"
    r"o'clock|[ap]\.?m)\b|\d:\d\d|ratio|probab",
    re.I,
)
_NUMBER = re.compile(r"(?<![\w.,/:-])\d+(?:,\d{3})*(?:\.\d+)?(?!\w|[.,/:-]\d|-\w)")
_FIXED_AFTER = re.compile(
    r" (?:hours?|days?|weeks?|months?|times|minutes?|nights?) (?:an?|per|each|every|out)\b|"
    r"(?:th|st|nd|rd)\b| (?:sides?|corners?|legs?|wheels?)\b"
)


def numbers(problem: Problem, rng: random.Random) -> Problem | None:
    """Other numbers of similar size, and the answer to them."""
    if parts := retelling.recognize(problem):
        retold = retelling.with_other_numbers(parts, problem.answer, rng)
        if retold is None:
            return None
        other, answer, solution = retold
        return replace(problem, question=other.question(), answer=answer, solution=solution)
    if problem.kind != "answer" or is_chinese(problem.question) or problem.solution is None:
        return None
    equation = chain(problem)
    if equation is None:
        return None
    template, places = equation
    for _ in range(20):
        other = template.resample(rng)
        if other.answer() != template.answer() and _percents_fit(problem, places, template, other):
            break
    else:
        return None
    question = problem.question
    for (start, end), number in sorted(zip(places, other.numbers, strict=True), reverse=True):
        question = question[:start] + _written_like(question[start:end], number) + question[end:]
    return replace(problem, question=question, answer=other.answer(), solution=None)


def _percents_fit(problem: Problem, places, template: WordTemplate, other: WordTemplate) -> bool:
    """Whether no percentage has become larger than 100."""
    for (_, end), old, new in zip(places, template.numbers, other.numbers, strict=True):
        if new > 100 >= old and re.match(r" ?%| percent", problem.question[end:]):
            return False
    return True


def _written_like(old: str, number: Fraction) -> str:
    """The number in the form of the old text: $2.50 becomes $3.00, 1,200 becomes 1,300."""
    new = number_text(number)
    missing = len(old.partition(".")[2]) - len(new.partition(".")[2])
    if missing:
        new += ("" if "." in new else ".") + "0" * missing
    if "," in old:
        whole, point, rest = new.partition(".")
        new = re.sub(r"(?<=\d)(?=(?:\d{3})+$)", ",", whole) + point + rest
    return new


def chain(problem: Problem) -> tuple[WordTemplate, list[tuple[int, int]]] | None:
    """(the equation of the whole solution over the numbers that can change, their places in the
    question), or None.

    A number can change if the question has it once and in digits, if the solution uses it, and if
    it is not in _CONSTANTS and not the result of a step. Everything else must be certain:

    - Each "=" of the solution can be read and holds exactly.
    - Each number in it is in the question, an earlier result, or a known constant.
    - Each result is used, and the last result is the answer.
    - No constant could come from a number that changes (one more, twice, the rest of 100), and no
      such number could be the count of what the question lists.
    """
    steps, unread = equations(re.sub(r"(?i)\n?(?:the answer is|####).*$", "", problem.solution))
    if unread or not steps or _TURNING.search(problem.question):
        return None
    places: dict[Fraction, list[tuple[int, int]]] = {}
    for match in _NUMBER.finditer(problem.question):
        places.setdefault(Fraction(match[0].replace(",", "")), []).append(match.span())
    words = set()  # numbers in words
    for i in range(1, 100):
        if re.search(rf"\b{_in_words(i)}\b", problem.question, re.I):
            words.add(Fraction(i))
    results = [step.right for step in steps]
    try:
        answer = Fraction(problem.answer)
    except ValueError:
        return None
    if any(isinstance(result, tuple) for result in results) or results[-1] != answer:
        return None
    if len(set(results)) < len(results):
        return None

    # The numbers that can change
    used = set()
    for step in steps:
        used.update(leaves(step.left))
    fixed = _CONSTANTS | words | set(results)
    free = []
    for number, spans in places.items():
        can_change = number in used and number not in fixed
        if can_change and not _is_fixed(problem.question, number, spans[0]):
            free.append(number)
    if any(len(list(leaves(step.left))) in free for step in steps):  # 5 tests, and then five scores
        return None
    near = set()  # numbers that could come from a number that changes
    for n in free:
        near.update((n + 1, n - 1, 2 * n, n / 2, 100 - n, n / 100, n / 10))

    # Put the steps together, over "number0", "number1", ...
    equation_of: dict[Fraction, str] = {}  # result -> prefix equation
    spent = set()

    def grow(tree: Tree) -> str | None:
        if isinstance(tree, tuple):
            left, right = grow(tree[1]), grow(tree[2])
            return left and right and f"{tree[0]} {left} {right}"
        if tree in equation_of:
            spent.add(tree)
            return None if tree in places else equation_of[tree]
        if tree in free:
            return f"number{free.index(tree)}"
        known = tree in places or tree in words or tree in _CONSTANTS
        return number_text(tree) if known and (tree not in near or tree in places) else None

    for step, result in zip(steps, results, strict=True):
        equation = grow(step.left)
        if equation is None or value(step.left) != result:
            return None
        equation_of[result] = equation
    if not free or spent != set(results[:-1]):
        return None
    equation = equation_of[results[-1]]
    if any(f"number{i}" not in equation.split() for i in range(len(free))):
        return None
    return WordTemplate("", tuple(free), equation), [places[number][0] for number in free]


def _is_fixed(question: str, number: Fraction, span: tuple[int, int]) -> bool:
    """Whether a number must stay: it occurs twice, has a fixed meaning, or is a year."""
    texts = re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", question)
    if [Fraction(text.replace(",", "")) for text in texts].count(number) != 1:
        return True
    year = 1900 <= number < 2100 and "," not in question[slice(*span)]
    return year or _FIXED_AFTER.match(question[span[1] :]) is not None


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
