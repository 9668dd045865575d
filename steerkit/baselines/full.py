"""Full fine-tuning: the one arm that keeps the base's weights aside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from steerkit.baselines.base import WeightAdapter
from steerkit.files import replace_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@final
class Full(WeightAdapter):
    """Every weight of the base is trained, tied ones once.

    The trained copy is fp32, whatever the base's dtype: a learning rate of 1e-6 is lost in 16 bits. In a scope the
    base's modules hold the trained tensors (cast to the base's dtype), outside the frozen ones.
    """

    folder = "model"

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        base.requires_grad_(False)
        self._places: dict[str, list[tuple[nn.Module, str]]] = {}
        self._frozen: dict[str, nn.Parameter] = {}
        self._cast: dict[str, tuple[int, Tensor]] = {}
        trained: dict[str, nn.Parameter] = {}
        names: dict[int, str] = {}
        for path, module in base.named_modules():
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                key = names.setdefault(id(parameter), f"{path}.{name}".replace(".", "/"))
                if key not in trained:
                    trained[key] = nn.Parameter(parameter.detach().float().clone())
                    self._frozen[key], self._places[key] = parameter, []
                self._places[key].append((module, name))
        self.weights = nn.ParameterDict(trained)

    @classmethod
    def build(cls, base: PreTrainedModel) -> Full:
        """All weights of ``base``, which is frozen."""
        return cls(base)

    def enable(self) -> None:
        for key, places in self._places.items():
            tensor = self._working_copy(key)
            for module, name in places:
                # Past nn.Module's type check, as torch.func.functional_call does: a cast of a parameter is a plain
                # tensor.
                module._parameters[name] = tensor  # type: ignore[assignment]

    def disable(self) -> None:
        for key, places in self._places.items():
            for module, name in places:
                module._parameters[name] = self._frozen[key]

    def _working_copy(self, key: str) -> Tensor:
        parameter, dtype = self.weights[key], self._frozen[key].dtype
        if parameter.dtype == dtype:
            return parameter
        if torch.is_grad_enabled():
            return parameter.to(dtype)
        version, copy = self._cast.get(key, (-1, parameter))
        if version != parameter._version:  # a cast for each decoded token would cost as much as the token
            copy = parameter.detach().to(dtype)
            self._cast[key] = (parameter._version, copy)
        return copy

    def kept_aside_bytes(self) -> int:
        """The frozen weights."""
        return sum(p.numel() * p.element_size() for p in self._frozen.values())

    def save(self, folder: Path, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model: str) -> None:
        """A Hugging Face checkpoint, in the base's dtype."""

        def write(place: Path) -> None:
            with torch.no_grad():
                self.enable()
                try:
                    base.save_pretrained(place)
                finally:
                    self.disable()
            tokenizer.save_pretrained(place)

        replace_folder(folder, write)
