"""The fast sampler: one prefill a prompt, a cache that is allocated once, rows that join and leave, packed weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from steerkit.errors import SteerkitError
from steerkit.interventions.rowwise import Rows
from steerkit.rollouts.acceleration import accelerated
from steerkit.rollouts.approximate import check_precision
from steerkit.rollouts.direct import Direct, direct
from steerkit.rollouts.prefill import Prefilled, PromptStore, prefill
from steerkit.rollouts.sampler import EncodedPrompt, Sampler, SamplingParams, draw_tokens, stop_ids
from steerkit.rollouts.shared_attention import shared_step, shares_prompts
from steerkit.rollouts.shared_cache import SharedPromptCache
from steerkit.rollouts.slab_cache import SlabCache
from steerkit.rollouts.suffix import KeptStreams, without_streams
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.rollouts.uniforms import uniforms
from steerkit.types import Rollout, RolloutGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from steerkit.models import SteeredModel

PREFILL_TOKENS = 8192
"""Prompt tokens of one forward pass, padding included; a longer prompt has a pass of its own."""


class FastSampler(Sampler):
    """Continuous batching: finished rows leave, waiting prompts join; the same samples as the reference sampler, up to
    rounding at the boundary of a draw.

    A model whose cache is more than keys and values (mamba, linear attention), or that takes no position ids, is
    sampled by ``TransformersSampler``.

    Args:
        max_rows: sequences decoded at once (prompts x K).
        token_budget: rows x columns of the cache; long completions get fewer rows.
        pack: ``auto`` joins and packs linear weights for the CPU's matrix kernels while sampling, which takes their
            memory once more; ``never`` makes no copy.
        precision: ``exact``, or ``bfloat16`` or ``int8`` products with the weights: faster where the processor has
            them, but samples of another policy, which the update weighs by importance. int8 rounds by the largest
            number of a batch, so its samples depend on what shares the batch.
    """

    def __init__(
        self, max_rows: int = 256, token_budget: int = 262_144, pack: str = "auto", precision: str = "exact"
    ) -> None:
        if max_rows < 1 or token_budget < 1:
            raise SteerkitError(f"max_rows and token_budget must be at least 1, got {max_rows} and {token_budget}.")
        if pack not in ("auto", "never"):
            raise SteerkitError(f"pack must be 'auto' or 'never', got {pack!r}.")
        check_precision(precision)
        self.max_rows, self.token_budget, self.pack, self.precision = max_rows, token_budget, pack, precision
        self.exact = precision == "exact"
        self._prompts: PromptStore | None = None

    @contextmanager
    def unchanged_model(self) -> Iterator[None]:
        self._prompts = PromptStore()
        try:
            yield
        finally:
            self._prompts = None

    def stream(
        self,
        model: SteeredModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[EncodedPrompt],
        k: int,
        params: SamplingParams,
        seed: int,
    ) -> Iterator[tuple[int, RolloutGroup]]:
        if not prompts:
            return
        if not supported(model):
            if not self.exact:
                raise SteerkitError("This family can't be sampled at another precision: set the sampler's to exact.")
            yield from TransformersSampler(self.max_rows).stream(model, tokenizer, prompts, k, params, seed)
            return
        with torch.inference_mode():
            yield from _Decoder(self, model, tokenizer, prompts, k, params, seed).run()


def supported(model: SteeredModel) -> bool:
    """Whether the model's cache holds keys and values alone and positions can be given."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = DynamicCache(config=model.base.config).layers
    plain = len(layers) in (0, model.n_layers) and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers
    )
    return plain and model.takes_positions


