"""On a model whose causes are known, the right predecessor deactivates its target and others do not."""

from dataclasses import replace

import numpy as np
import pytest

from saeflow.errors import InvalidArgument, UnknownSite
from saeflow.experiments.causal import PreparedText
from saeflow.experiments.deactivation import EditBatch, RowNorms, TokenLayer, deactivation_trials
from saeflow.experiments.groups import Origin
from saeflow.experiments.methods import random_of_top_k, top_k
from saeflow.experiments.sampling import Sample
from saeflow.experiments.settings import DeactivationSize
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import Positions, Rescale

from .planted import LAYER, TARGETS, TEXT, plant, positions
from .planted_tables import cosine

EVERYWHERE = tuple(range(1, len(TEXT.split()) + 1))
SAMPLE = Sample("planted", 0, TEXT, EVERYWHERE)
RES = Site(LAYER, Part.RES)
SIZE = DeactivationSize(loss=3)
SWEEP = SIZE.r
WORD = {"carried": "carry", "written": "write", "attended": "nothing", "both": "double", "orphan": "orphan"}


@pytest.fixture(scope="module")
def planted():
    return plant()


@pytest.fixture(scope="module")
def strategies(planted):
    tables = cosine(planted)
    return [top_k("top-1", tables), top_k("top-5", tables, 5), random_of_top_k("random of top-5", tables)]


@pytest.fixture(scope="module")
def trials(planted, strategies):
    return deactivation_trials(planted.model, planted.dictionaries, strategies, SAMPLE, SIZE, layers=[LAYER])


def pick(trials, strategy="top-1", control=False, r=0.0, **where):
    """Trials of a strategy whose target, position, group or removed are as said."""

    return [
        t
        for t in trials
        if (t.strategy, t.control, t.r) == (strategy, control, r)
        and all(getattr(t, name) == wanted for name, wanted in where.items())
    ]


@pytest.mark.parametrize("name", ["carried", "written", "attended", "both"])
def test_removing_the_true_predecessors_deactivates(planted, trials, name) -> None:
    target, position = planted.feature(RES, name), positions(WORD[name])[-1]
    group = Origin.of(TARGETS[name])
    [trial] = pick(trials, target=target, position=position, removed=group)
    assert trial.group == group
    assert set(trial.features) == set(planted.predecessors(name))
    assert trial.deactivated
    assert trial.change == 1
    assert trial.new_group == Origin.NOWHERE


def test_a_feature_from_nowhere_is_counted_and_nothing_is_removed(planted, trials) -> None:
    target, position = planted.feature(RES, "orphan"), positions("orphan")[-1]
    for strategy in ("top-1", "top-5"):
        [trial] = pick(trials, strategy, target=target, position=position)
        assert (trial.group, trial.removed) == (Origin.NOWHERE, Origin.NOWHERE)
        assert trial.features == {}
        assert trial.z_new == trial.z_old > 0
    # what causes it has another direction: matching cannot see it, search does
    best = min(pick(trials, "exhaustive", target=target, position=position), key=lambda t: t.z_new)
    assert set(best.features) == {planted.feature("0/res", "orphan_cause")}
    assert best.deactivated


def test_controls_are_other_active_features_as_many_of_the_same_sites_and_do_not_deactivate(trials) -> None:
    controls = [t for t in trials if t.control]
    assert len(controls) > 50
    for trial in controls:
        of = trials[trial.controls]
        assert (of.target, of.position, of.strategy) == (trial.target, trial.position, trial.strategy)
        assert of.removed == trial.removed
        assert not of.control
        assert not set(trial.features) & set(of.features)
        sites = [sorted(str(f.site) for f in t.features) for t in (trial, of)]
        assert sites[0] == sites[1]
        assert min(trial.features.values()) > 0
    own = [t for t in trials if t.controls is None and t.removed == t.group]
    top_1 = [t for t in own if t.strategy == "top-1" and t.r == 0 and t.features]
    of_top_1 = [t for t in controls if t.strategy == "top-1"]
    assert np.mean([t.deactivated for t in top_1]) > 0.9
    assert np.mean([t.deactivated for t in of_top_1]) < 0.5


def test_where_no_other_feature_is_active_there_is_no_control(planted, trials) -> None:
    # 1/att has one feature that can fire
    removed = pick(trials, target=planted.feature(RES, "attended"), removed=Origin.ATT)
    assert removed
    numbers = {n for n, t in enumerate(trials) if t in removed}
    assert not any(t.controls in numbers for t in trials)


