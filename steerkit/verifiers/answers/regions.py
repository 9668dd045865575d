r"""Sets of real numbers: intervals, their unions, inequalities in one variable, ``\mathbb{R} \setminus \{2\}``."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from steerkit.verifiers.answers.errors import Unreadable
from steerkit.verifiers.answers.expression import Node, parse_group, variables, without_braces
from steerkit.verifiers.answers.model import Answer, Inequality, Piece, Region, Row, Several, Text, Value
from steerkit.verifiers.answers.numeric import close, evaluate
from steerkit.verifiers.answers.tokens import Token, matching, split

_LINE = Piece(None, None)
MAX_PIECES = 40
_ORDERS = frozenset(["<", ">", "le", "ge", "ne"])
_FLIPPED = {"<": ">", ">": "<", "le": "ge", "ge": "le"}


def region(tokens: list[Token]) -> Region | None:
    r"""A union, a difference, ``\mathbb{R}``, a half-open or infinite interval; None if it is something else.

    ``(1, 2)`` and ``[1, 2]`` alone stay rows: only what they are compared with tells whether they are intervals.
    """
    kept, minus = split(tokens, frozenset(["setminus", "-"] if _mentions_line(tokens) else ["setminus"]))
    if len(kept) > 2:
        raise Unreadable("a chain of set differences")
    parts, cups = split(kept[0], frozenset(["cup"]))
    if not (minus or cups or _mentions_line(tokens) or _is_interval_for_sure(tokens) or _is_empty(tokens)):
        return None
    if _is_empty(tokens):
        return Region(())
    pieces = tuple(piece for part in parts for piece in _pieces(part))
    removed = _points(kept[1]) if minus else ()
    if len(pieces) + len(removed) > MAX_PIECES:
        raise Unreadable("too many intervals")
    return Region(pieces, removed)


def _is_empty(tokens: list[Token]) -> bool:
    values = [token.value for token in tokens]
    return values in (["emptyset"], [r"\{", r"\}"])


def _mentions_line(tokens: list[Token]) -> bool:
    return any(token.value == "mathbbR" for token in tokens)


def _is_interval_for_sure(tokens: list[Token]) -> bool:
    if not tokens or tokens[0].value not in ("(", "[") or tokens[-1].value not in (")", "]"):
        return False
    if matching(tokens, 0) != len(tokens) - 1:
        return False
    parts, _ = split(tokens[1:-1], frozenset([",", ";"]))
    if len(parts) != 2:
        return False
    mixed = (tokens[0].value, tokens[-1].value) in (("(", "]"), ("[", ")"))
    return mixed or any(token.value == "infty" for part in parts for token in part)


def _pieces(tokens: list[Token]) -> list[Piece]:
    tokens = without_braces(tokens)
    if [token.value for token in tokens] == ["mathbbR"]:
        return [_LINE]
    if len(tokens) < 3 or matching(tokens, 0) != len(tokens) - 1:
        raise Unreadable("a part of a union that is neither an interval nor a set")
    if tokens[0].value == r"\{":
        return [Piece(point, point, True, True) for point in _points(tokens)]
    parts, _ = split(tokens[1:-1], frozenset([",", ";"]))
    if tokens[0].value not in ("(", "[") or tokens[-1].value not in (")", "]") or len(parts) != 2:
        raise Unreadable("a part of a union that is no interval")
    ends = [_end(part) for part in parts]
    for end, sign in zip(ends, (-1, 1), strict=True):
        if end[0] == "inf" and (end[1] if len(end) > 1 else 1) != sign:
            raise Unreadable("an interval that starts at infinity")
    low, high = (None if end[0] == "inf" else end for end in ends)
    if any(node is not None and variables(node) for node in (low, high)):
        raise Unreadable("an interval with a variable end")
    if not _increasing(low, high):
        raise Unreadable("an interval that ends before it starts")
    low_closed, high_closed = tokens[0].value == "[", tokens[-1].value == "]"
    if (low is None and low_closed) or (high is None and high_closed):
        raise Unreadable("an interval that is closed at infinity")
    return [Piece(low, high, low_closed, high_closed)]


def _increasing(low: Node | None, high: Node | None) -> bool:
    """Whether an interval may have these ends."""
    if low is None or high is None:
        return True
    difference = evaluate(("add", high, ("neg", low)), {})
    return not getattr(difference, "imag", 0) and bool(difference > 0)


def _end(tokens: list[Token]) -> Node:
    """A formula, or ``("inf", 1)`` and ``("inf", -1)``."""
    node = parse_group(tokens)
    if node == ("inf",):
        return ("inf", 1)
    if node == ("neg", ("inf",)):
        return ("inf", -1)
    return node


def _points(tokens: list[Token]) -> tuple[Node, ...]:
    if len(tokens) < 3 or tokens[0].value != r"\{" or matching(tokens, 0) != len(tokens) - 1:
        raise Unreadable("a set of points was expected")
    parts, _ = split(tokens[1:-1], frozenset([",", ";"]))
    nodes = tuple(parse_group(part) for part in parts)
    if any(variables(node) for node in nodes):
        raise Unreadable("a variable in a set of points")
    return nodes


# -- inequalities


def inequality(parts: list[list[Token]], separators: list[str]) -> Answer:
    r"""``x < 3``, ``1 < x \le 2``, ``x < -1 or x > 3``; with several variables, one relation between two sides."""
    if "or" in separators and set(separators) - {"or"}:
        raise Unreadable("'and' and 'or' together")
    name = ""
    pieces: list[Piece] = []
    removed: list[Node] = []
    for part in parts:
        sides, relations = split(part, _ORDERS)
        if not relations:
            raise Unreadable("an inequality beside something else")
        nodes = [parse_group(side) for side in sides]
        found = _bounds(nodes, relations)
        if found is None:
            if len(parts) == 1 and len(nodes) == 2:
                return _general(nodes, relations[0])
            raise Unreadable("inequalities in several variables")
        variable, piece, hole = found
        if name and variable != name:
            raise Unreadable("inequalities in several variables")
        name = variable
        if hole is not None:
            removed.append(hole)
        if piece is not None:
            pieces.append(piece)
    if separators and "or" not in separators:
        if len(pieces) > 1:
            raise Unreadable("inequalities joined by 'and'")
    elif removed and (pieces or separators):
        raise Unreadable("an exclusion joined by 'or'")
    return Region(tuple(pieces) or (_LINE,), tuple(removed), name)


def _bounds(nodes: list[Node], relations: list[str]) -> tuple[str, Piece | None, Node | None] | None:
    """(variable, interval, excluded point) of ``a < x``, ``x < a``, ``a < x < b``; None for anything else."""
    places = [index for index, node in enumerate(nodes) if node[0] == "var"]
    if len(places) != 1 or any(variables(node) for index, node in enumerate(nodes) if index != places[0]):
        return None
    at = places[0]
    if relations == ["ne"]:
        return nodes[at][1], None, nodes[1 - at]
    low = high = None
    low_closed = high_closed = False
    if "ne" in relations or (len(nodes), at) not in ((2, 0), (2, 1), (3, 1)):
        return None
    for index, node in enumerate(nodes):
        if index == at:
            continue
        relation = relations[min(index, at)]
        if index < at:  # a < x is x > a
            relation = _FLIPPED[relation]
        infinite = node in (("inf",), ("neg", ("inf",)))
        if relation in (">", "ge"):
            if low is not None:
                return None
            low, low_closed = (None, False) if infinite else (node, relation == "ge")
        else:
            if high is not None:
                return None
            high, high_closed = (None, False) if infinite else (node, relation == "le")
    return nodes[at][1], Piece(low, high, low_closed, high_closed), None


def _general(nodes: list[Node], relation: str) -> Inequality:
    left, right = nodes
    if relation in (">", "ge"):
        left, right = right, left
    return Inequality(("add", left, ("neg", right)), relation in ("<", ">"), relation == "ne")


# -- comparison


_IN_WORDS = {
    **dict.fromkeys(("all real numbers", "all reals", "real numbers", "any real number"), Region((_LINE,))),
    **dict.fromkeys(("empty set", "no solution", "no solutions", "no real solutions", "none"), Region(())),
}


def as_region(answer: Answer) -> Region | None:
    """The set of numbers that an answer can be read as."""
    if isinstance(answer, Region):
        return answer
    if isinstance(answer, Text):
        return _IN_WORDS.get(answer.words)
    if isinstance(answer, Row) and len(answer.items) == 2 and {answer.opening, answer.closing} <= set("()[]"):
        low, high = answer.items
        if not isinstance(low, Value) or not isinstance(high, Value) or variables(low.node) | variables(high.node):
            return None
        if _increasing(low.node, high.node):
            return Region((Piece(low.node, high.node, answer.opening == "[", answer.closing == "]"),))
    if isinstance(answer, Several) and answer.braces:
        nodes = [item.node for item in answer.items if isinstance(item, Value) and not variables(item.node)]
        if len(nodes) == len(answer.items):
            return Region(tuple(Piece(node, node, True, True) for node in nodes))
    return None


def same_region(a: Region, b: Region) -> bool:
    """Whether two regions are the same set.

    Between two neighbours of all the ends that occur, and at each end, both must contain or both miss the number.
    """
    ends = _sorted_ends(a, b)
    return all(_contains(a, k, ends) == _contains(b, k, ends) for k in range(len(ends))) and all(
        _contains_gap(a, k, ends) == _contains_gap(b, k, ends) for k in range(-1, len(ends))
    )


def _sorted_ends(a: Region, b: Region) -> list[Node]:
    """The different ends, in order."""
    nodes = [end for r in (a, b) for piece in r.pieces for end in (piece.low, piece.high) if end is not None]
    nodes += [*a.removed, *b.removed]
    distinct: list[tuple[Any, Node]] = []
    for node in nodes:
        value = evaluate(node, {})
        if getattr(value, "imag", 0):
            raise Unreadable("an end that is not real")
        if not any(_equal(node, other) for _, other in distinct):
            distinct.append((value, node))
    return [node for _, node in sorted(distinct, key=lambda pair: _sort_key(pair[0]))]


def _sort_key(value: Any) -> Fraction:
    if isinstance(value, Fraction):
        return value
    sign, mantissa, exponent, _ = value._mpf_
    return Fraction(-mantissa if sign else mantissa) * Fraction(2) ** exponent


def _equal(a: Node, b: Node) -> bool:
    return close(lambda fine: evaluate(a, {}, fine), lambda fine: evaluate(b, {}, fine))


def _place(node: Node | None, ends: list[Node], infinite: int) -> int:
    if node is None:
        return infinite
    return next(index for index, end in enumerate(ends) if _equal(node, end))


def _contains(r: Region, index: int, ends: list[Node]) -> bool:
    """Whether the end number ``index`` belongs to the region."""
    if any(_equal(node, ends[index]) for node in r.removed):
        return False
    for piece in r.pieces:
        low, high = _place(piece.low, ends, -1), _place(piece.high, ends, len(ends))
        if low < index < high:
            return True
        if low == high == index and piece.low_closed and piece.high_closed:
            return True
        if low < high and ((index == low and piece.low_closed) or (index == high and piece.high_closed)):
            return True
    return False


def _contains_gap(r: Region, index: int, ends: list[Node]) -> bool:
    """Whether the open stretch behind the end number ``index`` (-1: before the first) belongs to the region."""
    return any(
        _place(piece.low, ends, -1) <= index and index + 1 <= _place(piece.high, ends, len(ends)) for piece in r.pieces
    )
