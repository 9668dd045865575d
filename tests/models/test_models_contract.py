"""The model contract over all families, and mutants that it must catch."""

from __future__ import annotations

import pytest
import torch

from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import SteeredModel
from steerkit.models import steered as steered_module
from steerkit.testing import FAMILIES, check_model_contract, randomize, tiny_model

# ALiBi, learned positions with an offset, parallel blocks, sliding windows, scaled logits, mixtures of experts...
OTHERS = (
    "bloom", "cohere", "falcon", "gemma3_text", "granite", "jamba", "lfm2", "mixtral", "mpt", "olmo2", "opt", "phi",
    "qwen2_moe", "smollm3",
)  # fmt: skip
# All families at all sites: test_sites.py.


def build(family, layers=(0, 1, 2), cls=SteeredModel, **overrides):
    items = Static.build([HookPoint(layer) for layer in layers], 32)
    for layer, item in enumerate(items.values()):
        randomize(item, seed=layer)
    return cls(tiny_model(family, **overrides), items)


@pytest.mark.parametrize("family", FAMILIES)
def test_contract(family):
    check_model_contract(build(family))


@pytest.mark.parametrize("family", OTHERS)
def test_contract_other_families(family):
    check_model_contract(build(family))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_contract_one_layer(layer):
    check_model_contract(build("llama", [layer]))


class OffInCachedDecoding(SteeredModel):
    """nnsight issue 466: the hook misses the decoded tokens."""

    def _steer_hook(self, site, intervention, *more):
        inner = super()._steer_hook(site, intervention, *more)
        return lambda module, args, output: None if output.shape[1] == 1 else inner(module, args, output)


class OffAtOneLayer(SteeredModel):
    def _steer_hook(self, site, intervention, *more):
        inner = super()._steer_hook(site, intervention, *more)
        return (lambda *a: None) if site.point.layer == 1 else inner


class SteersTwice(SteeredModel):
    def _open(self, scope):
        self._handles = []  # forgets the outer scope's hooks
        return super()._open(scope)


class MaskOffByOne(SteeredModel):
    def applied(self, positions=None):
        return super().applied(None if positions is None else positions.roll(1, 1))


class MaskOffByOneBack(SteeredModel):
    def applied(self, positions=None):
        return super().applied(None if positions is None else positions.roll(-1, 1))


class WrongCachedPositions(SteeredModel):
    """Takes the first T position ids where the cache is behind the last T."""

    def _arguments(self, input_ids, mask, positions):
        if mask is not None:
            positions = steered_module.positions_from_mask(mask)[:, : input_ids.shape[1]]
        return super()._arguments(input_ids, mask, positions)


class NoFinalNorm(SteeredModel):
    def hidden_states(self, input_ids, attention_mask=None, position_ids=None, **kwargs):
        kwargs["output_hidden_states"] = True
        with self.applied():
            return self.base.base_model(input_ids=input_ids, **kwargs).hidden_states[-2]


class DisabledAddsZero(SteeredModel):
    def disabled(self):
        return self.applied()


MUTANTS = {
    OffInCachedDecoding: "cached decoding",
    OffAtOneLayer: "counter",
    SteersTwice: "nested|hooks must not",
    MaskOffByOne: "position . steered|positions? .*steered",
    MaskOffByOneBack: "position . steered|positions? .*steered",
    WrongCachedPositions: "cached decoding",
    NoFinalNorm: "logits.hidden_states",
    DisabledAddsZero: "disabled",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_contract_catches(mutant, family):
    with pytest.raises(AssertionError, match=MUTANTS[mutant]):
        check_model_contract(build(family, cls=mutant))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mutant", [OffInCachedDecoding, WrongCachedPositions, MaskOffByOne], ids=lambda m: m.__name__)
def test_main_mutants_in_all_families(mutant, family):
    with pytest.raises(AssertionError, match=MUTANTS[mutant]):
        check_model_contract(build(family, cls=mutant))


def test_contract_catches_position_ids_without_left_padding(monkeypatch):
    # Absolute positions only: a constant shift cancels in rotary attention.
    def arange(mask):
        return torch.arange(mask.shape[1])[None].expand_as(mask)

    monkeypatch.setattr(steered_module, "positions_from_mask", arange)
    with pytest.raises(AssertionError, match="left-padded"):
        check_model_contract(build("gpt2"))


def test_contract_refuses_an_untrained_vector():
    with pytest.raises(AssertionError, match="must change the logits"):
        check_model_contract(SteeredModel(tiny_model("llama"), Static.build([HookPoint(1)], 32)))


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_model_is_seeded(family):
    first, second, other = (tiny_model(family, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
