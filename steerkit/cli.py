"""The command line: finds the verb, loads only what it needs, turns errors into one line and exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

VERBS = {
    "fit": ("steerkit.commands.train", "train a vector by a config, then compare base, steered and controls"),
    "validate": ("steerkit.commands.train", "accuracy on the validation split"),
    "test": ("steerkit.commands.train", "accuracy on the test split"),
    "predict": ("steerkit.commands.train", "write sampled completions of the test split"),
    "evaluate": ("steerkit.commands.evaluate", "accuracy of a model and its vectors, with intervals"),
    "chat": ("steerkit.commands.chat", "base and steered answers side by side"),
    "plugins": ("steerkit.commands.plugins", "list what is installed"),
}
"""verb -> (module with ``run(verb, arguments) -> exit code``, help line)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``steerkit`` and return its exit code: 0 fine, 2 bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    verb = arguments[0] if arguments else "--help"
    if verb not in VERBS:
        return _top(arguments or ["--help"])
    from steerkit.errors import SteerkitError

    try:
        return int(import_module(VERBS[verb][0]).run(verb, arguments[1:]))
    except SteerkitError as error:
        if debug:
            raise
        print(f"steerkit {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"steerkit {verb}: interrupted.", file=sys.stderr)
        return 130


def _top(arguments: list[str]) -> int:
    lines = "\n".join(f"  {verb:<10} {text}" for verb, (_, text) in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="steerkit",
        description="Train, measure and understand reinforcement-learned steering vectors.",
        epilog=f"verbs:\n{lines}\n\n'steerkit VERB --help' shows a verb's options; --debug shows tracebacks.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="steerkit VERB [options]",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("verb", nargs="?", help=argparse.SUPPRESS)
    try:
        options = parser.parse_args(arguments)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    if options.version:
        import steerkit

        print(f"steerkit {steerkit.__version__}")
        return 0
    from steerkit.registry import did_you_mean

    hint = did_you_mean(options.verb, VERBS)
    print(f"steerkit: no verb {options.verb!r}.{hint} Verbs: {', '.join(VERBS)}.", file=sys.stderr)
    return 2
