"""Releases as data: which file of which repository holds which site, read from TOML. No torch, no network.

    model = "google/gemma-2-2b"           the model's name on the hub
    layers = 26
    about = "..."                         a one-line description for readers
    names_from = "..."                    where repositories and files were looked up

    [parameters]                          each parameter with its default
    width = "16k"
    l0 = "canonical"

    [[files]]                             any number; for each site the first table whose `when` holds is used
    part = "res"
    repo = "google/gemma-scope-2b-pt-res"
    revision = "main"
    paths = ["layer_{layer}/width_{width}/average_l0_{l0}/params.npz"]     the first is read, the others are next to it
    optional = []                         fetched if the repository has them; {next} is {layer} + 1
    when = { width = ["16k"] }            the parameter values that these files are for
    layers = [5, 12]                      the layers with files; all layers of the model if left out
    l0 = { 0 = [13, 25, 46], ... }        by layer, the available average L0s, where {l0} is chosen by number
    canonical = { 27 = 136 }              layers whose canonical L0 is not the one closest to 100
    labels = "gemma-2-2b/{layer}-gemmascope-res-16k"                       the source on Neuronpedia
    n_features = 16384                    gives, with `d_in` and `values` (bytes per value, 4 if left out), the size of
                                          a file; if left out, it follows from the parameter `width`
    added = true                          the part's module writes straight to the residual stream, without a norm
    center = true                         hidden states are centred over d_model first

Parameters are chosen as in `NAME@width=65k,l0=50`. An L0 given by number selects the closest one in each layer (the
smaller of two equally close); `canonical` selects the closest to 100, as is usual in the field. A file with only
`same_as = "gemma-scope-2b@width=65k"` defines an alias.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from saeflow.errors import BadFile, InvalidArgument, UnknownRelease, nearest
from saeflow.files import is_inside
from saeflow.ids import Part, Site
from saeflow.reading import read_toml

RELEASES: Final = Path(__file__).parent / "releases"
BESIDE: Final = ".graphs"
"""The end of the file name (before .toml) of a release's published graphs, next to its recipe."""
CANONICAL: Final = "canonical"
_CLOSE_TO: Final = 100
_WIDTHS: Final = {f"{k}k": round(k / 16.384) * 2**14 for k in (16, 32, 65, 131, 262, 524)} | {"1m": 2**20}
_KINDS: Final[Mapping[str, type]] = {
    **dict.fromkeys(("repo", "revision", "labels"), str),
    **dict.fromkeys(("paths", "optional", "layers"), list),
    **dict.fromkeys(("l0", "canonical", "when"), dict),
    **dict.fromkeys(("n_features", "d_in", "values"), int),
    **dict.fromkeys(("center", "added"), bool),
}
_KEYS: Final = {*_KINDS, "part"}


class DictionarySize(NamedTuple):
    """How large a dictionary is: features, the width it reads, and bytes per value in its file."""

    n_features: int
    d_in: int
    value_bytes: int

    @property
    def n_bytes(self) -> int:
        """The size of its tensors: two matrices, two vectors over features and one of width d_in."""
        return self.value_bytes * (2 * self.n_features * self.d_in + 2 * self.n_features + self.d_in)


@dataclass(frozen=True)
class ReleaseEntry:
    """Where a release keeps the dictionary of one site.

    Attributes:
        repo: the repository on the hub.
        revision: a commit, or a branch where no commit is known.
        files: the first is the one that is read, the others are next to it.
        optional: files that are fetched too if the repository has them.
        labels: the source of its labels on Neuronpedia; empty if there is none.
        size: the size of the dictionary; None if unknown.
        center: whether hidden states are centred over d_model before all else.
        added: whether the output of the part's module is added to the residual stream as it is.
    """

    repo: str
    revision: str
    files: tuple[str, ...]
    optional: tuple[str, ...] = ()
    labels: str = ""
    size: DictionarySize | None = None
    center: bool = False
    added: bool = False


@dataclass(frozen=True)
class Release:
    """A release as its TOML file describes it, with all parameters chosen.

    Attributes:
        name: the name as requested, parameters included.
        model: the model's name on the hub.
        about: a one-line description.
        chosen: each parameter with its value.
        sites: where each dictionary is.
        options: the values that each parameter can have, in the order of the file.
    """

    name: str
    model: str
    about: str
    chosen: Mapping[str, str]
    sites: Mapping[Site, ReleaseEntry]
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


