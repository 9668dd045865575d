"""The sampler's contract and its refusals, against an engine with vLLM's signatures (``fake_vllm``)."""

from __future__ import annotations

import sys
from typing import Any

import fake_vllm
import pytest
import torch
from steerkit_vllm.sampler import VllmSampler

from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Gated, Projected, Static
from steerkit.models import SteeredModel
from steerkit.rollouts import EncodedPrompt, SamplingParams
from steerkit.testing import check_sampler, randomize, tiny_model
from steerkit.testing.samplers import tiny_tokenizer
from steerkit.training.parity import check_parity
from steerkit.types import Example, RolloutGroup

PROMPTS = [EncodedPrompt(Example(f"p/{i}", "text", "1"), "text", ids) for i, ids in enumerate([(5, 6, 7), (8, 9)])]
PARAMS = SamplingParams(0.8, 6)


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm)
    fake_vllm.LOG.clear()


def steered(family: str = "llama", kind: Any = Static, mask: str = "all", **settings: Any) -> SteeredModel:
    base = tiny_model(family)
    items = kind.build([HookPoint(0), HookPoint(2)], base.config.hidden_size, **settings)
    for seed, item in enumerate(items.values()):
        randomize(item, seed, std=0.3)
    return SteeredModel(base, items, token_mask=mask)


def sample(model: SteeredModel, k: int = 2, params: SamplingParams = PARAMS, **settings: Any) -> list[RolloutGroup]:
    return VllmSampler(**settings).sample(model, tiny_tokenizer(), PROMPTS, k, params, seed=1)


def tokens(groups: list[RolloutGroup]) -> list[list[tuple[int, ...]]]:
    return [[rollout.token_ids for rollout in group.rollouts] for group in groups]


def gap(model: SteeredModel, groups: list[RolloutGroup]) -> float:
    """Largest difference from a full steered pass by steerkit's hooks, nats."""
    worst = 0.0
    for group in groups:
        for rollout in group.rollouts:
            with torch.no_grad():
                logits = model(torch.tensor([[*group.prompt_ids, *rollout.token_ids]])).logits
            full = torch.log_softmax(logits[0, len(group.prompt_ids) - 1 : -1].float() / PARAMS.temperature, -1)
            own = full.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
            worst = max(worst, float((own - torch.tensor(rollout.logprobs)).abs().max()))
    return worst


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_contract(family: str) -> None:
    check_sampler(VllmSampler, family=family)


def test_contract_sees_the_wrong_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the biases, and with log-probabilities of another mode, the check fails."""
    from steerkit_vllm import engine, worker

    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="full steered pass"):
        patch.setattr(worker.BiasLoader, "steerkit_load_biases", lambda self, biases, dtype: 0)
        check_sampler(VllmSampler)
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="full steered pass"):
        patch.setitem(engine._OWN, "logprobs_mode", "raw_logprobs")
        check_sampler(VllmSampler)


def test_only_biases_go_over_and_the_prefix_cache_goes_with_them() -> None:
    model = steered()
    first = sample(model)
    load = ["steerkit_load_biases", "reset"]
    assert ["start", *load, "generate 4"] == fake_vllm.LOG
    assert tokens(sample(model)) == tokens(first) and fake_vllm.LOG[4:] == ["generate 4"]  # nothing new, nothing sent
    with torch.no_grad():
        for item in model.interventions.values():
            item.vector.mul_(-1.0)
    moved = sample(model)
    assert fake_vllm.LOG[5:] == [*load, "generate 4"] and tokens(moved) != tokens(first)
    assert gap(model, moved) < 1e-4 < gap(model, first)
    with model.disabled():
        base = sample(model)
        assert gap(SteeredModel(model.base), base) < 1e-4
    assert gap(SteeredModel(model.base), sample(SteeredModel(model.base))) < 1e-4  # the report's base arm: same engine
    assert fake_vllm.LOG.count("start") == 1


def test_parity_gate_of_training() -> None:
    model = steered("qwen2")
    assert check_parity(model, VllmSampler(), tiny_tokenizer(), PROMPTS, PARAMS) < 1e-4


def test_other_constant_interventions() -> None:
    model = steered(kind=Projected)
    assert gap(model, sample(model)) < 1e-4


def test_samples_depend_on_seed_problem_and_number_alone() -> None:
    model = steered()
    four = tokens(sample(model, k=4))
    assert [group[:2] for group in four] == tokens(sample(model, k=2))
    assert len({ids for group in four for ids in group}) == 8
    own = [EncodedPrompt(p.example, p.text, p.ids, seed=1) for p in PROMPTS]
    assert tokens(VllmSampler().sample(model, tiny_tokenizer(), own, 4, PARAMS, seed=99)) == four


@pytest.mark.parametrize(
    ("model", "params", "message"),
    [
        ({"mask": "generated"}, PARAMS, "token mask 'generated'"),
        ({"kind": Gated}, PARAMS, "can't serve Gated at"),
        ({"family": "gpt2"}, PARAMS, "not 'gpt2'"),
        ({}, SamplingParams(0.8, 6, top_p=0.9), "top_p to 1"),
        ({}, SamplingParams(0.8, 6, top_k=5), "top_k to 0"),
        ({}, SamplingParams(0.005, 6), "temperature must be 0 or from 0.01 to 2, got 0.005"),
        ({}, SamplingParams(2.5, 6), "temperature must be 0 or from 0.01 to 2, got 2.5"),
    ],
)
def test_refusals(model: dict[str, Any], params: SamplingParams, message: str) -> None:
    with pytest.raises(SteerkitError, match=message) as caught:
        sample(steered(**model), params=params)
    assert "\n" not in str(caught.value) and "generate 4" not in fake_vllm.LOG


def test_refuses_attention_site_and_several_policies() -> None:
    base = tiny_model("llama")
    point = HookPoint(1, "attn_output")
    with pytest.raises(SteerkitError, match="behind the MLP"):
        sample(SteeredModel(base, Static.build([point], base.config.hidden_size)))
    prompts = [EncodedPrompt(p.example, p.text, p.ids, policy=1) for p in PROMPTS]
    with pytest.raises(SteerkitError, match="several policies"):
        VllmSampler().sample(steered(), tiny_tokenizer(), prompts, 1, PARAMS, seed=0)


def test_refuses_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(SteerkitError, match=r"trainer\.devices to 1"):
        sample(steered())


def test_engine_arguments_and_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SteerkitError, match="engine can't hold logprobs_mode"):
        sample(steered(), engine={"logprobs_mode": "raw_logits"})
    with pytest.raises(SteerkitError, match="vllm can't start: .*unexpected keyword argument 'no_such'"):
        sample(steered(), engine={"no_such": 1})
    with pytest.raises(SteerkitError, match="raise max_model_len"):
        sample(steered(), engine={"max_model_len": 4}, params=SamplingParams(1.0, 40))
    monkeypatch.setattr(fake_vllm.LLM, "reset_prefix_cache", lambda self: False)
    with pytest.raises(SteerkitError, match="prefix cache can't be reset"):
        sample(steered())
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(SteerkitError, match="vLLM is not installed"):
        sample(steered())
