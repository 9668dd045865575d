"""``folded``: a plain Hugging Face checkpoint that has the vector in its biases.

The stream gets down_proj(x) at the end of a block; so a bias on down_proj adds the same vector at every position.
Where the base's down_proj has no bias its config is asked for one (Llama: ``mlp_bias``); Qwen2 and Mistral, whose
configs have no such setting, are the same computation as Llama's and are re-labelled as Llama.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedConfig, PreTrainedModel

from steerkit.errors import ModelError
from steerkit.exporters.base import Comparison, Exporter, allowed_difference, probe_logits
from steerkit.exporters.linear import LinearMap, layers, linear_map, prove, summed
from steerkit.models import LoadedModel, SteeredModel
from steerkit.vectors import SteeringVector

_FLAGS = {"mlp": "mlp_bias", "attention": "attention_bias"}
_SHARED = (
    *("vocab_size", "hidden_size", "intermediate_size", "hidden_act", "rms_norm_eps", "tie_word_embeddings"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "attention_dropout", "initializer_range"),
    *("max_position_embeddings", "rope_parameters", "pad_token_id", "bos_token_id", "eos_token_id", "use_cache"),
)
"""Settings of Qwen2 and Mistral that mean the same in Llama."""
_TEXT = "Tom has 12 pens;  he'll buy 305 more.\n\n\tWhat's 12 + 305? \u00bd\u00e9\u4e2d"
"""Digits, contractions, runs of blanks, letters of several scripts: where tokenizers differ."""


@final
class Folded(Exporter):
    """Constant vectors (static, projected, lowrank, bias) as biases of the checkpoint itself."""

    name = "folded"
    form: ClassVar[Literal["folder", "file"]] = "folder"

    def __init__(self, dtype: str = "auto") -> None:
        """
        Args:
            dtype: of the weights written: ``auto`` (as the base's checkpoint has them), float32, bfloat16 or float16.

        Raises:
            ModelError: for another dtype.
        """
        if dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ModelError(f"Unknown dtype {dtype!r}: write auto, float32, bfloat16 or float16.")
        self.dtype = dtype

    def write(self, vector: SteeringVector, loaded: LoadedModel, place: Path) -> str:
        base = loaded.base
        if getattr(base.config, "quantization_config", None) is not None:
            raise ModelError("folded needs the base's own weights, and these are quantised: give the full model.")
        static = self.constants(vector)
        maps = [linear_map(loaded, point) for point in static.tensors]
        prove(loaded, maps)
        dtype = self._dtype(base)
        model = _with_biases(base, maps, dtype)
        for name, bias in _biases(base, maps, static).items():
            model.get_submodule(name).bias.data = bias.to(dtype)
        model.save_pretrained(place)
        if base.generation_config is not None:
            # Not by save_pretrained: it refuses combinations that checkpoints on the hub have.
            base.generation_config.to_json_file(place / "generation_config.json")
        loaded.tokenizer.save_pretrained(place)
        kinds = sorted({item.last_name for item in maps})
        family = model.config.model_type
        origin = "" if family == base.config.model_type else f" (re-labelled from {base.config.model_type})"
        return (
            f"a {family} checkpoint{origin} in {_plain(dtype)} with the vector in the bias of {' and '.join(kinds)}, "
            f"{layers(maps)}"
        )

    def biases(self, vector: SteeringVector, loaded: LoadedModel) -> dict[str, Tensor]:
        """Parameter name -> [D] fp32: what ``write`` puts there, for engines that take the biases alone later on.

        Raises:
            VectorError: for a vector that is not the same at every position.
            ModelError: if a block has no single linear map that could carry it.
        """
        static = self.constants(vector)
        maps = [linear_map(loaded, point) for point in static.tensors]
        return {f"{name}.bias": bias for name, bias in _biases(loaded.base, maps, static).items()}

    def compare(self, vector: SteeringVector, loaded: LoadedModel, place: Path) -> Comparison:
        base, dtype = loaded.base, self._dtype(loaded.base)
        static = self.constants(vector)
        _check_tokenizer(loaded, place)
        exact = probe_logits(base, static.steer(base, loaded.layout))
        # What a file of 16-bit numbers can hold: the difference is then a fault of the fold, not of the rounding.
        items = static.to_interventions()
        maps = [linear_map(loaded, point) for point in items]
        totals = _biases(base, maps, static)
        for item in maps:
            if (total := totals.pop(item.name, None)) is not None:
                items[item.point].vector.data += (total.to(dtype).float() - total) / item.gain  # type: ignore[operator]
        expected = probe_logits(base, SteeredModel(base, items, loaded.layout))
        folded = AutoModelForCausalLM.from_pretrained(place, dtype=base.dtype, local_files_only=True)
        got = probe_logits(folded.eval().to(base.device))
        coarse = any(not torch.equal(p, p.to(dtype).to(p.dtype)) for p in base.parameters())
        note = (
            f"Rounding the vector to {_plain(dtype)} moves the logits by {float((expected - exact).abs().max()):.2g}."
        )
        if coarse:
            note = f"The base's weights were rounded to {_plain(dtype)}, as asked."
        return Comparison(
            "logits of stock transformers and of the steered model",
            float((got - expected).abs().max()),
            allowed_difference(expected, dtype if coarse else base.dtype),
            note if dtype != base.dtype else "",
        )

    def _dtype(self, base: PreTrainedModel) -> torch.dtype:
        if self.dtype != "auto":
            return getattr(torch, self.dtype)
        try:
            # A base that was loaded in float32 for a CPU has forgotten what its file holds.
            saved = AutoConfig.from_pretrained(base.config._name_or_path, local_files_only=True).dtype
        except (OSError, ValueError):
            saved = None  # a model made in memory
        return saved if isinstance(saved, torch.dtype) else base.dtype


def _with_biases(base: PreTrainedModel, maps: list[LinearMap], dtype: torch.dtype) -> PreTrainedModel:
    """A model with the base's weights (shared, where the dtype is the same) and a bias on each of the maps."""
    wanting = {item.part for item in maps if getattr(item.module, "bias", None) is None}
    config = _config(base, wanting)
    config.dtype = dtype
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in base.state_dict().items()}
    for name, parameter in model.named_parameters():
        if name not in state and name.endswith(".bias"):
            state[name] = torch.zeros(parameter.shape, dtype=dtype)
    keys = model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    bare = [item for item in maps if getattr(model.get_submodule(item.name), "bias", None) is None]
    if bare or keys.unexpected_keys or any(p.is_meta for p in model.parameters()):
        raise _no_bias(base, wanting)
    return model


