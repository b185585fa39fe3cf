"""Releases as data: which file of which repository holds which site, read from TOML. No torch, no network.

    model = "google/gemma-2-2b"           the model, as its hub calls it
    layers = 26
    about = "..."                         one line for people
    names_from = "..."                    where repositories and files were looked up

    [parameters]                          each with the value it has when none is asked for
    width = "16k"
    l0 = "canonical"

    [[files]]                             as many as needed; the first whose `when` holds is taken for a site
    part = "res"
    repo = "google/gemma-scope-2b-pt-res"
    revision = "main"
    paths = ["layer_{layer}/width_{width}/average_l0_{l0}/params.npz"]     the first is read, the others lie beside it
    optional = []                         fetched where the repository has them; {next} is {layer} + 1
    when = { width = ["16k"] }            values of parameters these files are for
    layers = [5, 12]                      those there are; all of the model's when left out
    l0 = { 0 = [13, 25, 46], ... }        by layer, the average L0s there are, where {l0} is a choice by number
    canonical = { 27 = 136 }              layers whose canonical L0 is not the one closest to 100
    labels = "gemma-2-2b/{layer}-gemmascope-res-16k"                       the source on Neuronpedia
    n_features = 16384                    with d_in and the bytes of a value (4), the size of a file; where it is
                                          left out, what the parameter `width` stands for
    added = true                          what the part's module returns is added to the stream as it is, without a norm
    center = true                         hidden states are centred over d_model first

Written `NAME@width=65k,l0=50`. An L0 that is asked for by number is the closest there is in each layer, of two as
close the smaller; `canonical` is the closest to 100, as the field uses the word. A file of nothing but
`same_as = "gemma-scope-2b@width=65k"` is another name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from saeflow.errors import BadFile, InvalidArgument, UnknownRelease
from saeflow.files import is_inside
from saeflow.ids import Part, Site
from saeflow.reading import read_toml

RELEASES: Final = Path(__file__).parent / "releases"
BESIDE: Final = ".graphs"
"""How the name ends of a file that holds published graphs of a release, beside its recipe."""
CANONICAL: Final = "canonical"
_CLOSE_TO: Final = 100
_WIDTHS: Final = {f"{k}k": round(k / 16.384) * 2**14 for k in (16, 32, 65, 131, 262, 524)} | {"1m": 2**20}
_KEYS: Final = {
    "part",
    "repo",
    "revision",
    "paths",
    "optional",
    "when",
    "layers",
    "l0",
    "canonical",
    "labels",
    "n_features",
    "d_in",
    "values",
    "center",
    "added",
}


class DictionarySize(NamedTuple):
    """How large a dictionary is: features, the width it reads, and the bytes of a value in its file."""

    n_features: int
    d_in: int
    value_bytes: int

    @property
    def n_bytes(self) -> int:
        """Two matrices, two vectors over features and one over the stream."""
        return self.value_bytes * (2 * self.n_features * self.d_in + 2 * self.n_features + self.d_in)


@dataclass(frozen=True)
class ReleaseEntry:
    """Where a release keeps one site's dictionary.

    Attributes:
        repo: the repository on the hub.
        revision: a commit, or a branch where no commit is known.
        files: the first is what is read, the others lie beside it.
        optional: fetched too, where the repository has them.
        labels: the source of its labels on Neuronpedia, empty where there is none.
        size: how large its dictionary is, None where it is not known.
        center: whether hidden states are centred over d_model before all else.
        added: whether what the part's module returns is added to the stream as it is.
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
    """A release as its TOML file says it, with its parameters chosen.

    Attributes:
        name: as it was asked for, parameters included.
        model: the model, as its hub calls it.
        about: what it is, in a line.
        chosen: the parameters, each with its value.
        sites: where each dictionary is.
        options: the values each parameter can have, in the order of the file.
    """

    name: str
    model: str
    about: str
    chosen: Mapping[str, str]
    sites: Mapping[Site, ReleaseEntry]
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


def known_releases() -> tuple[str, ...]:
    """The named releases, sorted; "demo" is not among them.

    Raises:
        Nothing.
    """
    return tuple(sorted(path.stem for path in RELEASES.glob("*.toml") if not path.stem.endswith(BESIDE)))


