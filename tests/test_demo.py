"""The shipped pack: its atlas is brute force, its numbers are there, and the main job runs on it."""

import json
import subprocess
import sys

import numpy as np
import pytest

from saeflow import demo, load_dictionaries, load_model, open_atlas, trace
from saeflow.demo.pick import worth_a_look
from saeflow.errors import InvalidArgument
from saeflow.experiments.sampling import draw, open_dataset
from saeflow.flow import Thresholds
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels import FeatureWords, no_words, open_words
from saeflow.matching.atlas import flow_pairs


@pytest.fixture(scope="module")
def atlas():
    return open_atlas("demo")


@pytest.fixture(scope="module")
def dictionaries():
    return load_dictionaries("demo")


def test_every_layer_has_a_dictionary_at_every_part(dictionaries):
    assert set(dictionaries) == {Site(layer, part) for layer in range(6) for part in Part}
    for site, dictionary in dictionaries.items():
        assert dictionary.d_in == 192
        assert dictionary.n_features >= (768 if site.part is Part.RES else 1)


def test_the_atlas_equals_brute_force(atlas, dictionaries):
    """All pairs, both directions, k = 5, against numpy in float64."""
    rows = {}
    for site, dictionary in dictionaries.items():
        W_dec = dictionary.W_dec.numpy().astype(np.float64)
        rows[site] = W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True)
    pairs = flow_pairs(list(dictionaries))
    assert set(atlas) == {*pairs, *((b, a) for a, b in pairs)}
    for (source, target), table in atlas.items():
        product = rows[source] @ rows[target].T
        index = np.argsort(-product, axis=1, kind="stable")[:, :5]
        score = np.take_along_axis(product, index, axis=1)
        assert np.abs(table.score - score).max() < 1e-5
        # Where two scores differ by less than float32 can tell, either order is right.
        apart = np.abs(np.diff(np.sort(-product, axis=1)[:, :6], axis=1)).min(axis=1) > 1e-6
        assert apart.mean() > 0.98
        assert np.array_equal(table.index[apart], index[apart])


def test_features_worth_a_look_need_words_and_not_words_of_english(atlas):
    class Elsewhere:
        """Words of a tokenizer that puts no space before them."""

        def get(self, feature):
            return self.site(feature.site)[feature.index]

        def site(self, site):
            known = FeatureWords("", ("a", "b"), frequency=0.01)
            return [known if site.layer == 5 and index in (3, 40) else None for index in range(60)]

    picks = worth_a_look(atlas, Elsewhere(), 3)
    assert {str(pick.graph.seed) for pick in picks} == {"5/res/3", "5/res/40"}
    assert not worth_a_look(atlas, no_words, 3)


def test_every_feature_of_the_graph_shown_has_words(atlas):
    words = open_words(atlas.folder)
    graph = trace(FeatureId.parse("4/res/1"), atlas, thresholds=Thresholds(res=0.0))
    known = [words.get(node.feature) for node in graph.nodes]
    assert sum(w is not None for w in known) >= len(known) - 1
    some = next(w for w in known if w is not None)
    assert some.label
    assert some.promotes
    assert all(len(c.tokens) == len(c.values) and max(c.values) > 0 for w in known if w for c in w.contexts)


@pytest.mark.parametrize("domain", demo.DOMAINS)
def test_texts_are_different_and_set_by_the_seed(domain):
    found = demo.texts(domain, 40, seed=1)
    assert len(set(found)) == 40
    assert found == demo.texts(domain, 40, seed=1)
    assert found != demo.texts(domain, 40, seed=2)
    assert all(len(text) >= 100 for text in found)


@pytest.mark.parametrize("domain", demo.DOMAINS)
def test_an_experiment_as_large_as_the_papers_finds_its_texts(domain):
    """Appendix A.1: 250 texts of each dataset, 5 random tokens each; a quarter of the texts is held out."""
    model = load_model("demo")
    samples = draw(
        open_dataset(f"demo:{domain}"),
        lambda text: model.tokenize([text]).input_ids[0].tolist(),
        n_texts=250,
        n_tokens=5,
        special=(0,),
    )
    assert len({sample.content for sample in samples}) == 250


def test_texts_are_refused_with_what_there_is():
    with pytest.raises(InvalidArgument, match="stories, novels, textbooks, maths, python"):
        demo.texts("poems", 1)
    with pytest.raises(InvalidArgument, match="there are"):
        demo.texts("stories", 10**6)


def test_the_model_knows_the_text_of_its_domains_better_than_chance():
    model = load_model("demo")
    for domain in demo.DOMAINS:
        tokens = model.tokenize(demo.texts(domain, 4), max_length=128)
        assert float(model.loss(tokens).nanmean()) < 5.0  # chance is ln 4096 = 8.3


def test_the_stored_measurement_is_that_of_the_shipped_weights(dictionaries):
    """L0 and explained variance on the pack's own texts lie near what was stored for held-out text."""
    model, measured = load_model("demo"), demo.quality()["saes"]
    tokens = model.tokenize([t for d in demo.DOMAINS for t in demo.texts(d, 6)], max_length=128)
    keep = (tokens.input_ids != 0) & (tokens.attention_mask == 1)
    captured = model.capture(tokens, list(dictionaries))
    for site, dictionary in dictionaries.items():
        h = captured[site][keep]
        acts = dictionary.encode(h)
        error = h - dictionary.decode(acts)
        fve = 1 - float(error.pow(2).sum() / (h - h.mean(0)).pow(2).sum())
        assert abs(fve - measured[str(site)]["fve"]) < 0.1
        assert 0.5 < float((acts > 0).sum(1).float().mean()) / measured[str(site)]["l0"] < 1.6


@pytest.mark.parametrize(
    "arguments", [["demo", "-o", "flow.html"], ["info", "demo"], ["info", "demo", "--json"], ["demo", "--json"]]
)
def test_the_commands_run_on_the_pack(arguments, tmp_path):
    """In a process of their own, as people run them: a thousand graphs under the checks of types take 20 s."""
    command = [sys.executable, "-c", "from saeflow.cli import main; main()", *arguments]
    ran = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    if "--json" in arguments:
        json.loads(ran.stdout)
    if "-o" in arguments:
        assert "Try next" in ran.stdout
    assert [path.name for path in tmp_path.iterdir()] == (["flow.html"] if "-o" in arguments else [])


def test_the_demo_model_is_known_by_its_name_wherever_it_is_installed():
    assert load_model("demo").name == "demo"
