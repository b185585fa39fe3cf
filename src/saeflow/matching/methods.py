"""Every way to match two dictionaries by their weights, behind `match` and `match_pair`.

A method defines one row for each feature of a side; the score of a pair is the dot product of the two rows.
Most methods keep the k best matches of each feature (many to one, section 3.2); the permutations pair features
one to one (section 2.3). Figures 23 and 24 of the paper compare them.

Any two dictionaries of the same residual stream can be matched: neighbours, distant sites, or releases of
different width or seed. Scores keep their units and signs: a cosine lies in [-1, 1], the others have no such
range, and thresholds meant for cosines do not apply to them.

Virtual weights measure how strongly one feature reads what another writes (equation 1, appendix F):

    w(parent -> child) = W_dec[parent] . W_enc[child]
    z(h)_i (W_dec(A)^T W_enc(B)^T)_{i,:}                        A before B, for one token       (eq. 1)

Equation 1 (Dunefsky et al. 2024, arXiv 2406.11944) multiplies A's decoder by B's encoder, so A comes first in
the computation: its feature i, with activation z_i, adds z_i w_ij to the pre-activation of B's feature j. The
sentence below it in the paper calls features of B the ancestors; by the product they are descendants, and we
follow the product. For a child in the residual stream this is the direct path. For a child at a module's output
the parent's contribution first passes through the module, so the product is a similarity, not a path.

A transcoder (Dunefsky et al.) writes at its site like any dictionary, so as a parent it is treated like any other. As a
child, it depends on what it reads. If it reads the stream after attention (`mid`), its encoder rows lie in the residual
stream, and the product is the direct path, as for a child there. If it reads the input of the MLP module (`mlp_in`),
they lie behind a norm whose gain is not among the weights of the dictionary: it is refused.
"""

from __future__ import annotations

import enum
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.errors import BadFile, InvalidArgument, WidthMismatch, nearest
from saeflow.ids import Site
from saeflow.matching.permutation import NO_PARTNER, Assignment, assign
from saeflow.matching.rows import check_k
from saeflow.matching.table import MatchTable
from saeflow.matching.topk import TopColumns, top_k, top_k_both
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import AttentionWriter, Dictionary, Norm
from saeflow.sources.weights import row_peaks

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
_MakeRows = Callable[[Dictionary, "EdgeEnd", AttentionWriter | None], Tensor]


class EdgeEnd(enum.StrEnum):
    """The end of a flow edge that a dictionary stands at."""

    PARENT = "parent"
    CHILD = "child"


Side = tuple[Site, EdgeEnd]


@dataclass(frozen=True, slots=True)
class Method:
    """One way to match.

    Attributes:
        name: Its name, as passed to `match`.
        sentence: What it computes, as a sentence for readers.
        source: Where it is defined in the literature.
        rows: Makes the rows of one dictionary.
        one_to_one: Whether features are paired, each at most once; then only k = 1 makes sense.
        folded: Whether both dictionaries are folded first, so that rows compare in units of their thresholds.
        reads_encoder: The ends of an edge whose encoders it reads; for a dictionary on z they lie in another space.
    """

    name: str
    sentence: str
    source: str
    rows: _MakeRows
    one_to_one: bool = False
    folded: bool = False
    reads_encoder: tuple[EdgeEnd, ...] = ()

    @property
    def default_k(self) -> int:
        """Matches kept per feature by default: 5, or 1 where features are paired."""
        return 1 if self.one_to_one else 5


