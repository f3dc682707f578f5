"""SIGReg: how far latents are from an isotropic Gaussian, by the characteristic functions of random projections.

    phi_k(t)   mean over the N latents z of exp(i t <a_k, z>), a_k one of K random directions of length 1
    sigreg     mean over k of the integral over t from -3 to 3 of |phi_k(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt

That is the statistic of Epps and Pulley over N, with the trapezoidal rule on 17 points of [0, 3]. Among all
distributions only N(0, I) has 0 in every direction, so that latents have one scale, no correlations and no collapse.

Source: Balestriero and LeCun, LeJEPA, arXiv:2511.08544.
"""

import torch
from torch import Tensor

from jepa_fast.kernels.dropout import dropout_mask

LAST_KNOT, KNOTS = 3.0, 17
# In the numbering of `jepa_fast.kernels.dropout`, beyond any group of channels.
SITE_PROJECTIONS = 128
# Coins per number of a direction: their sum is as good as normal, so that directions are spread evenly.
COINS = 16


def directions(dim: int, count: int, clock: Tensor) -> Tensor:
    """Directions float32 [D, K] of length 1: those of the clock's seed and step, the same on every process."""
    clock = torch.cat([clock[:2], torch.zeros_like(clock[2:])])
    coins = dropout_mask((count, dim, COINS), 0.5, clock, SITE_PROJECTIONS) - 1
    sums = coins.sum(dim=2).T
    # All coins can fall so that nothing is left, in few dimensions.
    units: Tensor = sums / torch.linalg.vector_norm(sums, dim=0).clamp_min(1.0)
    return units


def sigreg(latents: Tensor, projections: Tensor) -> Tensor:
    """The statistic of latents [N, D] in directions [D, K]: a scalar."""
    knots = torch.linspace(0, LAST_KNOT, KNOTS, device=latents.device, dtype=latents.dtype)
    normal = (-knots.square() / 2).exp()
    weights = torch.full_like(knots, 2 * LAST_KNOT / (KNOTS - 1))
    weights[[0, -1]] /= 2
    angles = (latents @ projections.to(latents.dtype))[..., None] * knots  # [N, K, knots]
    gap = (angles.cos().mean(dim=0) - normal).square() + angles.sin().mean(dim=0).square()
    return (gap @ (weights * normal)).mean()
