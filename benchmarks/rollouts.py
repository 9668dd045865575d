r"""Rollouts: tokens a second against transformers' ``generate`` and against the limit of the linear layers.

    python benchmarks/rollouts.py [--form full|short|smoke] [--models smollm2-135m-instruct tiny-reasoner]

Ours: the default sampler with a static vector on every layer, keeping the stream for the update. Theirs: the bare
model, ``generate`` with do_sample. Temperature 1, no truncation, the same prompts, samples and lengths on both sides.

- rollouts_vs_generate: every completion has the full length.
- rollouts_vs_linear_limit: ours over what the linear layers alone would allow at that many rows, measured before each
  run.
- rollouts_natural_stops: lengths from a fixed log-normal distribution (``workload.natural_lengths``); tokens that
  count are those up to each row's end.
"""

from __future__ import annotations

import torch
from common import HEADLINE, Report, Row, alternate, arguments, seconds
from workload import StopAt, Workload, linear_limit, natural_lengths, never_stopping

from steerkit import registry
from steerkit.rollouts import SamplingParams
from steerkit.training.memory import Budget


class Sides:
    """Both ways to sample a workload; each call returns tokens a second."""

    def __init__(self, work: Workload, k: int, tokens: int, lengths: list[int] | None = None) -> None:
        self.work, self.k, self.tokens, self.lengths = work, k, tokens, lengths
        self.policy = work.policy()
        self.sampler = registry.build("samplers", "fast")
        self.params = Budget().keeping(self.policy, work.prompts, k, SamplingParams(1.0, tokens))
        self.inputs = work.padded(k)
        self.expected = sum(lengths) if lengths else len(work.prompts) * k * tokens
        self.seed = 0
        # The sampler's probes of the model, made once, call the unembedding, too: StopAt would count them.
        with never_stopping(work.loaded):
            self.sampler.sample(self.policy, work.loaded.tokenizer, work.prompts[:2], k, SamplingParams(1.0, 2), 0)

    def ours(self) -> float:
        self.seed += 1
        loaded, found = self.work.loaded, []

        def run() -> None:
            found[:] = self.sampler.sample(
                self.policy, loaded.tokenizer, self.work.prompts, self.k, self.params, self.seed
            )

        if self.lengths is None:
            with never_stopping(loaded):
                took = seconds(run)
        else:
            with StopAt(loaded, self.lengths, leave=True):
                took = seconds(run)
        made = [len(rollout.token_ids) for group in found for rollout in group.rollouts]
        return self._rate(made, took)

    def theirs(self) -> float:
        self.seed += 1
        torch.manual_seed(self.seed)
        loaded, found = self.work.loaded, []
        width = self.inputs["input_ids"].shape[1]

        def run() -> None:
            with torch.inference_mode():
                found[:] = loaded.base.generate(
                    **self.inputs,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=self.tokens,
                    pad_token_id=loaded.tokenizer.pad_token_id,
                )[:, width:].tolist()

        if self.lengths is None:
            with never_stopping(loaded):
                took = seconds(run)
            return self._rate([len(row) for row in found], took)
        with StopAt(loaded, self.lengths, leave=False) as stop:
            took = seconds(run)
        return self._rate([row.index(stop.eos) + 1 if stop.eos in row else len(row) for row in found], took)

    def _rate(self, made: list[int], took: float) -> float:
        if sum(made) != self.expected or (self.lengths and sorted(made) != sorted(self.lengths)):
            raise SystemExit(f"Expected {self.expected} tokens, got {sum(made)}: the two sides would not do the same.")
        return sum(made) / took


def bench(report: Report, model: str) -> None:
    work = Workload(model, report.options.form)
    form = work.form
    sides = Sides(work, form.k, form.tokens)
    if form.name != "smoke":  # caches, packed weights, the sampler's probes
        warm = Sides(work, form.k, 4)
        warm.ours(), warm.theirs()
    rows = form.prompts * form.k
    report.add(Row.of("rollouts_vs_generate", alternate(sides.ours, sides.theirs, form.runs), "tokens/s", True, model))
    limits = alternate(lambda: linear_limit(work.loaded.base, rows, 0.5), sides.ours, form.runs)
    report.add(Row.of("rollouts_vs_linear_limit", [(b, a) for a, b in limits], "tokens/s", True, model))
    longest = 2 * form.tokens
    lengths = natural_lengths(rows, longest)
    natural = Sides(work, form.k, longest, lengths)
    note = f"log-normal, median {longest // 4}, sigma 0.7, cut to 2..{longest}; mean {sum(lengths) / rows:.1f}"
    pairs = alternate(natural.ours, natural.theirs, form.runs)
    report.add(Row.of("rollouts_natural_stops", pairs, "tokens/s", True, model, note))


def main() -> None:
    options = arguments(__doc__, (HEADLINE, "tiny-reasoner"))
    report = Report("rollouts", options)
    for model in options.models:
        bench(report, model)


if __name__ == "__main__":
    main()
