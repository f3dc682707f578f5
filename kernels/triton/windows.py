"""Where the pixels of windows lie on the images that the windows were cut from."""

import triton
import triton.language as tl

# Sizes that kernels on windows take: of an image, of a window, and of the margin around a window's corner.
WINDOW = ("height", "width", "window_height", "window_width", "margin_y", "margin_x")


@triton.jit
def locate(
    p,  # pixels of windows [N, h, w], counted through
    live,  # which of them there are
    corners_ptr,  # [N, 2] int64: row and column of a window's top left pixel, before its margin
    height,
    width,
    window_height,
    window_width,
    margin_y,
    margin_x,
):
    """Window n of each pixel, its row y and column x in the image, and whether it is one of the image's pixels."""
    j = p % window_width
    i = (p // window_width) % window_height
    n = p // (window_width * window_height)
    y = tl.load(corners_ptr + 2 * n, mask=live, other=0).to(tl.int32) - margin_y + i
    x = tl.load(corners_ptr + 2 * n + 1, mask=live, other=0).to(tl.int32) - margin_x + j
    return n, y, x, live & (y >= 0) & (y < height) & (x >= 0) & (x < width)
