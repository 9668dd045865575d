"""``steerkit extract``: the contrastive mean difference of residual streams, as a static vector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from jsonargparse import Namespace

from steerkit import registry
from steerkit.commands.console import command_line, prepare, progress_display
from steerkit.commands.evaluate import default_device
from steerkit.commands.parsing import Parser
from steerkit.datasets import PromptTemplate, dataset_name, open_dataset, subset
from steerkit.errors import SteerkitError
from steerkit.extraction import (
    Contrast,
    MeanDifference,
    Positions,
    load_pairs,
    mean_difference,
    requested_contrast,
    sampled_contrast,
    written_contrast,
)
from steerkit.extraction.contrast import Progress
from steerkit.hookpoints import HookPoint, parse_layers
from steerkit.models import LoadedModel, load_model
from steerkit.rollouts import SamplingParams
from steerkit.vectors import SteeringVector

SOURCES = (
    ("positive", "negative"),
    ("positive_prefix", "negative_prefix"),
    ("positive_request", "negative_request"),
)
"""The three ways to say what is contrasted."""


def build_parser() -> Parser:
    """The options of ``steerkit extract``; each can also stand in a YAML file given by ``--config``."""
    parser = Parser(prog="steerkit extract", description=__doc__)
    add = parser.add_argument
    add("--config", action="config", help="YAML file with these options")
    add("--model", required=True, help="zoo name or plugin, local folder, or hub id")
    add("--data", type=str | dict, default="arithmetic", help="data set, or file with problem, positive and negative")
    add("--data_root", type=str | None, default=None, help="folder where relative data paths start")
    add(
        "--split", default="train", choices=["train", "validation"], help="of a data set; a file of pairs is read whole"
    )
    add(
        "--positive",
        type=str | None,
        default=None,
        help="kind of completion (worked, say), or the file's column",
    )
    add("--negative", type=str | None, default=None, help="kind of completion (bare, say), or the file's column")
    add("--positive_prefix", type=str | None, default=None, help="instead: the base's own samples after this opening")
    add("--negative_prefix", type=str | None, default=None, help="minus its samples after this one")
    add("--positive_request", type=str | None, default=None, help="instead: prompts with this behind the problem")
    add("--negative_request", type=str | None, default=None, help="minus prompts with this behind it")
    add("--layers", type=str | int | list[int | str], default="all", help="all, one layer, or a list such as [3,4]")
    add("--site", default="output", choices=["output", "attn_output", "mlp_output"])
    where = "tokens that are averaged over; default: completion, or last_prompt with requests"
    add("--positions", type=Positions | None, default=None, help=where)
    add("--n", type=int, default=256, help="problems at most")
    add("--scale", type=float, default=1.0, help="factor of the mean difference")
    add("--norm_like", type=str | None, default=None, help="vector whose norm each hook point gets, before --scale")
    add("--token_mask", default="all", help="the positions that the saved vector steers")
    add("--temperature", type=float, default=1.0, help="of the samples after openings")
    add("--max_tokens", type=int, default=128, help="of the samples after openings, and of later evaluations")
    add("--seed", type=int, default=0, help="of the choice of problems and the samples")
    add("--template", type=PromptTemplate, default=PromptTemplate(), help="default: the paper's chat prompt")
    add("--sampler", type=str | dict, default="fast")
    add("--micro_batch_tokens", type=int, default=16384, help="padded tokens in one forward pass")
    add("--dtype", default="auto")
    add("--device", type=str | None, default=None, help="default: cuda if there is one, else cpu")
    add("--trust_remote_code", type=bool, default=False)
    add("--out", required=True, help="folder of the vector")
    return parser


def run(verb: str, arguments: Sequence[str]) -> int:
    """Read both completions of each problem, write the vector, print what came out."""
    options = build_parser().parse_args(list(arguments))
    options = build_parser().instantiate(options)
    prepare()
    _check(options)
    like = SteeringVector.from_pretrained(options.norm_like) if options.norm_like else None
    loaded = load_model(
        options.model,
        dtype=options.dtype,
        device=options.device or default_device(),
        trust_remote_code=options.trust_remote_code,
    )
    points = parse_layers(options.layers, loaded.base.config.get_text_config().num_hidden_layers, options.site)
    with progress_display() as progress:
        contrast, names, data = _contrast(options, loaded, progress)
        default = "completion" if options.positive_request is None else "last_prompt"
        positions = cast(Positions, options.positions or default)
        found = mean_difference(loaded, points, contrast, positions, options.micro_batch_tokens, progress)
    receipts: dict[str, Any] = {
        "command": command_line(verb, arguments),
        "method": "contrastive mean difference (arXiv 2312.06681)",
        "contrast": {"positive": names[0], "negative": names[1]},
        "n": len(contrast),
        "positions": positions,
        "scale": options.scale,
        "norm_like": options.norm_like,
        **data,
        "seed": options.seed,
        "prompt": options.template.to_dict(),
        "max_tokens": options.max_tokens,
    }
    vector = found.vector(loaded, options.scale, like, receipts, options.token_mask)
    folder = vector.save_pretrained(Path(options.out))
    _show(vector, found, points, f"{options.model}: {names[0]} minus {names[1]}, {len(contrast)} problems")
    print(f"Wrote {folder}.")
    return 0


def _check(options: Namespace) -> None:
    """Refuse what does not go together before anything is loaded."""
    given = [pair for pair in SOURCES if any(options[name] is not None for name in pair)]
    flags = [" and ".join(f"--{name}" for name in pair) for pair in given]
    if len(given) > 1:
        raise SteerkitError(f"Say in one way what to contrast, not by {', and by '.join(flags)}.")
    if given and given[0] != SOURCES[0] and any(options[name] is None for name in given[0]):
        raise SteerkitError(f"Give both {flags[0]}.")
    if options.temperature < 0:
        raise SteerkitError(f"temperature must be 0 (greedy) or more, got {options.temperature}.")
    if options.micro_batch_tokens < 1:
        raise SteerkitError(f"micro_batch_tokens must be at least 1, got {options.micro_batch_tokens}.")


def _contrast(
    options: Namespace, loaded: LoadedModel, progress: Progress
) -> tuple[Contrast, tuple[str, str], dict[str, Any]]:
    """The pairs, what the positive and the negative ones are, and where the problems come from."""
    name = dataset_name(options.data)
    data = {"dataset": name, "dataset_spec": options.data, "split": options.split}
    if options.positive_prefix is None and options.positive_request is None:
        kinds = (options.positive, options.negative)
        pairs = load_pairs(options.data, options.data_root, options.split, options.n, options.seed, kinds)
        if pairs.from_file:  # no set of problems that the vector could be evaluated on: no dataset_spec
            data = {"dataset": name, "pairs_file": options.data}
        return written_contrast(loaded, options.template, pairs.examples, pairs.texts), pairs.kinds, data
    examples = subset(open_dataset(options.data, options.data_root).load(options.split), options.n, options.seed)
    if options.positive_request is not None:
        requests = (options.positive_request, options.negative_request)
        names = (f"asked {requests[0]!r}", f"asked {requests[1]!r}")
        return requested_contrast(loaded, options.template, examples, requests), names, data
    openings = (options.positive_prefix, options.negative_prefix)
    params = SamplingParams(options.temperature, options.max_tokens)
    sampler = registry.build("samplers", options.sampler)
    contrast = sampled_contrast(loaded, options.template, examples, openings, sampler, params, options.seed, progress)
    return contrast, (f"samples after {openings[0]!r}", f"samples after {openings[1]!r}"), data


def _show(vector: SteeringVector, found: MeanDifference, points: Sequence[HookPoint], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("hook point", "difference", "residual stream", "agreement", "vector"):
        table.add_column(name, justify="left" if name == "hook point" else "right")
    norms = vector.norms()
    for point in points:
        table.add_row(
            str(point),
            f"{float(found.difference[point].norm()):.3f}",
            f"{found.residual_norms[point]:.3f}",
            f"{found.agreement[point]:.3f}",
            f"{norms[str(point)]:.3f}",
        )
    console = Console()
    console.print(table)
    console.print(
        "Norms of the mean difference, of the residual stream where it was read, and of the vector written; "
        "agreement: cosine between the differences of two halves of the problems."
    )
