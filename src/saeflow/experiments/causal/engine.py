"""PreparedText: one clean forward pass of a text, from which every trial on it is computed.

1. The clean pass keeps the hidden states at the requested layers, and the keys and values of all layers
   (`saeflow.sources.blocks`). Dictionaries encode the requested tokens once (`CleanActivations`).
2. Trials are reduced to what has to be computed: equal edits are computed once, whatever they watch, and edits that
   change nothing not at all (`_reduced`).
3. The hidden states at the token are recomputed in batches, running as little as possible again (`_recompute`):

    edit at R_{L-1}   block L at the one token, against the clean keys and values of the tokens before
    edit at A_L       the MLP at that token; nothing in a parallel block, whose MLP does not read A_L
    edit at M_L       nothing: the edit is added to the residual stream

   An edit of R_{L-1} at an earlier token takes two rows of block L: one for that token, one for the token that is read.
   With sandwich norms (Gemma 2 and 3), A_L and M_L are the outputs of the norms, so the same holds.
4. Only watched features are encoded (all under TopK, where features compete).
5. On request, losses are computed for tokens from t on and layers from L on (`loss.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.errors import InvalidArgument, UnknownFeature, UnknownSite
from saeflow.experiments.causal.loss import ChangedToken, Losses
from saeflow.experiments.causal.trial import (
    Outcome,
    ReducedTrial,
    RemoveError,
    Stage,
    StageEdit,
    Trial,
    by_layer_and_work,
)
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import Rescale
from saeflow.sources.architectures import Tap, View
from saeflow.sources.blocks import CleanPass
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.hooks import Change
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens

_ENCODED_AT_ONCE = 64
"""How many tokens are encoded in one product, so that the dense activations stay small next to the dictionary."""

HiddenStates = Mapping[Tap | None, Tensor]
"""The hidden states `[n width]` of a batch at each computed tap; the key None holds what the block reads."""

Readings = dict[ReducedTrial, dict[tuple[Stage, int], float]]


class PreparedText:
    """One clean forward pass of one text; this object holds its caches.

    Attributes:
        tokens: the text, without padding.
        n_tokens: how many tokens it has, including the begin-of-text token.
    """

    def __init__(
        self,
        model: LanguageModel,
        dictionaries: Mapping[Site, Dictionary],
        tokens: Tokens,
        *,
        layers: Sequence[int],
        positions: Iterable[int] = (),
        batch_tokens: int = 512,
    ) -> None:
        """Run the text once.

        Args:
            model: a model of any supported architecture, with attention of kind `sdpa` or `eager`.
            dictionaries: those at res L-1, att L, mlp L and res L of the layers that are used; only these are read.
                They must be sparse autoencoders: the features of a transcoder do not add up to the tensor of its
                site, so it is refused when used.
            tokens: one text; padding on the right is cut off.
            layers: every L that trials will name.
            positions: tokens that will be used. A hint: each dictionary is then read from memory once for all of them
                instead of once for each.
            batch_tokens: the most tokens run through a block in one call; bounds memory.

        Raises:
            InvalidArgument: for no or several texts, an empty text, a token outside it, `batch_tokens` below 1, or a
                model whose attention takes no mask.
            UnknownSite: for a layer the model does not have.
        """
        if batch_tokens < 1:
            raise InvalidArgument(f"batch_tokens = {batch_tokens} runs nothing. Give 1 or more.")
        if len(tokens.input_ids) != 1 or tokens.lengths[0] < 1:
            raise InvalidArgument(
                f"PreparedText takes one text of one token or more, not {len(tokens.input_ids)} texts of lengths "
                f"{tokens.lengths}. Tokenize each text alone."
            )
        length = tokens.lengths[0]
        self.tokens = Tokens(tokens.input_ids[:, :length], tokens.attention_mask[:, :length])
        self.n_tokens = self.tokens.input_ids.shape[1]
        self._batch_tokens = batch_tokens
        self._parallel, self._n_layers = model.parallel, model.n_layers
        self._clean = CleanPass(model, self.tokens, layers)
        self._activations = CleanActivations(model, self._clean, dictionaries, map(self._inside, positions))
        self._losses = Losses(self._clean, self.tokens, model.n_layers)

    def active(self, site: Site, position: int) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Indices (ascending) and activations of all active features of `site` at a token in the clean pass.

        Raises:
            InvalidArgument: for a token outside the text.
            UnknownSite: for a site without a dictionary, or at none of the prepared layers.
        """
        found = self._activations.at(site, self._inside(position))
        return np.array(list(found), dtype=np.int64), np.array(list(found.values()), dtype=np.float32)

    def activations(self, features: Sequence[FeatureId], position: int) -> list[float]:
        """Activations of some features at a token in the clean pass, 0 for silent ones.

        Raises:
            InvalidArgument: for a token outside the text.
            UnknownFeature: for an index outside its dictionary.
            UnknownSite: for a site without a dictionary, or at none of the prepared layers.
        """
        for feature in features:
            self._activations.check(feature.site, feature.index)
        position = self._inside(position)
        return [self._activations.at(feature.site, position).get(feature.index, 0.0) for feature in features]

    def hidden(self, site: Site, position: int) -> Float[Tensor, " d_in"]:
        """What the site's dictionary reads at a token in the clean pass.

        Raises:
            InvalidArgument: for a token outside the text; for a transcoder.
            UnknownSite: for a site without a dictionary, or at none of the prepared layers.
        """
        return self._activations.hidden(site)[self._inside(position)]

    def final(self, position: int) -> Float[Tensor, " d_model"]:
        """The residual stream after the last block at a token in the clean pass.

        Raises:
            InvalidArgument: for a token outside the text.
        """
        return self._clean.final[self._inside(position)]

    def logits(
        self, layer: int, position: int, edits: Sequence[Rescale | RemoveError | None]
    ) -> Float[Tensor, "n vocab"]:
        """The logits at a token after each edit of a layer's residual stream there; None edits nothing.

        The layers above are run again at the one token.

        Args:
            layer: L, one of the prepared layers.
            position: the token.
            edits: edits of res L, one per row; the tokens of a `Rescale` are ignored.

        Raises:
            InvalidArgument: for a token outside the text, an edit of another site, or one with several factors.
            UnknownFeature: for an index outside the dictionary.
            UnknownSite: for a layer that was not prepared, or has no dictionary.
        """
        site, position = Site(layer, Part.RES), self._inside(position)
        stream = self._activations.hidden(site)[position]
        acts = self._activations.at(site, position)
        rows: list[RowEdit] = []
        for row, edit in enumerate(edits):
            if edit is None:
                continue
            r = 0.0 if isinstance(edit, RemoveError) else edit.r
            if edit.site != site or isinstance(r, tuple):
                raise InvalidArgument(f"{edit} is no edit of {site} with one factor. Give such edits alone.")
            if isinstance(edit, RemoveError):
                rows.append(RowEdit(row, (), 0.0, None))
                continue
            for feature in edit.features:
                self._activations.check(site, feature.index)
            loud = tuple(feature.index for feature in edit.features if feature.index in acts)
            if loud:
                rows.append(RowEdit(row, loud, float(r), tuple(acts[index] for index in loud)))
        found: list[Tensor] = []
        with torch.no_grad():
            h = stream.expand(len(edits), -1)
            h = rescaled(h, self._activations.dictionary(site), rows) if rows else h
            for some in h.split(self._batch_tokens):
                at = torch.full((len(some),), position, device=h.device)
                for above in range(layer + 1, self._n_layers):
                    some = self._clean.rows(above, some, at, {})[Tap.RES]  # noqa: PLW2901
                found.append(self._clean.logits(some))
        return torch.cat(found)

    def run(self, trials: Sequence[Trial], *, loss: bool = False) -> list[Outcome]:
        """Compute the outcomes of trials at any layers and tokens, in their order.

        Args:
            trials: the trials; those that agree in layer, token and edits are computed once, whatever they watch.
            loss: compute the text's loss too, which takes far longer than activations: the tokens from t on
                run through the layers from L on.

        Raises:
            InvalidArgument: for a token outside the text; for a transcoder; for the loss of a text of one token, or of
                a trial that edits an earlier token than it reads.
            UnknownFeature: for an index outside its dictionary.
            UnknownSite: for a layer that was not prepared, or a site without a dictionary.
        """
        if loss and self.n_tokens < 2:
            raise InvalidArgument("a text of one token has no next-token loss. Give a longer text, or loss=False.")
        if loss and any(trial.edited_token != trial.position for trial in trials):
            raise InvalidArgument(
                "a trial that edits an earlier token than it reads has no loss of its own. Read the token it edits."
            )
        # 1. stage and index of every watched feature; encode each dictionary at all tokens that need it, together
        watched = [self._watched(trial) for trial in trials]
        needed: dict[tuple[int, Stage], set[int]] = {}
        for trial, keys in zip(trials, watched, strict=True):
            for edit in trial.edits:
                stage = Stage.of(edit.site, trial.layer) or Stage.ENTRY
                needed.setdefault((trial.layer, stage), set()).add(trial.edited_token)
            for stage in {stage for stage, _ in keys}:
                needed.setdefault((trial.layer, stage), set()).add(trial.position)
        for (layer, stage), positions in needed.items():
            self._activations.encode(stage.site(layer), sorted(positions))
        # 2. what has to be computed: equal edits once, and only the watched features that they may change
        reduced = [_reduced(trial, self._activations) for trial in trials]
        wanted: Readings = {}
        for one, keys in zip(reduced, watched, strict=True):
            readings = wanted.setdefault(one, {})
            if one.edits:
                moved = [stage for stage in Stage if one.moves(stage, parallel=self._parallel)]
                readings.update((key, 0.0) for key in keys if key[0] in moved)
        with torch.no_grad():
            losses = self._fill(wanted, loss=loss)
        # 3. collect the outcomes; features that cannot have changed keep their clean activation
        clean = {
            (layer, stage, position): self._activations.at(stage.site(layer), position)
            for (layer, stage), positions in needed.items()
            for position in positions
        }
        found: list[Outcome] = []
        for trial, one, keys in zip(trials, reduced, watched, strict=True):
            before = tuple(clean[trial.layer, stage, trial.position].get(index, 0.0) for stage, index in keys)
            read = wanted[one]
            after = tuple(read.get(key, value) for key, value in zip(keys, before, strict=True))
            both = (None, None) if losses is None else (self._losses.before, losses.get(one, self._losses.before))
            found.append(Outcome(before, after, *both))
        return found

    def _watched(self, trial: Trial) -> list[tuple[Stage, int]]:
        """Stage and index of each watched feature of a trial, after checking that everything it names exists."""
        self._inside(trial.position)
        if trial.layer not in self._clean.stages:
            raise UnknownSite(
                f"a trial names layer {trial.layer}, and this text was prepared for layers "
                f"{', '.join(map(str, self._clean.stages))}. Name it in PreparedText(layers=...)."
            )
        for edit in trial.edits:
            largest_edited = 0 if isinstance(edit, RemoveError) else max(feature.index for feature in edit.features)
            self._activations.check(edit.site, largest_edited)
        keys = [(Stage.of(feature.site, trial.layer) or Stage.ENTRY, feature.index) for feature in trial.watch]
        largest: dict[Stage, int] = {}
        for stage, index in keys:
            if index > largest.get(stage, -1):
                largest[stage] = index
        for stage, index in largest.items():
            self._activations.check(stage.site(trial.layer), index)
        return keys

    def _fill(self, wanted: Readings, *, loss: bool) -> dict[ReducedTrial, float] | None:
        """Fill `wanted` with the recomputed activations, and return the losses if requested."""
        groups = by_layer_and_work(wanted, parallel=self._parallel, through_z=self._activations.reads_z)
        moved: list[ChangedToken] = []
        for (layer, work), group in groups.items():
            needed = group if loss else [one for one in group if wanted[one]]
            for start in range(0, len(needed), self._batch_tokens):
                batch = needed[start : start + self._batch_tokens]
                held = _recompute(self._clean, self._activations, layer, work, batch)
                for stage in Stage:
                    pairs = [(row, index) for row, one in enumerate(batch) for at, index in wanted[one] if at is stage]
                    if pairs:
                        dictionary = self._activations.dictionary(stage.site(layer))
                        h = held[None if stage is Stage.ENTRY else dictionary.tap]
                        row, index = torch.tensor(pairs, device=h.device).T
                        values = activations_of(h, dictionary, row, index).tolist()
                        for (at, feature), value in zip(pairs, values, strict=True):
                            wanted[batch[at]][stage, feature] = value
                if loss:
                    entries = held[None] if work is Stage.ENTRY else [None] * len(batch)
                    moved += [ChangedToken(*row) for row in zip(batch, entries, held[Tap.RES], strict=True)]
        return self._losses.after(moved, self._batch_tokens) if loss else None

    def _inside(self, position: int) -> int:
        if not 0 <= position < self.n_tokens:
            raise InvalidArgument(
                f"token {position} lies outside the text, which has {self.n_tokens} tokens, 0 to {self.n_tokens - 1}."
            )
        return position


