"""The learning rate over the steps: linear warm-up, constant, and where it is asked for a linear decay at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from steerkit.errors import SteerkitError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def check_schedule(warmup_steps: int, decay_steps: int, betas: Sequence[float] = (0.9, 0.999)) -> None:
    """Refuse what is no number of steps, and what AdamW can't take.

    Raises:
        SteerkitError: for a negative number of steps; unless ``betas`` are two numbers from 0 to below 1.
    """
    if min(warmup_steps, decay_steps) < 0:
        raise SteerkitError(f"warmup_steps and decay_steps count steps, got {warmup_steps} and {decay_steps}.")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise SteerkitError(f"betas needs two numbers from 0 to below 1 (AdamW's own: [0.9, 0.999]), got {betas}.")


def set_rates(groups: Iterable[dict[str, Any]], step: int, trainer: Trainer, settings: Any) -> None:
    """Give each parameter group the share of its own rate (``full_lr``) that the coming step has.

    A function of the step and of the run's length alone: a resumed run goes on as the whole one would, and a run that
    is made longer has its decay at the new end.

    Args:
        groups: an optimizer's.
        step: steps made so far.
        trainer: whose ``max_steps`` or epochs say how many there will be.
        settings: with ``warmup_steps`` and ``decay_steps``.
    """
    warmup, decay = settings.warmup_steps, settings.decay_steps
    share = rate_share(step, float(trainer.estimated_stepping_batches) if decay else float("inf"), warmup, decay)
    for group in groups:
        group["lr"] = group["full_lr"] * share


def rate_share(step: int, total: float, warmup_steps: int, decay_steps: int) -> float:
    """The share of the full rate that step number ``step`` (from 0) of ``total`` has; above 0 in all of them."""
    share = min(1.0, (step + 1) / max(1, warmup_steps))
    return share if not decay_steps else share * min(1.0, max(0.0, total - step) / (decay_steps + 1))
