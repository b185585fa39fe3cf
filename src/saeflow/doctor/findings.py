"""The findings of an examination, as plain values for reports, pages and JSON. Does not import torch."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

Number: TypeAlias = float | int | str | bool


class Severity(enum.StrEnum):
    """How serious a finding is."""

    OK = "ok"
    """As it should be."""
    LOOK = "look"
    """Unusual, but possibly intended."""
    WRONG = "wrong"
    """Activations or directions are not what the release says."""

    @property
    def rank(self) -> int:
        """0 for ok, 1 for look, 2 for wrong."""
        return list(Severity).index(self)


class CheckKind(enum.StrEnum):
    """The property that was checked."""

    SITES = "sites"
    ATLAS = "atlas"
    WIDTHS = "widths"
    FILE = "file"
    FINITE = "finite values"
    ZERO_ROWS = "zero rows"
    NORMS = "decoder norms"
    THRESHOLDS = "thresholds"
    ALIGNMENT = "encoder against decoder"
    TRANSPOSED = "transposed"
    ORDER = "order of features"
    DUPLICATES = "duplicates"
    RECONSTRUCTION = "reconstruction"
    TAP = "tap"
    SCALE = "scale of the input"
    THRESHOLD_SCALE = "scale of the thresholds"
    CENTERING = "centring"
    NORM = "normalisation"
    B_DEC = "subtraction of b_dec"
    L0 = "L0"
    BEGIN = "begin of text"
    FIRST_TOKEN = "first token"  # noqa: S105
    MASSIVE = "massive positions"
    DEAD = "dead features"
    DENSE = "dense features"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: what was checked.
        site: the site, such as "24/res"; empty for the release as a whole.
        severity: how serious it is.
        said: what was found, in a sentence with its numbers.
        numbers: the same numbers by name.
        advice: what to do, in a sentence; empty when nothing needs doing.
    """

    check: CheckKind
    site: str
    severity: Severity
    said: str
    numbers: Mapping[str, Number]
    advice: str = ""


def finding(
    check: CheckKind, site: object, severity: Severity, said: str, numbers: Mapping[str, Number], advice: str = ""
) -> Finding:
    """Make a finding about a site, or about the release for ""; advice is dropped when the severity is ok."""
    return Finding(check, str(site), severity, said, numbers, "" if severity is Severity.OK else advice)


@dataclass(frozen=True, slots=True)
class Examination:
    """All findings of a release.

    Attributes:
        release: the name of the release.
        model: the model that the hidden states came from; empty if only the weights were examined.
        n_tokens: number of tokens examined, not counting special tokens and the first position of each text.
        findings: the list of sites and widths of the release, then the sites in turn, then the begin of text and atlas.
    """

    release: str
    model: str
    n_tokens: int
    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Severity:
        """The highest severity among the findings."""
        return max((finding.severity for finding in self.findings), key=lambda s: s.rank, default=Severity.OK)

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings with this severity."""
        return tuple(finding for finding in self.findings if finding.severity is severity)

    def to_json(self) -> dict[str, Any]:
        """The examination as JSON-serialisable values."""
        return {
            "release": self.release,
            "model": self.model,
            "n_tokens": self.n_tokens,
            "worst": self.worst.value,
            "findings": [asdict(finding) for finding in self.findings],
        }
