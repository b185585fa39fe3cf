"""What a dictionary makes of a model's hidden states, against what it makes of them when something is undone.

A suspicion is taken for a fault where the variance that is left unexplained falls to less than `FAULT` of what it
was, and worth a look below `UNSURE`. Of several, the one that explains most is named; the others then say that they
may be its shadow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from saeflow.doctor.findings import Check, Finding, Number, Severity
from saeflow.doctor.places import Seen, Spot
from saeflow.doctor.suspicions import SCANNED, Fit, Suspicion, cut_for, fit, suspicions
from saeflow.sources.dictionary import Dictionary

FAULT: Final = 0.6
UNSURE: Final = 0.85
_LEAST: Final = 0.02
"""FVE that a suspicion must gain, so that hairs are not split on a reconstruction that is good."""
_GOOD: Final = 0.2
"""FVE that a suspicion must reach: to be less bad is no remedy."""
_USUAL: Final = {Check.SCALE: (0.8, 1.25), Check.THRESHOLD_SCALE: (0.4, 2.5)}
"""Factors between which nothing is missing: lower thresholds explain more of any dictionary, for more features."""
_DEAD: Final = 15.0
"""Standard deviations above its mean at which a threshold counts as out of reach."""
_ADVICE: Final = {
    Check.TAP: "The release names another tensor than it was trained on: correct its hook point or pass site=...",
    Check.SCALE: "A normalisation factor is missing: fold it in (W_enc, threshold and b_enc are for c * h).",
    Check.THRESHOLD_SCALE: "The thresholds are in other units than the pre-activations: multiply them by the factor.",
    Check.CENTERING: "Set `center` in the recipe (or center_writing_weights in cfg.json) the other way.",
    Check.NORM: "Set normalize_activations in the configuration the other way.",
    Check.B_DEC: "Set apply_b_dec_to_input in the configuration the other way.",
    Check.TRANSPOSED: "Transpose that matrix in the file.",
}


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One dictionary and what was seen of the model for it; `explained`: its weights are wrong already."""

    dictionary: Dictionary
    seen: Seen
    own: Spot
    written: Spot
    tried: tuple[Spot, ...]
    stated_l0: float | None = None
    explained: bool = False


def examine_measured(case: Case) -> list[Finding]:
    """The findings from hidden states.

    Raises:
        BadFile: when a tensor read at first use is bad.
    """
    dictionary, h = case.dictionary, case.seen.rest[case.own]
    target = case.seen.rest[case.written] if dictionary.is_transcoder else None
    now = fit(dictionary, h, target)
    found = suspicions(dictionary, case.seen.rest, case.own, case.written, case.tried)
    part = fit(dictionary, h[:SCANNED], None if target is None else target[:SCANNED])
    judged = _judged(case, part, found)
    acts = _Counts.of(dictionary, h)
    faults = {finding.check for finding in judged if finding.severity is Severity.WRONG}
    may_be = not case.explained and faults <= {Check.THRESHOLD_SCALE}
    case = replace(case, explained=case.explained or bool(faults))
    l0 = _l0(case, now, thresholds_may_be=may_be)
    return [_reconstruction(case, now), *judged, l0, _first(case), *acts.findings(case, now)]


def _left(fit_: Fit) -> float:
    return 1 - fit_.fve if math.isfinite(fit_.fve) else math.inf


def _severity(now: Fit, one: Suspicion) -> Severity:
    then = one.fit
    low, high = _USUAL.get(one.check, (1.0, 1.0))
    if not then.fve > max(_GOOD, now.fve + _LEAST) or low < one.value < high:
        return Severity.OK
    ratio = _left(then) / _left(now)
    return Severity.WRONG if ratio < FAULT else Severity.LOOK if ratio < UNSURE else Severity.OK


def _judged(case: Case, now: Fit, found: list[Suspicion]) -> list[Finding]:
    """One finding for each kind of suspicion: its best."""
    best_of: dict[Check, Suspicion] = {}
    for one in found:
        known = best_of.get(one.check)
        if known is None or one.fit.fve > known.fit.fve:
            best_of[one.check] = one
    top = max(best_of.values(), key=lambda one: one.fit.fve, default=None)
    return [_suspected(case, now, one, top) for one in best_of.values() if math.isfinite(one.fit.fve)]


