"""Pre-training of a tiny reasoner: next-token prediction on generated dialogues."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from steerkit.errors import ModelError
from steerkit.zoo.corpus import Mixture, generate_dialogue

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


TOKENS_A_ROW = 40
"""About the weighted tokens of a dialogue; only scales the gradient."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Shape and schedule of one model of the zoo."""

    d_model: int = 128
    d_mlp: int = 384
    n_layers: int = 6
    n_heads: int = 4
    n_kv_heads: int = 2
    steps: int = 2000
    batch: int = 64
    lr: float = 3e-3
    warmup: int = 100
    prompt_weight: float = 0.1
    """Weight of the prompt's own tokens in the loss: names and numbers there are random, so they teach little."""
    seed: int = 0
    start: str = ""
    """A model of the zoo whose weights (and shape) it goes on from, instead of random ones."""


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A random Llama of the recipe's shape, or what it goes on from, fp32.

    Raises:
        ModelError: if the recipe's shape is not that of the model that it goes on from.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if recipe.start:
        from steerkit.models import load_model

        base = load_model(recipe.start, dtype="float32").base
        if (base.config.hidden_size, base.config.num_hidden_layers) != (recipe.d_model, recipe.n_layers):
            raise ModelError(
                f"The recipe is {recipe.n_layers} layers x {recipe.d_model}, {recipe.start} is "
                f"{base.config.num_hidden_layers} x {base.config.hidden_size}: give the recipe its shape."
            )
        return base

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_kv_heads,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(
    tokenizer: PreTrainedTokenizerFast, mix: Mixture, recipe: Recipe
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids [B, T], loss weights [B, T]), right-padded, bucketed by length to waste little on padding."""
    rng = random.Random(f"corpus/{recipe.seed}")
    assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
    while True:
        dialogues = [generate_dialogue(rng, mix) for _ in range(recipe.batch * 16)]
        texts = tokenizer.apply_chat_template([d.messages for d in dialogues], tokenize=False)
        rows = sorted(tokenizer(texts, add_special_tokens=False)["input_ids"], key=len)
        chunks = [rows[k : k + recipe.batch] for k in range(0, len(rows), recipe.batch)]
        rng.shuffle(chunks)
        for chunk in chunks:
            width = max(map(len, chunk))
            ids = torch.full((len(chunk), width), tokenizer.pad_token_id)
            weights = torch.zeros(len(chunk), width)
            for k, row in enumerate(chunk):
                ids[k, : len(row)] = torch.tensor(row)
                start = row.index(assistant) + 1
                weights[k, :start] = recipe.prompt_weight
                weights[k, start : len(row)] = 1.0
            yield ids, weights


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    mix: Mixture,
    recipe: Recipe,
    report: Callable[[str], None] = print,
) -> float:
    """Train in place; returns the mean loss (nats a weighted token) of the last 50 steps."""
    # Matrices of the blocks by Muon, the rest by AdamW: about twice as far in the same minutes as AdamW alone.
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers" in n)]
    optimizers = [
        torch.optim.Muon(matrices, lr=recipe.lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.01),
    ]
    model.train()
    losses: list[float] = []
    began = time.monotonic()
    for step, (ids, weights) in enumerate(batches(tokenizer, mix, recipe)):
        if step == recipe.steps:
            break
        scale = min(1.0, (step + 1) / recipe.warmup) * min(1.0, (recipe.steps - step) / (0.5 * recipe.steps))
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = recipe.lr * scale
        logits = model(ids, use_cache=False).logits[:, :-1]
        loss_per_token = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        weight = weights[:, 1:].flatten()
        total = (loss_per_token * weight).sum()
        # By a constant, not by this batch's tokens: batches are bucketed by length, and a mean over each would make
        # the openings of short answers weigh more than those of long ones, so that the ways' odds came out wrong.
        (total / (recipe.batch * TOKENS_A_ROW)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(total.detach() / weight.sum()))
        if (step + 1) % 100 == 0:
            mean = sum(losses[-100:]) / 100
            report(f"step {step + 1}/{recipe.steps}  loss {mean:.4f}  {time.monotonic() - began:.0f} s")
    model.eval()
    return sum(losses[-50:]) / len(losses[-50:])
