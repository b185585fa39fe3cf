"""Where the right transition matrix is known it is found, and every number is what its formula says."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from saeflow.errors import BadFile, InvalidArgument, UnknownSite, WidthMismatch
from saeflow.experiments.results import Results
from saeflow.experiments.sampling import Dataset, is_held_out
from saeflow.experiments.settings import TransitionSize
from saeflow.experiments.transition.run import FITTING, TransitionTexts, take_texts
from saeflow.experiments.transition.tables import summarize_transition
from saeflow.experiments.transition.variants import MapSource, MapVariant, Scaling, fit_path, read_facts
from saeflow.ids import Site

from ..sources.tiny_models import D_MODEL, MASSIVE
from .transition_world import A, B, World, dictionary, explained, plant, random_pair, run, still_model, texts

COSINE = "decoders/1/binary/RAW"
PERMUTATION = "permutation/1/binary/RAW"


@pytest.fixture(scope="module")
def world():
    return plant()


@pytest.fixture(scope="module")
def results(world, tmp_path_factory):
    found = run(tmp_path_factory.mktemp("transition"), world)
    summarize_transition(found)
    return found


@pytest.mark.parametrize("matrix", [COSINE, PERMUTATION, "permutation/1/binary/FOLDED"])
def test_the_planted_map_is_found_and_folding_mends_its_scales(results, matrix) -> None:
    found = explained(results)
    assert found[f"{matrix}/FOLDED"] == pytest.approx(1, abs=1e-4)
    assert found[f"{matrix}/RAW"] < 0.5


def test_mean_activations_mend_scales_as_thresholds_do(results) -> None:
    assert explained(results)[f"{COSINE}/MEAN"] == pytest.approx(1, abs=1e-4)


def test_identity_and_both_dictionaries_explain_a_stream_that_no_block_changes(results) -> None:
    found = explained(results)
    for name in ("identity", "reconstruction", "source reconstruction", "affine map of h", "least squares"):
        assert found[name] == pytest.approx(1, abs=2e-3), name
    assert -0.2 < found["mean"] < 0, "the mean of other texts"


def test_the_best_cosine_between_equal_dictionaries_is_their_reconstruction(tmp_path) -> None:
    rows = torch.randn(40, D_MODEL, generator=torch.Generator().manual_seed(3))
    same = {
        site: dictionary(site, rows / rows.norm(dim=1, keepdim=True), b_dec=0.1 * torch.ones(D_MODEL))
        for site in (A, B)
    }
    world = World(still_model(), same, torch.arange(40), torch.ones(40))
    found = explained(run(tmp_path, world, settings=TransitionSize(((A, B),), k=(1,), loss_texts=0)))
    assert found[f"{COSINE}/RAW"] == pytest.approx(found["reconstruction"], abs=1e-6)
    assert found["source reconstruction"] == pytest.approx(found["reconstruction"], abs=1e-6)
    assert found[f"{COSINE}/RAW"] < 0.99


def test_one_factor_is_found_on_validation_texts(tmp_path) -> None:
    world = plant(sized=False)
    double = world.dictionaries[B]
    world.dictionaries[B] = dictionary(B, 2 * double.W_dec, reads=double.W_enc)
    settings = TransitionSize(((A, B),), k=(1,), loss_texts=0)
    results = run(tmp_path, world, settings=settings)
    told = read_facts(results.folder, f"{A} > {B}")
    assert told["scales"][f"{COSINE}/RAW"] == pytest.approx(0.5, abs=1e-3)
    assert explained(results)[f"{COSINE}/RAW"] < 0.1
    assert explained(results, scaled=True)[f"{COSINE}/RAW"] == pytest.approx(1, abs=1e-4)
    assert not any("FOLDED" in name for name in told["scales"]), "a ReLU has no thresholds to fold by"


@pytest.fixture(scope="module")
def unrelated(tmp_path_factory):
    """A run on random dictionaries, and one map of it worked out by hand from the model."""
    world = World(still_model(), random_pair(), torch.arange(30), torch.ones(30))
    settings = TransitionSize(((A, B),), k=(1, 2, None), loss_texts=0)
    return world, run(tmp_path_factory.mktemp("unrelated"), world, settings=settings)


def by_hand(world):
    """Activations of A, hidden states and their mean in float64; special tokens left out."""
    tokens = world.model.tokenize([text for _, _, text in texts().measured], max_length=128)
    h = world.model.capture(tokens, [A])[A][tokens.input_ids > 2]
    z = world.dictionaries[A].encode(h).detach().double().numpy()
    return z, h.double().numpy(), h.double().numpy().mean(axis=0)


def weights(dictionary):
    return [one.detach().double().numpy() for one in (dictionary.W_dec, dictionary.W_enc, dictionary.b_dec)]


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("k", [1, 2, None])
def test_every_top_k_is_the_formula_in_numpy(unrelated, reads, binary, folded, k) -> None:
    world, results = unrelated
    (dec_a, _, _), (dec_b, enc_b, b_dec) = (weights(world.dictionaries[site]) for site in (A, B))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (dec_a, dec_b)]
    product = dec_a @ enc_b.T if reads else dec_a @ dec_b.T
    if binary and not reads and k is not None:
        product = unit[0] @ unit[1].T
    if k is not None:
        cut = np.sort(product, axis=1)[:, -k][:, None]
        product = np.where(product >= cut, product, 0)
    T = (product > 0).astype(float) if binary else product
    if folded:
        t_a, t_b = (world.dictionaries[site].activation.threshold.double().numpy() for site in (A, B))
        T = T / t_a[:, None] * t_b
    z, h, mean = by_hand(world)
    said = z @ T @ dec_b + b_dec
    expected = 1 - ((h - said) ** 2).sum() / ((h - mean) ** 2).sum()
    scaling = Scaling.FOLDED if folded else Scaling.RAW
    name = MapVariant(MapSource.READS if reads else MapSource.DECODERS, k, binary, Scaling.RAW, scaling).name
    assert explained(results)[name] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_folding_both_does_not_change_the_whole_product_with_the_encoder(unrelated) -> None:
    found = explained(unrelated[1])
    assert found["reads/all/values/FOLDED/FOLDED"] == pytest.approx(found["reads/all/values/RAW/RAW"], rel=1e-5)


def test_tokens_that_are_counted_are_those_that_are_not_special(unrelated) -> None:
    assert {row["tokens"] for row in unrelated[1].rows()} == {20}


def test_a_layer_that_adds_nothing_is_skipped_for_nothing(results, world) -> None:
    rows = [row for row in results.rows() if "loss" in row]
    assert len(rows) == 4, "two texts of each dataset"
    for row in rows:
        told = row["loss"]
        assert told["identity"] == pytest.approx(told["clean"], abs=1e-5)
        assert told[f"{COSINE}/FOLDED"] == pytest.approx(told["clean"], abs=1e-2)
        assert abs(told["mean"] - told["clean"]) > 0.01


def test_the_loss_is_that_of_the_model_with_the_prediction_in_its_place(results, world) -> None:
    row = next(row for row in results.rows() if "loss" in row)
    unit = results.units()[0]
    assert (unit["dataset"], unit["text"]) == (row["dataset"], row["text"])
    tokens = world.model.tokenize([unit["content"]])
    a, b = world.dictionaries[A], world.dictionaries[B]
    mean = torch.cat([b.W_dec, b.W_dec]).mean()  # any number: it must not matter at the begin-of-text token

    def splice(h):
        z = a.encode(h)
        T = torch.zeros(len(a.W_dec), len(b.W_dec))
        T[torch.arange(len(T)), world.order] = 1
        out = z @ T @ b.W_dec + b.b_dec
        out[:, 0] = h[:, 0]
        return out + 0 * mean

    with world.model.intervening({B: splice}):
        expected = float(world.model.loss(tokens).nanmean())
    assert row["loss"][f"{COSINE}/RAW"] == pytest.approx(expected, abs=1e-5)
    assert abs(expected - row["loss"]["clean"]) > 1e-3


def folder_digest(folder):
    """Of every file but the times in the manifest."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "manifest.json":
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class Killed(Exception):
    pass


