"""Every error saeflow raises on purpose.

    SaeflowError
    ├── InvalidId (ValueError)            text that is not a site or feature
    ├── UnknownRelease (KeyError)         a name that is neither a known release nor a path
    ├── UnknownSite (KeyError)            a release or an atlas has nothing at that site
    ├── UnknownFeature (KeyError)         the index is outside the dictionary
    ├── BadFile (ValueError)              truncated, of the wrong shape, with NaN or zero rows
    │   └── UnsupportedFormat             no reader knows this file or folder
    ├── CorruptAtlas (ValueError)         a checksum or a version does not agree
    ├── WidthMismatch (ValueError)        two things that must share a width do not
    ├── InvalidArgument (ValueError)      a value outside its range
    ├── UnknownArchitecture (ValueError)  a model whose sites are not mapped
    ├── Unreachable (OSError)             a hub could not be reached, or has no such file
    ├── NoSpace (OSError)                 what is to be fetched or written does not fit the disk
    ├── NotWritable (PermissionError)     a folder that may not be written, or is mounted read-only
    └── MissingExtra (ImportError)        an optional package that this needs is not installed

A message says what failed, with the values, and what to do. Expected outcomes, such as a flow that
ends, are values and never errors. The command line prints the message and exits with 2.
"""

import difflib
from collections.abc import Iterable

_LONGEST = 4000
"""Characters of a message: it may repeat what a file holds."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A question that names the known word nearest to an unknown one; empty where none is near.

    For the middle of a message: it begins with a space.
    """
    words = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), words, n=1, cutoff=0.6)
    return f" Did you mean {words[near[0]]!r}?" if near else ""


class SaeflowWarning(UserWarning):
    """Something to know about an answer that is given all the same; the command line prints it as one line."""


class SaeflowError(Exception):
    """Base of every error saeflow raises on purpose."""

    def __str__(self) -> str:
        """The message alone, without the middle of a long one: KeyError would print its repr, and it is for reading."""
        text = str(self.args[0]) if self.args else ""
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 500]} … {text[-497:]}"


class InvalidId(SaeflowError, ValueError):
    """Text that is not a site (`24/res`) or feature (`24/res/14548`)."""


class UnknownRelease(SaeflowError, KeyError):
    """A name that is neither a known release nor a path that exists."""


class UnknownSite(SaeflowError, KeyError):
    """A release, folder or atlas has nothing at the requested site."""


class UnknownFeature(SaeflowError, KeyError):
    """A feature index outside its dictionary."""


class BadFile(SaeflowError, ValueError):
    """A file that is truncated, of the wrong shape, or holds NaN or infinity."""


class UnsupportedFormat(BadFile):
    """A file or folder no reader knows."""


class CorruptAtlas(SaeflowError, ValueError):
    """An atlas whose checksum or version does not agree."""


class WidthMismatch(SaeflowError, ValueError):
    """Two things that must share a width do not."""


class InvalidArgument(SaeflowError, ValueError):
    """A value outside its range."""


class UnknownArchitecture(SaeflowError, ValueError):
    """A model whose sites are not mapped in sources/architectures.py."""


class Unreachable(SaeflowError, OSError):
    """A hub could not be reached, or has no such file."""


class NoSpace(SaeflowError, OSError):
    """What is to be fetched or written does not fit the disk."""


class NotWritable(SaeflowError, PermissionError):
    """A folder that may not be written, or is on a disk that is mounted read-only."""


class WorkerLost(SaeflowError, RuntimeError):
    """Worker processes, or machines, were lost at one unit of work, again and again."""


class MissingExtra(SaeflowError, ImportError):
    """An optional package that this needs is not installed."""

    def __init__(self, said: str, extra: str = "", instead: str = "") -> None:
        """The message, with what to do.

        Args:
            said: what is needed and missing.
            extra: the extra that installs it; saeflow is on no package index, and is installed from a clone.
            instead: what else would do.
        """
        how = f" In a clone of saeflow, run `pip install -e '.[{extra}]'`{instead}." if extra else ""
        super().__init__(f"{said}{how}")
