"""Which null distribution delivers its stated FDR? Calibrates planted dictionaries with known predecessors.

    python scripts/calibration_on_planted.py [--seeds 8] [--fdr 0.01] [--json]

There are two neighbouring residual sites and a distant one. A share of the later neighbour's features (60 % by default)
are noisy copies of features of the earlier one (cosine 0.3 to 0.95); the others have no predecessor. Depending on the
setting, rows share a mean direction, a few strong directions, or family directions. For each setting and null the
script prints the threshold, the share of planted edges found, and the realised false-discovery rate: the share of
features above the threshold that have no predecessor. docs/calibration.md shows the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from saeflow.flow import Thresholds
from saeflow.ids import Part, Site
from saeflow.matching.build import build_atlas
from saeflow.matching.calibration import KINDS, calibrate
from saeflow.sources.activations import ReLU
from saeflow.sources.dictionary import Dictionary, Tap

D_MODEL, N_FEATURES, STRONG, FAMILIES = 192, 768, 12, 48
EARLIER, LATER, FAR = Site(3, Part.RES), Site(4, Part.RES), Site(0, Part.RES)


@dataclass(frozen=True)
class Setting:
    """How much of a row's energy (squared norm) is shared with other rows, and how many predecessors are planted.

    Attributes:
        mean: share of the energy in one direction common to all rows.
        strong: share in 12 directions, the strongest with ten times the amplitude of the weakest.
        family: share in a direction common to about 1 in 48 rows of either site.
        planted: share of the later site's features that have a predecessor.
        long_lived: share of the distant site's features that are copies of later features.
    """

    name: str
    mean: float = 0.0
    strong: float = 0.0
    family: float = 0.0
    planted: float = 0.6
    long_lived: float = 0.0


SETTINGS = (
    Setting("isotropic"),
    Setting("a mean direction", mean=0.1),
    Setting("mean and strong directions", mean=0.1, strong=0.3),
    Setting("the same, stronger", mean=0.3, strong=0.4),
    Setting("the same, few planted", mean=0.1, strong=0.3, planted=0.05),
    Setting("the same, none planted", mean=0.1, strong=0.3, planted=0.0),
    Setting("the same, a tenth long-lived", mean=0.1, strong=0.3, long_lived=0.1),
    Setting("families of features", mean=0.05, family=0.3),
)


@dataclass(frozen=True)
class World:
    """`predecessor[i]` is the row of the earlier site that later feature i is a copy of, or -1 for none."""

    dictionaries: dict[Site, Dictionary]
    predecessor: Tensor


def plant(setting: Setting, seed: int) -> World:
    """Three dictionaries in one residual stream, with known edges between the two neighbours."""
    rows = _Rows(setting, seed)
    earlier = rows.draw(N_FEATURES)
    n = round(setting.planted * N_FEATURES)
    parents = torch.randperm(N_FEATURES, generator=rows.generator)[:n]
    later = torch.cat([rows.copies(earlier[parents], 0.3, 0.95), rows.draw(N_FEATURES - n)])
    old = round(setting.long_lived * N_FEATURES)
    lasting = later[torch.randperm(N_FEATURES, generator=rows.generator)[:old]]
    far = torch.cat([rows.copies(lasting, 0.4, 0.8), rows.draw(N_FEATURES - old)])
    made = {EARLIER: earlier, LATER: later, FAR: far}
    none = torch.full((N_FEATURES - n,), -1)
    return World({site: _dictionary(site, W) for site, W in made.items()}, torch.cat([parents, none]))


class _Rows:
    """Draws rows in one residual stream; the directions they share are drawn once."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting, self.generator = setting, torch.Generator().manual_seed(seed)
        self.mean = _unit(self._normal(1))
        self.strong = torch.linalg.qr(self._normal(STRONG).T).Q.T * torch.logspace(0, -1, STRONG)[:, None]
        self.strong /= self.strong.norm()
        self.families = _unit(self._normal(FAMILIES))

    def draw(self, n: int) -> Tensor:
        """Draw unit rows that have no counterpart elsewhere."""
        s = self.setting
        own = (1 - s.mean - s.strong - s.family) ** 0.5 * _unit(self._normal(n))
        common = s.mean**0.5 * self.mean + s.strong**0.5 * (self._normal(n, STRONG) @ self.strong)
        member = torch.randint(FAMILIES, (n,), generator=self.generator)
        return _unit(own + common + s.family**0.5 * self.families[member])

    def copies(self, rows: Tensor, low: float, high: float) -> Tensor:
        """Noisy copies at a cosine of `low` to `high` to the given rows; the noise is drawn like other rows."""
        cosine = low + (high - low) * torch.rand(len(rows), 1, generator=self.generator)
        other = self.draw(len(rows))
        other = _unit(other - (other * rows).sum(1, keepdim=True) * rows)
        return cosine * rows + (1 - cosine**2).sqrt() * other

    def _normal(self, n: int, d: int = D_MODEL) -> Tensor:
        return torch.randn(n, d, generator=self.generator)


@dataclass(frozen=True)
class Outcome:
    """The result of one null on one world."""

    threshold: float
    found: float
    false: float


def measure(world: World, null: str, fdr: float, seed: int, draws: tuple[int, int] = (2048, 8)) -> Outcome:
    """Calibrate an atlas of the world and compare its edges with the planted ones."""
    with tempfile.TemporaryDirectory() as folder:
        plain = build_atlas(world.dictionaries, out=Path(folder), k=1)
        rows, rotations = draws
        atlas = calibrate(world.dictionaries, plain, rows=rows, rotations=rotations, seed=seed, null=null)
        cut = Thresholds.calibrated(atlas, fdr).of(Part.RES, LATER.layer)
        table = atlas[LATER, EARLIER]
        best, index = torch.from_numpy(table.score[:, 0]), torch.from_numpy(table.index[:, 0])
    kept, real = best >= cut, world.predecessor >= 0
    right = kept & real & (index == world.predecessor)
    return Outcome(
        threshold=cut,
        found=float(right.sum() / real.sum()) if real.any() else float("nan"),
        false=float((kept & ~real).sum() / kept.sum()) if kept.any() else 0.0,
    )


def table(seeds: int, fdr: float) -> list[dict[str, object]]:
    """One row per setting and null, with means over worlds."""
    rows: list[dict[str, object]] = []
    for setting in SETTINGS:
        for null in KINDS:
            outcomes = [measure(plant(setting, seed), null, fdr, seed) for seed in range(seeds)]
            means = {name: statistics.fmean(asdict(o)[name] for o in outcomes) for name in asdict(outcomes[0])}
            rows.append({"setting": setting.name, "null": null, **means})
    return rows


def _dictionary(site: Site, W_dec: Tensor) -> Dictionary:
    n, d = W_dec.shape
    return Dictionary(
        site, tap=Tap.RES, W_enc=W_dec, b_enc=torch.zeros(n), W_dec=W_dec, b_dec=torch.zeros(d), activation=ReLU()
    )


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="worlds of each setting")
    parser.add_argument("--fdr", type=float, default=0.01)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = table(asked.seeds, asked.fdr)
    if asked.json:
        text = json.dumps(rows, indent=1)
        print(text.replace("NaN", "null"))
        return
    print("| setting | null | threshold | planted edges found | realised FDR |\n|---|---|---:|---:|---:|")
    for row in rows:
        found = "-" if row["found"] != row["found"] else f"{row['found']:.3f}"
        print(f"| {row['setting']} | {row['null']} | {row['threshold']:.3f} | {found} | {row['false']:.4f} |")


if __name__ == "__main__":
    main()
