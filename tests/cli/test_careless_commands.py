"""What people type by mistake is answered in a few lines that speak of what they typed, before any work is done."""

from __future__ import annotations

import json
import shlex
import textwrap
from pathlib import Path

import pytest

from saeflow.experiments.results import MANIFEST, RunRecord, RunRequest

LINES, COLUMNS = 5, 80

CARELESS = (
    # commands
    ("grahp demo 4/res/72", 'Did you mean "graph"?'),
    ("saerch demo whale", 'Did you mean "labels search"?'),
    ("label search demo whale", 'Did you mean "labels"?'),
    ("labels serach demo whale", 'Did you mean "search"?'),
    ("atlas biuld demo", 'Did you mean "build"?'),
    ("models gett smollm2-135m", 'Did you mean "models get"?'),
    ("steeer demo 'I think' --theme playtime", 'Did you mean "steer"?'),
    ("deactivat demo", 'Did you mean "deactivate"?'),
    ("trian demo --texts demo", 'Did you mean "train"?'),
    ("--json", "Unknown option: --json"),
    # options, and what is missing or too much
    ("graph", "RELEASE is missing. See saeflow graph --help."),
    ("graph demo", "FEATURE is missing"),
    ("graph demo 4/res/72 5/res/1", "'5/res/1' is one argument too many"),
    ("graph demo 4/res/72 -o", "-o has no value"),
    ("demo --jsn", "Did you mean --json?"),
    ("demo extra", "'extra' is one argument too many"),
    ("demo --json=maybe", "--json is given without a value"),
    ("trace demo", "--text is missing"),
    ("match demo 4/res", "TARGET is missing"),
    ("correlate demo", "--texts is missing"),
    ("compare demo", "B is missing"),
    ("info", "RELEASE is missing"),
    ("train demo --texts demo", "--out is missing"),
    ("labels search demo", "WORDS is missing"),
    ("steer demo --theme playtime", "PROMPT is missing"),
    ("steer demo I think --theme playtime", "'think' is one argument too many"),
    ("steer demo 'I think' --them playtime", "Did you mean --theme?"),
    ("sweep demo --sampels 8", "Did you mean --samples?"),
    # releases, and folders that are none
    ("graph dmeo 4/res/72", "Did you mean 'demo'?"),
    ("graph '' 4/res/72", "RELEASE: it is empty"),
    ("graph missing/folder 4/res/72", "there is no atlas 'missing/folder'"),
    ("graph gemma-scope-2b 4/res/72", "saeflow atlas build gemma-scope-2b"),
    ("graph gemma-scop-2b 4/res/72", "Did you mean 'gemma-scope-2b'?"),
    ("trace dmeo --text hello", "Did you mean 'demo'?"),
    ("match demo 4/res 3/res --other dmeo", "Did you mean 'demo'?"),
    ("compare demo dmeo", "Did you mean 'demo'?"),
    ("origins dmeo", "Did you mean 'demo'?"),
    ("info llama-scope-8b-8", "Did you mean 'llama-scope-8b-8x'?"),
    ("info missing/folder", "neither a release nor a path that exists"),
    ("doctor dmeo", "Did you mean 'demo'?"),
    ("releases gpt2-small-v6", "Did you mean 'gpt2-small-v5'?"),
    ("atlas build dmeo", "Did you mean 'demo'?"),
    ("atlas info missing", "there is no atlas 'missing'"),
    ("labels search dmeo whale", "no words of dmeo on this machine"),
    ("labels fetch gemma-scope-2", "Did you mean 'gemma-scope-2b'?"),
    ("serve dmeo --no-browser", "Did you mean 'demo'?"),
    ("themes dmeo", "Did you mean 'demo'?"),
    ("reproduce dmeo", "Did you mean 'demo'?"),
    ("reproduce missing.toml", "no recipe 'missing.toml'"),
    ("models get smollm2-135", "Did you mean 'smollm2-135m'?"),
    ("agreement demo --atlas missing", "there is no atlas 'missing'"),
    # ids
    ("graph demo 4/res", "'4/res' is no feature"),
    ("graph demo 72", "'72' is no feature"),
    ("graph demo 4/rse/72", "'4/rse/72' is no feature"),
    ("graph demo 4/res/-1", "'4/res/-1' is no feature"),
    ("graph demo 4/res/9999", "has 768 features, 0 to 767"),
    ("graph demo 9/res/1", "no dictionary at 9/res"),
    ("match demo 4/res 9/res", "It has att at layers 0-5; mlp at layers 0-5; res at layers 0-5"),
    ("match demo 4/res 3/rse", "'3/rse' is no site"),
    ("compare demo demo --sites 9/res", "--sites names 9/res"),
    ("compare demo demo --map 3/res", "--map: '3/res' is no pair of sites"),
    ("find demo --words whale --sites 9/res", "--sites names 9/res"),
    ("doctor demo --sites 9/res", "--sites names 9/res"),
    ("plan demo --starts 4/res", "--starts: '4/res' is no feature"),
    ("plan demo --starts 4/res/9999", "has 768 features, 0 to 767"),
    ("plan demo --theme playtime --drop 0/res/1", "there is no 0/res/1 to drop"),
    ("deactivate demo 4/res/72", "--text is missing"),
    ("deactivate demo --text 'She said'", "the feature, such as 4/res/72, is missing"),
    ("deactivate demo 4/res/72 --text 'She said' --n-texts 3", "would be ignored"),
    ("deactivate demo 4/res/72 --text x", "4/res/72 does not fire on this text"),
    ("deactivate demo 4/mlp/3 --text 'She said'", "4/mlp/3 has no predecessors"),
    ("transition demo --pairs 0/res", "--pairs: '0/res' is no pair of sites"),
    ("labels show demo 4/res/9999", "has 768 features, 0 to 767"),
    ("labels show demo 9/res/1", "no dictionary at 9/res"),
    ("labels show demo whale", "'whale' is no feature"),
    ("trace demo --text 'hello there' --token 99", "token 99"),
    ("origins demo --layers 0-99", "--layers names 6 and 93 more"),
    ("origins demo --layers 5-2", "Write 2-5"),
    ("train demo --texts demo -o trained --layers 99", "the model has no layer 99"),
    # numbers
    ("graph demo 4/res/72 --t-res 2", "--t-res: 2 is out of range"),
    ("graph demo 4/res/72 --t-res high", "--t-res: 'high' is no number"),
    ("graph demo 4/res/72 --k 0", "--k: 0 is out of range"),
    ("graph demo 4/res/72 -k -3", "-k: -3 is out of range"),
    ("graph demo 4/res/72 --fdr 1", "--fdr: 1 is out of range"),
    ("graph demo 4/res/72 --fdr 0.01 --t-res 0.3", "Give either those, or --fdr"),
    ("trace demo --text 'hello there' --cosine 3", "--cosine: 3 is out of range"),
    ("trace demo --text ''", "--text is empty"),
    ("match demo 4/res 3/res --limit -1", "--limit: -1 is out of range"),
    ("match demo 4/res 3/res -k many", "-k: 'many' is no whole number"),
    ("serve demo --port 70000 --no-browser", "--port"),
    ("correlate demo --texts demo --n-texts 0", "--n-texts: 0 is out of range"),
    ("correlate demo --texts demo --tokens -5", "--tokens: -5 is out of range"),
    ("origins demo --texts -1", "--n-texts: -1 is out of range"),
    ("origins demo --workers -2", "--workers: -2 is out of range"),
    ("deactivate demo --n-targets 0", "--n-targets: 0 is out of range"),
    ("deactivate demo --r none", "--r: 'none' is no number"),
    ("transition demo --k 0", "--k: 0 is out of range"),
    ("sweep demo --samples 3", "--samples 3"),
    ("sweep demo --samples -3", "--samples: -3 is out of range"),
    ("sweep demo --strengths -1", "--strengths: -1 is out of range"),
    ("find demo --words whale --limit -1", "--limit: -1 is out of range"),
    ("plan demo --theme playtime --strength -3", "--strength: -3 is out of range"),
    ("plan demo --theme playtime --budget-total 0", "--budget-total: 0 is out of range"),
    ("plan demo --theme playtime --suppress --strength 3", "--strength is to activate"),
    ("plan demo --theme playtime --reach single", "Give --upto"),
    ("steer demo 'I think' --theme playtime -n -1", "-n: -1 is out of range"),
    ("steer demo 'I think' --theme playtime --temperature -1", "--temperature: -1 is out of range"),
    ("steer demo 'I think' --theme playtime --top-p 2", "--top-p: 2 is out of range"),
    ("steer demo 'I think' --theme playtime --max-new-tokens 0", "--max-new-tokens: 0 is out of range"),
    ("train demo --texts demo -o trained --width 0", "--width: 0 is out of range"),
    ("train demo --texts demo -o trained --lr 0", "--lr: 0 is out of range"),
    ("atlas calibrate demo --fdr 2", "--fdr: 2 is out of range"),
    ("atlas calibrate demo --rotations 0", "--rotations: 0 is out of range"),
    ("labels search demo whale --limit -1", "--limit: -1 is out of range"),
    ("doctor demo --tokens -1", "--tokens: -1 is out of range"),
    # words that are one of a few
    ("graph demo 4/res/72 --direction sideways", '"sideways" for --direction'),
    ("graph demo 4/res/72 --direction backwards", 'Did you mean "backward"?'),
    ("match demo 4/res 3/res --method cosin", "Did you mean 'cosine'?"),
    ("agreement demo --methods permutatoin", "Did you mean 'permutation'?"),
    ("agreement demo --against permutations", "Did you mean 'permutation'?"),
    ("atlas build demo --method virtuall", "Did you mean 'virtual'?"),
    ("atlas build demo --parts rse", "--parts: 'rse' is no part"),
    ("atlas calibrate demo --null famlies", 'Did you mean "families"?'),
    ("origins demo --methods cosin", "Did you mean 'cosine'?"),
    ("origins demo --engine pol", "Did you mean 'pool'?"),
    ("origins demo --device cuda", "--device"),
    ("trace demo --text 'hello there' --device gpu", "--device"),
    ("deactivate demo --strategies top1", "Did you mean 'top-1'?"),
    ("transition demo --part rse", 'Did you mean "res"?'),
    ("sweep demo --themes physic", "Did you mean 'physics'?"),
    ("sweep demo --steering-methods lineer", "Did you mean 'linear'?"),
    ("sweep demo --judge gpt", '"gpt" for --judge'),
    ("themes demo physic", "Did you mean 'physics'?"),
    ("find demo --theme physic", "Did you mean 'physics'?"),
    ("find demo", "one of --words, --texts and --theme"),
    ("plan demo", "Name a theme (--theme)"),
    ("plan demo --theme economy", "Themes of demo: anthropology, economics"),
    ("plan demo --theme playtime --reach singel", 'Did you mean "single"?'),
    ("plan demo --theme playtime --schedule liner", 'Did you mean "linear"?'),
    ("steer demo 'I think' --theme playtim", "Did you mean 'playtime'?"),
    ("steer demo 'I think'", "Name a theme (--theme)"),
    ("train demo --texts demo -o trained --architecture jumprellu", 'Did you mean "jumprelu"?'),
    ("train demo --texts demo -o trained --log tensorbord", "Did you mean 'tensorboard'?"),
    ("sweep demo --log wandbb", "Did you mean 'wandb'?"),
    ("train demo --texts demo -o trained --log wandb --shards 2", "--log is for a run in one process"),
    ("reproduce demo --only fig99", "--only names 'fig99'"),
    ("reproduce demo --judge gpt", '"gpt" for --judge'),
    ("labels fetch gemma-scope-2b --kinds explanation", "--kinds names explanation"),
    # files
    ("graph demo 4/res/72 -o graph.jpg", "-o: graph.jpg cannot be written"),
    ("graph demo 4/res/72 -o /nowhere/deep/graph.html", "the folder /nowhere/deep does not exist"),
    ("graph demo 4/res/72 -o missing/graph.html", "missing does not exist"),
    ("graph demo 4/res/72 -o notes.md/graph.html", "notes.md is a file"),
    ("demo -o here.doc", "-o: here.doc cannot be written"),
    ("trace demo --text 'hello there' -o graph.jpg", "-o: graph.jpg cannot be written"),
    ("trace demo --text 'hello there' -o missing/graph.html", "missing does not exist"),
    ("match demo 4/res 3/res -o table.csv", "-o: table.csv cannot be written"),
    ("match demo 4/res 3/res -o missing/table.safetensors", "missing does not exist"),
    ("agreement demo -o a.txt", "-o: a.txt cannot be written"),
    ("compare demo demo -o notes.md", "notes.md is a file, and a folder is written"),
    ("origins demo -o notes.md", "notes.md is a file, and a folder is written"),
    ("origins demo -o other", "other holds results of another experiment, transition of demo"),
    ("deactivate demo -o other", "other holds results of another experiment, transition of demo"),
    ("sweep demo -o other", "other holds results of another experiment, transition of demo"),
    ("train demo --texts demo -o other", "other holds something else"),
    ("plan demo --theme playtime -o plan.txt", "-o: plan.txt cannot be written"),
    ("plan demo --theme missing.toml", "neither a theme nor a file that exists"),
    ("steer demo 'I think' --plan missing.json", "missing.json: no plan can be read here"),
    ("steer demo 'I think' --plan notes.md", "notes.md: this is no JSON"),
    ("steer demo 'I think' --plan missing.json --theme playtime", "--theme would be ignored"),
    ("serve demo --results missing --no-browser", "missing"),
    # texts
    ("correlate demo --texts missing.txt", "there is no file missing.txt"),
    ("correlate demo --texts demo:storys", "Did you mean 'demo:stories'?"),
    ("origins demo --texts demo:storys", "Did you mean 'demo:stories'?"),
    ("find demo --texts missing.txt", "there is no file missing.txt"),
    ("doctor demo --texts demo", "Add --model"),
    ("labels make demo --texts missing.txt", "there is no file missing.txt"),
    ("labels explain demo 4/res/72", "--contexts 20"),
    # searches that find nothing
    ("labels search demo zzzzqqq", "no feature has 'zzzzqqq'"),
    ("find demo --words zzzzqqq", "no feature has 'zzzzqqq'"),
    # a hub that does not answer, and keys that are not there
    ("train gpt2 --texts demo -o trained", "does not answer"),
    ("steer demo 'I think' --theme playtime --model google/gemma-2-2b", "does not answer"),
    ("doctor demo --model gpt2 --texts demo", "does not answer"),
    ("sweep demo --judge llm", "--llm-url"),
)
"""What is typed, and what the answer says; `|` between what it says in several places."""


