"""A file names its tensor in words that only the model gives a meaning; what that is, is asked of the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from layouts import Arrays, arrays, write_sae_lens
from layouts_more import write_dictionary_learning, write_sparsify
from reading import one
from tiny_models import D_MODEL, TEXTS, tiny_model
from torch import Tensor
from torch.nn.functional import normalize

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import Add, Rescale
from saeflow.sources.activations import ReLU
from saeflow.sources.architectures import Point, Tap, View
from saeflow.sources.dictionary import Dictionary, Norm, Preprocessing, TrainingInfo
from saeflow.sources.formats import save_release
from saeflow.sources.formats.sae_lens_writer import write_sae_lens_release
from saeflow.sources.hooks import watch_output
from saeflow.sources.library import load_dictionaries
from saeflow.sources.model import LanguageModel

NAMES = ("my-org/a-fine-tune", "google/gemma-2-2b", "")


def of_model(tap: Tap, view: View, d_in: int = D_MODEL, **more: object) -> Dictionary:
    torch.manual_seed(4)
    site = Site(1, tap.part)
    W = torch.randn(2, 9, d_in)
    return Dictionary(
        site,
        tap=tap,
        W_enc=W[0],
        b_enc=torch.randn(9),
        W_dec=W[1],
        b_dec=torch.randn(d_in),
        activation=ReLU(),
        training=TrainingInfo(view),
        **more,
    )


def held(model: LanguageModel, dictionary: Dictionary) -> Tensor:
    return model.capture(model.tokenize(TEXTS[:1]), [dictionary.point])[dictionary.point]


def of_module(model: LanguageModel, path: str) -> Tensor:
    kept: list[Tensor] = []
    hook = watch_output(model.block(1).get_submodule(path), kept.append)
    model.capture(model.tokenize(TEXTS[:1]), [Site(2, Part.RES)])
    hook.remove()
    return kept[0].detach()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("part", "path", "hook"),
    [
        (Part.MLP, "mlp", "model.layers.1.mlp"),
        (Part.ATT, "self_attn", "model.layers.1.self_attn"),
        # TransformerLens 3 and 4: `blocks.1.hook_mlp_out` is after the norm, these are before it
        (Part.MLP, "mlp", "blocks.1.mlp.hook_out"),
        (Part.ATT, "self_attn", "blocks.1.attn.hook_out"),
    ],
)
def test_a_module_s_own_output_is_read_before_the_norm_that_follows_whatever_the_model_is_called(
    tmp_path: Path, name: str, part: Part, path: str, hook: str
):
    told = {"hook_name": hook, "model_name": name}
    d = one(write_sae_lens(tmp_path, arrays(), metadata=told))
    sandwich, plain = tiny_model("gemma2"), tiny_model("llama")
    assert (d.site, d.tap) == (Site(1, part), Tap(part.value))
    for model in (sandwich, plain):
        torch.testing.assert_close(held(model, d), of_module(model, path))
    rows = of_model(Tap(part.value), View.MODULE)
    norm = sandwich.block(1).get_submodule(sandwich.architecture.module(rows.tap))
    gained = normalize(rows.W_dec * (1 + norm.weight.detach()), dim=-1)
    torch.testing.assert_close(rows.directions(sandwich), gained, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows.directions(plain), normalize(rows.W_dec, dim=-1))
    assert rows.for_model(plain).point == Point.at(rows.site)
    with pytest.raises(InvalidArgument, match=r"only the model says whether a norm follows.*--model"):
        rows.directions()


def test_parts_of_sparsify_and_dictionary_learning_are_what_their_modules_return(tmp_path: Path):
    sparse = one(write_sparsify(tmp_path / "s", arrays(), hookpoint="layers.3.mlp"))
    told = {"trainer": {"dict_class": "AutoEncoder", "submodule_name": "mlp_out_layer_3"}}
    learned = one(write_dictionary_learning(tmp_path / "d", arrays(), dict_class="AutoEncoder", config=told))
    assert sparse.point == learned.point == Point(3, Tap.MLP, View.MODULE)
    assert one(write_sparsify(tmp_path / "n", arrays(), hookpoint="layers.3.attention")).point == (3, Tap.ATT)


def test_add_writes_the_row_with_the_gain_and_what_is_read_before_a_norm_is_not_rescaled():
    model, d = tiny_model("gemma2"), of_model(Tap.MLP, View.MODULE)
    tokens, feature = model.tokenize(TEXTS[:1]), FeatureId(d.site, 3)
    before = model.capture(tokens, [d.site])[d.site]
    with model.intervening([Add({feature: 1.5})], {d.site: d}):
        moved = model.capture(tokens, [d.site])[d.site] - before
    expected = (1.5 * d.directions(model)[3]).expand_as(moved)
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-5)
    with (
        pytest.raises(InvalidArgument, match=r"1/mlp/3 is read at 1/mlp \(module\), before a norm"),
        model.intervening([Rescale((feature,), 0.0)], {d.site: d}),
    ):
        pass


def test_what_a_model_does_not_have_is_refused_when_it_is_read():
    llama, gpt2 = tiny_model("llama"), tiny_model("gpt2")
    with pytest.raises(InvalidArgument, match=r"a Llama model has nothing at 1/att \(norm\)"):
        held(llama, of_model(Tap.ATT, View.NORM))
    assert tiny_model("gemma2").settled(Point(1, Tap.ATT, View.NORM)) == (1, Tap.ATT)
    rms = of_model(Tap.MID, View.RMS, preprocessing=Preprocessing(norm=Norm.RESCALE))
    assert held(llama, rms).shape[-1] == D_MODEL
    with pytest.raises(InvalidArgument, match=r"a GPT-2 model has nothing at 1/mid \(rms\)"):
        held(gpt2, rms)


FORMER = {"model_class_name": "HookedTransformer", "model_name": "gpt2-small", "apply_b_dec_to_input": True}


def former(folder: Path, a: Arrays, **told: object) -> Dictionary:
    """A folder of a sae-lens before version 6: one flat configuration."""
    folder = write_sae_lens(folder, a)
    path = folder / "cfg.json"
    flat = json.loads(path.read_text())
    flat.pop("metadata")
    path.write_text(json.dumps(flat | told))
    return one(folder)


@pytest.mark.parametrize(
    ("told", "processed"),
    [
        (FORMER, True),
        ({"lr": 0.0004}, True),
        ({}, False),
        ({**FORMER, "model_from_pretrained_kwargs": {"center_writing_weights": False}}, False),
        ({**FORMER, "model_class_name": "AutoModelForCausalLM"}, False),
    ],
)
def test_files_of_the_time_when_sae_lens_processed_weights_say_so_by_naming_no_choice(
    tmp_path: Path, told: dict[str, object], processed: bool
):
    d = former(tmp_path, arrays(), hook_name="blocks.1.hook_resid_post", **told)
    assert (d.training.view is View.PROCESSED) is processed


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "gpt_neox", "falcon", "qwen2", "llama"])
@pytest.mark.parametrize("subtract", [True, False])
def test_z_of_processed_weights_is_z_less_the_value_bias(family: str, subtract: bool):
    """TransformerLens folds the bias of the norm before attention into that of the values, and that out of z.

    Both together are z where the norm's weight is zero: the values then are nothing but biases.
    """
    model = tiny_model(family)
    width = model.attention_writer(1)[0].shape[1]
    raw = model.capture(model.tokenize(TEXTS[:1]), [(1, Tap.Z)])[1, Tap.Z]
    module = model.block(1).get_submodule(model.architecture.first_norm)
    with torch.no_grad():
        module.weight.zero_()
    bias = model.capture(model.tokenize(TEXTS[:1]), [(1, Tap.Z)])[1, Tap.Z][0, 0]
    assert bool(bias.any()) is (family != "llama")
    torch.testing.assert_close(model.value_bias(1), bias)
    d = of_model(Tap.Z, View.PROCESSED, width, preprocessing=Preprocessing(subtract_b_dec=subtract))
    h, bound = raw - bias, d.for_model(model)
    assert bound.point == (1, Tap.Z)
    torch.testing.assert_close(bound.encode(raw), d.encode(h), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bound.decode(d.encode(h)), d.decode(d.encode(h)) + bias, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(held(model, d), bias.expand_as(raw) - bias, atol=1e-6, rtol=0)


def test_where_part_of_the_attention_goes_to_a_sink_no_value_bias_is_taken_off_z():
    model = tiny_model("gpt_oss")
    with pytest.raises(InvalidArgument, match=r"attention of a GPT-OSS model gives part of its weight to a sink"):
        held(model, of_model(Tap.Z, View.PROCESSED, 32))


@pytest.mark.parametrize("tap", [Tap.RES, Tap.ATT, Tap.MLP])
def test_the_stream_of_processed_weights_is_centred_where_the_model_has_layer_norms(tap: Tap):
    d = of_model(tap, View.PROCESSED)
    for family, centred in (("gpt2", True), ("llama", False)):
        model = tiny_model(family)
        raw = model.capture(model.tokenize(TEXTS[:1]), [d.site])[d.site]
        right = raw - raw.mean(dim=-1, keepdim=True) if centred else raw
        torch.testing.assert_close(held(model, d), right)
        torch.testing.assert_close(d.for_model(model).encode(raw), d.encode(right), atol=1e-5, rtol=1e-5)
        with model.intervening({d.point: lambda h: h + 1.0}):
            torch.testing.assert_close(
                model.capture(model.tokenize(TEXTS[:1]), [d.site])[d.site], raw + 1.0, atol=1e-5, rtol=1e-5
            )


def test_how_training_began_its_texts_is_read_kept_and_written_again(tmp_path: Path):
    hook = {"hook_name": "blocks.1.hook_resid_post", "prepend_bos": False, "context_size": 128}
    d = one(write_sae_lens(tmp_path / "a", arrays(), metadata=hook))
    assert (d.prepend_bos, d.training.context_size) == (False, 128)
    assert d.fold().training == d.to(dtype=torch.float64).training == d.training
    save_release(tmp_path / "own", {d.site: d}, name="x", model="y", dtype=torch.float32)
    write_sae_lens_release(tmp_path / "lens", {d.site: d})
    for folder in ("own", "lens"):
        assert load_dictionaries(tmp_path / folder).prepend_bos is False
        assert load_dictionaries(tmp_path / folder)[d.site].training == d.training
    silent = one(
        write_sae_lens(
            tmp_path / "b", arrays(), metadata={"hook_name": "blocks.1.hook_resid_post", "prepend_bos": None}
        )
    )
    assert silent.prepend_bos is None


def test_a_view_is_kept_by_every_folder_that_is_written(tmp_path: Path):
    for tap, view in ((Tap.MLP, View.MODULE), (Tap.RES, View.PROCESSED)):
        d = of_model(tap, view)
        save_release(tmp_path / view, {d.site: d}, name="x", model="y", dtype=torch.float32)
        assert load_dictionaries(tmp_path / view)[d.site].point == d.point
    processed = of_model(Tap.Z, View.PROCESSED, 32)
    write_sae_lens_release(tmp_path / "lens", {processed.site: processed})
    assert load_dictionaries(tmp_path / "lens")[processed.site].point == processed.point
