"""The file of a plan: JSON with a step a line, written to be read and edited by a person. No torch.

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

A plan that suppresses has "r" in the place of "strength". Lines may be struck out, added and changed: only format,
version, direction and steps must be there, and of a step its feature and its value. `tokens` is "all", or
{"start": 4, "stop": 9}, or {"at": [0, 3]}. What is not understood is refused, so that a slip of the pen does not
steer in silence.
"""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, TypeGuard

from saeflow.errors import BadFile, InvalidArgument, InvalidId
from saeflow.ids import FeatureId
from saeflow.interventions import EVERYWHERE, Positions, Span, Where
from saeflow.reading import parse_json
from saeflow.steering.plan import Dropped, SteeringDirection, SteeringPlan, Step

FORMAT: Final = "saeflow-plan"
VERSION: Final = 1

_VALUE: Final = {SteeringDirection.ACTIVATE: "strength", SteeringDirection.SUPPRESS: "r"}
_TEXTS: Final = ("release", "model", "theme")
_KEYS: Final = ("format", "version", "direction", *_TEXTS, "tokens", "steps", "dropped", "made_by")


def write(plan: SteeringPlan) -> str:
    """The plan as text, a step a line."""
    name = _VALUE[plan.direction]
    steps = [_step_out(step, name) for step in plan.steps]
    dropped = [{"feature": str(gone.feature), "why": gone.why} for gone in plan.dropped]
    pieces = {
        "format": _line(FORMAT),
        "version": _line(VERSION),
        "direction": _line(plan.direction.value),
        **{key: _line(getattr(plan, key)) for key in _TEXTS},
        "tokens": _line(_tokens_out(plan.tokens)),
        "steps": _lines(steps),
        "dropped": _lines(dropped),
        "made_by": _line(plan.made_by),
    }
    return "{\n" + ",\n".join(f' "{key}": {text}' for key, text in pieces.items()) + "\n}\n"


def read(text: str) -> SteeringPlan:
    """Read what `write` wrote, or a person.

    Raises:
        BadFile: when the text is no plan; the message names the step and the field, and what to write.
    """
    data = _parse(text)
    if data.get("format") != FORMAT or data.get("version") != VERSION:
        raise BadFile(
            f"this is {data.get('format')!r} version {data.get('version')!r}, not {FORMAT!r} version {VERSION}. "
            f'Write "format": "{FORMAT}" and "version": {VERSION}, or make the plan again with `saeflow plan`.'
        )
    _no_others(data, _KEYS, "the plan")
    direction = _direction(data.get("direction"))
    steps = [
        _step(told, direction, _Place("step", number))
        for number, told in enumerate(_list(data, "steps", needed=True), 1)
    ]
    _each_once(steps)
    dropped = [_dropped(told, _Place("dropped", number)) for number, told in enumerate(_list(data, "dropped"), 1)]
    texts = {key: _text(data, key, _Place()) for key in _TEXTS}
    tokens = _tokens(data.get("tokens", "all"))
    made_by = data.get("made_by", {})
    if not _is_object(made_by):
        raise BadFile(f'"made_by" is {_shown(made_by)}. Write an object {{...}}, or leave it out.')
    try:
        return SteeringPlan(direction, tuple(steps), **texts, dropped=tuple(dropped), made_by=made_by, tokens=tokens)
    except InvalidArgument as error:
        raise BadFile(str(error)) from None


class _Place:
    """Which part of the file is being read, for messages: `step 3 (2/res/114)`."""

    def __init__(self, what: str = "", number: int = 0) -> None:
        self.name = f"{what} {number}" if what else "the plan"

    def about(self, feature: object) -> None:
        self.name = f"{self.name} ({feature})"


def _parse(text: str) -> Mapping[str, Any]:
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
    except ValueError as error:
        if isinstance(error, BadFile):
            raise
        raise BadFile(f"this JSON cannot be read ({error}). Write the plan with `saeflow plan`.") from None
    if not _is_object(data):
        raise BadFile(f"this is {_shown(data)}, not a plan. Write the plan with `saeflow plan`.")
    return data


def _direction(told: object) -> SteeringDirection:
    if told not in list(SteeringDirection):
        raise BadFile(f'"direction" is {_shown(told)}. Write "activate" or "suppress".')
    return SteeringDirection(str(told))


def _step(told: object, direction: SteeringDirection, where: _Place) -> Step:
    name, other = _VALUE[direction], _VALUE[_other(direction)]
    shape = f'{{"feature": "2/res/114", "{name}": {6.2 if direction is SteeringDirection.ACTIVATE else 0.0}}}'
    row = _row(told, where, shape)
    feature = _feature(row, where, shape)
    if other in row:
        raise BadFile(
            f'{where.name}: a plan with "direction": "{direction.value}" has "{name}" in each step, not "{other}". '
            f'Write "{name}".'
        )
    _no_others(row, ("feature", name, "label", "why"), where.name)
    if name not in row:
        raise BadFile(f'{where.name}: there is no "{name}". Write it as {shape}.')
    value = _number(row[name], name, where)
    return Step(feature, value, _text(row, "label", where), _text(row, "why", where))


