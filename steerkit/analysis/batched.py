"""The engine of steerkit's own hooks: ``SteeredModel`` steers, hooks that stand behind its own edit and read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, final

from torch import Tensor, nn

from steerkit.analysis.engine import Engine, Trace, Visit
from steerkit.analysis.texts import Batch
from steerkit.hookpoints import HookPoint
from steerkit.models import SteeredModel
from steerkit.vectors import SteeringVector


@final
class BatchedEngine(Engine):
    """Plain forward hooks that live as long as one pass."""

    name: ClassVar[str] = "batched"

    def forward(
        self, batch: Batch, vector: SteeringVector | None, steered: Tensor | None, visits: list[Visit], logits: bool
    ) -> Trace:
        items = self.interventions(vector) if vector is not None else {}
        model = SteeredModel(self.loaded.base, items, self.loaded.layout)
        shape: tuple[int, int] = (batch.ids.shape[0], batch.ids.shape[1])
        values: dict[HookPoint, Tensor] = {}
        with hooked(model, steered, visits, shape, values):
            output = self.loaded.base(**self.arguments(batch, logits))
        return Trace(values, output.logits if logits else None)


@contextmanager
def hooked(
    model: SteeredModel,
    steered: Tensor | None,
    visits: Sequence[Visit],
    shape: tuple[int, int],
    values: dict[HookPoint, Tensor],
) -> Iterator[None]:
    """Inside the block, a call of the base is steered, edited and read.

    Args:
        steered: [B, T] bool over the positions of the call.
        shape: (B, T)
        values: what is read goes there.
    """
    handles = []
    try:
        # Hooks run in the order of registration: inputs are edited before the model's own hooks read them, outputs
        # after steering.
        for visit in visits:
            if visit.side == "input":
                hook = _before(visit, shape, values)
                handles.append(visit.module.register_forward_pre_hook(hook, with_kwargs=True))
        with model.applied(steered):
            for visit in visits:
                if visit.side == "output":
                    handles.append(visit.module.register_forward_hook(_after(visit, shape, values)))
            yield
    finally:
        for handle in handles:
            handle.remove()


def _before(visit: Visit, shape: tuple[int, int], values: dict[HookPoint, Tensor]) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (visit.edit_and_read(args[0], shape, values), *args[1:]), kwargs
        first = next(iter(kwargs))
        return args, {**kwargs, first: visit.edit_and_read(kwargs[first], shape, values)}

    return hook


def _after(visit: Visit, shape: tuple[int, int], values: dict[HookPoint, Tensor]) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        return visit.edit_and_read(output, shape, values)

    return hook