@dataclass(frozen=True, eq=False)
class Rows:
    """The vectors of one dictionary that a method compares, one row per feature, with a hash of them."""

    site: Site
    rows: Float[Tensor, "n_features width"]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the rows in float32; every tensor the method reads enters the rows, thresholds as scales."""
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


class RowCache(Generic[Key, Value]):
    """Keeps the rows of the `size` keys used last, so that a site in several consecutive pairs is read once.

    It pickles empty: another process reads its own rows.
    """

    def __init__(self, size: int) -> None:
        """Start empty."""
        self._size = size
        self._rows: OrderedDict[Key, Future[Value]] = OrderedDict()
        self._reader: ThreadPoolExecutor | None = None

    def __reduce__(self) -> tuple[type[RowCache[Key, Value]], tuple[int]]:
        """An empty cache of the same size."""
        return RowCache, (self._size,)

    def __contains__(self, key: object) -> bool:
        """Whether the rows of a key are in memory, or being read."""
        return key in self._rows

    def get(self, key: Key, read: Callable[[], Value]) -> Value:
        """The rows of a key. If they are not in memory, those used longest ago are dropped and they are read."""
        if key not in self._rows:
            self._make_room()
            rows: Future[Value] = Future()
            rows.set_result(read())
            self._rows[key] = rows
        self._rows.move_to_end(key)
        try:
            return self._rows[key].result()
        except BaseException:
            del self._rows[key]
            raise

    def read_ahead(self, key: Key, read: Callable[[], Value]) -> None:
        """Read the rows of a key in a background thread, one key at a time, unless they are in memory."""
        if key not in self._rows:
            self._make_room()
            self._reader = self._reader or ThreadPoolExecutor(1, "reader of rows")
            self._rows[key] = self._reader.submit(read)
        self._rows.move_to_end(key)

    def _make_room(self) -> None:
        while len(self._rows) >= self._size:
            self._rows.popitem(last=False)


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
        target: The dictionary to find matches in, with any number of features.
        k: Matches kept per feature; 1 for one-to-one methods.
        method: A name in `METHODS`.
        projector: The model, needed where a dictionary lives in z.

    Returns:
        The table, with scores in the method's own units. Index 0 with score -inf, which `MatchTable.best` leaves
        out, marks a missing match: for a feature without a direction (its row is zeros or not finite), and for one
        that a one-to-one method leaves without a partner because `source` is the larger side.

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
    """Match two dictionaries in both directions in one pass: (source -> target, target -> source).

    Raises:
        As `match` does; `k` is at most the number of features of the smaller one.
    """
    a, b = sides(source, target, method=method, projector=projector)
    return match_rows(a, b, k=k, method=method)


def match_rows(a: Rows, b: Rows, *, k: int = 1, method: str = "cosine") -> tuple[MatchTable, MatchTable]:
    """`match_pair` on rows from `rows_of`, for callers that match a site to several others.

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
    found = assigned(a, b)
    return _paired(how, a, b, found), _paired(how, b, a, found.inverse(len(b.rows)))


def best_rows(a: Rows, b: Rows, k: int, method: str) -> TopColumns:
    """`top_k` among the rows that have a direction: index 0 and score -inf where there is no match.

    Raises:
        InvalidArgument: when `k` is out of range, or a product overflows float32.
        WidthMismatch: when the two differ in width.
    """
    if a.live is None and b.live is None:
        found = top_k(a.rows, b.rows, k)
    else:
        check_k(k, len(b.rows))
        kept = min(k, len(b.matched)) if len(a.matched) else 0
        found = _spread(top_k(a.matched, b.matched, kept) if kept else None, a, b, k)
    _check_products(found, a, b, method)
    return found


def best_rows_both(a: Rows, b: Rows, k: int, method: str) -> tuple[TopColumns, TopColumns]:
    """`top_k_both` among the rows that have a direction: index 0 and score -inf where there is no match.

    Raises:
        InvalidArgument: when `k` is out of range, or a product overflows float32.
        WidthMismatch: when the two differ in width.
    """
    if a.live is None and b.live is None:
        both = top_k_both(a.rows, b.rows, k)
    else:
        smaller = min(len(a.matched), len(b.matched))
        if smaller >= k:
            found = top_k_both(a.matched, b.matched, k)
            both = _spread(found[0], a, b, k), _spread(found[1], b, a, k)
        else:  # one side has fewer than k rows with a direction
            both = best_rows(a, b, k, method), best_rows(b, a, k, method)
    for found, one, other in ((both[0], a, b), (both[1], b, a)):
        _check_products(found, one, other, method)
    return both


def _spread(found: TopColumns | None, a: Rows, b: Rows, k: int) -> TopColumns:
    """Translate what was found among the rows that have a direction to the numbering of all rows."""
    index = torch.zeros((len(a.rows), k), dtype=torch.int64, device=a.rows.device)
    score = a.rows.new_full((len(a.rows), k), -torch.inf)
    if found is not None:
        kept = found.index.shape[1]
        own = slice(None) if a.live is None else a.live
        index[own, :kept] = found.index if b.live is None else b.live[found.index]
        score[own, :kept] = found.score
    return TopColumns(index, score)


def _check_products(found: TopColumns, a: Rows, b: Rows, method: str) -> None:
    whole = found.score if a.live is None else found.score[a.live]
    if not bool(torch.isfinite(whole[:, : len(b.matched)]).all()):
        raise InvalidArgument(
            f"dot products of {a.site} and {b.site} go beyond float32 under method {method!r}. Use one that "
            'takes unit rows: "cosine".'
        )


