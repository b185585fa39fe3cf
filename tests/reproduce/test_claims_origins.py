"""Each claim on where features come from, on planted runs in which it is true, false and open."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from saeflow.ids import Part
from saeflow.paper.claims import claims
from saeflow.paper.evidence import Evidence, OriginsRun, once
from saeflow.paper.origins import thirds
from saeflow.paper.verdicts import FAILS, HOLDS, OPEN
from tests.reproduce.claim_worlds import EVEN, Origins, mostly, origins, value

CLAIMS = {claim.id: claim for claim in claims()}
FEW = {**EVEN, "nowhere": 8.0}
PARTS = {Part.RES: 1, Part.MLP: 2, Part.ATT: 4}
BOTH = ("cosine", "pearson")
FITTED: dict[str, Any] = {"methods": BOTH, "new": ("demo:python",)}
"""Pearson tables made on data set a."""


def by_layer(**more: float) -> Callable[[int, str, str], Mapping[str, float]]:
    """Equal groups, with other weights of one group at some layers: `RES_4=5` for From RES at layer 4."""
    changed = {(int(name.rpartition("_")[2]), name.rpartition("_")[0]): weight for name, weight in more.items()}

    def shares(layer: int, dataset: str, method: str) -> Mapping[str, float]:
        return {**EVEN, **{group: weight for (at, group), weight in changed.items() if at == layer}}

    return shares


def last(group: str, weight: float) -> Origins:
    return Origins(by_layer(**{f"{group}_{layer}": weight for layer in (4, 5)}))


def every(**weights: float) -> Origins:
    return Origins(lambda layer, dataset, method: {**EVEN, **weights})


def under_pearson(dataset: str, group: str, weight: float) -> Origins:
    """Equal groups, but for one under Pearson on one data set ("" for all)."""

    def shares(layer: int, where: str, method: str) -> Mapping[str, float]:
        here = method == "pearson" and dataset in ("", where)
        return {**EVEN, group: weight} if here else EVEN

    return Origins(shares)


def of_data(layers: range, weight: float) -> Origins:
    """Data sets that differ in From RES at some layers."""

    def shares(layer: int, dataset: str, method: str) -> Mapping[str, float]:
        return {**EVEN, "RES": weight} if layer in layers and dataset == "a" else EVEN

    return Origins(shares)


def scoring(on: float, off: float = 0.4, scatter: float = 0.05) -> Origins:
    """Scores that are `on` where the part is active and `off` where not."""
    return Origins(score=lambda group, part: on if group & PARTS[part] else off, scatter=scatter)


def alike(res: float, module: float) -> Origins:
    return Origins(same={Part.RES: res, Part.MLP: module, Part.ATT: module})


def going(**weights: float) -> Origins:
    """Features that are seen in all groups, in these proportions."""
    return Origins(lambda layer, dataset, method: {**EVEN, **weights}, wander=True)


WORLDS: dict[str, tuple[Origins, Origins, dict[str, Any]]] = {
    "fig3-groups": (scoring(0.7), scoring(0.2), {}),
    "fig3-proxy": (scoring(0.45), scoring(0.35), {}),
    "fig5-early": (Origins(by_layer(nowhere_1=4)), last("nowhere", 4), {}),
    "fig5-settles": (Origins(by_layer(nowhere_1=8)), Origins(by_layer(RES_3=8)), {}),
    "fig5-res": (last("RES", 3), last("RES", 0.2), {}),
    "fig5-mlp": (Origins(by_layer(MLP_3=3, MLP_4=3)), Origins(by_layer(MLP_5=3)), {}),
    "fig5-new": (last("ATT", 0.1), last("ATT", 4), {}),
    "fig5-datasets": (of_data(range(4, 6), 5), of_data(range(4), 5), {}),
    "fig12-nowhere": (every(nowhere=4), every(RES=4), {}),
    "fig12-scores": (scoring(0.7), scoring(0.1), {}),
    "fig12-attention": (every(MLP=5), every(ATT=5), {}),
    "fig12-attention-llama": (every(ATT=5), every(MLP=5), {}),
    "sec8-describe": (every(), every(nowhere=20), {}),
    "fig18-par": (under_pearson("", "nowhere", 1), under_pearson("", "nowhere", 4), FITTED),
    "fig18-nowhere": (under_pearson("a", "nowhere", 0.1), under_pearson("a", "nowhere", 4), FITTED),
    "fig18-python": (under_pearson("demo:python", "nowhere", 4), under_pearson("demo:python", "nowhere", 0.1), FITTED),
    "fig18-attention": (under_pearson("", "ATT", 4), under_pearson("", "MLP", 6), FITTED),
    "fig18-agreement": (alike(0.9, 0.3), alike(0.3, 0.9), {"methods": BOTH}),
    "fig18-gpt2": (last("nowhere", 4), last("nowhere", 0.1), {}),
}
"""Claims whose texts are drawn: a world in which each is true, and one in which it is false."""


def verdict(name: str, worlds: list[Origins], **how: Any) -> str:
    texts = [(dataset, world) for dataset in ("a", "demo:python") for world in worlds]
    return CLAIMS[name].check(Evidence(origins=origins(texts, **how))).outcome


@pytest.mark.parametrize("name", WORLDS)
def test_a_claim_holds_where_it_is_true_and_fails_where_it_is_false(name: str) -> None:
    true, false, how = WORLDS[name]
    assert verdict(name, mostly(true, false, 32), **how) == HOLDS
    assert verdict(name, mostly(false, true, 32), **how) == FAILS


@pytest.mark.parametrize("name", WORLDS)
def test_nothing_can_be_said_of_texts_that_disagree(name: str) -> None:
    true, false, how = WORLDS[name]
    assert verdict(name, [true, false] * 3, **how) == OPEN


def test_pearson_depends_on_the_data_set_where_only_it_does() -> None:
    true, false = under_pearson("a", "RES", 6), of_data(range(6), 6)
    name = "fig18-datasets"
    steady = Origins(
        lambda layer, dataset, method: {**EVEN, "RES": 6.0} if (dataset, method) == ("a", "cosine") else EVEN
    )
    assert verdict(name, mostly(true, steady, 16), methods=BOTH, new=("demo:python",)) == HOLDS
    assert verdict(name, mostly(steady, true, 32), methods=BOTH, new=("demo:python",)) == FAILS
    assert verdict(name, [true, steady] * 4, methods=BOTH, new=("demo:python",)) == OPEN
    assert verdict(name, [false] * 4, methods=BOTH, new=("demo:python",)) == OPEN  # both alike: no difference


@pytest.mark.parametrize(
    ("name", "true", "false"),
    [
        ("fig13-context", going(), Origins()),
        ("fig13-nowhere", going(nowhere=4), going(RES=6)),
        ("fig13-attention", going(**{"RES & ATT": 6, "ATT": 3}), going(MLP=6, ATT=3)),
    ],
)
def test_claims_on_contexts_are_of_features(name: str, true: Origins, false: Origins) -> None:
    assert verdict(name, [true] * 3) == HOLDS
    assert verdict(name, [false] * 3) == FAILS
    # two features that are true of the claim and two that are not
    few = [(dataset, world) for dataset in "ab" for world in (true, false)]
    run = origins(few, layers=(1,), each=160)
    kept = run.seen.feature % 40 < 1
    assert CLAIMS[name].check(Evidence(origins=replace(run, seen=run.seen[kept]))).outcome == OPEN


def test_what_several_claims_use_is_counted_once_for_each_run_and_goes_with_it() -> None:
    counted: list[int] = []

    @once
    def size(run: OriginsRun) -> list[int]:
        counted.append(len(run.seen))
        return counted[-1:]

    one, other = (origins([("a", Origins())] * n, layers=(1,)) for n in (1, 2))
    first = size(one)
    assert size(other) != first
    assert size(one) is first
    assert counted == [len(one.seen), len(other.seen)]
    gone = weakref.ref(one)
    del one
    assert gone() is None


# --- tests between groups: cells of a data set and layer are drawn ------------------------------------------------

APART = scoring(0.9, 0.2, 0.02)
"""Active parts have other scores than inactive ones, and nothing else differs: AO tests pass, AB and IB do not."""


def of_pair(apart: Part) -> Origins:
    """From MLP and From MLP & ATT differ in the score of one part only."""
    return Origins(score=lambda group, part: 0.9 if part is apart and group == 6 else 0.5, scatter=0.02)


def cells(name: str, worlds: list[Origins]) -> str:
    texts = [(str(dataset), world) for dataset, world in enumerate(worlds)]
    run = origins(texts, layers=(1,), each=160)
    return CLAIMS[name].check(Evidence(origins=run)).outcome


@pytest.mark.parametrize(
    ("name", "true", "false"),
    [
        ("fig4-one", APART, Origins(score=lambda group, part: 0.1 * group if group & PARTS[part] else 0.3)),
        ("fig4-alike", APART, Origins(score=lambda group, part: 0.1 * group, scatter=0.01)),
        ("fig4-mlp-att", of_pair(Part.ATT), of_pair(Part.RES)),
    ],
)
def test_claims_on_tests_between_groups(name: str, true: Origins, false: Origins) -> None:
    assert cells(name, [true] * 8) == HOLDS
    assert cells(name, [false] * (20 if name == "fig4-one" else 8)) == FAILS  # there a quarter apart
    assert cells(name, [true, false] * 3) == OPEN


# --- what is missing --------------------------------------------------------------------------------------------------


def test_what_is_said_of_python_is_not_judged_by_another_new_data_set() -> None:
    true, _, _ = WORLDS["fig18-python"]
    for new in (("b",), ("b", "demo:python")):
        texts = [(dataset, world) for dataset in ("a", *new) for world in mostly(true, Origins(), 16)]
        found = CLAIMS["fig18-python"].check(Evidence(origins=origins(texts, methods=BOTH, new=new)))
        if "demo:python" in new:
            assert found.outcome == HOLDS
            assert found.findings[0].words.endswith("on demo:python")
        else:
            assert not found.measured
            assert found.why.startswith("No data set of Python code is new to the Pearson tables")


def test_a_claim_on_a_method_that_was_not_run_says_so() -> None:
    found = CLAIMS["fig18-nowhere"].check(Evidence(origins=origins([("a", Origins()), ("b", Origins())])))
    assert found.outcome == OPEN
    assert not found.measured
    assert found.why == "Matching by pearson was not run."


@pytest.mark.parametrize("texts", [1, 2, 5])
def test_a_few_texts_give_a_number_and_no_verdict_though_they_agree(texts: int) -> None:
    found = CLAIMS["sec8-describe"].check(Evidence(origins=origins([("a", Origins())] * texts)))
    assert found.outcome == OPEN
    assert found.measured
    assert f"comes from {texts} texts" in found.why
    assert found.findings[0].found.value == pytest.approx(7 / 8)


def test_the_paper_cuts_its_models_where_it_says() -> None:
    assert thirds(26) == (range(6), range(6, 16), range(16, 26))
    assert thirds(32) == (range(9), range(9, 17), range(17, 32))
    assert thirds(6) == (range(2), range(2, 4), range(4, 6))
    assert value("RES & ATT") == 5


def test_every_claim_of_the_stage_is_planted() -> None:
    others = {
        "fig18-datasets",
        "fig13-context",
        "fig13-nowhere",
        "fig13-attention",
        "fig4-one",
        "fig4-alike",
        "fig4-mlp-att",
    }
    assert {*WORLDS, *others} == {claim.id for claim in claims() if claim.stage == "origins"}
