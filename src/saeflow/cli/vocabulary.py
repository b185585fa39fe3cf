"""The names of options: old names, which work for one more release, and ranges of values.

A name has the same meaning in every command: the first clause of its help, up to a colon, semicolon or full stop. What
follows that clause is particular to the command. `docs/reference/options.md` is made from these meanings and old names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

OLD: Final = (
    ("--n", "--n-texts", ("correlate", "labels make", "find")),
    ("--n", "--samples", ("steer",)),
    ("--datasets", "--texts", ("origins", "deactivate", "transition")),
    ("--pearson-datasets", "--pearson-texts", ("origins", "deactivate")),
    ("--tokens", "--tokens-per-text", ("origins", "deactivate")),
    ("--features", "--n-targets", ("deactivate",)),
    ("--loss", "--n-loss-targets", ("deactivate",)),
    ("--loss", "--n-loss-texts", ("transition",)),
    ("--methods", "--steering-methods", ("sweep",)),
    ("--s", "--strengths", ("sweep",)),
    ("--s-end", "--strength-end", ("sweep", "plan", "steer")),
    ("--output-score", "--min-output-score", ("sweep",)),
    ("--batch", "--texts-at-once", ("sweep",)),
    ("--judge-model", "--llm-model", ("sweep", "reproduce")),
    ("--judge-url", "--llm-url", ("sweep", "reproduce")),
    ("--model-name", "--llm-model", ("labels explain",)),
    ("--endpoint", "--llm-url", ("labels explain",)),
    ("--limit", "--n-features", ("labels explain",)),
    ("--words", "--words-folder", ("labels explain",)),
    ("--base-url", "--neuronpedia-url", ("labels show",)),
    ("--source", "--neuronpedia-source", ("labels fetch", "labels show")),
    ("--plan", "--dry-run", ("reproduce",)),
    ("--start", "--init", ("train",)),
    ("--context", "--max-length", ("train",)),
    ("--eval-texts", "--n-eval-texts", ("train",)),
    ("--save", "--out", ("steer",)),
    ("--figure", "--out", ("graph", "agreement", "atlas calibrate")),
)
"""(old name, new name, commands that had the old one)."""

NUMBER_OF_TEXTS: Final = ("origins", "deactivate")
"""The commands in which --texts was a number."""

TURNED: Final[Mapping[tuple[str, str], Sequence[str]]] = MappingProxyType(
    {
        ("plan", "activate"): (),
        ("plan", "suppress"): ("--suppress",),
        ("sweep", "activate"): ("--activate",),
        ("sweep", "suppress"): ("--suppress",),
        ("sweep", "both"): (),
    }
)
"""What replaces --direction in commands that steer, by command and value."""


def modern(command: str, words: Sequence[str], known: Collection[str]) -> tuple[list[str], list[str]]:
    """The words of a command with old option names replaced, and a note for each old name used.

    A singular is also replaced by its plural, or the reverse, if the command has only that form; this adds no note.

    Args:
        command: one word or two.
        words: what follows the command.
        known: the options of the command.
    """
    today: list[str] = []
    said: dict[str, str] = {}
    renamed = {old: new for old, new, commands in OLD if command in commands}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*today, word, *rest], _told(said)
        option, equals, value = word.partition("=")
        follows = value if equals else rest[0] if rest else ""
        if option == "--texts" and command in NUMBER_OF_TEXTS and _is_number(follows):
            said[option] = new = "--n-texts"
            today.append(f"{new}{equals}{value}")
        elif option == "--direction" and (command, follows) in TURNED:
            if not equals:
                rest.pop(0)
            flags = TURNED[command, follows]
            said[f"--direction {follows}"] = " ".join(flags) or "the default"
            today += flags
        elif option in renamed and option not in known:
            said[option] = renamed[option]
            today.append(f"{renamed[option]}{equals}{value}")
        else:
            today.append(f"{_number_of(option, known)}{equals}{value}")
    return today, _told(said)


def _told(said: Mapping[str, str]) -> list[str]:
    return [f"{old} is now {new}" for old, new in said.items()]


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and not Path(text).exists()


def _number_of(option: str, known: Collection[str]) -> str:
    """An option in the form that a command has, singular or plural."""
    if not option.startswith("--") or option in known:
        return option
    other = option.removesuffix("s") if option.endswith("s") else f"{option}s"
    return other if other in known else option


def repeated(words: Sequence[str], left: Sequence[str], lists: Collection[str]) -> list[str] | None:
    """The words with an option repeated before each further value: `--sites res --sites mlp` for `--sites res mlp`.

    None unless the words left over come directly after the first value of an option that takes several.

    Args:
        words: the words of a command.
        left: the words left over, which the command could not place.
        lists: its options that take several values.
    """
    n = len(left)
    for place in range(len(words) - n - 1):
        if words[place] in lists and list(words[place + 2 : place + 2 + n]) == list(left):
            values = [word for value in left for word in (words[place], value)]
            return [*words[: place + 2], *values, *words[place + 2 + n :]]
    return None


_Range = tuple[Callable[[float], bool], str]
_POSITIVE: Final[_Range] = (lambda value: value >= 1, "1 or more")
_NATURAL: Final[_Range] = (lambda value: value >= 0, "0 or more")
_ABOVE: Final[_Range] = (lambda value: value > 0, "a number above 0")
_BETWEEN: Final[_Range] = (lambda value: 0 < value < 1, "a number between 0 and 1")
_SHARE: Final[_Range] = (lambda value: 0 <= value <= 1, "a number from 0 to 1")
_NUCLEUS: Final[_Range] = (lambda value: 0 < value <= 1, "a number above 0, and at most 1")
_SIGNED: Final[_Range] = (lambda value: -1 <= value <= 1, "a number from -1 to 1")
_COSINE: Final[_Range] = (lambda value: -1 <= value <= 1, "a cosine, -1 to 1")

_OF_WORDS: Final = {
    "--batch --buffer --concurrency --confirm --cpus --fit-tokens --k --max-length --max-new-tokens --n-targets "
    "--n-texts --rotations "
    "--rows --samples --texts-at-once --tokens --tokens-per-text --uses --width --windows": _POSITIVE,
    "--checkpoint-every --checkpoint-minutes --contexts --gpus --l0 --layers --limit --massive --metrics-every "
    "--n-eval-texts --n-features --n-loss-targets --n-loss-texts --per-minute --seed --shard-rows --shards "
    "--sites-at-once --temperature --upto --workers": _NATURAL,
    "--budget-layer --budget-total --lr --memory --strength --strengths": _ABOVE,
    "--top-p": _NUCLEUS,
    "--fdr": _BETWEEN,
    "--lr-decay --lr-warm-up --min-share": _SHARE,
    "--cosine --high --t-att --t-mlp --t-res": _COSINE,
    "--share": _SIGNED,
}
RANGES: Final[Mapping[str, _Range]] = MappingProxyType(
    {word: range_ for words, range_ in _OF_WORDS.items() for word in words.split()}
)
"""The values that an option may have in every command, by its name."""

SHORT: Final = MappingProxyType({"-k": "--k", "-n": "--samples", "-o": "--out", "-s": "--strength"})
"""Options of one letter, and the options they stand for."""