def _dropped(told: object, where: _Place) -> Dropped:
    shape = '{"feature": "2/res/114", "why": "about sports"}'
    row = _row(told, where, shape)
    feature = _feature(row, where, shape)
    _no_others(row, ("feature", "why"), where.name)
    return Dropped(feature, _text(row, "why", where))


def _row(told: object, where: _Place, shape: str) -> Mapping[str, Any]:
    if not _is_object(told):
        raise BadFile(f"{where.name}: {_shown(told)} is no object. Write it as {shape}.")
    return told


def _feature(row: Mapping[str, Any], where: _Place, shape: str) -> FeatureId:
    if "feature" not in row:
        raise BadFile(f'{where.name}: there is no "feature". Write it as {shape}.')
    try:
        feature = FeatureId.parse(row["feature"] if isinstance(row["feature"], str) else _shown(row["feature"]))
    except InvalidId as error:
        raise BadFile(f'{where.name}: "feature": {error}') from None
    where.about(feature)
    return feature


def _each_once(steps: Sequence[Step]) -> None:
    first: dict[FeatureId, int] = {}
    for number, step in enumerate(steps, 1):
        if step.feature in first:
            raise BadFile(
                f"step {number} ({step.feature}): step {first[step.feature]} changes the same feature. Strike one out."
            )
        first[step.feature] = number


def _number(told: object, name: str, where: _Place) -> float:
    try:
        value = math.nan if isinstance(told, bool) or not isinstance(told, int | float) else float(told)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise BadFile(f'{where.name}: "{name}" is {_shown(told)}. Write a finite number, such as "{name}": 0.5.')
    return value


def _text(row: Mapping[str, Any], name: str, where: _Place) -> str:
    told = row.get(name, "")
    if not isinstance(told, str):
        raise BadFile(f'{where.name}: "{name}" is {_shown(told)}. Write a text in quotes, or leave it out.')
    return told


def _tokens(told: object) -> Where:
    shape = '"all", {"start": 4, "stop": 9} or {"at": [0, 3]}'
    if told == "all":
        return EVERYWHERE
    try:
        if _is_object(told) and set(told) == {"at"} and isinstance(told["at"], list):
            at = tuple(told["at"])  # pyright: ignore[reportUnknownVariableType]
            if all(_is_count(position) for position in at):
                return Positions(at)
        if _is_object(told) and told and set(told) <= {"start", "stop"}:
            start, stop = told.get("start", 0), told.get("stop")
            if _is_count(start) and (stop is None or _is_count(stop)):
                return Span(start, stop)
    except InvalidArgument as error:
        raise BadFile(f'"tokens": {error}') from None
    raise BadFile(f'"tokens" is {_shown(told)}. Write {shape}.')


def _tokens_out(tokens: Where) -> str | dict[str, Any]:
    if tokens == EVERYWHERE:
        return "all"
    if isinstance(tokens, Positions):
        return {"at": list(tokens.at)}
    return {"start": tokens.start, "stop": tokens.stop}


def _step_out(step: Step, name: str) -> dict[str, Any]:
    return {"feature": str(step.feature), name: step.value, "label": step.label, "why": step.why}


def _line(told: object) -> str:
    return json.dumps(told, ensure_ascii=False)


def _lines(rows: Sequence[object]) -> str:
    return "[\n" + ",\n".join(f"  {_line(row)}" for row in rows) + "\n ]" if rows else "[]"


def _list(data: Mapping[str, Any], key: str, *, needed: bool = False) -> list[Any]:
    if key not in data and not needed:
        return []
    found = data.get(key)
    if not isinstance(found, list):
        told = _shown(found) if key in data else "missing"
        raise BadFile(f'"{key}" is {told}. Write a list: "{key}": [ ... ].')
    return found  # pyright: ignore[reportUnknownVariableType] - of anything, and each is looked at


def _no_others(row: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in row:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            meant = f'Did you mean "{near[0]}"? ' if near else ""
            raise BadFile(f'{where}: "{key}" is no key here. {meant}Keys are {", ".join(known)}.')


def _other(direction: SteeringDirection) -> SteeringDirection:
    return SteeringDirection.SUPPRESS if direction is SteeringDirection.ACTIVATE else SteeringDirection.ACTIVATE


def _is_object(told: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(told, dict)


def _is_count(told: object) -> TypeGuard[int]:
    return isinstance(told, int) and not isinstance(told, bool)


def _shown(told: object) -> str:
    text = json.dumps(told, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."
