"""Figures of the evaluation: scores beside the floors, error at every step, located paths over the room."""

import base64
import io
import math

import numpy as np
from markupsafe import Markup
from matplotlib.image import imsave

from jepa_fast.data.two_rooms import WORLD
from jepa_fast.probing.results import KINDS, Evaluation, Example, ProbeSetResult
from jepa_fast.report.charts import Series, line_chart
from jepa_fast.report.page import Figure, Section, bullets, html, key_of, table
from jepa_fast.report.rooms import Path, room
from jepa_fast.report.run import Run
from jepa_fast.report.targets import target_sections
from jepa_fast.report.words import listed, number, root

TRUE, LOCATED = "var(--series-1)", "var(--series-2)"
# Frames of a trajectory that are shown, and the length up to which dots on paths stand closer.
FRAMES_SHOWN, SHORT = 5, 40


def evaluation_sections(run: Run) -> list[Section]:
    """What the probes found; a sentence in their place where there is no evaluation."""
    if run.targets is not None and run.evaluation is None:
        return target_sections(run.targets)
    if run.evaluation is None:
        return [Section("What do the latents know?", [run.no_evaluation])]
    results = run.evaluation.probe_sets
    return [
        Section(
            "Can the agent be located?",
            [_protocol(run.evaluation)],
            bullets(_verdicts(run.evaluation)) + _scores(run.evaluation),
        ),
        Section(
            "Error at every step",
            ["Frame 0 is seen; every later latent is predicted from the one before and the action."],
            figures=[_by_step(result) for result in results],
        ),
        Section(
            "Error by distance",
            ["By how far the agent really was from the nearest solid pixel of a border or the wall, frame by frame."],
            figures=[_by_distance(results)],
        ),
        Section(
            "Paths",
            [
                "Where the agent was, and where the converged probe locates it from predicted latents alone. The agent "
                "is frame 0. Best, median and worst are by the mean error over a trajectory."
            ],
            figures=[_paths(result) for result in results],
        ),
        Section(
            "Frames",
            [
                "The median trajectories as frames: as they were, and as the world would look with the agent where it "
                "is located. The model saw step 0 alone."
            ],
            figures=[_frames(result) for result in results],
        ),
    ]


def short(name: str) -> str:
    """A validation split's name without what all of them share."""
    return name.removeprefix("probe_").removesuffix("/val")


def _verdicts(evaluation: Evaluation) -> list[str]:
    """A sentence per set: how far off, and what that is against the floors."""
    sentences = []
    for result in evaluation.probe_sets:
        error = result.trained.converged
        sentence = f"{short(result.name)}: located to {root(error)} per axis"
        if result.untrained is not None:
            floor = result.untrained.converged
            if 0 < error < floor:
                sentence += f", {number(math.sqrt(floor / error))} times closer than with an untrained encoder"
            else:
                sentence += f", no better than with an untrained encoder ({root(floor)})"
        constant = "worse than" if error > result.constant else "against"
        sentence += f"{'' if result.untrained is None else ' and'} {constant} {root(result.constant)} for always"
        sentences.append(f"{sentence} guessing the middle.")
    if ratio := evaluation.wall_to_agent:
        sentences.append(
            f"Wall-to-agent error ratio, the error on wall over that on normal: {number(ratio['converged'])} with the "
            f"converged probe, {number(ratio['official'])} with the official one."
        )
    return sentences


def _protocol(evaluation: Evaluation) -> str:
    """What the errors are."""
    return (
        f"A small network, the probe, reads the agent's location off predicted latents ({evaluation.parameters:,} "
        f"parameters, latents of {evaluation.state_dim} dimensions and mean norm {number(evaluation.state_norm)}). "
        f"Errors are squared, in px², the mean over trajectories, steps and both axes. The official probe is "
        f"under-trained on purpose, for comparison between models; the converged one tells what the latents hold."
    )


def _scores(evaluation: Evaluation) -> Markup:
    head = ["set", "converged", "(untrained)", "official", "(untrained)", "constant", "trajectories"]
    rows = [
        [
            short(result.name),
            f"{result.trained.converged:.3f}",
            "-" if result.untrained is None else f"{result.untrained.converged:.3f}",
            f"{result.trained.official:.3f}",
            "-" if result.untrained is None else f"{result.untrained.official:.3f}",
            f"{result.constant:.1f}",
            f"{result.trajectories:,}",
        ]
        for result in evaluation.probe_sets
    ]
    return table(head, rows)


