"""Dictionaries with a known answer: a chain of permuted rows plus noise, unrelated rows mixed in."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saeflow.ids import FeatureId, Part, Site
from saeflow.sources.activations import ReLU
from saeflow.sources.dictionary import Dictionary, Tap

D_MODEL, N_FEATURES, N_LAYERS = 96, 80, 6


def dictionary(site: Site, W_dec: torch.Tensor) -> Dictionary:
    """A dictionary whose decoder is given and whose encoder is its transpose."""
    n, d = W_dec.shape
    return Dictionary(
        site,
        tap=Tap(site.part.value),
        W_enc=W_dec.clone(),
        b_enc=torch.zeros(n),
        W_dec=W_dec,
        b_dec=torch.zeros(d),
        activation=ReLU(),
    )


@dataclass(frozen=True)
class Planted:
    """`chains[c]` is the residual row of chain c at each layer from its first one on."""

    dictionaries: dict[Site, Dictionary]
    chains: list[dict[int, int]]
    writers: dict[int, tuple[Site, int]]
    cut_after: dict[int, int]

    def feature(self, chain: int, layer: int) -> FeatureId:
        return FeatureId(Site(layer, Part.RES), self.chains[chain][layer])


def plant(seed: int = 0, noise: float = 0.25, n_chains: int = 30) -> Planted:
    """Chains through all layers; some are born at a layer (written by a module), some are cut."""
    generator = torch.Generator().manual_seed(seed)

    def unit(n: int) -> torch.Tensor:
        rows = torch.randn(n, D_MODEL, generator=generator)
        return rows / rows.norm(dim=1, keepdim=True)

    tables = {Site(layer, part): unit(N_FEATURES) for layer in range(N_LAYERS) for part in Part}
    base = unit(n_chains)
    chains: list[dict[int, int]] = [{} for _ in range(n_chains)]
    writers: dict[int, tuple[Site, int]] = {}
    cut_after: dict[int, int] = {}
    births = {c: (c % 3) + 1 for c in range(0, n_chains, 3)}
    deaths = dict.fromkeys(range(1, n_chains, 5), 3)
    order = [torch.randperm(N_FEATURES, generator=generator).tolist() for _ in range(N_LAYERS)]
    for chain in range(n_chains):
        born = births.get(chain, 0)
        last = deaths.get(chain, N_LAYERS - 1)
        row = base[chain]
        for layer in range(born, last + 1):
            step = noise * torch.randn(D_MODEL, generator=generator) / D_MODEL**0.5
            row = (row + step) / (row + step).norm()
            chains[chain][layer] = order[layer][chain]
            # Rows of a file have any norm: matching must not care.
            tables[Site(layer, Part.RES)][order[layer][chain]] = row * (0.5 + chain / n_chains)
        if born:
            part = Part.MLP if chain % 2 else Part.ATT
            tables[Site(born, part)][chain] = tables[Site(born, Part.RES)][chains[chain][born]] * 3
            writers[chain] = (Site(born, part), chain)
        if chain in deaths:
            cut_after[chain] = last
    made = {site: dictionary(site, rows) for site, rows in tables.items()}
    return Planted(made, chains, writers, cut_after)
