r"""Answers that are no formulas: words, choices, times of day, numerals in a base."""

from __future__ import annotations

import re

from steerkit.verifiers.answers.model import Choice, Numeral, Text, Time
from steerkit.verifiers.answers.tokens import FONTS, FUNCTIONS, MAX_DIGITS

_FONT = re.compile(r"\\(?:" + "|".join(sorted(FONTS, key=len, reverse=True)) + r")\s*\{([^{}]*)\}")
_TIME = re.compile(
    r"(\d{1,2})(?:\s*:\s*([0-5]\d))?(?:\s*:\s*([0-5]\d))?\s*([ap])\.?\s?m\.?\Z|([01]?\d|2[0-3])\s*:\s*([0-5]\d)"
    r"(?:\s*:\s*([0-5]\d))?\Z",
    re.IGNORECASE,
)
_NUMERAL = re.compile(
    r"(-?)(?:\(\s*([0-9A-Za-z.]+)\s*\)|([0-9A-Z](?:[0-9A-Z. ]*[0-9A-Z])?))\s*_\s*(?:\{\s*(\w+)\s*\}|(\d))\Z"
)
_BASES = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "twelve": 12,
}
_CHOICE = re.compile(r"\(\s*([A-Za-z])\s*\)\Z")
_LABEL = re.compile(r"\s*\(?\s*([A-H])\s*\)[\s:.]*(?=\S)")
_SENTENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,;:'!?()&/-]*\Z")
_RUN = re.compile(r"[A-Za-z]{3,}")
_ORDINAL = re.compile(r"(\d+)\s*\^?\s*\{?\s*(?:st|nd|rd|th)\b\}?")
_ARTICLES = re.compile(r"\A(?:the|a|an)\s+")
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
)
_SMALL += "eighteen nineteen twenty"
NUMBER_WORDS = {word: value for value, word in enumerate(_SMALL.split())}


def plain(text: str) -> str:
    r"""The text without font commands: ``\text{8:34 p.m.}`` is ``8:34 p.m.``"""
    for _ in range(3):
        text = _FONT.sub(r"\1", text)
    return " ".join(text.split())


def read_time(text: str) -> Time | None:
    """A time with am or pm, or hh:mm(:ss) that a clock can show."""
    match = _TIME.match(text)
    if match is None:
        return None
    if match[4]:
        hour, half = int(match[1]), match[4].lower() + "m"
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half == "pm" else 0)
        return Time(hour * 3600 + int(match[2] or 0) * 60 + int(match[3] or 0), half)
    hour = int(match[5])
    half = "" if 1 <= hour <= 12 else ("pm" if hour > 12 else "am")
    parts = tuple(int(part) for part in match.group(5, 6, 7) if part is not None)
    return Time(hour * 3600 + int(match[6]) * 60 + int(match[7] or 0), half, parts)


def read_numeral(text: str) -> Numeral | None:
    """Digits with a base as index; the base is at least 2 and above every digit."""
    match = _NUMERAL.match(text)
    if match is None:
        return None
    base_text = match[4] or match[5]
    base = int(base_text) if base_text.isdigit() else _BASES.get(base_text.lower(), 0)
    digits = (match[2] or match[3]).replace(" ", "").upper()
    if not 2 <= base <= 36 or len(digits) > MAX_DIGITS:
        return None
    if digits.count(".") > 1 or any(int(digit, 36) >= base for digit in digits if digit != "."):
        return None
    whole, point, places = digits.partition(".")
    return Numeral(match[1] + (whole.lstrip("0") or "0") + (point + places).rstrip(".0" if point else ""), base)


def read_choice(text: str) -> Choice | None:
    r"""``(B)``; ``B`` alone is a variable unless it stands in ``\text{}``, which the caller knows."""
    match = _CHOICE.match(text)
    return Choice(match[1].upper()) if match else None


def split_label(text: str) -> tuple[str, str]:
    """The letter of a leading choice label and the rest: ``(B) 12`` is ``B`` and ``12``."""
    match = _LABEL.match(text)
    return (match[1], text[match.end() :]) if match else ("", text)


def is_sentence(text: str) -> bool:
    """Whether a plain text is words rather than a formula: a run of three letters that is no function or unit."""
    if not _SENTENCE.match(text):
        return False
    if text.strip().lower() in ("yes", "no"):
        return True
    runs = [run.lower() for run in _RUN.findall(text)]
    if not any(run not in FUNCTIONS for run in runs):
        return False
    if not text[:1].isdigit():
        return True
    # "5 apples" is a number, "24 December 2014" and "5 feet 11 inches" are words.
    numbers = re.findall(r"[\d,.]*\d", text)
    return len(numbers) > 1 and "/" not in text and not re.search(r"\b(?:and|or)\b", text)


def words(text: str) -> str:
    """A plain text in lower case, without punctuation, a leading article or the ending of an ordinal."""
    text = _ORDINAL.sub(r"\1", text.lower())
    text = re.sub(r"[.,;:!?'\"*_\\{}()\[\]$-]", " ", text.replace("'s", "s"))
    return _ARTICLES.sub("", " ".join(text.split()))


def as_text(text: str) -> Text:
    return Text(words(plain(text)))
