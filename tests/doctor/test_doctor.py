"""The doctor: a healthy release gives no alarm, and each planted fault is named as itself."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saeflow.doctor import Examination, Finding, Severity
from saeflow.doctor.examine import examine
from saeflow.doctor.findings import CheckKind
from saeflow.doctor.hidden_states import (
    CapturedPlaces,
    Case,
    Spot,
    examine_hidden_states,
    fit,
    fve,
    own_spot,
    see,
    spots_around,
)
from saeflow.doctor.weights import examine_weights
from saeflow.errors import BadFile, InvalidArgument, UnknownSite
from saeflow.ids import Part, Site
from saeflow.sources.activations import JumpReLU, ReLU
from saeflow.sources.activity import text_batches
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary, Preprocessing, TrainingInfo
from saeflow.sources.formats import save_release
from saeflow.sources.library import DictionarySet
from saeflow.sources.model import LanguageModel

from .faults import FAULTS, MLP, RES, World, changed_rows, examined, remade, stated, texts
from .faults import world as demo_world
from .tiny import MASSIVE, gemma, massive_model


@pytest.fixture(scope="module")
def world() -> World:
    return demo_world()


def wrong(found: Examination) -> set[CheckKind]:
    return {finding.check for finding in found.of(Severity.WRONG)}


def of(found: Examination, check: CheckKind) -> Finding:
    return next(finding for finding in found.findings if finding.check is check)


def test_a_healthy_release_gives_no_alarm(world: World):
    sites = [site for site in world.dictionaries if site.layer == 4]
    found = examine(
        {site: world[site] for site in sites}, model=world.model, texts=texts(), tokens=800, stated_l0=stated()
    )
    assert [f for f in found.findings if f.severity is not Severity.OK and f.check is not CheckKind.SITES] == []
    assert {f.site for f in found.findings} == {"", *map(str, sites)}
    assert found.n_tokens == pytest.approx(800, abs=20)


def test_the_weights_of_the_demo_pack_give_no_alarm(world: World):
    found = examine(world.dictionaries, release="demo")
    assert (found.worst, found.model, found.n_tokens) == (Severity.OK, "", 0)
    assert len({f.site for f in found.findings}) == 1 + len(world.dictionaries)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named_as_itself(world: World, name: str):
    fault = FAULTS[name]
    found = examined(fault.plant(world), world)
    named = [f for f in found.of(fault.severity) if f.check is fault.check]
    assert wrong(found) == ({fault.check} if fault.severity is Severity.WRONG else set())
    assert fault.said in named[0].said
    assert named[0].advice


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.weights])
def test_what_the_weights_show_needs_no_model(world: World, name: str):
    fault = FAULTS[name]
    assert wrong(examined(fault.plant(world), None)) == {fault.check}


def test_the_factor_that_is_missing_is_found(world: World):
    c = of(examined(FAULTS["missing factor 20"].plant(world), world), CheckKind.SCALE).numbers["factor"]
    assert c == pytest.approx(20, rel=0.15)
    met = of(examined(FAULTS["thresholds times 0.02"].plant(world), world), CheckKind.L0).numbers["factor"]
    assert met == pytest.approx(50, rel=0.35)


def test_a_transposed_matrix_is_told_from_the_other(world: World):
    """Square matrices that agree when one is turned agree when the other is."""
    found = examined(FAULTS["transposed, square"].plant(world), None)
    assert of(found, CheckKind.TRANSPOSED).numbers["turned"] == "decoder"
    d = FAULTS["transposed, square"].plant(world)
    other = remade(d, W_enc=d.W_enc.T, W_dec=d.W_dec.T)
    assert of(examined(other, None), CheckKind.TRANSPOSED).numbers["turned"] == "encoder"


def test_rows_that_belong_to_nothing_are_told(world: World):
    noise = torch.randn(world[RES].W_dec.shape, generator=torch.Generator().manual_seed(0))
    found = examined(remade(world[RES], W_dec=noise), None)
    assert wrong(found) == {CheckKind.ALIGNMENT}


def test_all_thresholds_zero_and_widespread_norms_are_worth_a_look(world: World):
    d = world[RES]
    flat = remade(d, threshold=torch.zeros(d.n_features))
    assert of(examined(flat, None), CheckKind.THRESHOLDS).severity is Severity.LOOK
    rows = d.W_dec * torch.logspace(0, 4, d.n_features)[:, None]
    spread = examined(remade(d, W_dec=rows), None)
    assert of(spread, CheckKind.NORMS).severity is Severity.LOOK
    far = d.activation.threshold.clone()
    far[0] = 1e6
    assert "times the median" in of(examined(remade(d, threshold=far), None), CheckKind.THRESHOLDS).said


def test_twins_in_a_wide_dictionary_are_looked_for_in_a_sample():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(17_000, 8, generator=generator)
    rows[8500:] = rows[:8500]
    d = Dictionary(
        RES, tap=Tap.RES, W_enc=rows, b_enc=torch.zeros(17_000), W_dec=rows, b_dec=torch.zeros(8), activation=ReLU()
    )
    finding = next(f for f in examine_weights(d) if f.check is CheckKind.DUPLICATES)
    assert finding.severity is Severity.WRONG
    assert finding.numbers["looked at"] == 4250
    assert finding.numbers["share"] == 1


def test_sites_that_are_missing_and_widths_that_differ_are_told(world: World):
    some = {site: world[site] for site in world.dictionaries if str(site) != "3/mlp" and site.layer != 4}
    finding = of(examine(some), CheckKind.SITES)
    assert (finding.severity, finding.numbers["missing"]) == (Severity.LOOK, "3/mlp")
    assert "3/mlp missing; no layer 4" in finding.said
    narrow = Dictionary(
        RES,
        tap=Tap.RES,
        W_enc=torch.eye(5),
        b_enc=torch.zeros(5),
        W_dec=torch.eye(5),
        b_dec=torch.zeros(5),
        activation=ReLU(),
    )
    found = examine({**some, RES: narrow})
    assert wrong(found) == {CheckKind.WIDTHS}
    assert of(found, CheckKind.WIDTHS).numbers["res"] == "5, 192"


def test_a_file_that_cannot_be_read_is_a_finding_and_the_others_go_on(world: World):
    def broken() -> Dictionary:
        raise BadFile("3/res.npz: tensor 'W_dec' has shape [2, 3], expected [3, 2]. Fetch the file again.")

    openers = {RES: broken, MLP: lambda: world[MLP]}
    found = examine(DictionarySet("broken", "", openers))
    assert wrong(found) == {CheckKind.FILE}
    finding = of(found, CheckKind.FILE)
    assert (finding.site, finding.advice) == ("3/res", "Fetch the file again.")
    assert any(f.site == "3/mlp" and f.check is CheckKind.NORMS for f in found.findings)


def test_a_model_of_another_size_is_told(world: World):
    narrow = Dictionary(
        RES,
        tap=Tap.RES,
        W_enc=torch.eye(5),
        b_enc=torch.zeros(5),
        W_dec=torch.eye(5),
        b_dec=torch.zeros(5),
        activation=ReLU(),
    )
    assert "reads width 5, and 3/res of the model is 192 wide" in of(examined(narrow, world), CheckKind.WIDTHS).said
    deep = remade(world[RES], site=Site.parse("9/res"))
    assert "the model has 6 layers" in of(examined(deep, world), CheckKind.WIDTHS).said


def test_nothing_to_read_or_to_look_at_is_refused(world: World):
    with pytest.raises(InvalidArgument, match="no text for it to read"):
        examine({RES: world[RES]}, model=world.model)
    with pytest.raises(InvalidArgument, match="200 are needed"):
        examine({RES: world[RES]}, model=world.model, texts=["a few words"])
    with pytest.raises(UnknownSite, match=r"no dictionary at 9/mlp. There are: 3/res"):
        examine({RES: world[RES]}, sites=[Site.parse("9/mlp")])
    with pytest.raises(UnknownSite, match="There are: none"):
        examine({})


def low_rank(h: torch.Tensor, site: Site, tap: Tap, rank: int = 12, **preprocessing: bool) -> Dictionary:
    """The main directions of some hidden states, both ways round: reads these well, others badly."""
    rows = torch.pca_lowrank(h, rank, niter=8)[2].T
    both, mean = torch.cat([rows, -rows]), h.mean(dim=0)
    return Dictionary(
        site,
        tap=tap,
        W_enc=both,
        b_enc=-both @ mean,
        W_dec=both,
        b_dec=mean,
        activation=ReLU(),
        preprocessing=Preprocessing(**preprocessing),
    )


def test_what_is_read_before_a_sandwich_norm_is_told():
    model, lines = gemma()
    batches = list(text_batches(model, lines))
    raw, own = Spot(1, Tap.ATT, raw=True), Spot(1, Tap.ATT)
    seen = see(model, batches, (own, raw))
    d = low_rank(seen.rest[raw], Site(1, Part.ATT), Tap.ATT, rank=6)
    found = examine({d.site: d}, model=model, texts=lines, sites=[d.site])
    assert "reads best at 1/att before its norm, told 1/att" in of(found, CheckKind.TAP).said


def test_the_embedding_told_as_the_first_layer_is_told(world: World):
    lines = texts()
    batches = list(text_batches(world.model, lines, max_length=256, max_tokens=600))
    embedding = Spot(-1, Tap.RES)
    d = low_rank(see(world.model, batches, (embedding,)).rest[embedding], Site(0, Part.RES), Tap.RES, rank=120)
    assert "reads best at embedding, told 0/res" in of(examined(d, world), CheckKind.TAP).said


def test_centring_is_told_both_ways():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 12, generator=generator) @ torch.randn(12, 40, generator=generator)
    x = x - x.mean(dim=1, keepdim=True)
    h = x + 30 * torch.randn(600, 1, generator=generator) + 10
    own = Spot(3, Tap.RES)
    for centred, states in ((True, h), (False, x)):
        d = low_rank(x, RES, Tap.RES)
        told = remade_preprocessing(d, center=not centred)
        case = Case(told, places({own: states}), own, own, (own,))
        finding = next(f for f in examine_hidden_states(case) if f.check is CheckKind.CENTERING)
        if centred:
            assert finding.severity is Severity.WRONG
            assert finding.said.startswith("with the input centred it explains 1.000")
        else:
            assert finding.severity is Severity.OK  # centred states do not mind being centred


def places(states: dict[Spot, torch.Tensor]) -> CapturedPlaces:
    """Hidden states without a massive one."""
    first, none = ({spot: h[:n] for spot, h in states.items()} for n in (3, 0))
    return CapturedPlaces(states, first, none, dict.fromkeys(states, math.inf))


@pytest.mark.parametrize(("extra", "severity"), [(1.2, Severity.LOOK), (0.6, Severity.OK)])
def test_a_dictionary_of_the_layer_before_is_noticed_where_layers_are_alike(extra: float, severity: Severity):
    generator = torch.Generator().manual_seed(0)
    home, away = Spot(3, Tap.RES), Spot(4, Tap.RES)
    h = torch.randn(900, 12, generator=generator) @ torch.randn(12, 40, generator=generator)
    h = h + 3 * torch.randn(900, 40, generator=generator)
    states = {away: h + extra * torch.randn(900, 40, generator=generator), home: h}
    d = low_rank(h, Site.parse("4/res"), Tap.RES)
    found = examine_hidden_states(Case(d, places(states), away, away, (away, home)))
    tap = next(f for f in found if f.check is CheckKind.TAP)
    assert tap.severity is severity
    if severity is Severity.LOOK:
        assert "reads best at 3/res, told 4/res" in tap.said
        assert "correct its hook point" in tap.advice
        # on all tokens, as the reconstruction is
        assert tap.numbers["FVE"] == next(f for f in found if f.check is CheckKind.RECONSTRUCTION).numbers["FVE"]
        assert 0.02 < tap.numbers["FVE then"] - tap.numbers["FVE"] < 0.1


def test_massive_positions_are_left_out_of_every_number_and_told():
    model, words = massive_model(), random.Random(0)  # noqa: S311
    lines = [" ".join(f"w{words.randrange(6, 48)}" for _ in range(30)) for _ in range(12)]
    planted = [f"{line} {MASSIVE} {line}" for line in lines]
    own = Spot(1, Tap.RES)
    plain = see(model, list(text_batches(model, lines)), (own,))
    d = low_rank(plain.rest[own], Site(1, Part.RES), Tap.RES, rank=10)
    found = examine({d.site: d}, model=model, texts=planted, sites=[d.site])
    numbers = of(found, CheckKind.MASSIVE).numbers
    assert (numbers["massive"], numbers["left out"]) == (12, 12)
    assert numbers["positions"] == found.n_tokens
    assert of(found, CheckKind.RECONSTRUCTION).numbers["FVE"] == numbers["FVE"] > 0.5
    assert abs(numbers["FVE of all"] - numbers["FVE"]) > 0.1
    assert "12 of" in of(found, CheckKind.MASSIVE).said
    assert of(examine({d.site: d}, model=model, texts=lines), CheckKind.MASSIVE).numbers["massive"] == 0


def remade_preprocessing(d: Dictionary, **changed: bool) -> Dictionary:
    return Dictionary(
        d.site,
        tap=d.tap,
        W_enc=d.W_enc,
        b_enc=d.b_enc,
        W_dec=d.W_dec,
        b_dec=d.b_dec,
        activation=d.activation,
        preprocessing=replace(d.preprocessing, **changed),
    )


def test_a_transcoder_is_tried_at_other_inputs_and_not_for_alignment(world: World):
    """A linear map from what the MLP reads to what it writes, told to read the stream before the norm."""
    batches = list(text_batches(world.model, texts(), max_length=256, max_tokens=900))
    before, after = Spot(3, Tap.MLP_IN), Spot(3, Tap.MLP)
    seen = see(world.model, batches, (before, after)).rest
    x, y = seen[before], seen[after]
    both = torch.cat([torch.eye(192), -torch.eye(192)])
    fitted = torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution
    for tap, severity in ((Tap.MLP_IN, Severity.OK), (Tap.MID, Severity.WRONG)):
        d = Dictionary(
            MLP,
            tap=tap,
            W_enc=both,
            b_enc=-both @ x.mean(dim=0),
            W_dec=torch.cat([fitted, -fitted]),
            b_dec=y.mean(dim=0),
            activation=ReLU(),
        )
        found = examined(d, world, tokens=900)
        finding = of(found, CheckKind.TAP)
        assert finding.severity is severity
        assert not any(f.check in (CheckKind.ALIGNMENT, CheckKind.B_DEC) for f in found.findings)
        if severity is Severity.WRONG:
            assert "reads best at 3/mlp_in, told 3/mid" in finding.said


def test_spots_around_a_site_begin_with_its_own_and_stay_in_the_model(world: World):
    last = remade(world[RES], site=Site.parse("5/res"))
    spots = spots_around(last, world.model)
    assert spots[0] == own_spot(last)
    assert {spot.layer for spot in spots} == {4, 5}
    assert len(set(spots)) == len(spots)


def test_fve_is_one_for_itself_zero_for_the_mean_and_below_for_worse():
    h = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)) + 3
    assert fve(h, h) == 1
    assert fve(h, h.mean(dim=0).expand_as(h)) == pytest.approx(0, abs=1e-6)
    assert fve(h, torch.zeros_like(h)) < 0


def test_a_fit_is_that_of_a_formula(world: World):
    d = world[RES]
    h = torch.randn(700, 192, generator=torch.Generator().manual_seed(2)) * 4
    acts = d.encode(h * 2)
    expected = fve(h, d.decode(acts, h * 2) / 2)
    got = fit(d, h, scale=2.0)
    assert got.fve == pytest.approx(expected, rel=1e-4)
    assert got.l0 == pytest.approx(float((acts > 0).sum()) / 700)


def test_an_examination_is_json(world: World):
    found = examined(FAULTS["duplicated rows"].plant(world), world)
    data = json.loads(json.dumps(found.to_json()))
    assert (data["worst"], data["n_tokens"]) == ("wrong", found.n_tokens)
    assert [Finding(**one) for one in data["findings"]] == list(found.findings)


def test_findings_are_read_without_torch():
    code = "import saeflow.doctor, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_exits_with_one_when_something_is_wrong(saeflow, world: World, tmp_path: Path):
    save_release(
        tmp_path / "planted",
        {RES: FAULTS["duplicated rows"].plant(world)},
        name="planted",
        model="demo",
        dtype=torch.float32,
    )
    code, out, _ = saeflow("doctor", tmp_path / "planted", "--sites", "3/res")
    assert code == 1
    assert "200 of 768 decoder rows have a twin" in " ".join(out.split())
    assert "looked at: weights alone" in out
    assert "findings: 1 wrong, 0 look" in out
    assert "passed: finite values (1), zero rows (1)" in out
    assert "decoder norms (1)" in out
    code, out, _ = saeflow("doctor", tmp_path / "planted", "--all", "--sites", "3/res")
    assert (code, "decoder norms " in out) == (1, True)
    code, out, _ = saeflow("doctor", "demo", "--sites", "3/res")
    assert (code, "decoder norms" in out, "nothing" in out) == (0, True, False), "says what passed where all did"


def test_the_command_reads_a_model_where_one_is_named(saeflow):
    code, out, _ = saeflow("doctor", "demo", "--model", "demo", "--sites", "3/res", "--tokens", "500", "--json")
    found = json.loads(out)
    assert (code, found["worst"], found["release"], found["model"]) == (0, "ok", "demo", "demo")
    numbers = {one["check"]: one["numbers"] for one in found["findings"]}
    assert numbers[CheckKind.L0]["stated"] == pytest.approx(6.4008)
    assert numbers[CheckKind.RECONSTRUCTION]["FVE"] > 0.8


def test_texts_and_models_go_together(saeflow):
    code, _, err = saeflow("doctor", "demo", "--texts", "demo")
    assert (code, "--texts are for a model to read" in err) == (2, True)
    code, _, err = saeflow("doctor", "demo", "--model", "google/gemma-2-2b")
    assert (code, "--model needs --texts" in err) == (2, True)


def test_the_l0_in_a_path_of_gemma_scope_is_what_is_stated(world: World, tmp_path: Path):
    import numpy as np

    d = world[RES]
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_3" / "width_16k" / "average_l0_60"
    folder.mkdir(parents=True)
    np.savez(
        folder / "params.npz",
        W_enc=d.W_enc.T.numpy(),
        W_dec=d.W_dec.numpy(),
        b_enc=d.b_enc.numpy(),
        b_dec=d.b_dec.numpy(),
        threshold=d.activation.threshold.numpy(),
    )
    from saeflow.sources.library import load_dictionaries

    found = examine(load_dictionaries(tmp_path), model=world.model, texts=texts(), tokens=500)
    finding = of(found, CheckKind.L0)
    assert (finding.severity, finding.numbers["stated"]) == (Severity.WRONG, 60)


def test_dead_features_are_told_from_rare_ones(world: World):
    rare = changed_rows("threshold", 60.0, 300)(world)
    found = of(examined(rare, world), CheckKind.DEAD)
    dead = of(examined(FAULTS["dead"].plant(world), world), CheckKind.DEAD)
    assert found.numbers["silent"] >= 300 / 768
    assert found.numbers["out of reach"] < 0.05 < dead.numbers["out of reach"]
    assert isinstance(rare.activation, JumpReLU)


def test_texts_that_begin_otherwise_than_in_training_are_told_and_what_it_costs(world: World):
    d = world.dictionaries[RES]
    as_trained = of(examined(d, world), CheckKind.BEGIN)
    assert as_trained.severity is Severity.OK
    told = as_trained.numbers
    assert told["begins"] is True
    other = LanguageModel(world.model.hf_model, world.model.tokenizer, prepend_bos=False)
    mismatch = of(examined(d, replace(world, model=other)), CheckKind.BEGIN)
    assert mismatch.severity is Severity.WRONG
    assert "the dictionaries were trained with the begin-of-text token" in mismatch.said
    assert (mismatch.numbers["loss"], mismatch.numbers["loss then"]) == (told["loss then"], told["loss"])
    assert float(told["loss"]) + 0.02 < float(told["loss then"])
    silent = of(examined(d.with_training(TrainingInfo()), replace(world, model=other)), CheckKind.BEGIN)
    assert silent.severity is Severity.LOOK
    assert "--prepend-bos" in silent.advice
