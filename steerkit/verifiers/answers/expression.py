r"""A strict reader of formulas: everything is understood, or the formula is refused.

Trees are tuples ``(operation, *operands)``. The reading is the school's: operators of one rank from left to right
(``1/2x`` is half of x), ``2\frac{1}{3}`` and ``2 1/3`` are mixed numbers, ``e`` and ``i`` are constants, letter case
counts, ``f(x)`` and ``I(0)`` are names. Sums, integrals, limits, determinants and the like are no closed form of an
answer and are refused: else repeating the question would be a right answer.
"""

from __future__ import annotations

from typing import Any

from steerkit.verifiers.answers.errors import Unreadable
from steerkit.verifiers.answers.tokens import FUNCTIONS, Number, Token, matching, names, number

Node = tuple[Any, ...]

MAX_DEPTH = 40
MAX_TOKENS = 600
GREEK = names(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega hbar ell odot mho"
)
_ACCENTS = names("hat vec bar dot ddot tilde overline overrightarrow widehat widetilde underline")
_FIGURES = names("angle triangle measuredangle")
_INVERSE = {"sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth"}
_OPEN = {"(": ")", "[": "]", "{": "}"}
_FENCES = {"lfloor": "rfloor", "lceil": "rceil"}


def parse(tokens: list[Token]) -> Node:
    """The tree of a formula.

    Raises:
        Unreadable: it is not a formula from end to end.
    """
    parser = _Parser(tokens)
    node = parser.sum()
    if parser.at < len(parser.tokens):
        raise Unreadable(f"{parser.tokens[parser.at].value!r} in a formula")
    return node


def parse_group(tokens: list[Token]) -> Node:
    """The tree of a formula, perhaps in braces that enclose all of it."""
    return parse(without_braces(tokens))


def without_braces(tokens: list[Token]) -> list[Token]:
    """The tokens without braces that enclose all of them."""
    while len(tokens) > 1 and tokens[0].value == "{" and matching(tokens, 0) == len(tokens) - 1:
        tokens = tokens[1:-1]
    return tokens


