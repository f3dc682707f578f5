"""The report of one run, and the comparison of several."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from markupsafe import Markup

from jepa_fast.report.charts import COLORS, Series, line_chart
from jepa_fast.report.page import NO_HTML, Figure, Section, folded, key_of, page, table
from jepa_fast.report.planning import planning_sections
from jepa_fast.report.probes import evaluation_sections, short
from jepa_fast.report.run import Run
from jepa_fast.report.targets import target_tiles
from jepa_fast.report.training import (
    collapse_section,
    curve,
    rank_curve,
    spectrum_curve,
    training_section,
)
from jepa_fast.report.words import duration, listed, number, root

NOTE = "Errors are the converged probe's; terms are unweighted, at the last log step."


def report(run: Run) -> Markup:
    """The page of one run."""
    config = run.config
    subtitle = (
        f"{config.preset}, {run.steps:,} steps of {config.batch_size} trajectories, seed {config.seed}, "
        f"on {run.environment.get('device', config.device)}"
    )
    diverged = [Section("This run did not end well", [run.divergence])] if run.divergence else []
    sections = [*diverged, *planning_sections(run), *evaluation_sections(run), collapse_section(run)]
    sections += [training_section(run), _settings(run)]
    return page(f"Run {run.name}", subtitle, _tiles(run), sections)


def comparison(runs: Sequence[Run]) -> Markup:
    """The page of several runs side by side."""
    names = _names(runs)
    sections = [
        Section(
            "Side by side",
            [*_diverged(runs, names), *([NOTE] if _sets(runs) else [])],
            _scores(runs, names) + _training(runs, names),
        ),
        Section("What was set differently", [_alike(runs)], _differences(runs, names)),
        Section("Error at every step", _unevaluated(runs, names), figures=_errors(runs, names)),
        Section("Training", figures=_curves(runs, names)),
    ]
    return page(f"{len(runs)} runs compared", listed(names), [], sections)


def _diverged(runs: Sequence[Run], names: list[str]) -> list[str]:
    return [f"{name}: {run.divergence}" for run, name in zip(runs, names, strict=True) if run.divergence]


def _tiles(run: Run) -> list[tuple[str, str]]:
    """The figures to see first."""
    results = [] if run.evaluation is None else run.evaluation.probe_sets
    tiles = [(root(result.trained.converged), f"off per axis, {short(result.name)}") for result in results]
    tiles += [] if run.targets is None else target_tiles(run.targets)
    if run.spectra:
        tiles.append((f"{run.spectra[-1]['rank']:.0f} of {len(run.spectra[-1]['std'])}", "effective rank"))
    if run.metrics:
        tiles.append((number(_speed(run)), "trajectories per second"))
        tiles.append((duration(run.training_s()), "in training steps"))
    return tiles


def _speed(run: Run) -> float:
    """Median trajectories per second."""
    return statistics.median(run.column("trajectories_per_s")) if run.metrics else 0.0


def _settings(run: Run) -> Section:
    """Configuration and environment, folded."""
    config = [[key, value] for key, value in _flat(asdict(run.config)).items()]
    environment = [[key, _text(value)] for key, value in run.environment.items()]
    content = folded("Configuration", table([], config, settings=True))
    content += folded("Environment", table([], environment, settings=True))
    version, commit = run.environment.get("torch", "unknown"), run.environment.get("commit") or "unknown"
    words = f"Run with torch {version} at commit {commit[:12]}, data in {run.config.data}."
    return Section("Configuration and environment", [words], content)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings under dotted names."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
            for index, one in enumerate(value):
                flat |= _flat(one, f"{prefix}{key}.{index}.")
        else:
            flat[prefix + key] = _text(value)
    return flat


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders' names; their paths where two are called the same."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _scores(runs: Sequence[Run], names: list[str]) -> Markup:
    """What the probes found, a row for each run."""
    sets = _sets(runs)
    head = ["run", *(f"{short(name)}, px²" for name in sets), "wall / normal", "effective rank"]
    rows = []
    for run, name in zip(runs, names, strict=True):
        found = {} if run.evaluation is None else {result.name: result for result in run.evaluation.probe_sets}
        scores = [f"{found[one].trained.converged:.3f}" if one in found else "-" for one in sets]
        ratio = {} if run.evaluation is None else run.evaluation.wall_to_agent
        scores.append(number(ratio["converged"]) if ratio else "-")
        rows.append([name, *scores, number(run.spectra[-1]["rank"]) if run.spectra else "-"])
    return table(head, rows)


def _training(runs: Sequence[Run], names: list[str]) -> Markup:
    """What training came to, a row for each run."""
    terms = _terms(runs)
    head = ["run", *terms, "steps", "traj / s", "in steps"]
    rows = []
    for run, name in zip(runs, names, strict=True):
        last = run.metrics[-1] if run.metrics else {}
        shown = [number(last[term]) if term in last else "-" for term in terms]
        rows.append([name, *shown, f"{run.steps:,}", number(_speed(run)), duration(run.training_s())])
    return table(head, rows)


def _terms(runs: Sequence[Run]) -> list[str]:
    """Names of all terms that any run logs, in order of appearance."""
    return list(dict.fromkeys(term for run in runs for term in run.config.recipe.terms))


def _sets(runs: Sequence[Run]) -> list[str]:
    """Names of the probe sets that any run was evaluated on, in order of appearance."""
    evaluations = [run.evaluation for run in runs if run.evaluation is not None]
    return list(dict.fromkeys(result.name for found in evaluations for result in found.probe_sets))


def _alike(runs: Sequence[Run]) -> str:
    differing = len(_differing(runs))
    total = len({key for run in runs for key in _flat(asdict(run.config))})
    return f"{differing} of {total} settings differ." if differing else "Nothing: all settings are the same."


def _differing(runs: Sequence[Run]) -> list[str]:
    settings = [_flat(asdict(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    return [key for key in keys if len({one.get(key, "-") for one in settings}) > 1]


def _differences(runs: Sequence[Run], names: list[str]) -> Markup:
    settings = [_flat(asdict(run.config)) for run in runs]
    rows = [[key, *(one.get(key, "-") for one in settings)] for key in _differing(runs)]
    return table(["setting", *names], rows, settings=True) if rows else NO_HTML


def _unevaluated(runs: Sequence[Run], names: list[str]) -> list[str]:
    return [f"{name}: {run.no_evaluation}" for run, name in zip(runs, names, strict=True) if run.evaluation is None]


def _style(index: int) -> tuple[int, bool]:
    """Colour of the run at `index`, and whether it is dashed: after the last colour they start anew."""
    return index % COLORS + 1, index >= COLORS


def _errors(runs: Sequence[Run], names: list[str]) -> list[Figure]:
    figures = []
    for probe_set in _sets(runs):
        series = []
        for index, (run, name) in enumerate(zip(runs, names, strict=True)):
            for result in run.evaluation.probe_sets if run.evaluation is not None else ():
                if result.name == probe_set:
                    errors = result.trained.converged_by_step
                    series.append(Series(name, list(range(len(errors))), errors, *_style(index)))
        best = min(series, key=lambda one: one.y[-1])
        caption = f"At the last step {best.name} is the closest, with {number(best.y[-1])} px²"
        others = sorted((one for one in series if one is not best), key=lambda one: one.y[-1])
        caption += f"; {others[0].name} has {number(others[0].y[-1])}." if others else "."
        chart = line_chart(series, "step", "error, px²", log=True)
        figures.append(Figure(short(probe_set), chart, caption, key_of(series)))
    return figures


def _curves(runs: Sequence[Run], names: list[str]) -> list[Figure]:
    """Overlaid curves of every run."""
    trained = [(index, run, name) for index, (run, name) in enumerate(zip(runs, names, strict=True)) if run.metrics]
    figures = []
    for key, title, log in (
        *((term, f"{term.capitalize()} term", True) for term in _terms(runs)),
        ("learning_rate", "Learning rate", False),
        ("trajectories_per_s", "Throughput, trajectories / s", False),
    ):
        series = []
        for index, run, name in trained:
            if key not in run.metrics[-1]:
                continue
            color, dashed = _style(index)
            one = curve(run, key, name, color)
            series.append(Series(name, one.x, one.y, color, dashed))
        figures += _overlay(title, "step", series, log)
    measured = [(index, run, name) for index, run, name in trained if run.spectra]
    ranks = [rank_curve(run, name, _style(index)[0]) for index, run, name in measured]
    figures += _overlay("Effective rank", "step", ranks, log=False)
    spectra = [spectrum_curve(run, -1, name, *_style(index)) for index, run, name in measured]
    figures += _overlay("Singular values", "principal axis", spectra, log=True, what="Smallest, at the last log step")
    return figures


def _overlay(
    title: str, x_label: str, series: list[Series], log: bool, what: str = "At the last log step"
) -> list[Figure]:
    """One chart of all curves; its caption says `what` each ends at. None without curves."""
    if not series:
        return []
    caption = f"{what}: {listed([f'{one.name} {number(one.y[-1])}' for one in series])}."
    return [Figure(title, line_chart(series, x_label, title.lower(), log=log), caption, key_of(series))]
