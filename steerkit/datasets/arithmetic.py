"""Seeded word problems of 2 to 4 arithmetic steps: the offline data set.

A problem is a running total that each sentence changes by one operation; totals stay within 1..99 so that a model
of a million parameters can learn the arithmetic. The split is a hash of the numbers and operations (not of the
wording), so that no split holds another's problem with the names exchanged.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from steerkit.errors import DataError
from steerkit.registry import did_you_mean
from steerkit.types import Example

NAMES = ("Tom", "Anna", "Ben", "Maria", "Sam", "Lena", "Omar", "Nina", "Paul", "Ivy")
ITEMS = ("apples", "pens", "books", "coins", "cards", "stamps", "marbles", "shells", "stones", "cookies")
CONTAINERS = ("boxes", "bags", "packs")
ADDS = ("{n} buys {b} more.", "{o} gives {n} {b} {i}.", "{n} finds {b} more {i}.")
TAKES = ("{n} gives {b} to {o}.", "{n} loses {b} {i}.", "{n} sells {b} of them.")
SPLITS = {"train": (0, 80), "validation": (80, 90), "test": (90, 100)}
"""Share of the hash range, in percent, that each split owns."""
LIMIT = 99
"""The largest running total."""


@dataclass(frozen=True, slots=True)
class Step:
    """One equation ``left op right = result``; op is one of + - * /."""

    left: int
    op: str
    right: int
    result: int
    uses: str = "total"
    """What the operands are: ``first`` (both given; the result is the first total), ``total`` (left is the running
    total), ``product`` (both given; the total stays), ``join`` (the running total and the product just before)."""


@dataclass(frozen=True, slots=True)
class WordProblem:
    """A problem's text with the equations that solve it."""

    text: str
    steps: tuple[Step, ...]
    name: str
    item: str

    @property
    def answer(self) -> int:
        return self.steps[-1].result

    @property
    def signature(self) -> str:
        """The arithmetic without the wording: what the split is decided by."""
        return ";".join(f"{s.left}{s.op}{s.right}" for s in self.steps)

    @property
    def split(self) -> str:
        bucket = int(hashlib.sha1(self.signature.encode()).hexdigest()[:8], 16) % 100
        return next(name for name, (low, high) in SPLITS.items() if low <= bucket < high)


def _start(rng: random.Random, name: str, other: str, item: str) -> tuple[str, list[Step], int]:
    """The opening sentence, the equations it costs (0 or 1) and the first total."""
    kind = rng.random()
    if kind < 0.2:
        boxes, each = rng.randint(2, 9), rng.randint(2, 9)
        box = rng.choice(CONTAINERS)
        text = f"{name} has {boxes} {box} with {each} {item} in each."
        return text, [Step(boxes, "*", each, boxes * each, "first")], boxes * each
    if kind < 0.4:
        first, more = rng.randint(3, 40), rng.randint(2, 20)
        text = f"{other} has {first} {item}. {name} has {more} more than {other}."
        return text, [Step(first, "+", more, first + more, "first")], first + more
    first = rng.randint(3, 60)
    return f"{name} has {first} {item}.", [], first


