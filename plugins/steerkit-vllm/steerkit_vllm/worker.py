"""What runs inside vLLM's workers (``worker_extension_cls`` of its engine arguments)."""

from __future__ import annotations

from typing import Any

import torch


class BiasLoader:
    """Mixed into vLLM's worker class, so that ``LLM.collective_rpc`` finds the method by its name."""

    model_runner: Any

    def steerkit_load_biases(self, biases: dict[str, bytes], dtype: str) -> int:
        """Overwrite biases in place, by the model's own ``load_weights``.

        Args:
            biases: parameter name, as in the checkpoint -> [D] fp32 as bytes. Not tensors: vLLM's messages between
                processes carry plain values safely, and a tensor in untyped arguments would need insecure pickling.
            dtype: of the model's weights.

        Returns:
            How many were given.
        """
        weights = [
            (name, torch.frombuffer(bytearray(raw), dtype=torch.float32).to(getattr(torch, dtype)))
            for name, raw in biases.items()
        ]
        self.model_runner.model.load_weights(weights=weights)
        return len(weights)
