"""Every error saeflow raises on purpose.

    SaeflowError
    ├── InvalidId (ValueError)            text that is not a site or feature
    ├── UnknownRelease (KeyError)         a name that is neither a known release nor a path
    ├── UnknownSite (KeyError)            a release or an atlas has nothing at that site
    ├── UnknownFeature (KeyError)         the index is outside the dictionary
    ├── BadFile (ValueError)              a file is truncated, has the wrong shape, or holds NaN or infinity
    │   └── UnsupportedFormat             no reader knows this file or folder
    ├── CorruptAtlas (ValueError)         a checksum or version does not match
    ├── WidthMismatch (ValueError)        two things that must have the same width do not
    ├── InvalidArgument (ValueError)      a value outside its range
    ├── UnknownArchitecture (ValueError)  a model whose sites are not mapped
    ├── Unreachable (OSError)             a hub could not be reached, or has no such file
    ├── NoSpace (OSError)                 a download or an output does not fit on the disk
    ├── NotWritable (PermissionError)     a folder without write permission, or on a read-only disk
    ├── WorkerLost (RuntimeError)         workers were repeatedly lost at the same unit of work
    └── MissingExtra (ImportError)        a required optional package is not installed

A message says what failed, with the values, and what to do about it. Expected outcomes, such as a flow
that ends, are values and never errors. The command line prints the message and exits with code 2.
"""

import difflib
from collections.abc import Iterable

_LONGEST = 4000
"""Maximum number of characters in a message, which may quote the contents of a file."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" with the known word closest to `name`, or "" if none is close.

    It starts with a space so that it can be appended to a sentence.
    """
    words = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), words, n=1, cutoff=0.6)
    return f" Did you mean {words[near[0]]!r}?" if near else ""


class SaeflowWarning(UserWarning):
    """A caveat about a result that is returned anyway; the command line prints it as one line."""


class SaeflowError(Exception):
    """Base of every error saeflow raises on purpose."""

    def __str__(self) -> str:
        """The plain message, where KeyError would show its repr; a long message loses its middle."""
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
    """A file that is truncated, has the wrong shape, or holds NaN or infinity."""


class UnsupportedFormat(BadFile):
    """A file or folder that no reader knows."""


class CorruptAtlas(SaeflowError, ValueError):
    """An atlas whose checksum or version does not match."""


class WidthMismatch(SaeflowError, ValueError):
    """Two things that must have the same width do not."""


class InvalidArgument(SaeflowError, ValueError):
    """A value outside its range."""


class UnknownArchitecture(SaeflowError, ValueError):
    """A model whose sites are not mapped in sources/architectures.py."""


class Unreachable(SaeflowError, OSError):
    """A hub could not be reached, or has no such file."""


class NoSpace(SaeflowError, OSError):
    """A download or an output does not fit on the disk."""


class NotWritable(SaeflowError, PermissionError):
    """A folder without write permission, or on a disk that is mounted read-only."""


class WorkerLost(SaeflowError, RuntimeError):
    """Worker processes or machines were repeatedly lost at the same unit of work."""


class MissingExtra(SaeflowError, ImportError):
    """A required optional package is not installed."""

    def __init__(self, said: str, extra: str = "", instead: str = "") -> None:
        """Build the message, including how to install the package.

        Args:
            said: what is needed and missing.
            extra: the extra that installs it, from a clone: saeflow is not on a package index.
            instead: an alternative, appended after the install command.
        """
        how = f" In a clone of saeflow, run `pip install -e '.[{extra}]'`{instead}." if extra else ""
        super().__init__(f"{said}{how}")
