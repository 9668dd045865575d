"""Presets, what overrides them, and the verifier that a vector's receipts tell."""

from __future__ import annotations

from typing import Any

import pytest

from steerkit.datasets.suites import SUITES
from steerkit.errors import SteerkitError
from steerkit.evaluation.protocols import answer_room, find_preset, resolve, verifier_of

FLAGS: dict[str, Any] = {
    "temperature": None,
    "k": None,
    "seeds": None,
    "max_tokens": None,
    "seed": 1,
    "verifier": "math",
    "sampler": "transformers",
    "batch_tokens": 1000,
}
SIX = SUITES["sinii2025"]


def test_the_papers_protocol() -> None:
    preset = find_preset("sinii2025")
    protocol, changed = resolve(preset, FLAGS, 4096, {"max_tokens": 77}, SIX)
    assert (protocol.temperatures, protocol.seeds, changed) == ((1.0,), 3, [])
    assert [protocol.samples(name, 1.0) for name in SIX] == [32, 32, 32, 1, 1, 1]
    assert protocol.seeds_at(1.0) == (1, 2, 3)
    assert preset.suite == "sinii2025" and len(SIX) == 6
    assert protocol.max_tokens == 3072  # the preset's, not the vector's


@pytest.mark.parametrize(("model", "room"), [(4096, 3072), (131072, 7168), (2048, 1536), (512, 384)])
def test_the_answer_gets_what_the_prompt_leaves_of_the_papers_contexts(model: int, room: int) -> None:
    assert answer_room(8192, model) == room


def test_our_protocol_has_both_temperatures() -> None:
    protocol, changed = resolve(find_preset("steerkit"), FLAGS, 4096, {"max_tokens": 77}, ["gsm8k", "aime24"])
    assert (protocol.temperatures, protocol.seeds, protocol.max_tokens, changed) == ((0.0, 1.0), 1, 77, [])
    assert (protocol.samples("aime24", 1.0), protocol.samples("aime24", 0.0), protocol.samples("gsm8k", 1.0)) == (
        32,
        1,
        1,
    )


def test_flags_override_and_are_named() -> None:
    flags = FLAGS | {"temperature": [0.0, 0.6], "k": 4, "seeds": 1, "max_tokens": 128}
    protocol, changed = resolve(find_preset("sinii2025"), flags, 4096, {}, SIX)
    assert (protocol.temperatures, protocol.k, protocol.k_of, protocol.seeds, protocol.max_tokens) == (
        (0.0, 0.6),
        4,
        {},
        1,
        128,
    )
    assert changed == [
        "--temperature 0 0.6 (protocol: 1)",
        "--k 4 (protocol: 32 on aime24, 32 on aime25, 32 on amc23, 1 elsewhere)",
        "--seeds 1 (protocol: 3)",
        "--max_tokens 128 (protocol: 3072)",
    ]
    _, same = resolve(find_preset("sinii2025"), FLAGS | {"temperature": [1.0], "seeds": 3}, 4096, {}, SIX)
    assert same == []


def test_without_a_preset() -> None:
    protocol, changed = resolve(find_preset(None), FLAGS | {"k": 2}, 4096, {}, ["gsm8k"])
    assert (protocol.temperatures, protocol.k, protocol.max_tokens, changed) == ((0.0, 1.0), 2, 128, [])
    with pytest.raises(SteerkitError, match="Did you mean 'sinii2025'"):
        find_preset("sinii2026")


@pytest.mark.parametrize(
    ("rewards", "spec"),
    [
        ("verifiable", "math"),
        ({"verifiable": 1.0}, "math"),
        (["length", {"name": "verifiable", "verifier": "exact"}], "exact"),
        (
            [{"name": "verifiable", "verifier": {"name": "exact", "extract": "text"}}],
            {"name": "exact", "extract": "text"},
        ),
        ([{"name": "steerkit.rewards:Verifiable", "verifier": "exact", "weight": 0}], "exact"),
        (["verifiable", {"name": "verifiable", "verifier": "exact", "label": "b"}], "math"),
    ],
)
def test_the_verifier_of_the_receipts(rewards: Any, spec: Any) -> None:
    assert verifier_of([{"rewards": rewards}]) == (spec, "what the vector was trained with")


@pytest.mark.parametrize(
    "receipts", [[], [{}], [{"rewards": "format"}], [{"rewards": {"format": 1}}], [{"rewards": None}]]
)
def test_the_default_verifier(receipts: Any) -> None:
    assert verifier_of(receipts) == ("math", "the default")


def test_vectors_of_different_verifiers() -> None:
    exact = {"rewards": [{"name": "verifiable", "verifier": "exact"}]}
    assert verifier_of([exact, {}, exact])[0] == "exact"
    with pytest.raises(SteerkitError, match=r"different verifiers \(exact, math\).*--verifier"):
        verifier_of([exact, {"rewards": "verifiable"}])
