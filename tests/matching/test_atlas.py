"""An atlas is complete, resumes, and refuses to open when a byte is wrong."""

import json

import numpy as np
import pytest

from saeflow.errors import BadFile, CorruptAtlas, InvalidArgument, UnknownFeature, UnknownRelease, UnknownSite
from saeflow.ids import FeatureId, Part, Site
from saeflow.matching import build
from saeflow.matching.atlas import flow_pairs, open_atlas
from saeflow.matching.build import build_atlas
from saeflow.matching.methods import match
from saeflow.matching.rows import BLOCK, TableRows
from saeflow.matching.table import MatchTable

from .planted import N_LAYERS, plant

PAIR = (Site(3, Part.RES), Site(2, Part.RES))
FEATURE = FeatureId(Site(3, Part.RES), 5)


@pytest.fixture(scope="module")
def planted():
    return plant()


@pytest.fixture
def atlas(planted, tmp_path):
    return build_atlas(planted.dictionaries, out=tmp_path / "atlas", k=3, release="planted", model="none")


def test_it_holds_every_pair_of_the_flow_in_both_directions(atlas):
    expected = {(Site(n, Part.RES), Site(n, part)) for n in range(N_LAYERS) for part in (Part.MLP, Part.ATT)}
    expected |= {(Site(n, Part.RES), Site(n - 1, Part.RES)) for n in range(1, N_LAYERS)}
    assert set(atlas) == expected | {(b, a) for a, b in expected}


def test_each_table_is_the_match_of_its_two_sites(atlas, planted):
    for (source, target), table in atlas.items():
        alone = match(planted.dictionaries[source], planted.dictionaries[target], k=3)
        assert np.array_equal(table.index, alone.index)
        assert np.abs(table.score - alone.score).max() < 1e-6


def test_a_table_is_the_same_after_saving_and_loading(atlas, tmp_path):
    table = next(iter(atlas.values()))
    table.save(tmp_path / "one.safetensors")
    loaded = MatchTable.load(tmp_path / "one.safetensors")
    assert np.array_equal(loaded.index, table.index)
    assert np.array_equal(loaded.score, table.score)
    assert (loaded.source, loaded.target, loaded.n_target) == (table.source, table.target, table.n_target)


def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(planted, tmp_path):
    whole = build_atlas(planted.dictionaries, out=tmp_path / "whole", k=3)

    class Killed(Exception):
        pass

    def kill(done, total, now):
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        build_atlas(planted.dictionaries, out=tmp_path / "killed", k=3, progress=kill)
    with pytest.raises(UnknownRelease):
        open_atlas(tmp_path / "killed")
    build_atlas(planted.dictionaries, out=tmp_path / "killed", k=3)
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "killed" / file.name).read_bytes() == file.read_bytes()
    assert len(list((tmp_path / "killed").iterdir())) == len(whole) + 1


def test_tables_that_are_there_are_not_matched_again(planted, atlas, monkeypatch):
    def never(*_args, **_kwargs):
        raise AssertionError("matched again")

    monkeypatch.setattr(build, "match_rows", never)
    build_atlas(planted.dictionaries, out=atlas.folder, k=3)


def test_other_dictionaries_in_the_same_folder_are_matched_again(atlas):
    before = atlas[PAIR].score
    other = build_atlas(plant(seed=1).dictionaries, out=atlas.folder, k=3)
    assert not np.array_equal(other[PAIR].score, before)


def test_a_flipped_byte_is_found_and_named(atlas):
    victim = next(atlas.folder.glob("3.res-2.res*"))
    data = bytearray(victim.read_bytes())
    data[-3] ^= 1
    victim.write_bytes(data)
    opened = open_atlas(atlas.folder)
    for use in (opened.verify, lambda: opened[PAIR], lambda: opened.best(FEATURE, PAIR[1])):
        with pytest.raises(CorruptAtlas, match=victim.name):
            use()
    assert opened.best(FEATURE, Site(3, Part.MLP)), "another table is read as before"
    assert open_atlas(atlas.folder, verify=False).best(FEATURE, PAIR[1])


def test_no_flipped_bit_goes_unseen_by_a_single_row(atlas):
    victim = next(atlas.folder.glob("3.res-2.res*"))
    good = victim.read_bytes()
    blocks = open_atlas(atlas.folder).blocks[PAIR]
    for place in range(len(good)):
        victim.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        with pytest.raises((BadFile, CorruptAtlas), match=victim.name):
            TableRows(victim, *PAIR, blocks=blocks).best(FEATURE)


def test_a_damaged_block_of_rows_is_refused_and_the_others_are_read(tmp_path):
    n = BLOCK + 5
    table = MatchTable(*PAIR, "cosine", n, np.arange(n, dtype=np.int32)[:, None], np.full((n, 1), 0.5, np.float32))
    path = tmp_path / "table.safetensors"
    table.save(path)
    sums = TableRows(path, *PAIR).block_sums()
    assert len(sums) == 2
    data = bytearray(path.read_bytes())
    data[data.index(np.int32(BLOCK + 1).tobytes())] ^= 1
    path.write_bytes(data)
    rows = TableRows(path, *PAIR, blocks=sums)
    assert rows.best(FeatureId(PAIR[0], BLOCK - 1))
    with pytest.raises(CorruptAtlas, match=f"rows {BLOCK} to {n - 1}"):
        rows.best(FeatureId(PAIR[0], BLOCK))


