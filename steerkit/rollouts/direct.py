"""A decoding step of llama-like families with fewer calls: at few rows, or in a small model, a step is bound by the
calls of Python and PyTorch, not by arithmetic.

While a block of ``direct`` is open, the blocks' owner, the blocks, their attention and their MLP have a ``forward`` of
our own, which runs when ``Direct`` makes a step and else hands on to the family's. They are still called as modules, so
their hooks (the steering, what keeps streams) are given the same hidden states; the families' other arguments, such as
position ids, are not there. Families are those whose code was read, and a probe compares a step with the model's own
pass; the rest is decoded as before.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from steerkit.models.layout import hidden_of
from steerkit.rollouts.acceleration import joined, replaced
from steerkit.rollouts.fused import rolled, signed
from steerkit.rollouts.shared_attention import attend_shared, probe_step
from steerkit.rollouts.shared_cache import SharedLayer, SharedPromptCache

if TYPE_CHECKING:
    from steerkit.models import SteeredModel

log = logging.getLogger(__name__)

FAMILIES = frozenset(("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2"))
"""Only these: a probe of a few tokens can't see what depends on values or on far positions (olmo clips its queries,
ministral3 scales them from some position on)."""
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj"}
_BLOCK = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_PROBED: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


class Direct:
    """The steps of one call of the sampler.

    Args:
        pack: whether weights may be copied: joined, and packed where that pays.
    """

    def __init__(self, model: SteeredModel, cache: SharedPromptCache, pack: bool) -> None:
        self.model, self.cache = model, cache
        self.owner = model.base.get_submodule(model.layout.blocks.rpartition(".")[0])
        self.norm = model.base.get_submodule(model.layout.norm)
        self.blocks = list(model.layout.block_list(model.base))
        self.running = False
        self.turn: tuple[Tensor, Tensor] | None = None
        self.joined: set[nn.Module] = set()
        """Maps that run as parts of one product."""
        self.forwards: dict[nn.Module, Callable[..., Any]] = {self.owner: self._owner}
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            attention, mlp = cast(nn.Module, block.self_attn), cast(nn.Module, block.mlp)
            self.forwards[block] = _block(block)
            self.forwards[attention] = _attention(self, attention, cast(SharedLayer, layer), pack)
            if _children(mlp) >= _MLP:
                self.forwards[mlp] = _mlp(mlp, pack)
            self.joined.update(_joined_maps(block))

    def step(self, ids: Tensor) -> Tensor:
        """[n, V] logits behind the running rows' last tokens, [n]."""
        self.running = True
        try:
            with self.model.scope():
                hidden = self.owner(input_ids=ids[:, None], past_key_values=self.cache, **self.cache.inputs())
                return self.model.logits(hidden[:, 0])
        finally:
            self.running = False

    def _owner(self, input_ids: Tensor, position_ids: Tensor, **kwargs: Any) -> Tensor:
        hidden = self.owner.embed_tokens(input_ids)  # type: ignore[operator]
        cos, sin = self.owner.rotary_emb(hidden, position_ids=position_ids)  # type: ignore[operator]
        self.turn = cos, signed(sin)
        for block in self.blocks:
            hidden = hidden_of(block(hidden))
        out: Tensor = self.norm(hidden)
        return out


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _block(block: nn.Module) -> Callable[..., Tensor]:
    before, between = cast(nn.Module, block.input_layernorm), cast(nn.Module, block.post_attention_layernorm)
    attention, mlp = cast(nn.Module, block.self_attn), cast(nn.Module, block.mlp)

    def forward(hidden: Tensor) -> Tensor:
        hidden = hidden + attention(hidden_states=before(hidden))[0]
        out: Tensor = hidden + mlp(between(hidden))
        return out

    return forward


def _attention(direct: Direct, attention: Any, layer: SharedLayer, pack: bool) -> Callable[..., tuple[Tensor, None]]:
    product = joined((attention.q_proj, attention.k_proj, attention.v_proj), pack)
    width = attention.head_dim
    heads, groups = attention.q_proj.out_features // width, attention.k_proj.out_features // width
    out_product, scaling = attention.o_proj, attention.scaling
    q_norm, k_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))

    def forward(hidden_states: Tensor) -> tuple[Tensor, None]:
        parts = product(hidden_states).view(len(hidden_states), -1, width)
        queries = parts[:, : heads + groups]
        if q_norm is not None and k_norm is not None:
            queries = torch.cat([q_norm(parts[:, :heads]), k_norm(parts[:, heads : heads + groups])], dim=1)
        assert direct.turn is not None
        queries = rolled(queries, *direct.turn)
        layer.write(queries[:, heads:], parts[:, heads + groups :])
        mixed = attend_shared(layer, queries[:, :heads], scaling)
        return out_product(mixed.view(len(hidden_states), 1, -1)), None

    return forward


