"""The residual stream read through the lens at every layer along a text, base beside steered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steerkit.analysis.result import Array, as_array
from steerkit.analysis.statistics import row
from steerkit.analysis.texts import Text
from steerkit.analysis.variants import Variant, run_variants
from steerkit.analysis.work import Work
from steerkit.vectors import SteeringVector


@dataclass(frozen=True)
class StreamLens:
    """Rows, a table of what the lens says, and the first text's log-probabilities."""

    rows: list[dict[str, Any]]
    table: list[dict[str, Any]]
    arrays: dict[str, Array]


def stream_lens(
    work: Work, name: str, vector: SteeringVector, texts: Sequence[Text], n_controls: int, listed: int = 2
) -> StreamLens:
    """The lens's log-probability of each generated token, by layer, and (of the first texts) its favourite token.

    Args:
        texts: prompts with a completion.
        listed: texts whose favourites go to the table.
    """
    base, steered, *random = _read(work, name, [None, vector, *work.controls(vector, n_controls)], texts, listed)
    controls = [part["logprob"] for part in random]
    rows = []
    for layer in range(work.n_layers):
        gain = (steered["logprob"][:, layer] - base["logprob"][:, layer]).tolist()
        control = (torch.stack(controls)[:, :, layer].mean(0) - base["logprob"][:, layer]).tolist()
        rows.append(
            row("lens log-probability of the generated token, steered - base (nats)", gain, control, work.seed,
                vector=name, layer=layer)
        )  # fmt: skip
    table = []
    for index, text in enumerate(texts[:listed]):
        for step in range(len(text.ids) - text.prompt_length):
            for layer in range(work.n_layers):
                place = {"vector": name, "text": text.id, "step": step, "layer": layer}
                token = work.readout.token(text.ids[text.prompt_length + step])
                table.append(place | {"generated": token} | _favourites(work, base, steered, index, layer, step))
    arrays = {}
    if texts:
        length = len(texts[0].ids) - texts[0].prompt_length
        labels = work.readout.tokens(list(texts[0].ids[texts[0].prompt_length :]))
        both = torch.stack([part["first"][:, :length] for part in (base, steered)])
        arrays[f"stream {name}"] = as_array(
            both, ("run", "layer", "token"), "lens log-probability of the generated token (nats), first prompt",
            run=["base", "steered"], token=labels,
        )  # fmt: skip
    return StreamLens(rows, table, arrays)


def _favourites(
    work: Work, base: dict[str, Any], steered: dict[str, Any], text: int, layer: int, step: int
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for label, part in (("base", base), ("steered", steered)):
        found[label] = work.readout.token(int(part["favourite"][text, layer, step]))
        found[f"{label}_probability"] = float(part["probability"][text, layer, step])
    return found


def _read(
    work: Work, name: str, vectors: Sequence[SteeringVector | None], texts: Sequence[Text], listed: int
) -> list[dict[str, Any]]:
    """For each vector, of each text and layer the mean log-probability; of the first texts each position's, and the
    favourites.
    """

    def compute() -> dict[str, Tensor]:
        layers, longest = work.n_layers, max((len(text.ids) - text.prompt_length for text in texts), default=0)
        shape = (len(vectors), listed, layers, longest)
        logprob = torch.zeros(len(vectors), len(texts), layers)
        first = torch.full((len(vectors), layers, longest), float("nan"))
        favourite, probability = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
        variants, done = [Variant(vector) for vector in vectors], 0
        for batch in work.batches(texts, copies=len(vectors)):
            found = run_variants(work.engine, batch, variants, work.outputs())
            for row_, index in enumerate(batch.indices):
                text = texts[index]
                targets = torch.tensor(text.ids[text.prompt_length :], device=work.loaded.base.device)
                for layer, point in enumerate(work.outputs()):
                    values, which = found.distinct(point)
                    hidden = torch.stack([batch.unpad(one, row_)[text.prompt_length - 1 : -1] for one in values])
                    of_targets = work.readout.log_probs(hidden, targets)[which].cpu()
                    logprob[:, index, layer] = of_targets.mean(-1)
                    if index == 0:
                        first[:, layer, : len(targets)] = of_targets
                    if index < listed:
                        for v in range(2):  # nobody asks for those of the controls
                            best = torch.log_softmax(work.readout.logits(hidden[which[v]]), -1).max(-1)
                            favourite[v, index, layer, : len(targets)] = best.indices.cpu()
                            probability[v, index, layer, : len(targets)] = best.values.exp().cpu()
            done += len(batch.texts)
            work.progress(f"lens of the stream, {name}", done, len(texts))
        return {"logprob": logprob, "first": first, "favourite": favourite, "probability": probability}

    part = work.part(f"streams {name}, {len(texts)} texts", compute)
    return [{key: value[v] for key, value in part.items()} for v in range(len(vectors))]
