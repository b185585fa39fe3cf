"""Features that flow into each other lie in the same block of a site."""

import numpy as np
import pytest

from saeflow.ids import Part, Site
from saeflow.matching.atlas import Atlas, flow_pairs, save_manifest, table_entry, table_file
from saeflow.matching.table import MatchTable
from saeflow.publishing.flows import ROWS, Flows


def chained(folder, sizes, best):
    """An atlas of residual sites; `best(source, target)` are the best matches of each row."""
    files = {}
    for back in flow_pairs(list(sizes)):
        for source, target in (back, back[::-1]):
            index, score = best(source, target)
            table = MatchTable(source, target, "cosine", sizes[target], index[:, None], score[:, None])
            table.save(folder / table_file(source, target))
            files[source, target] = table_entry(folder, source, target)
    save_manifest(Atlas(folder, "tiny", "tiny", 1, "a test", files))
    return Atlas(folder, "tiny", "tiny", 1, "a test", files)


def test_a_chain_through_all_layers_lies_in_one_block_or_two_in_a_row(tmp_path):
    layers, width = 16, 400
    rng = np.random.default_rng(0)
    place = {layer: rng.permutation(width).astype(np.int32) for layer in range(layers)}  # of each chain

    def best(source, target):
        index = np.empty(width, np.int32)
        index[place[source.layer]] = place[target.layer]
        return index, np.full(width, 0.9, np.float32)

    sizes = {Site(layer, Part.RES): width for layer in range(layers)}
    flows = Flows(chained(tmp_path, sizes, best), sizes)
    met = np.stack([flows.block[site][place[site.layer]] for site in sizes])
    spread = met.max(axis=0) - met.min(axis=0)
    assert spread.max() <= 1
    assert (spread == 1).sum() < flows.n


def test_a_branch_lies_soon_behind_its_chain(tmp_path):
    # every feature of the second layer grows from one of 8 in the first; those prefer one each
    width = {0: 8, 1: 800}
    sizes = {Site(layer, Part.RES): n for layer, n in width.items()}

    def best(source, _):
        n = width[source.layer]
        return np.arange(n, dtype=np.int32) % 8, np.full(n, 0.9, np.float32)

    flows = Flows(chained(tmp_path, sizes, best), sizes)
    start, grown = flows.block[Site("0/res")], flows.block[Site("1/res")]
    far = grown.astype(int) - start[np.arange(800) % 8]
    assert (far >= 0).all()
    assert (far == 0).mean() > 0.6
    assert far.max() == 1


@pytest.mark.parametrize("lone", [True, False])
def test_every_feature_lies_in_one_block(tmp_path, lone):
    sizes = {Site(layer, Part.RES): n for layer, n in ((0, 300), (1, 200), (3, 500))}
    rng = np.random.default_rng(1)

    def best(source, target):
        score = rng.uniform(0.1, 0.9, sizes[source]).astype(np.float32)
        score[rng.random(sizes[source]) < 0.3] = -np.inf if lone else 0.05
        return rng.integers(0, sizes[target], sizes[source], dtype=np.int32), score

    flows = Flows(chained(tmp_path, sizes, best), sizes)
    rows = flows.rows()
    assert len(rows) == flows.n == -(-1000 // ROWS)
    assert [sum(map(len, block.values())) for block in rows] == [ROWS] * (flows.n - 1) + [1000 % ROWS]
    for site, n in sizes.items():
        assert sorted(row for block in rows for row in block.get(site, ())) == list(range(n))
        assert all((flows.block[site][block[site]] == i).all() for i, block in enumerate(rows) if site in block)


def test_an_atlas_without_residual_features_has_no_blocks(tmp_path):
    sizes = {Site("0/mlp"): 3}
    assert Flows(Atlas(tmp_path, "tiny", "tiny", 1, "a test", {}), sizes).rows() == []
