"""A model known by its config alone: what it weighs, and a random one of the same widths with fewer blocks."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from steerkit.errors import ModelError
from steerkit.models.load import _locate, _paddable, _read


def load_config(spec: str, trust_remote_code: bool = False) -> Any:
    """The config of what ``load_model`` would load; the weights need not be there.

    Raises:
        ModelError: if there is no such model, or the hub can't be reached.
    """
    folder, local_only = _config_at(spec)
    options = {"trust_remote_code": trust_remote_code, "local_files_only": local_only}
    return _read(spec, lambda: AutoConfig.from_pretrained(folder, **options))


def load_tokenizer(spec: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Its tokenizer, padding on the left.

    Raises:
        ModelError: if it is not there.
    """
    from transformers import AutoTokenizer

    folder, local_only = _config_at(spec)
    options = {"trust_remote_code": trust_remote_code, "local_files_only": local_only}
    return _paddable(spec, _read(spec, lambda: AutoTokenizer.from_pretrained(folder, **options)))


def _config_at(spec: str) -> tuple[str, bool]:
    if not Path(spec).expanduser().is_dir() and "/" in spec:
        try:
            if isinstance(try_to_load_from_cache(spec, "config.json"), str):
                return spec, True
        except ValueError:  # no hub id
            pass
    return _locate(spec)


@dataclass(frozen=True, slots=True)
class Weight:
    """Of a whole model, as it would be loaded; bytes."""

    parameters: int
    total: int
    """Parameters and buffers, shared ones once."""
    linear: dict[int, int]
    """Numbers in a linear map -> bytes of all maps of that size."""


def on_meta(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The model without numbers: shapes and modules alone, whatever its size.

    Raises:
        ModelError: if transformers can't build one of this config.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    except (ValueError, KeyError, RuntimeError, ImportError, AttributeError) as error:
        raise ModelError(f"No model can be built of this config ({' '.join(str(error).split())[:200]}).") from error


def weight(base: PreTrainedModel) -> Weight:
    """What its tensors take."""
    tensors = {id(t): t for t in [*base.parameters(), *base.buffers()]}.values()
    linear: dict[int, int] = {}
    for module in base.modules():
        if type(module) is nn.Linear:
            n = module.weight.numel()
            linear[n] = linear.get(n, 0) + n * module.weight.element_size()
    return Weight(sum(p.numel() for p in base.parameters()), sum(t.numel() * t.element_size() for t in tensors), linear)


def stand_in(config: Any, blocks: int, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A random model of the same family and widths with so many blocks: what a block costs can be measured on it."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    depth = int(text.num_hidden_layers)
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == depth:
            setattr(text, name, value[:blocks])  # layer_types and the like
    text.num_hidden_layers = blocks
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        with device:
            return AutoModelForCausalLM.from_config(small, dtype=dtype).eval()
