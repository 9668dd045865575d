r"""Values of formulas, and whether two formulas are equal.

Rational arithmetic is exact. What is irrational is compared at 40 digits, and what agrees there must agree to 80 of
100 digits too. Formulas with variables are compared at fixed rational points, so polynomials exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import mpmath

from steerkit.verifiers.answers.errors import Unreadable
from steerkit.verifiers.answers.expression import Node, variables

MAX_BITS = 25_000
MAX_FACTORIAL = 5000
MAX_VARIABLES = 16
DIGITS, SURE_DIGITS = 40, 100
_AGREE, _AGREE_SURELY = 25, 80

_INTEGER_ONLY = frozenset(["fact", "binom", "floor", "ceil"])
_INTEGER_NAMES = frozenset("nmkNMK")
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)

_coarse, _fine = mpmath.mp.clone(), mpmath.mp.clone()
_coarse.dps, _fine.dps = DIGITS, SURE_DIGITS


class Undefined(Unreadable):
    """The formula has no value at this point."""


def evaluate(node: Node, point: dict[str, Fraction], fine: bool = False) -> Any:
    """The value: a ``Fraction`` where the arithmetic is rational, else mpmath's real or complex number.

    Raises:
        Undefined: a division by zero, a factorial of a negative number...
        Unreadable: numbers larger than this module handles.
    """
    return _Evaluator(point, _fine if fine else _coarse)(node)


class _Evaluator:
    def __init__(self, point: dict[str, Fraction], context: Any) -> None:
        self.point, self.context = point, context

    def __call__(self, node: Node) -> Any:
        operation, operands = node[0], node[1:]
        if operation == "num":
            return operands[0].value
        if operation == "var":
            return self.point[operands[0]]
        if operation == "const":
            return {"pi": +self.context.pi, "e": +self.context.e, "i": self.context.mpc(0, 1)}[operands[0]]
        if operation == "inf":
            raise Undefined
        if operation == "fn":
            return self.function(operands[0], self(operands[1]))
        values = [self(operand) for operand in operands]
        if not all(isinstance(value, Fraction) for value in values):
            values = [self.inexact(value) for value in values]
        return self.checked(getattr(self, f"do_{operation}")(*values))

    def inexact(self, value: Any) -> Any:
        return self.context.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value

    def checked(self, value: Any) -> Any:
        if isinstance(value, Fraction):
            if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
                raise Unreadable("too large a number")
        elif not self.context.isfinite(value):
            raise Undefined
        return value

    # -- arithmetic; the operands are all fractions or all mpmath's

    def do_neg(self, a: Any) -> Any:
        return -a

    def do_add(self, a: Any, b: Any) -> Any:
        return a + b

    def do_mul(self, a: Any, b: Any) -> Any:
        return a * b

    def do_div(self, a: Any, b: Any) -> Any:
        if b == 0:
            raise Undefined
        return a / b

    def do_pow(self, a: Any, b: Any) -> Any:
        if isinstance(a, Fraction) and b.denominator == 1:
            if a == 0 and b < 0:
                raise Undefined
            if abs(b) * max(a.numerator.bit_length(), a.denominator.bit_length()) > MAX_BITS and a not in (0, 1, -1):
                raise Unreadable("too large a power")
            return a ** int(b)
        a, b = self.inexact(a), self.inexact(b)
        if a == 0:
            if self.context.re(b) <= 0:
                raise Undefined
            return a
        exponent = abs(b)
        if exponent > MAX_BITS or exponent * abs(self.context.log(abs(a), 2)) > MAX_BITS:
            raise Unreadable("too large a power")
        return self.context.power(a, b)

    def do_root(self, a: Any, n: Any) -> Any:
        if isinstance(a, Fraction) and n.denominator == 1 and 0 < n < 100:
            exact = _exact_root(abs(a), int(n))
            if a >= 0 or n % 2:
                sign = 1 if a >= 0 else -1
                return sign * exact if exact is not None else sign * self.context.root(self.inexact(abs(a)), int(n))
        if n == 0:
            raise Undefined
        return self.do_pow(a, 1 / n)

    def do_fact(self, n: Any) -> Any:
        if not isinstance(n, Fraction) or n.denominator != 1 or n < 0:
            raise Undefined
        if n > MAX_FACTORIAL:
            raise Unreadable("too large a factorial")
        return Fraction(math.factorial(int(n)))

    def do_binom(self, n: Any, k: Any) -> Any:
        if not (isinstance(n, Fraction) and n.denominator == 1 == k.denominator and n >= 0):
            raise Undefined
        if n > MAX_FACTORIAL:
            raise Unreadable("too large a binomial coefficient")
        return Fraction(math.comb(int(n), int(k)) if k >= 0 else 0)

    def do_abs(self, a: Any) -> Any:
        return abs(a)

    def do_floor(self, a: Any) -> Any:
        return Fraction(math.floor(self.real(a)))

    def do_ceil(self, a: Any) -> Any:
        return Fraction(math.ceil(self.real(a)))

    def do_deg(self, a: Any) -> Any:
        return self.inexact(a) * self.context.pi / 180

    def do_log(self, a: Any, base: Any) -> Any:
        a, base = self.inexact(a), self.inexact(base)
        if a == 0 or base in (0, 1):
            raise Undefined
        return self.context.log(a) / self.context.log(base)

    def real(self, a: Any) -> Any:
        if isinstance(a, self.context.mpc):
            raise Undefined
        if abs(a) > 2**200:
            raise Unreadable("too large a number")
        return a

    def function(self, name: str, a: Any) -> Any:
        context = self.context
        a = self.inexact(a)
        if abs(a) > 10**6 and name in ("exp", "sinh", "cosh", "tanh", "coth"):
            raise Unreadable("too large an exponent")
        if abs(a) > 10**20:
            raise Unreadable("too large an argument")
        inverse: dict[str, Callable[[Any], Any]] = {
            "arcsin": context.asin,
            "arccos": context.acos,
            "arctan": context.atan,
            "arccot": context.acot,
            "arcsec": context.asec,
            "arccsc": context.acsc,
            "arcsinh": context.asinh,
            "arccosh": context.acosh,
            "arctanh": context.atanh,
            "ln": context.log,
            "log": context.log10,
        }
        try:
            return self.checked(inverse[name](a) if name in inverse else getattr(context, name)(a))
        except (ZeroDivisionError, ValueError) as error:
            raise Undefined from error


def _exact_root(a: Fraction, n: int) -> Fraction | None:
    parts = []
    for part in (a.numerator, a.denominator):
        guess = math.isqrt(part) if n == 2 else round(part ** (1 / n)) if part.bit_length() < 1000 else -1
        parts.append(guess)
        if guess**n != part:
            return None
    return Fraction(*parts)


def close(first: Callable[[bool], Any], second: Callable[[bool], Any]) -> bool:
    """Whether two values are equal. Each argument gives its value, coarse or (True) fine."""
    a, b = first(False), second(False)
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    if not _near(a, b, _coarse, _AGREE):
        return False
    return _near(first(True), second(True), _fine, _AGREE_SURELY)


def _near(a: Any, b: Any, context: Any, digits: int) -> bool:
    a, b = (context.mpmathify(v.numerator) / v.denominator if isinstance(v, Fraction) else v for v in (a, b))
    size, limit = max(abs(a), abs(b)), context.mpf(10) ** -digits
    # A zero that was computed (sqrt(8) - 2 sqrt(2)) has no relative precision; it is zero at both precisions.
    return bool(size < limit or abs(a - b) <= limit * size)


def equal(a: Node, b: Node) -> bool:
    """Whether two formulas are equal wherever the first, the gold answer, is defined and real.

    Raises:
        Unreadable: the first has no value at the points tried.
    """
    return _same(a, b, lambda x, y, point: close(lambda f: evaluate(x, point, f), lambda f: evaluate(y, point, f)))


def proportional(a: Node, b: Node, positive: bool = False) -> bool:
    """Whether ``b`` is a constant multiple of ``a`` (a positive one, on demand): the same equation or inequality."""
    ratios: list[Any] = []

    def compare(x: Node, y: Node, point: dict[str, Fraction]) -> bool:
        left, right = evaluate(x, point), evaluate(y, point)
        if left == 0 or right == 0:
            return bool(left == right)
        ratios.append(("div", y, x, point))
        first = ratios[0]
        if positive and not right / left > 0:
            return False
        return close(lambda f: evaluate(first[:3], first[3], f), lambda f: evaluate(("div", y, x), point, f))

    return _same(a, b, compare) and bool(ratios)


def _same(a: Node, b: Node, compare: Callable[[Node, Node, dict[str, Fraction]], bool]) -> bool:
    names = sorted(variables(a) | variables(b))
    if len(names) > MAX_VARIABLES:
        raise Unreadable("too many variables")
    # x and floor(x) agree at whole numbers: the gold answer, or the names of its variables, must ask for these.
    whole_numbers = _needs_integers(a) or (variables(a) <= _INTEGER_NAMES and _needs_integers(b))
    complex_allowed = has(a, ("const", "i"))
    used, skipped_complex = 0, 0
    wanted = 1 if not names else 12 if whole_numbers else 5
    for point in _points(names, whole_numbers):
        try:
            value = evaluate(a, point)
        except Undefined:
            continue
        if names and not complex_allowed and not isinstance(value, Fraction) and _is_complex(value):
            skipped_complex += 1
            continue
        try:
            if not compare(a, b, point):
                return False
        except Undefined:
            return False
        used += 1
        if used == wanted:
            return True
    if used < min(wanted, 2):
        raise Unreadable("no value" if not skipped_complex else "no real value")
    return True


def _is_complex(value: Any) -> bool:
    imaginary = getattr(value, "imag", 0)
    return bool(abs(imaginary) > abs(value) * 10.0**-30)


def _points(names: list[str], whole_numbers: bool) -> Iterator[dict[str, Fraction]]:
    if not names:
        yield {}
        return
    n = len(_PRIMES)
    for k in range(48):
        point = {}
        for j, name in enumerate(names):
            if whole_numbers:
                # One variable runs through 2..14; further ones are scattered, so that no fixed relation holds.
                point[name] = Fraction(2 + (k if j == 0 else (k * k * (j + 2) + 7 * j * k + 3 * j) % 11) % 13)
            else:
                sign = -1 if (k >> (j % 3)) & 1 else 1
                size = Fraction(_PRIMES[(3 * j + 5 * k + 1) % n], _PRIMES[(7 * j + 3 * k + 8) % n])
                point[name] = sign * size * (1, 9, Fraction(1, 9))[(k + j * (k // 3)) % 3]
        yield point


def has(node: Node, wanted: Node) -> bool:
    """Whether ``wanted`` is a part of the tree."""
    return node == wanted or any(has(part, wanted) for part in node[1:] if isinstance(part, tuple) and part)


def _needs_integers(node: Node) -> bool:
    r"""Factorials, floors, or a power such as ``(-1)^n``: the formula is about integers."""
    if node[0] in _INTEGER_ONLY and variables(node):
        return True
    if node[0] == "pow" and node[1][0] == "neg" and not variables(node[1]) and variables(node[2]):
        return True
    return any(_needs_integers(part) for part in node[1:] if isinstance(part, tuple) and part)
