"""Every way to match two dictionaries by their weights, behind `match` and `match_pair`.

A method says which row each feature of a side brings; the score of a pair is the dot product of the two rows.
Most keep the k best of each feature (many to one, section 3.2); the permutations pair features one to one
(section 2.3). Figures 23 and 24 of the paper compare them.

Any two dictionaries of one residual stream can be matched: neighbours, sites far apart, two releases of
other width or seed. Scores are kept in their own units, signs and all: a cosine lies in [-1, 1], the others
have no such range, and thresholds meant for cosines do not fit them.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.errors import BadFile, InvalidArgument
from saeflow.ids import Site
from saeflow.matching.permutation import NO_PARTNER, Assignment, assign
from saeflow.matching.table import MatchTable
from saeflow.matching.topk import TopK, top_k, top_k_both
from saeflow.matching.virtual import reading_bias, reading_rows
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import AttentionWriter, Dictionary
from saeflow.sources.weights import row_peaks

_MakeRows = Callable[[Dictionary, "Role", AttentionWriter | None], Tensor]


class Role(enum.StrEnum):
    """Which end of an edge of the flow a dictionary stands at."""

    PARENT = "parent"
    CHILD = "child"


@dataclass(frozen=True, slots=True)
class Method:
    """One way to match.

    Attributes:
        name: As `match` takes it.
        sentence: What it computes, for people.
        source: Where it is from.
        one_to_one: Features are paired, each at most once; then only k = 1 has a meaning.
        folded: Both dictionaries are folded first, so that rows compare in units of their thresholds.
        reads_encoder: It reads encoders, which a dictionary on z has in another space.
    """

    name: str
    sentence: str
    source: str
    rows: _MakeRows
    one_to_one: bool = False
    folded: bool = False
    reads_encoder: bool = False

    @property
    def default_k(self) -> int:
        """How many matches of each feature are kept by default: 5, or 1 where features are paired."""
        return 1 if self.one_to_one else 5


@dataclass(frozen=True, eq=False)
class Rows:
    """The vectors of one dictionary that a method compares, one row per feature, with a hash of them."""

    site: Site
    rows: Float[Tensor, "n_features width"]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the rows in float32: they hold every tensor the method reads, thresholds as scales."""
        return hashlib.sha256(self.rows.cpu().contiguous().numpy().data).hexdigest()

    @cached_property
    def live(self) -> Int[Tensor, " n_live"] | None:
        """The rows that have a direction, ascending; None where all have. A row of zeros matches nothing."""
        has = row_peaks(self.rows) > 0
        return None if bool(has.all()) else torch.nonzero(has).flatten()

    @cached_property
    def matched(self) -> Float[Tensor, "n_live width"]:
        """The rows that have a direction."""
        return self.rows if self.live is None else self.rows[self.live]


def match(
    source: Dictionary,
    target: Dictionary,
    *,
    k: int = 1,
    method: str = "cosine",
    projector: AttentionWriter | None = None,
) -> MatchTable:
    """Match every feature of `source` to its `k` best features of `target`.

    Args:
        source: The dictionary whose features are matched.
        target: The dictionary that matches are sought in; of any number of features.
        k: How many matches of each feature are kept. 1 for one-to-one methods.
        method: A name in `METHODS`.
        projector: The model, needed where a dictionary lives in z.

    Returns:
        The table, with scores in the method's own units. A feature without a direction, a row of zeros or one that
        is not finite, matches nothing; a one-to-one method leaves features without a partner where `source` is the
        larger side: index 0 with score -inf, which `MatchTable.best` leaves out.

    Raises:
        InvalidArgument: for an unknown method, `k` out of range, or folding without thresholds above 0.
        WidthMismatch: when the dictionaries write into spaces of different width, or an encoder that the
            method reads does not lie in the residual stream.
        BadFile: when a tensor that is read is bad.
    """
    how = find_method(method)
    a, b = sides(source, target, method=method, projector=projector)
    if how.one_to_one:
        return match_rows(a, b, k=k, method=method)[0]
    return _table(how, a, b, best_rows(a, b, k, method))


