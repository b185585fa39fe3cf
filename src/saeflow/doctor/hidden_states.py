"""How well a dictionary reconstructs a model's hidden states, as released and with each suspected fault undone.

    FVE = 1 - sum |h - h'|^2 / sum |h - mean h|^2          the fraction of variance explained, over tokens

A dictionary may have been trained on a different tensor from the one that the release names. The check tries the same
tap one layer before and after, the other taps of its layer and of the layer before, and, in models with a norm after
each module, the module's output before that norm. Neighbouring layers of a large model are very similar: a dictionary
read one layer off explains only a few hundredths less than where it was trained, and no other check notices. Since a
dictionary explains most where it was trained, any tensor whose FVE is better by `_LEAST` on all tokens is worth a look.

Positions that are massive (`sources.massive`) at any of these tensors are left out at all of them, so that the same
tokens are compared; the FVE that includes them is reported separately.

A suspicion is either another tensor to read (tap), or the same hidden states read by a corrected dictionary: the input
or the thresholds times a factor c, the input centred or normalised or not, b_dec subtracted or not, or a matrix
transposed. The factor is searched on a grid of powers of two and then refined around the best one. A suspicion counts
as a fault if the unexplained variance falls below `FAULT` of what it was, and as worth a look below `UNSURE`. If there
are several, the one that explains most is named as the fault, and the others say that they may be side effects of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.doctor.findings import CheckKind, Finding, Number, Severity, finding
from saeflow.doctor.weights import turned
from saeflow.sources.activations import Activation, BatchTopK, JumpReLU
from saeflow.sources.activity import TextBatch
from saeflow.sources.architectures import Tap, View
from saeflow.sources.dictionary import Dictionary, Norm
from saeflow.sources.hooks import watch_output
from saeflow.sources.massive import RATIO, is_massive, norm_limit
from saeflow.sources.model import LanguageModel

SCANNED: Final = 256
"""Number of tokens that suspicions are tried on."""
_COARSE: Final = 96
"""Number of tokens for the powers of two: few are enough, as all but the best factor are far off."""
_POWERS: Final = range(-7, 8)
_BLOCK: Final = 512
"""Number of tokens whose dense activations are in memory at a time."""

FAULT: Final = 0.6
UNSURE: Final = 0.85
_LEAST: Final = 0.02
"""Minimum gain in FVE for a suspicion, so that tiny gains over a good reconstruction do not count."""
_GOOD: Final = 0.2
"""Minimum FVE for a suspicion: a correction that is merely less bad is not a remedy."""
_USUAL: Final = {CheckKind.SCALE: (0.8, 1.25), CheckKind.THRESHOLD_SCALE: (0.4, 2.5)}
"""Ranges of factors that count as no fault: lower thresholds raise the FVE of any dictionary, at a higher L0."""
_DEAD: Final = 15.0
"""A threshold this many standard deviations above the mean pre-activation counts as out of reach."""
_ADVICE: Final = {
    CheckKind.TAP: "The release names another tensor than it was trained on: correct its hook point or pass site=...",
    CheckKind.SCALE: "A normalisation factor is missing: fold it in (W_enc, threshold and b_enc are for c * h).",
    CheckKind.THRESHOLD_SCALE: (
        "The thresholds are in other units than the pre-activations: multiply them by the factor."
    ),
    CheckKind.CENTERING: "Set `center` in the recipe (or center_writing_weights in cfg.json) the other way.",
    CheckKind.NORM: "Set normalize_activations in the configuration the other way.",
    CheckKind.B_DEC: "Set apply_b_dec_to_input in the configuration the other way.",
    CheckKind.TRANSPOSED: "Transpose that matrix in the file.",
}


@dataclass(frozen=True, order=True)
class Spot:
    """A tensor of a layer: the one at a tap, or the output of the module there before its norm (`raw`)."""

    layer: int
    tap: Tap
    raw: bool = False

    def __str__(self) -> str:
        """`3/att`, `3/att before o_proj`, `3/mlp before its norm`, `embedding`."""
        if self.layer < 0:
            return "embedding"
        name = {Tap.Z: "att before o_proj", Tap.MLP_IN: "mlp_in", Tap.MID: "mid"}.get(self.tap, self.tap.value)
        return f"{self.layer}/{name}{' before its norm' if self.raw else ''}"


@dataclass(frozen=True, eq=False)
class CapturedPlaces:
    """Hidden states at several spots; at every spot the rows belong to the same tokens.

    Attributes:
        rest: states of the ordinary tokens: not special, not the first of a text, and massive at no spot.
        first: states of the first token of each text.
        massive: states of tokens that are not special and massive at one or more spots, possibly the first of a text.
        limits: the squared norm above which a token is massive, for each spot.
    """

    rest: Mapping[Spot, Float[Tensor, "n d"]]
    first: Mapping[Spot, Float[Tensor, "k d"]]
    massive: Mapping[Spot, Float[Tensor, "m d"]]
    limits: Mapping[Spot, float]


def own_spot(dictionary: Dictionary) -> Spot:
    """The tensor that the dictionary reads, according to the release."""
    point = dictionary.point
    return Spot(point.layer, point.tap, raw=point.view is View.MODULE)


def written_spot(dictionary: Dictionary) -> Spot:
    """The tensor that the dictionary reconstructs: the one it reads, except for a transcoder."""
    raw = dictionary.training.view is View.MODULE
    site = dictionary.site
    return Spot(site.layer, Tap.of(site.part), raw=raw) if dictionary.is_transcoder else own_spot(dictionary)


def spots_around(dictionary: Dictionary, model: LanguageModel) -> tuple[Spot, ...]:
    """The spots to try for a dictionary, its own first; spots of another width are skipped later, once captured."""
    own = own_spot(dictionary)
    taps = list(Tap)
    spots = [own, *(Spot(own.layer + step, own.tap) for step in (-1, 1))]
    spots += [Spot(own.layer + step, tap) for step in (0, -1) for tap in taps]
    if model.architecture.att_norm is not None:
        spots += [Spot(own.layer, tap, raw=True) for tap in (Tap.ATT, Tap.MLP)]
    embedding = Spot(-1, Tap.RES)
    return tuple(dict.fromkeys(spot for spot in spots if 0 <= spot.layer < model.n_layers or spot == embedding))


def see(model: LanguageModel, batches: Sequence[TextBatch], spots: Sequence[Spot]) -> CapturedPlaces:
    """Run the model over the batches and capture the hidden states at the spots.

    Raises:
        UnknownSite: for a layer the model does not have.
    """
    rows: dict[Spot, list[Tensor]] = {spot: [] for spot in spots}
    first: dict[Spot, list[Tensor]] = {spot: [] for spot in spots}
    begins: list[Tensor] = []
    plain = [spot for spot in spots if not spot.raw and spot.layer >= 0]
    embedded = [spot for spot in spots if spot.layer < 0]
    for batch in batches:
        captured: dict[Spot, Tensor] = {}
        with ExitStack() as stack:
            for spot in spots:
                if spot.raw:
                    module = model.block(spot.layer).get_submodule(model.architecture.module(spot.tap, View.MODULE))

                    def keep(h: Tensor, spot: Spot = spot, captured: dict[Spot, Tensor] = captured) -> None:
                        captured[spot] = h.detach()

                    stack.callback(watch_output(module, keep).remove)
            ran = model.capture(
                batch.tokens,
                [(spot.layer, spot.tap) for spot in plain],
                inputs=[0] if embedded else [],
                stop_after_last=not any(spot.raw for spot in spots),
            )
        captured |= {spot: ran[spot.layer, spot.tap] for spot in plain}
        captured |= dict.fromkeys(embedded, ran.inputs.get(0, torch.empty(0)))
        begin = torch.zeros_like(batch.real)
        begin[:, 0] = True
        begins.append(begin[batch.real])
        for spot in spots:
            rows[spot].append(captured[spot][batch.real].float())
            first[spot].append(captured[spot][:, 0].float())
    h, begins_text = {spot: torch.cat(parts) for spot, parts in rows.items()}, torch.cat(begins)
    limits = {spot: norm_limit(of[~begins_text]) for spot, of in h.items()}
    massive = torch.stack([is_massive(of, limits[spot]) for spot, of in h.items()]).any(dim=0)
    return CapturedPlaces(
        {spot: of[~(massive | begins_text)] for spot, of in h.items()},
        {spot: torch.cat(parts) for spot, parts in first.items()},
        {spot: of[massive] for spot, of in h.items()},
        limits,
    )


def n_seen(batches: Sequence[TextBatch]) -> int:
    """The number of tokens that `see` examines: those that are not special and not the first of their text."""
    return sum(int(batch.real[:, 1:].sum()) for batch in batches)


@dataclass(frozen=True, slots=True)
class Fit:
    """How well hidden states are reconstructed, and with how many active features per token."""

    fve: float
    l0: float


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A suspected fault, the correction that was tried, and the resulting fit.

    Attributes:
        check: the kind of fault.
        said: the correction in words: "read at 3/att", "with the input times 13.9".
        fit: the fit with the correction.
        value: the factor, if the correction is one; else NaN.
        spot: the tensor read instead, if the correction is another tensor.
    """

    check: CheckKind
    said: str
    fit: Fit
    value: float = math.nan
    spot: Spot | None = None


