"""The steering experiment of section 5.3: generate under a grid of settings, judge, and measure the best again.

inputs     what a sweep runs on, opened from names
settings   the grid of settings, and how features are found
plans      the plan of a theme for any setting, and random rows in place of its features
run        both stages, into a folder from which a killed run resumes; one unit of work
scoring    judging, as a second step over the rows
cells      scored rows as frames: the best of several settings, and the choice of what to measure again; no torch
summary    the tables; no torch
contrasts  which method is better over all themes, and how many themes it takes to tell; no torch
"""
