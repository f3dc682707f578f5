"""A page in the browser to play with a trained model of the two-room world: what it imagines beside what happens.

The page is one HTML file with the weights inside and asks nothing of any server: models, world and planner are plain
JavaScript beside this file, equal to the Python ones (tests/play).
"""
