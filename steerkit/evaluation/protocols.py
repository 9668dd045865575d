"""Evaluation protocols by name, and what a vector's receipts say of how it should be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steerkit.errors import SteerkitError
from steerkit.evaluation.arms import Protocol
from steerkit.registry import did_you_mean

SMALL_SETS = {"aime24": 32, "aime25": 32, "amc23": 32}
"""Samples a problem on sets of 30 to 40 problems, as in arXiv 2509.06608 (avg@32)."""


@dataclass(frozen=True)
class Preset:
    """A protocol's settings; flags override them one by one."""

    about: str
    temperatures: tuple[float, ...]
    k: int = 1
    k_of: Mapping[str, int] = field(default_factory=dict)
    seeds: int = 1
    context: int | None = None
    """The longest prompt + answer in tokens (the model's own context if that is shorter); None: not part of it."""
    suite: str | None = None
    """The sets measured if neither a suite nor a data set is named."""


PRESETS: Mapping[str, Preset] = {
    "sinii2025": Preset(
        "arXiv 2509.06608: avg@32 on AIME and AMC, one sample on the others, temperature 1, 3 seeds, unweighted mean",
        (1.0,),
        k_of=SMALL_SETS,
        seeds=3,
        context=8192,
        suite="sinii2025",
    ),
    "steerkit": Preset(
        "every arm at temperature 0 and 1, avg@32 on AIME and AMC; measure the test split once, choose on validation",
        (0.0, 1.0),
        k_of=SMALL_SETS,
    ),
}
PLAIN = Preset("no preset", (0.0, 1.0))


def find_preset(name: str | None) -> Preset:
    """The preset of that name; None: no preset.

    Raises:
        SteerkitError: for an unknown name.
    """
    if name is None:
        return PLAIN
    if name not in PRESETS:
        raise SteerkitError(f"No protocol {name!r}.{did_you_mean(name, PRESETS)} Protocols: {', '.join(PRESETS)}.")
    return PRESETS[name]


def answer_room(context: int, model_context: int) -> int:
    """Tokens for the answer where prompt and answer share ``context``: a quarter of it, 1,024 at most, is the prompt's.

    The paper states contexts of 4,096 (Qwen2.5-Math, all that these models have) and 8,192 tokens.
    """
    total = min(context, model_context)
    return total - min(1024, total // 4)


def resolve(
    preset: Preset,
    flags: Mapping[str, Any],
    model_context: int,
    receipts: Mapping[str, Any],
    sets: Sequence[str],
) -> tuple[Protocol, list[str]]:
    """The protocol that is measured, and a line for each thing that flags changed in the preset.

    Args:
        flags: ``temperature``, ``k``, ``seeds``, ``max_tokens`` (None: not given); ``seed``, ``verifier``,
            ``sampler``, ``batch_tokens``, ``top_p``, ``top_k``.
        model_context: tokens that the model was made for.
        receipts: of the first vector; its ``max_tokens`` counts where neither flag nor preset says anything.
        sets: names of the sets measured; samples a problem on other sets don't matter.
    """
    room = answer_room(preset.context, model_context) if preset.context is not None else None
    default = room or int(receipts.get("max_tokens") or 128)
    k_of = {name: k for name, k in preset.k_of.items() if name in sets}
    given = {name: flags.get(name) for name in ("temperature", "k", "seeds", "max_tokens")}
    protocol = Protocol(
        temperatures=preset.temperatures if given["temperature"] is None else tuple(given["temperature"]),
        k=preset.k if given["k"] is None else given["k"],
        max_tokens=default if given["max_tokens"] is None else given["max_tokens"],
        seed=flags["seed"],
        verifier=flags["verifier"],
        sampler=flags["sampler"],
        k_of=k_of if given["k"] is None else {},
        seeds=preset.seeds if given["seeds"] is None else given["seeds"],
        batch_tokens=flags["batch_tokens"],
        top_p=flags.get("top_p", 1.0),
        top_k=flags.get("top_k", 0),
    )
    if preset is PLAIN:
        return protocol, []
    own_k = ", ".join([f"{k} on {name}" for name, k in k_of.items()] + [f"{preset.k} elsewhere"])
    own = {
        "temperature": " ".join(f"{t:g}" for t in preset.temperatures),
        "k": own_k if k_of else str(preset.k),
        "seeds": str(preset.seeds),
        "max_tokens": str(default),
    }
    changed = []
    for name, value in given.items():
        text = " ".join(f"{item:g}" for item in value) if isinstance(value, list) else str(value)
        if value is not None and text != own[name]:
            changed.append(f"--{name} {text} (protocol: {own[name]})")
    changed += [f"--top_p {protocol.top_p:g} (protocol: 1)"] * (protocol.top_p != 1)
    changed += [f"--top_k {protocol.top_k} (protocol: all)"] * (protocol.top_k != 0)
    return protocol, changed


def verifier_of(receipts: Sequence[Mapping[str, Any]]) -> tuple[str | dict[str, Any], str]:
    """The verifier that vectors were trained with, and why it is taken.

    Args:
        receipts: of each vector.

    Returns:
        (spec for group ``steerkit.verifiers``, a few words for the screen).

    Raises:
        SteerkitError: if the vectors were trained with different ones.
    """
    found = [spec for spec in map(_trained_with, receipts) if spec is not None]
    if not found:
        return "math", "the default"
    if any(spec != found[0] for spec in found):
        raise SteerkitError(
            f"The vectors were trained with different verifiers ({', '.join(sorted(set(map(str, found))))}): say which "
            f"one judges, with --verifier."
        )
    return found[0], "what the vector was trained with"


def _trained_with(receipts: Mapping[str, Any]) -> str | dict[str, Any] | None:
    """The verifier in the ``rewards`` of a vector's receipts: that of the first ``verifiable``, as in training."""
    rewards = receipts.get("rewards")
    items: Any = [rewards] if isinstance(rewards, str) else rewards
    if not isinstance(items, (list, tuple, Mapping)):
        return None
    for item in items:
        settings = item if isinstance(item, Mapping) else {"name": item}
        name = str(settings.get("name", ""))
        if name == "verifiable" or name.endswith(":Verifiable"):
            spec = settings.get("verifier", "math")
            return dict(spec) if isinstance(spec, Mapping) else str(spec)
    return None
