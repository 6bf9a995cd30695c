r"""Units of measure behind a number: what each measures, and how large it is.

A unit is (((dimension, power), ...), factor to the base unit). So "cm", "centimetres" and 厘米 are
the same unit, and km/h, "kilometers per hour" and 千米/小时 are the same unit. A word that is not a
known unit ("apples", 个) is (((word, 0),), 1).
"""

import functools
import re
from fractions import Fraction

_NAMES = {  # (dimension, factor): names; English nouns may also have an s
    ("length", "1/1000"): "mm millimeter millimetre 毫米",
    ("length", "1/100"): "cm centimeter centimetre 厘米 公分",
    ("length", "1/10"): "dm decimeter decimetre 分米",
    ("length", "1"): "m meter metre 米",
    ("length", "1000"): "km kilometer kilometre 公里",
    ("length", "0.0254"): "in inch inches 英寸",
    ("length", "0.3048"): "ft foot feet 英尺",
    ("length", "0.9144"): "yd yard 码",
    ("length", "1609.344"): "mi mile 英里",
    ("mass", "1/1000"): "mg milligram 毫克",
    ("mass", "1"): "g gram 克",
    ("mass", "1000"): "kg kilogram 公斤",
    ("mass", "1000000"): "t tonne ton 吨",
    ("mass", "453.59237"): "lb lbs pound 磅",
    ("mass", "28.349523125"): "oz ounce 盎司",
    ("time", "1"): "s sec second 秒 秒钟",
    ("time", "60"): "min mins minute 分钟",
    ("time", "3600"): "h hr hrs hour 小时",
    ("time", "86400"): "day 天 日",
    ("time", "604800"): "week 周 星期",
    ("month", "1"): "month 个月",
    ("month", "12"): "year yr yrs 年 岁",
    ("angle", "1"): "degree deg 度",
    ("radian", "1"): "rad radian 弧度",
    ("dollar", "1"): "dollar USD 美元",
    ("dollar", "1/100"): "cent 美分",
    ("euro", "1"): "euro EUR 欧元",
    ("sterling", "1"): "GBP 英镑",
    ("yuan", "1"): "yuan RMB CNY 元 块 人民币 圆",
    ("yuan", "1/10"): "jiao 角",
    ("yuan", "1/100"): "fen",
    ("rupee", "1"): "rupee Rs INR 卢比",
    ("celsius", "1"): "℃ 摄氏度",
    ("fahrenheit", "1"): "℉ 华氏度",
    ("force", "1"): "N newton 牛",
    ("energy", "1"): "J joule 焦耳",
    ("power", "1"): "W watt 瓦",
    ("power", "1000"): "kW kilowatt",
    ("voltage", "1"): "V volt 伏",
    ("current", "1"): "A ampere amp 安",
    ("kelvin", "1"): "K kelvin",
    ("frequency", "1"): "Hz hertz 赫兹",
    ("substance", "1"): "mol mole 摩尔",
}
_COMPOUND = {
    "mL": ("length", 3, "1/1000000"),
    "L": ("length", 3, "1/1000"),
    "acre": ("length", 2, "4046.8564224"),
    "hectare": ("length", 2, "10000"),
}
_ALIASES = {"ml": "mL", "l": "L", "毫升": "mL", "升": "L", "公顷": "hectare", "ha": "hectare"}
_SPOKEN = {
    "liter": "L",
    "litre": "L",
    "milliliter": "mL",
    "millilitre": "mL",
    "acre": "acre",
    "hectare": "hectare",
}
_RATES = {"mph": "mile/hour", "kmh": "km/h", "kph": "km/h", "km/hr": "km/h"}
SIGNS = {
    "$": "dollar",
    "€": "euro",
    "£": "GBP",
    "¥": "yuan",
    "￥": "yuan",
    "₹": "rupee",
    "¢": "cent",
    "°": "degree",
}
MEASURES = {}  # name: (dimension, power, factor)
for (_dimension, _factor), _words in _NAMES.items():
    for _word in _words.split():
        MEASURES[_word] = (_dimension, 1, Fraction(_factor))
        if _word.isalpha() and len(_word) > 2:
            MEASURES[_word + "s"] = MEASURES[_word]
for _word, (_dimension, _power, _factor) in _COMPOUND.items():
    MEASURES[_word] = MEASURES[_word + "s"] = (_dimension, _power, Fraction(_factor))
for _word, _name in (_ALIASES | _SPOKEN).items():
    MEASURES[_word] = MEASURES[_word + "s"] = MEASURES[_name]

_PART = re.compile(  # square cm, cubic feet, 平方厘米, cm^2, m², cm squared
    r"(square |sq\.? ?|平方|cubic |cu\.? ?|立方)?([^\s\d^²³{}]+)"
    r"(?:\s*(?:\^?\s*\{?\s*([23])\s*\}?|([²³])|(squared|cubed)))?"
)
_POWERS = {
    None: 1,
    "2": 2,
    "3": 3,
    "²": 2,
    "³": 3,
    "squared": 2,
    "cubed": 3,
    "square": 2,
    "sq": 2,
    "平方": 2,
    "cubic": 3,
    "cu": 3,
    "立方": 3,
}


@functools.lru_cache(1024)
def unit(text: str) -> tuple:
    """The unit that `text` names. A word that is not a unit stands for itself, without the s of the
    plural.

    >>> unit("km/h") == unit("kilometers per hour")
    True
    >>> unit("apples")
    ((('apple', 0),), Fraction(1, 1))
    """
    text = text.strip(" .")
    text = _RATES.get(text, text)
    dimensions, factor = {}, Fraction(1)
    for k, part in enumerate(re.split(r"\s*/\s*|\s+per\s+|每|\s+an? (?=\w)", text)):
        match = _PART.fullmatch(part.strip())
        name = match and (match[2] if match[2] in MEASURES else match[2].lower())
        if not match or name not in MEASURES:
            return _without_measure(text)
        power = _POWERS[(match[1] or "").strip(" .") or None]
        power *= _POWERS[match[3] or match[4] or match[5]]
        power *= 1 if k == 0 else -1
        dimension, dimension_power, size = MEASURES[name]
        dimensions[dimension] = dimensions.get(dimension, 0) + power * dimension_power
        factor *= size**power
    return tuple(sorted(dimensions.items())), factor


def _without_measure(text: str) -> tuple:
    """The unit of "feet tall" or "dollars in total", else the text as a word that measures
    nothing."""
    first = text.split()[:1]
    if first and first != [text] and len(first[0]) > 1 and is_measure(unit(first[0])):
        return unit(first[0])
    word = re.sub(r"\s+", " ", text).casefold()
    if word.isascii() and len(word) > 3 and word.endswith("s"):
        word = word[:-1]
    return ((word, 0),), Fraction(1)


def is_measure(unit: tuple) -> bool:
    """Whether a unit measures something, and is not only a word."""
    (_, power), *_ = unit[0]
    return power != 0
