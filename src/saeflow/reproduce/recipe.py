"""Recipes of reproductions: what to run on which release, at which sizes, and what it cannot answer. Data, no torch.

    title, release, model, datasets, seed, note        the head
    needs_model_to_match = true                        if attention dictionaries live in z
    [shape]                                            shape of the model, to plan a run before the model is fetched
    [atlas]                                            null = "moments", "families", "rotation" or "far": calibrate
    [graphs] [origins] [deactivation] [steering] [transition]      sizes of each stage; one left out is not run
    [unanswered]                                       fig19 = "why"

A user's own recipe is a .toml file with the same keys; the releases, models, data sets and themes that it names may be
files or folders next to it.

    atlas         match tables of the release, and scores by chance
    graphs        flow graphs: figures 2, 20, 21 and table 5
    origins       section 5.1, appendices C.1, C.4 and D: figures 3, 4, 5, 12, 13, 14, 18, 19
    deactivation  section 5.2, appendix C.2: figures 6, 7, 8, 15 and table 1
    steering      section 5.3, appendices B and C.3: figures 9, 10, 11, 16, 17, from tables 2, 3, 4
    transition    appendix F: figures 23 and 24
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from saeflow.errors import BadFile, InvalidArgument, nearest
from saeflow.experiments.sampling import recipes as known_datasets
from saeflow.files import folder_and_pattern, pack_names
from saeflow.paper.claims import SCHEMA, items
from saeflow.reading import read_toml
from saeflow.sources.releases import is_release

RECIPES: Final = Path(__file__).parent / "recipes"

Table: TypeAlias = Mapping[str, Any]


class PaperStage(enum.StrEnum):
    """The stages of a run, in the order in which they are run."""

    ATLAS = "atlas"
    GRAPHS = "graphs"
    ORIGINS = "origins"
    DEACTIVATION = "deactivation"
    STEERING = "steering"
    TRANSITION = "transition"


FROM_WEIGHTS: Final = frozenset({"table5"})
"""Items that need no atlas, because a single graph is grown faster from the weights."""

_KINDS: Final = {"text": str, "whole number": int, "number": (int, float), "true or false": bool, "table": dict}
_PATHS: Final = ("release", "model", "datasets", "fitted", "background", "themes")
_SAMPLED: Final = {
    "datasets": "list of texts",
    "layers": "list of whole numbers",
    "texts": "whole number",
    "tokens": "whole number",
    "max_length": "whole number",
}
KEYS: Final[Mapping[str, Mapping[str, str]]] = {
    "": {
        "title": "text",
        "release": "text",
        "model": "text",
        "datasets": "list of texts",
        "seed": "whole number",
        "note": "text",
        "needs_model_to_match": "true or false",
    },
    "shape": {
        "parameters": "number",
        "layers": "whole number",
        "d_model": "whole number",
        "vocabulary": "whole number",
        "value_bytes": "whole number",
    },
    "atlas": {"null": "text"},
    "graphs": {
        "seeds": "list of texts",
        "figures": "list of texts",
        "published": "text",
        "picks": "whole number",
        "thresholds": "table",
    },
    "origins": {**_SAMPLED, "methods": "list of texts", "fitted": "list of texts"},
    "deactivation": {
        **_SAMPLED,
        "strategies": "list of texts",
        "fitted": "list of texts",
        "features": "whole number",
        "r": "list of numbers",
        "loss": "whole number",
    },
    "steering": {
        "themes": "list of texts",
        "directions": "list of texts",
        "methods": "list of texts",
        "layers": "list of whole numbers",
        "parts": "list of texts",
        "s": "list of numbers",
        "r": "list of numbers",
        "samples": "whole number",
        "confirm": "whole number",
        "judge": "text",
        "judge_model": "text",
        "background": "list of texts",
        "batch": "whole number",
    },
    "transition": {
        "datasets": "list of texts",
        "layers": "list of whole numbers",
        "max_length": "whole number",
        "k": "list of whole numbers or texts",
        "tokens": "whole number",
        "fit_tokens": "whole number",
        "loss_texts": "whole number",
        "memory": "number",
    },
    "unanswered": {},
}
"""The keys of each table with the type of each; "" is the head."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a language model, which determines what a forward pass costs.

    Attributes:
        parameters: number of parameters, embeddings counted once.
        layers: number of blocks.
        d_model: width of the residual stream.
        vocabulary: number of tokens.
        value_bytes: bytes per weight in its files on the hub.
    """

    parameters: float
    layers: int
    d_model: int
    vocabulary: int
    value_bytes: int = 2

    @property
    def n_bytes(self) -> float:
        """Bytes of its files."""
        return self.parameters * self.value_bytes

    @property
    def flops(self) -> float:
        """Floating-point operations per token of a forward pass: two per weight, including the unembedding."""
        return 2.0 * self.parameters


@dataclass(frozen=True)
class Recipe:
    """What a reproduction runs.

    Attributes:
        name: the name or path under which it was opened.
        title: one line for people.
        release: the dictionaries: "demo", the name of a release, or a folder.
        model: the language model's name on its hub; "" for the one the release names.
        sampled: the data sets for stages that do not name their own.
        seed: seed of everything that is drawn.
        note: how it differs from the paper, for people.
        projects: whether matching needs the model's weights, for example because attention dictionaries live in z.
        sizes: the table of each stage that is run, always including the atlas.
        unanswered: figures and tables that it cannot answer, each with the reason.
        shape: the model's shape; None if it is read from the model itself.
        digest: hash of the whole recipe; a folder can only be resumed with the same digest.
    """

    name: str
    title: str
    release: str
    model: str
    sampled: tuple[str, ...]
    seed: int
    note: str
    projects: bool
    sizes: Mapping[PaperStage, Table]
    unanswered: Mapping[str, str]
    shape: Shape | None
    digest: str

    def of_others(self, release: str = "", model: str = "") -> Recipe:
        """The same experiments on other dictionaries, or with another copy of the model; "" keeps the recipe's own.

        The copy has a different digest, so that a folder is never resumed with other weights.
        """
        if not (release or model):
            return self
        digest = hashlib.sha256(json.dumps([self.digest, release, model]).encode()).hexdigest()[:16]
        return replace(self, release=release or self.release, model=model or self.model, digest=digest)

    def datasets(self, stage: PaperStage) -> tuple[str, ...]:
        """The data sets that a stage samples from."""
        return tuple(self.sizes[stage].get("datasets", self.sampled))

    def items(self, stage: PaperStage) -> tuple[str, ...]:
        """The figures, then the tables, that a stage of the recipe answers, by number."""
        if stage not in self.sizes:
            return ()
        found = (item.id for item in items().values() if item.stage == stage and item.id not in self.unanswered)
        return tuple(sorted(found, key=order))

    @property
    def answered(self) -> tuple[str, ...]:
        """Every figure and table that the recipe answers."""
        return tuple(item for stage in PaperStage for item in self.items(stage))

    def stages_for(self, only: Collection[str]) -> tuple[PaperStage, ...]:
        """The stages that the requested items need, in order; all stages of the recipe when none is named."""
        if not only:
            return tuple(stage for stage in PaperStage if stage in self.sizes)
        needed = {stage for stage in PaperStage if set(self.items(stage)) & set(only)}
        # transitions are computed from the weights themselves, and so is a single published graph
        if any(set(self.items(stage)) & set(only) - FROM_WEIGHTS for stage in needed - {PaperStage.TRANSITION}):
            needed.add(PaperStage.ATLAS)
        return tuple(stage for stage in PaperStage if stage in needed and stage in self.sizes)

    def parse_only(self, names: Iterable[str]) -> tuple[str, ...]:
        """Parse the names of requested items: figures, then tables, by number; an empty result stands for all.

        "fig5", "figure 5" and "Figure5" are the same; "5" is refused, because it could also mean a table.

        Raises:
            InvalidArgument: for a name that is not a figure or table of the paper, or one that the recipe cannot
                answer, with the reason.
        """
        found: set[str] = set()
        for name in names:
            item = name.strip().lower().replace(" ", "").replace("figure", "fig")
            if item in self.unanswered:
                raise InvalidArgument(
                    f"the recipe {self.name} does not answer {item}: {self.unanswered[item]}. Leave it out of --only."
                )
            if item not in items():
                raise InvalidArgument(
                    f"--only names {name.strip()!r}, which is no figure or table of the paper. Write figures as fig5 "
                    f"and tables as table1; this recipe answers {', '.join(sorted(self.answered, key=order))}."
                )
            if item not in self.answered:
                raise InvalidArgument(f"the recipe {self.name} has no stage for {item}. Leave it out of --only.")
            found.add(item)
        return tuple(sorted(found, key=order))


def order(item: str) -> tuple[str, int]:
    """A sort key for items: figures by number, then tables."""
    kind = item.rstrip("0123456789")
    return kind, int(item[len(kind) :])


def short(items: Sequence[str]) -> str:
    """A compact list of figures and tables for a terminal: "fig 3-5 18, table 1"."""
    found: list[str] = []
    for kind in ("fig", "table"):
        runs: list[list[int]] = []
        for number in sorted(int(item[len(kind) :]) for item in items if item.startswith(kind)):
            if runs and runs[-1][-1] == number - 1:
                runs[-1].append(number)
            else:
                runs.append([number])
        words = [f"{run[0]}-{run[-1]}" if len(run) > 2 else " ".join(map(str, run)) for run in runs]
        found += [f"{kind} {' '.join(words)}"] if words else []
    return ", ".join(found)


def known_recipes() -> tuple[str, ...]:
    """The names of the recipes that ship with saeflow, the demo's first."""
    names = sorted(path.stem for path in RECIPES.glob("*.toml"))
    return tuple(sorted(names, key=lambda name: (name != "demo", name)))


