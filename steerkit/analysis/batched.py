"""The engine of steerkit's own hooks: ``SteeredModel`` steers, hooks that stand behind its own edit and read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, final

from torch import Tensor, nn

from steerkit.analysis.engine import Engine, RowVectors, Trace, Visit
from steerkit.analysis.growth import Growth, batch_arguments, growing
from steerkit.analysis.texts import Batch
from steerkit.hookpoints import HookPoint
from steerkit.models import SteeredModel
from steerkit.rollouts.acceleration import frozen_products
from steerkit.vectors import SteeringVector


@final
class BatchedEngine(Engine):
    """Plain forward hooks that live as long as one pass."""

    name: ClassVar[str] = "batched"

    def forward(
        self,
        batch: Batch,
        vector: SteeringVector | RowVectors | None,
        steered: Tensor | None,
        visits: list[Visit],
        logits: bool,
        growth: Growth | None,
    ) -> Trace:
        model = SteeredModel(self.loaded.base, self.interventions(vector), self.loaded.layout)
        ids, mask, paths = batch.ids, batch.mask, None
        if growth is not None and growth.layers:
            paths = batch_arguments(self.loaded, self.arguments)
        if growth is None or paths is None:
            growth = None
        else:
            ids, mask = ids[: growth.rows(-1)], mask[: growth.rows(-1)]
        values: dict[HookPoint, Tensor] = {}
        with ExitStack() as stack:
            stack.enter_context(frozen_products(model.base))
            if growth is not None and paths is not None:
                stack.enter_context(growing(self.loaded, growth, paths))
            stack.enter_context(hooked(model, steered, visits, ids.shape[1], values, growth is not None))
            output = self.loaded.base(**self.arguments(ids, mask, logits))
        return Trace(values, output.logits if logits else None, growth)


@contextmanager
def hooked(
    model: SteeredModel,
    steered: Tensor | None,
    visits: Sequence[Visit],
    length: int,
    values: dict[HookPoint, Tensor],
    growing: bool = False,
) -> Iterator[None]:
    """Inside the block, a call of the base is steered, edited and read.

    Args:
        steered: [B, T] bool over the positions of the call.
        length: T
        values: what is read goes there.
        growing: rows join on the way, B being those at the end.
    """
    handles = []
    try:
        # Hooks run in the order of registration: inputs are edited before the model's own hooks read them, outputs
        # after steering.
        for visit in visits:
            if visit.side == "input":
                hook = _before(visit, length, values)
                handles.append(visit.module.register_forward_pre_hook(hook, with_kwargs=True))
        with model.applied(steered, growing=growing):
            for visit in visits:
                if visit.side == "output":
                    handles.append(visit.module.register_forward_hook(_after(visit, length, values)))
            yield
    finally:
        for handle in handles:
            handle.remove()


def _before(visit: Visit, length: int, values: dict[HookPoint, Tensor]) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (visit.edit_and_read(args[0], length, values), *args[1:]), kwargs
        first = next(iter(kwargs))
        return args, {**kwargs, first: visit.edit_and_read(kwargs[first], length, values)}

    return hook


def _after(visit: Visit, length: int, values: dict[HookPoint, Tensor]) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        return visit.edit_and_read(output, length, values)

    return hook