def assigned(a: Rows, b: Rows, *, absolute: bool = False) -> Assignment:
    """`assign` among the rows that have a direction, in the numbering of all rows.

    Raises:
        WidthMismatch: when the two differ in width.
        InvalidArgument: when products overflow float32.
    """
    if a.live is None and b.live is None:
        return assign(a.rows, b.rows, absolute=absolute)
    index, score = np.full(len(a.rows), NO_PARTNER, dtype=np.int64), np.full(len(a.rows), -np.inf)
    if not len(a.matched) or not len(b.matched):
        return Assignment(index, score, 0.0, 0.0, 0.0, exact=True, how="nothing to pair")
    found = assign(a.matched, b.matched, absolute=absolute)
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
        InvalidArgument: when `method` is not one-to-one.
        WidthMismatch, BadFile: as `match` does.
    """
    if not find_method(method).one_to_one:
        known = ", ".join(name for name, how in METHODS.items() if how.one_to_one)
        raise InvalidArgument(f"method {method!r} is no one-to-one matching. Those are: {known}.")
    a, b = sides(source, target, method=method, projector=projector)
    return assigned(a, b)


def sides(
    source: Dictionary, target: Dictionary, *, method: str = "cosine", projector: AttentionWriter | None = None
) -> tuple[Rows, Rows]:
    """The rows of both sides. Their fingerprints are the `made_from` of the tables made from them.

    Raises:
        As `match` does.
    """
    (_, first), (_, second) = sides_of((source.site, target.site))
    return rows_of(source, first, method, projector), rows_of(target, second, method, projector)


def sides_of(pair: tuple[Site, Site]) -> tuple[Side, Side]:
    """Each site with its end of the edge: the earlier in the order of computation is the parent.

    For two releases at one site the order does not decide; there the source is the child, as the question is
    where it comes from.
    """
    source, target = pair
    ends = (EdgeEnd.PARENT, EdgeEnd.CHILD) if source < target else (EdgeEnd.CHILD, EdgeEnd.PARENT)
    return (source, ends[0]), (target, ends[1])


def rows_of(
    dictionary: Dictionary, end: EdgeEnd, method: str = "cosine", projector: AttentionWriter | None = None
) -> Rows:
    """The rows of a dictionary under a method, in float32. Reads only the tensors that the method needs.

    A row of zeros stands for a feature without a direction: what it writes (or reads, if only that is compared)
    is zeros or not finite.

    `end` matters only to the virtual methods: the rows of a parent are what it writes, those of a child what it reads.

    Raises:
        As `match` does.
    """
    how = find_method(method)
    rows = how.rows(dictionary.fold() if how.folded else dictionary, end, projector).float()
    if not bool(torch.isfinite(row_peaks(rows)).all()):
        raise BadFile(
            f"{dictionary.origin}: rows for method {method!r} are not finite in float32. Values of the file, or "
            "its values times its thresholds, are too large."
        )
    return Rows(dictionary.site, rows)


def check(dictionary: Dictionary, method: str, end: EdgeEnd) -> None:
    """Refuse early what matching would refuse later; reads at most the thresholds.

    Raises:
        InvalidArgument: for an unknown method, or folding without thresholds above 0.
        WidthMismatch: when the method reads the encoder of a dictionary on z, or of a transcoder behind a norm.
    """
    how = find_method(method)
    if how.folded:
        dictionary.fold()
    if end in how.reads_encoder:
        _refuse_outside_stream(dictionary)


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        InvalidArgument: for an unknown name; the message lists the known ones.
    """
    if name not in METHODS:
        raise InvalidArgument(
            f"there is no matching method {name!r}.{nearest(name, METHODS)} Known: {', '.join(METHODS)}."
        )
    return METHODS[name]


def reading_rows(dictionary: Dictionary) -> Float[Tensor, "n_features d_model"]:
    """What each feature reads from the residual stream: the encoder rows, in the units of the file.

    If hidden states are centred before they are encoded, the rows are centred instead, which is the same
    function. Normalising each token by its own size is left out: it scales all features of a token alike.

    Raises:
        WidthMismatch: when the dictionary reads z, or is a transcoder that reads the output of a norm: neither lies in
            the residual stream.
        BadFile: when the encoder cannot be read, or none of its rows is finite.
    """
    _refuse_outside_stream(dictionary)
    rows = dictionary.finite_rows("W_enc")
    if dictionary.preprocessing.center or dictionary.preprocessing.norm is Norm.LAYER_NORM:
        return rows - rows.mean(dim=1, keepdim=True)
    return rows


