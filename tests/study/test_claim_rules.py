"""Rules in a config: what makes no sense is refused in one line, and the words say what the numbers do."""

from __future__ import annotations

import pytest
from claim_cases import block, rules

from steerkit.errors import SteerkitError
from steerkit.study.claims import parse_rules
from steerkit.study.claims.rules import CLAIMS


def test_the_tiny_study_has_a_rule_for_every_claim():
    found = rules()
    assert tuple(found.claims) == CLAIMS
    for rule in found.claims.values():
        assert rule.title and len(rule.possible) > 100 and all(test.unit and test.what for test in rule.tests)


def test_the_smollm2_study_has_the_same_rules_but_for_seeds_and_arms():
    tiny, real = rules(), parse_rules(block("study_smollm2"))
    assert tuple(real.claims) == CLAIMS and real.resampling == tiny.resampling
    for name, rule in real.claims.items():
        assert rule.possible and rule.possible != tiny.claims[name].possible
        for one, other in zip(rule.tests, tiny.claims[name].tests, strict=True):
            assert (one.what, one.bound, one.threshold) == (other.what, other.bound, other.threshold)
    assert real.claims["C1"].min_seeds == 3  # trained arms are compared: one seed can't tell


def test_the_words_come_from_the_numbers():
    made = block()
    assert "at least 0.9, and above random_vector and" in parse_rules(made).claims["C1"].words
    made["C1"]["tests"][0]["at_least"] = 0.7
    made["C1"]["min_seeds"] = 5
    words = parse_rules(made).claims["C1"].words
    assert "at least 0.7" in words and "5 training seeds or more" in words


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        (("C11",), {}, "claims has no 'C11'. Did you mean"),
        (("C1",), 3, "claims.C1 must be a rule"),
        (("C1", "tests"), [], "claims.C1.tests must list"),
        (("C1", "min_seed"), 3, "no setting 'min_seed'. Did you mean 'min_seeds'?"),
        (("C1", "min_seeds"), 0, "min_seeds must be at least 1"),
        (("C1", "tests", 0, "statistic"), "shares", "no statistic 'shares'"),
        (("C1", "tests", 0, "at_most"), 1.0, "one of at_least and at_most"),
        (("C1", "tests", 0, "at_least"), "much", "must be a number, or 'controls'"),
        (("C1", "tests", 0, "at_least"), float("nan"), "must be a number"),
        (("C1", "tests", 0, "metric"), "x", "(share_of_gain) has no setting 'metric'"),
        (("C6", "tests", 1, "at_most"), "controls", "needs controls"),
        (("resamples",), 3, "resamples must be at least 100"),
    ],
)
def test_nonsense_is_refused(place, value, complaint):
    made = block()
    at = made
    for part in place[:-1]:
        at = at[part]
    at[place[-1]] = value
    with pytest.raises(SteerkitError) as error:
        parse_rules(made)
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_a_missing_setting_is_named():
    made = block()
    del made["C1"]["tests"][0]["reference"]
    with pytest.raises(SteerkitError, match=r"claims\.C1\.tests\[0\] \(share_of_gain\) needs reference"):
        parse_rules(made)
    with pytest.raises(SteerkitError, match="must map C1 to C10"):
        parse_rules([1])
