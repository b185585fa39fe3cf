"""The application: its commands, which are imported when called, its help, and errors as one sentence."""

from __future__ import annotations

import difflib
import errno
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, Final

from cyclopts import App, Argument, Parameter
from cyclopts.exceptions import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
    ValidationError,
)
from cyclopts.help import DefaultFormatter

from saeflow.cli.models import models_list
from saeflow.cli.options import read, shown
from saeflow.cli.output import note
from saeflow.cli.themes import themes_list
from saeflow.cli.vocabulary import modern, repeated
from saeflow.errors import NotWritable, SaeflowError, SaeflowWarning
from saeflow.files import write_error
from saeflow.version import __version__

COMMANDS: Final = {
    "graph": ("graph", "demo", "serve", "publish"),
    "trace": ("trace",),
    "matching": ("match", "methods", "agreement", "correlate"),
    "compare": ("compare",),
    "experiments": ("origins", "deactivate", "transition", "sweep"),
    "themes": ("find",),
    "steering": ("plan", "steer"),
    "releases": ("releases", "info", "doctor"),
    "training": ("train",),
    "reproduce": ("reproduce",),
}
"""The commands in each file."""

GROUPS: Final = {
    ("atlas", "matching"): (
        "Build and inspect atlases: all match tables of a release.",
        ("build", "info", "calibrate"),
    ),
    ("models", "models"): ("Language models that saeflow can fetch by itself: a list of them, and get.", ("get",)),
    ("themes", "themes"): ("Themes to steer by: a list of them, one in full, and find.", ("find",)),
    ("labels", "labels"): (
        "What is known about features: fetch, make, show, search, explain, transfer.",
        ("fetch", "make", "show", "search", "explain", "transfer"),
    ),
}
"""Commands of two words: the first word and its file, its help, and the second words."""


class _Help(DefaultFormatter):
    """Help from docstrings, with lines joined so that they wrap at the width of the terminal."""

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        for entry in panel.entries:
            text = getattr(entry.description, "primary_renderable", None)
            if text is not None:
                text.plain = " ".join(text.plain.split())
        super().__call__(console, options, panel)

    def render_description(self, console: Any, options: Any, description: Any) -> None:
        text = description.primary_renderable
        text.plain = "\n\n".join(" ".join(paragraph.split()) for paragraph in text.plain.split("\n\n")) + "\n"
        super().render_description(console, options, description)


def _application() -> App:
    """The application with all commands; most are imported when they are called or listed."""
    made = App(
        "saeflow",
        help="Trace features of sparse autoencoders through the layers of a language model, from the weights alone.\n\n"
        "Options with several values take commas (2/res,3/res), and layers take ranges (6-9).",
        version=f"saeflow {__version__}",
        help_format="plaintext",
        help_formatter=_Help(),
        default_parameter=Parameter(converter=read, show_default=shown, negative_iterable=(), allow_repeating=True),
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
    )
    for file, names in COMMANDS.items():
        for name in names:
            made.command(f"saeflow.cli.{file}:{name}", name=name, sort_key=len(list(made)))
    for (group, file), (help_, names) in GROUPS.items():
        below = App(group, help=help_, sort_key=len(list(made)))
        made.command(below)
        for place, name in enumerate(names):
            below.command(f"saeflow.cli.{file}:{group}_{name}", name=name, sort_key=place)
    made["models"].default(models_list)
    made["themes"].default(themes_list)
    made.register_install_completion_command(help="Install completion for bash, zsh or fish.")
    return made


app = _application()