def fve(h: Float[Tensor, "n d"], made: Float[Tensor, "n d"]) -> float:
    """The fraction of the variance of `h` over tokens that `made` explains: at most 1, negative if it does harm."""
    total = (h - h.mean(dim=0)).square().sum()
    return float(1 - (h - made).square().sum() / total) if float(total) > 0 else math.nan


def fit(
    dictionary: Dictionary,
    read: Float[Tensor, "n d_in"],
    written: Float[Tensor, "n d_out"] | None = None,
    *,
    scale: float = 1.0,
) -> Fit:
    """Encode `read` times `scale`, decode, divide by `scale`, and compare with `written`, by default `read` itself.

    With `written` (a transcoder) the output is not divided, being a different tensor. If the dictionary centres its
    input, the target `read` is centred too.

    Raises:
        WidthMismatch: when `read` is not `d_in` wide.
    """
    target = read if written is None else written
    made: list[Tensor] = []
    active = 0
    for block in torch.split(read, _BLOCK):
        acts = dictionary.encode(block * scale)
        active += int((acts > 0).sum())
        made.append(dictionary.decode(acts, block * scale))
    found = torch.cat(made).float()
    if written is None:
        found = found / scale
        if dictionary.preprocessing.center:
            target = target - target.mean(dim=-1, keepdim=True)
    return Fit(fve(target.float(), found), active / max(len(read), 1))


