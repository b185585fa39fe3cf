"""Plans of every shape for hypothesis, and a few by hand."""

from hypothesis import strategies as st

from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import EVERYWHERE, Positions, Span
from saeflow.steering.plan import Dropped, SteeringDirection, SteeringPlan, Step

finite = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**40)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
features = st.builds(FeatureId, st.builds(Site, st.integers(0, 9999), st.sampled_from(Part)), st.integers(0, 10**9 - 1))
tokens = st.one_of(st.just(()), st.tuples(counts), st.tuples(counts, counts), st.lists(counts, max_size=4))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


raw_plans = st.fixed_dictionaries(
    {
        "direction": st.sampled_from(SteeringDirection),
        "steps": st.lists(st.tuples(features, finite, texts, texts), max_size=6, unique_by=lambda row: row[0]),
        "release": texts,
        "model": texts,
        "theme": texts,
        "dropped": st.lists(st.tuples(features, texts), max_size=3),
        "made_by": st.dictionaries(texts, json_values, max_size=3),
        "tokens": tokens,
    }
)
"""Any plan there can be, as plain values: beartype draws at random inside a strategy, which hypothesis refuses."""


def plan_from(raw):
    """The plan of plain values."""
    steps = tuple(Step(*row) for row in raw["steps"])
    dropped = tuple(Dropped(*row) for row in raw["dropped"])
    told = raw["tokens"]
    where = Positions(tuple(told)) if isinstance(told, list) else EVERYWHERE
    if told and isinstance(told, tuple):
        where = Span(told[0], told[0] + told[1] if len(told) > 1 else None)
    return SteeringPlan(**{**raw, "steps": steps, "dropped": dropped, "tokens": where})


def feature(text):
    return FeatureId.parse(text)


def plan_of(direction, values, **about):
    """A plan from `{"2/res/1": 3.0}`."""
    return SteeringPlan(
        SteeringDirection(direction), tuple(Step(feature(name), value) for name, value in values.items()), **about
    )
