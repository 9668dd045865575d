"""The sampler ``vllm``: K requests a prompt, each with its own seed, to an engine that has the vector in its biases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from steerkit.errors import SteerkitError
from steerkit.rollouts import EncodedPrompt, Sampler, SamplingParams, fold_seed
from steerkit.rollouts.sampler import stop_ids
from steerkit.rollouts.uniforms import stable_key
from steerkit.types import Rollout, RolloutGroup
from steerkit_vllm.engine import engine_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from steerkit.models import SteeredModel


class VllmSampler(Sampler):
    """Constant interventions on Llama, Qwen2 and Mistral bases, on a GPU by vLLM.

    Samples depend on (seed, problem, sample) by vLLM's generators, so they are other ones than those of ``fast``; and
    vLLM's kernels round otherwise than the trainer's, so the update weighs each token by importance.

    Args:
        dtype: of vLLM's weights: ``auto`` (as the base's checkpoint has them), float32, bfloat16 or float16.
        engine: further arguments of ``vllm.LLM``, e.g. ``{gpu_memory_utilization: 0.4}``.
    """

    exact = False
    counter_based = False

    def __init__(self, dtype: str = "auto", engine: Mapping[str, Any] | None = None) -> None:
        self.dtype, self.engine = dtype, dict(engine or {})

    def stream(
        self,
        model: SteeredModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[EncodedPrompt],
        k: int,
        params: SamplingParams,
        seed: int,
    ) -> Iterator[tuple[int, RolloutGroup]]:
        """As ``Sampler.stream``; all groups come at the end of one call of vLLM.

        Raises:
            SteerkitError: for what vLLM can't do as steerkit means it.
        """
        _check(model, prompts, params)
        engine = engine_for(model, tokenizer, self.dtype, self.engine)
        engine.steer(model, tokenizer)
        from vllm import SamplingParams as VllmParams

        stops = stop_ids(model, tokenizer)
        owners = [(index, sample) for index in range(len(prompts)) for sample in range(k)]
        requests = [{"prompt_token_ids": list(prompts[index].ids)} for index, _ in owners]
        settings = [
            VllmParams(
                temperature=params.temperature,
                max_tokens=params.max_tokens,
                seed=_seed(seed, prompts[index], sample),
                stop_token_ids=sorted(stops),
                logprobs=0,  # of the sampled token alone
                detokenize=False,
            )
            for index, sample in owners
        ]
        outputs = engine.llm.generate(requests, settings, use_tqdm=False)
        if len(outputs) != len(owners):
            raise SteerkitError(f"vllm answered {len(outputs)} of {len(owners)} requests.")
        rollouts = [_rollout(output.outputs[0], tokenizer, stops, params.max_tokens) for output in outputs]
        for index, prompt in enumerate(prompts):
            own = tuple(rollouts[index * k : (index + 1) * k])
            yield index, RolloutGroup(prompt.example, prompt.text, prompt.ids, own, prompt.segments)


def _seed(seed: int, prompt: EncodedPrompt, sample: int) -> int:
    """A seed in [0, 2^62): torch's generators and vLLM's kernels hold it as a signed 64-bit number."""
    return fold_seed(seed if prompt.seed is None else prompt.seed, stable_key(prompt.example.id), sample) >> 2


def _check(model: SteeredModel, prompts: Sequence[EncodedPrompt], params: SamplingParams) -> None:
    if model.policies > 1 or any(prompt.policy > 0 for prompt in prompts):
        raise SteerkitError("vllm holds one vector at a time: it can't sample several policies in one batch (a sweep).")
    if params.top_p < 1 or params.top_k > 0:
        raise SteerkitError("vllm: set top_p to 1 and top_k to 0: its log-probabilities would be of what they leave.")
    if 0 < params.temperature < 0.01 or params.temperature > 2:
        raise SteerkitError(f"vllm: temperature must be 0 or from 0.01 to 2, got {params.temperature}.")
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if several and torch.distributed.get_world_size() > 1:
        raise SteerkitError("vllm runs beside one training process: set trainer.devices to 1.")


def _rollout(output: Any, tokenizer: PreTrainedTokenizerBase, stops: frozenset[int], max_tokens: int) -> Rollout:
    ids = tuple(int(token) for token in output.token_ids)
    if output.finish_reason == "length" and len(ids) < max_tokens:
        raise SteerkitError(
            f"vllm cut a completion after {len(ids)} of {max_tokens} tokens: raise max_model_len in engine, or lower "
            "max_tokens."
        )
    # A stop at the length limit has one of two names in engines; the token decides here.
    reason = "stop" if ids and ids[-1] in stops else output.finish_reason
    if reason not in ("stop", "length") or not ids or (reason == "stop" and ids[-1] not in stops):
        raise SteerkitError(f"vllm ended a completion by {output.finish_reason!r} after {len(ids)} tokens.")
    log_probs = tuple(float(at[token].logprob) for token, at in zip(ids, output.logprobs, strict=True))
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
    return Rollout(ids, log_probs, reason, text)
