r"""Whether two answers say the same."""

from __future__ import annotations

from fractions import Fraction
from math import gcd
from typing import Any

from steerkit.verifiers.answers.expression import Node, variables
from steerkit.verifiers.answers.model import (
    Answer,
    Choice,
    Equation,
    Inequality,
    Matrix,
    Numeral,
    Ratio,
    Region,
    Row,
    Several,
    Text,
    Time,
    Value,
)
from steerkit.verifiers.answers.numeric import proportional
from steerkit.verifiers.answers.quantity import same_number, same_value
from steerkit.verifiers.answers.regions import as_region, same_region
from steerkit.verifiers.answers.tokens import Number
from steerkit.verifiers.answers.words import NUMBER_WORDS


def same(gold: Answer, found: Answer) -> bool:
    """Whether ``found`` says what ``gold`` says; a name (``x =``) that only one of them gives does not count.

    Raises:
        Unreadable: a formula has no value that could be compared.
    """
    if isinstance(gold, Equation) or isinstance(found, Equation):
        return _same_equation(gold, found)
    if _conflict(gold.name, found.name):
        return _equation_of(gold, found)
    handler = _HANDLERS.get((type(gold), type(found)))
    if handler is not None:
        return bool(handler(gold, found))
    left, right = as_region(gold), as_region(found)
    if left is not None and right is not None and (isinstance(gold, Region) or isinstance(found, Region)):
        return same_region(left, right)
    if isinstance(gold, Several) and len(gold.items) == 1:
        return same(gold.items[0], found)
    if isinstance(found, Several) and len(found.items) == 1:
        return same(gold, found.items[0])
    return False


def _conflict(a: str, b: str) -> bool:
    """Whether two names say that two things are meant: x and y, AB and CD; not m and m_max, nor x and "area"."""
    left, right = (name.partition("_")[0].partition("(")[0] for name in (a, b))
    is_word = any(len(name) > 2 and name.islower() for name in (left, right))
    return bool(left and right) and left != right and not is_word


# -- equations and inequalities


def _same_equation(gold: Answer, found: Answer) -> bool:
    if isinstance(gold, Equation) and isinstance(found, Equation):
        return proportional(("add", gold.left, ("neg", gold.right)), ("add", found.left, ("neg", found.right)))
    if isinstance(gold, Equation):
        return isinstance(found, Value) and bool(found.name) and _equation_of(gold, found)
    if isinstance(found, Equation) and isinstance(gold, Value):
        if gold.name and _equation_of(gold, found):
            return True
        return not gold.name and _is_quantity(found.left) and isinstance(found.value, Value) and same(gold, found.value)
    return False


def _is_quantity(node: Node) -> bool:
    """Whether a left side names what was asked for (a+b, tan A, x^2) rather than is an equation to solve (2x - 1)."""
    if node[0] in ("num", "neg"):
        return False
    if node[0] in ("var", "const", "fn", "log"):
        return True
    if node[0] in ("pow", "root"):
        return _is_quantity(node[1])
    return all(_is_quantity(part) for part in node[1:] if isinstance(part, tuple))


def _equation_of(gold: Answer, found: Answer) -> bool:
    """Compares ``y = 2x`` with ``2x - y = 0`` or ``x = y/2``: as equations."""
    sides = []
    for answer in (gold, found):
        if isinstance(answer, Equation):
            sides.append(("add", answer.left, ("neg", answer.right)))
        elif isinstance(answer, Value) and _is_variable(answer.name):
            sides.append(("add", ("var", answer.name), ("neg", answer.node)))
        else:
            return False
    if isinstance(gold, Value) and isinstance(found, Value) and not variables(gold.node):
        return False  # x = 5 and y = 5
    return proportional(sides[0], sides[1])


def _is_variable(name: str) -> bool:
    return len(name) == 1 or name.startswith(("\\", "d("))


def _same_inequality(gold: Inequality, found: Inequality) -> bool:
    if (gold.strict, gold.unequal) != (found.strict, found.unequal):
        return False
    return proportional(gold.node, found.node, positive=not gold.unequal)


# -- several things


def _same_row(gold: Row, found: Row) -> bool:
    if len(gold.items) != len(found.items):
        return False
    if len(gold.items) == 2 and (gold.opening == "[") != (found.opening == "["):
        return False  # an open and a closed interval
    return all(same(a, b) for a, b in zip(gold.items, found.items, strict=True))


def _same_several(gold: Several, found: Several) -> bool:
    """The same answers in any order; between braces, repetitions don't count."""
    left, right = list(gold.items), list(found.items)
    if gold.braces and found.braces:
        return all(any(same(a, b) for b in right) for a in left) and all(any(same(a, b) for a in left) for b in right)
    if len(left) != len(right):
        return False
    if _named(left) != _named(right):
        return all(same(a, b) for a, b in zip(left, right, strict=True))  # AB = 9, CD = 4 and 9, 4
    for item in left:
        match = next((index for index, other in enumerate(right) if same(item, other)), None)
        if match is None:
            return False
        right.pop(match)
    return True


def _named(items: list[Answer]) -> bool:
    """Whether the items carry different names; x_1 and x_2 are one."""
    return len({item.name.partition("_")[0] for item in items if item.name}) > 1


