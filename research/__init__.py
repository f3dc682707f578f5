"""How the project is measured: studies, time-to-target runs, their records, and the figures and tables of the docs.

Not installed with the package, which imports nothing of it. Commands run from the repository root:
`python -m research.study`, `python -m research.speedrun`.
"""
