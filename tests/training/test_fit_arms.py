"""Every intervention, mask and baseline trains in the same module, saves its own format and is measured."""

import json

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from helpers import checkpoint
from peft import PeftModel
from transformers import AutoModelForCausalLM

from steerkit.cli import main
from steerkit.vectors import SteeringVector

REWARDS = '''
def vowels(completions, **columns):
    """Share of vowels and spaces: a random model can learn this in a few steps."""
    return [sum(c in "aeiou " for c in text) / max(1, len(text)) for text in completions]
'''


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "model")
    (tmp_path / "rewards.py").write_text(REWARDS)

    def go(run_dir="run", steps=3, report=("base", "steered"), **model):
        config = {
            "seed_everything": 0,
            "run_dir": run_dir,
            "samples_every": 0,
            "vector_every": 2,
            "model": {
                "base": "model",
                "lr": 0.3,
                "rewards": ["rewards.py:vowels"],
                "samples_per_prompt": 6,
                "max_tokens": 6,
                **model,
            },
            "data": {
                "dataset": {"name": "arithmetic", "n": 16, "n_eval": 6},
                "prompts_per_step": 3,
                "n_validation": 2,
                "n_test": 4,
            },
            "trainer": {"max_steps": steps, "accelerator": "cpu", "enable_progress_bar": False},
            "report": {"arms": list(report), "temperatures": [1.0], "k": 2},
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        assert main(["fit", "--config", "config.yaml", "--allow_code"]) == 0
        return json.loads((tmp_path / run_dir / "results.json").read_text()) if report else {}

    go.folder = tmp_path
    return go


def checkpoint_keys(folder):
    newest = max((folder / "run" / "checkpoints").glob("*.ckpt"))
    state = torch.load(newest, weights_only=True)["state_dict"]
    return sorted(state)


ARMS = {
    "tokenwise": ({"intervention": "tokenwise", "layers": 1}, 32 + 64),
    "gated": ({"intervention": {"name": "gated", "gate": "softplus"}, "layers": -1}, 65),
    "projected": ({"intervention": {"name": "projected", "rank": 13}}, 13),
    "lowrank": ({"intervention": {"name": "lowrank", "rank": 2}}, 2 * (3 + 32)),
    "bias": ({"intervention": "bias"}, 3 * 32),
    "static, after attention": ({"layers": [0, 1], "site": "attn_output"}, 64),
    "static, generated tokens": ({"token_mask": "generated", "layers": "layers.1.mlp_output"}, 32),
    "static, problem": ({"token_mask": "segment:problem"}, 96),
}


@pytest.mark.parametrize("arm", ARMS)
def test_interventions(run, arm):
    settings, numbers = ARMS[arm]
    results = run(report=("base", "steered", "random"), **settings)
    assert [row["arm"] for row in results["rows"]] == ["base", "steered", "random"]
    assert results["rows"][1]["trainable_params"] == numbers
    vector = SteeringVector.from_pretrained(run.folder / "run" / "vector")
    assert vector.norm() > 0 and vector.token_mask == settings.get("token_mask", "all")
    card = (run.folder / "run" / "vector" / "README.md").read_text()
    assert "mean norm of the residual stream" in card and "## Results" in card and "steerkit fit --config" in card
    command = [
        "evaluate",
        "--model",
        "model",
        "--vector",
        "run/vector",
        "--data",
        '{"name": "arithmetic", "n_eval": 6}',
    ]
    assert main([*command, "--limit", "4", "--temperature", "1", "--k", "2", "--out", "again"]) == 0
    again = json.loads((run.folder / "again" / "results.json").read_text())
    assert [row["arm"] for row in again["rows"]] == ["base", "steered"]
    first = pq.read_table(run.folder / "run" / "samples.parquet").to_pylist()
    second = pq.read_table(run.folder / "again" / "samples.parquet").to_pylist()
    texts = [[(s["id"], s["completion"]) for s in found if s["arm"] == "steered"] for found in (first, second)]
    assert texts[0] == texts[1], "the saved vector samples what the trained policy sampled"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's use of transformers
def test_lora_and_full(run):
    results = run(
        intervention={"name": "lora", "rank": 2, "targets": ["down_proj"]}, report=("base", "steered", "random")
    )
    assert [row["arm"] for row in results["rows"]] == ["base", "steered"], "a random vector is no control for LoRA"
    assert results["rows"][1]["trainable_params"] == 3 * 2 * (32 + 64) and results["rows"][1]["kept_aside_bytes"] == 0
    assert all(key.startswith("policy.adapter.weights.") for key in checkpoint_keys(run.folder))
    base = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    PeftModel.from_pretrained(base, run.folder / "run" / "adapter")

    results = run("full", intervention="full", lr=0.01)
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(run.folder / "model").parameters())
    row = results["rows"][1]
    assert (row["trainable_params"], row["optimizer_bytes"], row["kept_aside_bytes"]) == (
        parameters,
        8 * parameters,
        4 * parameters,
    )
    AutoModelForCausalLM.from_pretrained(run.folder / "full" / "model")


def test_bias_is_static_on_all_layers_step_by_step(run):
    """On Llama both add to the residual stream after the MLP: the same samples, rewards, gradients and numbers."""
    run("bias", steps=6, report=(), intervention="bias", site=None)
    run("static", steps=6, report=(), intervention="static")
    rows = []
    for name in ("bias", "static"):
        lines = (run.folder / name / "metrics.csv").read_text().splitlines()
        header = lines[0].split(",")
        table = [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]
        rows.append([(r["reward"], r["grad_norm"], r["completions/mean_length"]) for r in table if r["grad_norm"]])
    assert len(rows[0]) == 6
    for bias, static in zip(*rows, strict=True):
        assert [float(x) for x in bias] == pytest.approx([float(x) for x in static], rel=1e-4)
    bias, static = (SteeringVector.from_pretrained(run.folder / name / "vector") for name in ("bias", "static"))
    for one, other in zip(bias.tensors.values(), static.tensors.values(), strict=True):
        torch.testing.assert_close(one["bias"], other["vector"], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"intervention": "tokenwise", "site": "output"}, "can't stand there: its sites are down_proj"),
        ({"intervention": {"name": "gated", "gates": 1}}, "has no setting 'gates'. Did you mean 'gate'"),
        ({"intervention": {"name": "lora", "ranks": 1}}, "has no setting 'ranks'. Did you mean 'rank'"),
        ({"intervention": "full", "layers": 1}, "layers, site and token_mask don't apply"),
        ({"intervention": "full", "lr": {"default": 1.0}}, "give lr as one number"),
        ({"token_mask": "firstgenerated"}, "Did you mean 'first_generated'"),
        ({"site": "attention"}, "Unknown site 'attention'"),
        ({"intervention": "steerkit.errors:SteerkitError"}, "neither an Intervention nor a WeightAdapter"),
    ],
)
def test_mistakes_are_one_line(run, settings, message, capsys):
    with pytest.raises(AssertionError):
        run(**settings)
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1] and "Traceback" not in "".join(error)


def test_a_fresh_draw_for_the_test_split(run):
    run(report=())
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    config["data"]["test_dataset"] = {"name": "arithmetic", "n": 16, "n_eval": 6, "seed": 7}
    config["report"]["arms"] = ["base"]
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "config.yaml", "--allow_code"]) == 0
    samples = pq.read_table(run.folder / "run" / "samples.parquet").to_pylist()
    assert {s["id"].rsplit("/", 1)[0] for s in samples} == {"arithmetic/test/7"}
