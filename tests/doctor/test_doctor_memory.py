"""The memory estimate against what a real step keeps, and what it says when the device is too small."""

from __future__ import annotations

import pytest
import torch
from helpers import tokenizer

from steerkit.doctor import CHECKS, Batch, Subject, examine, memory
from steerkit.doctor.memory import _cache_bytes, measure
from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import SteeredModel
from steerkit.rollouts import Branches
from steerkit.rollouts.footprint import _saved_bytes
from steerkit.rollouts.teacher_forcing import predicting_states
from steerkit.testing import tiny_model

TOK = tokenizer()
FAMILIES = ("llama", "gpt2", "gemma2", "mixtral", "deepseek_v3", "lfm2", "qwen3_next")


def subject(family="llama", batch=None, **overrides):
    settings = {"vocab_size": len(TOK), "max_position_embeddings": 400, "eos_token_id": TOK.eos_token_id} | overrides
    who = Subject(tiny_model(family, **settings), TOK, None, batch)
    assert next(iter(examine(who, CHECKS[:1]))).status == "pass"
    return who


def steered(who):
    return SteeredModel(who.base, Static.build([HookPoint(k) for k in range(3)], 32))


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_activations_are_extrapolated(family):
    """Estimated from 16 and 48 tokens; real: 2 prompts of 100 tokens with 3 completions of 60 each."""
    batch = Batch(prompts=2, k=3, prompt_tokens=100, max_tokens=60)
    who = subject(family, batch)
    parts = measure(who).update(batch)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 200, (100,), generator=generator).tolist() for _ in range(2)]
    groups = [Branches(row, [row[:60], row[10:70], row[20:80]]) for row in rows]
    real = _saved_bytes(steered(who), lambda: predicting_states(steered(who), groups, 0))
    assert 0.85 < parts["activations"] / (1 + 1 / 3) / real < 1.2


@pytest.mark.parametrize("family", FAMILIES)
def test_cache_is_extrapolated(family):
    who = subject(family)
    costs = measure(who)
    ids = torch.randint(3, 200, (1, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        real = _cache_bytes(steered(who), ids)
    # Up to the copies; gemma2's window is 4096 tokens here, so it doesn't bound the cache.
    assert real == pytest.approx(costs.cache_per_token * 200 + costs.cache_fixed, rel=0.01)


def test_grouped_heads_need_no_rule():
    costs = measure(subject())
    assert costs.cache_per_token == 3 * 2 * 2 * 8 * 4  # layers, K and V, 2 heads of width 8, fp32
    assert costs.weights == sum(p.numel() * 4 for p in subject().base.parameters()) + 4 * 4 * 2  # two rotary buffers


def test_more_of_anything_costs_more_and_micro_batches_bound_it():
    costs = measure(subject())
    small = Batch(prompts=4, k=4, prompt_tokens=32, max_tokens=32)
    for change in ({"prompts": 8}, {"k": 8}, {"max_tokens": 64}, {"prompt_tokens": 64}):
        large = Batch(**{"prompts": 4, "k": 4, "prompt_tokens": 32, "max_tokens": 32, **change})
        assert sum(costs.update(large).values()) > sum(costs.update(small).values())
        assert sum(costs.sampling(large).values()) > sum(costs.sampling(small).values())
    bounded = Batch(prompts=400, k=4, prompt_tokens=32, max_tokens=32, micro_batch_tokens=700)
    assert costs.update(bounded)["activations"] <= 1.3 * costs.update(small)["activations"]


@pytest.mark.parametrize(("asked", "status"), [(False, "note"), (True, "fail")])
def test_a_device_that_is_too_small(monkeypatch, asked, status):
    who = subject(batch=Batch(prompts=8, k=16, asked=asked))
    need = sum(measure(who).update(who.batch).values())
    monkeypatch.setattr(memory, "device_memory", lambda device: int(need / 3))
    finding = memory.memory(who)
    assert finding.status == status and "the device has" in finding.found
    assert "model.micro_batch_tokens: 4096" in finding.advice
    monkeypatch.setattr(memory, "device_memory", lambda device: 1000)
    assert "Not even a small batch" in memory.memory(who).advice
    monkeypatch.setattr(memory, "device_memory", lambda device: None)
    assert memory.memory(who).status == "pass"


@pytest.mark.parametrize("name", ["prompts", "k", "prompt_tokens", "max_tokens", "max_rows", "micro_batch_tokens"])
def test_batches_are_positive(name):
    with pytest.raises(SteerkitError, match=f"{name} must be at least 1, got 0"):
        Batch(**{name: 0})