def variant(
    dictionary: Dictionary,
    *,
    activation: Activation | None = None,
    W_enc: Tensor | None = None,
    W_dec: Tensor | None = None,
    **preprocessing: bool | Norm,
) -> Dictionary:
    """A copy of the dictionary with the given parts changed; all other tensors are shared.

    Raises:
        InvalidArgument: when shapes do not match.
    """
    return Dictionary(
        dictionary.site,
        tap=dictionary.tap,
        W_enc=dictionary.W_enc if W_enc is None else W_enc,
        b_enc=dictionary.b_enc,
        W_dec=dictionary.W_dec if W_dec is None else W_dec,
        b_dec=dictionary.b_dec,
        W_skip=dictionary.W_skip,
        activation=activation or dictionary.activation,
        preprocessing=replace(dictionary.preprocessing, **preprocessing),  # pyright: ignore[reportArgumentType]
        training=dictionary.training,
    )


def suspicions(
    dictionary: Dictionary,
    captured: Mapping[Spot, Tensor],
    own: Spot,
    target: Float[Tensor, "n d_out"] | None,
    tried: tuple[Spot, ...],
) -> list[Suspicion]:
    """Try every applicable correction on these hidden states; `target` is the tensor that a transcoder writes.

    Raises:
        BadFile: when a tensor that is read on first use is bad.
    """
    h, before = captured[own][:SCANNED], dictionary.preprocessing
    target = None if target is None else target[:SCANNED]
    found: list[Suspicion] = []

    def first(n: int) -> Tensor | None:
        return None if target is None else target[:n]

    # 1. read another tensor
    for spot in tried:
        if spot != own and captured[spot].shape[1] == dictionary.d_in:
            at = fit(dictionary, captured[spot][:SCANNED], target)
            found.append(Suspicion(CheckKind.TAP, f"read at {spot}", at, spot=spot))

    # 2. a missing factor on the input or on the thresholds
    if before.norm is Norm.NONE:
        c, best = _best_factor(lambda c, n: fit(dictionary, h[:n], first(n), scale=c))
        found.append(Suspicion(CheckKind.SCALE, f"with the input times {c:.3g}", best, c))
    activation = dictionary.activation
    if isinstance(activation, JumpReLU | BatchTopK) and bool((activation.threshold != 0).any()):

        def with_thresholds(c: float, n: int) -> Fit:
            scaled = replace(activation, threshold=activation.threshold * c)
            return fit(variant(dictionary, activation=scaled), h[:n], first(n))

        c, best = _best_factor(with_thresholds)
        found.append(Suspicion(CheckKind.THRESHOLD_SCALE, f"with the thresholds times {c:.3g}", best, c))

    # 3. each correction of the dictionary itself
    said = f"with the input {'not ' if before.center else ''}centred"
    changed = [(CheckKind.CENTERING, said, variant(dictionary, center=not before.center))]
    for norm, said in (
        (Norm.NONE, "with the input not normalised"),
        (Norm.RESCALE, "with each token brought to norm sqrt(d_in)"),
        (Norm.LAYER_NORM, "with each token layer-normed"),
    ):
        if norm is not before.norm:
            changed.append((CheckKind.NORM, said, variant(dictionary, norm=norm)))
    if not dictionary.is_transcoder:
        said = f"with b_dec {'not ' if before.subtract_b_dec else ''}subtracted from the input"
        changed.append((CheckKind.B_DEC, said, variant(dictionary, subtract_b_dec=not before.subtract_b_dec)))
        flipped = variant(dictionary, W_dec=turned(dictionary.W_dec))
        changed.append((CheckKind.TRANSPOSED, "with the decoder read the other way round", flipped))
        flipped = variant(dictionary, W_enc=turned(dictionary.W_enc))
        changed.append((CheckKind.TRANSPOSED, "with the encoder read the other way round", flipped))
    return found + [Suspicion(check, said, fit(made, h, target)) for check, said, made in changed]


