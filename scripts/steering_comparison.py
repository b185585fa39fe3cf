"""Do several layers of a flow graph steer better than one, than the start alone, than what people use? One command.

    python scripts/steering_comparison.py --dry-run               how long it takes here
    python scripts/steering_comparison.py                         writes docs/demo-steering-comparison.md and its figure
    python scripts/steering_comparison.py --release smollm2-135m  of a model that others trained

Every theme has one start feature at one layer: those of the demo pack were found by `saeflow themes find`, those of
SmolLM2 by words. Strengths are shares of the centred norm, so that all methods of a row of the grid change as much.
Each method's best setting of a theme is chosen on one set of samples and reported on a fresh one. A killed run resumes.
`--ablations` sweeps methods of several layers again on a smaller grid and half the samples, with plans made in other
ways; `--second MODEL` has another model read the texts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from demo_build.markdown import table
from saeflow.cli.options import Cuts
from saeflow.cli.output import bars
from saeflow.engines.pool import Pool
from saeflow.experiments.results import Results
from saeflow.flow.scores import Thresholds
from saeflow.ids import FeatureId, Part
from saeflow.matching.atlas import Atlas, open_atlas
from saeflow.paper.claims import claims
from saeflow.paper.evidence import Evidence, SteeringRun, steering_run
from saeflow.paper.steering import look
from saeflow.paper.verdicts import sentence
from saeflow.prompt_graph.matches import EffectMatches, effect_matches
from saeflow.sources.model import load_model
from saeflow.steering.generate import Request, Sampling, generate
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.schedule import Constant, Exponential, Linear
from saeflow.steering.sweep.cells import FOLDER, START_LAYER, Cells
from saeflow.steering.sweep.contrasts import SEVERAL, contrast, contrasts
from saeflow.steering.sweep.inputs import SweepInputs, background_texts, find_themes, judge_maker, open_inputs
from saeflow.steering.sweep.run import Design, run_sweep
from saeflow.steering.sweep.settings import ORDER, RANDOM, SINGLE, VECTORS, Grid, Variant
from saeflow.steering.sweep.summary import summarize_sweep
from saeflow.steering.theme import Theme
from saeflow.steering.theme_search import keywords_in

DOCS = Path(__file__).parent.parent / "docs"
SIZES: dict[str, dict[str, Any]] = {
    "demo": {
        "themes": "found",
        "layers": "1,2,3,4,5",
        "shares": "0.1,0.2,0.3,0.45,0.65,0.9",
        "factors": "0.5,0,-1,-3",
        "samples": 32,
        "confirm": 96,
    },
    "smollm2-135m": {
        "themes": "",
        "layers": "10,12",
        "shares": "0.25,0.5",
        "factors": "0,-3",
        "samples": 16,
        "confirm": 48,
    },
}
"""What is tried on a release where nothing else is said."""

ABLATED_SHARES, ABLATED_METHODS = (0.3, 0.45, 0.65), ("constant", "linear")
MEASURED = "edges by measured effect, 0.1 or more"
"""The ways to make plans whose graphs grow along effects on the themes' examples, not along cosines."""
TRACED = 8
"""Examples of a theme that effects are measured on."""
METHODS = ("prompt", "start", "random", "single", "constant", "linear", "exponential", "cumulative", *VECTORS)
SCHEDULES = (Constant(1.0), Linear(1.0, 1.5), Exponential(1.0))
PLAIN = Variant(parts=(Part.RES,), schedules=SCHEDULES, in_shares=True)
TITLES = {SteeringDirection.ACTIVATE: "Towards the theme", SteeringDirection.SUPPRESS: "Away from it"}
HEAD = """\
# Steering {release}: methods compared

Written by `python scripts/steering_comparison.py{option}` ({themes} themes, one start feature each; {samples} samples
of each setting to choose with, {confirm} fresh ones that are reported; offline judge). Strengths are shares of the
centred norm that all a plan adds comes to, so that methods of one strength change as much. The score is behaviour x
coherence to activate and (1 - behaviour) x coherence to suppress, both from 0 to 1. Difference and probe are made from
a theme's examples, which the judge learned from too: that favours them.{note}
"""
CELL = "Score, its 95 % interval over samples, and the strength and layer that the grid chose.\n"
NOTES = {
    "demo": " The model has 6 layers and 3.4 million\n"
    "parameters: this checks the method, and is no evidence about large models."
}


