"""Training steps to compare: the loop as it was published, a well-tuned plain one, and ours, from the same weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.backends import choose_kernels
from jepa_fast.config import Kernels, VICRegConfig
from jepa_fast.data.batches import Batch, expand_frames, expand_group, to_values
from jepa_fast.data.host import gather, group_bases
from jepa_fast.data.packing import pack
from jepa_fast.data.shards import Split, open_split
from jepa_fast.data.two_rooms.source import TwoRoomsSource
from jepa_fast.models.convnext import POOLED_SIDE, Branch, ConvNeXtBlock
from jepa_fast.models.jepa import build_jepa
from jepa_fast.models.sparse_encoder import SparseEncoder
from jepa_fast.objectives.objective import Execution
from jepa_fast.objectives.vicreg import VICReg

WEIGHTS = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}
CLIP_NORM = 0.5
TRAJECTORIES = 512
DEVICE: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"


class Contender:
    """A model, its optimiser, and a way to compute the energy of one batch; `step` is a whole training step."""

    # Terms that the progress bar reads back in every step.
    read_back = False
    kernels: Kernels = choose_kernels("auto", DEVICE, 128)

    def __init__(self, split: Split, batch: Batch, compiled: bool = False) -> None:
        torch.manual_seed(0)
        self.model = build_jepa(kernels=self.kernels).to(DEVICE)
        self.batch, self.spec = batch, split.spec
        self.weights = {name: torch.tensor(weight, device=DEVICE) for name, weight in WEIGHTS.items()}
        bases = group_bases(split, torch.device(DEVICE))
        self.batch_encoder = SparseEncoder(self.model.encoder, self.spec, bases)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=5e-4, weight_decay=3e-4, fused=True)
        self.forward: Callable[[], tuple[Tensor, ...]] = self.energy
        if compiled:
            self.forward = torch.compile(self.energy, dynamic=False)

    def encode(self) -> Tensor:
        """States [B, T, D] of the batch."""
        return self.batch_encoder(self.batch, self.model.dropout_clock)

    def energy(self) -> tuple[Tensor, ...]:
        """The energy and its three terms."""
        encoded = self.encode()
        predicted = self.model.predictor(encoded[:, 0], self.batch.actions, self.model.dropout_clock)
        loss = VICReg(VICRegConfig()).loss(Execution(kernels=self.kernels), DEVICE)(
            predicted, encoded[:, 1:], self.weights, None
        )
        return loss.total, *loss.terms.values()

    def step(self) -> None:
        """Forward, backward, clip, Adam."""
        self.model.dropout_clock[1] += 1
        self.optimizer.zero_grad()
        terms = self.forward()
        terms[0].backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        if self.read_back:
            for term in terms:
                term.item()


class Pieces(Contender):
    """Ours, with every op of ours in plain PyTorch: what the compiled kernels are worth."""

    kernels = "reference"


class Plain(Contender):
    """All frames in one call, the wall once per trajectory, channels last, fused Adam: no window, no op of ours."""

    kernels = "reference"

    def encode(self) -> Tensor:
        """States [B, T, D] of the batch."""
        agent, wall = self.batch.groups
        count, frames = len(self.batch.indices), self.batch.length
        agents = to_values(expand_group(agent, self.spec.groups[0], self.spec, frames, None).flatten(0, 1), self.spec)
        latents = [self.model.encoder.agent(agents).view(count, frames, -1)]
        latents.append(self.model.encoder.wall(to_values(wall.pixels, self.spec))[:, None])
        return self.model.encoder.combine(latents, self.model.dropout_clock)


class Published(Contender):
    """float32, eager, one encoder call per time step on both channels of every frame, NCHW, lists that are stacked."""

    read_back = True
    kernels = "reference"

    def __init__(self, split: Split, batch: Batch) -> None:
        super().__init__(split, batch)
        self.frames = expand_frames(batch, self.spec)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=5e-4, weight_decay=3e-4)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 10_000)

    def energy(self) -> tuple[Tensor, ...]:
        """The energy and its three terms."""
        frames, actions, dropout = self.frames, self.batch.actions, self.model.predictor.dropout
        encoded = [self._encode(frames[:, t]) for t in range(frames.shape[1])]
        state, predicted = encoded[0], []
        for t in range(actions.shape[1]):
            mask = F.dropout(state.new_ones(len(state), 4 * state.shape[1]), dropout) if self.model.training else None
            state = self.model.predictor.step(state, actions[:, t], mask)
            predicted.append(state)
        rows = torch.stack(predicted, dim=1)
        invariance = F.mse_loss(rows, torch.stack(encoded[1:], dim=1))
        rows = rows.reshape(-1, rows.shape[-1])
        variance = F.relu(1 - torch.sqrt(rows.var(dim=0) + 1e-4)).mean()
        centred = rows - rows.mean(dim=0)
        matrix = centred.T @ centred / (len(rows) - 1)
        covariance = matrix.masked_fill(torch.eye(len(matrix), dtype=torch.bool, device=matrix.device), 0.0).pow(
            2
        ).sum() / len(matrix)
        terms = invariance, variance, covariance
        total = sum(weight * term for weight, term in zip(WEIGHTS.values(), terms, strict=True))
        return total, *terms

    def step(self) -> None:
        """Forward, backward, clip, Adam, schedule."""
        super().step()
        self.schedule.step()

    def _encode(self, images: Tensor) -> Tensor:
        """States [B, D] of [B, 2, H, W]."""
        encoder = self.model.encoder
        agent, wall = self._branch(encoder.agent, images[:, :1]), self._branch(encoder.wall, images[:, 1:])
        if self.model.training:
            agent, wall = F.dropout(agent, encoder.dropout), F.dropout(wall, encoder.dropout)
        return agent + wall

    def _branch(self, branch: Branch, images: Tensor) -> Tensor:
        x = branch.stem(images)
        for block in branch.blocks:
            assert isinstance(block, ConvNeXtBlock)
            z = block.norm(block.dwconv(x).permute(0, 2, 3, 1))
            x = x + block.project(F.gelu(block.expand(z))).permute(0, 3, 1, 2)
        return branch.head(F.adaptive_avg_pool2d(x, POOLED_SIDE))


CONTENDERS: dict[str, Callable[[Split, Batch], Contender]] = {
    "published": Published,
    "plain": Plain,
    "compiled": lambda split, batch: Plain(split, batch, compiled=True),
    "ours_pieces": Pieces,
    "ours": Contender,
    "ours_compiled": lambda split, batch: Contender(split, batch, compiled=True),
}


def packed_split(folder: Path) -> Split:
    """Two-room trajectories, packed as for training."""
    pack(TwoRoomsSource("train", TRAJECTORIES, seed=0), folder)
    return open_split(folder)


def first_batch(split: Split, size: int) -> Batch:
    """The first trajectories of a split."""
    return gather(split, np.arange(size)).to(torch.device(DEVICE))
