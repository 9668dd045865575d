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

from steerkit import registry
from steerkit.errors import SteerkitError, VectorError
from steerkit.files import write_bytes
from steerkit.hookpoints import HookPoint
from steerkit.vectors import limits

if TYPE_CHECKING:
    from steerkit.vectors.value import SteeringVector

FORMAT_VERSION = 2
"""Version 2 has ``token_mask``; version 1, without it, acted on all positions and is still read."""
CONFIG_FILE = "steering_config.json"
TENSOR_FILE = "steering.safetensors"


def save(vector: SteeringVector, folder: str | Path, place: str | None = None) -> Path:
    """Write the folder, tensors first: they carry the config too.

    Args:
        place: from where the card says it can be loaded; default: the folder, seen from the working directory.
    """
    from steerkit.vectors.card import card

    folder = Path(folder)
    flat = {f"{p}/{name}": t.contiguous() for p, tensors in vector.tensors.items() for name, t in tensors.items()}
    config = json.dumps(_config(vector, digest_of(flat)), indent=2, sort_keys=True, default=str)
    try:
        # The tensors' header carries the config too, and this one file is the vector: replacing it is the commit.
        write_bytes(folder / TENSOR_FILE, serialize(flat, metadata={"format": "pt", "steering_config": config}))
        write_bytes(folder / CONFIG_FILE, (config + "\n").encode())
        write_bytes(folder / "README.md", card(vector, place or _from_here(folder)).encode())
    except SteerkitError as error:
        raise VectorError(f"Can't save the vector to {folder}: {error}") from error
    return folder


def _from_here(folder: Path) -> str:
    try:
        return str(folder.resolve().relative_to(Path.cwd().resolve()))
    except (ValueError, OSError):
        return str(folder)


def load(folder: Path, source: str, allow_code: bool = False) -> SteeringVector:
    """Read the folder; ``source`` is what errors call it.

    Nothing of the folder is run: the numbers are safetensors, the rest is JSON, and an intervention that is not the
    name of an installed plugin is refused.

    Args:
        allow_code: let the file name the intervention's code (``package.module:Class``).
    """
    for name in (CONFIG_FILE, TENSOR_FILE):
        if not (folder / name).is_file():
            raise VectorError(f"{source} has no {name}: a vector is a folder written by save_pretrained.")
    try:
        data = limits.read_config(folder / CONFIG_FILE, source)
        config = _parse_config(data, f"{source}/{CONFIG_FILE}")
        limits.check_tensor_file(folder / TENSOR_FILE, source)
    except OSError as error:
        raise VectorError(f"{source} can't be read: {error.strerror or error}.") from error
    try:
        with safe_open(folder / TENSOR_FILE, framework="pt") as file:
            header = file.metadata() or {}
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        digest = digest_of(flat)
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise VectorError(f"{source}/{TENSOR_FILE} is damaged ({error}): copy it again.") from error
    if config["digest"] != digest and "steering_config" in header:
        # A save was cut after its tensors were in place: their own copy of the config is the new one.
        config = _parse_config(header["steering_config"].encode(), f"{source}/{TENSOR_FILE}")
    if config["digest"] != digest:
        raise VectorError(f"{source}/{TENSOR_FILE} is damaged (its numbers are not those saved): copy it again.")
    limits.check_types(config, source)
    named = config.get("intervention")
    if isinstance(named, str) and ":" in named and not (allow_code or registry.may_import(named, from_file=True)):
        raise VectorError(
            f"{source} names code to run, {named!r}, instead of an installed intervention: if you trust it, pass "
            "allow_code=True (on the command line: --allow_code)."
        )
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
            if len(key) > 200 or not tensor.is_floating_point():
                raise VectorError(f"{key[:80]!r} ({tensor.dtype}) is no parameter of an intervention.")
            tensors.setdefault(HookPoint.parse(point), {})[name] = tensor
        metadata = VectorMetadata(**{name: config[name] for name in VectorMetadata.__dataclass_fields__})
        return SteeringVector(
            config["intervention"], tensors, config["settings"], metadata, config.get("token_mask", "all")
        )
    except KeyError as error:
        raise VectorError(f"{source}/{CONFIG_FILE} lacks {error}: save the vector again.") from None
    except SteerkitError as error:
        raise VectorError(f"{source}: {error}") from None


def _parse_config(data: bytes, place: str) -> dict[str, Any]:
    config = limits.read_json(data, place)
    version = config.get("format_version")
    if not isinstance(version, int) or version not in range(1, FORMAT_VERSION + 1):
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
