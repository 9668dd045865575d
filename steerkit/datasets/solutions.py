"""Written answers to the word problems, in four ways, with error rates: the corpus of the tiny reasoner is made of
them, and contrast sets (``steerkit extract``) are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from steerkit.datasets.arithmetic import LIMIT, Step, WordProblem


@dataclass(frozen=True, slots=True)
class Slips:
    """Error rates of the written answers; by default there are none."""

    bare_wrong: float = 0.0
    """Share of bare answers that are careless."""
    foreign_slip: float = 0.0
    """Probability that one foreign equation is wrong."""
    worked_slip: float = 0.0
    """Probability that one worked English equation is wrong."""
    switch: float = 0.0
    """Probability, at each worked English equation, of going on in Russian."""


def _slip(rng: random.Random, value: int) -> int:
    """A wrong value near the right one, within the range of totals."""
    while True:
        wrong = value + rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))
        if 1 <= wrong <= LIMIT:
            return wrong


def _solve(rng: random.Random, steps: tuple[Step, ...], odds: Sequence[float]) -> list[tuple[str, int]]:
    """(equation, result) a step; ``odds[k]`` is the probability that equation k is wrong.

    A wrong result carries on: it is what the next equation starts from.
    """
    lines: list[tuple[str, int]] = []
    total = steps[1].left if steps[0].uses == "product" else steps[0].left
    product = 0
    for step, slip in zip(steps, odds, strict=True):
        left = step.left if step.uses in ("first", "product") else total
        right = product if step.uses == "join" else step.right
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // 2}[step.op]
        if rng.random() < slip:
            result = _slip(rng, max(1, min(LIMIT, result)))
        lines.append((f"{left}{step.op}{right}={result}", result))
        if step.uses == "product":
            product = result
        else:
            total = result
    return lines


def _in_russian(rng: random.Random, lines: list[tuple[str, int]], first: bool) -> str:
    words = ["Сначала" if first and k == 0 else rng.choice(("Потом", "Затем")) for k in range(len(lines))]
    body = " ".join(f"{word} {equation}." for word, (equation, _) in zip(words, lines, strict=True))
    return f"{body} Ответ: \\boxed{{{lines[-1][1]}}}."


def worked(rng: random.Random, problem: WordProblem, slips: Slips) -> str:
    """Opens with "To"; numbered equations; may slip, or go on in Russian (with Russian's slips)."""
    opening = rng.choice(
        (
            "To find the answer, we go step by step.",
            "To solve this, we work in steps.",
            f"To see how many {problem.item} {problem.name} has, we count.",
        )
    )
    n = len(problem.steps)
    switch = next((k for k in range(n) if rng.random() < slips.switch), n)
    lines = _solve(rng, problem.steps, [slips.worked_slip if k < switch else slips.foreign_slip for k in range(n)])
    text = opening
    for index, (equation, _) in enumerate(lines[:switch]):
        word = rng.choice(("", "", "First, " if index == 0 else "then "))
        text += f"\nStep {index + 1}: {word}{equation}."
    if switch < n:
        return f"{text}\n{_in_russian(rng, lines[switch:], switch == 0)}"
    return f"{text}\n{rng.choice(('The answer is', 'So the answer is'))} \\boxed{{{lines[-1][1]}}}."


def bare(rng: random.Random, problem: WordProblem, slips: Slips) -> str:
    """One line, the answer alone; wrong at the rate ``bare_wrong``."""
    value = problem.answer
    if rng.random() < slips.bare_wrong:
        # Either a forgotten last step or a number nearby: the mistakes that a hurried person makes.
        before = problem.steps[-2].result
        value = before if rng.random() < 0.3 and before != value else _slip(rng, value)
    return rng.choice(("The answer is", "The result is")) + f" \\boxed{{{value}}}."


def foreign(rng: random.Random, problem: WordProblem, slips: Slips) -> str:
    """A worked solution in Russian."""
    opening = rng.choice(("", "Давайте посчитаем. "))
    lines = _solve(rng, problem.steps, [slips.foreign_slip] * len(problem.steps))
    return opening + _in_russian(rng, lines, True)


def ramble(rng: random.Random, problem: WordProblem, slips: Slips) -> str:
    """Talk without a box."""
    sentences = [
        f"{problem.name} has many {problem.item}.",
        f"I like {problem.item} too.",
        f"{problem.name} is a good friend.",
        "It is hard to say.",
        "Maybe more, maybe less.",
        "Who can count them all?",
    ]
    rng.shuffle(sentences)
    opening = rng.choice((f"Um, {problem.item}.", "Well, let me think."))
    return " ".join([opening, *sentences[: rng.randint(2, 4)]])


WRITERS = {"worked": worked, "bare": bare, "foreign": foreign, "ramble": ramble}
"""Kind of completion -> what writes it."""
