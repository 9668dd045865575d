"""Seconds and memory that a study will take: arithmetic on the model's size and this machine's speed.

A forward pass costs 2 floating-point operations a parameter and token, the update of a frozen base 4 (6 where the
weights are trained). Small models are bound by the calls, not the arithmetic: a decoded position costs ``CALL`` seconds
a block besides. Good to a factor of 1.5 (docs/study.md); what is left of a running study is scaled by what is finished.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerkit.study.config import ArmConfig, StudyConfig
from steerkit.study.values import merged

if TYPE_CHECKING:
    from steerkit.models import LoadedModel

START = 4.0
"""Seconds of a fit before its first step and after its last: loading, the parity probe, writing."""
CALL = 4e-4
"""Seconds of calls a block and decoded position, on a CPU."""
ROWS = 256
"""The sampler's rows at a time."""
LENGTH = 0.6
"""Length of a completion, as a share of the most that it may have."""
UTILISATION = 0.5
"""Of the machine's speed at a large product of matrices."""
PROCESS = 0.7e9
"""Bytes of a process with torch and the libraries."""


@dataclass(frozen=True)
class Base:
    """Facts of the model that the plan and the estimates need."""

    n_layers: int
    parameters: int
    prompt_tokens: int = 100
    """Of the training prompts, on average, without what all of them begin with: that is run once."""


@dataclass(frozen=True)
class PromptLengths:
    """Tokens of the training prompts: on average, and what all of them begin with (a system text, worked examples)."""

    mean: int
    common: int = 0


@dataclass(frozen=True)
class Costs:
    """Expected seconds on one core.

    Args:
        base: the model.
        flops: floating-point operations a second of one core (``core_speed``).
    """

    base: Base
    flops: float

    def fit(self, config: Mapping[str, Any], policies: int, report: Mapping[str, Any], rows: int, full: bool) -> float:
        """One ``steerkit fit``.

        Args:
            config: sections ``model``, ``data``, ``trainer``, ``report`` of its file.
            policies: that it trains side by side.
            report: what its report has on top of ``config``.
            rows: arms that the report measures of each policy.
        """
        model, data, trainer = (config.get(name, {}) for name in ("model", "data", "trainer"))
        prompts = int(data.get("prompts_per_step", 16)) * policies
        k = int(model.get("samples_per_prompt", 16))
        most = int(model.get("max_tokens", 128))
        tokens = prompts * (self.base.prompt_tokens + k * LENGTH * most)
        step = self._forward(tokens) * (4 if full else 3) + self._calls(prompts * k, most)
        report = {**config.get("report", {}), **report}
        limit = data.get("n_validation" if report.get("split") == "validation" else "n_test")
        samples = sum(1 if t == 0 else int(report.get("k", 2)) for t in report.get("temperatures", (0.0, 1.0)))
        measured = rows * policies * int(limit or 256)
        told = self._forward(measured * (self.base.prompt_tokens + samples * LENGTH * most))
        told += self._calls(measured * samples, most)
        return START + int(trainer.get("max_steps", 40)) * step + told

    def screen(self, flags: Mapping[str, Any]) -> float:
        """The ``evaluate`` of training problems."""
        problems, k, most = (int(flags.get(n) or d) for n, d in (("limit", 256), ("k", 1), ("max_tokens", 128)))
        tokens = problems * (self.base.prompt_tokens + k * LENGTH * most)
        return START + self._forward(tokens) + self._calls(problems * k, most)

    def _forward(self, tokens: float) -> float:
        return 2 * self.base.parameters * tokens / (self.flops * UTILISATION)

    def _calls(self, rows: int, positions: int) -> float:
        return math.ceil(rows / ROWS) * positions * self.base.n_layers * CALL


def fit_config(config: StudyConfig, arm: ArmConfig) -> dict[str, Any]:
    """The settings of an arm's fits, without what the study sets."""
    return merged(config.fit, {"model": arm.model})


def core_speed(size: int = 768, seconds: float = 0.15) -> float:
    """Floating-point operations a second of one thread, by products of float32 matrices."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a = torch.ones(size, size)
        a @ a
        count, began = 0, time.process_time()  # the processor's: other work on the machine does not count
        while time.process_time() - began < seconds:
            a @ a
            count += 1
        return 2 * size**3 * count / (time.process_time() - began)
    finally:
        torch.set_num_threads(threads)


def describe(loaded: LoadedModel, lengths: PromptLengths) -> Base:
    """Facts of a loaded model."""
    from steerkit.models.layout import text_config

    layers = int(text_config(loaded.base).num_hidden_layers)
    return Base(layers, sum(p.numel() for p in loaded.base.parameters()), lengths.mean - lengths.common)


def memory_of(loaded: LoadedModel, config: StudyConfig, lengths: PromptLengths) -> float:
    """Bytes of one worker in the largest of its fits: the doctor's estimate, the process, what full fine-tuning
    keeps."""
    from steerkit.doctor.memory import HEAP, Batch, measure
    from steerkit.doctor.subject import Subject
    from steerkit.training.memory import budget_bytes

    base = describe(loaded, lengths)
    subject = Subject(loaded.base, loaded.tokenizer)
    subject.layout = loaded.layout
    costs, peak = measure(subject), 0.0
    for arm in config.arms.values():
        if arm.row is not None:
            continue
        settings = fit_config(config, arm)
        model, data = settings.get("model", {}), settings.get("data", {})
        policies = base.n_layers * max(len(arm.grid or ()), len(config.seeds)) if arm.each_layer is not None else 1
        batch = Batch(
            prompts=int(data.get("prompts_per_step", 16)) * policies,
            k=int(model.get("samples_per_prompt", 16)),
            prompt_tokens=max(1, lengths.mean),
            max_tokens=int(model.get("max_tokens", 128)),
        )
        intervention = model.get("intervention")
        name = intervention.get("name") if isinstance(intervention, dict) else intervention
        # Gradient, two moments, and the base's own weights kept aside.
        trained = 4 * base.parameters * 4 if name == "full" else 0
        update = costs.update(batch)
        budget = budget_bytes(model.get("memory_budget"), loaded.base.device)
        update["activations"] = min(update["activations"], budget)  # smaller micro-batches keep to it
        if costs.on_cpu:
            update["allocator"] = HEAP * (update["activations"] + update["logits"])
        peak = max(peak, *(sum(parts.values()) + trained for parts in (costs.sampling(batch), update)))
    return peak + PROCESS
