"""The flow graph of a prompt as plain data: nodes and edges as DataFrames, pruning, pins, groups, JSON. No torch.

A node is a feature that is active at a token (`4/res/123@7`), the reconstruction error of a dictionary there
(`4/res/error@7`), or a logit (`logit/512@7`; `logit/512-38@7` is a difference of two). Edges follow the forward pass,
from a parent to a child that loses the share `effect` of its value when the parent is removed at its own site.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, cast

import pandas as pd

from saeflow.errors import BadFile, InvalidArgument, SaeflowError
from saeflow.reading import parse_json

FORMAT: Final = "saeflow-prompt-graph"
VERSION: Final = 1

NODE_COLUMNS: Final = {
    "node": "str",
    "kind": "str",
    "position": "int64",
    "token": "str",
    "layer": "Int64",
    "part": "str",
    "feature": "str",
    "activation": "float64",
    "share": "float64",
}
"""Columns of `PromptGraph.nodes` and their types."""

EDGE_COLUMNS: Final = {
    "parent": "str",
    "child": "str",
    "link": "str",
    "rank": "Int64",
    "cosine": "float64",
    "effect": "float64",
    "control": "float64",
    "change": "float64",
    "direct": "float64",
}
"""Columns of `PromptGraph.edges` and their types."""


@dataclass(frozen=True, slots=True)
class Pruning:
    """Which nodes of a prompt graph are kept: those that lead to the target over strong edges, and pinned ones.

    Attributes:
        effect: Share of the child's value that goes when the parent is removed: edges with a smaller absolute effect
            are dropped.
        cosine: Cosine of the two features: edges below it are dropped; edges of errors and logits have none, and stay.
        share: Share of its site's reconstruction: features below it are dropped.
        pins: Nodes that are always kept, such as 4/res/123@7.

    Raises:
        InvalidArgument: for an effect below 0.
    """

    effect: float = 0.1
    cosine: float = -1.0
    share: float = -1.0
    pins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the effect."""
        if self.effect < 0:
            raise InvalidArgument(f"effect = {self.effect:g} keeps every edge, and so does 0. Give 0 or more.")


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How much of the target's value a graph carries, measured by full forward passes.

    Features, at every site that has a dictionary, and errors are ablated at the traced tokens only, at the values that
    they then have; features that become active through the ablation are ablated too. An error belongs to the graph if
    its node does, and otherwise to what is outside.

    Attributes:
        whole: the target's value in the model: its logit minus the mean of all logits, or a difference of two logits.
        nothing: its value with every feature and every error ablated.
        kept: its value with everything outside the graph ablated.
        without: its value with the graph ablated and everything outside kept.
        random: `kept` and `without` of random graphs with as many features at each site and token, drawn among the
            active ones, and with the same errors.
    """

    whole: float
    nothing: float
    kept: float
    without: float
    random: tuple[tuple[float, float], ...] = ()

    @property
    def to_lose(self) -> float:
        """How much of the value is lost when everything is ablated; NaN if the biases alone give as much."""
        lost = self.whole - self.nothing
        return lost if lost * self.whole > 0 else float("nan")

    @property
    def faithfulness(self) -> float:
        """The share of the value that remains when everything outside the graph is ablated; NaN if `to_lose` is."""
        return self._share(self.kept - self.nothing)

    @property
    def completeness(self) -> float:
        """The share of the value that is lost when the graph is ablated; NaN if `to_lose` is."""
        return self._share(self.whole - self.without)

    @property
    def random_faithfulness(self) -> float:
        """The mean faithfulness of the random graphs; NaN without any."""
        return self._mean(self._share(kept - self.nothing) for kept, _ in self.random)

    @property
    def random_completeness(self) -> float:
        """The mean completeness of the random graphs; NaN without any."""
        return self._mean(self._share(self.whole - without) for _, without in self.random)

    def _share(self, value: float) -> float:
        return value / self.to_lose

    @staticmethod
    def _mean(values: Iterable[float]) -> float:
        found = list(values)
        return sum(found) / len(found) if found else float("nan")


@dataclass(frozen=True, eq=False, repr=False)
class PromptGraph:
    """The measured flow of features at some tokens of a text.

    Attributes:
        release: the release of the dictionaries.
        model: the name of the language model.
        text: the text.
        tokens: its tokens as text, including the begin-of-text token.
        positions: the traced tokens, ascending; the target is read at the last.
        target: the node whose value the graph explains: a logit, or a difference of two.
        nodes: one row per node.
            `node`, its id; `kind`: feature, error or logit; `position` and `token`; `layer`, `part` and `feature`,
            such as 4/res/123. `activation`: of a feature; for an error, its norm; for a logit, the logit minus the
            mean of all logits, or the difference. `share`: for a feature, its contribution projected onto the sum of
            all contributions of its site, as a share of that sum (the shares add up to 1); for an error, its share of
            the squared norm of the hidden state; for a logit, the token's probability.
        edges: one row per edge, those into a child ordered by absolute effect.
            `link`: stream (R_{L-1}, M_L or A_L into R_L), block (R_{L-1} into a module, or A_L into M_L), attention
            (R_{L-1} of an earlier token) or logit. `rank`: the parent's rank among the matches of the child, 0 for the
            best; missing if matching does not name it. `cosine`: of what the two write into the stream. `effect`: the
            share of the child's value that is lost when the parent is removed. `control`: the same for another active
            feature of the parent's site and token, of similar norm (the control of the deactivation experiment).
            `change`: the child's value before minus after. `direct`, for logits: what the parent contributes through
            the residual stream only, with the scaling of the final norm frozen.
        fidelity: how much of the target's value the graph carries; None if it was not measured.
        pins: nodes that pruning keeps.
        supernodes: nodes that the user grouped, by group name.
        notes: sentences on what was left out.
    """

    release: str
    model: str
    text: str
    tokens: tuple[str, ...]
    positions: tuple[int, ...]
    target: str
    nodes: pd.DataFrame
    edges: pd.DataFrame
    fidelity: Fidelity | None = None
    pins: tuple[str, ...] = ()
    supernodes: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """A one-line summary."""
        counts = ", ".join(f"{n} {kind}" for kind, n in self.nodes["kind"].value_counts(sort=False).items())
        end = self.positions[-1]
        at = f"token {end} {self.tokens[end]!r}"
        return f"<PromptGraph of {self.release} at {at}: {counts}, {len(self.edges)} edges>"

    def to_pandas(self) -> pd.DataFrame:
        """The table `edges`, one row per edge, as for a flow graph; nodes are in the table `nodes`."""
        return self.edges

    @property
    def missed(self) -> pd.DataFrame:
        """Edges from features into the residual stream that matching did not name: what the weights missed."""
        edges = self.edges
        return edges[(edges["link"] == "stream") & edges["rank"].isna() & ~edges["parent"].str.contains("error")]

    def prune(self, pruning: Pruning = Pruning()) -> PromptGraph:
        """The subgraph that leads to the target over edges that pass, plus the pins of the graph and of `pruning`.

        The fidelity is dropped, since it belongs to the larger graph: measure it again (`measure_fidelity`).

        Raises:
            InvalidArgument: for a pin that is not a node.
        """
        pins = dict.fromkeys((*self.pins, *self._known(pruning.pins)))
        # 1. the edges and features that pass
        nodes, edges = self.nodes, self.edges
        weak = nodes.loc[(nodes["kind"] == "feature") & (nodes["share"] < pruning.share), "node"]
        dropped = set(weak) - set(pins)
        passes = (edges["effect"].abs() >= pruning.effect) & ~(edges["cosine"] < pruning.cosine)
        edges = edges[passes & ~edges["parent"].isin(dropped) & ~edges["child"].isin(dropped)]
        # 2. the ancestors of the target, breadth first
        kept = {self.target}
        parents: dict[str, list[str]] = {}
        for parent, child in zip(edges["parent"], edges["child"], strict=True):
            parents.setdefault(child, []).append(parent)
        front = [self.target]
        while front:
            front = [node for child in front for node in parents.get(child, ()) if node not in kept]
            front = list(dict.fromkeys(front))
            kept.update(front)
        kept.update(pins)
        # 3. the other logits that kept nodes write to, and the edges between kept nodes
        logits = set(nodes.loc[nodes["kind"] == "logit", "node"])
        kept |= set(edges.loc[edges["parent"].isin(kept) & edges["child"].isin(logits), "child"])
        edges = edges[edges["parent"].isin(kept) & edges["child"].isin(kept)]
        groups = {name: tuple(node for node in members if node in kept) for name, members in self.supernodes.items()}
        return replace(
            self,
            nodes=nodes[nodes["node"].isin(kept)].reset_index(drop=True),
            edges=edges.reset_index(drop=True),
            fidelity=None,
            pins=tuple(pins),
            supernodes={name: members for name, members in groups.items() if members},
        )

    def pin(self, *nodes: str) -> PromptGraph:
        """A copy in which pruning keeps these nodes.

        Raises:
            InvalidArgument: for a name that is not a node.
        """
        return replace(self, pins=tuple(dict.fromkeys((*self.pins, *self._known(nodes)))))

    def group(self, name: str, nodes: Collection[str]) -> PromptGraph:
        """A copy with a supernode: nodes grouped under one name. Without nodes, the group of that name is dissolved.

        Raises:
            InvalidArgument: for a name that is not a node, or a node of another group.
        """
        others = {key: members for key, members in self.supernodes.items() if key != name}
        taken = {node: key for key, members in others.items() for node in members}
        for node in self._known(nodes):
            if node in taken:
                raise InvalidArgument(
                    f"{node} is in the group {taken[node]!r}. Take it out there before it goes to {name!r}."
                )
        return replace(self, supernodes=others | ({name: tuple(dict.fromkeys(nodes))} if nodes else {}))

    def _known(self, names: Iterable[str]) -> tuple[str, ...]:
        known = set(self.nodes["node"])
        for name in (names := tuple(names)):
            if name not in known:
                raise InvalidArgument(
                    f"{name!r} is no node of this graph. Nodes are written {self.nodes['node'].iloc[0]!r}; see "
                    "graph.nodes."
                )
        return names

    def to_dict(self) -> dict[str, Any]:
        """The graph as JSON values."""
        rows = {"nodes": self.nodes, "edges": self.edges}
        fidelity = self.fidelity
        shares = ("faithfulness", "completeness", "random_faithfulness", "random_completeness")
        return {
            "format": FORMAT,
            "version": VERSION,
            "release": self.release,
            "model": self.model,
            "text": self.text,
            "tokens": list(self.tokens),
            "positions": list(self.positions),
            "target": self.target,
            "fidelity": None
            if fidelity is None
            else asdict(fidelity) | {name: _finite(getattr(fidelity, name)) for name in shares},
            "pins": list(self.pins),
            "supernodes": {name: list(members) for name, members in self.supernodes.items()},
            "notes": list(self.notes),
            **{name: json.loads(frame.to_json(orient="records", double_precision=9)) for name, frame in rows.items()},
        }

    def to_json(self) -> str:
        """The graph as JSON text that `from_json` reads."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> PromptGraph:
        """Read what `to_json` wrote.

        Raises:
            BadFile: when the text is not a prompt graph of this version.
        """
        try:
            data = cast("dict[str, Any]", parse_json(text))
            if data["format"] != FORMAT or data["version"] != VERSION:
                raise BadFile(
                    f"this is {data['format']!r} version {data['version']}, not {FORMAT!r} version {VERSION}. "
                    "Write the graph again with `saeflow trace`."
                )
            measured = data["fidelity"]
            fidelity = None
            if measured is not None:
                values = {name: float(measured[name]) for name in ("whole", "nothing", "kept", "without")}
                random = tuple((float(kept), float(without)) for kept, without in measured["random"])
                fidelity = Fidelity(**values, random=random)
            return PromptGraph(
                *(str(data[name]) for name in ("release", "model", "text")),
                tokens=tuple(map(str, data["tokens"])),
                positions=tuple(map(int, data["positions"])),
                target=str(data["target"]),
                nodes=frame(data["nodes"], NODE_COLUMNS),
                edges=frame(data["edges"], EDGE_COLUMNS),
                fidelity=fidelity,
                pins=tuple(map(str, data["pins"])),
                supernodes={str(name): tuple(map(str, nodes)) for name, nodes in data["supernodes"].items()},
                notes=tuple(map(str, data["notes"])),
            )
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, SaeflowError):
                raise
            raise BadFile(
                f"no prompt graph can be read from this JSON: {error!r}. Write it with `saeflow trace`."
            ) from None

    def to_networkx(self) -> Any:
        """A `networkx.DiGraph` with one node per id; the other columns of `nodes` and `edges` are attributes."""
        import networkx as nx

        graph = nx.DiGraph(release=self.release, model=self.model, text=self.text, target=self.target)
        groups = {node: name for name, members in self.supernodes.items() for node in members}
        for row in self.nodes.to_dict("records"):
            node = row.pop("node")
            found = {str(key): value for key, value in row.items() if pd.notna(value)}
            graph.add_node(node, **found, **({"supernode": groups[node]} if node in groups else {}))
        for row in self.edges.to_dict("records"):
            parent, child = row.pop("parent"), row.pop("child")
            graph.add_edge(parent, child, **{str(key): value for key, value in row.items() if pd.notna(value)})
        return graph

    def to_graphml(self) -> str:
        """The graph as GraphML, which networkx, Gephi and yEd open."""
        import networkx as nx

        return "\n".join(nx.generate_graphml(self.to_networkx())) + "\n"


def frame(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """Rows as a DataFrame with these columns and types.

    Raises:
        KeyError, TypeError, ValueError: for a row that lacks a column, or a value of another type.
    """
    listed = list(rows)
    return pd.DataFrame(
        {name: pd.Series([row[name] for row in listed], dtype=kind) for name, kind in columns.items()}  # pyright: ignore
    )


def _finite(value: float) -> float | None:
    return value if value == value else None  # noqa: PLR0124 - NaN is the one value that is not itself
