"""A small finished study: made-up arms, and every analyzer run for real on a tiny random model with random vectors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from helpers import checkpoint, tokenizer
from pyarrow import parquet

from steerkit import analysis
from steerkit.analysis import Analyzer
from steerkit.analysis.composition import GAIN
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static, Tokenwise
from steerkit.models import LoadedModel, find_layout
from steerkit.models.sites import inner_width
from steerkit.testing import randomize, tiny_model
from steerkit.types import Example
from steerkit.vectors import SteeringVector, VectorMetadata

N = 24
"""Test problems."""
PROBLEMS = ("Tom has 12 apples. Anna gives Tom 3 more.", "Anna has 3 apples.", "Tom gives 3 more. 12 apples?")
EXAMPLES = [Example(f"p{k}", text, "15") for k, text in enumerate(PROBLEMS)]
SHORT: dict[str, Any] = {"max_tokens": 4, "sampler": "transformers"}
JUDGED: dict[str, Any] = {**SHORT, "verifier": "exact"}
SAE: dict[str, Any] = {
    "layer": 2, "latents": 16, "k": 2, "steps": 30, "batch": 16, "samples": 2, "max_tokens": 5, "listed": 3,
    "features": 1, "controls": 1, "shuffles": 3, "verifier": "exact",
}  # fmt: skip
ARMS: tuple[tuple[str, str, str, list[int], float], ...] = (
    ("base", "base", "base", [], 0.2),
    ("static_0", "static, layer 0", "steering", [0], 0.3),
    ("static_1", "static, layer 1", "steering", [1], 0.5),
    ("static_2", "static, last layer", "steering", [2], 0.4),
    ("static_all", "static, all layers", "steering", [0, 1, 2], 0.7),
    ("lora_r1", "LoRA, rank 1", "baseline", [], 0.75),
    ("full", "full fine-tuning", "baseline", [], 0.8),
    ("random_vector", "random vector <norm-matched>", "control", [0, 1, 2], 0.15),
)
"""Name, label, role, layers, true accuracy at temperature 1."""


GAINS = {"copy": 0.91, "norm_matched": 0.62, "ridge": -0.33}
"""Normalised gains that stand in the transfer analyses."""
PAIR = 0.25
"""Normalised gain of every pair in the composition analysis."""


def make_study(folder: Path) -> dict[str, Any]:
    """Write a whole study folder below ``folder``; returns its results.json."""
    arms, samples = [], []
    generator = np.random.default_rng(7)
    for name, label, role, layers, rate in ARMS:
        arm, rows = _arm(folder, name, label, role, layers, rate, generator)
        arms.append(arm)
        samples += rows
    parquet.write_table(pa.Table.from_pylist(samples), folder / "samples.parquet")
    record = {
        "schema": 1, "name": "study_fixture", "config_hash": "c0ffee", "rules_hash": "5eed5", "base": "tiny",
        "command": "steerkit study --config configs/study_fixture.yaml --out runs/study", "started": 1795614697.8,
        "seconds": 754.0, "machine": {"cores": 2}, "versions": {"steerkit": "0.1.0"},
        "test": {"dataset": "arithmetic", "n": N, "sha": "abc"}, "temperatures": [0.0, 1.0], "seeds": [0, 1],
        "arms": arms, "aliases": {"static_last": "static_2"}, "samples": "samples.parquet",
        "first_tokens": {"5": "To\x00\x85", "6": "The"}, "analyses": _analyses(folder), "verdicts": _verdicts(),
        "failed": [{"id": "analyze/first_token-static_2", "error": "out of memory & more"}],
        "left_out": [{"what": "transfer-wide", "reason": "no installed model"}],
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(record), encoding="utf-8")
    return record


def _arm(
    folder: Path, name: str, label: str, role: str, layers: list[int], rate: float, generator: np.random.Generator
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows, accuracy, runs = [], {}, []
    for temperature, factor, k in ((0.0, 1.2, 1), (1.0, 1.0, 2)):
        right = generator.random((2, N, k)) < min(1.0, rate * factor)
        rows += [
            {"arm": name, "seed": seed, "temperature": temperature, "id": f"p{p}", "sample": s,
             "correct": bool(right[seed, p, s]), "tokens": 20, "boxed": True, "first_token": 5 + int(right[seed, p, s])}
            for seed in range(2) for p in range(N) for s in range(k)
        ]  # fmt: skip
        if name == "static_1":  # a fault of the verifier, and a completion without a token
            rows[-1] |= {"correct": None, "first_token": None}
        value = 100.0 * right.mean()
        by_seed = [round(100.0 * float(of_seed.mean()), 4) for of_seed in right]
        accuracy[f"{temperature:g}"] = {
            "value": round(value, 4), "low": round(max(0.0, value - 9.13), 4),
            "high": round(min(100.0, value + 8.21), 4), "n": N, "by_seed": by_seed,
        }  # fmt: skip
    for seed in range(2):
        place = f"arms/{name}/seed{seed}"
        (folder / place).mkdir(parents=True)
        lines = [f"{step},{0.1 + rate * step / 12}" for step in range(12)]
        (folder / place / "metrics.csv").write_text(
            "step,accuracy\n" + "\n".join(lines) + "\n12,nan\n,\n", encoding="utf-8"
        )
        trained = name not in ("base", "random_vector")
        curve = f"{place}/metrics.csv" if trained else None
        runs.append({"seed": seed, "folder": place, "vector": None, "curve": curve,
                     "command": f"steerkit fit --run_dir runs/{place} --seed_everything {seed}"})  # fmt: skip
    grid = [{"lr": lr, "accuracy": 40.0 + 100 * lr, "low": 35.0, "high": 55.0} for lr in (0.01, 0.03, 0.1)]
    arm = {
        "arm": name, "label": label, "role": role, "layers": layers, "trainable": 96, "optimizer_bytes": 768,
        "step_seconds": 1.25,
        "lr": '{"default": 0.1, "-1": 0.3}', "choice": {"lr": 0.1, "grid": grid} if name == "static_all" else None,
        "runs": runs, "accuracy": accuracy, "lengths": {}, "boxed": {},
    }  # fmt: skip
    return arm, rows


def _verdicts() -> list[dict[str, Any]]:
    common = {"statistic": "a share", "rule": "the interval is above the threshold", "threshold": 0.5, "unit": "share",
              "control": "random_vector", "power": "0.6 would have been told", "possible": "it could have failed",
              "sources": ["samples.parquet"], "notes": ["a note"], "n": N, "seeds": 2}  # fmt: skip
    outcomes = ["reproduced", "not reproduced", "inconclusive"]
    made = [
        {**common, "claim": f"C{k}", "title": f"claim number {k}", "estimate": 0.511 + k / 10, "low": 0.4, "high": 1.61,
         "control_value": 0.123, "outcome": outcomes[k % 3]}
        for k in range(1, 11)
    ]  # fmt: skip
    made[9] |= {"estimate": None, "low": None, "high": None, "control_value": None, "outcome": "inconclusive",
                "reason": "nothing was measured"}  # fmt: skip
    planted = [("planted_true", "reproduced"), ("planted_false", "not reproduced")]
    return made + [
        {**made[0], "claim": claim, "title": "planted", "outcome": outcome, "expected": outcome}
        for claim, outcome in planted
    ]


def _vector(loaded: LoadedModel, layers: list[int], kind: Any = Static, seed: int = 0) -> SteeringVector:
    needs = {"d_inner": inner_width(loaded.base, loaded.layout, 0)} if kind.needs else {}
    width = int(loaded.base.config.hidden_size)
    items = kind.build([HookPoint(layer, kind.sites[0]) for layer in layers], width, **needs)
    for k, item in enumerate(items.values()):
        randomize(item, seed + k, std=0.3)
    metadata = VectorMetadata("tiny", d_model=width, n_layers=3)
    return SteeringVector.from_interventions(kind.__name__.lower(), items, metadata)


def _with_gain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Random models gain nothing, and there is no share of nothing: shares of gains are planted."""
    given = GAINS.get(str(row.get("arm"))) if row["metric"] == "normalised gain" else None
    given = PAIR if row["metric"] == GAIN else given
    return dict(row) if given is None else {**row, "value": given, "ci95": [given - 0.1, given + 0.1], "control": 0.0}


