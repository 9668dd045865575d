"""Training: the LightningModule, its data module, callbacks, and the report at the end."""

from steerkit.training.data import PromptDataModule
from steerkit.training.module import SteeringModule

__all__ = ["PromptDataModule", "SteeringModule"]
