"""`saeflow releases`, and `saeflow graph --compare-paper`."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest

from saeflow.files import pack_names
from saeflow.flow import Thresholds, trace
from saeflow.ids import Part
from saeflow.matching.build import build_atlas
from saeflow.sources import hub, releases
from saeflow.sources.hub import CacheState
from saeflow.sources.releases import ReleaseEntry, known_releases, read_release

from .matching.planted import plant


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub cache with one file of gemma-scope-2b, and no network at all."""
    there = "layer_24/width_16k/average_l0_73/params.npz"

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("asked the network")

    def look(repo: str, file: str, *, revision: str) -> str | None:
        return "/somewhere" if (repo, file) == ("google/gemma-scope-2b-pt-res", there) else None

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", look)
    return there


def test_every_release_is_listed_with_what_is_in_the_cache(saeflow, cached):
    code, out, err = saeflow("releases", "--json")
    assert (code, err) == (0, "")
    rows = {row["release"]: row for row in json.loads(out)["releases"]}
    assert tuple(rows) == (*pack_names(), *known_releases())
    row = rows["gemma-scope-2b"]
    assert (row["model"], row["parts"], row["layers"]) == ("google/gemma-2-2b", "att mlp res", "0-25")
    assert (row["features"], row["in cache"]) == (16384, "1 of 78")
    matrices = 26 * 2 * 16384 * (2304 + 2304 + 2048) * 4
    assert row["GB"] == pytest.approx(matrices / 1e9, rel=0.01)
    assert rows["gemma-scope-27b"]["layers"] == "10 22 34"
    assert rows["gemma-scope-9b"]["in cache"] == "0 of 126"
    _, text, _ = saeflow("releases")
    assert all(name in text for name in known_releases())


def test_one_release_is_listed_site_by_site(saeflow, cached):
    code, out, _ = saeflow("releases", "gemma-scope-2b", "--json")
    told = json.loads(out)
    sites = {row["site"]: row for row in told["sites"]}
    assert (code, len(sites)) == (0, 78)
    assert sites["24/res"]["file"] == f"google/gemma-scope-2b-pt-res/{cached}"
    assert [sites[name]["in cache"] for name in ("24/res", "23/res")] == ["yes", "no"]
    assert sites["24/res"]["labels"] == "gemma-2-2b/24-gemmascope-res-16k"
    assert sites["3/att"]["width"] == 2048
    assert "width ([16k], 32k, 65k" in told["parameters"]
    _, text, _ = saeflow("releases", "gemma-scope-2b@width=65k,l0=20")
    assert "width (16k, 32k, [65k]" in text


def test_what_of_a_release_is_here_is_told_apart(saeflow, cached, monkeypatch: pytest.MonkeyPatch):
    """W_dec alone, headers alone; tests/sources/test_remote.py fetches them."""
    held = {
        "0/res": CacheState.DECODER,
        "1/res": CacheState.DECODER,
        "2/res": CacheState.HEADERS,
        "24/res": CacheState.YES,
    }
    files = {
        entry.files[0]: str(site)
        for site, entry in read_release("gemma-scope-2b").sites.items()
        if entry.repo.endswith("res")
    }

    def look(entry: ReleaseEntry) -> CacheState:
        return held.get(files.get(entry.files[0], ""), CacheState.NO) if entry.repo.endswith("res") else CacheState.NO

    monkeypatch.setattr(hub, "cache_state", look)
    _, out, _ = saeflow("releases", "gemma-scope-2b", "--json")
    told = json.loads(out)
    assert (told["in cache"], told["W_dec only"]) == ("1 of 78", 2)
    sites = {row["site"]: row["in cache"] for row in told["sites"]}
    assert [sites[name] for name in (*held, "3/res")] == ["W_dec only", "W_dec only", "headers", "yes", "no"]
    _, text, _ = saeflow("releases", "gemma-scope-2b")
    assert "W_dec only" in text


def test_a_release_or_a_value_there_is_not_is_refused(saeflow):
    code, _, err = saeflow("releases", "gemma")
    assert (code, "no named release" in err) == (2, True)
    code, _, err = saeflow("releases", "gemma-scope-2b@width=3k")
    assert (code, "no files with width '3k'" in err) == (2, True)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory):
    return build_atlas(plant().dictionaries, out=tmp_path_factory.mktemp("a") / "atlas", k=2, release="planted")


def publish(folder: Path, atlas, *, change: bool) -> str:
    """Write the graph that the atlas gives as a published one, or one that differs at a site."""
    made = plant()
    seed = made.feature(2, 3)
    graph = trace(seed, atlas, thresholds=Thresholds(res=0.5, mlp=0.5))
    nodes = [node.feature for node in graph.nodes if node.feature.part is not Part.ATT]
    names = [str(feature) for feature in nodes]
    if change:
        names[0] = f"{nodes[0].site}/{(nodes[0].index + 1) % 80}"
    edge = next(e for e in graph.edges if e.child == seed and e.parent.part is Part.RES)
    score = f'{{ child = "{edge.child}", parent = "{edge.parent}", score = {edge.score:.2f} }}'
    (folder / "planted.graphs.toml").write_text(
        f'[[graphs]]\nsource = "a paper"\nseed = "{seed}"\nparts = ["res", "mlp"]\n'
        f"thresholds = {{ res = 0.5, mlp = 0.5 }}\nnodes = {json.dumps(names)}\nscores = [{score}]\n"
    )
    return str(seed)


@pytest.mark.parametrize("change", [False, True])
def test_a_graph_is_compared_with_the_published_one(
    saeflow, atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: bool
):
    monkeypatch.setattr(releases, "RELEASES", tmp_path)
    seed = publish(tmp_path, atlas, change=change)
    code, out, err = saeflow("graph", atlas.folder, seed, "--compare-paper", "--json")
    told = json.loads(out)
    assert (code, err, told["agrees"], told["seed"]) == (0, "", not change, seed)
    assert told["n_published"] - told["n_same"] == int(change)
    _, text, _ = saeflow("graph", atlas.folder, seed, "--compare-paper")
    assert f"{told['n_same']} of {told['n_published']} features of a paper agree, 1 of 1 scores" in text
    assert ("differs" in text) == change


def test_comparing_goes_with_no_threshold_of_ones_own_and_a_published_seed(
    saeflow, atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(releases, "RELEASES", tmp_path)
    seed = publish(tmp_path, atlas, change=False)
    for option in (("--t-res", "0.1"), ("--k", "2"), ("--direction", "forward"), ("--fdr", "0.05")):
        code, _, err = saeflow("graph", atlas.folder, seed, "--compare-paper", *option)
        assert (code, "as the publication did" in err) == (2, True)
    code, _, err = saeflow("graph", atlas.folder, "0/res/0", "--compare-paper")
    assert (code, f"Seeds of published graphs: {seed}" in err) == (2, True)
