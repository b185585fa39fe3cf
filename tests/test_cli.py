"""The command line on planted atlases and folders: what it prints, what it writes, how it refuses."""

import errno
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cyclopts import Token
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from saeflow import cli
from saeflow.cli.app import COMMANDS, GROUPS, app
from saeflow.cli.options import read
from saeflow.cli.output import progress
from saeflow.errors import InvalidArgument
from saeflow.flow import FlowGraph
from saeflow.ids import Part, Site
from saeflow.matching.build import build_atlas
from saeflow.matching.table import MatchTable
from saeflow.sources.formats import save_release
from saeflow.sources.library import load_dictionaries
from saeflow.sources.model import load_model

from .matching.planted import plant


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A release of planted dictionaries on disk, with its atlas beside it."""
    root = tmp_path_factory.mktemp("planted")
    dictionaries = plant().dictionaries
    save_release(root / "release", dictionaries, name="planted", model="none", dtype=torch.float32)
    build_atlas(dictionaries, out=root / "atlas", k=5, release="planted", model="none")
    return root


@pytest.fixture
def run(monkeypatch, saeflow_here, tmp_path):
    """Run `saeflow ...` in an empty folder; returns (exit code, stdout, stderr)."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("SAEFLOW_CACHE", str(tmp_path / "cache"))
    saeflow_here.work = work
    return saeflow_here


def test_graph_prints_a_table_and_writes_what_was_asked_for(folder, run):
    code, out, err = run("graph", folder / "atlas", "4/res/7")
    assert (code, err, list(run.work.iterdir())) == (0, "", [])
    (run.work / "here").mkdir()
    assert run("graph", folder / "atlas", "4/res/7", "-o", "g.html", "m.mmd", "-o", "g.circuit-tracer.json")[0] == 0
    assert {path.name for path in run.work.iterdir()} == {"here", "g.html", "m.mmd", "g.circuit-tracer.json"}
    assert "nodes" in json.loads((run.work / "g.circuit-tracer.json").read_text())
    code, out, err = run("graph", folder / "atlas", "4/res/7", "-o", "here")
    assert (code, err) == (0, "")
    for word in ("4/res/7", "s(R)", "t(R) = 0.5"):
        assert word in out
    names = {path.name for path in (run.work / "here").iterdir()}
    assert names == {f"atlas-4-res-7.graph.{suffix}" for suffix in ("html", "json", "graphml")}
    written = (run.work / "here" / "atlas-4-res-7.graph.json").read_text()
    assert str(FlowGraph.from_json(written).seed) == "4/res/7"


def test_graph_as_json_is_the_graph_and_nothing_else(folder, run):
    code, out, _ = run("graph", folder / "atlas", "4/res/7", "--json", "--k", "3")
    assert code == 0
    assert FlowGraph.from_json(out).seed.index == 7
    assert list(run.work.iterdir()) == []


def test_a_figure_is_what_its_ending_says_and_another_ending_is_refused_before_the_work(folder, run):
    graph = ("graph", folder / "atlas", "4/res/7", "-o")
    for name, begins in (("a.svg", b"<svg"), ("a.png", b"\x89PNG")):
        assert run(*graph, name)[0] == 0
        assert (run.work / name).read_bytes().startswith(begins)
    for name, args in {
        "a.gif": graph,
        "a.pdf": graph,
        "m.csv": ("match", folder / "release", "3/res", "1/res", "--out"),
        "b.jpg": ("agreement", folder / "release", "--out"),
        "c.jpg": ("atlas", "calibrate", folder / "release", "--out"),
    }.items():
        code, out, err = run(*args, name)
        assert (code, out) == (2, "")
        assert f"{name} cannot be written: end its name in ." in err
        assert not (run.work / name).exists()


def test_match_prints_the_best_and_writes_the_table(folder, run):
    sites = (folder / "release", "3/res", "1/res")
    code, out, _ = run("match", *sites, "--k", "2", "--limit", "3", "--out", "t.safetensors")
    assert code == 0
    assert "mean best" in out
    assert MatchTable.load(run.work / "t.safetensors").k == 2
    code, out, _ = run("match", *sites, "--json", "--limit", "4")
    data = json.loads(out)
    assert len(data["matches"]) == 4
    assert data["features"] == 80


