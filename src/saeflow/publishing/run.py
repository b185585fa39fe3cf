"""Publish an explorer as a folder of files, whole or not at all. Imports no torch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saeflow.errors import InvalidArgument
from saeflow.files import file_lock, write_error
from saeflow.matching.atlas import Atlas, open_atlas
from saeflow.plain_types import Progress
from saeflow.web import require_packages


@dataclass(frozen=True, slots=True)
class PublishedSite:
    """A published site: its folder, and how much it holds."""

    folder: Path
    n_features: int
    n_files: int
    n_bytes: int


def publish(
    release: str = "demo",
    out: Path | str = "site",
    *,
    atlas: Atlas | str | Path = "",
    results: Sequence[Path | str] = (),
    comparisons: Sequence[Path | str] = (),
    progress: Progress | None = None,
) -> PublishedSite:
    """Write the explorer of an atlas as a folder of files that any web host serves: `python -m http.server -d site`.

    Search, flow graphs, cards and comparing work as in `saeflow serve`; graphs are grown in the browser. Everything
    that needs a model is left out, and so are the weights. For each feature, the best 5 matches at each site are kept.

    Args:
        release: "demo", the name of a release, or an atlas folder.
        out: The folder to write. An existing published site is replaced as a whole once the new one is complete.
        atlas: A different atlas from the release's own.
        results: Results folders to show; the first of `saeflow origins` colours graphs and cards.
        comparisons: Folders that `saeflow compare` wrote.
        progress: Called with (steps done, steps in all, what is being written): a step per site, and three more.

    Raises:
        MissingExtra: when the extra "web" is not installed.
        UnknownRelease: when there is no such atlas.
        BadFile: when the atlas, words, results or comparisons cannot be read.
        InvalidArgument: when `out` exists and is neither empty nor a published site.
        NoSpace: when the disk is full.
        NotWritable: when the folder cannot be written.
    """
    require_packages()
    from saeflow.publishing.site import is_site, write_site
    from saeflow.web.server import exploring

    opened = atlas if isinstance(atlas, Atlas) else open_atlas(atlas or release)
    named = release if atlas else opened.release or release
    out = Path(out).absolute()
    part, old = out.with_name(f".{out.name}.publishing"), out.with_name(f".{out.name}.before")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(out):
            if old.exists() and not out.exists():  # a process was killed between the two renames below
                old.rename(out)
            if out.exists() and not is_site(out) and not (out.is_dir() and not any(out.iterdir())):
                raise InvalidArgument(
                    f"{out} is there and is no published site, so it is kept. Give a new folder with --out."
                )
            for left in (part, old):
                shutil.rmtree(left, ignore_errors=True)
            with exploring(opened, release=named, results=[Path(one) for one in results]) as explorer:
                n_features = write_site(part, explorer, [Path(one) for one in comparisons], progress)
            if out.exists():
                out.rename(old)
            part.rename(out)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise write_error(error, out) or error from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    return PublishedSite(out, n_features, len(sizes), sum(sizes))
