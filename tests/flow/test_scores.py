"""Cases A to D and thresholds, as section 3.3 and appendix B.2 state them."""

import pytest

from saeflow.errors import InvalidArgument
from saeflow.flow.scores import Evolution, Scores, Thresholds, evolution
from saeflow.ids import Part, Site


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


# --- calibrated -----------------------------------------------------------------------------------------


class Cuts:
    """An atlas of three layers as far as thresholds are concerned."""

    def cuts(self, fdr):
        site = Site.parse
        return {
            (site("2/res"), site("1/res")): 0.5 - fdr,
            (site("1/res"), site("2/res")): 0.6,
            (site("2/res"), site("2/mlp")): 0.4,
            (site("2/mlp"), site("2/res")): 0.45,
            (site("1/res"), site("1/att")): 1.0,
        }


def test_calibrated_thresholds_are_those_of_the_layer_of_the_residual_feature():
    thresholds = Thresholds.calibrated(Cuts(), 0.1)
    assert thresholds.fdr == 0.1
    assert thresholds.of(Part.RES, 2) == thresholds.line(Part.RES, 2) == 0.4
    assert thresholds.of(Part.RES, 2, ahead=True) == 0.6
    assert [thresholds.of(Part.MLP, 2, ahead=ahead) for ahead in (False, True)] == [0.4, 0.45]
    assert thresholds.of(Part.ATT, 1) == 1.0
    assert thresholds.layers == (1, 2)


def test_where_no_null_was_drawn_the_plain_thresholds_hold():
    thresholds = Thresholds.calibrated(Cuts(), 0.1)
    assert thresholds.of(Part.RES, 1) == thresholds.of(Part.RES) == 0.5
    assert thresholds.of(Part.ATT, 2) == 0.15
    assert thresholds.line(Part.ATT, 2) == 0.5
    plain = Thresholds(res=0.3, mlp=0.2)
    assert [plain.of(part, 7, ahead=True) for part in (Part.RES, Part.MLP, Part.ATT)] == [0.3, 0.2, 0.15]
    assert plain.fdr is None


def test_each_part_can_have_its_own_line():
    lines = {Part.RES: 0.3, Part.MLP: 0.9, Part.ATT: 0.4}
    assert evolution(Scores(0.3, 0.82, 0.1), lines) is Evolution.TRANSLATED
    assert evolution(Scores(0.3, 0.82, 0.4), lines) is Evolution.PROCESSED
    assert evolution(Scores(None, 0.9, 0.1), lines) is Evolution.NEWBORN


def test_a_calibrated_cut_that_is_no_cosine_is_refused_by_its_layer():
    with pytest.raises(InvalidArgument, match=r"mlp of layer 3=1\.5"):
        Thresholds(cuts={(3, Part.MLP): 1.5})