def test_an_atlas_built_by_the_command_is_the_one_built_by_the_library(folder, run):
    code, out, _ = run("atlas", "build", folder / "release", "--out", "built", "--k", "5")
    assert code == 0
    assert "tables" in out
    for file in (folder / "atlas").glob("*.safetensors"):
        ours, theirs = MatchTable.load(run.work / "built" / file.name), MatchTable.load(file)
        assert np.array_equal(ours.index, theirs.index)
    code, out, _ = run("atlas", "info", "built", "--json")
    assert json.loads(out)["tables"][0]["source"] == "0/att"


def test_an_atlas_of_some_parts_leaves_the_others_out(folder, run):
    code, _, _ = run("atlas", "build", folder / "release", "--out", "built", "--parts", "res,mlp")
    assert code == 0
    code, out, _ = run("atlas", "info", "built", "--json")
    assert not any("att" in table["source"] + table["target"] for table in json.loads(out)["tables"])
    code, out, err = run("graph", "built", "4/res/7")
    assert (code, err) == (0, "")


def test_info_lists_every_site(folder, run):
    code, out, _ = run("info", folder / "release", "--json")
    assert code == 0
    assert len(json.loads(out)["sites"]) == 18
    assert run("info", folder / "release")[0] == 0


def test_info_names_what_is_left_out_or_ambiguous_and_a_pattern_chooses_in_every_command(run, tmp_path):
    for layer in (0, 1):
        for trainer in (0, 1):
            write_sae_bench(tmp_path / "bench" / f"resid_post_layer_{layer}" / f"trainer_{trainer}", seed=trainer)
    write_sae_bench(tmp_path / "bench" / "embed", seed=3)
    code, out, _ = run("info", tmp_path / "bench", "--json")
    told = json.loads(out)
    assert (code, [row["left out"] for row in told["left_out"]]) == (0, ["embed"])
    assert all("Choose with a pattern" in row["file"] for row in told["sites"])
    code, out, _ = run("info", tmp_path / "bench")
    assert (code, "no site" in out, "embed" in out) == (0, True, True)
    code, _, err = run("match", tmp_path / "bench", "0/res", "1/res")
    assert (code, "resid_post_layer_*/trainer_0" in err) == (2, True)
    code, out, _ = run("info", f"{tmp_path / 'bench'}@trainer_1", "--json")
    assert [row["features"] for row in json.loads(out)["sites"]] == [12, 12]
    assert run("match", f"{tmp_path / 'bench'}@trainer_1", "0/res", "1/res", "--json")[0] == 0
    assert run("atlas", "build", f"{tmp_path / 'bench'}@trainer_1", "--out", "built")[0] == 0
    code, _, err = run("info", f"{tmp_path / 'bench'}@trainer_7")
    assert (code, "fits none of the 5 dictionaries" in err) == (2, True)


def write_sae_bench(folder, *, seed):
    """One SAE as SAEBench keeps it: ae.pt of dictionary_learning in a folder for each trainer."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"bias": (8,), "encoder.weight": (12, 8), "encoder.bias": (12,), "decoder.weight": (8, 12)}
    folder.mkdir(parents=True)
    torch.save({name: torch.randn(*shape, generator=g) for name, shape in shapes.items()}, folder / "ae.pt")


def test_info_of_a_named_release_lists_its_files_and_fetches_none(run, monkeypatch):
    def never(*_args, **_kwargs):
        raise AssertionError("fetched")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", never)
    code, out, _ = run("info", "gemma-scope-2b", "--json")
    data = json.loads(out)
    assert code == 0
    assert len(data["sites"]) == 78
    assert data["sites"][0]["file"].startswith("google/gemma-scope-2b-pt-att/layer_0/")


def damaged(folder, tmp_path, damage):
    """A copy of the release with the tensors of 3/res changed by `damage`."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (folder / "release").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    victim = copy / "3.res.safetensors"
    tensors = load_file(victim)
    damage(tensors, victim)
    return copy


def nan(tensors, path):
    tensors["W_dec"][5, 3] = float("nan")
    save_file(tensors, path)


def zero(tensors, path):
    tensors["W_dec"][5] = 0
    save_file(tensors, path)


def short(tensors, path):
    tensors["W_dec"] = tensors["W_dec"][:, :-1].contiguous()
    save_file(tensors, path)


def lost(tensors, path):
    del tensors["W_dec"]
    save_file(tensors, path)


