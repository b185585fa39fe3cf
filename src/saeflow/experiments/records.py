"""Rows of experiments, and the record of a run. No torch.

Apart from `saeflow.records`, so that growing a graph does not pay for them.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from saeflow.ids import FeatureId, Part
from saeflow.reading import parse_json

PARTS: Final = (Part.RES, Part.MLP, Part.ATT)
"""Parts of the predecessor sites, in the order of tables."""

EXHAUSTIVE: Final = "exhaustive"
GREEDY: Final = "greedy"
SEARCHES: Final = (EXHAUSTIVE, GREEDY)
"""Strategies that try active features instead of naming matches."""


class Origin(enum.Flag):
    """Which matched predecessors of a residual feature are active with it: the eight groups of appendix A.1."""

    NOWHERE = 0
    RES = 1
    MLP = 2
    ATT = 4

    @staticmethod
    def of(active: Iterable[Part]) -> Origin:
        """The group of a feature whose predecessors at these parts are active."""
        origin = Origin.NOWHERE
        for part in active:
            origin |= Origin[part.name]
        return origin

    @staticmethod
    def groups() -> tuple[Origin, ...]:
        """All eight, those with fewer predecessors first: the order of every table and figure."""
        return tuple(sorted(map(Origin, range(8)), key=lambda o: (o.value.bit_count(), o.value)))

    @staticmethod
    def named(label: str) -> Origin:
        """The group with this label; KeyError for none of the eight."""
        return {origin.label: origin for origin in Origin.groups()}[label]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts whose predecessor is active, in the order res, mlp, att."""
        return tuple(part for part in PARTS if Origin[part.name] in self)

    @property
    def label(self) -> str:
        """How the group is written: "nowhere", "RES", "RES & MLP"; the paper says "From RES & MLP"."""
        return " & ".join(part.name for part in self.parts) or "nowhere"


ALL: Final = "all"
"""All datasets, layers or groups together, in tables."""

ORDER: Final = tuple(origin.value for origin in Origin.groups())
"""Values of `Origin` in the order of every table."""

GROUPS: Final = tuple(origin.label for origin in Origin.groups())
"""Their labels, in that order."""

