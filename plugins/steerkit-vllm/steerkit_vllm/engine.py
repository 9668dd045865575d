"""One vLLM engine for a base model: the folded checkpoint that it starts from, and the biases that change."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steerkit.errors import ModelError, SteerkitError, VectorError
from steerkit.exporters.folded import Folded
from steerkit.hookpoints import HookPoint
from steerkit.models import LoadedModel, SteeredModel
from steerkit.vectors import SteeringVector, VectorMetadata

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OWN: dict[str, Any] = {
    "skip_tokenizer_init": True,  # prompts and completions travel as token ids
    "logprobs_mode": "processed_logprobs",  # of logits / temperature, the distribution that is sampled
    "worker_extension_cls": "steerkit_vllm.worker.BiasLoader",
}
_running: weakref.WeakKeyDictionary[torch.nn.Module, dict[str, Engine]] = weakref.WeakKeyDictionary()
"""Engines by base and settings: fit, its report and evaluate each build a sampler, and a GPU holds one engine."""


class Engine:
    """vLLM with a bias behind each block, zero where nothing is steered."""

    def __init__(self, llm: Any, folder: str, dtype: str) -> None:
        self.llm, self._dtype = llm, dtype
        # Not before: vLLM may read its configuration again.
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._loaded: dict[str, bytes] = {}

    def steer(self, model: SteeredModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Bring the biases up to date; nothing is sent where they are.

        Raises:
            SteerkitError: if vLLM still holds keys and values of the former vector.
        """
        biases = Folded().biases(constant(model), _loaded(model, tokenizer))
        raw = {name: bias.float().contiguous().numpy().tobytes() for name, bias in biases.items()}
        if raw == self._loaded:
            return
        self._loaded = {}  # an update that fails half-way is sent again
        self.llm.collective_rpc("steerkit_load_biases", args=(raw, self._dtype))
        # Cached keys and values of prompts are those of the former vector.
        if not self.llm.reset_prefix_cache():
            raise SteerkitError("vllm: its prefix cache can't be reset, so it would mix the old vector with the new.")
        self._loaded = raw


def engine_for(
    model: SteeredModel, tokenizer: PreTrainedTokenizerBase, dtype: str, arguments: Mapping[str, Any]
) -> Engine:
    """The engine that runs for this base, or a new one.

    Args:
        dtype: of its weights, as ``Folded`` takes it.
        arguments: of ``vllm.LLM``.

    Raises:
        SteerkitError: if vLLM is missing or can't start, or ``arguments`` holds what the plugin sets.
        ModelError: if the base can't be folded into a Llama checkpoint.
    """
    key = json.dumps([dtype, dict(arguments)], sort_keys=True, default=str)
    engines = _running.setdefault(model.base, {})
    if key not in engines:
        engines[key] = _start(model, tokenizer, dtype, arguments)
    return engines[key]


def constant(model: SteeredModel) -> SteeringVector:
    """What the model adds, as static vectors, and zeros at the other layers.

    Raises:
        SteerkitError: for what a bias can't express.
    """
    if model.adapter is not None:
        raise SteerkitError("vllm serves steering vectors alone, not baselines that change weights.")
    if not model.token_mask.everywhere:
        raise VectorError(f"vllm can't follow the token mask {str(model.token_mask)!r}: a bias acts at every position.")
    width, tensors = model.d_model, _zeros(model)
    if model.steers:
        for point, item in model.interventions.items():
            if not item.constant or point.site == "attn_output":
                raise VectorError(
                    f"vllm can't serve {type(item).__name__} at {point}: it takes what adds the same at every "
                    "position behind the MLP (static, bias, projected, lowrank)."
                )
            with torch.no_grad():
                delta = item.delta(torch.zeros(1, 1, width, device=model.device))
            tensors[point] = {"vector": delta.float().expand(1, 1, width)[0, 0].cpu()}
    return _static(model, tensors)


def _zeros(model: SteeredModel) -> dict[HookPoint, dict[str, Tensor]]:
    return {HookPoint(layer): {"vector": torch.zeros(model.d_model)} for layer in range(model.n_layers)}


def _static(model: SteeredModel, tensors: Mapping[HookPoint, Mapping[str, Tensor]]) -> SteeringVector:
    return SteeringVector("static", tensors, metadata=VectorMetadata(d_model=model.d_model, n_layers=model.n_layers))


def _loaded(model: SteeredModel, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    return LoadedModel(model.base, tokenizer, model.layout, "base")


def _start(model: SteeredModel, tokenizer: PreTrainedTokenizerBase, dtype: str, arguments: Mapping[str, Any]) -> Engine:
    if taken := sorted(set(arguments) & {*_OWN, "model", "tokenizer", "dtype"}):
        raise SteerkitError(f"vllm: engine can't hold {', '.join(taken)}: the plugin sets it.")
    try:
        from vllm import LLM
    except ImportError:
        raise SteerkitError("vllm: vLLM is not installed: pip install vllm (it pins its own torch).") from None
    folder = tempfile.mkdtemp(prefix="steerkit-vllm-")
    try:
        # Of no vector: a bias behind each block, so that any layer can be steered later.
        Folded(dtype).write(_static(model, _zeros(model)), _loaded(model, tokenizer), Path(folder))
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        if config["model_type"] != "llama":
            raise ModelError(
                f"vllm serves bases that fold into a Llama checkpoint (Llama, Qwen2, Mistral), not "
                f"{config['model_type']!r}."
            )
        # Said outright: vLLM's own "auto" makes 16 bits of a float32 checkpoint.
        return Engine(LLM(model=folder, dtype=config["dtype"], **_OWN, **arguments), folder, config["dtype"])
    except SteerkitError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except Exception as error:  # vLLM raises many kinds: no memory, no device, a wrong argument
        shutil.rmtree(folder, ignore_errors=True)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SteerkitError(f"vllm can't start: {reason}") from error
