"""Train with and without sparse encoding, from the same weights, batches and masks, and plot both loss curves.

    python -m research.same_loss_curve

Writes docs/images/same_loss_curve.png. A small batch keeps the plain run within minutes on a CPU.

Collapsed encoders agree whatever the arithmetic, so that their curves would prove nothing: both sides are regularised,
variance is weighted above invariance, and the spread of the latents over unseen frames is printed beside the result.
"""

import tempfile
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from jepa_fast.config import JEPAConfig, VICRegConfig
from jepa_fast.data.host import gather, group_bases
from jepa_fast.data.packing import pack
from jepa_fast.data.shards import Split, open_split
from jepa_fast.data.two_rooms.source import TwoRoomsSource
from jepa_fast.models.jepa import build_jepa
from jepa_fast.objectives.vicreg import VICReg

STEPS, BATCH, TRAJECTORIES = 300, 4, 1232
WEIGHTS = {"invariance": torch.tensor(1.0), "variance": torch.tensor(25.0), "covariance": torch.tensor(1.0)}
PROBE = np.arange(STEPS * BATCH, STEPS * BATCH + 32)
TARGET = Path(__file__).parent.parent / "docs" / "images" / "same_loss_curve.png"


def main() -> None:
    """Train twice, print how far the curves are apart, plot them."""
    with tempfile.TemporaryDirectory() as folder:
        pack(TwoRoomsSource("train", TRAJECTORIES, seed=1), Path(folder))
        split = open_split(Path(folder))
        sparse, spread = train(split, "auto")
        without, plain_spread = train(split, "off")
    gap = np.abs(sparse - without) / without
    print(
        f"relative difference: {gap[0]:.1e} at step 1, up to {gap[:100].max():.1e} by 100, {gap.max():.1e} by {STEPS}"
    )
    print(f"spread of the latents after {STEPS} steps: {spread:.6f} with sparse encoding, {plain_spread:.6f} without")
    figure, (curves, gaps) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
    curves.plot(without, label="plain encoder", lw=3, color="#bbbbbb")
    curves.plot(sparse, label="sparse encoding", lw=1, color="#d95f02")
    curves.set(xlabel="step", ylabel="loss", yscale="log", title=f"batch {BATCH}, float32, same seed and masks")
    curves.legend()
    gaps.plot(np.maximum(gap, 1e-9), lw=1, color="#7570b3")
    gaps.set(xlabel="step", ylabel="relative difference", yscale="log", title="difference between the two")
    figure.savefig(TARGET, dpi=110)


def train(split: Split, mode: Literal["auto", "off"]) -> tuple[np.ndarray, float]:
    """The energy at every step, and at the end the standard deviation of latents over frames, without dropout."""
    torch.manual_seed(0)
    model = build_jepa(JEPAConfig())
    batch_encoder = model.batch_encoder(split.spec, group_bases(split), mode)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4, weight_decay=3e-4)
    objective = VICReg(VICRegConfig(sides="both"))
    energies = []
    for step in range(STEPS):
        model.dropout_clock[1] = step
        batch = gather(split, np.arange(step * BATCH, (step + 1) * BATCH))
        encoded = batch_encoder(batch, model.dropout_clock)
        predicted = model.predictor(encoded[:, 0], batch.actions, model.dropout_clock)
        total = objective(predicted, encoded[:, 1:], WEIGHTS).total
        optimizer.zero_grad()
        torch.autograd.backward(total)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        energies.append(total.item())
    model.eval()
    with torch.no_grad():
        encoded = batch_encoder(gather(split, PROBE), model.dropout_clock)
    return np.array(energies), float(encoded.flatten(0, 1).std(dim=0).mean())


if __name__ == "__main__":
    main()
