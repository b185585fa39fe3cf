"""Cases A to D and thresholds, as section 3.3 and appendix B.2 state them."""

import pytest

from saeflow.errors import InvalidArgument
from saeflow.flow.scores import Evolution, Scores, Thresholds, evolution
from saeflow.ids import Part


@pytest.mark.parametrize(
    ("scores", "case"),
    [
        (Scores(0.9, 0.1, 0.1), "A"),
        (Scores(0.9, 0.1, 0.6), "B"),
        (Scores(0.9, 0.6, 0.1), "B"),
        (Scores(0.5, 0.5, None), "B"),
        (Scores(0.3, 0.82, 0.1), "C"),
        (Scores(None, 0.1, 0.7), "C"),
        (Scores(0.4, 0.4, 0.4), "D"),
        (Scores(), "D"),
        (Scores(-0.2, -0.1, None), "D"),
    ],
)
def test_the_case_is_that_of_the_paper(scores, case):
    found = evolution(scores, 0.5)
    assert found.case == case
    assert found.sentence.endswith(".")


def test_the_four_cases_are_a_to_d():
    assert [e.case for e in Evolution] == ["A", "B", "C", "D"]


def test_the_defaults_are_those_of_appendix_b_2():
    assert [Thresholds().of(part) for part in (Part.RES, Part.MLP, Part.ATT)] == [0.5, 0.15, 0.15]


def test_one_module_can_have_its_own_cut():
    thresholds = Thresholds(module=0.2, mlp=0.25)
    assert [thresholds.of(part) for part in (Part.MLP, Part.ATT)] == [0.25, 0.2]


@pytest.mark.parametrize("wrong", [{"res": 1.1}, {"module": -2}, {"mlp": float("nan")}, {"high": 5}])
def test_what_is_no_cosine_is_refused_by_name(wrong):
    with pytest.raises(InvalidArgument, match=f"threshold {next(iter(wrong))}="):
        Thresholds(**wrong)
