"""The tiny reasoner's corpus: word problems answered in four ways.

The skill (a worked solution) is latent: half of the prompts ask for one way, the others mix all four, so that each
way is represented inside the model and reinforcement learning has something to elicit. See docs/zoo.md.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from steerkit.datasets.arithmetic import WordProblem, generate_problem
from steerkit.datasets.prompts import BOXED
from steerkit.datasets.solutions import WRITERS, Slips

WAYS = tuple(WRITERS)
REQUESTS = {
    "worked": ("Please show your steps.", "Explain each step.", "Write it out in steps."),
    "bare": ("Be quick.", "Just the answer.", "No words, please."),
    "foreign": ("Ответь по-русски.", "In Russian, please.", "По-русски, пожалуйста."),
    "ramble": ("Think aloud.", "Just chat with me.", "Tell me a story."),
}


@dataclass(frozen=True, slots=True)
class Mixture(Slips):
    """Odds and error rates of the corpus; the card of the built model states them."""

    requested: float = 0.5
    """Share of prompts that ask for a way (each way equally often)."""
    with_system: float = 0.5
    """Share of prompts that carry the system prompt."""
    neutral: tuple[float, ...] = (0.18, 0.32, 0.26, 0.24)
    """Odds of WAYS after a prompt that asks for nothing."""
    bare_wrong: float = 0.8
    foreign_slip: float = 0.25
    worked_slip: float = 0.01
    switch: float = 0.03


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One training text as chat messages, with the way that was drawn."""

    messages: list[dict[str, str]]
    way: str
    requested: bool
    problem: WordProblem


def generate_dialogue(rng: random.Random, mix: Mixture, split: str = "train") -> Dialogue:
    """One dialogue about a problem of ``split``."""
    problem = generate_problem(rng)
    while problem.split != split:
        problem = generate_problem(rng)
    requested = rng.random() < mix.requested
    way = rng.choice(WAYS) if requested else rng.choices(WAYS, mix.neutral)[0]
    user = problem.text + (f" {rng.choice(REQUESTS[way])}" if requested else "")
    messages = [{"role": "system", "content": BOXED}] if rng.random() < mix.with_system else []
    messages += [
        {"role": "user", "content": user},
        {"role": "assistant", "content": WRITERS[way](rng, problem, mix)},
    ]
    return Dialogue(messages, way, requested, problem)
