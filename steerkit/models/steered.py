"""SteeredModel: a frozen base model with interventions on its residual stream."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from steerkit.errors import SteerkitError, VectorError
from steerkit.hookpoints import HookPoint
from steerkit.interventions.base import Intervention
from steerkit.interventions.rowwise import Rows, Rowwise
from steerkit.models.counter import SteeringCounter
from steerkit.models.layout import Layout, final_logits, find_layout, hidden_of, text_config, with_hidden
from steerkit.models.positions import call_positions, positions_from_mask
from steerkit.models.sites import Site, block_input, find_site, inner_width, verify_sites
from steerkit.token_masks import TokenMask

Self = TypeVar("Self", bound="SteeredModel")


class Adapter(Protocol):
    """A change of the base's weights (LoRA, full fine-tuning) that stands while a scope is open; see ``baselines``."""

    def enable(self) -> None: ...

    def disable(self) -> None: ...


@dataclass(frozen=True)
class _Scope:
    enabled: bool
    positions: Tensor | None = None
    """[B, T] for each call in the scope; None: the token mask decides."""
    prompt_positions: Tensor | None = None
    """[B, P] for calls without a cached past, where the token mask can't be read off the attention mask."""
    growing: bool = False


class SteeredModel(nn.Module):
    """A frozen base model whose interventions alone are trainable.

    The base carries hooks only inside ``forward``, ``hidden_states`` and ``with model.applied():``.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        interventions: Mapping[HookPoint, Intervention] | None = None,
        layout: Layout | Mapping[str, str] | None = None,
        token_mask: TokenMask | str = "all",
        adapter: nn.Module | None = None,
        policies: int = 1,
    ) -> None:
        """
        Args:
            base: frozen and put in eval mode, for good.
            interventions: hook point -> intervention; one instance may serve several points.
            layout: where the base keeps its blocks, if its family is unknown.
            token_mask: at which positions the interventions act.
            adapter: a baseline that changes weights instead (``steerkit.baselines``).
            policies: how many policies share its batches (``models.stacked.stack`` says it).

        Raises:
            VectorError: if a hook point lies outside the model, an intervention's width is not the model's, or it can't
                stand at its site.
            ModelError: if the base's blocks, or the module of a site, can't be found.
        """
        super().__init__()
        self.base = base if adapter is not None else base.requires_grad_(False)
        self.base.eval()
        self.layout = find_layout(base, layout)
        self.token_mask = TokenMask(token_mask) if isinstance(token_mask, str) else token_mask
        items = sorted((interventions or {}).items())
        for point, intervention in items:
            if not 0 <= point.layer < self.n_layers:
                raise VectorError(f"{point} is outside the model: it has layers 0 to {self.n_layers - 1}.")
            if intervention.d_model != self.d_model:
                raise VectorError(
                    f"{point}: expected width {self.d_model} (the model's), got {intervention.d_model}: "
                    f"use a vector trained on a model of the same width."
                )
            if point.site not in intervention.sites:
                raise VectorError(
                    f"{point}: {type(intervention).__name__} can't stand there: its sites are "
                    f"{', '.join(intervention.sites)}."
                )
            inner = intervention.settings.get("d_inner")
            if inner is not None and inner != (found := inner_width(base, self.layout, point.layer)):
                raise VectorError(f"{point}: expected d_inner {found} (the model's), got {inner}.")
        self._sites = {point: find_site(base, self.layout, point) for point, _ in items}
        inside = sorted({point.layer for point, _ in items if point.site in ("attn_output", "mlp_output")})
        if inside:
            verify_sites(base, self.layout, inside)
        self._keys = {point: str(point).replace(".", "_") for point, _ in items}
        self.steering = nn.ModuleDict({self._keys[point]: item for point, item in items}).to(base.device)
        self.counter = SteeringCounter(layers=len(items))
        self.adapter = adapter
        self.policies = policies
        self._scopes: list[_Scope] = []
        self._now: Tensor | bool = True  # what the call in progress steers: all, nothing, or these positions
        self._shape: tuple[int, ...] = ()  # (B, T) of the call in progress
        self._handles: list[RemovableHandle] = []
        self.takes_positions = "position_ids" in inspect.signature(base.forward).parameters

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
        with self.scope():
            return self.base(**arguments, **kwargs)

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """[B, T, D] final-normed hidden states of the last block, steered; the unembedding is not run."""
        arguments = self._arguments(input_ids, attention_mask, position_ids)
        kwargs.setdefault("use_cache", False)
        trunk = self.base.base_model
        if trunk is self.base:  # llama4_text doesn't say where its trunk is
            trunk = self.base.get_submodule(self.layout.blocks.rpartition(".")[0])
        with self.scope():
            return trunk(**arguments, **kwargs).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] final-normed -> [..., V]: the same numbers as ``forward(...).logits``."""
        if self.adapter is None:
            return final_logits(self.base, self.layout, hidden)
        with self.scope():  # the unembedding may be among the weights that are trained
            return final_logits(self.base, self.layout, hidden)

    # -- scopes

    @contextmanager
    def applied(
        self: Self, positions: Tensor | None = None, prompt_positions: Tensor | None = None, growing: bool = False
    ) -> Iterator[Self]:
        """Steer every call of the base inside the block, e.g. ``base.generate``.

        By default the token mask decides: what a call without a cached past is given is the prompt, what comes after
        it is generated. The innermost scope decides: nesting replaces the mask and never adds twice.

        Args:
            positions: [B, T] bool over the positions of each forward call in the block, whatever the token mask says
                (so it does not serve a whole cached generation). Steering a position changes the logits that are
                predicted *at* it: the first generated token is steered at the last prompt token.
            prompt_positions: [B, P] bool, the prompt's part of the token mask (``positions.mask_positions``); needed
                where the mask names a segment.
            growing: rows join on the way through the model (``analysis.growth``): each hook point is given the first
                rows of ``positions``.
        """
        for given in (positions, prompt_positions):
            if given is not None and (given.dtype != torch.bool or given.dim() != 2):
                raise SteerkitError(
                    f"Expected positions as a bool tensor [B, T], got {given.dtype} {list(given.shape)}."
                )
        with self._open(_Scope(True, positions, prompt_positions, growing)):
            yield self

    @contextmanager
    def disabled(self: Self) -> Iterator[Self]:
        """The base, bit for bit, inside the block: the KL reference, without a second copy."""
        with self._open(_Scope(False)):
            yield self

    @contextmanager
    def scope(self) -> Iterator[None]:
        """The scope that is open, or else one that steers by the token mask: for several calls that belong together."""
        if self._scopes:
            yield
            return
        with self._open(_Scope(True)):
            yield

    @property
    def steers(self) -> bool:
        """Whether a call made now would be steered: not inside ``disabled()``."""
        return not self._scopes or self._scopes[-1].enabled

    @contextmanager
    def rows(self, policies: Sequence[int] | Rows) -> Iterator[None]:
        """Say whose rows the forward calls in the block are given; nothing to say where there is one policy.

        Args:
            policies: [B] policy numbers.
        """
        if self.policies == 1:
            yield
            return
        stacked = [item for item in self.interventions.values() if isinstance(item, Rowwise)]
        before = [item.rows for item in stacked]
        rows = policies if isinstance(policies, Rows) else Rows(policies, self.device)
        for item in stacked:
            item.rows = rows
        try:
            yield
        finally:
            for item, old in zip(stacked, before, strict=True):
                item.rows = old

    def points_of(self, policy: int) -> tuple[HookPoint, ...]:
        """The hook points of one policy, in forward order."""
        if self.policies == 1:
            return self.points
        return tuple(
            point
            for point, item in self.interventions.items()
            if isinstance(item, Rowwise) and str(policy) in item.members
        )

    @contextmanager
    def prefill(self, prompt_positions: Tensor | None) -> Iterator[None]:
        """A scope for a call that is given prompts, with the token mask's positions in them; inside ``disabled()`` it
        changes nothing.

        Args:
            prompt_positions: [B, P] bool, from ``positions.mask_positions``; None leaves it to the token mask.
        """
        if prompt_positions is None or not self.steers:
            with self.scope():
                yield
        else:
            with self._open(_Scope(True, None, prompt_positions)):
                yield

    @contextmanager
    def _open(self, scope: _Scope) -> Iterator[None]:
        # Hooks stand for one scope at a time: an inner scope takes the outer one's away and puts them back after.
        outer = self._scopes[-1] if self._scopes else None
        if outer is not None:
            self._leave()
        self._scopes.append(scope)
        try:
            self._enter(scope)
            yield
        finally:
            self._leave()
            self._scopes.pop()
            if outer is not None:
                self._enter(outer)

    def _enter(self, scope: _Scope) -> None:
        if not scope.enabled:
            return
        if self.adapter is not None:
            cast(Adapter, self.adapter).enable()
        if not self._keys:
            return
        blocks = self.layout.block_list(self.base)
        # The blocks' owner is the one door of every family (OPT's language model goes round its base_model).
        owner = self.base.get_submodule(self.layout.blocks.rpartition(".")[0])
        self._handles.append(owner.register_forward_pre_hook(self._door_hook(scope), with_kwargs=True))
        stream: dict[int, Tensor] = {}  # layer -> residual stream so far, for interventions that read it inside a block
        for point, intervention in self.interventions.items():
            site = self._sites[point]
            if intervention.reads == "residual" and point.site != "output":
                self._follow_stream(stream, point, blocks[point.layer])
            steer = self._steer_hook(site, intervention, stream, scope.growing)
            self._handles.append(site.module.register_forward_hook(steer))

    def _leave(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        if self.adapter is not None:
            cast(Adapter, self.adapter).disable()

    def _follow_stream(self, stream: dict[int, Tensor], point: HookPoint, block: nn.Module) -> None:
        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stream[point.layer] = block_input(args, kwargs)

        def attended(_module: nn.Module, _args: Any, output: Any) -> None:
            stream[point.layer] = stream[point.layer] + hidden_of(output) / attention.gain

        self._handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        if point.site == "mlp_output":
            attention = find_site(self.base, self.layout, HookPoint(point.layer, "attn_output"))
            self._handles.append(attention.module.register_forward_hook(attended))

    def _steer_hook(self, site: Site, intervention: Intervention, stream: dict[int, Tensor], growing: bool) -> Any:
        inside = site.point.site != "output"

        def steer(_module: nn.Module, args: Any, output: Any) -> Any:
            if self._now is False:
                return output
            given = hidden_of(output)
            # OPT and some mixtures of experts run their MLP on [B * T, D].
            hidden = given if given.dim() == 3 else given.reshape(-1, self._shape[-1], given.shape[-1])
            positions = self._now if isinstance(self._now, Tensor) else None
            if positions is not None and growing:
                positions = positions[: len(hidden)]
            if positions is not None and positions.shape != hidden.shape[:2]:
                raise SteerkitError(
                    f"{site.point}: positions is {list(positions.shape)}, this forward call is "
                    f"{list(hidden.shape[:2])}: in cached decoding, open a scope with its own mask for each call."
                )
            read = None
            if intervention.reads == "module_input":
                read = args[0].reshape(*hidden.shape[:2], -1)
            elif intervention.reads == "residual" and inside:
                read = stream[site.point.layer] + hidden / site.gain
            self.counter.steered(hidden.shape[0] * hidden.shape[1] if positions is None else positions)
            return with_hidden(output, intervention(hidden, positions, read, site.gain).reshape(given.shape))

        return steer

    def _door_hook(self, scope: _Scope) -> Any:
        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ids, embeddings = kwargs.get("input_ids", args[0] if args else None), kwargs.get("inputs_embeds")
            self._shape = shape = (ids if ids is not None else embeddings).shape[:2]  # type: ignore[union-attr]
            if scope.positions is not None:
                self._now = scope.positions
            else:
                self._now = call_positions(self.token_mask, shape, kwargs, scope.prompt_positions, self.device)
            self.counter.called(shape[0] * shape[1] if self._now is True else self._now)

        return enter

    def _arguments(self, input_ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> dict[str, Tensor]:
        arguments = {"input_ids": input_ids}
        if mask is not None:
            arguments["attention_mask"] = mask
            if positions is None:
                positions = positions_from_mask(mask)[:, -input_ids.shape[1] :]
        # Families with ALiBi (bloom, mpt) take no positions: they read them off the mask themselves.
        if positions is not None and self.takes_positions:
            arguments["position_ids"] = positions
        return arguments
