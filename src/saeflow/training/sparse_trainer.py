"""saeflow's own trainer: one dense product per step, and everything else on active features only.

In the five matrix products of a dense step (encoder and decoder, forward and backward) nearly all entries are zero.
Here a step on a batch of B rows is

    1. screen       x W_enc^T + b in bfloat16, with a bound on its error: the only dense product
    2. select       exact float32 pre-activations where the screen cannot exclude a feature; those that are active,
                    or within half a bandwidth of their threshold, are the entries of the step
    3. reconstruct  out = sum of the active rows of W_dec + b_dec;  G = 2 (out - y) / B
    4. back         dL/da = <G, W_dec[j]> at the entries;  dL/dpre = dL/da where active
    5. accumulate   entries sorted by feature: dW_dec[j] = sum a G, dW_enc[j] = sum dL/dpre x
    6. update       gradients clipped to norm 1, Adam (torch's fused one), decoder rows scaled back to norm 1

The losses are those of sae-lens 6.54, and their gradients are exact: only the order of summation differs. The screen
merely saves time. With x = x' + dx and w = w' + dw (x', w' rounded), |x w - x' w'| is at most |dx| |w| + |x'| |dw|,
plus the rounding of float32 sums. Four more columns of the dense product add this bound and subtract the threshold, so
a positive result means "cannot be excluded". The step is the same, bit for bit, whichever type the screen runs in.

Everything is plain torch: embedding_bag and sampled_addmm run on CUDA too.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Final, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, linear, pad

from saeflow.errors import InvalidArgument
from saeflow.training.folding import TrainedWeights
from saeflow.training.settings import Objective, TrainingTarget, first_threshold, seed_of
from saeflow.training.trainer_interface import (
    FREE,
    LOOKED_AT,
    UNIT,
    TrainerInputs,
    dead_window,
    hold_thresholds,
    l0_due,
    refuse_other,
)

_CHUNK: Final = 512
"""Rows that are screened at a time, so that their pre-activations stay in the cache."""
_THRESHOLD_RATE: Final = 0.01
"""Share by which BatchTopK's running threshold moves to the smallest chosen activation of a step."""


