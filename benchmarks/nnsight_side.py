"""The rival's studies: plain nnsight, every variant an invoke of one trace, so that nnsight runs them as one batch."""

from __future__ import annotations

from typing import Any

import torch
from studies import Study
from torch import Tensor

from steerkit.models import LoadedModel

Traced = Any
"""An ``nnsight.TransformersModel``: its attributes are those of the model."""


def traced_model(loaded: LoadedModel) -> Traced:
    from nnsight import TransformersModel

    return TransformersModel(loaded.base, tokenizer=loaded.tokenizer, task="text-generation")


@torch.no_grad()
def lens(study: Study, model: Traced) -> Tensor:
    """As ``studies.lens``."""
    inputs, where, targets = study.inputs, study.positions, study.targets
    layers, norm, head = model.model.layers, model.model.norm, model.lm_head
    vectors, saved = study.vectors, []
    with model.trace(use_cache=False) as tracer:
        for variant in range(-1, study.n_layers):
            with tracer.invoke(**inputs):
                found = []
                for layer in range(study.n_layers):
                    hidden = layers[layer].output
                    if layer == variant:
                        hidden = hidden + vectors[layer]
                        layers[layer].output = hidden
                    logits = head(norm(hidden[:, where]))
                    found.append(torch.log_softmax(logits.float(), -1).gather(-1, targets[..., None])[..., 0])
                saved.append(torch.stack(found).save())
    return torch.stack(saved)


@torch.no_grad()
def patching(study: Study, model: Traced) -> Tensor:
    """As ``studies.patching``."""
    inputs, where, vectors = study.inputs, study.positions, study.vectors
    layers = model.model.layers
    parts: list[tuple[Tensor, Tensor]] = []
    with model.trace(**inputs, use_cache=False):
        for layer in range(study.n_layers):
            attention = layers[layer].self_attn.output[0]
            parts.append((attention.save(), layers[layer].mlp.output.save()))
    saved = []
    variants = [(-1, "")] + [(layer, part) for layer in range(study.n_layers) for part in ("attention", "mlp")]
    with model.trace(use_cache=False) as tracer:
        for patched, part in variants:
            with tracer.invoke(**inputs):
                for layer in range(study.n_layers):
                    if layer == patched and part == "attention":
                        layers[layer].self_attn.output = (parts[layer][0], None)
                    if layer == patched and part == "mlp":
                        layers[layer].mlp.output = parts[layer][1]
                    layers[layer].output = layers[layer].output + vectors[layer]
                saved.append(model.lm_head.output[:, where].log_softmax(-1).save())
    steered = saved[0]
    return torch.stack([(steered.exp() * (steered - log)).sum(-1) for log in saved[1:]]).reshape(
        study.n_layers, 2, *steered.shape[:2]
    )
