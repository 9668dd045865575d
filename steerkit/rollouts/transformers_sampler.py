"""Sampling through the model's own forward and transformers' KV cache: right for every family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from steerkit.errors import SteerkitError
from steerkit.models.positions import mask_positions, positions_from_mask
from steerkit.rollouts.prompt_pass import left_pad
from steerkit.rollouts.sampler import EncodedPrompt, Sampler, SamplingParams, draw_tokens, stop_ids
from steerkit.rollouts.uniforms import uniforms
from steerkit.types import Rollout, RolloutGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from steerkit.models import SteeredModel

_COMPACT_BELOW = 0.75
"""Rows are dropped from the cache once this share or less is still running: copying the cache costs a few tokens."""


class TransformersSampler(Sampler):
    """Each prompt is prefilled once and its cache repeated for its K samples; finished rows leave the batch.

    Args:
        max_rows: sequences decoded at once (prompts x K).
    """

    def __init__(self, max_rows: int = 256) -> None:
        if max_rows < 1:
            raise SteerkitError(f"max_rows must be at least 1, got {max_rows}.")
        self.max_rows = max_rows

    def stream(
        self,
        model: SteeredModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[EncodedPrompt],
        k: int,
        params: SamplingParams,
        seed: int,
    ) -> Iterator[tuple[int, RolloutGroup]]:
        # Prompts of like length share a batch, so that little is spent on padding.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))
        per_batch = max(1, self.max_rows // k)
        for start in range(0, len(order), per_batch):
            indices = order[start : start + per_batch]
            batch = [prompts[index] for index in indices]
            for index, prompt, rollouts in zip(
                indices, batch, self._decode(model, tokenizer, batch, k, params, seed), strict=True
            ):
                yield (
                    index,
                    RolloutGroup(
                        prompt.example, prompt.text, prompt.ids, rollouts, prompt.segments, policy=prompt.policy
                    ),
                )

    @torch.inference_mode()
    def _decode(
        self,
        model: SteeredModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[EncodedPrompt],
        k: int,
        params: SamplingParams,
        seed: int,
    ) -> list[tuple[Rollout, ...]]:
        device, n_rows = model.device, len(prompts) * k
        stops = torch.tensor(sorted(stop_ids(model, tokenizer)), device=device)
        owners = [prompt for prompt in prompts for _ in range(k)]
        noise = uniforms(
            [seed if p.seed is None else p.seed for p in owners],
            [p.example.id for p in owners],
            list(range(k)) * len(prompts),
            params.max_tokens,
        )
        u = torch.from_numpy(noise).to(device, torch.float32 if device.type == "mps" else torch.float64)
        ids, mask = left_pad([p.ids for p in prompts], tokenizer.pad_token_id, device)
        steered = mask_positions(
            model.token_mask, [len(p.ids) for p in prompts], [p.segments for p in prompts], ids.shape[1], device
        )
        with model.prefill(steered), model.rows([p.policy for p in prompts]):
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions_from_mask(mask),
                use_cache=True,
                logits_to_keep=1,
            )
        cache = out.past_key_values
        # reorder_cache alone serves layers with a running state too (cache.batch_* are missing there).
        cache.reorder_cache(torch.arange(len(prompts), device=device).repeat_interleave(k))
        logits = out.logits[:, -1].repeat_interleave(k, dim=0)
        mask = mask.repeat_interleave(k, dim=0)

        tokens = torch.full((n_rows, params.max_tokens), int(stops[0]), device=device)
        log_probs = torch.zeros(n_rows, params.max_tokens, device=device)
        lengths = torch.full((n_rows,), params.max_tokens, device=device)
        stopped = torch.zeros(n_rows, dtype=torch.bool, device=device)
        rows = torch.arange(n_rows, device=device)  # rows still in the batch, as indices into the outputs
        for t in range(params.max_tokens):
            new, new_log_probs = draw_tokens(logits, u[rows, t], params)
            running = ~stopped[rows]
            tokens[rows[running], t] = new[running]
            log_probs[rows[running], t] = new_log_probs[running]
            ended = running & torch.isin(new, stops)
            lengths[rows[ended]] = t + 1
            stopped[rows[ended]] = True
            alive = (~stopped[rows]).nonzero().squeeze(-1)
            if len(alive) == 0 or t + 1 == params.max_tokens:
                break
            if len(alive) <= _COMPACT_BELOW * len(rows):
                cache.reorder_cache(alive)
                rows, new, mask = rows[alive], new[alive], mask[alive]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            with model.rows([owners[row].policy for row in rows.tolist()] if model.policies > 1 else ()):
                logits = model(
                    input_ids=new.unsqueeze(-1),
                    attention_mask=mask,
                    position_ids=positions_from_mask(mask)[:, -1:],
                    past_key_values=cache,
                    use_cache=True,
                ).logits[:, -1]

        rollouts = []
        for row, (length, stop) in enumerate(zip(lengths.tolist(), stopped.tolist(), strict=True)):
            row_ids = tokens[row, :length].tolist()
            text = str(tokenizer.decode(row_ids, skip_special_tokens=True))
            rollouts.append(
                Rollout(
                    tuple(row_ids),
                    tuple(log_probs[row, :length].tolist()),
                    "stop" if stop else "length",
                    text,
                )
            )
        return [tuple(rollouts[g * k : (g + 1) * k]) for g in range(len(prompts))]
