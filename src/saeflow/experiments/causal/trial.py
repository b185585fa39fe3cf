"""Trial, Outcome, ReducedTrial: one counterfactual at one token as data, and its result. No torch.

A trial changes what block L reads or what its modules write at token t, and reads features afterwards (section 5.2 of
arXiv 2502.03032). The sites of a trial are R_{L-1}, A_L and M_L, in the order of the forward pass, and R_L, which can
only be read.
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
    """A place within a layer, in the order of computation."""

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
        """The stage of a site in layer `layer`; None if the site is elsewhere."""
        if site.layer == layer:
            return Stage.EXIT if site.part is Part.RES else Stage.ATT if site.part is Part.ATT else Stage.MLP
        return Stage.ENTRY if site.layer == layer - 1 and site.part is Part.RES else None

    def site(self, layer: int) -> Site:
        """The site at this stage of a layer. Layer 0 has no site at `ENTRY`."""
        if self is Stage.ENTRY:
            return Site(layer - 1, Part.RES)
        return Site(layer, {Stage.ATT: Part.ATT, Stage.MLP: Part.MLP, Stage.EXIT: Part.RES}[self])


@dataclass(frozen=True, slots=True)
class RemoveError:
    """Remove the reconstruction error of a site's dictionary: h becomes its reconstruction.

    If the dictionary reads h centred over its channels, their mean is not part of the error, and stays.
    """

    site: Site


@dataclass(frozen=True, slots=True)
class Trial:
    """One counterfactual at one token: edits in layer `layer`, and features read after them.

    It is equivalent to a forward pass under `model.intervening` with every edit limited to the one token, and
    `dictionary.encode` at the sites afterwards: edits apply in the order of computation, each reads its activations
    from the hidden state at that point, and an edited site is read after the edit.

    Attributes:
        layer: L, the residual layer whose features are read.
        position: the token t, as a position in the text counted from 0. Position 0 is the begin-of-text token, if
            there is one; it is allowed, but behaves like no other token.
        edits: at most one edit per site, at sites among res L-1, att L, mlp L; may be empty.
        watch: features read after the edits, at sites among res L-1, att L, mlp L, res L.
        edited: the token where the edits act; None for `position`. An edit at an earlier token reaches `position`
            only through the attention of the layer, so it must be at res L-1.

    Raises:
        InvalidArgument: for a site elsewhere, two edits of one site, a negative layer or position, an edit
            limited to other tokens, a later edited token, or att L or mlp L edited at an earlier token.
    """

    layer: int
    position: int
    edits: tuple[Rescale | RemoveError, ...]
    watch: tuple[FeatureId, ...]
    edited: int | None = None

    def __post_init__(self) -> None:
        """Check that edits and watched features belong to the layer and the token."""
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
        """The sites that are allowed, for an error message."""
        stages = [stage for stage in Stage if read or stage is not Stage.EXIT]
        if self.layer == 0:
            stages.remove(Stage.ENTRY)
        names = ", ".join(str(stage.site(self.layer)) for stage in stages)
        none = " Before layer 0 there is no residual layer." if self.layer == 0 else ""
        return f"Name features at {names}.{none}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a trial.

    `before` equals `after` exactly if the edits change nothing (no edits, r = 1, or only silent features), and for
    watched sites that come before every edit.

    Attributes:
        before: activations of `watch` at the token in the clean pass.
        after: activations of `watch` after the edits, recomputed exactly.
        loss_before: mean next-token loss of the text in nats; None unless requested.
        loss_after: the same with the edits.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    loss_before: float | None
    loss_after: float | None


class StageEdit(NamedTuple):
    """A `Rescale` at one stage, with its features ascending; without features, the removal of the error there."""

    stage: Stage
    features: tuple[int, ...]
    r: float


class ReducedTrial(NamedTuple):
    """The part of a trial that has to be computed: token, layer and edits in order of computation, without `watch`."""

    layer: int
    position: int
    edits: tuple[StageEdit, ...]
    edited: int

    @property
    def from_before(self) -> bool:
        """Whether the edit is at an earlier token and reaches `position` through attention."""
        return self.edited != self.position

    @property
    def first(self) -> Stage:
        """The stage of the first edit."""
        return self.edits[0].stage

    def moves(self, stage: Stage, *, parallel: bool) -> bool:
        """Whether the hidden state at a stage may differ from the clean one."""
        if parallel and stage is Stage.MLP and (self.first is Stage.ATT or self.from_before):
            return any(edit.stage is Stage.MLP for edit in self.edits)  # a parallel MLP does not read attention
        return stage > Stage.ENTRY if self.from_before else stage >= self.first


def by_layer_and_work(
    made: Iterable[ReducedTrial], *, parallel: bool, through_z: Callable[[int], bool]
) -> dict[tuple[int, Stage], list[ReducedTrial]]:
    """Group reduced trials by layer and by the stage from which the block has to be run again.

    ENTRY: the whole block. ATT: what follows attention. EXIT: nothing, since the edits just add up: edits of the MLP's
    output, or, in a parallel block, of attention's output unless its dictionary is on z (`through_z`).
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
