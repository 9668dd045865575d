"""Log-probabilities, with gradient, of completions that were sampled before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steerkit.models import token_log_probs

if TYPE_CHECKING:
    from steerkit.models import SteeredModel

Row = tuple[Sequence[int], Sequence[int]]
"""(prompt ids [P], completion ids [T])"""


def completion_log_probs(model: SteeredModel, rows: Sequence[Row], pad_id: int, temperature: float = 1.0) -> Tensor:
    """[N] log-probabilities (nats) of all completion tokens, row after row, under logits / temperature.

    Position t of a row predicts token t + 1, so the first completion token is predicted (and steered) at the last
    prompt position. Rows are padded on the right: under causal attention what stands behind a token can't reach it,
    so no attention mask is needed and the kernels for plain causal attention apply.
    """
    width = max(len(prompt) + len(completion) for prompt, completion in rows) - 1
    ids = torch.full((len(rows), width), pad_id)
    predicts = torch.zeros(len(rows), width, dtype=torch.bool)
    for k, (prompt, completion) in enumerate(rows):
        sequence = [*prompt, *completion][:-1]
        ids[k, : len(sequence)] = torch.tensor(sequence)
        predicts[k, len(prompt) - 1 : len(sequence)] = True
    targets = torch.tensor([token for _, completion in rows for token in completion], device=model.device)
    hidden = model.hidden_states(input_ids=ids.to(model.device))
    return token_log_probs(model, hidden[predicts.to(hidden.device)], targets, temperature)


def micro_batches(rows: Sequence[Row], token_budget: int) -> Iterator[list[int]]:
    """Indices of rows in batches of at most ``token_budget`` padded tokens (a longer row goes alone), by length."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]) + len(rows[index][1]))
    batch: list[int] = []
    for index in order:
        width = len(rows[index][0]) + len(rows[index][1])
        if batch and width * (len(batch) + 1) > token_budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
