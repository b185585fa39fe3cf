"""Random rows in place of a plan's features: as long at every site, alike in activity, never a target."""

from collections import Counter

import numpy as np
import pytest
import torch

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Site
from saeflow.sources.library import load_dictionaries
from saeflow.sources.model import load_model
from saeflow.steering.plan import SteeringDirection, SteeringPlan, Step
from saeflow.steering.sizes import plan_change
from saeflow.steering.sweep.plans import NEAREST, random_mirrors, written_on

from ..experiments.planted import TEXT, plant


def feature(text):
    return FeatureId.parse(text)


@pytest.fixture(scope="module")
def demo():
    return load_model("demo"), load_dictionaries("demo")


PLAN = SteeringPlan(
    SteeringDirection.ACTIVATE,
    tuple(
        Step(feature(name), value)
        for name, value in [("2/res/5", 4.0), ("2/res/9", 2.0), ("2/mlp/7", -3.0), ("3/res/1", 1.0), ("3/att/2", 2.0)]
    ),
)
OTHERS = frozenset(map(feature, ("2/res/5", "2/res/9", "2/res/100", "3/res/44")))


def test_what_is_added_is_as_long_at_every_site_whatever_rows_are_drawn(demo) -> None:
    model, dictionaries = demo
    lengths = plan_change(PLAN, dictionaries, model).at_site
    assert lengths[Site.parse("2/res")] != pytest.approx(6.0)  # the rows of a site do not just add up
    drawn = random_mirrors(PLAN, dictionaries, model, avoid=OTHERS, seeds=range(6))
    for plan in drawn:
        assert plan_change(plan, dictionaries, model).at_site == pytest.approx(lengths, rel=1e-6)
        assert Counter(f.site for f in plan.features) == Counter(f.site for f in PLAN.features)
        assert plan.direction is SteeringDirection.ACTIVATE


def test_draws_differ_between_seeds_and_hold_no_target(demo) -> None:
    model, dictionaries = demo
    drawn = random_mirrors(PLAN, dictionaries, model, avoid=OTHERS, seeds=range(40))
    assert len({plan.features for plan in drawn}) == 40
    assert not {f for plan in drawn for f in plan.features} & (OTHERS | set(PLAN.features))
    again = random_mirrors(PLAN, dictionaries, model, avoid=OTHERS, seeds=[7])
    assert again[0] == drawn[7]


def test_a_target_is_avoided_even_where_few_rows_are_left() -> None:
    planted = plant()
    site = Site.parse("1/mlp")
    n = planted.dictionaries[site].n_features
    plan = SteeringPlan(SteeringDirection.ACTIVATE, (Step(FeatureId(site, 0), 1.0), Step(FeatureId(site, 1), 1.0)))
    planted.dictionaries[site].W_dec[7] = 0  # a feature without a direction is never drawn
    free = {FeatureId(site, 5), FeatureId(site, n - 1)}
    avoid = {FeatureId(site, index) for index in range(n) if index != 7} - free
    [drawn] = random_mirrors(plan, planted.dictionaries, planted.model, avoid=avoid, seeds=[0])
    assert set(drawn.features) == free
    with pytest.raises(InvalidArgument, match="1 rows that no target names, and 2 are needed"):
        random_mirrors(plan, planted.dictionaries, planted.model, avoid=avoid | {FeatureId(site, 5)}, seeds=[0])


def test_what_features_write_is_the_mean_of_activation_times_row_over_all_tokens() -> None:
    planted = plant()
    site = Site.parse("1/res")
    texts = [TEXT, "carry carry"]
    found = written_on(planted.model, planted.dictionaries, [site], texts)
    dictionary = planted.dictionaries[site]
    rows = []
    for text in texts:
        h = planted.model.capture(planted.tokens(text), [site])[site][0, 1:]  # without begin-of-text
        rows.append(dictionary.encode(h) * dictionary.W_dec.norm(dim=1))
    expected = torch.cat(rows).mean(0).numpy()
    assert np.allclose(found[site], expected, rtol=1e-4, atol=1e-7)
    assert (expected > 0).sum() >= 3


def test_a_suppression_is_mirrored_by_features_that_write_about_as_much(demo) -> None:
    model, dictionaries = demo
    site = Site.parse("3/res")
    rng = np.random.default_rng(0)
    active = np.exp(rng.normal(size=dictionaries[site].n_features) * 3)
    active[300:] = 0.0
    order = np.argsort(active)[::-1]
    loud, quiet, silent = int(order[3]), int(order[200]), 500
    steps = tuple(Step(FeatureId(site, row), -2.0) for row in (loud, quiet, silent))
    plan = SteeringPlan(SteeringDirection.SUPPRESS, steps)
    drawn = random_mirrors(plan, dictionaries, model, avoid=(), seeds=range(60), active={site: active})
    rank = {int(row): place for place, row in enumerate(order)}
    for one in drawn:
        assert [step.value for step in one.steps] == [-2.0] * 3
        rows = {step.why.split()[-1]: step.feature.index for step in one.steps}
        assert rows[f"{site}/{loud}"] in {int(row) for row in order[: NEAREST + 4]}
        assert abs(rank[rows[f"{site}/{quiet}"]] - 200) <= NEAREST + 2
        assert active[rows[f"{site}/{silent}"]] == 0
    assert len({one.features for one in drawn}) > 40


def test_silent_features_stand_in_for_an_active_one_only_where_there_is_no_other() -> None:
    planted = plant()
    site = Site.parse("1/res")
    active = np.zeros(planted.dictionaries[site].n_features)
    active[[0, 4, 6]] = 1.0, 5.0, 0.2
    plan = SteeringPlan(SteeringDirection.SUPPRESS, (Step(FeatureId(site, 0), 0.0),))
    drawn = random_mirrors(plan, planted.dictionaries, planted.model, avoid=(), seeds=range(200), active={site: active})
    chosen = {plan.features[0].index for plan in drawn}
    assert chosen == {4, 6}
    lonely = {site: np.where(np.arange(len(active)) == 0, 1.0, 0.0)}
    [drawn] = random_mirrors(plan, planted.dictionaries, planted.model, avoid=(), seeds=[0], active=lonely)
    assert drawn.features[0].index != 0


def test_a_suppression_without_activity_is_refused() -> None:
    planted = plant()
    plan = SteeringPlan(SteeringDirection.SUPPRESS, (Step(feature("1/res/0"), 0.0),))
    with pytest.raises(InvalidArgument, match="written_on"):
        random_mirrors(plan, planted.dictionaries, planted.model, avoid=(), seeds=[0])
