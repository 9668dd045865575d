"""What each of two processes runs for test_distributed.py, started as torchrun starts them; the results go to JSON
files.

A pair of processes takes seconds to start, so one pair makes all the runs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from helpers import prompts, tokenizer
from runs import MINIBATCHES, fit

from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import SteeredModel
from steerkit.rollouts import Branches, SamplingParams, completion_log_probs
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.testing import randomize, tiny_model
from steerkit.training import SteeringModule
from steerkit.training.sharding import shard

RANK = int(os.environ["RANK"])


def recorded(run_dir: str, *more: str) -> dict:
    """A run with two devices: its exit code, and the problems that this process took at each step."""
    seen: list[list[str]] = []
    original = SteeringModule.training_step

    def training_step(self, batch, batch_idx):
        seen.append([prompt.example.id for prompt in batch])
        return original(self, batch, batch_idx)

    SteeringModule.training_step = training_step
    try:
        code = fit("--run_dir", run_dir, "--trainer.devices", "2", *more)
    finally:
        SteeringModule.training_step = original
    return {"code": code, "seen": seen}


def steered() -> SteeredModel:
    tok = tokenizer()
    items = Static.build([HookPoint(k) for k in range(3)], 32)
    for seed, item in enumerate(items.values()):
        randomize(item, seed, 0.3)
    return SteeredModel(tiny_model("llama", vocab_size=len(tok), eos_token_id=tok.eos_token_id), items)


def measure(model: SteeredModel) -> dict:
    """Samples, their log-probabilities under the trainer's pass, and the gradient of a sum of these."""
    tok = tokenizer()
    params = SamplingParams(1.0, 9)
    groups = TransformersSampler().sample(model, tok, prompts(tok), 3, params, seed=5)
    branches = [Branches(group.prompt_ids, [rollout.token_ids for rollout in group.rollouts]) for group in groups]
    log_probs = completion_log_probs(model, branches, tok.pad_token_id)
    log_probs.sum().backward()
    return {
        "tokens": [rollout.token_ids for group in groups for rollout in group.rollouts],
        "log_probs": log_probs.tolist(),
        "gradients": [item.vector.grad.tolist() for item in model.interventions.values()],
    }


def compare_sharded() -> dict:
    """The same model whole and spread over the two processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    whole, spread = steered(), steered()
    shard(spread, init_device_mesh("cpu", (2,)))
    found = {"whole": measure(whole), "spread": measure(spread)}
    parameters = list(spread.base.parameters())
    spread_out = [p for p in parameters if isinstance(p, DTensor)]
    found["blocks"] = sum(p.numel() for p in spread_out)
    found["held_here"] = sum(p.to_local().numel() for p in spread_out)
    found["trainable"] = sum(p.requires_grad for p in parameters)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {
        "ddp": recorded("ddp", "--trainer.strategy", "ddp"),
        "minibatches": recorded("ddp_minibatches", "--trainer.strategy", "ddp", *MINIBATCHES),
        "sharded": recorded("sharded", "--trainer.strategy", "sharded_base"),
        "equality": compare_sharded(),
    }
    Path(f"rank{RANK}.json").write_text(json.dumps(results))