def _row_and_several(gold: Row, found: Several) -> bool:
    """The point (1, 2) written as "1, 2", or as "x = 1, y = 2": in that order."""
    if found.braces or len(gold.items) != len(found.items) or "[" in (gold.opening, gold.closing):
        return False
    return all(same(a, b) for a, b in zip(gold.items, found.items, strict=True))


def _several_and_row(gold: Several, found: Row) -> bool:
    """The answers 1 and 2 written as "(1, 2)"."""
    if gold.braces or found.opening != "(" or found.closing != ")":
        return False
    return _same_several(gold, Several(found.items))


def _same_matrix(gold: Matrix, found: Matrix) -> bool:
    if gold.fence != found.fence or len(gold.rows) != len(found.rows) or len(gold.rows[0]) != len(found.rows[0]):
        return False
    pairs = [(a, b) for one, two in zip(gold.rows, found.rows, strict=True) for a, b in zip(one, two, strict=True)]
    return all(same_number(a, b) for a, b in pairs)


def _column(matrix: Matrix) -> tuple[Node, ...]:
    return tuple(row[0] for row in matrix.rows) if len(matrix.rows[0]) == 1 and not matrix.fence else ()


def _same_column(matrix: Matrix, row: Row) -> bool:
    """A column vector and the point with the same coordinates."""
    cells = _column(matrix)
    if len(cells) != len(row.items) or "[" in (row.opening, row.closing):
        return False
    return all(isinstance(b, Value) and same_number(a, b.node) for a, b in zip(cells, row.items, strict=True))


# -- words, times, ratios, numerals


def _same_time(gold: Time, found: Time) -> bool:
    if gold.half and not found.half:
        return False  # leaving out a.m. or p.m. leaves out half of the answer
    if gold.half == found.half:
        return gold.seconds == found.seconds
    return not gold.half and gold.seconds % 43200 == found.seconds % 43200


def _same_ratio(gold: Ratio, found: Ratio) -> bool:
    if len(gold.terms) != len(found.terms):
        return False
    return all(
        same_number(("mul", gold.terms[0], b), ("mul", found.terms[0], a))
        for a, b in zip(gold.terms[1:], found.terms[1:], strict=True)
    )


def _ratio_and_value(gold: Ratio, found: Value) -> bool:
    return len(gold.terms) == 2 and same_number(("div", *gold.terms), found.node)


def _as_ratio(time: Time) -> Ratio:
    return Ratio(tuple(("num", Number(Fraction(part))) for part in time.parts))


def _time_and_other(gold: Time, found: Any) -> bool:
    """17:12 may be a ratio, as nothing cancels; 3:30 is a time, and no tenth."""
    return bool(gold.parts) and gcd(*gold.parts) == 1 and same(_as_ratio(gold), found)


def _ratio_and_time(gold: Ratio, found: Time) -> bool:
    return bool(found.parts) and _same_ratio(gold, _as_ratio(found))


def _numeral_and_value(gold: Numeral, found: Value) -> bool:
    """The digits without their base are the answer, since the question named it; the value in base ten is not."""
    node = found.node[1] if found.node[0] == "neg" else found.node
    if node[0] != "num" or node[1].ulp is not None or found.percent or found.unit is not None:
        return False
    return gold.digits.lstrip("-").isdigit() and _is_integer(found, int(gold.digits))


def _is_integer(value: Value, wanted: int) -> bool:
    return same_value(value, Value(("num", Number(Fraction(wanted)))))


def _word_and_value(text: Text, value: Value) -> bool:
    number = NUMBER_WORDS.get(text.words)
    return number is not None and same_number(("num", Number(Fraction(number))), value.node)


_HANDLERS: dict[tuple[type, type], Any] = {
    (Value, Value): same_value,
    (Text, Text): lambda a, b: a.words == b.words,
    (Choice, Choice): lambda a, b: a.letter == b.letter,
    (Time, Time): _same_time,
    (Numeral, Numeral): lambda a, b: a == b,
    (Numeral, Value): _numeral_and_value,
    (Value, Numeral): lambda a, b: b.base == 10 and b.digits.lstrip("-").isdigit() and _is_integer(a, int(b.digits)),
    (Ratio, Ratio): _same_ratio,
    (Ratio, Value): _ratio_and_value,
    (Ratio, Time): _ratio_and_time,
    (Time, Ratio): _time_and_other,
    (Time, Value): _time_and_other,
    (Row, Row): _same_row,
    (Several, Several): _same_several,
    (Row, Several): _row_and_several,
    (Several, Row): _several_and_row,
    (Matrix, Matrix): _same_matrix,
    (Matrix, Row): _same_column,
    (Row, Matrix): lambda a, b: _same_column(b, a),
    (Region, Region): same_region,
    (Inequality, Inequality): _same_inequality,
    (Text, Value): _word_and_value,
    (Value, Text): lambda a, b: _word_and_value(b, a),
    (Choice, Value): lambda a, b: b.node[1:] in ((a.letter,), (a.letter.lower(),)),
    (Value, Choice): lambda a, b: a.node == ("var", b.letter),
}
