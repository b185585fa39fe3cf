"""Rules, verdicts and their words; and that claims and items are whole."""

from __future__ import annotations

import pytest

from saeflow.errors import InvalidArgument
from saeflow.experiments.statistics import Estimate
from saeflow.paper.claims import Claim, claims, items
from saeflow.paper.evidence import STAGES, Evidence
from saeflow.paper.verdicts import (
    ABOVE_0,
    BELOW_0,
    FAILS,
    HOLDS,
    OPEN,
    ClaimNumber,
    NotMeasured,
    Rule,
    interval,
    sentence,
    verdict_of,
)

H, F, O = HOLDS, FAILS, OPEN  # noqa: E741


LEAST = Rule("above", least=0.05)


def made(low: float | None, high: float | None, rule: Rule = ABOVE_0, words: str = "a less b") -> ClaimNumber:
    value = None if low is None or high is None else (low + high) / 2
    return ClaimNumber(words, Estimate(value, low, high, 10), rule)


@pytest.mark.parametrize(
    ("rule", "low", "high", "outcome"),
    [
        (ABOVE_0, 0.1, 0.3, H),
        (ABOVE_0, -0.3, -0.1, F),
        (ABOVE_0, -0.1, 0.3, O),
        (ABOVE_0, 0.0, 0.3, O),
        (BELOW_0, -0.3, -0.1, H),
        (BELOW_0, 0.1, 0.3, F),
        (BELOW_0, -0.1, 0.1, O),
        (Rule("above", 0.5), 0.6, 0.7, H),
        (Rule("above", 0.5), 0.1, 0.3, F),
        (Rule("within", 0.1), -0.05, 0.1, H),
        (Rule("within", 0.1), 0.11, 0.3, F),
        (Rule("within", 0.1), -0.4, -0.2, F),
        (Rule("within", 0.1), 0.05, 0.2, O),
        (Rule("apart", 0.1), 0.2, 0.3, H),
        (Rule("apart", 0.1), -0.05, 0.05, F),
        (Rule("apart", 0.1), 0.0, 0.2, O),
        (ABOVE_0, None, None, O),
        (LEAST, -0.04, 0.03, F),
        (LEAST, 0.0, 0.04, F),
        (LEAST, 0.01, 0.03, H),
        (LEAST, -0.04, 0.06, O),
        (LEAST, -0.5, 0.04, F),
        (Rule("below", least=0.5), -0.4, 2.0, F),
        (Rule("below", least=0.5), -0.6, 0.1, O),
        (LEAST, -0.3, -0.01, F),
        (Rule("below", least=0.05), -0.04, 0.04, F),
        (Rule("above", 0.5, 0.05), 0.46, 0.53, F),
    ],
)
def test_a_rule_reads_the_whole_interval(rule: Rule, low: float | None, high: float | None, outcome: str) -> None:
    assert made(low, high, rule).outcome == outcome


@pytest.mark.parametrize(
    ("parts", "all_of", "any_of"), [("HH", H, H), ("HF", F, H), ("HO", O, H), ("FO", F, O), ("FF", F, F), ("OO", O, O)]
)
def test_a_claim_of_several_parts(parts: str, all_of: str, any_of: str) -> None:
    intervals = {"H": (0.1, 0.2), "F": (-0.2, -0.1), "O": (-0.1, 0.1)}
    findings = [made(*intervals[part]) for part in parts]
    assert verdict_of(findings).outcome == all_of
    assert verdict_of(findings, any_of=True).outcome == any_of


def test_the_weakest_part_decides_where_all_hold_and_the_clearest_where_one_does_not() -> None:
    weak, strong = made(0.01, 0.2, words="weak"), made(0.5, 0.6, words="strong")
    assert verdict_of([strong, weak]).deciding is weak
    against, little = made(-0.6, -0.5), made(-0.2, -0.01)
    assert verdict_of([strong, little, against]).deciding is against
    assert verdict_of([]).outcome == O


