"""``steerkit chat``: base and steered answers side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from steerkit.commands.console import prepare
from steerkit.commands.evaluate import default_device
from steerkit.datasets import PromptTemplate
from steerkit.models import LoadedModel, SteeredModel, load_model
from steerkit.rollouts import SamplingParams, encode_prompts
from steerkit.rollouts.fast_sampler import FastSampler
from steerkit.types import Example
from steerkit.vectors import SteeringVector


def answers(
    loaded: LoadedModel,
    models: Sequence[SteeredModel],
    template: PromptTemplate,
    text: str,
    params: SamplingParams,
    seed: int,
) -> list[str]:
    """One answer of each model to ``text``; the same random numbers for all."""
    prompts = encode_prompts(
        loaded.base, loaded.tokenizer, template, [Example("chat", text, "")], params.max_tokens, "refuse"
    )
    sampler = FastSampler()
    return [sampler.sample(m, loaded.tokenizer, prompts, 1, params, seed)[0].rollouts[0].text for m in models]


def run(verb: str, arguments: Sequence[str]) -> int:
    """Answer ``--prompt`` once, or each line typed until an empty one."""
    parser = argparse.ArgumentParser(prog=f"steerkit {verb}", description=__doc__)
    parser.add_argument("--model", required=True, help="zoo name or plugin, local folder, or hub id")
    parser.add_argument("--vector", help="folder or hub id of a steering vector; without it the base answers alone")
    parser.add_argument("--prompt", help="one question; without it, type questions, an empty line ends")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max_tokens", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device")
    options = parser.parse_args(arguments)
    prepare()
    params = SamplingParams(options.temperature, options.max_tokens)
    vector = SteeringVector.from_pretrained(options.vector) if options.vector else None
    loaded = load_model(options.model, dtype=options.dtype, device=options.device or default_device())
    models = [SteeredModel(loaded.base, {}, loaded.layout)]
    template = PromptTemplate(style="chat" if loaded.tokenizer.chat_template else "plain")
    if vector is not None:
        models.append(vector.steer(loaded.base, loaded.layout))
        template = PromptTemplate.from_dict(vector.metadata.receipts.get("prompt", template.to_dict()))

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    lines = [options.prompt] if options.prompt else (line.rstrip("\n") for line in sys.stdin)
    if not options.prompt and sys.stdin.isatty():
        print("Type a question; an empty line ends.")
    for number, line in enumerate(lines):
        if not line.strip():
            break
        table = Table(title=Text(line), title_justify="left")
        table.add_column("base", ratio=1)
        if vector is not None:
            table.add_column(f"steered by {options.vector}", ratio=1)
        table.add_row(
            *(Text(answer) for answer in answers(loaded, models, template, line, params, options.seed + number))
        )
        console.print(table)
    return 0
