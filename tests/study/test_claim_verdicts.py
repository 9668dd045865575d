"""Verdicts: each rule of the tiny study in all three ways, what is missing, the planted effects, real files."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from claim_cases import ARMS, InMemory, analysed, block, evidence, row, rules, sample
from pyarrow import parquet

from steerkit.analysis import AnalysisResult
from steerkit.study.claims import judge
from steerkit.study.claims.estimates import Resampling
from steerkit.study.claims.evidence import Samples
from steerkit.study.claims.planted import planted
from steerkit.study.claims.rules import CLAIMS
from steerkit.study.claims.verdicts import verdict

RULES = rules()
DRAWS = Resampling(400, 0)
TESTS = [(name, index) for name, rule in RULES.claims.items() for index in range(len(rule.tests))]
OUTCOMES = ("reproduced", "not reproduced", "inconclusive")


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("claim", CLAIMS)
def test_each_claim_can_come_out_in_all_three_ways(claim, outcome):
    rule = RULES.claims[claim]
    found = verdict(rule, evidence(rule, outcome), DRAWS)
    assert found["outcome"] == outcome, found["reason"]
    assert found["low"] <= found["estimate"] <= found["high"] and found["seeds"] == 3 and found["n"] > 0
    assert found["power"].startswith("with ") and found["possible"] and found["sources"] and found["reason"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("outcome", OUTCOMES[1:])
@pytest.mark.parametrize(("claim", "index"), TESTS)
def test_each_single_test_can_turn_its_claim(claim, index, outcome):
    rule = RULES.claims[claim]
    found = verdict(rule, evidence(rule, outcome, index), DRAWS)
    assert found["outcome"] == found["tests"][index]["outcome"] == outcome
    assert [t["outcome"] for k, t in enumerate(found["tests"]) if k != index] == ["reproduced"] * (len(rule.tests) - 1)


@pytest.mark.parametrize(
    ("claim", "index"), [(c, i) for c, i in TESTS if RULES.claims[c].tests[i].settings.get("controls")]
)
def test_a_control_that_does_as_much_turns_its_claim(claim, index):
    rule = RULES.claims[claim]
    made = evidence(rule, "reproduced")
    test = rule.tests[index]
    sign = 1 if test.bound == "at_least" else -1
    if test.statistic in ("analysis", "sae_ablation"):
        metrics = {"analysis": test.settings.get("metric", "").replace("*", "x")}
        metric = metrics.get(test.statistic, "accuracy, edited - steered")
        flip = -sign if test.statistic == "sae_ablation" else sign
        for run in made.analyses:
            for one in run.result.rows:
                if one["metric"] == metric and one["control"] is not None:
                    one["control"] += flip * 9
                    one["control_ci95"] = [end + flip * 9 for end in one["control_ci95"]]
                elif one["metric"] == metric:  # a row that is another's control
                    one["value"] += flip * 9
                    one["ci95"] = [end + flip * 9 for end in one["ci95"]]
    else:
        arm = test.settings["arm"] if test.statistic == "share_of_gain" else "static_5"
        name = test.settings["controls"][-1]
        rows = made.samples._rows
        rows[name, 1.0] = [{**one, "arm": name} for one in rows[arm, 1.0]]
    assert verdict(rule, made, DRAWS)["tests"][index]["outcome"] != "reproduced"


def test_one_seed_where_three_are_asked_for():
    for claim, rule in RULES.claims.items():
        found = verdict(rule, evidence(rule, "reproduced", seeds=(0,)), DRAWS)
        assert found["outcome"] == ("reproduced" if rule.min_seeds == 1 else "inconclusive"), claim
        assert rule.min_seeds == 1 or "1 training seed" in found["reason"]


def test_seeds_that_differ_are_inconclusive():
    rule = RULES.claims["C6"]
    good, bad = evidence(rule, "reproduced"), evidence(rule, "not reproduced", 0)
    mixed = InMemory(analyses=[*good.analyses[:2], bad.analyses[2], *good.analyses[3:]])
    found = verdict(rule, mixed, DRAWS)["tests"][0]
    assert found["outcome"] == "inconclusive" and [part["outcome"] for part in found["by"]].count("reproduced") == 2


def test_transfer_needs_every_recipient_and_ignores_the_sibling_of_the_same_start():
    rule = RULES.claims["C8"]
    made = evidence(rule, "not reproduced")
    sibling = analysed("transfer", "static_all", 0, [row("normalised gain", 1.0, 0.01, 0.0, arm="ridge")],
                       settings={"recipient": "siblings/instruct"})  # fmt: skip
    made.analyses.append(sibling)
    assert verdict(rule, made, DRAWS)["outcome"] == "not reproduced"
    made.analyses[:] = [run for run in made.analyses if "wide" not in str(run.result.settings)]
    found = verdict(rule, made, DRAWS)
    assert found["outcome"] == "inconclusive" and "*wide*" in found["reason"]


FEW = block() | {"resamples": 400}


def test_nothing_measured_is_inconclusive(tmp_path):
    found = judge({}, tmp_path, FEW)
    assert [one["claim"] for one in found] == [*CLAIMS, "planted_true", "planted_false"]
    assert all(one["outcome"] == "inconclusive" and one["reason"] and one["estimate"] is None for one in found[:10])
    # What has no rule is no part of the study.
    some = {key: value for key, value in FEW.items() if key not in ("C2", "C5")}
    left = [name for name in CLAIMS if name in some]
    assert [one["claim"] for one in judge({}, tmp_path, some)] == [*left, "planted_true", "planted_false"]
    assert len(left) == 8


@pytest.mark.parametrize(
    "results",
    [
        {"samples": "samples.parquet"},
        {"samples": "broken.parquet", "analyses": [{"folder": "nowhere"}, {}]},
        {"samples": 3, "analyses": [{"folder": "broken"}], "arms": [{"arm": "static_all", "runs": [{"vector": "x"}]}]},
        {"arms": [{}], "analyses": [None], "seeds": None, "test": None},
    ],
)
def test_damage_is_inconclusive(tmp_path, results):
    (tmp_path / "broken.parquet").write_text("no parquet")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "analysis.json").write_text('{"schema": 1, "rows"')
    assert {one["outcome"] for one in judge(results, tmp_path, FEW)[:10]} == {"inconclusive"}


def test_a_number_without_interval_or_control_is_inconclusive():
    rule = RULES.claims["C8"]
    made = evidence(rule, "reproduced")
    made.analyses[0].result.rows[0]["ci95"] = None
    assert "no interval" in verdict(rule, made, DRAWS)["reason"]
    made.analyses[0].result.rows[0] |= {"value": None}
    assert verdict(rule, made, DRAWS)["outcome"] == "inconclusive"
    made = evidence(rule, "reproduced")
    made.analyses[0].result.rows[0] |= {"control": None}
    assert "no control" in verdict(rule, made, DRAWS)["reason"]


def test_full_fine_tuning_that_gains_nothing():
    rule = RULES.claims["C1"]
    samples = [
        sample(name, seed, k, (k + seed) % 2 == 0, 1)
        for name in ("base", "full", "static_all", *rule.tests[0].settings["controls"])
        for seed in range(3)
        for k in range(64)
    ]
    found = verdict(rule, InMemory(Samples(samples, "s")), DRAWS)
    assert found["outcome"] == "inconclusive" and "may be 0" in found["reason"]


def test_faults_are_left_out_and_problems_are_shared():
    samples = [sample("base", 0, k, False, 1) for k in range(8)]
    samples += [sample("a", 0, k, None if k == 0 else True, 1) for k in range(7)]
    tables, seeds = Samples(samples, "s").tables(["a", "base"], 1.0)
    assert tables["a"].shape == (1, 6) and tables["a"].all() and not tables["base"].any() and seeds["a"] == [0]


def test_the_planted_effects_come_out_right():
    for n, seeds in ((256, 3), (64, 1)):
        for start in range(3):
            for rule, made, expected in planted(n, seeds, 1000 * start):
                found = verdict(rule, made, Resampling(400, start))
                assert found["outcome"] == expected, (n, seeds, start, found["reason"])
                assert {test["outcome"] for test in found["tests"]} == {expected}


def test_the_planted_effects_would_show_a_broken_machine(monkeypatch):
    """With the comparison with controls taken out, the false effect's row passes."""
    from steerkit.study.claims import verdicts

    def without_controls(interval, bound, threshold, controls):
        return real(interval, bound, threshold, {})

    real = verdicts.decide
    monkeypatch.setattr(verdicts, "decide", without_controls)
    rule, made, _ = planted(256, 3, 0)[1]
    assert verdict(rule, made, DRAWS)["tests"][1]["outcome"] == "reproduced"


