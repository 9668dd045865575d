"""PromptDataModule: batches of problems whose order is a pure function of (seed, step)."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning as L
import torch
from torch.utils.data import DataLoader, Sampler

from steerkit.datasets import dataset_name, open_dataset, subset
from steerkit.errors import DataError, SteerkitError
from steerkit.rollouts import EncodedPrompt
from steerkit.training.distributed import Processes
from steerkit.types import Example

if TYPE_CHECKING:
    from steerkit.training.module import SteeringModule

log = logging.getLogger(__name__)

_EVALUATION_BATCH = 64
"""Problems that a validation samples at once."""


class StepBatches(Sampler[list[int]]):
    """Batch s of a run: the s-th slice of seeded permutations laid end to end.

    So the data position is the step number alone: a resumed run goes on where it stopped, and no epoch boundary
    leaves a smaller batch.

    Args:
        n_items: problems.
        batch_size: problems a batch, of all processes together.
        n_batches: batches of one whole pass over the loader.
        seed: of the permutations.
        first_step: called when a pass begins; the run's step number at that time. A pass that begins in the middle
            ends where the whole one would have.
        rank: this process takes every ``size``-th problem of a batch, from this one on.
        size: number of processes.
    """

    def __init__(
        self,
        n_items: int,
        batch_size: int,
        n_batches: int,
        seed: int,
        first_step: Callable[[], int] = lambda: 0,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self.n_items, self.batch_size, self.n_batches = n_items, batch_size, n_batches
        self.seed, self.first_step, self.rank, self.size = seed, first_step, rank, size
        self._cached: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[list[int]]:
        first = self.first_step()
        end = (first // self.n_batches + 1) * self.n_batches
        for step in range(first, end):
            yield [self._item(step * self.batch_size + k) for k in range(self.rank, self.batch_size, self.size)]

    def _item(self, position: int) -> int:
        epoch, offset = divmod(position, self.n_items)
        if self._cached[0] != epoch:
            order = list(range(self.n_items))
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            self._cached = (epoch, order)
        return self._cached[1][offset]


class SideBySide(Sampler[list[int]]):
    """Batches of a sweep: those of each policy, one behind the other.

    Args:
        parts: the batches of each policy.
        n_items: problems; policy p's stand from p x ``n_items`` on.
    """

    def __init__(self, parts: Sequence[StepBatches], n_items: int) -> None:
        self.parts, self.n_items = parts, n_items

    def __len__(self) -> int:
        return len(self.parts[0])

    def __iter__(self) -> Iterator[list[int]]:
        for batches in zip(*self.parts, strict=True):
            yield [number * self.n_items + item for number, items in enumerate(batches) for item in items]


def screened(examples: list[Example], path: str) -> list[Example]:
    """The examples that the samples in ``path`` solve sometimes: 0 < success rate < 1 over samples above temperature 0.

    Raises:
        DataError: if the file can't be read, or no example is left.
    """
    from pyarrow import ArrowException, parquet

    try:
        samples = parquet.read_table(path, columns=["id", "temperature", "verdict"]).to_pylist()
    except (OSError, ArrowException) as error:
        raise DataError(f"Can't read the screen {path}: {str(error).splitlines()[0]}") from None
    verdicts: dict[str, set[bool]] = {}
    for sample in samples:
        if sample["temperature"] > 0 and sample["verdict"] != "fault":
            verdicts.setdefault(sample["id"], set()).add(sample["verdict"] == "correct")
    kept = [example for example in examples if len(verdicts.get(example.id, ())) == 2]
    log.info("Screen: %d of %d screened problems are solved sometimes, but not always.", len(kept), len(verdicts))
    if not kept:
        raise DataError(f"The screen {path} leaves no training problem: evaluate --split train with k of 8 or more.")
    return kept


class PromptDataModule(L.LightningDataModule):
    """Problems for training, validation and test.

    Args:
        dataset: a plugin of group ``steerkit.datasets`` (``arithmetic``), ``{name: ..., **settings}``, a file or folder
            of records, or a hub id.
        data_root: folder in which relative paths are looked up.
        prompts_per_step: problems in one training batch (each gets ``samples_per_prompt`` rollouts).
        n_validation: problems of the validation split used while training; null uses all.
        n_test: problems of the test split used by ``test`` and by the report; null uses all.
        screen: ``samples.parquet`` of an evaluation of the base on the training split: problems that it always or
            never solves are left out, for they carry no gradient.
        long_prompts: what happens to a training prompt that doesn't fit the context: ``drop`` (counted) or ``refuse``.
        test_dataset: where the test split comes from, if not from ``dataset``: another set, or a fresh draw
            (``{name: arithmetic, seed: 7}``).
        seed: order of the training problems.
    """

    def __init__(
        self,
        dataset: str | dict[str, Any] = "arithmetic",
        data_root: str | None = None,
        prompts_per_step: int = 16,
        n_validation: int | None = 64,
        n_test: int | None = 256,
        screen: str | None = None,
        long_prompts: Literal["refuse", "drop"] = "drop",
        test_dataset: str | dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if prompts_per_step < 1:
            raise SteerkitError(f"prompts_per_step must be at least 1, got {prompts_per_step}.")
        self.spec, self.data_root = dataset, data_root
        self.prompts_per_step, self.n_validation, self.n_test = prompts_per_step, n_validation, n_test
        self.screen, self.test_spec = screen, test_dataset
        self.long_prompts: Literal["refuse", "drop"] = long_prompts
        self.seed = seed
        self._datasets: dict[str, Any] = {}
        self._loaded: dict[str, list[Example]] = {}

    @property
    def set_name(self) -> str:
        """What results call the set that is trained on."""
        return dataset_name(self.spec)

    def split_name(self, split: str) -> str:
        """What results call the set that a split comes from."""
        return self.set_name if split != "test" or self.test_spec is None else dataset_name(self.test_spec)

    def examples(self, split: Literal["train", "validation", "test"]) -> list[Example]:
        """All problems of a split, at most ``n_validation`` / ``n_test`` of the last two.

        Raises:
            DataError: if the data set can't be read, or the split is empty.
        """
        if split not in self._loaded:
            role = "test" if split == "test" and self.test_spec is not None else "train"
            if role not in self._datasets:
                spec = self.test_spec if role == "test" else self.spec
                self._datasets[role] = open_dataset(spec, self.data_root)  # type: ignore[arg-type]
            found = self._datasets[role].load(split)
            if not found:
                raise DataError(f"{self.set_name}: the {split} split is empty.")
            if split == "train" and self.screen is not None:
                found = screened(found, self.screen)
            limit = {"train": None, "validation": self.n_validation, "test": self.n_test}[split]
            self._loaded[split] = subset(found, limit)
        return self._loaded[split]

    def _prompts(self, split: Literal["train", "validation", "test"]) -> list[EncodedPrompt]:
        from steerkit.training.module import SteeringModule

        trainer = self.trainer
        assert trainer is not None
        module = cast(SteeringModule, trainer.lightning_module)
        return module.encode(self.examples(split), self.long_prompts)

    def train_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        assert trainer is not None
        prompts = self._prompts("train")
        if len(prompts) < self.prompts_per_step:
            raise DataError(
                f"{self.set_name} has {len(prompts)} training problems, fewer than prompts_per_step "
                f"{self.prompts_per_step}: a problem would stand twice in a batch. Lower prompts_per_step."
            )
        n_batches = -(-len(prompts) // self.prompts_per_step)
        if trainer.max_epochs in (None, -1) and trainer.max_steps > 0:
            # One long epoch: the progress bar then counts to the end of the run and knows the time left.
            n_batches = trainer.max_steps
        processes = self._processes()
        self.check_shares(processes.shares)
        members = cast("SteeringModule", trainer.lightning_module).members
        if len(members) > 1 and processes.size > 1:
            raise SteerkitError("A sweep runs on one device: set trainer.devices to 1, or run its parts as runs.")
        batches = [
            StepBatches(
                len(prompts),
                self.prompts_per_step,
                n_batches,
                int(member.axes.get("seed", self.seed)),
                lambda: trainer.global_step,
                processes.rank if processes.shares > 1 else 0,
                processes.shares,
            )
            for member in members
        ]
        if len(members) == 1:
            return self._loader(prompts, batches[0])
        tagged = [replace(prompt, policy=number) for number in range(len(members)) for prompt in prompts]
        return self._loader(tagged, SideBySide(batches, len(prompts)))

    def check_shares(self, shares: int) -> None:
        """Refuse a number of processes that can't have equal parts of a step's problems.

        Raises:
            SteerkitError: naming both numbers.
        """
        if self.prompts_per_step % shares:
            raise SteerkitError(
                f"prompts_per_step {self.prompts_per_step} can't be divided between {shares} devices: it counts the "
                f"problems of all devices together, so give a multiple of {shares}."
            )

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        # Lightning makes this batch sampler anew, so it must be torch's own.
        mine = list(self._processes().deal(self._prompts("test")))
        return DataLoader(cast(Any, mine), batch_size=_EVALUATION_BATCH, collate_fn=list)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # prompts are token tuples: the sampler makes tensors where it needs them

    def _evaluation_loader(self, split: Literal["validation", "test"]) -> DataLoader[Any]:
        prompts, processes = self._prompts(split), self._processes()
        # As many batches in each process, though some may have a problem less: they meet after each.
        mine = list(processes.deal(range(len(prompts))))
        n_batches = -(-len(prompts) // (_EVALUATION_BATCH * processes.shares))
        bounds = [len(mine) * number // n_batches for number in range(n_batches + 1)]
        batches = [mine[start:end] for start, end in pairwise(bounds)]
        return self._loader(prompts, batches)

    def _processes(self) -> Processes:
        from steerkit.training.module import SteeringModule

        assert self.trainer is not None
        connector = getattr(self.trainer, "_accelerator_connector", None)
        if self.trainer.world_size > 1 and getattr(connector, "use_distributed_sampler", False):
            raise SteerkitError("Set trainer.use_distributed_sampler to false: steerkit deals the problems out itself.")
        return cast(SteeringModule, self.trainer.lightning_module).processes

    @staticmethod
    def _loader(prompts: list[EncodedPrompt], batches: Any) -> DataLoader[Any]:
        # A generator of its own: a new iterator draws from it, and the global one is the plugins'.
        return DataLoader(cast(Any, prompts), batch_sampler=batches, collate_fn=list, generator=torch.Generator())