def test_r_of_1_changes_nothing_and_the_sweep_is_linear_where_the_cause_is(planted, trials) -> None:
    target, position = planted.feature(RES, "carried"), positions("carry")[-1]
    for r in SWEEP:
        [trial] = pick(trials, r=r, target=target, position=position, removed=Origin.RES)
        assert trial.change == pytest.approx(min(1 - r, 1), abs=1e-5)
    kept = [t for t in trials if t.r == 1]
    assert kept
    assert all(t.z_new == t.z_old for t in kept)
    assert all(t.loss_new == t.loss_old for t in kept)
    assert {t.control for t in kept} == {True, False}


def test_a_target_has_the_same_control_for_every_r(trials) -> None:
    controls = {}
    for number, trial in enumerate(trials):
        if trial.control and trial.strategy == "top-1":
            of = trials[trial.controls]
            assert trial.r == of.r
            assert trial.features.keys().isdisjoint(of.features)
            controls.setdefault((trial.position, trial.target, of.removed), []).append(number)
    swept = [[trials[n] for n in numbers] for numbers in controls.values() if len(numbers) > 1]
    assert swept
    for removals in swept:
        assert sorted(removal.r for removal in removals) == sorted(SWEEP)
        assert len({(tuple(removal.features), removal.norm) for removal in removals}) == 1
    # every target that has a control of its removal has one of its sweep, and no other has
    removed = [t.removed == t.group for t in trials if t.control and t.strategy == "top-1"]
    assert sum(removed) == sum(map(len, swept))


def test_search_is_never_worse_and_a_set_never_worse_than_one(trials) -> None:
    best = {}
    for trial in trials:
        if trial.r == 0 and len(trial.features) <= 1:
            key = trial.position, trial.target
            best[key] = min(best.get(key, np.inf), trial.z_new)
    single, sets = {}, {}
    for trial in pick(trials, "exhaustive"):
        key = trial.position, trial.target
        single[key] = min(single.get(key, np.inf), trial.z_new)
    for trial in pick(trials, "greedy"):
        assert len(trial.features) <= 5
        sets[trial.position, trial.target] = trial.z_new
    assert single.keys() == sets.keys() == best.keys()
    assert all(single[key] == best[key] for key in best)
    assert all(sets[key] <= single[key] for key in best)


def test_every_effect_is_that_of_a_full_forward_pass(planted, trials) -> None:
    """The oracle: hooks on the whole model, one pass a trial."""
    tokens = planted.tokens()
    chosen = [t for t in trials if t.features][::17]
    assert len(chosen) > 30
    for trial in chosen:
        by_site = {}
        for feature in trial.features:
            by_site.setdefault(feature.site, []).append(feature)
        where = Positions((trial.position,))
        edits = [Rescale(tuple(f), trial.r, where) for _, f in sorted(by_site.items())]
        with planted.model.intervening(edits, planted.dictionaries):
            h = planted.model.capture(tokens, [RES])[RES][0, trial.position]
        z = planted.dictionaries[RES].encode(h)[trial.target.index].item()
        assert trial.z_new == pytest.approx(z, abs=1e-4)


def test_the_loss_is_there_for_the_targets_drawn_and_is_the_models(planted, trials) -> None:
    with_loss = [t for t in trials if t.loss_new is not None]
    assert {t.r for t in with_loss} == {*SWEEP, 0.0}
    assert {t.strategy for t in with_loss} == {"top-1"}
    drawn = {(t.position, t.target) for t in with_loss}
    assert len(drawn) == 3
    controlled = {(t.position, t.target) for t in trials if t.control and t.r == 2}
    assert {(t.position, t.target) for t in with_loss if t.control} == drawn & controlled
    assert drawn & controlled
    [old] = {t.loss_old for t in with_loss}
    assert old == pytest.approx(planted.model.loss(planted.tokens()).nanmean().item(), abs=1e-5)


def test_trials_are_a_function_of_the_seed(planted, strategies, trials) -> None:
    ask = lambda seed: deactivation_trials(  # noqa: E731
        planted.model, planted.dictionaries, strategies, SAMPLE, SIZE, layers=[LAYER], seed=seed
    )
    assert ask(0) == trials
    drawn = [{(t.position, t.target) for t in found if t.loss_new} for found in (trials, ask(1))]
    assert drawn[0] != drawn[1]


