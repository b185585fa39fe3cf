"""Null distributions of best-match scores for every pair of sites of an atlas. This goes beyond the paper.

Section 3.3 calls scores "high" and "low", "specific for each layer", and gives no rule. Here a null is drawn for
each ordered pair of sites: the best scores of rows that have no counterpart at the target. p-values and thresholds
follow from it (`null`). There are four kinds of null rows:

    rotation   the source's rows after a random rotation, which gives each row a uniformly random direction
    moments    Gaussian rows with the mean and the covariance of the source's rows, at unit norm
    families   rows of `moments` that also share with the target what a real row shares with all but its best match
    far        rows of the source's part at least half the depth away from the target

`rotation` destroys what all rows of a stream share, a mean direction and a few strong directions, so that nearly
everything is significant. `moments` keeps both and destroys the identity of features. `far` keeps them too, and also
real features that persist through half the model. Where features come in families of similar ones, `moments` calls
the members of a family predecessors of each other; `families` does not. docs/calibration.md measures the four;
`moments` is the default.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.errors import BadFile, InvalidArgument, UnknownSite
from saeflow.files import add_sha256, write_atomic
from saeflow.ids import Site
from saeflow.matching.atlas import Atlas, Pair, open_atlas, save_manifest
from saeflow.matching.build import refuse_other_weights
from saeflow.matching.methods import EdgeEnd, Rows, rows_of
from saeflow.matching.null import FILE, NullDistribution, nulls_to_bytes, read_nulls
from saeflow.matching.topk import top_k
from saeflow.plain_types import Progress
from saeflow.sources.dictionary import AttentionWriter, Dictionary

Kind = Literal["rotation", "moments", "families", "far"]
KINDS: Final[tuple[Kind, ...]] = ("rotation", "moments", "families", "far")
_RELATIVES: Final = 8
"""Rows of the target whose mean represents the family of a row."""


def rotated(rows: Float[Tensor, "n d_model"], n: int, generator: torch.Generator) -> Float[Tensor, "k d_model"]:
    """`n` unit rows, each distributed as a randomly rotated unit row: uniform over directions.

    A rotation of all rows at once (Haar, by QR of a Gaussian) gives every row this distribution; drawn one by
    one, rows are also independent.
    """
    return _unit(torch.randn(n, rows.shape[1], generator=generator).to(rows))


def like_moments(rows: Float[Tensor, "n d_model"], n: int, generator: torch.Generator) -> Float[Tensor, "k d_model"]:
    """`n` Gaussian rows with the mean and the covariance of `rows`, at unit norm.

    Each is m + (1 / sqrt(N)) sum_i g_i (f_i - m), over the N rows f_i, with g_i standard normal. This is exact even
    if the rows do not span the whole space, and decomposes no matrix.
    """
    mean = rows.mean(dim=0)
    weights = torch.randn(n, len(rows), generator=generator).to(rows) / len(rows) ** 0.5
    return _unit(mean + weights @ (rows - mean))


def like_families(
    rows: Float[Tensor, "n d_model"], target: Float[Tensor, "n_target d_model"], n: int, generator: torch.Generator
) -> Float[Tensor, "k d_model"]:
    """`n` rows that lie in the families of `rows` at the target, and otherwise resemble those of `like_moments`.

    Each is c m + sqrt(1 - c^2) z, where m is the mean direction of the 8 rows of `target` nearest to a row f, except
    its best match, c = f . m, and z is a row of `like_moments` made orthogonal to m. On planted rows the false rate
    held with and without families, at the price of finding fewer matches (docs/calibration.md).
    """
    drawn = like_moments(rows, n, generator)
    relatives = min(_RELATIVES, len(target) - 1)
    if relatives < 1:
        return drawn
    some = rows[torch.randint(len(rows), (n,), generator=generator).to(rows.device)]
    near = top_k(some, target, relatives + 1).index[:, 1:]
    family = torch.nn.functional.normalize(target[near].mean(dim=1), dim=1)
    shared = (some * family).sum(dim=1, keepdim=True)
    own = _unit(drawn - (drawn * family).sum(dim=1, keepdim=True) * family)
    return _unit(shared * family + (1 - shared**2).clamp(min=0).sqrt() * own)


def far_sites(source: Site, target: Site, sites: Sequence[Site]) -> list[Site]:
    """Sites of the source's part at least half the depth away from `target`: 13 layers of 26, 3 of 6.

    The middle layer has half the depth on either side, so every layer has a layer that far away. A layer next to
    the target is never far, so in a release of three layers or fewer some targets have no far site.
    """
    layers = [site.layer for site in sites]
    half = max((max(layers) - min(layers)) / 2, 2)
    return [s for s in sites if s.part is source.part and abs(s.layer - target.layer) >= half]


def draw_null(
    source: Rows, target: Rows, null: Kind | str, *, rows: int = 2048, rotations: int = 8, seed: int = 0
) -> NullDistribution:
    """Draw the null of best scores at `target`, from `rows` times `rotations` rows modelled on those of `source`.

    Draws any null except "far". Both sides need at least one row that has a direction.

    Raises:
        InvalidArgument: for any other null.
    """
    if null not in KINDS[:3]:
        raise InvalidArgument(f"there is no null {null!r} of two dictionaries. Known: {', '.join(KINDS[:3])}.")
    generator, scores = _generator(seed, null, source.site, target.site), list[float]()
    for _ in range(rotations):
        if null == "families":
            drawn = like_families(source.matched, target.matched, rows, generator)
        else:
            drawn = (rotated if null == "rotation" else like_moments)(source.matched, rows, generator)
        scores += top_k(drawn, target.matched, 1).score[:, 0].tolist()
    return NullDistribution.of(source.site, target.site, null, scores, seed)


def calibrate(
    dictionaries: Mapping[Site, Dictionary],
    atlas: Atlas,
    *,
    rows: int = 2048,
    rotations: int = 8,
    seed: int = 0,
    null: Kind | str = "moments",
    projector: AttentionWriter | None = None,
    progress: Progress | None = None,
) -> Atlas:
    """Add a null for every table of `atlas` to its folder, and return the atlas with it.

    `rows` times `rotations` null rows are drawn for each ordered pair, 16,384 by default: as much work as
    matching dictionaries of that width once more. p-values then cannot fall below 1 in 16,385, and a pair
    where fewer than about 0.6 % of the features have a real match may keep none at a rate of 1 %: draw more
    rows there. A killed run resumes with the missing pairs.

    Args:
        dictionaries: The dictionaries the atlas was built from.
        atlas: An atlas made by "cosine".
        rows: Null rows drawn at a time.
        rotations: How many times they are drawn; for "far", from how many sites at most, without repetition.
        seed: Seed of all draws; each pair has its own generator, derived from the seed and the pair's sites.
        null: Kind of null rows; see the module docstring.
        projector: The model, needed where attention dictionaries live in z.
        progress: Called with (done, total, what is being done).

    Raises:
        InvalidArgument: for a number out of range, an unknown null, an atlas of another method, or dictionaries
            other than those it was built from.
        UnknownSite: when a site of the atlas has no dictionary, or "far" finds no site far enough.
    """
    if atlas.method != "cosine":
        raise InvalidArgument(
            f"the atlas at {atlas.folder} was made by {atlas.method}, and a null of cosines says nothing about its "
            "scores. Calibrate an atlas of saeflow.build_atlas."
        )
    for name, number in {"rows": rows, "rotations": rotations}.items():
        if number < 1:
            raise InvalidArgument(f"{name}={number} draws nothing. Give 1 or more.")
    if null not in KINDS:
        raise InvalidArgument(f"there is no null {null!r}. Known: {', '.join(KINDS)}.")
    kind = null
    refuse_other_weights(atlas, dictionaries, projector=projector)
    draw = _Draw(dictionaries, projector, sorted(dictionaries), kind, rows, rotations, seed)
    work = atlas.folder / "calibration.work"
    found: dict[Pair, NullDistribution] = {}
    done_here: list[Path] = []
    pairs = list(atlas)
    for done, pair in enumerate(pairs):
        if progress:
            progress(done, len(pairs), f"{pair[0]} to {pair[1]}")
        sides = [draw.side(site) for site in pair]
        if not all(len(side.matched) for side in sides):  # a side without any direction has no null
            continue
        made_from = [side.fingerprint for side in sides]
        key = json.dumps([null, rows, rotations, seed, *map(str, pair), *made_from])
        path = work / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
        try:
            found[pair] = read_nulls(path)[pair]
        except (BadFile, KeyError):
            found[pair] = draw.null(*pair)
            write_atomic(path, add_sha256(nulls_to_bytes({pair: found[pair]})))
        done_here.append(path)
        draw.keep({site for later in pairs[done + 1 :] for site in later})
    if progress:
        progress(len(pairs), len(pairs), "done")
    data = nulls_to_bytes(found)
    write_atomic(atlas.folder / FILE, data)
    save_manifest(replace(atlas, calibration=(FILE, hashlib.sha256(data).hexdigest())))
    for part in done_here:
        part.unlink(missing_ok=True)
    with suppress(OSError):  # another process may still be using it
        work.rmdir()
    return open_atlas(atlas.folder)


@dataclass(frozen=True, eq=False)
class _Draw:
    """Draws the nulls of an atlas; the directions of sites that are still needed stay in memory."""

    dictionaries: Mapping[Site, Dictionary]
    projector: AttentionWriter | None
    sites: Sequence[Site]
    kind: Kind
    rows: int
    rotations: int
    seed: int

    @cached_property
    def _sides(self) -> dict[Site, Rows]:
        return {}

    def null(self, source: Site, target: Site) -> NullDistribution:
        """Draw the null of best scores at `target` for features of `source`."""
        if self.kind != "far":
            how = {"rows": self.rows, "rotations": self.rotations, "seed": self.seed}
            return draw_null(self.side(source), self.side(target), self.kind, **how)
        generator = _generator(self.seed, self.kind, source, target)
        rows, scores = self.side(target).matched, list[float]()
        for drawn in self._far(source, target, generator):
            scores += top_k(drawn, rows, 1).score[:, 0].tolist()
        return NullDistribution.of(source, target, self.kind, scores, self.seed)

    def _far(self, source: Site, target: Site, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield up to `rows` rows of each far site, without repetition, from the `rotations` farthest sites at most."""
        sites = far_sites(source, target, self.sites)
        if not sites:
            raise UnknownSite(
                f"there is no {source.part.value} site half the depth away from {target}. Choose another null: "
                "moments or rotation."
            )
        sites.sort(key=lambda site: (-abs(site.layer - target.layer), site))
        for site in sites[: self.rotations]:
            rows = self.side(site).matched
            yield rows[torch.randperm(len(rows), generator=generator)[: self.rows].to(rows.device)]

    def side(self, site: Site) -> Rows:
        """The directions of a site, read if they are not in memory."""
        if site not in self._sides:
            if site not in self.dictionaries:
                raise UnknownSite(f"there is no dictionary at {site}, which the atlas has. Give them all.")
            self._sides[site] = rows_of(self.dictionaries[site], EdgeEnd.CHILD, projector=self.projector)
            self.dictionaries[site].unload()
        return self._sides[site]

    def keep(self, sites: Collection[Site]) -> None:
        """Forget the directions of all other sites."""
        for site in [site for site in self._sides if site not in sites]:
            del self._sides[site]


def _generator(seed: int, null: str, source: Site, target: Site) -> torch.Generator:
    """A separate generator for each kind of null and ordered pair of sites."""
    digest = hashlib.sha256(json.dumps([seed, null, str(source), str(target)]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") % 2**63)


def _unit(rows: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
