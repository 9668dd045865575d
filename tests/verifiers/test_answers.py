"""The strict reader against independent truths: Python's own arithmetic, sympy, and brute force."""

import random
from fractions import Fraction

import pytest
import sympy

from steerkit.verifiers.answers import Unreadable, read, same
from steerkit.verifiers.answers.expression import parse_group
from steerkit.verifiers.answers.model import Region, Value
from steerkit.verifiers.answers.normal import normalise
from steerkit.verifiers.answers.numeric import equal, evaluate
from steerkit.verifiers.answers.regions import same_region
from steerkit.verifiers.answers.tokens import tokenise
from steerkit.verifiers.answers.units import parse_unit


def node(text: str):
    return parse_group(tokenise(normalise(text)))


# -- formulas


def random_formula(rng: random.Random, depth: int) -> tuple[str, str, object]:
    """The same random formula as LaTeX, as plain text, and as a sympy expression."""
    if depth == 0:
        if rng.random() < 0.5:
            number = rng.randrange(1, 20)
            return str(number), str(number), sympy.Integer(number)
        name = rng.choice("xyab")
        return name, name, sympy.Symbol(name)
    (la, pa, sa), (lb, pb, sb) = random_formula(rng, depth - 1), random_formula(rng, depth - 1)
    kind = rng.randrange(6)
    if kind == 0:
        return rf"\left({la}+{lb}\right)", f"({pa}+{pb})", sa + sb
    if kind == 1:
        return rf"\left({la}-{lb}\right)", f"({pa} - {pb})", sa - sb
    if kind == 2:
        return rf"({la}) \cdot ({lb})", f"({pa})*({pb})", sa * sb
    if kind == 3:
        return rf"\frac{{{la}}}{{1+{{({lb})}}^2}}", f"({pa})/(1+({pb})^2)", sa / (1 + sb**2)
    if kind == 4:
        return rf"\sqrt{{1+({la})^{{2}}}}", f"sqrt(1+({pa})**2)", sympy.sqrt(1 + sa**2)
    return rf"\cos\left({la}\right)", f"cos({pa})", sympy.cos(sa)


def test_random_formulas_have_sympys_value_in_both_spellings() -> None:
    rng = random.Random(0)
    point = {"x": Fraction(3, 7), "y": Fraction(-5, 4), "a": Fraction(2), "b": Fraction(1, 3)}
    at = {sympy.Symbol(name): sympy.Rational(value.numerator, value.denominator) for name, value in point.items()}
    for _ in range(60):
        latex, plain, truth = random_formula(rng, 3)
        expected = complex(truth.subs(at).evalf(30))
        for text in (latex, plain):
            assert abs(complex(evaluate(node(text), point)) - expected) <= 1e-12 * max(1, abs(expected)), text
        assert equal(node(latex), node(plain))


def test_equality_is_sympys_on_random_pairs() -> None:
    """Pairs that are equal by construction, and pairs that differ by one small term."""
    rng = random.Random(1)
    for _ in range(40):
        latex, plain, _ = random_formula(rng, 2)
        assert equal(node(latex), node(f"({plain}) + x - x"))
        assert not equal(node(latex), node(f"({plain}) + x/10**6"))
        assert not equal(node(latex), node(f"({plain}) + 10^{{-12}}"))