@pytest.mark.parametrize(("stage", "after"), [("fitting", 1), ("measuring", 0), ("measuring", 7)])
def test_a_run_that_was_stopped_goes_on_and_ends_in_the_same_bytes(results, world, tmp_path, stage, after) -> None:
    def progress(what):
        def report(done, total, now):
            if (what, done) == (stage, after):
                raise Killed

        return report

    with pytest.raises(Killed):
        run(tmp_path, world, progress=progress)
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").glob("*.gz")}
    assert len(there) == (after if stage == "measuring" else 0)

    def unread() -> TransitionTexts:
        raise AssertionError("a run that is taken up reads its texts from its folder")

    summarize_transition(run(tmp_path, world, given=unread))
    assert folder_digest(tmp_path) == folder_digest(results.folder)
    assert {path: path.stat().st_mtime_ns for path in there} == there


def test_another_request_is_refused_and_other_weights_too(results, world) -> None:
    with pytest.raises(InvalidArgument, match="k is"):
        run(results.folder, world, settings=TransitionSize(((A, B),), k=(1,)))
    other = replace(world, dictionaries=plant(seed=9).dictionaries)
    with pytest.raises(InvalidArgument, match="weights is"):
        run(results.folder, other)


def test_pairs_that_do_not_fit_together_into_memory_are_measured_in_turn(world, tmp_path) -> None:
    two = {**world.dictionaries, Site.parse("2/res"): dictionary(Site.parse("2/res"), world.dictionaries[A].W_dec)}
    both = replace(world, dictionaries=two)
    pairs = ((A, B), (B, Site.parse("2/res")))
    rows = {}
    for memory in (1, 1e-9):
        settings = TransitionSize(pairs, k=(1,), loss_texts=0, memory=memory)
        found = run(tmp_path / str(memory), both, settings=settings, given=lambda: texts(6))
        assert found.record.total == 6 * (2 if memory < 1 else 1)
        # maps that do not fit into memory whole are applied a row at a time, in another order of sums
        rows[memory] = {(row["pair"], row["dataset"], row["text"]): row["total"] for row in found.rows()}
        rows[memory, "missed"] = explained(found)
    assert rows[1e-9] == rows[1]
    assert rows[1e-9, "missed"] == pytest.approx(rows[1, "missed"], rel=1e-4, abs=1e-4)


