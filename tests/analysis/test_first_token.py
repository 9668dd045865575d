"""First token: planted vectors, plain hooks on five families, accuracies by construction, a vector really retrained."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from helpers import checkpoint, prompts, tokenizer

from steerkit.analysis import FirstToken, draw
from steerkit.analysis.first_token import CHANGE, DISTANCE, MOVED, OPENING
from steerkit.analysis.openings import ACCURACY, MORE, RECOVERED
from steerkit.analysis.readout import Readout
from steerkit.cli import main
from steerkit.datasets import PromptTemplate, open_dataset
from steerkit.errors import DataError, SteerkitError, VectorError
from steerkit.evaluation.arms import Protocol
from steerkit.evaluation.openings import rank_openings
from steerkit.hookpoints import HookPoint
from steerkit.models import LoadedModel, find_layout, load_model
from steerkit.rollouts import SamplingParams
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.testing import check_analyzer, tiny_model
from steerkit.vectors import SteeringVector, VectorMetadata

FIVE = ("llama", "qwen2", "gemma2", "gpt2", "gpt_neox")
TOK = tokenizer()
SMALL = {"max_tokens": 5, "k": 2, "controls": 1, "top": 4, "verifier": "exact", "sampler": "transformers"}
TEXT = {"name": "exact", "extract": "text"}


def loaded_model(family="llama"):
    base = tiny_model(family, vocab_size=len(TOK), max_position_embeddings=256, eos_token_id=TOK.eos_token_id)
    return LoadedModel(base, TOK, find_layout(base), "tiny")


def static(layer, direction=None, mask="all", **receipts):
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3)) if direction is None else direction
    metadata = VectorMetadata("tiny", "", 32, 3, receipts)
    return SteeringVector("static", {HookPoint(layer): {"vector": direction}}, {}, metadata, mask)


def value(result, metric, **keys):
    (found,) = result.find(metric=metric, **keys)
    return found["value"]


# -- planted


@pytest.mark.parametrize("engine", ["nnsight", "batched"])
def test_an_unembedding_row_at_the_last_layer_boosts_its_token(engine):
    """At the first position alone, by the vector's own mask: all its effect is there, and every pair ends in it."""
    loaded, encoded = loaded_model(), prompts(TOK)
    token = TOK.encode("7")[0]
    with torch.no_grad():  # so that a logit can be large
        loaded.base.lm_head.weight.mul_(4.0)
    weight = loaded.base.lm_head.weight.detach()
    vector = static(2, 60.0 * weight[token] / weight[token].norm(), "first_generated")
    result = FirstToken(**SMALL).run(loaded, {"v": vector}, encoded, engine=engine)
    assert value(result, DISTANCE, position="first") > 0.9
    assert value(result, DISTANCE, position="other") == 0.0 and value(result, MOVED, position="other") == 0.0
    assert (
        value(result, OPENING, vector="v", token_id=token)
        > 0.9
        > 0.1
        > (result.find(metric=OPENING, vector="v", token_id=token)[0]["control"])
    )
    pairs = result.tables["pairs"]
    assert {pair["boosted"] for pair in pairs} == {"7"} and {pair["position"] for pair in pairs} == {"first"}
    assert sum(pair["count"] for pair in pairs) == pairs[0]["positions"] == len(encoded)
    assert any(row.get("arm") == "base, 7 prefilled" for row in result.rows)
    everywhere = FirstToken(**SMALL).run(loaded, {"v": vector.with_mask("all")}, encoded, engine=engine)
    assert value(everywhere, DISTANCE, position="other") > 0.9
    assert value(everywhere, DISTANCE, position="first") == pytest.approx(value(result, DISTANCE, position="first"))


def talker():
    """A model that says 9 and ends; a push along e1 at the last layer makes it 7, and one along e0 9 forever."""
    loaded = loaded_model()
    base, (seven,), (nine,) = loaded.base, TOK.encode("7"), TOK.encode("9")
    with torch.no_grad():
        for block in base.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        base.model.embed_tokens.weight.zero_()
        base.model.embed_tokens.weight[:, 0] = 1.0
        base.model.embed_tokens.weight[[seven, nine], 0] = 0.0
        base.model.embed_tokens.weight[[seven, nine], 3] = 100.0  # after an answer the end wins
        base.model.norm.weight.fill_(1.0)
        base.lm_head.weight.zero_()
        base.lm_head.weight[seven, 1], base.lm_head.weight[nine, 0] = 1.0, 1.5
        base.lm_head.weight[TOK.eos_token_id, 3] = 10.0
    push = torch.zeros(32)
    push[1] = 3.0
    encoded = [replace(p, example=replace(p.example, answer="7")) for p in prompts(TOK)]
    return loaded, static(2, push), encoded