def _suspected(case: Case, now: Fit, one: Suspicion, top: Suspicion | None) -> Finding:
    severity = _severity(now, one)
    shadow = top is not None and one.check is not top.check and severity is not Severity.OK
    numbers: dict[str, Number] = {
        "FVE": now.fve,
        "L0": now.l0,
        "FVE then": one.fit.fve,
        "L0 then": one.fit.l0,
        "what": one.said,
    }
    if math.isfinite(one.value):
        numbers["factor"] = one.value
    site = str(case.dictionary.site)
    if severity is Severity.OK:
        said = f"as it is explains {now.fve:.3f}; {one.said}: {one.fit.fve:.3f}"
        if one.check is Check.TAP:
            said = f"{case.own} explains {now.fve:.3f}; next best, {one.said}: {one.fit.fve:.3f}"
        return Finding(one.check, site, severity, said, numbers)
    said = f"{one.said} it explains {one.fit.fve:.3f} instead of {now.fve:.3f} (L0 {one.fit.l0:.1f}, not {now.l0:.1f})"
    if one.check is Check.TAP:
        said = (
            f"reads best at {one.said.removeprefix('read at ')}, told {case.own}: explains {one.fit.fve:.3f} there "
            f"and {now.fve:.3f} here (L0 {one.fit.l0:.1f}, not {now.l0:.1f})"
        )
    if one.check is Check.SCALE:
        said += _which_factor(one.value, case.seen.rest[case.own], numbers)
    if shadow and top is not None:
        advice = f"That is less than {top.said} ({top.fit.fve:.3f}): look again when that is mended."
        return Finding(one.check, site, Severity.LOOK, said, numbers, advice)
    return Finding(one.check, site, severity, said, numbers, _ADVICE[one.check])


def _which_factor(c: float, h: Tensor, numbers: dict[str, Number]) -> str:
    """Is the factor one that releases divide by?"""
    mean = float(torch.linalg.vector_norm(h, dim=1).mean())
    known = {"sqrt(d_in) / mean |h|": h.shape[1] ** 0.5 / mean, "1 / mean |h|": 1 / mean}
    numbers.update(known)
    for name, value in known.items():
        if abs(math.log(c / value)) < math.log(1.3):
            return f"; the factor is {name} = {value:.3g}"
    return f"; sqrt(d_in) / mean |h| would be {known['sqrt(d_in) / mean |h|']:.3g}"


def _reconstruction(case: Case, now: Fit) -> Finding:
    said = f"explains {now.fve:.3f} of the variance at {case.own} with {now.l0:.1f} active features a token"
    numbers: dict[str, Number] = {"FVE": now.fve, "L0": now.l0}
    site = str(case.dictionary.site)
    if now.fve >= 0.5:
        return Finding(Check.RECONSTRUCTION, site, Severity.OK, said, numbers)
    severity = Severity.WRONG if now.fve < 0 and not case.explained else Severity.LOOK
    advice = (
        "See what is wrong at this site."
        if case.explained
        else "None of what is tried explains it: are model, revision and dictionary those that belong together?"
    )
    return Finding(Check.RECONSTRUCTION, site, severity, said, numbers, advice)


def _l0(case: Case, now: Fit, *, thresholds_may_be: bool) -> Finding:
    site, stated = str(case.dictionary.site), case.stated_l0
    if stated is None:
        return Finding(Check.L0, site, Severity.OK, f"{now.l0:.1f}; the release states none", {"L0": now.l0})
    numbers: dict[str, Number] = {"L0": now.l0, "stated": stated}
    said = f"{now.l0:.1f} active features a token, {stated:.3g} stated"
    far = max(now.l0, 1e-9) / stated
    if 0.5 <= far <= 2:
        return Finding(Check.L0, site, Severity.OK, said, numbers)
    met = cut_for(case.dictionary, case.seen.rest[case.own][:SCANNED], stated) if thresholds_may_be else None
    if met is not None:
        said += f"; that is met with the thresholds times {met:.2g}"
        numbers["factor"] = met
    if case.explained:
        return Finding(Check.L0, site, Severity.LOOK, said, numbers, "See what is wrong at this site.")
    return Finding(
        Check.L0,
        site,
        Severity.LOOK if 1 / 3 <= far <= 3 else Severity.WRONG,
        said,
        numbers,
        "Other text can move it twofold; more means thresholds in other units, or another dictionary than stated.",
    )


