r"""Whether two values are the same: units, percent, degrees, rounded decimals."""

from __future__ import annotations

from fractions import Fraction

from steerkit.verifiers.answers.expression import Node, variables
from steerkit.verifiers.answers.model import Value
from steerkit.verifiers.answers.numeric import equal, evaluate, has
from steerkit.verifiers.answers.tokens import Number
from steerkit.verifiers.answers.units import Unit

PI: Node = ("const", "pi")
MIN_DIGITS = 6
"""A rounded decimal stands for a number if it has this many significant digits."""


def same_value(gold: Value, found: Value) -> bool:
    """Whether two values are the same number, formula or quantity; a unit that only one of them has doesn't count."""
    if gold.unit is not None and found.unit is not None:
        if gold.unit.dimensions != found.unit.dimensions:
            return False
        return same_number(_in_base_units(gold.node, gold.unit), _in_base_units(found.node, found.unit))
    for one, other in ((gold, found), (found, gold)):
        if one.unit is not None and (other.percent or other.degree):
            return False
    if gold.percent != found.percent:
        return _same_percent(gold, found)
    if gold.degree != found.degree:
        return _same_angle(gold, found)
    return same_number(gold.node, found.node)


def _in_base_units(node: Node, unit: Unit) -> Node:
    return node if unit.factor == 1 else ("mul", node, ("num", Number(unit.factor)))


def _same_percent(gold: Value, found: Value) -> bool:
    """12% is 0.12. The sign may be missing, or added to a number from 1 up: the question said "what percent"."""
    hundredth = ("num", Number(Fraction(1, 100)))
    if gold.percent:
        return same_number(gold.node, found.node) or same_number(("mul", gold.node, hundredth), found.node)
    if same_number(gold.node, ("mul", found.node, hundredth)):
        return True
    if variables(gold.node):
        return False
    value = evaluate(gold.node, {})
    return bool(abs(value) >= 1) and same_number(gold.node, found.node)


def _same_angle(gold: Value, found: Value) -> bool:
    """120° is 120 where the sign is missing, and 2 pi/3."""
    bare, marked = (found, gold) if gold.degree else (gold, found)
    if has(bare.node, PI) and not has(marked.node, PI):
        return same_number(("deg", marked.node), bare.node)
    return same_number(gold.node, found.node)


def same_number(gold: Node, found: Node) -> bool:
    """Whether two formulas are equal, or one is a decimal that rounds the other with ``MIN_DIGITS`` digits or more."""
    if ("inf",) in (gold, found, *gold[1:], *found[1:]):
        return gold == found
    if equal(gold, found):
        return True
    if variables(gold) or variables(found):
        return False
    return _rounds(gold, found)


def _rounds(gold: Node, found: Node) -> bool:
    """Whether the coarser of the two is the other one correctly rounded, with enough digits: 0.333333 is 1/3."""
    written = [number for number in (_decimal(gold), _decimal(found)) if number is not None]
    if not written:
        return False
    coarse = max(written, key=lambda number: number.ulp or 0)
    if coarse.digits < MIN_DIGITS or coarse.ulp is None:
        return False
    difference = evaluate(("add", gold, ("neg", found)), {})
    if not isinstance(difference, Fraction):
        if getattr(difference, "imag", 0):
            return False
        return bool(abs(difference) * 2 * coarse.ulp.denominator <= coarse.ulp.numerator)
    return abs(difference) * 2 <= coarse.ulp


def _decimal(node: Node) -> Number | None:
    r"""The decimal that a tree is: ``3.46``, ``-3.46``, ``3.46 \times 10^{3}``."""
    if node[0] == "neg":
        return _decimal(node[1])
    if node[0] == "num":
        return node[1] if node[1].ulp is not None else None
    if node[0] == "mul":
        for one, other in ((node[1], node[2]), (node[2], node[1])):
            number = _decimal(one)
            if number is not None and not variables(other) and _decimal(other) is None:
                value = evaluate(other, {})
                if isinstance(value, Fraction) and value and number.ulp is not None:
                    return Number(number.value * value, abs(number.ulp * value), number.digits)
    return None
