"""A stand-in for vLLM that keeps its published signatures and runs the checkpoint by stock transformers.

From vLLM 0.33.0 (the wheel on PyPI):

- ``LLM``: ``__init__``, ``generate``, ``collective_rpc``, ``reset_prefix_cache`` of vllm/entrypoints/llm.py; of its
  ``**kwargs`` those fields of ``EngineArgs`` (vllm/engine/arg_utils.py) that the tests use, any other is an error;
- ``SamplingParams``: fields, defaults and limits of vllm/sampling_params.py (temperatures below 0.01 become 0.01);
- ``TokensPrompt``: vllm/inputs/llm.py; ``RequestOutput`` and ``CompletionOutput``: vllm/outputs.py; ``Logprob``:
  vllm/logprobs.py;
- ``dtype="auto"`` makes 16 bits of a float32 checkpoint: vllm/config/model.py;
- the worker's extension: vllm/v1/worker/worker_base.py (mixed in by its dotted name, no attribute may clash);
- ``processed_logprobs``: vllm/v1/sample/sampler.py (greedy: of the logits; else of logits / temperature).

Like vLLM it reuses what it computed of a prompt until ``reset_prefix_cache``, so forgetting that shows.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    outputs: list[CompletionOutput]
    finished: bool


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True

    def __post_init__(self) -> None:
        if 0 < self.temperature < 0.01:
            self.temperature = 0.01
        if not 0.0 <= self.temperature <= 2.0:
            raise ValueError(f"temperature must be in [0, 2], got {self.temperature}.")
        if not 0.0 < self.top_p <= 1.0 or self.top_k < -1:
            raise ValueError("top_p must be in (0, 1]")


ENGINE_ARGS = {"max_model_len", "logprobs_mode", "worker_extension_cls", "enable_prefix_caching"}
LOG: list[str] = []
"""What the engines were asked to do, in order."""


class _Worker:
    def __init__(self, model: Any) -> None:
        self.model_runner = SimpleNamespace(model=SimpleNamespace(load_weights=self._load))
        self._net = model

    def _load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        parameters, done = dict(self._net.named_parameters()), set()
        for name, tensor in weights:
            assert name.endswith(".bias"), f"{name} is no bias"
            assert tensor.dtype == parameters[name].dtype  # vLLM warns of each that differs
            parameters[name].data.copy_(tensor)  # KeyError for a name that the checkpoint has not
            done.add(name)
        return done


class LLM:
    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        enforce_eager: bool = False,
        **kwargs: Any,
    ) -> None:
        if unknown := set(kwargs) - ENGINE_ARGS:
            raise TypeError(f"EngineArgs.__init__() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        LOG.append("start")
        self.skips_tokenizer = skip_tokenizer_init
        self.mode = kwargs.get("logprobs_mode", "raw_logprobs")
        kept = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}.get(
            dtype, torch.bfloat16
        )
        self.net: Any = AutoModelForCausalLM.from_pretrained(model, dtype=kept, local_files_only=True).eval()
        self.max_model_len = kwargs.get("max_model_len") or self.net.config.max_position_embeddings
        module, name = kwargs["worker_extension_cls"].rsplit(".", 1)
        extension = getattr(importlib.import_module(module), name)
        # As vLLM checks, but for what every object has: nnsight, once traced with, gives `object` a `save`.
        assert not [a for a in set(dir(extension)) - set(dir(object)) if not a.startswith("__") and hasattr(_Worker, a)]
        self.worker = type("Worker", (_Worker, extension), {})(self.net)
        self.prefixes: dict[tuple[int, ...], torch.Tensor] = {}

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        assert isinstance(method, str), "a callable would need VLLM_ALLOW_INSECURE_SERIALIZATION"
        for name, raw in args[0].items():  # plain values, as msgpack carries them
            assert type(name) is str and type(raw) is bytes
        LOG.append(method)
        return [getattr(self.worker, method)(*args, **(kwargs or {}))]

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        LOG.append("reset")
        self.prefixes.clear()
        return True

    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: Any = None,
        priority: Any = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        LOG.append(f"generate {len(prompts)}")
        assert isinstance(sampling_params, list) and len(sampling_params) == len(prompts)
        assert self.skips_tokenizer or all(p.detokenize for p in sampling_params)
        return [
            self._one(str(i), prompt["prompt_token_ids"], params)
            for i, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True))
        ]

    @torch.no_grad()
    def _one(self, name: str, prompt: list[int], params: SamplingParams) -> RequestOutput:
        draw = torch.Generator().manual_seed(params.seed or 0)
        ids, log_probs, reason = list(prompt), [], "length"
        for _ in range(min(params.max_tokens or 16, self.max_model_len - len(prompt))):
            key = tuple(ids)
            if len(ids) > len(prompt) or key not in self.prefixes:
                self.prefixes[key] = self.net(torch.tensor([ids])).logits[0, -1].float()
            logits = self.prefixes[key]
            scaled = logits / params.temperature if params.temperature else logits
            shown = torch.log_softmax(scaled if self.mode == "processed_logprobs" else logits, -1)
            token = int(scaled.argmax())
            if params.temperature:
                token = int(torch.multinomial(scaled.softmax(-1), 1, generator=draw))
            ids.append(token)
            log_probs.append({token: Logprob(float(shown[token]), 1)})
            if token in (params.stop_token_ids or []):
                reason = "stop"
                break
        out = CompletionOutput(0, "", ids[len(prompt) :], None, log_probs, reason)
        return RequestOutput(name, None, prompt, [out], True)
