"""The fast path against a plain one that shares no code with it: gradients at each step and the vector at the end."""

from __future__ import annotations

import pytest
import torch

from steerkit.hookpoints import HookPoint
from steerkit.interventions import Gated, Static, Tokenwise
from steerkit.models import SteeredModel
from steerkit.models.positions import mask_positions
from steerkit.objectives import RLOO, leave_one_out_advantages
from steerkit.rollouts import SamplingParams, uniforms
from steerkit.rollouts.fast_sampler import FastSampler
from steerkit.rollouts.suffix import kept_layers
from steerkit.testing import randomize, tiny_model
from steerkit.training.step import accumulate_gradients, clip_gradients
from tests.helpers import prompts, tokenizer

TOK = tokenizer()
FIVE = ("llama", "qwen3", "gemma2", "gpt2", "gpt_neox")
STEPS, K = 4, 3
CASES = [
    *((Static, (layer,), "output", "all") for layer in range(3)),
    (Static, (0, 1, 2), "output", "all"),
    (Static, (1, 2), "output", "first_generated"),
    (Gated, (1,), "output", "all"),
    (Gated, (0, 2), "output", "not_first_generated"),
    (Tokenwise, (1,), "down_proj", "all"),
    (Tokenwise, (2,), "down_proj", "generated"),
]


def policy(family, cls, layers, site, mask):
    base = tiny_model(family, vocab_size=len(TOK), max_position_embeddings=256, eos_token_id=TOK.eos_token_id)
    base.generation_config.eos_token_id = list(range(20, 60))  # an end every few tokens
    if family != "gemma2":  # its attention's softmax is in float32
        base = base.double()
    settings = {"d_inner": 128 if family == "gpt2" else 64} if cls is Tokenwise else {}
    items = cls.build([HookPoint(layer, site) for layer in layers], 32, **settings)
    for seed, item in enumerate(items.values()):
        randomize(item, seed)
    return SteeredModel(base, items, token_mask=mask)


def plain_log_probs(model, group, rollout):
    """[T] of one completion, from a full pass over its own tokens alone, steered by hand."""
    ids = torch.tensor([[*group.prompt_ids, *rollout.token_ids]])
    n = len(group.prompt_ids)
    chosen = mask_positions(model.token_mask, [n], [group.segments], n, ids.device)
    generated = torch.full((1, len(rollout.token_ids)), model.token_mask.generated)
    positions = None if chosen is None else torch.cat([chosen, generated], dim=1)
    with model.applied(positions=positions):
        logits = model.base(ids, use_cache=False).logits[0, n - 1 : -1]
    return torch.log_softmax(logits, -1).gather(1, ids[0, n:, None])[:, 0]


def trained(model, step):
    """(gradients of all steps, final parameters) of AdamW on ``step(model)``, from the same start."""
    parameters = [p for item in model.interventions.values() for p in item.parameters()]
    start = [p.detach().clone() for p in parameters]
    optimizer, gradients = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.0), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        step()
        clip_gradients(parameters, 2.0)
        gradients.append([p.grad.clone() for p in parameters])
        optimizer.step()
    final = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, value in zip(parameters, start, strict=True):
            p.copy_(value)
    assert max(float((a - b).abs().max()) for a, b in zip(start, final, strict=True)) > 0.1
    return gradients, final


@pytest.mark.parametrize(("cls", "layers", "site", "mask"), CASES)
@pytest.mark.parametrize("family", FIVE)
def test_gradients_and_final_vector_of_the_plain_path(family, cls, layers, site, mask):
    model = policy(family, cls, layers, site, mask)
    params = SamplingParams(1.0, 10, keep_layers=kept_layers(model))
    groups = FastSampler().sample(model, TOK, prompts(TOK), K, params, seed=0)
    rewards = torch.rand(len(groups), K, generator=torch.Generator().manual_seed(0))
    advantages = leave_one_out_advantages(rewards)
    tokens = sum(len(r.token_ids) for g in groups for r in g.rollouts)

    def fast():
        accumulate_gradients(model, RLOO(), groups, advantages, tokens, TOK.pad_token_id, 1.0, 120)

    def plain():
        for row, group in zip(advantages, groups, strict=True):
            for advantage, rollout in zip(row, group.rollouts, strict=True):
                (-(advantage * plain_log_probs(model, group, rollout)).sum() / tokens).backward()

    (gradients, final), (expected, wanted) = trained(model, fast), trained(model, plain)
    # The vectors and their gradients are in fp32: what is left is their rounding.
    exact = 1e-5 if model.dtype == torch.float64 else 1e-4
    for step, (a, b) in enumerate(zip(gradients, expected, strict=True)):
        for one, other in zip(a, b, strict=True):
            torch.testing.assert_close(one, other, atol=exact, rtol=100 * exact, msg=f"step {step}")
    for one, other in zip(final, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=10 * exact, rtol=100 * exact)


@pytest.mark.parametrize("family", FIVE)
def test_samples_that_differ_between_batches_stood_at_a_boundary(family):
    """At batch 1, 8 and 64 the same tokens in 99.9 % of sequences. Where one differs, its uniform lies within 1e-5 of
    the boundary between the two tokens in the distribution that a full pass gives.
    """
    model = policy(family, Static, (1,), "output", "all")
    model.base.float()
    texts = [f"Tom has {n} apples." if n % 3 else f"Anna gives {n}" for n in range(200)]
    batch, params = prompts(TOK, texts), SamplingParams(1.0, 12)
    samples = [FastSampler(max_rows=rows).sample(model, TOK, batch, 1, params, seed=3) for rows in (64, 8, 1)]
    flat = [[(group, group.rollouts[0].token_ids) for group in groups] for groups in samples]
    pairs = [(group, a, b) for other in flat[1:] for (group, a), (_, b) in zip(flat[0], other, strict=True)]
    differing = [(group, a, b) for group, a, b in pairs if a != b]
    assert len(differing) <= 0.001 * len(pairs) and len(pairs) == 400
    for group, a, b in differing:
        at = next(t for t, (one, other) in enumerate(zip(a, b, strict=False)) if one != other)
        with torch.no_grad(), model.applied():
            logits = model.base(torch.tensor([[*group.prompt_ids, *a[:at]]])).logits[0, -1]
        assert at_boundary(logits, float(uniforms(3, [group.example.id], [0], at + 1)[0, at]), a[at], b[at])


def at_boundary(logits, u, one, other):
    """Whether a draw by ``u`` lies within 1e-5 of a boundary between two tokens' parts of the cumulative
    distribution; tokens of no probability may stand between them.
    """
    ends = logits.double().softmax(-1).cumsum(-1)
    low, high = sorted((one, other))
    return abs(float(ends[low]) - u) < 1e-5 and float(ends[high - 1] - ends[low]) < 1e-5


def test_what_is_a_boundary():
    logits = torch.tensor([0.2, 0.3, 0.0, 0.5]).log()
    assert at_boundary(logits, 0.5 + 5e-6, 1, 3) and at_boundary(logits, 0.2 - 5e-6, 1, 0)
    assert not at_boundary(logits, 0.5 + 5e-5, 1, 3)
    assert not at_boundary(logits, 0.2, 0, 3)
    assert not at_boundary(logits, 0.35, 1, 3)
