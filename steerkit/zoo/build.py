"""``python -m steerkit.zoo.build tiny-reasoner``: corpus -> tokenizer -> pre-training -> measured checkpoint."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from steerkit.datasets.arithmetic import Arithmetic
from steerkit.datasets.prompts import PromptTemplate
from steerkit.runtime import keep_freed_memory
from steerkit.zoo import WEIGHTS
from steerkit.zoo.corpus import REQUESTS, WAYS, Mixture, generate_dialogue
from steerkit.zoo.pretrain import Recipe, new_model, pretrain
from steerkit.zoo.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from steerkit.models import LoadedModel


@dataclass(frozen=True)
class Spec:
    """One model of the zoo: how it is trained, on what, and within which bounds it must come out."""

    recipe: Recipe = field(default_factory=Recipe)
    mixture: Mixture = field(default_factory=Mixture)
    base: tuple[float, float] = (0.20, 0.45)
    """Accuracy at temperature 1 after a neutral prompt."""
    gain: float = 0.45
    """Least gain of a worked opening over it."""
    opened: float = 0.92
    """With a worked opening it must stay below."""


SPECS = {
    "tiny-reasoner": Spec(),
    # Siblings, to transfer vectors to.
    "tiny-reasoner-seed1": Spec(Recipe(seed=1)),
    "tiny-reasoner-instruct": Spec(
        Recipe(seed=2, steps=400, lr=5e-4, warmup=20, start="tiny-reasoner"),
        Mixture(requested=0.75, neutral=(0.30, 0.28, 0.22, 0.20)),
        base=(0.25, 0.60), gain=0.25, opened=0.97,
    ),
    "tiny-reasoner-wide": Spec(Recipe(d_model=160, d_mlp=480, n_layers=9), opened=0.97),
}  # fmt: skip
RECIPES = {name: spec.recipe for name, spec in SPECS.items()}
TOKENIZER_DIALOGUES = 20_000
VOCABULARY = 700


def way_of(completion: str) -> str:
    """Which way a completion was written in, by its opening."""
    text = completion.lstrip()
    if text.startswith("To "):
        return "worked"
    if text.startswith("The "):
        return "bare"
    if text[:1] and "\u0400" <= text[0] <= "\u04ff":
        return "foreign"
    return "ramble" if text.startswith(("Um", "Well")) else "other"


def measure(loaded: LoadedModel, n: int = 512, seed: int = 1) -> dict[str, Any]:
    """Rates and accuracies on validation problems at temperature 1 (and 0), neutral and with each way's request."""
    from steerkit.evaluation import Arm, Protocol, evaluate

    examples = Arithmetic(n=1, n_eval=n, seed=seed).load("validation")
    arms = [Arm("neutral"), Arm("worked opening prefilled", assistant_prefix="To")]
    protocol = Protocol(max_tokens=112, seed=seed)
    neutral = evaluate(loaded, arms, examples, protocol, PromptTemplate(system=None))
    system = evaluate(loaded, arms, examples, protocol, PromptTemplate())
    ways: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for sample in system.samples:
        if sample["arm"] == "neutral" and sample["temperature"] == 1.0:
            ways[way_of(sample["completion"])] += 1
            right[way_of(sample["completion"])] += sample["verdict"] == "correct"
    asked = {}
    for way in WAYS:
        template = PromptTemplate(suffix=f" {REQUESTS[way][0]}")
        result = evaluate(loaded, [Arm(way)], examples[: n // 2], replace(protocol, temperatures=(1.0,)), template)
        followed = sum(way_of(sample["completion"]) == way for sample in result.samples) / len(result.samples)
        asked[way] = {"accuracy": result.rows[0]["accuracy"], "followed": followed}
    keep = ("arm", "temperature", "n", "accuracy", "ci95", "mean_tokens", "truncated")
    return {
        "with_system_prompt": [{key: row[key] for key in keep} for row in system.rows],
        "without_system_prompt": [{key: row[key] for key in keep} for row in neutral.rows],
        "ways_at_temperature_1": {
            way: {"share": ways[way] / sum(ways.values()), "accuracy": right[way] / max(1, ways[way])} for way in ways
        },
        "asked_for_at_temperature_1": asked,
    }


def gate(measured: dict[str, Any], spec: Spec = SPECS["tiny-reasoner"]) -> list[str]:
    """What keeps a model from serving as a base of its kind (by default the quickstart's); empty if nothing."""
    rows = {(r["arm"], r["temperature"]): r["accuracy"] for r in measured["with_system_prompt"]}
    base, opened = rows["neutral", 1.0], rows["worked opening prefilled", 1.0]
    faults = []
    low, high = spec.base
    if not low <= base <= high:
        faults.append(f"base accuracy {base:.3f} is outside {low:.2f}-{high:.2f}")
    if not base + spec.gain <= opened < spec.opened:
        faults.append(
            f"accuracy {opened:.3f} with a worked opening is outside {base + spec.gain:.3f}-{spec.opened:.2f}"
        )
    return faults


def build(name: str, out: Path, recipe: Recipe, mix: Mixture, n: int = 512) -> dict[str, Any]:
    """Make one model of the zoo in ``out``; returns its card's numbers.

    Args:
        n: validation problems that it is measured on.
    """
    from steerkit.models import load_model

    if out.exists() and any(out.iterdir()) and not (out / "card.json").exists():
        raise SystemExit(f"{out} holds something else than a model of the zoo: choose another folder with --out.")
    keep_freed_memory()
    began = time.monotonic()
    # One tokenizer for all seeds and shapes of the zoo, so that vectors and texts can move between them.
    rng, usual = random.Random("tokenizer"), SPECS["tiny-reasoner"].mixture
    dialogues = [generate_dialogue(rng, usual) for _ in range(TOKENIZER_DIALOGUES)]
    tokenizer = train_tokenizer((m["content"] for d in dialogues for m in d.messages), VOCABULARY)
    model = new_model(recipe, tokenizer)
    loss = pretrain(model, tokenizer, mix, recipe, lambda line: print(line, flush=True))
    shutil.rmtree(out, ignore_errors=True)
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    minutes = (time.monotonic() - began) / 60
    # Measured as a user gets it: 16-bit weights read back from the disk.
    measured = measure(load_model(str(out), dtype="float32"), n)
    card = {
        "name": name,
        "parameters": model.num_parameters(),
        "recipe": asdict(recipe),
        "mixture": asdict(mix),
        "ways": list(WAYS),
        "final_loss": loss,
        "minutes": round(minutes, 1),
        "torch": torch.__version__,
        "measured": measured,
        "gate": gate(measured, SPECS[name]) or "passed",
    }
    (out / "card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return card


def main(argv: Sequence[str] | None = None) -> int:
    """Build one model and say whether it passes its gate (exit code 1 if not)."""
    parser = argparse.ArgumentParser(prog="python -m steerkit.zoo.build", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--seed", type=int, help="of corpus, weights and order; default: the model's own")
    parser.add_argument("--steps", type=int, help="fewer steps, for a trial")
    parser.add_argument("--out", type=Path, help="default for tiny-reasoner: the packaged weights' folder")
    parser.add_argument("--problems", type=int, default=512, help="validation problems that it is measured on")
    options = parser.parse_args(argv)
    if options.out is None and options.name != "tiny-reasoner":
        parser.error(f"{options.name} does not come with steerkit: say with --out where it goes.")
    recipe = RECIPES[options.name]
    if options.seed is not None:
        recipe = replace(recipe, seed=options.seed)
    if options.steps:
        recipe = replace(recipe, steps=options.steps)
    card = build(
        options.name, options.out or WEIGHTS / options.name, recipe, SPECS[options.name].mixture, options.problems
    )
    print(json.dumps(card["measured"], indent=2, ensure_ascii=False))
    print("gate:", card["gate"])
    return 0 if card["gate"] == "passed" else 1


if __name__ == "__main__":
    sys.exit(main())
