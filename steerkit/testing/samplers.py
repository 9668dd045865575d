"""The contract of a sampler (``rollouts/sampler.py``): each token is drawn by its own number from the steered model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import SteeredModel
from steerkit.rollouts import EncodedPrompt, SamplingParams, uniforms
from steerkit.testing.checks import Check, assert_all, label, made
from steerkit.testing.steering import randomize, tiny_model
from steerkit.types import Example, RolloutGroup

TOLERANCE = 2e-4
"""Of log-probabilities (nats) and of the cumulative distribution, fp32: sampler against one full pass a rollout."""
K, MAX_TOKENS, SEED = 4, 12, 5


def check_sampler(target: Any, *, family: str = "llama", **settings: Any) -> None:
    """The sampler contract, on a tiny random model with a random vector at each layer.

    Args:
        target: a class, an object, or a plugin's name.
        family: of the tiny model (``tiny_model``).
        settings: of a class.

    Raises:
        AssertionError: naming the promise that is broken.
    """
    assert_all(label(target), sampler_checks(target, family=family, **settings))


def sampler_checks(target: Any, *, family: str = "llama", **settings: Any) -> list[Check]:
    """The promises, for ``check_sampler`` and for the shell."""
    contract = _Contract(made("samplers", target, settings), family)
    counted = getattr(contract.sampler, "counter_based", True)
    checks = [
        Check("K rollouts of each prompt, in order", contract.groups),
        Check("finish reasons, lengths and texts fit the tokens", contract.rollouts),
        Check("log-probabilities are those of a full steered pass", contract.log_probs),
        Check("temperature 0 takes the likeliest token", contract.greedy),
        Check("the same seed gives the same samples, another seed others", contract.seeds),
        Check("the model is left as it was", contract.left),
    ]
    if counted:  # else another engine draws and runs the passes: the log-probabilities alone show that it is steered
        checks += [
            Check("each token is the one that its uniform number picks", contract.draws),
            Check("samples do not depend on the batch or on K", contract.batches),
            Check("every token was sampled from the steered model", contract.steered),
        ]
    return checks


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """One word a token for ``tiny_model``: ids 0 to 2 are pad, end and begin, id k is the word ``wk``; no template."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<eos>", "<bos>", *(f"w{index}" for index in range(3, 97))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", padding_side="left"
    )


