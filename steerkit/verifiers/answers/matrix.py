r"""Matrices and column vectors, with a formula in front of them perhaps."""

from __future__ import annotations

from fractions import Fraction

from steerkit.verifiers.answers.errors import Unreadable
from steerkit.verifiers.answers.expression import Node, parse_group
from steerkit.verifiers.answers.model import Matrix
from steerkit.verifiers.answers.tokens import Number, Token, split

MAX_CELLS = 100
_FENCES = {"pmatrix": "", "bmatrix": "", "matrix": "", "array": "", "smallmatrix": "", "Bmatrix": "", "vmatrix": "|"}


def read_matrix(tokens: list[Token]) -> Matrix:
    r"""``\begin{pmatrix} ... \end{pmatrix}`` and its kin, times a formula in front.

    Raises:
        Unreadable: rows of different lengths, anything behind it, an environment that is no matrix.
    """
    start = next(index for index, token in enumerate(tokens) if token.value == "begin")
    factor = tokens[:start]
    fenced = bool(factor) and factor[-1].value in ("(", "[") and tokens[-1].value in (")", "]")
    if fenced:
        factor, tokens = factor[:-1], tokens[:-1]
    environment, at = _environment(tokens, start + 1)
    if environment == "array":
        _, at = _environment(tokens, at)  # the alignment of its columns
    end = len(tokens) - 1
    while end > at and tokens[end].value != "end":
        end -= 1
    closing, behind = _environment(tokens, end + 1)
    if closing != environment or behind != len(tokens) or environment not in _FENCES:
        raise Unreadable("a matrix with something behind it, or another environment")
    rows = [row for row in split(tokens[at:end], frozenset([r"\\"]))[0] if row]
    cells = [[parse_group(cell) for cell in split(row, frozenset(["&"]))[0]] for row in rows]
    if not cells or len({len(row) for row in cells}) != 1 or len(cells) * len(cells[0]) > MAX_CELLS:
        raise Unreadable("rows of different lengths, or too many")
    if factor:
        factor = factor[:-1] if factor[-1].value == "*" else factor
        minus_one: Node = ("num", Number(Fraction(-1)))
        scalar = minus_one if [token.value for token in factor] == ["-"] else parse_group(factor)
        cells = [[("mul", scalar, cell) for cell in row] for row in cells]
    return Matrix(tuple(map(tuple, cells)), _FENCES[environment])


def _environment(tokens: list[Token], at: int) -> tuple[str, int]:
    """The braced word at ``at`` and the index behind it."""
    if at >= len(tokens) or tokens[at].value != "{":
        raise Unreadable("an environment without its name")
    end = next((k for k in range(at, len(tokens)) if tokens[k].value == "}"), -1)
    if end < 0:
        raise Unreadable("an environment without its name")
    return "".join(token.value for token in tokens[at + 1 : end]), end + 1
