"""How far latents are from collapse: their spread in every dimension and along every principal axis."""

from typing import NamedTuple

import torch
from torch import Tensor


class Spectrum(NamedTuple):
    """Standard deviations of latents in D dimensions, float64, on the CPU; and what they amount to."""

    std: Tensor  # [D], per dimension, ascending
    singular_values: Tensor  # [D], of the centred latents over sqrt(N - 1), descending
    rank: float  # effective rank, 1 to D: exp of the entropy of these singular values' shares
    rankme: float  # the same of the latents as they are, not centred
    size: float  # root mean square of the latents' elements


def spectrum(latents: Tensor) -> Spectrum:
    """The spectrum of latents [N, D], N >= 2. Collapsed latents have an effective rank near 1, whitened ones D.

    Synchronises with the device. Source: Roy, Vetterli, The effective rank, EUSIPCO 2007; Garrido et al., RankMe,
    arXiv:2210.02885, which does not centre.
    """
    latents = latents.detach().to(torch.float64)
    count, dim = latents.shape
    mean = latents.mean(dim=0)
    centred = latents - mean
    covariance = (centred.T @ centred / (count - 1)).cpu()
    moments = covariance * (count - 1) + count * torch.outer(mean, mean).cpu()
    singular_values = _singular_values(covariance)
    return Spectrum(
        covariance.diagonal().clamp_min(0).sqrt().sort().values,
        singular_values,
        _rank(singular_values),
        _rank(_singular_values(moments)),
        float((moments.trace() / (count * dim)).sqrt()),
    )


def _singular_values(squared: Tensor) -> Tensor:
    """The roots of a positive matrix's eigenvalues, descending; those that are rounding alone are 0."""
    values: Tensor = torch.linalg.eigvalsh(squared).flip(0)
    least = values[0] * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > least, values, 0.0).sqrt()


def _rank(singular_values: Tensor) -> float:
    shares = singular_values / singular_values.sum()
    # States that do not vary at all have no shares; the entropy of 0 is 0.
    return float(torch.special.entr(shares.nan_to_num()).sum().exp())
