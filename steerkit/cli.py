"""The command line: finds the verb, loads only what it needs, turns errors into one line and exit code 2."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

VERBS = {
    "fit": ("steerkit.commands.train", "train a vector by a config, then compare base, steered and controls"),
    "validate": ("steerkit.commands.train", "accuracy on the validation split"),
    "test": ("steerkit.commands.train", "accuracy on the test split"),
    "predict": ("steerkit.commands.train", "write sampled completions of the test split"),
    "evaluate": ("steerkit.commands.evaluate", "accuracy of a model and its vectors, with intervals"),
    "compare": ("steerkit.commands.compare", "paired difference of two evaluations, and the samples that flipped"),
    "analyze": ("steerkit.commands.analyze", "what a vector does inside a model: logit lens, persistence, geometry..."),
    "study": ("steerkit.commands.study", "the whole study: arms, controls, analyses, verdicts and a report"),
    "extract": ("steerkit.commands.extract", "contrastive mean difference: a vector without training, for comparison"),
    "export": ("steerkit.commands.export", "a vector for another engine: folded checkpoint, gguf, peft"),
    "verify": ("steerkit.commands.verify", "judge answers from a file: verdicts, agreement, faults, rate"),
    "chat": ("steerkit.commands.chat", "base and steered answers side by side"),
    "doctor": ("steerkit.commands.doctor", "examine a model: padding, cache, steering, gradients, memory"),
    "plugins": ("steerkit.commands.plugins", "list what is installed"),
}
"""verb -> (module with ``run(verb, arguments) -> exit code``, help line)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``steerkit`` and return its exit code: 0 fine, 2 bad input, 130 interrupted (Ctrl-C), 143 terminated."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # For every verb, and here only: no config file can set them.
    debug, allow_code = "--debug" in arguments, "--allow_code" in arguments
    arguments = [argument for argument in arguments if argument not in ("--debug", "--allow_code")]
    verb = arguments[0] if arguments else "--help"
    if verb not in VERBS:
        return _top(arguments or ["--help"])
    from steerkit.errors import SteerkitError, Stopped
    from steerkit.registry import code_named_by
    from steerkit.runtime import set_debug

    set_debug(debug)
    try:
        with code_named_by(arguments[1:], allow_code):
            if any(argument.partition("=")[0] in ("--config", "-c") for argument in arguments):
                from steerkit.commands.trust import check_configs

                check_configs(arguments[1:], allow_code)
            return int(_loaded(VERBS[verb][0], alone=argv is None).run(verb, arguments[1:]))
    except SteerkitError as error:
        if debug:
            raise
        print(f"steerkit {verb}: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        if debug:
            raise
        print(f"steerkit {verb}: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"steerkit {verb}: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `steerkit plugins | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a command that SIGPIPE ends
    except Exception as error:
        if debug or not _no_memory(error):
            raise
        advice = {
            "fit": "lower memory_budget, model.max_tokens or data.prompts_per_step",
            "evaluate": "lower --batch_tokens",
        }
        reason = " ".join(str(error).split("\n")[0].split())[:160] or "no more is known"
        print(
            f"steerkit {verb}: out of memory ({reason}): {advice.get(verb, 'give it less at once')}, or take a smaller "
            f"dtype or model.",
            file=sys.stderr,
        )
        return 2


def _no_memory(error: Exception) -> bool:
    """A device's, Python's or the CPU allocator's; torch is not imported to find out."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "not enough memory" in str(error))
    )


def _loaded(module: str, alone: bool) -> Any:
    """A verb's module. Thousands of modules come with it, and none of their objects ever goes: to look for garbage
    among them costs a fifth of the time that they take to load, and a second at the end.

    Args:
        alone: this process is the command's own.
    """
    if not alone:
        return import_module(module)
    gc.disable()
    try:
        return import_module(module)
    finally:
        gc.freeze()
        gc.enable()


def _top(arguments: list[str]) -> int:
    lines = "\n".join(f"  {verb:<10} {text}" for verb, (_, text) in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="steerkit",
        description="Train, measure and understand reinforcement-learned steering vectors.",
        epilog=f"verbs:\n{lines}\n\n'steerkit VERB --help' shows a verb's options; --debug shows tracebacks; "
        "--allow_code runs code that a file names (file.py:Name, class_path).",
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
