"""Several policies in one batch: each row is changed by its own policy's intervention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from steerkit.errors import SteerkitError
from steerkit.interventions.base import Intervention


class Rows:
    """Which policy each row of a forward call belongs to.

    Args:
        policies: [B] policy numbers.
        device: of the model.
        growing: the call may be given the first of these rows alone.
    """

    def __init__(self, policies: Sequence[int], device: torch.device, growing: bool = False) -> None:
        self.policies, self.growing = tuple(policies), growing
        self.index = torch.tensor(self.policies, device=device)
        self._of: dict[int, Tensor] = {}
        self._first: dict[int, Rows] = {}

    def first(self, n: int) -> Rows:
        """The first ``n`` rows alone."""
        if n == len(self.policies):
            return self
        if n not in self._first:
            self._first[n] = Rows(self.policies[:n], self.index.device)
        return self._first[n]

    def of(self, policy: int) -> Tensor:
        """[n] the rows of one policy."""
        if policy not in self._of:
            rows = [row for row, owner in enumerate(self.policies) if owner == policy]
            self._of[policy] = torch.tensor(rows, dtype=torch.long, device=self.index.device)
        return self._of[policy]


@final
class Rowwise(Intervention):
    """One hook point of several policies; a policy that has nothing here leaves its rows as they are.

    No plugin: ``models.stacked.stack`` makes it, a vector file holds its members one by one.

    Args:
        members: policy number -> its intervention, all of one class.
        n_policies: policies of the whole model.
    """

    def __init__(self, members: Mapping[int, Intervention], n_policies: int) -> None:
        first = next(iter(members.values()))
        super().__init__(first.d_model, **first.settings)
        self.members = nn.ModuleDict({str(policy): member for policy, member in members.items()})
        self.sites, self.reads, self.constant = first.sites, first.reads, first.constant  # type: ignore[misc]
        slots = torch.full((n_policies,), len(members))
        slots[list(members)] = torch.arange(len(members))
        self.register_buffer("slots", slots, persistent=False)
        """[n_policies] place among the members; one behind the last for a policy that has none."""
        self.rows: Rows | None = None

    def delta(self, hidden: Tensor) -> Tensor:
        rows_of = None if self.rows is None else self.rows.first(len(hidden)) if self.rows.growing else self.rows
        if rows_of is None or len(rows_of.policies) != len(hidden):
            raise SteerkitError("Stacked policies need to know whose each row is: SteeredModel.rows([...]).")
        slots: Tensor = self.slots  # type: ignore[assignment]
        if self.constant:
            one = hidden[:1, :1]
            deltas = [member.delta(one).expand(1, 1, self.d_model)[0, 0] for member in self._all()]
            table = torch.stack([*deltas, torch.zeros_like(deltas[0])])
            return table[slots[rows_of.index]][:, None]
        out: Tensor | None = None
        for policy, member in self.members.items():
            rows = rows_of.of(int(policy))
            if len(rows):
                part = member.delta(hidden[rows])  # type: ignore[operator]
                if out is None:
                    out = part.new_zeros(*hidden.shape[:2], self.d_model)
                out = out.index_copy(0, rows, part.expand(len(rows), hidden.shape[1], self.d_model))
        return torch.zeros((), device=hidden.device) if out is None else out

    def _all(self) -> list[Intervention]:
        return list(self.members.values())  # type: ignore[arg-type]
