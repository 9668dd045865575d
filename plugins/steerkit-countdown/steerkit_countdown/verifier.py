r"""Does the boxed expression reach the target with the given numbers, each at most once?"""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from steerkit.errors import SteerkitError
from steerkit.types import Verdict
from steerkit.verifiers.base import Verifier, displayed
from steerkit.verifiers.boxed import last_boxed

GOLD = re.compile(r"numbers=(\d{1,9}(?:,\d{1,9}){1,15}); target=(\d{1,9})\Z", re.ASCII)
"""The answer column: ``numbers=3,6,7; target=24``."""
ALLOWED = re.compile(r"[0-9+\-*/() ]+\Z")
LATEX = {
    r"\left": "",
    r"\right": "",
    r"\times": "*",
    r"\cdot": "*",
    r"\div": "/",
    "×": "*",
    "·": "*",
    "÷": "/",
    "−": "-",
}
FRACTION = re.compile(r"\\d?frac\{([^{}]*)\}\{([^{}]*)\}")
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class CountdownVerifier(Verifier):
    r"""Correct if the last ``\boxed{}`` is an arithmetic expression that equals the target.

    Fractions on the way are allowed and exact. LaTeX's ``\times``, ``\cdot``, ``\div`` and ``\frac`` are understood, as
    is the target behind a final ``=``. The expression is read by Python's parser and computed by a walk over four
    operators and the minus sign: nothing is evaluated as code.

    Args:
        max_chars: a longer box is wrong without being looked at.

    Reasons. correct: ``equal``. wrong: ``no_box``, ``empty_box``, ``too_long``, ``unparsable``, ``bad_number`` (one
    that is not given, or used too often), ``division_by_zero``, ``not_equal``. fault: ``gold_unparsable``.
    """

    def __init__(self, max_chars: int = 200) -> None:
        if max_chars < 1:
            raise SteerkitError(f"max_chars must be at least 1, got {max_chars}.")
        self.max_chars = max_chars

    def verify(self, completion: str, answer: str) -> Verdict:
        """``answer``: ``numbers=3,6,7; target=24``."""
        gold = GOLD.match(answer.strip())
        if gold is None:
            return Verdict("fault", "gold_unparsable")
        box = last_boxed(completion)
        if box is None:
            return Verdict("wrong", "no_box")
        given, target = Counter(map(int, gold[1].split(","))), int(gold[2])
        reason = self._judge(box, given, target)
        return Verdict("correct" if reason == "equal" else "wrong", reason, displayed(box))

    def _judge(self, box: str, given: Counter[int], target: int) -> str:
        if not box:
            return "empty_box"
        if len(box) > self.max_chars:
            return "too_long"
        tree = parse(box, target)
        if tree is None:
            return "unparsable"
        if Counter(leaves(tree)) - given:  # what is left was not given, or not so often
            return "bad_number"
        try:
            value = compute(tree)
        except ZeroDivisionError:
            return "division_by_zero"
        return "equal" if value == target else "not_equal"


def parse(text: str, target: int) -> ast.expr | None:
    """The tree of an expression of whole numbers, + - * / and brackets; None for anything else."""
    for symbol, plain in LATEX.items():
        text = text.replace(symbol, plain)
    while True:  # the innermost fractions first; each round takes a backslash away, so it ends
        text, count = FRACTION.subn(r"((\1)/(\2))", text)
        if not count:
            break
    head, equals, tail = text.rpartition("=")
    if equals:
        if tail.strip() != str(target):
            return None
        text = head
    if not ALLOWED.match(text):
        return None
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return tree if arithmetic(tree) else None
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def arithmetic(tree: ast.expr) -> bool:
    """Whether the tree has nothing but whole numbers, the four operators and single minus signs (no ``**``, ``//``)."""
    if isinstance(tree, ast.BinOp):
        return type(tree.op) in OPERATORS and arithmetic(tree.left) and arithmetic(tree.right)
    if isinstance(tree, ast.UnaryOp):
        # Not --3: so the depth of a tree is bounded by its numbers, which the puzzle bounds.
        return isinstance(tree.op, ast.USub) and not isinstance(tree.operand, ast.UnaryOp) and arithmetic(tree.operand)
    return isinstance(tree, ast.Constant) and type(tree.value) is int


def leaves(tree: ast.expr) -> Iterator[int]:
    """The numbers in the tree."""
    return (int(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) is int)


def compute(tree: ast.expr) -> Fraction:
    """The exact value; ZeroDivisionError where there is none."""
    if isinstance(tree, ast.BinOp):
        value: Fraction = OPERATORS[type(tree.op)](compute(tree.left), compute(tree.right))
        return value
    if isinstance(tree, ast.UnaryOp):
        return -compute(tree.operand)
    assert isinstance(tree, ast.Constant) and type(tree.value) is int
    return Fraction(tree.value)
