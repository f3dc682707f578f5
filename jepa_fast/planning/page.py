"""What a person sees of planning: episodes over their rooms, imagined against real paths, step by step; GIFs too."""

import json
from collections.abc import Sequence
from pathlib import Path as File
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from PIL import Image, ImageDraw

from jepa_fast.data.two_rooms.world import WORLD, Float32, Float64, Int64, is_solid, render_walls
from jepa_fast.models.model import Model
from jepa_fast.planning.control import Walk
from jepa_fast.planning.protocol import PROTOCOLS, Episodes, frames_of, rgb_frames, stream
from jepa_fast.planning.results import Planning, table
from jepa_fast.probing.evaluation import rectangles
from jepa_fast.report.page import THEME, policy, templates
from jepa_fast.report.rooms import Path, room

PAGE = "planning.html"
# Episodes drawn of each protocol, and what the probe behind imagined places is fitted to.
DRAWN, PROBED = 24, 1024
PROBE_STREAM = 5 << 32
SCALE, FRAME_MS = 5, 60  # of GIFs: screen pixels per pixel, time per step
INK, DREAM, GOAL = (90, 170, 255), (255, 150, 80), (80, 210, 160)

Walked = tuple[Planning, Episodes, Walk]


class Places:
    """Reads places off latents: a ridge regression on frames of random places."""

    def __init__(self, model: Model, episodes: Episodes) -> None:
        generator = stream(0, PROBE_STREAM)
        rows = generator.integers(len(episodes.numbers), size=PROBED)
        wall_x, door_y = episodes.wall_x[rows], episodes.door_y[rows]
        places = generator.uniform(*WORLD.borders, (PROBED, 2)).astype(np.float32)
        free = ~is_solid(places, wall_x, door_y)
        latents = _latents(model, places[free], wall_x[free], door_y[free])
        self.mean, self.std = latents.mean(axis=0), latents.std(axis=0) + 1e-9
        known = self._features(latents)
        ridge = 1e-4 * len(known) * np.eye(known.shape[1])
        self.weights = np.linalg.solve(known.T @ known + ridge, known.T @ places[free])

    def __call__(self, latents: Float32) -> Float64:
        """Places [T, 2] of latents [T, D]."""
        places: Float64 = self._features(latents.astype(np.float64)) @ self.weights
        return places

    def _features(self, latents: Any) -> Any:
        return np.concatenate([(latents - self.mean) / self.std, np.ones((len(latents), 1))], axis=1)


@torch.no_grad()
def _latents(model: Model, places: Float32, wall_x: Int64, door_y: Int64) -> Float64:
    frames = torch.from_numpy(frames_of(places, wall_x, door_y)).to(next(model.parameters()).device)
    return np.concatenate(
        [model.latents(model.encode(part[:, None]))[:, 0].double().cpu().numpy() for part in torch.split(frames, 64)]
    )


def write_page(walks: Sequence[Walked], model: Model, folder: File, gifs: int = 0) -> list[File]:
    """Write the page, and GIFs of the first episodes on it; the paths of both.

    Args:
        walks: per protocol the results, the episodes and the model's walk with what it imagined.
        model: whose latents are read.
        folder: where to.
        gifs: how many episodes.
    """
    shown: list[dict[str, Any]] = []
    written: list[File] = []
    for result, episodes, walked in walks:
        places = Places(model, episodes)
        success_px = PROTOCOLS[result.protocol].success_px
        distances = np.asarray(result.outcomes[0].distances_px)
        # Failures first, the farthest of them before the others; then in order of their numbers.
        order = np.lexsort((np.where(distances >= success_px, -distances, episodes.numbers), distances < success_px))
        for row in order[:DRAWN].tolist():
            plans = [(one.time, places(one.latents)) for one in walked.imagined[row]]
            shown.append(_episode(result, episodes, walked, row, plans, float(distances[row]), success_px))
            if len(written) < gifs:
                path = folder / f"{result.protocol}-{episodes.numbers[row]}.gif"
                write_gif(path, episodes.rows(slice(row, row + 1)), walked.path[row], plans)
                written.append(path)
    here = File(__file__).parent
    script = (here / "page.js").read_text(encoding="utf-8")
    # Inside of a script element `<` alone could end it.
    data = json.dumps([one["data"] for one in shown]).replace("<", "\\u003c")
    page = (
        templates(here)
        .get_template("page.html")
        .render(
            title=f"Planning: {folder.resolve().name}",
            subtitle=f"{result.planner.method}, cost {result.planner.cost}, seed {result.seed}",
            side=WORLD.size,
            theme=Markup(THEME),
            episodes=shown,
            tables=[table(one) for one, _, _ in walks],
            data=Markup(data),
            policy=policy(script),
            script=Markup(script),
        )
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
    return [folder / PAGE, *written]


def _episode(
    result: Planning,
    episodes: Episodes,
    walked: Walk,
    row: int,
    plans: Sequence[tuple[int, Float64]],
    distance: float,
    success_px: float,
) -> dict[str, Any]:
    """One episode for the page: its little picture, its words, and what the animation needs."""
    which = slice(row, row + 1)
    solid = rectangles(render_walls(episodes.wall_x[which], episodes.door_y[which])[0])
    failed = distance >= success_px
    words = f"{result.protocol} {episodes.numbers[row]}, {'failed' if failed else 'arrived'}, {distance:.2f} px off"
    path = _rounded(walked.path[row])
    imagined = [Path(_rounded(plans[0][1]), "var(--series-2)", 0.6)] if plans else []
    drawn = room(
        (WORLD.size, WORLD.size), solid, [Path(path, "var(--series-1)"), *imagined,
        Path([_rounded(episodes.goals[which])[0]], "var(--series-3)")], words,
    )  # fmt: skip
    data = {
        "words": words,
        "solid": solid,
        "goal": _rounded(episodes.goals[which])[0],
        "success_px": success_px,
        "path": path,
        "plans": [{"time": time, "path": _rounded(places)} for time, places in plans],
    }
    return {"room": drawn, "words": words, "failed": failed, "data": data}


def _rounded(path: Float32 | Float64) -> list[tuple[float, float]]:
    """A path [T, 2] to hundredths of a pixel."""
    return [(round(float(x), 2), round(float(y), 2)) for x, y in path]


def write_gif(file: File, episode: Episodes, path: Float32, plans: Sequence[tuple[int, Float64]]) -> None:
    """An episode of one row as a GIF: the room, the goal, the path [T, 2] so far and the present plan."""
    count = len(path)
    walls = np.repeat(episode.wall_x, count), np.repeat(episode.door_y, count)
    images = []
    for time, frame in enumerate(rgb_frames(path, *walls)):
        image = Image.fromarray(frame).resize((WORLD.size * SCALE, WORLD.size * SCALE), Image.Resampling.NEAREST)
        pen = ImageDraw.Draw(image)
        present = [places for at, places in plans if at <= time]
        if present and len(present[-1]) > 1:
            pen.line(_on_screen(present[-1]), fill=DREAM, width=2)
        if time > 0:
            pen.line(_on_screen(path[: time + 1]), fill=INK, width=2)
        ((x, y),) = _on_screen(episode.goals)
        pen.ellipse((x - SCALE, y - SCALE, x + SCALE, y + SCALE), outline=GOAL, width=2)
        images.append(image)
    images[0].save(file, save_all=True, append_images=images[1:], duration=FRAME_MS, loop=0)


def _on_screen(path: Any) -> list[tuple[float, float]]:
    return [((float(x) + 0.5) * SCALE, (float(y) + 0.5) * SCALE) for x, y in path]
