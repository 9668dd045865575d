"""``steerkit evaluate``: accuracy of a model and its vectors on one set of problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

from steerkit.commands.console import command_line, prepare, progress_display
from steerkit.datasets import PromptTemplate, dataset_name, open_dataset, subset
from steerkit.errors import DataError
from steerkit.evaluation import Arm, Protocol, evaluate
from steerkit.evaluation.results import results_table, write_results
from steerkit.files import ensure_folder
from steerkit.models import load_model
from steerkit.types import Example
from steerkit.vectors import SteeringVector


def build_parser() -> ArgumentParser:
    """The options of ``steerkit evaluate``; each can also stand in a YAML file given by ``--config``."""
    parser = ArgumentParser(prog="steerkit evaluate", description=__doc__)
    parser.add_argument("--config", action="config", help="YAML file with these options")
    parser.add_argument("--model", required=True, help="zoo name or plugin, local folder, or hub id")
    parser.add_argument(
        "--vector", nargs="*", default=[], help="folder or hub id of a steering vector; several allowed"
    )
    parser.add_argument(
        "--data",
        type=str | dict,
        default=None,
        help="data set plugin, file, or hub id; default: what the first vector was trained on, else arithmetic",
    )
    parser.add_argument("--data_root", type=str | None, default=None, help="folder where relative data paths start")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--limit", type=int | None, default=256, help="problems at most; null for all")
    parser.add_argument("--temperature", nargs="+", type=float, default=[0.0, 1.0], help="0 is greedy")
    parser.add_argument("--k", type=int, default=1, help="samples a problem at temperatures above 0")
    parser.add_argument("--max_tokens", type=int | None, default=None, help="default: the vector's, else 128")
    parser.add_argument("--seed", type=int, default=1, help="of the samples and the bootstrap")
    parser.add_argument("--verifier", type=str | dict, default="math")
    parser.add_argument("--random_control", type=bool, default=False, help="add a norm-matched random vector's row")
    parser.add_argument(
        "--prompt", type=PromptTemplate | None, default=None, help="default: the vector's, else the paper's chat prompt"
    )
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", type=str | None, default=None, help="default: cuda if there is one, else cpu")
    parser.add_argument("--trust_remote_code", type=bool, default=False)
    parser.add_argument("--out", required=True, help="folder for results.json and samples.parquet")
    return parser


def default_device() -> str:
    """``cuda``, ``mps`` or ``cpu``: what this machine has."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def arms_of(paths: Sequence[str], random_control: bool, seed: int) -> list[Arm]:
    """The base, and one arm (and on demand its control) for each vector."""
    arms = [Arm("base")]
    for path in paths:
        vector = SteeringVector.from_pretrained(path)
        suffix = "" if len(paths) == 1 else f" {path}"
        receipts = vector.metadata.receipts
        facts = {
            "train_seed": receipts.get("seed"),
            "lr": receipts.get("lr"),
            "trainable_params": sum(t.numel() for tensors in vector.tensors.values() for t in tensors.values()),
        }
        arms.append(Arm(f"steered{suffix}", vector, facts=facts))
        if random_control:
            arms.append(Arm(f"random{suffix}", vector.random_like(seed)))
    return arms


def run(verb: str, arguments: Sequence[str]) -> int:
    """Measure, print the table, write the results."""
    options = build_parser().parse_args(list(arguments))
    options = build_parser().instantiate(options)
    prepare()
    out = ensure_folder(options.out)
    arms = arms_of(options.vector, options.random_control, options.seed)
    receipts: dict[str, Any] = dict(arms[1].vector.metadata.receipts) if len(arms) > 1 and arms[1].vector else {}
    spec = options.data or receipts.get("dataset_spec") or "arithmetic"
    try:
        examples: list[Example] = open_dataset(spec, options.data_root).load(options.split)
    except DataError as error:
        if options.data is None and "dataset_spec" in receipts:
            raise DataError(f"{error} (The vector was trained on {dataset_name(spec)}: give --data_root.)") from error
        raise
    if not examples:
        raise DataError(f"The {options.split} split of {spec!r} is empty.")
    examples = subset(examples, options.limit)
    prompt = options.prompt or PromptTemplate.from_dict(receipts.get("prompt", {}))
    protocol = Protocol(
        tuple(options.temperature),
        options.k,
        options.max_tokens or receipts.get("max_tokens", 128),
        options.seed,
        options.verifier,
    )
    loaded = load_model(
        options.model,
        dtype=options.dtype,
        device=options.device or default_device(),
        trust_remote_code=options.trust_remote_code,
    )
    name = dataset_name(spec)
    with progress_display() as progress:
        evaluation = evaluate(loaded, arms, examples, protocol, prompt, name, progress)
    from rich.console import Console

    Console().print(results_table(evaluation.rows, f"{options.model}, {options.split} split of {name}"))
    vector = " ".join(options.vector) or None
    command = command_line(verb, arguments)
    print(f"Wrote {write_results(out, evaluation, options.model, vector, options.seed, command)}.")
    return 0
