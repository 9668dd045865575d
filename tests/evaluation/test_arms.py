"""Arms measured on the same problems: verdict path, result files, openings, the table."""

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import checkpoint

from steerkit.datasets import PromptTemplate
from steerkit.errors import DataError, SteerkitError, VectorError
from steerkit.evaluation import Arm, Protocol, evaluate
from steerkit.evaluation.arms import correct_table
from steerkit.evaluation.openings import first_token_distribution, rank_openings
from steerkit.evaluation.results import results_table, write_results
from steerkit.hookpoints import HookPoint
from steerkit.models import load_model
from steerkit.types import Example, Verdict
from steerkit.vectors import SteeringVector, VectorMetadata

EXAMPLES = [Example(f"p{k}", f"Tom has {k} apples.", str(k)) for k in range(6)]
PLAIN = PromptTemplate(style="plain", system=None)
EXACT = {"name": "exact", "extract": "text"}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(checkpoint(tmp_path_factory.mktemp("model")), dtype="float32")


def vector(d_model=32, scale=1.0):
    return SteeringVector(
        "static", {HookPoint(1): {"vector": scale * torch.ones(d_model)}}, {}, VectorMetadata("m", "", d_model, 3)
    )


def saying(loaded, text):
    """A vector at the last layer that makes the model say the first token of ``text`` whatever was asked."""
    token = loaded.tokenizer(text, add_special_tokens=False)["input_ids"][0]
    row = loaded.base.lm_head.weight[token].detach()
    return SteeringVector(
        "static", {HookPoint(2): {"vector": 1000 * row / row.norm()}}, {}, VectorMetadata("m", "", 32, 3)
    ), loaded.tokenizer.decode([token])


def test_a_planted_vector_is_seen_in_the_rows_and_samples(loaded):
    planted, text = saying(loaded, "apples")
    examples = [Example(f"q{k}", f"{k}", text.strip() * 2) for k in range(4)]
    protocol = Protocol((0.0, 1.0), k=3, max_tokens=2, verifier=EXACT)
    result = evaluate(loaded, [Arm("base"), Arm("steered", planted)], examples, protocol, PLAIN, "planted")
    base, _, greedy, sampled = result.rows
    assert (base["arm"], base["k"], sampled["k"], sampled["n"]) == ("base", 1, 3, 4)
    steered = [s for s in result.samples if s["arm"] == "steered"]
    assert {s["completion"] for s in steered if s["temperature"] == 0} == {text * 2}
    assert sum(text in s["completion"] for s in steered if s["temperature"] == 1) >= 4  # of 12, at chance 0.1
    assert not any(text * 2 == s["completion"] for s in result.samples if s["arm"] == "base")
    # Cut off after two tokens: wrong as in the reward, and counted.
    assert greedy["truncated"] == 4 and greedy["accuracy"] == 0 and sampled["truncated"] == 12
    assert {s["reason"] for s in steered} == {"truncated"}
    assert all(s["set"] == "planted" and s["tokens"] == 2 for s in steered)


def test_the_same_seed_gives_the_same_results(loaded):
    protocol = Protocol((1.0,), k=2, max_tokens=6, seed=3, verifier=EXACT)
    runs = [evaluate(loaded, [Arm("base")], EXAMPLES, protocol, PLAIN) for _ in range(2)]
    assert runs[0] == runs[1]
    other = evaluate(loaded, [Arm("base")], EXAMPLES, Protocol((1.0,), 2, 6, 4, EXACT), PLAIN)
    assert [s["completion"] for s in other.samples] != [s["completion"] for s in runs[0].samples]


def test_the_base_is_untouched_after_a_steered_arm(loaded):
    ids = torch.tensor([[5, 6, 7]])
    before = loaded.base(ids).logits
    evaluate(loaded, [Arm("steered", vector())], EXAMPLES[:2], Protocol((0.0,), max_tokens=3, verifier=EXACT), PLAIN)
    assert torch.equal(before, loaded.base(ids).logits)


def test_faults_are_neither_right_nor_wrong():
    table = correct_table([[Verdict("correct"), Verdict("fault", "timeout")], [Verdict("wrong"), Verdict("wrong")]])
    assert table[0, 0] == 1 and np.isnan(table[0, 1]) and not table[1].any()


def test_openings_rank_by_accuracy_and_prefill(loaded):
    protocol = Protocol((1.0,), max_tokens=3, verifier=EXACT)
    likely = first_token_distribution(loaded, EXAMPLES, PLAIN, top=300)
    assert sum(p for _, p in likely) == pytest.approx(1.0, abs=1e-4)
    assert [p for _, p in likely] == sorted((p for _, p in likely), reverse=True)
    protocol = replace(protocol, seeds=2)
    openings = rank_openings(loaded, EXAMPLES, protocol, PLAIN, candidates=4)
    assert openings and [o.accuracy for o in openings] == sorted((o.accuracy for o in openings), reverse=True)
    for opening in openings:  # as an arm of its own finds it
        arm = Arm("prefix", assistant_prefix=opening.text)
        assert evaluate(loaded, [arm], EXAMPLES, protocol, PLAIN).rows[0]["accuracy"] == opening.accuracy
    result = evaluate(loaded, [Arm("prefix", assistant_prefix="apples")], EXAMPLES[:1], protocol, PLAIN)
    assert result.rows[0]["arm"] == "prefix"


def test_results_are_written_whole(loaded, tmp_path):
    protocol = Protocol((0.0, 1.0), max_tokens=3, verifier=EXACT)
    result = evaluate(loaded, [Arm("base"), Arm("x [y]", vector())], EXAMPLES, protocol, PLAIN, "apples")
    result.samples[0]["completion"] = "lone surrogate \ud800"
    path = write_results(tmp_path / "out", result, "m", None, 7, "steerkit evaluate")
    record = json.loads(path.read_text())
    assert (
        record["schema"] == 1
        and record["seed"] == 7
        and {"torch", "transformers", "steerkit"} <= set(record["versions"])
    )
    assert len(pq.read_table(path.with_name("samples.parquet"))) == 24
    assert not [p for p in path.parent.iterdir() if p.suffix == ".tmp"]

    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(results_table(result.rows, "title [with brackets]"))
    text = console.export_text()
    assert "x [y]" in text and "title [with brackets]" in text and "…" not in text


def test_bad_input(loaded):
    with pytest.raises(DataError, match="empty"):
        evaluate(loaded, [Arm("base")], [], Protocol(max_tokens=3), PLAIN)
    with pytest.raises(VectorError, match="width"):
        evaluate(loaded, [Arm("steered", vector(16))], EXAMPLES, Protocol(max_tokens=3), PLAIN)
    with pytest.raises(SteerkitError, match="k must be"):
        Protocol(k=0)
    with pytest.raises(SteerkitError, match="temperature"):
        Protocol(())
    long = [Example("long", "apples " * 400, "1")]
    with pytest.raises(DataError):
        evaluate(loaded, [Arm("base")], long, Protocol(max_tokens=3), PLAIN)
