"""What is learned on texts before a transition is measured: regressions, sizes of features, factors (appendix F).

    G = sum z z^T     C = sum z (h_B - b_dec)^T     one pass over the texts, no activation is kept
    M = (G + strength * diag G)^-1 C                the T W_dec(B) of least squares, for one strength

The decoder's rows of B span what T W_dec(B) can be: M is projected onto their span, which changes nothing where there
are as many independent rows as dimensions. T itself is then M W_dec(B)^+. A feature that was never active has a row
of zeros. Beside it stands the best affine map of h_A itself, which no T can tell apart from more context but which
says how much of h_B any linear function of the stream reaches.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import scipy.linalg as la
import scipy.sparse as sp
import torch
from jaxtyping import Float, Float64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from saeflow.errors import BadFile, InvalidArgument
from saeflow.experiments.results import significant
from saeflow.experiments.transition.maps import TransitionMap, Units, in_memory, means_as_scale, transition_maps
from saeflow.experiments.transition.measure import DictionaryPair, Ends, Fitted, squared, sums
from saeflow.experiments.transition.variants import KEY, fit_path
from saeflow.files import write_atomic
from saeflow.reading import parse_json, safetensors
from saeflow.records import Progress
from saeflow.sources.activity import TextBatch, text_batches
from saeflow.sources.model import LanguageModel

STRENGTHS: Final = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge strengths that are tried, as shares of each feature's own sum of squares."""

_AT_ONCE: Final = 1024


@dataclass(frozen=True, slots=True)
class Setup:
    """What every measurement of a run shares.

    Attributes:
        model: the language model.
        max_length: tokens a text is cut to.
        ks: entries of a row of T that are kept.
        memory: bytes that the sums of a group of pairs may take, and its maps.
    """

    model: LanguageModel
    max_length: int
    ks: tuple[int | None, ...]
    memory: int

    def groups(self, pairs: Sequence[DictionaryPair]) -> list[list[DictionaryPair]]:
        """The pairs in order, as many together as fit into memory, one at least."""
        groups: list[list[DictionaryPair]] = []
        left = 0
        for pair in pairs:
            n, d = pair.source.n_features, pair.source.d_in
            # two matrices of sums in float64 while one is solved, or the maps: k entries a row, and whole ones
            needed = max(16 * n * n + 16 * n * d, 8 * n * sum(k or 2 * d for k in self.ks) * 12)
            if not groups or needed > left:
                groups.append([])
                left = self.memory
            groups[-1].append(pair)
            left -= needed
        return groups


