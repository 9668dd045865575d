r"""From the text of an answer to what it says."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

from steerkit.verifiers.answers import words
from steerkit.verifiers.answers.compare import same
from steerkit.verifiers.answers.errors import Unreadable
from steerkit.verifiers.answers.expression import parse_group, variables, without_braces
from steerkit.verifiers.answers.matrix import read_matrix
from steerkit.verifiers.answers.model import Answer, Choice, Equation, Ratio, Region, Row, Several, Text, Value
from steerkit.verifiers.answers.normal import normalise
from steerkit.verifiers.answers.numeric import evaluate
from steerkit.verifiers.answers.regions import inequality, region
from steerkit.verifiers.answers.tokens import Number, Token, matching, split, tokenise
from steerkit.verifiers.answers.value import read_value

_SEPARATORS = frozenset([",", ";", "and", "or"])
_RELATIONS = frozenset(["=", "approx", "in", "<", ">", "le", "ge", "ne"])
_ORDERS = frozenset(["<", ">", "le", "ge", "ne"])
_THOUSANDS = re.compile(r"[^\d,]*(?<!\d)\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])[^,]*\Z")
_CLOSERS = {"(": (")", "]"), "[": ("]", ")"), r"\{": (r"\}",), "langle": ("rangle",)}
MAX_ITEMS = 100


def read(text: str, thousands: bool = True, scientific: bool = True) -> Answer:
    """What ``text`` says.

    Args:
        thousands: read ``1,722`` as one number; False: as two answers.
        scientific: read ``6e-10`` as one number; False: as 6 e - 10.

    Raises:
        Unreadable: it is nothing that this module knows.
    """
    text = normalise(text)
    plain = words.plain(text)
    if not plain:
        raise Unreadable("empty")
    in_font = text.startswith("\\") and plain != text and text.endswith("}") and text.count("\\") == 1
    special = words.read_time(plain) or words.read_numeral(plain) or words.read_choice(plain)
    if special is not None:
        return special
    if in_font and len(plain) == 1 and plain.isalpha():
        return Choice(plain.upper()) if plain.isupper() else Value(("var", plain))
    if (in_font or plain == text) and words.is_sentence(plain):
        return Text(words.words(plain))
    if in_font:
        return read(plain, thousands, scientific)
    _, rest = words.split_label(plain if plain.startswith("(") else text)
    if rest != text and rest != plain:
        text = normalise(rest)
    if thousands:
        text = _join_thousands(text)
    if not scientific:
        text = re.sub(r"(?<=\d)e(?=[-+]?\d)", " e ", text)
    tokens = tokenise(text)
    if len(tokens) == 1 and (tokens[0].kind == "op" or tokens[0].value in _RELATIONS):
        return Text(tokens[0].value)  # the sign that was asked for: <, =, \\div
    return _answers(tokens)


def _join_thousands(text: str) -> str:
    r"""``58,500`` is one number, ``27,54,108`` are three: each comma must stand between groups of three digits.

    With spaces behind some commas, these separate: ``1,000, 2,000``. Between brackets, commas always separate.
    """
    if not re.search(r"\d,\d{3}", text) or any(bracket in text for bracket in ("(", "[", "{")):
        return text
    pieces = re.split(r"(,\s|;|\band\b|\bor\b)", text)
    return "".join(piece.replace(",", "") if _THOUSANDS.match(piece) else piece for piece in pieces)


def _answers(tokens: list[Token]) -> Answer:
    """One answer, or several between separators."""
    tokens = without_braces(tokens)
    parts, separators = split(tokens, _SEPARATORS)
    if len(parts) > 1:
        # "2, 3, and 4": a comma before "and" separates nothing.
        empty = [k for k in range(1, len(parts) - 1) if not parts[k] and separators[k] in ("and", "or")]
        parts = [part for k, part in enumerate(parts) if k not in empty]
        separators = [separator for k, separator in enumerate(separators) if k + 1 not in empty]
    if len(parts) > MAX_ITEMS:
        raise Unreadable("too many answers")
    if len(parts) == 1:
        return _related(tokens)
    if _is_chain_of_orders(parts):
        return inequality(parts, separators)
    items = [_related(part) for part in parts]
    flat = list(_flat(items))
    if set(separators) == {"or"} and all(same(flat[0], item) for item in flat[1:]):
        return flat[0]  # several forms of one value
    name = items[0].name if items[0].name and not any(item.name for item in items[1:]) else ""
    if name:  # n = 2, 5, 13
        flat[0] = replace(flat[0], name="")
    return Several(tuple(flat), name=name)


def _flat(items: list[Answer]) -> tuple[Answer, ...]:
    """The items, with 1 \\pm 2 as the two answers that it is."""
    return tuple(
        part for item in items for part in (item.items if isinstance(item, Several) and not item.braces else (item,))
    )


def _is_chain_of_orders(parts: list[list[Token]]) -> bool:
    return all(any(token.value in _ORDERS for token in part) for part in parts)


# -- relations


def _related(tokens: list[Token]) -> Answer:
    r"""``x = 5``, ``x \in [0, 1]``, ``x < 3``, ``y = 2x + 3``, ``2 + 3 = 5``, or no relation at all."""
    if not tokens:
        raise Unreadable("nothing between two separators")
    sides, relations = split(tokens, _RELATIONS)
    if not relations:
        return _object(tokens)
    if set(relations) & _ORDERS:
        return inequality([tokens], [])
    if "in" in relations:
        name = _name(sides[0])
        if len(relations) > 1 or not name:
            raise Unreadable("a chain of relations, or something else than a name in a set")
        return replace(_object(sides[1]), name=name)
    if not sides[0] and relations[0] == "approx":
        sides, relations = sides[1:], relations[1:]
        if not relations:
            return _object(sides[0])
    if relations == ["="] and not _name(sides[0]) and _name(sides[1]):
        sides = [sides[1], sides[0]]  # 5 = x
    return _equation(sides, relations)


def _equation(sides: list[list[Token]], relations: list[str]) -> Answer:
    name = _name(sides[0])
    if name:
        values = [_object(side) for side in sides[1:]]
        relations = relations[1:]
    else:
        left = _object(sides[0])
        if not isinstance(left, Value):
            raise Unreadable("an equation of something else than formulas")
        if variables(left.node):
            return _general(left, [_object(side) for side in sides[1:]])
        values = [left] + [_object(side) for side in sides[1:]]
    # 7/2 = 3.5 says one thing twice; 4 = 5 says nothing. What is only approximate may be rounded.
    for value, relation in zip(values[1:], relations, strict=True):
        exact = relation == "=" and same(values[0], value)
        if not exact and not (relation == "approx" and _rounded(values[0], value)):
            raise Unreadable("sides that differ")
    return replace(values[0], name=name)


def _general(left: Value, rights: list[Answer]) -> Answer:
    right = rights[-1]
    if len(rights) > 1 or not isinstance(right, Value):
        raise Unreadable("a chain of equations")
    return Equation(left.node, right.node, right)


def _rounded(exact: Answer, rounded: Answer) -> bool:
    """Whether the second is the first, rounded to the places that it has."""
    if not (isinstance(exact, Value) and isinstance(rounded, Value)) or rounded.node[0] not in ("num", "neg"):
        return False
    number = rounded.node[-1][-1] if rounded.node[0] == "neg" else rounded.node[1]
    if not isinstance(number, Number) or variables(exact.node):
        return False
    unit = number.ulp or Fraction(1)
    difference = evaluate(("add", exact.node, ("neg", rounded.node)), {})
    return bool(abs(difference) <= (unit if isinstance(difference, Fraction) else float(unit)))


def _name(tokens: list[Token]) -> str:
    """The name that a left side is, or an empty text: ``x``, ``f(x)``, ``AB``, ``(a, b)``, ``\\text{Area}``."""
    if not tokens:
        raise Unreadable("a relation without a left side")
    if all(token.kind == "text" for token in tokens):
        return words.words(" ".join(token.value for token in tokens))
    if tokens[0].value == "(" and matching(tokens, 0) == len(tokens) - 1:
        parts, _ = split(tokens[1:-1], frozenset([","]))
        if len(parts) > 1:
            return "(" + ",".join(_name(part) for part in parts) + ")"
    if tokens[0].kind == "word" and len(tokens) > 3 and tokens[1].value == "(" and tokens[-1].value == ")":
        inside = tokens[2:-1]  # f(x, y)
        if len(tokens[0].value) == 1 and all(t.kind == "word" or t.value == "," for t in inside) and len(inside) > 1:
            return "".join(token.value for token in tokens)
    if all(token.kind == "word" and token.value.isupper() for token in tokens):
        return "".join(token.value for token in tokens)  # the segment AB
    try:
        node = parse_group(tokens)
    except Unreadable:
        return ""
    return str(node[1]) if node[0] == "var" else ""


# -- objects


def _object(tokens: list[Token]) -> Answer:
    tokens = without_braces(tokens)
    if not tokens:
        raise Unreadable("empty")
    found = region(tokens)
    if found is not None:
        return found
    if any(token.value == "begin" for token in tokens):
        return read_matrix(tokens)
    tokens = _without_ornaments(tokens)
    first, last = tokens[0], tokens[-1]
    if any(token.value in ("pm", "mp") for token in tokens) and first.value != r"\{":
        return _plus_minus(tokens)
    if first.value in _CLOSERS and last.value in _CLOSERS[first.value] and matching(tokens, 0) == len(tokens) - 1:
        inside, separators = split(tokens[1:-1], frozenset([",", ";"]))
        if first.value == r"\{":
            described = _set_builder(tokens[1:-1])
            if described is not None:
                return described
            return Several(_flat([_related(part) for part in inside if part]), braces=True)
        if separators:
            if len(inside) > MAX_ITEMS or (first.value, last.value) in (("(", "]"), ("[", ")")):
                raise Unreadable("too many items, or brackets of two kinds")
            return Row(tuple(_related(part) for part in inside), first.value, last.value)
        if first.value != "langle" and (first.value, last.value) in (("(", ")"), ("[", "]")) and _has_text(inside[0]):
            return _related(inside[0])
    ratio, colons = split([_colon_for_to(token) for token in tokens], frozenset([":"]))
    if colons:
        return Ratio(tuple(parse_group(part) for part in ratio))
    return read_value(tokens)


def _without_ornaments(tokens: list[Token]) -> list[Token]:
    """The point in ``P(2, 4)``, and the row in ``(1, 3)^T``: as vectors they are written either way."""
    named = tokens[0].kind == "word" and len(tokens[0].value) == 1 and tokens[0].value.isupper()
    if named and len(tokens) > 3 and tokens[1].value == "(" and matching(tokens, 1) == len(tokens) - 1:
        return tokens[1:] if _commas(tokens[2:-1]) else tokens
    if tokens[0].value in _CLOSERS and len(tokens) > 3:
        end = matching(tokens, 0)
        power = [token.value for token in tokens[end + 1 :] if token.value not in ("{", "}")]
        if power in (["^", "T"], ["^", "top"]) and _commas(tokens[1:end]):
            return tokens[: end + 1]
    return tokens


def _commas(tokens: list[Token]) -> bool:
    return len(split(tokens, frozenset([","]))[0]) > 1


def _set_builder(tokens: list[Token]) -> Answer | None:
    r"""``\{x : x \ge 4\}`` and ``\{x \in \mathbb{R} \mid x \ne 1\}``; None if it is a list of elements."""
    parts, bars = split(tokens, frozenset([":", "|"]))
    if len(bars) != 1:
        return None
    name = split(parts[0], frozenset(["in"]))[0]
    if len(name) == 2 and [token.value for token in name[1]] != ["mathbbR"]:
        raise Unreadable("a set of other numbers than the real ones")
    found = _answers(parts[1])
    if not isinstance(found, Region) or found.name != _name(name[0]):
        return None
    return found


def _colon_for_to(token: Token) -> Token:
    return Token("op", ":") if token.kind == "text" and token.value == "to" else token


def _has_text(tokens: list[Token]) -> bool:
    return any(token.kind == "text" for token in tokens)


def _plus_minus(tokens: list[Token]) -> Answer:
    signs = [index for index, token in enumerate(tokens) if token.value in ("pm", "mp")]
    if len(signs) > 1:
        raise Unreadable("several plus-minus signs")
    at = signs[0]
    pair = []
    for sign in "+-":
        pair.append(_object([*tokens[:at], Token("op", sign), *tokens[at + 1 :]]))
    return Several(tuple(pair))
