"""The contracts of objectives, samplers, interventions and models: the built-in ones pass, each promise can break."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import checkpoint
from torch import Tensor, nn

from steerkit.errors import PluginError
from steerkit.interventions import Intervention, Static
from steerkit.objectives import RLOO
from steerkit.rollouts import SamplingParams
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.testing import check_objective, check_sampler, tiny_model, tiny_tokenizer
from steerkit.testing.checks import Check, failure
from steerkit.testing.interventions import intervention_checks
from steerkit.testing.models import model_checks
from steerkit.testing.objectives import objective_checks
from steerkit.testing.samplers import sampler_checks
from steerkit.types import Rollout, RolloutGroup


def broken(checks: list[Check]) -> list[str]:
    """Names of the promises that are not kept."""
    return [check.name for check in checks if failure(check) is not None]


# -- objectives


@pytest.mark.parametrize("settings", [{}, {"kl_coefficient": 0.3}])
def test_good_objectives(settings: dict[str, float]) -> None:
    check_objective(RLOO, **settings)


def test_entropy_objective() -> None:
    check_objective("steerkit.objectives.entropy:Entropy")


class Mean(RLOO):
    def loss(self, logprobs: Tensor, advantages: Tensor, n_tokens: int, *rest: Any, **more: Any) -> Tensor:
        return -(advantages.detach() * logprobs).mean()


class SquaredSum(RLOO):
    def loss(self, logprobs: Tensor, advantages: Tensor, n_tokens: int, *rest: Any, **more: Any) -> Tensor:
        return (advantages.detach() * logprobs).sum().square() / n_tokens


class Leaks(RLOO):
    def loss(self, logprobs: Tensor, advantages: Tensor, n_tokens: int, *rest: Any, **more: Any) -> Tensor:
        return -(advantages * logprobs).sum() / n_tokens


class Constant(RLOO):
    def loss(self, logprobs: Tensor, advantages: Tensor, n_tokens: int, *rest: Any, **more: Any) -> Tensor:
        return -(advantages.detach() * logprobs.detach()).sum() / n_tokens


class Vector(RLOO):
    def loss(self, logprobs: Tensor, advantages: Tensor, n_tokens: int, *rest: Any, **more: Any) -> Tensor:
        return -(advantages.detach() * logprobs) / n_tokens


class Secret(RLOO):
    """Uses the reference without asking for it."""

    def loss(  # type: ignore[override]
        self,
        logprobs: Tensor,
        advantages: Tensor,
        n_tokens: int,
        ref_logprobs: Tensor | None = None,
        entropies: Tensor | None = None,
    ) -> Tensor:
        loss = super().loss(logprobs, advantages, n_tokens)
        return loss if ref_logprobs is None else loss + (logprobs - ref_logprobs.detach()).sum() / n_tokens


class Asks(RLOO):
    """Asks for the entropies and does not use them."""

    needs_entropy = True


class KeepsInvalid(RLOO):
    def advantages(self, rewards: Tensor, valid: Tensor | None = None) -> Tensor:
        return rewards.nan_to_num() - rewards.nan_to_num().mean(1, keepdim=True)


class Wide(RLOO):
    def advantages(self, rewards: Tensor, valid: Tensor | None = None) -> Tensor:
        return super().advantages(rewards, valid).flatten()


OBJECTIVES = {
    Mean: "the loss is a sum over tokens divided by n_tokens",
    SquaredSum: "micro-batches add up, in value and gradient",
    Leaks: "no gradient flows into advantages or reference log-probabilities",
    Constant: "the loss is a finite scalar with a gradient",
    Vector: "the loss is a finite scalar with a gradient",
    Secret: "needs_reference and needs_entropy say what the loss uses",
    Asks: "needs_reference and needs_entropy say what the loss uses",
    KeepsInvalid: "what an invalid sample was rewarded does not matter",
    Wide: "advantages are [G, K], finite, and 0 where a sample is invalid",
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_broken_objectives(objective: Any) -> None:
    found = broken(objective_checks(objective))
    assert OBJECTIVES[objective] in found, found
    if objective in (Leaks, Secret, Asks, SquaredSum, Wide):
        assert found == [OBJECTIVES[objective]]
    with pytest.raises(AssertionError, match=objective.__name__):
        check_objective(objective)


def test_no_objective_at_all() -> None:
    assert "has advantages, loss and the two flags" in broken(objective_checks(object()))


# -- samplers


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_good_sampler(family: str) -> None:
    check_sampler(TransformersSampler, family=family, max_rows=6)


class Edited(TransformersSampler):
    """Changes what the good sampler made."""

    def edit(self, rollout: Rollout) -> Rollout:
        return rollout

    def stream(self, model: Any, *rest: Any) -> Iterator[tuple[int, RolloutGroup]]:
        for index, group in super().stream(model, *rest):
            yield index, replace(group, rollouts=tuple(map(self.edit, group.rollouts)))


class NoText(Edited):
    def edit(self, rollout: Rollout) -> Rollout:
        return replace(rollout, text="")


class WrongReason(Edited):
    def edit(self, rollout: Rollout) -> Rollout:
        return replace(rollout, finish_reason="stop")


class WrongLogProbs(Edited):
    def edit(self, rollout: Rollout) -> Rollout:
        return replace(rollout, logprobs=tuple(x - 0.01 for x in rollout.logprobs))


class IgnoresTemperature(TransformersSampler):
    def stream(self, model: Any, tokenizer: Any, prompts: Any, k: int, params: SamplingParams, seed: int) -> Any:
        params = params if params.temperature == 0 else replace(params, temperature=1.0)
        return super().stream(model, tokenizer, prompts, k, params, seed)


class OneSeed(TransformersSampler):
    def stream(self, model: Any, tokenizer: Any, prompts: Any, k: int, params: Any, seed: int) -> Any:
        return super().stream(model, tokenizer, prompts, k, params, 5)


class SeedsByBatch(TransformersSampler):
    def stream(self, model: Any, tokenizer: Any, prompts: Any, k: int, params: Any, seed: int) -> Any:
        return super().stream(model, tokenizer, prompts, k, params, seed + 100 * len(prompts))


class Unsteered(TransformersSampler):
    def stream(self, model: Any, *rest: Any) -> Iterator[tuple[int, RolloutGroup]]:
        with model.disabled():
            yield from super().stream(model, *rest)


class Backwards(TransformersSampler):
    def sample(self, *arguments: Any) -> list[RolloutGroup]:
        return super().sample(*arguments)[::-1]


class NeverGreedy(TransformersSampler):
    def stream(self, model: Any, tokenizer: Any, prompts: Any, k: int, params: SamplingParams, seed: int) -> Any:
        return super().stream(
            model, tokenizer, prompts, k, replace(params, temperature=params.temperature or 1.0), seed
        )


class Trains(TransformersSampler):
    def stream(self, model: Any, *rest: Any) -> Iterator[tuple[int, RolloutGroup]]:
        yield from super().stream(model, *rest)
        model.base.train()


class Other(TransformersSampler):
    """Right in all but the numbers that the tokens are drawn by."""

    def stream(self, model: Any, tokenizer: Any, prompts: Any, k: int, params: Any, seed: int) -> Any:
        return super().stream(model, tokenizer, prompts, k, params, seed + 1)


LOG_PROBS = "log-probabilities are those of a full steered pass"
SAMPLERS = {
    NoText: "finish reasons, lengths and texts fit the tokens",
    WrongReason: "finish reasons, lengths and texts fit the tokens",
    WrongLogProbs: LOG_PROBS,
    IgnoresTemperature: LOG_PROBS,
    Unsteered: LOG_PROBS,
    OneSeed: "the same seed gives the same samples, another seed others",
    SeedsByBatch: "samples do not depend on the batch or on K",
    Backwards: "K rollouts of each prompt, in order",
    NeverGreedy: "temperature 0 takes the likeliest token",
    Trains: "the model is left as it was",
    Other: "each token is the one that its uniform number picks",
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_broken_samplers(sampler: Any) -> None:
    found = broken(sampler_checks(sampler))
    assert SAMPLERS[sampler] in found, found
    if sampler in (NoText, WrongReason, OneSeed, NeverGreedy, Trains, Other):
        assert found == [SAMPLERS[sampler]]
    if sampler is Unsteered:
        assert "every token was sampled from the steered model" in found


def test_tiny_tokenizer_fits_the_tiny_model() -> None:
    tokenizer, base = tiny_tokenizer(), tiny_model("llama")
    assert len(tokenizer) == base.config.vocab_size
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    assert tokenizer.encode("w5 w96") == [5, 96] and tokenizer.decode([5, 1, 96], skip_special_tokens=True) == "w5 w96"


# -- interventions and models


class Forgets(Intervention):
    """Its setting is not saved, so a vector file builds another one."""

    def __init__(self, d_model: int, gain: float = 1.0) -> None:
        super().__init__(d_model)
        self.gain, self.vector = gain, nn.Parameter(torch.zeros(d_model))

    def delta(self, hidden: Tensor) -> Tensor:
        return self.gain * self.vector


class LooksBack(Intervention):
    """Reads the position before: right in a full pass, wrong in cached decoding."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.vector = nn.Parameter(torch.zeros(d_model))

    def delta(self, hidden: Tensor) -> Tensor:
        return hidden.roll(1, 1) * self.vector