@dataclass(frozen=True, eq=False)
class Fits:
    """The fits of a results folder: made once for each pair, read afterwards."""

    folder: Path
    setup: Setup
    texts: Callable[[], tuple[list[str], list[str], list[str]]]
    """Texts for fitting, for validation, and those that will be measured, of which the mean alone is taken."""

    def path(self, pair: DictionaryPair) -> Path:
        """Where the fit of a pair is."""
        return fit_path(self.folder, pair.sites)

    def are_done(self, group: Sequence[DictionaryPair]) -> bool:
        """Whether every pair has its fit."""
        return all(self.path(pair).is_file() for pair in group)

    def make(self, group: Sequence[DictionaryPair], progress: Progress | None = None) -> None:
        """Read the texts for fitting, for validation and for the mean, once each for all pairs, and write the fits."""
        fitting, validation, measured = (self._cut(texts) for texts in self.texts())
        steps = len(fitting) + len(validation) + len(measured)
        moments = [
            Moments(pair.source.n_features, pair.target.n_features, pair.source.d_in, pair.target.d_in)
            for pair in group
        ]
        for done, batch in enumerate(fitting):
            if progress:
                progress(done, steps, "texts")
            for pair, sums_, ends, y in self._each(group, moments, batch, encode=True):
                sums_.add(ends.h, ends.z, y, ends.truth, pair.target.b_dec)
        trials = [_Candidates.of(pair, found, self.setup) for pair, found in zip(group, moments, strict=True)]
        for done, batch in enumerate(validation):
            if progress:
                progress(len(fitting) + done, steps, "validation")
            for _, trial, ends, _ in self._each(group, trials, batch, encode=False):
                trial.add(ends)
        for done, batch in enumerate(measured):
            if progress:
                progress(len(fitting) + len(validation) + done, steps, "means")
            captured = self.setup.model.capture(batch.tokens, [pair.target.point for pair in group])
            for trial in trials:
                trial.add_truth(trial.pair.centred(captured[trial.pair.target.point][batch.real]))
        for pair, trial in zip(group, trials, strict=True):
            write_atomic(self.path(pair), trial.to_bytes())
        if progress:
            progress(steps, steps, "done")

    def read(self, pair: DictionaryPair) -> Fitted:
        """The fit of a pair.

        Raises:
            BadFile: when it is missing or cannot be read.
        """
        return self._read(pair)[0]

    def maps(self, pair: DictionaryPair) -> dict[str, TransitionMap]:
        """The maps of a pair by name, in units of the sizes that were measured."""
        return _maps(pair, self._read(pair)[1], self.setup)

    def _read(self, pair: DictionaryPair) -> tuple[Fitted, Units | None]:
        path = self.path(pair)
        try:
            with safe_open(safetensors(path), framework="pt") as file:
                told: dict[str, Any] = parse_json((file.metadata() or {})[KEY])
                held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            # fits of before had no checksum
            if told.pop("check", None) not in (None, _check(told, held)):
                raise ValueError("it has changed since it was written")
            fitted = Fitted(
                held["mean"], held["centre"], held["least_squares"], held["affine"], told["scales"], told["facts"]
            )
            units = Units(held["source_size"], held["target_size"]) if "source_size" in held else None
            return fitted, units
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise BadFile(f"{path} cannot be read ({error!r}). Remove it and run the command again.") from None

    def _cut(self, texts: Sequence[str]) -> list[TextBatch]:
        return list(text_batches(self.setup.model, texts, max_length=self.setup.max_length))

    def _each(
        self, group: Sequence[DictionaryPair], beside: Sequence[Any], batch: TextBatch, *, encode: bool
    ) -> list[tuple[DictionaryPair, Any, Ends, Tensor]]:
        """Every pair with what goes with it, what stands at its ends, and, if asked for, the activations at B."""
        places = [end.point for pair in group for end in (pair.source, pair.target)]
        captured = self.setup.model.capture(batch.tokens, places)
        found: list[tuple[DictionaryPair, Any, Ends, Tensor]] = []
        for pair, one in zip(group, beside, strict=True):
            ends = pair.ends(captured, batch.real)
            with torch.no_grad():
                y = pair.target.encode(ends.truth).float() if encode else ends.z[:0]
            found.append((pair, one, ends, y))
        return found


