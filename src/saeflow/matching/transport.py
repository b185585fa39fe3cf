"""Match features by optimal transport between the hidden states that express them (Cao et al. 2026, arXiv 2605.28567).

A feature is a distribution over tokens, each weighted by the feature's activation there. A token is represented by its
hidden state at one reference site, the same for every feature, so that features of any two sites are compared in one
space:

    mu_f = sum_t a_f(t) delta(s_t) / sum_t a_f(t)        s_t  hidden state of token t, less the mean, at unit norm
    score(f, g) = max over couplings pi of mu_f and mu_g of the mean of s . s' = 1 - W_2(mu_f, mu_g)^2 / 2

The score lies in [-1, 1], and is 1 for equal distributions. It does not change if a feature's activations are scaled.

1. From each distribution the same number of tokens is drawn, all of equal mass, token t with probability
   a_f(t) / sum a_f. The draws are exponential races (the token with the smallest E_t / a_f(t) wins), with E shared by
   all features: features that fire alike draw the same tokens, so sampling noise does not separate them.
2. Between equal masses optimal transport is an assignment, which scipy solves exactly.
3. Only the pairs with the nearest means are solved, as W_2 is at least the distance of the means:

       score(f, g) <= 1 - |m_f - m_g|^2 / 2

   The search of a feature ends when this bound falls to its k-th best score, which proves its matches, or after a
   limited number of candidates; without a limit it always ends with the proof.

The paper's abstract leaves open which space is shared and how many tokens are drawn; both are chosen here.
"""

from __future__ import annotations

from typing import Final, cast

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float32, Int64
from scipy.optimize import linear_sum_assignment

from saeflow.errors import InvalidArgument

METHOD: Final = "transport"
ATOMS: Final = 64
"""Tokens drawn per feature."""
CANDIDATES: Final = 16
"""Pairs solved per feature at most."""
_AT_ONCE: Final = 8
"""Candidates whose costs are computed in one product."""


def unit_states(
    states: Float32[np.ndarray, "n_tokens d"], counts: Bool[np.ndarray, " n_tokens"]
) -> Float32[np.ndarray, "n_tokens d"]:
    """Hidden states less their mean over the tokens in `counts`, at unit norm; zeros stay zeros.

    They take the place of `states`, which may fill much of the memory.
    """
    states -= states.mean(axis=0, dtype=np.float64, where=counts[:, None]).astype(np.float32)
    norms = np.linalg.norm(states, axis=1, keepdims=True)
    states /= np.where(norms > 0, norms, 1)
    return states


def draw_atoms(acts: sp.csc_array, *, atoms: int = ATOMS, seed: int = 0) -> Int64[np.ndarray, "n_features atoms"]:
    """Draw tokens for each feature with probabilities proportional to its activations; -1 if it never fires.

    Args:
        acts: activations, tokens by features, none below 0.
        atoms: tokens per feature.
        seed: seed of the races; must be the same for all features that are compared.

    Raises:
        InvalidArgument: for fewer than 1 atom.
    """
    if atoms < 1:
        raise InvalidArgument(f"atoms={atoms} tokens do not stand for a feature. Give 1 or more.")
    n_tokens, n_features = cast("tuple[int, int]", acts.shape)
    race = np.random.default_rng(seed).standard_exponential((n_tokens, atoms), dtype=np.float32)
    drawn = np.full((n_features, atoms), -1, dtype=np.int64)
    for feature in range(n_features):
        here = slice(acts.indptr[feature], acts.indptr[feature + 1])
        tokens, weight = acts.indices[here], acts.data[here]
        tokens, weight = tokens[weight > 0], weight[weight > 0]
        if len(tokens):
            drawn[feature] = tokens[(race[tokens] / weight[:, None]).argmin(axis=0)]
    return drawn


def top_transport(
    one: Int64[np.ndarray, "n atoms"],
    other: Int64[np.ndarray, "m atoms"],
    states: Float32[np.ndarray, "n_tokens d"],
    k: int,
    *,
    candidates: int | None = CANDIDATES,
) -> tuple[tuple[Int64[np.ndarray, "_ k"], Float32[np.ndarray, "_ k"]], ...]:
    """The `k` best of `other` for each feature of `one`, and the other way round, as (index, score), best first.

    Index 0 with score -inf marks a missing match: for a feature that never fires, and where fewer than `k` features of
    the other side fire.

    Args:
        one: `draw_atoms` of the source.
        other: `draw_atoms` of the target, with the same seed.
        states: `unit_states` of the tokens that atoms number.
        k: matches per feature.
        candidates: pairs solved per feature at most, and at least k; None for as many as the proof takes.

    Raises:
        InvalidArgument: when `k` is not between 1 and the smaller number of features.
    """
    most = max(candidates, k) if candidates is not None else None
    smaller = min(len(one), len(other))
    if not 1 <= k <= smaller:
        raise InvalidArgument(f"k={k} matches were asked of {smaller} features. Give k between 1 and {smaller}.")
    means = [np.where(side[:, :1] >= 0, states[side].mean(axis=1), 0) for side in (one, other)]
    solved: dict[tuple[int, int], float] = {}
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for back, (source, target) in enumerate(((one, other), (other, one))):
        mine, theirs = (means[1], means[0]) if back else (means[0], means[1])
        fires = np.flatnonzero(target[:, 0] >= 0)
        index = np.zeros((len(source), k), dtype=np.int64)
        score = np.full((len(source), k), -np.inf, dtype=np.float32)
        for row in np.flatnonzero(source[:, 0] >= 0).tolist():
            bound = 1 - np.square(theirs[fires] - mine[row]).sum(axis=1) / 2
            order = np.argsort(-bound, kind="stable")[:most]
            searched, bounds = fires[order].tolist(), bound[order]
            best = _best_of(row, source[row], target, searched, bounds, states, k, solved, back=bool(back))
            index[row, : len(best)] = [i for i, _ in best]
            score[row, : len(best)] = [s for _, s in best]
        found.append((index, score))
    return tuple(found)


def _best_of(
    row: int,
    own: Int64[np.ndarray, " atoms"],
    target: Int64[np.ndarray, "m atoms"],
    searched: list[int],
    bounds: Float32[np.ndarray, " n_searched"],
    states: Float32[np.ndarray, "n_tokens d"],
    k: int,
    solved: dict[tuple[int, int], float],
    *,
    back: bool,
) -> list[tuple[int, float]]:
    """The `k` best targets of a feature; scores of (source, target) are taken from `solved`, and new ones added."""
    best: list[tuple[int, float]] = []
    for start in range(0, len(searched), _AT_ONCE):
        if len(best) == k and best[-1][1] >= bounds[start]:
            break
        keys = {i: (i, row) if back else (row, i) for i in searched[start : start + _AT_ONCE]}
        if fresh := [i for i, key in keys.items() if key not in solved]:
            products = (states[own] @ states[target[fresh].reshape(-1)].T).reshape(len(own), len(fresh), len(own))
            for place, i in enumerate(fresh):
                cosine = products[:, place]
                solved[keys[i]] = float(cosine[linear_sum_assignment(-cosine)].mean())
        best = sorted([*best, *((i, solved[key]) for i, key in keys.items())], key=lambda found: (-found[1], found[0]))
        best = best[:k]
    return best
