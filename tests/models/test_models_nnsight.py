"""Our hook path against an independent one: nnsight's edit of the same block output."""

from __future__ import annotations

import pytest
import torch
from nnsight import TransformersModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import SteeredModel
from steerkit.testing import FAMILIES, randomize, tiny_model

IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))


def tokenizer():
    words = {f"w{i}": i for i in range(97)}
    plain = Tokenizer(models.WordLevel(words, unk_token="w0"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="w0", eos_token="w1", padding_side="left")


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_hooks_equal_nnsights_edit(family):
    base = tiny_model(family)
    items = Static.build([HookPoint(0), HookPoint(2)], 32)
    first, last = (randomize(item, seed).vector.detach() for seed, item in enumerate(items.values()))
    model = SteeredModel(base, items)
    ours, plain = model(IDS).logits, base(IDS).logits

    traced = TransformersModel(base, tokenizer=tokenizer(), task="text-generation")
    blocks = (
        traced.transformer.h
        if family == "gpt2"
        else traced.gpt_neox.layers
        if family == "gpt_neox"
        else traced.model.layers
    )
    with traced.trace(IDS):
        blocks[0].output = blocks[0].output + first
        blocks[2].output = blocks[2].output + last
        theirs = traced.lm_head.output.save()
    cap = getattr(base.config, "final_logit_softcapping", None)
    theirs = theirs if cap is None else torch.tanh(theirs / cap) * cap
    assert (ours - plain).abs().max() > 1e-2
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
