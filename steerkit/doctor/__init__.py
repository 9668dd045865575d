"""``steerkit doctor``: is this model run right when it is padded, cached, batched, steered and trained?"""

from steerkit.doctor.checks import CHECKS
from steerkit.doctor.memory import Batch
from steerkit.doctor.rows import Check, Finding, Row, examine
from steerkit.doctor.subject import Subject

__all__ = ["CHECKS", "Batch", "Check", "Finding", "Row", "Subject", "examine"]