def run() -> None:
    """Run the command that `sys.argv` names; an error with a message exits with code 2."""
    as_python_does, warnings.formatwarning = warnings.formatwarning, _line
    words = sys.argv[1:]
    listed = app[words.pop(0)] if words and words[0] in {group for group, _ in GROUPS} else app
    if not words or words[0] in ("--help", "-h"):
        for name in listed:
            listed[name]  # imports it, since a list of commands shows their first lines
    try:
        _call(sys.argv[1:])
        sys.stdout.flush()
    except (SaeflowError, CycloptsError) as error:
        print(f"saeflow: {sentence(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # such as in `saeflow graph ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        print(f"saeflow: {_system_sentence(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        warnings.formatwarning = as_python_does


def in_words_of_today(words: Sequence[str]) -> tuple[list[str], list[str], dict[str, bool]]:
    """A command with old option names replaced, a note for each old name used, and the command's options.

    The options say which of them take several values; there are none if no option is used.
    """
    size = 2 if words and words[0] in {group for group, _ in GROUPS} else 1
    command = " ".join(words[:size])
    options = _options(words[:size]) if any(word.startswith("-") for word in words[size:]) else {}
    today, old = modern(command, words[size:], options)
    return [*words[:size], *today], old, options


def _call(words: Sequence[str]) -> None:
    """Run a command, with current or old option names; several values may follow an option."""
    today, old, options = in_words_of_today(words)
    if old:
        note(f"saeflow: {', '.join(old)}: the old words go with the next release.")
    try:
        app(today)
    except UnusedCliTokensError as error:
        lists = {name for name, several in options.items() if several}
        again = repeated(today, error.unused_tokens or (), lists)
        if again is None:
            raise
        app(again)


def _options(command: Sequence[str]) -> dict[str, bool]:
    """The options of a command, and whether each takes several values; none if the command does not exist."""
    _, apps, rest = app.parse_commands(command)
    if rest or apps[-1].default_command is None:
        return {}
    found = apps[-1].assemble_argument_collection()
    return {name: one.token_count()[1] for one in found if one.index is None for name in one.names}


def sentence(error: SaeflowError | CycloptsError) -> str:
    """An error as text: saeflow's own message, or what is wrong with the words of the command."""
    if isinstance(error, SaeflowError):
        return str(error)
    error.verbose = False
    said, argument, left = str(error), error.argument, error.unused_tokens or [""]
    see = f"See {' '.join(['saeflow', *(error.command_chain or ())])} --help."
    if isinstance(error, MissingArgumentError) and argument:
        said = f"{f'{error.keyword} has no value' if error.keyword else f'{argument.name} is missing'}. {see}"
    elif isinstance(error, CoercionError) and error.target_type is bool and error.token:  # such as --json=yes
        said = f"{error.token.keyword} is given without a value, not with {error.token.value!r}. {see}"
    elif isinstance(error, CoercionError) and error.msg and argument and not error.token:  # several words
        said = f"Invalid value for {_typed(argument)}: {error.msg}"
    elif isinstance(error, ValidationError) and argument and isinstance(error.__cause__, SaeflowError):
        said = f"Invalid value for {_typed(argument)}: {error.__cause__}"
    elif isinstance(error, UnusedCliTokensError) and see == "See saeflow models --help.":  # a group and a command
        said = f'Unknown command "{left[0]}".{_near_command(left[0])} {see}'
    elif isinstance(error, UnusedCliTokensError):
        many = "one argument" if len(left) == 1 else f"{len(left)} arguments"
        quoted = "" if len(left) == 1 else "Put a text of several words in quotes, and commas between values. "
        said = f"{' '.join(left)!r} is {many} too many. {quoted}{see}"
    elif isinstance(error, UnknownCommandError | UnknownOptionError):
        is_option = isinstance(error, UnknownCommandError) and left[0].startswith("-")
        unknown = f"Unknown option: {left[0]}." if is_option else said.partition(" Available commands")[0]
        near = "" if is_option or "Did you mean" in unknown else _near_command(left[0])
        said = f"{unknown}{near} {see}"
    return said


def _near_command(word: str) -> str:
    """A question that names the command most like a word, which may be the second word of one; "" if none is."""
    known = {name: name for names in COMMANDS.values() for name in names}
    for (group, _), (_, names) in GROUPS.items():
        known |= {group: group} | {name: f"{group} {name}" for name in names if name not in known}
    near = next((known[name] for name in difflib.get_close_matches(word, known, n=1)), "")
    return f' Did you mean "{near}"?' if near else ""


def _typed(argument: Argument) -> str:
    """An option as typed, such as -n; otherwise its name."""
    return next((token.keyword for token in argument.tokens if token.keyword), argument.name)


def _line(message: Warning | str, category: type[Warning], filename: str, lineno: int, _line: str | None = None) -> str:
    """A warning on one line; with file and line number unless it is saeflow's own."""
    if issubclass(category, SaeflowWarning):
        return f"saeflow: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _system_sentence(error: OSError) -> str:
    """What a system error means, and what to do about it."""
    what = str(error.filename or "a file")
    clear = write_error(error, what)
    if isinstance(clear, NotWritable):
        return f"{what} may not be read or written ({error.strerror}). Change its permissions, or give another path."
    if clear:
        return str(clear)
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{what} is a file where a folder is needed, or is in one. Give another path."
    return f"cannot read or write {what} ({error.strerror or error}). Check the path, and that its disk has room."
