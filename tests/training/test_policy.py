"""The policy that training starts from."""

from __future__ import annotations

from helpers import checkpoint

from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import fingerprint, load_model
from steerkit.training.policy import build_policy
from steerkit.vectors import SteeringVector, VectorMetadata


def test_a_vector_of_another_base_is_named_in_the_log(tmp_path, caplog):
    loaded, other = (load_model(checkpoint(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    items = Static.build([HookPoint(1)], 32)
    metadata = VectorMetadata("its own", fingerprint(loaded.base), 32, 3)
    SteeringVector.from_interventions("static", items, metadata).save_pretrained(tmp_path / "vector")
    name, policy = build_policy(loaded, vector=str(tmp_path / "vector"))
    assert name == "static" and list(policy.interventions) == [HookPoint(1)] and not caplog.records
    build_policy(other, vector=str(tmp_path / "vector"))
    assert ["trained on its own" in record.getMessage() for record in caplog.records] == [True]
