"""Judging beside sampling: one thread asks the verifier while the next batch is decoded."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from steerkit.errors import SteerkitError
from steerkit.evaluation.records import judge_groups, sample_records, with_rewards
from steerkit.rewards import Rubric
from steerkit.rewards.verifiable import Verifiable
from steerkit.types import RolloutGroup

log = logging.getLogger(__name__)

_WAITING = 4096  # groups that may wait for their verdict before the sampler has to


class BackgroundJudge:
    """Takes groups, judges all that wait in one call, and hands their records on, in the order they came.

    Only this object's thread uses the judge. Leaving the ``with`` block waits for the last verdict, also after an
    error or Ctrl-C in the block: what was sampled is recorded. An error in the thread is raised by the next ``put``,
    or at the end.

    Args:
        judge: the verifier and its rules.
        write: called in the thread with the records of the groups judged.
        rewards: what else the samples are scored by; if one breaks its contract, a warning says so, and there are none.
    """

    def __init__(
        self, judge: Verifiable, write: Callable[[list[dict[str, Any]]], None], rewards: Rubric | None = None
    ) -> None:
        self._judge, self._write, self._rewards = judge, write, rewards
        self._waiting: queue.Queue[tuple[Mapping[str, Any], RolloutGroup] | None] = queue.Queue(_WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="steerkit-judge", daemon=True)

    def __enter__(self) -> BackgroundJudge:
        self._judge.warm()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def put(self, group: RolloutGroup, facts: Mapping[str, Any]) -> None:
        """Hand over one group; ``facts`` are columns of its records.

        Raises:
            BaseException: what the judge or ``write`` raised on an earlier group.
        """
        if self._error is not None:
            raise self._error
        self._waiting.put((facts, group))

    def _run(self) -> None:
        open_ = True
        while open_:
            batch = [self._waiting.get()]
            while True:
                try:
                    batch.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            items = [item for item in batch if item is not None]
            open_ = len(items) == len(batch)
            if items and self._error is None:
                try:
                    self._record(items)
                except BaseException as error:  # raised again in the sampler's thread; the queue is still emptied
                    self._error = error

    def _record(self, items: list[tuple[Mapping[str, Any], RolloutGroup]]) -> None:
        groups = [group for _, group in items]
        verdicts = judge_groups(self._judge, groups)
        of_groups = [sample_records([group], [row], facts) for (facts, group), row in zip(items, verdicts, strict=True)]
        if self._rewards is not None:
            try:
                with_rewards(self._rewards, groups, of_groups)
            except SteerkitError as error:  # a side column is not worth the samples
                log.warning("No rewards beside the accuracy: %s", error)
                self._rewards = None
        records = [record for of_group in of_groups for record in of_group]
        self._write(records)
