"""LoRA, by PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn

from steerkit.baselines.base import WeightAdapter
from steerkit.errors import SteerkitError
from steerkit.files import replace_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@final
class Lora(WeightAdapter):
    """PEFT's LoRA on any linear maps of the base.

    PEFT puts its layers into the base; while the adapter is off they pass through to the original ones.
    """

    keeps_weights = True

    def __init__(
        self,
        base: PreTrainedModel,
        rank: int = 16,
        alpha: float | None = None,
        targets: str | list[str] = "all-linear",
        seed: int = 0,
    ) -> None:
        """
        Args:
            rank: r.
            alpha: LoRA's scale is alpha / r; default alpha = 2 r (PEFT users' habit), except alpha = 1 at r = 1.
            targets: PEFT's ``target_modules``: names such as ``down_proj``, or ``all-linear``.
            seed: of the start of lora_A.

        Raises:
            SteerkitError: if the base has no such module.
        """
        super().__init__()
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        base.requires_grad_(False)
        alpha = alpha if alpha is not None else (1.0 if rank == 1 else 2.0 * rank)
        self.config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                inject_adapter_in_model(self.config, base)
            except ValueError as error:
                raise SteerkitError(f"LoRA can't be placed: {' '.join(str(error).split())[:300]}") from None
        self._layers: list[Any] = [module for module in base.modules() if isinstance(module, BaseTunerLayer)]
        # The same parameters under names of our own: checkpoints hold these, the base's state is never saved.
        self.weights = nn.ParameterDict(
            {name.replace(".", "/"): p for name, p in base.named_parameters() if ".lora_" in name}
        )
        for parameter in self.weights.values():
            parameter.data = parameter.data.float()  # whatever the base's dtype, as for vectors
        self.disable()

    @classmethod
    def build(cls, base: PreTrainedModel, **settings: Any) -> Lora:
        """LoRA layers put into ``base``, which is frozen."""
        return cls(base, **settings)

    def enable(self) -> None:
        for layer in self._layers:
            layer._disable_adapters = False

    def disable(self) -> None:
        for layer in self._layers:
            layer._disable_adapters = True

    def save(self, folder: Path, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model: str) -> None:
        """A PEFT adapter folder: ``PeftModel.from_pretrained(base, folder)`` reads it."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        state = {
            # PEFT's files carry the prefix of its wrapper.
            f"base_model.model.{name}": tensor.detach().cpu().contiguous()
            for name, tensor in get_peft_model_state_dict(base).items()
        }
        self.config.base_model_name_or_path = model

        def write(place: Path) -> None:
            save_file(state, place / "adapter_model.safetensors", metadata={"format": "pt"})
            self.config.save_pretrained(str(place))

        replace_folder(folder, write)
