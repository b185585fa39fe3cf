"""The whole paper in one command: every experiment of arXiv 2502.03032 for a recipe, resumable, into one report.

    recipe      what is run, in which sizes, and what cannot be answered: data, in `recipes/NAME.toml`
    stages      atlas, graphs, origins, deactivation, steering, transition: which figures and tables each answers
    run         do the stages that are asked for, keep `reproduction.json`, write the report
    plan        what a run will cost on this machine, before it starts
    items, claims, report   what the paper says, what the run found, and the page

`saeflow reproduce demo` is all of it for the demo pack.
"""
