"""Rollouts: samplers, counter-based random numbers, and the log-probabilities of what was sampled."""

from steerkit.rollouts.packing import micro_batches
from steerkit.rollouts.prompt_pass import Branches
from steerkit.rollouts.prompting import encode_prompts
from steerkit.rollouts.sampler import EncodedPrompt, Sampler, SamplingParams
from steerkit.rollouts.suffix import without_streams
from steerkit.rollouts.teacher_forcing import completion_log_probs
from steerkit.rollouts.uniforms import fold_seed, uniforms

__all__ = [
    "Branches",
    "EncodedPrompt",
    "Sampler",
    "SamplingParams",
    "completion_log_probs",
    "encode_prompts",
    "fold_seed",
    "micro_batches",
    "uniforms",
    "without_streams",
]
