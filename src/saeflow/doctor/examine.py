"""Examine a release: its list of sites, the weights of each dictionary, and its fit to a model's hidden states.

    examination = examine(load_dictionaries("demo"), model=load_model("demo"), texts=texts)

Sites are examined in turn, with one dictionary in memory at a time. The weights of a dictionary of 16,384 features of
width 2,304 take about 1e12 multiplications, nearly all of them to find duplicates.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from saeflow.doctor.findings import CheckKind, Examination, Finding, Number, Severity, finding
from saeflow.doctor.hidden_states import Case, examine_hidden_states, n_seen, own_spot, see, spots_around, written_spot
from saeflow.doctor.weights import examine_weights
from saeflow.errors import BadFile, InvalidArgument, UnknownSite
from saeflow.ids import Part, Site
from saeflow.matching.atlas import Atlas
from saeflow.matching.build import other_weights
from saeflow.plain_types import Progress
from saeflow.sources.activity import TextBatch, text_batches
from saeflow.sources.dictionary import Dictionary, prepend_bos_of
from saeflow.sources.model import LanguageModel

_STATED = re.compile(r"average_l0_(\d+)")
_LEAST_TOKENS = 200
_BEGUN, _BEGUN_LENGTH = 8, 128
"""Number of texts, and of tokens in each, used to compare the loss with and without a begin-of-text token."""
_MUCH = 0.02
"""Difference in nats per token that is worth a look."""


def examine(
    dictionaries: Mapping[Site, Dictionary],
    *,
    release: str = "",
    model: LanguageModel | None = None,
    texts: Sequence[str] = (),
    tokens: int = 2_000,
    sites: Collection[Site] | None = None,
    stated_l0: Mapping[Site, float] | None = None,
    atlas: Atlas | None = None,
    progress: Progress | None = None,
) -> Examination:
    """Examine a release's weights and, given a model, how its dictionaries encode the model's hidden states.

    Args:
        dictionaries: the release, or any mapping from sites to dictionaries.
        release: the name of the release, for the report.
        model: the model it was trained on; without one, only the weights are examined.
        texts: texts for the model to read; required with a model.
        tokens: maximum number of tokens to examine, not counting special tokens.
        sites: the sites to examine; all when None.
        stated_l0: the average L0 that the release states, by site; L0 values in Gemma Scope paths are read anyway.
        atlas: the release's atlas, if it has one: checked to have been built from these weights.
        progress: called with (layers done, layers in all, current layer).

    Raises:
        InvalidArgument: for a model without texts, or texts with fewer than 200 tokens.
        UnknownSite: for a site without a dictionary.
        Unreachable, NoSpace: when a file must be fetched and cannot be.
    """
    # 1. choose the dictionaries and tokenise the texts
    chosen = sorted(dictionaries if sites is None else sites)
    missing = [str(site) for site in chosen if site not in dictionaries]
    if missing or not chosen:
        have = ", ".join(map(str, sorted(dictionaries))) or "none"
        raise UnknownSite(f"There is no dictionary at {', '.join(missing) or 'any site'}. There are: {have}.")
    model = None if model is None else model.as_trained({site: dictionaries[site] for site in chosen[:1]})
    batches = [] if model is None else _batches(model, texts, tokens)

    # 2. for each site, the weights; then, if these are sound enough to encode with, the hidden states
    findings = [] if sites is not None else [_sites(tuple(dictionaries))]
    widths: dict[Site, int] = {}
    layer = -1
    layers = sorted({site.layer for site in chosen})
    for site in chosen:
        if progress and site.layer != layer:
            layer = site.layer
            progress(layers.index(layer), len(layers), f"layer {layer}")
        try:
            dictionary = dictionaries[site]
        except BadFile as error:
            said, _, advice = str(error).partition(". ")
            findings.append(finding(CheckKind.FILE, site, Severity.WRONG, said, {}, advice))
            continue
        widths[site] = dictionary.d_in
        weights = examine_weights(dictionary)
        findings += weights
        wrong = {one.check for one in weights if one.severity is Severity.WRONG}
        if model is not None and not wrong & {CheckKind.FINITE, CheckKind.ZERO_ROWS, CheckKind.FILE}:
            in_path = _STATED.search(dictionary.origin)  # Gemma Scope states the L0 in its paths
            stated = float(in_path[1]) if in_path and int(in_path[1]) else None
            stated = (stated_l0 or {}).get(site, stated)
            findings += _hidden_states(dictionary, model, batches, stated, explained=bool(wrong))
        dictionary.unload()

    # 3. the release as a whole
    if progress:
        progress(len(layers), len(layers), "done")
    if sites is None:
        findings.insert(1, _widths(widths))
    if model is not None and model.tokenizer.bos_token_id is not None:
        findings.append(_begin(model, texts, dictionaries))
    if atlas is not None:
        findings.append(_atlas(atlas, dictionaries, list(widths), model))
    name = "" if model is None else model.name
    return Examination(release, name, n_seen(batches), tuple(findings))


def _atlas(
    atlas: Atlas, dictionaries: Mapping[Site, Dictionary], sites: Collection[Site], model: LanguageModel | None
) -> Finding:
    """Check that an atlas was built from these dictionaries."""
    try:
        other = other_weights(atlas, dictionaries, sites, projector=model)
    except BadFile as error:
        said, _, advice = str(error).partition(". ")
        return finding(CheckKind.ATLAS, "", Severity.WRONG, said, {}, advice)
    is_of = f"is of other weights at {', '.join(map(str, other))}" if other else "is of these weights"
    severity, numbers = Severity.WRONG if other else Severity.OK, {"sites that differ": len(other)}
    advice = "Build it again with `saeflow atlas build`."
    return finding(CheckKind.ATLAS, "", severity, f"the atlas at {atlas.folder} {is_of}", numbers, advice)


def _begin(model: LanguageModel, texts: Sequence[str], dictionaries: Mapping[Site, Dictionary]) -> Finding:
    """Compare the loss with and without a begin-of-text token, and with what the dictionaries' files say."""
    some, now = list(texts[:_BEGUN]), model.prepend_bos
    losses: dict[bool, float] = {}
    for begun in (True, False):
        tokens = model.tokenize(some, add_bos=begun, max_length=_BEGUN_LENGTH + begun)
        # compare the same tokens: with a begin-of-text token, the first token of the text is predicted too
        losses[begun] = float(model.loss(tokens)[:, int(begun) :].nanmean())
    trained = prepend_bos_of(dictionaries)
    how = {True: "with the begin-of-text token", False: "without the begin-of-text token"}
    said = f"texts are read {how[now]}: {losses[now]:.3f} nats a token; {how[not now]} {losses[not now]:.3f}"
    numbers: dict[str, Number] = {"loss": losses[now], "loss then": losses[not now], "begins": now}
    if trained is not None and trained != now:
        said += f"; the dictionaries were trained {how[trained]}"
        advice = "Leave --prepend-bos out, which then follows the files."
        return finding(CheckKind.BEGIN, "", Severity.WRONG, said, numbers, advice)
    alike = losses[now] < losses[not now] + _MUCH or trained is not None
    advice = (
        f"No file says how training began its texts: compare with {'--no-prepend-bos' if now else '--prepend-bos'}."
    )
    return finding(CheckKind.BEGIN, "", Severity.OK if alike else Severity.LOOK, said, numbers, advice)


