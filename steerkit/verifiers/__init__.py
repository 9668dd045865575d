"""verify(completion, answer) -> Verdict, in killable processes where the check may hang."""

from steerkit.verifiers.base import Verifier
from steerkit.verifiers.boxed import last_boxed
from steerkit.verifiers.exact import ExactVerifier
from steerkit.verifiers.math import MathVerifier
from steerkit.verifiers.pool import WorkerPool

__all__ = ["ExactVerifier", "MathVerifier", "Verifier", "WorkerPool", "last_boxed"]
