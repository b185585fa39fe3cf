"""Rows without torch."""

import pytest

from saeflow.experiments.records import Effect, Origin, RunRequest
from saeflow.ids import Part


def test_there_are_eight_groups_in_the_order_of_every_table() -> None:
    assert [origin.label for origin in Origin.groups()] == [
        "nowhere",
        "RES",
        "MLP",
        "ATT",
        "RES & MLP",
        "RES & ATT",
        "MLP & ATT",
        "RES & MLP & ATT",
    ]


@pytest.mark.parametrize("origin", Origin.groups())
def test_a_label_and_its_group_are_inverse_and_so_are_its_parts(origin: Origin) -> None:
    assert Origin.named(origin.label) is origin
    assert Origin.of(origin.parts) is origin


def test_a_group_is_made_of_active_parts_in_any_order() -> None:
    assert Origin.of([Part.ATT, Part.RES]) is Origin.RES | Origin.ATT
    assert Origin.of([]).label == "nowhere"


def test_a_request_names_what_another_asks_otherwise() -> None:
    first = RunRequest("origins", "demo", "demo", 0, ("a",), {"cosine": "x"}, {"r": (0.0, 1.0), "texts": 5})
    same = RunRequest("origins", "demo", "demo", 0, ("a",), {"cosine": "x"}, {"texts": 5, "r": [0.0, 1.0]})
    assert first.differences(same) == []  # as it comes back from JSON
    other = RunRequest("origins", "demo", "demo", 0, ("a", "b"), {}, {"texts": 5, "r": [0.0]})
    assert first.differences(other) == [
        'atlas cosine is "x" there and null here',
        'datasets is ["a"] there and ["a", "b"] here',
        "r is [0.0, 1.0] there and [0.0] here",
    ]


@pytest.mark.parametrize(("z_new", "gone", "change"), [(0.0, True, 1.0), (1e-9, False, 1.0), (3.0, False, -0.5)])
def test_only_an_activation_of_exactly_0_is_deactivated(z_new, gone, change) -> None:
    effect = Effect(2.0, z_new, Origin.NOWHERE)
    assert effect.deactivated is gone
    assert effect.change == pytest.approx(change)
