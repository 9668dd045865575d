"""The linear map whose bias makes the same change as a static vector at a hook point, and the proof that it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steerkit.errors import ModelError
from steerkit.exporters.base import probe_ids
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import LoadedModel, SteeredModel
from steerkit.models.layout import hidden_of
from steerkit.models.sites import down_projection, find_site

_OUT = ("o_proj", "out_proj", "c_proj", "dense", "wo")
"""What families call the last linear map of attention."""


@dataclass(frozen=True, slots=True)
class LinearMap:
    """The last linear map before a hook point."""

    point: HookPoint
    name: str
    """Its dotted path in the model, e.g. ``model.layers.3.mlp.down_proj``."""
    module: nn.Module
    gain: float = 1.0
    """A bias of gain times the vector makes the vector's change (granite multiplies what a module adds by m)."""

    @property
    def last_name(self) -> str:
        """E.g. ``down_proj``."""
        return self.name.rpartition(".")[2]

    @property
    def part(self) -> str:
        """``mlp`` or ``attention``."""
        return "attention" if self.point.site == "attn_output" else "mlp"


def linear_map(loaded: LoadedModel, point: HookPoint) -> LinearMap:
    """The map for one hook point, found by name; ``prove`` shows that it is the right one.

    Raises:
        ModelError: if the block has none: a mixture of experts, or names that are unknown here.
    """
    base, layout = loaded.base, loaded.layout
    gain = 1.0
    if point.site == "attn_output":
        gain = find_site(base, layout, point).gain
        block = layout.block_list(base)[point.layer]
        named = [(path.partition(".")[0], path.rpartition(".")[2], child) for path, child in block.named_modules()]
        found = [child for top, last, child in named if "att" in top and last in _OUT and hasattr(child, "weight")]
        if len(found) != 1:
            raise ModelError(f"{point}: no single output projection in the attention of {type(block).__name__}.")
        module = found[0]
    else:
        try:
            module = down_projection(base, layout, point.layer)
        except ModelError:
            raise ModelError(
                f"{point}: a {base.config.model_type!r} block has no single down-projection that could carry the "
                "vector (a mixture of experts has many)."
            ) from None
        if point.site != "down_proj":
            gain = find_site(base, layout, HookPoint(point.layer, "mlp_output")).gain
    name = next(path for path, child in base.named_modules() if child is module)
    return LinearMap(point, name, module, gain)


@torch.no_grad()
def prove(loaded: LoadedModel, maps: Sequence[LinearMap]) -> None:
    """Steer the probe at the hook points, then by the maps' outputs: each steered block must put out the same.

    With random vectors, so that a small trained one can't hide a norm or a factor on the way.

    Raises:
        ModelError: naming the first hook point where something stands between the map and the residual stream.
    """
    base = loaded.base
    plain = _outputs(loaded, maps, {})
    draw = torch.Generator().manual_seed(0)
    items = {}
    for item in maps:
        static = Static(int(base.config.get_text_config().hidden_size))
        size = 0.3 * float(plain[item.point].square().mean().sqrt())
        static.vector.copy_(size * torch.randn(static.d_model, generator=draw))
        items[item.point] = static
    with SteeredModel(base, items, loaded.layout).applied():
        expected = _outputs(loaded, maps, {})
    got = _outputs(loaded, maps, summed(maps, {point: item.vector for point, item in items.items()}))
    allowed = 0.01 if base.dtype == torch.float32 else 0.2
    for item in maps:
        change = expected[item.point] - plain[item.point]
        if not float((got[item.point] - expected[item.point]).norm()) <= allowed * float(change.norm()):
            raise ModelError(
                f"{item.point}: in a {base.config.model_type!r} block something (a norm, a factor) stands between "
                f"{item.last_name} and the residual stream, so its bias is not the vector."
            )


def _outputs(loaded: LoadedModel, maps: Sequence[LinearMap], biases: Mapping[str, Tensor]) -> dict[HookPoint, Tensor]:
    """Hook point -> [B, T, D] fp32 output of its block for the probe, with these added to the maps' outputs."""
    seen: dict[HookPoint, Tensor] = {}

    def keep(point: HookPoint) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            seen[point] = hidden_of(output).float().clone()

        return hook

    def add(bias: Tensor) -> Any:
        return lambda _module, _args, output: output + bias.to(output)

    blocks = loaded.layout.block_list(loaded.base)
    with ExitStack() as stack:
        for name, bias in biases.items():
            stack.callback(loaded.base.get_submodule(name).register_forward_hook(add(bias)).remove)
        for item in maps:
            stack.callback(blocks[item.point.layer].register_forward_hook(keep(item.point)).remove)
        ids = probe_ids(loaded.base)[:1, :8]
        loaded.base(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return seen


def summed(maps: Sequence[LinearMap], vectors: Mapping[HookPoint, Tensor]) -> dict[str, Tensor]:
    """Map's name -> [D] fp32: the bias that all hook points behind it ask for together."""
    biases: dict[str, Tensor] = {}
    for item in maps:
        bias = item.gain * vectors[item.point]
        biases[item.name] = biases[item.name] + bias if item.name in biases else bias
    return biases


def layers(maps: Sequence[LinearMap]) -> str:
    """``1 layer``, ``6 layers``."""
    count = len({item.point.layer for item in maps})
    return f"{count} layer{'s' * (count != 1)}"


def is_conv1d(module: nn.Module) -> bool:
    """GPT-2 keeps its weights transposed."""
    return type(module).__name__ == "Conv1D"
