"""Each claim on steering, on planted sweeps in which it is true, false and open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from saeflow.paper.claims import claims
from saeflow.paper.evidence import Evidence
from saeflow.paper.verdicts import FAILS, HOLDS, OPEN, Verdict
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.cells import Cells
from saeflow.steering.sweep.settings import Setting
from tests.reproduce.claim_worlds import Marks, mostly, steering

CLAIMS = {claim.id: claim for claim in claims()}
ON, OFF = SteeringDirection.ACTIVATE, SteeringDirection.SUPPRESS
LAYERS, S, R = (0, 1, 2), (1.0, 4.0), (0.5, 0.0, -2.0, -8.0)
MULTI = ("constant", "linear", "exponential")
AT_START = Setting("single", 1, "constant", 1.0)

SETTINGS: list[tuple[SteeringDirection, Setting]] = [
    *((OFF, Setting("single", layer, "constant", r)) for layer in LAYERS for r in R),
    *((OFF, Setting("cumulative", layer, "constant", r)) for layer in LAYERS for r in R),
    *((OFF, Setting("start", -1, "constant", r)) for r in R),
    *((ON, Setting(method, layer, method, s)) for method in MULTI for layer in LAYERS for s in S),
    *((ON, Setting("single", layer, "constant", s)) for layer in LAYERS for s in S),
    *((ON, Setting("start", -1, "constant", s)) for s in S),
]
CHOSEN: list[tuple[SteeringDirection, Setting]] = [
    (OFF, Setting("single", 2, "constant", 0.0)),
    (OFF, Setting("cumulative", 2, "constant", 0.0)),
    (OFF, Setting("start", -1, "constant", 0.0)),
    (OFF, Setting("random", 2, "constant", 0.0, "cumulative")),
    *((ON, Setting(method, 2, method, 1.0)) for method in MULTI),
    (ON, AT_START),
    (ON, Setting("single", 2, "constant", 1.0)),
    (ON, Setting("start", -1, "constant", 1.0)),
    (ON, Setting("random", 2, "constant", 1.0, "linear")),
]


def marks(of: Any) -> Marks:
    """The marks of a setting: those `of` gives, and 0.4 for a score it does not."""

    def told(theme: str, direction: SteeringDirection, setting: Setting) -> Mapping[str, float]:
        return {"score": 0.4, "share_total": 0.05, **of(setting)}

    return told


def best(method: str | Sequence[str], score: float = 0.8, **more: float) -> Marks:
    """One method scores otherwise than all others."""
    names = (method,) if isinstance(method, str) else method
    return marks(lambda s: {"score": score, **more} if s.method in names else {})


def at(method: str, values: Mapping[float, float]) -> Marks:
    """A method whose score depends on the value."""
    return marks(lambda s: {"score": values.get(s.value, 0.4)} if s.method == method else {})


def peak(layers: Mapping[float, int]) -> Marks:
    """Single layers, of which one is best at each r."""
    return marks(lambda s: {"score": 0.8 if s.layer == layers.get(s.value) else 0.3} if s.method == "single" else {})


def marked(measure: str, method: Sequence[str], high: float, low: float) -> Marks:
    return marks(lambda s: {measure: high if s.method in method else low})


def layer(number: int) -> Marks:
    """One layer is the best single one."""
    return marks(lambda s: {"score": 0.9 if s.layer == number else 0.2} if s.method == "single" else {})


SEVERAL = ("cumulative", *MULTI)
STRONG = {-2.0: 0.8, -8.0: 0.9}
WORLDS: dict[str, tuple[Marks, Marks]] = {
    "fig9-stronger": (at("single", STRONG), at("single", {0.5: 0.9})),
    "fig9-earlier": (peak({0.5: 2, -8.0: 0}), peak({0.5: 0, -8.0: 2})),
    "fig9-even": (peak({-8.0: 0}), peak({0.5: 0})),
    "fig10-better": (best(("single", "cumulative")), best("start")),
    "fig10-weak": (at("cumulative", {0.5: 0.8, 0.0: 0.8}), at("cumulative", {0.5: 0.1, 0.0: 0.1})),
    "fig10-steady": (
        marks(lambda s: {"score": 0.6 if s.method == "cumulative" else 0.4 + 0.04 * abs(s.value)}),
        marks(lambda s: {"score": 0.4 + 0.04 * abs(s.value) if s.method == "cumulative" else 0.6}),
    ),
    "fig10-small": (best("cumulative"), best("single")),
    "sec6-smaller": (marked("share_total", SEVERAL, 0.1, 0.3), marked("share_total", SEVERAL, 0.3, 0.1)),
    "fig11-topic": (marked("behavior", MULTI, 4, 2), marked("behavior", MULTI, 1, 2)),
    "fig11-coherence": (marked("coherence", MULTI, 2, 4), marked("coherence", MULTI, 4, 2)),
    "intro-improves": (best(SEVERAL), best("start")),
    "intro-layers": (best(SEVERAL), best("single")),
    "fig16-elsewhere": (layer(2), layer(1)),
    "fig17-unnamed": (layer(2), layer(1)),
}
"""Claims with the marks of a sample in which each is true, and one in which it is false."""

CONFIRMED = {"sec6-smaller", "intro-improves", "intro-layers", "fig16-elsewhere"}


def verdict(name: str, worlds: Sequence[Marks], **how: Any) -> Verdict:
    settings = CHOSEN if name in CONFIRMED else SETTINGS
    roles = {AT_START: "start layer"} if name in CONFIRMED else {}
    run = steering(settings, worlds, roles=roles, starts={1: 3, 0: 1}, **how)
    return CLAIMS[name].check(Evidence(steering=run))


@pytest.mark.parametrize("name", WORLDS)
def test_a_claim_holds_fails_or_is_open_as_its_samples_are(name: str) -> None:
    true, false = WORLDS[name]
    assert verdict(name, mostly(true, false)).outcome == HOLDS
    assert verdict(name, mostly(false, true)).outcome == FAILS
    found = verdict(name, [true, true, false, false] * 2)
    assert found.outcome == OPEN
    assert found.measured


def test_every_claim_of_the_stage_is_planted() -> None:
    assert set(WORLDS) == {claim.id for claim in claims() if claim.stage == "steering"}


def test_a_setting_of_one_layer_is_not_compared_as_several() -> None:
    """Of settings up to the first layer, "several" would be the single layer itself."""
    single = Setting("single", 0, "constant", 1.0)
    one_layer = [Setting(method, 0, "constant", 1.0) for method in ("constant", "cumulative")]
    run = steering([(OFF, single), (ON, single), (OFF, one_layer[1]), (ON, one_layer[0])], [best("single")] * 8)
    found = CLAIMS["intro-layers"].check(Evidence(steering=run))
    assert (found.outcome, found.measured) == (OPEN, False)
    assert found.why.startswith("No direction has confirmed settings of several layers")


def test_one_theme_is_enough_where_the_claim_says_some() -> None:
    def somewhere(theme: str, direction: SteeringDirection, setting: Setting) -> Mapping[str, float]:
        return (layer(2) if theme == "two" else layer(1))(theme, direction, setting)

    found = verdict("fig16-elsewhere", mostly(somewhere, layer(1)))
    assert found.outcome == HOLDS
    assert found.deciding is not None
    assert found.deciding.words.endswith("two")
    # two themes: each interval leaves out a quarter of what one alone would
    assert "97.5 %" in found.deciding.beside


def test_the_control_of_chosen_settings_is_random_rows() -> None:
    found = verdict("intro-improves", [best(SEVERAL, 0.9)] * 4)
    assert found.findings[0].found.value == pytest.approx(0.5)
    assert found.findings[0].control.value == pytest.approx(0.0)


def test_the_best_layer_is_compared_under_a_limit_on_the_change() -> None:
    """Cumulative wins only by changing everything, which is over every small limit."""
    greedy = marks(
        lambda s: (
            {"score": 0.9, "share_total": 0.6}
            if s.method == "cumulative" and s.value < 0
            else {"score": 0.2}
            if s.method == "cumulative"
            else {}
        )
    )
    assert verdict("fig10-small", mostly(greedy, marks(lambda s: {}))).outcome == FAILS


@pytest.mark.parametrize("name", ["fig9-earlier", "fig9-even", "fig10-small"])
def test_a_theme_with_features_at_one_layer_does_not_spoil_the_others(name: str) -> None:
    run = steering(SETTINGS, mostly(*WORLDS[name]), starts={1: 3, 0: 1})
    texts = run.grid.texts
    one_layer = (texts["method"] == "single") & (texts["layer"] > 0) | (texts["method"] == "cumulative")
    left = Cells(run.grid.judge, texts[~((texts["theme"] == "two") & one_layer)].drop(columns="cell"))
    found = CLAIMS[name].check(Evidence(steering=replace(run, grid=left)))
    assert found.measured
    assert "of one theme" in found.findings[0].beside or "of 1 themes" in found.findings[0].beside


@pytest.mark.parametrize("name", [name for name in WORLDS if name.startswith(("fig9", "fig10"))])
def test_a_theme_with_fewer_r_does_not_spoil_the_others(name: str) -> None:
    run = steering(SETTINGS, mostly(*WORLDS[name]), starts={1: 3, 0: 1})
    texts = run.grid.texts
    left = Cells(run.grid.judge, texts[(texts["theme"] != "two") | (texts["value"] != R[1])].drop(columns="cell"))
    found = CLAIMS[name].check(Evidence(steering=replace(run, grid=left)))
    assert (found.outcome, found.measured) == (HOLDS, True)


def test_the_spread_of_a_theme_is_over_the_r_it_has() -> None:
    worlds = mostly(*WORLDS["fig10-steady"])
    run = steering(SETTINGS, worlds)
    one = run.grid.texts["theme"] == "one"
    weak = run.grid.texts["value"].isin(R[:2])
    apart = [Cells("planted", run.grid.texts[kept].drop(columns="cell")) for kept in (one, ~one & weak, one | weak)]
    spreads = [CLAIMS["fig10-steady"].check(Evidence(steering=replace(run, grid=grid))).findings for grid in apart]
    for first, second, both in zip(*spreads, strict=True):
        assert first.found.value != pytest.approx(second.found.value, abs=0.05)
        assert both.found.value == pytest.approx((first.found.value + second.found.value) / 2)
        assert both.found.n == first.found.n + second.found.n


def test_a_sweep_without_a_direction_or_fresh_samples_says_so() -> None:
    only = [pair for pair in SETTINGS if pair[0] is ON]
    run = steering(only, [best("start")] * 2)
    assert CLAIMS["fig10-better"].check(Evidence(steering=run)).why.startswith("No theme was steered")
    found = CLAIMS["intro-improves"].check(Evidence(steering=replace(run, confirmed=None)))
    assert found.why == "The chosen settings were not measured again on fresh samples."
