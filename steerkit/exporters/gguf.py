"""``gguf``: llama.cpp's control vector file.

llama.cpp adds tensor ``direction.k`` to the residual stream at the output of block k, blocks counted from 0
(``build_cvec(cur, il)`` behind the last addition of block il in src/models/*.cpp; ``llama_adapter_cvec::apply`` puts
row k - 1 of the buffer to block k), at every position. It has none for block 0: its loader refuses ``direction.0``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch

from steerkit.errors import SteerkitError, VectorError
from steerkit.exporters.base import Comparison, Exporter
from steerkit.exporters.linear import linear_map, prove
from steerkit.hookpoints import HookPoint
from steerkit.models import LoadedModel
from steerkit.vectors import SteeringVector

ARCHITECTURE = "controlvector"
_HINTS = {"mistral": "llama", "mixtral": "llama", "gemma3_text": "gemma3", "gpt_neox": "gptneox"}
"""Our family names that llama.cpp spells otherwise; its loader does not read the hint."""


@final
class Gguf(Exporter):
    """Constant vectors at block outputs, from block 1 on."""

    name = "gguf"
    form: ClassVar[Literal["folder", "file"]] = "file"

    def write(self, vector: SteeringVector, loaded: LoadedModel, place: Path) -> str:
        rows = self.directions(vector, loaded)
        library = _library()
        writer = library.GGUFWriter(str(place), ARCHITECTURE)
        family = loaded.base.config.get_text_config().model_type
        writer.add_string(f"{ARCHITECTURE}.model_hint", _HINTS.get(family, family))
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(rows))
        for layer, row in rows.items():
            writer.add_tensor(f"direction.{layer}", row)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return f"a llama.cpp control vector for blocks {', '.join(map(str, rows))}"

    def compare(self, vector: SteeringVector, loaded: LoadedModel, place: Path) -> Comparison:
        reader = _library().GGUFReader(str(place))
        rows = self.directions(vector, loaded)
        found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
        same = set(found) == {f"direction.{layer}" for layer in rows}
        worst = (
            max((float(np.abs(found[f"direction.{layer}"] - row).max()) for layer, row in rows.items()), default=0.0)
            if same
            else float("nan")
        )
        return Comparison("numbers that the gguf library reads back", worst, 0.0)

    def directions(self, vector: SteeringVector, loaded: LoadedModel) -> dict[int, Any]:
        """Block -> [D] float32, what is added at its output.

        Raises:
            VectorError: for what llama.cpp can't add: something at block 0, before the MLP, or not constant.
            ModelError: for a down_proj bias that does not reach the residual stream as it is.
        """
        static = self.constants(vector)
        if static.tensors and min(static.tensors).layer == 0:
            raise VectorError(
                "gguf can't express a change at block 0: llama.cpp's control vectors begin at block 1. "
                "Export the others alone (vector.at(...)), or train without layer 0."
            )
        rows: dict[int, torch.Tensor] = {}
        for point, tensors in static.tensors.items():
            if point.site == "attn_output":
                raise VectorError(f"gguf can't express {point}: llama.cpp adds control vectors at block outputs only.")
            row = tensors["vector"]
            if point.site == "down_proj":
                # Behind a norm it would not be a constant of the block's output.
                behind = linear_map(loaded, HookPoint(point.layer, "mlp_output"))
                prove(loaded, [behind])
                row = row / behind.gain
            rows[point.layer] = rows[point.layer] + row if point.layer in rows else row
        return {layer: row.numpy().astype(np.float32) for layer, row in rows.items()}


def _library() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise SteerkitError(f"gguf files need the package gguf ({error}): pip install gguf.") from None
    return gguf