def known_releases() -> tuple[str, ...]:
    """The names of the releases, sorted; the "demo" pack is not among them."""
    return tuple(sorted(path.stem for path in RELEASES.glob("*.toml") if not path.stem.endswith(BESIDE)))


def is_release(name: str) -> bool:
    """Whether `name`, without parameters after an @, is a named release or an existing .toml file."""
    base = name.partition("@")[0]
    return base in known_releases() or (base.endswith(".toml") and Path(base).is_file())


def read_release(name: str) -> Release:
    """Read the recipe of a named release or of a .toml file, with parameters after an @.

    Raises:
        UnknownRelease: when no release has that name.
        InvalidArgument: for an unknown parameter, or a value without files.
        BadFile: when the TOML file does not have the form described in the module docstring.
    """
    return _read(name, ())


def _read(name: str, aliases: tuple[str, ...]) -> Release:
    """`read_release` of a name that the aliases before it lead to."""
    # 1. the file, or the release it is an alias of
    base, requested = _split(name)
    path = Path(base) if base.endswith(".toml") else RELEASES / f"{base}.toml"
    if not base.endswith(".toml") and base not in known_releases():
        raise UnknownRelease(
            f"{base!r} is no named release.{nearest(base, known_releases())} `saeflow releases` lists them."
        )
    try:
        data = read_toml(path)
    except (OSError, ValueError) as error:
        raise BadFile(f"{path}: cannot be read as TOML ({error}). See docs/releases.md for the form.") from error
    if "same_as" in data:
        other, more = _split(str(data["same_as"]))
        if other in (base, *aliases):
            raise BadFile(f"{path}: same_as leads from {' to '.join((*aliases, base, other))}, in a circle.")
        parameters = ",".join(f"{key}={value}" for key, value in (more | requested).items())
        same = _read(f"{other}@{parameters}" if parameters else other, (*aliases, base))
        return Release(name, same.model, str(data.get("about", same.about)), same.chosen, same.sites, same.options)

    # 2. its entries, checked, and the values that each parameter can have
    model, layers = _entry(path, data, "model", str), _entry(path, data, "layers", int)
    defaults = {key: str(value) for key, value in _entry(path, data, "parameters", dict, {}).items()}
    tables = [_checked(path, table, set(defaults)) for table in _entry(path, data, "files", list)]
    options = {key: _options(path, tables, key, value) for key, value in defaults.items()}

    # 3. the chosen parameters; any number is a valid l0
    unknown = sorted(set(requested) - set(options))
    if unknown:
        have = ", ".join(f"{key} ({', '.join(known)})" for key, known in options.items()) or "none"
        raise InvalidArgument(f"{name!r}: there is no parameter {unknown[0]!r}. Parameters: {have}.")
    chosen = defaults | requested
    for key, known in options.items():
        if key != "l0" and chosen[key] not in known:
            raise InvalidArgument(
                f"{name!r}: there are no files with {key} {chosen[key]!r}. There are: {', '.join(known)}."
            )

    # 4. the files of each site, from the first table whose `when` holds
    sites: dict[Site, ReleaseEntry] = {}
    for table in tables:
        if all(chosen[key] in _strings(path, table["when"], key) for key in table.get("when", {})):
            for layer in map(int, table["l0"] if "l0" in table else table.get("layers", range(layers))):
                site = Site(layer, Part(table["part"]))
                sites.setdefault(site, _entry_of(path, table, layer, chosen, name))
    if not sites:
        parameters = ", ".join(f"{key} {value}" for key, value in chosen.items())
        raise InvalidArgument(f"{name!r}: there are no files with {parameters} together. See docs/releases.md.")
    return Release(name, model, str(data.get("about", "")), chosen, dict(sorted(sites.items())), options)


def _split(name: str) -> tuple[str, dict[str, str]]:
    """Split a name from the parameters after its @.

    Raises:
        InvalidArgument: when the part after the @ is not key=value pairs separated by commas.
    """
    base, at, parameters = name.partition("@")
    pairs = [pair.partition("=") for pair in parameters.split(",") if pair] if at else []
    if at and (not pairs or not all(key.strip() and sign and value.strip() for key, sign, value in pairs)):
        raise InvalidArgument(
            f"{name!r}: {parameters!r} is no choice of parameters. Write NAME@key=value,key=value, such as "
            "gemma-scope-2b@width=65k,l0=50."
        )
    return base, {key.strip(): value.strip() for key, _, value in pairs}


