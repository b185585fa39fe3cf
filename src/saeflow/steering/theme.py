"""Themes: what text is steered towards or away from, as data (section 5.3, appendix B). No torch.

A theme is one TOML file, `themes/{release}/{name}.toml`, or a file of the user's own with the same keys:

    subject = "physics: forces, motion and energy"     # a phrase; what the judge is asked about
    release = "demo"                                   # the dictionaries its features belong to
    starts = ["3/res/541", "2/res/412"]                # features that flow graphs are grown from
    subjects = []                                      # all subjects of a rubric with several, this one first
    note = "where the features come from"
    examples = ["The force on a body ..."]             # texts about the subject
    keywords = ["force", "velocity"]                   # words typical of it, to count in generated texts

    [activate]                                         # and [suppress]; either may be missing
    prompt = "I think"                                 # what a text begins with
    asked = "Here is a page about physics. I think"    # the prompt that asks for it: the baseline of prompting
    max_new_tokens = 36

`saeflow find` finds starts by words or by example texts; `examples` also train the offline judge. `saeflow themes find`
finds whole themes. Those of the demo pack are in themes/demo/found: "found" names all of them, "found/NAME" one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from saeflow.errors import BadFile, InvalidArgument, InvalidId, UnknownRelease, nearest
from saeflow.ids import FeatureId
from saeflow.reading import read_toml

_SHIPPED: Final = Path(__file__).parent / "themes"
LENGTHS: Final = {"activate": 36, "suppress": 96}
"""Default length of a generation in each `SteeringDirection`, in tokens (B.2, B.1)."""

_KEYS: Final = ("name", "subject", "release", "starts", "examples", "keywords", "note", "subjects", *LENGTHS)
_TASK_KEYS: Final = ("prompt", "asked", "max_new_tokens")


@dataclass(frozen=True, slots=True)
class Task:
    """What is generated for one direction of a theme.

    Attributes:
        prompt: what every text begins with.
        asked: the prompt that asks the model to write about the topic, or to avoid it: the prompting baseline.
            Empty for no such baseline.
        max_new_tokens: length of a generation, in tokens.
    """

    prompt: str
    asked: str
    max_new_tokens: int

    def __post_init__(self) -> None:
        """Refuse an empty prompt and an empty generation."""
        if not self.prompt.strip():
            raise InvalidArgument("the prompt of a task is empty. Give the words a text begins with.")
        if self.max_new_tokens < 1:
            raise InvalidArgument(f"max_new_tokens = {self.max_new_tokens} asks for no text. Give 1 or more.")


@dataclass(frozen=True, slots=True)
class Theme:
    """A subject, the features it starts from, and how it is tested.

    Attributes:
        name: its name; by default the stem of its file.
        subject: a phrase that a judge is asked about.
        release: the release its features belong to; empty if the file does not say.
        starts: the features flow graphs are grown from, each once, in the order of the file.
        examples: texts about the subject, for `find_by_texts` and the offline judge.
        activate: the task that steers towards the theme, or None.
        suppress: the task that steers away from it, or None.
        note: where the features come from and what is known about them.
        subjects: for a rubric that rates several subjects in one answer (B.1), all of them, this theme's first.
        keywords: lower-case words that texts about the subject use, to count in generated texts as a second measure.
    """

    name: str
    subject: str
    release: str
    starts: tuple[FeatureId, ...]
    examples: tuple[str, ...] = ()
    activate: Task | None = None
    suppress: Task | None = None
    note: str = ""
    subjects: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a theme without a subject, and starts named twice."""
        if not self.subject.strip():
            raise InvalidArgument(f"the theme {self.name!r} has no subject. Give a phrase a judge understands.")
        twice = sorted({str(start) for start in self.starts if self.starts.count(start) > 1})
        if twice:
            raise InvalidArgument(f"starts names {', '.join(twice)} more than once. Name each feature once.")
        if self.subjects and self.subject not in self.subjects[0]:
            raise InvalidArgument(
                f"the first of subjects is {self.subjects[0]!r}, which does not name the theme's own subject "
                f"{self.subject!r}. Put it first."
            )
        if strange := [word for word in self.keywords if not word.isalpha() or word != word.casefold()]:
            raise InvalidArgument(f"keywords holds {strange[0]!r}. Give single words in small letters.")

    def task(self, direction: str) -> Task:
        """The task of a direction: "activate", "suppress" or a `SteeringDirection`.

        Raises:
            InvalidArgument: for another word, or when the theme has no such task.
        """
        if direction not in LENGTHS:
            raise InvalidArgument(f"{direction!r} is no direction. Give activate or suppress.")
        found = self.activate if direction == "activate" else self.suppress
        if found is None:
            other = "suppress" if direction == "activate" else "activate"
            raise InvalidArgument(
                f"the theme {self.name!r} has no task to {direction} it. Add a table [{direction}] with a prompt "
                f"to its file, or {other} it."
            )
        return found

    def to_toml(self) -> str:
        """The text of a file that `load_theme` reads; it omits the name, which is the stem of the file."""

        def told(value: object) -> str:
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

        def listed(values: Sequence[str]) -> str:
            return "[\n" + "".join(f"  {told(value)},\n" for value in values) + "]"

        lines = [f"subject = {told(self.subject)}", f"release = {told(self.release)}"]
        lines += [f"starts = {told(list(map(str, self.starts)))}"]
        lines += [f"keywords = {told(list(self.keywords))}"] if self.keywords else []
        lines += [f"subjects = {listed(self.subjects)}"] if self.subjects else []
        lines += [f"note = {told(self.note)}"] if self.note else []
        lines += [f"examples = {listed(self.examples)}"]
        for key, task in (("activate", self.activate), ("suppress", self.suppress)):
            if task:
                lines += ["", f"[{key}]", f"prompt = {told(task.prompt)}"]
                lines += [f"asked = {told(task.asked)}"] if task.asked else []
                lines += [f"max_new_tokens = {task.max_new_tokens}"]
        return "\n".join(lines) + "\n"


