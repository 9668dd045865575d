"""What a run has trained, as a value and on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from steerkit.baselines import WeightAdapter
from steerkit.errors import SteerkitError
from steerkit.training.members import member_dir
from steerkit.vectors import SteeringVector, VectorMetadata

if TYPE_CHECKING:
    from steerkit.training.module import SteeringModule


def steering_vector(module: SteeringModule, receipts: dict[str, Any], member: int) -> SteeringVector:
    """See ``SteeringModule.steering_vector``."""
    assert module.loaded is not None
    if module.policy.adapter is not None:
        raise SteerkitError(f"{module.intervention_name!r} changes weights: it is no steering vector.")
    policy = module.members[member].policy
    metadata = VectorMetadata(
        model=module.loaded.name,
        fingerprint=module.fingerprint,
        d_model=policy.d_model,
        n_layers=policy.n_layers,
        receipts={"prompt": module.template.to_dict(), "max_tokens": module.params.max_tokens, **receipts},
    )
    return SteeringVector.from_interventions(
        module.intervention_name, policy.interventions, metadata, policy.token_mask
    )


def save_trained(module: SteeringModule, run_dir: Path, receipts: dict[str, Any]) -> Path:
    """See ``SteeringModule.save_trained``."""
    assert module.loaded is not None
    if len(module.members) > 1:
        for number, member in enumerate(module.members):
            own = receipts | {"seed": member.seed, "lr": member.lr, "sweep": dict(member.axes)}
            if number in module.run_state.failed:
                own["failed"] = module.run_state.failed[number]
            module.steering_vector(own, number).save_pretrained(member_dir(run_dir, member) / "vector")
        return run_dir / "sweep"
    adapter = cast(WeightAdapter | None, module.policy.adapter)
    if adapter is None:
        return module.steering_vector(receipts).save_pretrained(run_dir / "vector")
    folder = run_dir / adapter.folder
    adapter.save(folder, module.loaded.base, module.loaded.tokenizer, module.loaded.name)
    return folder
