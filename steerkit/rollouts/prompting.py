"""From examples to encoded prompts that leave room for an answer in the model's context."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from steerkit.datasets import PromptTemplate, fit_to_context, prompt_segments
from steerkit.errors import DataError
from steerkit.models.layout import text_config
from steerkit.rollouts.sampler import EncodedPrompt
from steerkit.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def context_length(base: PreTrainedModel) -> int:
    """The longest sequence the model was made for, in tokens."""
    config = text_config(base)
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    return 2048


def encode_prompts(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    examples: Sequence[Example],
    max_tokens: int,
    long_prompts: Literal["refuse", "drop"] = "drop",
    segments: bool = False,
) -> list[EncodedPrompt]:
    """Render and tokenise; a prompt that leaves less than ``max_tokens`` of context is refused or dropped, never cut.

    Args:
        segments: also say which part of the prompt each token belongs to (token masks that name one need it).

    Raises:
        DataError: if there is no example, or a prompt is too long and ``long_prompts`` is ``refuse``.
        SteerkitError: if the template doesn't suit the tokenizer.
    """
    if not examples:
        raise DataError("The data set is empty: no problem to put to the model.")
    room = context_length(base) - max_tokens
    if room < 1:
        raise DataError(
            f"max_tokens {max_tokens} leaves no prompt room: the model's context is {context_length(base)} tokens."
        )
    texts = [template.render(tokenizer, example) for example in examples]
    encoded = [template.encode(tokenizer, text) for text in texts]
    kept, dropped = fit_to_context(encoded, room, long_prompts)
    if dropped:
        log.warning("%d of %d prompts are longer than %d tokens and were left out.", dropped, len(examples), room)
    parts = {k: prompt_segments(tokenizer, template, examples[k], texts[k]) for k in kept} if segments else {}
    return [EncodedPrompt(examples[k], texts[k], tuple(encoded[k]), parts.get(k, ())) for k in kept]
