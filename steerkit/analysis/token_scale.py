"""On which tokens a vector with a gate acts, and whether that is more than the length of the segment (C10).

arXiv 2509.06608, section 10: abs(scale) x norm(b) / mean hidden norm, over the tokens of prompt and answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import torch
from torch import Tensor

from steerkit.analysis.base import Analyzer, at_least_one
from steerkit.analysis.gates import added_sizes, gate_names, shuffled_gate, untrained_gate
from steerkit.analysis.result import AnalysisResult, Array, Findings, as_array
from steerkit.analysis.statistics import row
from steerkit.analysis.texts import Text, of_groups
from steerkit.analysis.work import Work
from steerkit.errors import DataError, SteerkitError

if TYPE_CHECKING:
    from steerkit.analysis.plots.panels import Panel

Unit = Literal["mean", "token"]
SEGMENTS = ("system", "few_shot", "role_tags", "problem", "prompt_end", "prefill")
"""Those of ``token_masks``, with the role tags behind the problem apart: ``prompt_end``."""
EACH = "all"
_COMPLETION = "completion"


@final
@dataclass(frozen=True)
class TokenScale(Analyzer):
    """Size of what a vector adds at each token, and each prompt segment's share of it against its length.

    Args:
        relative_to: sizes are divided by the mean norm of the residual stream over all tokens (``mean``, the papers'),
            or by each token's own (``token``).
        max_tokens: length limit of the steered greedy completions.
        shown: texts whose tokens go to the table and the coloured figure.
        top: tokens listed.
        controls: shuffled gates.
        sampler: of the completions.
    """

    name: ClassVar[str] = "token_scale"

    relative_to: Unit = "mean"
    max_tokens: int = 48
    shown: int = 3
    top: int = 20
    controls: int = 8
    sampler: str = "transformers"

    def __post_init__(self) -> None:
        if self.relative_to not in ("mean", "token"):
            raise SteerkitError(f"relative_to must be 'mean' or 'token', got {self.relative_to!r}.")
        at_least_one(self, "max_tokens", "shown", "top", "controls")

    def analyze(self, work: Work) -> Findings:
        for prompt in work.prompts:
            if len(prompt.segments) != len(prompt.ids):
                raise DataError(f"token_scale needs each prompt's segments, and {prompt.example.id!r} has none: encode "
                                "it with its template (encode_prompts(..., segments=True)).")  # fmt: skip
        rows: list[dict[str, Any]] = []
        tables: dict[str, list[dict[str, Any]]] = {"tokens": [], "top_tokens": []}
        arrays: dict[str, Array] = {}
        for name, vector in work.vectors.items():
            texts = of_groups(work.generations(name, vector, 1, 0.0, self.max_tokens, self.sampler))
            variants = {"trained": vector}
            if gate_names(vector):
                variants["untrained"] = untrained_gate(vector)
                for index in range(self.controls):
                    variants[f"shuffled {index}"] = shuffled_gate(vector, work.seed * 1_000_003 + index)
            found = _Sizes(work, name, list(map(str, vector.tensors)), texts,
                           added_sizes(work, name, vector, variants, texts), self.relative_to)  # fmt: skip
            rows += found.rows()
            tables["tokens"] += found.token_table(self.shown)
            tables["top_tokens"] += found.top_tokens(self.top)
            arrays[f"shares {name}"] = found.shares_array()
        notes = [
            "Size: L2 norm of what is added at a token / norm of the residual stream that leaves the block (its mean "
            "over all tokens, with relative_to mean). Mass: the sum of sizes. Shares are of the prompt's tokens.",
            "Control: shuffled gates (the gate's numbers in another order), on the same tokens and the same stream. "
            "untrained: the gate as training started, before the trained directions. A vector that is the same at "
            "every position has no gate and so neither.",
            "share of tokens is the share of mass of a gate that takes no notice of the token.",
            "even spread: (sum of sizes)^2 / (tokens x sum of squares): 1 if all tokens get the same, 1 / tokens if "
            "one gets all.",
        ]
        return Findings(rows, "all tokens of prompt and greedy steered completion at which the vector's mask acts; "
                        "shares: of the prompt", arrays, tables, notes)  # fmt: skip

    def panels(self, result: AnalysisResult) -> list[Panel]:
        from steerkit.analysis.plots.token_scale import panels

        return panels(result)


class _Sizes:
    """Relative sizes of one vector and its variants, by hook point and token."""

    def __init__(
        self,
        work: Work,
        name: str,
        points: list[str],
        texts: Sequence[Text],
        sizes: Mapping[str, Tensor],
        relative_to: Unit,
    ) -> None:
        self.work, self.name, self.texts = work, name, texts
        stream = sizes["residual"]
        unit = stream.mean(1, keepdim=True) if relative_to == "mean" else stream
        self.signed = {key: value / unit for key, value in sizes.items() if key != "residual"}
        self.points = points
        if len(points) > 1:  # all hook points together: sizes add up, signs mean nothing
            self.points = [*points, EACH]
            self.signed = {k: torch.cat([v, v.abs().sum(0, keepdim=True)]) for k, v in self.signed.items()}
        self.starts = torch.tensor([0, *(len(text.ids) for text in texts)]).cumsum(0).tolist()
        self.segments = [segments_of(text) for text in texts]
        self.seen = [s for s in SEGMENTS if any(s in names for names in self.segments)]
        self.shuffled = [key for key in self.signed if key.startswith("shuffled")]

    def of_text(self, variant: str, index: int) -> Tensor:
        """[P, n] of one text, without signs."""
        return self.signed[variant][:, self.starts[index] : self.starts[index + 1]].abs()

    def shares(self, variant: str) -> Tensor:
        """[N, P, S] each segment's share of the prompt's mass; NaN where there is none."""
        found = []
        for index, names in enumerate(self.segments):
            prompt = self.of_text(variant, index)[:, : self.texts[index].prompt_length]
            parts = torch.stack([prompt[:, _where(names, s)].sum(1) for s in self.seen], 1)
            found.append(parts / prompt.sum(1, keepdim=True))
        return torch.stack(found)

    def lengths(self) -> Tensor:
        """[N, S] each segment's share of the prompt's tokens."""
        table = [
            [names.count(s) / text.prompt_length for s in self.seen]
            for text, names in zip(self.texts, self.segments, strict=True)
        ]
        return torch.tensor(table)

    def spread(self, variant: str) -> Tensor:
        """[N, P]"""
        prompts = [self.of_text(variant, i)[:, : text.prompt_length] for i, text in enumerate(self.texts)]
        return torch.stack([p.sum(1) ** 2 / (p.shape[1] * p.square().sum(1)) for p in prompts])

    def mean_size(self, variant: str, segment: str) -> Tensor:
        """[N, P] mean over the segment's tokens."""
        found = []
        for index, names in enumerate(self.segments):
            found.append(self.of_text(variant, index)[:, _where(names, segment)].mean(1))  # NaN: no such token
        return torch.stack(found)

    def rows(self) -> list[dict[str, Any]]:
        seed, lengths, found = self.work.seed, self.lengths(), []
        gates = [gate for gate in ("trained", "untrained") if gate in self.signed]
        shares = {gate: self.shares(gate) for gate in (*gates, *self.shuffled)}
        control = torch.stack([shares[key] for key in self.shuffled]).mean(0) if self.shuffled else None
        for s, segment in enumerate(self.seen):
            found.append(row("share of tokens", lengths[:, s].tolist(), seed=seed, vector=self.name, segment=segment))
        for p, point in enumerate(self.points):
            for gate in gates:
                keys: dict[str, Any] = {"vector": self.name, "gate": gate, "point": point}
                for s, segment in enumerate(self.seen):
                    beside = None if control is None else control[:, p, s].tolist()
                    found.append(row("share of mass", shares[gate][:, p, s].tolist(), beside, seed, **keys,
                                     segment=segment))  # fmt: skip
                    ratio = shares[gate][:, p, s] / lengths[:, s]
                    beside = None if control is None else (control[:, p, s] / lengths[:, s]).tolist()
                    found.append(row("share of mass / share of tokens", ratio.tolist(), beside, seed, **keys,
                                     segment=segment))  # fmt: skip
                for segment in (*self.seen, _COMPLETION):
                    found.append(row("size", self.mean_size(gate, segment)[:, p].tolist(),
                                     self._control(lambda k, s=segment, p=p: self.mean_size(k, s)[:, p]), seed, **keys,
                                     segment=segment))  # fmt: skip
                found.append(row("even spread", self.spread(gate)[:, p].tolist(),
                                 self._control(lambda k, p=p: self.spread(k)[:, p]), seed, **keys))  # fmt: skip
        return found

    def _control(self, of: Any) -> list[float] | None:
        return torch.stack([of(key) for key in self.shuffled]).mean(0).tolist() if self.shuffled else None

    def shares_array(self) -> Array:
        gates = [gate for gate in ("trained", "untrained") if gate in self.signed]
        tables = [self.shares(gate).nanmean(0) for gate in gates]
        if self.shuffled:
            tables.append(torch.stack([self.shares(key).nanmean(0) for key in self.shuffled]).mean(0))
        return as_array(
            torch.stack(tables), ("gate", "hook point", "segment"), "share of the prompt's mass",
            **{"gate": [*gates, *(["shuffled"] if self.shuffled else [])], "hook point": self.points,
               "segment": self.seen},
        )  # fmt: skip

    def token_table(self, shown: int) -> list[dict[str, Any]]:
        """One row for each token of the first texts and each hook point."""
        found = []
        for index, text in enumerate(self.texts[:shown]):
            for position, token in enumerate(text.ids):
                for p, point in enumerate(self.points):
                    found.append({
                        "vector": self.name, "text": text.id, "position": position, "token_id": token,
                        "token": self.work.readout.token(token), "segment": self.segments[index][position],
                        "point": point, "size": float(self.signed["trained"][p, self.starts[index] + position]),
                    })  # fmt: skip
        return found

    def top_tokens(self, top: int) -> list[dict[str, Any]]:
        """The tokens with the largest mean size, of all texts."""
        ids = torch.tensor([token for text in self.texts for token in text.ids])
        kinds, which = ids.unique(return_inverse=True)
        counts = torch.bincount(which, minlength=len(kinds)).double()
        found = []
        for p, point in enumerate(self.points):
            signed = self.signed["trained"][p].double()
            mass = torch.zeros(len(kinds), dtype=torch.double).index_add_(0, which, signed.abs())
            mean = torch.zeros(len(kinds), dtype=torch.double).index_add_(0, which, signed) / counts
            for rank, kind in enumerate((mass / counts).argsort(descending=True, stable=True)[:top].tolist()):
                found.append({
                    "vector": self.name, "point": point, "rank": rank + 1, "token_id": int(kinds[kind]),
                    "token": self.work.readout.token(int(kinds[kind])), "n": int(counts[kind]),
                    "mean_size": float(mass[kind] / counts[kind]), "mean_signed_size": float(mean[kind]),
                    "share_of_mass": float(mass[kind] / mass.sum()), "share_of_tokens": float(counts[kind] / len(ids)),
                })  # fmt: skip
        return found


def segments_of(text: Text) -> list[str]:
    """[N] the segment of each token: ``SEGMENTS``, or completion."""
    names = list(text.segments)
    last = max((k for k, name in enumerate(names) if name == "problem"), default=len(names))
    for k in range(last + 1, len(names)):
        if names[k] == "role_tags":
            names[k] = "prompt_end"
    return names + [_COMPLETION] * (len(text.ids) - text.prompt_length)


def _where(names: Sequence[str], segment: str) -> Tensor:
    return torch.tensor([k for k, name in enumerate(names) if name == segment], dtype=torch.long)
