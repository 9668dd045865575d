"""From the residual stream to the vocabulary: final norm, unembedding, and how a token is shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from steerkit.models import LoadedModel
from steerkit.models.layout import final_logits
from steerkit.rollouts.acceleration import frozen_products

_CHUNK = 2**22
"""Logits that are alive at a time, where not all of them are asked for."""

_VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}


class Readout:
    """The logit lens's two parts: the model's final norm and its unembedding (nostalgebraist, "interpreting GPT: the
    logit lens", 2020)."""

    @torch.no_grad()
    def __init__(self, loaded: LoadedModel) -> None:
        base, layout = loaded.base, loaded.layout
        self._base, self._layout, self._tokenizer = base, layout, loaded.tokenizer
        self._norm = base.get_submodule(layout.norm)
        weight = cast(Tensor, base.get_submodule(layout.unembedding).weight)
        self.weight = weight.detach().float()
        """[V, D] unembedding rows, fp32."""
        self.gain, self.centres = _linear_part(self._norm, self.weight)
        """[D] the factors that the final norm multiplies the normed stream by; whether it takes the mean out first."""

    @property
    def vocabulary(self) -> int:
        """V, rows of the unembedding (a tokenizer may know fewer tokens)."""
        return int(self.weight.shape[0])

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] residual stream of any layer -> [..., V] what the model would say if it ended there, fp32."""
        with frozen_products(self._base.get_submodule(self._layout.unembedding)):
            return final_logits(self._base, self._layout, self._norm(hidden.to(self._base.dtype))).float()

    def chunks(self, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """[N, D] residual streams -> (rows, their logits [n, V]) piece by piece: [N, V] never exists."""
        size = max(1, _CHUNK // self.vocabulary)
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            yield rows, self.logits(hidden[rows])

    @torch.no_grad()
    def log_probs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The lens's log-probabilities (nats, fp32) of given tokens.

        Args:
            hidden: [..., D] residual streams.
            targets: ids that broadcast to [...].

        Returns:
            [...]
        """
        flat, wanted = hidden.reshape(-1, hidden.shape[-1]), targets.expand(hidden.shape[:-1]).reshape(-1)
        found = torch.empty(len(flat), device=hidden.device)
        for rows, logits in self.chunks(flat):
            found[rows] = logits.gather(-1, wanted[rows, None])[:, 0] - logits.logsumexp(-1)
        return found.view(hidden.shape[:-1])

    @torch.no_grad()
    def divergence(self, reference: Tensor, hidden: Tensor) -> Tensor:
        """[N] KL(reference || what the lens says of ``hidden``), nats.

        Args:
            reference: [N, V] log-probabilities.
            hidden: [N, D] residual streams.
        """
        found = torch.empty(len(hidden), device=hidden.device)
        for rows, logits in self.chunks(hidden):
            of_rows = reference[rows]
            found[rows] = (of_rows.exp() * (of_rows - torch.log_softmax(logits, -1))).sum(-1)
        return found

    @torch.no_grad()
    def scores(self, direction: Tensor, through_norm: bool = True, cosine: bool = False) -> Tensor:
        """[..., D] a direction -> [..., V] its dot product with each token's unembedding row.

        Args:
            through_norm: with the linear part of the final norm: its gain (and centring, where it has one), without
                the division by the stream's size; then a score is what the direction adds to a logit at a position
                whose stream has size 1, to first order and but for the part along the stream.
            cosine: of the angle instead.
        """
        direction = direction.float().to(self.weight.device)
        rows = self.weight
        if through_norm:
            direction = direction - direction.mean(-1, keepdim=True) if self.centres else direction
            direction = direction * self.gain
        found = direction @ rows.T
        if cosine:
            lengths = direction.norm(dim=-1, keepdim=True).clamp_min(1e-30) * rows.norm(dim=-1).clamp_min(1e-30)
            found = found / lengths
        return found

    def token(self, index: int) -> str:
        """How a token is shown: its text with white space visible, or its name where it is part of a character."""
        if index >= len(self._tokenizer):
            return f"<id {index}>"
        text = str(self._tokenizer.decode([index]))
        if not text or "�" in text:
            return str(self._tokenizer.convert_ids_to_tokens(index))
        return "".join(_VISIBLE.get(one, one if one.isprintable() else ascii(one)[1:-1]) for one in text)

    def tokens(self, indices: Tensor | list[int]) -> list[str]:
        """Of a list of ids."""
        return [self.token(int(index)) for index in indices]


def _linear_part(norm: torch.nn.Module, weight: Tensor) -> tuple[Tensor, bool]:
    """([D] gain, whether it centres), by probing: families write their gain as w, 1 + w, or not at all."""
    width = weight.shape[1]
    parameter = next(iter(norm.parameters()), weight)
    signs = torch.ones(width, dtype=torch.float32, device=weight.device)
    signs[1::2] = -1.0
    probes = torch.stack([signs, -signs, torch.zeros_like(signs), torch.full_like(signs, 3.0)])
    if width % 2:  # the probe must have mean 0; the last coordinate's gain comes from a probe without the first
        probes = torch.cat([probes, probes[:2].roll(1, -1)])
        probes[:2, -1] = 0.0
        probes[4:, 0] = 0.0
    out = norm(probes.to(parameter.dtype)).float()
    size = probes[0].square().mean().sqrt()
    gain = (out[0] - out[1]) / 2 * size / signs
    if width % 2:
        gain[-1] = (out[4, -1] - out[5, -1]) / 2 * size / probes[4, -1]
    centred = bool((out[3] - out[2]).abs().max() < 1e-3 * gain.abs().max())
    return gain, centred
