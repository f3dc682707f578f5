"""Draw the two figures of docs/exact_shortcuts.md into docs/images: `python -m research.draw_shortcuts`."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jepa_fast.data.two_rooms import WORLD, render_dots, render_walls

IMAGES = Path(__file__).parent.parent / "docs" / "images"
WINDOW, REACH = 10, 3
DOT = (24.3, 20.6)  # x, y
WALL, DOOR = 28, 41
COLOURS = ("#d95f02", "#1b9e77", "#7570b3")


def main() -> None:
    """Draw both."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    draw_influence().savefig(IMAGES / "what_the_dot_can_influence.png", dpi=110)
    draw_sharing().savefig(IMAGES / "what_is_shared.png", dpi=110)


def draw_influence() -> Figure:
    """The window before and after each block, over what any black image has there."""
    dot = render_dots(np.array([[DOT]], np.float32))[0, 0]
    corner = [round(centre) - WINDOW // 2 + 1 for centre in DOT]
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 4.1), layout="constrained")
    titles = ("frame", "after block 1", "after block 2")
    for block, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        show(axis, dot if block == 0 else np.full_like(dot, 60), title)
        for grown in range(block + 1):
            side, start = WINDOW + 2 * REACH * grown, [value - REACH * grown for value in corner]
            outline(axis, start[0], start[1], side, side, COLOURS[grown], filled=block > 0 and grown == block)
        side = WINDOW + 2 * REACH * block
        share = 100 * side**2 / WORLD.size**2
        axis.set_xlabel(f"{side} x {side} pixels can differ: {share:.0f}%")
    axes[1].text(34, 58, "grey: as in any\nblack image", color="white", fontsize=9, va="bottom")
    return figure


def draw_sharing() -> Figure:
    """One room, the bases as strips over it, the walls as door windows over their bases."""
    room = render_walls(np.array([WALL]), np.array([DOOR]))[0]
    closed = room.copy()
    closed[:, WALL - 1 : WALL + 2] = room[0, WALL]
    empty = closed.copy()
    empty[:, WALL - 1 : WALL + 2] = np.where(closed[:, 10:11] > 0, closed[:, 10:11], 0)
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 4.1), layout="constrained")
    show(axes[0], empty, "the room, once")
    axes[0].set_xlabel("encoded whole: 65 x 65 pixels")
    show(axes[1], closed, "one base for each of 20 wall columns")
    outline(axes[1], WALL - 1, 0, 3, WORLD.size, COLOURS[0])
    outline(axes[1], WALL - 1 - 2 * REACH, 0, 3 + 4 * REACH, WORLD.size, COLOURS[2])
    axes[1].set_xlabel("strip of 65 x 3, after two blocks 65 x 15")
    show(axes[2], room, "one wall per trajectory")
    outline(axes[2], WALL - 1, DOOR - 4, 9, 9, COLOURS[0])
    outline(axes[2], WALL - 1 - 2 * REACH, DOOR - 4 - 2 * REACH, 21, 21, COLOURS[2])
    axes[2].set_xlabel("window of 9 x 9, after two blocks 21 x 21")
    return figure


def show(axis: Axes, image: np.ndarray, title: str) -> None:
    """An image [H, W] in grey levels, without ticks."""
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    axis.set_title(title)
    axis.set_xticks([])
    axis.set_yticks([])


def outline(axis: Axes, x: float, y: float, width: float, height: float, colour: str, filled: bool = False) -> None:
    """A rectangle around whole pixels."""
    axis.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=filled, facecolor=colour, alpha=0.45, lw=0))
    axis.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, lw=1.8))


if __name__ == "__main__":
    main()