def _biases(base: PreTrainedModel, maps: list[LinearMap], static: SteeringVector) -> dict[str, Tensor]:
    """Map's name -> [D] fp32: the bias that it has, plus the vectors behind it."""
    totals = summed(maps, {point: tensors["vector"] for point, tensors in static.tensors.items()})
    for name in totals:
        own = getattr(base.get_submodule(name), "bias", None)
        if own is not None:
            totals[name] = totals[name] + own.detach().float().cpu()
    return totals


def _config(base: PreTrainedModel, wanting: set[str]) -> PreTrainedConfig:
    """The base's config with the biases that are wanted."""
    config = copy.deepcopy(base.config)
    if not wanting:
        return config
    if config.model_type in ("qwen2", "mistral"):
        return _as_llama(config, wanting)
    for part in wanting:
        if not hasattr(config, _FLAGS[part]):
            raise _no_bias(base, wanting)
        setattr(config, _FLAGS[part], True)
    return config


def _as_llama(config: Any, wanting: set[str]) -> LlamaConfig:
    """Qwen2: with biases on q, k and v; Mistral: without. Both only as long as no sliding window is at work."""
    if config.model_type == "qwen2":
        slides = any(kind != "full_attention" for kind in config.layer_types)
    else:
        slides = config.sliding_window is not None and config.sliding_window < config.max_position_embeddings
    if slides:
        raise ModelError(
            f"folded re-labels {config.model_type} as Llama, and this one attends in a sliding window of "
            f"{config.sliding_window} tokens, which Llama has not."
        )
    shared = {name: getattr(config, name) for name in _SHARED}
    return LlamaConfig(
        **shared,
        head_dim=getattr(config, "head_dim", None),
        attention_bias=config.model_type == "qwen2" or "attention" in wanting,
        mlp_bias="mlp" in wanting,
    )


def _check_tokenizer(loaded: LoadedModel, place: Path) -> None:
    """AutoTokenizer goes by the family's name, which may be another one now."""
    again = AutoTokenizer.from_pretrained(place, local_files_only=True)
    if loaded.tokenizer(_TEXT).input_ids != again(_TEXT).input_ids:
        raise ModelError(
            f"Nothing was written: as a {again.__class__.__name__} of the folded checkpoint the tokenizer splits text "
            "otherwise than the base's."
        )


def _no_bias(base: PreTrainedModel, wanting: set[str]) -> ModelError:
    flags = " or ".join(sorted(_FLAGS[part] for part in wanting)) or "its biases"
    return ModelError(
        f"folded needs a bias that {base.config.model_type!r} checkpoints can't have: stock transformers has no "
        f"working {flags} for it. Llama, Qwen2, Mistral and families with biases of their own (gpt2, opt...) can."
    )


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
