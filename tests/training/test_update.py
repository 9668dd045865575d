"""Several updates a step: dealt by hand, by plain autograd, and taken back together."""

from __future__ import annotations

import pytest
import torch
from helpers import checkpoint
from runs import fit, numbers, rows, same, write_run

from steerkit.errors import SteerkitError, TrainingError
from steerkit.models import load_model
from steerkit.objectives import RLOO
from steerkit.training import memory
from steerkit.training import update as update_room
from steerkit.training.policy import build_policy
from steerkit.training.update import IMPORTANCE_CAP, check_minibatches, minibatches_of

TWO = ("--model.minibatches", "2", "--trainer.max_steps", "4", "--trainer.limit_val_batches", "0")


def test_dealing_by_hand():
    assert minibatches_of([range(5)], 2) == [[0, 1, 2], [3, 4]]
    assert minibatches_of([[0, 2, 4], [1, 3, 5]], 3) == [[0, 1], [2, 3], [4, 5]]
    assert minibatches_of([[0, 1], []], 1) == [[0, 1]]  # a policy of a sweep that broke


@pytest.mark.parametrize("count", [0, 5])
def test_more_updates_than_problems_are_refused(count):
    with pytest.raises(SteerkitError, match=f"prompts_per_step, 4.*got {count}"):
        check_minibatches(count, 4)


def test_a_run_refuses_them_before_it_starts(tmp_path, monkeypatch, capsys):
    write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert fit("--model.minibatches", "8") == 2
    assert "model.minibatches must lie between 1 and" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_updates_are_those_of_plain_autograd(tmp_path, monkeypatch):
    """A step of two updates, the second weighed by importance, against whole forward passes and AdamW."""
    write_run(tmp_path, rewards=("vowels",), max_steps=1)
    checkpoint(tmp_path / "model", "gpt2")
    monkeypatch.chdir(tmp_path)
    seen, real = [], memory.add_gradients

    def add_gradients(policy, objective, groups, rows, *rest):
        seen.append((groups, rows))
        return real(policy, objective, groups, rows, *rest)

    monkeypatch.setattr(memory, "add_gradients", add_gradients)
    assert fit(*TWO, "--trainer.max_steps", "1", "--model.dtype", "float64", "--model.lr", "1.0") == 0
    assert [len(groups) for groups, _ in seen] == [2, 2]

    _, model = build_policy(load_model("model", dtype="float64"), "static", [0, 2])
    vectors = [item.vector for item in model.interventions.values()]
    optimizer, ratios = torch.optim.AdamW(vectors, lr=1.0, weight_decay=0.0), []
    for number, (groups, advantages) in enumerate(seen):
        optimizer.zero_grad()
        flat = [(group, rollout) for group in groups for rollout in group.rollouts]
        loss = torch.zeros((), dtype=torch.float64)
        for (group, rollout), advantage in zip(flat, advantages.flatten().tolist(), strict=True):
            ids, first = torch.tensor([[*group.prompt_ids, *rollout.token_ids]]), len(group.prompt_ids)
            found = model(ids).logits[0, first - 1 : -1].log_softmax(-1).gather(1, ids[0, first:, None])[:, 0]
            ratio = (found.detach() - torch.tensor(rollout.logprobs, dtype=torch.float64)).exp()
            if number == 0:
                torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-5, rtol=0)
                ratio = torch.ones_like(ratio)
            ratios += ratio.tolist() if number else []
            loss = loss - (advantage * ratio.clamp(max=IMPORTANCE_CAP) * found).sum()
        (loss / sum(len(rollout.token_ids) for _, rollout in flat)).backward()
        torch.nn.utils.clip_grad_norm_(vectors, 2.0)
        optimizer.step()
    torch.testing.assert_close(numbers(tmp_path / "run"), torch.cat(vectors).detach().float(), atol=2e-5, rtol=1e-4)
    assert max(abs(ratio - 1) for ratio in ratios) > 0.05  # far enough that a run without weights would differ
    (row,) = rows(tmp_path / "run")
    assert float(row["importance/mean"]) == pytest.approx(
        sum(min(ratio, IMPORTANCE_CAP) for ratio in ratios) / len(ratios), rel=1e-4
    )
    assert float(row["logprob_gap"]) < 1e-4  # of the first update: what sampler and trainer make of one policy


def test_a_step_whose_second_update_fails_is_taken_back(tmp_path, monkeypatch):
    """What is saved is the step before: gone on with, the run is the one that never failed."""
    write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert fit(*TWO, "--run_dir", "whole") == 0
    calls, real = [], RLOO.loss

    def loss(self, *given, **more):
        calls.append(1)
        if len(calls) == 6:  # two updates a step, a micro-batch each: the second of the third step
            raise TrainingError("no more")
        return real(self, *given, **more)

    monkeypatch.setattr(RLOO, "loss", loss)
    assert fit(*TWO) == 2
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step=00000002.ckpt"]
    assert not torch.equal(numbers(tmp_path / "run"), numbers(tmp_path / "whole"))
    assert fit(*TWO, "--ckpt_path", "last") == 0
    assert same(tmp_path / "run", tmp_path / "whole")


def test_a_sweep_deals_each_policys_problems(tmp_path, monkeypatch):
    """And is as many runs, each with its two updates a step."""
    write_run(tmp_path, rewards=("vowels",))
    checkpoint(tmp_path / "model", "gpt2")
    monkeypatch.chdir(tmp_path)
    double = (*TWO, "--model.dtype", "float64", "--model.layers", "all")
    assert fit(*double, "--sweep.layers", "[0, 2]") == 0
    for layer in (0, 2):
        assert fit(*double, "--model.layers", str(layer), "--run_dir", f"alone{layer}") == 0
        swept, alone = numbers(tmp_path / f"run/sweep/layer{layer}"), numbers(tmp_path / f"alone{layer}")
        torch.testing.assert_close(swept, alone, atol=1e-6, rtol=1e-5)
        assert alone.abs().max() > 0.1


def test_a_policy_that_breaks_in_the_second_update_is_frozen_where_the_step_began(tmp_path, monkeypatch):
    write_run(tmp_path, rewards=("vowels",))
    checkpoint(tmp_path / "model", "gpt2")
    monkeypatch.chdir(tmp_path)
    sweep = (*TWO, "--model.dtype", "float64", "--model.layers", "all", "--sweep.layers", "[0, 2]")
    assert fit(*sweep, "--run_dir", "whole") == 0
    assert fit(*sweep, "--run_dir", "one", "--trainer.max_steps", "1") == 0
    calls, real = [], RLOO.loss

    def loss(self, *given, **more):
        calls.append(1)  # two updates a step, of a micro-batch and two policies each
        return real(self, *given, **more) * (float("nan") if len(calls) == 8 else 1.0)

    monkeypatch.setattr(RLOO, "loss", loss)
    assert fit(*sweep) == 0
    assert torch.equal(numbers(tmp_path / "run/sweep/layer2"), numbers(tmp_path / "one/sweep/layer2"))
    others = [numbers(tmp_path / run / "sweep/layer0") for run in ("run", "whole")]
    torch.testing.assert_close(*others, atol=1e-6, rtol=1e-5)


def test_what_could_not_be_taken_back_is_refused(tmp_path, monkeypatch, capsys):
    write_run(tmp_path, rewards=("vowels",))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(update_room, "MOST_KEPT", 63)
    assert fit(*TWO) == 2
    assert "model.minibatches 2 needs a copy of what is trained" in capsys.readouterr().err