def _change(rng: random.Random, total: int, name: str, other: str, item: str) -> tuple[str, list[Step]] | None:
    """One sentence that changes the total, with its equations; None where the draw leaves 1..99."""
    kind = rng.random()
    if kind < 0.35:
        amount = rng.randint(2, 25)
        text, steps = rng.choice(ADDS), [Step(total, "+", amount, total + amount)]
    elif kind < 0.7:
        amount = rng.randint(2, 25)
        text, steps = rng.choice(TAKES), [Step(total, "-", amount, total - amount)]
    elif kind < 0.8:
        amount, text = 0, "Then the number of {i} doubles."
        steps = [Step(total, "*", 2, total * 2)]
    elif kind < 0.87:
        if total % 2:
            return None
        amount, text = 0, "{n} gives half of the {i} to {o}."
        steps = [Step(total, "/", 2, total // 2)]
    else:
        boxes, each = rng.randint(2, 9), rng.randint(2, 9)
        amount, text = boxes, "{n} buys {b} " + rng.choice(CONTAINERS) + f" with {each} {{i}} in each."
        product = boxes * each
        steps = [Step(boxes, "*", each, product, "product"), Step(total, "+", product, total + product, "join")]
    if not all(1 <= s.result <= LIMIT for s in steps):
        return None
    return text.format(n=name, o=other, i=item, b=amount), steps


def generate_problem(rng: random.Random) -> WordProblem:
    """One problem of 2 to 4 equations."""
    wanted = rng.choice((2, 2, 3, 3, 4))
    name, other = rng.sample(NAMES, 2)
    item = rng.choice(ITEMS)
    text, steps, total = _start(rng, name, other, item)
    sentences = [text]
    while len(steps) < wanted:
        change = _change(rng, total, name, other, item)
        if change is None or len(steps) + len(change[1]) > wanted:
            continue
        sentences.append(change[0])
        steps += change[1]
        total = steps[-1].result
    sentences.append(f"How many {item} does {name} have now?")
    return WordProblem(" ".join(sentences), tuple(steps), name, item)


def generate_problems(split: str, n: int, seed: int) -> list[WordProblem]:
    """``n`` distinct problems (by signature) of one split; the same seed gives the same list."""
    if split not in SPLITS:
        raise DataError(f"Unknown split {split!r}: arithmetic has {', '.join(SPLITS)}.")
    rng = random.Random(f"{split}/{seed}")
    problems: dict[str, WordProblem] = {}
    while len(problems) < n:
        problem = generate_problem(rng)
        if problem.split == split:
            problems.setdefault(problem.signature, problem)
    return list(problems.values())


class Arithmetic:
    """The ``arithmetic`` data set.

    Its ``completion_kinds`` are the four ways of the tiny reasoner's corpus: ``worked`` (in English steps), ``bare``
    (the answer alone), ``foreign`` (worked in Russian), ``ramble`` (talk without an answer).

    Args:
        n: problems in the train split.
        n_eval: problems in each of the validation and test splits.
        seed: which problems are drawn.

    Raises:
        DataError: if a size is below one.
    """

    completion_kinds = ("worked", "bare", "foreign", "ramble")

    def __init__(self, n: int = 4096, n_eval: int = 512, seed: int = 0) -> None:
        if n < 1 or n_eval < 1:
            raise DataError(f"arithmetic: n and n_eval must be at least 1, got n={n}, n_eval={n_eval}.")
        self.n, self.n_eval, self.seed = n, n_eval, seed
        self._problems: dict[str, WordProblem] = {}  # id -> what was loaded

    def load(self, split: str) -> list[Example]:
        """The examples of ``train``, ``validation`` or ``test``."""
        problems = generate_problems(split, self.n if split == "train" else self.n_eval, self.seed)
        named = {f"arithmetic/{split}/{self.seed}/{index:05d}": problem for index, problem in enumerate(problems)}
        self._problems |= named
        return [
            Example(
                id=name,
                problem=problem.text,
                answer=str(problem.answer),
                source="arithmetic",
                columns={"steps": len(problem.steps)},
            )
            for name, problem in named.items()
        ]

    def completion(self, example: Example, kind: str) -> str:
        """A written completion without mistakes; the same example and kind always give the same text.

        Args:
            example: one that ``load`` returned.
            kind: one of ``completion_kinds``.

        Raises:
            DataError: for another kind, or an example that is not this data set's.
        """
        from steerkit.datasets.solutions import WRITERS, Slips

        if kind not in WRITERS:
            raise DataError(
                f"arithmetic has no completions of kind {kind!r}.{did_you_mean(kind, WRITERS)} "
                f"Kinds: {', '.join(WRITERS)}."
            )
        if example.id not in self._problems:
            raise DataError(f"{example.id!r} is no example that this arithmetic data set has loaded.")
        return WRITERS[kind](random.Random(f"{example.id}/{kind}"), self._problems[example.id], Slips())
