"""What a frame shows, read from its pixels alone: the agent's centre, the borders, the wall and its door.

Nothing here is learned and nothing is known of the world but that an agent is brighter than black, borders are lines
from edge to edge of the frame, and between them stands one vertical wall with one door. Positions are (x, y) in pixels,
the origin in the centre of the top left pixel; lines are where the outermost of their pixels are. No gradient.

CPU: compiled for images in bytes (csrc/cpu/scene.cpp), in integers up to the last division. Elsewhere plain PyTorch.

Bytes moved: the images, walls twice.
"""

import torch
from torch import Tensor

from jepa_fast.kernels import dispatch, extension


def read_centres_reference(agents: Tensor, corners: Tensor | None = None) -> Tensor:
    """The same as `read_centres` in plain PyTorch."""
    light = agents.to(torch.float32)
    by_column, by_row = light.sum(dim=-2), light.sum(dim=-1)
    total = by_row.sum(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    # Multiplied and summed: a matrix product may be taken in a narrower type.
    profiles = (by_column, by_row)
    means = [(each * torch.arange(each.shape[-1], device=each.device).to(each)).sum(-1) / total for each in profiles]
    centres = torch.stack(means, dim=-1)
    return centres if corners is None else centres + corners.flip(-1).to(torch.float32)


def read_layout_reference(walls: Tensor) -> Tensor:
    """The same as `read_layout` in plain PyTorch."""
    solid = (walls > 0).to(torch.float32)
    height, width = walls.shape[1:]
    border_x = _ends(solid.sum(dim=1) == height, absent=(-1, 2))
    border_y = _ends(solid.sum(dim=2) == width, absent=(-1, 2))
    inside_x, inside_y = _between(border_x, width), _between(border_y, height)
    # Pixels of walls in every column and every row, without the borders': batched products of a mask and the image.
    by_column = (inside_y[:, None].to(solid) @ solid).squeeze(1)
    by_row = (solid @ inside_x[:, :, None].to(solid)).squeeze(2)
    wall_x = _ends((by_column > 0) & inside_x, absent=(2, 2))
    door_y = _ends((by_row == 0) & inside_y, absent=(2, 2))
    layout = torch.stack([border_x, border_y, wall_x, door_y], dim=1)
    return layout.view(-1, 2, 2, 2).to(torch.float32)


def _ends(marked: Tensor, absent: tuple[int, int]) -> Tensor:
    """First and last marked place of bool [N, L], int64 [N, 2]; where there is none, `absent` times L."""
    length = marked.shape[1]
    places = torch.arange(length, device=marked.device)
    first = torch.where(marked, places, length).amin(dim=1)
    last = torch.where(marked, places, -1).amax(dim=1)
    found = last >= 0
    low, high = (torch.where(found, end, length * factor) for end, factor in zip((first, last), absent, strict=True))
    return torch.stack([low, high], dim=1)


def _between(ends: Tensor, length: int) -> Tensor:
    """Which of `length` places lie strictly between the ends [N, 2]: bool [N, length]."""
    places = torch.arange(length, device=ends.device)
    return (places > ends[:, :1]) & (places < ends[:, 1:])


def why_not_compiled(images: Tensor) -> str | None:
    """Why these images do not go through the compiled ops, or None."""
    if images.device.type != "cpu" or images.dtype != torch.uint8:
        return f"images are {images.dtype} on {images.device.type}, the op takes bytes on a CPU"
    reason: str | None = dispatch.why_no_compiled_op("read_layout")
    return reason


def read_centres(agents: Tensor, corners: Tensor | None = None) -> Tensor:
    """Centres of brightness, float32 [..., 2] (x, y) in pixels; of a black image, its corner.

    Args:
        agents: images of the agent [..., h, w], whole frames or windows, uint8 or float.
        corners: of windows, [..., 2] (row, column) of their top left pixels.
    """
    if why_not_compiled(agents) is not None:
        return read_centres_reference(agents, corners)
    shown = None if corners is None else corners.reshape(-1, 2).to(torch.int64)
    centres: Tensor = torch.ops.jepa_fast.read_centres(agents.reshape(-1, *agents.shape[-2:]), shown)
    return centres.view(*agents.shape[:-2], 2)


def read_layout(walls: Tensor) -> Tensor:
    """Where an agent cannot go, float32 [N, 2, 2, 2] in pixels: (borders, wall) x (x, y) x (low, high).

    Borders: the lines from edge to edge that lie outermost, columns for x and rows for y. Wall: between them, the
    first and the last column that holds anything, and for y the first and the last row that is open, the door's. What
    a frame does not show lies a frame's length outside of it: borders on their sides, wall or door beyond the far one.

    Args:
        walls: images of borders and wall [N, H, W], uint8 or float; whatever is not black is solid.
    """
    if why_not_compiled(walls) is not None:
        return read_layout_reference(walls)
    layout: Tensor = torch.ops.jepa_fast.read_layout(walls)
    return layout


def _read_centres_fake(images: Tensor, corners: Tensor | None) -> Tensor:
    return images.new_empty(len(images), 2, dtype=torch.float32)


def _read_layout_fake(walls: Tensor) -> Tensor:
    return walls.new_empty(len(walls), 2, 2, 2, dtype=torch.float32)


if extension.load() is None:
    torch.library.register_fake("jepa_fast::read_centres", _read_centres_fake)
    torch.library.register_fake("jepa_fast::read_layout", _read_layout_fake)
