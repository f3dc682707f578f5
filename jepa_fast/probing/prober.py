"""Probes: small networks that read the agent's location off frozen latents, and the two ways they are trained.

official   the protocol of the data set's first users, under-trained on purpose: comparable between models, but it
            depends on the scale of the latents and on the size of the probe set.
converged   standardised latents, a larger learning rate, a tenth of the trajectories held out and the best epoch kept:
            what the latents hold, whatever their scale.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jepa_fast.errors import InputError
from jepa_fast.kernels.probe_train import join_probe, probe_outputs, probe_train, split_probe
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
        standardised = (latents - self.mean).div_(self.std).flatten(0, -2)
        located = _pixels(probe_outputs(standardised, _joined(self.network), HIDDEN))
        return located.view(*latents.shape[:-1], 2)

    def squared_errors(self, rollouts: Rollouts) -> Tensor:
        """Squared error in pixels^2, mean over both axes: [N, T]."""
        return (self.locate(rollouts.latents) - rollouts.locations).square().mean(dim=2)


def official_probe(rollouts: Rollouts, seed: int) -> Probe:
    """Adam at 5e-5 with 10% linear warm-up, then cosine to 0.001 of it; batch 64, last one dropped, 20 epochs."""
    dim = rollouts.latents.shape[2]
    generator = torch.Generator().manual_seed(seed)
    network = _network(dim, seed)
    schedule = OFFICIAL_EPOCHS, OFFICIAL_LEARNING_RATE, warmup_cosine
    *_, parameters = _train(network, rollouts, *schedule, generator, "official probe")
    return Probe(_filled(network, parameters), torch.zeros(dim), torch.ones(dim))


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
    latents = rollouts.latents[rest]
    std, mean = torch.std_mean(latents.flatten(0, 1), dim=0)
    std = std.clamp_min(1e-6)
    # In place: with a large probe set this is where the most memory is taken.
    train = Rollouts(latents.sub_(mean).div_(std), rollouts.locations[rest])
    held_out = rollouts.latents[held].sub_(mean).div_(std).flatten(0, 1)
    held_out_locations = rollouts.locations[held].flatten(0, 1)
    network = _network(len(mean), seed)
    best, kept = math.inf, _joined(network)
    schedule = CONVERGED_EPOCHS, CONVERGED_LEARNING_RATE, cosine
    for parameters in _train(network, train, *schedule, generator, "converged probe"):
        located = _pixels(probe_outputs(held_out, parameters, HIDDEN))
        error = (located - held_out_locations).square().mean().item()
        if error < best:
            best, kept = error, parameters
    return Probe(_filled(network, kept), mean, std)


def _pixels(normalised: Tensor) -> Tensor:
    """Locations [..., 2] in pixels of normalised ones."""
    return normalised * torch.tensor(LOCATION_STD) + torch.tensor(LOCATION_MEAN)


def _network(dim: int, seed: int) -> nn.Sequential:
    """D -> 256 -> 2 with ReLU, initialised by PyTorch's default from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))


def _joined(network: nn.Sequential) -> Tensor:
    """A network's parameters as one tensor [P]."""
    return join_probe(*(own.detach() for own in network.parameters()))


@torch.no_grad()
def _filled(network: nn.Sequential, parameters: Tensor) -> nn.Sequential:
    """`network` with these parameters [P]."""
    dim = next(network.parameters()).shape[1]
    for own, part in zip(network.parameters(), split_probe(parameters, dim, HIDDEN), strict=True):
        own.copy_(part)
    return network


def _train(
    network: nn.Sequential,
    rollouts: Rollouts,
    epochs: int,
    learning_rate: float,
    schedule: Callable[[int, int], float],
    generator: torch.Generator,
    name: str,
) -> Iterator[Tensor]:
    """Fit `network` from latents to normalised locations with Adam and MSE: its parameters [P] after each epoch."""
    targets = (rollouts.locations - torch.tensor(LOCATION_MEAN)) / torch.tensor(LOCATION_STD)
    count, length, _ = targets.shape
    batches = count // BATCH
    if batches == 0:
        raise InputError(f"probe set: got {count} trajectories to train a probe on, expected at least {BATCH}")
    parameters = _joined(network)
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
            progress.update(batches)
            yield state[0]