class CleanActivations:
    """The clean activations at the sites around some layers, encoded on first use."""

    def __init__(
        self, model: LanguageModel, clean: CleanPass, dictionaries: Mapping[Site, Dictionary], positions: Iterable[int]
    ) -> None:
        """`positions` are tokens that are encoded together when the first of them is needed."""
        self._model, self._clean, self._dictionaries = model, clean, dictionaries
        self._together = sorted(set(positions))
        self._made: dict[Site, dict[int, dict[int, float]]] = {}
        self._bound: dict[Site, Dictionary] = {}

    def dictionary(self, site: Site) -> Dictionary:
        """The dictionary at a site.

        Raises:
            UnknownSite: when there is none.
            InvalidArgument: for a transcoder, or a dictionary that reads another tensor than the one added to the
                stream: their features do not add up to a hidden state that a trial could edit.
        """
        if site not in self._dictionaries:
            raise UnknownSite(f"there is no dictionary at {site}. Pass one to PreparedText.")
        if site not in self._bound:
            self._bound[site] = self._dictionaries[site].for_model(self._model)
        found = self._bound[site]
        if found.training.view is not View.OWN:
            raise InvalidArgument(
                f"the dictionary at {site} reads {found.point}, which a trial does not edit. Leave "
                f"{site} out, or give one of the tensor that is added to the stream."
            )
        if found.is_transcoder:
            raise InvalidArgument(
                f"the dictionary at {site} is a transcoder: it reads {found.tap.value} and predicts what is written at "
                f"{site}, so that its activations are no shares of that hidden state, which a trial edits and reads. "
                f"Leave {site} out, or give a sparse autoencoder there."
            )
        return found

    def at(self, site: Site, position: int) -> dict[int, float]:
        """The active features of a site at a token, ascending, with their activations.

        Raises:
            UnknownSite: as `hidden`.
            WidthMismatch: for a dictionary of another width than the hidden states.
        """
        made = self._made.setdefault(site, {})
        if position not in made:
            self.encode(site, self._together if position in self._together else [position])
        return made[position]

    def encode(self, site: Site, positions: Iterable[int]) -> None:
        """Compute the activations of a site at those of some tokens that lack them, in as few products as possible.

        Raises:
            UnknownSite: as `hidden`.
            WidthMismatch: for a dictionary of another width than the hidden states.
        """
        made = self._made.setdefault(site, {})
        missing = [position for position in positions if position not in made]
        for start in range(0, len(missing), _ENCODED_AT_ONCE):
            dictionary, part = self.dictionary(site), missing[start : start + _ENCODED_AT_ONCE]
            h = self.hidden(site)[part]
            with torch.no_grad():
                acts = dictionary.encode(h.to(dictionary.W_enc)).float()
            for position, row in zip(part, acts, strict=True):
                index = row.nonzero().flatten()
                made[position] = dict(zip(index.tolist(), row[index].tolist(), strict=True))

    def hidden(self, site: Site) -> Float[Tensor, "pos d_in"]:
        """What the site's dictionary reads in the clean pass.

        Raises:
            UnknownSite: for a site without a dictionary, or at none of the prepared layers.
        """
        tap, stages = self.dictionary(site).tap, self._clean.stages
        if site.layer in stages:
            return stages[site.layer].taps[tap]
        if tap is Tap.RES and site.layer + 1 in stages:
            return stages[site.layer + 1].entry
        raise UnknownSite(
            f"{site} is at none of the layers {', '.join(map(str, stages))} this text was prepared for. Name "
            "its layer in PreparedText(layers=...)."
        )

    def reads_z(self, layer: int) -> bool:
        """Whether the attention dictionary of a layer is on z."""
        site = Stage.ATT.site(layer)
        return site in self._dictionaries and self.dictionary(site).tap is Tap.Z

    def check(self, site: Site, index: int) -> None:
        """Refuse a feature that its dictionary does not have.

        Raises:
            UnknownFeature: when the index lies outside the dictionary.
            UnknownSite: as `dictionary`.
        """
        n_features = self.dictionary(site).n_features
        if index >= n_features:
            raise UnknownFeature(
                f"{site}/{index} lies outside the dictionary at {site}, which has {n_features} features. "
                f"Indices run from 0 to {n_features - 1}."
            )