def themes(release: str = "", group: str = "") -> tuple[Theme, ...]:
    """The themes that come with saeflow, sorted by release and name.

    Args:
        release: only the themes of this release; of all by default.
        group: "found" for the themes that `saeflow themes find` found; by default those written by hand.

    Raises:
        UnknownRelease: when no theme of that release is shipped; the message lists the releases.
        BadFile: when a shipped file is damaged.
    """
    shelf = _shelf()
    if release and release not in shelf:
        raise UnknownRelease(
            f"no themes of {release!r} come with saeflow.{nearest(release, shelf)} There are themes of "
            f"{', '.join(shelf)}. A theme of your own is a .toml file: give its path."
        )
    wanted = [release] if release else list(shelf)
    files = [(name, path) for folder in wanted for name, path in shelf[folder].items()]
    return tuple(_read(path) for name, path in files if name.rpartition("/")[0] == group)


def load_theme(name_or_path: str, release: str = "") -> Theme:
    """Load a theme that comes with saeflow, by its name, or one of the user's own, by the path of its file.

    Args:
        name_or_path: "physics", or the path of a .toml file that exists. A shipped name is looked up in the list
            of shipped names and never becomes part of a path.
        release: the release the name belongs to; without it, only one release may have a theme of that name.

    Raises:
        UnknownRelease: when `release` has no shipped themes and `name_or_path` is no file.
        InvalidArgument: when it is neither a name nor a file, or a name of several releases.
        BadFile: when the file does not hold a theme; the message names the file and the key.
    """
    shelf = _shelf()
    holders = [folder for folder in shelf if name_or_path in shelf[folder]]
    if release in holders:
        return _read(shelf[release][name_or_path])
    if not release and len(holders) == 1:
        return _read(shelf[holders[0]][name_or_path])
    if not release and holders:
        raise InvalidArgument(
            f"the theme {name_or_path!r} belongs to {' and to '.join(holders)}. Name the release too."
        )
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return _read(path)
    if release and release not in shelf:
        themes(release)  # raises, and lists the releases
    asked = [release] if release else list(shelf)
    near = [theme for name in asked for theme in shelf[name]]
    known = "; ".join(f"{name}: {', '.join(_listed(shelf[name]))}" for name in asked)
    raise InvalidArgument(
        f"{name_or_path!r} is neither a theme nor a file that exists.{nearest(name_or_path, near)} Themes of {known}. "
        "A theme of your own is a .toml file: give its path."
    )


