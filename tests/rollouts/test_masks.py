"""Masked steering: the sampler's cache and the trainer's branches against one full pass with the positions written
out.
"""

from __future__ import annotations

import pytest
import torch

from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Gated, Static
from steerkit.models import SteeredModel
from steerkit.rollouts import Branches, EncodedPrompt, SamplingParams, completion_log_probs
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.testing import randomize, tiny_model
from steerkit.token_masks import TokenMask
from steerkit.types import Example
from tests.helpers import tokenizer

MASKS = (
    "all",
    "prompt",
    "generated",
    "first_generated",
    "not_first_generated",
    "last_prompt:2",
    "segment:problem",
    "segment:system",
)
TOK = tokenizer()
SEGMENTS = {5: ("role_tags", "system", "problem", "problem", "role_tags"), 3: ("system", "problem", "role_tags")}
PROMPTS = [
    EncodedPrompt(Example("p0", "x", "1"), "x", (40, 41, 42, 43, 44), SEGMENTS[5]),
    EncodedPrompt(Example("p1", "y", "2"), "y", (50, 51, 52), SEGMENTS[3]),
]


def policy(mask: str, family: str = "llama", cls=Static) -> SteeredModel:
    base = tiny_model(family, vocab_size=len(TOK), eos_token_id=TOK.eos_token_id)
    items = cls.build([HookPoint(0), HookPoint(1)], 32)
    for seed, item in enumerate(items.values()):
        randomize(item, seed, std=1.0)
    return SteeredModel(base, items, token_mask=mask)


def full_pass(model: SteeredModel, prompt: EncodedPrompt, completion: tuple[int, ...]) -> torch.Tensor:
    """[T] log-probabilities with every steered position written out by hand."""
    mask = TokenMask(str(model.token_mask))
    on = mask.prompt_positions(len(prompt.ids), prompt.segments) + [mask.generated] * len(completion)
    ids = torch.tensor([[*prompt.ids, *completion]])
    with torch.no_grad(), model.applied(torch.tensor([on])):
        log_probs = model(ids).logits.log_softmax(-1)[0, len(prompt.ids) - 1 : -1]
    return log_probs.gather(-1, torch.tensor(completion)[:, None]).squeeze(-1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
@pytest.mark.parametrize("mask", MASKS)
def test_sampler_and_trainer_equal_the_full_pass(mask, family):
    model = policy(mask, family, Gated if mask == "generated" else Static)
    groups = TransformersSampler().sample(model, TOK, PROMPTS, 3, SamplingParams(1.0, 6), seed=0)
    branches = [Branches(g.prompt_ids, [r.token_ids for r in g.rollouts], g.segments) for g in groups]
    with torch.no_grad():
        trainer = completion_log_probs(model, branches, TOK.pad_token_id)
    sampled = torch.tensor([x for g in groups for r in g.rollouts for x in r.logprobs])
    truth = torch.cat(
        [full_pass(model, p, r.token_ids) for p, g in zip(PROMPTS, groups, strict=True) for r in g.rollouts]
    )
    torch.testing.assert_close(sampled, truth, atol=2e-5, rtol=0)
    torch.testing.assert_close(trainer, truth, atol=2e-5, rtol=0)
    assert model.counter.complete


@pytest.mark.parametrize("mask", MASKS[1:])
def test_each_mask_gives_other_numbers(mask):
    """Else the test above could not fail."""
    completion = (60, 61, 62, 63)
    everywhere, masked = policy("all"), policy(mask)
    assert (
        full_pass(everywhere, PROMPTS[0], completion) - full_pass(masked, PROMPTS[0], completion)
    ).abs().max() > 1e-2
    other = [m for m in MASKS if m != mask]
    for name in other:
        difference = full_pass(policy(name), PROMPTS[0], completion) - full_pass(masked, PROMPTS[0], completion)
        assert difference.abs().max() > 1e-3, name


def test_generate_under_applied_follows_the_mask():
    """Foreign code: the first call is the prompt, left-padded; the later ones are generated tokens."""
    model = policy("first_generated")
    ids = torch.tensor([[40, 41, 42, 43], [0, 0, 50, 51]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    with model.applied():
        made = model.base.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=4, min_new_tokens=4, do_sample=False,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    assert model.counter.forward_calls == 4 and model.counter.tokens == 2 and model.counter.total == 4
    for row, prompt in enumerate(((40, 41, 42, 43), (50, 51))):
        completion = tuple(made.sequences[row, 4:].tolist())
        got = torch.stack(made.logits, 1)[row].log_softmax(-1).gather(-1, torch.tensor(completion)[:, None]).squeeze(-1)
        truth = full_pass(model, EncodedPrompt(Example("x", "x", "1"), "x", prompt), completion)
        torch.testing.assert_close(got, truth, atol=2e-5, rtol=0)


def test_a_segment_mask_without_segments_is_refused():
    model = policy("segment:problem")
    with pytest.raises(SteerkitError, match="needs the segments of each prompt"):
        model(torch.tensor([[40, 41]]))
    bare = [EncodedPrompt(p.example, p.text, p.ids) for p in PROMPTS]
    with pytest.raises(SteerkitError, match="needs the segment of each prompt token"):
        TransformersSampler().sample(model, TOK, bare, 2, SamplingParams(1.0, 2), seed=0)
    with model.disabled():  # the base needs none
        model(torch.tensor([[40, 41]]))