def is_release(name: str) -> bool:
    """Whether `name`, parameters after an @ aside, is a named release or a path that ends in .toml.

    Raises:
        Nothing.
    """
    base = name.partition("@")[0]
    return base in known_releases() or (base.endswith(".toml") and Path(base).is_file())


def read_release(name: str) -> Release:
    """The recipe of a named release, or of a .toml file, with parameters after an @.

    Raises:
        UnknownRelease: when there is none of that name.
        InvalidArgument: for a parameter it does not have, or a value it has no file for.
        BadFile: when the TOML file is not as the head of this module says.
    """
    base, asked = _split(name)
    path = Path(base) if base.endswith(".toml") else RELEASES / f"{base}.toml"
    if not base.endswith(".toml") and base not in known_releases():
        raise UnknownRelease(f"{base!r} is no named release. Releases: {', '.join(known_releases())}.")
    data = _read_toml(path)
    if "same_as" in data:
        other, more = _split(str(data["same_as"]))
        told = ",".join(f"{key}={value}" for key, value in (more | asked).items())
        made = read_release(f"{other}@{told}" if told else other)
        return Release(name, made.model, str(data.get("about", made.about)), made.chosen, made.sites, made.options)
    return _Reader(path, data).recipe(name, asked)


def _split(name: str) -> tuple[str, dict[str, str]]:
    """A name and the parameters after its @.

    Raises:
        InvalidArgument: when what follows the @ is not key=value, with commas between.
    """
    base, at, told = name.partition("@")
    pairs = [pair.partition("=") for pair in told.split(",") if pair] if at else []
    if at and (not pairs or not all(key.strip() and sign and value.strip() for key, sign, value in pairs)):
        raise InvalidArgument(
            f"{name!r}: {told!r} is no choice of parameters. Write NAME@key=value,key=value, such as "
            "gemma-scope-2b@width=65k,l0=50."
        )
    return base, {key.strip(): value.strip() for key, _, value in pairs}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except (OSError, ValueError) as error:
        raise BadFile(f"{path}: cannot be read as TOML ({error}). See docs/releases.md for the form.") from error


