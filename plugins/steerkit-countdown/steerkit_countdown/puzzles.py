"""Seeded Countdown puzzles: reach a target from given numbers with + - * /, each number at most once.

The game as a test of reasoning: Gandhi et al., "Stream of Search", arXiv 2404.03683.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from steerkit.errors import DataError
from steerkit.types import Example

SPLITS = {"train": (0, 80), "validation": (80, 90), "test": (90, 100)}
"""Share of the hash range, in percent, that each split owns."""
MAX_DRAWS = 2000
"""Draws without a new puzzle after which the settings count as exhausted."""


@dataclass(frozen=True, slots=True)
class Puzzle:
    """Numbers, a target, and one way to reach it (found by drawing it, so a target is always reachable)."""

    numbers: tuple[int, ...]
    target: int
    solution: str

    @property
    def text(self) -> str:
        given = ", ".join(map(str, self.numbers))
        return (
            f"Use the numbers {given} to make {self.target}. You may use + - * / and brackets, and each number at "
            "most once. Write the expression alone in the box, for example \\boxed{(1+2)*3}."
        )

    @property
    def answer(self) -> str:
        """What the verifier reads: ``numbers=3,6,7; target=24``."""
        return f"numbers={','.join(map(str, self.numbers))}; target={self.target}"

    @property
    def split(self) -> str:
        """By the numbers alone, whatever their order and target: no two splits share a hand of numbers."""
        key = ",".join(map(str, sorted(self.numbers)))
        bucket = int(hashlib.sha1(key.encode()).hexdigest()[:8], 16) % 100
        return next(name for name, (low, high) in SPLITS.items() if low <= bucket < high)


def draw_puzzle(rng: random.Random, n_numbers: int, max_number: int, max_target: int) -> Puzzle | None:
    """One puzzle, or None where the draw gives no target in 2..max_target or one that is among the numbers.

    Between 2 and all of the numbers are joined, two at a time; each result is a whole number of at least 1.
    """
    numbers = [rng.randint(1, max_number) for _ in range(n_numbers)]
    parts = [(value, str(value)) for value in rng.sample(numbers, rng.randint(2, n_numbers))]
    while len(parts) > 1:
        left, right = parts.pop(rng.randrange(len(parts))), parts.pop(rng.randrange(len(parts)))
        sign = rng.choice("+-*/")
        if (sign == "-" and left[0] <= right[0]) or (sign == "/" and left[0] % right[0]):
            return None
        value = {"+": left[0] + right[0], "-": left[0] - right[0], "*": left[0] * right[0], "/": left[0] // right[0]}
        parts.append((value[sign], f"({left[1]}{sign}{right[1]})"))
    target, solution = parts[0]
    if not 2 <= target <= max_target or target in numbers:
        return None
    return Puzzle(tuple(numbers), target, solution[1:-1])


class Countdown:
    """The ``countdown`` data set.

    An example's ``answer`` holds the numbers and the target for the verifier; ``columns`` hold ``numbers``, ``target``
    and one ``solution`` for rewards.

    Args:
        n: puzzles in the train split.
        n_eval: puzzles in each of the validation and test splits.
        n_numbers: how many numbers are given.
        max_number: the largest of them.
        max_target: the largest target.
        seed: which puzzles are drawn.

    Raises:
        DataError: if a setting is out of range, or (in ``load``) the settings don't allow that many puzzles.
    """

    def __init__(
        self,
        n: int = 2048,
        n_eval: int = 256,
        n_numbers: int = 3,
        max_number: int = 20,
        max_target: int = 99,
        seed: int = 0,
    ) -> None:
        for name, value, least in (
            ("n", n, 1),
            ("n_eval", n_eval, 1),
            ("n_numbers", n_numbers, 2),
            ("max_number", max_number, 1),
            ("max_target", max_target, 2),
        ):
            if value < least:
                raise DataError(f"countdown: {name} must be at least {least}, got {value}.")
        self.n, self.n_eval, self.seed = n, n_eval, seed
        self.n_numbers, self.max_number, self.max_target = n_numbers, max_number, max_target

    def load(self, split: str) -> list[Example]:
        """The examples of ``train``, ``validation`` or ``test``."""
        if split not in SPLITS:
            raise DataError(f"Unknown split {split!r}: countdown has {', '.join(SPLITS)}.")
        return [
            Example(
                id=f"countdown/{split}/{self.seed}/{index:05d}",
                problem=puzzle.text,
                answer=puzzle.answer,
                source="countdown",
                columns={"numbers": list(puzzle.numbers), "target": puzzle.target, "solution": puzzle.solution},
            )
            for index, puzzle in enumerate(self._puzzles(split, self.n if split == "train" else self.n_eval))
        ]

    def _puzzles(self, split: str, n: int) -> list[Puzzle]:
        """``n`` puzzles that differ in numbers or target; the first ones are the same for a smaller ``n``."""
        rng = random.Random(f"{split}/{self.seed}")
        found: dict[tuple[tuple[int, ...], int], Puzzle] = {}
        idle = 0
        while len(found) < n:
            puzzle = draw_puzzle(rng, self.n_numbers, self.max_number, self.max_target)
            idle += 1
            if puzzle is not None and puzzle.split == split:
                key = (tuple(sorted(puzzle.numbers)), puzzle.target)
                if key not in found:
                    found[key], idle = puzzle, 0
            if idle > MAX_DRAWS:
                raise DataError(
                    f"countdown: only {len(found)} {split} puzzles found with {self.n_numbers} numbers up to "
                    f"{self.max_number} and targets up to {self.max_target}: raise these, or ask for fewer."
                )
        return list(found.values())
