"""The best one-token opening: what a prompt alone explains of a vector's gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from steerkit import registry
from steerkit.datasets import PromptTemplate
from steerkit.evaluation.arms import Arm, Protocol
from steerkit.evaluation.records import correct_table, judge_groups
from steerkit.evaluation.suite import Suite
from steerkit.models import LoadedModel, SteeredModel
from steerkit.rewards.verifiable import Verifiable
from steerkit.rollouts import SamplingParams, encode_prompts
from steerkit.rollouts.prompt_pass import left_pad
from steerkit.types import Example


@dataclass(frozen=True, slots=True)
class Opening:
    """One candidate first token."""

    text: str
    probability: float
    """The base's mean probability of it as first token."""
    accuracy: float
    """Of the base with it prefilled, on the problems given (a validation split)."""


@torch.inference_mode()
def first_token_distribution(
    loaded: LoadedModel, examples: Sequence[Example], prompt: PromptTemplate, top: int, batch: int = 32
) -> list[tuple[int, float]]:
    """The base's ``top`` most probable first tokens, by mean probability at temperature 1: (id, probability)."""
    model = SteeredModel(loaded.base, {}, loaded.layout)
    encoded = encode_prompts(loaded.base, loaded.tokenizer, prompt, examples, max_tokens=1)
    total = torch.zeros(0)
    for start in range(0, len(encoded), batch):
        rows = [p.ids for p in encoded[start : start + batch]]
        ids, mask = left_pad(rows, loaded.tokenizer.pad_token_id, model.device)
        logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits[:, -1]
        summed = torch.softmax(logits.float(), dim=-1).sum(0).cpu()
        total = summed if not len(total) else total + summed
    mean = total / len(encoded)
    best = mean.topk(min(top, len(mean)))
    return [(int(i), float(p)) for p, i in zip(best.values, best.indices, strict=True)]


def rank_openings(
    loaded: LoadedModel,
    examples: Sequence[Example],
    protocol: Protocol,
    prompt: PromptTemplate,
    candidates: int = 8,
    judge: Verifiable | None = None,
) -> list[Opening]:
    """The base's likeliest first tokens, each prefilled; the best accuracy at temperature 1 first.

    On the problems that fit the context with every one of them, one sample a problem and seed of the protocol.

    Choose on a validation split: the winner of many is flattered by the set that it won on.
    """
    special = set(loaded.tokenizer.all_special_ids)
    likely = [
        (str(loaded.tokenizer.decode([token])), probability)
        for token, probability in first_token_distribution(loaded, examples, prompt, candidates)
        if token not in special
    ]
    likely = [(text, probability) for text, probability in likely if text.strip() and "\ufffd" not in text]
    if not likely:
        return []
    arms = [Arm(text, assistant_prefix=text) for text, _ in likely]
    (problems,) = Suite({"": examples}).fit(loaded, arms, protocol, prompt).sets.values()
    # One call of the sampler for all of them: a few problems each would be a batch of few rows.
    encoded = [
        row
        for arm in arms
        for row in encode_prompts(
            loaded.base,
            loaded.tokenizer,
            prompt.with_opening(arm.assistant_prefix),
            problems,
            protocol.max_tokens,
            "refuse",
        )
    ]
    params = SamplingParams(1.0, protocol.max_tokens, protocol.top_p, protocol.top_k)
    model, sampler = SteeredModel(loaded.base, {}, loaded.layout), registry.build("samplers", protocol.sampler)
    own = None if judge else Verifiable(protocol.verifier)
    tables = []
    try:
        with sampler.unchanged_model():
            for seed in protocol.seeds_at(1.0):
                groups = sampler.sample(model, loaded.tokenizer, encoded, 1, params, seed)
                verdicts = judge_groups(judge or cast(Verifiable, own), groups)
                tables.append(correct_table(verdicts).reshape(len(arms), len(problems)))
    finally:
        if own is not None:
            own.close()
    right = np.concatenate(tables, axis=1)
    found = [
        # 0 where the verifier failed on all.
        Opening(text, probability, float(np.nanmean(row)) if not np.isnan(row).all() else 0.0)
        for (text, probability), row in zip(likely, right, strict=True)
    ]
    return sorted(found, key=lambda opening: -opening.accuracy)
