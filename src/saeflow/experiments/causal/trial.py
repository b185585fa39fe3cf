"""Trial, Outcome, ReducedTrial: one counterfactual at one token as data, and what came of it. No torch.

A trial changes what block L reads or what its parts write at token t, and reads features at the end of the
layer (section 5.2 of arXiv 2502.03032): the sites of a trial are R_{L-1}, A_L, M_L, in the order in which a
forward pass meets them, and R_L, which is only read.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import EVERYWHERE, Positions, Rescale


class Stage(enum.IntEnum):
    """Where in a layer, in the order of computation."""

    ENTRY = 0
    """What block L reads: R_{L-1}."""
    ATT = 1
    """What attention adds: A_L."""
    MLP = 2
    """What the MLP adds: M_L."""
    EXIT = 3
    """The residual stream after the block: R_L."""

    @staticmethod
    def of(site: Site, layer: int) -> Stage | None:
        """The stage of layer `layer` a site is, None for a site elsewhere."""
        if site.layer == layer:
            return Stage.EXIT if site.part is Part.RES else Stage.ATT if site.part is Part.ATT else Stage.MLP
        return Stage.ENTRY if site.layer == layer - 1 and site.part is Part.RES else None

    def site(self, layer: int) -> Site:
        """The site at this stage of a layer. Layer 0 has none at `ENTRY`."""
        if self is Stage.ENTRY:
            return Site(layer - 1, Part.RES)
        return Site(layer, {Stage.ATT: Part.ATT, Stage.MLP: Part.MLP, Stage.EXIT: Part.RES}[self])


@dataclass(frozen=True, slots=True)
class RemoveError:
    """Take away what the dictionary of a site leaves unexplained: h becomes its reconstruction.

    Where the dictionary reads h centred over its channels, their mean is no part of the error, and stays.
    """

    site: Site


@dataclass(frozen=True, slots=True)
class Trial:
    """One counterfactual at one token: what is changed at the inputs of layer `layer`, what is read at its end.

    It means a forward pass under `model.intervening` with every edit limited to the one token, and
    `dictionary.encode` at the sites afterwards: edits apply in the order of computation, each reading its
    activations from the hidden state as it then stands, and a site that is edited is read after the edit.

    Attributes:
        layer: L, the residual layer whose features are read.
        position: the token t, a column of the text's tokens counted from 0. Column 0 is the begin-of-text
            token where there is one; it is allowed, and behaves like no other token.
        edits: at most one edit a site, at sites among res L-1, att L, mlp L; may be empty.
        watch: features read after the edits, at sites among res L-1, att L, mlp L, res L.
        edited: the token where the edits act, `position` when None. What is edited at an earlier one reaches
            `position` through the attention of the layer alone, so the edit is then at res L-1.

    Raises:
        InvalidArgument: for a site elsewhere, two edits of one site, a negative layer or position, an edit
            limited to other tokens, or an earlier token whose att L or mlp L is edited.
    """

    layer: int
    position: int
    edits: tuple[Rescale | RemoveError, ...]
    watch: tuple[FeatureId, ...]
    edited: int | None = None

    def __post_init__(self) -> None:
        """Check that everything named lies in the layer."""
        if self.layer < 0 or self.position < 0:
            raise InvalidArgument(f"a trial at layer {self.layer}, token {self.position}. Both count from 0.")
        if not 0 <= self.edited_token <= self.position:
            raise InvalidArgument(
                f"a trial edits token {self.edited} and reads token {self.position}. Edit one from 0 to "
                f"{self.position}: no token sees a later one."
            )
        edited: set[Stage] = set()
        for edit in self.edits:
            edited.add(self._edited_stage(edit))
        if self.edited_token != self.position and edited - {Stage.ENTRY}:
            raise InvalidArgument(
                f"a trial of layer {self.layer} edits a part at token {self.edited}, which token {self.position} does "
                f"not read in that layer. Edit features at {Stage.ENTRY.site(max(self.layer, 1))}."
            )
        if len(edited) != len(self.edits):
            sites = ", ".join(str(edit.site) for edit in self.edits)
            raise InvalidArgument(f"a trial edits {sites}, a site more than once. Put all its features in one Rescale.")
        for feature in self.watch:
            if Stage.of(feature.site, self.layer) is None:
                raise InvalidArgument(f"a trial of layer {self.layer} cannot watch {feature}. {self._sites(read=True)}")

    @property
    def edited_token(self) -> int:
        """The token where the edits act."""
        return self.position if self.edited is None else self.edited

    def _edited_stage(self, edit: Rescale | RemoveError) -> Stage:
        stage = Stage.of(edit.site, self.layer)
        if stage is None or stage is Stage.EXIT:
            raise InvalidArgument(f"a trial of layer {self.layer} cannot edit {edit.site}. {self._sites(read=False)}")
        if isinstance(edit, RemoveError):
            return stage
        if edit.tokens not in (EVERYWHERE, Positions((self.edited_token,))):
            raise InvalidArgument(
                f"the edit at {edit.site} is for tokens {edit.tokens}, and the trial for token "
                f"{self.edited_token}. Leave the tokens of the edit out: the trial says where it acts."
            )
        if isinstance(edit.r, tuple):
            raise InvalidArgument(
                f"the edit at {edit.site} has a factor for each feature, r = {edit.r}. A trial takes one "
                "factor an edit."
            )
        return stage

    def _sites(self, *, read: bool) -> str:
        """What would do, for a message."""
        stages = [stage for stage in Stage if read or stage is not Stage.EXIT]
        if self.layer == 0:
            stages.remove(Stage.ENTRY)
        names = ", ".join(str(stage.site(self.layer)) for stage in stages)
        none = " Before layer 0 there is no residual layer." if self.layer == 0 else ""
        return f"Name features at {names}.{none}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial gave.

    `before` equals `after` exactly where the edits change nothing: none, r = 1, silent features, or a watched
    site that comes before every edit.

    Attributes:
        before: activations of `watch` in the clean pass at the token.
        after: the same after the edits and exact recomputation.
        loss_before: mean next-token loss of the text in nats; None unless asked for.
        loss_after: the same with the edits.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    loss_before: float | None
    loss_after: float | None


class StageEdit(NamedTuple):
    """A Rescale at one stage: its features in ascending order; or, without features, the error removed there."""

    stage: Stage
    features: tuple[int, ...]
    r: float


class ReducedTrial(NamedTuple):
    """A token of a layer under edits, in the order of computation; whatever a trial watches is left out."""

    layer: int
    position: int
    edits: tuple[StageEdit, ...]
    edited: int

    @property
    def from_before(self) -> bool:
        """Whether the edit is at an earlier token, from where attention brings it."""
        return self.edited != self.position

    @property
    def first(self) -> Stage:
        """The first stage that changes."""
        return self.edits[0].stage

    def moves(self, stage: Stage, *, parallel: bool) -> bool:
        """Whether the hidden state at a stage may differ from the clean one."""
        if parallel and stage is Stage.MLP and (self.first is Stage.ATT or self.from_before):
            return any(edit.stage is Stage.MLP for edit in self.edits)  # the MLP does not see attention
        return stage > Stage.ENTRY if self.from_before else stage >= self.first


def by_layer_and_work(
    made: Iterable[ReducedTrial], *, parallel: bool, through_z: Callable[[int], bool]
) -> dict[tuple[int, Stage], list[ReducedTrial]]:
    """Reduced trials by layer and by the first stage that has to be run again.

    ENTRY: the block. ATT: what follows attention. EXIT: nothing, the edits add up: an edit of the MLP's output,
    or in a parallel block of what attention adds, where nothing else reads it.
    """
    groups: dict[tuple[int, Stage], list[ReducedTrial]] = {}
    for one in made:
        if not one.edits:
            continue
        work = one.first
        if work is Stage.MLP or (work is Stage.ATT and parallel and not through_z(one.layer)):
            work = Stage.EXIT
        groups.setdefault((one.layer, work), []).append(one)
    return groups
