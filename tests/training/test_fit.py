"""`steerkit fit` end to end on a tiny random model: run folder, learning, validation verbs, broken runs."""

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from helpers import checkpoint

from steerkit.cli import main
from steerkit.training.data import StepBatches
from steerkit.training.policy import learning_rates
from steerkit.vectors import SteeringVector

REWARDS = '''
def vowels(completions, **columns):
    """Share of vowels and spaces: a random model can learn this in a few steps."""
    return [sum(c in "aeiou " for c in text) / max(1, len(text)) for text in completions]

calls = []

def breaks(completions, **columns):
    calls.append(1)
    return [float("inf") if len(calls) > 2 and k == 0 else float(k % 2) for k in range(len(completions))]
'''


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "model")
    (tmp_path / "rewards.py").write_text(REWARDS)
    config = {
        "seed_everything": 0,
        "run_dir": "run",
        "samples_every": 0,
        "model": {
            "base": "model",
            "layers": [0, 2],
            "lr": 1.0,
            "rewards": ["rewards.py:vowels"],
            "samples_per_prompt": 8,
            "max_tokens": 8,
        },
        "data": {
            "dataset": {"name": "arithmetic", "n": 64, "n_eval": 8},
            "prompts_per_step": 4,
            "n_validation": 4,
            "n_test": 6,
        },
        "trainer": {"max_steps": 10, "accelerator": "cpu", "enable_progress_bar": False, "val_check_interval": 4},
        "report": {"k": 2, "openings": 2},
    }
    return tmp_path, config


def fit(work, *arguments, **changes):
    folder, config = work
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return main(["fit", "--config", str(folder / "config.yaml"), "--allow_code", *arguments])


def metrics(run: Path) -> list[dict[str, str]]:
    import csv

    with open(run / "metrics.csv") as file:
        return list(csv.DictReader(file))


def test_fit_learns_and_leaves_a_complete_run_folder(work, capsys):
    assert fit(work) == 0
    run = work[0] / "run"
    rewards = [float(row["reward"]) for row in metrics(run) if row["reward"]]
    assert len(rewards) == 10
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1, rewards

    vector = SteeringVector.from_pretrained(run / "vector")
    assert sorted(vector.norms()) == ["layers.0.output", "layers.2.output"]
    assert all(norm > 0.1 for norm in vector.norms().values())
    receipts = vector.metadata.receipts
    assert receipts["steps"] == 10 and receipts["dataset"] == "arithmetic"
    assert receipts["command"].startswith("steerkit fit --config")

    results = json.loads((run / "results.json").read_text())
    assert results["schema"] == 1 and results["seed"] == 0 and results["command"].startswith("steerkit fit")
    arms = {(row["arm"].split()[0], row["temperature"]) for row in results["rows"]}
    assert arms == {(arm, t) for arm in ("base", "steered", "random", "prefix") for t in (0.0, 1.0)}
    columns = {"arm", "set", "temperature", "k", "n", "accuracy", "ci95", "mean_tokens", "faults", "train_seed"}
    columns |= {"sample_seed", "lr", "trainable_params", "optimizer_bytes", "seconds_per_step"}
    assert all(columns <= set(row) for row in results["rows"])
    trained = next(row for row in results["rows"] if row["arm"] == "steered")
    assert trained["trainable_params"] == 64 and trained["optimizer_bytes"] == 512 and trained["seconds_per_step"] > 0
    samples = pq.read_table(run / "samples.parquet").to_pylist()
    assert len(samples) == 4 * (6 + 6 * 2)
    # The run's own reward stands beside the accuracy, which knows nothing of it.
    for row in results["rows"]:
        own = [s for s in samples if (s["arm"], s["temperature"]) == (row["arm"], row["temperature"])]
        shares = [sum(c in "aeiou " for c in s["completion"]) / max(1, len(s["completion"])) for s in own]
        assert row["reward"] == pytest.approx(sum(shares) / len(shares), abs=1e-6)  # each problem has equally many
        assert row["reward_ci95"][0] <= row["reward"] <= row["reward_ci95"][1]
    assert trained["reward"] > results["rows"][0]["reward"]
    assert " reward" in capsys.readouterr().out
    for name in ("config.yaml", "metrics.csv", "tensorboard", "checkpoints/step=00000010.ckpt"):
        assert (run / name).exists(), name
    state = torch.load(run / "checkpoints/step=00000010.ckpt", weights_only=True)["state_dict"]
    assert sorted(state) == [f"policy.steering.layers_{k}_output.vector" for k in (0, 2)]

    # The other verbs on the vector that fit left.
    common = ["--allow_code", "--config", str(work[0] / "config.yaml"), "--model.vector", "run/vector"]
    common += ["--run_dir", "other"]
    verbs = [argument for argument in common if argument]
    for verb in ("validate", "test", "predict"):
        config = {k: v for k, v in work[1].items() if k not in ("report", "samples_every")}
        (work[0] / "config.yaml").write_text(yaml.safe_dump(config))
        assert main([verb, *verbs]) == 0
    assert len(pq.read_table("other/predictions.parquet")) == 6

    # A second run sets the first aside and, with the same seed, makes the same vector.
    assert fit(work, "--report.arms", "[]") == 0
    assert (work[0] / "run.1" / "results.json").exists()
    again = SteeringVector.from_pretrained(run / "vector")
    for point, tensors in vector.tensors.items():
        assert torch.equal(tensors["vector"], again.tensors[point]["vector"])


