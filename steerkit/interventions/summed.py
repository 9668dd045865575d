"""Several interventions at one hook point, as one: what they add is added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from steerkit.errors import VectorError
from steerkit.interventions.base import Intervention


@final
class Summed(Intervention):
    """``scale`` times the sum of the members' changes, each computed from the stream before any of them.

    No plugin: it puts vectors together that have no common form as one file.

    Args:
        members: interventions that read the same thing.
        scale: factor of the sum.

    Raises:
        VectorError: if the members read different things.
    """

    def __init__(self, members: Sequence[Intervention], scale: float = 1.0) -> None:
        first = members[0]
        super().__init__(first.d_model, **first.settings)
        if len({member.reads for member in members}) > 1:
            kinds = ", ".join(sorted({type(member).__name__ for member in members}))
            raise VectorError(f"{kinds} read different parts of the model, so they can't be summed at one hook point.")
        self.members = nn.ModuleList(members)
        self.scale = scale
        self.sites, self.reads = first.sites, first.reads  # type: ignore[misc]
        self.constant = all(member.constant for member in members)  # type: ignore[misc]

    def delta(self, hidden: Tensor) -> Tensor:
        total: Tensor = self.members[0].delta(hidden)  # type: ignore[operator]
        for member in self.members[1:]:
            total = total + member.delta(hidden)  # type: ignore[operator]
        return self.scale * total
