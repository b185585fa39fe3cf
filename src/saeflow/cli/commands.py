"""Every command, put together: each file holds the commands of one kind, `app` what they share."""

from __future__ import annotations

import sys
import warnings

from saeflow.cli import (
    agreement,
    correlate,
    doctor,
    experiments,
    graph,
    info,
    labels,
    matching,
    plan,
    releases,
    reproduce,
    serve,
    steer,
    sweep,
    themes,
    train,
    transition,
)
from saeflow.cli.app import app
from saeflow.errors import NotWritable, SaeflowError, SaeflowWarning
from saeflow.files import write_error

__all__ = ["app", "run"]

graph.add_to(app)
matching.add_to(app)
agreement.add_to(app)
correlate.add_to(app)
experiments.add_to(app)
transition.add_to(app)
themes.add_to(app)
plan.add_to(app)
steer.add_to(app)
sweep.add_to(app)
labels.add_to(app)
releases.add_to(app)
doctor.add_to(app)
train.add_to(app)
info.add_to(app)
serve.add_to(app)
reproduce.add_to(app)


def run() -> None:
    """Run the command that `sys.argv` names; an error that has a message ends in exit code 2."""
    as_python_does, warnings.formatwarning = warnings.formatwarning, _line
    try:
        app()
    except SaeflowError as error:
        print(f"saeflow: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    except OSError as error:
        print(f"saeflow: {_sentence(error)}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    finally:
        warnings.formatwarning = as_python_does


def _line(message: Warning | str, category: type[Warning], filename: str, lineno: int, _line: str | None = None) -> str:
    """One line for a warning of saeflow's own; others stand with the file and line they come from."""
    if issubclass(category, SaeflowWarning):
        return f"saeflow: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _sentence(error: OSError) -> str:
    """What a system error means, and what to do."""
    what = str(error.filename or "a file")
    clear = write_error(error, what)
    if isinstance(clear, NotWritable):
        return f"{what} may not be read or written ({error.strerror}). Change its permissions, or give another path."
    if clear:
        return str(clear)
    return f"cannot read or write {what} ({error.strerror or error}). Check the path, and that its disk has room."