def truncated(_tensors, path):
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize("damage", [nan, zero])
def test_a_feature_without_a_direction_is_counted_and_spoils_nothing(folder, run, tmp_path, damage):
    release = damaged(folder, tmp_path, damage)
    code, out, _ = run("match", release, "3/res", "2/res", "--k", "2", "--json")
    assert (code, json.loads(out)["no match"]) == (0, 1)
    assert run("atlas", "build", release, "--out", "built")[0] == 0
    tables = json.loads(run("atlas", "info", "built", "--json")[1])["tables"]
    assert {row["source"] for row in tables if row["no match"]} == {"3/res"}
    [dead] = np.flatnonzero(np.isneginf(MatchTable.load(run.work / "built/3.res-2.res.safetensors").score[:, 0]))
    code, out, _ = run("graph", "built", f"3/res/{dead}")
    assert code == 0
    assert "no direction and matches nothing" in " ".join(out.split())


@pytest.mark.parametrize("damage", [short, lost, truncated])
@pytest.mark.parametrize("command", ["match", "atlas"])
def test_a_bad_dictionary_is_refused_and_leaves_nothing_half_written(folder, run, tmp_path, damage, command):
    release = damaged(folder, tmp_path, damage)
    if command == "match":
        code, out, err = run("match", release, "3/res", "2/res", "--out", "t.safetensors")
    else:
        code, out, err = run("atlas", "build", release, "--out", "built")
    assert code == 2
    assert "Traceback" not in out + err
    assert "3.res.safetensors" in err
    assert "W_dec" in err or damage is truncated
    assert not (run.work / "t.safetensors").exists()
    assert not (run.work / "built" / "atlas.json").exists()


@pytest.fixture(scope="module")
def unknown_model(tmp_path_factory):
    """A model of an architecture whose sites are not mapped."""
    place = tmp_path_factory.mktemp("opt")
    config = OPTConfig(
        vocab_size=300, hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16
    )
    OPTForCausalLM(config).save_pretrained(place)
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "</s>": 1}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(place)  # noqa: S106
    return place


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("graph", "ATLAS", "4-res-7"), "layer/part/index"),
        (("graph", "ATLAS", "40/res/7"), "layers 0 to 5"),
        (("graph", "ATLAS", "4/res/700"), "0 to 79"),
        (("graph", "ATLAS", "4/res/7", "--k", "9"), "between 1 and 5"),
        (("graph", "ATLAS", "4/res/7", "--k", "0"), "for --k: 0 is out of range. Give 1 or more."),
        (("graph", "ATLAS", "4/res/7", "--t-res", "7"), "for --t-res: 7 is out of range. Give a cosine, -1 to 1."),
        (("graph", "ATLAS", "4/res/7", "--direction", "up"), 'Choose from: "both", "backward", "forward"'),
        (("graph", "nowhere", "4/res/7"), "saeflow atlas build"),
        (("match", "RELEASE", "3/res", "9/res"), "9/res"),
        (("match", "RELEASE", "3/res", "2/res", "--k", "81"), "between 1 and 80"),
        (("match", "RELEASE", "3", "2/res"), "'24/res'"),
        (("match", "nowhere", "3/res", "2/res"), "nowhere"),
        (("info", "nowhere"), "nowhere"),
        (("atlas", "info", "nowhere"), "nowhere"),
        (("atlas", "build", "nowhere", "--out", "built"), "nowhere"),
        (("atlas", "build", "RELEASE", "--out", "built", "--parts", "res,mpl"), "'mpl' is no part"),
        (("atlas", "build", "RELEASE", "--out", "built", "--model", "MODEL"), "gpt2"),
    ],
)
def test_a_careless_command_gets_one_message_and_exit_code_2(folder, run, unknown_model, arguments, said):
    places = {"ATLAS": folder / "atlas", "RELEASE": folder / "release", "MODEL": unknown_model}
    code, out, err = run(*(places.get(word, word) for word in arguments))
    assert code == 2
    assert said in err
    assert "Traceback" not in out + err
    assert list(run.work.iterdir()) == []


def _declared(group, path=()):
    """Every command, and its arguments and options with their help."""
    for name in group:
        if not name.startswith("-"):
            yield from _declared(group[name], (*path, name))
    if path and group.default_command:
        yield path, group.assemble_argument_collection(parse_docstring=True)


def test_every_option_and_argument_has_help():
    commands = dict(_declared(app))
    assert len(commands) >= 28
    for path, declared in commands.items():
        for one in declared:
            assert not one.show or one.parameter.help, (path, one.name)


