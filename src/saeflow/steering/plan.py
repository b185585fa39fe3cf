"""SteeringPlan: which features are changed, and by how much; data that a person reads and edits. No torch.

A plan stands between a flow graph and a model. `growth` makes one, `sizes` weakens one, a person strikes out
lines of its file, `LanguageModel.intervening(plan, dictionaries)` applies it:

    activate   h + s V            s is the length of what is added along the unit row V (appendix B.2)
    suppress   h + (r - 1) a V    r multiplies the feature's share of the hidden state (section 4.2)

Each feature has an s or an r of its own. A schedule and folding have been applied already when a plan is made, so
that its numbers are what is done, and changing one by hand does what it says.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from saeflow.errors import BadFile, InvalidArgument
from saeflow.files import write_atomic
from saeflow.ids import FeatureId, Site
from saeflow.interventions import EVERYWHERE, Add, Edit, Rescale, Where
from saeflow.reading import read_text


class SteeringDirection(enum.StrEnum):
    """Whether a plan steers towards its theme or away from it."""

    ACTIVATE = "activate"
    SUPPRESS = "suppress"


@dataclass(frozen=True, slots=True)
class Step:
    """One feature of a plan.

    Attributes:
        feature: what is changed.
        value: to activate, the length of what is added along the feature's unit row in the stream, in the units of
            the hidden state, negative to subtract; to suppress, the factor r of h + (r - 1) a V: 0 removes the
            feature, 1 leaves it, below 0 turns it round.
        label: what the feature stands for, for a reader.
        why: why it is in the plan, for a reader.

    Raises:
        InvalidArgument: when `value` is not finite.
    """

    feature: FeatureId
    value: float
    label: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        """Refuse a value that is not a number."""
        if not math.isfinite(self.value):
            raise InvalidArgument(f"the value {self.value} of {self.feature} is not finite. Give a number.")
        object.__setattr__(self, "value", float(self.value))


@dataclass(frozen=True, slots=True)
class Dropped:
    """A feature that was found and left out, with the reason."""

    feature: FeatureId
    why: str


@dataclass(frozen=True)
class SteeringPlan:
    """Steps sorted by feature, each feature once, and where they come from.

    Attributes:
        direction: what the values of the steps mean.
        steps: the features that are changed; an empty plan changes nothing.
        release: the dictionaries the features belong to, as `load_dictionaries` takes it; empty where not known.
        model: the model they were trained on; empty where not known.
        theme: the name of the theme; empty where there is none.
        dropped: features that were found and left out.
        made_by: how the plan was made, in JSON values (tuples become lists); it changes nothing.
        tokens: which tokens are changed, the prompt's and the decoded ones alike.

    Raises:
        InvalidArgument: when a feature has two steps, or `made_by` holds something that is no JSON.
    """

    direction: SteeringDirection
    steps: tuple[Step, ...]
    release: str = ""
    model: str = ""
    theme: str = ""
    dropped: tuple[Dropped, ...] = ()
    made_by: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    tokens: Where = EVERYWHERE

    def __post_init__(self) -> None:
        """Sort the steps, and keep copies nobody else holds."""
        seen: set[FeatureId] = set()
        for step in self.steps:
            if step.feature in seen:
                raise InvalidArgument(f"a plan has two steps for {step.feature}. Give each feature one.")
            seen.add(step.feature)
        try:
            told = json.loads(json.dumps(dict(self.made_by), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"made_by is no JSON ({error}). Give numbers, texts and lists.") from None
        object.__setattr__(self, "direction", SteeringDirection(self.direction))
        object.__setattr__(self, "steps", tuple(sorted(self.steps, key=lambda step: step.feature)))
        object.__setattr__(self, "made_by", told)

    @cached_property
    def edits(self) -> tuple[Edit, ...]:
        """The plan as edits of hidden states, one a site in order of computation.

        To activate, one `Add` a site. To suppress, one `Rescale` a site: its `r` is one number where all
        features of the site share it, else one a feature. The features of a site are rescaled together, with
        activations read before any of them is changed.
        """
        found: list[Edit] = []
        for site in self.sites:
            here = [step for step in self.steps if step.feature.site == site]
            if self.direction is SteeringDirection.ACTIVATE:
                found.append(Add({step.feature: step.value for step in here}, self.tokens))
                continue
            factors = tuple(step.value for step in here)
            r = factors[0] if len(set(factors)) == 1 else factors
            found.append(Rescale(tuple(step.feature for step in here), r, self.tokens))
        return tuple(found)

    def __iter__(self) -> Iterator[Edit]:
        """The edits, so that `model.intervening(plan, dictionaries)` takes a plan as it is."""
        return iter(self.edits)

    @property
    def features(self) -> tuple[FeatureId, ...]:
        """The features changed, sorted."""
        return tuple(step.feature for step in self.steps)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites changed, in order of computation."""
        return tuple(sorted({step.feature.site for step in self.steps}))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers changed, ascending."""
        return tuple(sorted({step.feature.layer for step in self.steps}))

    @property
    def span(self) -> tuple[int, int] | None:
        """The first and last layer changed; None for an empty plan."""
        layers = self.layers
        return (layers[0], layers[-1]) if layers else None

    def without(self, features: Iterable[FeatureId], why: str) -> SteeringPlan:
        """The plan with the steps of `features` moved to what was dropped, for the reason `why`.

        Raises:
            InvalidArgument: when one of them has no step.
        """
        out = set(features)
        if strange := sorted(out - set(self.features)):
            raise InvalidArgument(
                f"{', '.join(map(str, strange))} cannot be dropped: the plan does not hold them. It holds "
                f"{', '.join(map(str, self.features)) or 'no feature'}."
            )
        steps = tuple(step for step in self.steps if step.feature not in out)
        dropped = (*self.dropped, *(Dropped(feature, why) for feature in sorted(out)))
        return replace(self, steps=steps, dropped=dropped)

    def only(self, features: Collection[FeatureId]) -> SteeringPlan:
        """The plan with the steps of these features alone; features without a step are passed over."""
        kept = set(features)
        return replace(self, steps=tuple(step for step in self.steps if step.feature in kept))

    def at_layers(self, layers: Collection[int]) -> SteeringPlan:
        """The plan with the steps at these layers alone, with the values they have."""
        return replace(self, steps=tuple(step for step in self.steps if step.feature.layer in layers))

    def scaled(self, c: float) -> SteeringPlan:
        """The plan with every change multiplied by `c`: 0 changes nothing, 1 gives the plan itself.

        To activate, s -> c s. To suppress, r -> 1 + c (r - 1), so that (r - 1) a V is multiplied by c.

        Raises:
            InvalidArgument: when `c` or a value that results is not finite.
        """
        if not math.isfinite(c):
            raise InvalidArgument(f"a plan cannot be scaled by {c}. Give a number.")
        suppressing = self.direction is SteeringDirection.SUPPRESS
        # c r + (1 - c) is exact at c = 0 and at c = 1, which 1 + c (r - 1) is not
        steps = tuple(
            replace(step, value=c * step.value + (1 - c) if suppressing else c * step.value) for step in self.steps
        )
        return replace(self, steps=steps)

    def to_json(self) -> str:
        """The plan as text that `from_json` reads back, and a person edits: a step a line."""
        from saeflow.steering.plan_file import write

        return write(self)

    @staticmethod
    def from_json(text: str) -> SteeringPlan:
        """Read what `to_json` wrote, or a person.

        Only format, version, direction and steps must be there.

        Raises:
            BadFile: when the text is no plan; the message names the step and the field, and what to write.
        """
        from saeflow.steering.plan_file import read

        return read(text)

    def save(self, path: Path) -> None:
        """Write the plan to a file, whole or not at all.

        Raises:
            OSError: when the folder cannot be written.
        """
        write_atomic(path, self.to_json().encode())


def load_plan(path: Path | str) -> SteeringPlan:
    """The plan in a file.

    Raises:
        BadFile: when the file cannot be read or is no plan; the message names the file, the step and the field.
    """
    try:
        text = read_text(Path(path).expanduser())
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) else error
        told = "it is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else told
        raise BadFile(
            f"{path}: no plan can be read here ({told}). Write one with `saeflow plan --out {path}`."
        ) from None
    try:
        return SteeringPlan.from_json(text)
    except BadFile as error:
        raise BadFile(f"{path}: {error}") from None
