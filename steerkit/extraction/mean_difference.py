"""The contrastive mean difference of residual streams.

Rimsky et al., "Steering Llama 2 via Contrastive Activation Addition" (arXiv 2312.06681); Marks and Tegmark, "The
Geometry of Truth" (arXiv 2310.06824).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from steerkit.errors import SteerkitError, VectorError
from steerkit.extraction.contrast import Branch, Contrast, Progress
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Intervention
from steerkit.models import LoadedModel, SteeredModel, fingerprint
from steerkit.models.positions import positions_from_mask
from steerkit.rollouts.prompt_pass import left_pad
from steerkit.vectors import SteeringVector, VectorMetadata

Positions = Literal["completion", "last_prompt", "first"]
"""Where the residual stream is read: at all tokens of the completion; at the last token that the model is given before
it samples (the prompt's, or an opening's); at the completion's first token. A token is read at its own position."""


@dataclass(frozen=True, slots=True)
class MeanDifference:
    """Mean over the problems of the positive completion's residual stream minus the negative one's."""

    difference: dict[HookPoint, Tensor]
    """Hook point -> [D] fp32, in the units of the residual stream."""
    agreement: dict[HookPoint, float]
    """Hook point -> cosine between the differences of the even and of the odd problems; NaN for a single problem. Far
    below 1, the difference is mostly noise: take more problems."""
    residual_norms: dict[HookPoint, float]
    """Hook point -> mean L2 norm of the residual stream at the positions that were read."""

    def vector(
        self,
        loaded: LoadedModel,
        scale: float = 1.0,
        norm_like: SteeringVector | None = None,
        receipts: dict[str, Any] | None = None,
        token_mask: str = "all",
    ) -> SteeringVector:
        """A ``static`` vector: ``scale`` times the difference, or times the difference at another vector's norms.

        Args:
            scale: 0 or negative is allowed: the control against the direction.
            norm_like: at each hook point the difference is brought to this vector's norm there first.
            receipts: added to the card; agreement and residual norms are filled in.

        Raises:
            VectorError: if ``scale`` is not finite, ``norm_like`` has no such hook point, or a difference is zero and
                so can't be brought to a norm.
        """
        if not math.isfinite(scale):
            raise VectorError(f"scale must be a finite number, got {scale}.")
        norms = None if norm_like is None else norm_like.norms()
        tensors = {}
        for point, difference in self.difference.items():
            factor = scale
            if norms is not None:
                if str(point) not in norms:
                    raise VectorError(f"norm_like has no hook point {point}: it has {', '.join(norms)}.")
                length = float(difference.norm())
                if length == 0:
                    raise VectorError(f"{point}: the mean difference is zero, so it can't be brought to a norm.")
                factor *= norms[str(point)] / length
            tensors[point] = {"vector": difference * factor}
        facts = {
            "agreement": {str(point): value for point, value in self.agreement.items()},
            "residual_norms": {str(point): value for point, value in self.residual_norms.items()},
        }
        config = loaded.base.config.get_text_config()
        metadata = VectorMetadata(
            loaded.name,
            fingerprint(loaded.base),
            config.hidden_size,
            config.num_hidden_layers,
            {**(receipts or {}), **facts},
        )
        return SteeringVector("static", tensors, {}, metadata, token_mask)


