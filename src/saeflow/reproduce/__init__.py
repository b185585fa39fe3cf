"""The whole paper in one command: every experiment of arXiv 2502.03032 for a recipe, resumable, into one report.

    recipe.py   what is run, in which sizes, and what cannot be answered: data, in `recipes/NAME.toml`
    run.py      do the stages that are asked for: atlas, graphs, origins, deactivation, steering, transition
    record.py   `reproduction.json`: how far each stage is
    plan.py     what a run will cost on this machine, before it starts; costs.py the sizes behind it
    report.py   the page and the verdicts; the claims themselves are in `saeflow.paper`

`saeflow reproduce demo` is all of it for the demo pack.
"""
