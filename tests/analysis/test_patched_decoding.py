"""Decoding under a patch, cached and anew."""

from __future__ import annotations

import pytest
import torch
from patching_cases import (
    FIVE,
    loaded_model,
    one_reader,
    prompts,
    static,
    streams,
    work_of,
)

from steerkit.analysis import Text, make_engine
from steerkit.analysis.patched_decoding import decode
from steerkit.analysis.patches import block_patches
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Tokenwise
from steerkit.rollouts import SamplingParams
from steerkit.testing import randomize
from steerkit.vectors import SteeringVector, VectorMetadata


def completions(groups):
    return [group.rollouts[0].token_ids for group in groups]


def test_decoding_under_the_patch_of_the_planted_head():
    """Without the head that reads it the vector does nothing to what is decoded; without another it does all."""
    loaded, vector = one_reader()
    patches, _ = block_patches(loaded, 2, ("heads",), inverse=True)
    with make_engine("batched", loaded) as engine:
        work = work_of(loaded, engine, vector, prompts())
        groups = decode(work, "v", vector, patches, SamplingParams(0.0, 8))
        got = {patch.name: completions(of_patch) for patch, of_patch in zip(patches, groups, strict=True)}
        base = completions(work.generations("base", None, 1, 0.0, 8))
        steered = completions(work.generations("v", vector, 1, 0.0, 8))
    assert base != steered
    assert got["skip-head 2"] == base and got["only-head 2"] == steered
    assert got["skip-head 1"] == steered and got["only-head 1"] == base


# -- decoding under a patch


@pytest.mark.parametrize("mask", ["all", "first_generated", "not_first_generated", "prompt"])
@pytest.mark.parametrize("family", FIVE)
@torch.no_grad()
def test_cached_decoding_is_decoding_anew(family, mask):
    loaded, vector = loaded_model(family), static((0, 1), mask, scale=2.0)
    patches, _ = block_patches(loaded, 2, ("attn", "k", "mlp-direct", "layer"), inverse=True)
    encoded = prompts()
    with make_engine("batched", loaded) as engine:
        work = work_of(loaded, engine, vector, encoded)
        got = [completions(groups) for groups in decode(work, "v", vector, patches, SamplingParams(0.0, 5))]
    stops = {loaded.base.config.eos_token_id, loaded.tokenizer.eos_token_id}
    seen = set()
    for index, prompt in enumerate(encoded):
        for patch, of_patch in zip(patches, got, strict=True):
            ids = list(prompt.ids)
            while len(ids) - len(prompt.ids) < 5 and not (len(ids) > len(prompt.ids) and ids[-1] in stops):
                text = Text("t", tuple(ids), len(prompt.ids))
                hidden = streams(loaded, vector, [patch], texts=[text])[patch.name]["t"][-1]
                norm = loaded.base.get_submodule(loaded.layout.norm)
                logits = loaded.base.get_submodule(loaded.layout.unembedding)(norm(hidden))
                ids.append(int(logits.argmax()))
            assert list(of_patch[index]) == ids[len(prompt.ids) :], (patch.name, index)
            seen.add(of_patch[index])
    assert len(seen) > 4


def test_tokenwise_vectors_are_decoded_with_the_tokens_they_see():
    loaded = loaded_model()
    items = Tokenwise.build([HookPoint(1, "down_proj")], 32, d_inner=64)
    for item in items.values():
        randomize(item, 0, std=1.0)
    vector = SteeringVector.from_interventions("tokenwise", items, VectorMetadata("tiny", "", 32, 3))
    patches, _ = block_patches(loaded, 2, ("residual", "v"), inverse=False)
    with make_engine("batched", loaded) as engine:
        work = work_of(loaded, engine, vector, prompts())
        groups = decode(work, "v", vector, patches, SamplingParams(0.0, 4))
    norm, head = loaded.base.model.norm, loaded.base.lm_head
    for patch, of_patch in zip(patches, groups, strict=True):
        for group in of_patch:
            (rollout,) = group.rollouts
            text = Text("t", (*group.prompt_ids, *rollout.token_ids), len(group.prompt_ids))
            hidden = streams(loaded, vector, [patch], texts=[text])[patch.name]["t"][text.prompt_length - 1 : -1]
            assert head(norm(hidden)).argmax(-1).tolist() == list(rollout.token_ids)


# -- the contract, and bad input
