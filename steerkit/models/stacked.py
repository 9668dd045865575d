"""Independent policies on one base, as rows of one batch: sweeps train and evaluate many at the cost of few."""

from __future__ import annotations

from collections.abc import Sequence

from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Intervention
from steerkit.interventions.rowwise import Rowwise
from steerkit.models.steered import SteeredModel


def stack(policies: Sequence[SteeredModel]) -> SteeredModel:
    """One model whose rows are steered by these policies; it shares their interventions and their base.

    Each forward call must be told whose its rows are (``SteeredModel.rows``); samplers and teacher forcing do so by
    the ``policy`` of a prompt. A policy may have no hook point at all: its rows are the base's. One alone is its own
    stack: nothing has to be said of its rows.

    Raises:
        SteerkitError: for policies on different bases, with different token masks, with different kinds of
            intervention at one hook point, or that change weights.
    """
    if not policies:
        raise SteerkitError("Nothing to stack: give at least one policy.")
    first = policies[0]
    if len(policies) == 1:
        return first
    masks = {str(policy.token_mask) for policy in policies if policy.points} or {str(first.token_mask)}
    if any(policy.base is not first.base for policy in policies) or len(masks) > 1:
        raise SteerkitError("Policies that share a batch need one base and one token mask.")
    if any(policy.adapter is not None for policy in policies):
        raise SteerkitError("A baseline that changes weights can't share a batch with other policies.")
    at: dict[HookPoint, dict[int, Intervention]] = {}
    for number, policy in enumerate(policies):
        for point, item in policy.interventions.items():
            at.setdefault(point, {})[number] = item
    for point, members in at.items():
        kinds = {type(member).__name__ for member in members.values()}
        if len(kinds) > 1:
            raise SteerkitError(f"{point}: policies that share a batch need one kind of intervention, got {kinds}.")
    items = {point: Rowwise(members, len(policies)) for point, members in at.items()}
    return SteeredModel(first.base, items, first.layout, masks.pop(), policies=len(policies))