def test_targets_beyond_the_most_are_drawn(planted, strategies) -> None:
    few = deactivation_trials(
        planted.model,
        planted.dictionaries,
        strategies[:1],
        SAMPLE,
        DeactivationSize(("top-1",), features=1),
        layers=[LAYER],
    )
    per_token = {}
    for trial in few:
        per_token.setdefault(trial.position, set()).add(trial.target)
    assert {len(targets) for targets in per_token.values()} == {1}
    assert len({targets.pop() for targets in per_token.values()}) > 2
    assert {trial.strategy for trial in few} == {"top-1"}


def test_a_control_is_the_nearest_in_norm_of_five(planted) -> None:
    text = PreparedText(planted.model, planted.dictionaries, planted.tokens(), layers=[LAYER])
    position = positions("carry")[-1]
    norms = RowNorms(planted.dictionaries)
    here = TokenLayer.at(text, LAYER, position, SAMPLE, norms, SIZE, 0)
    site = Site(0, Part.RES)
    values = {FeatureId(site, n): float(n + 1) for n in range(5)}
    made = TokenLayer(LAYER, position, here.targets, {Part.RES: values}, norms)
    lengths = planted.dictionaries[site].W_dec.norm(dim=1).tolist()
    target = planted.feature(RES, "carried")
    assert made.norm(FeatureId(site, 2)) == pytest.approx(3 * lengths[2])
    assert made.control(target, (FeatureId(site, 2),), SAMPLE, 0) == (FeatureId(site, 3),)  # 4 / 3 < 3 / 2
    assert made.control(target, tuple(values), SAMPLE, 0) is None
    assert len(made.control(target, (FeatureId(site, 0), FeatureId(site, 1)), SAMPLE, 0)) == 2


def test_edits_asked_twice_are_run_once(planted, monkeypatch) -> None:
    text = PreparedText(planted.model, planted.dictionaries, planted.tokens(), layers=[LAYER])
    ran = []
    run = PreparedText.run
    monkeypatch.setattr(
        PreparedText, "run", lambda self, trials, **more: ran.extend(trials) or run(self, trials, **more)
    )
    asked = EditBatch(text)
    position = positions("double")[-1]
    res, mlp = planted.predecessors("both")
    both, target = asked.edit(LAYER, position, (mlp, res)), planted.feature(RES, "both")
    assert both is asked.edit(LAYER, position, (res, mlp))
    for watch in ([target], [target, res], [mlp]):
        asked.ask(both, watch)
    asked.answer()
    asked.ask(both, [target, res, mlp])
    asked.answer()
    [trial] = ran
    assert set(trial.watch) == {target, res, mlp}
    assert both.after[target] == 0
    assert both.losses is None


def test_rows_say_all_of_a_trial_in_plain_values(trials) -> None:
    number = next(n for n, t in enumerate(trials) if t.control)
    row = trials[number].to_row(number)
    assert row["trial"] == number
    assert (row["control"], row["controls"]) == (True, trials[number].controls)
    assert row["group"] in {origin.label for origin in Origin.groups()}
    assert row["features"] == pytest.approx({str(f): a for f, a in trials[number].features.items()})
    assert row["change"] == pytest.approx(1 - row["z_new"] / row["z_old"], abs=1e-5)
    assert row["deactivated"] == (row["z_new"] == 0)


@pytest.mark.parametrize(("z_new", "gone", "change"), [(0.0, True, 1.0), (1e-9, False, 1.0), (3.0, False, -0.5)])
def test_only_an_activation_of_exactly_0_is_deactivated(trials, z_new, gone, change) -> None:
    trial = replace(trials[0], z_old=2.0, z_new=z_new)
    assert trial.deactivated is gone
    assert trial.change == pytest.approx(change)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"features": 0}, "features = 0"), ({"r": (float("nan"),)}, "not a number"), ({"loss": -1}, "loss = -1")],
)
def test_a_protocol_out_of_range_is_refused(changes, words) -> None:
    with pytest.raises(InvalidArgument, match=words):
        DeactivationSize(**changes)


def test_layers_and_strategies_that_are_not_there_are_refused(planted, strategies) -> None:
    ask = lambda chosen, layer: deactivation_trials(  # noqa: E731
        planted.model, planted.dictionaries, chosen, SAMPLE, DeactivationSize(), layers=[layer]
    )
    with pytest.raises(InvalidArgument, match="without strategies"):
        ask([], LAYER)
    with pytest.raises(UnknownSite, match="no dictionary at 7/res"):
        ask(strategies, 7)
    elsewhere = top_k("top-1", {pair: table for pair, table in cosine(planted).items() if pair[0].layer == 2})
    with pytest.raises(UnknownSite, match="no strategy has matches for 1/res"):
        ask([elsewhere], LAYER)
