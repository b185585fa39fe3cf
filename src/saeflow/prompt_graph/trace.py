"""Trace a text: what is active at a token, joined along the matches, with every edge measured.

1. Nodes: every active feature at every site of the traced tokens, the error of each site, and the logits that came out
   on top at the last of these tokens.
2. Edges: each feature and each error is removed alone at its own site, and what it writes into is read after the block
   was run again (`saeflow.experiments.causal`, exact). Removed and read are

       M_L, A_L, R_{L-1}             R_L              stream: the predecessors of matching (section 3.3 of 2502.03032)
       R_{L-1}; A_L                  A_L, M_L; M_L    block: through the attention or the MLP, at the same token
       R_{L-1} of an earlier token   A_L, M_L, R_L    attention: of the traced tokens, no others

   and at the end the residual features of the last traced layer and the logits, the layers above run again.
3. Beside each effect stands its control: the effect of another active feature of the parent's site, alike in norm.
4. Matches say which of these edges the weights name.

What attention brings from tokens that are not traced is in what A_L writes, and has no node of its own; nor have the
embedding, which only layer 0 reads, and the biases of the dictionaries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.errors import InvalidArgument
from saeflow.experiments.causal import PreparedText, RemoveError, Trial
from saeflow.experiments.causal.engine import unexplained
from saeflow.experiments.deactivation import alike_in_norm
from saeflow.experiments.inputs import atlas_beside, opened_together
from saeflow.experiments.sampling import generator
from saeflow.flow.trace import Matches
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import Rescale
from saeflow.matching.direct import DirectMatches
from saeflow.prompt_graph.fidelity import measure_fidelity, sites_to_edit
from saeflow.prompt_graph.graph import EDGE_COLUMNS, NODE_COLUMNS, PromptGraph, Pruning, frame
from saeflow.sources.architectures import named
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.sources.modules import gain_of

KEPT: Final = 0.01
"""The smallest effect, either way, of an edge that matching did not name."""

DEFAULT: Final = Pruning()
"""What is kept where nothing else is asked for."""

_TINY: Final = 1e-30


def trace_text(
    text: str,
    release: str | Path | Mapping[Site, Dictionary],
    *,
    token: int = -1,
    before: int = 0,
    target: str = "",
    against: str = "",
    pruning: Pruning | None = DEFAULT,
    model: LanguageModel | str = "",
    atlas: Matches | str = "",
    k: int = 1,
    logits: int = 5,
    random_graphs: int = 20,
    fidelity: bool = True,
    kept: float = KEPT,
    max_length: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    prepend_bos: bool | None = None,
) -> PromptGraph:
    """What happened at a token of a text: active features from layer to layer, with measured edges.

        graph = trace_text("Once upon a time there was a", "demo")

    Args:
        text: the text.
        release: "demo", a folder, the name of a release, or dictionaries that are there.
        token: the token whose prediction is traced, counted from 0 with the begin-of-text token; -1 is the last.
        before: how many tokens before it are traced too, and followed through attention.
        target: the token whose logit the graph explains, such as " girl"; the most likely by default.
        against: the token whose logit is taken off it; the mean of all logits by default.
        pruning: what is kept; None keeps everything.
        model: the language model or its name; that of the release by default.
        atlas: matches or the name of an atlas; by default the atlas of the release, and where there is none the
            dictionaries themselves are asked, which reads every decoder.
        k: matches of each feature at each site that count as named.
        logits: how many tokens that came out on top are nodes, besides the target.
        random_graphs: graphs of the same size that the fidelity is compared with.
        fidelity: measure how much of the target's value the graph carries, which takes whole forward passes.
        kept: the smallest effect, either way, of an edge that matching did not name: a bound on memory.
        max_length: cut the text to this many tokens.
        seed: of controls and random graphs.
        device: where to compute what is loaded here.
        prepend_bos: begin the text with the begin-of-text token, of a model that is loaded here; by default as the
            dictionaries' files say, or else the tokenizer.

    Raises:
        InvalidArgument: for a token outside the text, a target that is not one token, a release without a model,
            without residual autoencoders, or an atlas of other weights.
        UnknownRelease, BadFile, Unreachable: where something cannot be opened.
    """
    # 1. what is named is opened
    name, model, dictionaries = opened_together(release, model, device=device, prepend_bos=prepend_bos)
    sites, notes = sites_to_edit(model, dictionaries)
    if isinstance(atlas, str):
        there = atlas_beside(dictionaries, name, atlas, sites)
        atlas = DirectMatches(dictionaries, projector=model) if there is None else there
    # 2. the tokens
    tokens = model.tokenize([text], max_length=max_length)
    n = tokens.lengths[0]
    end = token + n if token < 0 else token
    if not 0 <= end < n or not 0 <= before <= end:
        raise InvalidArgument(
            f"token {token} with {before} before it is not in the text, which has {n} tokens. Count from 0, or back "
            "from -1, the last."
        )
    positions = tuple(range(end - before, end + 1))
    # 3. everything there is, what is kept of it, and how much that carries
    layers = sorted(site.layer for site in sites if site.part is Part.RES)
    prepared = PreparedText(model, dictionaries, tokens, layers=layers, positions=positions)
    spelled = model.spelling.tokens(tokens.input_ids[0].tolist())
    traced = {site: dictionaries[site].for_model(model) for site in sites}
    tracing = _Tracing(model, traced, prepared, atlas, positions, spelled, k, seed)
    tracing.add_nodes()
    tracing.add_logits(logits, target, against)
    tracing.add_edges(kept)
    graph = PromptGraph(
        name,
        model.name,
        text,
        tuple(spelled),
        positions,
        tracing.target,
        frame(tracing.nodes, NODE_COLUMNS),
        tracing.edge_table(),
        notes=(*notes, *tracing.notes),
    )
    if pruning is not None:
        graph = graph.prune(pruning)
    if not fidelity:
        return graph
    measured = measure_fidelity(graph, model, dictionaries, random_graphs=random_graphs, seed=seed)
    return replace(graph, fidelity=measured)


class _Active(NamedTuple):
    """What is active at a site and a token."""

    site: Site
    position: int
    features: list[FeatureId]
    norms: dict[FeatureId, float]
    directions: Float[Tensor, "n d_model"]
    parts: Float[Tensor, "n+1 d_in"]
    """What each feature adds to the hidden state; the last row is the error."""

    @property
    def nodes(self) -> list[str]:
        """The ids of the features, and of the error."""
        return [f"{name}@{self.position}" for name in (*map(str, self.features), f"{self.site}/error")]


class _Removed(NamedTuple):
    """What removals at a site and a token did: a row for each parent, the error last, a column for each child."""

    parents: _Active
    children: list[str]
    links: list[str]
    before: Float[np.ndarray, " n_children"]
    change: Float[np.ndarray, "n_parents n_children"]
    rank: Float[np.ndarray, "n_parents n_children"]
    cosine: Float[np.ndarray, "n_parents n_children"]
    direct: Float[np.ndarray, "n_parents n_children"] | None = None


@dataclass
class _Tracing:
    """A graph while it is measured."""

    model: LanguageModel
    dictionaries: Mapping[Site, Dictionary]
    text: PreparedText
    matches: Matches
    positions: tuple[int, ...]
    spelled: Sequence[str]
    k: int
    seed: int
    active: dict[tuple[Site, int], _Active] = field(default_factory=dict[tuple[Site, int], _Active])
    nodes: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    edges: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    controls: dict[tuple[Site, int], Int[np.ndarray, " n"]] = field(
        default_factory=dict[tuple[Site, int], Int[np.ndarray, " n"]]
    )
    outputs: dict[str, tuple[int, int | None]] = field(default_factory=dict[str, tuple[int, int | None]])
    target: str = ""
    notes: list[str] = field(default_factory=list[str])

    @property
    def last(self) -> Site:
        """The residual site of the last layer that is traced."""
        return max(site for site in self.dictionaries if site.part is Part.RES)

    def add_nodes(self) -> None:
        """Every active feature at every site and token, and the error there."""
        for position in self.positions:
            for site, dictionary in sorted(self.dictionaries.items()):
                # 1. what is active, what it adds to the hidden state, and what is left
                index, values = self.text.active(site, position)
                features = [FeatureId(site, row) for row in index.tolist()]
                h = self.text.hidden(site, position)[None]
                with torch.no_grad():
                    x = h.to(dictionary.W_dec)
                    rows = dictionary.W_dec[torch.from_numpy(index).to(x.device)]
                    parts = torch.from_numpy(values).to(x)[:, None] * rows * dictionary.scale(x)
                    error = unexplained(h, dictionary)
                    written = dictionary.project(rows.float(), self.model).cpu()
                # 2. shares of the sum, along it, and of what is not explained
                whole = parts.double().sum(dim=0)
                share = parts.double() @ whole / max(float(whole.square().sum()), _TINY)
                length = torch.linalg.vector_norm(parts, dim=1).tolist()
                size = float(torch.linalg.vector_norm(error))
                unsaid = size**2 / max(float(x.double().square().sum()), _TINY)
                norms = dict(zip(features, length, strict=True))
                directions = torch.nn.functional.normalize(written, dim=1)
                found = _Active(site, position, features, norms, directions, torch.cat([parts, error]))
                self.active[site, position] = found
                # 3. a row each
                kinds = [*(("feature", str(feature)) for feature in features), ("error", "")]
                numbers = zip([*values.tolist(), size], [*share.tolist(), unsaid], strict=True)
                for node, (kind, feature), (value, part) in zip(found.nodes, kinds, numbers, strict=True):
                    self.nodes.append(
                        {
                            "node": node,
                            "kind": kind,
                            "position": position,
                            "token": self.spelled[position],
                            "layer": site.layer,
                            "part": site.part.value,
                            "feature": feature,
                            "activation": value,
                            "share": part,
                        }
                    )

    def add_logits(self, n: int, target: str, against: str) -> None:
        """The target and the tokens that came out on top, as nodes at the last traced token."""
        end = self.positions[-1]
        clean = self.text.logits(self.last.layer, end, [None])[0].float()
        best = [int(token) for token in clean.topk(min(n, len(clean))).indices]
        first = self._id(target) if target else int(clean.argmax())
        other = self._id(against) if against else None
        wanted = [(first, other), *((token, None) for token in best)]
        self.outputs = {
            f"logit/{token}{'' if less is None else f'-{less}'}@{end}": (token, less) for token, less in wanted
        }
        self.target = next(iter(self.outputs))
        chances = clean.softmax(dim=0)
        for (node, (token, less)), value in zip(self.outputs.items(), self._values(clean[None])[0], strict=True):
            name = self.model.spelling.token(token)
            said = name if less is None else f"{name} - {self.model.spelling.token(less)}"
            chance = float(chances[token]) if less is None else float("nan")
            row = {"node": node, "kind": "logit", "position": end, "token": said, "layer": None, "part": ""}
            self.nodes.append({**row, "feature": "", "activation": float(value), "share": chance})

    def _id(self, token: str) -> int:
        """The one token that a text is."""
        ids = cast("list[int]", self.model.tokenizer(token, add_special_tokens=False)["input_ids"])
        if len(ids) != 1:
            pieces = " ".join(map(repr, self.model.spelling.tokens(ids)))
            raise InvalidArgument(
                f"{token!r} is {len(ids)} tokens: {pieces}. Give one; most begin with a space, as in {' girl'!r}."
            )
        return ids[0]

    def _values(self, logits: Float[Tensor, "n vocab"]) -> Float[np.ndarray, "n n_outputs"]:
        """The value of each output: a logit less the mean of all, or the difference of two."""
        logits = logits.double()
        mean = logits.mean(dim=1)
        columns = [logits[:, a] - (mean if b is None else logits[:, b]) for a, b in self.outputs.values()]
        return torch.stack(columns, dim=1).cpu().numpy()

    def add_edges(self, kept: float) -> None:
        """Everything removed alone, and what that did."""
        for layer in sorted(site.layer for site in self.dictionaries if site.part is Part.RES):
            if layer and Site(layer - 1, Part.RES) not in self.dictionaries:
                self.notes.append(
                    f"There is no autoencoder at {layer - 1}/res: edges from the residual stream into layer {layer} "
                    "were not measured."
                )
            for removed in self._removals(layer):
                self._keep(removed, kept)
        self._keep(self._logit_removals(), kept)

    def _removals(self, layer: int) -> Iterator[_Removed]:
        """Single removals at the three predecessor sites of a layer, and at the residual stream of earlier tokens."""
        # 1. what is removed, and what is read of that
        order = [Site(layer - 1, Part.RES)] if layer else []
        order = [site for site in (*order, Site(layer, Part.ATT), Site(layer, Part.MLP)) if site in self.dictionaries]
        asked: list[tuple[_Active, list[_Active]]] = []
        for position in self.positions:
            for place, site in enumerate(order):
                after = [*order[place + 1 :], Site(layer, Part.RES)]
                if site.part is Part.ATT and self.model.parallel:
                    after = after[-1:]  # its MLP does not see what attention wrote
                children = [self.active[one, position] for one in after]
                asked.append((self.active[site, position], children))
                if site.layer < layer:
                    earlier = [source for source in self.positions if source < position]
                    asked += [(self.active[site, source], children) for source in earlier]
        # 2. all at once
        trials: list[Trial] = []
        for parents, children in asked:
            watch = tuple(feature for child in children for feature in child.features)
            edits = (*(Rescale((feature,)) for feature in parents.features), RemoveError(parents.site))
            trials += [Trial(layer, children[0].position, (edit,), watch, parents.position) for edit in edits]
        outcomes = iter(self.text.run(trials))
        # 3. read off, with what the weights say of the same pairs
        for parents, children in asked:
            found = [next(outcomes) for _ in parents.nodes]
            before = np.array(found[0].before)
            links: list[str] = []
            for child in children:
                near = "stream" if child.site.part is Part.RES else "block"
                links += [near if child.position == parents.position else "attention"] * len(child.features)
            yield _Removed(
                parents,
                [node for child in children for node in child.nodes[:-1]],
                links,
                before,
                before - np.array([one.after for one in found]).reshape(len(found), len(before)),
                np.concatenate([self._ranks(parents, child) for child in children], axis=1),
                np.concatenate([_cosines(parents, child) for child in children], axis=1),
            )

    def _ranks(self, parents: _Active, children: _Active) -> Float[np.ndarray, "n_parents n_children"]:
        """Which match of each child each parent is; NaN for none."""
        ranks = np.full((len(parents.nodes), len(children.features)), np.nan)
        near = parents.position == children.position and parents.site in children.site.predecessors
        if not near or not self.matches.has(children.site, parents.site):
            return ranks
        row = {feature: place for place, feature in enumerate(parents.features)}
        for column, child in enumerate(children.features):
            for rank, match in enumerate(self.matches.best(child, parents.site, self.k)):
                if match.feature in row:
                    ranks[row[match.feature], column] = rank
        return ranks

    def _logit_removals(self) -> _Removed:
        """Single removals at the last residual site, and the logits; also what each adds along the stream alone."""
        end = self.positions[-1]
        parents = self.active[self.last, end]
        edits = [None, *(Rescale((feature,)) for feature in parents.features), RemoveError(self.last)]
        values = self._values(self.text.logits(self.last.layer, end, edits))
        # what the final norm multiplies the stream by, besides its gain, stays as in the clean pass
        final, architecture = self.text.final(end), self.model.architecture
        norm = self.model.trunk.get_submodule(named(architecture.final_norm, "norm"))
        gain = gain_of(norm, self.model.d_model, final.dtype, centred=architecture.centred).double()
        with torch.no_grad():
            normed = (norm(final[None]) - norm(torch.zeros_like(final)[None]))[0].double()
        stream = final.double() - (final.double().mean() if architecture.centred else 0)
        factor = float(normed @ (gain * stream) / (gain * stream).square().sum())
        nothing = np.full((len(parents.nodes), len(self.outputs)), np.nan)
        direct = factor * self._values(self.model.unembed(parents.parts.float()))
        links = ["logit"] * len(self.outputs)
        return _Removed(parents, list(self.outputs), links, values[0], values[0] - values[1:], nothing, nothing, direct)

    def _keep(self, removed: _Removed, kept: float) -> None:
        """The edges that matching names or whose effect is not small, each with its control."""
        parents, before = removed.parents, np.abs(removed.before)
        effect = np.divide(removed.change, before, out=np.full(removed.change.shape, np.nan), where=before > 0)
        row, column = np.nonzero((np.abs(effect) >= kept) | ~np.isnan(removed.rank))
        others, nodes = self._controls(parents), parents.nodes
        control = np.where(others[row] < 0, np.nan, effect[others[row], column])
        self.edges.append(
            {
                "parent": [nodes[i] for i in row],
                "child": [removed.children[i] for i in column],
                "link": [removed.links[i] for i in column],
                "rank": removed.rank[row, column],
                "cosine": removed.cosine[row, column],
                "effect": effect[row, column],
                "control": control,
                "change": removed.change[row, column],
                "direct": np.full(len(row), np.nan) if removed.direct is None else removed.direct[row, column],
            }
        )

    def _controls(self, parents: _Active) -> Int[np.ndarray, " n_parents"]:
        """The row of the control of each parent: another active feature of its site; -1 where there is none."""
        key = parents.site, parents.position
        if key not in self.controls:
            drawn = generator(self.seed, "control", *map(str, key))
            place, active = {name: i for i, name in enumerate(parents.features)}, {parents.site.part: parents.features}
            found = [alike_in_norm((one,), active, parents.norms.__getitem__, drawn) for one in parents.features]
            self.controls[key] = np.array([-1 if one is None else place[one[0]] for one in found] + [-1])
        return self.controls[key]

    def edge_table(self) -> pd.DataFrame:
        """All edges: children in the order of nodes, the strongest edge of each first."""
        order = {row["node"]: place for place, row in enumerate(self.nodes)}
        table = pd.DataFrame({name: np.concatenate([one[name] for one in self.edges]) for name in EDGE_COLUMNS})
        places = table["child"].map(order).to_numpy()
        table = table.iloc[np.lexsort([-table["effect"].abs().fillna(0).to_numpy(), places])].reset_index(drop=True)
        return table.astype(dict(EDGE_COLUMNS))


def _cosines(parents: _Active, children: _Active) -> Float[np.ndarray, "n_parents n_children"]:
    """Cosines of what features write into the stream; NaN for the error."""
    found = (parents.directions @ children.directions.T).numpy()
    return np.concatenate([found, np.full((1, found.shape[1]), np.nan)])
