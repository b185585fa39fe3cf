"""Cosine tables of the planted dictionaries."""

from saeflow.ids import Part, Site
from saeflow.matching.methods import match

from .planted import N_LAYERS


def cosine(planted, k=5):
    """(residual site, predecessor) -> table, for every layer."""
    made = planted.dictionaries
    sites = [Site(layer, Part.RES) for layer in range(N_LAYERS)]
    return {(site, p): match(made[site], made[p], k=k) for site in sites for p in site.predecessors}
