"""fit --dry_run: what is there, what is missing, what a step takes; nothing is trained and nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from helpers import checkpoint, tokenizer
from transformers import AutoConfig

from steerkit.cli import main
from steerkit.models.stand_in import on_meta, stand_in, weight
from steerkit.testing import tiny_model

PAPERS = sorted((Path(__file__).parents[2] / "configs" / "paper").glob("*.yaml"))
BASES = {"qwen2.5_math_7b": "qwen2", "qwen2.5_1.5b": "qwen2", "llama3.1_8b_instruct": "llama"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A working directory in which the papers' data set lies as on the hub."""
    folder = tmp_path / "agentica-org" / "DeepScaleR-Preview-Dataset"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    rows = [
        {"problem": f"Tom has {k} apples. Anna gives Tom 3 more. How many?", "answer": f"{k + 3}", "solution": "Add."}
        for k in range(400)
    ]
    (folder / "deepscaler.json").write_text(json.dumps(rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_the_papers_three_models_have_configs():
    assert [path.stem for path in PAPERS] == sorted(BASES)


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_paper_config_is_ready_where_model_and_data_are(path, hub, capsys):
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    base = config["model"]["base"]
    checkpoint(hub / base, BASES[path.stem], max_position_embeddings=16384)
    for file in (hub / base).glob("*.safetensors"):
        file.unlink()  # the config is enough
    short = ["--data.prompts_per_step", "4", "--model.samples_per_prompt", "4"]  # the test's time, not the config's
    assert main(["fit", "--config", str(path), "--dry_run", *short]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Ready." in said and f"{BASES[path.stem]}, 3 blocks x 32" in said and "bfloat16" in said
    assert "train 39" in said and "314 steps are 3.2 passes" in said  # of the 400 problems about 1 % is kept
    assert "96 numbers" in said and "with a chat template" in said and "peak" in said and "a step" in said
    assert "one step pass" in said and "its own template and data" in said
    assert "rewards pass" in said and "-1 to 1 on 16 made-up completions" in said
    assert not (hub / "runs").exists()


def test_the_papers_settings():
    """mission: 314 steps of 128 x 16 at temperature 1, gradients clipped at 2, 3 % warm-up, context 4,096 and 8,192."""
    rates, contexts = {}, {}
    for path in PAPERS:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        model, data = config["model"], config["data"]
        assert (data["prompts_per_step"], model["samples_per_prompt"], config["trainer"]["max_steps"]) == (128, 16, 314)
        assert (model["temperature"], model["grad_clip"], model["warmup_steps"]) == (1.0, 2.0, 9)
        rates[path.stem], contexts[path.stem] = float(model["lr"]), model["max_tokens"] + 1024
    assert rates == {"qwen2.5_math_7b": 1e-3, "qwen2.5_1.5b": 1e-3, "llama3.1_8b_instruct": 8e-5}
    assert contexts == {"qwen2.5_math_7b": 4096, "qwen2.5_1.5b": 4096, "llama3.1_8b_instruct": 8192}


def test_what_is_not_there_is_named_in_one_line_each(hub, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = str(PAPERS[1])
    assert main(["fit", "--config", path, "--dry_run", "--data.dataset.path", "nobody/nothing"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "No model 'Qwen/Qwen2.5-1.5B'" in said and "--model.base FOLDER" in said
    assert "nobody/nothing" in said and "--data_root" in said
    assert "Not ready: base, tokenizer, data." in said and "memory skipped needs 'base'" in said


def test_a_reward_is_tried_before_hours_are_spent(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "def silent(completions, **columns):\n    return [None] * len(completions)\n"
        "def flat(completions, **columns):\n    return [1.0] * len(completions)\n"
        "def broken(completions, **columns):\n    return completions[0].nothing\n"
    )
    rows = {}
    for name in ("silent", "flat", "broken"):
        reward = f"{tmp_path / 'mine.py'}:{name}"
        small = ["--model.max_tokens", "8", "--data.prompts_per_step", "2", "--model.samples_per_prompt", "2"]
        code = main(["fit", "--dry_run", "--allow_code", "--model.rewards", json.dumps([reward]), *small])
        rows[name] = code, " ".join(capsys.readouterr().out.split())
    assert rows["silent"][0] == 1 and "no reward says anything" in rows["silent"][1]
    assert rows["flat"][0] == 0 and "all alike" in rows["flat"][1]
    assert rows["broken"][0] == 1 and "AttributeError" in rows["broken"][1] and "line 6" in rows["broken"][1]


def test_it_belongs_to_fit(capsys):
    assert main(["validate", "--dry_run"]) == 2
    assert "--dry_run belongs to fit" in capsys.readouterr().err


def test_bad_settings_are_refused_as_in_fit(hub, capsys):
    checkpoint(hub / "model")
    words = ["fit", "--dry_run", "--model.base", str(hub / "model"), "--data.prompts_per_step", "2",
             "--model.samples_per_prompt", "2", "--model.max_tokens", "8"]  # fmt: skip
    assert main([*words, "--model.layers", "7"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "Not ready: base" in said and "7" in said
    assert main([*words, "--model.max_tokens", "300"]) == 1
    assert "leaves no room for a prompt" in " ".join(capsys.readouterr().out.split())


def test_a_model_without_numbers_weighs_what_the_real_one_does():
    real, meta = tiny_model("llama"), on_meta(tiny_model("llama").config, torch.float32)
    assert weight(meta) == weight(real)
    assert weight(meta).parameters == sum(p.numel() for p in real.parameters())
    halved = weight(on_meta(real.config, torch.bfloat16))
    assert halved.linear == {n: size // 2 for n, size in weight(real).linear.items()}


def test_known_sizes():
    """The published models' parameters, by their configs: Qwen2.5-7B's shape and Llama-3.1-8B's."""
    qwen = AutoConfig.for_model(
        "qwen2", vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    assert weight(on_meta(qwen, torch.bfloat16)).parameters == 7_615_616_512
    llama = AutoConfig.for_model(
        "llama", vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip
    assert weight(on_meta(llama, torch.bfloat16)).parameters == 8_030_261_248


@pytest.mark.parametrize("family", ["llama", "qwen3_next", "gemma3"])
def test_a_stand_in_has_fewer_blocks_and_the_same_widths(family):
    real = tiny_model(family)
    made = stand_in(real.config, 2, torch.float32, torch.device("cpu"))
    blocks = [name for name, _ in made.named_parameters() if ".layers.2." in name and "vision" not in name]
    assert not blocks
    shapes = {name: p.shape for name, p in real.named_parameters()}
    assert all(shapes[name] == p.shape for name, p in made.named_parameters())


def test_the_forecast_extrapolates_by_blocks(hub):
    """Twelve blocks from stand-ins of two and eight: memory kept for the backward pass and cache, against the whole."""
    from steerkit.models import SteeredModel
    from steerkit.rollouts.footprint import saved_for_backward
    from steerkit.training import SteeringModule
    from steerkit.training.forecast import made_up_prompts, one_step, step_cost, trained

    real = tiny_model("llama", num_hidden_layers=12, max_position_embeddings=256)
    module = SteeringModule(samples_per_prompt=2, max_tokens=8)
    policy = trained(module, real.config, torch.float32)
    assert (policy.numbers, policy.policies, policy.lowest) == (12 * 32, 1, 0)
    prompts = one_step(made_up_prompts(20), 2)
    cost = step_cost(module, real.config, policy, prompts, tokenizer(), 8, torch.float32, torch.device("cpu"))
    from steerkit.hookpoints import HookPoint
    from steerkit.interventions import Static

    whole = SteeredModel(real, Static.build([HookPoint(layer) for layer in range(12)], 32))
    saved = saved_for_backward(whole, torch.tensor(prompts[0].ids), 0)
    assert cost.saved.row(100) == pytest.approx(saved.row(100), rel=0.02)
    assert cost.cache_per_token == 12 * 2 * 2 * 8 * 4  # blocks x (keys, values) x heads x width x bytes
    assert cost.sampling_s > 0 and cost.update_s > 0
