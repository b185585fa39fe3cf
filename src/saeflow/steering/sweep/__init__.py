"""The steering experiment of section 5.3: a grid of settings, judged, and the best of them measured again.

inputs     what a sweep runs on, opened from names
settings   what is tried: the grid, and how features are found
plans      from a theme to the plan of any setting, and random rows in its place
run        both stages, into a folder that a killed run resumes; one unit of work
scoring    judging, as a second step over the rows
cells      scored rows as frames: the best of several settings, and what is measured again; no torch
summary    the tables; no torch
contrasts  which method is better, over all themes, and how many would tell; no torch
"""