def test_interventions() -> None:
    assert broken(intervention_checks(Static)) == []
    assert broken(intervention_checks("steerkit.interventions.static:Static", family="gpt2")) == []
    own, steers, file = (check.name for check in intervention_checks(Forgets))
    assert broken(intervention_checks(Forgets, gain=2.0)) == [own, file]
    assert broken(intervention_checks(LooksBack)) == [own, steers]
    with pytest.raises(PluginError, match="has no setting 'gian'. Did you mean 'gain'"):
        intervention_checks(Forgets, gian=2.0)
    with pytest.raises(PluginError, match="is no Intervention"):
        intervention_checks(nn.Linear)


def test_models(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "model")
    assert broken(model_checks(folder)) == []
    assert broken(model_checks(str(tmp_path / "nothing"))) == [check.name for check in model_checks(folder)]
    packaged = model_checks("tiny-reasoner")
    assert packaged[0].name == "its function returns the folder of a checkpoint"
    assert broken(packaged) == []


def test_a_model_whose_function_gives_no_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from steerkit import registry

    def entries(kind: str) -> Sequence[registry.Entry]:
        return [registry.Entry(kind, "mine", "mine:folder", "mine", "1")] if kind == "models" else []

    monkeypatch.setattr(registry, "entries", entries)
    monkeypatch.setattr(registry, "resolve", lambda kind, spec: lambda: str(tmp_path / "nothing"))
    assert len(broken(model_checks("mine"))) == 4
