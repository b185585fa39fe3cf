"""What the page shows first, and what it finds as one types. No torch."""

from __future__ import annotations

import time
from typing import Literal

from saeflow.flow.scores import Thresholds
from saeflow.ids import Part, Site
from saeflow.labels.sources import words_folders
from saeflow.labels.words import words_sites
from saeflow.report.exports import FORMATS
from saeflow.steering.theme import Theme
from saeflow.version import __version__
from saeflow.web import asked as most
from saeflow.web.answers import (
    Defaults,
    Hit,
    Info,
    LimitsInfo,
    ModelInfo,
    PromptInfo,
    SearchAnswer,
    SiteInfo,
    ThemeInfo,
)
from saeflow.web.asked import SearchAsked
from saeflow.web.explorer import Explorer
from saeflow.web.lookups import printable


def info_of(explorer: Explorer) -> Info:
    """What is explored."""
    atlas = explorer.atlas
    folders = words_folders(explorer.release, beside=atlas.folder)
    with_words = {site for folder in folders for site in words_sites(folder)}
    cuts = Thresholds()
    found = explorer.picks.found
    return Info(
        saeflow=__version__,
        release=explorer.release,
        model=atlas.model,
        made_by=atlas.made_by,
        method=atlas.method,
        k=atlas.k,
        layers=list(explorer.layers),
        sites=[SiteInfo(site=str(site), n_features=n, words=site in with_words) for site, n in explorer.sizes.items()],
        defaults=Defaults(t_res=cuts.res, t_mlp=cuts.of(Part.MLP), t_att=cuts.of(Part.ATT), high=cuts.high, k=1),
        calibrated=atlas.calibration is not None,
        themes=[_theme(theme) for theme in explorer.themes],
        results=[folder.info() for folder in explorer.results],
        picks=found or [],
        picks_ready=found is not None,
        neuronpedia=explorer.sources is not None,
        origins=explorer.origins is not None,
        formats=list(FORMATS),
        limits=LimitsInfo(
            text=most.MOST_TEXT,
            prompt=most.MOST_PROMPT,
            samples=most.MOST_SAMPLES,
            new_tokens=most.MOST_NEW_TOKENS,
            features=most.MOST_FEATURES,
        ),
        **model_of(explorer).model_dump(),
    )


def model_of(explorer: Explorer) -> ModelInfo:
    """Whether there is a model, and whether it is loaded."""
    if explorer.desk is None:
        return ModelInfo(model_state="none", model_error=None)
    return explorer.desk.told()


def search_answer(explorer: Explorer, asked: SearchAsked) -> SearchAnswer:
    """The features that fit best.

    Raises:
        BadFile: when the words cannot be read.
    """
    start = time.perf_counter()
    site = None if asked.site is None else Site.parse(asked.site)
    hits = explorer.finder.find(asked.q, asked.limit, site)
    return SearchAnswer(
        query=asked.q,
        took_ms=round(1000 * (time.perf_counter() - start), 2),
        hits=[
            Hit(
                feature=str(hit.feature),
                label=printable(hit.label),
                tokens=[printable(token) for token in hit.tokens],
                frequency=hit.frequency,
            )
            for hit in hits
        ],
        indexing=explorer.finder.indexing,
        problem=printable(explorer.finder.problem) or None,
    )


def _theme(theme: Theme) -> ThemeInfo:
    return ThemeInfo(
        name=theme.name,
        description=theme.subject,
        starts=[str(start) for start in theme.starts],
        directions=[name for name in ("activate", "suppress") if getattr(theme, name) is not None],
        prompts=[*_prompt(theme, "activate"), *_prompt(theme, "suppress")],
    )


def _prompt(theme: Theme, direction: Literal["activate", "suppress"]) -> list[PromptInfo]:
    task = theme.activate if direction == "activate" else theme.suppress
    if task is None:
        return []
    return [PromptInfo(direction=direction, prompt=task.prompt, new_tokens=task.max_new_tokens)]
