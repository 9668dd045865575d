"""The claims C1 to C10 of arXiv 2509.06608 as rules that stand in a study's config, and what a study says of them.

    parse_rules(config.claims)                                   # before the study is run: do they make sense?
    verdicts = judge(results, "runs/study", config.claims)       # after it

``docs/claims.md`` has the table of the rules and the form of a verdict.
"""

from steerkit.study.claims.rules import parse_rules
from steerkit.study.claims.verdicts import judge

__all__ = ["judge", "parse_rules"]
