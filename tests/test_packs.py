"""The packs in the repository: whole, within their sizes, and what their atlas, words and card say is of what ships."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from saeflow.demo import quality
from saeflow.demo.texts import all_texts, domains
from saeflow.files import pack_folder, pack_names
from saeflow.flow import trace
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels.folders import words_for
from saeflow.matching.atlas import open_atlas
from saeflow.sources.library import load_dictionaries

NAME = "smollm2-135m"
MEGABYTE = 10**6


@pytest.fixture(scope="module")
def pack() -> Path:
    found = pack_folder(NAME)
    assert found is not None
    assert NAME in pack_names()
    return found


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_its_files_are_as_small_as_was_promised(pack: Path):
    assert _size(pack / "saes") <= 60 * MEGABYTE
    assert _size(pack) - _size(pack / "saes") <= 15 * MEGABYTE


def test_every_table_is_of_the_rows_that_ship(pack: Path):
    dictionaries, atlas = load_dictionaries(NAME), open_atlas(NAME)
    atlas.verify()
    assert {str(site): one.digest() for site, one in dictionaries.items()} == {
        str(site): digest for site, digest in atlas.weights.items()
    }
    source, target = Site.parse("12/res"), Site.parse("11/res")
    cosines = dictionaries[source].directions()[:50].double() @ dictionaries[target].directions().double().T
    best = cosines.topk(5, dim=1)
    assert torch.equal(torch.from_numpy(atlas[source, target].index[:50].copy()).long(), best.indices)


def test_a_flow_graph_needs_nothing_else(pack: Path):
    graph = trace(FeatureId.parse("12/res/517"), open_atlas(NAME))
    assert {node.feature.site.layer for node in graph.nodes} == set(range(6, 14))
    words = words_for(NAME, beside=pack / "atlas")
    known = [words.get(FeatureId(Site(12, Part.RES), index)) for index in range(200)]
    assert sum(found is not None and bool(found.contexts) for found in known) > 150


def test_quality_and_card_say_the_same_of_every_site(pack: Path):
    measured, card = quality(NAME), (pack / "CARD.md").read_text(encoding="utf-8")
    assert set(measured["saes"]) == {str(site) for site in load_dictionaries(NAME).sites}
    for site, row in measured["saes"].items():
        assert f"| {site} | {row['features']:,} | {row['fve']:.3f} |" in card
    assert json.loads((pack / "saes" / "release.json").read_text())["model"] == NAME


def test_its_texts_are_many_and_different(pack: Path):
    found = [text for domain in domains(NAME) if domain != "python" for text in all_texts(domain, NAME)]
    assert len(found) == len(set(found)) >= 200
    assert all(len(text) > 200 for text in found)
