"""Figures of the training: terms, learning rate, gradient, throughput, and how far latents are from collapse."""

import statistics
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from jepa_fast.config import Stage
from jepa_fast.report.charts import COLORS, Band, Series, line_chart
from jepa_fast.report.page import NO_HTML, Figure, Section, key_of
from jepa_fast.report.run import Run, thinned
from jepa_fast.report.words import change, listed, number

# Moments of the run at which the spectrum is drawn, as shares of its spectra.
MOMENTS = (0.0, 0.2, 0.5, 1.0)


def training_section(run: Run) -> Section:
    """Loss terms, learning rate, gradient norm, throughput."""
    if not run.metrics:
        return Section("Training", ["Nothing was logged yet: the run ended before its tenth step."])
    figures = [_terms(run), _learning_rate(run), _gradient(run), _throughput(run)]
    return Section("Training", [_stages(run)], figures=figures)


def collapse_section(run: Run) -> Section:
    """Per-dimension std over time, singular values at four moments, effective rank over time."""
    title = "How far the latents spread"
    if not run.spectra:
        return Section(title, ["This run recorded no spectra: it is older than they are, or ended before the first."])
    words = (
        "Encodings of the same trajectories throughout, without dropout, whose noise would pass for spread: the more "
        "they spread, the further from collapse."
    )
    return Section(title, [words], figures=[_std(run), _singular_values(run), _rank(run)])


def curve(run: Run, key: str, name: str, color: int) -> Series:
    """A metric over steps, thinned to what a screen shows."""
    return Series(name, thinned(run.column("step")), thinned(run.column(key)), color)


def _stages(run: Run) -> str:
    """What is minimised, stage by stage, and where one ends."""
    recipe = run.config.recipe
    done = f"{run.steps:,} of {run.config.steps:,} steps are done"
    ends = accumulate(stage.epochs for stage in recipe.stages)
    parts = [
        f"{_weighed(run, stage)}{_frozen(stage)} up to step {int(run.config.steps * end // recipe.epochs):,}"
        for stage, end in zip(recipe.stages, ends, strict=True)
    ]
    return f"{done}. What is minimised, by {recipe.objective.title}: {', then '.join(parts)}."


def _weighed(run: Run, stage: Stage) -> str:
    """The terms of a stage and their weights."""
    terms = [name for name in run.config.recipe.objective.weighted if name in run.config.recipe.terms]
    weights = run.config.recipe.objective.weights(stage.weights)
    return " + ".join(f"{number(weights[name])} {name}" for name in terms)


def _frozen(stage: Stage) -> str:
    """What stands still in a stage."""
    return f" with {listed(stage.frozen)} frozen" if stage.frozen else ""


def _terms(run: Run) -> Figure:
    series = [curve(run, name, name, color) for color, name in enumerate(run.config.recipe.terms, start=1)]
    changes = [f"{one.name} {change(one.y)}" for one in series]
    caption = f"The terms before weighting, on the training batches: {listed(changes)}."
    return Figure("Loss terms", line_chart(series, "step", "term", log=True), caption, key_of(series))


def _learning_rate(run: Run) -> Figure:
    series = [curve(run, "learning_rate", "learning rate", 1)]
    steps, rates = run.column("step"), run.column("learning_rate")
    highest = max(rates)
    caption = f"The learning rate {change(series[0].y)}."
    halved = [step for step, rate in zip(steps, rates, strict=True) if rate < highest / 2]
    if halved and halved[0] > steps[rates.index(highest)]:
        caption += f" It is below half of its highest value, {number(highest)}, from step {halved[0]:,} on."
    return Figure("Learning rate", line_chart(series, "step", "learning rate"), caption)


def _gradient(run: Run) -> Figure:
    norms, clip = run.column("gradient_norm"), run.config.recipe.optimizer.clip_norm
    series = [curve(run, "gradient_norm", "gradient norm", 1)]
    series.append(Series("clipped above", [series[0].x[0], series[0].x[-1]], [clip, clip], 0, dashed=True))
    clipped = sum(norm > clip for norm in norms)
    caption = (
        f"The norm before clipping {change(series[0].y)}; at {clipped} of {len(norms)} log steps it was above "
        f"{number(clip)} and the step was shortened."
    )
    return Figure("Gradient norm", line_chart(series, "step", "norm", log=True), caption, key_of(series))


