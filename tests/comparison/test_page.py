"""The command and the page: tables for a terminal, JSON, and a page that loads nothing."""

import json
import re

import pytest
import torch

import saeflow as sf
from saeflow.comparison.run import compare
from saeflow.comparison.settings import ComparisonSettings
from saeflow.errors import BadFile, InvalidArgument
from saeflow.ids import Site
from saeflow.labels.words import FeatureWords
from saeflow.paper import FIGURES, draw, reading
from saeflow.sources.formats.saeflow_folder import save_release

from ..matching.planted import dictionary
from .planted import SITE, noisy, plant, unit

FEW = ("--rows", "256", "--rotations", "1", "--whole-rotations", "1")
HOSTILE = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("releases")
    planted = plant()
    rows = planted.a.W_dec
    for name, made in (("one", planted.a), ("two", planted.b), ("three", dictionary(SITE, noisy(rows, 0.3, 7)))):
        save_release(folder / name, {SITE: made}, name=name, model="tiny")
    return folder


def test_the_command_prints_tables_and_writes_page_json_and_csv(stdout, folders, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    said = stdout("compare", folders / "one", folders / "two", *FEW, "--out", tmp_path / "out")
    assert "How much two dictionaries share" in said
    assert "one 1/res" in said
    told = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (told["format"], told["version"]) == ("saeflow-comparison", 1)
    assert {path.stem for path in (tmp_path / "out" / "tables").glob("*.csv")} == set(told["tables"])
    page = (tmp_path / "out" / "index.html").read_text()
    assert "one against two" in page
    for record in told["dictionaries"]:
        assert record["sha256"] in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert (tmp_path / "out" / "figures" / "compare_scores.svg").is_file()


def test_a_folder_of_results_opens_as_a_comparison(folders, tmp_path):
    found = sf.compare(folders / "one", folders / "two", settings=ComparisonSettings(rows=64, rotations=1))
    found.save(tmp_path)
    again = sf.open_results(tmp_path)
    assert isinstance(again, sf.Comparison)
    assert repr(again) == "<Comparison of one 1/res, two 1/res>"
    assert again.to_pandas().equals(found.to_pandas())
    assert again.table("splits").attrs["title"] == "Features that several of the other dictionary share"
    with pytest.raises(InvalidArgument, match=r"no table 'split'. It has pairs, compare_scores"):
        again.table("split")
    with pytest.raises(BadFile, match="cannot be read as the manifest of results"):
        sf.open_results(tmp_path / "tables")


def test_json_is_the_comparison(stdout, folders):
    told = json.loads(stdout("compare", folders / "one", folders / "two", *FEW, "--json"))
    columns = told["tables"]["pairs"]["columns"]
    row = dict(zip(columns, told["tables"]["pairs"]["rows"][0], strict=True))
    assert 0.5 < row["pw_mcc"] < 1
    assert told["settings"]["rows"] == 256


def test_more_than_two_are_a_chain_with_a_flow_graph_on_the_page(stdout, folders, tmp_path):
    said = stdout(
        "compare", folders / "one", folders / "three", folders / "one", *FEW, "--out", tmp_path, "--names", "a,b,c"
    )
    assert "Birth, drift and death over the chain" in said
    page = (tmp_path / "index.html").read_text()
    assert 'class="flow"' in page
    assert ">b 1/res</text>" in page, "steps have their names in place of layers"
    assert "layer 1" not in page


def test_sites_are_mapped_on_the_command_line(stdout, refusal, folders, tmp_path):
    save_release(
        tmp_path / "other", {Site("4/res"): dictionary(Site("4/res"), unit(30, 1))}, name="other", model="tiny"
    )
    said = stdout("compare", folders / "one", tmp_path / "other", "--map", "1/res>4/res", *FEW, "--json")
    assert json.loads(said)["tables"]["pairs"]["rows"][0][2:4] == ["1/res", "4/res"]
    assert "is no pair of sites" in refusal("compare", folders / "one", folders / "two", "--map", "1/res")
    assert "no null 'far'" in refusal("compare", folders / "one", folders / "two", "--null", "far")


@pytest.fixture(scope="module")
def chain():
    rows = unit(40, 1)
    made = [dictionary(SITE, noisy(rows, 0.2 * step, 5 + step)) for step in range(3)]
    known = [FeatureWords(f"{HOSTILE} {row}", ("t",), frequency=10.0 ** -(row % 3 + 1)) for row in range(40)]

    class Known:
        def get(self, feature):
            return known[feature.index]

        def site(self, site):
            return known

    names = ("s0", "s1", HOSTILE)
    settings = ComparisonSettings(rows=256, rotations=1, whole_rotations=1)
    return compare(*made, settings=settings, names=names, words=dict.fromkeys(names, Known()))


def test_words_of_files_cannot_become_markup(chain, tmp_path):
    page = chain.save(tmp_path).read_text()
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page


def test_every_table_with_a_figure_is_drawn_and_told(chain):
    drawn = [name for name in chain.tables if name in FIGURES]
    assert len(drawn) == 7
    for name in drawn:
        assert all(plate.figure.axes for plate in draw(chain.tables[name]))
        said = reading(chain.tables[name])
        assert said.endswith("."), name
        assert "None" not in said


def test_the_page_of_a_comparison_without_matches_is_drawn_too(tmp_path):
    found = compare(
        dictionary(SITE, unit(9, 1)),
        dictionary(SITE, torch.zeros(4, 96)),
        settings=ComparisonSettings(rows=64, rotations=1, whole_rotations=1),
    )
    assert found.save(tmp_path).is_file()


def test_splits_and_features_of_one_alone_are_listed_with_their_words(tmp_path):
    planted = plant()
    rows = {name: [FeatureWords(f"{name} {row} <i>") for row in range(90)] for name in ("one", "two")}

    class Known:
        def __init__(self, name):
            self.name = name

        def get(self, feature):
            return rows[self.name][feature.index]

        def site(self, site):
            return rows[self.name]

    settings = ComparisonSettings(rows=512, rotations=2, whole_rotations=1)
    words = {name: Known(name) for name in rows}
    page = (
        compare(planted.a, planted.b, settings=settings, names=("one", "two"), words=words).save(tmp_path).read_text()
    )
    feature, parts = 41, planted.split[41]
    card = next(card for card in page.split("<li><b>one 1/res/")[1:] if card.startswith(f"{feature}</b>"))
    listed = card.split("</ul>")[0]
    assert f"one {feature} &lt;i&gt;" in listed
    for part in parts:
        assert f"<b>{part}</b>" in listed
        assert f"two {part} &lt;i&gt;" in listed
    alone = page.split("Those that match worst")[1]
    first = re.findall(r"one 1/res/(\d+)</b>", alone)
    assert len(first) == 8, "of each side"
    assert set(map(int, first)) <= {*planted.own_a, *planted.flipped}
    assert "PW-MCC" in page.split("</header>")[0]
    assert "Features that point the same way within one dictionary" in page.split("</header>")[0], "and none of these"
