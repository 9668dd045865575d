"""Rewards that know nothing of the answer: a run with one of them shows what a gain owes to the verifier."""

from __future__ import annotations

import hashlib
from itertools import groupby
from typing import Any

from steerkit.errors import SteerkitError
from steerkit.rewards.base import Reward
from steerkit.verifiers.boxed import last_boxed


class Random(Reward):
    """+1 with a probability, else -1, whatever the text says.

    The draw is a hash of (seed, problem, the sampled ids of all of its group, place in the group), so a resumed or
    re-batched run draws the same, and no state is kept. The group and not the completion alone is hashed for two
    reasons. Samples that say the same get rewards of their own. And a completion that comes back at a later step, in
    another group, is drawn anew: were its reward fixed, the run would learn it, as it would any reward.

    Only a group that comes back sample by sample gets its old rewards again; TRL's step, where it is given, tells even
    these apart.

    Args:
        probability: of +1.
        seed: of the draws.

    Raises:
        SteerkitError: if the probability is not within 0 and 1.
    """

    def __init__(self, probability: float = 0.5, seed: int = 0) -> None:
        if not 0 <= probability <= 1:
            raise SteerkitError(f"probability must be from 0 to 1, got {probability}.")
        self.probability, self.seed = probability, seed

    def __call__(
        self, prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any
    ) -> list[float | None]:
        step = getattr(columns.get("trainer_state"), "global_step", None)
        problems = list(zip(columns.get("id", prompts), prompts, strict=True))
        values: list[float | None] = []
        for problem, members in groupby(range(len(problems)), key=problems.__getitem__):
            sampled = [tuple(map(int, completion_ids[index])) for index in members]
            group = _hash(repr((self.seed, step, problem, sampled)))
            for place in range(len(sampled)):
                uniform = int.from_bytes(_hash(f"{group.hex()} {place}"), "big") / 2**64
                values.append(1.0 if uniform < self.probability else -1.0)
        return values


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


class Format(Reward):
    r"""+1 for a completion that ends and whose last ``\boxed{}`` holds something, else -1; the gold answer is not read.

    It looks where the verifier looks (``verifiers.boxed``): what this reward refuses can't be right either.
    """

    def __call__(
        self, prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any
    ) -> list[float | None]:
        reasons = columns.get("finish_reason") or ["stop"] * len(completions)
        return [
            1.0 if reason != "length" and last_boxed(text) else -1.0
            for text, reason in zip(completions, reasons, strict=True)
        ]