def _maps(pair: DictionaryPair, units: Units | None, setup: Setup) -> dict[str, TransitionMap]:
    found = transition_maps(pair.source, pair.target, ks=setup.ks, means=units)
    device = pair.target.W_dec.device
    held = in_memory(found, pair.source.n_features, pair.target.d_in, setup.memory // 4, device)
    return {variant.name: one for variant, one in held.items()}


class _Candidates:
    """A pair on its way from sums to a fit: candidates of the regressions, and what they miss on validation texts."""

    def __init__(self, pair: DictionaryPair, moments: Moments, units: Units | None, setup: Setup) -> None:
        self.pair, self.moments, self.units = pair, moments, units
        self.maps = _maps(pair, units, setup)
        self.least = _solved(lambda s: moments.least_squares(s, pair.target.W_dec))
        self.affine = _solved(moments.affine)
        self.missed = {"least": dict.fromkeys(self.least, 0.0), "affine": dict.fromkeys(self.affine, 0.0)}
        self.along = dict.fromkeys(self.maps, 0.0)
        self.square = dict.fromkeys(self.maps, 0.0)
        self.n = self.n_measured = 0
        self.truth = torch.zeros(pair.target.d_in, dtype=torch.float64)

    @staticmethod
    def of(pair: DictionaryPair, moments: Moments, setup: Setup) -> _Candidates:
        """From the sums over the texts for fitting."""
        sizes = [means_as_scale(t, n) for t, n in zip(moments.total, moments.active, strict=True)]
        units = None if sizes[0] is None or sizes[1] is None else Units(sizes[0], sizes[1])
        return _Candidates(pair, moments, units, setup)

    def add(self, ends: Ends) -> None:
        """Take in some tokens for validation."""
        rest = ends.truth - self.pair.target.b_dec.float()
        self.n += len(rest)
        for name, found in sums(ends, rest, self.maps).items():
            self.along[name] += found.along
            self.square[name] += found.square
        for strength, rows in self.least.items():
            self.missed["least"][strength] += squared(ends.z @ rows.to(rest), rest)
        for strength, rows in self.affine.items():
            said = ends.h @ rows[:-1].to(rest) + rows[-1].to(rest)
            self.missed["affine"][strength] += squared(said, ends.truth)

    def add_truth(self, truth: Float[Tensor, "n d_out"]) -> None:
        """Take in some tokens that will be measured, for their mean."""
        self.n_measured += len(truth)
        self.truth += truth.sum(dim=0, dtype=torch.float64).cpu()

    def to_bytes(self) -> bytes:
        """The fit: the candidates that miss least, the factor of each map, and the sizes."""
        least = min(self.least, key=self.missed["least"].__getitem__)
        affine = min(self.affine, key=self.missed["affine"].__getitem__)
        scales = {
            name: significant(self.along[name] / square, 9) if square > 0 else 0.0
            for name, square in self.square.items()
        }
        tensors = {
            "mean": self.moments.mean,
            "centre": (self.truth / max(self.n_measured, 1)).float(),
            "least_squares": self.least[least],
            "affine": self.affine[affine],
        }
        if self.units is not None:
            tensors |= {"source_size": self.units.source, "target_size": self.units.target}
        facts = {
            "least_squares_strength": least,
            "affine_strength": affine,
            "fit_tokens": self.moments.n,
            "validation_tokens": self.n,
        }
        # one entry alone, so that the same fit is always the same bytes
        told = {"facts": facts, "scales": scales}
        said = {KEY: json.dumps({**told, "check": _check(told, tensors)})}
        return save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=said)


