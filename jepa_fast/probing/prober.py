"""Probes: small networks that read the agent's location off frozen latents, and the two ways they are trained.

official   the protocol of the data set's first users, under-trained on purpose: comparable between models, but it
            depends on the scale of the latents and on the size of the probe set.
converged   standardised latents, a larger learning rate, a tenth of the trajectories held out and the best epoch kept:
            what the latents hold, whatever their scale.
"""

import copy
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jepa_fast.errors import InputError
from jepa_fast.kernels.probe_train import join_probe, probe_train, split_probe
from jepa_fast.probing.rollouts import Rollouts
from jepa_fast.progress import Progress

# Location statistics of the original data set, in pixels; fixed, so that scores stay comparable.
LOCATION_MEAN = (31.5863, 32.0618)
LOCATION_STD = (16.1025, 16.1353)

HIDDEN = 256
BATCH = 64  # trajectories
LONG = 30  # trajectories of more steps train on this many random ones

OFFICIAL_EPOCHS = 20
OFFICIAL_LEARNING_RATE = 2e-4 * BATCH / 256

CONVERGED_EPOCHS = 40
CONVERGED_LEARNING_RATE = 1e-3


class Probe(NamedTuple):
    """A trained probe: `network` on (latents - mean) / std gives normalised locations."""

    network: nn.Sequential
    mean: Tensor  # [D]
    std: Tensor  # [D]

    @torch.no_grad()
    def locate(self, latents: Tensor) -> Tensor:
        """Locations [..., 2] in pixels, read off latents [..., D]."""
        located: Tensor = self.network((latents - self.mean) / self.std)
        return located * torch.tensor(LOCATION_STD) + torch.tensor(LOCATION_MEAN)

    def squared_errors(self, rollouts: Rollouts) -> Tensor:
        """Squared error in pixels^2, mean over both axes: [N, T]."""
        return (self.locate(rollouts.latents) - rollouts.locations).square().mean(dim=2)


def official_probe(rollouts: Rollouts, seed: int) -> Probe:
    """Adam at 5e-5 with 10% linear warm-up, then cosine to 0.001 of it; batch 64, last one dropped, 20 epochs."""
    dim = rollouts.latents.shape[2]
    generator = torch.Generator().manual_seed(seed)
    network = _network(dim, seed)
    schedule = OFFICIAL_EPOCHS, OFFICIAL_LEARNING_RATE, warmup_cosine
    for _ in _train(network, rollouts, *schedule, generator, "official probe"):
        pass
    return Probe(network, torch.zeros(dim), torch.ones(dim))


def warmup_cosine(step: int, steps: int) -> float:
    """Factor on the learning rate at `step` of `steps`: linear over the first tenth, then cosine from 1 to 0.001."""
    warmup = steps // 10
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * progress))


def cosine(step: int, steps: int) -> float:
    """Factor on the learning rate at `step` of `steps`: cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def converged_probe(rollouts: Rollouts, seed: int) -> Probe:
    """Adam at 1e-3 with cosine to zero over 40 epochs on standardised latents; the epoch best on held-out is kept."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rollouts.latents), generator=generator)
    held = order[: max(1, len(order) // 10)]
    rest = order[len(held) :]
    std, mean = torch.std_mean(rollouts.latents[rest].flatten(0, 1), dim=0)
    probe = Probe(_network(len(mean), seed), mean, std.clamp_min(1e-6))
    train = Rollouts((rollouts.latents[rest] - probe.mean) / probe.std, rollouts.locations[rest])
    held_out = Rollouts(rollouts.latents[held], rollouts.locations[held])
    best, weights = math.inf, copy.deepcopy(probe.network.state_dict())
    schedule = CONVERGED_EPOCHS, CONVERGED_LEARNING_RATE, cosine
    for _ in _train(probe.network, train, *schedule, generator, "converged probe"):
        error = probe.squared_errors(held_out).mean().item()
        if error < best:
            best, weights = error, copy.deepcopy(probe.network.state_dict())
    probe.network.load_state_dict(weights)
    return probe


def _network(dim: int, seed: int) -> nn.Sequential:
    """D -> 256 -> 2 with ReLU, initialised by PyTorch's default from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))


def _train(
    network: nn.Sequential,
    rollouts: Rollouts,
    epochs: int,
    learning_rate: float,
    schedule: Callable[[int, int], float],
    generator: torch.Generator,
    name: str,
) -> Iterator[int]:
    """Fit `network` from latents to normalised locations with Adam and MSE; yields the epoch after each."""
    targets = (rollouts.locations - torch.tensor(LOCATION_MEAN)) / torch.tensor(LOCATION_STD)
    count, length, _ = targets.shape
    batches = count // BATCH
    if batches == 0:
        raise InputError(f"probe set: got {count} trajectories to train a probe on, expected at least {BATCH}")
    dim, parameters = rollouts.latents.shape[2], join_probe(*(own.detach() for own in network.parameters()))
    state = torch.stack([parameters, torch.zeros_like(parameters), torch.zeros_like(parameters)])
    with Progress(name, epochs * batches, "steps") as progress:
        for epoch in range(epochs):
            rows = torch.randperm(count, generator=generator)[: batches * BATCH].view(batches, BATCH)
            steps: Tensor | None = None
            if length > LONG:
                # Each trajectory its own random steps, without repetition.
                drawn = [torch.rand(BATCH, length, generator=generator).argsort(dim=1)[:, :LONG] for _ in rows]
                steps = torch.stack(drawn)
            first = epoch * batches
            rates = [learning_rate * schedule(first + batch, epochs * batches) for batch in range(batches)]
            state = probe_train(
                rollouts.latents,
                targets,
                rows,
                steps,
                torch.tensor(rates, dtype=torch.float64),
                state,
                HIDDEN,
                first + 1,
            )
            with torch.no_grad():
                for own, part in zip(network.parameters(), split_probe(state[0], dim, HIDDEN), strict=True):
                    own.copy_(part)
            progress.update(batches)
            yield epoch
