"""Pack arrays of your own, train and evaluate: `python examples/own_data.py`, in about a minute on two cores."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

import jepa_fast as jf

SIDE, FRAMES = 32, 12
Episode = tuple[NDArray[np.uint8], NDArray[np.float32], dict[str, NDArray[np.float32]]]


def episodes(count: int, seed: int) -> Iterator[Episode]:
    """A square before a picture; the three numbers of an action move it and change its colour."""
    picture = np.random.default_rng(0).integers(0, 60, (SIDE, SIDE, 3), np.uint8)
    random = np.random.default_rng(seed)
    for _ in range(count):
        actions = random.normal(0, (2, 2, 0.1), (FRAMES - 1, 3)).astype(np.float32)
        state = np.cumsum(np.concatenate([[(*random.uniform(8, 18, 2), 0.5)], actions]), axis=0)
        state = np.clip(state, 0, (SIDE - 6, SIDE - 6, 1)).astype(np.float32)
        frames = np.repeat(picture[None], FRAMES, axis=0)
        for frame, (x, y, colour) in zip(frames, state, strict=True):
            frame[round(y) : round(y) + 6, round(x) : round(x) + 6] = 255 * np.array([colour, 1 - colour, 0.5])
        yield frames, actions, {"place": state[:, :2], "colour": state[:, 2:]}


def encoder(dim: int) -> nn.Module:
    """Frames [N, 3, 32, 32] to latents [N, D]."""
    patches, block = nn.Conv2d(3, 16, 4, stride=4), jf.nn.ConvNeXtBlock(16)
    return nn.Sequential(patches, block, nn.Flatten(), nn.Linear(16 * 8 * 8, dim), nn.LayerNorm(dim))


def explained(latents: Tensor, values: Tensor) -> float:
    """R^2 of a linear regression from latents to values, fitted on one half of the episodes, scored on the other."""
    inputs = torch.cat([latents, torch.ones(*latents.shape[:2], 1)], dim=2)
    (inputs, unseen), (known, expected) = inputs.double().chunk(2), values.double().chunk(2)
    weights = torch.linalg.lstsq(inputs.flatten(0, 1), known.flatten(0, 1)).solution
    error = (unseen @ weights - expected).square().sum()
    return float(1 - error / (expected - expected.mean(dim=(0, 1))).square().sum())


def main(folder: Path = Path("runs/own_data"), count: int = 2000, steps: int = 400, dim: int = 64) -> dict[str, Any]:
    """Pack, train, and see what latents that were predicted from the first frame alone know of later ones."""
    data = jf.pack(episodes(count, seed=0), folder / "data" / "train", scale=1 / 255, workers=1)
    unseen = jf.pack(episodes(512, seed=1), folder / "data" / "unseen", scale=1 / 255, workers=1)
    torch.manual_seed(0)
    model = jf.JEPA(encoder=encoder(dim), predictor=jf.MLPPredictor(dim=dim, action_dim=3), objective=jf.VICReg())
    run = jf.fit(model, data, steps=steps, out=folder / "run")
    frames, actions, targets = next(iter(DataLoader(unseen, batch_size=len(unseen))))
    with torch.no_grad():
        latents = run.model.rollout(frames[:, 0], actions)
    found = {name: explained(latents, values) for name, values in targets.items()}
    print(", ".join(f"R^2 of {name}: {share:.2f}" for name, share in found.items()))
    return found


if __name__ == "__main__":
    main()