def ablations(atlas: Atlas) -> dict[str, Variant]:
    """Other ways to make the plans of several layers, by name."""
    calibrated = Cuts(fdr=0.01).thresholds(atlas)
    return {
        "as above: residual features, t(R) = 0.5": PLAIN,
        "strength shared by output score": replace(PLAIN, by_output_score=True),
        MEASURED: replace(PLAIN, thresholds=Thresholds(res=0.1, mlp=0.1, att=0.1)),
        f"modules too, {MEASURED}": replace(PLAIN, parts=tuple(Part), thresholds=Thresholds(res=0.1, mlp=0.1, att=0.1)),
        "without folding": replace(PLAIN, fold=False),
        "thresholds calibrated at an FDR of 1 %": replace(PLAIN, thresholds=calibrated),
        "modules too": replace(PLAIN, parts=tuple(Part)),
        "modules too, thresholds calibrated": replace(PLAIN, parts=tuple(Part), thresholds=calibrated),
        "nodes of an output score of 0.01 or more": replace(PLAIN, min_output_score=0.01),
        "only on generated tokens": replace(PLAIN, generated_only=True),
        "only where a feature is active": replace(PLAIN, only_active=True),
        "norm of the hidden state kept": replace(PLAIN, keep_norm=True),
        "each layer only what is new (orthogonal)": replace(PLAIN, orthogonal=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", default="demo", choices=sorted(SIZES))
    parser.add_argument("--out", type=Path, help="a folder, steering-comparison-RELEASE by default")
    parser.add_argument("--page", type=Path, help="docs/RELEASE-steering-comparison.md by default")
    parser.add_argument("--themes", help="names or files with commas between, or a folder")
    parser.add_argument("--limit", type=int, default=99, help="themes, at most")
    parser.add_argument("--layers")
    parser.add_argument("--shares")
    parser.add_argument("--factors")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--confirm", type=int)
    parser.add_argument("--least", type=float, default=0.05, help="the smallest difference of scores that matters")
    parser.add_argument("--ablations", type=int, nargs="?", const=99, default=0, help="the first so many, or all")
    parser.add_argument("--second", default="", help="a model that reads the texts: its loss against coherence")
    parser.add_argument("--workers", type=int, default=1, help="processes that generate texts")
    parser.add_argument("--dry-run", action="store_true")
    release = parser.parse_known_args()[0].release
    parser.set_defaults(**SIZES[release])
    told = parser.parse_args()
    out = told.out or Path(f"steering-comparison-{release}")
    page = told.page or DOCS / f"{release}-steering-comparison.md"

    # 1. what is tried
    atlas = open_atlas(release)
    themes = tuple(find_themes([name for name in told.themes.split(",") if name], release)[: told.limit])
    layers = tuple(map(int, told.layers.split(",")))
    strengths, factors = (tuple(map(float, values.split(","))) for values in (told.shares, told.factors))
    grid = Grid(strengths, factors, layers, METHODS, told.samples, told.confirm)
    inputs = open_inputs(release, atlas, background_texts((), release))
    designs = {"": Design(themes, tuple(SteeringDirection), grid, PLAIN)}
    if told.ablations:
        several = Grid(ABLATED_SHARES, factors, layers, ABLATED_METHODS, told.samples // 2, told.confirm // 2)
        designs |= {
            name: Design(themes, (SteeringDirection.ACTIVATE,), several, variant)
            for name, variant in [*ablations(atlas).items()][: told.ablations]
        }

    # 2. how long it takes
    n = sum(map(texts_of, designs.values()))
    minutes = n * seconds_a_text(inputs, themes[0].activate.prompt) / told.workers / 60
    print(f"about {n:,} texts, {minutes:.0f} minutes at the speed of now")
    if told.dry_run:
        return

    # 3. the sweeps and the page
    folders: dict[str, Results] = {}
    by_effect = inputs
    if any(MEASURED in name for name in designs):  # tracing takes minutes
        by_effect = replace(inputs, matches=effects_of(themes, inputs), matched="effects")
    for number, (name, design) in enumerate(designs.items()):
        make = judge_maker("offline", "", "", inputs.background, (design.grid.samples, design.grid.confirm))
        begun = time.monotonic()
        used = by_effect if MEASURED in name else inputs
        engine = Pool(told.workers) if told.workers > 1 else None
        with bars() as bar, engine or nullcontext():
            results, _ = run_sweep(used, design, make, out=out / f"sweep-{number}", engine=engine, progress=bar)
        summarize_sweep(results.folder)
        print(f"{name or 'all methods'}: {(time.monotonic() - begun) / 60:.1f} minutes")
        folders[name] = results
    write(page, folders, designs[""], told.least, told.second)


def effects_of(themes: Sequence[Theme], inputs: SweepInputs) -> EffectMatches:
    """The effects that features have on each other where the starts are strongest, on examples of their themes."""
    found: dict[tuple[FeatureId, FeatureId], float] = {}
    with bars() as bar:
        for theme in themes:
            for start in theme.starts:
                texts, model = theme.examples[:TRACED], inputs.model
                found |= effect_matches(texts, start, inputs.dictionaries, model, progress=bar("effects:")).effects
    return EffectMatches(found)


def texts_of(design: Design) -> int:
    """About how many texts a design generates, with a feature at every layer."""
    found = 0
    for _, direction, _ in design.tasks:
        layers = design.grid.layers or ()
        counts = [len(design.grid.of_method(direction, method, (0, *layers))) for method in ORDER]
        again = sum(map(bool, counts)) + len(design.grid.steered(direction)) * design.grid.wants(RANDOM) + 1
        found += sum(counts) * design.grid.samples + again * design.grid.confirm
    return found


def seconds_a_text(inputs: SweepInputs, prompt: str) -> float:
    """Of unsteered texts, a batch of them twice."""
    requests = [Request(prompt, seed) for seed in range(inputs.batch)]
    begun = time.monotonic()
    generate(inputs.model, inputs.dictionaries, requests, Sampling(36), batch=inputs.batch)
    return (time.monotonic() - begun) / len(requests)


# --- the page ---------------------------------------------------------------------------------------------------------


def write(page: Path, folders: dict[str, Results], design: Design, least: float, second: str) -> None:
    results, grid = folders[""], design.grid
    run = steering_run(results)
    cells, fresh = run.grid, run.fresh
    n_themes = len(design.themes)
    release = results.record.request.release
    option, note = "" if release == "demo" else f" --release {release}", NOTES.get(release, "")
    sizes = {"themes": n_themes, "samples": grid.samples, "confirm": grid.confirm}
    parts = [HEAD.format(release=release, option=option, note=note, **sizes)]
    pairs = contrasts(results, least) if n_themes >= 3 else pd.DataFrame()
    for direction, title in TITLES.items():
        parts += [f"## {title}\n", by_theme(found := confirmed(fresh, direction)), costs(found)]
        if len(pairs):
            parts += [verdicts(pairs[pairs["direction"] == direction.value], least)]
    keywords = {theme.name: theme.keywords for theme in design.themes if theme.keywords}
    parts += ["## Behaviour against coherence\n", frontier(cells, page, grid.activate)]
    parts += ["## The paper's claims\n", claimed(run)]
    parts += ["## Side by side\n", side_by_side(results, fresh)]
    parts += ["## A second measure\n", agreement(results, cells, keywords)]
    if second:
        parts.append(read_again(results, cells, second))
    if len(folders) > 1:
        parts += ["## Other ways to make the plans\n", ablated(folders)]
    page.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")
    print(f"written: {page}")


def confirmed(fresh: Cells, direction: SteeringDirection) -> pd.DataFrame:
    """The settings of a direction, with intervals and a column `name`."""
    found = fresh.with_intervals("score")
    found = found[found["direction"] == direction.value].copy()
    names = found["method"].astype(object)
    at_start = (found["method"] == SINGLE) & (found["role"] == START_LAYER)
    names = names.where(~at_start, "single (start layer)")
    found["name"] = names.where(found["method"] != RANDOM, "random of " + found["mirrors"].astype(str))
    return found


def by_theme(found: pd.DataFrame) -> str:
    """Methods x themes: score, interval, setting; the best that changes something is bold."""
    names = [name for name in found["name"].unique() if not name.startswith("random")]
    lines = [["theme", *names]]
    for theme, here in found.groupby("theme", observed=True):
        of = {row["name"]: row for row in here.to_dict("records")}
        top = max((name for name in of if name not in ("none", "prompt")), key=lambda name: of[name]["score"])
        lines.append([str(theme)])
        for name in names:
            if name not in of:
                lines[-1].append("")
                continue
            row = of[name]
            at = f" l={row['layer']}" if row["layer"] >= 0 else ""
            how = f"<br>{row['value']:g}{at}" if name not in ("none", "prompt") else ""
            score = f"**{row['score']:.2f}**" if name == top else f"{row['score']:.2f}"
            lines[-1].append(f"{score}<br>{row['score_low']:.2f}\N{EN DASH}{row['score_high']:.2f}{how}")
    means = found.groupby("name")["score"].mean()
    lines.append(["**mean**", *(f"{means[name]:.3f}" for name in names)])
    return f"{CELL}\n{table(lines)}"


def costs(found: pd.DataFrame) -> str:
    """Means over themes of marks and of what was changed."""
    columns = ("behavior", "coherence", "score", "distinct_2", "share_total")
    lines = [["method", "themes", "behaviour", "coherence", "score", "distinct-2", "share of the hidden norm"]]
    for name, here in found.groupby("name", sort=False):
        lines.append([str(name), str(len(here)), *(f"{here[column].mean():.2f}" for column in columns)])
    return table(lines)


def verdicts(pairs: pd.DataFrame, least: float) -> str:
    """Every pair of methods over themes."""
    lines = [["method", "against", "themes", "difference", "outcome", "themes needed", "samples needed"]]
    for row in pairs.to_dict("records"):
        enough = row["samples_needed"]
        difference = f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
        needed = [str(row["themes_needed"]), "no number does" if pd.isna(enough) else f"{enough:.0f}"]
        lines.append([row["method_a"], row["method_b"], str(row["themes"]), difference, row["outcome"], *needed])
    said = (
        f"Differences over themes, with 95 % intervals over themes. `{SEVERAL}` is of each theme the schedule that "
        f"the grid chose. Less than {least:g}: two one-sided tests at 5 %. Needed: to find a difference of {least:g}, "
        "or to show that there is none, in 80 % of runs; themes of as many samples, samples of as many themes.\n"
    )
    return f"{said}\n{table(lines)}"


def frontier(cells: Cells, page: Path, strengths: Sequence[float]) -> str:
    """Behaviour against coherence, a line a method over the shares: means over themes, at each theme's best layer."""
    settings = cells.steered[cells.steered["direction"] == SteeringDirection.ACTIVATE.value]
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    lines = [["method", *(f"{share:g}" for share in strengths)]]
    for method, here in settings.groupby("method", observed=True):
        points: list[tuple[float, float]] = []
        for _, of_value in here.groupby("value"):
            best = of_value.loc[of_value.groupby("theme", observed=True)["score"].idxmax().dropna()]
            points.append((best["behavior"].mean(), best["coherence"].mean()))
        kind = look(str(method))
        x, y = zip(*points, strict=True)
        fill = "none" if kind.hollow else kind.tone
        axes.plot(x, y, color=kind.tone, marker=kind.shape, mfc=fill, lw=1, ms=5, label=kind.name)
        lines.append([kind.name, *(f"{a:.1f}, {b:.1f}" for a, b in points)])
    axes.set(xlabel="behaviour (0 to 5)", ylabel="coherence (0 to 5)", xlim=(0, 5), ylim=(0, 5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    images = page.parent / "images"
    images.mkdir(exist_ok=True)
    name = f"{page.stem}.svg"
    figure.savefig(images / name, metadata={"Date": None})
    said = (
        "Marks of each method at each share, as means over themes, each theme at the layer that scores highest there "
        "on the same samples. Higher and further right is better.\n"
    )
    shown = f"![Coherence over behaviour of every method](images/{name})"
    return f"{said}\n{shown}\n\nBehaviour, coherence by share:\n\n{table(lines)}"


def side_by_side(results: Results, fresh: Cells) -> str:
    """The first fresh sample of every method, for the theme where a single layer does best and for the middle one."""
    of = confirmed(fresh, SteeringDirection.ACTIVATE)
    order = of[of["name"] == SINGLE].sort_values("score")["theme"].astype(str).tolist()
    columns = ("theme", "direction", "method", "mirrors", "sample", "prompt", "text")
    rows = pd.DataFrame(Results.open(results.folder / FOLDER).columns(*columns))
    first = (rows["sample"] == 0) & (rows["direction"] == SteeringDirection.ACTIVATE.value) & (rows["mirrors"] == "")
    parts = ["The first fresh sample of each method, all of one seed, chosen by nobody.\n"]
    for theme in dict.fromkeys((order[-1], order[len(order) // 2])):
        lines = [["method", theme]]
        for row in rows[first & (rows["theme"] == theme)].drop_duplicates("method").to_dict("records"):
            text = " ".join(f"{row['prompt']}{row['text']}".replace("|", "\\|").replace("`", "'").split())
            lines.append([row["method"], f"`{text}`"])
        parts.append(table(lines))
    return "\n".join(parts)


def agreement(results: Results, cells: Cells, keywords: Mapping[str, Sequence[str]]) -> str:
    """The judge's behaviour against how many of a theme's keywords a text has: they are not taken from its examples."""
    rows = pd.DataFrame(results.columns("theme", "direction", "text"))
    rows = rows.assign(b=cells.texts["behavior"].to_numpy(), cell=cells.texts["cell"].to_numpy())
    lines = [["theme", "texts", "Spearman's rho, texts", "rho, settings"]]
    found: list[float] = []
    for theme, here in rows[rows["theme"].isin(keywords)].groupby("theme", sort=False):
        counted = here.assign(k=[keywords_in(text, keywords[str(theme)]) for text in here["text"]])
        means = counted.groupby("cell")[["b", "k"]].mean()
        rho = [float(stats.spearmanr(some["b"], some["k"]).statistic) for some in (counted, means)]
        found.append(rho[1])
        lines.append([str(theme), f"{len(here):,}", *(f"{value:.2f}" for value in rho)])
    if not found:
        return "The themes have no keywords.\n"
    said = (
        "Behaviour as the classifier marks it, against how many different keywords a text has. Keywords were not taken "
        f"from the classifier's examples. Mean over themes, of settings: {fmean(found):.2f}.\n"
    )
    return f"{said}\n{table(lines)}"


def read_again(results: Results, cells: Cells, name: str) -> str:
    """Coherence against the loss of another model, on the first sample of every setting to activate."""
    model = load_model(name)
    rows = pd.DataFrame(results.columns("direction", "sample", "prompt", "text"))
    rows = rows.assign(coherence=cells.texts["coherence"].to_numpy())
    activates = rows["direction"] == SteeringDirection.ACTIVATE.value
    rows = rows[activates & (rows["sample"] == 0) & (rows["text"].str.strip() != "")]
    texts = [f"{prompt}{text}" for prompt, text in zip(rows["prompt"], rows["text"], strict=True)]
    losses: list[float] = []
    with bars() as bar:
        progress = bar("reading again:")
        for start in range(0, len(texts), 64):
            losses += model.loss(model.tokenize(texts[start : start + 64])).nanmean(dim=1).tolist()
            progress(len(losses), len(texts), "texts")
    rho = -float(stats.spearmanr(rows["coherence"], losses).statistic)
    return (
        f"Coherence against the loss of {name}, a token, on one text of each of {len(rows):,} settings to activate: "
        f"Spearman's rho, with the sign turned, is {rho:.2f}. The judge's coherence rests on the model's own loss.\n"
    )


def claimed(run: SteeringRun) -> str:
    """What the paper claims of steering, judged by these sweeps."""
    evidence = Evidence(steering=run)
    lines = [["claim", "verdict", "why"]]
    for claim in claims():
        if claim.stage == "steering":
            verdict = claim.check(evidence)
            lines.append([f"{claim.item}: {claim.statement}", verdict.outcome, sentence(verdict, any_of=claim.any_of)])
    return table(lines)


def ablated(folders: Mapping[str, Results]) -> str:
    """Several layers made in other ways, each against the first way on the same seeds."""
    methods = ABLATED_METHODS
    lines = [["plans", *(f"{method}{end}" for method in methods for end in ("", ", less the first"))]]
    plain: dict[str, pd.DataFrame] = {}
    for name, results in folders.items():
        if not name:
            continue
        lines.append([name])
        cells = steering_run(results).fresh
        settings = confirmed(cells, SteeringDirection.ACTIVATE)
        for method in methods:
            here = settings[settings["name"] == method]
            scores = pd.DataFrame(cells.values["score"][here.index], index=here["theme"])
            plain.setdefault(method, scores)
            both = [theme for theme in scores.index if theme in plain[method].index]
            less = scores.loc[both] - plain[method].loc[both]
            lines[-1].append(f"{scores.mean(axis=None):.3f} ({len(scores)} themes)")
            lines[-1].append(said_of(less.to_numpy()) if less.to_numpy().any() else "")
    return (
        f"Mean confirmed scores over themes, each at the best of its layers and {len(ABLATED_SHARES)} shares, and the "
        "difference from the first line with its 95 % interval over themes.\n\n"
        f"{table(lines)}"
    )


def said_of(differences: np.ndarray) -> str:
    """A difference over themes with its interval and outcome, where there are enough themes."""
    if len(differences) < 3:
        return f"{differences.mean():+.3f}"
    found = contrast(differences)
    return f"{found.difference:+.3f} ({found.low:+.3f} to {found.high:+.3f}): {found.outcome}"


if __name__ == "__main__":
    main()