def match_pair(
    source: Dictionary,
    target: Dictionary,
    *,
    k: int = 1,
    method: str = "cosine",
    projector: AttentionWriter | None = None,
) -> tuple[MatchTable, MatchTable]:
    """Match two dictionaries both ways, in one pass: (source -> target, target -> source).

    Raises:
        As `match` does; `k` is at most the number of features of the smaller one.
    """
    a, b = sides(source, target, method=method, projector=projector)
    return match_rows(a, b, k=k, method=method)


def match_rows(a: Rows, b: Rows, *, k: int = 1, method: str = "cosine") -> tuple[MatchTable, MatchTable]:
    """`match_pair` on rows that `rows_of` made, for those who match a site to several others.

    Raises:
        InvalidArgument: for an unknown method, or `k` out of range.
        WidthMismatch: when the two differ in width.
    """
    how = find_method(method)
    if not how.one_to_one:
        forward, backward = best_rows_both(a, b, k, method)
        return _table(how, a, b, forward), _table(how, b, a, backward)
    if k != 1:
        raise InvalidArgument(
            f"k={k} matches were asked of method {how.name!r}, which gives each feature one partner. Give k=1."
        )
    found = _assigned(a, b)
    return _paired(how, a, b, found), _paired(how, b, a, found.inverse(len(b.rows)))


def best_rows(a: Rows, b: Rows, k: int, method: str) -> TopK:
    """`top_k` among the rows that have a direction: index 0 and score -inf where there is no match.

    Raises:
        InvalidArgument: when `k` is out of range, or a product goes beyond float32.
        WidthMismatch: when the two differ in width.
    """
    if a.live is None and b.live is None:
        found = top_k(a.rows, b.rows, k)
    else:
        if not 1 <= k <= len(b.rows):
            raise InvalidArgument(
                f"k={k} matches were asked of {len(b.rows)} rows. Give k between 1 and {len(b.rows)}."
            )
        kept = min(k, len(b.matched))
        found = _spread(top_k(a.matched, b.matched, kept) if kept else None, a, b, k)
    _check_products(found, a, b, method)
    return found


def best_rows_both(a: Rows, b: Rows, k: int, method: str) -> tuple[TopK, TopK]:
    """`top_k_both` among the rows that have a direction: index 0 and score -inf where there is no match.

    Raises:
        InvalidArgument: when `k` is out of range, or a product goes beyond float32.
        WidthMismatch: when the two differ in width.
    """
    if a.live is None and b.live is None:
        both = top_k_both(a.rows, b.rows, k)
    else:
        smaller = min(len(a.matched), len(b.matched))
        if smaller >= k:
            found = top_k_both(a.matched, b.matched, k)
            both = _spread(found[0], a, b, k), _spread(found[1], b, a, k)
        else:  # fewer than k are left on a side
            both = best_rows(a, b, k, method), best_rows(b, a, k, method)
    for found, one, other in ((both[0], a, b), (both[1], b, a)):
        _check_products(found, one, other, method)
    return both


def _spread(found: TopK | None, a: Rows, b: Rows, k: int) -> TopK:
    """What was found among the rows that have a direction, in the numbering of all rows."""
    index = torch.zeros((len(a.rows), k), dtype=torch.int64, device=a.rows.device)
    score = a.rows.new_full((len(a.rows), k), -torch.inf)
    if found is not None:
        kept = found.index.shape[1]
        own = slice(None) if a.live is None else a.live
        index[own, :kept] = found.index if b.live is None else b.live[found.index]
        score[own, :kept] = found.score
    return TopK(index, score)


def _check_products(found: TopK, a: Rows, b: Rows, method: str) -> None:
    whole = found.score if a.live is None else found.score[a.live]
    if not bool(torch.isfinite(whole[:, : len(b.matched)]).all()):
        raise InvalidArgument(
            f"dot products of {a.site} and {b.site} go beyond float32 under method {method!r}. Use one that "
            'takes unit rows: "cosine".'
        )