def open_recipe(name: str) -> Recipe:
    """Open a recipe by its name, or by the path of a user's own .toml file.

    Raises:
        InvalidArgument: when no recipe has that name.
        BadFile: when the file does not have the form described at the top of this module; it names the key.
    """
    path = Path(name).expanduser() if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file() or (not name.endswith(".toml") and name not in known_recipes()):
        raise InvalidArgument(
            f"there is no recipe {name!r}.{nearest(name, known_recipes())} Recipes: {', '.join(known_recipes())}; or "
            "give the path of a .toml file."
        )
    try:
        data = read_toml(path)
    except (OSError, ValueError) as error:
        raise BadFile(f"{path} cannot be read as a recipe ({error}). See docs/reproduce.md.") from None
    # 1. check the keys
    head = {key: value for key, value in data.items() if not isinstance(value, dict)}
    tables: dict[str, Table] = {key: value for key, value in data.items() if isinstance(value, dict)}
    if strange := sorted(set(tables) - set(KEYS)):
        raise BadFile(f"{path} has tables it should not: {', '.join(strange)}. See docs/reproduce.md.")
    for table, values in {"": head, **tables}.items():
        if table != "unanswered":
            _check(path, table, values)
    for key in ("title", "release"):
        if not head.get(key):
            raise BadFile(f"{path} has no {key}. See docs/reproduce.md.")
    digest = hashlib.sha256(json.dumps([head, tables], sort_keys=True).encode()).hexdigest()[:16]
    # 2. resolve names of files and folders next to the recipe
    if path.parent != RECIPES:
        head = _beside(path.parent, head)
        tables = {table: _beside(path.parent, values) for table, values in tables.items()}
    # 3. the atlas always comes first, even if the recipe has no table for it
    sizes = {stage: tables[stage.value] for stage in PaperStage if stage.value in tables}
    sizes = {PaperStage.ATLAS: tables.get("atlas", {}), **sizes}
    shape: Shape | None = None
    if stated := tables.get("shape"):
        try:
            parameters, layers, width, vocabulary = (
                stated[key] for key in ("parameters", "layers", "d_model", "vocabulary")
            )
        except KeyError as error:
            raise BadFile(
                f"{path}: [shape] has no {error}. Give parameters, layers, d_model and vocabulary, or leave the table "
                "out."
            ) from None
        shape = Shape(float(parameters), layers, width, vocabulary, stated.get("value_bytes", 2))
    drawings = {
        item.id: "a drawing that explains the method; nothing is measured"
        for item in items().values()
        if item.kind == SCHEMA
    }
    return Recipe(
        name,
        head["title"],
        head["release"],
        head.get("model", ""),
        tuple(head.get("datasets", ())),
        head.get("seed", 0),
        " ".join(head.get("note", "").split()),
        head.get("needs_model_to_match", False),
        sizes,
        {**drawings, **{item: str(why) for item, why in tables.get("unanswered", {}).items()}},
        shape,
        digest,
    )