def _by_step(result: ProbeSetResult) -> Figure:
    steps = list(range(len(result.trained.converged_by_step)))
    series = [
        Series("converged", steps, result.trained.converged_by_step, 1),
        Series("official", steps, result.trained.official_by_step, 2),
        Series("constant", [0, steps[-1]], [result.constant] * 2, 0, dashed=True),
    ]
    errors = result.trained.converged_by_step
    worst = max(steps, key=errors.__getitem__)
    caption = (
        f"From {number(errors[0])} px² where the frame is seen to {number(errors[-1])} after {steps[-1]} predictions"
    )
    caption += "." if worst == steps[-1] else f", the most at step {worst} ({number(errors[worst])})."
    if result.untrained is not None:
        floor = result.untrained.converged_by_step
        series.append(Series("untrained, converged", steps, floor, 8))
        beaten = [step for step in steps if errors[step] >= floor[step]]
        if not beaten:
            caption += " Better than the untrained encoder at every step."
        else:
            caption += f" No better than the untrained encoder at {len(beaten)} of {len(steps)} steps."
    return Figure(short(result.name), line_chart(series, "step", "error, px²", log=True), caption, key_of(series))


def _by_distance(results: list[ProbeSetResult]) -> Figure:
    series = [
        Series(
            short(result.name),
            [one.low_px for one in result.by_distance],
            [one.converged for one in result.by_distance],
            color,
        )
        for color, result in enumerate(results, start=1)
    ]
    parts = []
    for result in results:
        worst = max(result.by_distance, key=lambda one: one.converged)
        share = 100 * worst.frames / sum(one.frames for one in result.by_distance)
        parts.append(f"{short(result.name)} {number(worst.converged)} px² from {number(worst.low_px)} px on")
        parts[-1] += f" ({number(share)}% of its frames)"
    caption = f"Converged probe, each point at the near end of its bin. The most: {listed(parts)}."
    chart = line_chart(series, "distance from, px", "error, px²", log=True)
    return Figure("Distance to the nearest solid pixel", chart, caption, key_of(series))


def _paths(result: ProbeSetResult) -> Figure:
    # Row by row: one of each kind, then the next of each.
    by_kind = [[example for example in result.examples if example.kind == kind] for kind in KINDS]
    ordered = [example for row in zip(*by_kind, strict=True) for example in row]
    rooms = [_room(result, example) for example in ordered]
    parts = [f"{kind} {root(found[0].error)}" for kind, found in zip(KINDS, by_kind, strict=True)]
    missed = max(range(len(ordered)), key=lambda index: _gap(ordered[index]))
    caption = (
        f"Off by, per axis: {listed(parts)}. The widest gap is {number(_gap(ordered[missed]))} px, in the "
        f"{ordered[missed].kind} trajectory {ordered[missed].trajectory}."
    )
    caption += f" Dots are {_every(ordered[0])} steps apart."
    key = [("true", TRUE, False), ("located", LOCATED, False), ("wall", "var(--wall)", False)]
    return Figure(short(result.name), html("rooms", rooms), caption, key)


def _every(example: Example) -> int:
    """Steps from one dot on a path to the next."""
    return 5 if len(example.true) <= SHORT else 10


def _frames(result: ProbeSetResult) -> Figure:
    """The median trajectory at some steps, as frames."""
    example = next(one for one in result.examples if one.kind == "median")
    last = len(example.true) - 1
    steps = sorted({round(last * part / (FRAMES_SHOWN - 1)) for part in range(FRAMES_SHOWN)})
    labels = [f"step {step}" for step in steps]
    rows = [
        [(_picture(result, example, path[step]), f"{name}, step {step}") for step in steps]
        for name, path in (("as it was", example.true), ("as located", example.located))
    ]
    caption = (
        f"Trajectory {example.trajectory}: above as it was, below as located, {number(_distance(example, last))} px "
        f"apart after {last} predictions."
    )
    return Figure(short(result.name), html("frames", labels, rows), caption)


def _picture(result: ProbeSetResult, example: Example, place: tuple[float, float]) -> str:
    """A frame as PNG in base64: the agent in yellow, what is solid in blue."""
    width, height = result.image_size
    rows, columns = np.ogrid[:height, :width]
    agent = np.exp(-((columns - place[0]) ** 2 + (rows - place[1]) ** 2) / (2 * WORLD.dot_std**2))
    solid = np.zeros((height, width))
    for x, y, wide, high in example.solid:
        solid[y : y + high, x : x + wide] = 1
    image = np.stack([agent, np.maximum(agent, 0.55 * solid), 0.8 * solid], axis=-1)
    written = io.BytesIO()
    imsave(written, np.rint(255 * image).astype(np.uint8), format="png")
    return base64.b64encode(written.getvalue()).decode("ascii")


def _distance(example: Example, step: int) -> float:
    return math.dist(example.true[step], example.located[step])


def _gap(example: Example) -> float:
    """The largest distance in pixels between the agent and where it is located."""
    return max(math.dist(true, located) for true, located in zip(example.true, example.located, strict=True))


def _room(result: ProbeSetResult, example: Example) -> tuple[Markup, str]:
    """A trajectory's picture, and the words below it."""
    # The true path is wider, so that a located one on top of it does not hide it.
    every = _every(example)
    paths = [Path(example.true, TRUE, 2.2, every), Path(example.located, LOCATED, 0.8, every)]
    label = f"{short(result.name)}, {example.kind} trajectory {example.trajectory}"
    return room(result.image_size, example.solid, paths, label), f"{example.kind}, {number(example.error)} px²"
