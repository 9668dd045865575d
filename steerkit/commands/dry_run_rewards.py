"""The row on rewards of ``fit --dry_run``: its step on a tiny model uses a random one, so the run's own are tried."""

from __future__ import annotations

from collections.abc import Sequence

from steerkit.doctor import Row
from steerkit.errors import SteerkitError
from steerkit.rewards import Rubric
from steerkit.types import Example


def rewards_row(rubric: Rubric, examples: Sequence[Example]) -> Row:
    """What a run's rewards say of what a model may write (``steerkit.testing``): right, wrong, nothing, cut off...

    Args:
        examples: of the run's own data; none: skipped.

    Raises:
        SteerkitError: a reward breaks its contract, or none of them says anything.
    """
    from steerkit.testing.rewards import made_up_group

    if not examples:
        return Row("rewards", "skipped", "needs 'data'")
    try:
        scores = rubric.score([made_up_group(example) for example in examples])
    finally:
        rubric.close()
    if not bool(scores.valid.any()):
        raise SteerkitError(f"no reward says anything (all None): {', '.join(rubric.names)}")
    seen = {name: values[~values.isnan()] for name, values in scores.breakdown.items()}
    told = ", ".join(f"{name} {v.min():.3g} to {v.max():.3g}" if len(v) else f"{name} None" for name, v in seen.items())
    kept = scores.total[scores.valid]
    alike = "" if float(kept.min()) < float(kept.max()) else "; all alike: nothing would be learned from these"
    return Row("rewards", "note" if alike else "pass", f"{told} on {scores.total.numel()} made-up completions{alike}")
