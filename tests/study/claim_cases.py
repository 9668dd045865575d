"""Evidence made to order: for each rule of the tiny study, numbers that must come out one of the three ways."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from steerkit.study.claims.estimates import Outcome
from steerkit.study.claims.evidence import Analysed, Evidence, Samples
from steerkit.study.claims.rules import Rule, Rules, Test, control_names, parse_rules

CONFIGS = Path(__file__).parents[2] / "configs"
LAYERS = 6
ARMS = [
    {"arm": "base", "layers": []},
    {"arm": "static_all", "layers": list(range(LAYERS))},
    *({"arm": f"static_{layer}", "layers": [layer]} for layer in range(LAYERS)),
    {"arm": "tokenwise", "layers": list(range(LAYERS))},
]
PLACES = {"static_first": 0, "static_middle": 3, "static_penultimate": 4, "static_last": 5}
TOKEN = 7
SEEDS = (0, 1, 2)


def block(study: str = "study_tiny") -> dict[str, Any]:
    """The rules of a study's config."""
    places = (CONFIGS / f"{study}.yaml", CONFIGS / f"{study}_claims.yaml.part")
    for path in places:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
        if "claims" in found:
            return found["claims"]
    raise AssertionError(f"no rules in {places[0]}")


def rules() -> Rules:
    return parse_rules(block())


class InMemory(Evidence):
    """Evidence without files."""

    def __init__(self, samples: Samples | None = None, analyses: list[Analysed] | None = None) -> None:
        super().__init__({"arms": ARMS}, ".")
        if samples is not None:
            self.__dict__["samples"] = samples
        self.__dict__["analyses"] = analyses or []


def evidence(rule: Rule, outcome: Outcome, which: int | None = None, seeds: tuple[int, ...] = SEEDS) -> InMemory:
    """All tests of the rule reproduced, but test number ``which`` (all, if None), which comes out as ``outcome``."""
    analyses: list[Analysed] = []
    samples: list[dict[str, Any]] = []
    for index, test in enumerate(rule.tests):
        wanted = outcome if which is None or index == which else "reproduced"
        for seed in seeds:
            if test.statistic == "analysis":
                analyses += _analysis(test, wanted, seed)
            elif test.statistic == "sae_ablation":
                _ablation(analyses, test, wanted, seed)
            elif test.statistic == "lens_token":
                analyses.append(_lens(test, seed))
                samples += _openings(test, wanted, seed)
        if test.statistic == "share_of_gain":
            samples += _shares(test, wanted, seeds)
    return InMemory(Samples(samples, "samples.parquet"), analyses)


def arm(name: str) -> str:
    return f"static_{PLACES[name]}" if name in PLACES else name


def analysed(analyzer: str, of: str, seed: int, rows: list[dict], layer: int = 3, **more: Any) -> Analysed:
    facts = {"points": [f"layers.{layer}.output"]}
    result: Any = SimpleNamespace(
        analyzer=analyzer, rows=rows, settings=more.get("settings", {}), vectors={"v": facts},
        model={"n_layers": LAYERS}, tables=more.get("tables", {}),
    )  # fmt: skip
    return Analysed(f"analyses/{analyzer}-{of}-{seed}", result, {"v": (of, seed)})


def row(metric: str, value: float, half: float, control: float | None = None, **keys: Any) -> dict[str, Any]:
    ends = None if control is None else [control - half, control + half]
    return {
        "vector": "v", **keys, "metric": metric, "value": value, "ci95": [value - half, value + half], "n": 64,
        "control": control, "control_ci95": ends,
    }  # fmt: skip


def _values(test: Test, outcome: Outcome) -> tuple[float, float, float]:
    """(value, half width, control) that come out so."""
    sign = 1.0 if test.bound == "at_least" else -1.0
    threshold = 0.4 if test.threshold is None else test.threshold
    unit = 0.05 if test.settings.get("absolute") else 1.0  # sizes: a value far below the threshold would be negative
    half = 0.05 * unit
    control = threshold - sign * 0.3 * unit
    if test.threshold is None:  # against the control itself
        control = threshold
    offset = {"reproduced": 0.2, "not reproduced": -0.2, "inconclusive": 0.02}[outcome]
    return threshold + sign * offset * unit, half, control


