"""The best one-token opening: what a prompt alone explains of a vector's gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from steerkit.datasets import PromptTemplate
from steerkit.evaluation.arms import Arm, Protocol, evaluate
from steerkit.models import LoadedModel, SteeredModel
from steerkit.rewards.verifiable import Verifiable
from steerkit.rollouts import encode_prompts
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
    """The base's likeliest first tokens, prefilled one after another; the best accuracy at temperature 1 first.

    Choose on a validation split: the winner of many is flattered by the set that it won on.
    """
    found = []
    special = set(loaded.tokenizer.all_special_ids)
    protocol = replace(protocol, temperatures=(1.0,), k=1)
    for token, probability in first_token_distribution(loaded, examples, prompt, candidates):
        text = str(loaded.tokenizer.decode([token]))
        if token in special or not text.strip() or "\ufffd" in text:
            continue
        rows = evaluate(loaded, [Arm("prefix", assistant_prefix=text)], examples, protocol, prompt, judge=judge).rows
        found.append(Opening(text, probability, rows[0]["accuracy"] or 0.0))  # None: faults alone
    return sorted(found, key=lambda opening: -opening.accuracy)
