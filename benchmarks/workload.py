"""The work that is timed: models, prompts, completions of a length that is set, the limit of the linear layers."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from common import Form, form_of, threads
from torch import Tensor, nn

from steerkit.commands.console import prepare
from steerkit.datasets import PromptTemplate, open_dataset
from steerkit.models import LoadedModel, SteeredModel, load_model
from steerkit.rollouts import EncodedPrompt, encode_prompts
from steerkit.training.policy import build_policy


class Workload:
    """A model, its prompts and a size.

    Both sides run in one process, with fp32 weights and the same number of threads; glibc keeps freed memory for both
    (``runtime.keep_freed_memory``), as steerkit's commands ask it to.

    Attributes:
        prompts: word problems of the packaged data set under the default prompt template, of 47 to 77 tokens.
    """

    def __init__(self, model: str, form: str) -> None:
        prepare()
        torch.set_num_threads(threads(form))
        self.form: Form = form_of(form, model)
        self.loaded: LoadedModel = load_model(model, dtype="float32")
        self.prompts = self.encode(self.form.prompts, self.form.tokens)

    def encode(self, n: int, tokens: int) -> list[EncodedPrompt]:
        examples = open_dataset("arithmetic").load("train")[:n]
        loaded = self.loaded
        return encode_prompts(loaded.base, loaded.tokenizer, PromptTemplate(), examples, tokens, "refuse")

    def policy(self, layers: str | int | list[int | str] = "all") -> SteeredModel:
        """A static vector, zero as training starts with it: every side samples from the same distribution."""
        return build_policy(self.loaded, "static", layers)[1]

    def padded(self, k: int) -> dict[str, Tensor]:
        """The prompts as ``generate`` takes them, each k times, padded on the left."""
        rows = [prompt.ids for prompt in self.prompts for _ in range(k)]
        width = max(map(len, rows))
        pad = self.loaded.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}


@contextmanager
def never_stopping(loaded: LoadedModel) -> Iterator[None]:
    """The only stop token is one that the vocabulary does not hold: every completion gets its full length, on both
    sides, without a logits processor on either.
    """
    config, tokenizer = loaded.base.generation_config, loaded.tokenizer
    stops, eos = config.eos_token_id, tokenizer.eos_token
    config.eos_token_id, tokenizer.eos_token = loaded.base.config.vocab_size + 1, None
    try:
        yield
    finally:
        config.eos_token_id, tokenizer.eos_token = stops, eos


def natural_lengths(n: int, longest: int, seed: int = 0) -> list[int]:
    """[n] lengths from a log-normal distribution: median ``longest`` / 4, sigma 0.7, cut to 2 .. ``longest``.

    So most completions are short and a few are long, as a model's own are; the same list for both sides. The longest
    one always has the full length.
    """
    drawn = random.Random(seed)
    lengths = [round(drawn.lognormvariate(0.0, 0.7) * longest / 4) for _ in range(n - 1)]
    return [*(min(longest, max(2, length)) for length in lengths), longest]


class StopAt:
    """Makes as many rows end at each age as have that length in a list, through the unembedding's output.

    The hook is the same for both sides: it raises the end-of-sequence logit of the rows that are to end now and rules
    the token out elsewhere, so that a sampler ends each row by its own means. All rows are of one age at a time
    (one prefill, then one token a row); which row gets which length is left to the order of the rows.

    Args:
        loaded: its unembedding is called once for each age, and for nothing else.
        lengths: of all completions, at least 2 each.
        leave: whether rows that ended leave the batch (steerkit); else they stay, padded (``generate``).
    """

    def __init__(self, loaded: LoadedModel, lengths: Sequence[int], leave: bool) -> None:
        self.loaded, self.lengths, self.leave = loaded, sorted(lengths), leave
        self.age = 0
        self.eos = int(loaded.tokenizer.eos_token_id)

    def __enter__(self) -> StopAt:
        unembedding = self.loaded.base.get_output_embeddings()
        self.handle = unembedding.register_forward_hook(self._hook)
        return self

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()

    def _hook(self, _module: nn.Module, _args: Any, logits: Tensor) -> None:
        self.age += 1
        before = sum(length < self.age for length in self.lengths)
        ending = sum(length == self.age for length in self.lengths)
        first = 0 if self.leave else before
        logits[..., self.eos] = -1e9
        logits[first : first + ending, ..., self.eos] = 1e9


def linear_limit(base: nn.Module, rows: int, seconds: float = 1.0) -> float:
    """Tokens/s if decoding ``rows`` rows were its linear layers alone.

    Each layer shape is timed in the faster of PyTorch's own product and oneDNN's with packed weights, on the weights of
    all its layers in turn, so that none stays in a cache that it would not stay in while decoding.
    """
    shapes: dict[tuple[int, int], list[Tensor]] = {}
    for module in base.modules():
        if isinstance(module, nn.Linear):
            shapes.setdefault((module.in_features, module.out_features), []).append(module.weight.detach())
    total = 0.0
    with torch.inference_mode():
        for (width, _), weights in shapes.items():
            hidden = torch.randn(rows, width)
            best = _per_layer(lambda w: nn.functional.linear(hidden, w), weights, seconds)  # noqa: B023 (called here)
            if torch.backends.mkldnn.is_available():
                packed = [torch.ops.mkldnn._reorder_linear_weight(weight, None) for weight in weights]
                product = torch.ops.mkldnn._linear_pointwise
                best = min(
                    best,
                    _per_layer(lambda w: product(hidden, w, None, "none", [], ""), packed, seconds),  # noqa: B023
                )
                del packed
            total += best * len(weights)
    return rows / total


def _per_layer(product: Any, weights: Sequence[Tensor], budget: float) -> float:
    """Seconds: the fastest of several passes over all layers of a shape."""
    best, end = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < end:
        began = time.perf_counter()
        for weight in weights:
            product(weight)
        best = min(best, (time.perf_counter() - began) / len(weights))
    return best
