"""Our hook against an independent one: nnsight's edit of the same block outputs."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

from steerkit.doctor.rows import Finding
from steerkit.doctor.subject import largest
from steerkit.interventions import Static
from steerkit.models.layout import hidden_of, with_hidden

if TYPE_CHECKING:
    from steerkit.doctor.subject import Subject


def nnsight_edit(subject: Subject) -> Finding:
    """Add the same vectors to the same blocks' outputs in an nnsight trace, and compare the logits."""
    import torch
    from nnsight import TransformersModel

    assert subject.layout is not None
    ids = subject.ids
    vectors = {
        point.layer: item.vector.detach()
        for point, item in subject.steered.interventions.items()
        if isinstance(item, Static)
    }
    traced = TransformersModel(subject.base, tokenizer=subject.tokenizer, task="text-generation")
    blocks = reduce(getattr, subject.layout.blocks.split("."), traced)
    with torch.no_grad(), traced.trace(ids, use_cache=False):
        for layer, vector in vectors.items():
            output = blocks[layer].output
            hidden = hidden_of(output)
            blocks[layer].output = with_hidden(output, hidden + vector.to(hidden.dtype))
        theirs = traced.output.logits.save()
    unit = largest(subject.full)
    gap = float((theirs.float() - subject.full.float()).abs().max()) / unit
    found = f"{gap:.1g} of the largest logit; allowed {subject.tolerance:.1g}"
    figures = {"gap": gap, "allowed": subject.tolerance}
    if not gap <= subject.tolerance:
        advice = "Two ways to add the same vector differ: is layout.blocks the list that the model really runs?"
        return Finding("fail", found, advice, figures)
    return Finding("pass", found, figures=figures)
