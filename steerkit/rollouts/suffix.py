"""Nothing below the lowest steered layer changes: its residual stream is kept from the rollout, and the update runs
only the blocks above it.

The stream is kept as it leaves block ``layer``, before that block's own intervention. For a vector on the last layer
alone no block is left: the update is the final norm and the unembedding.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from steerkit.models.layout import hidden_of, text_config

if TYPE_CHECKING:
    from steerkit.hookpoints import HookPoint
    from steerkit.models import SteeredModel
    from steerkit.types import RolloutGroup

_PROBED: weakref.WeakKeyDictionary[nn.Module, dict[int, bool]] = weakref.WeakKeyDictionary()


def kept_layers(model: SteeredModel) -> tuple[int | None, ...]:
    """For each policy, the block whose output is worth keeping: the highest one that the steering leaves as it is, but
    for an intervention on that output; None if there is none, or the blocks above can't be run on their own.
    """
    return tuple(_kept_layer(model, model.points_of(policy)) for policy in range(model.policies))


def _kept_layer(model: SteeredModel, points: Sequence[HookPoint]) -> int | None:
    if not points or model.adapter is not None:
        return None
    lowest = min(point.layer for point in points)
    only_output = all(point.site == "output" for point in points if point.layer == lowest)
    layer = lowest if only_output else lowest - 1
    return layer if layer >= 0 and _separable(model, layer) else None


def without_streams(group: RolloutGroup) -> RolloutGroup:
    """The same group without the residual stream that its rollouts carry."""
    if group.stream is None:
        return group
    return replace(group, stream=None, rollouts=tuple(replace(rollout, stream=None) for rollout in group.rollouts))


def _separable(model: SteeredModel, layer: int) -> bool:
    """Whether the blocks above ``layer``, fed with its output, give the model's own final states.

    Families whose blocks differ in kind are left out: their owner may look the kind up by a block's place in the
    list. For the rest a probe decides (gemma scales what it is given as embeddings, GPT-2 adds positions to it).
    """
    if layer == model.n_layers - 1:
        return True
    found = _PROBED.get(model.base)
    if found is not None and layer in found:
        return found[layer]
    kinds = getattr(text_config(model.base), "layer_types", None)
    good = (kinds is None or len(set(kinds)) == 1) and _probe(model, layer)
    _PROBED.setdefault(model.base, {})[layer] = good
    return good


@torch.no_grad()
def _probe(model: SteeredModel, layer: int) -> bool:
    ids = torch.arange(5, device=model.device)[None]
    mask = torch.ones_like(ids)
    positions = ids.clone()
    with model.disabled(), keep_stream(model, layer) as kept:
        truth = model.hidden_states(ids, mask, positions)
        try:
            got = _run_blocks(model, layer, kept[-1], mask, positions, SuffixCache(layer + 1))
        except Exception:  # a family that does not take embeddings, say: then its whole model is run
            return False
    tolerance = 1e-4 if model.dtype == torch.float32 else 3e-2
    return bool((got.float() - truth.float()).abs().max() <= tolerance * truth.float().abs().max().clamp(min=1))


class SuffixCache(DynamicCache):
    """Keys and values of the blocks from ``first`` on; lengths are asked of that block, not of block 0."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(super().get_seq_length(max(layer_idx, self.first)))

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


@contextmanager
def keep_stream(model: SteeredModel, layer: int) -> Iterator[list[Tensor]]:
    """Inside the block, each forward pass appends what leaves block ``layer`` before it is steered, [B, T, D]."""
    kept: list[Tensor] = []
    block = model.layout.block_list(model.base)[layer]
    # In front of the steering hooks, whichever scope they belong to.
    handle = block.register_forward_hook(lambda _m, _a, output: kept.append(hidden_of(output)), prepend=True)
    try:
        yield kept
    finally:
        handle.remove()


class KeptStreams:
    """What the last forward pass left behind each policy's block.

    Args:
        layers: ``kept_layers``, or empty to keep nothing.
    """

    def __init__(self, model: SteeredModel, layers: Sequence[int | None]) -> None:
        self.model, self.layers = model, tuple(layers)
        self._kept: dict[int, list[Tensor]] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Keep while the block lasts."""
        with ExitStack() as stack:
            for layer in sorted({layer for layer in self.layers if layer is not None}):
                self._kept[layer] = stack.enter_context(keep_stream(self.model, layer))
            yield

    @property
    def on(self) -> bool:
        return bool(self._kept)

    def take(self, policies: Tensor) -> Tensor:
        """[B, T, D] of the last pass, row by row that of its policy's block; whatever stands there for a policy that
        keeps nothing.

        Args:
            policies: [B] policy numbers.
        """
        found = {layer: kept[-1] for layer, kept in self._kept.items()}
        for kept in self._kept.values():
            kept.clear()
        if len(found) == 1:
            return next(iter(found.values()))
        places = {layer: place for place, layer in enumerate(found)}
        place = torch.tensor([places.get(layer, 0) for layer in self.layers], device=policies.device)  # type: ignore[arg-type]
        rows = torch.arange(len(policies), device=policies.device)
        return torch.stack(list(found.values()))[place[policies], rows]


def suffix_states(
    model: SteeredModel,
    layer: int,
    stream: Tensor,
    mask: Tensor,
    positions: Tensor,
    cache: SuffixCache,
    steered: Tensor | bool | None = None,
) -> Tensor:
    """Final-normed states from the kept stream; the same numbers as ``SteeredModel.hidden_states`` of the whole model.

    Args:
        layer: the block that the stream left.
        stream: [B, T, D], unsteered.
        mask: [B, S] attention mask, S = T + cached length.
        positions: [B, T] position ids.
        steered: which positions the interventions act on: None or True all, False none, or [B, T] bool.

    Returns:
        [B, T, D].
    """
    here = {point: item for point, item in model.interventions.items() if point.layer == layer}
    if steered is not False and model.steers:
        for item in here.values():
            stream = item(stream, steered if isinstance(steered, Tensor) else None)
    if layer == model.n_layers - 1:
        return cast(Tensor, model.base.get_submodule(model.layout.norm)(stream))
    return _run_blocks(model, layer, stream, mask, positions, cache)


def _run_blocks(
    model: SteeredModel, layer: int, stream: Tensor, mask: Tensor, positions: Tensor, cache: SuffixCache
) -> Tensor:
    """The model's own forward over the blocks above ``layer``, with the stream in place of embeddings."""
    owner = model.base.get_submodule(model.layout.blocks.rpartition(".")[0])
    name = model.layout.blocks.rpartition(".")[2]
    whole = cast(nn.ModuleList, getattr(owner, name))
    with model.scope():  # opened on the whole list: hook points count from its beginning
        try:
            setattr(owner, name, nn.ModuleList(list(whole)[layer + 1 :]))
            arguments: dict[str, Any] = {"inputs_embeds": stream, "attention_mask": mask, "past_key_values": cache}
            if model.takes_positions:
                arguments["position_ids"] = positions
            return cast(Tensor, owner(**arguments, use_cache=True).last_hidden_state)
        finally:
            setattr(owner, name, whole)