def test_a_checkpoint_of_other_layers_is_refused(work):
    from steerkit.errors import SteerkitError
    from steerkit.training import SteeringModule

    module = SteeringModule(base="model", layers=[0, 2])
    module.configure_model()
    key = "policy.steering.layers_{}_output.vector"
    module.on_load_checkpoint({"state_dict": {key.format(0): torch.zeros(32), key.format(2): torch.zeros(32)}})
    with pytest.raises(SteerkitError, match="layers_1_output"):
        module.on_load_checkpoint({"state_dict": {key.format(1): torch.zeros(32)}})


def test_a_mistake_moves_no_earlier_run(work, capsys):
    assert fit(work, "--report.arms", "[]", "--trainer.max_steps", "1") == 0
    for mistake in (["--model.base", "nothing"], ["--data.dataset", "nothing.jsonl"], ["--trainer.devices", "3"]):
        assert fit(work, *mistake) == 2
        assert (work[0] / "run" / "vector").is_dir() and not (work[0] / "run.1").exists(), mistake
    # Going on from the vector in the very folder of the new run.
    vector = ["--model.vector", "run/vector", "--report.arms", "[]", "--trainer.max_steps", "1"]
    assert fit(work, *vector) == 0
    assert (work[0] / "run.1" / "vector").is_dir()


