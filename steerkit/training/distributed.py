"""Several processes that train one policy: who takes which problems, what they tell each other, and how they end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from steerkit.errors import SteerkitError, Stopped, TrainingError
from steerkit.training.recovery import stops

T = TypeVar("T")


class ToldElsewhere(SteerkitError):
    """This process ends since another one failed, which says why: nothing is printed here."""


class PeerLost(TrainingError):
    """Another process is gone: nothing can be exchanged, and so nothing saved, any more."""


class Processes:
    """The processes of a run. With one process nothing is exchanged, and errors pass as they are.

    A collective call that one process does not make leaves the others waiting. So each part of a step that may fail
    stands in a ``phase``, at whose end all of them learn whether to go on.

    Args:
        rank: of this process.
        size: number of processes.
        device: of what is exchanged.
        mirrored: all of them compute the same, since the base is spread over them (``sharding``); the first one's
            numbers count.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, device: torch.device | str = "cpu", mirrored: bool = False
    ) -> None:
        self.rank, self.size, self.device, self.mirrored = rank, size, torch.device(device), mirrored
        self.ended = False
        """All of them know that the run ends, and can still exchange what is to be saved."""

    @property
    def shares(self) -> int:
        """Into how many parts the problems are divided."""
        return 1 if self.mirrored else self.size

    def deal(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part: every ``shares``-th item."""
        return items if self.shares == 1 else items[self.rank :: self.shares]

    # -- how they end

    @contextmanager
    def phase(self) -> Iterator[None]:
        """Work that may fail in one process alone; at its end all go on, or all raise.

        Raises:
            TrainingError: in the first process, with what happened in another.
            ToldElsewhere: in the others.
            Stopped: in all of them, after a signal to any.
        """
        if self.size == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        self._agree(failure)

    def _agree(self, failure: Exception | None) -> None:
        status = self._tensor([failure is not None, stops.received or 0])
        with _peers():
            dist.all_reduce(status, dist.ReduceOp.MAX)
        failed, signum = (int(value) for value in status.tolist())
        self.ended = bool(failed or signum)
        if failed:
            texts = self.objects(None if failure is None else _told(failure))
            if self.rank > 0:
                raise ToldElsewhere("another process says why") from failure
            if failure is not None:
                raise failure
            first = next(rank for rank, text in enumerate(texts) if text is not None)
            raise TrainingError(f"Process {first} of {self.size} failed: {texts[first]}")
        if signum:
            raise Stopped(signum)

    # -- what they tell each other

    def objects(self, value: Any) -> list[Any]:
        """What each process has (plain values), by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _peers():
            dist.all_gather_object(found, value)
        return found

    def gathered(self, table: Tensor, dim: int) -> Tensor:
        """The whole of what was dealt out: this process's part is every ``shares``-th entry of ``dim``.

        All parts must have one shape. If mirrored: the first process's table.
        """
        if self.size == 1:
            return table
        own = table.to(self.device)
        with _peers():
            if self.mirrored:
                dist.broadcast(own, 0)
                return own.to(table.device)
            parts = [torch.empty_like(own) for _ in range(self.size)]
            dist.all_gather(parts, own.contiguous())
        return torch.stack(parts, dim + 1).flatten(dim, dim + 1).to(table.device)

    def total(self, *numbers: float) -> list[float]:
        """Sums over the processes' parts."""
        return self._reduced(numbers, dist.ReduceOp.SUM)

    def largest(self, *numbers: float) -> list[float]:
        return self._reduced(numbers, dist.ReduceOp.MAX)

    def _reduced(self, numbers: Sequence[float], operation: Any) -> list[float]:
        if self.size == 1:
            return list(numbers)
        values = self._tensor(numbers)
        with _peers():
            if self.mirrored:
                dist.broadcast(values, 0)
            else:
                dist.all_reduce(values, operation)
        return [float(value) for value in values.tolist()]

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum each parameter's gradient over the processes (mirrored: take the first one's); a missing one is zero.

        The losses are divided by the token count of all of them, so the sum is the gradient of the whole batch.
        """
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        with _peers():
            for group in _together(gradients):
                flat = torch.cat([gradient.reshape(-1) for gradient in group]).to(self.device)
                if self.mirrored:
                    dist.broadcast(flat, 0)
                else:
                    dist.all_reduce(flat)
                offset = 0
                for gradient in group:
                    gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
                    offset += gradient.numel()

    def _tensor(self, numbers: Sequence[Any]) -> Tensor:
        return torch.tensor([float(number) for number in numbers], dtype=torch.float64, device=self.device)


def _together(gradients: Sequence[Tensor], most: int = 2**24) -> Iterator[list[Tensor]]:
    """Gradients in groups of about ``most`` numbers: vectors go in one exchange, a whole model in many."""
    group: list[Tensor] = []
    count = 0
    for gradient in gradients:
        if group and count + gradient.numel() > most:
            yield group
            group, count = [], 0
        group.append(gradient)
        count += gradient.numel()
    if group:
        yield group


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:  # gloo: the connection is closed; NCCL: aborted, or timed out
        raise PeerLost(
            "Another process of this run ended without a word (killed? out of memory?): training stopped, go on from "
            f"the latest checkpoint with --ckpt_path last ({' '.join(str(error).split())[:160]})."
        ) from error


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, SteerkitError) else f"{type(error).__name__}: {text}"
