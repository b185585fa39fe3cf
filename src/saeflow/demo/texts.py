"""Texts of a pack, by domain, for experiments. Needs neither torch nor a network.

The texts of all domains but one were written by the pack's model and are shipped with the pack; `python` is read from
the standard library of the interpreter, so its texts differ between Python versions.
"""

from __future__ import annotations

import gzip
import json
import random
import sysconfig
from functools import lru_cache
from pathlib import Path

from saeflow.errors import BadFile, InvalidArgument
from saeflow.files import pack_folder

DOMAINS = ("stories", "novels", "textbooks", "maths", "python")
"""The domains that the demo model was trained on. The python texts come from the interpreter's standard library."""
_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "encodings", "pydoc_data"}
_SHORTEST, _LONGEST = 300, 1200


def domains(pack: str = "demo") -> tuple[str, ...]:
    """The domains of a pack's texts, `python` last; empty for an unknown pack or a pack without texts."""
    folder = pack_folder(pack)
    if pack == "demo" or folder is None:
        return DOMAINS if pack == "demo" else ()
    written = sorted(path.name.removesuffix(".json.gz") for path in (folder / "texts").glob("*.json.gz"))
    return (*written, "python") if written else ()


def texts(domain: str, n: int, seed: int = 0, pack: str = "demo") -> list[str]:
    """Sample `n` different texts of one domain of a pack, each of about 300 to 1,200 characters; `seed` sets the order.

    Raises:
        InvalidArgument: for an unknown domain, or when `n` exceeds the number of texts.
        BadFile: when the pack's texts cannot be read.
    """
    known = all_texts(domain, pack)
    if not 0 <= n <= len(known):
        raise InvalidArgument(f"{n} texts of {domain} were asked for, and there are {len(known)}. Give n up to that.")
    return random.Random(seed).sample(known, n)  # noqa: S311 - a sample, not a secret


def all_texts(domain: str, pack: str = "demo") -> list[str]:
    """Every text of one domain of a pack, in the order of the pack or of the standard library.

    Raises:
        InvalidArgument: for an unknown domain.
        BadFile: when the pack's texts cannot be read.
    """
    if domain not in domains(pack):
        raise InvalidArgument(f"there is no domain {domain!r}. Known: {', '.join(domains(pack))}.")
    return list(_stdlib() if domain == "python" else _written(domain, pack))


@lru_cache(maxsize=8)
def _written(domain: str, pack: str) -> list[str]:
    path = (pack_folder(pack) or Path(pack)) / "texts" / f"{domain}.json.gz"
    try:
        return list(json.loads(gzip.decompress(path.read_bytes())))
    except (OSError, EOFError, ValueError) as error:
        raise BadFile(f"{path} cannot be read ({error}). Install saeflow again: its demo pack is incomplete.") from None


@lru_cache(maxsize=1)
def _stdlib() -> list[str]:
    """Top-level functions and classes of the standard library, each cut to at most _LONGEST characters."""
    root = Path(sysconfig.get_path("stdlib"))
    found: list[str] = []
    for path in sorted(root.rglob("*.py")):
        if _SKIPPED.intersection(path.relative_to(root).parts):
            continue
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        pieces = (piece.strip("\n")[:_LONGEST] for piece in source.split("\n\n\n"))
        found += [piece for piece in pieces if len(piece) >= _SHORTEST and piece.startswith(("def ", "class "))]
    return found
