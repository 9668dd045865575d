"""``steerkit export``: a vector for another engine, compared with the steered model before it is kept."""

from __future__ import annotations

from collections.abc import Sequence

from steerkit import registry
from steerkit.commands.console import check_base, prepare
from steerkit.commands.parsing import Parser
from steerkit.errors import VectorError
from steerkit.models import load_model
from steerkit.vectors import SteeringVector


def build_parser() -> Parser:
    """The options of ``steerkit export``."""
    names = ", ".join(entry.name for entry in registry.entries("exporters"))
    parser = Parser(prog="steerkit export", description=__doc__)
    parser.add_argument("format", help=f"one of: {names}; or package.module:Class, file.py:Class")
    parser.add_argument("--vector", required=True, help="folder or hub id of the steering vector")
    parser.add_argument("--out", required=True, help="folder (gguf: file) to write; must not exist yet")
    parser.add_argument("--model", type=str | None, default=None, help="default: the base that the vector names")
    parser.add_argument("--dtype", type=str | None, default=None, help="of folded's weights; default: as the base's")
    parser.add_argument("--force", action="store_true", help="accept a base with another fingerprint than the vector's")
    parser.add_argument("--no_check", action="store_true", help="don't read back and compare what was written")
    return parser


def run(verb: str, arguments: Sequence[str]) -> int:
    """Write, compare, say what was done."""
    options = build_parser().parse_args(list(arguments))
    prepare()
    settings = {} if options.dtype is None else {"dtype": options.dtype}
    exporter = registry.build("exporters", {"name": options.format, **settings})
    vector = SteeringVector.from_pretrained(options.vector)
    name = options.model or vector.metadata.model
    if not name:
        raise VectorError(f"{options.vector} does not name its base model: give --model.")
    loaded = load_model(name, dtype="float32")
    check_base(vector, loaded.base, options.force)
    report = exporter.export(vector, loaded, options.out, check=not options.no_check)
    print(f"Wrote {report.path}: {report.wrote}.")
    print(report.comparison or "Not compared (--no_check).")
    return 0