def test_what_cannot_be_measured_is_refused(world, tmp_path) -> None:
    for pairs, error, words in (
        (((B, A),), InvalidArgument, "does not come before"),
        (((A, Site.parse("7/res")),), UnknownSite, "7/res"),
    ):
        with pytest.raises(error, match=words):
            run(tmp_path, world, settings=TransitionSize(pairs))
    for given, words in (({"pairs": ()}, "0 pairs"), ({"pairs": ((A, B), (A, B))}, "twice")):
        with pytest.raises(InvalidArgument, match=words):
            run(tmp_path, world, settings=TransitionSize(**given))
    with pytest.raises(InvalidArgument, match="max_length"):
        run(tmp_path, world, settings=TransitionSize(((A, B),), max_length=1))
    narrow = {**world.dictionaries, B: dictionary(B, torch.eye(5))}
    with pytest.raises(WidthMismatch, match="5"):
        run(tmp_path, replace(world, dictionaries=narrow))
    assert not (tmp_path / "manifest.json").exists()


def test_damaged_files_are_named(world, tmp_path) -> None:
    results = run(tmp_path, world, settings=TransitionSize(((A, B),), k=(1,), loss_texts=0), given=lambda: texts(4))
    fit_path(tmp_path, (A, B)).write_bytes(b"no fit")
    with pytest.raises(BadFile, match=r"0\.res-1\.res"):
        summarize_transition(Results.open(tmp_path))
    (tmp_path / FITTING).write_bytes(b"no texts")
    fit_path(tmp_path, (A, B)).unlink()
    with pytest.raises(BadFile, match="fitting"):
        run(tmp_path, world, settings=TransitionSize(((A, B),), k=(1,), loss_texts=0))
    assert Results.open(results.folder).record.finished


def dataset(name, n, words=20):
    return Dataset(name, lambda seed: (f"{name} {i} " + "x " * words for i in range(n)))


def test_no_text_is_both_measured_and_fitted_on() -> None:
    found = take_texts(
        [dataset("a", 400), dataset("b", 30)], lambda text: len(text.split()), tokens=1000, fit_tokens=800
    )
    measured = [text for _, _, text in found.measured]
    assert not any(map(is_held_out, measured))
    assert all(map(is_held_out, [*found.fitting, *found.validation]))
    assert not set(found.fitting) & set(found.validation)
    assert len(measured) == 46, "22 tokens each, until there are 1,000"
    assert len(found.fitting) + len(found.validation) == 37
    first = [name for name, _, _ in found.measured[:4]]
    assert first == ["a", "b", "a", "b"], "one of each in turn"
    assert [n for name, n, _ in found.measured if name == "b"][:3] == [0, 1, 2]


def test_short_and_repeated_texts_are_passed_over_and_too_few_are_refused() -> None:
    same = Dataset("same", lambda seed: ["word " * 20] * 50)
    with pytest.raises(InvalidArgument, match="larger datasets"):
        take_texts([same, dataset("short", 100, words=3)], lambda t: len(t.split()), tokens=100, fit_tokens=100)
    with pytest.raises(InvalidArgument, match="1 or more"):
        take_texts([same], len, tokens=0, fit_tokens=1)


