"""Training of a TopK SAE with EleutherAI's sparsify: its coder and losses, fed with tensors instead of a model.

sparsify's own trainer hooks the modules of one running model; what is wanted here is the difference of two runs, which
no module puts out. So the loop is ours (one epoch after another over activations in memory) and all else is theirs.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steerkit.analysis.sae import Sae
from steerkit.errors import SteerkitError

LOG_EVERY = 25
"""Steps between two points of the curves."""


@dataclass(frozen=True)
class Trained:
    """An SAE and how its training went."""

    sae: Sae
    steps: list[int]
    fvu: list[float]
    """Fraction of the variance unexplained, mean since the last point."""
    dead: list[float]
    """Share of features that were active at no position of the last epoch (at least 20 steps)."""


def train_sae(
    activations: Tensor,
    latents: int,
    k: int,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trained:
    """A TopK SAE with unit decoder rows and the AuxK loss for dead features.

    Args:
        activations: [N, D]; scaled to a mean square of 1 for the training, which is folded back into the weights.
        latents: F.
        k: active features at a position.
        steps: of Adam; the learning rate warms up over 5 % of them and goes to 0 over the last 20 %.
        batch: positions a step.
        seed: of weights and order.

    Raises:
        SteerkitError: if all activations are the same, or k is more than F.
    """
    if k > latents:
        raise SteerkitError(f"k must be at most latents, got {k} active features of {latents}.")
    data = activations.float()
    mean = data.mean(0)
    scale = float((data - mean).square().mean().sqrt())
    if not scale > 1e-6 * float(data.square().mean().sqrt()):
        raise SteerkitError(
            "The activations are the same at every position, so there is nothing to learn: a static vector changes "
            "the stream by one constant at its own layer. Take a later layer, or activations 'steered'."
        )
    data, mean = data / scale, mean / scale
    coder_class, config_class = _sparsify()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        coder = coder_class(data.shape[1], config_class(num_latents=latents, k=k), data.device, torch.float32)
    coder.b_dec.data.copy_(mean)
    optimizer = torch.optim.Adam(coder.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator)
    since = torch.zeros(latents, dtype=torch.long, device=data.device)
    window = max(20, math.ceil(len(data) / batch))
    at, kept, curve = 0, [], Trained(_folded(coder, k, scale), [], [], [])
    for step in range(steps):
        if at >= len(order):
            order, at = torch.randperm(len(data), generator=generator), 0
        rows = data[order[at : at + batch].to(data.device)]
        at += batch
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / (0.05 * steps), (steps - step) / (0.2 * steps))
        out = coder(rows, dead_mask=since > window, total_variance=_variance(rows, mean))
        (out.fvu + out.auxk_loss / 32).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        coder.set_decoder_norm_to_unit_norm()
        since += 1
        since[out.latent_indices[out.latent_acts > 0].unique()] = 0
        kept.append(float(out.fvu.detach()))
        if (step + 1) % LOG_EVERY == 0 or step + 1 == steps:
            curve.steps.append(step + 1)
            curve.fvu.append(sum(kept) / len(kept))
            curve.dead.append(float((since > window).float().mean()))
            kept = []
            progress(step + 1, steps)
    return Trained(_folded(coder, k, scale), curve.steps, curve.fvu, curve.dead)


def _variance(rows: Tensor, mean: Tensor) -> Tensor:
    """Around the mean of all activations, so that the last, shorter batch of an epoch is judged alike."""
    return (rows - mean).square().sum().clamp_min(1e-12)


def _folded(coder: Any, k: int, scale: float) -> Sae:
    weight, bias = coder.encoder.weight.detach(), coder.encoder.bias.detach()
    return Sae(
        (weight.T / scale).contiguous(), bias.clone(), coder.W_dec.detach() * scale, coder.b_dec.detach() * scale,
        "topk", k,
    )  # fmt: skip


def _sparsify() -> tuple[Any, Any]:
    """(SparseCoder, its config). The import says on stdout whether Triton is there, whose decoder needs a GPU."""
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
    with contextlib.redirect_stdout(io.StringIO()):
        from sparsify import SparseCoder, SparseCoderConfig
    return SparseCoder, SparseCoderConfig
