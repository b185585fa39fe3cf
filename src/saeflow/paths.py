"""Where saeflow finds and keeps files, and how it writes them: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

PACK: Final = Path(__file__).parent / "demo" / "pack"
"""The demo pack: `model/`, `saes/`, `atlas/` with its words, `texts/`, `quality.json`, `CARD.md`."""


def cache_folder() -> Path:
    """Where atlases built by name are kept: SAEFLOW_CACHE, else ~/.cache/saeflow."""
    return Path(os.environ.get("SAEFLOW_CACHE", "~/.cache/saeflow")).expanduser()


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A new file beside `path` to write to, moved into its place at the end, or removed after an error.

    Raises:
        OSError: when the folder cannot be written.
    """
    import tempfile

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all.

    Raises:
        OSError: when the folder cannot be written.
    """
    with replacing(path) as part:
        part.write_bytes(data)