def _assigned(a: Rows, b: Rows) -> Assignment:
    """`assign` among the rows that have a direction, in the numbering of all rows."""
    if a.live is None and b.live is None:
        return assign(a.rows, b.rows)
    index, score = np.full(len(a.rows), NO_PARTNER, dtype=np.int64), np.full(len(a.rows), -np.inf)
    if not len(a.matched) or not len(b.matched):
        return Assignment(index, score, 0.0, 0.0, 0.0, exact=True, how="nothing to pair")
    found = assign(a.matched, b.matched)
    own = np.arange(len(a.rows)) if a.live is None else a.live.cpu().numpy()
    other = np.arange(len(b.rows)) if b.live is None else b.live.cpu().numpy()
    index[own] = np.where(found.index == NO_PARTNER, NO_PARTNER, other[found.index])
    score[own] = found.score
    return replace(found, index=index, score=score)


def permutation(
    source: Dictionary, target: Dictionary, *, method: str = "permutation", projector: AttentionWriter | None = None
) -> Assignment:
    """The one-to-one matching of two dictionaries with its certificate: value, bound and gap.

    Raises:
        InvalidArgument: when `method` pairs no features one to one.
        WidthMismatch, BadFile: as `match` does.
    """
    if not find_method(method).one_to_one:
        known = ", ".join(name for name, how in METHODS.items() if how.one_to_one)
        raise InvalidArgument(f"method {method!r} is no one-to-one matching. Those are: {known}.")
    a, b = sides(source, target, method=method, projector=projector)
    return _assigned(a, b)


def sides(
    source: Dictionary, target: Dictionary, *, method: str = "cosine", projector: AttentionWriter | None = None
) -> tuple[Rows, Rows]:
    """The rows of both sides. Their fingerprints are the `made_from` of the tables they make.

    Raises:
        As `match` does.
    """
    first, second = roles(source.site, target.site)
    return rows_of(source, first, method, projector), rows_of(target, second, method, projector)


def roles(source: Site, target: Site) -> tuple[Role, Role]:
    """Who is parent and who is child: the earlier in the order of computation is the parent.

    At one site (two releases) the order does not say; there the source is the child, which asks where it comes
    from.
    """
    return (Role.PARENT, Role.CHILD) if source < target else (Role.CHILD, Role.PARENT)


def rows_of(
    dictionary: Dictionary, role: Role, method: str = "cosine", projector: AttentionWriter | None = None
) -> Rows:
    """The rows a dictionary brings to a method, in float32. Reads only the tensors that the method needs.

    A row of zeros stands for a feature without a direction: what it writes (or reads, where only that is compared)
    is zeros or not finite.

    `role` matters to the virtual methods alone: a parent brings what it writes, a child what it reads.

    Raises:
        As `match` does.
    """
    how = find_method(method)
    rows = how.rows(dictionary.fold() if how.folded else dictionary, role, projector).float()
    if not bool(torch.isfinite(rows).all()):
        raise BadFile(
            f"{dictionary.origin}: rows for method {method!r} are not finite in float32. Values of the file, or "
            "its values times its thresholds, are too large."
        )
    return Rows(dictionary.site, rows)


