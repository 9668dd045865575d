"""The logit lens of vectors, of what they change, and of the residual stream along a generation (C2).

nostalgebraist, "interpreting GPT: the logit lens" (2020); arXiv 2509.06608, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor

from steerkit.analysis.base import Analyzer, at_least_one
from steerkit.analysis.differences import mean_difference
from steerkit.analysis.result import AnalysisResult, Array, Findings, as_array
from steerkit.analysis.statistics import row
from steerkit.analysis.streams import stream_lens
from steerkit.analysis.texts import Text, of_groups
from steerkit.analysis.work import Work
from steerkit.hookpoints import HookPoint
from steerkit.token_masks import TokenMask
from steerkit.vectors.algebra import directions

if TYPE_CHECKING:
    from steerkit.analysis.plots.panels import Panel


@final
@dataclass(frozen=True)
class LogitLens(Analyzer):
    """Tokens that a vector points at, that its effect points at in each layer, and the stream along a generation.

    Args:
        top: tokens listed from each end.
        positions: token mask of the positions that the induced difference is averaged over.
        max_tokens: length limit of the steered greedy completions, on which base and steered are both run.
        streams: prompts along whose completion the stream is read.
        controls: norm-matched random vectors that are run.
        random_directions: random directions that the vectors' own scores are compared with.
        sampler: of the completions.
    """

    name: ClassVar[str] = "logit_lens"

    top: int = 10
    positions: str = "generated"
    max_tokens: int = 48
    streams: int = 16
    controls: int = 4
    random_directions: int = 200
    sampler: str = "transformers"

    def __post_init__(self) -> None:
        TokenMask(self.positions)
        at_least_one(self, "top", "max_tokens", "streams", "controls", "random_directions")

    def analyze(self, work: Work) -> Findings:
        rows: list[dict[str, Any]] = []
        tables: dict[str, list[dict[str, Any]]] = {"direct": [], "induced": [], "stream": []}
        arrays: dict[str, Array] = {}
        for name, vector in work.vectors.items():
            for point, direction in directions(vector).items():
                if len(direction) == work.d_model:  # else it is no direction of the stream
                    self._direct(work, name, point, direction.float(), rows, tables["direct"])
            groups = work.generations(name, vector, 1, 0.0, self.max_tokens, self.sampler)
            texts = of_groups(groups)
            self._induced(work, name, texts, rows, tables["induced"], arrays)
            found = stream_lens(work, name, vector, texts[: self.streams], self.controls)
            rows += found.rows
            tables["stream"] += found.table
            arrays |= found.arrays
        notes = [
            "Direct: the vector itself (the direction of vectors that depend on the token), by its dot product with "
            "the unembedding rows; 'norm': through the final norm's gain first, 'raw': not. Exact, so n = 1; control: "
            "the same of random directions of the same norm.",
            "Induced: mean over positions of h steered - h base on the steered model's greedy completions, through the "
            "final norm's gain; intervals over prompts; control: norm-matched random vectors on the same tokens.",
            "Sandwich-norm families: a vector at down_proj passes a norm before the stream, which 'direct' leaves out.",
        ]
        return Findings(rows, self._where(), arrays, tables, notes)

    def _where(self) -> str:
        return (
            f"induced differences at the token mask {self.positions!r} of prompt and greedy steered completion; the "
            "stream at the positions that predict the completion's tokens"
        )

    def _direct(
        self,
        work: Work,
        name: str,
        point: HookPoint,
        direction: Tensor,
        rows: list[dict[str, Any]],
        table: list[dict[str, Any]],
    ) -> None:
        generator = torch.Generator().manual_seed(work.seed)
        noise = torch.randn(self.random_directions, len(direction), generator=generator)
        noise *= direction.norm() / noise.norm(dim=-1, keepdim=True)
        for through in ("norm", "raw"):
            scores = work.readout.scores(direction, through == "norm").cpu()
            cosines = work.readout.scores(direction, through == "norm", cosine=True).cpu()
            keys = {"vector": name, "point": str(point), "lens": through}
            ends = [_ends(work.readout.scores(part, through == "norm").cpu(), self.top) for part in noise.split(64)]
            for side, sign in (("top", 1.0), ("bottom", -1.0)):
                control = torch.cat([end[side] for end in ends])  # [R, top]
                chosen = (sign * scores).topk(min(self.top, len(scores))).indices
                for rank, token in enumerate(chosen.tolist()):
                    beyond = (sign * control[:, rank] >= sign * float(scores[token])).float().mean()
                    table.append(
                        keys | {
                            "side": side, "rank": rank + 1, "token_id": token, "token": work.readout.token(token),
                            "score": float(scores[token]), "cosine": float(cosines[token]),
                            "random_score": float(control[:, rank].mean()), "random_share_beyond": float(beyond),
                        }
                    )  # fmt: skip
                first = int(chosen[0])
                rows.append(
                    row(f"direct {side} score", float(scores[first]), control[:, 0].tolist(), work.seed, **keys,
                        token=work.readout.token(first))
                )  # fmt: skip

    def _induced(
        self,
        work: Work,
        name: str,
        texts: Sequence[Text],
        rows: list[dict[str, Any]],
        table: list[dict[str, Any]],
        arrays: dict[str, Array],
    ) -> None:
        vector, points = work.vectors[name], work.outputs()
        mean, norm = mean_difference(work, name, vector, texts, points, self.positions)
        random = [
            mean_difference(work, f"{name}, control {k}", control, texts, points, self.positions)
            for k, control in enumerate(work.controls(vector, self.controls))
        ]
        device = work.readout.weight.device
        for layer in range(work.n_layers):
            keys: dict[str, Any] = {"vector": name, "layer": layer}
            control_norms = torch.stack([of_one[1][:, layer] for of_one in random]).mean(0)
            rows.append(row("induced norm", norm[:, layer].tolist(), control_norms.tolist(), work.seed, **keys))
            average = mean[:, layer].mean(0)
            if not bool(average.any()):
                continue  # below the lowest steered layer nothing differs
            scores = work.readout.scores(average.to(device)).cpu()
            cosines = work.readout.scores(average.to(device), cosine=True).cpu()
            ends = _ends(work.readout.scores(torch.stack([m[:, layer].mean(0) for m, _ in random]).to(device)).cpu(), 1)
            for side, sign in (("top", 1.0), ("bottom", -1.0)):
                chosen = (sign * scores).topk(min(self.top, len(scores))).indices
                each = self._of_tokens(work, mean[:, layer], chosen)  # [N, top]
                for rank, token in enumerate(chosen.tolist()):
                    facts = row("score", each[:, rank].tolist(), seed=work.seed)
                    table.append(
                        keys | {
                            "side": side, "rank": rank + 1, "token_id": token, "token": work.readout.token(token),
                            "score": facts["value"], "low": (facts["ci95"] or [None])[0],
                            "high": (facts["ci95"] or [None])[-1], "n": facts["n"], "cosine": float(cosines[token]),
                        }
                    )  # fmt: skip
                token = work.readout.token(int(chosen[0]))
                rows.append(
                    row(f"induced {side} score", each[:, 0].tolist(), ends[side][:, 0].tolist(), work.seed, **keys,
                        token=token)
                )  # fmt: skip
        arrays[f"induced {name}"] = as_array(
            mean, ("prompt", "layer", "dimension"), "mean over positions of h steered - h base"
        )

    def _of_tokens(self, work: Work, differences: Tensor, tokens: Tensor) -> Tensor:
        """[N, D] -> [N, tokens] scores, without the other tokens' rows."""
        readout = work.readout
        directed = differences.to(readout.weight.device)
        directed = directed - directed.mean(-1, keepdim=True) if readout.centres else directed
        return (directed * readout.gain @ readout.weight[tokens.to(readout.weight.device)].T).cpu()

    def panels(self, result: AnalysisResult) -> list[Panel]:
        from steerkit.analysis.plots.logit_lens import panels

        return panels(result)


def _ends(scores: Tensor, top: int) -> dict[str, Tensor]:
    """[R, V] -> the ``top`` largest and smallest of each row, both with the extreme one first."""
    top = min(top, scores.shape[-1])
    return {"top": scores.topk(top).values, "bottom": scores.topk(top, largest=False).values}
