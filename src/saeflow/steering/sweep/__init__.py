"""The steering experiment of section 5.3: a grid of settings, judged, and the best of them measured again.

inputs        what a sweep runs on, opened from names
settings      what is tried: the grid, and how features are found
theme_plans   from a theme to the plan of any setting
unit          one unit of work: texts of a theme, a direction and a method
run           both stages, into a folder that a killed run resumes
scoring       judging, as a second step over the rows
cells, confirm, curves, summary   from scored rows to choices and tables; no torch
"""