def _reduced(trial: Trial, clean: CleanActivations) -> ReducedTrial:
    """Reduce a trial to the edits that change something.

    An edit with r = 1 changes nothing. The first remaining edit reads clean activations, so its silent features change
    nothing either; if all of them are silent, it is dropped, and the next edit reads clean activations. Later edits
    read hidden states that the first one changed, and keep all their features.

    Raises:
        UnknownSite: for an edit at a site without a dictionary.
    """
    edits: list[StageEdit] = []
    for edit in trial.edits:
        stage = Stage.of(edit.site, trial.layer) or Stage.ENTRY
        if isinstance(edit, RemoveError):
            edits.append(StageEdit(stage, (), 0.0))
        elif not isinstance(edit.r, tuple) and edit.r != 1.0:
            edits.append(StageEdit(stage, tuple(sorted(feature.index for feature in edit.features)), edit.r))
    edits.sort()
    while edits:
        stage, features, r = edits[0]
        if not features:
            break
        active = clean.at(stage.site(trial.layer), trial.edited_token)
        loud = tuple(index for index in features if index in active)
        if loud:
            edits[0] = StageEdit(stage, loud, r)
            break
        edits.pop(0)
    return ReducedTrial(trial.layer, trial.position, tuple(edits), trial.edited_token)


