"""The finished parts of an analysis on disk, so that a killed run goes on.

``FOLDER/parts/`` holds ``settings.json`` (all that the numbers depend on) and one ``.safetensors`` file for each part:
its tensors, and its JSON values in the file's metadata. When the result is saved the folder is removed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from steerkit.analysis.statistics import without_nan
from steerkit.errors import SteerkitError
from steerkit.evaluation.journal import differences
from steerkit.files import atomic_path, ensure_folder, remove_unfinished, write_json

Part = dict[str, Any]
"""Name -> tensor, or JSON value."""


class Parts:
    """Parts of one analysis.

    Args:
        folder: the analysis's folder; None keeps nothing.
        settings: JSON values; parts of other settings are refused.

    Raises:
        SteerkitError: the parts there are of other settings (the message says which), or the folder can't be written.
    """

    def __init__(self, folder: str | Path | None, settings: Mapping[str, Any]) -> None:
        self.folder = None if folder is None else ensure_folder(Path(folder) / "parts")
        if self.folder is None:
            return
        remove_unfinished(self.folder)
        path = self.folder / "settings.json"
        try:
            there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except ValueError as error:
            raise SteerkitError(f"{path} is damaged ({error}): give another --out, or --restart true.") from None
        different = "" if there is None else differences(there, settings)
        if different and any(self.folder.glob("*.safetensors")):
            raise SteerkitError(
                f"{self.folder.parent} holds an unfinished analysis with other settings ({different}): repeat its "
                "command to go on with it, give another --out, or set it aside with --restart true."
            )
        if there is None or different:
            write_json(path, settings)

    def get(self, name: str, compute: Callable[[], Part]) -> Part:
        """The part of that name: from disk, else computed and put there.

        JSON values come back as JSON has them (lists for tuples, text keys), whether they were on disk or not.
        """
        path = None if self.folder is None else self.folder / f"{_file_name(name)}.safetensors"
        if path is not None and path.exists():
            return _read(path)
        tensors, values = _split(compute())
        text = json.dumps(without_nan(values), ensure_ascii=True)
        if path is not None:
            from safetensors.torch import save

            with atomic_path(path) as temporary:
                temporary.write_bytes(save(tensors, {"values": text, "part": name}))
        return {**tensors, **json.loads(text)}

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A failure that finished no part leaves nothing behind."""
        if kind is not None and self.folder is not None and not any(self.folder.glob("*.safetensors")):
            (self.folder / "settings.json").unlink(missing_ok=True)
            with suppress(OSError):  # something that is not ours lies in it
                self.folder.rmdir()

    def discard(self) -> None:
        """Remove them: their numbers are in the result."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _file_name(name: str) -> str:
    """Readable, and another one for each part."""
    return f"{re.sub(r'[^A-Za-z0-9.]+', '_', name)[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _split(part: Part) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {k: v.detach().cpu().contiguous() for k, v in part.items() if isinstance(v, Tensor)}
    return tensors, {key: value for key, value in part.items() if not isinstance(value, Tensor)}


def _read(path: Path) -> Part:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors: dict[str, torch.Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            values = json.loads((file.metadata() or {})["values"])
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise SteerkitError(
            f"{path} is damaged ({error}): delete it, and the same command computes it again."
        ) from None
    return {**tensors, **values}
