"""SteeringPlan: which features to change, and by how much; data in a file that a person reads and edits. No torch.

A plan connects a flow graph to a model. `build` makes a plan, `sizes` weakens it, a person can edit its file, and
`LanguageModel.intervening(plan, dictionaries)` applies it:

    activate   h + s V            s is the length of what is added along the unit row V (appendix B.2)
    suppress   h + (r - 1) a V    r multiplies what the feature contributes to the hidden state (section 4.2)

Each feature has its own s or r. They already include the schedule and folding, so every number is exactly what is
applied and can be changed by hand. The file is JSON with one step per line:

    {
     "format": "saeflow-plan",
     "version": 1,
     "direction": "activate",
     "release": "demo",
     "model": "demo",
     "theme": "physics",
     "tokens": "all",
     "steps": [
      {"feature": "2/res/114", "strength": 6.2, "label": "force", "why": "start"},
      {"feature": "3/res/541", "strength": 5.9, "label": "body", "why": "path 0.83 from 2/res/114"}
     ],
     "dropped": [
      {"feature": "4/res/7", "why": "about sports"}
     ],
     "made_by": {"schedule": {"kind": "constant", "s": 3.0}}
    }

A plan to suppress has "r" in place of "strength". A plan to activate may add vectors that belong to no feature:
"vectors": [{"site": "3/res", "vector": [0.1, ...]}]. Lines may be deleted, added and changed: only format, version,
direction and steps are required, and the feature and value of each step. `tokens` is "all", {"start": 4, "stop": 9}
or {"at": [0, 3]}. To activate, "only_active": true adds each feature only at tokens where it is active, and
"keep_norm": true preserves the norms of hidden states. Unknown keys and bad values raise an error, so that a typo never
changes the steering silently.
"""

from __future__ import annotations

import difflib
import enum
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from saeflow.errors import BadFile, InvalidArgument, InvalidId
from saeflow.files import write_atomic
from saeflow.ids import FeatureId, Site
from saeflow.interventions import EVERYWHERE, Add, AddVector, Edit, Positions, Rescale, Span, Where
from saeflow.plain_types import as_html
from saeflow.reading import parse_json, read_text

if TYPE_CHECKING:
    import pandas as pd

FORMAT: Final = "saeflow-plan"
VERSION: Final = 1


class SteeringDirection(enum.StrEnum):
    """Whether a plan steers towards its theme or away from it."""

    ACTIVATE = "activate"
    SUPPRESS = "suppress"


