"""The application over an `Explorer`, behind `Access`: routes put together, errors made answers. No torch.

Every route takes a model of `asked` and gives one of `answers`, so that `/api/openapi.json` says exactly what goes in
and out. Work is done in threads: growing a graph is milliseconds of Python, and drawing one may be more.
"""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from saeflow.errors import SaeflowError
from saeflow.version import __version__
from saeflow.web import assets, bench, reading
from saeflow.web.access import Access, App, Limits
from saeflow.web.answers import Problem
from saeflow.web.explorer import Explorer
from saeflow.web.problems import headers_of, problem_of, unread

_log = logging.getLogger("saeflow.web")
_bearer = HTTPBearer(auto_error=False, description="The token of the address that `saeflow serve` printed.")


def create_app(explorer: Explorer) -> FastAPI:
    """The routes over `explorer`, open to whoever reaches them: serve `guarded` of it."""
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
    for module in (assets, reading, bench):
        app.include_router(module.router)
    app.add_exception_handler(SaeflowError, _refused)
    app.add_exception_handler(RequestValidationError, _unread)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _failed)
    return app


def guarded(app: FastAPI, token: str, port: int, limits: Limits | None = None) -> App:
    """The application behind `Access`: what is served."""
    return Access(app, token=token, port=port, limits=limits)


def _problem(status: int, problem: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    text = {name: value.encode("utf-8", "replace").decode() for name, value in problem.model_dump().items()}
    return JSONResponse(text, status_code=status, headers=headers)


def _refused(_: Request, error: Exception) -> JSONResponse:
    status, problem = problem_of(error if isinstance(error, SaeflowError) else SaeflowError(str(error)))
    return _problem(status, problem, headers_of(status))


def _unread(_: Request, error: Exception) -> JSONResponse:
    return _problem(422, unread(error.errors() if isinstance(error, RequestValidationError) else []))


def _http(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    told = {
        404: f"there is nothing at {request.url.path[:80]!r}.",
        405: f"{request.method} is not what {request.url.path[:80]!r} takes.",
    }
    problem = Problem(
        error=told.get(status, f"{getattr(error, 'detail', error)}."),
        what_to_do="/api/openapi.json says what there is.",
    )
    return _problem(status, problem, headers)


def _failed(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    problem = Problem(
        error=f"saeflow failed on this request ({type(error).__name__}).",
        what_to_do="Report what the server printed, with the request.",
    )
    return _problem(500, problem)
