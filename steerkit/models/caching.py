"""What a base model keeps of the tokens that it has read (keys and values of each, or a running state), and whether
it can be batched."""

from __future__ import annotations

import inspect

import torch
from transformers import DynamicCache, PreTrainedModel

from steerkit.errors import ModelError
from steerkit.models.positions import positions_from_mask


def has_running_state(base: PreTrainedModel) -> bool:
    """Whether some layers (linear attention, state space, convolution) keep a state that each token overwrites.

    Such a past serves cached decoding, but no gradient flows back through it: it is changed in place.
    """
    if base._is_stateful:
        return True
    return any(hasattr(layer, "conv_states") for layer in DynamicCache(config=base.config).layers)


def require_cache(base: PreTrainedModel) -> None:
    """Refuse a model whose past can't be handed on as ``past_key_values``: nothing could be sampled from it.

    Raises:
        ModelError: naming the family.
    """
    parameters = inspect.signature(base.forward).parameters
    if "past_key_values" not in parameters:
        kept = next((name for name in ("cache_params", "state", "mems") if name in parameters), None)
        raise ModelError(
            f"{base.config.model_type!r} models keep their past in {kept or 'no cache'}, not in past_key_values, so "
            "steerkit can't sample from them: use a family with attention layers (hybrids with some will do)."
        )


@torch.no_grad()
def verify_cache(base: PreTrainedModel) -> None:
    """Probe three tokens: does the model also give its past back? For families that are not in the table of layouts.

    Raises:
        ModelError: as ``require_cache``.
    """
    require_cache(base)
    output = base(input_ids=torch.arange(3, device=base.device)[None], use_cache=True)
    if getattr(output, "past_key_values", None) is None:
        raise ModelError(
            f"{base.config.model_type!r} models do not give back past_key_values when they are asked to, so steerkit "
            "can't sample from them: use another family."
        )


@torch.no_grad()
def verify_padding(base: PreTrainedModel) -> None:
    """Probe three tokens: padded on the left they must give the logits that they give alone.

    For families that are not in the table of layouts: some recurrent ones let padding into their state.

    Raises:
        ModelError: naming the family.
    """
    ids = torch.arange(3, 6, device=base.device)[None]
    mask = torch.tensor([[0, 0, 1, 1, 1]], device=base.device)
    padded = torch.cat([ids[:, :1], ids[:, :1], ids], dim=1)
    takes_positions = "position_ids" in inspect.signature(base.forward).parameters
    positions = {"position_ids": positions_from_mask(mask)} if takes_positions else {}
    alone = base(input_ids=ids, use_cache=False).logits[0].float()
    got = base(input_ids=padded, attention_mask=mask, use_cache=False, **positions).logits[0, 2:].float()
    gap, scale = float((got - alone).abs().max()), max(1.0, float(alone.abs().max()))
    if not gap <= scale * (1e-3 if base.dtype == torch.float32 else 0.1):
        raise ModelError(
            f"{base.config.model_type!r} models give other logits when a prompt is padded on the left (they differ by "
            f"{gap:.3g}), and steerkit pads prompts to batch them: use another family."
        )
