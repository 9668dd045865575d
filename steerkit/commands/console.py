"""What the verbs share: a progress display, the command line as text, quiet libraries."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from steerkit import registry
from steerkit.errors import VectorError
from steerkit.evaluation.arms import Progress
from steerkit.runtime import keep_freed_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from steerkit.vectors import SteeringVector

log = logging.getLogger(__name__)

_EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # batches are token tuples: a loader process would only add start-up time
    ".*module.* in eval mode at the start of training.*",  # the frozen base is meant to be
    ".*GPU available but not used.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*LightningCLI's args parameter.*",  # our own dispatcher hands them on
    ".*Experiment logs directory.*exists and is not empty.*",  # on resume; its metrics.csv was renamed before
    ".*Checkpoint directory .* exists and is not empty.*",  # on resume
    ".*Using ModelCheckpoint with manual optimization.*",  # the state after the step is what is wanted
    ".*dataloader is not resumable.*",  # StepBatches is: it starts at the step that the checkpoint names
)


def prepare() -> None:
    """Settings of a command's process: memory kept, libraries' chatter off, our own log lines on."""
    keep_freed_memory()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # raised by the way Lightning calls it
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("steerkit").setLevel(logging.INFO)
    for name in ("lightning.pytorch", "lightning.fabric"):  # tips and device notices; warnings stay
        logging.getLogger(name).setLevel(logging.WARNING)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def command_line(verb: str, arguments: Sequence[str]) -> str:
    """The command as one could type it again."""
    return shlex.join(["steerkit", verb, *arguments, *["--allow_code"] * registry.trusted()])


def check_base(vector: SteeringVector, base: PreTrainedModel, force: bool) -> str | None:
    """Refuse a base with other weights than the vector's own; with ``force`` log it, and return what differs.

    Raises:
        VectorError: naming what differs, also for a base of another shape, which nothing can force.
    """
    vector.check_fits(base)
    try:
        vector.check_fits(base, same_base=True)
    except VectorError as error:
        if not force:
            raise VectorError(f"{error} Or --force, if the two are meant to meet.") from None
        log.warning("--force: %s", error)
        return str(error)
    return None


@contextmanager
def progress_display() -> Iterator[Progress]:
    """A bar for each thing that runs, with the time left, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # Results come in bursts, a batch of completions at a time: a short window would see none, or nothing else.
    with Bars(*columns, console=Console(stderr=True), speed_estimate_period=1800) as bars:
        tasks: dict[str, int] = {}

        def update(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = int(bars.add_task(label, total=total))
            bars.update(tasks[label], completed=done)  # type: ignore[arg-type]

        yield update