def _recompute(
    clean: CleanPass, activations: CleanActivations, layer: int, work: Stage, batch: Sequence[ReducedTrial]
) -> HiddenStates:
    """The hidden states of some reduced trials of one layer and one kind of work, one row per trial.

    Raises:
        WidthMismatch: when a dictionary does not fit the hidden states.
        BadFile: when a tensor of a dictionary, read on first use, is bad.
    """
    device = clean.final.device
    positions = torch.tensor([one.position for one in batch], device=device)

    def change(stage: Stage) -> Change:
        dictionary, edits = activations.dictionary(stage.site(layer)), _row_edits(batch, stage, activations)
        return lambda h: rescaled(h, dictionary, edits)

    edited = {edit.stage for one in batch for edit in one.edits}
    changes = {
        activations.dictionary(stage.site(layer)).tap: change(stage)
        for stage in (Stage.ATT, Stage.MLP)
        if stage in edited
    }
    if work is Stage.EXIT:  # nothing is run again: the edits add up
        held: dict[Tap | None, Tensor] = {}
        exit_ = clean.stages[layer].taps[Tap.RES][positions]
        for tap, changed in changes.items():
            before = clean.stages[layer].taps[tap][positions]
            held[tap] = changed(before)
            exit_ = exit_ + (held[tap] - before)
        return {**held, Tap.RES: exit_}
    entries = clean.stages[layer].entry
    if work is not Stage.ENTRY:
        return {None: entries[positions], **clean.rows(layer, entries[positions], positions, changes, attend=False)}
    # one row per edited token; then, for edits at earlier tokens, another row for the token that is read
    edited_at = torch.tensor([one.edited for one in batch], device=device)
    entry, seen = change(Stage.ENTRY)(entries[edited_at]), (edited_at != positions).nonzero().flatten()
    pick = torch.arange(len(batch), device=device)
    pick[seen] = len(batch) + torch.arange(len(seen), device=device)
    rows = torch.cat([entry, entries[positions[seen]]])
    at = torch.cat([edited_at, positions[seen]])
    made = clean.rows(layer, rows, at, changes, seen=seen if len(seen) else None)
    return {None: rows[pick], **{tap: h[pick] for tap, h in made.items()}}