def test_no_steps_no_change(work):
    assert fit(work, "--trainer.max_steps", "0", "--report.arms", "[base,steered]") == 0
    rows = json.loads((work[0] / "run" / "results.json").read_text())["rows"]
    assert rows[0]["accuracy"] == rows[2]["accuracy"] and rows[1]["mean_tokens"] == rows[3]["mean_tokens"]
    assert all(n == 0 for n in SteeringVector.from_pretrained(work[0] / "run/vector").norms().values())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_vector(work, capsys):
    assert fit(work, model__rewards=["rewards.py:breaks"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("steerkit fit:") and "breaks" in error
    vector = SteeringVector.from_pretrained(work[0] / "run" / "vector")
    assert vector.metadata.receipts["steps"] == 2
    assert all(math.isfinite(norm) and norm > 0 for norm in vector.norms().values())


def test_nan_in_the_update_keeps_the_last_good_vector(work, capsys, monkeypatch):
    from steerkit.training import memory
    from steerkit.training.step import accumulate_gradients

    calls = []

    def poisoned(model, objective, groups, advantages, *rest):
        calls.append(1)
        return accumulate_gradients(
            model, objective, groups, advantages * (math.nan if len(calls) == 3 else 1.0), *rest
        )

    monkeypatch.setattr(memory, "accumulate_gradients", poisoned)
    assert fit(work) == 2
    assert "loss is nan" in capsys.readouterr().err.strip().splitlines()[-1]
    vector = SteeringVector.from_pretrained(work[0] / "run" / "vector")
    assert vector.metadata.receipts["steps"] == 2
    assert all(norm > 0 for norm in vector.norms().values())


def test_a_vector_that_breaks_the_model_is_taken_back(work, capsys, monkeypatch):
    """All rewards are then the same, so that there is no loss to be NaN: the log-probabilities tell."""
    original, kept = torch.optim.AdamW.step, []

    def step(self, *arguments, **keywords):
        done = original(self, *arguments, **keywords)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        kept.append([parameter.detach().clone() for parameter in parameters])
        if len(kept) == 4:  # as 16 bits overflow
            for parameter in parameters:
                parameter.data.fill_(3e38)
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert fit(work, "--vector_every", "2") == 2
    assert "After step 4 the model's log-probabilities are not finite" in capsys.readouterr().err.splitlines()[-1]
    vector = SteeringVector.from_pretrained(work[0] / "run" / "vector")
    assert vector.metadata.receipts["steps"] == 3
    found = [tensor for named in vector.tensors.values() for tensor in named.values()]
    assert [t.tolist() for t in sorted(found, key=float_sum)] == [t.tolist() for t in sorted(kept[2], key=float_sum)]
    assert fit(work, "--vector_every", "2", "--ckpt_path", "last") == 2  # step 4 is on disk, and said to be broken
    assert "After step 4" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.undo()
    monkeypatch.chdir(work[0])
    assert fit(work, "--vector_every", "2", "--ckpt_path", "run/checkpoints/step=00000002.ckpt") == 0


def float_sum(tensor):
    return float(tensor.sum())


def test_a_folder_of_other_files_is_no_run_folder(work, capsys):
    (work[0] / "thesis").mkdir()
    (work[0] / "thesis" / "chapter.tex").write_text("x")
    assert fit(work, "--run_dir", "thesis") == 2
    assert "thesis holds other files and no run" in capsys.readouterr().err
    assert (work[0] / "thesis" / "chapter.tex").exists()


def test_step_batches_are_a_function_of_seed_and_step():
    whole = list(StepBatches(10, 4, 8, seed=3))
    assert list(StepBatches(10, 4, 8, seed=3, first_step=lambda: 3)) == whole[3:]
    assert len(list(StepBatches(10, 4, 3, seed=3, first_step=lambda: 4))) == 2  # to the end of the second epoch
    shares = [list(StepBatches(10, 4, 8, seed=3, rank=rank, size=2)) for rank in range(2)]
    for batch, mine, others in zip(whole, *shares, strict=True):
        assert [batch[0], batch[2]] == mine and [batch[1], batch[3]] == others
    assert list(StepBatches(10, 4, 8, seed=4)) != whole
    flat = [index for batch in whole for index in batch]
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10))
    assert flat[:10] != flat[10:20]


def test_learning_rates_by_hook_point():
    from steerkit.errors import SteerkitError
    from steerkit.hookpoints import HookPoint

    points = [HookPoint(0), HookPoint(5)]
    assert learning_rates(0.1, points, 6) == {HookPoint(0): 0.1, HookPoint(5): 0.1}
    assert learning_rates({"default": 0.1, "layers[-1]": 2}, points, 6)[HookPoint(5)] == 2.0
    with pytest.raises(SteerkitError, match=r"layers\.3\.output, which is not trained"):
        learning_rates({"default": 0.1, "3": 2.0}, points, 6)
    with pytest.raises(SteerkitError, match="add 'default'"):
        learning_rates({"0": 2.0}, points, 6)
