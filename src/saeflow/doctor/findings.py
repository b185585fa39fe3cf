"""What an examination found, as plain values that a report, a page or JSON shows. No torch."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

Number: TypeAlias = float | int | str | bool


class Severity(enum.StrEnum):
    """How a finding is to be taken."""

    OK = "ok"
    """As it should be."""
    LOOK = "look"
    """Unusual; it may be meant."""
    WRONG = "wrong"
    """Activations or directions are not what the release says."""

    @property
    def rank(self) -> int:
        """0 for ok, 2 for wrong."""
        return list(Severity).index(self)


class CheckKind(enum.StrEnum):
    """What was looked at."""

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
    """One thing that was looked at.

    Attributes:
        check: what was looked at.
        site: the site, such as "24/res"; empty for the release as a whole.
        severity: how to take it.
        said: what was found, in a sentence with its numbers.
        numbers: the same numbers by name.
        advice: what to do, in a sentence; empty when nothing is to be done.
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
    """A finding of a site, or of the release for ""; one that is ok needs no advice."""
    return Finding(check, str(site), severity, said, numbers, "" if severity is Severity.OK else advice)


@dataclass(frozen=True, slots=True)
class Examination:
    """All findings of a release.

    Attributes:
        release: its name.
        model: the model its hidden states came from; empty where weights alone were looked at.
        n_tokens: over how many tokens, those that are special not counted.
        findings: in the order they were made: the release, then site by site.
    """

    release: str
    model: str
    n_tokens: int
    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Severity:
        """The gravest severity there is."""
        return max((finding.severity for finding in self.findings), key=lambda s: s.rank, default=Severity.OK)

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity is severity)

    def to_json(self) -> dict[str, Any]:
        """Values that JSON can hold."""
        return {
            "release": self.release,
            "model": self.model,
            "n_tokens": self.n_tokens,
            "worst": self.worst.value,
            "findings": [asdict(finding) for finding in self.findings],
        }