def check(dictionary: Dictionary, method: str, role: Role) -> None:
    """Refuse at once what matching would refuse later; reads no more than thresholds.

    Raises:
        InvalidArgument: for an unknown method, or folding without thresholds above 0.
        WidthMismatch: when the method reads the encoder of a dictionary on z, or of a transcoder behind a norm.
    """
    how = find_method(method)
    if how.folded:
        dictionary.fold()
    virtual_parent = how.rows is _virtual and role is Role.PARENT
    if how.reads_encoder and dictionary.tap in (Tap.Z, Tap.MLP_IN) and not virtual_parent:
        reading_rows(dictionary)


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        InvalidArgument: when there is none; the message lists those there are.
    """
    if name not in METHODS:
        raise InvalidArgument(f"there is no matching method {name!r}. Known: {', '.join(METHODS)}.")
    return METHODS[name]


def _unit(dictionary: Dictionary, _: Role, projector: AttentionWriter | None) -> Tensor:
    return dictionary.directions(projector)


def _decoder(dictionary: Dictionary, _: Role, projector: AttentionWriter | None) -> Tensor:
    return dictionary.written_rows(projector)


def _encoder_too(dictionary: Dictionary, _: Role, projector: AttentionWriter | None) -> Tensor:
    return _beside(dictionary.written_rows(projector), reading_rows(dictionary))


def _bias_too(dictionary: Dictionary, role: Role, projector: AttentionWriter | None) -> Tensor:
    return _beside(_encoder_too(dictionary, role, projector), reading_bias(dictionary)[:, None])


def _beside(written: Tensor, more: Tensor) -> Tensor:
    """Rows side by side; a feature that writes nothing stays a row of zeros."""
    return torch.cat([written, torch.where(row_peaks(written)[:, None] > 0, more, 0)], dim=1)


def _virtual(dictionary: Dictionary, role: Role, projector: AttentionWriter | None) -> Tensor:
    return dictionary.written_rows(projector) if role is Role.PARENT else reading_rows(dictionary)


_FLOW = "section 3.2"
_MATCH = "section 2.3 and figure 23; Balagansky et al. 2024, arXiv 2410.07656"
_TRANSCODER = "equation 1 and appendix F; Dunefsky et al. 2024, arXiv 2406.11944"
_PRODUCT = "figure 24, appendix F"
_FOLDED = " Both are folded first."


def _plain_and_folded(
    name: str, sentence: str, source: str, rows: _MakeRows, *, one_to_one: bool = False, encoder: bool = False
) -> tuple[Method, Method]:
    return (
        Method(name, sentence, source, rows, one_to_one, folded=False, reads_encoder=encoder),
        Method(f"{name}-folded", sentence + _FOLDED, source, rows, one_to_one, folded=True, reads_encoder=encoder),
    )


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        how.name: how
        for how in (
            Method("cosine", "The k decoder rows with the highest cosine.", _FLOW, _unit),
            *_plain_and_folded(
                "permutation",
                "One partner for each feature: decoder rows as they are, the sum of dot products at its largest.",
                _MATCH,
                _decoder,
                one_to_one=True,
            ),
            *_plain_and_folded(
                "permutation-encoder",
                "One partner for each feature: decoder and encoder rows side by side.",
                _MATCH,
                _encoder_too,
                one_to_one=True,
                encoder=True,
            ),
            *_plain_and_folded(
                "permutation-encoder-bias",
                "One partner for each feature: decoder row, encoder row and encoder bias side by side.",
                _MATCH,
                _bias_too,
                one_to_one=True,
                encoder=True,
            ),
            *_plain_and_folded(
                "virtual",
                "The k largest virtual weights: what the earlier feature writes, times what the later one reads.",
                _TRANSCODER,
                _virtual,
                encoder=True,
            ),
            *_plain_and_folded(
                "decoder-product", "The k largest dot products of decoder rows as they are.", _PRODUCT, _decoder
            ),
        )
    }
)
"""Every method by its name."""


def _table(how: Method, a: Rows, b: Rows, top: TopK) -> MatchTable:
    index, score = top.index.to(torch.int32).cpu().numpy(), top.score.float().cpu().numpy()
    return MatchTable(a.site, b.site, how.name, len(b.rows), index, score, (a.fingerprint, b.fingerprint))


def _paired(how: Method, a: Rows, b: Rows, found: Assignment) -> MatchTable:
    """One column; a feature without partner has index 0 and score -inf."""
    index = np.where(found.index == NO_PARTNER, 0, found.index).astype(np.int32)[:, None]
    score = found.score.astype(np.float32)[:, None]
    return MatchTable(a.site, b.site, how.name, len(b.rows), index, score, (a.fingerprint, b.fingerprint))