def rows(results, name, **where):
    found = results.tables()[name].dicts()
    return [row for row in found if all(row[key] == value for key, value in where.items())]


def test_tables_hold_the_rows_of_both_figures(results) -> None:
    found = explained(results)
    [one] = rows(results, "transition_permutations", method="cosine top-1", applied="raw")
    assert one["ev"] == pytest.approx(found[f"{COSINE}/RAW"], abs=1e-5)
    assert one["low"] < one["ev"] < one["high"]
    assert one["n"] == 24 * 20
    methods = {row["method"] for row in rows(results, "transition_permutations", kind="matching")}
    assert methods == {"cosine top-1", "permutation", "permutation + encoder", "permutation + encoder + b_enc"}
    assert len(rows(results, "transition_permutations", kind="matching", method="permutation")) == 6
    asked = rows(results, "transition_top_k", kind="matching", matched="raw", weights="W_dec W_enc")
    assert {(row["k"], row["entries"], row["applied"]) for row in asked} == {
        (k, entries, how)
        for k in ("1", "2", "all")
        for entries in ("values", "binary")
        for how in ("raw", "folded", "mean activation")
    }
    [paired] = rows(results, "transition_paired", a="cosine top-1, applied folded", b="cosine top-1")
    assert paired["difference"] == pytest.approx(found[f"{COSINE}/FOLDED"] - found[f"{COSINE}/RAW"], abs=1e-5)
    [loss] = rows(results, "transition_loss", map="identity")
    assert loss["change"] == pytest.approx(0, abs=1e-5)
    assert loss["n"] == 4 * 20
    assert rows(results, "transition_fits")[0]["fit_tokens"] == 48 * 20
    assert json.loads((results.folder / "summary.json").read_text())["tables"].keys() == results.tables().keys()


def test_all_pairs_are_the_mean_of_each(world, tmp_path) -> None:
    two = {**world.dictionaries, Site.parse("2/res"): dictionary(Site.parse("2/res"), world.dictionaries[A].W_dec)}
    settings = TransitionSize(((A, B), (B, Site.parse("2/res"))), k=(1,), loss_texts=1)
    found = run(tmp_path, replace(world, dictionaries=two), settings=settings, given=lambda: texts(8))
    summarize_transition(found)
    values = {row["pair"]: row["ev"] for row in rows(found, "transition_permutations", method="identity")}
    assert list(values) == ["all pairs", "0/res > 1/res", "1/res > 2/res"]
    assert values.pop("all pairs") == pytest.approx(np.mean(list(values.values())), abs=1e-6)
    assert len(rows(found, "transition_loss", pair="all pairs", map="mean")) == 1


def test_a_folder_without_rows_has_no_tables(world, tmp_path) -> None:
    def progress(what):
        def report(done, total, now):
            if what == "measuring":
                raise Killed

        return report

    with pytest.raises(Killed):
        run(tmp_path, world, progress=progress, given=lambda: texts(4))
    with pytest.raises(InvalidArgument, match="no rows yet"):
        summarize_transition(Results.open(tmp_path))


def test_massive_positions_are_left_out_of_fits_and_of_what_is_measured(tmp_path):
    world, given = plant(), texts()
    with torch.no_grad():
        world.model.hf_model.get_input_embeddings().weight[int(MASSIVE[1:])] *= 1000
    results = run(tmp_path / "t", world)
    rows = list(results.rows())
    counts = {(name, n): text.split().count(MASSIVE) for name, n, text in given.measured}
    assert {(row["dataset"], row["text"]): row["massive"] for row in rows} == counts
    assert sum(counts.values()) > 3
    assert all(row["tokens"] + row["massive"] == 20 for row in rows)
    # a total with one massive token would be a million times as large
    plain = list(run(tmp_path / "plain", plant()).rows())
    assert sum(row["total"] for row in rows) < sum(row["total"] for row in plain)
    assert explained(results)[f"{COSINE}/MEAN"] == pytest.approx(1, abs=1e-4)
    held = sum(text.split().count(MASSIVE) for text in (*given.fitting, *given.validation))
    table = summarize_transition(results)["transition_fits"]
    assert dict(zip(table.columns, table.rows[0], strict=True))["massive_tokens"] == held
    for row in rows:
        if "loss" in row:  # the massive token keeps its own hidden state, and no block adds anything
            assert row["loss"]["identity"] == pytest.approx(row["loss"]["clean"], rel=1e-5)
