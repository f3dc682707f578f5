"""Figures of any data: what probes read of the targets, how far predicted latents are off, rollouts seen as frames."""

import math

from markupsafe import Markup

from jepa_fast.probing.target_results import Errors, LatentErrors, Retrieval, TargetEvaluation, TargetResult
from jepa_fast.report.charts import Series, line_chart
from jepa_fast.report.page import Figure, Section, bullets, html, key_of, table
from jepa_fast.report.words import number


def target_sections(found: TargetEvaluation) -> list[Section]:
    """Probes and floors, errors at every step, retrieved frames."""
    sections = []
    if found.targets:
        verdicts = bullets([_verdict(target) for target in found.targets])
        tables = [_scores(target) for target in found.targets]
        sections.append(Section("What do the latents know?", found.words(), Markup("").join([verdicts, *tables])))
    by_step = [_by_step(target) for target in found.targets]
    words = ["Frame 0 is seen; every later latent is predicted from the one before and the action."]
    sections.append(Section("Error at every step", words, figures=[*by_step, _latents(found.latents)]))
    if found.retrievals:
        words = [
            f"Above the frames of {found.scored_on} as they were, below the frames whose encodings are nearest to the "
            f"predicted latents, out of all {found.scored:,} trajectories that were looked at. The model saw step 0."
        ]
        figures = [_frames(one, found.scored_on) for one in found.retrievals]
        sections.append(Section("Rollouts as frames", words, figures=figures))
    return sections


def target_tiles(found: TargetEvaluation) -> list[tuple[str, str]]:
    """The figures to see first."""
    return [(f"R² {_share(best_probe(target)[1].r2)}", target.name) for target in found.targets]


def best_probe(target: TargetResult) -> tuple[str, Errors]:
    """The probe of the trained model with the lower error, and its name."""
    return min((("linear", target.linear), ("MLP", target.mlp)), key=lambda one: one[1].mse)


def _share(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _verdict(target: TargetResult) -> str:
    name, best = best_probe(target)
    sentence = f"{target.name}: the {name} probe has a squared error of {number(best.mse)}, R² {_share(best.r2)}"
    if target.untrained_linear is not None and target.untrained_mlp is not None:
        floor = min(target.untrained_linear.mse, target.untrained_mlp.mse)
        if best.mse < floor:
            sentence += f", {number(best.mse / floor)} of what an untrained model leaves"
        else:
            sentence += f", no better than an untrained model ({number(floor)})"
    if target.constant.mse > 0:
        sentence += f" and {number(best.mse / target.constant.mse)} of a constant guess"
    return f"{sentence}."


def _scores(target: TargetResult) -> Markup:
    steps = list(range(len(target.mlp.mse_by_step)))
    shown = sorted({0, 1, len(steps) // 2, steps[-1]} & set(steps))
    head = [target.name, "all steps", "R²", "± standard error", *(f"step {step}" for step in shown)]
    rows = [
        [name, number(errors.mse), _share(errors.r2), number(errors.deviation)]
        + [number(errors.mse_by_step[step]) for step in shown]
        for name, errors in target.rows()
    ]
    return table(head, rows)


def _by_step(target: TargetResult) -> Figure:
    steps = list(range(len(target.mlp.mse_by_step)))
    colors = {"linear probe": 1, "MLP probe": 2, "untrained, linear": 8, "untrained, MLP": 3, "constant guess": 0}
    series = [
        Series(name, steps, errors.mse_by_step, colors[name], dashed=name == "constant guess")
        for name, errors in target.rows()
    ]
    name, best = best_probe(target)
    caption = (
        f"The {name} probe's error goes from {number(best.mse_by_step[0])} where the frame is seen to "
        f"{number(best.mse_by_step[-1])} after {steps[-1]} predictions."
    )
    return Figure(target.name, line_chart(series, "step", "squared error", log=True), caption, key_of(series))


def _latents(latents: LatentErrors) -> Figure:
    steps = list(range(len(latents.error)))
    series = [
        Series("predicted", steps, latents.error, 1),
        Series("nothing moves", steps, latents.still, 8),
        Series("mean of all", [0, steps[-1]], [1.0, 1.0], 0, dashed=True),
    ]
    caption = (
        f"Squared distance from the encoding of the frame, as a share of the encodings' variance: "
        f"{number(latents.error[-1])} after {steps[-1]} predictions. For {100 * latents.top1[-1]:.0f}% of the "
        f"trajectories the own encoding is then the nearest."
    )
    return Figure("Predicted latents", line_chart(series, "step", "share of the variance"), caption, key_of(series))


def _frames(one: Retrieval, split: str) -> Figure:
    labels = [f"step {step}" for step in one.steps]
    where = [f"{trajectory}, step {step}" for trajectory, step in one.found_at]
    own = sum(trajectory == one.trajectory for trajectory, _ in one.found_at)
    caption = (
        f"{own} of {len(one.steps)} of the nearest frames are of the trajectory itself. Found: "
        f"{'; '.join(f'at {label} that of trajectory {place}' for label, place in zip(labels, where, strict=True))}."
    )
    rows = [
        [(one.true[index], f"{split} {one.trajectory}, {label}") for index, label in enumerate(labels)],
        [(one.found[index], f"found: trajectory {place}") for index, place in enumerate(where)],
    ]
    return Figure(f"Trajectory {one.trajectory}", html("frames", labels, rows), caption)