def _beside(folder: Path, values: Table) -> dict[str, Any]:
    """`values` with the names of files and folders in the recipe's `folder` made absolute; known names stay."""

    def found(value: Any) -> Any:
        if isinstance(value, list):
            return [found(one) for one in value]
        name = folder_and_pattern(str(folder / Path(value).expanduser()))[0]
        known = value in pack_names() or is_release(value) or value in known_datasets()
        return value if known or not Path(name).exists() else str(folder.absolute() / Path(value).expanduser())

    return {key: found(value) if key in _PATHS else value for key, value in values.items()}


def _check(path: Path, table: str, values: Table) -> None:
    """Refuse an unknown key of a table, and a value of the wrong type."""
    keys = KEYS[table]
    where = f"[{table}]" if table else "the head"
    for key, value in values.items():
        if key not in keys:
            raise BadFile(f"{path}: {where} has the unknown key {key!r}. Keys are {', '.join(keys)}.")
        if not _fits(value, keys[key]):
            raise BadFile(f"{path}: {key} of {where} is {value!r}, which is no {keys[key]}.")


def _fits(value: Any, kind: str) -> bool:
    if kind.startswith("list of "):
        kinds = [one.removesuffix("s") for one in kind.removeprefix("list of ").split(" or ")]
        return isinstance(value, list) and all(any(_fits(one, kind) for kind in kinds) for one in value)
    return isinstance(value, _KINDS[kind]) and (kind == "true or false" or not isinstance(value, bool))
