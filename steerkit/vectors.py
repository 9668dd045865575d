"""SteeringVector: what training leaves behind, as a value that is saved, loaded, compared and put on a model.

A folder holds ``steering.safetensors``, ``steering_config.json`` (format version 1) and a card, ``README.md``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from steerkit import registry
from steerkit.errors import SteerkitError, VectorError
from steerkit.files import write_bytes
from steerkit.hookpoints import HookPoint

if TYPE_CHECKING:  # the model room lies above this one
    from transformers import PreTrainedModel

    from steerkit.interventions.base import Intervention
    from steerkit.models.steered import SteeredModel

FORMAT_VERSION = 1
CONFIG_FILE = "steering_config.json"
TENSOR_FILE = "steering.safetensors"
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


@dataclass(frozen=True, slots=True)
class VectorMetadata:
    """Where a vector comes from."""

    model: str = ""
    """The base model's hub id, plugin name or folder."""
    fingerprint: str = ""
    """``steerkit.models.fingerprint`` of the base; empty if unknown."""
    d_model: int = 0
    n_layers: int = 0
    receipts: Mapping[str, Any] = field(default_factory=dict)
    """How it was made, and what it does: command, data set, steps, seed, metrics... (JSON values)."""


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """The tensors of one intervention at each of its hook points (a value: methods return new ones)."""

    intervention: str
    """The plugin name in group ``steerkit.interventions``, or ``package.module:Class``."""
    tensors: Mapping[HookPoint, Mapping[str, Tensor]]
    """Hook point -> parameter name -> fp32 tensor on the CPU; for ``static``: {"vector": [D]}."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The intervention's settings, by which it is built again."""
    metadata: VectorMetadata = field(default_factory=VectorMetadata)

    def __post_init__(self) -> None:
        if not self.tensors:
            raise VectorError("A steering vector needs at least one hook point, got none.")
        owned = {
            point: {name: t.detach().to("cpu", torch.float32, copy=True) for name, t in sorted(tensors.items())}
            for point, tensors in sorted(self.tensors.items())
        }
        for point, tensors in owned.items():
            for name, tensor in tensors.items():
                if not bool(torch.isfinite(tensor).all()):
                    raise VectorError(f"{point} {name}: NaN or infinite numbers; use an earlier checkpoint.")
        object.__setattr__(self, "tensors", owned)

    # -- from and to models

    @classmethod
    def from_interventions(
        cls,
        intervention: str,
        interventions: Mapping[HookPoint, Intervention],
        metadata: VectorMetadata | None = None,
    ) -> SteeringVector:
        """Copy the parameters of trained interventions.

        Args:
            intervention: the name under which they are built again.
            interventions: ``SteeredModel.interventions``.
            metadata: where they come from; ``d_model`` is filled in.
        """
        if not interventions:
            raise VectorError("A steering vector needs at least one hook point, got none.")
        first = next(iter(interventions.values()))
        metadata = replace(metadata or VectorMetadata(), d_model=first.d_model)
        tensors = {point: item.state_dict() for point, item in interventions.items()}
        return cls(intervention, tensors, dict(first.settings), metadata)

    def to_interventions(self) -> dict[HookPoint, Intervention]:
        """Interventions with these parameters, trainable.

        Raises:
            PluginError: if the intervention's plugin is not installed.
            VectorError: if the tensors are not the plugin's parameters.
        """
        target = registry.resolve("interventions", self.intervention)
        built: dict[HookPoint, Intervention] = target.build(list(self.tensors), self.metadata.d_model, **self.settings)
        for point, intervention in built.items():
            try:
                intervention.load_state_dict(dict(self.tensors[point]))
            except RuntimeError as error:
                raise VectorError(
                    f"{point} does not fit {self.intervention!r}: {' '.join(str(error).split())}"
                ) from None
        return built

    def steer(self, base: PreTrainedModel, layout: Any = None) -> SteeredModel:
        """``base`` frozen and steered by this vector.

        Raises:
            VectorError: if it does not fit (``check_fits``).
        """
        from steerkit.models.steered import SteeredModel

        self.check_fits(base)
        return SteeredModel(base, self.to_interventions(), layout)

    def check_fits(self, base: PreTrainedModel, same_base: bool = False) -> None:
        """Refuse a model of another width, or too few layers.

        Args:
            same_base: also refuse a model of the right shape but with other weights (transfer wants those).

        Raises:
            VectorError: naming what differs.
        """
        config = base.config.get_text_config()
        if config.hidden_size != self.metadata.d_model:
            raise VectorError(
                f"The vector is {self.metadata.d_model} wide (trained on {self.metadata.model or 'an unnamed model'}), "
                f"the model {config.hidden_size}: use one trained on a model of this width."
            )
        top = max(self.tensors)
        if top.layer >= config.num_hidden_layers:
            raise VectorError(f"{top} is outside the model: it has layers 0 to {config.num_hidden_layers - 1}.")
        if same_base and self.metadata.fingerprint:
            from steerkit.models.load import fingerprint

            if (got := fingerprint(base)) != self.metadata.fingerprint:
                raise VectorError(
                    f"The vector was trained on {self.metadata.model or 'another model'} (fingerprint "
                    f"{self.metadata.fingerprint}), this model's fingerprint is {got}: load that model."
                )

    # -- numbers

    def norms(self) -> dict[str, float]:
        """Hook point -> L2 norm over all its numbers, in the units of the residual stream (for ``static``)."""
        return {
            str(point): math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))
            for point, tensors in self.tensors.items()
        }

    def random_like(self, seed: int) -> SteeringVector:
        """The control: random directions, each tensor with the norm of the one that it replaces."""
        generator = torch.Generator().manual_seed(seed)

        def control(tensor: Tensor) -> Tensor:
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            return (noise * (tensor.double().norm() / noise.norm())).float()

        return self._with({p: {n: control(t) for n, t in tensors.items()} for p, tensors in self.tensors.items()})

    def _with(self, tensors: Mapping[HookPoint, Mapping[str, Tensor]]) -> SteeringVector:
        return replace(self, tensors=tensors)

    # -- files

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the folder. A reader, or a crash, at any moment finds the old vector or the new one, never a mixture.

        Raises:
            VectorError: if the folder can't be written.
        """
        folder = Path(folder)
        flat = {f"{p}/{name}": t.contiguous() for p, tensors in self.tensors.items() for name, t in tensors.items()}
        config = json.dumps(self._config(_digest(flat)), indent=2, sort_keys=True, default=str)
        try:
            # The tensors' header carries the config too, and this one file is the vector: replacing it is the commit.
            write_bytes(folder / TENSOR_FILE, save(flat, metadata={"format": "pt", "steering_config": config}))
            write_bytes(folder / CONFIG_FILE, (config + "\n").encode())
            write_bytes(folder / "README.md", _card(self).encode())
        except SteerkitError as error:
            raise VectorError(f"Can't save the vector to {folder}: {error}") from error
        return folder

    @classmethod
    def from_pretrained(cls, source: str | Path) -> SteeringVector:
        """Read a folder, or a hub repository ``org/name``.

        Raises:
            VectorError: if a file is missing, damaged, of another format version, or has numbers that are not finite.
        """
        folder = _fetch(str(source))
        for name in (CONFIG_FILE, TENSOR_FILE):
            if not (folder / name).is_file():
                raise VectorError(f"{source} has no {name}: a vector is a folder written by save_pretrained.")
        text = (folder / CONFIG_FILE).read_text(encoding="utf-8", errors="replace")
        config = _parse_config(text, f"{source}/{CONFIG_FILE}")
        try:
            with safe_open(folder / TENSOR_FILE, framework="pt") as file:
                header = file.metadata() or {}
                flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise VectorError(f"{source}/{TENSOR_FILE} is damaged ({error}): copy it again.") from error
        digest = _digest(flat)
        if config["digest"] != digest and "steering_config" in header:
            # A save was cut after its tensors were in place: their own copy of the config is the new one.
            config = _parse_config(header["steering_config"], f"{source}/{TENSOR_FILE}")
        if config["digest"] != digest:
            raise VectorError(f"{source}/{TENSOR_FILE} is damaged (its numbers are not those saved): copy it again.")
        return _from_config(config, flat, str(source))

    def _config(self, digest: str) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "intervention": self.intervention,
            "settings": dict(self.settings),
            "hook_points": [str(point) for point in self.tensors],
            "digest": digest,
            **asdict(replace(self.metadata, receipts=_finite(dict(self.metadata.receipts)))),
        }


def _from_config(config: dict[str, Any], flat: Mapping[str, Tensor], source: str) -> SteeringVector:
    tensors: dict[HookPoint, dict[str, Tensor]] = {}
    try:
        for key, tensor in flat.items():
            point, _, name = key.partition("/")
            tensors.setdefault(HookPoint.parse(point), {})[name] = tensor
        metadata = VectorMetadata(**{name: config[name] for name in VectorMetadata.__dataclass_fields__})
        return SteeringVector(config["intervention"], tensors, config["settings"], metadata)
    except KeyError as error:
        raise VectorError(f"{source}/{CONFIG_FILE} lacks {error}: save the vector again.") from None
    except SteerkitError as error:
        raise VectorError(f"{source}: {error}") from None


def _parse_config(text: str, place: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise VectorError(f"{place} is not JSON ({error}): copy it again.") from None
    if not isinstance(config, dict) or config.get("format_version") != FORMAT_VERSION:
        got = config.get("format_version") if isinstance(config, dict) else type(config).__name__
        raise VectorError(f"{place}: expected format_version {FORMAT_VERSION}, got {got}: update steerkit.")
    if not isinstance(config.get("digest"), str):
        raise VectorError(f"{place} lacks 'digest': save the vector again.")
    return config


def _fetch(source: str) -> Path:
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    if not _HUB_ID.match(source):
        raise VectorError(f"No vector at {source!r}: give a folder written by save_pretrained, or a hub id (org/name).")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=[CONFIG_FILE, TENSOR_FILE, "README.md"]))
    except Exception as error:  # the HTTP library, and so its errors, changes with huggingface_hub's version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise VectorError(f"No folder {source!r}, and the hub did not give it ({reason}).") from error


def _digest(flat: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(flat):
        tensor = flat[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _finite(value: Any) -> Any:
    """NaN is not JSON, and a receipt must not cost the vector: null instead."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _card(vector: SteeringVector) -> str:
    metadata = vector.metadata
    front = {"library_name": "steerkit", "tags": ["steering-vector", "steerkit", vector.intervention]}
    if _HUB_ID.match(metadata.model):
        front["base_model"] = metadata.model
    if "dataset" in metadata.receipts:
        front["datasets"] = [str(metadata.receipts["dataset"])]
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---"]
    lines += [f"# Steering vector ({vector.intervention}) for {metadata.model or 'an unnamed model'}", ""]
    lines += [f"Width {metadata.d_model}, base fingerprint `{metadata.fingerprint or 'unknown'}`.", ""]
    lines += ["```python", "from steerkit.vectors import SteeringVector", ""]
    lines += ['model = SteeringVector.from_pretrained("this folder").steer(base)', "```", ""]
    lines += ["| hook point | norm |", "|---|---|"]
    lines += [f"| {point} | {norm:.4g} |" for point, norm in vector.norms().items()]
    if metadata.receipts:
        lines += ["", "## Receipts", "", "| | |", "|---|---|"]
        for key, value in metadata.receipts.items():
            text = value if isinstance(value, str) else json.dumps(_finite(value), default=str)
            escaped = text.replace("|", "\\|").replace("\n", " ")
            lines.append(f"| {key} | `{escaped}` |")
    return "\n".join(lines) + "\n"
