"""Mutual matches are those that both sides name."""

import subprocess
import sys

import numpy as np
import pytest

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Site
from saeflow.matching.rows import TableRows
from saeflow.matching.table import MatchTable, mutual, ranks_back

HERE, THERE = Site.parse("3/res"), Site.parse("2/res")


def table(index, score=None, *, n_target=9, source=HERE, target=THERE, method="cosine"):
    index = np.array(index, dtype=np.int32)
    falling = np.linspace(0.9, 0.1, index.shape[1])[None].repeat(len(index), 0) if score is None else score
    return MatchTable(source, target, method, n_target, index, np.array(falling, dtype=np.float32))


def both(index, back):
    forward = table(index, n_target=len(back))
    return forward, table(back, n_target=len(index), source=THERE, target=HERE)


def test_mutual_matches_are_those_that_name_each_other():
    forward, back = both([[0, 2], [0, 1], [2, 1]], [[0, 1], [2, 1], [1, 0]])
    assert ranks_back(forward, back).tolist() == [[0, 1], [1, 1], [-1, 0]]
    assert mutual(forward, back).tolist() == [[True], [False], [False]]
    assert mutual(forward, back, 2).tolist() == [[True, True], [True, True], [False, True]]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_mutual_is_the_definition_on_random_tables(k):
    generator = np.random.default_rng(k)
    forward, back = both(
        [generator.permutation(15)[:4] for _ in range(20)], [generator.permutation(20)[:4] for _ in range(15)]
    )
    found = mutual(forward, back, k)
    expected = [[i in back.index[j, :k] for j in forward.index[i, :k]] for i in range(20)]
    assert found.tolist() == expected
    assert found.shape == (20, k)


def test_partners_of_a_permutation_are_mutual_and_the_rest_is_not():
    forward = table([[1], [0], [0]], [[0.5], [-np.inf], [0.4]], n_target=2)
    back = table([[2], [0]], [[0.4], [0.5]], n_target=3, source=THERE, target=HERE)
    assert mutual(forward, back)[:, 0].tolist() == [True, False, True]
    assert mutual(back, forward)[:, 0].tolist() == [True, True]


def test_one_without_partner_does_not_name_row_0():
    forward = table([[1], [0]], n_target=2)
    back = table([[1], [0]], [[0.5], [-np.inf]], n_target=2, source=THERE, target=HERE)
    assert mutual(forward, back)[:, 0].tolist() == [False, True]


def test_tables_that_do_not_lead_back_are_refused():
    forward, back = both([[0], [1]], [[0], [1], [1]])
    with pytest.raises(InvalidArgument, match="does not lead back"):
        mutual(forward, forward)
    with pytest.raises(InvalidArgument, match="does not lead back"):
        mutual(forward, table([[0], [1]], n_target=2, source=THERE, target=HERE))
    with pytest.raises(InvalidArgument, match="mutual top-2"):
        mutual(forward, back, 2)
    with pytest.raises(InvalidArgument, match="at least 1"):
        mutual(forward, back, 0)


def test_the_best_of_a_row_are_one_or_more(tmp_path):
    whole = table([[2, 0, 1]])
    whole.save(tmp_path / "table.safetensors")
    mapped = TableRows(tmp_path / "table.safetensors", HERE, THERE)
    feature = FeatureId(HERE, 0)
    for k in (0, -1):
        with pytest.raises(InvalidArgument, match=f"k={k} .* at least 1"):
            whole.best(feature, k=k)
        with pytest.raises(InvalidArgument, match=f"k={k} .* at least 1"):
            mapped.best(feature, k)
    for k, n in ((1, 1), (3, 3), (9, 3), (None, 3)):
        assert whole.best(feature, k=k) == mapped.best(feature, k)
        assert len(mapped.best(feature, k)) == n


def test_tables_and_their_comparison_load_no_torch():
    code = "import sys, saeflow.matching.table, saeflow.matching.agreement; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_table_as_a_data_frame_has_a_match_a_row_and_none_without_a_partner():
    frame = table([[1, 0], [0, 2]], [[0.5, 0.25], [0.75, -np.inf]], n_target=3).to_pandas()
    assert frame.columns.to_list() == ["source", "rank", "target", "score"]
    assert frame.to_numpy().tolist() == [[0, 0, 1, 0.5], [0, 1, 0, 0.25], [1, 0, 0, 0.75]]