def test_an_atlas_without_checksums_of_blocks_compares_whole_tables(atlas):
    path = atlas.folder / "atlas.json"
    told = json.loads(path.read_text())
    del told["check"]  # nor had it one of its own
    for entry in told["tables"]:
        assert len(entry.pop("blocks")) == 8
    path.write_text(json.dumps(told))
    assert open_atlas(atlas.folder).best(FEATURE, PAIR[1]) == atlas.best(FEATURE, PAIR[1])
    victim = next(atlas.folder.glob("3.res-2.res*"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptAtlas, match=victim.name):
        open_atlas(atlas.folder).best(FEATURE, PAIR[1])


def test_a_missing_table_is_found_and_named(atlas):
    victim = next(atlas.folder.glob("3.res-2.res*"))
    victim.unlink()
    opened = open_atlas(atlas.folder)
    for use in (opened.verify, lambda: opened[PAIR], lambda: opened.best(FEATURE, PAIR[1])):
        with pytest.raises(CorruptAtlas, match=victim.name):
            use()


@pytest.mark.parametrize("cut", [0, 4, 30, 400, -1])
def test_a_table_cut_off_is_no_table_even_where_checksums_are_not_asked_for(atlas, cut):
    victim = next(atlas.folder.glob("3.res-2.res*"))
    victim.write_bytes(victim.read_bytes()[:cut])
    with pytest.raises((BadFile, CorruptAtlas), match=victim.name):
        open_atlas(atlas.folder, verify=False).best(FEATURE, PAIR[1])


def test_rows_read_one_by_one_are_those_of_the_table(atlas):
    for source, target in atlas:
        for index in (0, 7, atlas[source, target].n_source - 1):
            feature = FeatureId(source, index)
            for k in (None, 1, 3):
                assert atlas.best(feature, target, k) == atlas[source, target].best(feature, target, k)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "saeflow-atlas", "version": 1}', "\xff"])
def test_a_broken_manifest_is_a_clear_error(atlas, text):
    (atlas.folder / "atlas.json").write_text(text, encoding="latin-1")
    with pytest.raises(BadFile, match=r"atlas\.json cannot be read"):
        open_atlas(atlas.folder)


def test_a_changed_manifest_is_found_by_its_own_checksum(atlas):
    path = atlas.folder / "atlas.json"
    path.write_text(path.read_text().replace('"k": 3', '"k": 2'))
    with pytest.raises(CorruptAtlas, match=r"atlas\.json has changed since it was written"):
        open_atlas(atlas.folder)


def test_another_version_says_so(atlas):
    path = atlas.folder / "atlas.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with pytest.raises(CorruptAtlas, match="version 99"):
        open_atlas(atlas.folder)


def test_a_manifest_cannot_name_files_outside_the_atlas(atlas):
    path = atlas.folder / "atlas.json"
    data = json.loads(path.read_text())
    data["tables"][0]["file"] = "../secret.safetensors"
    del data["check"]
    path.write_text(json.dumps(data))
    with pytest.raises(CorruptAtlas, match="outside the atlas"):
        open_atlas(atlas.folder)


def test_what_it_does_not_hold_is_said(atlas):
    with pytest.raises(UnknownSite, match="no dictionary at 9/res"):
        atlas[Site(9, Part.RES), Site(8, Part.RES)]
    with pytest.raises(UnknownSite, match="neighbours in the flow only"):
        atlas[Site(3, Part.RES), Site(1, Part.RES)]
    with pytest.raises(UnknownFeature, match="80 features, 0 to 79"):
        atlas.best(FeatureId(Site(3, Part.RES), 80), Site(2, Part.RES))
    with pytest.raises(InvalidArgument, match="keeps 3"):
        atlas.best(FeatureId(Site(3, Part.RES), 0), Site(2, Part.RES), 4)
    with pytest.raises(UnknownRelease, match="saeflow atlas build"):
        open_atlas("no-such-atlas")


def test_a_release_without_neighbours_has_no_atlas(planted, tmp_path):
    alone = {Site(3, Part.RES): planted.dictionaries[Site(3, Part.RES)]}
    with pytest.raises(UnknownSite, match="found \\(3/res\\)"):
        build_atlas(alone, out=tmp_path / "atlas")
    assert not (tmp_path / "atlas").exists()


def test_pairs_reach_over_layers_that_are_missing():
    sites = [Site(2, Part.RES), Site(2, Part.MLP), Site(1, Part.ATT), Site(0, Part.RES)]
    assert flow_pairs(sites) == [(Site(2, Part.RES), Site(0, Part.RES)), (Site(2, Part.RES), Site(2, Part.MLP))]


def test_a_build_that_goes_on_does_not_believe_a_changed_table(planted, tmp_path):
    """Without `atlas.json` a table has no checksum but its own."""
    built = build_atlas(planted.dictionaries, out=tmp_path / "again", k=3)
    (built.folder / "atlas.json").unlink()
    victim = next(built.folder.glob("3.res-2.res*"))
    good = victim.read_bytes()
    for at in (len(good) - 1, len(good) // 2):
        victim.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(BadFile):
            MatchTable.load(victim)
        build_atlas(planted.dictionaries, out=built.folder, k=3)
        assert victim.read_bytes() == good
