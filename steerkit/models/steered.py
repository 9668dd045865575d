"""SteeredModel: a frozen base model with interventions on its residual stream."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from steerkit.errors import SteerkitError, VectorError
from steerkit.hookpoints import HookPoint
from steerkit.interventions.base import Intervention
from steerkit.models.layout import Layout, final_logits, find_layout, hidden_of, text_config, with_hidden

Self = TypeVar("Self", bound="SteeredModel")


@dataclass
class SteeringCounter:
    """Proof that steering was applied: ``total == tokens * layers``, in training and in cached decoding alike.

    ``forward_calls`` and ``tokens`` are counted at the door of the module that owns the blocks, ``total`` in the hooks
    of the blocks.
    """

    layers: int
    """Number of steered hook points."""
    forward_calls: int = 0
    """Steered forward passes; each cached decoding step is one."""
    tokens: int = 0
    """Positions fed to those passes (padding included), or the True ones of a position mask."""
    total: int = 0
    """Positions steered, summed over the hook points."""

    @property
    def complete(self) -> bool:
        """Every token of every pass was steered at every hook point."""
        return self.total == self.tokens * self.layers

    def reset(self) -> None:
        self.forward_calls = self.tokens = self.total = 0


@dataclass(frozen=True)
class _Scope:
    enabled: bool
    positions: Tensor | None = None
    steered: int = 0
    """Number of True positions, counted once on entry: counting in a hook would wait for the GPU at each block."""


class SteeredModel(nn.Module):
    """A frozen base model whose interventions alone are trainable.

    The base carries hooks only inside ``forward``, ``hidden_states`` and ``with model.applied():``.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        interventions: Mapping[HookPoint, Intervention] | None = None,
        layout: Layout | Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            base: frozen and put in eval mode, for good.
            interventions: hook point -> intervention; one instance may serve several points.
            layout: where the base keeps its blocks, if its family is unknown.

        Raises:
            VectorError: if a hook point lies outside the model, or an intervention's width is not the model's.
            ModelError: if the base's blocks can't be found.
        """
        super().__init__()
        self.base = base.requires_grad_(False).eval()
        self.layout = find_layout(base, layout)
        items = sorted((interventions or {}).items())
        for point, intervention in items:
            if not 0 <= point.layer < self.n_layers:
                raise VectorError(f"{point} is outside the model: it has layers 0 to {self.n_layers - 1}.")
            if intervention.d_model != self.d_model:
                raise VectorError(
                    f"{point}: expected width {self.d_model} (the model's), got {intervention.d_model}: "
                    f"use a vector trained on a model of the same width."
                )
        self._keys = {point: str(point).replace(".", "_") for point, _ in items}
        self.steering = nn.ModuleDict({self._keys[point]: item for point, item in items}).to(base.device)
        self.counter = SteeringCounter(layers=len(items))
        self._scopes: list[_Scope] = []
        self._handles: list[RemovableHandle] = []
        self._takes_positions = "position_ids" in inspect.signature(base.forward).parameters

    # -- what it is

    @property
    def interventions(self) -> dict[HookPoint, Intervention]:
        """Hook point -> intervention, in forward order."""
        return {point: self.steering[key] for point, key in self._keys.items()}  # type: ignore[misc]

    @property
    def points(self) -> tuple[HookPoint, ...]:
        """The steered hook points, in forward order."""
        return tuple(self._keys)

    @property
    def d_model(self) -> int:
        return int(text_config(self.base).hidden_size)

    @property
    def n_layers(self) -> int:
        return len(self.layout.block_list(self.base))

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """The base's dtype; interventions are fp32."""
        return self.base.dtype

    def train(self: Self, mode: bool = True) -> Self:
        super().train(mode)
        self.base.eval()  # frozen: dropout in the base would be noise in both rollouts and gradients
        return self

    # -- running it

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """The base's output under steering (or under the scope that is open).

        Args:
            input_ids: [B, T].
            attention_mask: [B, S], S = T plus the cached length; 0 at padding.
            position_ids: [B, T]; counted from ``attention_mask`` when missing, so left padding changes nothing.
            kwargs: handed to the base (``past_key_values``, ``use_cache``, ``logits_to_keep``...).
        """
        arguments = self._arguments(input_ids, attention_mask, position_ids)
        with self._default_scope():
            return self.base(**arguments, **kwargs)

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """[B, T, D] final-normed hidden states of the last block, steered; the unembedding is not run."""
        arguments = self._arguments(input_ids, attention_mask, position_ids)
        kwargs.setdefault("use_cache", False)
        with self._default_scope():
            return self.base.base_model(**arguments, **kwargs).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] final-normed -> [..., V]: the same numbers as ``forward(...).logits``."""
        return final_logits(self.base, self.layout, hidden)

    # -- scopes

    @contextmanager
    def applied(self: Self, positions: Tensor | None = None) -> Iterator[Self]:
        """Steer every call of the base inside the block, e.g. ``base.generate``.

        The innermost scope decides: nesting replaces the mask and never adds twice.

        Args:
            positions: [B, T] bool over the positions of each forward call in the block (so one mask does not serve
                a whole cached generation); None steers all. Steering a position changes the logits that are predicted
                *at* it: the first generated token is steered at the last prompt token.
        """
        if positions is not None and (positions.dtype != torch.bool or positions.dim() != 2):
            raise SteerkitError(
                f"Expected positions as a bool tensor [B, T], got {positions.dtype} {list(positions.shape)}."
            )
        steered = 0 if positions is None else int(positions.sum())
        with self._open(_Scope(True, positions, steered)):
            yield self

    @contextmanager
    def disabled(self: Self) -> Iterator[Self]:
        """The base, bit for bit, inside the block: the KL reference, without a second copy."""
        with self._open(_Scope(False)):
            yield self

    @contextmanager
    def _default_scope(self) -> Iterator[None]:
        if self._scopes:
            yield
            return
        with self._open(_Scope(True)):
            yield

    @contextmanager
    def _open(self, scope: _Scope) -> Iterator[None]:
        # Hooks stand for one scope at a time: an inner scope takes the outer one's away and puts them back after.
        outer = self._scopes[-1] if self._scopes else None
        if outer is not None:
            self._remove_hooks()
        self._scopes.append(scope)
        try:
            self._add_hooks(scope)
            yield
        finally:
            self._remove_hooks()
            self._scopes.pop()
            if outer is not None:
                self._add_hooks(outer)

    def _add_hooks(self, scope: _Scope) -> None:
        if not scope.enabled or not self._keys:
            return
        blocks = self.layout.block_list(self.base)
        # The blocks' owner is the one door of every family (OPT's language model goes round its base_model).
        owner = self.base.get_submodule(self.layout.blocks.rpartition(".")[0])
        self._handles.append(owner.register_forward_pre_hook(self._count_hook(scope), with_kwargs=True))
        for point, intervention in self.interventions.items():
            steer = self._steer_hook(scope, point, intervention)
            self._handles.append(blocks[point.layer].register_forward_hook(steer))

    def _remove_hooks(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _steer_hook(self, scope: _Scope, point: HookPoint, intervention: Intervention) -> Any:
        def steer(_module: nn.Module, _args: Any, output: Any) -> Any:
            hidden = hidden_of(output)
            if scope.positions is not None and scope.positions.shape != hidden.shape[:2]:
                raise SteerkitError(
                    f"{point}: positions is {list(scope.positions.shape)}, this forward call is "
                    f"{list(hidden.shape[:2])}: in cached decoding, open a scope with its own mask for each call."
                )
            self.counter.total += hidden.shape[0] * hidden.shape[1] if scope.positions is None else scope.steered
            return with_hidden(output, intervention(hidden, scope.positions))

        return steer

    def _count_hook(self, scope: _Scope) -> Any:
        def count(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ids, embeddings = kwargs.get("input_ids", args[0] if args else None), kwargs.get("inputs_embeds")
            shape = (ids if ids is not None else embeddings).shape  # type: ignore[union-attr]
            self.counter.forward_calls += 1
            self.counter.tokens += shape[0] * shape[1] if scope.positions is None else scope.steered

        return count

    def _arguments(self, input_ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> dict[str, Tensor]:
        arguments = {"input_ids": input_ids}
        if mask is not None:
            arguments["attention_mask"] = mask
            if positions is None:
                positions = positions_from_mask(mask)[:, -input_ids.shape[1] :]
        # Families with ALiBi (bloom, mpt) take no positions: they read them off the mask themselves.
        if positions is not None and self._takes_positions:
            arguments["position_ids"] = positions
        return arguments


def positions_from_mask(mask: Tensor) -> Tensor:
    """[B, S] attention mask -> [B, S] position ids: 0 at the first real token, 0 under padding (as generate does)."""
    return (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
