"""How far states are from collapse: their standard deviation in every dimension and along every principal axis."""

from typing import NamedTuple

import torch
from torch import Tensor


class Spectrum(NamedTuple):
    """Standard deviations of states in D dimensions, float64, on the CPU."""

    std: Tensor  # [D], per dimension, ascending
    singular_values: Tensor  # [D], of the centred states over sqrt(N - 1), descending
    rank: float  # effective rank, 1 to D: exp of the entropy of the singular values' shares


def spectrum(states: Tensor) -> Spectrum:
    """The spectrum of states [N, D], N >= 2. Collapsed states have an effective rank near 1, whitened ones D.

    Synchronises with the device. Source of the rank: Garrido et al., RankMe, arXiv:2210.02885.
    """
    covariance = torch.cov(states.detach().to(torch.float64).T)
    covariance = covariance.reshape(states.shape[1], states.shape[1]).cpu()
    singular_values = torch.linalg.eigvalsh(covariance).clamp_min(0).sqrt().flip(0)
    shares = singular_values / singular_values.sum()
    # States that do not vary at all have no shares; the entropy of 0 is 0.
    rank = float(torch.special.entr(shares.nan_to_num()).sum().exp())
    return Spectrum(covariance.diagonal().clamp_min(0).sqrt().sort().values, singular_values, rank)