def variables(node: Node) -> set[str]:
    """The names in a tree."""
    if node[0] == "var":
        return {node[1]}
    return set().union(*(variables(part) for part in node[1:] if isinstance(part, tuple) and part))


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self.tokens: list[Token] = []
        for token in tokens:
            if token.kind == "word" and token.value.isupper() and len(token.value) > 2:
                self.tokens.append(Token("var", token.value, token.spaced))  # SRMC is one name, RC a product
            elif token.kind == "word":
                for index, letter in enumerate(token.value):
                    self.tokens.append(Token("var", letter, token.spaced and index == 0))
            else:
                self.tokens.append(token)
        self.at = self.depth = self.bars = 0
        if len(self.tokens) > MAX_TOKENS:
            raise Unreadable("too long a formula")

    # -- looking at tokens

    def peek(self, ahead: int = 0) -> Token:
        index = self.at + ahead
        return self.tokens[index] if index < len(self.tokens) else Token("end", "")

    def take(self) -> Token:
        token = self.peek()
        self.at += 1
        return token

    def is_op(self, *values: str) -> bool:
        token = self.peek()
        return token.kind == "op" and token.value in values

    def expect(self, value: str) -> None:
        if self.take().value != value:
            raise Unreadable(f"{value!r} was expected")

    # -- the grammar

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        sign = self.take().value if self.is_op("+", "-") else "+"
        node = self.term()
        node = ("neg", node) if sign == "-" else node
        while self.is_op("+", "-"):
            minus = self.take().value == "-"
            right = self.term()
            node = ("add", node, ("neg", right) if minus else right)
        self.depth -= 1
        return node

    def term(self) -> Node:
        node = self.signed_factor()
        while True:
            if self.is_op("*"):
                self.take()
                node = ("mul", node, self.signed_factor())
            elif self.is_op("/"):
                self.take()
                node = ("div", node, self.signed_factor())
            elif self.starts_factor():
                self.refuse_digits()
                node = ("mul", node, self.factor())
            else:
                return node

    def signed_factor(self) -> Node:
        if self.is_op("-"):
            self.take()
            return ("neg", self.factor())
        return self.factor()

    def starts_factor(self) -> bool:
        token = self.peek()
        if token.kind == "op":
            return token.value in _OPEN or (token.value == "|" and self.bars == 0)
        if token.kind == "cmd":
            return token.value not in ("rfloor", "rceil", "rangle", "end", "pm", "mp")
        return token.kind in ("num", "var")

    def refuse_digits(self) -> None:
        """``5 7`` is no product; ``x2`` may be a power, an index or a product, ``(a+b)1`` a slip."""
        token, before = self.peek(), self.tokens[self.at - 1]
        power = before.value in (")", "]", "}") and self.peek(1).value == "^"  # (n-2)2^n
        if token.kind == "num" and (before.kind == "num" or not (token.spaced or power)):
            raise Unreadable("a number behind another factor")

    def factor(self) -> Node:
        node = self.postfix(self.atom())
        if self.is_op("^"):
            self.take()
            exponent = self.argument(whole_number=True)
            if self.is_op("^"):  # 2^3^2 is 2^(3^2)
                self.take()
                exponent = ("pow", exponent, self.argument(whole_number=True))
            return self.postfix(("pow", node, exponent))
        return node

    def postfix(self, node: Node) -> Node:
        while self.is_op("!", "°"):
            if self.take().value == "°":
                node = ("deg", node)
            elif self.is_op("!"):
                raise Unreadable("a double factorial")
            else:
                node = ("fact", node)
        return node

    def atom(self) -> Node:
        token = self.take()
        if token.kind == "num":
            return self.mixed(number(token.value))
        if token.kind == "var":
            return self.name(token.value)
        if token.kind == "op" and token.value in _OPEN:
            bars, self.bars = self.bars, 0
            node = self.sum()
            self.expect(_OPEN[token.value])
            self.bars = bars
            return node
        if token.kind == "op" and token.value == "|":
            self.bars += 1
            node = self.sum()
            self.expect("|")
            self.bars -= 1
            return ("abs", node)
        if token.kind == "cmd":
            return self.command(token.value)
        raise Unreadable(f"{token.value or 'the end'!r} where a value was expected")

    def mixed(self, value: Number) -> Node:
        r"""``2\frac{1}{3}`` and ``2 1/3``: an integer and a proper fraction of plain integers."""
        whole = Number(value.value) if value.ulp is None and value.value.denominator == 1 else None
        start = self.at
        if whole is not None and self.peek() == Token("cmd", "frac", self.peek().spaced):
            self.take()
            top, bottom = self.argument(), self.argument()
            if _proper(top, bottom):
                return ("num", Number(whole.value + top[1].value / bottom[1].value))
            if top[0] == "num" == bottom[0]:
                raise Unreadable("a whole number before an improper fraction")
            self.at = start
        kinds = [self.peek(k).kind for k in range(3)]
        if whole is not None and kinds == ["num", "op", "num"] and self.peek().spaced and self.peek(1).value == "/":
            top, bottom = ("num", number(self.peek().value)), ("num", number(self.peek(2).value))
            if _proper(top, bottom):
                self.at += 3
                return ("num", Number(whole.value + top[1].value / bottom[1].value))
        return ("num", value)

    def name(self, name: str) -> Node:
        """A variable with its index, primes and, for a function's name, its argument."""
        if name in ("e", "i") and not self.is_op("_"):
            return ("const", name)
        while self.is_op("_", "'"):
            name += self.take().value
            if name.endswith("_"):
                name += self.raw()
        # f(x), I(0), u(t): one token between the brackets. k(d-k) is a product, and so is n(n).
        if self.peek().value == "(" and self.peek(2).value == ")":
            inner = self.peek(1)
            if (inner.kind in ("num", "var") or inner.value in GREEK) and inner.value != name:
                self.at += 3
                return ("var", f"{name}({inner.value})")
        return ("var", name)

    def command(self, name: str) -> Node:
        if name == "frac":
            return self.derivative() or ("div", self.argument(), self.argument())
        if name == "binom":
            return ("binom", self.argument(), self.argument())
        if name == "sqrt":
            if self.is_op("["):
                self.take()
                degree = self.sum()
                self.expect("]")
                return ("root", self.argument(whole_number=True), degree)
            return ("root", self.argument(whole_number=True), ("num", Number(_TWO)))
        if name in FUNCTIONS:
            return self.function(name)
        if name in _FENCES:
            node = self.sum()
            self.expect(_FENCES[name])
            return ("floor" if name == "lfloor" else "ceil", node)
        if name in GREEK:
            return self.name(f"\\{name}")
        if name == "pi":
            return ("const", "pi")
        if name == "infty":
            return ("inf",)
        if name in _ACCENTS:
            return self.name(f"\\{name}({self.raw()})")
        if name in _FIGURES:
            letters = ""
            while self.peek().kind == "var" or (letters and self.is_op("_")):
                letters += self.take().value if self.peek().kind == "var" else self.take().value + self.raw()
            return ("var", f"\\{name} {letters}")
        raise Unreadable(f"\\{name}")

    def derivative(self) -> Node | None:
        r"""The name that ``\frac{dx}{dt}`` is: the letters d don't cancel. None for a mere quotient."""
        mark = self.at
        if self.is_op("{") and self.peek(1).value == "d" and self.peek(2).value != "}":
            top = self.raw()
            if self.is_op("{") and self.peek(1).value == "d" and self.peek(2).value != "}":
                return ("var", f"d({top})/d({self.raw()})")
        self.at = mark
        return None

    def function(self, name: str) -> Node:
        power: Node | None = None
        base: Node | None = None
        while self.is_op("^", "_"):
            if self.take().value == "_":
                base = self.argument()
            else:
                power = self.argument(whole_number=True)
        if base is not None and name != "log":
            raise Unreadable(f"an index of \\{name}")
        if power is not None and power[0] == "neg" and power[1] == ("num", Number(_ONE)) and name in _INVERSE:
            name, power = f"arc{name}", None
        argument = self.function_argument()
        node: Node = ("log", argument, base) if base is not None else ("fn", name, argument)
        return node if power is None else ("pow", node, power)

    def function_argument(self) -> Node:
        """A bracketed group, or a product without brackets and functions: ``\\sin 2t`` but ``\\sin a \\cos b``."""
        if self.is_op("(", "[", "{", "|"):
            return self.atom()
        sign = bool(self.is_op("-") and self.take())
        node = self.factor()
        while (self.peek().kind in ("num", "var") or self.peek().value in GREEK | {"pi", "frac", "sqrt"}) and (
            self.peek().kind != "op"
        ):
            self.refuse_digits()
            node = ("mul", node, self.factor())
        return ("neg", node) if sign else node

    # -- arguments of commands

    def argument(self, whole_number: bool = False) -> Node:
        r"""What a command or ``^`` applies to: a group or one token, of which ``\frac12`` takes one digit each."""
        token = self.peek()
        if token.kind == "num" and not whole_number and token.value.isdigit() and len(token.value) > 1:
            self.tokens[self.at : self.at + 1] = [Token("num", digit) for digit in token.value]
            token = self.peek()
        if token.kind == "num":
            self.at += 1
            return ("num", number(token.value))
        if self.is_op("-"):
            self.take()
            return ("neg", self.argument(whole_number))
        if token.kind == "var":
            self.at += 1
            return ("const", token.value) if token.value in ("e", "i") else ("var", token.value)
        return self.atom()

    def raw(self) -> str:
        """The text of the next group or token, without spaces."""
        if not self.is_op("{"):
            if self.peek().kind == "end":
                raise Unreadable("a command without its argument")
            return self.take().value
        depth, start = 0, self.at + 1
        while self.at < len(self.tokens):
            value = self.take().value
            depth += (value == "{") - (value == "}")
            if depth == 0:
                return "".join(token.value for token in self.tokens[start : self.at - 1])
        raise Unreadable("an open brace")


_ONE, _TWO = number("1").value, number("2").value


def _proper(top: Node, bottom: Node) -> bool:
    if top[0] != "num" or bottom[0] != "num" or top[1].ulp is not None or bottom[1].ulp is not None:
        return False
    return bool(0 < top[1].value < bottom[1].value)
