"""Routes that need no model: what is there, searches, graphs, cards, files, pages of results. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from saeflow.errors import UnknownSite
from saeflow.report.exports import FORMATS, export
from saeflow.web.answers import CompareAnswer, FeatureAnswer, GraphAnswer, Info, SearchAnswer
from saeflow.web.answers_bench import ResultsAnswer
from saeflow.web.asked import CompareAsked, ExportAsked, FeatureAsked, GraphAsked, Nothing, SearchAsked
from saeflow.web.explorer import Explorer
from saeflow.web.features import feature_answer
from saeflow.web.graphs import compare_answer, graph_answer, grown
from saeflow.web.info import info_of, search_answer
from saeflow.web.pages import WAITING, ResultsFolder

router: Final = APIRouter()


def explorer_of(request: Request) -> Explorer:
    """What the application explores."""
    return request.app.state.explorer


Explored = Annotated[Explorer, Depends(explorer_of)]
_FILES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The file.",
        "content": {
            kind: {"schema": {"type": "object"} if "json" in kind else {"type": "string", "format": "binary"}}
            for kind in (chosen.media_type.partition(";")[0] for chosen in FORMATS.values())
        },
    }
}
_HTML: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The page.", "content": {"text/html": {"schema": {"type": "string"}}}},
    202: {
        "description": "The page is being drawn; this one asks for it again.",
        "content": {"text/html": {"schema": {"type": "string"}}},
    },
}
_FILE: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The file.", "content": {kind: {"schema": {"type": "string"}} for kind in ("text/csv",)}}
}


@router.get("/api/info")
def info(explorer: Explored, _: Annotated[Nothing, Query()]) -> Info:
    """What is explored: the release, its sites, themes, results, picks, limits, and the state of the model."""
    return info_of(explorer)


@router.get("/api/search")
def search(explorer: Explored, asked: Annotated[SearchAsked, Query()]) -> SearchAnswer:
    """Features by words as one types, or by id, site or row."""
    explorer.asked.set()
    return search_answer(explorer, asked)


@router.get("/api/graph")
def graph(explorer: Explored, asked: Annotated[GraphAsked, Query()]) -> GraphAnswer:
    """The flow graph of a feature, and its drawing."""
    found = graph_answer(explorer, asked)
    explorer.asked.set()
    return found


@router.get("/api/compare")
def compare(explorer: Explored, asked: Annotated[CompareAsked, Query()]) -> CompareAnswer:
    """Two flow graphs as one, and what is in which."""
    return compare_answer(explorer, asked)


@router.get("/api/feature")
def feature(explorer: Explored, asked: Annotated[FeatureAsked, Query()]) -> FeatureAnswer:
    """The card of a feature."""
    return feature_answer(explorer, asked)


@router.get("/api/export", response_class=Response, responses=_FILES)
def exported(explorer: Explored, asked: Annotated[ExportAsked, Query()]) -> Response:
    """The flow graph of a feature as a file of another tool."""
    chosen = FORMATS[asked.format]
    data = export(grown(explorer, asked), asked.format, explorer.words)
    name = f"{explorer.atlas.release}-{asked.feature}".replace("/", "-").replace('"', "")
    shown = "".join(char if char.isascii() and char.isprintable() else "_" for char in name)
    headers = {"content-disposition": f'attachment; filename="{shown}{chosen.suffix}"'}
    return Response(data, media_type=chosen.media_type, headers=headers)


@router.get("/api/results")
def results(explorer: Explored, _: Annotated[Nothing, Query()]) -> ResultsAnswer:
    """The results folders that were given at the start."""
    return ResultsAnswer(results=[folder.listed() for folder in explorer.results])


@router.get("/results/{id}", response_class=Response, responses=_HTML)
def page(explorer: Explored, id: str, _: Annotated[Nothing, Query()]) -> Response:  # noqa: A002
    """The page of a results folder."""
    drawn = _folder(explorer, id).page()
    headers = {"content-security-policy": drawn.policy}
    status = 200
    if drawn is WAITING:
        status, headers["retry-after"] = 202, "2"
    return Response(drawn.html.encode("utf-8", "replace"), status, headers, "text/html")


@router.get("/results/{id}/files/{number}", response_class=Response, responses=_FILE)
def file(explorer: Explored, id: str, number: str, _: Annotated[Nothing, Query()]) -> Response:  # noqa: A002
    """A table of a results folder, by its number."""
    files = {str(n): offered for n, offered in enumerate(_folder(explorer, id).files())}
    offered = files.get(number)
    if offered is None:
        raise UnknownSite(f"the results {id!r} have no file {number[:40]!r}. Take its number from /api/results.")
    headers = {"content-disposition": f'attachment; filename="{offered.name}"'}
    return Response(offered.data, media_type=offered.kind, headers=headers)


def _folder(explorer: Explorer, name: str) -> ResultsFolder:
    known = {folder.id: folder for folder in explorer.results}
    if name not in known:
        raise UnknownSite(
            f"there are no results {name[:40]!r}; there are {', '.join(known) or 'none'}. Give folders to "
            "`saeflow serve` with --results."
        )
    return known[name]
