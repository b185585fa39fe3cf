"""The eight groups of appendix A.1."""

import pytest

from saeflow.experiments.groups import Origin
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