LABELS: Final = tuple(Origin(value).label for value in range(8))
"""The label of each value of `Origin`."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What was asked of an experiment: with the inputs it names, it determines every row.

    Attributes:
        experiment: "origins", "deactivation" or another.
        release: name of the dictionaries.
        model: name of the language model.
        seed: of everything that is drawn.
        datasets: names, in order.
        atlases: for each matching method, what its tables are and a checksum of them.
        arguments: all other arguments, as JSON values.
    """

    experiment: str
    release: str
    model: str
    seed: int
    datasets: tuple[str, ...]
    atlases: Mapping[str, str]
    arguments: Mapping[str, Any]

    def differences(self, other: RunRequest) -> list[str]:
        """What `other` asks otherwise, each as "name: here, there in `other`"; empty when nothing."""
        mine, theirs = self._flat(), other._flat()
        return [
            f"{name} is {json.dumps(mine.get(name))} there and {json.dumps(theirs.get(name))} here"
            for name in sorted({*mine, *theirs})
            if mine.get(name) != theirs.get(name)
        ]

    def _flat(self) -> dict[str, Any]:
        told = asdict(self)
        flat = {name: value for name, value in told.items() if name not in ("atlases", "arguments")}
        flat |= {f"atlas {name}": value for name, value in self.atlases.items()}
        # through JSON, so that what was read and what is asked compare alike
        return json.loads(json.dumps(flat | dict(self.arguments)))


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A request with how it was run: the manifest of a results folder.

    Attributes:
        request: what was asked.
        versions: of saeflow, Python and the libraries that computed it.
        started: UTC, ISO 8601.
        finished: the same; None while it runs, or after a kill.
        done: units of work done when `finished` was written, else 0.
        total: units of work in all; a unit is one text of one dataset.
    """

    request: RunRequest
    versions: Mapping[str, str]
    started: str
    finished: str | None
    done: int
    total: int

    def to_json(self) -> str:
        """The manifest: the request's fields beside those of the run."""
        told = asdict(self)
        return json.dumps(told.pop("request") | told, indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> RunRecord:
        """The inverse of `to_json`.

        Raises:
            ValueError: for text that is no JSON.
            KeyError: for a manifest without one of the fields.
            TypeError: for counts that are no whole numbers.
        """
        told = parse_json(text)
        if not all(type(told[name]) is int for name in ("done", "total")):
            raise TypeError(f"{told['done']!r} of {told['total']!r} texts are no counts")
        asked = {field.name: told[field.name] for field in fields(RunRequest)}
        asked["datasets"] = tuple(asked["datasets"])
        run = {field.name: told[field.name] for field in fields(RunRecord) if field.name != "request"}
        return RunRecord(RunRequest(**asked), **run)


@dataclass(frozen=True, slots=True)
class OriginTrial:
    """The active features of one residual layer at one token, and their groups (section 5.1, appendix A.1).

    Attributes:
        dataset: name of the dataset.
        text: number of the text in it, from 0.
        position: column of the token in the text's tokens; 0 is the begin-of-text token where there is one.
        layer: L of the residual site.
        features: rows of the dictionary at `L/res` that are active, ascending.
        activations: their values, above 0.
        groups: for each matching method a digit a feature: the value of its `Origin`, 0 to 7.
    """

    dataset: str
    text: int
    position: int
    layer: int
    features: tuple[int, ...]
    activations: tuple[float, ...]
    groups: Mapping[str, str]

    def to_row(self) -> dict[str, Any]:
        """The trial as a row of a results folder."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class Removal:
    """What was rescaled in a deactivation trial, and why (appendix A.2).

    Attributes:
        strategy: the name of what chose the features; for a control, of what it controls.
        control: whether the features are random active ones in place of the strategy's.
        group: the group of the target under the strategy before the edit.
        removed: the parts whose predecessors were edited.
        features: the features edited, with their activations before.
        norm: length of a V summed over what is removed, root of the sum of squares over sites.
        r: the factor; 0 removes.
    """

    strategy: str
    control: bool
    group: Origin
    removed: Origin
    features: Mapping[FeatureId, float]
    norm: float
    r: float


@dataclass(frozen=True, slots=True)
class Effect:
    """What an edit did to its target.

    Attributes:
        z_old: activation of the target before, above 0.
        z_new: after.
        new_group: the group under the same strategy after, from the recomputed activations.
        loss_old: mean next-token loss of the text in nats before; None where not asked for.
        loss_new: after.
    """

    z_old: float
    z_new: float
    new_group: Origin
    loss_old: float | None = None
    loss_new: float | None = None

    @property
    def deactivated(self) -> bool:
        """Whether the target is silent afterwards: exactly 0."""
        return self.z_new == 0

    @property
    def change(self) -> float:
        """1 - z_new / z_old: 1 when silent, 0 when nothing changed, below 0 when it grew (appendix A.2)."""
        return 1 - self.z_new / self.z_old


@dataclass(frozen=True, slots=True)
class DeactivationTrial:
    """One target, one edit of its predecessors at one token, and what came of it (section 5.2).

    Attributes:
        dataset: name of the dataset.
        text: number of the text in it, from 0.
        position: column of the token in the text's tokens.
        target: a residual feature that is active there.
        removal: what was edited.
        effect: what it did.
        controls: for a control, the number among its text's trials of the trial it controls.
    """

    dataset: str
    text: int
    position: int
    target: FeatureId
    removal: Removal
    effect: Effect
    controls: int | None = None

    def to_row(self, number: int) -> dict[str, Any]:
        """The trial as the row `number` of its text."""
        removal, effect = self.removal, self.effect
        return {
            "dataset": self.dataset,
            "text": self.text,
            "position": self.position,
            "layer": self.target.layer,
            "target": str(self.target),
            "trial": number,
            "controls": self.controls,
            "strategy": removal.strategy,
            "control": removal.control,
            "group": removal.group.label,
            "removed": removal.removed.label,
            "norm": _short(removal.norm),
            "r": removal.r,
            "features": {str(feature): _short(a) for feature, a in removal.features.items()},
            "z_old": _short(effect.z_old),
            "z_new": _short(effect.z_new),
            "deactivated": effect.deactivated,
            "change": _short(effect.change),
            "new_group": effect.new_group.label,
            "loss_old": effect.loss_old,
            "loss_new": effect.loss_new,
        }


def _short(value: float) -> float:
    """Six significant digits: shorter rows, and 0 only where it was 0."""
    return float(f"{value:.6g}")