@final
class ResidualReader(Intervention):
    """Changes nothing; averages the residual stream at its site over chosen positions, so that only [B, D] is kept."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.chosen: Tensor | None = None
        """[B, T] bool, to be set before a forward pass."""
        self.means: Tensor | None = None
        """[B, D] fp32, after it."""
        self.norms: Tensor | None = None
        """[B] fp32: mean L2 norm."""

    def delta(self, hidden: Tensor) -> Tensor:
        assert self.chosen is not None
        chosen = self.chosen.to(hidden.device)
        count = chosen.sum(1)
        stream = hidden.float().masked_fill(~chosen[..., None], 0.0)  # what stands under padding may be anything
        self.means = stream.sum(1) / count[:, None]
        self.norms = stream.norm(dim=-1).sum(1) / count
        return hidden.new_zeros(())


@torch.inference_mode()
def mean_difference(
    loaded: LoadedModel,
    points: Sequence[HookPoint],
    contrast: Contrast,
    positions: Positions = "completion",
    micro_batch_tokens: int = 16384,
    progress: Progress | None = None,
) -> MeanDifference:
    """Read the base's residual stream over both completions of each problem, teacher-forced.

    The stream is averaged over a completion's positions first, and over problems then, so a long completion weighs as
    much as a short one.

    Args:
        points: at sites ``output``, ``attn_output`` (the stream after attention) or ``mlp_output`` (as ``output``).
        micro_batch_tokens: padded tokens in one forward pass.
        progress: told of completions read.

    Raises:
        SteerkitError: for positions at which both completions of a pair are the same.
        VectorError: for a site where no residual stream is read.
    """
    if positions == "last_prompt" and contrast.same_prompt:
        raise SteerkitError(
            "positions 'last_prompt' needs openings or requests: written completions share their prompt, so nothing "
            "differs there. Use 'first' or 'completion'."
        )
    branches = [*contrast.positive, *contrast.negative]
    spans = [_span(branch, positions) for branch in branches]
    n = len(contrast)
    width = loaded.base.config.get_text_config().hidden_size
    readers = {point: ResidualReader(width) for point in points}
    model = SteeredModel(loaded.base, readers, loaded.layout)
    halves = {point: torch.zeros(2, model.d_model, dtype=torch.float64) for point in points}
    lengths = dict.fromkeys(points, 0.0)
    done = 0
    for batch in _batches(branches, micro_batch_tokens):
        ids, mask = left_pad([branches[k].ids for k in batch], loaded.tokenizer.pad_token_id, model.device)
        padding = ids.shape[1] - torch.tensor([len(branches[k].ids) for k in batch])
        place = torch.arange(ids.shape[1]) - padding[:, None]  # position in the branch, below 0 in the padding
        low, high = torch.tensor([spans[k] for k in batch]).T[..., None]
        chosen = ((place >= low) & (place < high)).to(model.device)
        for reader in readers.values():
            reader.chosen = chosen
        model.hidden_states(ids, mask, positions_from_mask(mask))
        sign = torch.tensor([1.0 if k < n else -1.0 for k in batch], dtype=torch.float64)
        half = torch.tensor([k % n % 2 for k in batch])
        for point, reader in readers.items():
            assert reader.means is not None and reader.norms is not None
            halves[point].index_add_(0, half, sign[:, None] * reader.means.double().cpu())
            lengths[point] += float(reader.norms.double().sum())
        done += len(batch)
        if progress is not None:
            progress("reading completions", done, len(branches))
    return MeanDifference(
        {point: (sums.sum(0) / n).float() for point, sums in halves.items()},
        {point: _cosine(*sums) for point, sums in halves.items()},
        {point: length / len(branches) for point, length in lengths.items()},
    )


def _span(branch: Branch, positions: Positions) -> tuple[int, int]:
    """[from, to) of the tokens that are read."""
    if positions == "last_prompt":
        return branch.start + branch.given - 1, branch.start + branch.given
    if branch.start == len(branch.ids):
        raise SteerkitError(f"positions {positions!r} needs completions, and requests have none: use 'last_prompt'.")
    return branch.start, len(branch.ids) if positions == "completion" else branch.start + 1


def _batches(branches: Sequence[Branch], budget: int) -> Iterator[list[int]]:
    """Indices of branches of like length, at most about ``budget`` padded tokens together; at least one."""
    batch: list[int] = []
    for k in sorted(range(len(branches)), key=lambda k: len(branches[k].ids)):
        if batch and (len(batch) + 1) * len(branches[k].ids) > budget:
            yield batch
            batch = []
        batch.append(k)
    if batch:
        yield batch


def _cosine(first: Tensor, second: Tensor) -> float:
    length = float(first.norm() * second.norm())
    return float(first @ second) / length if length else float("nan")
