"""Train on trajectories of your own: `python examples/own_data.py`, in less than a minute on two cores.

A square drifts over a fixed picture, and actions push it. Put your own in the place of `episodes`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import jepa_fast as jf

STEPS, SIZE, SIDE = 16, 48, 6
# Trajectories that the probe is fitted to, and those it is tested on.
HALVES = (slice(0, 128), slice(128, 256))


def episodes(count: int, seed: int) -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    """Frames uint8 [T, 3, H, W], actions float32 [T - 1, 2], and for the probe below where the square is, [T, 2]."""
    picture = np.random.default_rng(0).integers(0, 60, (3, SIZE, SIZE), np.uint8)
    rng = np.random.default_rng(seed)
    for _ in range(count):
        actions = rng.uniform(-4, 4, (STEPS, 2)).astype(np.float32)
        position = rng.uniform(8, SIZE - SIDE - 8, 2)
        places = [position := np.clip(position + push, 0, SIZE - SIDE) for push in [np.zeros(2), *actions]]
        frames = np.repeat(picture[None], STEPS + 1, axis=0)
        for frame, (row, column) in zip(frames, np.rint(places).astype(int), strict=True):
            frame[:, row : row + SIDE, column : column + SIDE] = 255
        yield frames, actions, {"place": np.array(places, np.float32)}


def encoder(dim: int) -> nn.Module:
    """Frames [N, 3, 48, 48] to latents [N, D]."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=3), nn.GELU(),
        nn.Conv2d(16, 32, 3, stride=2), nn.GELU(),
        nn.Flatten(), nn.Linear(32 * 7 * 7, dim), nn.LayerNorm(dim),
    )  # fmt: skip


def main(folder: Path = Path("runs/own_data"), count: int = 1280, steps: int = 200, dim: int = 64) -> float:
    """Pack, train, and say how well a linear probe finds the square in predicted latents: its error in px^2."""
    data = jf.pack(episodes(count, seed=1), folder / "data" / "train", scale=1 / 255)
    held_out = jf.pack(episodes(256, seed=2), folder / "data" / "val", scale=1 / 255)
    model = jf.JEPA(encoder=encoder(dim), predictor=jf.MLPPredictor(dim=dim, action_dim=2), objective=jf.VICReg())
    run = jf.fit(model, data, steps=steps, out=folder / "run")

    trajectories = [held_out[index] for index in range(len(held_out))]
    first_frames, actions, places = (
        torch.stack(parts)
        for parts in zip(*((one.frames[0], one.actions, one.targets["place"]) for one in trajectories), strict=True)
    )
    with torch.no_grad():
        latents = run.model.cpu().rollout(first_frames, actions)  # from frame 0 and the actions alone
    fitted, tested = (torch.cat([latents, torch.ones_like(latents[..., :1])], dim=2)[half] for half in HALVES)
    weights = torch.linalg.lstsq(fitted.flatten(0, 1), places[HALVES[0]].flatten(0, 1)).solution
    error = float((tested @ weights - places[HALVES[1]]).square().mean())
    print(f"squared error {error:.1f} px², of a constant guess {float(places[HALVES[1]].var()):.1f} px²")
    return error


if __name__ == "__main__":
    main()
