"""The exporter contract: the base class owns the plumbing, a subclass writes and reads back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from steerkit import registry
from steerkit.errors import ModelError, SteerkitError, VectorError
from steerkit.files import atomic_path, replace_folder
from steerkit.models import LoadedModel
from steerkit.token_masks import TokenMask
from steerkit.vectors import SteeringVector

PROBE = (2, 48)
"""Rows and tokens of the probe that logits are compared on."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was written, read back by the target's own library, against what steerkit holds."""

    what: str
    """What was compared."""
    difference: float
    """The largest absolute difference."""
    allowed: float
    """An export whose difference is above this is not kept."""
    note: str = ""

    def __str__(self) -> str:
        note = f" {self.note}" if self.note else ""
        return f"Compared {self.what}: largest difference {self.difference:.2g} (allowed {self.allowed:.2g}).{note}"


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export left."""

    path: Path
    wrote: str
    """What is in it, in words."""
    comparison: Comparison | None
    """None if it was not asked for."""


class Exporter(ABC):
    """Writes a vector in the format of another engine.

    A subclass refuses, by a ``VectorError`` or ``ModelError`` of one line, what its target can't express: it never
    writes something else instead.
    """

    name: ClassVar[str]
    """As users write it; in errors."""
    form: ClassVar[Literal["folder", "file"]]
    """What ``out`` is."""

    @abstractmethod
    def write(self, vector: SteeringVector, loaded: LoadedModel, place: Path) -> str:
        """Fill ``place`` (an empty folder, or a file's path) and say in words what it holds.

        Args:
            vector: fits the model, and acts at every position.

        Raises:
            VectorError: for a vector that the target can't express.
            ModelError: for a model with which it can't.
        """

    @abstractmethod
    def compare(self, vector: SteeringVector, loaded: LoadedModel, place: Path) -> Comparison:
        """Read ``place`` by the target's own library and compare; leaves the model as it was."""

    def export(self, vector: SteeringVector, loaded: LoadedModel, out: str | Path, check: bool = True) -> ExportReport:
        """Write, compare, and only then put it at ``out``.

        Args:
            loaded: the base model that the vector was trained on.
            out: must not exist yet (an empty folder may).
            check: compare what was written with the steered model.

        Raises:
            VectorError: if the vector does not fit the model, or the target can't express it.
            ModelError: if the target can't express it with this model, or the comparison fails.
            SteerkitError: if ``out`` exists, or can't be written.
        """
        out = Path(out)
        # Never replaced: a mistyped --out would cost the user what is there.
        if out.exists() and (self.form == "file" or not out.is_dir() or any(out.iterdir())):
            raise SteerkitError(f"{out} exists already: remove it, or give another path.")
        vector.check_fits(loaded.base)
        if not TokenMask(vector.token_mask).everywhere:
            raise VectorError(
                f"{self.name} can't express the token mask {vector.token_mask!r}: what it writes acts at every "
                "position."
            )
        done: list[ExportReport] = []

        def fill(place: Path) -> None:
            wrote = self.write(vector, loaded, place)
            comparison = self.compare(vector, loaded, place) if check else None
            if comparison is not None and not comparison.difference <= comparison.allowed:  # NaN fails too
                raise ModelError(f"Nothing was written: {self.name} does not reproduce the steered model. {comparison}")
            if self.form == "folder":
                readable = place.stat().st_mode & 0o666  # as the umask has it; safetensors leaves its files at 0600
                for file in place.iterdir():
                    file.chmod(readable)
            done.append(ExportReport(out, wrote, comparison))

        if self.form == "folder":
            replace_folder(out, fill)
        else:
            with atomic_path(out) as place:
                fill(place)
        return done[0]

    def constants(self, vector: SteeringVector) -> SteeringVector:
        """The vector as ``static``, or a refusal: for targets that can only add the same at every position."""
        if not registry.resolve("interventions", vector.intervention).constant:
            raise VectorError(
                f"{self.name} can't express {vector.intervention!r}: its change is not the same at every position."
            )
        return vector.as_static()


def probe_ids(base: PreTrainedModel) -> Tensor:
    """[B, T] token ids, the same for each call."""
    config = base.config.get_text_config()
    rows, length = PROBE
    length = min(length, getattr(config, "max_position_embeddings", None) or length)
    ids = torch.randint(0, config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    return ids.to(base.device)


@torch.no_grad()
def probe_logits(base: PreTrainedModel, model: Callable[..., Any] | None = None) -> Tensor:
    """[B, T, V] fp32 logits of the probe.

    Args:
        model: what is called; default the base itself.
    """
    ids = probe_ids(base)
    output = (model or base)(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    logits: Tensor = output.logits
    return logits.float()


def allowed_difference(logits: Tensor, dtype: torch.dtype) -> float:
    """1e-4 in fp32 (times the largest logit, where that is above 1); a 16-bit engine rounds 2^-8 of it."""
    scale = max(1.0, float(logits.abs().max()))
    return scale * (1e-4 if dtype == torch.float32 else 2.0**-5)
