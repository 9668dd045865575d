"""Memory of a step: a budget that is kept from the start, and smaller batches where the device has less. The numbers
stay the same, up to the order of sums.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from steerkit.errors import SteerkitError, TrainingError
from steerkit.rollouts import EncodedPrompt, Sampler, SamplingParams
from steerkit.rollouts.footprint import Saved, saved_for_backward, tokens_within
from steerkit.rollouts.suffix import kept_layers
from steerkit.training.step import UpdateStats, accumulate_gradients
from steerkit.types import RolloutGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from steerkit.models import SteeredModel
    from steerkit.objectives import Objective

log = logging.getLogger(__name__)
T = TypeVar("T")


KEPT_SHARE = 0.25
"""The part of the budget that the residual stream kept from a step's rollouts may take; without it the update runs the
prefix again, without gradient.
"""


def budget_bytes(gigabytes: float | None, device: torch.device) -> float:
    """Bytes for what a step keeps: 1 GB on a CPU, a quarter of an accelerator's memory, unless said otherwise.

    A constant of the machine, not what is free at the moment: the split into micro-batches must repeat itself.

    Raises:
        SteerkitError: for a budget that is not positive.
    """
    if gigabytes is not None:
        if not gigabytes > 0:
            raise SteerkitError(f"memory_budget must be above 0 (GB), got {gigabytes}.")
        return gigabytes * 1e9
    return torch.cuda.get_device_properties(device).total_memory / 4 if device.type == "cuda" else 1e9


class Budget:
    """Holds a step's activations and its kept streams within a number of bytes.

    Args:
        gigabytes: None: ``budget_bytes``' own choice.
    """

    def __init__(self, gigabytes: float | None = None) -> None:
        budget_bytes(gigabytes, torch.device("cpu"))
        self.gigabytes = gigabytes
        self.saved: Saved | None = None
        """As measured before the first update. A resumed run takes it from the checkpoint: where tokens are routed to
        experts, a measurement need not repeat itself.
        """

    def keeping(
        self, model: SteeredModel, prompts: Sequence[EncodedPrompt], k: int, params: SamplingParams
    ) -> SamplingParams:
        """``params``, with the block whose output the rollouts should carry, where that fits."""
        layers = kept_layers(model)
        if all(layer is None for layer in layers):
            return params
        positions = sum(len(prompt.ids) + k * params.max_tokens for prompt in prompts)
        fits = positions * model.d_model * model.dtype.itemsize <= KEPT_SHARE * budget_bytes(
            self.gigabytes, model.device
        )
        return replace(params, keep_layers=layers) if fits else params

    def micro_batch_tokens(
        self, model: SteeredModel, prompts: Sequence[EncodedPrompt], max_tokens: int, pad_id: int, most: int
    ) -> int:
        """Padded tokens of a micro-batch whose activations stay within the budget, at most ``most``."""
        if self.saved is None:
            ids = torch.tensor(prompts[0].ids, device=model.device)
            self.saved = saved_for_backward(model, ids, pad_id)
        longest = max(len(prompt.ids) for prompt in prompts) + max_tokens
        rest = (1 - KEPT_SHARE) * budget_bytes(self.gigabytes, model.device)
        return min(most, tokens_within(self.saved, rest, longest))


def sample(
    sampler: Sampler,
    model: SteeredModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedPrompt],
    k: int,
    params: SamplingParams,
    seed: int,
    retry: bool = True,
) -> list[RolloutGroup]:
    """``sampler.sample``; a sampler with ``max_rows`` (sequences decoded at once) has it halved until it fits.

    Args:
        retry: False where other processes wait for the same passes.
    """
    if not (retry and hasattr(sampler, "max_rows")):
        return sampler.sample(model, tokenizer, prompts, k, params, seed)

    def attempt(max_rows: int) -> list[RolloutGroup]:
        sampler.max_rows = max_rows
        return sampler.sample(model, tokenizer, prompts, k, params, seed)

    return within_memory(attempt, sampler.max_rows, k, len(prompts) * k, (), "the sampler's max_rows")[0]


def add_gradients(
    model: SteeredModel,
    objective: Objective,
    groups: Sequence[RolloutGroup],
    advantages: Tensor,
    n_tokens: int | Sequence[int],
    pad_id: int,
    temperature: float,
    micro_batch_tokens: int,
    backward: Callable[[Tensor], None],
    retry: bool = True,
    importance_cap: float | None = None,
) -> tuple[UpdateStats, int]:
    """``accumulate_gradients`` into empty gradients, with half the ``micro_batch_tokens`` each time that they are too
    many; also the number that worked.

    Args:
        retry: False where other processes wait for the same passes.
    """

    def attempt(tokens: int) -> UpdateStats:
        return accumulate_gradients(
            model, objective, groups, advantages, n_tokens, pad_id, temperature, tokens, backward, importance_cap
        )

    # A micro-batch holds one completion at least: below its length nothing gets smaller.
    lengths = [len(group.prompt_ids) + len(rollout.token_ids) for group in groups for rollout in group.rollouts]
    least = max(lengths, default=1) if retry else micro_batch_tokens
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return within_memory(attempt, micro_batch_tokens, least, sum(lengths), parameters, "micro_batch_tokens")


def within_memory(
    attempt: Callable[[int], T], size: int, least: int, most: int, parameters: Sequence[nn.Parameter], what: str
) -> tuple[T, int]:
    """Call ``attempt`` with ``size``, and with half of it each time that the device is out of memory.

    An attempt that was cut leaves part of its gradients behind: they are dropped, so that the result is that of an
    attempt that never failed.

    Args:
        least: at or below this size a smaller one changes nothing.
        most: about what all of it takes: from there on a larger size changes nothing.
        parameters: whose gradients ``attempt`` fills, from none.
        what: how messages call the size.

    Returns:
        The attempt's result and the size that worked.

    Raises:
        TrainingError: if even the smallest one does not fit.
    """
    while True:
        try:
            return attempt(size), size
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
        # Outside of the handler: there the traceback would still hold the attempt's tensors.
        for parameter in parameters:
            parameter.grad = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size <= least or size < 2:
            raise TrainingError(
                f"Out of memory, and {what} {size} can't be less ({reason}): lower max_tokens, or take a smaller dtype."
            )
        smaller = max(min(size, most) // 2, 1)
        log.warning("Out of memory: %s goes from %d to %d.", what, size, smaller)
        size = smaller
