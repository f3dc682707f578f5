"""Where in an image something is: expected coordinates under a softmax over its pixels.

    p = sum_q softmax(logits / temperature)_q (x_q, y_q)

Coordinates are (x, y) in pixels, the origin in the centre of the top left pixel. Differentiable, equivariant to shifts
of what stands out, and without parameters.

Source: Levine et al., End-to-End Training of Deep Visuomotor Policies, arXiv:1504.00702.
"""

import torch
from torch import Tensor


def soft_argmax(logits: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """Expected coordinates [..., 2] (x, y) in pixels of logits [..., H, W]; float32, or float64 for float64 logits.

    Args:
        logits: of any floating dtype; under autocast too, sums are taken in float32.
        temperature: positive; a tensor is broadcast against the leading axes and takes a gradient.
    """
    with torch.autocast(logits.device.type, enabled=False):
        scaled = _scaled(logits, temperature)
        weights = scaled.flatten(-2).softmax(dim=-1).reshape(scaled.shape)
        means = []
        for profile in (weights.sum(dim=-2), weights.sum(dim=-1)):
            # From the middle, which halves the rounding; and no matrix product, which may be narrower.
            middle = (profile.shape[-1] - 1) / 2
            places = torch.arange(profile.shape[-1], device=profile.device).to(profile) - middle
            means.append((profile * places).sum(dim=-1) + middle)
        return torch.stack(means, dim=-1)


def soft_argmax_of_windows(
    logits: Tensor, corners: Tensor, size: tuple[int, int], temperature: Tensor | float = 1.0
) -> Tensor:
    """What `soft_argmax` gives for frames whose logits are 0 outside of one window, from the windows alone.

    The same function with the same gradients, in sums over the windows: from the frame's centre, the coordinates of all
    pixels add up to nothing, so those outside the window add up to minus those inside.

    Args:
        logits: [..., h, w]; what of a window lies outside of its frame is left out.
        corners: [..., 2] integers, (row, column) of each window's top left pixel in its frame; may be negative.
        size: (H, W) of the frames.
        temperature: as in `soft_argmax`.
    """
    with torch.autocast(logits.device.type, enabled=False):
        scaled = _scaled(logits, temperature)
        places, inside = [], []
        for axis in range(2):
            offsets = torch.arange(logits.shape[axis - 2], device=logits.device)
            place = corners[..., axis, None].to(torch.int64) + offsets
            places.append(place.to(scaled) - (size[axis] - 1) / 2)
            inside.append((place >= 0) & (place < size[axis]))
        mask = inside[0][..., :, None] & inside[1][..., None, :]
        # Masked before the exponential too: where that overflows, a gradient of nothing would be NaN.
        scaled = torch.where(mask, scaled, 0.0)
        # The largest logit, one outside included, is taken off.
        largest = scaled.detach().amax(dim=(-2, -1)).clamp_min(0)[..., None, None]
        weights = torch.where(mask, (scaled - largest).exp(), 0.0)
        outside = (-largest).exp()
        total = weights.sum(dim=(-2, -1)) + outside[..., 0, 0] * (size[0] * size[1] - mask.sum(dim=(-2, -1)))
        excess = torch.where(mask, weights - outside, 0.0)
        y, x = ((excess.sum(dim=-1 - axis) * place).sum(dim=-1) / total for axis, place in enumerate(places))
        return torch.stack([x + (size[1] - 1) / 2, y + (size[0] - 1) / 2], dim=-1)


def _scaled(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Logits over the temperature, in float32 or wider."""
    wide = logits if logits.dtype == torch.float64 else logits.to(torch.float32)
    return wide / (temperature[..., None, None] if isinstance(temperature, Tensor) else temperature)
