"""What is fitted on texts before a transition is measured: regressions, feature sizes, scale factors (appendix F).

    G = sum z z^T     C = sum z (h_B - b_dec)^T     one pass over the texts; activations are not kept
    M = (G + strength * diag G)^-1 C                T W_dec(B) of ridge regression, for one strength

T W_dec(B) lies in the span of B's decoder rows, so M is projected onto that span, which changes nothing if there are as
many independent rows as dimensions. T itself would then be M W_dec(B)^+. A feature that was never active has a row of
zeros. A second regression is the best affine map of h_A itself, which is not limited to what a T can express: it shows
how much of h_B any linear function of the residual stream can reach.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
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
from saeflow.experiments.settings import TransitionSize
from saeflow.experiments.transition.maps import TransitionMap, Units, in_memory, means_as_scale, transition_maps
from saeflow.experiments.transition.measure import DictionaryPair, Ends, Fitted, squared, sums
from saeflow.experiments.transition.variants import KEY, fit_path
from saeflow.files import write_atomic
from saeflow.plain_types import Progress
from saeflow.reading import parse_json, safetensors
from saeflow.sources.activity import TextBatch, text_batches
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import Captured, LanguageModel

STRENGTHS: Final = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The ridge strengths tried, as shares of each feature's own sum of squares."""

_AT_ONCE: Final = 1024


@dataclass(frozen=True, eq=False)
class Fits:
    """The fits of a results folder: made once for each pair, then read.

    Attributes:
        folder: the results folder.
        model: the language model.
        size: gives the entries kept per row of T, the length that texts are truncated to, and the memory for maps.
    """

    folder: Path
    model: LanguageModel
    size: TransitionSize

    def path(self, pair: DictionaryPair) -> Path:
        """The path of the fit of a pair."""
        return fit_path(self.folder, pair.sites)

    def make(
        self,
        group: Sequence[DictionaryPair],
        texts: tuple[Sequence[str], Sequence[str], Sequence[str]],
        progress: Progress | None = None,
    ) -> None:
        """Read all texts once for a group of pairs, and write the fits of the pairs.

        Args:
            group: pairs whose sums fit into memory together.
            texts: texts for fitting, texts for validation, and texts to be measured, from which only the mean is taken.
            progress: called with (batches done, batches in all, what they are for).
        """
        batches = [list(text_batches(self.model, some, max_length=self.size.max_length)) for some in texts]
        steps, done = sum(map(len, batches)), 0

        def captured(batch: TextBatch, what: str, ends: Sequence[Dictionary]) -> Captured:
            nonlocal done
            if progress:
                progress(done, steps, what)
            done += 1
            return self.model.capture(batch.tokens, [end.point for end in ends])

        both = [end for pair in group for end in (pair.source, pair.target)]
        moments = [RegressionSums(pair) for pair in group]
        for batch in batches[0]:
            held = captured(batch, "texts", both)
            for pair, found in zip(group, moments, strict=True):
                kept = pair.measured(held, batch.real)
                found.massive += batch.n_tokens - int(kept.sum())
                ends = pair.ends(held, kept)
                with torch.no_grad():
                    found.add(ends, pair.target.encode(ends.truth).float())
        candidates = [_Candidates(found, self) for found in moments]
        for batch in batches[1]:
            held = captured(batch, "validation", both)
            for one in candidates:
                kept = one.pair.measured(held, batch.real)
                one.moments.massive += batch.n_tokens - int(kept.sum())
                one.add(one.pair.ends(held, kept))
        for batch in batches[2]:
            held = captured(batch, "means", both)
            for one in candidates:
                kept = one.pair.measured(held, batch.real)
                one.add_truth(one.pair.centred(held[one.pair.target.point][kept]))
        for one in candidates:
            write_atomic(self.path(one.pair), one.to_bytes())
        if progress:
            progress(steps, steps, "done")

    def read(self, pair: DictionaryPair) -> Fitted:
        """Read the fit of a pair.

        Raises:
            BadFile: when the file is missing or cannot be read.
        """
        path = self.path(pair)
        try:
            with safe_open(safetensors(path), framework="pt") as file:
                header: dict[str, Any] = parse_json((file.metadata() or {})[KEY])
                held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            # older fits have no checksum
            if header.pop("check", None) not in (None, _check(header, held)):
                raise ValueError("it has changed since it was written")
            mean, centre, least_squares, affine = (held[name] for name in ("mean", "centre", "least_squares", "affine"))
            units = Units(held["source_size"], held["target_size"]) if "source_size" in held else None
            return Fitted(mean, centre, least_squares, affine, units, header["scales"], header["facts"])
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise BadFile(f"{path} cannot be read ({error!r}). Remove it and run the command again.") from None

    def maps(self, pair: DictionaryPair, units: Units | None) -> dict[str, TransitionMap]:
        """The maps of a pair by name; `units` are its measured mean activations. Maps are matrices if memory allows."""
        found = transition_maps(pair.source, pair.target, ks=self.size.k, means=units)
        device, most = pair.target.W_dec.device, int(self.size.memory * (1 << 30)) // 4
        held = in_memory(found, pair.source.n_features, pair.target.d_in, most, device)
        return {variant.name: one for variant, one in held.items()}


