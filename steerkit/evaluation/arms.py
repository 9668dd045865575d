"""Accuracy of a base model and of its vectors on one set of problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from steerkit.datasets import PromptTemplate
from steerkit.errors import SteerkitError
from steerkit.evaluation.records import correct_table, judge_groups, sample_records
from steerkit.evaluation.suite import Progress, Suite, measure
from steerkit.models import LoadedModel, SteeredModel
from steerkit.rewards import Rubric
from steerkit.rewards.verifiable import Verifiable
from steerkit.rollouts import SamplingParams
from steerkit.types import Example

if TYPE_CHECKING:
    from steerkit.vectors import SteeringVector

__all__ = ["Arm", "Evaluation", "Progress", "Protocol", "correct_table", "evaluate", "judge_groups", "sample_records"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the comparison: a vector (None is the base) and what is known of it."""

    name: str
    vector: SteeringVector | None = None
    assistant_prefix: str = ""
    """Prefilled opening of the completion, after the prompt template's own."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Columns for the result row: ``lr``, ``train_seed``, ``trainable_params``..."""
    model: SteeredModel | None = None
    """A policy that is ready, where no vector can tell it (LoRA, full fine-tuning)."""

    def on(self, loaded: LoadedModel) -> SteeredModel:
        """The steered model of this arm."""
        if self.model is not None:
            return self.model
        if self.vector is not None:
            return self.vector.steer(loaded.base, loaded.layout)
        return SteeredModel(loaded.base, {}, loaded.layout)


@dataclass(frozen=True, slots=True)
class Protocol:
    """How arms are measured."""

    temperatures: tuple[float, ...] = (0.0, 1.0)
    k: int = 1
    """Samples a problem at temperatures above 0; greedy decoding needs one."""
    max_tokens: int = 128
    seed: int = 0
    """Of the samples and of the bootstrap."""
    verifier: str | Mapping[str, Any] = "math"
    sampler: str | Mapping[str, Any] = "fast"
    k_of: Mapping[str, int] = field(default_factory=dict)
    """Set -> samples a problem in place of ``k`` (the papers take 32 on the small sets)."""
    seeds: int = 1
    """Sampling seeds at temperatures above 0: ``seed``, ``seed + 1``..., each with its own k samples."""
    batch_tokens: int | None = None
    """Tokens (prompts and answers) that the sampler gets at once; None: a whole set."""
    top_p: float = 1.0
    top_k: int = 0
    """See ``SamplingParams``; the papers draw from the whole distribution."""

    def __post_init__(self) -> None:
        for name, value in {"k": self.k, "seeds": self.seeds, **{f"k of {n}": k for n, k in self.k_of.items()}}.items():
            if value < 1:
                raise SteerkitError(f"{name} must be at least 1, got {value}.")
        SamplingParams(top_p=self.top_p, top_k=self.top_k)
        if not self.temperatures:
            raise SteerkitError("Give at least one temperature, for example 0 and 1.")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise SteerkitError(f"batch_tokens must be at least 1, got {self.batch_tokens}.")

    def samples(self, set_name: str, temperature: float) -> int:
        """Samples a problem of one set, with one seed."""
        return 1 if temperature == 0 else self.k_of.get(set_name, self.k)

    def seeds_at(self, temperature: float) -> tuple[int, ...]:
        """The sampling seeds; greedy decoding needs one."""
        return tuple(range(self.seed, self.seed + (1 if temperature == 0 else self.seeds)))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Result rows (``results.json``) and every sample behind them (``samples.parquet``)."""

    rows: list[dict[str, Any]]
    samples: list[dict[str, Any]]


def evaluate(
    loaded: LoadedModel,
    arms: Sequence[Arm],
    examples: Sequence[Example],
    protocol: Protocol | None = None,
    prompt: PromptTemplate | None = None,
    set_name: str = "",
    progress: Progress | None = None,
    judge: Verifiable | None = None,
    rewards: Rubric | None = None,
) -> Evaluation:
    """Measure every arm at every temperature on the same problems with the same random numbers.

    A cut-off answer is wrong, and counted (``truncated``); a verifier's fault is neither right nor wrong, and counted.

    Args:
        judge: a verifier that is already running (it stays open); None starts the protocol's and closes it.
        rewards: what the samples are scored by besides (``reward`` and ``reward_ci95`` of a row).

    Raises:
        DataError: if there is no problem, or one doesn't fit the context.
        VectorError: if a vector doesn't fit the model.
    """
    protocol, prompt = protocol or Protocol(), prompt or PromptTemplate()
    suite = Suite({set_name: examples}).fit(loaded, arms, protocol, prompt)
    return Evaluation(*measure(loaded, arms, suite, protocol, prompt, progress, judge, rewards=rewards))