def _first(case: Case) -> Finding:
    """What the first token is like, which in most models is like no other."""
    first, rest = case.seen.first[case.own], case.seen.rest[case.own]
    norm = float(torch.linalg.vector_norm(first, dim=1).mean() / torch.linalg.vector_norm(rest, dim=1).mean())
    l0 = float((case.dictionary.encode(first) > 0).float().sum(dim=1).mean())
    said = f"its norm is {norm:.2g} times that of the others, and {l0:.1f} features are active on it"
    advice = "It is left out of all numbers here." if norm > 3 or norm < 1 / 3 else ""
    numbers = {"norm": norm, "L0": l0}
    return Finding(Check.FIRST_TOKEN, str(case.dictionary.site), Severity.OK, said, numbers, advice)


@dataclass(frozen=True, slots=True, eq=False)
class _Counts:
    """How often each feature fires, and how far it stays below its threshold."""

    rate: Tensor
    out_of_reach: Tensor

    @staticmethod
    def of(dictionary: Dictionary, h: Tensor) -> _Counts:
        n = dictionary.n_features
        fired, total, squares = torch.zeros(3, n, device=h.device)
        for block in torch.split(h, 512):
            fired += (dictionary.encode(block) > 0).sum(dim=0).float()
            pre = _pre(dictionary, block)
            total += pre.sum(dim=0)
            squares += pre.square().sum(dim=0)
        mean = total / len(h)
        std = (squares / len(h) - mean.square()).clamp(min=0).sqrt()
        cut = getattr(dictionary.activation, "threshold", total.new_zeros(())).float().clamp(min=0)
        return _Counts(fired / len(h), (fired == 0) & ((cut - mean) > _DEAD * std))

    def findings(self, case: Case, now: Fit) -> list[Finding]:
        site, n, tokens = str(case.dictionary.site), len(self.rate), len(case.seen.rest[case.own])
        silent = float((self.rate == 0).float().mean())
        dead = float(self.out_of_reach.float().mean())
        said = (
            f"{silent:.1%} of {n:,} were silent on {tokens:,} tokens, {dead:.1%} cannot be reached (threshold more "
            f"than {_DEAD:g} standard deviations above the mean)"
        )
        severity = Severity.LOOK if dead > 0.1 or silent == 1 else Severity.OK
        if silent == 1 and not case.explained:
            severity = Severity.WRONG
        advice = "Dead features have directions and are matched like others: leave them out of counts."
        advice = "Nothing fires: see what else is said of this site." if silent == 1 else advice
        advice = "" if severity is Severity.OK else advice
        numbers: dict[str, Number] = {"silent": silent, "out of reach": dead, "tokens": tokens}
        return [Finding(Check.DEAD, site, severity, said, numbers, advice), self._dense(site, now)]

    def _dense(self, site: str, now: Fit) -> Finding:
        dense = self.rate > 0.1
        share = float(dense.float().mean())
        of_l0 = float(self.rate[dense].sum()) / max(now.l0, 1e-9)
        said = f"{int(dense.sum())} fire on more than a tenth of the tokens ({of_l0:.0%} of L0)"
        numbers: dict[str, Number] = {"dense": int(dense.sum()), "share": share, "of L0": of_l0}
        if share <= 0.2:
            return Finding(Check.DENSE, site, Severity.OK, said, numbers)
        return Finding(
            Check.DENSE,
            site,
            Severity.LOOK,
            said,
            numbers,
            "A dictionary that is this dense is hardly sparse: see L0 and the scale of the thresholds.",
        )


def _pre(dictionary: Dictionary, h: Tensor) -> Tensor:
    """The pre-activations."""
    x, _, _ = dictionary.preprocessing.prepare(h.to(dictionary.W_enc.dtype))
    x = x - dictionary.b_dec if dictionary.preprocessing.subtract_b_dec else x
    return torch.nn.functional.linear(x, dictionary.W_enc, dictionary.b_enc).float()