def test_accuracies_by_construction(tmp_path):
    loaded, vector, encoded = talker()
    loud = torch.zeros(32)
    loud[0] = 1000.0
    template = {"style": "plain", "assistant_prefix": "7"}
    static(2, loud, prompt=template).save_pretrained(tmp_path / "again")
    analyzer = FirstToken(
        temperatures=[0.0], max_tokens=4, controls=1, verifier=TEXT, retrained=str(tmp_path / "again")
    )
    result = analyzer.run(loaded, {"v": vector}, encoded, engine="batched", folder=tmp_path / "out")
    expected = {
        "base": 0.0, "vector": 1.0, "vector, first only": 1.0, "vector, not first": 0.0, "base, 7 prefilled": 1.0,
        "retrained, 7 prefilled": 0.0,  # it goes on with 9
    }  # fmt: skip
    assert {row["arm"]: row["value"] for row in result.find(metric=ACCURACY)} == expected
    for arm, share in (("vector, first only", 1.0), ("vector, not first", 0.0), ("base, 7 prefilled", 1.0)):
        (row,) = result.find(metric=RECOVERED, arm=arm)
        assert row["value"] == share and row["control"] == 0.0 and row["n"] == len(encoded), arm
    assert result.find(metric=ACCURACY, arm="base, 7 prefilled")[0]["control"] == 0.0  # 9, the base's own, prefilled
    assert value(result, MORE) == -1.0
    assert "7 for v (the retrained one's)" in " ".join(result.notes)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"analysis.json", "pairs.parquet"}
    assert any("accuracy_at_temperature_0" in image for image in draw(tmp_path / "out").images)
    # The retrained vector's content counts, not its place alone.
    static(2, torch.zeros(32), prompt=template).save_pretrained(tmp_path / "again")
    changed = FirstToken(**analyzer.settings).run(
        loaded, {"v": vector}, encoded, engine="batched", folder=tmp_path / "out"
    )
    assert value(changed, ACCURACY, arm="retrained, 7 prefilled") == 1.0


# -- against plain hooks


@pytest.mark.parametrize("mask", ["all", "first_generated"])
@pytest.mark.parametrize("family", FIVE)
@torch.no_grad()
def test_numbers_equal_plain_hooks(family, mask):
    """Each text alone, unpadded; the whole model's own logits."""
    loaded, encoded, vector = loaded_model(family), prompts(TOK), static(1, mask=mask)
    engine = "nnsight" if mask == "all" else "batched"
    result = FirstToken(**SMALL, temperatures=[0.0]).run(loaded, {"v": vector}, encoded, engine=engine)
    direction = vector.tensors[HookPoint(1)]["vector"]
    groups = TransformersSampler().sample(vector.steer(loaded.base), TOK, encoded, 1, SamplingParams(1.0, 5), 0)
    expected = {metric: ([], []) for metric in (DISTANCE, CHANGE, MOVED)}
    openings = ([], [])
    for group in groups:
        ids, start = (*group.prompt_ids, *group.rollouts[0].token_ids), len(group.prompt_ids) - 1
        acts = torch.ones(len(ids), 1)
        if mask == "first_generated":
            acts = torch.zeros(len(ids), 1)
            acts[start] = 1.0
        base, steered = (forward(loaded, ids, direction * acts * scale)[start:-1] for scale in (0.0, 1.0))
        numbers = {
            DISTANCE: (steered - base).abs().sum(-1) / 2,
            CHANGE: (steered - base).gather(1, torch.tensor(ids[start + 1 :])[:, None])[:, 0],
            MOVED: (steered.argmax(-1) != base.argmax(-1)).float(),
        }
        for metric, values in numbers.items():
            expected[metric][0].append(values[0])
            expected[metric][1].append(values[1:].mean())
        for kept, run in zip(openings, (base, steered), strict=True):
            kept.append(run[0])
    for metric, (first, other) in expected.items():
        for position, values in (("first", first), ("other", other)):
            wanted = float(torch.stack(values).mean())
            assert value(result, metric, position=position) == pytest.approx(wanted, abs=1e-5), (metric, position)
    for name, kept in (("base", openings[0]), ("v", openings[1])):
        mean = torch.stack(kept).mean(0)
        rows = result.find(metric=OPENING, vector=name)
        best = mean.topk(SMALL["top"]).indices.tolist()
        assert [row["token_id"] for row in rows[: len(best)]] == best
        for row in rows:
            assert row["value"] == pytest.approx(float(mean[row["token_id"]]), abs=1e-5)
    curve = result.arrays["v"].values
    assert float(curve[0, 0]) == pytest.approx(value(result, DISTANCE, position="first"), abs=1e-6)
    assert float(curve[4, 0]) == len(encoded)


def forward(loaded, ids, added):
    """[T, V] probabilities, ``added`` [T, D] to what leaves layer 1."""
    block = loaded.layout.block_list(loaded.base)[1]
    handle = block.register_forward_hook(lambda _m, _a, output: output + added)
    logits = loaded.base(torch.tensor([ids]), use_cache=False).logits[0]
    handle.remove()
    return torch.softmax(logits.float(), -1)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_contract(family):
    check_analyzer(
        FirstToken, family=family, drawn=family == "llama", **(SMALL | {"max_tokens": 3, "temperatures": [0.0]})
    )


