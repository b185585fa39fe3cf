"""Cosine tables of the planted dictionaries."""

from saeflow.ids import Part, Site
from saeflow.matching.cosine import Directions, match_both

from .planted import N_LAYERS


def cosine(planted, k=5):
    """(residual site, predecessor) -> table, for every layer."""
    sides = {site: Directions.of(made) for site, made in planted.dictionaries.items()}
    sites = [Site(layer, Part.RES) for layer in range(N_LAYERS)]
    return {(site, p): match_both(sides[site], sides[p], k=k)[0] for site in sites for p in site.predecessors}
