"""``peft``: a LoRA adapter folder that ``PeftModel.from_pretrained`` loads.

- ``tokenwise`` is LoRA on down_proj with r = alpha = 1: a is lora_A, b is lora_B.
- Constant vectors are the bias of lora_B (``lora_bias=True``) with lora_A = lora_B = 0. PEFT can't merge such an
  adapter into a map without bias, and says so by a warning.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import ClassVar, Literal, final

import torch
from safetensors.torch import save_file
from torch import Tensor

from steerkit import registry
from steerkit.errors import ModelError, VectorError
from steerkit.exporters.base import Comparison, Exporter, allowed_difference, probe_logits
from steerkit.exporters.linear import LinearMap, is_conv1d, layers, linear_map, prove, summed
from steerkit.interventions import Tokenwise
from steerkit.models import LoadedModel
from steerkit.vectors import SteeringVector

_EXPECTED_WARNINGS = (
    ".*merging LoRA weights won't be possible.*",  # as above
    ".*is_gradient_checkpointing. is deprecated.*",  # between PEFT 0.21 and transformers 5.23
)


@final
class Peft(Exporter):
    """``tokenwise`` and constant vectors."""

    name = "peft"
    form: ClassVar[Literal["folder", "file"]] = "folder"

    def write(self, vector: SteeringVector, loaded: LoadedModel, place: Path) -> str:
        from peft import LoraConfig

        plugin = registry.resolve("interventions", vector.intervention)
        tokenwise = plugin is Tokenwise
        if not tokenwise and not plugin.constant:
            raise VectorError(
                f"peft can't express {vector.intervention!r}: LoRA has its rank-1 form (tokenwise) and constant "
                "vectors, and no gate."
            )
        maps = [linear_map(loaded, point) for point in vector.tensors]
        prove(loaded, [item for item in maps if item.point.site != "down_proj"])
        state = _tokenwise(vector, maps) if tokenwise else _constant(self.constants(vector), maps)
        conv = {is_conv1d(item.module) for item in maps}
        if len(conv) > 1:
            raise ModelError("peft can't express it: the maps of this model are of two kinds (Linear and Conv1D).")
        config = LoraConfig(
            r=1,
            lora_alpha=1,
            target_modules=sorted({item.name for item in maps}),
            lora_bias=not tokenwise,
            fan_in_fan_out=conv == {True},
            task_type="CAUSAL_LM",
            base_model_name_or_path=loaded.name,
            inference_mode=True,
        )
        save_file(state, place / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(place))
        kinds = " and ".join(sorted({item.last_name for item in maps}))
        how = "r = alpha = 1" if tokenwise else "the vector as bias of lora_B"
        return f"a PEFT LoRA adapter on {kinds} ({how}), {layers(maps)}"

    def compare(self, vector: SteeringVector, loaded: LoadedModel, place: Path) -> Comparison:
        from peft import PeftModel

        expected = probe_logits(loaded.base, vector.steer(loaded.base, loaded.layout))
        with warnings.catch_warnings():
            for message in _EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            model = PeftModel.from_pretrained(loaded.base, str(place))
        try:
            got = probe_logits(loaded.base, model.eval())
        finally:
            model.unload()  # takes its layers out of the base again
        difference = float((got - expected).abs().max())
        what = "logits of PeftModel.from_pretrained and of the steered model"
        return Comparison(what, difference, allowed_difference(expected, loaded.base.dtype))


def _tokenwise(vector: SteeringVector, maps: list[LinearMap]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for item in maps:
        tensors = vector.tensors[item.point]
        state[_key(item.name, "lora_A.weight")] = tensors["a"][None].contiguous()
        state[_key(item.name, "lora_B.weight")] = tensors["b"][:, None].contiguous()
    return state


def _constant(static: SteeringVector, maps: list[LinearMap]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    widths = {item.name: _in_features(item) for item in maps}
    for name, bias in summed(maps, {p: t["vector"] for p, t in static.tensors.items()}).items():
        state[_key(name, "lora_A.weight")] = torch.zeros(1, widths[name])
        state[_key(name, "lora_B.weight")] = torch.zeros(len(bias), 1)
        state[_key(name, "lora_B.bias")] = bias.contiguous()
    return state


def _in_features(item: LinearMap) -> int:
    rows, columns = item.module.weight.shape  # type: ignore[misc]
    return int(rows if is_conv1d(item.module) else columns)


def _key(name: str, tensor: str) -> str:
    return f"base_model.model.{name}.{tensor}"  # the prefix of PEFT's wrapper