# -- which token


def test_the_best_opening_on_validation(tmp_path):
    loaded = load_model(checkpoint(tmp_path / "model"))
    with torch.no_grad():  # openings that differ: what is said after them depends on them
        loaded.base.lm_head.weight.mul_(3.0)
    rows = [json.dumps({"problem": f"Tom has {k} apples.", "answer": f"{k}"}) for k in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    spec = {"path": str(tmp_path / "rows.jsonl"), "unsplit_as": "validation"}
    template = PromptTemplate("plain", None)
    examples = open_dataset(spec, None).load("validation")
    analyzer = FirstToken(**(SMALL | {"sampler": "fast"}), temperatures=[0.0], validation=spec)
    result = analyzer.run(loaded, {"v": static(1)}, examples[:2], template=template, engine="nnsight")
    protocol = Protocol(max_tokens=4, verifier="exact")
    best = rank_openings(loaded, examples, protocol, template)[0]
    shown = Readout(loaded).token(TOK.encode(best.text)[0])
    assert f"base, {shown} prefilled" in {row["arm"] for row in result.find(metric=ACCURACY)}
    note = next(note for note in result.notes if note.startswith("Prefilled token"))
    assert "on 12 problems of the validation split of" in note
    assert "Prompts: template plain." in result.notes and result.prompts["template"]["style"] == "plain"
    with pytest.raises(SteerkitError, match="validation needs prompts that are examples"):
        analyzer.run(loaded, {"v": static(1)}, prompts(TOK))


def test_a_vector_retrained_on_the_prefixed_prompt(tmp_path, monkeypatch, capsys):
    """By the command that the page gives, on a random model."""
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "model", max_position_embeddings=1024)
    train = [
        "fit", "--model.base", "model", "--model.layers", "-1", "--model.samples_per_prompt", "2",
        "--model.max_tokens", "4", "--data.dataset", "arithmetic", "--data.prompts_per_step", "2",
        "--data.n_validation", "4", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu", "--report.arms", "[]",
        "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip
    assert main([*train, "--run_dir", "runs/plain"]) == 0
    assert main([*train, "--run_dir", "runs/To", "--model.template.assistant_prefix", "To"]) == 0
    look = [
        "analyze", "first_token", "--model", "model", "--vector", "v=runs/plain/vector", "--max_tokens", "4",
        "--temperatures", "[0]", "--controls", "1", "--limit", "2", "--engine", "batched",
    ]  # fmt: skip
    assert main([*look, "--retrained", "runs/To/vector", "--out", "out"]) == 0
    record = json.loads((tmp_path / "out/analysis.json").read_text())
    assert {"base, To prefilled", "retrained, To prefilled"} <= {row.get("arm") for row in record["rows"]}
    assert list(record["identity"]["inputs"]) == ["retrained"] and record["prompts"]["template"]["style"] == "chat"
    capsys.readouterr()
    for arguments, message in (
        (["--retrained", "runs/plain/vector"], "was trained behind '', which adds no token"),
        (["--retrained", "runs/To/vector", "--token", "7"], "token is '7', and runs/To/vector was trained behind 'To'"),
        (["--retrained", "nowhere/at/all"], "nowhere/at/all"),
        (["--token", "12345"], "5 tokens of this model, and one is prefilled"),
        (["--max_tokens", "1"], "max_tokens must be at least 2"),
    ):
        assert main([*look, *arguments, "--out", "bad"]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in error and not (tmp_path / "bad").exists(), error


def test_bad_input(tmp_path):
    loaded, encoded = loaded_model(), prompts(TOK)
    with pytest.raises(SteerkitError, match="temperatures must be 0"):
        FirstToken(temperatures=[])
    with pytest.raises(SteerkitError, match="controls must be at least 1"):
        FirstToken(controls=0)
    with pytest.raises(DataError, match="first_token measures accuracy"):
        FirstToken().run(loaded, static(1), [replace(p, example=replace(p.example, answer="")) for p in encoded])
    template = {"style": "plain", "assistant_prefix": "7"}
    metadata = VectorMetadata("tiny", "", 40, 3, {"prompt": template})
    wide = SteeringVector("static", {HookPoint(0): {"vector": torch.zeros(40)}}, {}, metadata)
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(VectorError, match="retrained: The vector is 40 wide"):
        FirstToken(retrained=str(tmp_path / "wide")).run(loaded, static(1), encoded)
    other = static(1, prompt=template)
    replace(other, metadata=replace(other.metadata, fingerprint="0123")).save_pretrained(tmp_path / "other")
    known = static(1)
    known = replace(known, metadata=replace(known.metadata, fingerprint="4567"))
    with pytest.raises(VectorError, match="was trained on another base than v"):
        FirstToken(retrained=str(tmp_path / "other")).run(loaded, {"v": known}, encoded)