def _analyses(folder: Path) -> list[dict[str, Any]]:
    tok = tokenizer()
    base = tiny_model(
        "llama", vocab_size=len(tok), max_position_embeddings=512, eos_token_id=tok.eos_token_id
    )  # fmt: skip
    loaded = LoadedModel(base, tok, find_layout(base), "tiny")
    every = _vector(loaded, [0, 1, 2])
    alone = {f"static_{layer}": _vector(loaded, [layer], seed=layer) for layer in range(3)}
    other = checkpoint(folder / "other", seed=3, max_position_embeddings=512)
    every.save_pretrained(folder / "own")
    runs: list[tuple[str, str, Analyzer, dict[str, SteeringVector]]] = [
        ("logit_lens", "static_all", analysis.LogitLens(top=4, controls=1, random_directions=8, **SHORT),
         {"all": every}),
        ("path_patching", "static_1", analysis.PathPatching(controls=1, **JUDGED), {"penultimate": alone["static_1"]}),
        ("attention_shift", "static_all", analysis.AttentionShift(controls=1, **SHORT), {"all": every}),
        ("token_language", "static_all", analysis.TokenLanguage(top=5, controls=1, **SHORT), {"all": every}),
        ("persistence", "static_all", analysis.Persistence(controls=1, **SHORT), {"all": every}),
        ("diff_sae", "static_0", analysis.DiffSae(**SAE), {"first": alone["static_0"]}),
        ("composition", "static_0", analysis.Composition(joint="all", k=1, **JUDGED), {**alone, "all": every}),
        ("transfer", "static_all", analysis.Transfer(samples=1, controls=1, **JUDGED), {"all": every}),
        ("transfer", "static_all",
         analysis.Transfer(recipient=other, own=str(folder / "own"), samples=1, controls=1, **JUDGED), {"all": every}),
        ("token_scale", "tokenwise", analysis.TokenScale(controls=1, top=4, **SHORT),
         {"tokenwise": _vector(loaded, [0, 2], Tokenwise)}),
        ("geometry", "static_all", analysis.Geometry(controls=8), {"all": every, **alone}),
    ]  # fmt: skip
    records = []
    for number, (name, arm, analyzer, vectors) in enumerate(runs):
        place = f"analyses/{name}-{number}"
        command = f"steerkit analyze {name} --model tiny --out runs/study/{place}"
        result = analyzer.run(loaded, vectors, EXAMPLES, engine="batched", command=command)
        result = replace(result, rows=[_with_gain(row) for row in result.rows])
        if name == "composition":
            result.arrays["pairs"].values[:, 2] = PAIR
        result.save(folder / place)
        records.append({"analyzer": name, "arm": arm, "seed": 0, "folder": place, "command": command, "seconds": 1.5})
    return records
