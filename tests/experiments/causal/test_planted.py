"""On a model whose causes are known, the true predecessor removes its target and a wrong one does not."""

from __future__ import annotations

import pytest

from saeflow.experiments.causal import PreparedText, Trial
from saeflow.ids import Part, Site
from saeflow.interventions import Rescale

from ..planted import LAYER, TARGETS, plant, positions

WORD = {"carried": "carry", "written": "write", "attended": "nothing", "both": "double", "orphan": "orphan"}
RES = Site(LAYER, Part.RES)


@pytest.fixture(scope="module")
def planted():
    return plant()


@pytest.fixture(scope="module")
def text(planted):
    return PreparedText(planted.model, planted.dictionaries, planted.tokens(), layers=[LAYER])


def top_1(planted, target, site):
    """The predecessor the method names: the closest decoder row of a site."""
    rows = planted.dictionaries[site].directions()
    cosine = rows @ planted.dictionaries[RES].directions()[target.index]
    return type(target)(site, int(cosine.argmax()))


def group(planted, text, target, position):
    """The parts whose top-1 predecessor is active."""
    return {site.part for site in RES.predecessors if text.activations([top_1(planted, target, site)], position)[0] > 0}


def change(text, target, position, *edits):
    """1 - after / before of the target."""
    [outcome] = text.run([Trial(LAYER, position, edits, (target,))])
    assert outcome.before[0] > 0.3
    return 1 - outcome.after[0] / outcome.before[0]


@pytest.mark.parametrize(("name", "word"), WORD.items())
def test_the_group_is_the_planted_one(planted, text, name, word):
    target = planted.feature(RES, name)
    for position in positions(word)[-1:]:
        assert text.activations([target], position)[0] > 0.3
        assert group(planted, text, target, position) == set(TARGETS[name])


@pytest.mark.parametrize("name", ["carried", "written", "attended"])
def test_the_only_predecessor_by_cosine_removes_its_target(planted, text, name):
    target = planted.feature(RES, name)
    [part] = TARGETS[name]
    predecessor = top_1(planted, target, Site(LAYER - (part is Part.RES), part))
    assert (predecessor,) == planted.predecessors(name)
    position = positions(WORD[name])[-1]
    assert change(text, target, position, Rescale((predecessor,))) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("name", "word"), WORD.items())
def test_a_wrong_active_predecessor_does_not(planted, text, name, word):
    target = planted.feature(RES, name)
    wrong = planted.feature("0/res", "common")
    position = positions(word)[-1]
    assert text.activations([wrong], position)[0] == pytest.approx(1, abs=1e-5)
    assert abs(change(text, target, position, Rescale((wrong,)))) < 0.35


def test_with_two_predecessors_one_alone_is_not_enough(planted, text):
    target = planted.feature(RES, "both")
    position = positions("double")[-1]
    res, mlp = planted.predecessors("both")
    shares = text.activations([res, mlp], position)
    assert shares[0] + shares[1] == pytest.approx(text.activations([target], position)[0], rel=1e-5)
    by_mlp = change(text, target, position, Rescale((mlp,)))
    assert by_mlp == pytest.approx(shares[1] / sum(shares), rel=1e-4)
    # the MLP reads what the stream carries: without it, it writes nothing either
    assert change(text, target, position, Rescale((res,))) == pytest.approx(1, abs=1e-6)
    assert change(text, target, position, Rescale((res,)), Rescale((mlp,))) == pytest.approx(1, abs=1e-6)


def test_removing_the_cause_the_mlp_reads_removes_what_it_writes(planted, text):
    target = planted.feature(RES, "written")
    cause = planted.feature("0/res", "write_cause")
    assert change(text, target, positions("write")[-1], Rescale((cause,))) == pytest.approx(1, abs=1e-6)


def test_attention_reads_the_source_at_another_token(planted, text):
    target = planted.feature(RES, "attended")
    cause = planted.feature("0/res", "source_cause")
    source = positions("source")[0]
    assert text.activations([target], source - 1) == [0.0]
    assert text.activations([target], source)[0] > text.activations([target], source + 1)[0] > 0
    assert change(text, target, source, Rescale((cause,))) == pytest.approx(1, abs=1e-6)
    assert change(text, target, source + 1, Rescale((cause,))) == 0  # silent there: nothing to remove


def test_boosting_is_linear_in_r(planted, text):
    target = planted.feature(RES, "carried")
    position = positions("carry")[-1]
    [predecessor] = planted.predecessors("carried")
    for r in (-1.0, 0.5, 2.0):
        expected = min(1 - r, 1)  # a feature cannot fall below 0
        assert change(text, target, position, Rescale((predecessor,), r)) == pytest.approx(expected, abs=1e-5)


def test_the_loss_moves_with_what_is_removed(planted, text):
    position = positions("carry")[-1]
    target = planted.feature(RES, "carried")
    trials = [Trial(LAYER, position, (Rescale(planted.predecessors("carried"), r),), (target,)) for r in (1.0, 0.0)]
    kept, removed = text.run(trials, loss=True)
    assert kept.loss_after == kept.loss_before == removed.loss_before
    assert abs(removed.loss_after - removed.loss_before) > 1e-3
