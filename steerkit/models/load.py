"""Load a base model and its tokenizer, from a plugin, a local folder, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from steerkit import registry
from steerkit.errors import ModelError
from steerkit.models.caching import require_cache, verify_cache, verify_padding
from steerkit.models.layout import FAMILIES, Layout, find_layout, text_config, verify_layout

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
_SAMPLE = 16
"""Weights sampled from each parameter for a fingerprint."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A base model, ready to be steered."""

    base: PreTrainedModel
    """In eval mode; not yet frozen."""
    tokenizer: PreTrainedTokenizerBase
    """Pads on the left, with a pad token."""
    layout: Layout
    name: str
    """The spec that it was loaded from; vectors name their base by it."""


def load_model(
    spec: str,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    layout: Layout | Mapping[str, str] | None = None,
    allow_pickle: bool = False,
) -> LoadedModel:
    """Load what ``spec`` names.

    Args:
        spec: a plugin of group ``steerkit.models`` (or ``module:function``) that returns a folder; a folder; a hub id
            ``org/name``. Files in the hub cache are used as they are; only missing ones are fetched.
        dtype: ``auto`` (as saved, but float32 on a CPU, where 16-bit products run many times slower), or a name such
            as ``bfloat16``.
        device: where to put it; None leaves it on the CPU.
        trust_remote_code: run modelling code that comes with the checkpoint.
        layout: where the blocks are, for a family that steerkit does not know.
        allow_pickle: also read ``.bin`` checkpoints, which can run code when opened.

    Raises:
        ModelError: if there is no such model, its files are damaged, its layout is unknown, it can't be padded, or
            nothing can be sampled from it.
        PluginError: if the plugin itself fails.
    """
    base, tokenizer = load_checkpoint(spec, dtype, device, trust_remote_code, allow_pickle)
    require_cache(base)
    found = find_layout(base, layout)
    if layout is not None or base.config.model_type not in FAMILIES:
        verify_layout(base, found)
        verify_cache(base)
        verify_padding(base)
    return LoadedModel(base, tokenizer, found, spec)


def load_checkpoint(
    spec: str,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """``load_model`` without the checks of what was loaded (``steerkit doctor`` reports on them one by one)."""
    if isinstance(dtype, str) and dtype != "auto":
        known = getattr(torch, dtype, None)
        if not isinstance(known, torch.dtype):
            raise ModelError(f"Unknown dtype {dtype!r}: write auto, float32, bfloat16 or float16.")
        dtype = known
    elif dtype == "auto" and torch.device(device or "cpu").type == "cpu":
        dtype = torch.float32
    folder, local_only = _locate(spec)
    options = {"trust_remote_code": trust_remote_code, "local_files_only": local_only}
    weights: dict[str, Any] = {"dtype": dtype, "use_safetensors": None if allow_pickle else True}
    base, info = _read(
        spec, lambda: AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **weights, **options)
    )
    # transformers fills a hole with random numbers and only logs it.
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(f"{spec}: the checkpoint lacks {len(info['missing_keys'])} tensors ({some}): get it again.")
    tokenizer = _paddable(spec, _read(spec, lambda: AutoTokenizer.from_pretrained(folder, **options)))
    return (base.eval() if device is None else _read(spec, lambda: base.eval().to(device))), tokenizer


def fingerprint(model: PreTrainedModel) -> str:
    """16 hex digits that tell one base model from another: its shape and a sample of its weights.

    Weights are rounded to bfloat16 first, so that a checkpoint loaded in fp32 and in bf16 has one fingerprint (a
    fp32 checkpoint loaded in fp16 is rounded twice and may get another). Cheap: 16 numbers a parameter.
    """
    config = text_config(model)
    digest = hashlib.sha256(f"{config.model_type} {config.hidden_size} {config.vocab_size}".encode())
    samples: list[torch.Tensor] = []
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            digest.update(f"{name} {list(parameter.shape)}".encode())
            flat = parameter.detach().reshape(-1)
            # Strided without arange in floating point: the same places on every device and platform.
            sample = flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE]
            samples.append(sample.to(torch.bfloat16) if sample.is_floating_point() else sample)
    for dtype in sorted({sample.dtype for sample in samples}, key=str):
        # One copy to the CPU a dtype, not one a parameter.
        joined = torch.cat([s.to(samples[0].device) for s in samples if s.dtype == dtype]).cpu()
        digest.update(joined.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _locate(spec: str) -> tuple[str, bool]:
    """(folder or hub id, whether to stay off the network)."""
    names = [entry.name for entry in registry.entries("models")]
    if spec in names or re.search(r":\w+$", spec):
        function = cast(Callable[[], str], registry.resolve("models", spec))
        return str(function()), True
    if Path(spec).expanduser().is_dir():
        return str(Path(spec).expanduser()), True
    if not _HUB_ID.match(spec):
        raise _unknown(spec, names, "There is no such folder.")
    if isinstance(try_to_load_from_cache(spec, "config.json"), str) and _weights_cached(spec):
        return spec, True
    if "/" not in spec:
        raise _unknown(spec, names, "")
    try:
        # Asked once and at once: from_pretrained would retry an unreachable hub for the better part of a minute.
        HfApi().model_info(spec, timeout=10)
    except OfflineModeIsEnabled:
        raise _unknown(spec, names, "It is not in the hub cache, and HF_HUB_OFFLINE is set.") from None
    except GatedRepoError:
        raise ModelError(f"{spec} is gated: accept its terms on its hub page, then run `hf auth login`.") from None
    except RepositoryNotFoundError:
        raise _unknown(spec, names, "The hub has no such model (or it is private: `hf auth login`).") from None
    except Exception as error:  # the HTTP library, and so its errors, changes with huggingface_hub's version
        reason = f"It is not in the hub cache, and the hub can't be reached ({_first_line(error)})."
        raise _unknown(spec, names, reason) from None
    return spec, False


def _weights_cached(spec: str) -> bool:
    files = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    return any(isinstance(try_to_load_from_cache(spec, file), str) for file in files)


def _unknown(spec: str, names: list[str], reason: str) -> ModelError:
    return ModelError(
        f"No model {spec!r}.{registry.did_you_mean(spec, names)} {reason}{' ' if reason else ''}"
        f"Installed: {', '.join(names) or 'none'}. Or give a folder (./my-model) or a hub id (org/name)."
    )


def _read(spec: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except SafetensorError as error:
        raise ModelError(f"{spec}: damaged weights ({_first_line(error)}): get the checkpoint again.") from error
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, json.JSONDecodeError) as error:
        raise ModelError(f"{spec} can't be loaded: {_first_line(error)}") from error


def _paddable(spec: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"{spec}: the tokenizer has neither a pad nor an eos token, so prompts can't be batched: "
                "set pad_token in its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"  # completions of a batch start at one column
    return tokenizer


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