def _entry_of(path: Path, table: Mapping[str, Any], layer: int, chosen: Mapping[str, str], name: str) -> ReleaseEntry:
    """The entry of one layer, from a table of files."""
    values = {**chosen, "layer": layer, "next": layer + 1}
    if "l0" in table:
        l0, there = chosen["l0"], table["l0"][str(layer)]
        if l0 != CANONICAL and not l0.isdigit():
            raise InvalidArgument(f"{name!r}: l0 {l0!r} is neither a number nor {CANONICAL!r}.")
        aim = _CLOSE_TO if l0 == CANONICAL else int(l0)
        closest = min(there, key=lambda n: (abs(n - aim), n))
        exception = table.get("canonical", {}).get(str(layer)) if l0 == CANONICAL else None
        values["l0"] = closest if exception is None else exception

    def filled(patterns: Iterable[str]) -> tuple[str, ...]:
        try:
            if strange := [one for one in patterns if re.search(r"{\w*[^\w{}]", one)]:
                raise ValueError(f"{strange[0]!r}, which is more than a name,")
            return tuple(pattern.format(**values) for pattern in patterns)
        except (KeyError, IndexError, ValueError) as error:
            raise BadFile(
                f"{path}: {list(patterns)} has a place {error} that no parameter fills. Parameters: "
                f"{', '.join(sorted(values))}."
            ) from error

    n_features: int | None = table.get("n_features", _WIDTHS.get(chosen.get("width", "")))
    d_in: int | None = table.get("d_in")
    entry = ReleaseEntry(
        repo=table["repo"],
        revision=table.get("revision", "main"),
        files=filled(table["paths"]),
        optional=filled(table.get("optional", [])),
        labels="".join(filled([table["labels"]])) if "labels" in table else "",
        size=DictionarySize(n_features, d_in, table.get("values", 4)) if n_features and d_in else None,
        center=bool(table.get("center", False)),
        added=bool(table.get("added", False)),
    )
    for what in (entry.repo, entry.revision, *entry.files, *entry.optional):
        if not is_inside(what):
            raise BadFile(f"{path}: {what!r} leads out of its repository. Give a path in it.")
    return entry


def _checked(path: Path, table: Any, parameters: set[str]) -> Mapping[str, Any]:
    """Check that a table of files has entries of the right types and uses only parameters with defaults; return it."""
    if not isinstance(table, dict):
        raise BadFile(f"{path}: an entry of files is {table!r}, expected a table.")
    unknown = sorted(set(table) - _KEYS)
    if unknown or table.get("part") not in [part.value for part in Part]:
        raise BadFile(
            f"{path}: a table of files has part {table.get('part')!r} and unknown keys {unknown}. Parts are "
            f"res, mlp, att; keys are {', '.join(sorted(_KEYS))}."
        )
    for key, kind in _KINDS.items():
        if key in table or key in ("repo", "paths"):
            _entry(path, table, key, kind)
    if strange := [one for key in ("paths", "optional") for one in table.get(key, []) if not isinstance(one, str)]:
        raise BadFile(f"{path}: {strange[0]!r} is among the paths of {table['repo']}. Paths are strings.")
    numbers = table.get("layers", []), *table.get("l0", {}).values()
    layers = (*table.get("l0", {}), *table.get("canonical", {}))
    rows = all(isinstance(row, list) and all(isinstance(n, int) for n in row) for row in numbers)
    if not rows or not all(key.isdigit() for key in layers):
        raise BadFile(f"{path}: layers and L0s of {table['repo']} are not all numbers.")
    strangers = sorted(set(table.get("when", {})) - parameters)
    if strangers or ("l0" in table and "l0" not in parameters) or not table["paths"]:
        raise BadFile(
            f"{path}: files of {table['repo']} depend on {strangers or 'l0'} or have no paths; every parameter "
            "needs a default under [parameters]."
        )
    return table


def _options(path: Path, tables: Sequence[Mapping[str, Any]], key: str, default: str) -> tuple[str, ...]:
    """The values that a parameter can have: its default, then those named in tables of files."""
    named = [value for table in tables if key in table.get("when", {}) for value in _strings(path, table["when"], key)]
    numbered = [CANONICAL, "a number"] if key == "l0" and any("l0" in table for table in tables) else []
    return tuple(dict.fromkeys((default, *named, *numbered)))


def _strings(path: Path, table: Mapping[str, Any], key: str) -> tuple[str, ...]:
    return tuple(str(value) for value in _entry(path, table, key, list))


def _entry(path: Path, data: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = data.get(key, default)
    if not isinstance(value, kind):
        raise BadFile(f"{path}: {key} is {value!r}, expected {kind.__name__}. See docs/releases.md.")
    return value
