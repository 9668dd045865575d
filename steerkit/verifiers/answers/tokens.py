r"""LaTeX, cut into tokens. Linear in the length of the text."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from steerkit.verifiers.answers.errors import Unreadable

MAX_DIGITS = 1000
MAX_EXPONENT = 5000


def names(text: str) -> frozenset[str]:
    """The words of ``text``."""
    return frozenset(text.split())


class Token(NamedTuple):
    """``kind`` is ``num``, ``word`` (letters), ``cmd`` (a command, without its backslash), ``text`` or ``op``."""

    kind: str
    value: str
    spaced: bool = False
    """White space before it."""


FUNCTIONS = names(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc asin acos atan sinh cosh tanh coth "
    "arcsinh arccosh arctanh ln log lg exp sqrt"
)
_PLAIN = FUNCTIONS | {"pi", "theta", "infty", "infinity", "inf", "and", "or", "OR", "AND"}
_SYNONYMS = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac", "sfrac"), "frac"),
    **dict.fromkeys(("dbinom", "tbinom"), "binom"),
    **dict.fromkeys(("leq", "leqslant", "leqq"), "le"),
    **dict.fromkeys(("geq", "geqslant", "geqq"), "ge"),
    **dict.fromkeys(("neq",), "ne"),
    **dict.fromkeys(("infinity", "inf"), "infty"),
    **dict.fromkeys(("varnothing",), "emptyset"),
    **dict.fromkeys(("backslash", "smallsetminus"), "setminus"),
    **{
        "lor": "or",
        "land": "and",
        "OR": "or",
        "AND": "and",
        "lt": "<",
        "gt": ">",
        "colon": ":",
        "div": "/",
        "ast": "*",
    },
    **{"cdot": "*", "times": "*", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "mid": "|"},
    **{"vert": "|", "lvert": "|", "rvert": "|", "lparen": "(", "rparen": ")"},
    **{"asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log"},
}
_OPERATORS = names("< > : / * [ ] | ( )") | {r"\{", r"\}"}
FONTS = names(
    "text textbf textit textrm textsf texttt textnormal textup mbox hbox mathrm mathbf mathit mathsf mathtt mathnormal "
    "mathcal boldsymbol bm operatorname emph underline"
)
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<num>\d*\.\d*\\overline\{\d+\}|(?:\d+\.\d+|\d+\.(?![\d.])|\d+|\.\d+)(?:[eE][+-]?\d+(?![\d.a-zA-Z]))?)
    |(?P<word>[a-zA-Z]+)
    |\\(?P<cmd>[a-zA-Z]+)\*?
    |(?P<op>\\\\|\\[{}%|&#_]|[-+*/^_=<>()\[\]{},;:|!%'&°])""",
    re.VERBOSE,
)


def tokenise(text: str) -> list[Token]:
    """The tokens of a normalised text.

    Raises:
        Unreadable: a character or a construct that no answer has.
    """
    tokens: list[Token] = []
    at, spaced = 0, False
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Unreadable(f"character {text[at]!r}")
        kind, value, at = str(match.lastgroup), match[str(match.lastgroup)], match.end()
        if kind == "space":
            spaced = True
            continue
        if kind == "cmd" and value in FONTS:
            content, at = _group(text, at)
            tokens.append(_in_font(value, content, spaced))
        elif kind == "cmd" and value == "mathbb":
            content, at = _group(text, at)
            tokens.append(Token("cmd", f"mathbb{content}", spaced))
        elif kind == "cmd" or (kind == "word" and value in _PLAIN):
            value = _SYNONYMS.get(value, value)
            tokens.append(Token("op" if value in _OPERATORS else "cmd", value, spaced))
        elif kind == "op" and value == r"\%":
            tokens.append(Token("op", "%", spaced))
        else:
            tokens.append(Token(kind, value, spaced))
        spaced = False
    return tokens


