"""Plain frozen records that travel between the rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length"]
VerdictStatus = Literal["correct", "wrong", "fault"]


@dataclass(frozen=True, slots=True)
class Example:
    """One problem of a prompt data set."""

    id: str
    """Unique within its data set; results name problems by it."""
    problem: str
    """The text shown to the model, before any prompt template."""
    answer: str
    """The gold answer, as the data set writes it."""
    source: str = ""
    """The data set that the problem came from."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The data set's other columns, handed to reward functions (TRL's ``**columns``)."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled completion of one prompt."""

    token_ids: tuple[int, ...]
    """[T] sampled ids, the end-of-sequence id included when the sampler stopped there."""
    logprobs: tuple[float, ...]
    """[T] log-probability (nats) of each sampled id under the temperature-scaled policy."""
    finish_reason: FinishReason
    """``stop``: an end-of-sequence id was sampled; ``length``: cut off (counts as wrong)."""
    text: str
    """The completion decoded without special tokens."""
    stream: Any = field(default=None, compare=False, repr=False)
    """[T - 1, D] tensor or None: the residual stream at the tokens but the last, as it leaves the block that the
    sampler was asked to keep (``SamplingParams.keep_layers``), before that block's steering."""


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The K rollouts of one prompt."""

    example: Example
    prompt: str
    """The rendered prompt text."""
    prompt_ids: tuple[int, ...]
    """[P] token ids of the rendered prompt, without padding."""
    rollouts: tuple[Rollout, ...]
    """[K]"""
    segments: tuple[str, ...] = ()
    """[P] the part of the prompt that each token belongs to; empty if unknown."""
    stream: Any = field(default=None, compare=False, repr=False)
    """[P, D] tensor or None: as ``Rollout.stream``, at the prompt's tokens."""
    stream_layer: int | None = field(default=None, compare=False, repr=False)
    """The block that the streams left."""
    policy: int = 0
    """Which of the policies that share a batch sampled it (``models.stacked``)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one completion."""

    status: VerdictStatus
    """``fault``: the verifier itself failed (time-out, crash); it is not a wrong answer."""
    reason: str = ""
    """A short machine-readable cause: ``equal``, ``not_equal``, ``no_box``, ``truncated``, ``timeout``..."""
    extracted: str = ""
    """The answer text found in the completion, empty if none."""

    @property
    def correct(self) -> bool:
        return self.status == "correct"