def cut_for(dictionary: Dictionary, h: Float[Tensor, "n d_in"], l0: float) -> float | None:
    """The factor on the thresholds at which `l0` features per token are active; None if no factor achieves it.

    Found by bisection on the logarithm of the factor between 1/128 and 128: lower thresholds activate more features.
    """
    activation = dictionary.activation
    if not isinstance(activation, JumpReLU | BatchTopK) or not bool((activation.threshold > 0).any()):
        return None

    def active(power: float) -> float:
        cut = replace(activation, threshold=activation.threshold * 2.0**power)
        return float((variant(dictionary, activation=cut).encode(h) > 0).sum()) / len(h)

    low, high = float(_POWERS[0]), float(_POWERS[-1])
    if not active(high) <= l0 <= active(low):
        return None
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if active(middle) > l0 else (low, middle)
    return 2.0 ** ((low + high) / 2)


def _best_factor(at: Callable[[float, int], Fit]) -> tuple[float, Fit]:
    """The factor with the highest FVE: first powers of two on few tokens, then finer steps around the best one."""
    coarse = {float(power): at(2.0**power, _COARSE).fve for power in _POWERS if power != 0}
    middle = max(coarse, key=lambda power: coarse[power])
    found = {middle: at(2.0**middle, SCANNED)}
    for step in (0.5, 0.25, 0.125, 0.0625):
        middle = max(found, key=lambda power: found[power].fve)
        found |= {power: at(2.0**power, SCANNED) for power in (middle - step, middle + step)}
    best = max(found, key=lambda power: found[power].fve)
    return 2.0**best, found[best]


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A dictionary and its hidden states; `explained` says that a fault already found would explain a bad fit."""

    dictionary: Dictionary
    seen: CapturedPlaces
    own: Spot
    written: Spot
    tried: tuple[Spot, ...]
    stated_l0: float | None = None
    explained: bool = False


def examine_hidden_states(case: Case) -> list[Finding]:
    """The findings from hidden states.

    Raises:
        BadFile: when a tensor that is read on first use is bad.
    """
    dictionary, h = case.dictionary, case.seen.rest[case.own]
    target = case.seen.rest[case.written] if dictionary.is_transcoder else None
    now = fit(dictionary, h, target)

    # 1. suspicions: one finding for the best correction of each kind
    best_of: dict[CheckKind, Suspicion] = {}
    for one in suspicions(dictionary, case.seen.rest, case.own, target, case.tried):
        known = best_of.get(one.check)
        if known is None or one.fit.fve > known.fit.fve:
            best_of[one.check] = one
    part = fit(dictionary, h[:SCANNED], None if target is None else target[:SCANNED])
    nows = dict.fromkeys(best_of, part)
    tap = best_of.get(CheckKind.TAP)
    if tap is not None and tap.spot is not None and tap.fit.fve > part.fve:  # may be close: use all tokens
        best_of[CheckKind.TAP] = replace(tap, fit=fit(dictionary, case.seen.rest[tap.spot], target))
        nows[CheckKind.TAP] = now
    tried = [one for one in best_of.values() if math.isfinite(one.fit.fve)]
    suspect = [one for one in tried if _severity(nows[one.check], one) is not Severity.OK]
    top = max(suspect, key=lambda one: one.fit.fve, default=None)
    judged = [_judged(case, nows[one.check], one, top) for one in tried]
    faults = {one.check for one in judged if one.severity is Severity.WRONG}
    thresholds_may_be = not case.explained and faults <= {CheckKind.THRESHOLD_SCALE}
    case = replace(case, explained=case.explained or bool(faults))

    # 2. the reconstruction as released
    severity = (
        Severity.OK if now.fve >= 0.5 else Severity.WRONG if now.fve < 0 and not case.explained else Severity.LOOK
    )
    reconstruction = finding(
        CheckKind.RECONSTRUCTION,
        dictionary.site,
        severity,
        f"explains {now.fve:.3f} of the variance at {case.own} with {now.l0:.1f} active features a token",
        {"FVE": now.fve, "L0": now.l0},
        "See what is wrong at this site."
        if case.explained
        else "None of what is tried explains it: are model, revision and dictionary those that belong together?",
    )

    # 3. the first token, which in most models is unlike any other
    first = case.seen.first[case.own]
    norm = float(torch.linalg.vector_norm(first, dim=1).mean() / torch.linalg.vector_norm(h, dim=1).mean())
    l0 = float((dictionary.encode(first) > 0).float().sum(dim=1).mean())
    said = f"its norm is {norm:.2g} times that of the others, and {l0:.1f} features are active on it"
    advice = "It is left out of all numbers here." if norm > 3 or norm < 1 / 3 else ""
    numbers = {"norm": norm, "L0": l0}
    first_token = Finding(CheckKind.FIRST_TOKEN, str(dictionary.site), Severity.OK, said, numbers, advice)
    l0_stated = _l0(case, now, thresholds_may_be=thresholds_may_be)
    return [reconstruction, *judged, l0_stated, first_token, _massive(case, now), *_dead_and_dense(case, now)]


def _massive(case: Case, now: Fit) -> Finding:
    """Count the massive positions where the dictionary reads or writes; also the FVE with all excluded positions."""
    dictionary, seen = case.dictionary, case.seen
    here = dict.fromkeys((case.own, case.written))
    n = int(torch.stack([is_massive(seen.massive[spot], seen.limits[spot]) for spot in here]).any(dim=0).sum())
    left_out = len(seen.massive[case.own])
    of = left_out + len(seen.rest[case.own])
    h = torch.cat([seen.rest[case.own], seen.massive[case.own]])
    target = torch.cat([seen.rest[case.written], seen.massive[case.written]]) if dictionary.is_transcoder else None
    everything = fit(dictionary, h, target) if left_out else now
    said = f"{n:,} of {of:,} positions have a squared norm of more than {RATIO:g} medians"
    if left_out:
        said += f"; {left_out:,} that have it here or at a tensor tried are left out, with them FVE is "
        said += f"{everything.fve:.3f} instead of {now.fve:.3f}"
    numbers: dict[str, Number] = {"massive": n, "left out": left_out, "positions": of}
    numbers |= {"FVE": now.fve, "FVE of all": everything.fve}
    return finding(CheckKind.MASSIVE, dictionary.site, Severity.OK, said, numbers)


def _severity(now: Fit, one: Suspicion) -> Severity:
    """Grade a suspicion by how much unexplained variance it removes; for another tensor, `_LEAST` is enough."""
    low, high = _USUAL.get(one.check, (1.0, 1.0))
    if one.fit.fve <= max(_GOOD, now.fve + _LEAST) or low < one.value < high:
        return Severity.OK
    ratio = (1 - one.fit.fve) / (1 - now.fve if math.isfinite(now.fve) else math.inf)
    if ratio < FAULT:
        return Severity.WRONG
    return Severity.LOOK if ratio < UNSURE or one.check is CheckKind.TAP else Severity.OK


def _judged(case: Case, now: Fit, one: Suspicion, top: Suspicion | None) -> Finding:
    """The finding for a suspicion; `top` is the suspicion with the highest FVE among those that are not ok."""
    # 1. grade it by how much less it leaves unexplained
    severity = _severity(now, one)
    numbers: dict[str, Number] = {
        "FVE": now.fve,
        "L0": now.l0,
        "FVE then": one.fit.fve,
        "L0 then": one.fit.l0,
        "what": one.said,
    }
    if math.isfinite(one.value):
        numbers["factor"] = one.value
    if severity is Severity.OK:
        said = f"as it is explains {now.fve:.3f}; {one.said}: {one.fit.fve:.3f}"
        if one.check is CheckKind.TAP:
            said = f"{case.own} explains {now.fve:.3f}; next best, {one.said}: {one.fit.fve:.3f}"
        return finding(one.check, case.dictionary.site, severity, said, numbers)

    # 2. describe it in a sentence
    said = f"{one.said} it explains {one.fit.fve:.3f} instead of {now.fve:.3f} (L0 {one.fit.l0:.1f}, not {now.l0:.1f})"
    if one.check is CheckKind.TAP:
        said = (
            f"reads best at {one.said.removeprefix('read at ')}, told {case.own}: explains {one.fit.fve:.3f} there "
            f"and {now.fve:.3f} here (L0 {one.fit.l0:.1f}, not {now.l0:.1f})"
        )
    if one.check is CheckKind.SCALE:  # compare with the factors that releases commonly divide by
        h = case.seen.rest[case.own]
        mean = float(torch.linalg.vector_norm(h, dim=1).mean())
        known = {"sqrt(d_in) / mean |h|": h.shape[1] ** 0.5 / mean, "1 / mean |h|": 1 / mean}
        numbers |= known
        near = [name for name, value in known.items() if abs(math.log(one.value / value)) < math.log(1.3)]
        said += (
            f"; the factor is {near[0]} = {known[near[0]]:.3g}"
            if near
            else f"; sqrt(d_in) / mean |h| would be {known['sqrt(d_in) / mean |h|']:.3g}"
        )
    advice = _ADVICE[one.check]
    if top is not None and one.check is not top.check:
        severity = Severity.LOOK
        advice = f"That is less than {top.said} ({top.fit.fve:.3f}): look again when that is mended."
    return finding(one.check, case.dictionary.site, severity, said, numbers, advice)


def _l0(case: Case, now: Fit, *, thresholds_may_be: bool) -> Finding:
    """Compare the number of active features per token with what the release states."""
    site, stated = case.dictionary.site, case.stated_l0
    if stated is None:
        return finding(CheckKind.L0, site, Severity.OK, f"{now.l0:.1f}; the release states none", {"L0": now.l0})
    numbers: dict[str, Number] = {"L0": now.l0, "stated": stated}
    said = f"{now.l0:.1f} active features a token, {stated:.3g} stated"
    far = max(now.l0, 1e-9) / stated
    if 0.5 <= far <= 2:
        return finding(CheckKind.L0, site, Severity.OK, said, numbers)
    met = cut_for(case.dictionary, case.seen.rest[case.own][:SCANNED], stated) if thresholds_may_be else None
    if met is not None:
        said += f"; that is met with the thresholds times {met:.2g}"
        numbers["factor"] = met
    if case.explained:
        return finding(CheckKind.L0, site, Severity.LOOK, said, numbers, "See what is wrong at this site.")
    severity = Severity.LOOK if 1 / 3 <= far <= 3 else Severity.WRONG
    advice = "Other text can move it twofold; more means thresholds in other units, or another dictionary than stated."
    return finding(CheckKind.L0, site, severity, said, numbers, advice)


def _dead_and_dense(case: Case, now: Fit) -> list[Finding]:
    """How often each feature fires, and whether features that never fire could reach their thresholds."""
    dictionary, h = case.dictionary, case.seen.rest[case.own]
    n, site = dictionary.n_features, dictionary.site
    fired, total, squares = torch.zeros(3, n, device=h.device)
    for block in torch.split(h, _BLOCK):
        fired += (dictionary.encode(block) > 0).sum(dim=0).float()
        x, _, _ = dictionary.preprocessing.prepare(block.to(dictionary.W_enc.dtype))
        x = x - dictionary.b_dec if dictionary.preprocessing.subtract_b_dec else x
        pre = torch.nn.functional.linear(x, dictionary.W_enc, dictionary.b_enc).float()
        total += pre.sum(dim=0)
        squares += pre.square().sum(dim=0)
    rate, mean = fired / len(h), total / len(h)
    std = (squares / len(h) - mean.square()).clamp(min=0).sqrt()
    cut = getattr(dictionary.activation, "threshold", total.new_zeros(())).float().clamp(min=0)

    silent = float((rate == 0).float().mean())
    dead = float(((fired == 0) & ((cut - mean) > _DEAD * std)).float().mean())
    said = (
        f"{silent:.1%} of {n:,} were silent on {len(h):,} tokens, {dead:.1%} cannot be reached (threshold more "
        f"than {_DEAD:g} standard deviations above the mean)"
    )
    severity = Severity.LOOK if dead > 0.1 or silent == 1 else Severity.OK
    severity = Severity.WRONG if silent == 1 and not case.explained else severity
    advice = "Dead features have directions and are matched like others: leave them out of counts."
    advice = "Nothing fires: see what else is said of this site." if silent == 1 else advice
    numbers: dict[str, Number] = {"silent": silent, "out of reach": dead, "tokens": len(h)}
    found = [finding(CheckKind.DEAD, site, severity, said, numbers, advice)]

    dense = rate > 0.1
    share, of_l0 = float(dense.float().mean()), float(rate[dense].sum()) / max(now.l0, 1e-9)
    said = f"{int(dense.sum())} fire on more than a tenth of the tokens ({of_l0:.0%} of L0)"
    advice = "A dictionary that is this dense is hardly sparse: see L0 and the scale of the thresholds."
    numbers = {"dense": int(dense.sum()), "share": share, "of L0": of_l0}
    severity = Severity.OK if share <= 0.2 else Severity.LOOK
    return [*found, finding(CheckKind.DENSE, site, severity, said, numbers, advice)]
