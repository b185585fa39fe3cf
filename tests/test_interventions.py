"""Edits as data: each names features of one site, compares by value, and refuses what it cannot mean."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys

import pytest

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Site
from saeflow.interventions import EVERYWHERE, Add, Positions, Rescale, Span

A, B, OTHER = map(FeatureId.parse, ("3/res/7", "3/res/2", "4/res/7"))


def test_an_edit_is_bound_to_the_site_of_its_features():
    assert Rescale((A, B), 0.0).site == Add({A: 1.0, B: -2.0}).site == Site.parse("3/res")
    assert Add({A: 1.0, B: -2.0}).features == (B, A)


def test_edits_are_values():
    assert Add({A: 1.0, B: 2.0}) == Add({B: 2.0, A: 1.0}) != Add({A: 1.0, B: 2.5})
    assert len({Add({A: 1.0, B: 2.0}), Add({B: 2.0, A: 1.0}), Rescale((A,)), Rescale((A,), 0.0)}) == 2
    for edit in (Add({A: 1.0}, tokens=Positions((0, 2))), Rescale((A, B), 0.5, tokens=Span(1))):
        assert pickle.loads(pickle.dumps(edit)) == copy.deepcopy(edit) == edit  # noqa: S301


def test_a_rescale_has_one_factor_for_all_features_or_one_for_each():
    assert Rescale((A, B), 0.5).factors == (0.5, 0.5)
    assert Rescale((A, B), (0.5, 2.0)).factors == (0.5, 2.0)
    assert Rescale((A, B), (0.5, 2.0)) != Rescale((A, B), 0.5)
    assert len({Rescale((A, B), (0.5, 2.0)), Rescale((A, B), (0.5, 2.0))}) == 1


def test_a_causal_trial_takes_one_factor_an_edit():
    from saeflow.experiments.causal import Trial

    with pytest.raises(InvalidArgument, match="3/res has a factor for each feature"):
        Trial(4, 0, (Rescale((A, B), (0.0, 0.5)),), (OTHER,))


def test_an_edit_keeps_its_strengths_when_the_callers_mapping_changes():
    strengths = {A: 1.0}
    edit = Add(strengths)
    strengths[B] = 5.0
    assert edit.features == (A,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rescale((A, OTHER)), "2 features name: 3/res, 4/res"),
        (lambda: Add({A: 1.0, OTHER: 1.0}), "2 features name: 3/res, 4/res"),
        (lambda: Rescale(()), "0 features name: none"),
        (lambda: Add({}), "0 features name: none"),
        (lambda: Rescale((A, B, A)), "3/res/7 more than once"),
        (lambda: Rescale((A,), math.nan), "r = nan"),
        (lambda: Rescale((A, B), (0.0, math.inf)), "inf"),
        (lambda: Rescale((A, B), (0.0,)), r"2 features at 3/res has 1 factors r = \(0.0,\)"),
        (lambda: Add({A: math.inf}), "3/res/7.*inf"),
        (lambda: Span(-1), "-1 to None"),
        (lambda: Span(4, 3), "4 to 3"),
        (lambda: Positions((0, -1)), r"\(0, -1\)"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_values(make, message):
    with pytest.raises(InvalidArgument, match=message):
        make()


def test_selectors_hold_the_positions_they_name():
    assert [p for p in range(6) if p in Span(2, 4)] == [2, 3]
    assert [p for p in range(6) if p in Span(4)] == [4, 5]
    assert [p for p in range(6) if p in EVERYWHERE] == list(range(6))
    assert [p for p in range(6) if p in Positions((5, 0))] == [0, 5]


def test_edits_are_made_without_torch():
    program = "import sys, saeflow.interventions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
