"""A tiny model and a random vector on it."""

from __future__ import annotations

import torch
from helpers import tokenizer

from steerkit import registry
from steerkit.hookpoints import HookPoint
from steerkit.models import LoadedModel, find_layout, fingerprint
from steerkit.models.sites import inner_width
from steerkit.testing import randomize, tiny_model
from steerkit.vectors import SteeringVector, VectorMetadata

TOK = tokenizer()
IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(7))


def loaded_model(family: str, **overrides) -> LoadedModel:
    if family == "mistral":
        overrides.setdefault("sliding_window", None)
    base = tiny_model(family, **overrides)
    return LoadedModel(base, TOK, find_layout(base), f"tiny {family}")


def random_vector(
    loaded: LoadedModel, intervention: str = "static", points=("layers.1.output", "layers.2.output"), **settings
) -> SteeringVector:
    """Random numbers of the size of the residual stream."""
    target = registry.resolve("interventions", intervention)
    if "d_inner" in target.needs:
        settings["d_inner"] = inner_width(loaded.base, loaded.layout, 0)
    items = target.build([HookPoint.parse(p) for p in points], loaded.base.config.hidden_size, **settings)
    for seed, item in enumerate(items.values()):
        randomize(item, seed)
    metadata = VectorMetadata(loaded.name, fingerprint(loaded.base), 0, loaded.base.config.num_hidden_layers)
    return SteeringVector.from_interventions(intervention, items, metadata)


def steered_logits(loaded: LoadedModel, vector: SteeringVector, ids=IDS) -> torch.Tensor:
    """[B, T, V] under hooks; also shows that the vector moves them far more than any tolerance here."""
    with torch.no_grad():
        logits = vector.steer(loaded.base, loaded.layout)(ids).logits
        assert (logits - loaded.base(ids).logits).abs().max() > 0.05
    return logits
