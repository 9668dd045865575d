"""``steerkit plugins``: what is installed, without importing any of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from steerkit import registry


def run(verb: str, arguments: Sequence[str]) -> int:
    """List kind, name, class, distribution and version of every plugin."""
    parser = argparse.ArgumentParser(prog=f"steerkit {verb}", description=__doc__)
    parser.add_argument("--kind", choices=registry.KINDS, help="list one kind only")
    options = parser.parse_args(arguments)
    kinds = [options.kind] if options.kind else list(registry.KINDS)
    rows = [("KIND", "NAME", "CLASS", "DISTRIBUTION", "VERSION")]
    for kind in kinds:
        rows += [(e.kind, e.name, e.target, e.distribution, e.version) for e in registry.entries(kind)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for problem in registry.problems():
        print(f"steerkit plugins: {problem}", file=sys.stderr)
    return 0
