"""Causal trials at one token: many counterfactuals of a text, with the least recomputation that is still exact.

    text = PreparedText(model, dictionaries, tokens, layers=[6])
    index, value = text.active(Site.parse("6/res"), 17)
    [outcome] = text.run([Trial(6, 17, (Rescale((predecessor,)),), (target,))])

The protocol is that of sections 4.2 and 5.2 and appendix A.2 of arXiv 2502.03032. `trial.py` defines trials,
`engine.py` computes their outcomes.
"""

from saeflow.experiments.causal.engine import PreparedText
from saeflow.experiments.causal.trial import Outcome, RemoveError, Trial

__all__ = ["Outcome", "PreparedText", "RemoveError", "Trial"]