class _Contract:
    def __init__(self, sampler: Any, family: str) -> None:
        self.sampler, self.tokenizer = sampler, tiny_tokenizer()
        base = tiny_model(family)
        with torch.no_grad():  # an end-of-sequence that comes up now and then
            base.get_output_embeddings().weight[1] *= 2.0
        points = [HookPoint(layer) for layer in range(3)]
        items = Static.build(points, base.config.hidden_size)
        for seed, item in enumerate(items.values()):
            randomize(item, seed, std=0.3)
        self.model = SteeredModel(base, items)
        self.before = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        self.hooks = _hooks(base)
        self.prompts = [
            EncodedPrompt(Example(f"check/{index}", "text", "15"), "text", ids)
            for index, ids in enumerate([(5, 6, 7), (8,), (9, 10, 11, 12, 13, 14), (15, 16, 5, 6)])
        ]

    def sample(
        self, prompts: Sequence[EncodedPrompt], k: int = K, temperature: float = 0.8, seed: int = SEED
    ) -> list[RolloutGroup]:
        params = SamplingParams(temperature, MAX_TOKENS)
        return list(self.sampler.sample(self.model, self.tokenizer, prompts, k, params, seed))

    @cached_property
    def made(self) -> list[RolloutGroup]:
        return self.sample(self.prompts)

    @torch.no_grad()
    def full_pass(self, group: RolloutGroup, index: int, temperature: float) -> Tensor:
        """[T, V] log-probabilities at each token of one rollout, from one pass over the whole text."""
        ids = group.rollouts[index].token_ids
        logits = self.model(torch.tensor([[*group.prompt_ids, *ids]])).logits[0, len(group.prompt_ids) - 1 : -1]
        return torch.log_softmax(logits.float() / temperature, -1)

    def groups(self) -> None:
        assert len(self.made) == len(self.prompts), f"{len(self.made)} groups of {len(self.prompts)} prompts"
        for prompt, group in zip(self.prompts, self.made, strict=True):
            assert group.example == prompt.example and tuple(group.prompt_ids) == prompt.ids, "groups are out of order"
            assert len(group.rollouts) == K, f"expected {K} rollouts, got {len(group.rollouts)}"

    def rollouts(self) -> None:
        for rollout in (rollout for group in self.made for rollout in group.rollouts):
            ids, size = rollout.token_ids, len(rollout.token_ids)
            assert 1 <= size <= MAX_TOKENS, f"{size} tokens with max_tokens {MAX_TOKENS}"
            assert len(rollout.logprobs) == size, f"{size} tokens, {len(rollout.logprobs)} log-probabilities"
            assert 1 not in ids[:-1], f"tokens behind the end of sequence: {ids}"
            reason = "stop" if ids[-1] == 1 else "length"
            assert rollout.finish_reason == reason, f"{ids}: expected {reason}, got {rollout.finish_reason}"
            assert reason == "stop" or size == MAX_TOKENS, f"cut off after {size} of {MAX_TOKENS} tokens"
            text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
            assert rollout.text == text, f"expected the text {text!r}, got {rollout.text!r}"

    def log_probs(self) -> None:
        for group in self.made:
            for index, rollout in enumerate(group.rollouts):
                full = self.full_pass(group, index, 0.8)
                expected = full.gather(1, torch.tensor(rollout.token_ids).unsqueeze(1)).squeeze(1)
                gap = float((torch.tensor(rollout.logprobs) - expected).abs().max())
                assert gap <= TOLERANCE, f"{group.example.id}, sample {index}: {gap:g} nats apart (temperature 0.8)"

    def draws(self) -> None:
        """Inverse-CDF sampling: the uniform lies within the token's step of the cumulative distribution."""
        for group in self.made:
            u = torch.from_numpy(uniforms(SEED, [group.example.id] * K, list(range(K)), MAX_TOKENS))
            for index, rollout in enumerate(group.rollouts):
                cdf = self.full_pass(group, index, 0.8).double().exp().cumsum(-1)
                for t, token in enumerate(rollout.token_ids):
                    low, high, drawn = (
                        float(cdf[t, token - 1]) if token else 0.0,
                        float(cdf[t, token]),
                        float(u[index, t]),
                    )
                    assert low - TOLERANCE <= drawn <= high + TOLERANCE, (
                        f"{group.example.id}, sample {index}, token {t}: uniform {drawn:.4f} is outside the step of "
                        f"token {token}, {low:.4f} to {high:.4f}"
                    )

    def greedy(self) -> None:
        for group in self.sample(self.prompts, k=1, temperature=0.0):
            rollout, full = group.rollouts[0], self.full_pass(group, 0, 1.0)
            chosen = full.gather(1, torch.tensor(rollout.token_ids).unsqueeze(1)).squeeze(1)
            short = float((full.amax(1) - chosen).max())
            assert short <= TOLERANCE, f"{group.example.id}: a token is {short:g} nats below the likeliest"
            gap = float((torch.tensor(rollout.logprobs) - chosen).abs().max())
            assert gap <= TOLERANCE, f"{group.example.id}: log-probabilities should be those at temperature 1 ({gap:g})"

    def seeds(self) -> None:
        assert _tokens(self.sample(self.prompts)) == _tokens(self.made), "other samples with the same seed"
        assert _tokens(self.sample(self.prompts, seed=SEED + 1)) != _tokens(self.made), "the same samples with another"

    def batches(self) -> None:
        backwards = self.sample(self.prompts[::-1])[::-1]
        assert _tokens(backwards) == _tokens(self.made), "other samples with the prompts in reverse order"
        for index, prompt in enumerate(self.prompts):
            alone = _tokens(self.sample([prompt], k=2))[0]
            assert alone == _tokens(self.made)[index][:2], f"{prompt.example.id}: other samples alone with K = 2"

    def steered(self) -> None:
        self.model.counter.reset()
        made = self.sample(self.prompts)
        assert self.model.counter.complete, f"steering was not applied everywhere: {self.model.counter}"
        longest = max(len(rollout.token_ids) for group in made for rollout in group.rollouts)
        calls = self.model.counter.forward_calls
        assert calls >= longest, f"{calls} steered passes for {longest} tokens"

    def left(self) -> None:
        self.sample(self.prompts[:2])
        assert not self.model.base.training, "the base was put into training mode"
        assert _hooks(self.model.base) == self.hooks, "hooks are left on the base"
        for name, parameter in self.model.named_parameters():
            assert torch.equal(parameter, self.before[name]), f"{name} changed"
            assert parameter.grad is None, f"{name} has a gradient: sample without gradients"


def _tokens(groups: Sequence[RolloutGroup]) -> list[list[tuple[int, ...]]]:
    return [[tuple(rollout.token_ids) for rollout in group.rollouts] for group in groups]


def _hooks(base: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in base.modules())
