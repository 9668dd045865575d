"""The nnsight engine: reads, edits and steering in an nnsight trace, apart from steerkit's own hooks.

nnsight serves a trace in forward order, so the order of the modules is observed once, on three tokens. It also
replaces the ``forward`` of every module for good; ``release`` takes that back.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from steerkit.analysis.engine import Engine, RowVectors, Trace, Visit
from steerkit.analysis.growth import Growth
from steerkit.analysis.texts import Batch
from steerkit.errors import ModelError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Intervention
from steerkit.models import LoadedModel
from steerkit.models.layout import hidden_of, with_hidden
from steerkit.models.sites import Site, find_site
from steerkit.vectors import SteeringVector

_PUT_BY_NNSIGHT = ("forward", "__nnsight__")
"""Attributes that it sets on each module."""


@final
class NNsightEngine(Engine):
    """Traces with ``nnsight.TransformersModel`` around the model in memory (no copy)."""

    name: ClassVar[str] = "nnsight"

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded)
        self._paths = {id(module): path for path, module in loaded.base.named_modules()}
        self._order: dict[tuple[int, str], int] = {}
        self._traced: Any = None
        self._before: list[tuple[nn.Module, dict[str, Any]]] = []

    def forward(
        self,
        batch: Batch,
        vector: SteeringVector | RowVectors | None,
        steered: Tensor | None,
        visits: list[Visit],
        logits: bool,
        growth: Growth | None,
    ) -> Trace:
        items = self.interventions(vector)  # all rows run from the beginning here
        sites = {point: find_site(self.loaded.base, self.loaded.layout, point) for point in items}
        ordered = self._in_order(self._with_steering(visits, items, sites))
        self._install()
        envoys = [self._envoy(visit.module) for visit in ordered]
        shape: tuple[int, int] = (batch.ids.shape[0], batch.ids.shape[1])
        values: dict[HookPoint, Tensor] = {}
        steering = _Steering(items, sites, steered, shape, self.loaded)
        kept: list[Any] = []
        traced = self._traced
        with traced.trace(**self.arguments(batch.ids, batch.mask, logits)):
            for visit, envoy in zip(ordered, envoys, strict=True):
                if visit.side == "input":
                    given = envoy.input
                    changed = visit.edit_and_read(given, shape[1], values)
                    steering.note(visit, changed)
                    if changed is not given:
                        envoy.input = changed
                else:
                    given = envoy.output
                    steered_output = steering.steer(visit, given)
                    steering.note(visit, steered_output)
                    changed = visit.edit_and_read(steered_output, shape[1], values)
                    if changed is not given:
                        envoy.output = changed
            if logits:
                kept.append(traced.output.logits.save())
        return Trace(values, kept[0] if logits else None)

    def release(self) -> None:
        for module, attributes in self._before:
            for name in _PUT_BY_NNSIGHT:
                module.__dict__.pop(name, None)
            module.__dict__.update(attributes)
        self._before, self._traced = [], None

    def _install(self) -> None:
        if self._traced is not None:
            return
        from nnsight import TransformersModel

        base = self.loaded.base
        self._before = [
            (module, {name: module.__dict__[name] for name in _PUT_BY_NNSIGHT if name in module.__dict__})
            for module in base.modules()
        ]
        self._traced = TransformersModel(base, tokenizer=self.loaded.tokenizer, task="text-generation")

    def _envoy(self, module: nn.Module) -> Any:
        def child(parent: Any, name: str) -> Any:
            return parent[int(name)] if name.isdigit() else getattr(parent, name)

        return reduce(child, self._paths[id(module)].split("."), self._traced)

    def _with_steering(
        self, visits: list[Visit], items: dict[HookPoint, Intervention], sites: dict[HookPoint, Site]
    ) -> list[Visit]:
        """The visits, and those that steering needs: where the vector stands, and what its interventions read."""
        table = {(id(visit.module), visit.side): visit for visit in visits}

        def visit_of(module: nn.Module, side: str) -> Visit:
            return table.setdefault((id(module), side), Visit(module, side))

        for point, item in items.items():
            visit_of(sites[point].module, "output").steers.append(point)
            if item.reads == "module_input":
                visit_of(sites[point].module, "input")
            elif item.reads == "residual" and point.site != "output":
                visit_of(self.loaded.layout.block_list(self.loaded.base)[point.layer], "input")
                if point.site == "mlp_output":
                    attention = find_site(self.loaded.base, self.loaded.layout, HookPoint(point.layer, "attn_output"))
                    sites.setdefault(attention.point, attention)
                    visit_of(attention.module, "output")
        return list(table.values())

    def _in_order(self, visits: list[Visit]) -> list[Visit]:
        unknown = [visit for visit in visits if (id(visit.module), visit.side) not in self._order]
        if unknown:
            self._observe(visits)
        for visit in visits:
            if (id(visit.module), visit.side) not in self._order:
                raise ModelError(f"{self._paths[id(visit.module)]} is not run by the model's forward pass.")
        return sorted(visits, key=lambda visit: self._order[id(visit.module), visit.side])

    def _observe(self, visits: list[Visit]) -> None:
        """Run three tokens and note in which order the sides of these modules, and of those noted before, come."""
        base = self.loaded.base
        wanted = {*self._order, *((id(visit.module), visit.side) for visit in visits)}
        order: dict[tuple[int, str], int] = {}
        handles = []

        def note(key: tuple[int, str]) -> Any:
            def hook(*_: Any) -> None:
                order.setdefault(key, len(order))

            return hook

        try:
            for module in base.modules():
                if (id(module), "input") in wanted:
                    handles.append(module.register_forward_pre_hook(note((id(module), "input"))))
                if (id(module), "output") in wanted:
                    handles.append(module.register_forward_hook(note((id(module), "output"))))
            ids = torch.arange(3, device=base.device)[None]
            base(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        self._order = order


class _Steering:
    """Applies interventions to what a trace hands over; keeps what they read of earlier visits.

    An intervention that reads the stream inside a block sees edits of the block's input, not those of its attention's
    output: as under ``SteeredModel``'s hooks.
    """

    def __init__(
        self,
        items: dict[HookPoint, Intervention],
        sites: dict[HookPoint, Site],
        steered: Tensor | None,
        shape: tuple[int, int],
        loaded: LoadedModel,
    ) -> None:
        self.items, self.sites, self.steered, self.shape = items, sites, steered, shape
        self._blocks = loaded.layout.block_list(loaded.base)
        self._seen: dict[tuple[int, str], Tensor] = {}

    def note(self, visit: Visit, value: Any) -> None:
        self._seen[id(visit.module), visit.side] = hidden_of(value).reshape(*self.shape, -1)

    def steer(self, visit: Visit, value: Any) -> Any:
        for point in visit.steers:
            item, site = self.items[point], self.sites[point]
            given = hidden_of(value)
            hidden = given.reshape(*self.shape, -1)
            read = None
            if item.reads == "module_input":
                read = self._seen[id(site.module), "input"]
            elif item.reads == "residual" and point.site != "output":
                read = self._stream(point) + hidden / site.gain
            value = with_hidden(value, item(hidden, self.steered, read, site.gain).reshape(given.shape))
        return value

    def _stream(self, point: HookPoint) -> Tensor:
        """The residual stream before the module at ``point`` adds to it."""
        stream = self._seen[id(self._blocks[point.layer]), "input"]
        if point.site == "mlp_output":
            attention = self.sites[HookPoint(point.layer, "attn_output")]
            stream = stream + self._seen[id(attention.module), "output"] / attention.gain
        return stream
