"""The training step on RGB frames of 224 x 224 pixels with a background that stands still, sparse and dense.

Two rooms as stable-worldmodel draws them: black walls on a white floor and a red Gaussian that differs from the floor
as far as 41 pixels from its middle, so that windows of 83 x 83 pixels hold every frame's difference. Both are the
same model on the same batch with the same kernels; losses and gradients have to agree before anything is timed.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import jepa_fast as jf
from jepa_fast.backends import choose_kernels
from jepa_fast.config import Group, JEPAConfig
from jepa_fast.data.host import gather, group_bases
from jepa_fast.models.jepa import build_jepa
from jepa_fast.objectives.objective import Execution

SIDE, FRAMES, TRAJECTORIES, SIGMA, SPEED = 224, 9, 16, 7.0, 5.0
# Trajectories of a step, by the stem's stride: as many as keep the dense step within seconds.
BATCHES = {1: 4, 2: 16}
WEIGHTS = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}
Episode = tuple[NDArray[np.uint8], NDArray[np.float32]]


def floor() -> NDArray[np.uint8]:
    image = np.full((SIDE, SIDE), 255, np.uint8)
    image[:, 107:118] = image[10:14] = image[SIDE - 14 : SIDE - 10] = 0
    image[:, 10:14] = image[:, SIDE - 14 : SIDE - 10] = 0
    image[35:64, 107:118] = 255
    return np.stack([image] * 3)


def episodes(count: int) -> Iterator[Episode]:
    random, base = np.random.default_rng(0), floor().astype(np.float32)
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    red = np.array([255, 0, 0], np.float32)[:, None, None]
    for _ in range(count):
        actions = random.uniform(-1, 1, (FRAMES - 1, 2)).astype(np.float32)
        start = random.uniform(40, 184, (1, 2))
        frames = []
        for x, y in np.cumsum(np.concatenate([start, SPEED * actions]), axis=0):
            distance = (columns - np.float32(x)) ** 2 + (rows - np.float32(y)) ** 2
            alpha = np.exp(-distance / np.float32(2 * SIGMA**2))
            frames.append((base * (1 - alpha / alpha.max()) + red * (alpha / alpha.max())).astype(np.uint8))
        yield np.stack(frames), actions


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return jf.pack(episodes(TRAJECTORIES), tmp_path_factory.mktemp("rgb") / "train", workers=1).split


class Step:
    """A model and its optimiser on one batch."""

    def __init__(self, split, mode: str, device: str, stride: int) -> None:
        torch.manual_seed(0)
        config = JEPAConfig(groups=(Group("frames", 3),), stride=stride, white=255.0, dropout=0.0)
        self.model = build_jepa(config, jf.VICReg(), choose_kernels("auto", device, config.dim)).to(device)
        self.encode = self.model.batch_encoder(split.spec, group_bases(split, torch.device(device)), mode)
        self.batch = gather(split, np.arange(BATCHES[stride])).to(torch.device(device))
        self.weights = {name: torch.tensor(weight, device=device) for name, weight in WEIGHTS.items()}
        self.loss = self.model.objective.bind(self.model, Execution(kernels=self.model.kernels))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=True)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """The loss, and all gradients as one vector."""
        self.optimizer.zero_grad()
        clock = self.model.dropout_clock
        total = self.loss(self.encode(self.batch, clock), self.batch.actions, clock, self.weights)[0].total
        total.backward()
        return total.detach(), torch.cat([one.grad.flatten() for one in self.model.parameters()])

    def __call__(self) -> None:
        """Forward, backward, clip, Adam."""
        self.gradients()
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimizer.step()


@pytest.mark.parametrize("candidate", ["jepa_fast", "dense"])
@pytest.mark.parametrize("stride", BATCHES)
def bench_rgb_step(benchmark, split, device, candidate: str, stride: int) -> None:
    benchmark.group = f"step, RGB {SIDE} x {SIDE}, stride {stride}, batch {BATCHES[stride]} of {FRAMES} frames"
    group = split.spec.groups[0]
    assert (group.codec, group.base) == ("window", "images")
    loss, gradients = Step(split, "auto", device, stride).gradients()
    expected, truth = Step(split, "off", device, stride).gradients()
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    assert float((gradients - truth).norm()) < 1e-3 * float(truth.norm())
    step = Step(split, "auto" if candidate == "jepa_fast" else "off", device, stride)
    benchmark.extra_info["window"] = f"{group.window[0]} x {group.window[1]}"
    benchmark.pedantic(step, rounds=8 if candidate == "jepa_fast" else 3, warmup_rounds=1)