def _group(text: str, at: int) -> tuple[str, int]:
    r"""The braced group (or the one character) at ``at`` and the index behind it."""
    while at < len(text) and text[at] == " ":
        at += 1
    if at == len(text):
        raise Unreadable("a command without its argument")
    if text[at] != "{":
        return text[at], at + 1
    depth = 0
    for index in range(at, len(text)):
        if text[index] == "{" and text[index - 1] != "\\":
            depth += 1
        elif text[index] == "}" and text[index - 1] != "\\":
            depth -= 1
            if depth == 0:
                return text[at + 1 : index], index + 1
    raise Unreadable("an open brace")


def _in_font(font: str, content: str, spaced: bool) -> Token:
    content = " ".join(content.replace("\\", " ").replace("{", " ").replace("}", " ").split())
    bare = content.strip(" ,").lower()
    if bare in ("and", "or"):
        return Token("cmd", bare, spaced)
    if content in FUNCTIONS:
        return Token("cmd", _SYNONYMS.get(content, content), spaced)
    # \mathrm{e} is a letter in an upright font, \text{e} a word of one letter.
    if len(content) == 1 and content.isalnum() and not font.startswith("text") and font not in ("mbox", "hbox"):
        return Token("num" if content.isdigit() else "word", content, spaced)
    return Token("text", content, spaced)


class Number(NamedTuple):
    """A number as written: its value, and for a decimal the unit of its last place."""

    value: Fraction
    ulp: Fraction | None = None
    digits: int = 0
    """Significant digits written, of a decimal."""


def number(text: str) -> Number:
    r"""``12``, ``0.50``, ``.5``, ``4.7e33``, ``0.1\overline{6}``.

    Raises:
        Unreadable: too many digits, or too large an exponent.
    """
    mantissa, _, exponent = text.lower().partition("e") if "\\" not in text else (text, "", "")
    if len(mantissa) > MAX_DIGITS or len(exponent) > 6 or abs(int(exponent or 0)) > MAX_EXPONENT:
        raise Unreadable("too large a number")
    scale = Fraction(10) ** int(exponent or 0)
    if "\\" in mantissa:
        fixed, _, period = mantissa.rstrip("}").partition("\\overline{")
        whole, _, places = fixed.partition(".")
        value = Fraction(int(whole + places or 0), 10 ** len(places))
        return Number(value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(places)))
    whole, point, places = mantissa.partition(".")
    if not point or not places:
        return Number(int(whole) * scale)
    value = Fraction(int(whole + places), 10 ** len(places)) * scale
    return Number(value, scale / 10 ** len(places), len((whole + places).lstrip("0")))


def matching(tokens: list[Token], start: int) -> int:
    """The index of the bracket that closes the one at ``start``; any closing bracket closes (intervals mix them).

    Raises:
        Unreadable: it is not closed.
    """
    depth = 0
    for index in range(start, len(tokens)):
        depth += bracket(tokens[index])
        if depth == 0:
            return index
    raise Unreadable("an open bracket")


def bracket(token: Token) -> int:
    """+1 for an opening bracket, -1 for a closing one, else 0."""
    if token.kind == "op":
        return 1 if token.value in _OPENING else -1 if token.value in _CLOSING else 0
    if token.kind == "cmd":
        return (
            1
            if token.value in ("lfloor", "lceil", "langle", "begin")
            else (-1 if token.value in ("rfloor", "rceil", "rangle", "end") else 0)
        )
    return 0


_OPENING, _CLOSING = frozenset(["(", "[", "{", r"\{"]), frozenset([")", "]", "}", r"\}"])


def split(tokens: list[Token], values: frozenset[str]) -> tuple[list[list[Token]], list[str]]:
    """The stretches between the separators of depth 0, and these separators."""
    parts: list[list[Token]] = [[]]
    found: list[str] = []
    depth = 0
    for token in tokens:
        depth += bracket(token)
        if depth < 0:
            raise Unreadable("a bracket that was not opened")
        if depth == 0 and token.kind in ("op", "cmd") and token.value in values:
            parts.append([])
            found.append(token.value)
        else:
            parts[-1].append(token)
    if depth:
        raise Unreadable("an open bracket")
    return parts, found
