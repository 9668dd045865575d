"""What a vector's file may ask for: a stranger may have written it, and it is read before anything is known of it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit import registry
from steerkit.errors import SteerkitError, VectorError

if TYPE_CHECKING:
    from steerkit.hookpoints import HookPoint
    from steerkit.interventions.base import Intervention
    from steerkit.vectors.value import SteeringVector

MAX_CONFIG_BYTES = 2**24
MAX_TENSOR_BYTES = 2**31
"""The largest vectors are some megabytes."""
MAX_WIDTH = 2**17
"""Of the residual stream, and of anything inside a block."""
MAX_POINTS = 4096
_KINDS: dict[str, tuple[type, ...]] = {
    "intervention": (str,),
    "settings": (dict,),
    "token_mask": (str,),
    "model": (str,),
    "fingerprint": (str,),
    "d_model": (int,),
    "n_layers": (int,),
    "receipts": (dict,),
}
_RECEIPTS: dict[str, tuple[type, ...]] = {
    "max_tokens": (int,),
    "prompt": (dict,),
    "dataset_spec": (str, dict),
    "dataset": (str,),
    "command": (str,),
}
MAX_NUMBERS = 2**28
"""Numbers that an intervention may make anew from its settings (fixed projections): 1 GB."""


def check_tensor_file(path: Path, source: str) -> None:
    """Refuse a tensor file whose header can't be true, before a tensor of it is allocated.

    safetensors checks the same and more; this names what is wrong, and bounds the size.

    Raises:
        VectorError: for a file that is too large, a header longer than the file, or tensors outside of it.
    """
    size = path.stat().st_size
    if size > MAX_TENSOR_BYTES:
        raise VectorError(f"{source}/{path.name} has {size:,} bytes: a vector has {MAX_TENSOR_BYTES:,} at most.")
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_CONFIG_BYTES):
            raise VectorError(f"{source}/{path.name} is damaged (its header can't be read): copy it again.")
        header = read_json(file.read(length), f"{source}/{path.name}")
    entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
    if len(entries) > 64 * MAX_POINTS:
        raise VectorError(f"{source}/{path.name} holds {len(entries):,} tensors: that is no steering vector.")
    for key, entry in entries.items():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        whole = isinstance(offsets, list) and all(isinstance(offset, int) for offset in offsets)
        if not whole or not all(0 <= offset <= size - 8 - length for offset in offsets):  # type: ignore[union-attr]
            raise VectorError(f"{source}/{path.name} is damaged ({key[:80]!r} lies outside the file): copy it again.")


def read_config(path: Path, source: str) -> bytes:
    """The bytes of a config file.

    Raises:
        VectorError: if it is too large.
    """
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise VectorError(f"{source}/{path.name} has more than {MAX_CONFIG_BYTES:,} bytes: it is no vector's config.")
    return path.read_bytes()


def read_json(data: bytes, place: str) -> dict[str, Any]:
    """The JSON object in ``data``.

    Raises:
        VectorError: if it is none.
    """
    try:
        value = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise VectorError(f"{place} is not JSON ({error}): copy it again.") from None
    return value if isinstance(value, dict) else {"format_version": type(value).__name__}


def check_types(config: Mapping[str, Any], source: str) -> None:
    """Refuse values of the wrong kind: what reads them later would fail in many places.

    Raises:
        VectorError: naming the entry.
    """
    receipts = config.get("receipts")
    tables: list[tuple[Mapping[str, Any], dict[str, tuple[type, ...]]]] = [(config, _KINDS)]
    tables += [(receipts, _RECEIPTS)] if isinstance(receipts, dict) else []
    for table, kinds in tables:
        for name, kind in kinds.items():
            value = table.get(name)
            absent = name not in table or (value is None and kinds is _RECEIPTS)
            if not absent and (not isinstance(value, kind) or isinstance(value, bool)):
                wanted = " or ".join(k.__name__ for k in kind)
                raise VectorError(f"{source}: expected {name} to be {wanted}, got {value!r:.60}: save it again.")
    if len(config.get("token_mask") or "") > 100:
        raise VectorError(f"{source}: token_mask {config['token_mask']!r:.60} can't be read.")
    for name in ("d_model", "n_layers"):
        if not 0 <= (config.get(name) or 0) <= MAX_WIDTH:
            raise VectorError(f"{source}: {name} {config[name]} can't be: a model has {MAX_WIDTH:,} at most.")


def plugin_of(vector: SteeringVector) -> type[Intervention]:
    """The class that the vector's numbers are parameters of.

    Raises:
        PluginError: if it is not installed.
        VectorError: if it is no intervention, or the numbers that its change is linear in are missing.
    """
    from steerkit.interventions.base import Intervention

    plugin = registry.resolve("interventions", vector.intervention)
    if not (isinstance(plugin, type) and issubclass(plugin, Intervention)):
        raise VectorError(f"{vector.intervention!r} is no intervention: a vector can't be made of it.")
    for point, named in vector.tensors.items():
        missing = [name for name in plugin.scale_by if name not in named]
        if missing:
            raise VectorError(f"{point} does not fit {vector.intervention!r}: it has no {missing[0]!r}.")
    return plugin


def build(vector: SteeringVector) -> dict[HookPoint, Intervention]:
    """``Intervention.build`` for the vector's hook points, if its settings ask for no absurd size.

    Raises:
        PluginError, VectorError: as ``plugin_of``; also for settings that the intervention does not take.
    """
    plugin = plugin_of(vector)
    label, settings = f"{vector.intervention!r}", dict(vector.settings)
    numbers = {key: abs(value) for key, value in settings.items() if isinstance(value, int) and key != "seed"}
    # What comes from the base model is a width; any other number (a rank) may multiply it.
    largest = max([1, *(value for key, value in numbers.items() if key not in plugin.needs)])
    widest = max([vector.metadata.d_model, *(value for key, value in numbers.items() if key in plugin.needs)])
    points = len(vector.tensors)
    if widest > MAX_WIDTH or points > MAX_POINTS or points * widest * largest > MAX_NUMBERS:
        raise VectorError(
            f"{label} at {points} hook points, width {widest:,}, settings {settings!r:.80}: that is more than "
            f"{MAX_NUMBERS:,} numbers, and no vector."
        )
    try:
        return plugin.build(list(vector.tensors), vector.metadata.d_model, **settings)
    except SteerkitError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise VectorError(f"{label} does not take the settings {settings!r:.80} ({reason}).") from None
