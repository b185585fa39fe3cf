"""Schedules are the formulas of appendix B.2, agree where one is a case of another, and read back what they write."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeflow.errors import InvalidArgument
from saeflow.steering.schedule import Constant, Exponential, Linear, ScheduleKind, schedule_from

numbers = st.floats(-1e6, 1e6)
layers = st.integers(0, 60)
spans = st.tuples(layers, layers).map(lambda pair: (min(pair), max(pair)))


@given(numbers, layers, spans)
def test_constant_is_linear_to_the_same_end_and_exponential_without_decay(s, layer, span):
    assert (
        Constant(s).at(layer, span)
        == Linear(s, s_end=s).at(layer, span)
        == Exponential(s, alpha=0.0).at(layer, span)
        == s
    )


@given(numbers, numbers, spans, st.data())
def test_linear_is_the_line_of_the_paper(s, s_end, span, data):
    start, end = span
    layer = data.draw(st.integers(start, end))
    schedule = Linear(s, s_end)
    if start == end:
        assert schedule.at(layer, span) == s
        return
    k = (s_end - s) / (end - start)
    b = s - k * start
    assert schedule.at(layer, span) == pytest.approx(k * layer + b, rel=1e-9, abs=1e-6)
    assert schedule.at(start, span) == s
    assert schedule.at(end, span) == s_end


def test_linear_outside_its_span_stays_at_the_nearer_end():
    schedule = Linear(8.0, 1.0)
    assert [schedule.at(layer, (2, 5)) for layer in (0, 1, 2)] == [8.0] * 3
    assert [schedule.at(layer, (2, 5)) for layer in (5, 6, 25)] == [1.0] * 3
    assert [schedule.at(layer, (3, 3)) for layer in (1, 3, 9)] == [8.0] * 3


@given(numbers, st.floats(-1, 0.1), layers, spans, spans)
def test_exponential_counts_the_absolute_layer_and_knows_no_span(s, alpha, layer, span, other):
    schedule = Exponential(s, alpha)
    assert schedule.at(layer, span) == schedule.at(layer, other) == s * math.exp(alpha * layer)


def test_the_defaults_are_those_of_the_paper():
    assert Linear(8.0).s_end == 1.0
    assert Exponential(8.0).alpha == -0.05


@pytest.mark.parametrize("schedule", [Constant(2.5), Linear(8.0, 0.3), Exponential(3.0, -0.25)])
def test_a_schedule_reads_back(schedule):
    told = schedule.to_dict()
    assert schedule_from(told) == schedule
    assert told["kind"] == schedule.kind == type(schedule).kind
    assert schedule_from({"kind": told["kind"], "s": 4}).s == 4.0


def test_every_kind_has_a_schedule():
    assert [schedule_from({"kind": kind.value, "s": 1.0}).kind for kind in ScheduleKind] == list(ScheduleKind)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Constant(math.nan), "s = nan"),
        (lambda: Linear(1.0, math.inf), "s_end = inf"),
        (lambda: Exponential(1.0, math.nan), "alpha = nan"),
        (lambda: Exponential(1.0, 100.0).at(60, (0, 60)), "too large at layer 60"),
        (lambda: Linear(1.0).at(3, (5, 2)), "5 to 2"),
        (lambda: schedule_from({"kind": "cubic", "s": 1.0}), "'cubic'.*constant, linear, exponential"),
        (lambda: schedule_from({"s": 1.0}), "None"),
        (lambda: schedule_from({"kind": "linear", "s": 1.0, "alpha": 2.0}), "no 'alpha'.*s, s_end"),
        (lambda: schedule_from({"kind": "linear"}), "needs its coefficient"),
        (lambda: schedule_from({"kind": "linear", "s": "much"}), "s = 'much'"),
        (lambda: schedule_from({"kind": "linear", "s": True}), "s = True"),
        (lambda: schedule_from({"kind": "constant", "s": 10**400}), "too large"),
    ],
)
def test_what_is_no_schedule_is_refused_with_the_values(make, said):
    with pytest.raises(InvalidArgument, match=said):
        make()