@pytest.mark.parametrize(("device", "said"), [("cuda:77", "torch finds no device cuda:77"), ("gqu", "called 'gqu'")])
def test_a_device_that_is_not_there_is_refused_by_every_command_before_anything_is_opened(run, device, said):
    commands = {path: declared for path, declared in _declared(app) if any("--device" in one.names for one in declared)}
    assert len(commands) >= 14
    for path, declared in commands.items():
        options = [[] if one.index is not None else [one.name] for one in declared if one.required]
        needed = [word for option in options for word in (*option, "nowhere")]
        code, out, err = run(*path, *needed, "--device", device)
        assert (code, out) == (2, ""), path
        assert len(err.splitlines()) == 1, path
        assert said in err
        assert "Give one of: cpu" in err
        assert "nowhere" not in err
    assert list(run.work.iterdir()) == []


def test_a_device_that_is_not_there_is_refused_by_the_library_too():
    with pytest.raises(InvalidArgument, match="torch finds no device meta here"):
        load_model("nowhere", device="meta")
    with pytest.raises(InvalidArgument, match="no device is called 'cudda'"):
        load_dictionaries("demo", device="cudda")


def test_a_folder_that_cannot_be_written_is_one_message(folder, run):
    (run.work / "file").write_text("in the way")
    code, out, err = run("graph", folder / "atlas", "4/res/7", "--out", "file/in/it")
    assert (code, out) == (2, "")  # nothing is printed before it is refused
    assert "file is a file where a folder is needed" in err or "file/in" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("grahp", "demo", "4/res/7"), 'Unknown command "grahp". Did you mean "graph"?'),
        (("graph", "demo", "4/res/7", "--t-rse", "0"), "Unknown option: --t-rse. Did you mean --t-res? See sae"),
        (("info", ""), 'Invalid value for RELEASE: it is empty. Give "demo", a folder, or the name of a release.'),
        (("graph", "demo"), "FEATURE is missing. See saeflow graph --help."),
        (("graph", "demo", "4/res/7", "3/res"), "'3/res' is one argument too many. See saeflow graph --help."),
        (("steer", "demo", "once", "upon", "a"), "'upon a' is 2 arguments too many. Put a text of several words in qu"),
        (("graph", "demo", "4/res/7", "--t-res", "low"), "for --t-res: 'low' is no number. Write one such as 0.5."),
        (("graph", "demo", "4/res/7", "--k", "2.5"), "for --k: '2.5' is no whole number. Write one such as 12."),
        (("graph", "demo", "4/res/7", "--k"), "--k has no value. See saeflow graph --help."),
        (("graph", "demo", "4/res/7", "--json=x"), "--json is given without a value, not with 'x'. See saeflow graph"),
        (("graph", "demo", "4/res/7", "--formats", ""), "for --formats: '' holds no value. Give one or more, or leave"),
        (("graph", "demo", "4/res/7", "--out", "x.bmp"), "for --out: x.bmp cannot be written: end its name in"),
        (
            ("match", "demo", "4/res", "3/res", "--limit", "-3"),
            "Invalid value for --limit: -3 is out of range. Give 0 or more.",
        ),
        (("atlas", "calibrate", "demo", "--fdr", "2"), "for --fdr: 2 is out of range. Give a number between 0 and 1."),
        (
            ("correlate", "demo", "--texts", "demo", "--n-texts", "0"),
            "for --n-texts: 0 is out of range. Give 1 or more.",
        ),
        (("origins", "demo", "--layers", "3-1"), "for --layers: '3-1' goes from high to low, and holds nothing."),
        (
            ("sweep", "demo", "--layers", "0-99999999999"),
            "for --layers: '0-99999999999' holds more than 10,000 numbers",
        ),
        (("reproduce", "demo", "--judge", "me"), 'for --judge. Choose from: "offline", "llm".'),
        (("zebra",), 'Unknown command "zebra". See saeflow --help.'),
        (("atlas", "zebra"), 'Unknown command "zebra". See saeflow atlas --help.'),
        (("models", "gte", "gpt2"), 'Unknown command "gte". Did you mean "models get"? See saeflow models --help.'),
        (("--verison",), "Unknown option: --verison. See saeflow --help."),
        (("graph", "--zebra"), "Unknown option: --zebra. See saeflow graph --help."),
        (("train", "demo", "--texts", "demo"), "--out is missing. See saeflow train --help."),
    ],
)
def test_a_slip_is_one_sentence_that_names_what_is_nearest(run, words, said):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("saeflow: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "words", "value"),
    [
        (tuple[str, ...], ["a, b", "c"], ("a", "b", "c")),
        (tuple[str, ...], ["a,,"], ("a",)),
        (tuple[int, ...], ["6-8,12"], (6, 7, 8, 12)),
        (tuple[int | None, ...], ["1,all"], (1, None)),
        (tuple[float, ...], ["-2,0.5"], (-2.0, 0.5)),
        (tuple[Part, ...], ["res,att"], (Part.ATT, Part.RES)),
        (tuple[Site, ...], ["2/res", "3/mlp"], (Site(2, Part.RES), Site(3, Part.MLP))),
        (tuple[tuple[Site, Site], ...], ["0/res > 1/res"], ((Site(0, Part.RES), Site(1, Part.RES)),)),
        (int, ["-3"], -3),
        (float, ["1e-3"], 0.001),
    ],
)
def test_words_become_values_by_their_type(kind, words, value):
    assert read(kind, [Token(keyword="--x", value=word) for word in words]) == value


