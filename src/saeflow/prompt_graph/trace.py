"""Trace a text: measure how the features that are active at some tokens affect each other and the logits.

1. Nodes: every active feature and the reconstruction error at every site of the traced tokens, and the top logits at
   the last of these tokens.
2. Edges: each feature and each error is removed on its own at its site, the block is run again, and the features that
   it can reach are read (`saeflow.experiments.causal`, exact). The columns are the site removed, the sites read and
   the link:

       M_L, A_L, R_{L-1}             R_L              stream: the predecessors of matching (section 3.3 of 2502.03032)
       R_{L-1}; A_L                  A_L, M_L; M_L    block: through the attention or the MLP, at the same token
       R_{L-1} of an earlier token   A_L, M_L, R_L    attention: from traced tokens only

   Finally the residual features of the last traced layer are removed, the layers above are run again, and the logits
   are read.
3. Each effect has a control: the effect of another active feature of the parent's site, of similar norm.
4. Matches say which of these edges the weights name.

What attention moves from tokens that are not traced is part of what A_L writes and has no node of its own. Neither
have the embedding, which only layer 0 reads, and the biases of the dictionaries.
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
"""The smallest absolute effect of an edge that is kept although matching does not name it."""

DEFAULT: Final = Pruning()
"""The pruning of `trace_text` by default."""

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
    """Trace the prediction at a token of a text through its active features, layer by layer, with measured edges.

        graph = trace_text("Once upon a time there was a", "demo")

    Args:
        text: the text.
        release: "demo", a folder, the name of a release, or dictionaries in memory.
        token: the token whose prediction is traced, counted from 0 including the begin-of-text token; -1 is the last.
        before: how many earlier tokens are traced too, and followed through attention.
        target: the token whose logit the graph explains, such as " girl"; the most likely one by default.
        against: the token whose logit is subtracted from it; the mean of all logits by default.
        pruning: which nodes and edges are kept; None keeps all of them.
        model: the language model or its name; that of the release by default.
        atlas: matches or the name of an atlas; by default the atlas of the release, or, without one, matches computed
            from the dictionaries, which reads every decoder.
        k: how many matches of each feature at each site count as named.
        logits: how many of the top tokens are nodes, besides the target.
        random_graphs: how many random graphs of the same size the fidelity is compared with.
        fidelity: measure how much of the target's value the graph carries, which takes full forward passes.
        kept: the smallest absolute effect of an edge that is kept although matching does not name it; bounds memory.
        max_length: truncate the text to this many tokens.
        seed: seed of controls and random graphs.
        device: where models and dictionaries that this call loads compute.
        prepend_bos: for a model that this call loads, begin the text with the begin-of-text token; by default as the
            dictionaries' files say, or else the tokenizer.

    Raises:
        InvalidArgument: for a token outside the text, a target that is not one token, a release without a model or
            without residual autoencoders, or an atlas of other weights.
        UnknownRelease, BadFile, Unreachable: when something cannot be opened.
    """
    # 1. open the model, the dictionaries and the matches
    name, model, dictionaries = opened_together(release, model, device=device, prepend_bos=prepend_bos)
    sites, notes = sites_to_edit(model, dictionaries)
    if isinstance(atlas, str):
        there = atlas_beside(dictionaries, name, atlas, sites)
        atlas = DirectMatches(dictionaries, projector=model) if there is None else there
    # 2. tokenize and locate the traced tokens
    tokens = model.tokenize([text], max_length=max_length)
    n = tokens.lengths[0]
    end = token + n if token < 0 else token
    if not 0 <= end < n or not 0 <= before <= end:
        raise InvalidArgument(
            f"token {token} with {before} before it is not in the text, which has {n} tokens. Count from 0, or back "
            "from -1, the last."
        )
    positions = tuple(range(end - before, end + 1))
    # 3. measure the full graph, prune it, and measure how much the rest carries
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
    """The active features and the error at a site and a token."""

    site: Site
    position: int
    features: list[FeatureId]
    norms: dict[FeatureId, float]
    directions: Float[Tensor, "n d_model"]
    parts: Float[Tensor, "n+1 d_in"]
    """What each feature contributes to the hidden state; the last row is the error."""

    @property
    def nodes(self) -> list[str]:
        """The node ids of the features, then that of the error."""
        return [f"{name}@{self.position}" for name in (*map(str, self.features), f"{self.site}/error")]


class _Removed(NamedTuple):
    """The effects of single removals at a site and a token: one row per parent, the error last; one column per child.

    `before` holds the children's values in the clean pass, `change` how much of them each removal takes away, `rank`
    which match of the child the parent is (NaN for none).
    """

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
    """A prompt graph while it is being measured."""

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
        """The residual site of the last traced layer."""
        return max(site for site in self.dictionaries if site.part is Part.RES)

    def add_nodes(self) -> None:
        """Add the active features and the error of every site and token as nodes."""
        for position in self.positions:
            for site, dictionary in sorted(self.dictionaries.items()):
                # 1. the active features, what each contributes to the hidden state, and the error
                index, values = self.text.active(site, position)
                features = [FeatureId(site, row) for row in index.tolist()]
                h = self.text.hidden(site, position)[None]
                with torch.no_grad():
                    x = h.to(dictionary.W_dec)
                    rows = dictionary.W_dec[torch.from_numpy(index).to(x.device)]
                    parts = torch.from_numpy(values).to(x)[:, None] * rows * dictionary.scale(x)
                    error = unexplained(h, dictionary)
                    written = dictionary.project(rows.float(), self.model).cpu()
                # 2. each feature's share of the summed contributions, projected onto that sum; the error's share of
                #    the squared norm
                whole = parts.double().sum(dim=0)
                share = parts.double() @ whole / max(float(whole.square().sum()), _TINY)
                length = torch.linalg.vector_norm(parts, dim=1).tolist()
                size = float(torch.linalg.vector_norm(error))
                unsaid = size**2 / max(float(x.double().square().sum()), _TINY)
                norms = dict(zip(features, length, strict=True))
                directions = torch.nn.functional.normalize(written, dim=1)
                found = _Active(site, position, features, norms, directions, torch.cat([parts, error]))
                self.active[site, position] = found
                # 3. one row per node
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
        """Add the target and the top tokens as nodes at the last traced token."""
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
        """The id of a text that is a single token."""
        ids = cast("list[int]", self.model.tokenizer(token, add_special_tokens=False)["input_ids"])
        if len(ids) != 1:
            pieces = " ".join(map(repr, self.model.spelling.tokens(ids)))
            raise InvalidArgument(
                f"{token!r} is {len(ids)} tokens: {pieces}. Give one; most begin with a space, as in {' girl'!r}."
            )
        return ids[0]

    def _values(self, logits: Float[Tensor, "n vocab"]) -> Float[np.ndarray, "n n_outputs"]:
        """The value of each output: a logit minus the mean of all logits, or a difference of two logits."""
        logits = logits.double()
        mean = logits.mean(dim=1)
        columns = [logits[:, a] - (mean if b is None else logits[:, b]) for a, b in self.outputs.values()]
        return torch.stack(columns, dim=1).cpu().numpy()

    def add_edges(self, kept: float) -> None:
        """Remove every feature and error one at a time, and add the edges this measures."""
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
        """Single removals at the three predecessor sites of a layer, and in the residual stream of earlier tokens."""
        # 1. where features are removed, and which sites are read
        order = [Site(layer - 1, Part.RES)] if layer else []
        order = [site for site in (*order, Site(layer, Part.ATT), Site(layer, Part.MLP)) if site in self.dictionaries]
        asked: list[tuple[_Active, list[_Active]]] = []
        for position in self.positions:
            for place, site in enumerate(order):
                after = [*order[place + 1 :], Site(layer, Part.RES)]
                if site.part is Part.ATT and self.model.parallel:
                    after = after[-1:]  # in a parallel block the MLP does not read what attention wrote
                children = [self.active[one, position] for one in after]
                asked.append((self.active[site, position], children))
                if site.layer < layer:
                    earlier = [source for source in self.positions if source < position]
                    asked += [(self.active[site, source], children) for source in earlier]
        # 2. run all removals together
        trials: list[Trial] = []
        for parents, children in asked:
            watch = tuple(feature for child in children for feature in child.features)
            edits = (*(Rescale((feature,)) for feature in parents.features), RemoveError(parents.site))
            trials += [Trial(layer, children[0].position, (edit,), watch, parents.position) for edit in edits]
        outcomes = iter(self.text.run(trials))
        # 3. read the effects, with ranks and cosines from the weights for the same pairs
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
        """The rank of each parent among the matches of each child; NaN for none."""
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
        """Effects of single removals at the last residual site on the logits, and the direct contributions to them."""
        end = self.positions[-1]
        parents = self.active[self.last, end]
        edits = [None, *(Rescale((feature,)) for feature in parents.features), RemoveError(self.last)]
        values = self._values(self.text.logits(self.last.layer, end, edits))
        # direct contributions: the final norm is linear once its scaling factor is frozen at that of the clean pass
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
        """Keep the edges that matching names or whose effect is at least `kept`, each with its control."""
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
        """For each parent, the row of its control, another active feature of the site; -1 if there is none."""
        key = parents.site, parents.position
        if key not in self.controls:
            drawn = generator(self.seed, "control", *map(str, key))
            place, active = {name: i for i, name in enumerate(parents.features)}, {parents.site.part: parents.features}
            found = [alike_in_norm((one,), active, parents.norms.__getitem__, drawn) for one in parents.features]
            self.controls[key] = np.array([-1 if one is None else place[one[0]] for one in found] + [-1])
        return self.controls[key]

    def edge_table(self) -> pd.DataFrame:
        """All edges, with children in the order of the nodes and the strongest edge of each child first."""
        order = {row["node"]: place for place, row in enumerate(self.nodes)}
        table = pd.DataFrame({name: np.concatenate([one[name] for one in self.edges]) for name in EDGE_COLUMNS})
        places = table["child"].map(order).to_numpy()
        table = table.iloc[np.lexsort([-table["effect"].abs().fillna(0).to_numpy(), places])].reset_index(drop=True)
        return table.astype(dict(EDGE_COLUMNS))


def _cosines(parents: _Active, children: _Active) -> Float[np.ndarray, "n_parents n_children"]:
    """Cosines between what features write into the stream; NaN for the error."""
    found = (parents.directions @ children.directions.T).numpy()
    return np.concatenate([found, np.full((1, found.shape[1]), np.nan)])