def _row_edits(batch: Sequence[ReducedTrial], stage: Stage, activations: CleanActivations) -> list[RowEdit]:
    """The edits at one stage; those that come first in their trial read clean activations, which are known."""
    edits: list[RowEdit] = []
    for row, one in enumerate(batch):
        for edit in one.edits:
            if edit.stage is stage:
                values = None
                if stage is one.first and edit.features:
                    active = activations.at(stage.site(one.layer), one.edited)
                    values = tuple(active[index] for index in edit.features)
                edits.append(RowEdit(row, edit.features, edit.r, values))
    return edits


class RowEdit(NamedTuple):
    """Features to rescale in one row; without features, the error is removed.

    `values` are the activations of the features; None if they have to be read from the hidden state.
    """

    row: int
    features: tuple[int, ...]
    r: float
    values: tuple[float, ...] | None


def rescaled(h: Float[Tensor, "n d_in"], dictionary: Dictionary, edits: Sequence[RowEdit]) -> Float[Tensor, "n d_in"]:
    """`h` with some of its rows edited; activations that are not known are read from `h`.

    Raises:
        WidthMismatch: when `h` is not `d_in` wide.
        BadFile: when a tensor read on first use is bad.
    """
    W_dec = dictionary.W_dec
    x = h.to(W_dec)
    wrong = [edit.row for edit in edits if not edit.features]
    if wrong:
        h = h.clone()
        h[wrong] = h[wrong] - unexplained(x[wrong], dictionary).to(h)
    if len(wrong) == len(edits):
        return h
    # row, feature and factor r - 1 for every feature of every edit
    row = torch.tensor([edit.row for edit in edits for _ in edit.features], device=h.device)
    feature = torch.tensor([index for edit in edits for index in edit.features], device=h.device)
    factor = torch.tensor([edit.r - 1.0 for edit in edits for _ in edit.features], dtype=torch.float64)
    known = torch.zeros(len(row), dtype=x.dtype)
    blank = [edit.values is None for edit in edits for _ in edit.features]
    given = [value for edit in edits for value in edit.values or ()]
    unknown = torch.tensor(blank)
    known[~unknown] = torch.tensor(given, dtype=x.dtype)
    acts = known.to(x.device)
    if any(blank):
        ask = unknown.to(x.device)
        acts[ask] = activations_of(x, dictionary, row[ask], feature[ask])
    # a matrix product, since index_add_ is not deterministic on GPUs
    features, column = feature.unique(return_inverse=True)
    coefficient = x.new_zeros(len(x), len(features))
    coefficient[row, column] = factor.to(h.device).to(x) * acts
    share = coefficient @ W_dec[features]
    return h + (share * dictionary.scale(x)).to(h)


def unexplained(h: Float[Tensor, "n d_in"], dictionary: Dictionary) -> Float[Tensor, "n d_in"]:
    """The reconstruction error of a dictionary: `h` minus its reconstruction, in the dtype of the dictionary.

    If the dictionary reads `h` centred over its channels, their mean is not part of the error.

    Raises:
        WidthMismatch: when `h` is not `d_in` wide.
        BadFile: when a tensor read on first use is bad.
    """
    x = h.to(dictionary.W_enc)
    read = x - x.mean(dim=-1, keepdim=True) if dictionary.preprocessing.center else x
    return read - dictionary.decode(dictionary.encode(x), x)


def activations_of(
    h: Float[Tensor, "n d_in"], dictionary: Dictionary, row: Tensor, feature: Tensor
) -> Float[Tensor, " k"]:
    """The activation of one feature in one row of `h`, for each of `k` pairs.

    Raises:
        WidthMismatch: when `h` is not `d_in` wide.
        BadFile: when a tensor read on first use is bad.
    """
    rows, row = row.unique(return_inverse=True)
    features, column = feature.unique(return_inverse=True)
    return dictionary.encode_only(h[rows].to(dictionary.W_enc), features)[row, column]