def _analysis(test: Test, outcome: Outcome, seed: int) -> list[Analysed]:
    value, half, control = _values(test, outcome)
    names = test.settings.get("arm")
    of = arm(names) if names else "static_all"
    layer = int(of.rpartition("_")[2]) if of.rpartition("_")[2].isdigit() else 3
    where = test.settings.get("where", {})

    def made(spec: dict[str, Any], number: float, beside: float | None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [{}]
        for key, wanted in spec.items():
            options = wanted if isinstance(wanted, list) else [wanted]
            found = [one | {key: _filled(key, option, layer)} for one in found for option in options]
        return [row(_filled("", test.settings["metric"], layer), number, half, beside, **one) for one in found]

    rows = made(where, value, control)
    for spec in control_names(test.settings).values():
        if spec != "own":
            rows += made({**where, **spec}, control, None)
    settings = test.settings.get("settings") or {None: [None]}
    ((key, options),) = settings.items()
    return [
        analysed(test.settings["analyzer"], of, seed, rows, layer,
                 settings={} if key is None else {key: option.replace("*", "/runs/")})
        for option in options
    ]  # fmt: skip


def _filled(key: str, wanted: Any, layer: int) -> Any:
    if key in ("layer", "steered_layer") and wanted in ("own", -1):
        return layer if wanted == "own" else LAYERS - 1
    return wanted.replace("*", "x") if isinstance(wanted, str) else wanted


def _ablation(analyses: list[Analysed], test: Test, outcome: Outcome, seed: int) -> None:
    """Into the diff_sae that is there already: the first feature is of right answers, so ablating it must hurt."""
    value, half, control = _values(test, outcome)
    run = next(run for run in analyses if run.result.analyzer == "diff_sae" and run.vectors["v"][1] == seed)
    run.result.rows[0]["feature"] = 11
    keys = {"run": "ablated", "feature": 11}
    run.result.rows.append(row("accuracy, edited - steered", -value, half, -control, **keys))


def _lens(test: Test, seed: int) -> Analysed:
    first = {"vector": "v", "point": "layers.5.output", "lens": "norm", "side": "top", "rank": 1, "token_id": TOKEN,
             "token": "To", "cosine": 0.4}  # fmt: skip
    return analysed("logit_lens", arm(test.settings["arm"]), seed, [], 5, tables={"direct": [first]})


def _openings(test: Test, outcome: Outcome, seed: int) -> list[dict[str, Any]]:
    """Of 200 problems base and control begin 20 with the token; 25 points more are asked for."""
    share = {"reproduced": 0.8, "not reproduced": 0.1, "inconclusive": 0.36}[outcome]
    arms = {arm(test.settings["arm"]): share, "base": 0.1, **dict.fromkeys(control_names(test.settings), 0.1)}
    return [
        sample(name, seed, k, k % 2 == 0, TOKEN if (k * 7919) % 200 < share * 200 else 1)
        for name, share in arms.items()
        for k in range(200)
    ]


def _shares(test: Test, outcome: Outcome, seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    """Base 0.2, reference 0.8; the arm where the outcome needs it, each with problems of its own right."""
    assert test.threshold is not None
    share = test.threshold + {"reproduced": 0.45, "not reproduced": -0.6, "inconclusive": 0.0}[outcome]
    accuracies = {
        test.settings["arm"]: 0.2 + 0.6 * min(share, 1.3), test.settings["reference"]: 0.8, "base": 0.2,
        **dict.fromkeys(control_names(test.settings), 0.2),
    }  # fmt: skip
    return [
        sample(name, seed, k, (k * 7919 + 31 * len(name)) % 200 < accuracy * 200, 1)
        for name, accuracy in accuracies.items()
        for seed in seeds
        for k in range(200)
    ]


def sample(arm: str, seed: int, problem: int, correct: bool | None, token: int, temperature: float = 1.0) -> dict:
    return {"arm": arm, "seed": seed, "temperature": temperature, "id": f"p{problem}", "correct": correct,
            "first_token": token}  # fmt: skip