def test_numbers_are_written_with_as_many_digits_as_their_intervals_bear() -> None:
    assert interval(Estimate(0.04912, 0.0431, 0.0552, 9), "points") == "+4.9\u00a0pp (4.3 to 5.5)"
    assert interval(Estimate(0.2191, 0.2157, 0.2225, 9), "number") == "+0.219 (0.216 to 0.223)"
    assert interval(Estimate(-1.12, -1.3, -0.9, 9), "number") == "\u22121.12 (\u22121.30 to \u22120.90)"
    assert interval(Estimate(0.7154, 0.7, 0.73, 9), "level") == "0.72 (0.70 to 0.73)"
    close = Estimate(-0.017, -0.0342, -0.0003, 9)
    assert interval(close, "number") == "\u22120.02 (\u22120.03 to 0.00)"
    assert interval(close, "number", ABOVE_0) == "\u22120.0170 (\u22120.0342 to \u22120.0003)"
    assert interval(Estimate(0.5, None, None, 9), "share") == "50.0\u00a0%"
    assert interval(Estimate(2.0, 2.0, 2.0, 9), "count") == "2"
    assert interval(Estimate(None, None, None, 0), "points") == "\u2013"


def test_a_difference_that_is_shown_to_be_small_does_not_hold_and_says_why() -> None:
    small, wide = made(-0.02, 0.03, LEAST), made(-0.04, 0.04, LEAST, "wide")
    verdict = verdict_of([wide, small])
    assert verdict.outcome == F
    assert verdict.deciding is small
    assert sentence(verdict_of([small])) == (
        "A less b: +0.5\u00a0pp (\u22122.0 to 3.0), which includes 0 and nothing 5 points above it: no difference "
        "that matters."
    )


def test_a_sentence_says_the_number_the_side_the_control_and_the_other_parts() -> None:
    found = Estimate(0.2, 0.1, 0.3, 9)
    one = ClaimNumber(
        "rate of a less that of b", found, ABOVE_0, control=Estimate(0.01, 0.0, 0.02, 9), beside="60 % against 40 %"
    )
    assert sentence(verdict_of([one])) == (
        "Rate of a less that of b: +20.0\u00a0pp (10.0 to 30.0), above 0, as claimed; 60 % against 40 %; its control "
        "+1.0\u00a0pp (0.0 to 2.0)."
    )
    several = sentence(verdict_of([one, made(-0.2, -0.1), made(-0.1, 0.1)]))
    assert several.endswith("1 of its 3 parts holds, 1 does not, 1 cannot be said.")
    assert "below 0" in several


# --- the claims as data -----------------------------------------------------------------------------------------------


def test_claims_are_whole() -> None:
    ids = [claim.id for claim in claims()]
    assert len(ids) == len(set(ids)) >= 50
    order = list(items())
    places = [order.index(claim.item) for claim in claims()]
    assert places == sorted(places)
    for claim in claims():
        assert claim.stage in (*STAGES, "graphs"), claim.id
        assert claim.section, claim.id
        assert claim.statement.endswith("."), claim.id
        assert items()[claim.item].stage == claim.stage, claim.id


def test_what_a_run_lacks_is_told_by_every_claim_that_needs_it() -> None:
    evidence = Evidence(why={"origins": "The stage origins was left out: no network."})
    for claim in claims():
        found = claim.check(evidence)
        assert (found.outcome, found.measured) == (O, False), claim.id
        assert found.why, claim.id
        if claim.stage == "origins":
            assert found.why == "The stage origins was left out: no network."


def test_an_error_of_a_measure_is_told_and_not_raised() -> None:
    def broken(run: object) -> list[ClaimNumber]:
        raise InvalidArgument("a group is missing")

    claim = Claim("x", "fig5", "5.1", "X.", "graphs", broken)
    assert claim.check(Evidence()).why == "It cannot be measured: a group is missing"
    with pytest.raises(NotMeasured, match="was not run"):
        _ = Evidence().run("origins")