def _listed(names: Iterable[str]) -> Iterator[str]:
    """Names for a message: the first of each group, and how many more it has."""
    for group, members in groupby(names, key=lambda name: name.rpartition("/")[0]):
        alike = list(members)
        yield from [f"{alike[0]} and {len(alike) - 1} more"] if group and len(alike) > 1 else alike


def _shelf() -> dict[str, dict[str, Path]]:
    """The shipped themes: release -> name of a theme -> its file, sorted at both levels."""
    folders = sorted(path for path in _SHIPPED.iterdir() if path.is_dir())
    found: dict[str, dict[str, Path]] = {}
    for folder in folders:
        paths = [*sorted(folder.glob("*.toml")), *sorted(folder.glob("*/*.toml"))]
        found[folder.name] = {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
    return {release: files for release, files in found.items() if files}


def _read(path: Path) -> Theme:
    """Read a theme from a file, which is parsed again only if it has changed."""
    try:
        return _read_unchanged(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise BadFile(f"{path} cannot be read ({error.strerror}). Give a theme's .toml file.") from None


@lru_cache(maxsize=256)
def _read_unchanged(path: Path, changed: int) -> Theme:  # noqa: ARG001 - part of the cache's key
    """Parse a theme; every error names the file and the key."""

    def bad(key: str, what: str, do: str) -> BadFile:
        return BadFile(f"{path}: {key} {what}. {do}.")

    def known(table: Mapping[str, Any], keys: Sequence[str], where: str = "") -> None:
        if unknown := sorted(set(table) - set(keys)):
            raise bad(f"{where}{unknown[0]}", "is no key of a theme", f"Keys are {', '.join(sorted(keys))}")

    def text(table: Mapping[str, Any], key: str, where: str = "") -> str:
        if not isinstance(found := table.get(key, ""), str):
            raise bad(f"{where}{key}", f"is {found!r}", "Give a string")
        return found

    def texts(key: str) -> tuple[str, ...]:
        if not isinstance(found := data.get(key, []), list):
            raise bad(key, f"is {found!r}", "Give a list of strings")
        for number, one in enumerate(found, 1):
            if not isinstance(one, str) or not one.strip():
                raise bad(key, f"holds {one!r} as number {number}", "Give strings that are not empty")
        return tuple(one.strip("\n") for one in found)

    def task(key: str) -> Task:
        if not isinstance(table := data[key], dict):
            raise bad(key, f"is {table!r}", "Make it a table with prompt, asked and max_new_tokens")
        known(table, _TASK_KEYS, f"{key}.")
        length = table.get("max_new_tokens", LENGTHS[key])
        if not isinstance(length, int) or isinstance(length, bool):
            raise bad(f"{key}.max_new_tokens", f"is {length!r}", "Give a whole number")
        return Task(text(table, "prompt", f"{key}."), text(table, "asked", f"{key}."), length)

    try:
        data = read_toml(path)
    except ValueError as error:
        raise BadFile(f"{path} is no TOML file ({error}). Correct it.") from None
    known(data, _KEYS)
    about: dict[str, Any] = {key: text(data, key) for key in ("name", "subject", "release", "note")}
    if not about["subject"]:
        raise bad("subject", "is missing or empty", "Give a phrase a judge understands")
    about |= {"name": about["name"] or path.stem, "note": about["note"].strip()}
    key = "starts"
    try:
        made = Theme(**about, starts=tuple(map(FeatureId.parse, texts(key))))
        made = replace(made, examples=texts("examples"))
        for key in LENGTHS:
            made = replace(made, **{key: task(key) if key in data else None})
        key = "subjects"
        made = replace(made, subjects=texts(key))
        key = "keywords"
        return replace(made, keywords=texts(key))
    except (InvalidArgument, InvalidId) as error:
        raise BadFile(f"{path}: {key}: {error}") from None
