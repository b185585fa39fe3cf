"""Groups residual features into blocks, so that a flow graph lies within few of them. No torch.

Features that are each other's best match in neighbouring layers form a chain. If the first feature of a chain has a
best predecessor that prefers another feature, the chain is a branch of that predecessor's chain. Chains are laid out
one after another, each branch soon after the chain it grows from, and then cut into blocks. So the graph of a feature
lies within few blocks, whatever its rows are. Module features only join such a graph; they stay in the row order of
their site.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Final

import numpy as np
from jaxtyping import Int64

from saeflow.flow.trace import following, previous
from saeflow.ids import Part, Site
from saeflow.matching.atlas import Atlas

ROWS: Final = 256
"""Features in a block."""


class Flows:
    """The blocks of residual features.

    Attributes:
        n: the number of blocks.
        block: the block of each row, for each residual site.
    """

    def __init__(self, atlas: Atlas, sizes: Mapping[Site, int]) -> None:
        """Group the residual features of an atlas; `sizes` is the number of features at each site."""
        # 1. features numbered site by site, lowest layer first, and the best predecessor and successor of each
        self._sites = sorted(site for site in sizes if site.part is Part.RES)
        starts = np.cumsum([0, *(sizes[site] for site in self._sites)]).tolist()
        self._slices = [slice(*pair) for pair in pairwise(starts)]
        first = dict(zip(self._sites, starts[:-1], strict=True))
        best = [np.full(starts[-1], -1) for _ in range(2)]
        for site, own in zip(self._sites, self._slices, strict=True):
            for known, target in zip(best, (previous(site, atlas), following(site, atlas)), strict=True):
                if target in first:
                    table = atlas[site, target]
                    found = first[target] + table.index[:, 0].astype(np.int64)
                    known[own] = np.where(np.isneginf(table.score[:, 0]), -1, found)

        # 2. blocks of consecutive features in the layout of the chains
        blocks = (self._places(*best) // ROWS).astype(np.uint16)
        self.n = -(-len(blocks) // ROWS)
        self.block = {site: blocks[own] for site, own in zip(self._sites, self._slices, strict=True)}

    def rows(self) -> list[dict[Site, Int64[np.ndarray, " n"]]]:
        """The rows in each block, by site."""
        found: list[dict[Site, np.ndarray]] = [{} for _ in range(self.n)]
        for site, block in self.block.items():
            order = np.argsort(block, kind="stable")
            numbers, starts = np.unique(block[order], return_index=True)
            for number, rows in zip(numbers, np.split(order, starts[1:]), strict=True):
                found[number][site] = rows
        return found

    def _places(self, up: Int64[np.ndarray, " n"], down: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The position of each feature when all chains are laid out one after another."""
        # 1. chains, identified by the number of their first feature
        numbers = np.arange(len(up))
        linked = (up >= 0) & (down[up] == numbers)
        chain, rank = numbers.copy(), np.zeros_like(numbers)
        for own in self._slices:
            chain[own] = np.where(linked[own], chain[up[own]], numbers[own])
            rank[own] = np.where(linked[own], rank[up[own]] + 1, 0)

        # 2. the chain that each one branches from, and its weight: its length plus the weights of its branches
        parent = np.where(up >= 0, chain[up], -1)
        length = np.bincount(chain, minlength=len(up))
        weight = length.copy()
        tops = [numbers[own][~linked[own]] for own in self._slices]
        for some in reversed(tops):
            grown = some[parent[some] >= 0]
            np.add.at(weight, parent[grown], weight[grown])

        # 3. after each chain its branches, the lightest first, so that short ones stay close to it
        every = np.concatenate([*tops, numbers[:0]])
        every = every[np.lexsort((every, weight[every], parent[every]))]
        before = np.cumsum(weight[every]) - weight[every]
        opens = np.concatenate([[True], parent[every][1:] != parent[every][:-1]])[: len(every)]
        start = np.zeros_like(numbers)
        start[every] = before - np.maximum.accumulate(np.where(opens, before, 0))
        for some in tops:
            grown = some[parent[some] >= 0]
            start[grown] += start[parent[grown]] + length[parent[grown]]
        return start[chain] + rank
