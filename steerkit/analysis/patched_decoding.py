"""Decoding under a patch: at each step the vanilla, the steered and the patched run read the same tokens so far, and
the patched run's logits choose the next one.

All runs are rows of one batch with one cache, so a step costs one token a row; the keys and values that a patch changes
stay in the cache of the patched rows. A test compares this with decoding that runs everything anew at each token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steerkit.analysis.batched import hooked
from steerkit.analysis.engine import make_visits
from steerkit.analysis.parts import Part
from steerkit.analysis.patches import ROLES, Cast, Patch
from steerkit.analysis.work import Work
from steerkit.models import SteeredModel
from steerkit.models.positions import mask_positions, positions_from_mask
from steerkit.rollouts import EncodedPrompt, SamplingParams, uniforms
from steerkit.rollouts.prompt_pass import left_pad
from steerkit.rollouts.sampler import draw_tokens, stop_ids
from steerkit.token_masks import TokenMask
from steerkit.types import Rollout, RolloutGroup
from steerkit.vectors import SteeringVector

MOST_ROWS = 384
"""Rows of one batch: patches x prompts x runs."""


def decode(
    work: Work, name: str, vector: SteeringVector, patches: Sequence[Patch], params: SamplingParams
) -> list[list[RolloutGroup]]:
    """One completion of each prompt under each patch; the same random numbers for all patches.

    Args:
        name: of the vector, for progress and parts.

    Returns:
        For each patch its groups, in the order of ``work.prompts``.
    """
    cells = [(patch, prompt) for patch in range(len(patches)) for prompt in range(len(work.prompts))]
    cells.sort(key=lambda cell: (patches[cell[0]].probes, len(work.prompts[cell[1]].ids)))
    found: dict[tuple[int, int], Rollout] = {}
    label = f"decoding under patches, {name}"
    start = 0
    while start < len(cells):
        roles = 4 if patches[cells[start][0]].probes else 3
        chosen = cells[start : start + max(1, MOST_ROWS // roles)]
        chosen = [cell for cell in chosen if patches[cell[0]].probes == (roles == 4)]

        def compute(chosen: Sequence[tuple[int, int]] = chosen) -> Part:
            work.engine.release()  # hooks of our own: the model as it is
            work.progress(label, len(found), len(cells))
            return {"rollouts": [list(r) for r in _Decoder(work, vector, patches, chosen, params).run()]}

        part = work.part(f"decoded {name} {start} {params}", compute)
        for cell, (ids, logprobs, reason, text) in zip(chosen, part["rollouts"], strict=True):
            found[cell] = Rollout(tuple(ids), tuple(logprobs), reason, text)
        start += len(chosen)
        work.progress(label, len(found), len(cells))
    return [
        [_group(prompt, found[patch, index]) for index, prompt in enumerate(work.prompts)]
        for patch in range(len(patches))
    ]


def _group(prompt: EncodedPrompt, rollout: Rollout) -> RolloutGroup:
    return RolloutGroup(prompt.example, prompt.text, prompt.ids, (rollout,), prompt.segments)


class _Decoder:
    """One batch: cells (patch, prompt), each with a row a role, role after role."""

    def __init__(
        self,
        work: Work,
        vector: SteeringVector,
        patches: Sequence[Patch],
        cells: Sequence[tuple[int, int]],
        params: SamplingParams,
    ) -> None:
        self.work, self.patches, self.cells, self.params = work, patches, list(cells), params
        self.model = SteeredModel(
            work.loaded.base, work.engine.interventions(vector), work.loaded.layout, vector.token_mask
        )
        self.mask = TokenMask(vector.token_mask)
        needed = any(patches[patch].probes for patch, _ in cells)
        self.roles = [role for role in ROLES if role != "probe" or needed]
        self.device = work.loaded.base.device

    @torch.inference_mode()
    def run(self) -> list[tuple[list[int], list[float], str, str]]:
        """(token ids, log-probabilities, finish reason, text) of each cell."""
        work, n, m = self.work, len(self.cells), len(self.roles)
        prompts = [work.prompts[index] for _, index in self.cells]
        stops = torch.tensor(sorted(stop_ids(self.model, work.loaded.tokenizer)), device=self.device)
        noise = uniforms(work.seed, [p.example.id for p in prompts], [0] * n, self.params.max_tokens)
        u = torch.from_numpy(noise).to(self.device, torch.float32 if self.device.type == "mps" else torch.float64)
        ids, mask = left_pad([p.ids for p in prompts], work.loaded.tokenizer.pad_token_id or 0, self.device)
        chosen = mask_positions(
            self.mask, [len(p.ids) for p in prompts], [p.segments for p in prompts], ids.shape[1], self.device
        )
        steered = torch.ones_like(ids, dtype=torch.bool) if chosen is None else chosen
        ids, mask, steered = ids.repeat(m, 1), mask.repeat(m, 1), steered.repeat(m, 1)
        alive = torch.arange(n, device=self.device)
        cache, logits = self._step(alive, ids, mask, steered, None)
        tokens = torch.full((n, self.params.max_tokens), int(stops[0]), device=self.device)
        logprobs = torch.zeros(n, self.params.max_tokens, device=self.device)
        lengths = torch.full((n,), self.params.max_tokens, device=self.device)
        ended = torch.zeros(n, dtype=torch.bool, device=self.device)
        for t in range(self.params.max_tokens):
            new, new_logprobs = draw_tokens(logits, u[alive, t], self.params)
            tokens[alive, t], logprobs[alive, t] = new, new_logprobs
            stopped = torch.isin(new, stops)
            lengths[alive[stopped]] = t + 1
            ended[alive[stopped]] = True
            if bool(stopped.all()) or t + 1 == self.params.max_tokens:
                break
            if bool(stopped.any()):
                stay = (~stopped).nonzero().squeeze(-1)
                rows = torch.cat([stay + role * len(alive) for role in range(m)])
                cache.reorder_cache(rows)
                alive, new, mask = alive[stay], new[stay], mask[rows]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            fed = new[:, None].repeat(m, 1)
            steered = torch.full_like(fed, self.mask.generated, dtype=torch.bool)
            cache, logits = self._step(alive, fed, mask, steered, cache)
        found = []
        for row in range(n):
            of_row = tokens[row, : lengths[row]].tolist()
            text = str(work.loaded.tokenizer.decode(of_row, skip_special_tokens=True))
            reason = "stop" if bool(ended[row]) else "length"
            found.append((of_row, logprobs[row, : lengths[row]].tolist(), reason, text))
        return found

    def _step(self, alive: Tensor, ids: Tensor, mask: Tensor, steered: Tensor, cache: Any) -> tuple[Any, Tensor]:
        """One forward pass; returns the cache and the patched rows' logits at the last position, [cells, V]."""
        patches, cast = self._cast(alive)
        steered = steered & cast.steered(patches, self.device)[:, None]
        visits = make_visits(self.work.loaded, (), cast.edits(patches))
        arguments = {"past_key_values": cache} if cache is not None else {}
        if self.model.takes_positions:
            arguments["position_ids"] = positions_from_mask(mask)[:, -ids.shape[1] :]
        with hooked(self.model, steered, visits, ids.shape[1], {}):
            out = self.work.loaded.base(
                input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **arguments
            )  # fmt: skip
        patched = self.roles.index("patched") * len(alive)
        return out.past_key_values, out.logits[patched : patched + len(alive), -1]

    def _cast(self, alive: Tensor) -> tuple[list[Patch], Cast]:
        """The patches that still have cells, and their rows."""
        of_patch: dict[int, list[int]] = {}
        for place, cell in enumerate(alive.tolist()):
            of_patch.setdefault(self.cells[cell][0], []).append(place)
        roles: list[Mapping[str, Tensor]] = [
            {role: torch.tensor(places, device=self.device) + k * len(alive) for k, role in enumerate(self.roles)}
            for places in of_patch.values()
        ]
        return [self.patches[patch] for patch in of_patch], Cast(len(alive) * len(self.roles), tuple(roles))
