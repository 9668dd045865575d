"""A tiny run that plugins disturb: rewards with random numbers and a state of their own."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import torch
import yaml
from helpers import checkpoint

from steerkit.cli import main
from steerkit.vectors import SteeringVector

REWARDS = '''
import os
import random
import signal

import numpy
import torch

def vowels(completions, **columns):
    """Share of vowels and spaces: a random model can learn this in a few steps."""
    return [sum(c in "aeiou " for c in text) / max(1, len(text)) for text in completions]

def noisy(completions, **columns):
    """Draws from every global generator."""
    noise = random.random() + numpy.random.rand() + float(torch.rand(()))
    return [0.01 * noise * (k % 2) for k, _ in enumerate(completions)]

class Counting:
    """Its rewards depend on how often it was called."""
    def __init__(self):
        self.calls = 0
    def __call__(self, completions, **columns):
        self.calls += 1
        return [0.001 * self.calls * (k % 3) for k, _ in enumerate(completions)]
    def state_dict(self):
        return {"calls": self.calls}
    def load_state_dict(self, state):
        self.calls = state["calls"]

calls = []

def fails_in_one(completions, **columns):
    calls.append(1)
    if len(calls) == 3 and os.environ.get("RANK") == "1":
        raise KeyError("no such column")
    return vowels(completions)
'''
MINIBATCHES = ("--model.minibatches", "2", "--trainer.max_steps", "3")
TIMED = re.compile(r"^time/|tok/s|tokens_per_second")


def write_run(folder: Path, rewards=("vowels", "noisy", "Counting"), **trainer) -> Path:
    """Model, rewards and ``config.yaml`` in ``folder``: 10 steps, validation every 4, checkpoints every 3."""
    checkpoint(folder / "model")
    (folder / "rewards.py").write_text(REWARDS)
    config = {
        "seed_everything": 0,
        "run_dir": "run",
        "samples_every": 0,
        "vector_every": 3,
        "model": {
            "base": "model",
            "layers": [0, 2],
            "lr": 0.3,
            "rewards": [f"rewards.py:{name}" for name in rewards],
            "samples_per_prompt": 4,
            "max_tokens": 6,
        },
        "data": {
            "dataset": {"name": "arithmetic", "n": 64, "n_eval": 8},
            "prompts_per_step": 4,
            "n_validation": 5,
            "n_test": 6,
        },
        "trainer": {
            "max_steps": 10,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "val_check_interval": 4,
            **trainer,
        },
        "report": {"arms": []},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def arguments(*more: str) -> list[str]:
    return ["fit", "--config", "config.yaml", "--allow_code", *more]


def fit(*more: str) -> int:
    return main(arguments(*more))


def rows(run: Path) -> list[dict[str, str]]:
    """``metrics.csv`` without what a clock measured."""
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if not TIMED.match(k)} for row in csv.DictReader(file)]


def numbers(run: Path) -> torch.Tensor:
    """All numbers of the run's vector."""
    vector = SteeringVector.from_pretrained(run / "vector")
    return torch.cat([t.flatten() for named in vector.tensors.values() for t in named.values()])


def same(first: Path, second: Path) -> bool:
    """Bit-equal vectors, and the same metrics."""
    return torch.equal(numbers(first), numbers(second)) and rows(first) == rows(second)