def _refuse_outside_stream(dictionary: Dictionary) -> None:
    """Refuse a dictionary whose encoder rows do not lie in the residual stream. Raises WidthMismatch."""
    if dictionary.tap is Tap.MLP_IN:
        raise WidthMismatch(
            f"The transcoder at {dictionary.site} reads mlp_in, the stream after the norm before the MLP: its encoder "
            "rows lack the gain of that norm and do not lie in the residual stream. Match by what it writes: method "
            '"cosine", "permutation" or "decoder-product".'
        )
    if dictionary.tap is Tap.Z:
        raise WidthMismatch(
            f"The dictionary at {dictionary.site} reads z, the outputs of the heads, of width {dictionary.d_in}: "
            "its encoder rows do not lie in the residual stream, and those of two layers not in one space. "
            'Match by what it writes: method "cosine", "permutation" or "decoder-product".'
        )


def reading_bias(dictionary: Dictionary) -> Float[Tensor, " n_features"]:
    """The bias of the pre-activations, which includes the effect of `b_dec` if it is subtracted from the input.

    Raises:
        BadFile: when a tensor cannot be read or has no finite row, or `b_dec` is not finite.
    """
    if dictionary.preprocessing.subtract_b_dec:
        return dictionary.finite_rows("b_enc") - dictionary.finite_rows("W_enc") @ dictionary.b_dec
    return dictionary.finite_rows("b_enc")


def _unit(dictionary: Dictionary, _: EdgeEnd, projector: AttentionWriter | None) -> Tensor:
    return dictionary.directions(projector)


def _decoder(dictionary: Dictionary, _: EdgeEnd, projector: AttentionWriter | None) -> Tensor:
    return dictionary.written_rows(projector)


def _encoder_too(dictionary: Dictionary, _: EdgeEnd, projector: AttentionWriter | None) -> Tensor:
    return _side_by_side(dictionary.written_rows(projector), reading_rows(dictionary))


def _bias_too(dictionary: Dictionary, end: EdgeEnd, projector: AttentionWriter | None) -> Tensor:
    return _side_by_side(_encoder_too(dictionary, end, projector), reading_bias(dictionary)[:, None])


def _side_by_side(written: Tensor, more: Tensor) -> Tensor:
    """Rows side by side; a feature that writes nothing stays a row of zeros."""
    return torch.cat([written, torch.where(row_peaks(written)[:, None] > 0, more, 0)], dim=1)


def _virtual(dictionary: Dictionary, end: EdgeEnd, projector: AttentionWriter | None) -> Tensor:
    return dictionary.written_rows(projector) if end is EdgeEnd.PARENT else reading_rows(dictionary)


_FLOW = "section 3.2"
_MATCH = "section 2.3 and figure 23; Balagansky et al. 2024, arXiv 2410.07656"
_TRANSCODER = "equation 1 and appendix F; Dunefsky et al. 2024, arXiv 2406.11944"
_PRODUCT = "figure 24, appendix F"
_FOLDED = " Both are folded first."


def _plain_and_folded(
    name: str,
    sentence: str,
    source: str,
    rows: _MakeRows,
    *,
    one_to_one: bool = False,
    encoder: tuple[EdgeEnd, ...] = (),
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
                encoder=tuple(EdgeEnd),
            ),
            *_plain_and_folded(
                "permutation-encoder-bias",
                "One partner for each feature: decoder row, encoder row and encoder bias side by side.",
                _MATCH,
                _bias_too,
                one_to_one=True,
                encoder=tuple(EdgeEnd),
            ),
            *_plain_and_folded(
                "virtual",
                "The k largest virtual weights: what the earlier feature writes, times what the later one reads.",
                _TRANSCODER,
                _virtual,
                encoder=(EdgeEnd.CHILD,),
            ),
            *_plain_and_folded(
                "decoder-product", "The k largest dot products of decoder rows as they are.", _PRODUCT, _decoder
            ),
        )
    }
)
"""Every method by its name."""


def _table(how: Method, a: Rows, b: Rows, top: TopColumns) -> MatchTable:
    index, score = top.index.to(torch.int32).cpu().numpy(), top.score.float().cpu().numpy()
    return MatchTable(a.site, b.site, how.name, len(b.rows), index, score, (a.fingerprint, b.fingerprint))


def _paired(how: Method, a: Rows, b: Rows, found: Assignment) -> MatchTable:
    """A table of one column; a feature without a partner has index 0 and score -inf."""
    index = np.where(found.index == NO_PARTNER, 0, found.index).astype(np.int32)[:, None]
    score = found.score.astype(np.float32)[:, None]
    return MatchTable(a.site, b.site, how.name, len(b.rows), index, score, (a.fingerprint, b.fingerprint))
