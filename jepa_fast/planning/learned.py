"""A learned distance between latents: how many actions apart trajectories have them.

    distance   d(z, g) = |phi(z) - phi(g)|, phi a network with one hidden layer
    fitted     mean over pairs of one trajectory, k frames apart, of (d(z_t, z_t+k) / k - 1)^2
               + mean over pairs of two trajectories of max(0, 1 - d / T)^2, T the frames of a trajectory

Latents are those of a trained model and stay as they are. A trajectory says of two of its frames that so many actions
lead from one to the other; frames of two trajectories are only taken to be no neighbours. Farther than T no pair was
seen: there phi extrapolates.

Source, of distances learned from times: Hartikainen et al., Dynamical Distance Learning for Semi-Supervised and
Unsupervised Skill Discovery, arXiv:1907.08225; of distances between embeddings: Yang et al., Plan2Vec,
arXiv:2005.03648.
"""

import torch
from torch import Tensor, nn

from jepa_fast.data.host import evaluation_batches, group_bases
from jepa_fast.data.shards import Split
from jepa_fast.errors import require
from jepa_fast.models.model import Model

TRAJECTORIES, STEPS, BATCH = 4096, 1500, 256
HIDDEN, SIZE = 128, 16
LEARNING_RATE = 3e-3


class LearnedDistance(nn.Module):
    """Phi: latents [..., D] to points [..., `size`], as far apart as there are actions between them."""

    def __init__(self, dim: int, hidden: int = HIDDEN, size: int = SIZE) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, size))

    def forward(self, latents: Tensor) -> Tensor:
        """The points of latents."""
        points: Tensor = self.phi(latents)
        return points


def distance_loss(points: Tensor, first: Tensor, second: Tensor, others: Tensor) -> Tensor:
    """The module's loss.

    Args:
        points: [B, T, size] of B trajectories.
        first, second: int64 [B], a frame of each trajectory and a later one.
        others: int64 [B], a permutation of the trajectories: whose second frame the first is held against.
    """
    rows = torch.arange(len(points), device=points.device)
    here, there = points[rows, first], points[rows, second]
    apart = _length(here - there) / (second - first)
    strange = _length(here - there[others]) / points.shape[1]
    return (apart - 1).square().mean() + (1 - strange).clamp_min(0).square().mean()


def _length(gap: Tensor) -> Tensor:
    # A root has no gradient at zero.
    return (gap.square().sum(dim=-1) + 1e-12).sqrt()


def fit_distance(
    model: Model, split: Split, seed: int = 0, trajectories: int = TRAJECTORIES, steps: int = STEPS
) -> LearnedDistance:
    """The distance that the first trajectories of a split teach, on the model's device.

    Raises:
        InputError: there are not two trajectories of two frames.
    """
    latents = _latents(model, split, trajectories)
    count, length, dim = latents.shape
    require(count > 1 and length > 1, "data", f"{count} trajectories of {length} frames", "two of two frames, or more")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        distance = LearnedDistance(dim).to(latents.device)
    optimiser = torch.optim.Adam(distance.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randperm(count, generator=generator)[:BATCH]
            first = torch.randint(0, length - 1, (len(rows),), generator=generator)
            second = first + 1 + (torch.rand(len(rows), generator=generator) * (length - 1 - first)).long()
            others = torch.roll(torch.arange(len(rows)), 1)
            points = distance(latents[rows.to(latents.device)])
            loss = distance_loss(points, *(each.to(points.device) for each in (first, second, others)))
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
    return distance.eval().requires_grad_(False)


@torch.no_grad()
def _latents(model: Model, split: Split, most: int) -> Tensor:
    """Of the first trajectories, [N, T, D]."""
    device = next(model.parameters()).device
    encode = model.batch_encoder(split.spec, group_bases(split, device))
    found: list[Tensor] = []
    for batch in evaluation_batches(split, BATCH):
        found.append(model.latents(encode(batch.to(device), model.dropout_clock)).float().clone())
        if len(found) * BATCH >= most:
            break
    return torch.cat(found)[:most] if found else torch.zeros(0, 0, 1, device=device)
