"""What a vector's card says that only the model and the report know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from steerkit.models.layout import hidden_of
from steerkit.models.positions import positions_from_mask
from steerkit.rollouts.prompt_pass import left_pad

if TYPE_CHECKING:
    from steerkit.training.data import PromptDataModule
    from steerkit.training.module import SteeringModule


@torch.inference_mode()
def residual_norms(module: SteeringModule, data: PromptDataModule, n_prompts: int = 16) -> dict[str, float]:
    """Hook point -> mean L2 norm of the base's residual stream after its block, over the tokens of training prompts.

    A vector's norm says nothing without it.
    """
    policy, loaded = module.policy, module.loaded
    if not policy.points or loaded is None:
        return {}
    prompts = module.encode(data.examples("train")[:n_prompts], "drop")
    ids, mask = left_pad([prompt.ids for prompt in prompts], loaded.tokenizer.pad_token_id, policy.device)
    blocks, seen = policy.layout.block_list(policy.base), {}

    def keep(layer: int) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            norms = hidden_of(output).float().norm(dim=-1)
            seen[layer] = float(norms[mask.bool()].mean())

        return hook

    handles = [blocks[layer].register_forward_hook(keep(layer)) for layer in {p.layer for p in policy.points}]
    try:
        with policy.disabled():
            policy.hidden_states(ids, mask, positions_from_mask(mask))
    finally:
        for handle in handles:
            handle.remove()
    return {str(point): seen[point.layer] for point in policy.points}


def card_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The columns of result rows that a card shows."""
    columns = ("arm", "set", "temperature", "accuracy", "ci95", "n", "k")
    return [{column: row[column] for column in columns} for row in rows]
