"""Options that several commands share, and the conversion of the words of any option to its value.

The help of an option is a line in the docstring of its command, or of the dataclass that has it as a field; help that
commands share is here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args, get_origin

import cyclopts
from cyclopts import Group, Parameter, Token

from saeflow.cli.vocabulary import RANGES, SHORT
from saeflow.errors import InvalidArgument, InvalidId
from saeflow.flow.scores import HIGH, T_MODULE, T_RES, Calibrated, Thresholds
from saeflow.ids import FeatureId, Part, Site, layers_by_part

if TYPE_CHECKING:
    from saeflow.engines import Engine
    from saeflow.sources.library import DictionarySet
    from saeflow.sources.model import LanguageModel


LONGEST_RANGE: Final = 10_000
"""The most numbers that a range may hold."""


def read(type_: Any, tokens: Sequence[Token]) -> Any:
    """The value of an option from its words. In a tuple, commas separate values, and `6-9` is a range of integers.

    Raises:
        InvalidArgument, InvalidId: for a word that is not a value of this type.
        cyclopts.CycloptsError: likewise, for the types that cyclopts converts itself.
    """
    words = [token.value for token in tokens]
    typed = tokens[0].keyword or ""
    if get_origin(type_) in (tuple, Sequence):
        kind = get_args(type_)[0]
        found = [value for word in words for name in word.split(",") if name.strip() for value in _each(kind, name)]
        if not found:
            raise InvalidArgument(f"{words[0]!r} holds no value. Give one or more, or leave the option out.")
        _check_range(typed, found)
        return tuple(part for part in Part if part in found) if kind is Part else tuple(found)
    type_ = next((one for one in (int, float) if set(get_args(type_)) == {one, type(None)}), type_)
    if type_ in (int, float, Site, FeatureId):
        value = _each(type_, words[0], ranges=False)[0]
        _check_range(typed, [value])
        return value
    return cyclopts.convert(type_, tokens)


def _check_range(typed: str, values: Sequence[Any]) -> None:
    """Refuse a number that is out of range for the option."""
    word = SHORT.get(typed, typed)
    if word not in RANGES:
        return
    holds, said = RANGES[word]
    for value in values:
        if isinstance(value, int | float) and not holds(value):
            raise InvalidArgument(f"{value:g} is out of range. Give {said}.")


def _each(kind: Any, text: str, *, ranges: bool = True) -> Sequence[Any]:
    """The value of a word, as a sequence of one, or all numbers of a range."""
    text = text.strip()
    if kind in (str, Path):
        found: Sequence[Any] = [kind(text)]
    elif kind in (Site, FeatureId):
        found = [kind.parse(text)]
    elif kind == tuple[Site, Site]:
        source, _, target = text.partition(">")
        try:
            found = [(Site.parse(source.strip()), Site.parse(target.strip()))]
        except InvalidId:
            raise InvalidArgument(f"{text!r} is no pair of sites. Write a pair as 0/res>1/res.") from None
    elif kind is Part:
        if text not in set(Part):
            raise InvalidArgument(f"{text!r} is no part. Parts are res, mlp, att.")
        found = [Part(text)]
    elif kind == int | None and text == "all":
        found = [None]
    elif kind is float:
        found = [_number(text)]
    else:
        found = _whole(text, ranges=ranges)
    return found


def _whole(text: str, *, ranges: bool) -> Sequence[int]:
    """The integer of a word, as a sequence of one, or all integers of a range."""
    low, between, high = text.partition("-")
    if not all(one.isdecimal() for one in ((low, high) if between and ranges else (text.removeprefix("-"),))):
        example = "12, or a list such as 6,12,18 or 6-9" if ranges else "one such as 12"
        raise InvalidArgument(f"{text!r} is no whole number. Write {example}.")
    if not (between and ranges):
        return [int(text)]
    if int(low) > int(high):
        raise InvalidArgument(f"{text!r} goes from high to low, and holds nothing. Write {high}-{low}.")
    if int(high) - int(low) >= LONGEST_RANGE:
        raise InvalidArgument(f"{text!r} holds more than {LONGEST_RANGE:,} numbers. Write one such as 6-9.")
    return range(int(low), int(high) + 1)


def _number(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise InvalidArgument(f"{text!r} is no number. Write one such as 0.5.")
    return found


def number_or_all(_type: Any, tokens: Sequence[Token]) -> int | None:
    """An integer, or None for "all".

    Raises:
        InvalidArgument: for any other word.
    """
    return _each(int | None, tokens[0].value, ranges=False)[0]


def shown(value: Any) -> str | None:
    """A default as a user would type it; None if there is nothing to show."""
    if value is None or value is False or value in ("", ()):
        return None
    if isinstance(value, tuple):
        return ",".join("all" if one is None else str(one) for one in value)  # pyright: ignore[reportUnknownArgumentType]
    return "on" if value is True else f"{value:g}" if isinstance(value, float) else str(value)


def ends_in(*endings: str) -> Parameter:
    """Refuse, before any work, a file with another ending, or in a folder that does not exist."""

    def check(_type: Any, path: Path | None) -> None:
        if path is not None and path.suffix.lower() not in endings:
            raise InvalidArgument(f"{path} cannot be written: end its name in {' or '.join(endings)}.")

    return Parameter(validator=(check, in_a_folder))


def in_a_folder(_type: Any, paths: Path | Sequence[Path] | None) -> None:
    """Refuse a path in a folder that does not exist: it is most likely a typo."""
    for path in (paths,) if isinstance(paths, Path) else paths or ():
        above = path.expanduser().absolute().parent
        if not above.is_dir():
            why = "is a file" if above.is_file() else "does not exist"
            raise InvalidArgument(f"the folder {above} {why}. Make it first, or give another path.")


def _a_folder(_type: Any, path: Path | None) -> None:
    """Refuse a file where a folder is to be written."""
    if path is not None and path.expanduser().is_file():
        raise InvalidArgument(f"{path} is a file, and a folder is written. Give another path.")


def _named(_type: Any, release: str) -> None:
    """Refuse an empty name, which would mean the current folder."""
    if not release.strip():
        raise InvalidArgument('it is empty. Give "demo", a folder, or the name of a release.')


def _there(_type: Any, device: str) -> None:
    """Refuse a device that this machine does not have, before anything is loaded; only "cpu" needs no torch."""
    if device != "cpu":
        from saeflow.sources.devices import known_device

        known_device(device)


Together = Parameter(name="*")
"""For a dataclass whose fields are options."""

Flag = Annotated[bool, Parameter(negative=())]
Feature = Annotated[FeatureId, Parameter(accepts_keys=False, n_tokens=1)]
Features = Annotated[tuple[FeatureId, ...], Parameter(n_tokens=1)]
OneSite = Annotated[Site, Parameter(accepts_keys=False, n_tokens=1)]
Numbers = Annotated[tuple[float, ...], Parameter(allow_leading_hyphen=True)]
Number = Annotated[float, Parameter(allow_leading_hyphen=True)]

Release = Annotated[
    str,
    Parameter(
        validator=_named,
        help='Release of dictionaries: "demo", a folder, FOLDER@PATTERN for some of its SAEs, or a name of '
        "`saeflow releases`.",
    ),
]
Json = Annotated[bool, Parameter("--json", negative=(), help="Print JSON instead of a table.")]
Device = Annotated[str, Parameter(validator=_there, help="Where to compute: cpu, cuda, cuda:1, mps.")]
AtlasName = Annotated[str, Parameter(help="Atlas to use: that of the release by default.")]
Out = Parameter(alias="-o", validator=in_a_folder)
"""For a file that a command writes."""
OutFolder = Parameter(alias="-o", validator=_a_folder)
"""For a folder that a command writes."""
Projector = Annotated[
    str, Parameter("--model", help="Language model: here it projects attention features that are in z.")
]
PrependBos = Annotated[
    bool | None,
    Parameter(
        help="Begin texts with the begin-of-text token; by default as the SAEs' files say, or else the tokenizer."
    ),
]
TEXTS: Final = (
    'Where texts come from: a .txt, .jsonl or .parquet file, "demo" (its five domains), "demo:stories", or a dataset '
    "on the hub."
)
TextSources = Annotated[tuple[str, ...], Parameter(help=TEXTS)]
NTexts = Annotated[int, Parameter(help="Number of texts: of each source, at most.")]
SiteNames = Annotated[
    tuple[str, ...], Parameter(help="Sites, or parts at all layers: 12/res,13/res or res; all by default.")
]
LlmModel = Annotated[
    str, Parameter("--llm-model", help="Name of the LLM: by default SAEFLOW_JUDGE_MODEL, or else gpt-4o-mini.")
]
LlmUrl = Annotated[
    str,
    Parameter(
        "--llm-url", help="Address of the LLM, with the chat API of OpenAI: by default OPENAI_BASE_URL, or OpenAI's."
    ),
]
LogTo = Annotated[
    str,
    Parameter(help="Where measurements are logged as well: tensorboard or wandb; the run's files always have them."),
]
SitesAtOnce = Annotated[
    int, Parameter(help="Dictionaries in memory at a time; 0 for all. With fewer, the texts are read again.")
]

WHERE = Group("Where it runs", sort_key=1)


@Parameter(name="*", group=WHERE)
@dataclass(frozen=True)
class Where:
    """Where the units of work of a long command run.

    Attributes:
        engine: Where units run: here (one process), pool (processes of this machine), ray.
        workers: Processes of the pool; 0 for as many as there are cores.
        address: Ray cluster to join: "auto" or ray://HOST:10001; by default, one is started on this machine.
        cpus: Cores, and threads, of a unit of work.
        gpus: GPUs of a unit on Ray, or a fraction of one; the unit computes there.
    """

    engine: str = "here"
    workers: int = 0
    address: str = ""
    cpus: int = 1
    gpus: float = 0.0

    def open(self) -> Engine:
        """The engine, for use in a `with` statement.

        Raises:
            InvalidArgument, MissingExtra, Unreachable: as `open_engine` does.
        """
        from saeflow.engines import open_engine

        return open_engine(
            self.engine, workers=self.workers or None, address=self.address, cpus=self.cpus, gpus=self.gpus
        )


@Parameter(name="*")
@dataclass(frozen=True)
class ModelOptions:
    """The language model that a command runs.

    Attributes:
        model: Language model: the one that the release names by default.
        device: Where to compute: cpu, cuda, cuda:1, mps.
        prepend_bos: Begin texts with the begin-of-text token; by default as the SAEs' files say, or else the tokenizer.
    """

    model: str = ""
    device: Device = "cpu"
    prepend_bos: bool | None = None

    def load(self, release: str, dictionaries: DictionarySet) -> LanguageModel:
        """Load the model; its texts begin as in the dictionaries' training, unless `prepend_bos` is given.

        Raises:
            InvalidArgument: when neither the option nor the release names the model.
            BadFile, Unreachable: when it cannot be loaded.
        """
        from saeflow.experiments.inputs import opened_model

        return opened_model(release, dictionaries, self.model, device=self.device, prepend_bos=self.prepend_bos)


@Parameter(name="*")
@dataclass(frozen=True)
class Cuts:
    """Where flow graphs are cut.

    Attributes:
        t_res: The lowest score t(R) of residual features: the flow stops below it. 0 follows it through all layers.
        t_mlp: The lowest score t(M) of MLP features: others are dropped.
        t_att: The lowest score t(A) of attention features: others are dropped.
        fdr: False-discovery rate: thresholds are calibrated by layer, in place of those above. With families of similar
            features the actual rate is higher, except under the null "families".
        k: Matches per feature: how many are followed at each site.
    """

    t_res: Number = T_RES
    t_mlp: Number = T_MODULE
    t_att: Number = T_MODULE
    fdr: float | None = None
    k: Annotated[int, Parameter(alias="-k")] = 1

    def thresholds(self, atlas: Calibrated, fdr: float | None = None, high: float = HIGH) -> Thresholds:
        """Plain thresholds, or thresholds calibrated for a false-discovery rate.

        Args:
            atlas: has the nulls that calibrated thresholds need.
            fdr: the rate if the option is not given; None for plain thresholds.
            high: the line between high and low scores.

        Raises:
            InvalidArgument: for both kinds at once, a threshold that is no cosine, a rate that is not between 0 and 1,
                or an atlas without nulls.
        """
        plain = Thresholds(res=self.t_res, mlp=self.t_mlp, att=self.t_att, high=high)
        rate = fdr if self.fdr is None else self.fdr
        if rate is None:
            return plain
        if plain != Thresholds(mlp=T_MODULE, att=T_MODULE):
            raise InvalidArgument(
                "calibrated thresholds replace --t-res, --t-mlp, --t-att and --high. Give either those, or --fdr."
            )
        return Thresholds.calibrated(atlas, rate)


def projector(name: str) -> LanguageModel | None:
    """The model that projects attention features; None if none is named."""
    if not name:
        return None
    from saeflow.sources.model import load_model

    return load_model(name)


def sites_named(names: Sequence[str], there: Sequence[Site]) -> list[Site]:
    """The sites named one by one or by part; all of `there` if none is named.

    Raises:
        InvalidArgument: for a site or part that is not there.
        InvalidId: for a name that is neither a site nor a part.
    """
    chosen: set[Site] = set()
    for name in names:
        sites = {site for site in there if site.part.value == name} if name in set(Part) else {Site.parse(name)}
        if not sites or not sites <= set(there):
            raise InvalidArgument(f"--sites names {name}, and there are {layers_by_part(there)}.")
        chosen |= sites
    return sorted(chosen) if names else list(there)
