"""``steerkit chat``: base and steered answers side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from steerkit.commands.console import check_base, prepare
from steerkit.commands.evaluate import default_device
from steerkit.commands.parsing import Parser
from steerkit.datasets import PromptTemplate
from steerkit.errors import SteerkitError
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


def build_parser() -> Parser:
    """The options of ``steerkit chat``."""
    parser = Parser(prog="steerkit chat", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, help="zoo name or plugin, local folder, or hub id")
    add("--vector", type=str | None, default=None, help="folder or hub id of a vector; default: the base alone")
    add("--prompt", type=str | None, default=None, help="one question; without it, type questions, an empty line ends")
    text = "how a question becomes a prompt; default: the vector's, else chat or plain as the tokenizer has it"
    add("--template", type=PromptTemplate | None, default=None, help=text)
    add("--force", action="store_true", help="accept a base with another fingerprint than the vector's")
    add("--temperature", type=float, default=0.0, help="0 is greedy")
    add("--max_tokens", type=int, default=128)
    add("--seed", type=int, default=0)
    add("--dtype", default="auto")
    add("--device", type=str | None, default=None, help="default: cuda if there is one, else cpu")
    add("--trust_remote_code", type=bool, default=False)
    return parser


def run(verb: str, arguments: Sequence[str]) -> int:
    """Answer ``--prompt`` once, or each line typed until an empty one."""
    options = build_parser().parse_args(list(arguments))
    options = build_parser().instantiate(options)
    prepare()
    if options.prompt is not None and not options.prompt.strip():
        raise SteerkitError("--prompt is empty: give a question, or leave --prompt out and type questions.")
    params = SamplingParams(options.temperature, options.max_tokens)
    vector = SteeringVector.from_pretrained(options.vector) if options.vector else None
    loaded = load_model(
        options.model,
        dtype=options.dtype,
        device=options.device or default_device(),
        trust_remote_code=options.trust_remote_code,
    )
    models = [SteeredModel(loaded.base, {}, loaded.layout)]
    template = PromptTemplate(style="chat" if loaded.tokenizer.chat_template else "plain")
    if vector is not None:
        check_base(vector, loaded.base, options.force)
        models.append(vector.steer(loaded.base, loaded.layout))
        template = PromptTemplate.from_dict(vector.metadata.receipts.get("prompt", template.to_dict()))
    template = options.template or template

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