class _Decoder:
    """One call of the sampler."""

    def __init__(
        self,
        sampler: FastSampler,
        model: SteeredModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[EncodedPrompt],
        k: int,
        params: SamplingParams,
        seed: int,
    ) -> None:
        self.sampler, self.model, self.tokenizer, self.prompts = sampler, model, tokenizer, prompts
        self.k, self.params, self.seed = k, params, seed
        # The longest first: a row that joins needs as many columns in front of it as its prompt is long.
        self.waiting = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))
        longest = len(prompts[self.waiting[-1]].ids)
        rows = min(sampler.max_rows, max(1, sampler.token_budget // (longest + params.max_tokens)))
        self.n_slots = min(max(rows, k), len(prompts) * k)
        one_wave = self.n_slots == len(prompts) * k
        width = longest + params.max_tokens * (1 if one_wave else 2) + 1
        device = model.device
        self.cache: SlabCache | SharedPromptCache
        if shares_prompts(model, longest + params.max_tokens):
            self.cache = SharedPromptCache(model.n_layers, self.n_slots, k, longest, params.max_tokens, device)
        else:
            self.cache = SlabCache(model.n_layers, self.n_slots, width, longest, device)
        self.stops = torch.tensor(sorted(stop_ids(model, tokenizer)), device=device)
        precision = torch.float32 if device.type == "mps" else torch.float64
        self.u = torch.zeros(self.n_slots, params.max_tokens, dtype=precision, device=device)
        self.tokens = torch.zeros(self.n_slots, params.max_tokens, dtype=torch.long, device=device)
        self.log_probs = torch.zeros(self.n_slots, params.max_tokens, device=device)
        self.age = torch.zeros(self.n_slots, dtype=torch.long, device=device)
        self.owners: list[tuple[int, int]] = [(-1, -1)] * self.n_slots
        self.done: dict[int, list[Rollout | None]] = {}
        self.policies = torch.zeros(self.n_slots, dtype=torch.long, device=device)
        self.rows: Rows | None = None  # of the running slots; None: to be made anew
        self.direct: Direct | None = None
        self.kept = KeptStreams(model, params.keep_layers)
        self.stream: Tensor | None = None  # [slots, T, D] of it, at the tokens that were fed
        self.prompt_streams: dict[int, Tensor] = {}

    def run(self) -> Iterator[tuple[int, RolloutGroup]]:
        logits: Tensor | None = None
        with ExitStack() as stack:
            joined: Collection[nn.Module] = ()
            if isinstance(self.cache, SharedPromptCache) and self.sampler.exact:
                self.direct = stack.enter_context(direct(self.model, self.cache, self.sampler.pack != "never"))
                joined = () if self.direct is None else self.direct.joined
            stack.enter_context(accelerated(self.model, self.sampler.pack, self.sampler.precision, joined))
            stack.enter_context(self.kept.open())
            # A cache and its layers know each other: gigabytes would wait for the garbage collector.
            stack.callback(self.cache.layers.clear)
            while self.waiting or self.cache.n_rows:
                logits = self._join(logits)
                assert logits is not None
                with self.model.scope():  # opened once for many steps, and closed before foreign code runs
                    complete, logits = self._steps(logits)
                yield from complete

    def _steps(self, logits: Tensor) -> tuple[list[tuple[int, RolloutGroup]], Tensor | None]:
        """Decode until groups are complete, or prompts may join: these groups, and the next logits."""
        while True:
            finished = self._draw(logits)
            complete = list(self._collect(finished)) if finished else []
            if not self.cache.n_rows:
                return complete, None
            logits = self._forward()
            if complete or (finished and self.waiting):
                return complete, logits

    def _join(self, logits: Tensor | None) -> Tensor | None:
        """Prefill waiting prompts once a good part of the rows is free; their first logits go behind the others'."""
        free = self.n_slots - self.cache.n_rows
        n_prompts = min(len(self.waiting), free // self.k, self.cache.free_prompts)
        # A prefill costs a forward pass of its own: a few rows are not worth one while others run.
        if not n_prompts or (self.cache.n_rows and free < self.n_slots // 4 and n_prompts < len(self.waiting)):
            return logits
        chosen, self.waiting = self.waiting[-n_prompts:], self.waiting[:-n_prompts]
        fresh = torch.cat([self._prefill(part) for part in self._parts(chosen)])
        return fresh if logits is None else torch.cat([logits, fresh])

    def _parts(self, chosen: list[int]) -> Iterator[list[int]]:
        """Prompts whose forward passes stay within ``PREFILL_TOKENS``: what a pass makes of them is held twice, as it
        comes and in the cache.
        """
        most = max(1, PREFILL_TOKENS // max(len(self.prompts[index].ids) for index in chosen))
        for first in range(0, len(chosen), most):
            yield chosen[first : first + most]

    def _prefill(self, chosen: list[int]) -> Tensor:
        """Add the rows of these prompts; [p K, V] their first logits."""
        batch = [self.prompts[index] for index in chosen]
        filled, fresh, streams = self._run_prompts(batch)
        self.cache.join(filled, [len(prompt.ids) for prompt in batch], self.k)
        first = self.cache.n_rows - len(chosen) * self.k
        ids = [p.example.id for p in batch for _ in range(self.k)]
        seeds = [self.seed if p.seed is None else p.seed for p in batch for _ in range(self.k)]
        noise = uniforms(seeds, ids, list(range(self.k)) * len(chosen), self.params.max_tokens)
        self.u[first : self.cache.n_rows] = torch.from_numpy(noise).to(self.u)
        self.age[first : self.cache.n_rows] = 0
        self.owners[first : self.cache.n_rows] = [(index, j) for index in chosen for j in range(self.k)]
        of_prompts = torch.tensor([p.policy for p in batch], device=self.policies.device)
        self.policies[first : self.cache.n_rows] = of_prompts.repeat_interleave(self.k)
        self.rows = None
        for index in chosen:
            self.done[index] = [None] * self.k
        if streams is not None:
            for row, index in enumerate(chosen):
                self.prompt_streams[index] = streams[row, -len(self.prompts[index].ids) :].clone()
            if self.stream is None:
                self.stream = streams.new_zeros(self.n_slots, self.params.max_tokens, streams.shape[-1])
        return fresh.repeat_interleave(self.k, dim=0)

    def _run_prompts(self, batch: list[EncodedPrompt]) -> Prefilled:
        def run() -> Prefilled:
            return prefill(self.model, batch, self.tokenizer.pad_token_id, self.kept)

        store = self.sampler._prompts
        return run() if store is None or self.kept.on else store.get(batch, run)

    def _draw(self, logits: Tensor) -> list[int]:
        """Sample one token a row; returns the slots that are finished."""
        n = self.cache.n_rows
        rows, age = torch.arange(n, device=logits.device), self.age[:n]
        new, log_probs = draw_tokens(logits, self.u[rows, age], self.params)
        self.tokens[rows, age], self.log_probs[rows, age] = new, log_probs
        age += 1
        self.last = new
        ended = torch.isin(new, self.stops) | (age == self.params.max_tokens)
        return [int(slot) for slot in ended.nonzero().squeeze(-1)]

    def _collect(self, slots: list[int]) -> Iterator[tuple[int, RolloutGroup]]:
        picked = torch.tensor(slots, device=self.tokens.device)
        tokens, log_probs = self.tokens[picked].tolist(), self.log_probs[picked].tolist()
        lengths = self.age[picked].tolist()
        stops = set(self.stops.tolist())
        complete = []
        for row, slot in enumerate(slots):
            ids = tokens[row][: lengths[row]]
            index, j = self.owners[slot]
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            reason = "stop" if ids[-1] in stops else "length"
            stream = None if self.stream is None else self.stream[slot, : lengths[row] - 1].clone()
            self.done[index][j] = Rollout(tuple(ids), tuple(log_probs[row][: lengths[row]]), reason, text, stream)  # type: ignore[arg-type]
            if all(rollout is not None for rollout in self.done[index]):
                complete.append(index)
        moves = self.cache.leave(slots)
        self.rows = None
        if moves:
            source, target = (torch.tensor(side, device=self.tokens.device) for side in zip(*moves, strict=True))
            own = (self.u, self.tokens, self.log_probs, self.age, self.last, self.policies, self.stream)
            for tensor in own:
                if tensor is not None:
                    tensor[target] = tensor[source]
            for there, here in moves:
                self.owners[here] = self.owners[there]
        for index in complete:
            prompt = self.prompts[index]
            rollouts = tuple(rollout for rollout in self.done.pop(index) if rollout is not None)
            layer = self.params.keep_layers[prompt.policy] if self.kept.on else None
            stream = self.prompt_streams.pop(index, None)
            group = RolloutGroup(
                prompt.example, prompt.text, prompt.ids, rollouts, prompt.segments, stream, layer, prompt.policy
            )
            yield index, group if layer is not None else without_streams(group)

    def _forward(self) -> Tensor:
        n = self.cache.n_rows
        if self.rows is None:
            self.rows = Rows(self.policies[:n].tolist(), self.model.device)
        with self.model.rows(self.rows):
            logits = self._step()
        if self.kept.on:
            assert self.stream is not None
            latest = self.kept.take(self.policies[:n])[:, 0]
            self.stream[torch.arange(n, device=latest.device), self.age[:n] - 1] = latest
        self.cache.advance()
        return logits

    def _step(self) -> Tensor:
        ids = self.last[: self.cache.n_rows]
        if self.direct is not None:
            return self.direct.step(ids)
        if isinstance(self.cache, SharedPromptCache):
            return shared_step(self.model, self.cache, ids)
        out = self.model(input_ids=ids[:, None], past_key_values=self.cache, use_cache=True, **self.cache.inputs())
        logits: Tensor = out.logits[:, -1]
        return logits