def _check(told: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """A checksum of all that a fit holds."""
    found = zlib.crc32(json.dumps(told).encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(tensor.contiguous().numpy().tobytes(), zlib.crc32(name.encode(), found))
    return f"{found:08x}"


def _solved(solve: Callable[[float], Float[Tensor, "n k"]]) -> dict[float, Float[Tensor, "n k"]]:
    """The regression for every strength that has a solution."""
    found: dict[float, Tensor] = {}
    for strength in STRENGTHS:
        try:
            found[strength] = solve(strength)
        except la.LinAlgError:
            continue  # features that are copies of each other: a larger strength parts them
    if not found:
        raise InvalidArgument("no ridge strength gives a solution: activations are not finite, or there are none.")
    return found


class Moments:
    """Running sums for one pair of sites, in float64."""

    def __init__(self, n_source: int, n_target: int, width: int, d_out: int) -> None:
        """All zero: `width` is that of h_A, `d_out` that of h_B."""
        self.n = 0
        self.gram: Float64[np.ndarray, "n_source n_source"] = np.zeros((n_source, n_source))
        self.cross: Float64[np.ndarray, "n_source d_out"] = np.zeros((n_source, d_out))
        # h_A with a 1 behind it, for the affine map
        self.stream: Float64[np.ndarray, "d_in d_in"] = np.zeros((width + 1, width + 1))
        self.stream_cross: Float64[np.ndarray, "d_in d_out"] = np.zeros((width + 1, d_out))
        self.truth: Float64[np.ndarray, " d_out"] = np.zeros(d_out)
        self.active: tuple[Tensor, Tensor] = (torch.zeros(n_source), torch.zeros(n_target))
        self.total: tuple[Tensor, Tensor] = (torch.zeros(n_source), torch.zeros(n_target))

    def add(
        self,
        h: Float[Tensor, "n width"],
        z: Float[Tensor, "n n_source"],
        y: Float[Tensor, "n n_target"],
        truth: Float[Tensor, "n d_out"],
        b_dec: Float[Tensor, " d_out"],
    ) -> None:
        """Take in some tokens: the stream and the activations at A, the activations of B and the stream there."""
        self.n += len(h)
        for place, acts in enumerate((z, y)):
            self.active[place].add_((acts > 0).sum(dim=0).cpu())
            self.total[place].add_(acts.sum(dim=0).float().cpu())
        for some in torch.arange(len(h)).split(_AT_ONCE):
            here = some.to(h.device)
            self._add(h[here], z[here], truth[here], b_dec)

    def _add(self, h: Tensor, z: Tensor, truth: Tensor, b_dec: Tensor) -> None:
        acts = sp.csr_array(z.double().cpu().numpy())
        there = truth.double().cpu().numpy()
        products = sp.coo_array(acts.T @ acts)
        self.gram[products.row, products.col] += products.data  # each pair once, so that no sum is lost
        rest = there - b_dec.double().cpu().numpy()
        self.cross += acts.T @ rest
        self.truth += there.sum(axis=0)
        stream = np.concatenate([h.double().cpu().numpy(), np.ones((len(h), 1))], axis=1)
        self.stream += stream.T @ stream
        self.stream_cross += stream.T @ there

    @property
    def mean(self) -> Float[Tensor, " d_out"]:
        """The mean of h_B, over all tokens taken in."""
        return torch.from_numpy(self.truth / max(self.n, 1)).float()

    def least_squares(self, strength: float, W_dec: Float[Tensor, "n_target d_out"]) -> Float[Tensor, "n_source d_out"]:
        """T W_dec(B) of ridge regression: what each feature of A adds to h_B, in the span of B's decoder rows."""
        found = ridge(self.gram, self.cross, strength)
        basis = la.orth(W_dec.double().cpu().numpy().T)
        return torch.from_numpy(found @ basis @ basis.T).float()

    def affine(self, strength: float) -> Float[Tensor, "d_in d_out"]:
        """The best affine map of h_A: its rows, and the constant as the last one, which ridge leaves alone."""
        centred, mean = _centred(self.stream, self.stream_cross, self.n)
        slope = ridge(*centred, strength)
        return torch.from_numpy(np.concatenate([slope, (mean[1] - mean[0] @ slope)[None]])).float()


def ridge(
    gram: Float64[np.ndarray, "n n"], cross: Float64[np.ndarray, "n k"], strength: float
) -> Float64[np.ndarray, "n k"]:
    """(G + strength * diag G)^-1 C; rows of zeros where the diagonal is 0.

    Solved with every variable at unit size, so that a strength means the same for all.

    Raises:
        numpy.linalg.LinAlgError: for a strength too small to make G positive definite.
    """
    size = np.sqrt(np.clip(np.diag(gram), 0, None))
    used = np.flatnonzero(size > 0)
    out = np.zeros_like(cross)
    if len(used):
        scaled = gram[np.ix_(used, used)] / size[used, None] / size[None, used]
        scaled[np.diag_indices_from(scaled)] = 1 + strength
        solved = la.cho_solve(la.cho_factor(scaled), cross[used] / size[used, None])
        out[used] = solved / size[used, None]
    return out


def _centred(
    gram: Float64[np.ndarray, "n n"], cross: Float64[np.ndarray, "n k"], n: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Second moments about the means, and the means, from sums with a 1 as the last variable."""
    of_x, of_y = gram[-1, :-1] / n, cross[-1] / n
    about = gram[:-1, :-1] - n * np.outer(of_x, of_x), cross[:-1] - n * np.outer(of_x, of_y)
    return about, (of_x, of_y)
