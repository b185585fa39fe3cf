"""`saeflow trace`: what happened at a token of a text, with measured edges."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from saeflow.cli.graph import FORMATS, GraphFiles, write_graph
from saeflow.cli.options import AtlasName, Json, ModelOptions, Number, Release
from saeflow.errors import InvalidArgument


def trace(
    release: Release,
    /,
    *,
    text: str,
    token: Annotated[int, Parameter(allow_leading_hyphen=True)] = -1,
    before: int = 0,
    target: str = "",
    against: str = "",
    effect: Number = 0.1,
    cosine: Number = -1.0,
    share: Number = -1.0,
    pins: tuple[str, ...] = (),
    k: Annotated[int, Parameter(alias="-k")] = 1,
    logits: int = 5,
    random_graphs: int = 20,
    language_model: ModelOptions = ModelOptions(),
    atlas: AtlasName = "",
    seed: int = 0,
    out: GraphFiles = (),
    formats: Annotated[tuple[str, ...], Parameter(show=False)] = (),
    files: Annotated[bool | None, Parameter(show=False)] = None,
    as_json: Json = False,
) -> None:
    """Print what happened at a token of a text: active features, joined by measured edges; with -o FILE also write it.

    An edge has an effect, the share of the child's value that is lost when the parent is removed; an edge between
    features also has their cosine.

    Args:
        text: The text.
        token: Token whose prediction is traced, from 0; -1 is the last.
        before: Earlier tokens to trace too, through attention.
        target: Token whose logit the graph explains, such as " girl"; the most likely token by default.
        against: What to compare with: a token whose logit is subtracted, by default the mean of all logits.
        effect: Smallest absolute effect of a kept edge.
        cosine: Smallest cosine of a kept edge between features; by default all are kept.
        share: Smallest share of its site's reconstruction that a kept feature has; by default all are kept.
        pins: Nodes that are never pruned, such as 4/res/123@7.
        k: Matches per feature: how many at each site count as named by the weights.
        logits: Top output tokens to show.
        random_graphs: Random graphs of the same size that completeness and faithfulness are compared with.
        seed: Random seed: of the controls and the random graphs.
    """
    from saeflow.labels import words_for
    from saeflow.prompt_graph import Pruning
    from saeflow.prompt_graph.trace import trace_text
    from saeflow.report import render
    from saeflow.report.exports import format_named
    from saeflow.report.prompt import export_prompt, prompt_page

    if not text.strip():
        raise InvalidArgument("--text is empty. Give the words of a text.")
    for name in formats:
        format_named(name)  # refuses an unknown format before anything is loaded
    graph = trace_text(
        text,
        release,
        token=token,
        before=before,
        target=target,
        against=against,
        pruning=Pruning(effect, cosine, share, pins),
        model=language_model.model,
        atlas=atlas,
        k=k,
        logits=logits,
        random_graphs=random_graphs,
        seed=seed,
        device=language_model.device,
        prepend_bos=language_model.prepend_bos,
    )
    words = words_for(release)
    print(graph.to_json() if as_json else render(prompt_page(graph, words), "text"))
    stem = f"{Path(release).name}-token-{graph.positions[-1]}"
    places = () if files is False else out or ((Path(),) if formats or files else ())
    written = write_graph(lambda name: export_prompt(graph, name, words), places, stem, formats or FORMATS)
    if written and not as_json:
        print("\nwritten: " + "  ".join(map(str, written)))
