"""Is a release what it says it is: checks of its weights, and of what it makes of a model's hidden states.

    findings        what was found: plain values, no torch
    weights         from the weights alone: values, norms, thresholds, encoder against decoder, duplicates
    hidden_states   what may be wrong, each undone: how much better that reconstructs; L0, dead and dense features
    examine         all of it, for a release

A wrong tap, a transposed matrix or a missing factor gives plausible nonsense, not an error. Each is told apart by
undoing it: what makes the reconstruction much better is what is wrong.
"""

from saeflow.doctor.findings import Examination, Finding, Severity

__all__ = ["Examination", "Finding", "Severity"]