def test_rational_arithmetic_is_exact() -> None:
    rng = random.Random(2)
    for _ in range(200):
        a, b, c, d = (rng.randrange(1, 10**6) for _ in range(4))
        truth = Fraction(a, b) - Fraction(c, d)
        assert evaluate(node(rf"\frac{{{a}}}{{{b}}}-{c}/{d}"), {}) == truth
        off = truth + Fraction(1, 10**40)
        assert not equal(node(rf"\frac{{{a}}}{{{b}}}-{c}/{d}"), node(f"{off.numerator}/{off.denominator}"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\frac12", Fraction(1, 2)),
        (r"\frac1{72}", Fraction(1, 72)),
        (r"\frac{29}4", Fraction(29, 4)),
        (r"-2\frac13", Fraction(-7, 3)),
        ("2 1/3", Fraction(7, 3)),
        ("1/2*3", Fraction(3, 2)),
        ("2^3^2", Fraction(512)),
        ("-2^2", Fraction(-4)),
        ("10^23", Fraction(10) ** 23),
        (r"0.1\overline{6}", Fraction(1, 6)),
        (r".\overline{142857}", Fraction(1, 7)),
        ("1e-3", Fraction(1, 1000)),
        ("-1./3", Fraction(-1, 3)),
        (r"\binom52", Fraction(10)),
        ("5!", Fraction(120)),
        (r"\lfloor -2.5 \rfloor", Fraction(-3)),
        (r"\lceil \pi \rceil", Fraction(4)),
        (r"|-3|+|2|", Fraction(5)),
        (r"||1|-3|", Fraction(2)),
        (r"\sqrt{\frac{49}{4}}", Fraction(7, 2)),
        (r"\sqrt[3]{-8}", Fraction(-2)),
    ],
)
def test_values(text: str, value: Fraction) -> None:
    assert evaluate(node(text), {}) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", "5 7", "x2", "5!!", "(1", "1)", "{1", r"\frac{1}", r"\sqrt", r"\sum_{k=1}^3 k", r"\int x dx", "1+", "*2"),
        *(
            "a b c3",
            r"\foo",
            "\0",
            "\ud800",
            "2/",
            "1..2",
            r"3\frac{5}{4}",
            "9^9^9",
            "99999!",
            "10^{10^{10}}",
            "1e99999",
        ),
    ],
)
def test_what_is_no_formula_is_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        evaluate(node(text), {})


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("x", r"\sqrt{x^2}"),
        (r"|x|", "x"),
        ("x", r"\lfloor x \rfloor"),
        (r"e^{\pi\sqrt{163}}", "262537412640768744"),  # they agree to 12 places behind the point
        (r"\pi", r"\frac{245850922}{78256779}"),
        ("x^3", "x"),
        (r"\sin x", "x"),
        ("R", "r"),
        ("0", "e^{-100}"),
    ],
)
def test_near_misses_differ(a: str, b: str) -> None:
    assert not equal(node(a), node(b))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("0", r"\sqrt{8}-2\sqrt{2}"),
        (r"\sqrt{5+2\sqrt{6}}", r"\sqrt2+\sqrt3"),
        ("n", r"\lfloor n \rfloor"),
        (r"\sin^2 x + \cos^2 x", "1"),
        (r"10x\sqrt{21x}", r"10\sqrt{21x^3}"),  # both are real for x > 0 only
        (r"\binom{n}{2}", "n(n-1)/2"),
        (r"e^{i\pi}", "-1"),
    ],
)
def test_identities_hold(a: str, b: str) -> None:
    assert equal(node(a), node(b))


# -- regions


def test_regions_by_brute_force() -> None:
    """Random unions of intervals with integer ends: same set if and only if same membership on a half-integer grid."""
    rng = random.Random(3)
    grid = [Fraction(k, 2) for k in range(-2, 15)]

    def draw() -> tuple[str, list[bool]]:
        parts, inside = [], [False] * len(grid)
        for _ in range(rng.randrange(1, 4)):
            low = rng.randrange(0, 2)
            high = low + rng.randrange(1, 3)
            left, right = rng.choice("(["), rng.choice(")]")
            parts.append(f"{left}{low},{high}{right}")
            for k, x in enumerate(grid):
                inside[k] |= low < x < high or (x == low and left == "[") or (x == high and right == "]")
        return r" \cup ".join(parts), inside

    seen = {True: 0, False: 0}
    for _ in range(600):
        (a, in_a), (b, in_b) = draw(), draw()
        one, two = read(a + r" \cup \{99\}"), read(r"\{99\} \cup " + b)
        assert isinstance(one, Region) and isinstance(two, Region)
        assert same_region(one, two) == (in_a == in_b), (a, b)
        seen[in_a == in_b] += 1
    assert min(seen.values()) > 10


# -- units and lists


@pytest.mark.parametrize(
    ("a", "b"),
    [
        *(("km", "1000 m"), ("square feet", "144 sq in"), ("m/s", "3.6 km/h"), ("hours", "60 minutes")),
        *(("liters", "1000 cm^3"), ("dollars", "100 cents"), ("lb", "16 oz"), ("cm per second", "0.01 m/s")),
        ("feet per second", "12 inches per sec"),
    ],
)
def test_units(a: str, b: str) -> None:
    factor = b.split()[0] if b[0].isdigit() else "1"
    one, _ = parse_unit(a)
    two, _ = parse_unit(b.removeprefix(factor))
    assert one is not None and two is not None
    assert one.dimensions == two.dimensions
    assert one.factor == Fraction(factor) * two.factor


@pytest.mark.parametrize("text", ["or 6", "more than", "not", "less 3", "x_2", "and six"])
def test_words_that_change_a_number_are_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        parse_unit(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *(("1,000", 1), ("1, 000", 2), ("27,54,108", 3), ("1,000, 2,000", 2), ("10,11,12", 3), ("12,345,678", 1)),
        *(("1,2", 2), ("100,200", 1), ("1000,200", 2), (r"1{,}000 \text{ and } 5", 2)),
    ],
)
def test_commas(text: str, count: int) -> None:
    answer = read(text)
    assert (1 if isinstance(answer, Value) else len(answer.items)) == count  # type: ignore[union-attr]


def test_reading_is_idempotent_on_what_it_normalises() -> None:
    for text in (r"$\left(10{,}000^{\circ}, ½\right)$.", r"\dfrac{x²}{3}", "**5**", r"\boxed{7}", "−5 × 3"):
        assert normalise(normalise(text)) == normalise(text)
        assert same(read(text), read(text))