def fill(folder: Path) -> None:
    """What lies in the working folder: a file, and the results of another experiment."""
    (folder / "notes.md").write_text("# notes\n", encoding="utf-8")
    (folder / "other").mkdir()
    request = RunRequest("transition", "demo", "demo", 0, ("demo",), {}, {})
    done = RunRecord(request, {}, "2026-01-01T00:00:00+00:00", None, 0, 3)
    (folder / "other" / MANIFEST).write_text(done.to_json(), encoding="utf-8")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A working folder with the results of another experiment and a file; a hub that refuses connections."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "SAEFLOW_JUDGE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    from huggingface_hub import constants

    from saeflow.sources.remote import hub_file

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub_file, "getproxies", dict)
    fill(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("typed", "said"), CARELESS, ids=[typed for typed, _ in CARELESS])
def test_a_careless_command_is_answered_in_a_few_lines_and_leaves_nothing_behind(folder, saeflow_here, typed, said):
    before = sorted(folder.rglob("*"))
    code, out, err = saeflow_here(*shlex.split(typed))
    assert code in (1, 2)
    assert out == ""
    assert "Traceback" not in err
    for part in said.split("|"):
        assert part in err
    *remarks, message = err.splitlines()
    assert message.startswith("saeflow: ")
    assert all("the old words go with the next release" in remark for remark in remarks)
    assert len(textwrap.wrap(message, COLUMNS, break_on_hyphens=False)) <= LINES
    assert sorted(folder.rglob("*")) == before


def test_there_are_enough_of_them_and_none_twice():
    typed = [command for command, _ in CARELESS]
    assert len(set(typed)) == len(typed) >= 105


def test_a_search_in_json_that_finds_nothing_says_so_by_its_exit_code(saeflow):
    code, out, err = saeflow("labels", "search", "demo", "zzzzqqq", "--json")
    assert (code, err, json.loads(out)["features"]) == (1, "", [])
    code, out, err = saeflow("find", "demo", "--words", "zzzzqqq", "--json")
    assert (code, err, json.loads(out)["found"]) == (1, "", [])
