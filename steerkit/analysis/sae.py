"""Sparse autoencoders: one record for what is trained here and for what others published.

Gao et al., "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093): f = TopK(W_enc (x - b_dec) + b_enc),
x' = f W_dec + b_dec.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from steerkit.errors import SteerkitError

Activation = Literal["relu", "topk", "jumprelu"]
NAMES = ("w_enc", "b_enc", "w_dec", "b_dec")


@dataclass(frozen=True)
class Sae:
    """An encoder and a decoder of the residual stream (or of what a vector changes in it)."""

    w_enc: Tensor
    """[D, F] fp32, F features."""
    b_enc: Tensor
    """[F]"""
    w_dec: Tensor
    """[F, D], the features' directions."""
    b_dec: Tensor
    """[D]"""
    activation: Activation = "topk"
    k: int = 0
    """Features that may be active at one position, for ``topk``."""
    threshold: Tensor | None = None
    """[F], for ``jumprelu``."""
    centres: bool = True
    """The encoder takes ``b_dec`` off first."""
    by_norm: bool = False
    """Activations are in units of the decoder rows' norms, and chosen by size."""
    origin: str = ""

    @property
    def width(self) -> int:
        """D"""
        return int(self.w_enc.shape[0])

    @property
    def size(self) -> int:
        """F"""
        return int(self.w_enc.shape[1])

    def encode(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., F] activations in units of the decoder's rows, 0 where a feature is not active."""
        x = x.to(self.w_enc.dtype)
        before = (x - self.b_dec if self.centres else x) @ self.w_enc + self.b_enc
        norms = self.w_dec.norm(dim=-1)
        before = before * norms if self.by_norm else before
        if self.activation == "topk":
            best = before.topk(min(self.k, self.size), dim=-1)
            found = torch.zeros_like(before).scatter(-1, best.indices, best.values.clamp_min(0))
        elif self.activation == "jumprelu":
            found = before * (before > (0.0 if self.threshold is None else self.threshold))
        else:
            found = before.clamp_min(0)
        return found / norms.clamp_min(1e-30) if self.by_norm else found

    def decode(self, activations: Tensor) -> Tensor:
        """[..., F] -> [..., D]"""
        return activations @ self.w_dec + self.b_dec

    def to(self, device: torch.device) -> Sae:
        """The same on another device."""
        moved = {name: getattr(self, name).to(device) for name in NAMES}
        threshold = None if self.threshold is None else self.threshold.to(device)
        rest = {n: getattr(self, n) for n in ("activation", "k", "centres", "by_norm", "origin")}
        return Sae(**moved, threshold=threshold, **rest)


def load_sae(source: str, width: int) -> Sae:
    """Read a published SAE.

    Args:
        source: a folder, or ``org/name:folder`` of the hub: SAELens's files (``cfg.json``,
            ``sae_weights.safetensors``), sparsify's (``cfg.json``, ``sae.safetensors``), or a finished ``diff_sae``.
        width: D of the model.

    Raises:
        SteerkitError: if it can't be read, is of a kind that is not supported, or of another width.
    """
    folder = _fetch(source)
    try:
        if (folder / "analysis.json").is_file():
            sae = _from_analysis(folder)
        else:
            config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
            if (folder / "sae_weights.safetensors").is_file():
                sae = _from_saelens(_tensors(folder / "sae_weights.safetensors"), config, source)
            else:
                sae = _from_sparsify(_tensors(folder / "sae.safetensors"), config, source)
    except FileNotFoundError as error:
        raise SteerkitError(f"{source} is no SAE: there is no {error.filename or error}.") from None
    except (KeyError, ValueError, OSError) as error:
        raise SteerkitError(f"{source}: damaged SAE ({' '.join(str(error).split())}).") from None
    shapes = {"w_enc": (sae.width, sae.size), "b_enc": (sae.size,), "w_dec": (sae.size, sae.width),
              "b_dec": (sae.width,)}  # fmt: skip
    for name, shape in shapes.items():
        if tuple(getattr(sae, name).shape) != shape:
            raise SteerkitError(f"{source}: damaged SAE ({name} is {list(getattr(sae, name).shape)}, expected "
                                f"{list(shape)}).")  # fmt: skip
    if sae.width != width:
        raise SteerkitError(f"{source} reads {sae.width} numbers, and the model's residual stream has {width}: give an "
                            "SAE that was trained on this model.")  # fmt: skip
    return sae


def _fetch(source: str) -> Path:
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    repo, _, inside = source.partition(":")
    if repo.count("/") != 1 or source.startswith((".", "/", "~")):
        raise SteerkitError(f"No SAE {source!r}: give a folder, or org/name:folder of the hub.")
    from huggingface_hub import snapshot_download

    try:
        patterns = [f"{inside}/*" if inside else "*.json", "*.safetensors" if not inside else f"{inside}/*"]
        return Path(snapshot_download(repo, allow_patterns=patterns)) / inside
    except Exception as error:  # the hub's errors change with its HTTP library
        reason = str(error).strip().splitlines()[0]
        raise SteerkitError(f"No SAE {source!r}: no such folder, and the hub gave none ({reason}).") from None


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(2, "", str(path.name))
    try:
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _from_saelens(tensors: Mapping[str, Tensor], config: Mapping[str, Any], source: str) -> Sae:
    """SAELens 3 to 6: ``architecture`` standard, topk or jumprelu; older topk ones are standard with
    ``activation_fn_str`` topk."""
    kind = str(config.get("architecture", "standard"))
    named = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    settings = config.get("activation_fn_kwargs") or {}
    if kind == "standard" and named == "topk":
        kind = "topk"
    kinds: dict[str, Activation] = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu"}
    if kind not in kinds or (kind == "standard" and named != "relu"):
        raise SteerkitError(f"{source}: SAEs of architecture {kind!r} ({named}) are not supported: standard, topk and "
                            "jumprelu are.")  # fmt: skip
    scaled = config.get("normalize_activations", "none") or "none"
    if scaled not in ("none", "expected_average_only_in"):  # the latter is folded into the weights when saved
        raise SteerkitError(f"{source}: SAEs that normalise what they read ({scaled}) are not supported.")
    return Sae(
        tensors["W_enc"], tensors["b_enc"], tensors["W_dec"], tensors["b_dec"], kinds[kind],
        int(config.get("k") or settings.get("k") or 0) if kind == "topk" else 0,
        tensors["threshold"] if kind == "jumprelu" else None,
        bool(config.get("apply_b_dec_to_input", True)), bool(config.get("rescale_acts_by_decoder_norm", False)),
        str(config.get("hook_name") or (config.get("metadata") or {}).get("hook_name") or ""),
    )  # fmt: skip


def _from_sparsify(tensors: Mapping[str, Tensor], config: Mapping[str, Any], source: str) -> Sae:
    if config.get("activation", "topk") != "topk" or config.get("transcode") or config.get("skip_connection"):
        raise SteerkitError(f"{source}: of sparsify's coders only plain topk SAEs are supported.")
    weights = tensors["encoder.weight"].T.contiguous()
    return Sae(weights, tensors["encoder.bias"], tensors["W_dec"], tensors["b_dec"], "topk", int(config["k"]))


def _from_analysis(folder: Path) -> Sae:
    from steerkit.analysis.result import AnalysisResult

    result = AnalysisResult.load(folder)
    w_enc, b_enc, w_dec, b_dec = (result.arrays[f"sae {name}"].values for name in NAMES)
    return Sae(w_enc, b_enc, w_dec, b_dec, "topk", int(result.settings["k"]))