def _throughput(run: Run) -> Figure:
    # The first log step may fall on the first step, before anything was measured.
    rates = [rate for rate in run.column("trajectories_per_s") if rate > 0]
    if not rates:
        return Figure("Throughput", NO_HTML, "Too few steps were done to measure a throughput.")
    series = [curve(run, "trajectories_per_s", "throughput", 1)]
    median = statistics.median(rates)
    caption = (
        f"The median is {number(median)} trajectories per second, {number(median / run.config.batch_size)} steps per "
        f"second; the slowest stretch made {number(min(rates))}, the fastest {number(max(rates))}."
    )
    return Figure("Throughput", line_chart(series, "step", "trajectories / s"), caption)


def _quantile(ascending: Sequence[float], share: float) -> float:
    return ascending[round(share * (len(ascending) - 1))]


def _std(run: Run) -> Figure:
    steps = [line["step"] for line in run.spectra]
    at = {share: [_quantile(line["std"], share) for line in run.spectra] for share in (0.0, 0.1, 0.5, 0.9, 1.0)}
    series = [Series("median", steps, at[0.5], 1)]
    bands = [Band(steps, at[0.0], at[1.0], 1, 0.15), Band(steps, at[0.1], at[0.9], 1, 0.25)]
    std = run.spectra[-1]["std"]
    caption = (
        f"Line: the median of {len(std)} dimensions; dark: the middle 80%; light: all of them. "
        f"At step {steps[-1]:,} it lies between {number(std[0])} and {number(std[-1])}"
    )
    hinge = run.config.recipe.objective.hinge
    if hinge is not None:
        series.append(Series("hinge", [steps[0], steps[-1]], [hinge, hinge], 0, dashed=True))
        below = bisect_left(std, hinge)
        caption += f", and {below} dimensions are below {number(hinge)}, where the variance term pulls"
    caption += "."
    chart = line_chart(series, "step", "std", bands=bands)
    return Figure("Standard deviation per dimension", chart, caption, key_of(series))


def moments(run: Run) -> list[int]:
    """Which of the run's spectra are drawn, the last one last."""
    return sorted({round(share * (len(run.spectra) - 1)) for share in MOMENTS})


def spectrum_curve(run: Run, index: int, name: str, color: int, dashed: bool = False) -> Series:
    """A spectrum, largest singular value first."""
    values = run.spectra[index]["singular_values"]
    return Series(name, list(range(1, len(values) + 1)), values, color, dashed)


def _singular_values(run: Run) -> Figure:
    indices = moments(run)
    colors = [8, 3, 2, 1][-len(indices) :]
    series = [
        spectrum_curve(run, index, f"step {run.spectra[index]['step']:,}", color)
        for index, color in zip(indices, colors, strict=True)
    ]
    values = series[-1].y
    variances = list(accumulate(value**2 for value in values))
    half = bisect_left(variances, variances[-1] / 2) + 1
    caption = (
        f"Standard deviation along the principal axes, largest first; a flat line is an even use of all "
        f"{len(values)} dimensions. At the end it goes from {number(values[0])} down to {number(values[-1])}, and "
        f"{half} {'axis holds' if half == 1 else 'axes hold'} half of the variance."
    )
    chart = line_chart(series, "principal axis", "singular value", log=True)
    return Figure("Singular values", chart, caption, key_of(series))


def _rank(run: Run) -> Figure:
    series = [rank_curve(run, "effective rank", 1)]
    dim = len(run.spectra[-1]["std"])
    caption = (
        f"The effective rank {change(series[0].y)} of {dim} dimensions. It is the exponential of the entropy of the "
        f"singular values: 1 where the latents lie on a line, {dim} where all axes are used alike."
    )
    if all("rankme" in line for line in run.spectra):
        series.append(Series("RankMe", series[0].x, [line["rankme"] for line in run.spectra], 2))
        caption += (
            f" RankMe is the same of the latents as they are, not centred, and {change(series[1].y)}: near 1 all "
            "latents are the same but for little."
        )
    return Figure("Effective rank", line_chart(series, "step", "rank"), caption, key_of(series))


def rank_curve(run: Run, name: str, color: int) -> Series:
    """The effective rank over steps."""
    steps = [line["step"] for line in run.spectra]
    return Series(name, steps, [line["rank"] for line in run.spectra], (color - 1) % COLORS + 1)
