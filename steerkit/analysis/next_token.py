"""The next token under the base and under a vector: along given completions, and right behind prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steerkit.analysis.parts import Part
from steerkit.analysis.texts import Text, of_prompts
from steerkit.analysis.work import Work
from steerkit.hookpoints import HookPoint
from steerkit.vectors import SteeringVector

NONE = -1
"""In place of a token id: the favourite stays the same, or the completion has ended."""


def along(work: Work, label: str, vector: SteeringVector, texts: Sequence[Text]) -> Part:
    """What the vector changes at each position that predicts a generated token, base and steered on the same tokens.

    A part of the analysis. S steps: 0 predicts the first generated token.

    Args:
        label: of whose it is, for progress and the part.
        texts: prompts with a completion.

    Returns:
        ``distance`` [texts, S] total variation between both distributions, ``change`` [texts, S] the generated token's
        probability, steered - base, ``moved`` [texts, S] 1 where the likeliest token is another one (all NaN behind
        the end); ``favourite`` and ``boosted`` [texts, S] where it moved: the base's likeliest token, and the one
        whose probability rises most.
    """

    def compute() -> Part:
        steps = max(len(text.ids) - text.prompt_length for text in texts)
        distance, change, moved = (torch.full((len(texts), steps), float("nan")) for _ in range(3))
        favourite, boosted = (torch.full((len(texts), steps), NONE) for _ in range(2))
        last = HookPoint(work.n_layers - 1)
        done = 0
        for batch in work.batches(texts):
            runs = [work.engine.run(batch, one, [last])[last] for one in (None, vector)]
            for b, index in enumerate(batch.indices):
                text = texts[index]
                at = slice(text.prompt_length - 1, len(text.ids) - 1)
                base, steered = (_distribution(work, batch.unpad(hidden, b)[at]) for hidden in runs)
                gap, n = steered - base, len(base)
                targets = torch.tensor(text.ids[text.prompt_length :], device=gap.device)[:, None]
                other = base.argmax(-1) != steered.argmax(-1)
                distance[index, :n] = gap.abs().sum(-1).cpu() / 2
                change[index, :n] = gap.gather(1, targets)[:, 0].cpu()
                moved[index, :n] = other.float().cpu()
                favourite[index, :n] = torch.where(other, base.argmax(-1), NONE).cpu()
                boosted[index, :n] = torch.where(other, gap.argmax(-1), NONE).cpu()
            done += len(batch.texts)
            work.progress(f"next tokens, {label}", done, len(texts))
        return {"distance": distance, "change": change, "moved": moved, "favourite": favourite, "boosted": boosted}

    return work.part(f"next tokens {label}, {len(texts)} texts", compute)


class Opening:
    """The distribution of the first generated token, of every prompt.

    Keeps the stream behind each prompt, not the distributions: [N, V] is large where vocabularies are.

    Args:
        vector: None is the base.
    """

    def __init__(self, work: Work, label: str, vector: SteeringVector | None) -> None:
        self._work = work

        def compute() -> Part:
            texts, last = of_prompts(work.prompts), HookPoint(work.n_layers - 1)
            stream = torch.zeros(len(texts), work.d_model)
            done = 0
            for batch in work.batches(texts):
                stream[list(batch.indices)] = work.engine.run(batch, vector, [last])[last][:, -1].float().cpu()
                done += len(batch.texts)
                work.progress(f"first tokens, {label}", done, len(texts))
            return {"stream": stream}

        self._stream: Tensor = work.part(f"first tokens {label}", compute)["stream"]

    def mean(self) -> Tensor:
        """[V] fp64, the mean over prompts."""
        parts = [_distribution(self._work, part).double().sum(0).cpu() for part in self._split()]
        return torch.stack(parts).sum(0) / len(self._stream)

    def of(self, tokens: Sequence[int]) -> Tensor:
        """[N, tokens] probabilities."""
        chosen = torch.tensor(list(tokens))
        return torch.cat([_distribution(self._work, part).cpu()[:, chosen] for part in self._split()])

    def _split(self) -> tuple[Tensor, ...]:
        return self._stream.to(self._work.loaded.base.device).split(32)


def _distribution(work: Work, hidden: Tensor) -> Tensor:
    """[..., D] the stream that leaves the last block -> [..., V] probabilities."""
    return torch.softmax(work.readout.logits(hidden), -1)