def test_positions_stand_for_layers():
    made = InMemory()
    assert made.arm("static_last") == "static_5" and made.arm("static_middle") == "static_3"
    assert made.arm("static_penultimate") == "static_4" and made.arm("static_first") == "static_0"
    assert made.arm("full") == "full" and made.arm("static_all") == "static_all"
    named = InMemory()
    named.results = {"arms": [*ARMS, {"arm": "static_last", "layers": [5]}]}
    assert named.arm("static_last") == "static_last"


def test_through_real_files(tmp_path):
    """C6 and C1 from what a study writes: parquet, analysis folders, vectors known by their digests."""
    from steerkit.hookpoints import HookPoint
    from steerkit.interventions import Static
    from steerkit.testing import randomize
    from steerkit.vectors import SteeringVector, VectorMetadata

    arms = [dict(arm) for arm in ARMS]
    analyses = []
    for seed in range(3):
        items = Static.build([HookPoint(layer) for layer in range(6)], 8)
        for item in items.values():
            randomize(item, seed)
        vector = SteeringVector.from_interventions("static", items, VectorMetadata("m", d_model=8, n_layers=6))
        folder = f"arms/static_all/seed{seed}/vector"
        vector.save_pretrained(tmp_path / folder)
        arms[1].setdefault("runs", []).append({"seed": seed, "vector": folder})
        of = f"analyses/persistence-static_all-{seed}"
        rows = [
            row("Diff-Diff, mean over later layers", 0.87, 0.004, 0.876, vector="x", steered_layer="each"),
            row("Diff-Vector, mean over later layers", 0.01, 0.004, 0.0, vector="x", steered_layer="each"),
        ]
        facts = {"digest": vector.digest(), "points": [str(point) for point in vector.tensors]}
        AnalysisResult(
            "persistence",
            {},
            rows,
            "all",
            {},
            {},
            [],
            {"n_layers": 6},
            {"x": facts},
            None,
            "nnsight",
            0,
            "",
            {},
            1.0,
            {},
        ).save(tmp_path / of)
        analyses.append({"analyzer": "persistence", "arm": "wrong", "seed": 9, "folder": of})
    made = evidence(RULES.claims["C1"], "reproduced").samples
    table = pa.Table.from_pylist([one for rows_ in made._rows.values() for one in rows_])
    parquet.write_table(table, tmp_path / "samples.parquet")
    results = {"arms": arms, "analyses": analyses, "samples": "samples.parquet", "seeds": [0, 1, 2], "test": {"n": 200}}
    found = {one["claim"]: one for one in judge(results, tmp_path, FEW)}
    assert found["C1"]["outcome"] == "reproduced" and found["C1"]["seeds"] == 3
    assert found["C6"]["outcome"] == "inconclusive"  # the control's interval holds the value
    assert [part["of"] for part in found["C6"]["tests"][0]["by"]] == ["seed 0", "seed 1", "seed 2"]
    assert found["C6"]["tests"][1]["outcome"] == "reproduced"
    assert found["planted_true"]["outcome"] == found["planted_true"]["expected"] == "reproduced"
    assert found["planted_false"]["outcome"] == found["planted_false"]["expected"] == "not reproduced"
