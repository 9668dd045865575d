r"""A formula with what may stand around it: a currency, a percent sign, degrees, a unit."""

from __future__ import annotations

from fractions import Fraction

from steerkit.verifiers.answers.errors import Unreadable
from steerkit.verifiers.answers.expression import parse_group
from steerkit.verifiers.answers.model import Value
from steerkit.verifiers.answers.tokens import Number, Token
from steerkit.verifiers.answers.units import BARE, Unit, parse_unit

_MONEY = {"dollar": "dollar", "euro": "euro", "pound": "pound sterling", "yen": "yen", "rupee": "rupee"}
_ORDINALS = ("st", "nd", "rd", "th")
_PERCENT = ("%", "percent", "pct", "per cent")
_DEGREES = (("angle", 1),)
_SCALES = {"C": "C", "F": "F", "CELSIUS": "C", "FAHRENHEIT": "F"}


def read_value(tokens: list[Token]) -> Value:
    """A formula with its currency, percent sign, degrees and unit.

    Raises:
        Unreadable: the formula is none, or the words around it could change what it says.
    """
    tokens, money = _without_currency(list(tokens))
    behind = _behind(tokens)
    tokens, tail = tokens[:behind], tokens[behind:]
    percent = bool(tail) and tail[0].value.lower().strip() in _PERCENT
    said = "".join(" " + token.value if token.kind in ("text", "word") else token.value for token in tail[percent:])
    said = said.replace("{", "").replace("}", "").strip(" ^")
    unit, scale, degree = money, Fraction(1), False
    if said.upper() in _SCALES and tokens[-1].value == "°":
        tokens, unit = tokens[:-1], Unit(Fraction(1), ((f"temperature {_SCALES[said.upper()]}", 1),))
    elif said and said not in _ORDINALS:
        unit, scale = parse_unit(said)
        if money is not None:
            if unit is not None and unit.dimensions != money.dimensions:
                raise Unreadable("two units")
            unit = money
    if unit is not None and unit.dimensions == _DEGREES:
        degree, unit = "rad" not in said, None
    node = parse_group(tokens)
    if node[0] == "deg":
        node, degree = node[1], True
    elif node[0] == "neg" and node[1][0] == "deg":
        node, degree = ("neg", node[1][1]), True
    if scale != 1:
        node = ("mul", node, ("num", Number(scale)))
    return Value(node, unit, percent, degree)


def _without_currency(tokens: list[Token]) -> tuple[list[Token], Unit | None]:
    r"""``\$5``, ``-\$5`` and ``5 €``."""
    signed = len(tokens) > 1 and tokens[0].value in ("-", "+")
    for place in (int(signed), len(tokens) - 1):
        if len(tokens) > 1 and tokens[place].kind == "cmd" and tokens[place].value in _MONEY:
            money = tokens.pop(place)
            return tokens, Unit(Fraction(1), ((_MONEY[money.value], 1),))
    return tokens, None


def _behind(tokens: list[Token]) -> int:
    """Where the unit starts: at the first text, percent sign or bare unit word from which on nothing else comes."""
    for index in range(1, len(tokens)):
        if _starts_unit(tokens, index) and all(_in_unit(tokens, index, k) for k in range(index, len(tokens))):
            return index
    return len(tokens)


def _starts_unit(tokens: list[Token], index: int) -> bool:
    head, before = tokens[index], tokens[index - 1]
    if head.kind == "text" or head.value == "%":
        return True
    if head.value == "^":  # 1^{\text{st}}
        return [token.kind for token in tokens[index + 1 :] if token.value not in ("{", "}")] == ["text"]
    if head.kind != "word":
        return False
    if head.value in ("C", "F"):
        return before.value == "°"
    known = head.value in BARE or head.value in _ORDINALS or head.value == "percent"
    return known and (before.kind == "num" or before.value in ("}", ")", "%"))


def _in_unit(tokens: list[Token], start: int, index: int) -> bool:
    token = tokens[index]
    if token.kind == "text" or token.value in ("%", "/", "^", "{", "}", "*"):
        return True
    if token.kind == "word":
        return index == start or token.value in BARE or tokens[index - 1].value == "/"
    return token.kind == "num" and token.value in ("2", "3") and tokens[index - 1].value in ("^", "{")
