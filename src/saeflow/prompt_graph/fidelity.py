"""How much of a prediction a prompt graph carries: forward passes in which the graph, or its complement, is ablated.

This follows the circuit literature (Wang et al. 2022, arXiv 2211.00593; Marks et al. 2024, arXiv 2403.19647), with
zero ablation: at every site that has a dictionary and at every traced token, the current hidden state is encoded, and
the contributions of the ablated activations are subtracted. Features that become active only because others are
ablated are ablated too: they are neither in the graph nor in its complement. Variants are rows of one batch; only the
traced tokens are run, against the clean keys and values of the tokens before (`saeflow.sources.blocks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.errors import InvalidArgument
from saeflow.experiments.causal.engine import unexplained
from saeflow.experiments.sampling import generator
from saeflow.ids import FeatureId, Part, Site
from saeflow.prompt_graph.graph import Fidelity, PromptGraph
from saeflow.sources.architectures import Point, View
from saeflow.sources.blocks import CleanPass
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens

AT_ONCE: Final = 64
"""The most variants in one forward pass of the traced tokens."""


@dataclass(frozen=True, slots=True)
class _Variant:
    """What one row of the batch keeps: feature indices at each site and token, and the sites and tokens of errors."""

    kept: Mapping[tuple[Site, int], Sequence[int]] = field(default_factory=dict[tuple[Site, int], Sequence[int]])
    errors: frozenset[tuple[Site, int]] = frozenset()


def sites_to_edit(model: LanguageModel, dictionaries: Mapping[Site, Dictionary]) -> tuple[list[Site], list[str]]:
    """The sites whose features can be removed from the hidden state, and a sentence for each reason to leave some out.

    A module in a layer without a residual autoencoder is left out, since nothing that it writes into would be read.

    Raises:
        InvalidArgument: when there is no residual autoencoder.
    """
    found: list[Site] = []
    left: dict[str, list[Site]] = {}
    for site in sorted(dictionaries):
        dictionary = dictionaries[site].for_model(model)
        if dictionary.is_transcoder:
            why = (
                "left out, since a transcoder's activations are no shares of a hidden state, so that removing one at "
                "its site has no meaning"
            )
        elif dictionary.training.view is not View.OWN:
            why = f"left out, since it reads {dictionary.training.view.value} tensors that no edit reaches"
        elif Site(site.layer, Part.RES) not in dictionaries:
            why = "left out, since its layer has no residual autoencoder that would show what it writes"
        else:
            found.append(site)
            continue
        left.setdefault(why, []).append(site)
    if not any(site.part is Part.RES for site in found):
        raise InvalidArgument(
            "the release has no residual autoencoder whose features could be removed. Give one with SAEs at res."
        )
    return found, [f"{', '.join(map(str, sites))}: {why}." for why, sites in left.items()]


def measure_fidelity(
    graph: PromptGraph,
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    *,
    random_graphs: int = 20,
    seed: int = 0,
) -> Fidelity:
    """Measure how much of the target's value a graph carries, and random graphs of the same size.

    Args:
        graph: a graph of this model and these dictionaries, pruned or not.
        model: the language model.
        dictionaries: the dictionaries that the graph was traced with.
        random_graphs: how many are drawn, each with as many features at each site and token as the graph has.
        seed: seed of the draws.

    Raises:
        InvalidArgument: when this model tokenizes the text differently.
    """
    tokens = model.tokenize([graph.text], max_length=len(graph.tokens))
    if tuple(model.spelling.tokens(tokens.input_ids[0].tolist())) != graph.tokens:
        raise InvalidArgument(
            f"the graph was traced on {len(graph.tokens)} tokens that this model does not make of its text. Load the "
            f"model {graph.model}."
        )
    sites, _ = sites_to_edit(model, dictionaries)
    bound = {site: dictionaries[site].for_model(model) for site in sites}
    layers = sorted({site.layer for site in sites})
    places = [(site, position) for site in sites for position in graph.positions]
    # 1. the features and errors of the graph at each site and token
    inside: dict[tuple[Site, int], list[int]] = {place: [] for place in places}
    errors: set[tuple[Site, int]] = set()
    rows = zip(*(graph.nodes[name] for name in ("kind", "feature", "layer", "part", "position")), strict=True)
    for kind, feature, layer, part, position in rows:
        if kind == "feature":
            known = FeatureId.parse(feature)
            inside[known.site, int(position)].append(known.index)
        elif kind == "error":
            errors.add((Site(int(layer), Part(part)), int(position)))
    # 2. the clean pass up to the last traced token, and random graphs drawn among the features active in it
    start, end = graph.positions[0], graph.positions[-1]
    clean = CleanPass(model, Tokens(tokens.input_ids[:, : end + 1], tokens.attention_mask[:, : end + 1]), layers)
    active: dict[tuple[Site, int], list[int]] = {}
    with torch.no_grad():
        for site, position in places:
            h = clean.stages[site.layer].taps[bound[site].tap][position]
            active[site, position] = bound[site].encode(h.to(bound[site].W_enc)).nonzero().flatten().tolist()
    drawn: list[Mapping[tuple[Site, int], Sequence[int]]] = []
    for n in range(random_graphs):
        rng = generator(seed, "random graph", graph.text, n)
        drawn.append(
            {
                place: rng.choice(active[place], min(len(inside[place]), len(active[place])), replace=False).tolist()
                for place in places
            }
        )
    # 3. the value of the target under every ablation: all, then for each graph its complement and the graph itself
    fixed = frozenset(errors)
    variants = [_Variant()]
    for one in (inside, *drawn):
        others = {place: sorted({*active[place]} - {*one[place]}) for place in places}
        variants += [_Variant(one, fixed), _Variant(others, frozenset(places) - fixed)]
    values: list[float] = []
    for first in range(0, len(variants), AT_ONCE):
        some = variants[first : first + AT_ONCE]
        changes: dict[Point, Callable[[Tensor], Tensor]] = {
            bound[site].point: partial(_ablated, bound[site], some, graph.positions) for site in sites
        }
        h = clean.stages[layers[0]].entry[start:].expand(len(some), -1, -1)
        with model.intervening(changes):
            for layer in range(layers[0], model.n_layers):
                h = clean.onward(layer, h, start)
        values += _target_values(graph, clean.logits(h[:, -1]))
    [whole] = _target_values(graph, clean.logits(clean.final[end:]))
    pairs = list(zip(values[1::2], values[2::2], strict=True))
    return Fidelity(whole, values[0], *pairs[0], tuple(pairs[1:]))


def _target_values(graph: PromptGraph, logits: Float[Tensor, "n vocab"]) -> list[float]:
    """The value of the target in each row: its logit minus the mean of all logits, or minus another logit."""
    token, _, less = graph.target.removeprefix("logit/").partition("@")[0].partition("-")
    logits = logits.double()
    return (logits[:, int(token)] - (logits[:, int(less)] if less else logits.mean(dim=1))).tolist()


def _ablated(
    dictionary: Dictionary, variants: Sequence[_Variant], positions: Sequence[int], h: Float[Tensor, "n pos d_in"]
) -> Float[Tensor, "n pos d_in"]:
    """The hidden states of one site at the traced tokens, with what each variant ablates there subtracted."""
    out = h.clone()
    for column, position in enumerate(positions):
        place, x = (dictionary.site, position), h[:, column].to(dictionary.W_dec)
        acts = dictionary.encode_unchecked(x)
        gone = acts.clone()
        for row, variant in enumerate(variants):
            gone[row, torch.tensor(variant.kept.get(place, ()), dtype=torch.long, device=x.device)] = 0
        change = gone @ dictionary.W_dec * dictionary.scale(x)
        wrong = [row for row, variant in enumerate(variants) if place not in variant.errors]
        if wrong:
            change[wrong] += unexplained(x[wrong], dictionary)
        out[:, column] = (x - change).to(h)
    return out
