"""Linear maps from one model's residual stream to another's, learned where both read the same tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from steerkit import registry
from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.vectors import SteeringVector


def ridge_map(donor: Tensor, recipient: Tensor, strength: float) -> Tensor:
    """[D, E] W that minimises |X W - Y|^2 + strength tr(X'X)/D |W|^2, X and Y centred.

    Args:
        donor: [n, D] X.
        recipient: [n, E] Y, at the same tokens.
    """
    x, y = _centred(donor), _centred(recipient)
    gram = x.T @ x
    penalty = strength * gram.trace() / len(gram)
    return torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype), x.T @ y)


def procrustes_map(donor: Tensor, recipient: Tensor) -> Tensor:
    """[D, E] the W with orthonormal rows or columns that brings X W nearest to Y but for length (Schoenemann 1966).

    Few tokens leave directions undetermined: there the singular vectors are rounding, which another thread count or
    kernel turns over, and W maps them to 0. Determined is what float32 streams can tell, the tolerance of
    ``numpy.linalg.matrix_rank``.
    """
    cross = _centred(donor).T @ _centred(recipient)
    u, s, v = torch.linalg.svd(cross, full_matrices=False)
    kept = s > s[0] * max(cross.shape) * torch.finfo(torch.float32).eps
    return u[:, kept] @ v[kept]


def _centred(values: Tensor) -> Tensor:
    values = values.double()
    return values - values.mean(0)


def matched_layer(layer: int, n_donor: int, n_recipient: int) -> int:
    """The recipient's layer at the same relative depth."""
    return round(layer * (n_recipient - 1) / max(1, n_donor - 1))


def moved(vector: SteeringVector, places: Mapping[HookPoint, HookPoint], d_model: int) -> SteeringVector:
    """The same numbers at other hook points; static vectors that meet at one are added.

    Args:
        places: hook point -> hook point, for each of the vector's.
        d_model: the recipient's width.

    Raises:
        SteerkitError: if two vectors that depend on the token meet.
    """
    tensors: dict[HookPoint, dict[str, Tensor]] = {}
    for point, named in vector.tensors.items():
        target = places[point]
        if target in tensors and vector.intervention != "static":
            raise SteerkitError(f"Two layers of the {vector.intervention!r} vector fall on {target} of the recipient, "
                                "which has fewer: give one of them.")  # fmt: skip
        there = tensors.get(target, {})
        tensors[target] = {name: there[name] + t if there else t for name, t in named.items()}
    return replace(vector, tensors=tensors, metadata=replace(vector.metadata, d_model=d_model))


def rescaled(vector: SteeringVector, factors: Mapping[HookPoint, float]) -> SteeringVector:
    """Each hook point's change times its factor."""
    linear = registry.resolve("interventions", vector.intervention).scale_by
    tensors = {
        point: {name: t * factors[point] if name in linear else t for name, t in named.items()}
        for point, named in vector.tensors.items()
    }
    return replace(vector, tensors=tensors)
