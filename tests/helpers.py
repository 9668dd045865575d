"""Small things that several test folders need: a tokenizer in memory, a checkpoint folder, prompts."""

from __future__ import annotations

from pathlib import Path

from steerkit.rollouts import EncodedPrompt
from steerkit.testing import tiny_model
from steerkit.types import Example
from steerkit.zoo.tokenizer import train_tokenizer

TEXTS = ["Tom has 12 apples. Anna gives Tom 3 more.", "To find the answer, step 1: 12+3=15.", "\\boxed{15}"]


def tokenizer():
    """A byte-level tokenizer with chat template, as the zoo's."""
    return train_tokenizer(TEXTS * 4, 300)


def checkpoint(folder: Path, family: str = "llama", seed: int = 0, **overrides) -> str:
    """A tiny random model saved as a checkpoint folder; returns its path."""
    tok = tokenizer()
    settings = {"vocab_size": len(tok), "max_position_embeddings": 256, "eos_token_id": tok.eos_token_id} | overrides
    model = tiny_model(family, seed, **settings)
    model.generation_config.eos_token_id = tok.eos_token_id
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def prompts(tok, texts=("Tom has 12 apples.", "Anna gives Tom 3 more. How many?")) -> list[EncodedPrompt]:
    """Encoded plain-text prompts with ids p0, p1..."""
    return [
        EncodedPrompt(Example(f"p{k}", text, "15"), text, tuple(tok(text, add_special_tokens=False)["input_ids"]))
        for k, text in enumerate(texts)
    ]
