"""Units of measure: what they are worth in each other, so that 5 cm is 50 mm, and is not 5 m.

A word that is no unit of this table ("apples", "ways") says nothing that a number could contradict.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from steerkit.verifiers.answers.errors import Unreadable
from steerkit.verifiers.answers.tokens import names

MAX_WORDS = 8


class Unit(NamedTuple):
    """``factor`` times the base units of ``dimensions`` (name -> power)."""

    factor: Fraction
    dimensions: tuple[tuple[str, int], ...]


_TABLE: dict[str, tuple[str, int, Fraction]] = {}
"""name -> (dimension, its power, worth in base units)"""
_LENGTHS = {
    "mm millimeter millimetre": "1/1000",
    "cm centimeter centimetre": "1/100",
    "dm decimeter decimetre": "1/10",
    "m meter metre": "1",
    "km kilometer kilometre": "1000",
    "in inch inche": "254/10000",
    "ft foot feet": "3048/10000",
    "yd yard": "9144/10000",
    "mi mile": "1609344/1000",
}
_OTHERS = {
    "time": {
        "ms millisecond": "1/1000",
        "s sec second": "1",
        "min minute": "60",
        "h hr hour": "3600",
        "day": "86400",
        "week": "604800",
    },
    "month": {"month": "1", "yr year": "12"},
    "mass": {
        "mg milligram": "1/1000",
        "g gm gram": "1",
        "kg kilogram": "1000",
        "ton tonne": "1000000",
        "lb pound": "45359237/100000",
        "oz ounce": "45359237/1600000",
    },
    "dollar": {"dollar usd USD": "1", "cent": "1/100"},
    "euro": {"euro": "1"},
    "pound sterling": {"gbp GBP": "1"},
    "yen": {"yen": "1"},
    "rupee": {"rupee": "1"},
    "angle": {"degree deg": "1", "rad radian": "1"},
}
_VOLUMES = {  # in cubic metres
    "ml mL milliliter millilitre": "1/1000000",
    "L liter litre": "1/1000",
    "gal gallon": "3785411784/1000000000000",
}
for _names, _factor in _LENGTHS.items():
    _TABLE.update(dict.fromkeys(_names.split(), ("length", 1, Fraction(_factor))))
for _names, _factor in _VOLUMES.items():
    _TABLE.update(dict.fromkeys(_names.split(), ("length", 3, Fraction(_factor))))
for _dimension, _units in _OTHERS.items():
    for _names, _factor in _units.items():
        _TABLE.update(dict.fromkeys(_names.split(), (_dimension, 1, Fraction(_factor))))
_NONE = ("", 1, Fraction(1))

_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}
_ABBREVIATIONS = {"mph": "mile per hour", "kmh": "km per hour", "kph": "km per hour", "cc": "cubic cm"}
# These turn a number into something else.
_STOP = names(
    "or and not no nor none if than more less fewer least most over under above below about except minus plus times "
    "divided negative half quarter third double twice percent per pi unless but maybe otherwise between from to"
)
_WORD = re.compile(r"[A-Za-z]+|\^\d|[/*]|\S")

BARE = names(
    "mm cm dm km ft yd mi min hr kg mg lb lbs oz ml mph kmh inch inches feet foot meter meters miles mile hours hour "
    "minutes minute seconds second days day weeks week years year months month dollars dollar cents cent degrees "
    "degree pounds pound grams gram liters liter gallons gallon units unit yards yard acres rad radians"
)
"""Words that are units without ``\\text{}`` too; single letters are variables."""


def parse_unit(text: str) -> tuple[Unit | None, Fraction]:
    """The unit (None if the words are none of the table's) and the scale ("million") that ``text`` names.

    Raises:
        Unreadable: words that could change what the number says ("or", "more than"), or anything but words.
    """
    scale = Fraction(1)
    factor = Fraction(1)
    powers: dict[str, int] = {}
    sign, power, known, last = 1, 1, True, ""
    words = _WORD.findall(re.sub(r"(?<=[A-Za-z])\.", "", text).replace("²", "^2").replace("³", "^3"))
    words = [part for word in words for part in _ABBREVIATIONS.get(word, word).split()]
    if len(words) > MAX_WORDS:
        raise Unreadable("more words than a unit has")
    for word in words:
        low = word.lower()
        if low in _SCALES and not powers:
            scale *= _SCALES[low]
        elif word == "/" or (low == "per" and last):
            sign = -1
        elif word == "*" or low in ("of", "the", "a", "an"):
            continue
        elif low in _STOP:
            raise Unreadable(f"the word {word!r} behind a number")
        elif low in ("square", "sq", "cubic", "cu"):
            power = _POWERS[low]
        elif (low in ("squared", "cubed") or word in ("^2", "^3")) and last:
            extra = (_POWERS[low] if low in _POWERS else int(word[1])) - 1
            dimension, size, worth = _TABLE.get(last, _NONE)
            powers[dimension] = powers.get(dimension, 0) + sign * extra * size
            factor *= worth ** (sign * extra)
        elif word.isalpha():
            name = next(
                (form for form in (word, low, low.removesuffix("s"), low.removesuffix("es")) if form in _TABLE), ""
            )
            known = known and bool(name)
            dimension, size, worth = _TABLE.get(name, _NONE)
            powers[dimension] = powers.get(dimension, 0) + sign * power * size
            factor *= worth ** (sign * power)
            last, power = name or word, 1
        elif word not in ",()-.'":
            raise Unreadable(f"{word!r} in a unit")
    if not known or not powers:
        return None, scale
    return Unit(factor, tuple(sorted((name, power) for name, power in powers.items() if power))), scale
