"""What an analyzer is handed: the model behind an engine, vectors, prompts, and the plumbing that it shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from steerkit import registry
from steerkit.analysis.engine import Engine
from steerkit.analysis.parts import Part, Parts
from steerkit.analysis.readout import Readout
from steerkit.analysis.texts import Batch, Text, batches, of_groups
from steerkit.datasets import PromptTemplate
from steerkit.hookpoints import HookPoint
from steerkit.models import LoadedModel, SteeredModel
from steerkit.models.layout import text_config
from steerkit.rollouts import EncodedPrompt, SamplingParams
from steerkit.types import Rollout, RolloutGroup
from steerkit.vectors import SteeringVector

Progress = Callable[[str, int, int], None]
"""(label, done, total)"""
BASE_TEXTS = "prompt and the base's own completion at temperature 1"
"""What ``Work.base_texts`` are, in words."""


@dataclass(frozen=True)
class Work:
    """One analysis in progress."""

    loaded: LoadedModel
    vectors: Mapping[str, SteeringVector]
    """Name -> vector, in the user's order; all fit the model."""
    prompts: Sequence[EncodedPrompt]
    engine: Engine
    seed: int
    batch_tokens: int
    """Padded tokens of one forward pass, about."""
    parts: Parts
    progress: Progress = field(default=lambda label, done, total: None)
    template: PromptTemplate | None = None
    """Of the prompts; None where they came encoded."""

    @property
    def n_layers(self) -> int:
        return int(text_config(self.loaded.base).num_hidden_layers)

    @property
    def d_model(self) -> int:
        return int(text_config(self.loaded.base).hidden_size)

    @cached_property
    def readout(self) -> Readout:
        """Final norm and unembedding."""
        return Readout(self.loaded)

    def part(self, name: str, compute: Callable[[], Part]) -> Part:
        """``compute()``, or what it gave in a run that was killed since.

        Args:
            name: unique within the analysis.
            compute: gives name -> tensor or JSON value; it may depend on what the analysis was asked for, and on
                nothing else.
        """
        return self.parts.get(name, compute)

    def batches(self, texts: Sequence[Text], copies: int = 1) -> Iterator[Batch]:
        """Left-padded batches of like length, on the model's device.

        Args:
            copies: variants of each batch that are run together.
        """
        pad = self.loaded.tokenizer.pad_token_id
        tokens = max(1, self.batch_tokens // copies)
        yield from batches(texts, 0 if pad is None else int(pad), self.loaded.base.device, tokens)

    def controls(self, vector: SteeringVector, n: int, salt: int = 0) -> list[SteeringVector]:
        """``n`` random vectors with the norms of ``vector`` at each hook point, by the analysis's seed.

        Args:
            salt: another number gives other vectors: for the parts of one vector, controlled one by one.
        """
        return [vector.random_like((self.seed * 100_003 + salt) * 10_007 + index) for index in range(n)]

    def outputs(self) -> list[HookPoint]:
        """The residual stream after each block, in order."""
        return [HookPoint(layer) for layer in range(self.n_layers)]

    def generations(
        self,
        name: str,
        vector: SteeringVector | None,
        k: int = 1,
        temperature: float = 1.0,
        max_tokens: int = 64,
        sampler: str | Mapping[str, Any] = "transformers",
        prompts: Sequence[EncodedPrompt] | None = None,
    ) -> list[RolloutGroup]:
        """K sampled completions of each prompt, steered by ``vector`` (None: the base's); a part of the analysis.

        Args:
            name: of whose they are, for progress and the part.
            temperature: 0 is greedy.
            sampler: a plugin of group ``steerkit.samplers``, with its settings.
            prompts: default: all.
        """
        chosen = self.prompts if prompts is None else prompts
        label = f"sampling, {name}"

        def compute() -> Part:
            self.engine.release()  # samplers run the model as it is
            model = vector.steer(self.loaded.base, self.loaded.layout) if vector else self.base_model()
            drawer = registry.build("samplers", sampler)
            params = SamplingParams(temperature, max_tokens)
            found: dict[int, RolloutGroup] = {}
            self.progress(label, 0, len(chosen))
            for index, group in drawer.stream(model, self.loaded.tokenizer, chosen, k, params, self.seed):
                found[index] = group
                self.progress(label, len(found), len(chosen))
            return {"rollouts": [[_rollout(r) for r in found[index].rollouts] for index in range(len(chosen))]}

        settings = f"k={k} T={temperature:g} max={max_tokens} n={len(chosen)} {sampler}"
        rollouts = self.part(f"generations {name} {settings}", compute)["rollouts"]
        return [
            RolloutGroup(
                prompt.example, prompt.text, prompt.ids, tuple(_read_rollout(r) for r in group), prompt.segments
            )
            for prompt, group in zip(chosen, rollouts, strict=True)
        ]

    def base_texts(self, max_tokens: int, sampler: str | Mapping[str, Any]) -> list[Text]:
        """Each prompt with one completion of the base at temperature 1: tokens that all compared runs can read."""
        return of_groups(self.generations("base", None, 1, 1.0, max_tokens, sampler))

    def base_model(self) -> SteeredModel:
        """The base behind the door that samplers take."""
        return SteeredModel(self.loaded.base, {}, self.loaded.layout)


def _rollout(rollout: Rollout) -> dict[str, Any]:
    return {
        "token_ids": list(rollout.token_ids), "logprobs": list(rollout.logprobs), "text": rollout.text,
        "finish_reason": rollout.finish_reason,
    }  # fmt: skip


def _read_rollout(record: Mapping[str, Any]) -> Rollout:
    return Rollout(tuple(record["token_ids"]), tuple(record["logprobs"]), record["finish_reason"], record["text"])