def _mlp(mlp: Any, pack: bool) -> Callable[..., Tensor]:
    product = joined((mlp.gate_proj, mlp.up_proj), pack)
    activation, down, width = mlp.act_fn, mlp.down_proj, mlp.gate_proj.out_features

    def forward(hidden: Tensor) -> Tensor:
        both = product(hidden)
        out: Tensor = down(activation(both[..., :width]) * both[..., width:])
        return out

    return forward


@contextmanager
def direct(model: SteeredModel, cache: SharedPromptCache, pack: bool) -> Iterator[Direct | None]:
    """Inside the block ``Direct.step`` makes decoding steps; None for a model that it can't decode."""
    if not steps_directly(model):
        yield None
        return
    with _installed(Direct(model, cache, pack)) as steps:
        yield steps


@contextmanager
def _installed(steps: Direct) -> Iterator[Direct]:
    ours = steps.forwards
    try:
        with replaced(list(ours), lambda module: _while_running(steps, ours[module], module.forward)):
            yield steps
    finally:
        # They hold the cache, and the steps hold them: gigabytes would wait for the garbage collector.
        ours.clear()


def _while_running(steps: Direct, ours: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs) if steps.running else own(*args, **kwargs)

    return forward


def steps_directly(model: SteeredModel) -> bool:
    """Whether the base can be decoded this way: by its family, the names of its parts, and a probe of a few tokens; not
    where somebody's hook or ``forward`` would be passed by.
    """
    if model.adapter is not None:
        return False
    base = model.base
    if not _looks_alike(model):
        return False
    if base not in _PROBED:
        with torch.no_grad(), model.disabled():
            try:
                _PROBED[base] = probe_step(model, _run_probe)
            except Exception:  # its parts are not what their names say
                log.debug("Decoded by the family's own modules: the probe of a direct step failed.", exc_info=True)
                _PROBED[base] = False
    return _PROBED[base]


def _run_probe(model: SteeredModel, cache: SharedPromptCache, ids: Tensor) -> Tensor:
    with _installed(Direct(model, cache, pack=False)) as steps:
        return steps.step(ids)


def _looks_alike(model: SteeredModel) -> bool:
    owner = model.base.get_submodule(model.layout.blocks.rpartition(".")[0])
    ours = model.base.config.get_text_config().model_type in FAMILIES
    if not ours or not {"embed_tokens", "rotary_emb"} <= _children(owner) or "forward" in owner.__dict__:
        return False
    if owner._forward_hooks or model.base._forward_hooks or model.base._forward_pre_hooks:
        return False
    for block in model.layout.block_list(model.base):
        if _children(block) != _BLOCK:
            return False
        attention = cast(nn.Module, block.self_attn)
        if _children(attention) not in (_ATTENTION, _ATTENTION | {"q_norm", "k_norm"}):
            return False
        if attention._forward_hooks_with_kwargs or attention._forward_pre_hooks_with_kwargs:
            return False
        if not all(map(_plain, _joined_maps(block))):
            return False
    return True


def _joined_maps(block: nn.Module) -> list[nn.Linear]:
    """The maps of a block that run as parts of one product."""
    attention, mlp = cast(Any, block.self_attn), cast(Any, block.mlp)
    maps = [attention.q_proj, attention.k_proj, attention.v_proj]
    return [*maps, mlp.gate_proj, mlp.up_proj] if _children(mlp) >= _MLP else maps


def _plain(linear: nn.Module) -> bool:
    """Its weight is here, and nobody waits for its call: what is joined is not called as a module."""
    waited_for = linear._forward_hooks or linear._forward_pre_hooks or "forward" in linear.__dict__
    return type(linear) is nn.Linear and not waited_for and not hasattr(linear.weight, "device_mesh")