class _Reader:
    """One TOML file, and what is refused in it, by name."""

    def __init__(self, path: Path, data: Mapping[str, Any]) -> None:
        self.path = path
        self.model = self._entry(data, "model", str)
        self.layers = self._entry(data, "layers", int)
        self.about = str(data.get("about", ""))
        self.defaults = {key: str(value) for key, value in self._entry(data, "parameters", dict, {}).items()}
        self.files = [self._checked(told) for told in self._entry(data, "files", list)]

    def recipe(self, name: str, asked: Mapping[str, str]) -> Release:
        options = self._options()
        unknown = sorted(set(asked) - set(options))
        if unknown:
            have = ", ".join(f"{key} ({', '.join(values)})" for key, values in options.items()) or "none"
            raise InvalidArgument(f"{name!r}: there is no parameter {unknown[0]!r}. Parameters: {have}.")
        chosen = self.defaults | dict(asked)
        for key, values in options.items():
            if key != "l0" and chosen[key] not in values:
                raise InvalidArgument(
                    f"{name!r}: there are no files with {key} {chosen[key]!r}. There are: {', '.join(values)}."
                )
        sites: dict[Site, ReleaseEntry] = {}
        for told in self.files:
            if all(chosen[key] in self._strings(told["when"], key) for key in told.get("when", {})):
                for layer in self._layers(told):
                    sites.setdefault(Site(layer, Part(told["part"])), self._entry_of(told, layer, chosen, name))
        if not sites:
            told = ", ".join(f"{key} {value}" for key, value in chosen.items())
            raise InvalidArgument(f"{name!r}: there are no files with {told} together. See docs/releases.md.")
        return Release(name, self.model, self.about, chosen, dict(sorted(sites.items())), options)

    def _options(self) -> dict[str, tuple[str, ...]]:
        options: dict[str, dict[str, None]] = {key: {value: None} for key, value in self.defaults.items()}
        for told in self.files:
            for key in told.get("when", {}):
                options[key] |= dict.fromkeys(self._strings(told["when"], key))
        if any(isinstance(told.get("l0"), dict) for told in self.files):
            options["l0"] |= dict.fromkeys((CANONICAL, "a number"))
        return {key: tuple(values) for key, values in options.items()}

    def _entry_of(self, told: Mapping[str, Any], layer: int, chosen: Mapping[str, str], name: str) -> ReleaseEntry:
        values = {**chosen, "layer": layer, "next": layer + 1}
        if "l0" in told:
            values["l0"] = self._closest(told, layer, chosen["l0"], name)
        n_features: int | None = told.get("n_features", _WIDTHS.get(chosen.get("width", "")))
        d_in: int | None = told.get("d_in")
        revision = told.get("revision", "main")
        files, optional = (self._filled(told.get(key, []), values) for key in ("paths", "optional"))
        for what in (told["repo"], revision, *files, *optional):
            if not is_inside(what):
                raise BadFile(f"{self.path}: {what!r} leads out of its repository. Give a path in it.")
        return ReleaseEntry(
            repo=told["repo"],
            revision=revision,
            files=files,
            optional=optional,
            labels="".join(self._filled([told["labels"]], values)) if "labels" in told else "",
            size=DictionarySize(n_features, d_in, told.get("values", 4)) if n_features and d_in else None,
            center=bool(told.get("center", False)),
            added=bool(told.get("added", False)),
        )

    def _filled(self, patterns: Iterable[str], values: Mapping[str, Any]) -> tuple[str, ...]:
        try:
            if strange := [one for one in patterns if re.search(r"{\w*[^\w{}]", one)]:
                raise ValueError(f"{strange[0]!r}, which is more than a name,")
            return tuple(pattern.format(**values) for pattern in patterns)
        except (KeyError, IndexError, ValueError) as error:
            raise BadFile(
                f"{self.path}: {list(patterns)} has a place {error} that no parameter fills. Parameters: "
                f"{', '.join(sorted(values))}."
            ) from error

    def _closest(self, told: Mapping[str, Any], layer: int, asked: str, name: str) -> int:
        there: list[int] = told["l0"][str(layer)]
        if asked == CANONICAL:
            exception: int | None = told.get("canonical", {}).get(str(layer))
            return min(there, key=lambda n: (abs(n - _CLOSE_TO), n)) if exception is None else exception
        if not asked.isdigit():
            raise InvalidArgument(f"{name!r}: l0 {asked!r} is neither a number nor {CANONICAL!r}.")
        return min(there, key=lambda n: (abs(n - int(asked)), n))

    def _layers(self, told: Mapping[str, Any]) -> list[int]:
        if "l0" in told:
            return [int(layer) for layer in told["l0"]]
        return list(told.get("layers", range(self.layers)))

    def _strings(self, table: Mapping[str, Any], key: str) -> tuple[str, ...]:
        return tuple(str(value) for value in self._entry(table, key, list))

    def _checked(self, told: Any) -> Mapping[str, Any]:
        if not isinstance(told, dict):
            raise BadFile(f"{self.path}: an entry of files is {told!r}, expected a table.")
        unknown = sorted(set(told) - _KEYS)
        if unknown or told.get("part") not in [part.value for part in Part]:
            raise BadFile(
                f"{self.path}: a table of files has part {told.get('part')!r} and unknown keys {unknown}. Parts are "
                f"res, mlp, att; keys are {', '.join(sorted(_KEYS))}."
            )
        for key, kind in (("repo", str), ("paths", list)):
            self._entry(told, key, kind)
        for key, kind in (("layers", list), ("l0", dict), ("canonical", dict), ("when", dict)):
            if key in told:
                self._entry(told, key, kind)
        numbers = told.get("layers", []), *told.get("l0", {}).values()
        layers = told.get("l0", {}), told.get("canonical", {})
        if not all(isinstance(row, list) and all(isinstance(n, int) for n in row) for row in numbers) or not all(
            key.isdigit() for table in layers for key in table
        ):
            raise BadFile(f"{self.path}: layers and L0s of {told['repo']} are not all numbers.")
        strangers = sorted(set(told.get("when", {})) - set(self.defaults))
        if strangers or ("l0" in told and "l0" not in self.defaults) or not told["paths"]:
            raise BadFile(
                f"{self.path}: files of {told['repo']} depend on {strangers or 'l0'} or have no paths; every parameter "
                "needs a default under [parameters]."
            )
        return told

    def _entry(self, data: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
        value = data.get(key, default)
        if not isinstance(value, kind):
            raise BadFile(f"{self.path}: {key} is {value!r}, expected {kind.__name__}. See docs/releases.md.")
        return value
