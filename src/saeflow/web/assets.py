"""The page and its files, from the package: found in a list of what is there, never by joining a path. No torch."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException

router: Final = APIRouter(include_in_schema=False)

_KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}


def assets() -> dict[str, Path]:
    """Every file that is sent, by its name after `/static/`: those of the page, and the report's under `report/`."""
    found: dict[str, Path] = {}
    for package, prefix in (("saeflow.report", "report/"), ("saeflow.web", "")):
        root = Path(str(files(package))) / "static"
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.suffix in _KINDS:
                found[f"{prefix}{path.relative_to(root).as_posix()}"] = path
    return found


@router.get("/")
def index() -> Response:
    """The page."""
    return asset("index.html")


@router.get("/static/{name:path}")
def asset(name: str) -> Response:
    """A file of the page."""
    path = assets().get(name)
    if path is None:
        raise HTTPException(404, f"there is no file {name[:60]!r}")
    return FileResponse(path, media_type=_KINDS[path.suffix], headers={"cache-control": "no-cache"})
