"""Matching by shards gives the tables of the whole match, byte for byte, and reads rows by range."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from saeflow.engines import Engine, InProcess
from saeflow.errors import BadFile, InvalidArgument
from saeflow.ids import Part, Site
from saeflow.matching import build
from saeflow.matching.atlas import flow_pairs, open_atlas
from saeflow.matching.build import build_atlas, merge_best, shard_bounds
from saeflow.matching.methods import RowCache
from saeflow.matching.topk import COLUMNS
from saeflow.sources.activations import JumpReLU, ReLU, TopK
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.formats import save_release
from saeflow.sources.formats.file_weights import FileWeights, Stored
from saeflow.sources.formats.tensors import SafetensorsFile

SITES = [Site(0, Part.RES), Site(1, Part.MLP), Site(1, Part.RES)]


def made(site, n, d=32, *, whole_numbers=False, seed=0):
    """A JumpReLU dictionary of random rows; of whole numbers, products of which are exact in any order."""
    make = torch.Generator().manual_seed(seed + 10 * site.layer + len(site.part))

    def rows():
        drawn = torch.randn(n, d, generator=make)
        rounded = (3 * drawn).round()
        rounded[rounded.abs().sum(dim=1) == 0] = 1
        return rounded if whole_numbers else drawn

    return Dictionary(
        site,
        tap=Tap.of(site.part),
        W_enc=rows(),
        b_enc=torch.zeros(n),
        W_dec=rows(),
        b_dec=torch.zeros(d),
        activation=JumpReLU(torch.ones(n)),
    )


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same(one, other):
    """The same tables up to the last bits of scores, which another shape of a product may round otherwise."""
    one, other = open_atlas(one), open_atlas(other)
    assert one.files.keys() == other.files.keys()
    for pair, table in one.items():
        assert np.array_equal(table.index, other[pair].index)
        assert table.made_from == other[pair].made_from
        assert table.score == pytest.approx(other[pair].score, rel=1e-6, abs=1e-6)


@pytest.fixture
def dictionaries():
    found = {site: made(site, n) for site, n in zip(SITES, (260, 70, 200), strict=True)}
    for dictionary in found.values():  # features without a direction are in every release
        dictionary.W_dec[[3, 66]] = 0
    return found


@pytest.mark.parametrize("rows", [64, 100, 256, 5000])
def test_the_atlas_is_that_of_the_whole_match(dictionaries, tmp_path, rows):
    build_atlas(dictionaries, out=tmp_path / "whole", k=3)
    build_atlas(dictionaries, out=tmp_path / "shards", k=3, shard_rows=rows)
    assert_same(tmp_path / "shards", tmp_path / "whole")


@pytest.mark.parametrize("method", ["decoder-product", "decoder-product-folded", "virtual", "virtual-folded"])
def test_so_it_is_with_every_method_that_keeps_the_best(tmp_path, method):
    some = {site: made(site, n) for site, n in zip(SITES, (90, 50, 80), strict=True)}
    build_atlas(some, out=tmp_path / "whole", k=2, method=method)
    build_atlas(some, out=tmp_path / "shards", k=2, method=method, shard_rows=32)
    assert_same(tmp_path / "shards", tmp_path / "whole")


def test_where_many_scores_are_equal_they_are_the_best_and_the_lower_row_comes_first(tmp_path):
    some = {site: made(site, 60, d=2, whole_numbers=True) for site in SITES}
    by_shards = build_atlas(some, out=tmp_path / "shards", k=4, method="decoder-product", shard_rows=16)
    for pair, table in by_shards.items():
        products = (some[pair[0]].W_dec @ some[pair[1]].W_dec.T).numpy()
        assert np.array_equal(table.score, -np.sort(-products, axis=1)[:, :4])
        assert np.array_equal(np.take_along_axis(products, table.index.astype(int), 1), table.score)
        equal = table.score[:, 1:] == table.score[:, :-1]
        assert equal.any()
        assert (np.diff(table.index, axis=1)[equal] > 0).all()


@given(
    n=st.integers(1, 6),
    k=st.integers(1, 5),
    parts=st.integers(1, 5),
    seed=st.integers(0, 99),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=40, deadline=None)
def test_the_order_of_merging_does_not_matter(n, k, parts, seed, order):
    make = np.random.default_rng(seed)
    index = np.stack([make.permutation(parts * k) for _ in range(n)]).reshape(n, parts, k)
    score = make.integers(0, 3, (n, parts, k)).astype(np.float32)
    several = [(index[:, part].astype(np.int64), score[:, part]) for part in range(parts)]

    def merged(of):
        best = np.full((n, k), -1, np.int64), np.full((n, k), -np.inf, np.float32)
        for one in of:
            best = merge_best(*best, *one)
        return best[0].tolist()

    first = merged(several)
    order.shuffle(several)
    assert merged(several) == first
    expected = [sorted(zip(-score[row].ravel(), index[row].ravel(), strict=True))[:k] for row in range(n)]
    assert [[i for _, i in row] for row in expected] == first


@pytest.mark.parametrize(
    ("n", "rows", "k", "bounds"),
    [
        (10, 4, 2, ((0, 4), (4, 8), (8, 10))),
        (9, 4, 2, ((0, 4), (4, 9))),
        (3, 4, 3, ((0, 3),)),
        (40_000, 20_000, 5, ((0, 2 * COLUMNS), (2 * COLUMNS, 40_000))),
    ],
)
def test_shards_hold_k_rows_at_least_and_large_ones_begin_where_tiles_do(n, rows, k, bounds):
    assert shard_bounds(n, rows, k) == bounds


@pytest.mark.parametrize(("n", "rows", "k"), [(10, 2, 3), (2, 10, 3), (10, 10, 0)])
def test_shards_that_cannot_hold_k_matches_are_refused(n, rows, k):
    with pytest.raises(InvalidArgument, match=f"k={k} matches"):
        shard_bounds(n, rows, k)


def test_a_one_to_one_method_needs_all_rows(dictionaries, tmp_path):
    with pytest.raises(InvalidArgument, match="one to one and needs all rows at once"):
        build_atlas(dictionaries, out=tmp_path, method="permutation", shard_rows=64)


class Stops(Engine):
    """This process, up to a number of units."""

    def __init__(self, units):
        self.left = units

    @property
    def workers(self):
        return 1

    def run(self, work, units, *, name):
        for found in InProcess().run(work, units, name=name):
            if name == "shards":
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
            yield found


def test_a_build_that_stops_keeps_the_parts_that_are_done_and_ends_with_the_same_bytes(
    dictionaries, tmp_path, monkeypatch
):
    out, done = tmp_path / "shards", []
    with pytest.raises(KeyboardInterrupt):
        build_atlas(dictionaries, out=out, k=3, shard_rows=64, engine=Stops(7))
    assert len(list((out / "parts").iterdir())) == 7
    match = build.best_rows_both
    monkeypatch.setattr(build, "best_rows_both", lambda *told: done.append(told) or match(*told))
    build_atlas(dictionaries, out=out, k=3, shard_rows=64)
    grid = {SITES[0]: 5, SITES[1]: 2, SITES[2]: 4}
    units = sum(grid[a] * grid[b] for a, b in flow_pairs(SITES))
    assert len(done) == units - 7
    done.clear()
    build_atlas(dictionaries, out=out, k=3, shard_rows=64)
    assert not done, "current tables are kept"
    monkeypatch.undo()
    build_atlas(dictionaries, out=tmp_path / "again", k=3, shard_rows=64)
    assert files(out) == files(tmp_path / "again")


def test_a_damaged_part_is_named(dictionaries, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build_atlas(dictionaries, out=tmp_path, k=3, shard_rows=64, engine=Stops(3))
    victim = next((tmp_path / "parts").iterdir())
    victim.write_bytes(victim.read_bytes()[:-9])
    with pytest.raises(BadFile, match=victim.name):
        build_atlas(dictionaries, out=tmp_path, k=3, shard_rows=64)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_file_are_read_by_range_and_are_those_of_the_whole(tmp_path, monkeypatch, transposed, dtype):
    make = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (50, 8), "b_enc": (50,), "W_dec": (50, 8), "b_dec": (8,), "threshold": (50,)}
    tensors = {name: torch.randn(shape, generator=make).to(dtype) for name, shape in shapes.items()}
    turned = ("W_enc", "W_dec") if transposed else ()
    held = {n: t.T.contiguous() if n in turned else t for n, t in tensors.items()}
    save_file(held, tmp_path / "one.safetensors")
    layout = {name: Stored(name, transposed=name in turned, times=2.0) for name in shapes}
    weights = FileWeights(SafetensorsFile(tmp_path / "one.safetensors"), layout)
    whole = Dictionary.reading(
        SITES[0], tap=Tap.RES, weights=weights, activation=lambda: JumpReLU(weights.vector("threshold"))
    )
    monkeypatch.setattr(SafetensorsFile, "read", lambda self, name: pytest.fail(f"{name} was read whole"))
    part = whole.rows(10, 30).to(dtype=torch.float32)
    assert (part.n_features, part.d_in, part.d_out) == (20, 8, 8)
    for name in ("W_enc", "W_dec", "b_enc"):
        assert torch.equal(getattr(part, name), tensors[name].float()[10:30] * 2)
    assert "rows 10 to 29" in part.origin
    monkeypatch.undo()
    h = torch.randn(3, 8, generator=make)
    assert torch.allclose(part.encode(h), whole.encode(h)[:, 10:30], atol=1e-6)
    assert torch.equal(part.b_dec, whole.b_dec)


@pytest.mark.parametrize("activation", [ReLU(), TopK(3)])
def test_a_part_of_a_part_is_a_part(activation):
    whole = Dictionary(
        SITES[0],
        tap=Tap.RES,
        W_enc=torch.randn(9, 4),
        b_enc=torch.zeros(9),
        W_dec=torch.randn(9, 4),
        b_dec=torch.zeros(4),
        activation=activation,
    )
    again = whole.rows(2, 9).rows(1, 4)
    assert torch.equal(again.directions(), whole.directions()[3:6])
    with pytest.raises(InvalidArgument, match="rows 5 to 12"):
        whole.rows(5, 12)


def test_on_the_command_line(saeflow, tmp_path):
    held = {site: made(site, 40) for site in SITES}
    save_release(tmp_path / "saes", held, name="planted", model="")
    for name, more in (("whole", ()), ("shards", ("--shard-rows", 16))):
        code, _, err = saeflow("atlas", "build", tmp_path / "saes", "--out", tmp_path / name, "--k", 2, *more)
        assert code == 0, err
    assert_same(tmp_path / "whole", tmp_path / "shards")


def test_a_cache_holds_the_rows_of_the_last_keys_and_pickles_empty():
    read, cache = [], RowCache(2)
    for key in "abacab":
        assert cache.get(key, lambda key=key: read.append(key) or key.upper()) == key.upper()
    assert read == ["a", "b", "c", "b"]
    assert [key in cache for key in "abc"] == [True, True, False]
    sent = pickle.loads(pickle.dumps(cache))  # noqa: S301
    assert not any(key in sent for key in "abc")
    assert sent.get("a", lambda: 1) == 1


def test_a_cache_reads_ahead_once_and_forgets_a_read_that_failed():
    read, cache = [], RowCache(2)
    cache.read_ahead("a", lambda: read.append("a") or 1)
    cache.read_ahead("a", lambda: read.append("again"))
    cache.read_ahead("b", lambda: 1 / 0)
    assert cache.get("a", lambda: read.append("again")) == 1
    with pytest.raises(ZeroDivisionError):
        cache.get("b", lambda: 2)
    assert cache.get("b", lambda: 2) == 2
    assert read == ["a"]
