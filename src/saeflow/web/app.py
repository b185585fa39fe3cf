"""The application over an `Explorer`, behind `Access`: its routes, the static files, and errors as responses.

API routes take the models of `requests` and return those of `responses`, so `/api/openapi.json` specifies the API
exactly. Routes run in threads: growing a graph takes milliseconds of Python, drawing one may take longer. No torch.
"""

from __future__ import annotations

import logging
from importlib.resources import files
from pathlib import Path
from typing import Final

from fastapi import APIRouter, FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from saeflow.errors import SaeflowError
from saeflow.version import __version__
from saeflow.web import routes_graph, routes_model
from saeflow.web.explorer import Explorer
from saeflow.web.problems import invalid_request, problem_of
from saeflow.web.responses import Problem

_log = logging.getLogger("saeflow.web")
_bearer = HTTPBearer(auto_error=False, description="The token of the address that `saeflow serve` printed.")
_static: Final = APIRouter(include_in_schema=False)
_KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}


def create_app(explorer: Explorer) -> FastAPI:
    """The application over `explorer`. It does no access control of its own: serve it behind `Access`."""
    app = FastAPI(
        title="saeflow explorer",
        version=__version__,
        description="Flow graphs of an atlas, and steering with them.",
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={"default": {"model": Problem, "description": "What is wrong, and what to do."}},
        dependencies=[Security(_bearer)],
    )
    app.state.explorer = explorer
    for router in (_static, routes_graph.router, routes_model.router):
        app.include_router(router)
    app.add_exception_handler(SaeflowError, _saeflow_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failed)
    return app


def assets() -> dict[str, Path]:
    """Every static file by its path below `/static/`: the explorer's own, and those of the report under `report/`."""
    found: dict[str, Path] = {}
    for package, prefix in (("saeflow.report", "report/"), ("saeflow.web", "")):
        root = Path(str(files(package))) / "static"
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.suffix in _KINDS:
                found[f"{prefix}{path.relative_to(root).as_posix()}"] = path
    return found


@_static.get("/")
def index() -> Response:
    """The page of the explorer."""
    return asset("index.html")


@_static.get("/static/{name:path}")
def asset(name: str) -> Response:
    """A static file, looked up in the list of existing ones; no path is ever built from the request."""
    path = assets().get(name)
    if path is None:
        raise HTTPException(404, f"there is no file {name[:60]!r}")
    return FileResponse(path, media_type=_KINDS[path.suffix], headers={"cache-control": "no-cache"})


def _saeflow_error(_: Request, error: Exception) -> JSONResponse:
    status, problem = problem_of(error if isinstance(error, SaeflowError) else SaeflowError(str(error)))
    return _response(status, problem, {"retry-after": "2"} if status in (429, 503) else None)


def _invalid(_: Request, error: Exception) -> JSONResponse:
    return _response(422, invalid_request(error.errors() if isinstance(error, RequestValidationError) else []))


def _http_error(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    known = {
        404: f"there is nothing at {request.url.path[:80]!r}.",
        405: f"{request.method} is not what {request.url.path[:80]!r} takes.",
    }
    message = known.get(status, f"{getattr(error, 'detail', error)}.")
    return _response(status, Problem(error=message, what_to_do="/api/openapi.json says what there is."), headers)


def _failed(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    problem = Problem(
        error=f"saeflow failed on this request ({type(error).__name__}).",
        what_to_do="Report what the server printed, with the request.",
    )
    return _response(500, problem)


def _response(status: int, problem: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    text = {name: value.encode("utf-8", "replace").decode() for name, value in problem.model_dump().items()}
    return JSONResponse(text, status_code=status, headers=headers)
