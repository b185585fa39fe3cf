"""Recipes of reproductions: what is run on which release, in which sizes, and what it cannot answer. Data, no torch.

    title, release, model, datasets, seed, note        what it is
    needs_model_to_match = true                        where attention dictionaries live in z
    [shape]                                            of the model, for the plan of a run that has not fetched it
    [atlas]                                            null = "moments", "families", "rotation" or "far": calibrate
    [graphs] [origins] [deactivation] [steering] [transition]      the sizes of each; one left out is not run
    [unanswered]                                       fig19 = "why"

A recipe of one's own is a file with the same keys; releases, models, data sets and themes that lie beside it are
paths from its folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from saeflow.errors import BadFile, InvalidArgument
from saeflow.experiments.sampling import recipes as known_datasets
from saeflow.files import folder_and_pattern
from saeflow.reading import read_toml
from saeflow.reproduce.stages import SCHEMAS, Stage
from saeflow.sources.releases import is_release

RECIPES: Final = Path(__file__).parent / "recipes"

Table: TypeAlias = Mapping[str, Any]

_NAMES: Final = (list, str)
_NUMBERS: Final = (list, (int, float))
_LAYERS: Final = (list, int)
_PATHS: Final = ("release", "model", "datasets", "fitted", "background", "themes")
_SAMPLED: Final = {"datasets": _NAMES, "layers": _LAYERS, "texts": int, "tokens": int, "max_length": int}
KEYS: Final[Mapping[str, Mapping[str, Any]]] = {
    "": {
        "title": str,
        "release": str,
        "model": str,
        "datasets": _NAMES,
        "seed": int,
        "note": str,
        "needs_model_to_match": bool,
    },
    "shape": {"parameters": float, "layers": int, "d_model": int, "vocabulary": int, "value_bytes": int},
    "atlas": {"null": str},
    "graphs": {"seeds": _NAMES, "figures": _NAMES, "published": str, "picks": int, "thresholds": dict},
    "origins": {**_SAMPLED, "methods": _NAMES, "fitted": _NAMES},
    "deactivation": {**_SAMPLED, "strategies": _NAMES, "fitted": _NAMES, "features": int, "r": _NUMBERS, "loss": int},
    "steering": {
        "themes": _NAMES,
        "directions": _NAMES,
        "methods": _NAMES,
        "layers": _LAYERS,
        "parts": _NAMES,
        "s": _NUMBERS,
        "r": _NUMBERS,
        "samples": int,
        "confirm": int,
        "judge": str,
        "judge_model": str,
        "background": _NAMES,
        "batch": int,
    },
    "transition": {
        "datasets": _NAMES,
        "layers": _LAYERS,
        "max_length": int,
        "k": (list, (int, str)),
        "tokens": int,
        "fit_tokens": int,
        "loss_texts": int,
        "memory": float,
    },
    "unanswered": {},
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a language model: what a forward pass of it costs.

    Attributes:
        parameters: in all, embeddings counted once.
        layers: blocks.
        d_model: width of the stream.
        vocabulary: tokens it knows.
        value_bytes: of a weight in the files of its hub.
    """

    parameters: float
    layers: int
    d_model: int
    vocabulary: int
    value_bytes: int = 2

    @property
    def n_bytes(self) -> float:
        """Of its files."""
        return self.parameters * self.value_bytes

    @property
    def flops(self) -> float:
        """Floating-point operations of a forward pass, a token: two a weight, the last product among them."""
        return 2.0 * self.parameters


@dataclass(frozen=True)
class Recipe:
    """What a reproduction runs.

    Attributes:
        name: as it was asked for.
        text: its general keys: title, release, model, datasets, seed, note.
        sizes: the table of each stage that is run; the atlas is always among them.
        unanswered: figures and tables that it cannot answer, with the reason of each.
        shape: of the model, None where it is read from the model itself.
        digest: hash of the whole recipe; a folder can only be resumed with the same digest.
    """

    name: str
    text: Table
    sizes: Mapping[Stage, Table]
    unanswered: Mapping[str, str]
    shape: Shape | None = None
    digest: str = field(default="")

    @property
    def title(self) -> str:
        """One line for people."""
        return str(self.text["title"])

    @property
    def release(self) -> str:
        """The dictionaries: "demo", the name of a release, or a folder."""
        return str(self.text["release"])

    @property
    def model(self) -> str:
        """The language model, as its hub calls it; "" for the one the release names."""
        return str(self.text.get("model", ""))

    @property
    def seed(self) -> int:
        """Of everything that is drawn."""
        return int(self.text.get("seed", 0))

    @property
    def note(self) -> str:
        """How it differs from the paper, for people."""
        return " ".join(str(self.text.get("note", "")).split())

    @property
    def projects(self) -> bool:
        """Whether matching needs the model's weights, as where attention dictionaries live in z."""
        return bool(self.text.get("needs_model_to_match", False))

    def datasets(self, stage: Stage) -> tuple[str, ...]:
        """What a stage samples from."""
        return tuple(self.sizes[stage].get("datasets", self.text.get("datasets", ())))