class _Candidates:
    """The fit of one pair in the making: candidate regressions and their errors on validation texts."""

    def __init__(self, moments: RegressionSums, fits: Fits) -> None:
        self.pair, self.moments = moments.pair, moments
        sizes = [means_as_scale(t, n) for t, n in zip(moments.total, moments.active, strict=True)]
        self.units = None if sizes[0] is None or sizes[1] is None else Units(sizes[0], sizes[1])
        self.maps = fits.maps(self.pair, self.units)
        self.least, self.affine = _solved(moments.least_squares), _solved(moments.affine)
        self.missed = {"least": dict.fromkeys(self.least, 0.0), "affine": dict.fromkeys(self.affine, 0.0)}
        self.along, self.square = dict.fromkeys(self.maps, 0.0), dict.fromkeys(self.maps, 0.0)
        self.n = self.n_measured = 0
        self.truth = torch.zeros(self.pair.target.d_in, dtype=torch.float64)

    def add(self, ends: Ends) -> None:
        """Add some validation tokens."""
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
        """Add some tokens that will be measured, for their mean."""
        self.n_measured += len(truth)
        self.truth += truth.sum(dim=0, dtype=torch.float64).cpu()

    def to_bytes(self) -> bytes:
        """The fit as a file: the candidates with the smallest error, the scale of each map, and the feature sizes."""
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
            "massive_tokens": self.moments.massive,
        }
        # a single metadata entry, so that equal fits give equal bytes
        header = {"facts": facts, "scales": scales}
        metadata = {KEY: json.dumps({**header, "check": _check(header, tensors)})}
        return save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=metadata)


