"""PreparedText: one clean forward pass of a text, and every trial on it answered from there.

1. The clean pass keeps what the blocks held at the layers asked for, and keys and values of all
   (`saeflow.sources.blocks`). Dictionaries are encoded at the tokens asked for, once.
2. Trials become counterfactuals: equal edits once, whatever they watch; edits that change nothing never.
3. Their hidden states at the token, in batches, with the least recomputation (`token.py`).
4. Watched features are encoded, and no others (all, under TopK, where features compete).
5. If asked, losses: tokens from t on, layers from L on (`loss.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from saeflow.errors import InvalidArgument, UnknownSite
from saeflow.experiments.causal.clean import CleanActivations
from saeflow.experiments.causal.counterfactual import Counterfactual, by_layer_and_work, counterfactual
from saeflow.experiments.causal.loss import Losses, Moved
from saeflow.experiments.causal.rescaling import activations_of
from saeflow.experiments.causal.token import Held, recompute
from saeflow.experiments.causal.trial import Outcome, Stage, Trial
from saeflow.ids import FeatureId, Site
from saeflow.sources.architectures import Tap
from saeflow.sources.blocks import CleanPass
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.sources.values import Tokens

Readings = dict[Counterfactual, dict[tuple[Stage, int], float]]


class PreparedText:
    """One clean forward pass of one text, its caches kept until this object goes.

    Attributes:
        tokens: the text, without padding.
        n_tokens: how many tokens it has, the begin-of-text token included.
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
            model: any mapped architecture, with attention of kind `sdpa` or `eager`.
            dictionaries: those at res L-1, att L, mlp L and res L of the layers that are used; only these are read.
                Sparse autoencoders: a transcoder has no share in the tensor of its site, and is refused when used.
            tokens: one text; padding on the right is cut off.
            layers: every L that trials will name.
            positions: tokens that will be asked about. A hint: a dictionary is read from memory once for
                all of them instead of once for each.
            batch_tokens: the most tokens run through a block in one call: a bound on memory.

        Raises:
            InvalidArgument: for other than one text, an empty one, a token outside it, `batch_tokens` below 1,
                or a model whose attention takes no mask.
            UnknownSite: for a layer the model does not have.
        """
        if batch_tokens < 1:
            raise InvalidArgument(f"batch_tokens = {batch_tokens} runs nothing. Give 1 or more.")
        self.tokens = _without_padding(tokens)
        self.n_tokens = self.tokens.input_ids.shape[1]
        self._batch_tokens = batch_tokens
        self._parallel = model.parallel
        self._clean = CleanPass(model, self.tokens, layers)
        self._activations = CleanActivations(model, self._clean, dictionaries, map(self._inside, positions))
        self._losses = Losses(self._clean, self.tokens, model.n_layers)

    def active(self, site: Site, position: int) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Indices (ascending) and values of all active features of `site` at a token in the clean pass.

        Raises:
            InvalidArgument: for a token outside the text.
            UnknownSite: for a site without a dictionary, or at none of the layers.
        """
        found = self._activations.at(site, self._inside(position))
        return found.features, found.values

    def activations(self, features: Sequence[FeatureId], position: int) -> list[float]:
        """Activations of some features at a token in the clean pass, 0 for silent ones.

        Raises:
            InvalidArgument: for a token outside the text.
            UnknownFeature: for an index outside its dictionary.
            UnknownSite: for a site without a dictionary, or at none of the layers.
        """
        for feature in features:
            self._activations.check(feature.site, feature.index)
        position = self._inside(position)
        return [
            self._activations.at(feature.site, position).by_index.get(feature.index, 0.0)
            for feature in features
        ]

    def run(self, trials: Sequence[Trial], *, loss: bool = False) -> list[Outcome]:
        """Answer trials of any layers and tokens, in their order.

        Args:
            trials: computed once where layer, token and edits agree, whatever they watch.
            loss: compute the text's loss too, which takes far longer than activations: the tokens from t on
                run through the layers from L on.

        Raises:
            InvalidArgument: for a token outside the text; for the loss of a text of one token.
            UnknownFeature: for an index outside its dictionary.
            UnknownSite: for a layer not prepared, or a site without a dictionary.
            InvalidArgument: for a transcoder.
        """
        if loss and self.n_tokens < 2:
            raise InvalidArgument(
                "a text of one token has no next-token loss. Give a longer text, or loss=False."
            )
        for trial in trials:
            self._check(trial)
        self._encode_clean(trials)
        asked = [counterfactual(trial, self._activations) for trial in trials]
        wanted: Readings = {}
        for trial, one in zip(trials, asked, strict=True):
            readings = wanted.setdefault(one, {})
            for feature in trial.watch:
                stage = Stage.of(feature.site, trial.layer)
                if one.edits and stage is not None and one.moves(stage, parallel=self._parallel):
                    readings[stage, feature.index] = 0.0
        with torch.no_grad():
            losses = self._fill(wanted, loss=loss)
        return [
            self._outcome(trial, one, wanted[one], losses) for trial, one in zip(trials, asked, strict=True)
        ]

    def _outcome(
        self,
        trial: Trial,
        one: Counterfactual,
        read: dict[tuple[Stage, int], float],
        losses: dict[Counterfactual, float] | None,
    ) -> Outcome:
        before = tuple(self.activations(trial.watch, trial.position))
        stages = [Stage.of(feature.site, trial.layer) or Stage.ENTRY for feature in trial.watch]
        keys = [(stage, feature.index) for stage, feature in zip(stages, trial.watch, strict=True)]
        after = tuple(read.get(key, clean) for key, clean in zip(keys, before, strict=True))
        if losses is None:
            return Outcome(before, after, None, None)
        return Outcome(before, after, self._losses.before, losses.get(one, self._losses.before))

    def _fill(self, wanted: Readings, *, loss: bool) -> dict[Counterfactual, float] | None:
        """Put into `wanted` what is read there, and return the losses if asked for."""
        through_z = {layer: self._reads_z(layer) for layer in self._clean.stages}
        groups = by_layer_and_work(wanted, parallel=self._parallel, through_z=through_z)
        moved: list[Moved] = []
        for (layer, work), group in groups.items():
            needed = group if loss else [one for one in group if wanted[one]]
            for start in range(0, len(needed), self._batch_tokens):
                batch = needed[start : start + self._batch_tokens]
                held = recompute(self._clean, self._activations, layer, work, batch)
                self._read(layer, batch, held, wanted)
                if loss:
                    entries = held[None] if work is Stage.ENTRY else [None] * len(batch)
                    moved += [Moved(*row) for row in zip(batch, entries, held[Tap.RES], strict=True)]
        return self._losses.after(moved, self._batch_tokens) if loss else None

    def _read(self, layer: int, batch: Sequence[Counterfactual], held: Held, wanted: Readings) -> None:
        for stage in Stage:
            pairs = [
                (row, index) for row, one in enumerate(batch) for at, index in wanted[one] if at is stage
            ]
            if not pairs:
                continue
            dictionary = self._activations.dictionary(stage.site(layer))
            h = held[None if stage is Stage.ENTRY else dictionary.tap]
            row, index = torch.tensor(pairs, device=h.device).T
            values = activations_of(h, dictionary, row, index).tolist()
            for (at, feature), value in zip(pairs, values, strict=True):
                wanted[batch[at]][stage, feature] = value

    def _reads_z(self, layer: int) -> bool:
        site = Stage.ATT.site(layer)
        try:
            return self._activations.dictionary(site).tap is Tap.Z
        except UnknownSite:
            return False

    def _encode_clean(self, trials: Sequence[Trial]) -> None:
        """Encode each dictionary at all tokens the trials need of it, in one go."""
        needed: dict[Site, set[int]] = {}
        for trial in trials:
            for site in (*(edit.site for edit in trial.edits), *(feature.site for feature in trial.watch)):
                needed.setdefault(site, set()).add(trial.position)
        for site, positions in needed.items():
            self._activations.encode(site, sorted(positions))

    def _check(self, trial: Trial) -> None:
        self._inside(trial.position)
        if trial.layer not in self._clean.stages:
            raise UnknownSite(
                f"a trial names layer {trial.layer}, and this text was prepared for layers "
                f"{', '.join(map(str, self._clean.stages))}. Name it in PreparedText(layers=...)."
            )
        for edit in trial.edits:
            for feature in edit.features:
                self._activations.check(feature.site, feature.index)
        for feature in trial.watch:
            self._activations.check(feature.site, feature.index)

    def _inside(self, position: int) -> int:
        if not 0 <= position < self.n_tokens:
            raise InvalidArgument(
                f"token {position} lies outside the text, which has {self.n_tokens} tokens, 0 to "
                f"{self.n_tokens - 1}."
            )
        return position


def _without_padding(tokens: Tokens) -> Tokens:
    if len(tokens.input_ids) != 1 or tokens.lengths[0] < 1:
        raise InvalidArgument(
            f"PreparedText takes one text of one token or more, not {len(tokens.input_ids)} texts of lengths "
            f"{tokens.lengths}. Tokenize each text alone."
        )
    length = tokens.lengths[0]
    return Tokens(tokens.input_ids[:, :length], tokens.attention_mask[:, :length])
