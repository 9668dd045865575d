"""A vector that adds nothing, as a run leaves it whose rewards were all equal, is analysed and drawn like others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from steerkit.analysis import Analyzer, AttentionShift, LogitLens, TokenLanguage, TokenScale, draw
from steerkit.datasets import open_dataset
from steerkit.hookpoints import HookPoint
from steerkit.models import load_model
from steerkit.vectors import SteeringVector, VectorMetadata

SMALL = {"max_tokens": 4, "controls": 1}
ANALYZERS = [LogitLens(**SMALL), AttentionShift(**SMALL), TokenLanguage(**SMALL), TokenScale(**SMALL)]


@pytest.mark.parametrize("analyzer", ANALYZERS, ids=lambda analyzer: analyzer.name)
def test_an_untrained_vector_is_drawn(analyzer: Analyzer, tmp_path: Path) -> None:
    loaded = load_model("tiny-reasoner")
    zero = {HookPoint(layer): {"vector": torch.zeros(128)} for layer in range(6)}
    vector = SteeringVector("static", zero, {}, VectorMetadata("tiny-reasoner", "", 128, 6))
    problems = open_dataset({"name": "arithmetic", "n": 8, "n_eval": 2}).load("test")
    result = analyzer.run(loaded, {"zero": vector}, problems, engine="batched", folder=tmp_path)
    drawn = draw(tmp_path)
    assert result.rows and drawn.images and all(Path(image).is_file() for image in drawn.images)
