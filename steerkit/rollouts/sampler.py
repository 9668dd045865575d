"""The sampler contract (group ``steerkit.samplers``) and what goes in and out of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from steerkit.errors import SteerkitError
from steerkit.types import Example, RolloutGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from steerkit.models import SteeredModel


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt ready to be sampled from."""

    example: Example
    text: str
    """The rendered prompt."""
    ids: tuple[int, ...]
    """[P] its token ids, without padding."""
    segments: tuple[str, ...] = ()
    """[P] the part of the prompt that each token belongs to (``token_masks.SEGMENTS``); empty if unknown."""
    policy: int = 0
    """Whose prompt it is, where several policies share a batch (``models.stacked``)."""
    seed: int | None = None
    """Of its samples; None: the seed that the sampler is given."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How completions are drawn; the papers use temperature 1 without truncation of the distribution."""

    temperature: float = 1.0
    """0 means greedy."""
    max_tokens: int = 128
    """Length limit of a completion; one that reaches it has finish reason ``length``."""
    top_p: float = 1.0
    """Nucleus: draw from the most probable tokens that have this much probability together."""
    top_k: int = 0
    """Draw from this many most probable tokens; 0: from all."""
    keep_layers: tuple[int | None, ...] = ()
    """For each policy, the block whose output the rollouts are to carry along (``rollouts.suffix.kept_layers``), or
    None; a sampler may ignore it.
    """

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise SteerkitError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        if self.top_k < 0:
            raise SteerkitError(f"top_k must be 0 (all tokens) or more, got {self.top_k}.")
        if self.temperature < 0:
            raise SteerkitError(f"temperature must be 0 (greedy) or more, got {self.temperature}.")
        if self.max_tokens < 1:
            raise SteerkitError(f"max_tokens must be at least 1, got {self.max_tokens}.")


class Sampler(ABC):
    """Draws K completions of each prompt from the steered model, without gradients."""

    exact: bool = True
    """False: it draws from an approximation of the policy, and its log-probabilities are that one's; the update then
    weighs each token by importance.
    """
    counter_based: bool = True
    """False: another engine draws. Its samples are a function of the seed, but not by steerkit's uniforms, rounding may
    depend on the batch, and its passes do not show in ``SteeredModel.counter``.
    """

    @abstractmethod
    def stream(
        self,
        model: SteeredModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[EncodedPrompt],
        k: int,
        params: SamplingParams,
        seed: int,
    ) -> Iterator[tuple[int, RolloutGroup]]:
        """Yield (index into ``prompts``, its group of K rollouts) as groups are done, in any order.

        The t-th token of sample j of a problem must be drawn by the uniform of (seed, problem id, j, t), see
        :mod:`steerkit.rollouts.uniforms` (unless ``counter_based`` is False). Log-probabilities are those of
        logits / temperature (1 if greedy).
        """

    @contextmanager
    def unchanged_model(self) -> Iterator[None]:
        """Inside the block all calls are given one model, which stays as it is: a sampler may keep what it made of the
        prompts for its next call, such as that at another temperature.
        """
        yield

    def sample(
        self,
        model: SteeredModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[EncodedPrompt],
        k: int,
        params: SamplingParams,
        seed: int,
    ) -> list[RolloutGroup]:
        """All groups, in the order of ``prompts``."""
        groups = dict(self.stream(model, tokenizer, prompts, k, params, seed))
        return [groups[index] for index in range(len(prompts))]


def draw_tokens(logits: Tensor, u: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """One token a row by the inverse of the cumulative distribution.

    Args:
        logits: [R, V].
        u: [R] uniforms in [0, 1); not read when greedy.
        params: temperature (0 is greedy), top_k, then top_p of what top_k left.

    Returns:
        (ids [R], log-probabilities [R] in nats, fp32, of the whole distribution at this temperature: top_k and top_p
        choose from it and do not change it).
    """
    scaled = logits.float() if params.temperature in (0, 1) else logits.float() / params.temperature
    if params.temperature == 0:
        ids = scaled.argmax(dim=-1)
        return ids, torch.log_softmax(scaled, dim=-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    top = scaled.amax(dim=-1, keepdim=True)
    weights = (scaled - top).exp_()
    ids, total = _inverse(_truncated(weights, params.top_k, params.top_p), u)
    if params.top_k or params.top_p < 1:
        total = weights.sum(dim=-1, dtype=_wide(logits.device))
    chosen = scaled.gather(-1, ids.unsqueeze(-1)) - top
    return ids, chosen.squeeze(-1) - total.log().float()


def _wide(device: torch.device) -> torch.dtype:
    """The precision of sums over the vocabulary."""
    return torch.float32 if device.type == "mps" else torch.float64


_BLOCK = 256


def _inverse(weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Draw by the inverse of the cumulative sum of ``weights`` [R, V] (not normalised) at ``u`` [R].

    Two levels: the sums of blocks say which block, a cumulative sum inside it which token. So no sum is as long as the
    vocabulary, and rounding is that of short sums in double precision.

    Returns:
        (ids [R], sums of the weights [R]).
    """
    rows, size = weights.shape
    wide = _wide(u.device)
    if size % _BLOCK:
        weights = nn.functional.pad(weights, (0, -size % _BLOCK))
    blocks = weights.view(rows, -1, _BLOCK)
    ends = blocks.sum(dim=-1, dtype=wide).cumsum(dim=-1)  # [R, V / 256]
    # Scaling u by the last entry takes out the rounding of the sum; right=True never picks a zero-probability id.
    target = (u.to(wide).clamp(max=1 - 2**-24) * ends[:, -1]).unsqueeze(-1)
    block = torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[-1] - 1)
    before = nn.functional.pad(ends, (1, 0)).gather(-1, block)
    inside = blocks[torch.arange(rows, device=u.device), block.squeeze(-1)].cumsum(dim=-1, dtype=wide)
    # Up to rounding the target lies below the block's own sum: never behind its last token of positive weight.
    target = torch.minimum(target - before, inside[:, -1:] * (1 - torch.finfo(wide).eps))
    within = torch.searchsorted(inside, target, right=True)
    return (block * _BLOCK + within).squeeze(-1).clamp_(max=size - 1), ends[:, -1]


def _truncated(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """[R, V] with zeros at the tokens that may not be drawn; the rest is not scaled up."""
    if 0 < top_k < probabilities.shape[-1]:
        least = probabilities.topk(top_k, dim=-1).values[:, -1:]
        probabilities = probabilities.where(probabilities >= least, 0)
    if top_p < 1:
        ordered = probabilities.sort(dim=-1, descending=True)
        mass = ordered.values.cumsum(dim=-1)
        # A token stays if those before it have less than top_p of what is left: so one always does.
        stays = mass - ordered.values < top_p * mass[:, -1:]
        probabilities = probabilities * torch.zeros_like(stays).scatter(-1, ordered.indices, stays)
    return probabilities


def stop_ids(model: SteeredModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The end-of-sequence ids of the tokenizer and of the model's generation config."""
    configured = getattr(model.base.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, (list, tuple)) else [configured]
    found = frozenset(int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None)
    if not found:
        raise SteerkitError("The model has no end-of-sequence token: set eos_token_id in its generation config.")
    return found
