"""What is gathered at a site while text streams by: strongest and random passages, strongest tokens, a histogram.

Memory is bounded by the dictionary, not by the text: for each feature, a fixed number of passages, the strongest and
some drawn at random, the tokens with the highest mean activation so far, and counts of its activations. Sums are kept
as whole numbers (units of 2^-20), so they do not depend on the order of addition, and a run that was stopped and
resumed ends in the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load, save
from torch import Tensor

from saeflow.ids import Site
from saeflow.labels.words import AFTER, BEFORE
from saeflow.reading import parse_json

SLOTS: Final = 32
"""Tokens per feature whose sums are kept; ten of them are shown."""

SPARE: Final = 3
"""Passages kept for each one shown: some turn out to be duplicates."""

PRIOR: Final = 10
"""Silent occurrences added to every token, so that one seen only a few times cannot lead."""

DRAWN: Final = 16
"""Passages per feature drawn at random; one from each quarter of its activations is shown."""

BINS: Final = 32
"""Bins of a histogram; at least half of them lie below the highest activation."""

WINDOW: Final = BEFORE + 1 + AFTER
_UNIT: Final = 2.0**20
_TICKETS: Final = 1 << 24  # whole numbers up to this are exact in float32


class PassageSlots:
    """The passages with the highest ranks, a fixed number per feature.

    Attributes:
        rank: Float[n_features, slots], by which passages are kept, highest first; 0 where a slot is free.
        ids: Int[n_features, slots, WINDOW], token ids, -1 beyond the ends of the text.
        values: Float[n_features, slots, WINDOW], activations.
        source: Int[n_features, slots], number of the text's source.
    """

    def __init__(self, n_features: int, slots: int, device: torch.device | str) -> None:
        """Start with all slots free."""
        self.rank = torch.zeros(n_features, slots, device=device)
        self.ids = torch.full((n_features, slots, WINDOW), -1, dtype=torch.int32, device=device)
        self.values = torch.zeros(n_features, slots, WINDOW, device=device)
        self.source = torch.zeros(n_features, slots, dtype=torch.int32, device=device)

    def add(
        self,
        ranks: Float[Tensor, "batch pos n_features"],
        acts: Float[Tensor, "batch pos n_features"],
        ids: Int[Tensor, "batch pos"],
        source: Int[Tensor, " batch"],
    ) -> None:
        """Take in the passage around each text's token of highest rank, if that is above 0 and among the highest.

        Ties keep the earliest.
        """
        n_texts, n_tokens, n_features = acts.shape
        rank, top = ranks.max(dim=1)
        columns = top[:, None] + torch.arange(-BEFORE, AFTER + 1, device=acts.device)[None, :, None]
        inside = (columns >= 0) & (columns < n_tokens)
        columns = columns.clamp(0, n_tokens - 1)
        values = acts.gather(1, columns) * inside
        tokens = ids[torch.arange(n_texts, device=ids.device)[:, None, None], columns].masked_fill(~inside, -1)
        both = torch.cat([self.rank, rank.T.to(self.rank)], 1)
        order = both.sort(dim=1, descending=True, stable=True).indices[:, : self.rank.shape[1]]
        wide = order[..., None].expand(-1, -1, WINDOW)
        self.rank = both.gather(1, order)
        self.values = torch.cat([self.values, values.permute(2, 0, 1).to(self.values)], 1).gather(1, wide)
        self.ids = torch.cat([self.ids, tokens.permute(2, 0, 1)], 1).gather(1, wide)
        from_where = source.to(self.source)[None].expand(n_features, -1)
        self.source = torch.cat([self.source, from_where], 1).gather(1, order)


class FeatureStatistics:
    """What is gathered at one site.

    Attributes:
        fired: Int[n_features], tokens each feature was active on.
        massive: Int[1], tokens left out at this site because they are massive there (`sources.massive`).
        n_texts: Int[1], texts taken in.
        strongest: passages by their highest activation.
        drawn: passages around tokens the feature fires on, drawn at random.
        counts: Int[n_features, BINS], activations from 0 to 2^exponent, in bins of equal width.
        exponent: Int[n_features], the lowest with every activation below 2^exponent.
        pairs: Int[n_pairs], feature * vocabulary + token, ascending.
        sums: Int[n_pairs], the token's activations summed, in units of 2^-20.
    """

    def __init__(self, n_features: int, vocabulary: int, contexts: int, device: torch.device | str) -> None:
        """Start with nothing seen; `contexts` passages per feature are to be shown."""
        self.n_features, self.vocabulary = n_features, vocabulary
        self.fired = torch.zeros(n_features, dtype=torch.int64, device=device)
        self.massive = torch.zeros(1, dtype=torch.int64, device=device)
        self.n_texts = torch.zeros(1, dtype=torch.int64, device=device)
        self.strongest = PassageSlots(n_features, contexts * SPARE, device)
        self.drawn = PassageSlots(n_features, DRAWN, device)
        self.counts = torch.zeros(n_features, BINS, dtype=torch.int64, device=device)
        self.exponent = torch.full((n_features,), -126, dtype=torch.int64, device=device)
        self.pairs = torch.zeros(0, dtype=torch.int64, device=device)
        self.sums = torch.zeros(0, dtype=torch.int64, device=device)
        self._new: list[tuple[Tensor, Tensor]] = []

    @property
    def state(self) -> dict[str, Tensor]:
        """All statistics, by name."""
        names = ("fired", "massive", "n_texts", "counts", "exponent", "pairs", "sums")
        slots = {"strongest": self.strongest, "drawn": self.drawn}
        return {name: getattr(self, name) for name in names} | {
            f"{kind}.{name}": tensor for kind, kept in slots.items() for name, tensor in vars(kept).items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        for path, tensor in state.items():
            *slots, name = path.split(".")
            setattr(getattr(self, slots[0]) if slots else self, name, tensor.to(self.fired.device))

    def add(
        self,
        acts: Float[Tensor, "batch pos n_features"],
        ids: Int[Tensor, "batch pos"],
        real: Bool[Tensor, "batch pos"],
        source: Int[Tensor, " batch"],
    ) -> None:
        """Take in some texts; `settle` must follow to add their activations to the token sums.

        Args:
            acts: activations; those of tokens that are not real do not count.
            ids: token ids.
            real: which tokens count.
            source: number of each text's source.
        """
        acts = acts * real[..., None]
        self.fired += (acts > 0).sum(dim=(0, 1))
        shown = torch.where(real, ids, -1).to(torch.int32)
        self.strongest.add(acts, acts, shown, source)
        number = self.n_texts + torch.arange(len(acts), device=acts.device)
        self.drawn.add((acts > 0) * _tickets(number, acts.shape[1])[..., None], acts, shown, source)
        self.n_texts += len(acts)
        text, column, feature = acts.nonzero(as_tuple=True)
        found = acts[text, column, feature].double()
        self._count(acts.amax(dim=(0, 1)), feature, found)
        self._new.append((feature * self.vocabulary + ids[text, column], (found * _UNIT).round().to(torch.int64)))

    def _count(
        self, peak: Float[Tensor, " n_features"], feature: Int[Tensor, " n"], found: Float[Tensor, " n"]
    ) -> None:
        """Add activations to the histograms; the bins of one that is too narrow double in width as often as needed."""
        needed = torch.where(peak > 0, torch.frexp(peak).exponent.to(torch.int64), self.exponent)
        wider = (needed - self.exponent).clamp(min=0)
        self.exponent = self.exponent + wider
        bins = torch.arange(BINS, device=peak.device)[None] >> wider.clamp(max=BINS)[:, None]
        self.counts = torch.zeros_like(self.counts).scatter_add_(1, bins, self.counts)
        place = (found * BINS / 2.0 ** self.exponent[feature]).to(torch.int64).clamp(max=BINS - 1)
        self.counts.view(-1).index_add_(0, feature * BINS + place, torch.ones_like(place))

    def settle(self, occurred: Int[Tensor, " vocab"]) -> None:
        """Add what was taken in to the sums, and keep for each feature the tokens with the highest means.

        Args:
            occurred: how often each token was seen so far, including in the texts just taken in.
        """
        pairs = torch.cat([self.pairs, *(pairs for pairs, _ in self._new)])
        value = torch.cat([self.sums, *(value for _, value in self._new)])
        self._new.clear()
        all_pairs, order = pairs.sort(stable=True)
        unique, group = all_pairs.unique_consecutive(return_inverse=True)
        sums = torch.zeros_like(unique).index_add_(0, group, value[order])
        rank = ranks(unique // self.vocabulary, means(sums, occurred[unique % self.vocabulary]))
        kept = rank < SLOTS
        self.pairs, self.sums = unique[kept], sums[kept]


def _tickets(number: Int[Tensor, " batch"], n_tokens: int) -> Float[Tensor, "batch pos"]:
    """Numbers above 0, up to 1, drawn for the tokens of texts; they depend only on the text's number and the place."""
    place = (number[:, None] + 1) * 8191 + torch.arange(n_tokens, device=number.device)[None]
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):  # splitmix64's, as signed numbers
        place = (place ^ ((place >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return ((place >> 40) & (_TICKETS - 1)).add(1).float() / _TICKETS


def means(sums: Int[Tensor, " n"], occurred: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Mean activation of a feature on a token over all occurrences of the token, shrunk towards 0 by `PRIOR`."""
    return sums.double() / _UNIT / (occurred + PRIOR)


def ranks(group: Int[Tensor, " n"], value: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Rank of each value within its group, 0 for the highest; ties rank the earliest first.

    `group` is ascending.
    """
    by_value = value.sort(descending=True, stable=True).indices
    order = by_value[group[by_value].sort(stable=True).indices]
    first = torch.searchsorted(group, group)
    out = torch.empty_like(order)
    out[order] = torch.arange(len(order), device=order.device) - first
    return out


@dataclass(frozen=True, slots=True)
class Control:
    """A passage drawn at random; those with the lowest tickets are kept.

    Attributes:
        ticket: drawn from the seed and the number of the text.
        ids: token ids, -1 for tokens that are not text.
        source: number of the text's source.
        active: for each site, the features that fire in the passage, ascending.
    """

    ticket: int
    ids: list[int]
    source: int
    active: dict[str, list[int]]


@dataclass
class GatherState:
    """Everything a run over text has seen.

    Attributes:
        seen: what was gathered at each site.
        occurred: Int[vocab], how often each token was seen.
        units: batches of texts taken in.
        n_texts: texts taken in.
        n_tokens: tokens that are not special.
        digest: sha256 of the texts.
        sources: where texts came from, by number.
        controls: passages drawn at random, lowest ticket first.
    """

    seen: dict[Site, FeatureStatistics]
    occurred: Tensor
    units: int = 0
    n_texts: int = 0
    n_tokens: int = 0
    digest: str = ""
    sources: list[str] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)

    def pack(self) -> bytes:
        """The state as a safetensors file."""
        facts = {
            "units": self.units,
            "n_texts": self.n_texts,
            "n_tokens": self.n_tokens,
            "digest": self.digest,
            "sources": self.sources,
            "controls": [[c.ticket, c.ids, c.source, c.active] for c in self.controls],
        }
        tensors = {f"{site}/{name}": t for site, seen in self.seen.items() for name, t in seen.state.items()}
        tensors["occurred"] = self.occurred
        tensors["told"] = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
        return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})

    def unpack(self, data: bytes) -> GatherState:
        """The inverse of `pack`, for the sites of this state, whose statistics it overwrites.

        Raises:
            SafetensorError: when the data is not a safetensors file.
            KeyError: when it is of other sites.
            ValueError: when its description cannot be read.
        """
        found = load(data)
        facts = parse_json(bytes(found["told"].tolist()))
        restored = {site: {name: found[f"{site}/{name}"] for name in seen.state} for site, seen in self.seen.items()}
        controls = [Control(*one) for one in facts.pop("controls")]
        for site, state in restored.items():
            self.seen[site].restore(state)
        return GatherState(self.seen, found["occurred"].to(self.occurred.device), controls=controls, **facts)