def _check(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """A checksum of the contents of a fit."""
    found = zlib.crc32(json.dumps(header).encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(tensor.contiguous().numpy().tobytes(), zlib.crc32(name.encode(), found))
    return f"{found:08x}"


def _solved(solve: Callable[[float], Float[Tensor, "n k"]]) -> dict[float, Float[Tensor, "n k"]]:
    """The solution for every ridge strength that has one."""
    found: dict[float, Tensor] = {}
    for strength in STRENGTHS:
        try:
            found[strength] = solve(strength)
        except la.LinAlgError:
            continue  # duplicate features make the system singular; a larger strength separates them
    if not found:
        raise InvalidArgument("no ridge strength gives a solution: activations are not finite, or there are none.")
    return found


class RegressionSums:
    """Running sums for one pair of sites, in float64 (`active` and `total` in float32).

    Attributes:
        n: number of tokens added.
        massive: number of tokens left out as massive, in the texts for fitting and for validation.
        gram: sum of z z^T. cross: sum of z (h_B - b_dec)^T.
        stream: sum of x x^T, where x is h_A with a 1 appended, for the affine map. stream_cross: sum of x h_B^T.
        truth: sum of h_B.
        active, total: for each feature of A and of B, how often it was active, and the sum of its activations.
    """

    def __init__(self, pair: DictionaryPair) -> None:
        """Start with zeros."""
        n_source, n_target, width, d_out = (
            pair.source.n_features,
            pair.target.n_features,
            pair.source.d_in,
            pair.target.d_in,
        )
        self.pair, self.n, self.massive = pair, 0, 0
        self.gram: Float64[np.ndarray, "n_source n_source"] = np.zeros((n_source, n_source))
        self.cross: Float64[np.ndarray, "n_source d_out"] = np.zeros((n_source, d_out))
        self.stream: Float64[np.ndarray, "d_in d_in"] = np.zeros((width + 1, width + 1))
        self.stream_cross: Float64[np.ndarray, "d_in d_out"] = np.zeros((width + 1, d_out))
        self.truth: Float64[np.ndarray, " d_out"] = np.zeros(d_out)
        self.active = torch.zeros(n_source), torch.zeros(n_target)
        self.total = torch.zeros(n_source), torch.zeros(n_target)

    def add(self, ends: Ends, y: Float[Tensor, "n n_target"]) -> None:
        """Add some tokens: the hidden states at both ends, and the activations `y` of B."""
        self.n += len(ends.h)
        for place, acts in enumerate((ends.z, y)):
            self.active[place].add_((acts > 0).sum(dim=0).cpu())
            self.total[place].add_(acts.sum(dim=0).float().cpu())
        b_dec = self.pair.target.b_dec.double().cpu().numpy()
        for h, z, truth in zip(*(part.split(_AT_ONCE) for part in (ends.h, ends.z, ends.truth)), strict=True):
            acts, there = sp.csr_array(z.double().cpu().numpy()), truth.double().cpu().numpy()
            products = sp.coo_array(acts.T @ acts)
            # each entry occurs once in a sparse product, so this indexed += loses nothing
            self.gram[products.row, products.col] += products.data
            self.cross += acts.T @ (there - b_dec)
            self.truth += there.sum(axis=0)
            stream = np.concatenate([h.double().cpu().numpy(), np.ones((len(h), 1))], axis=1)
            self.stream += stream.T @ stream
            self.stream_cross += stream.T @ there

    @property
    def mean(self) -> Float[Tensor, " d_out"]:
        """The mean of h_B over all tokens added."""
        return torch.from_numpy(self.truth / max(self.n, 1)).float()

    def least_squares(self, strength: float) -> Float[Tensor, "n_source d_out"]:
        """T W_dec(B) of ridge regression: what each feature of A adds to h_B, within the span of B's decoder rows."""
        return torch.from_numpy(ridge(self.gram, self.cross, strength) @ self._span @ self._span.T).float()

    @cached_property
    def _span(self) -> Float64[np.ndarray, "d_out k"]:
        return la.orth(self.pair.target.W_dec.double().cpu().numpy().T)

    def affine(self, strength: float) -> Float[Tensor, "d_in d_out"]:
        """The best affine map of h_A: its rows, then the constant, which the ridge penalty does not shrink."""
        of_x, of_y = self.stream[-1, :-1] / self.n, self.stream_cross[-1] / self.n
        # centred second moments
        gram = self.stream[:-1, :-1] - self.n * np.outer(of_x, of_x)
        cross = self.stream_cross[:-1] - self.n * np.outer(of_x, of_y)
        slope = ridge(gram, cross, strength)
        return torch.from_numpy(np.concatenate([slope, (of_y - of_x @ slope)[None]])).float()


def ridge(
    gram: Float64[np.ndarray, "n n"], cross: Float64[np.ndarray, "n k"], strength: float
) -> Float64[np.ndarray, "n k"]:
    """(G + strength * diag G)^-1 C; rows of zeros where the diagonal is 0.

    Every variable is scaled to unit size first, so that a strength means the same for all.

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
