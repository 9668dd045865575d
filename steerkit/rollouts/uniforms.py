"""Counter-based random numbers: a uniform is a pure function of (seed, problem, sample, position).

So a resumed, sharded or re-batched run draws the same numbers. The mixing function is SplitMix64 (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), vectorised over NumPy's wrapping uint64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + _GAMMA
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def stable_key(text: str) -> int:
    """A 64-bit key of a problem's id, the same on every machine (Python's own hash is salted)."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def fold_seed(seed: int, *parts: int) -> int:
    """A new seed from a seed and counters such as the training step."""
    state = np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    for part in parts:
        state = _mix(state ^ _mix(np.array([part & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)))
    return int(state[0])


def uniforms(
    seeds: int | Sequence[int], problem_ids: Sequence[str], samples: Sequence[int], n: int
) -> NDArray[np.float64]:
    """[R, n] uniforms in [0, 1): row r belongs to sample ``samples[r]`` of problem ``problem_ids[r]``.

    Column t is for the t-th generated token, whatever the batch, the padding or the number of other rows.

    Args:
        seeds: one for all rows, or one a row.
    """
    by_row = [seeds] * len(problem_ids) if isinstance(seeds, int) else seeds
    folded = {seed: fold_seed(seed, 0) for seed in set(by_row)}
    keys = {problem: stable_key(problem) for problem in set(problem_ids)}
    problem = np.array([keys[p] for p in problem_ids], dtype=np.uint64)
    sample = np.array(samples, dtype=np.uint64)
    seed = np.array([folded[s] for s in by_row], dtype=np.uint64)
    row = _mix(_mix(_mix(problem) ^ seed) ^ _mix(sample))
    counters = _mix(row[:, None] ^ _mix(np.arange(n, dtype=np.uint64))[None, :])
    return (counters >> np.uint64(11)).astype(np.float64) * 2.0**-53
