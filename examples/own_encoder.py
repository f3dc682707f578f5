"""Train an encoder of your own: `python examples/own_encoder.py`, in less than a minute on two cores."""

from pathlib import Path

import torch
from torch import Tensor, nn

import jepa_fast as jf
from jepa_fast.generate import generate


class Encoder(nn.Module):
    """Frames [N, 2, 65, 65] to latents [N, D]; any module that gives one vector a frame does."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 16, 5, stride=4), nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2), nn.GELU(),
            nn.Flatten(), nn.Linear(32 * 7 * 7, dim), nn.LayerNorm(dim),
        )  # fmt: skip

    def forward(self, frames: Tensor) -> Tensor:
        """Two-room frames are dim, at most 0.1."""
        latents: Tensor = self.layers(10 * frames)
        return latents


def main(folder: Path = Path("runs/own_encoder"), trajectories: int = 2560, steps: int = 200, dim: int = 64) -> jf.Run:
    """Make trajectories of two rooms, train, and say how the loss fell."""
    generate(folder / "data", trajectories=trajectories, splits=("train",), workers=1)
    torch.manual_seed(0)
    model = jf.JEPA(encoder=Encoder(dim), predictor=jf.MLPPredictor(dim=dim, action_dim=2), objective=jf.VICReg())
    run = jf.fit(model, folder / "data", steps=steps, out=folder / "run")
    first, last = run.metrics[0], run.metrics[-1]
    print(f"loss {first['total']:.2f} at step {first['step']}, {last['total']:.2f} at step {last['step']}")
    return run


if __name__ == "__main__":
    main()