@pytest.mark.parametrize("words", [("--help",), ("-h",), ("graph", "--help"), ("sweep", "-h"), ("atlas", "--help"), ()])
def test_help_is_shown_and_nothing_else(run, words):
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: saeflow")


@pytest.mark.parametrize("columns", ["60", "150"])
def test_help_has_the_width_of_the_terminal(columns):
    code = "import sys; from saeflow.cli import main; sys.argv = ['saeflow', 'graph', '--help']; main()"
    shown = subprocess.check_output([sys.executable, "-c", code], text=True, env={**os.environ, "COLUMNS": columns})
    assert max(map(len, shown.splitlines())) == int(columns)


def test_output_may_end_early(folder):
    command = f"{sys.executable} -c 'from saeflow.cli import main; main()' releases | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_the_version_is_printed(run):
    assert run("--version")[1].startswith("saeflow 0.")
    module = subprocess.run([sys.executable, "-m", "saeflow", "--version"], capture_output=True, text=True, check=True)
    assert module.stdout == run("--version")[1]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "x", "/data/out"), "/data/out cannot be written: no space left on device."),
        (OSError(errno.EROFS, "Read-only file system", "/data"), "/data may not be read or written (Read-only"),
        (PermissionError(errno.EACCES, "Permission denied", "/root"), "/root may not be read or written (Perm"),
        (OSError(errno.EIO, "Input/output error", "/data"), "cannot read or write /data (Input/output error)."),
        (FileExistsError(errno.EEXIST, "File exists", "/data"), "/data is a file where a folder is needed"),
        (OSError("odd"), "cannot read or write a file (odd)."),
    ],
)
def test_what_the_system_refuses_is_one_sentence(monkeypatch, capsys, error, says):
    def refused(_tokens):
        raise error

    monkeypatch.setattr("saeflow.cli.app.app", refused)
    monkeypatch.setattr(sys, "argv", ["saeflow", "info"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"saeflow: {says}")
    assert said.count("\n") == 1


def test_progress_into_a_pipe_is_a_line_now_and_then_with_the_time_that_is_left(monkeypatch, capsys):
    now = iter([0.0, 1.0, 31.0, 40.0, 61.0, 62.0])
    monkeypatch.setattr(sys.modules[progress.__module__], "time", SimpleNamespace(monotonic=lambda: next(now)))
    with progress("training") as report:
        for done in (1_000, 4_000, 5_000, 7_000, 7_500):  # a run that goes on at 1,000
            report(done, 10_000, "L0 6.1")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "training L0 6.1: 40% (4,000 of 10,000), about 60 s left",
        "training L0 6.1: 70% (7,000 of 10,000), about 30 s left",
    ]


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("labels",), ("atlas", "--help"), ("models", "-h")])
def test_a_list_of_commands_says_what_each_of_them_does(words, run):
    code, out, _ = run(*words)
    assert code == 0
    group = words[0] if words and not words[0].startswith("-") else ""
    names = {key[0]: below[1] for key, below in GROUPS.items()}.get(group)
    for name in names or [name for names in COMMANDS.values() for name in names]:
        assert re.search(rf"^│ {name} +[A-Z]\w+ \w+", out, re.MULTILINE), name
