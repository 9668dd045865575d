"""Checkpoints: whole files or none, the newest few of them, and what beyond the weights a run goes on from."""

from __future__ import annotations

import logging
import math
import random
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.plugins.io import CheckpointIO

from steerkit.errors import SteerkitError
from steerkit.files import atomic_path

log = logging.getLogger(__name__)

KEPT = 3
"""Checkpoints that stay: the newest, and two to fall back to."""
_STEP = re.compile(r"step=(\d+)")


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step={step:08d}.ckpt"


def checkpoints(folder: Path) -> list[Path]:
    """Those of a folder, the newest first: by the step in the name, files without one last."""

    def age(path: Path) -> tuple[int, float]:
        step = _STEP.search(path.stem)
        return (int(step[1]) if step else -1, path.stat().st_mtime)

    return sorted(folder.glob("*.ckpt"), key=age, reverse=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint; nothing in the file is run (``weights_only``).

    Raises:
        SteerkitError: if it is missing, cut off, altered, or no checkpoint.
    """
    place = Path(path)
    try:
        with zipfile.ZipFile(place) as archive:  # torch reads on over a wrong checksum
            broken = archive.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"{broken} is not what was written")
        content = torch.load(place, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
            raise ValueError("it holds no training state")
    except FileNotFoundError:
        raise SteerkitError(f"No checkpoint {place}.") from None
    except Exception as error:  # zipfile, torch and the unpickler raise a dozen kinds
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        if "Weights only load failed" in reason:  # torch goes on with how to run what is in it
            reason = "it holds other things than tensors and plain values"
        raise SteerkitError(f"The checkpoint {place} is damaged, or none ({reason}).") from None
    return content


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest one that can be read; None if there is none at all.

    Raises:
        SteerkitError: if none of them can be read.
    """
    found = checkpoints(folder)
    for path in found:
        try:
            read_checkpoint(path)
        except SteerkitError as error:
            log.warning("%s Trying the one before.", error)
            continue
        return path
    if found:
        raise SteerkitError(
            f"None of the {len(found)} checkpoints in {folder} can be read: start again without --ckpt_path last."
        )
    return None


def set_later_aside(folder: Path, start: Path | None) -> None:
    """Rename what is newer than ``start`` to ``*.ckpt.old``: it belongs to another past, or is damaged."""
    for path in checkpoints(folder):
        if start is not None and path.resolve() == start.resolve():
            return
        path.replace(path.with_suffix(".ckpt.old"))


class CheckpointFiles(CheckpointIO):
    """Lightning's checkpoints through ``files.atomic_path``; read without running anything in them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write, sync, rename.

        Raises:
            SteerkitError: if the disk refuses; earlier checkpoints stay.
        """
        # Buffered: a write to the bare file may take a part of the bytes only, which torch would not notice.
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch's zip writer hides the system's error
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


# -- random numbers


def random_states() -> dict[str, Any]:
    """The global generators of torch, numpy and python: steerkit draws from none of them, but plugins may."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, python_gauss = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": {"keys": torch.from_numpy(np.asarray(keys, np.int64)), "rest": [position, has_gauss, gauss]},
        "python": {"words": torch.tensor(words, dtype=torch.int64), "rest": [version, python_gauss]},
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Put the generators back."""
    torch.set_rng_state(states["torch"])
    np.random.set_state(("MT19937", states["numpy"]["keys"].numpy().astype(np.uint32), *states["numpy"]["rest"]))
    version, gauss = states["python"]["rest"]
    random.setstate((version, tuple(states["python"]["words"].tolist()), gauss))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def loops_at_step_end(loops: dict[str, Any], step: int, epoch_length: float, validation_due: bool) -> None:
    """Set Lightning's progress counters to what they are at the end of optimiser step number ``step``.

    A checkpoint is saved a little later (so that the step's metrics are on disk), or on the way out of a broken step
    or validation: as they stand, the counters would send Lightning into the middle of something.

    Args:
        epoch_length: batches of an epoch; infinite if a run is one epoch, which a longer run then goes on with.
        validation_due: the validation of this step has not been finished: it runs again, from its first batch.
    """
    fit = loops["fit_loop"]
    batches = fit["epoch_loop.batch_progress"]
    earlier = batches["total"]["ready"] - batches["current"]["ready"]  # batches of earlier epochs
    optimizer = fit["epoch_loop.manual_optimization.optim_step_progress"]
    validation = fit["epoch_loop.val_loop.batch_progress"]
    begun = int(validation_due)
    for name, count in (("total", step), ("current", step - earlier)):
        # One less, also than none (a new epoch's first batch has begun): Lightning adds one when it starts again.
        batches[name] = {"ready": count, "completed": count - 1, "started": count, "processed": count}
        optimizer[name] = {"ready": count, "completed": count}
        batches["is_last_batch"] = count >= epoch_length
        validation[name] = {"ready": begun, "completed": 0, "started": begun, "processed": 0}
    if math.isinf(epoch_length):
        for progress in (fit["epoch_progress"]["total"], fit["epoch_progress"]["current"]):
            progress |= {"processed": progress["ready"] - 1, "completed": progress["ready"] - 1}
    # Here it adds one when it starts again, and one after a validation.
    fit["epoch_loop.state_dict"] = {"_batches_that_stepped": step - 1 - begun}


def check_same_keys(saved: set[str], ours: set[str]) -> None:
    """
    Raises:
        SteerkitError: if a checkpoint does not hold what is trained.
    """
    if saved != ours:
        raise SteerkitError(
            f"The checkpoint holds {', '.join(sorted(saved))}, this config trains {', '.join(sorted(ours))}: "
            "use the config in the run's folder."
        )
