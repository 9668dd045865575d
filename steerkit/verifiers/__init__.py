"""verify(completion, answer) -> Verdict, in killable processes where the check may hang."""

from steerkit.verifiers.base import FAULT_CAUSES, Verifier, fault_cause
from steerkit.verifiers.boxed import last_boxed
from steerkit.verifiers.exact import ExactVerifier
from steerkit.verifiers.extract import extract_answer
from steerkit.verifiers.math import MathVerifier
from steerkit.verifiers.pool import WorkerPool

__all__ = [
    "FAULT_CAUSES",
    "ExactVerifier",
    "MathVerifier",
    "Verifier",
    "WorkerPool",
    "extract_answer",
    "fault_cause",
    "last_boxed",
]
