"""Check whether a release is what it claims to be, from its weights and from how it encodes a model's hidden states.

    findings        the findings as plain values, without torch
    weights         checks of the weights: values, norms, thresholds, encoder against decoder, duplicates
    hidden_states   possible faults, each undone to see how much the reconstruction improves; L0, dead, dense features
    examine         all checks, for a whole release

A wrong tap, a transposed matrix or a missing factor gives plausible nonsense, not an error. Undoing each possible fault
tells them apart: the one whose correction improves the reconstruction most is the likely cause.
"""

from saeflow.doctor.findings import Examination, Finding, Severity

__all__ = ["Examination", "Finding", "Severity"]