@dataclass(frozen=True, slots=True)
class Step:
    """One feature of a plan.

    Attributes:
        feature: the feature to change.
        value: to activate, the length of what is added along the feature's unit row in the stream, in the units of
            the hidden state, negative to subtract; to suppress, the factor r of h + (r - 1) a V: 0 removes the
            feature, 1 leaves it unchanged, below 0 reverses it.
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
        """Refuse a value that is not finite."""
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
        release: the dictionaries the features belong to, as `load_dictionaries` takes it; empty if unknown.
        model: the model they were trained on; empty if unknown.
        theme: the name of the theme; empty for none.
        dropped: features that were found and left out.
        made_by: how the plan was made, in JSON values (tuples become lists); for the record only.
        tokens: which token positions are changed, in the prompt and in decoded text.
        vectors: vectors added besides the features, such as a difference of means; only to activate.
        only_active: whether each feature is added only at tokens where it is active; only to activate.
        keep_norm: whether changed hidden states are scaled back to their original norms; only to activate.

    Raises:
        InvalidArgument: when a feature has two steps, `made_by` is not JSON, a plan to suppress has settings that are
            only for activation, or `only_active` is set on a plan with vectors.
    """

    direction: SteeringDirection
    steps: tuple[Step, ...]
    release: str = ""
    model: str = ""
    theme: str = ""
    dropped: tuple[Dropped, ...] = ()
    made_by: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    tokens: Where = EVERYWHERE
    vectors: tuple[AddVector, ...] = ()
    only_active: bool = False
    keep_norm: bool = False

    def __post_init__(self) -> None:
        """Validate the plan, sort its steps, and copy `made_by` as JSON values."""
        seen: set[FeatureId] = set()
        for step in self.steps:
            if step.feature in seen:
                raise InvalidArgument(f"a plan has two steps for {step.feature}. Give each feature one.")
            seen.add(step.feature)
        try:
            made_by = json.loads(json.dumps(dict(self.made_by), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"made_by is no JSON ({error}). Give numbers, texts and lists.") from None
        object.__setattr__(self, "direction", SteeringDirection(self.direction))
        if self.vectors and self.direction is SteeringDirection.SUPPRESS:
            raise InvalidArgument(
                "a plan that suppresses rescales features, and has no vectors to add. Leave them out."
            )
        if (self.only_active or self.keep_norm) and self.direction is SteeringDirection.SUPPRESS:
            raise InvalidArgument(
                "only_active and keep_norm are of plans that add: a suppression acts where features are active "
                "anyway. Leave them out."
            )
        if self.only_active and self.vectors:
            raise InvalidArgument(
                "only_active is of features: a vector is never active. Leave the vectors out, or only_active."
            )
        object.__setattr__(self, "steps", tuple(sorted(self.steps, key=lambda step: step.feature)))
        object.__setattr__(self, "made_by", made_by)

    @cached_property
    def edits(self) -> tuple[Edit, ...]:
        """The plan as edits of hidden states, in order of computation.

        To activate, one `Add` per site with features, and one `AddVector` per vector. To suppress, one `Rescale` per
        site: its `r` is one number if all features of the site share it, else one per feature. The features of a site
        are rescaled together, with activations read before any of them is changed.
        """
        found: list[Edit] = []
        for site in sorted({step.feature.site for step in self.steps}):
            here = [step for step in self.steps if step.feature.site == site]
            if self.direction is SteeringDirection.ACTIVATE:
                strengths = {step.feature: step.value for step in here}
                found.append(Add(strengths, self.tokens, self.only_active, self.keep_norm))
                continue
            factors = tuple(step.value for step in here)
            r = factors[0] if len(set(factors)) == 1 else factors
            found.append(Rescale(tuple(step.feature for step in here), r, self.tokens))
        found += [replace(one, tokens=self.tokens, keep_norm=self.keep_norm) for one in self.vectors]
        return tuple(sorted(found, key=lambda edit: edit.site))

    def __iter__(self) -> Iterator[Edit]:
        """Iterate over the edits, so that `model.intervening(plan, dictionaries)` accepts a plan."""
        return iter(self.edits)

    @property
    def features(self) -> tuple[FeatureId, ...]:
        """The features changed, sorted."""
        return tuple(step.feature for step in self.steps)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites changed, in order of computation."""
        return tuple(sorted({*(step.feature.site for step in self.steps), *(one.site for one in self.vectors)}))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers changed, ascending."""
        return tuple(sorted({site.layer for site in self.sites}))

    @property
    def span(self) -> tuple[int, int] | None:
        """The first and last layer changed; None for an empty plan."""
        return (self.layers[0], self.layers[-1]) if self.layers else None

    def scaled(self, c: float) -> SteeringPlan:
        """The plan with every change multiplied by `c`: 0 gives a plan without effect, 1 the plan itself.

        To activate, s -> c s. To suppress, r -> 1 + c (r - 1), so that (r - 1) a V is multiplied by c.

        Raises:
            InvalidArgument: when `c` or a resulting value is not finite.
        """
        if not math.isfinite(c):
            raise InvalidArgument(f"a plan cannot be scaled by {c}. Give a number.")
        # c r + (1 - c) is exact at c = 0 and at c = 1, which 1 + c (r - 1) is not
        rest = 1 - c if self.direction is SteeringDirection.SUPPRESS else 0.0
        vectors = tuple(replace(one, vector=tuple(c * x for x in one.vector)) for one in self.vectors)
        steps = tuple(replace(step, value=c * step.value + rest) for step in self.steps)
        return replace(self, steps=steps, vectors=vectors)

    def to_json(self) -> str:
        """The plan as text that `from_json` reads and a person can edit: one step per line."""

        def line(value: object) -> str:
            return json.dumps(value, ensure_ascii=False)

        def lines(rows: list[dict[str, Any]]) -> str:
            return "[\n" + ",\n".join(f"  {line(row)}" for row in rows) + "\n ]" if rows else "[]"

        tokens: str | dict[str, Any] = "all"
        if self.tokens != EVERYWHERE:
            at = self.tokens
            tokens = {"at": list(at.at)} if isinstance(at, Positions) else {"start": at.start, "stop": at.stop}
        name = _VALUE[self.direction]
        steps = [{"feature": str(s.feature), name: s.value, "label": s.label, "why": s.why} for s in self.steps]
        vectors = [{"site": str(one.site), "vector": list(one.vector)} for one in self.vectors]
        pieces = {
            "format": line(FORMAT),
            "version": line(VERSION),
            "direction": line(self.direction.value),
            **{key: line(getattr(self, key)) for key in _TEXTS},
            "tokens": line(tokens),
            **{key: line(True) for key in _FLAGS if getattr(self, key)},
            "steps": lines(steps),
            **({"vectors": lines(vectors)} if vectors else {}),
            "dropped": lines([{"feature": str(gone.feature), "why": gone.why} for gone in self.dropped]),
            "made_by": line(self.made_by),
        }
        return "{\n" + ",\n".join(f' "{key}": {text}' for key, text in pieces.items()) + "\n}\n"

    @staticmethod
    def from_json(text: str) -> SteeringPlan:
        """Read a plan that `to_json` or a person wrote.

        Only format, version, direction and steps are required.

        Raises:
            BadFile: when the text is not a plan; the message names the step and the field, and what to write.
        """
        data = _parsed(text)
        if data.get("format") != FORMAT or data.get("version") != VERSION:
            raise BadFile(
                f"this is {data.get('format')!r} version {data.get('version')!r}, not {FORMAT!r} version {VERSION}. "
                f'Write "format": "{FORMAT}" and "version": {VERSION}, or make the plan again with `saeflow plan`.'
            )
        _no_others(data, _KEYS, "the plan")
        if data.get("direction") not in list(SteeringDirection):
            raise BadFile(f'"direction" is {_shown(data.get("direction"))}. Write "activate" or "suppress".')
        direction = SteeringDirection(data["direction"])
        steps: dict[FeatureId, Step] = {}
        numbers: dict[FeatureId, int] = {}
        for number, row in enumerate(_listed(data, "steps", needed=True), 1):
            step = _step(row, direction, f"step {number}")
            first = numbers.setdefault(step.feature, number)
            if first != number:
                raise BadFile(f"step {number} ({step.feature}): step {first} changes the same feature. Strike one out.")
            steps[step.feature] = step
        dropped: list[Dropped] = []
        for number, row in enumerate(_listed(data, "dropped"), 1):
            feature, where = _feature(row, f"dropped {number}", '{"feature": "2/res/114", "why": "about sports"}')
            _no_others(row, ("feature", "why"), where)
            dropped.append(Dropped(feature, _text(row, "why", where)))
        vectors = [_vector(row, f"vector {number}") for number, row in enumerate(_listed(data, "vectors"), 1)]
        texts = {key: _text(data, key, "the plan") for key in _TEXTS}
        tokens = _tokens(data.get("tokens", "all"))
        only_active, keep_norm = (_flag(data, key) for key in _FLAGS)
        made_by = data.get("made_by", {})
        if not isinstance(made_by, dict):
            raise BadFile(f'"made_by" is {_shown(made_by)}. Write an object {{...}}, or leave it out.')
        try:
            known = cast("dict[str, Any]", made_by)
            return SteeringPlan(
                direction,
                tuple(steps.values()),
                **texts,
                dropped=tuple(dropped),
                made_by=known,
                tokens=tokens,
                vectors=tuple(vectors),
                only_active=only_active,
                keep_norm=keep_norm,
            )
        except InvalidArgument as error:
            raise BadFile(str(error)) from None

    _repr_html_ = as_html

    def to_pandas(self) -> pd.DataFrame:
        """One row per step: feature, value (strength or r), label and why."""
        import pandas as pd

        rows = [(str(step.feature), step.value, step.label, step.why) for step in self.steps]
        return pd.DataFrame(rows, columns=["feature", "value", "label", "why"])

    def save(self, path: Path | str) -> None:
        """Write the plan to a file atomically.

        Raises:
            OSError: when the folder cannot be written.
        """
        write_atomic(Path(path), self.to_json().encode())


def load_plan(path: Path | str) -> SteeringPlan:
    """Load the plan in a file.

    Raises:
        BadFile: when the file cannot be read or is not a plan; the message names the file, the step and the field.
    """
    try:
        text = read_text(Path(path).expanduser())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        reason = "it is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else reason
        raise BadFile(
            f"{path}: no plan can be read here ({reason}). Write one with `saeflow plan --out {path}`."
        ) from None
    try:
        return SteeringPlan.from_json(text)
    except BadFile as error:
        raise BadFile(f"{path}: {error}") from None


# --- reading the file: every error names the step and the field, and says what to write ------------------------------

_VALUE: Final = {SteeringDirection.ACTIVATE: "strength", SteeringDirection.SUPPRESS: "r"}
_TEXTS: Final = ("release", "model", "theme")
_FLAGS: Final = ("only_active", "keep_norm")
_KEYS: Final = ("format", "version", "direction", *_TEXTS, "tokens", *_FLAGS, "steps", "vectors", "dropped", "made_by")


def _parsed(text: str) -> Mapping[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            times = Counter(key for key, _ in pairs)
            twice = ", ".join(sorted(f'"{key}"' for key, n in times.items() if n > 1))
            raise BadFile(f"{twice} stands more than once in {_shown(found)}. Write each key once.")
        return found

    try:
        data = parse_json(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise BadFile(
            f"this is no JSON: {error.msg} in line {error.lineno}, column {error.colno}. Steps stand between [ and ], "
            "with a comma after each but the last."
        ) from None
    except BadFile:
        raise
    except ValueError as error:
        raise BadFile(f"this JSON cannot be read ({error}). Write the plan with `saeflow plan`.") from None
    if not isinstance(data, dict):
        raise BadFile(f"this is {_shown(data)}, not a plan. Write the plan with `saeflow plan`.")
    return cast("Mapping[str, Any]", data)


def _feature(row: object, where: str, shape: str) -> tuple[FeatureId, str]:
    """The feature of a step or a dropped entry, and `where` with its name added: `step 3 (2/res/114)`."""
    if not isinstance(row, dict):
        raise BadFile(f"{where}: {_shown(row)} is no object. Write it as {shape}.")
    if "feature" not in row:
        raise BadFile(f'{where}: there is no "feature". Write it as {shape}.')
    name: object = row["feature"]
    try:
        feature = FeatureId.parse(name if isinstance(name, str) else _shown(name))
    except InvalidId as error:
        raise BadFile(f'{where}: "feature": {error}') from None
    return feature, f"{where} ({feature})"


def _step(row: Any, direction: SteeringDirection, where: str) -> Step:
    name, other = _VALUE[direction], next(key for way, key in _VALUE.items() if way is not direction)
    shape = f'{{"feature": "2/res/114", "{name}": {6.2 if direction is SteeringDirection.ACTIVATE else 0.0}}}'
    feature, where = _feature(row, where, shape)
    if other in row:
        raise BadFile(
            f'{where}: a plan with "direction": "{direction.value}" has "{name}" in each step, not "{other}". '
            f'Write "{name}".'
        )
    _no_others(row, ("feature", name, "label", "why"), where)
    if name not in row:
        raise BadFile(f'{where}: there is no "{name}". Write it as {shape}.')
    entry = row[name]
    try:
        value = math.nan if isinstance(entry, bool) or not isinstance(entry, int | float) else float(entry)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise BadFile(f'{where}: "{name}" is {_shown(entry)}. Write a finite number, such as "{name}": 0.5.')
    return Step(feature, value, _text(row, "label", where), _text(row, "why", where))


def _vector(row: Any, where: str) -> AddVector:
    shape = '{"site": "3/res", "vector": [0.1, -0.2]}'
    if not isinstance(row, dict) or set(row) != {"site", "vector"} or not isinstance(row["vector"], list):
        raise BadFile(f"{where}: {_shown(row)} is no vector of a site. Write it as {shape}.")
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in row["vector"]):
        raise BadFile(f"{where}: its vector holds what is no number. Write it as {shape}.")
    try:
        return AddVector(Site.parse(str(row["site"])), tuple(map(float, row["vector"])))
    except (InvalidArgument, InvalidId) as error:
        raise BadFile(f"{where}: {error}") from None


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name, "")
    if not isinstance(value, str):
        raise BadFile(f'{where}: "{name}" is {_shown(value)}. Write a text in quotes, or leave it out.')
    return value


def _flag(row: Mapping[str, Any], name: str) -> bool:
    value = row.get(name, False)
    if not isinstance(value, bool):
        raise BadFile(f'"{name}" is {_shown(value)}. Write true or false, or leave it out.')
    return value


def _tokens(where: Any) -> Where:
    def count(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    if where == "all":
        return EVERYWHERE
    try:
        if (
            isinstance(where, dict)
            and set(where) == {"at"}
            and isinstance(where["at"], list)
            and all(map(count, where["at"]))
        ):
            return Positions(tuple(where["at"]))
        if isinstance(where, dict) and where and set(where) <= {"start", "stop"}:
            start, stop = where.get("start", 0), where.get("stop")
            if count(start) and (stop is None or count(stop)):
                return Span(start, stop)
    except InvalidArgument as error:
        raise BadFile(f'"tokens": {error}') from None
    raise BadFile(f'"tokens" is {_shown(where)}. Write "all", {{"start": 4, "stop": 9}} or {{"at": [0, 3]}}.')


def _listed(data: Mapping[str, Any], key: str, *, needed: bool = False) -> list[Any]:
    found = data.get(key) if needed else data.get(key, [])
    if not isinstance(found, list):
        shown = _shown(found) if key in data else "missing"
        raise BadFile(f'"{key}" is {shown}. Write a list: "{key}": [ ... ].')
    return cast("list[Any]", found)


def _no_others(row: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in row:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            meant = f'Did you mean "{near[0]}"? ' if near else ""
            raise BadFile(f'{where}: "{key}" is no key here. {meant}Keys are {", ".join(known)}.')


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."
