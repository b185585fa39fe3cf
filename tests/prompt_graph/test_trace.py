"""trace_text: every effect is one whole forward pass with a plain hook, and the graph of a planted model its wiring."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Site
from saeflow.interventions import Positions, Rescale
from saeflow.matching.direct import DirectMatches
from saeflow.prompt_graph import Pruning
from saeflow.prompt_graph.fidelity import measure_fidelity
from saeflow.prompt_graph.trace import trace_text
from saeflow.sources.architectures import Point, Tap
from saeflow.sources.dictionary import Dictionary

from ..experiments.causal.test_errors_and_earlier_tokens import without_error
from ..experiments.causal.worlds import KINDS, TEXT, VARIANTS, dictionaries_on, language_model
from ..experiments.planted import TEXT as TEXT_OF_PLANTED
from ..experiments.planted import plant, positions

WORLDS = [(variant, "jumprelu") for variant in VARIANTS] + [("llama", kind) for kind in KINDS if kind != "jumprelu"]
END = 9


def traced(variant, kind="jumprelu", **options):
    model = language_model(variant)
    tokens = model.tokenize([TEXT])
    dictionaries = dictionaries_on(model, tokens, KINDS[kind])
    matches = DirectMatches(dictionaries, projector=model)
    asked = {"token": END, "pruning": None, "random_graphs": 0, "kept": 0.0} | options
    return model, dictionaries, tokens, trace_text(TEXT, dictionaries, model=model, atlas=matches, **asked)


def removal(node, dictionaries):
    """What takes a node out of a forward pass: an edit, or a plain hook."""
    name, _, position = node.partition("@")
    if name.endswith("error"):
        return without_error(dictionaries[Site.parse(name.removesuffix("/error"))], int(position))
    return [Rescale((FeatureId.parse(name),), tokens=Positions((int(position),)))]


def values(nodes, model, dictionaries, tokens):
    """What nodes are in the running model, in one forward pass."""
    points = {site: Point(site.layer, dictionary.tap) for site, dictionary in dictionaries.items()}
    held = model.capture(tokens, list(points.values()), logits=True)
    acts = {
        (site, position): dictionary.encode(held[points[site]][0, position])
        for site, dictionary in dictionaries.items()
        for position in {int(node.partition("@")[2]) for node in nodes}
    }
    found = []
    for node in nodes:
        name, _, position = node.partition("@")
        if name.startswith("logit/"):
            logits = held.logits[0, int(position)].double()
            token, _, less = name.removeprefix("logit/").partition("-")
            found.append(float(logits[int(token)] - (logits[int(less)] if less else logits.mean())))
        else:
            feature = FeatureId.parse(name)
            found.append(float(acts[feature.site, int(position)][feature.index]))
    return np.array(found)


@pytest.mark.parametrize(("variant", "kind"), WORLDS)
def test_every_effect_is_one_whole_forward_pass_with_a_plain_hook(variant, kind, record_property):
    """Within 1e-4 of the child's value; of 1 % of its site's largest activation where the child is weaker."""
    model, dictionaries, tokens, graph = traced(variant, kind, before=1)
    assert set(graph.edges["link"]) == {"stream", "block", "attention", "logit"}
    assert graph.edges["parent"].str.contains("error").any()
    children = list(dict.fromkeys(graph.edges["child"]))
    clean = dict(zip(children, values(children, model, dictionaries, tokens), strict=True))
    site_of = {child: child.rpartition("/")[0] for child in children}
    floor = {
        site: 0.01 * max(abs(clean[child]) for child in children if site_of[child] == site)
        for site in set(site_of.values())
    }
    size = {child: max(abs(clean[child]), floor[site_of[child]]) for child in children}
    worst = 0.0
    # one world as a whole; of the others some parents and all that is read of them: a pass each takes its time
    parents = graph.edges["parent"].unique()
    if (variant, kind) != WORLDS[0]:
        kinds = graph.edges.assign(error=graph.edges["parent"].str.contains("error"))[["link", "error", "parent"]]
        parents = kinds.drop_duplicates().sample(frac=1, random_state=0).groupby(["link", "error"]).head(2)["parent"]
    of_parents = graph.edges[graph.edges["parent"].isin(parents)]
    assert set(of_parents["link"]) == set(graph.edges["link"])
    for parent, edges in of_parents.groupby("parent"):
        before = edges["child"].map(clean).to_numpy()
        with model.intervening(removal(parent, dictionaries), dictionaries):
            change = before - values(list(edges["child"]), model, dictionaries, tokens)
        found, sizes = edges["change"].to_numpy(), edges["child"].map(size).to_numpy()
        # an effect is a share of the child's value, which is known within 1e-4 of its size
        told, known = edges["effect"].to_numpy() * np.abs(before), 1e-4 * sizes / np.abs(before)
        assert (np.abs(told - found) <= known * np.abs(found)).all()
        worst = max(worst, float((np.abs(found - change) / sizes).max()))
    record_property("effects", len(of_parents))
    record_property("apart", worst)
    assert worst < 1e-4


def test_nodes_are_all_that_is_active_their_shares_add_up_and_errors_are_what_is_left():
    model, dictionaries, tokens, graph = traced("gemma3_text")
    nodes = graph.nodes
    for site, dictionary in dictionaries.items():
        point = Point(site.layer, dictionary.tap)
        h = model.capture(tokens, [point])[point][0, END]
        acts = dictionary.encode(h)
        here = nodes[(nodes["layer"] == site.layer) & (nodes["part"] == site.part.value)]
        features = here[here["kind"] == "feature"]
        assert list(features["node"]) == [f"{site}/{index}@{END}" for index in acts.nonzero().flatten().tolist()]
        assert features["activation"].to_numpy() == pytest.approx(acts[acts > 0].numpy(), rel=1e-5)
        assert features["share"].sum() == pytest.approx(1)
        error = h - dictionary.decode(acts, h)
        [row] = here[here["kind"] == "error"].to_dict("records")
        assert row["activation"] == pytest.approx(float(error.norm()), rel=1e-4)
        assert row["share"] == pytest.approx(float(error.norm() / h.norm()) ** 2, rel=1e-4)


def test_edges_say_what_matching_names_and_the_cosine_of_every_pair():
    model, dictionaries, _, graph = traced("llama", "z", k=2)
    matches = DirectMatches(dictionaries, projector=model)
    stream = graph.edges[(graph.edges["link"] == "stream") & ~graph.edges["parent"].str.contains("error")]
    for edge in stream.itertuples():
        parent, child = (FeatureId.parse(node.partition("@")[0]) for node in (edge.parent, edge.child))
        named = [match.feature for match in matches.best(child, parent.site, 2)]
        assert (None if pd.isna(edge.rank) else edge.rank) == (named.index(parent) if parent in named else None)
        rows = [dictionaries[f.site].directions(model)[f.index] for f in (parent, child)]
        assert edge.cosine == pytest.approx(float(rows[0] @ rows[1]), abs=1e-5)
    assert 0 < stream["rank"].notna().sum() < len(stream)
    assert len(graph.missed) == stream["rank"].isna().sum()


def test_the_control_of_an_edge_is_the_effect_of_another_active_feature_of_its_site_on_the_same_child():
    *_, graph = traced("llama")
    known = {(edge.parent, edge.child): edge.effect for edge in graph.edges.itertuples()}
    for edge in graph.edges[graph.edges["control"].notna()].itertuples():
        site = edge.parent.rpartition("/")[0]
        others = [
            effect
            for (parent, child), effect in known.items()
            if child == edge.child and parent != edge.parent and parent.rpartition("/")[0] == site
        ]
        assert edge.control in others
    assert graph.edges[graph.edges["parent"].str.contains("error")]["control"].isna().all()


@pytest.mark.parametrize("variant", ["llama", "gpt2", "gpt_neox"])
def test_direct_paths_add_up_to_the_logit_but_for_the_biases(variant):
    """With everything of the last stream removed along the frozen norm, what is left is what the biases add."""
    model, dictionaries, tokens, graph = traced(variant)
    site = max(dictionaries)
    onto = graph.edges[graph.edges["child"] == graph.target]
    [target] = graph.nodes[graph.nodes["node"] == graph.target]["activation"]
    norm = model.trunk.get_submodule(model.architecture.final_norm)
    h = model.capture(tokens, [site])[site][0, END]
    bias = dictionaries[site].b_dec
    token = int(graph.target.removeprefix("logit/").partition("@")[0])
    with torch.no_grad():
        logits = model.unembed(bias[None])[0]
        normed, nothing = norm(h[None])[0], norm(torch.zeros_like(h)[None])[0]
        whole = model.unembed(h[None])[0]
        head = model.hf_model.get_output_embeddings()
        factor = float((head(normed) - head(nothing)) @ whole / (whole @ whole))
        rest = head(nothing)
    left = factor * float(logits[token] - logits.mean()) + float(rest[token] - rest.mean())
    assert onto["direct"].sum() + left == pytest.approx(target, rel=1e-3, abs=1e-3)


def test_a_named_target_and_a_difference_are_read_and_refused():
    model, _, _, graph = traced("llama", target="w5", against="w9")
    five, nine = model.tokenizer("w5 w9", add_special_tokens=False)["input_ids"]
    assert graph.target == f"logit/{five}-{nine}@{END}"
    assert graph.nodes.set_index("node").loc[graph.target, "token"].split() == ["w5", "-", "w9"]
    with pytest.raises(InvalidArgument, match=r"is 2 tokens.*Give one"):
        traced("llama", target="w5 w9")
    with pytest.raises(InvalidArgument, match="token 40 with 0 before it is not in the text, which has 13 tokens"):
        traced("llama", token=40)


def test_the_fidelity_of_everything_is_1_and_of_nothing_0():
    model, dictionaries, _, graph = traced("gemma2")
    assert graph.fidelity.faithfulness == pytest.approx(1, abs=1e-4)
    assert graph.fidelity.completeness == pytest.approx(1, abs=1e-4)
    nothing = graph.prune(Pruning(effect=math.inf))
    assert list(nothing.nodes["node"]) == [graph.target]
    measured = measure_fidelity(nothing, model, dictionaries, random_graphs=2)
    assert (measured.faithfulness, measured.completeness) == pytest.approx((0, 0), abs=1e-4)
    assert measured.random_faithfulness == pytest.approx(0, abs=1e-4)


def test_fidelity_is_that_of_plain_passes_with_hooks():
    model, dictionaries, tokens, graph = traced("llama")
    pruned = graph.prune(Pruning(effect=0.3))
    everything, inside = set(graph.nodes["node"]), set(pruned.nodes["node"])
    measured = measure_fidelity(pruned, model, dictionaries, random_graphs=0)

    def hook(dictionary, *, graph_goes):
        def change(h):
            h = h.clone()
            acts = dictionary.encode(h[0, END])
            site = dictionary.site
            kept = [f"{site}/{i}@{END}" in (everything - inside if graph_goes else inside) for i in range(len(acts))]
            new = (acts * torch.tensor(kept)) @ dictionary.W_dec + dictionary.b_dec
            if (f"{site}/error@{END}" in inside) != graph_goes:
                new = new + h[0, END] - dictionary.decode(acts)
            h[0, END] = new
            return h

        return change

    for graph_goes, found in ((False, measured.kept), (True, measured.without)):
        hooks = {Point(s.layer, d.tap): hook(d, graph_goes=graph_goes) for s, d in dictionaries.items()}
        with model.intervening(hooks):
            [left] = values([graph.target], model, dictionaries, tokens)
            assert left == pytest.approx(found, rel=1e-3, abs=1e-4)
    assert 0 < len(inside) < len(graph.nodes)


# A planted model


@pytest.fixture(scope="module")
def planted():
    """In float64: with everything ablated the final norm makes rounding a thousand times as large."""
    return plant(dtype=torch.float64)


def of_planted(planted, word, text, **options):
    matches = DirectMatches(planted.dictionaries)
    asked = {"token": positions(word, text)[0], "pruning": None, "random_graphs": 0} | options
    return trace_text(text, planted.dictionaries, model=planted.model, atlas=matches, **asked)


@pytest.mark.parametrize("word", ["carry", "write", "double"])
def test_the_graph_of_a_planted_model_is_its_wiring_and_its_features_carry_all_of_the_logit(planted, word):
    graph = of_planted(planted, word, "nothing carry write double")
    at = graph.positions[0]
    causes = {"carry": ["carried"], "write": ["write_cause", "written"], "double": ["both"]}[word]
    of_layer_1 = graph.edges[graph.edges["child"].str.startswith("1/res") & (graph.edges["link"] == "stream")]
    # what is weaker goes through the norm before the MLP, whose size every feature moves a little
    strong = of_layer_1[(of_layer_1["effect"] > 0.1) & ~of_layer_1["parent"].str.contains("error")]
    found = set(zip(strong["parent"], strong["child"], strict=True))
    wiring = set()
    for name in (*causes, "common"):
        child = planted.feature("1/res", name)
        for parent in planted.predecessors(name) if name != "write_cause" else [planted.feature("0/res", name)]:
            wiring.add((f"{parent}@{at}", f"{child}@{at}"))
    # the MLP reads a cause and writes a feature
    read = {"write": [("write_cause", "written")], "double": [("both", "both")]}.get(word, [])
    for cause, written in read:
        parent, child = planted.feature("0/res", cause), planted.feature("1/mlp", written)
        wiring.add((f"{parent}@{at}", f"{planted.feature('1/res', written)}@{at}"))
        through = graph.edges[(graph.edges["parent"] == f"{parent}@{at}") & (graph.edges["child"] == f"{child}@{at}")]
        assert through["effect"].tolist() == pytest.approx([1.0])
    assert found == wiring
    features = replace(graph, nodes=graph.nodes[graph.nodes["kind"] != "error"])
    measured = measure_fidelity(features, planted.model, planted.dictionaries, random_graphs=0)
    assert (measured.completeness, measured.faithfulness) == pytest.approx((1, 1), abs=1e-4)


def test_attention_from_a_traced_token_is_followed_and_from_others_it_is_not(planted):
    source = positions("source")[0]
    cause, attended = planted.feature("0/res", "source_cause"), planted.feature("1/att", "attended")
    asked = {"text": TEXT_OF_PLANTED, "token": source + 1}
    alone = of_planted(planted, "source", **asked)
    assert not (alone.edges["link"] == "attention").any()
    both = of_planted(planted, "source", **asked, before=1)
    [edge] = both.edges[
        (both.edges["parent"] == f"{cause}@{source}") & (both.edges["child"] == f"{attended}@{source + 1}")
    ].itertuples()
    assert edge.link == "attention"
    assert edge.effect == pytest.approx(1)


def test_a_plain_mapping_of_dictionaries_needs_a_model(planted):
    with pytest.raises(InvalidArgument, match="do not say which model they are of"):
        trace_text("carry", planted.dictionaries)


# What has no share in a hidden state


def test_transcoders_and_layers_without_an_autoencoder_are_left_out_with_a_sentence():
    model = language_model("llama")
    tokens = model.tokenize([TEXT])
    dictionaries = dictionaries_on(model, tokens)
    mlp = dictionaries[Site("1/mlp")]
    dictionaries[Site("1/mlp")] = Dictionary(
        Site("1/mlp"),
        tap=Tap.MLP_IN,
        W_enc=mlp.W_enc,
        b_enc=mlp.b_enc,
        W_dec=mlp.W_dec,
        b_dec=mlp.b_dec,
        activation=mlp.activation,
    )
    del dictionaries[Site("0/res")]
    graph = trace_text(TEXT, dictionaries, model=model, atlas=DirectMatches(dictionaries), token=END, random_graphs=0)
    said = " ".join(graph.notes)
    assert "1/mlp: left out, since a transcoder's activations are no shares of a hidden state" in said
    assert "0/att, 0/mlp: left out, since its layer has no residual autoencoder" in said
    assert "There is no autoencoder at 0/res" in said
    only = {Site("1/mlp"): dictionaries[Site("1/mlp")]}
    with pytest.raises(InvalidArgument, match="no residual autoencoder"):
        trace_text(TEXT, only, model=model, atlas=DirectMatches(only))
