"""A base that does not fit one device, spread over several: ``trainer.strategy: sharded_base``.

Lightning's ModelParallelStrategy with torch's ``fully_shard`` (FSDP2) on each block. The base is frozen, so nothing of
it is reduced or saved; the interventions stay whole on every device. Each forward pass gathers a block's weights from
all processes, so that all must make the same passes: they take the same problems (``Processes.mirrored``), and the
first one's rewards and gradients count. It saves memory, not time. Embeddings, final norm and unembedding are not
spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.strategies.strategy import Strategy

from steerkit.errors import SteerkitError
from steerkit.rollouts.fast_sampler import FastSampler
from steerkit.rollouts.transformers_sampler import TransformersSampler

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from steerkit.models import SteeredModel
    from steerkit.rollouts import Sampler

STRATEGY = "sharded_base"


class ShardedBase(ModelParallelStrategy):
    """All processes hold a part of each block; checkpoints hold what is trained, as with every other strategy."""

    mirrored = True

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.world_size, 1
        super().setup_environment()

    # Lightning's own would gather the frozen base for each checkpoint.

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return Strategy.lightning_module_state_dict(self)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return Strategy.optimizer_state(self, optimizer)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        Strategy.load_optimizer_state_dict(self, checkpoint)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)


StrategyRegistry.register(STRATEGY, ShardedBase, description="the frozen base spread over the devices (FSDP2)")


def spreads(trainer: L.Trainer | None) -> bool:
    """Whether this trainer's strategy is ``ShardedBase``."""
    return trainer is not None and isinstance(trainer.strategy, ShardedBase)


def loading_device(trainer: L.Trainer | None, default: torch.device, dtype: str) -> torch.device:
    """Where the base is loaded to: the strategy's device, but the CPU if the base is to be spread.

    Args:
        default: where there is no trainer.
        dtype: the module's setting; ``auto`` is decided by the device.

    Raises:
        SteerkitError: if a base to be spread over accelerators would be read as float32.
    """
    if trainer is None:
        return default
    if not spreads(trainer):
        return trainer.strategy.root_device
    if trainer.strategy.root_device.type != "cpu" and dtype == "auto":
        raise SteerkitError("A spread base is read on the CPU first: set model.dtype, for example to bfloat16.")
    return torch.device("cpu")


def check_shardable(model: SteeredModel, sampler: Sampler) -> None:
    """Refuse what needs whole weights.

    Raises:
        SteerkitError: for a baseline that trains weights, or a sampler that reads them.
    """
    if model.adapter is not None:
        raise SteerkitError(f"{STRATEGY} spreads a frozen base: a baseline that trains weights can't be spread.")
    if type(sampler) not in (TransformersSampler, FastSampler):
        raise SteerkitError(
            f"{STRATEGY} needs sampler: fast or transformers, whose passes are the same in all processes."
        )


def shard(model: SteeredModel, mesh: DeviceMesh) -> None:
    """Spread the blocks of ``model``'s base over the mesh, in place.

    Args:
        mesh: one-dimensional.
    """
    from torch.distributed.fsdp import fully_shard

    for block in model.layout.block_list(model.base):
        # Each block is a root of its own, and a root keeps its gathered weights unless told otherwise.
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # The gathered weights' storage is made by the first pass. Samplers run in inference mode, where it would be
    # storage that no gradient may flow through.
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    with torch.no_grad(), model.disabled():
        model.hidden_states(ids)