def known_recipes() -> tuple[str, ...]:
    """The names of the recipes that come with saeflow, the demo's first.

    Raises:
        Nothing.
    """
    names = sorted(path.stem for path in RECIPES.glob("*.toml"))
    return tuple(sorted(names, key=lambda name: (name != "demo", name)))


def open_recipe(name: str) -> Recipe:
    """A recipe by its name, or by the path of a .toml file of one's own.

    Raises:
        InvalidArgument: when there is none of that name.
        BadFile: when the file is not as the head of this module says; names the key.
    """
    path = Path(name).expanduser() if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file() or (not name.endswith(".toml") and name not in known_recipes()):
        raise InvalidArgument(
            f"there is no recipe {name!r}. Recipes: {', '.join(known_recipes())}; or give the path of a .toml file."
        )
    try:
        data = read_toml(path)
    except (OSError, ValueError) as error:
        raise BadFile(f"{path} cannot be read as a recipe ({error}). See docs/reproduce.md.") from None
    return _made(name, path, data)


def _made(name: str, path: Path, data: Table) -> Recipe:
    text = {key: value for key, value in data.items() if not isinstance(value, dict)}
    tables: dict[str, Table] = {key: value for key, value in data.items() if isinstance(value, dict)}
    if strange := sorted(set(tables) - set(KEYS)):
        raise BadFile(f"{path} has tables it should not: {', '.join(strange)}. See docs/reproduce.md.")
    _check(path, "", text)
    for key in ("title", "release"):
        if not text.get(key):
            raise BadFile(f"{path} has no {key}. See docs/reproduce.md.")
    for table, told in tables.items():
        if table != "unanswered":
            _check(path, table, told)
    told = json.dumps([text, tables], sort_keys=True)
    if path.parent != RECIPES:
        text = _beside(path.parent, text)
        tables = {table: _beside(path.parent, keys) for table, keys in tables.items()}
    sizes = {stage: tables[stage.value] for stage in Stage if stage.value in tables}
    # matching comes before all else, whether the recipe says something of it or not
    sizes = {Stage.ATLAS: tables.get(Stage.ATLAS.value, {}), **sizes}
    shape = _shape(path, tables["shape"]) if "shape" in tables else None
    unanswered = {**SCHEMAS, **{str(item): str(why) for item, why in tables.get("unanswered", {}).items()}}
    return Recipe(name, text, sizes, unanswered, shape, hashlib.sha256(told.encode()).hexdigest()[:16])


def _beside(folder: Path, told: Table) -> dict[str, Any]:
    """The keys that name files or folders, with what lies in the recipe's folder as a path; other names as they are."""

    def found(value: Any) -> Any:
        if isinstance(value, list):
            return [found(one) for one in value]
        name = folder_and_pattern(str(folder / Path(value).expanduser()))[0]
        known = value == "demo" or is_release(value) or value in known_datasets()
        return value if known or not Path(name).exists() else str(folder.absolute() / Path(value).expanduser())

    return {key: found(value) if key in _PATHS else value for key, value in told.items()}


def _shape(path: Path, told: Table) -> Shape:
    try:
        return Shape(
            float(told["parameters"]), told["layers"], told["d_model"], told["vocabulary"], told.get("value_bytes", 2)
        )
    except KeyError as error:
        raise BadFile(
            f"{path}: [shape] has no {error}. Give parameters, layers, d_model and vocabulary, or leave the table out."
        ) from None


def _check(path: Path, table: str, told: Table) -> None:
    """Refuse a key that a table does not have, and a value of another kind."""
    keys = KEYS[table]
    where = f"[{table}]" if table else "the head"
    for key, value in told.items():
        if key not in keys:
            raise BadFile(f"{path}: {where} has the unknown key {key!r}. Keys are {', '.join(keys)}.")
        if not _is(value, keys[key]):
            raise BadFile(f"{path}: {key} of {where} is {value!r}, which is no {_kind(keys[key])}.")


def _is(value: Any, kind: Any) -> bool:
    if isinstance(kind, tuple):
        inner = kind[1]
        return isinstance(value, list) and all(_is_one(entry, inner) for entry in value)
    return _is_one(value, (int, float) if kind is float else kind)


def _is_one(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _kind(kind: Any) -> str:
    words = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "table"}
    if isinstance(kind, tuple):
        return "list of " + " or ".join(
            f"{words[one]}s" for one in (kind[1] if isinstance(kind[1], tuple) else (kind[1],))
        )
    return words[kind]
