"""The whole paper in one command: every experiment of arXiv 2502.03032 for a recipe, resumable, in one report.

    recipe.py   recipes: what is run, at which sizes, and what cannot be answered; as data in `recipes/NAME.toml`
    run.py      runs the requested stages: atlas, graphs, origins, deactivation, steering, transition
    graphs.py   the flow graphs, and table 5 node by node
    record.py   `reproduction.json`: the progress of each stage
    plan.py     estimates what a run will cost on this machine; costs.py estimates each stage
    machine.py  the hardware, memory use and revisions that a run records
    report.py   the page and the verdicts; the claims themselves are in `saeflow.paper`

`saeflow reproduce demo` runs everything on the demo pack.
"""
