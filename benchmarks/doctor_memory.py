r"""The doctor's memory estimate against the peak resident memory of a real step, on a CPU (Linux).

    python benchmarks/doctor_memory.py --model smollm2-135m-instruct

Each phase runs in a process of its own: the peak of one would hide that of the next. Completions have full length.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

CASES = ((4, 8, 64, 64, 16384), (8, 16, 32, 32, 16384), (2, 8, 128, 64, 16384), (8, 16, 16, 48, 2048))
"""Prompts, samples a prompt, tokens of a prompt, of a completion, of a micro-batch."""


def resident(key: str) -> int:
    """Bytes; ``VmRSS`` now, ``VmHWM`` the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise SystemExit("This needs Linux's /proc.")


def measure(model: str, phase: str, case: tuple[int, ...]) -> tuple[float, float]:
    """(estimated, measured) bytes above what the process had after loading."""
    import torch

    from steerkit.commands.console import prepare
    from steerkit.doctor import Batch, Subject
    from steerkit.doctor.memory import measure as costs_of
    from steerkit.hookpoints import HookPoint
    from steerkit.interventions import Static
    from steerkit.models import SteeredModel, load_model
    from steerkit.rollouts import Branches, EncodedPrompt, SamplingParams, completion_log_probs, micro_batches
    from steerkit.rollouts import transformers_sampler as sampling
    from steerkit.types import Example

    prepare()
    loaded = load_model(model, dtype="float32")
    n, k, prompt_tokens, max_tokens, budget = case
    batch = Batch(n, k, prompt_tokens, max_tokens, micro_batch_tokens=budget)
    subject = Subject(loaded.base, loaded.tokenizer, None, batch)
    subject.layout = loaded.layout
    costs = costs_of(subject)
    parts = costs.sampling(batch) if phase == "sampling" else costs.update(batch)
    estimated = sum(size for name, size in parts.items() if name != "weights")
    width = subject.bare.d_model
    points = [HookPoint(layer) for layer in range(subject.bare.n_layers)]
    steered = SteeredModel(loaded.base, Static.build(points, width), loaded.layout)
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int) -> list[int]:
        return torch.randint(10, len(loaded.tokenizer) - 10, (length,), generator=generator).tolist()

    prompts = [tuple(tokens(prompt_tokens)) for _ in range(n)]
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    if phase == "sampling":
        sampling.stop_ids = lambda *_: frozenset({-1})  # no completion stops early
        loaded.tokenizer.decode = lambda *_, **__: ""
        encoded = [EncodedPrompt(Example(f"p{i}", "", ""), "", ids) for i, ids in enumerate(prompts)]
        params = SamplingParams(1.0, max_tokens)
        sampling.TransformersSampler().sample(steered, loaded.tokenizer, encoded, k, params, 0)
    else:
        groups = [Branches(ids, [tokens(max_tokens) for _ in range(k)]) for ids in prompts]
        for picked in micro_batches(groups, budget):
            part = [replace(groups[i], completions=[groups[i].completions[j] for j in rows]) for i, rows in picked]
            completion_log_probs(steered, part, subject.pad_id).sum().backward()
    return estimated, resident("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(*measure(options.model, options.one[0], tuple(map(int, options.one[1:]))))
        return
    print("| phase | N x K | P + T | micro-batch | estimated | measured | ratio |\n|---|---|---|---|---|---|---|")
    for case in CASES:
        for phase in ("sampling", "update"):
            one = [sys.executable, __file__, "--model", options.model, "--one", phase, *map(str, case)]
            done = subprocess.run(one, capture_output=True, text=True, check=True)
            estimated, measured = (float(word) / 1e9 for word in done.stdout.split())
            n, k, prompt_tokens, max_tokens, budget = case
            print(
                f"| {phase} | {n} x {k} | {prompt_tokens} + {max_tokens} | {budget} | {estimated:.2f} GB | "
                f"{measured:.2f} GB | {estimated / measured:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
