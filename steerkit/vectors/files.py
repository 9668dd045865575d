"""The vector's folder: ``steering.safetensors``, ``steering_config.json`` and a card, ``README.md``."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from steerkit.errors import SteerkitError, VectorError
from steerkit.files import write_bytes
from steerkit.hookpoints import HookPoint

if TYPE_CHECKING:
    from steerkit.vectors.value import SteeringVector

FORMAT_VERSION = 2
"""Version 2 has ``token_mask``; version 1, without it, acted on all positions and is still read."""
CONFIG_FILE = "steering_config.json"
TENSOR_FILE = "steering.safetensors"


def save(vector: SteeringVector, folder: str | Path) -> Path:
    """Write the folder, tensors first: they carry the config too."""
    from steerkit.vectors.card import card

    folder = Path(folder)
    flat = {f"{p}/{name}": t.contiguous() for p, tensors in vector.tensors.items() for name, t in tensors.items()}
    config = json.dumps(_config(vector, digest_of(flat)), indent=2, sort_keys=True, default=str)
    try:
        # The tensors' header carries the config too, and this one file is the vector: replacing it is the commit.
        write_bytes(folder / TENSOR_FILE, serialize(flat, metadata={"format": "pt", "steering_config": config}))
        write_bytes(folder / CONFIG_FILE, (config + "\n").encode())
        write_bytes(folder / "README.md", card(vector).encode())
    except SteerkitError as error:
        raise VectorError(f"Can't save the vector to {folder}: {error}") from error
    return folder


def load(folder: Path, source: str) -> SteeringVector:
    """Read the folder; ``source`` is what errors call it."""
    for name in (CONFIG_FILE, TENSOR_FILE):
        if not (folder / name).is_file():
            raise VectorError(f"{source} has no {name}: a vector is a folder written by save_pretrained.")
    text = (folder / CONFIG_FILE).read_text(encoding="utf-8", errors="replace")
    config = _parse_config(text, f"{source}/{CONFIG_FILE}")
    try:
        with safe_open(folder / TENSOR_FILE, framework="pt") as file:
            header = file.metadata() or {}
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise VectorError(f"{source}/{TENSOR_FILE} is damaged ({error}): copy it again.") from error
    digest = digest_of(flat)
    if config["digest"] != digest and "steering_config" in header:
        # A save was cut after its tensors were in place: their own copy of the config is the new one.
        config = _parse_config(header["steering_config"], f"{source}/{TENSOR_FILE}")
    if config["digest"] != digest:
        raise VectorError(f"{source}/{TENSOR_FILE} is damaged (its numbers are not those saved): copy it again.")
    return _from_config(config, flat, source)


def _config(vector: SteeringVector, digest: str) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "intervention": vector.intervention,
        "settings": dict(vector.settings),
        "token_mask": vector.token_mask,
        "hook_points": [str(point) for point in vector.tensors],
        "digest": digest,
        **asdict(replace(vector.metadata, receipts=finite(dict(vector.metadata.receipts)))),
    }


def _from_config(config: dict[str, Any], flat: Mapping[str, Tensor], source: str) -> SteeringVector:
    from steerkit.vectors.value import SteeringVector, VectorMetadata

    tensors: dict[HookPoint, dict[str, Tensor]] = {}
    try:
        for key, tensor in flat.items():
            point, _, name = key.partition("/")
            tensors.setdefault(HookPoint.parse(point), {})[name] = tensor
        metadata = VectorMetadata(**{name: config[name] for name in VectorMetadata.__dataclass_fields__})
        return SteeringVector(
            config["intervention"], tensors, config["settings"], metadata, config.get("token_mask", "all")
        )
    except KeyError as error:
        raise VectorError(f"{source}/{CONFIG_FILE} lacks {error}: save the vector again.") from None
    except SteerkitError as error:
        raise VectorError(f"{source}: {error}") from None


def _parse_config(text: str, place: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise VectorError(f"{place} is not JSON ({error}): copy it again.") from None
    version = config.get("format_version") if isinstance(config, dict) else type(config).__name__
    if version not in range(1, FORMAT_VERSION + 1):
        raise VectorError(f"{place}: expected a format_version up to {FORMAT_VERSION}, got {version}: update steerkit.")
    if not isinstance(config.get("digest"), str):
        raise VectorError(f"{place} lacks 'digest': save the vector again.")
    return config


def digest_of(flat: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(flat):
        tensor = flat[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def finite(value: Any) -> Any:
    """NaN is not JSON, and a receipt must not cost the vector: null instead."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