def _batches(model: LanguageModel, texts: Sequence[str], tokens: int) -> list[TextBatch]:
    if not texts:
        raise InvalidArgument("A model is given and no text for it to read. Give texts.")
    batches = list(text_batches(model, texts, max_length=256, max_tokens=tokens))
    if n_seen(batches) < _LEAST_TOKENS:
        raise InvalidArgument(
            f"{len(texts)} texts hold {n_seen(batches)} tokens that count, and {_LEAST_TOKENS} are needed. Give longer "
            "texts, or more."
        )
    return batches


def _hidden_states(
    dictionary: Dictionary, model: LanguageModel, batches: Sequence[TextBatch], stated: float | None, *, explained: bool
) -> list[Finding]:
    """The findings from hidden states, or one that says that the model has none of the right layer or width."""
    if own_spot(dictionary).layer < model.n_layers:
        dictionary = dictionary.for_model(model)
    own, written, site = own_spot(dictionary), written_spot(dictionary), dictionary.site
    if own.layer >= model.n_layers:
        said = f"the model has {model.n_layers} layers, and this dictionary reads layer {own.layer}"
        advice = "Load the model the release was trained on."
        return [finding(CheckKind.WIDTHS, site, Severity.WRONG, said, {"layers": model.n_layers}, advice)]
    tried = spots_around(dictionary, model)
    seen = see(model, batches, tuple(dict.fromkeys((*tried, written))))
    width = int(seen.rest[own].shape[1])
    if width != dictionary.d_in:
        fitting = [str(spot) for spot, h in seen.rest.items() if h.shape[1] == dictionary.d_in]
        said = f"reads width {dictionary.d_in}, and {own} of the model is {width} wide"
        numbers = {"reads": dictionary.d_in, "model": width}
        advice = f"Of that width here: {', '.join(fitting) or 'none'}. Correct the tap, or load the right model."
        return [finding(CheckKind.WIDTHS, site, Severity.WRONG, said, numbers, advice)]
    return examine_hidden_states(Case(dictionary, seen, own, written, tried, stated, explained))


def _sites(sites: Sequence[Site]) -> Finding:
    """Find sites, layers and parts that are missing from the release."""
    layers = sorted({site.layer for site in sites})
    parts = [part for part in Part if any(site.part is part for site in sites)]
    missing = [str(Site(layer, part)) for layer in layers for part in parts if Site(layer, part) not in sites]
    gaps = sorted(set(range(layers[0], layers[-1] + 1)) - set(layers))
    absent = [part.value for part in Part if part not in parts]
    numbers: dict[str, Number] = {"sites": len(sites), "missing": ", ".join(missing), "parts absent": " ".join(absent)}
    said = f"{len(sites)} sites of {', '.join(part.value for part in parts)} at {len(layers)} layers"
    said += f"; {', '.join(missing[:6])}{'...' if len(missing) > 6 else ''} missing" if missing else ""
    said += f"; no layer {', '.join(map(str, gaps))}" if gaps else ""
    said += f"; no {' and no '.join(absent)}" if absent else ""
    severity = Severity.LOOK if missing or gaps or absent else Severity.OK
    advice = "A flow ends where a layer is missing, and s(P) of a part that is missing is not known, which is not 0."
    return finding(CheckKind.SITES, "", severity, said, numbers, advice)


def _widths(widths: Mapping[Site, int]) -> Finding:
    """Check that all dictionaries of a part read the same width."""
    by_part = {part: {w for site, w in widths.items() if site.part is part} for part in Part}
    numbers: dict[str, Number] = {
        part.value: ", ".join(map(str, sorted(found))) for part, found in by_part.items() if found
    }
    each = "; ".join(f"{part} {text}" for part, text in numbers.items())
    if all(len(found) <= 1 for found in by_part.values()):
        return finding(CheckKind.WIDTHS, "", Severity.OK, f"widths read: {each}", numbers)
    said = f"dictionaries of one part read several widths: {each}"
    advice = "They are of several models, or of several taps: check the files of the sites that differ."
    return finding(CheckKind.WIDTHS, "", Severity.WRONG, said, numbers, advice)
