"""The stem: the one convolution that turns pixels into cells, and where in the cells a window of pixels shows.

A stem of side k and stride s, s <= k, has ceil(H / s) cells along an axis of H pixels. Cell i sees the pixels from
i s - b to i s - b + k - 1, b = (k - s) // 2; what lies outside of the image is zero. k = s: patches side by side;
k = s = 1: every pixel for itself.

A window of h pixels shows in at most (h + k - 2) // s + 1 cells. The stem is linear, so the difference of an image to
its base is, in those cells, the stem of the difference of their pixels, and zero in all others.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.models.window_grid import WindowGrid


class Stem(NamedTuple):
    """Side and stride of a stem, in pixels."""

    side: int
    stride: int

    @property
    def before(self) -> int:
        """Pixels that the first cell sees before the image begins."""
        return (self.side - self.stride) // 2

    def cells(self, image: tuple[int, int]) -> tuple[int, int]:
        """Size in cells of images of so many pixels."""
        height, width = (-(-pixels // self.stride) for pixels in image)
        return height, width

    def shown(self, window: tuple[int, int], image: tuple[int, int]) -> tuple[int, int]:
        """Cells that a window of so many pixels can show in, wherever it lies; all of an axis that it fills."""
        height, width = (
            cells if pixels == limit else min((pixels + self.side - 2) // self.stride + 1, cells)
            for pixels, limit, cells in zip(window, image, self.cells(image), strict=True)
        )
        return height, width

    def apply(self, images: Tensor, filters: Tensor) -> Tensor:
        """Cells [N, H', W', C] of images [N, H, W, c] by filters [C, c, k, k]."""
        image = (images.shape[1], images.shape[2])
        pads = []
        # The last axis first, as F.pad wants it.
        for pixels, cells in reversed(list(zip(image, self.cells(image), strict=True))):
            pads += [self.before, (cells - 1) * self.stride + self.side - self.before - pixels]
        padded = F.pad(images, (0, 0, *pads)) if any(pads) else images
        return self._convolved(padded, filters)

    def cell_grid(self, place: WindowGrid) -> WindowGrid:
        """The windows of cells that windows of pixels show in."""
        image, size = self.cells(place.image), self.shown(place.size, place.image)
        # The first cell that sees the window's first pixel.
        first = (place.corners + (self.before - self.side + self.stride)).div(self.stride, rounding_mode="floor")
        # Axis by axis: a tensor of both limits would be a copy from the host, in the middle of a step.
        corners = torch.stack([first[:, axis].clamp(0, image[axis] - size[axis]) for axis in (0, 1)], dim=1)
        return WindowGrid(corners, place.groups, size, image, place.is_fused)

    def apply_windows(self, pixels: Tensor, place: WindowGrid, cells: WindowGrid, filters: Tensor) -> Tensor:
        """[N, h', w', C]: the windows of cells, from pixels [N, h, w, c] that are zero outside their windows.

        Args:
            pixels: differences to the base.
            place: where they lie.
            cells: `cell_grid(place)`.
            filters: [C, c, k, k].
        """
        source, inside = [], []
        for axis in (0, 1):
            # Of the pixels that the cells see, which of the window.
            seen = (cells.size[axis] - 1) * self.stride + self.side
            offset = place.corners[:, axis] + self.before - cells.corners[:, axis] * self.stride
            pixel = torch.arange(seen, device=pixels.device) - offset[:, None]
            inside.append((pixel >= 0) & (pixel < place.size[axis]))
            source.append(pixel.clamp(0, place.size[axis] - 1))
        window = torch.arange(len(pixels), device=pixels.device)[:, None, None]
        shown = (inside[0][:, :, None] & inside[1][:, None, :])[..., None]
        return self._convolved(pixels[window, source[0][:, :, None], source[1][:, None, :]] * shown, filters)

    def _convolved(self, images: Tensor, filters: Tensor) -> Tensor:
        # One more axis of the memory's order: images are channels last, and so are the cells.
        out = F.conv2d(images.permute(0, 3, 1, 2), filters, stride=self.stride)
        return out.permute(0, 2, 3, 1).contiguous()


PIXELS = Stem(1, 1)