class SparseTrainer:
    """The dictionaries of a run, trained side by side. Implements `Trainer`."""

    name: ClassVar[str] = "sparse"

    def __init__(self, inputs: TrainerInputs) -> None:
        """Make the dictionaries, with first weights seeded per site.

        Raises:
            InvalidArgument: when weights to start from do not fit.
        """
        with warnings.catch_warnings():  # torch announces once per process that sparse CSR is in beta
            warnings.simplefilter("ignore")
            Entries(torch.tensor([0, 1]), torch.tensor([0])).dots(torch.ones(1, 1), torch.ones(1, 1))
        self._trained = {target.name: DictionaryTrainer(target, inputs) for target in inputs.targets}
        self._side_by_side = _one_thread_each(min(torch.get_num_threads(), len(self._trained)), inputs.device)

    def step(self, batch: Mapping[str, Tensor]) -> None:
        """Take one step with every dictionary.

        On the CPU, several dictionaries step side by side, each on one thread: most operations of a step are too small
        to be shared among threads.
        """
        rows = [batch[name] for name in self._trained]
        list(self._side_by_side(DictionaryTrainer.step, self._trained.values(), rows))

    def weights(self, name: str) -> TrainedWeights:
        """Copies of the weights of one dictionary."""
        return self._trained[name].weights()

    def dead(self, name: str) -> float:
        """The share of a dictionary's features that did not fire in the last steps."""
        return float(self._trained[name].dead().float().mean())

    def losses(self, name: str) -> dict[str, float]:
        """The terms of the last loss, in units of normalised activations, and the learning rate of the next step."""
        trained = self._trained[name]
        return {key: float(value) for key, value in trained.losses.items()} | {"lr": trained.learning_rate()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights, Adam's moments and counters of every dictionary."""
        tensors: dict[str, Tensor] = {}
        for name, trained in self._trained.items():
            tensors |= {f"{name}/{key}": tensor for key, tensor in trained.tensors().items()}
        return tensors, {name: {"steps": one.steps, "first_l0": one.first_l0} for name, one in self._trained.items()}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Resume where `state` was taken.

        Raises:
            BadFile: when the state is of other dictionaries.
        """
        refuse_other(state, self._trained)
        for name, trained in self._trained.items():
            trained.steps, trained.first_l0 = int(state[name]["steps"]), state[name]["first_l0"]
            for key, tensor in trained.tensors().items():
                tensor.copy_(tensors[f"{name}/{key}"])


def _one_thread_each(threads: int, device: torch.device) -> Callable[..., Iterable[None]]:
    """A `map` over CPU threads in each of which torch computes on one thread; elsewhere the built-in `map`."""
    if threads < 2 or device.type != "cpu":
        return map
    n = torch.get_num_threads()

    def begin() -> None:
        torch.get_num_threads()  # a thread's first query adopts the number of the process: query before setting it
        torch.set_num_threads(1)

    pool = ThreadPoolExecutor(threads, "step", begin)
    list(pool.map(time.sleep, [0.01] * threads))  # start all threads
    torch.set_num_threads(n)  # for threads that start later
    return pool.map


class Entries(NamedTuple):
    """Some (row, feature) pairs of a batch, in order of rows: row r has those from `first[r]` to `first[r + 1]`."""

    first: Int[Tensor, " rows+1"]
    feature: Int[Tensor, " n"]

    def row(self) -> Int[Tensor, " n"]:
        """The row of every pair."""
        counts = self.first.diff()
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)

    def where(self, kept: Bool[Tensor, " n"]) -> Entries:
        """The pairs for which `kept` is true."""
        return Entries(pad(kept.cumsum(0), (1, 0))[self.first], self.feature[kept])

    def dots(self, left: Float[Tensor, "rows d"], right: Float[Tensor, "m d"]) -> Float[Tensor, " n"]:
        """left[row] . right[feature] for every pair."""
        size, zeros = (len(left), len(right)), left.new_zeros(len(self.feature))
        pattern = torch.sparse_csr_tensor(self.first, self.feature, zeros, size, check_invariants=False)
        return torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values()

    def sums(self, weights: Float[Tensor, " n"], table: Float[Tensor, "m d"]) -> Float[Tensor, "rows d"]:
        """For each row, the sum of weight * table[feature] over its pairs."""
        return embedding_bag(
            self.feature, table, self.first, mode="sum", per_sample_weights=weights, include_last_offset=True
        )


class DictionaryTrainer:
    """One dictionary in training; see the module docstring.

    Attributes:
        parameters: W_enc `[m, d_in]`, b_enc, W_dec `[m, d_out]`, b_dec, and for the JumpReLUs threshold.
        steps: number of steps taken.
        first_l0: L0 of the first step, where the L0 that is due starts; None where thresholds are not moved.
        losses: the terms of the last loss.
    """

    def __init__(self, target: TrainingTarget, inputs: TrainerInputs) -> None:
        """Make the first weights.

        Raises:
            InvalidArgument: when weights to start from have other shapes, or another kind of activation.
        """
        self._settings, self._loss = inputs.settings, inputs.settings.sparsity
        self._transcodes, self._width = target.is_transcoder, target.width
        self._d_in, d_out = inputs.widths[target.name]
        self.steps, self.losses = 0, dict[str, Tensor]()
        self.first_l0: float | None = None
        made = inputs.start.get(target.name) or first_weights(target, inputs)
        wanted = {
            "W_enc": (target.width, self._d_in),
            "b_enc": (target.width,),
            "W_dec": (target.width, d_out),
            "b_dec": (d_out,),
        }
        has_one = self._loss.objective is not Objective.TOPK
        if has_one:
            wanted["threshold"] = (target.width,)
        held = {key: tensor for key, tensor in vars(made).items() if isinstance(tensor, Tensor)}
        shapes = {key: tuple(tensor.shape) for key, tensor in held.items()}
        if shapes != wanted:
            raise InvalidArgument(
                f"training cannot start from weights of shapes {shapes} where {wanted} are trained. Start from a "
                "dictionary of the same width and architecture."
            )
        self.parameters = {key: tensor.to(inputs.device, copy=True).contiguous() for key, tensor in held.items()}
        # BatchTopK has one threshold, on activations times the norms of decoder rows
        self._batch_threshold = torch.zeros((), dtype=torch.float64, device=inputs.device)
        if self._loss.objective is Objective.BATCHTOPK:
            thresholds = self.parameters.pop("threshold")
            self._batch_threshold += (thresholds * self.parameters["W_dec"].norm(dim=1)).mean()
        self._probable_cut: float | None = None
        self._silent_for = torch.zeros(target.width, device=inputs.device)
        if self._loss.unit_decoder:
            _scale_to_norm_1(self.parameters["W_dec"])
        self._adam = torch.optim.Adam(
            self.parameters.values(), betas=(inputs.settings.optimiser.beta1, 0.999), fused=True
        )
        for tensor in self.parameters.values():
            self._adam.state[tensor] = {
                "step": torch.zeros((), device=inputs.device),
                "exp_avg": torch.zeros_like(tensor),
                "exp_avg_sq": torch.zeros_like(tensor),
            }

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that a step changes, not copied."""
        held = {"silent_for": self._silent_for, "batch_threshold": self._batch_threshold}
        for key, tensor in self.parameters.items():
            held |= {key: tensor} | {f"adam.{key}.{which}": one for which, one in self._adam.state[tensor].items()}
        return held

    def weights(self) -> TrainedWeights:
        """Copies of the weights, with thresholds in units of pre-activations."""
        held = {key: tensor.clone() for key, tensor in self.parameters.items()}
        threshold = held.pop("threshold", None)
        if threshold is not None:
            threshold.clamp_(min=0)  # as the next step would
        elif self._loss.objective is Objective.BATCHTOPK:
            threshold = (self._batch_threshold / held["W_dec"].norm(dim=1).clamp(min=1e-8).double()).float()
        return TrainedWeights(**held, threshold=threshold, k=int(self._loss.l0) if threshold is None else 0)

    def dead(self) -> Bool[Tensor, " m"]:
        """Which features fired in none of the last steps."""
        return self._silent_for > dead_window(self._settings)

    def learning_rate(self) -> float:
        """The learning rate of the next step: linear rise, constant, linear fall."""
        optimiser, left = self._settings.optimiser, self._settings.optimiser.steps - self.steps
        up, down = round(optimiser.warm_up * optimiser.steps), round(optimiser.decay * optimiser.steps)
        return optimiser.lr * (left / down if left < down else min(1.0, (self.steps + 1) / max(up, 1)))

    @torch.no_grad()
    def step(self, batch: Float[Tensor, "rows columns"]) -> None:
        """Take one step. `batch` has the columns that are read; for a transcoder, then those that are predicted."""
        p, n, thresholded = self.parameters, len(batch), self._loss.objective.has_thresholds
        x, y = (batch[:, : self._d_in].contiguous(), batch[:, self._d_in :]) if self._transcodes else (batch, batch)
        dead = self.dead()
        # 1, 2. the active features of each row; with thresholds, also those close to their threshold
        if thresholded:
            p["threshold"].clamp_(min=0)
            cut = p["threshold"] - self._loss.bandwidth / 2
            entries, pre = self._above(x, cut)
            on = pre > p["threshold"][entries.feature]
        else:
            cut = p["b_enc"]  # not used
            entries, pre = self._largest(x)
            on = pre > 0
        active, acts = entries.where(on), pre[on]
        # 3. the reconstruction and its error
        error = active.sums(acts, p["W_dec"]).add_(p["b_dec"]).sub_(y)
        self.losses = {"mse_loss": error.square().sum(dim=1).mean()}
        grad_out = error * (2 / n)
        # 4. back to the entries
        grad_acts = entries.dots(grad_out, p["W_dec"])
        # 5. sums over the rows of each feature
        order = torch.argsort(active.feature, stable=True)
        fired = torch.bincount(active.feature, minlength=self._width)
        by_feature = Entries(pad(fired.cumsum(0), (1, 0)), active.row()[order])
        grad_pre = grad_acts[on][order]
        grads = {
            "W_enc": by_feature.sums(grad_pre, x),
            "b_enc": torch.zeros_like(p["b_enc"]).index_add_(0, active.feature[order], grad_pre),
            "W_dec": by_feature.sums(acts[order], grad_out),
            "b_dec": grad_out.sum(dim=0),
        }
        if thresholded:
            grads["threshold"] = self._threshold_gradient(entries, pre, grad_acts, active.first.diff())
        else:
            self._revive(x, error, dead, grads)
        # 6. the update
        self._update(grads)
        self._silent_for += 1
        self._silent_for[fired > 0] = 0
        self.steps += 1
        if self._loss.holds_l0:
            self._hold_l0(x, entries, pre, cut, len(acts) / n)

    def _above(self, x: Float[Tensor, "rows d_in"], cut: Float[Tensor, " m"]) -> tuple[Entries, Float[Tensor, " n"]]:
        """All pairs whose pre-activation is above their feature's cut, and these pre-activations."""
        W_enc, b_enc = self.parameters["W_enc"], self.parameters["b_enc"]
        screen = _Screen(x, W_enc, b_enc - cut)
        found = screen.entries(lambda bounds, _rows: bounds > 0)
        pre = found.dots(x, W_enc).add_(b_enc[found.feature])
        kept = pre > cut[found.feature]
        return found.where(kept), pre[kept]

    def _largest(self, x: Float[Tensor, "rows d_in"]) -> tuple[Entries, Float[Tensor, " n"]]:
        """The pairs that TopK or BatchTopK choose, ranked by pre-activation times the norm of the decoder row."""
        n, W_enc, b_enc = len(x), self.parameters["W_enc"], self.parameters["b_enc"]
        size = self.parameters["W_dec"].norm(dim=1)
        if self._loss.objective is Objective.TOPK:
            k = int(self._loss.l0)
            screen = _Screen(x, W_enc * size[:, None], b_enc * size)

            def may_be_chosen(bounds: Tensor, rows: slice) -> Tensor:
                least = bounds.topk(k, dim=1, sorted=False).values.amin(dim=1).float()
                # a bound exceeds its value by at most 2 margins; the last term is for the rounding of bounds
                return bounds >= (least - 2 * screen.margin[rows] - least.abs() / 64)[:, None]

            found = screen.entries(may_be_chosen)
            pre = found.dots(x, W_enc).add_(b_enc[found.feature])
            # lay out the candidates of each row side by side
            row = found.row()
            place = torch.arange(len(row), device=row.device) - found.first[row]
            ranked = pre.new_full((n, int(found.first.diff().max())), -torch.inf)
            ranked[row, place] = pre * size[found.feature]
            chosen = (ranked.topk(k, dim=1, sorted=False).indices + found.first[:-1, None]).flatten()
        else:
            k = int(self._loss.l0 * n)
            if self._probable_cut is None:
                some = linear(x[:LOOKED_AT], W_enc, b_enc) * size
                self._probable_cut = float(some.flatten().topk(int(self._loss.l0 * len(some)) or 1).values.min())
            # start just below the last step's cut, and lower it until enough pairs are above
            cut = 0.9 * self._probable_cut
            found, pre = self._above(x, max(cut, 0.0) / size)
            while len(pre) < k and cut > 0:
                cut = 0.7 * cut if cut > 0.1 * self._probable_cut else 0.0
                found, pre = self._above(x, cut / size)
            ranked = pre * size[found.feature]
            chosen = ranked.topk(min(k, len(ranked)), sorted=False).indices
            if len(chosen):
                self._probable_cut = float(ranked[chosen].min())
                self._batch_threshold.lerp_(ranked[chosen].min().double(), _THRESHOLD_RATE)
        kept = torch.zeros(len(pre), dtype=torch.bool, device=x.device)
        kept[chosen] = True
        return found.where(kept), pre[kept]

    def _threshold_gradient(
        self, entries: Entries, pre: Tensor, grad_acts: Tensor, l0: Int[Tensor, " rows"]
    ) -> Float[Tensor, " m"]:
        """The gradient through a rectangle one bandwidth wide around each threshold; also records the penalty."""
        loss, threshold, n = self._loss, self.parameters["threshold"], len(l0)
        warm_up = round(loss.warm_up * self._settings.optimiser.steps)
        weight = loss.coefficient * (min(1.0, self.steps / warm_up) if warm_up else 1.0)
        if loss.objective is Objective.JUMPRELU_L0:
            off = l0 - loss.l0
            self.losses["l0_loss"] = weight * (2 / loss.l0 * off.square()).mean()
            slope = off * (weight * 4 / loss.l0 / n)
        else:
            self.losses["l0_loss"] = weight * l0.float().mean()
            slope = torch.full((n,), weight / n, device=pre.device)
        at = threshold[entries.feature]
        near = ((pre - at) / loss.bandwidth).abs() < 0.5
        pull = (at * grad_acts + slope[entries.row()])[near] / -loss.bandwidth
        return torch.zeros_like(threshold).index_add_(0, entries.feature[near], pull)

    def _revive(
        self, x: Tensor, error: Float[Tensor, "rows d_out"], dead: Bool[Tensor, " m"], grads: dict[str, Tensor]
    ) -> None:
        """Add gradients that make the d_out / 2 strongest dead features of each row reconstruct what is missing."""
        p, which, n = self.parameters, dead.nonzero().flatten(), len(x)
        self.losses["auxiliary_reconstruction_loss"] = error.new_zeros(())
        if not len(which):
            return
        most = max(1, error.shape[1] // 2)
        weight, W_dec = self._loss.coefficient * min(len(which) / most, 1.0), p["W_dec"][which]
        acts = linear(x, p["W_enc"][which], p["b_enc"][which])
        kept = torch.ones_like(acts, dtype=torch.bool)
        if most < len(which):
            top = (acts * W_dec.norm(dim=1)).topk(most, dim=1, sorted=False).indices
            kept = torch.zeros_like(kept).scatter_(1, top, True)
            acts *= kept
        off = acts @ W_dec + error
        self.losses["auxiliary_reconstruction_loss"] = weight * off.square().sum(dim=1).mean()
        grad = off * (2 * weight / n)
        grad_pre = (grad @ W_dec.T).mul_(kept)
        grads["W_dec"][which] += acts.T @ grad
        grads["W_enc"][which] += grad_pre.T @ x
        grads["b_enc"][which] += grad_pre.sum(dim=0)

    def _update(self, grads: dict[str, Tensor]) -> None:
        """Clip gradients to norm 1 and apply Adam; for unit decoder rows, first drop the component along the row."""
        W_dec = self.parameters["W_dec"]
        if self._loss.unit_decoder:
            grads["W_dec"].addcmul_((grads["W_dec"] * W_dec).sum(dim=1, keepdim=True), W_dec, value=-1)
        norm = torch.stack([grad.norm() for grad in grads.values()]).norm()
        clip = (1 / (norm + 1e-6)).clamp(max=1.0)
        for key, tensor in self.parameters.items():
            tensor.grad = grads[key].mul_(clip)
        self._adam.param_groups[0]["lr"] = self.learning_rate()
        self._adam.step()
        self._adam.zero_grad()
        if self._loss.unit_decoder:
            _scale_to_norm_1(W_dec)

    def _hold_l0(self, x: Tensor, entries: Entries, pre: Tensor, cut: Float[Tensor, " m"], l0: float) -> None:
        """Move all thresholds together towards the L0 that is due.

        The penalty trades L0 against the error, so L0 would end above its target, and far above it in a short run: Adam
        moves a threshold by at most the learning rate per step. Which features are active is left to the loss.
        """
        if self.first_l0 is None:
            self.first_l0 = l0 or self._loss.l0
        due = l0_due(self.first_l0, self._loss.l0, self.steps, self._settings.optimiser.steps)
        threshold, rows = self.parameters["threshold"], min(LOOKED_AT, len(x))
        wanted = min(max(1, round(due * rows)), rows * self._width)
        end = int(entries.first[rows])
        above = pre[:end] - threshold[entries.feature[:end]]
        # moved by the n-th largest distance, thresholds would leave n activations in these rows
        shift = above.topk(wanted, sorted=False).values.min() if end >= wanted else None
        if shift is None or bool(shift < (cut - threshold).max()):  # entries lack pairs this far below
            dense = linear(x[:rows], self.parameters["W_enc"], self.parameters["b_enc"] - threshold)
            shift = dense.flatten().topk(wanted, sorted=False).values.min()
        W_enc, b_enc = self.parameters["W_enc"], self.parameters["b_enc"]
        hold_thresholds(
            threshold, shift, self._silent_for, self.steps, lambda of: linear(x, W_enc[of], b_enc[of]).amax(dim=0)
        )


class _Screen:
    """Upper bounds of x w + offset from a product in a short type; see the module docstring.

    Attributes:
        margin: `[rows]`, largest error of the product, in either direction; a bound exceeds its value by at most twice
            that.
    """

    def __init__(self, x: Float[Tensor, "rows d"], w: Float[Tensor, "m d"], offset: Float[Tensor, " m"]) -> None:
        dtype = _fastest_type(x.device)
        short_x, short_w = x.to(dtype), w.to(dtype)
        # twice the rounding of float32 sums; tensor cores may add parts in bfloat16
        rounding = (x.shape[1] + 8) * 2**-23 + (2**-7 if x.is_cuda and dtype != x.dtype else 0)
        size_x, size_w = x.norm(dim=1), w.norm(dim=1)
        off_x = (x - short_x.float()).norm(dim=1) + rounding * size_x
        off_w = (w - short_w.float()).norm(dim=1)
        up = 1 + 2**-7  # scaled by this, a value rounded to bfloat16 is not below the original
        high = offset.to(dtype).float()
        rest = offset - high
        low = rest + rest.abs() / 128 + offset.abs() * rounding
        one = torch.ones_like(size_x)
        more_x, more_w = [off_x * up, size_x * up, one, one], [size_w * up, off_w * up, high, low]
        self.margin = off_x * up**2 * (size_w.max() * up**2) + size_x * up**2 * (off_w.max() * up**2)
        self._x = torch.cat([short_x, torch.stack(more_x, dim=1).to(dtype)], dim=1)
        self._w = torch.cat([short_w, torch.stack(more_w, dim=1).to(dtype)], dim=1)

    def entries(self, keep: Callable[[Tensor, slice], Tensor]) -> Entries:
        """The pairs that `keep` chooses, given the bounds `[rows, m]` of some rows and the slice of these rows."""
        counts, features = list[Tensor](), list[Tensor]()
        for start in range(0, len(self._x), _CHUNK):
            rows = slice(start, start + _CHUNK)
            row, feature = keep(linear(self._x[rows], self._w), rows).nonzero().unbind(1)
            counts.append(torch.bincount(row, minlength=len(self._x[rows])))
            features.append(feature)
        return Entries(pad(torch.cat(counts).cumsum(0), (1, 0)), torch.cat(features))


@functools.cache
def _fastest_type(device: torch.device) -> torch.dtype:
    """float32 or bfloat16, whichever multiplies matrices faster here. The trained weights do not depend on it."""
    if device.type != "cpu":
        return torch.bfloat16
    taken = dict[torch.dtype, float]()
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(512, 512, dtype=dtype)
        linear(matrix, matrix)  # the first call builds the kernel
        began = time.perf_counter()
        for _ in range(3):
            linear(matrix, matrix)
        taken[dtype] = time.perf_counter() - began
    return min(taken, key=lambda dtype: taken[dtype])


def first_weights(target: TrainingTarget, inputs: TrainerInputs) -> TrainedWeights:
    """The weights a dictionary starts from, drawn as sae-lens does: encoder and decoder agree where the widths do.

    They depend on the seed, the site and the tap, but not on torch's global generator.
    """
    loss, (d_in, d_out), m = inputs.settings.sparsity, inputs.widths[target.name], target.width
    norm = UNIT if loss.unit_decoder else FREE
    own = torch.Generator().manual_seed(seed_of(inputs.settings.seed, "weights", str(target.site), target.reads.value))
    W_enc = torch.nn.init.kaiming_uniform_(torch.empty(m, d_in), generator=own)
    W_enc = W_enc / W_enc.norm(dim=1, keepdim=True) * norm
    W_dec = W_enc.clone()
    if d_out != d_in:
        W_dec = torch.randn(m, d_out, generator=own)
        W_dec *= norm / W_dec.norm(dim=1, keepdim=True)
    threshold = None
    if loss.objective.has_thresholds:
        # pre-activations scale with the norm of the encoder rows
        start = norm * first_threshold(loss.l0, m) if loss.threshold is None else loss.threshold
        threshold = torch.full((m,), start)
    elif loss.objective is Objective.BATCHTOPK:
        threshold = torch.zeros(m)
    return TrainedWeights(W_enc, torch.zeros(m), W_dec, torch.zeros(d_out), threshold)


def _scale_to_norm_1(rows: Float[Tensor, "m d"]) -> None:
    rows /= rows.norm(dim=1, keepdim=True)
