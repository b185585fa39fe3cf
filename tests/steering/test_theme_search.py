"""Themes found by the tool: what is planted is found, what is common, doubled or said unsteered is not."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Site
from saeflow.labels import Context, FeatureWords
from saeflow.steering import theme_search
from saeflow.steering.activity import Activity
from saeflow.steering.generate import Generation
from saeflow.steering.theme import load_theme, themes
from saeflow.steering.theme_search import keywords_in, own_words, search_themes

from ..sources.tiny_models import tiny_model
from .steered import dictionary_at

SITE = Site.parse("1/res")
SUBJECTS = ("harbour ship sailor anchor mast", "flour butter oven recipe dough", "violin opera chorus sonata cello")
FILLER = "there was somebody who went along quietly and found another thing behind those houses yesterday evening again"


class Known:
    """Words of one site."""

    def __init__(self, rows):
        self.rows = rows

    def get(self, feature):
        return self.rows[feature.index]

    def site(self, _):
        return self.rows


@pytest.fixture
def world(monkeypatch):
    """Three subjects in a tenth of 1,000 texts each, and a feature for each; 3 doubles 0, 4 fires everywhere."""
    rng = np.random.default_rng(0)
    about = rng.choice([0, 1, 2, -1], 1000, p=[0.1, 0.1, 0.1, 0.7])
    texts = []
    for subject in about:
        words = list(rng.permutation(FILLER.split()))
        texts.append(" ".join([*words, *(rng.permutation(SUBJECTS[subject].split())[:3] if subject >= 0 else [])]))
    active = np.stack([(about == 0), (about == 1), (about == 2), (about == 0), np.ones(1000)], 1) * rng.uniform(
        1, 2, (1000, 5)
    )
    known = [
        FeatureWords(words, tuple(f" {word}" for word in words.split())) for words in (*SUBJECTS, SUBJECTS[0], FILLER)
    ]
    rows = torch.eye(5, 8)
    said = {"text": "nothing about anything"}

    def read(_model, _dictionaries, windows, *, sites, **_):
        assert list(windows) == texts
        return Activity(tuple(sites), dict.fromkeys(sites, sp.csr_array(active)), np.full(len(windows), 20))

    def generate(_model, _dictionaries, requests, _sampling):
        return [Generation(request, said["text"], (), 0.0, 0.0) for request in requests]

    monkeypatch.setattr(theme_search, "activity", read)
    monkeypatch.setattr(theme_search, "generate", generate)
    monkeypatch.setattr(theme_search, "unit_rows", lambda _dictionary, features, _model: rows[[features[0].index]])
    monkeypatch.setattr(theme_search, "COMMON", 0.1)

    def search(**more):
        return search_themes(
            tiny_model("llama"), {SITE: dictionary_at(SITE)}, Known(known), texts, sites=[SITE], release="mine", **more
        )

    return SimpleNamespace(search=search, said=said, texts=texts)


def test_each_planted_subject_is_found_once_with_words_of_its_own(world):
    made = world.search()
    assert made.looked_at == 5
    assert made.left_out == {"near a clearer one": 1, "fires on too many texts": 1}
    found = {one.theme.starts[0].index % 3: one for one in made.found}
    assert sorted(found) == [0, 1, 2]
    for subject, one in found.items():
        assert set(one.theme.keywords) == set(SUBJECTS[subject].split())
        assert one.theme.release == "mine"
        assert one.holding == 1.0
        assert one.auc > 0.98
        assert one.others < 0.05
        assert one.unsteered == 0.0
        assert all(keywords_in(text, one.theme.keywords) >= 2 for text in one.theme.examples)
        assert keywords_in(one.theme.suppress.prompt.split()[-1], one.theme.keywords) == 1
        before = one.theme.suppress.asked.removesuffix(one.theme.suppress.prompt)
        assert keywords_in(before, one.theme.keywords) == 0
    assert len(world.search(limit=2).found) == 2
    assert world.search(limit=2).left_out["enough were found before"] >= 1


def test_what_unsteered_text_is_about_anyway_is_no_theme(world):
    world.said["text"] = "The sailor saw a ship."
    made = world.search()
    assert not {"ship", "sailor"} & {word for one in made.found for word in one.theme.keywords}
    assert made.left_out["unsteered text has its words"] == 2


def test_words_of_a_feature_are_whole_words_it_fires_on():
    passage = Context((" the", " har", "bour", " is", " full"), (0.0, 1.0, 4.0, 1.9, 2.1))
    known = FeatureWords("", tokens=(" Ship", "bour", " a"), promotes=(" mast",), contexts=(passage,))
    assert own_words(known) == {"ship", "mast", "harbour", "full"}


def test_keywords_count_once_in_any_case():
    assert keywords_in("Ship, ship! The SHIPS sank with a mast.", ["ship", "mast"]) == 2


def test_a_search_that_cannot_find_is_refused(world):
    with pytest.raises(InvalidArgument, match="limit = 0 finds nothing"):
        world.search(limit=0)
    with pytest.raises(InvalidArgument, match="nothing is known of features at 1/res"):
        search_themes(tiny_model("llama"), {}, Known([None]), world.texts, sites=[SITE])


def test_a_theme_is_written_as_a_file_that_reads_back(world, tmp_path):
    for one in world.search().found:
        path = tmp_path / f"{one.theme.name}.toml"
        path.write_text(one.theme.to_toml(), encoding="utf-8")
        assert load_theme(str(path)) == one.theme
    for theme in themes("demo"):
        path = tmp_path / f"{theme.name}.toml"
        path.write_text(theme.to_toml(), encoding="utf-8")
        assert load_theme(str(path)) == theme


def test_the_found_themes_of_the_demo_pack_have_one_start_each_and_little_in_common():
    found = themes("demo", "found")
    assert len(found) >= 16
    assert not set(found) & set(themes("demo"))
    assert len({theme.starts for theme in found}) == len(found)
    for theme in found:
        assert load_theme(f"found/{theme.name}", "demo") == theme
        (start,) = theme.starts
        assert isinstance(start, FeatureId)
        assert 4 <= len(theme.keywords) <= 12
        assert len(theme.examples) == 24
        assert theme.activate.asked.endswith(theme.activate.prompt)
        assert theme.suppress.asked.endswith(theme.suppress.prompt)
    for number, theme in enumerate(found):
        for other in found[:number]:
            shared = set(theme.keywords) & set(other.keywords)
            assert len(shared) <= min(len(theme.keywords), len(other.keywords)) / 4
