"""Draws the two figures of docs/sparse-encoding.md into docs/images: sparse_encoding.svg and shared_bases.svg.

    python -m research.draw_sparse_encoding

They follow the reader's light or dark theme. Sizes are those of the default encoder on two rooms: frames of 65 x 65,
agent windows of 10 x 10, two ConvNeXt blocks with kernels of 7 x 7.
"""

from pathlib import Path

from research.draw_docs import IMAGES, arrow, box, picture, text

FRAME, WINDOW, REACH, CELLS = 65, 10, 3, 6
AGENT = (24, 40)  # column and row of its centre
WALL, DOOR, STRIP, DOOR_WINDOW = 28, 41, 3, 9
BORDERS = (4, 61)
PANEL, GAP = 112, 34
SCALE = PANEL / FRAME
COMPUTED, SHARED = "var(--series-2)", "var(--series-1)"


def sparse_encoding() -> str:
    """Upper row: the windows of one frame. Lower row: their base. The two meet where they are pooled."""
    left, top, below = 20, 46, 226
    columns = [left + index * (PANEL + GAP) for index in range(4)]
    titles = ("frame", "block 1", "block 2", "average pooling")
    content = "".join(text(x + PANEL / 2, 26, title) for x, title in zip(columns, titles, strict=True))
    for layer in range(3):
        side, x = WINDOW + 2 * REACH * layer, columns[layer]
        content += panel(x, top) + window(x, top, AGENT[0] - side / 2, AGENT[1] - side / 2, side, side, COMPUTED)
        words = f"window {side} x {side}: {100 * side**2 / FRAME**2:.0f}%"
        content += text(x + PANEL / 2, top + PANEL + 17, words, "quiet small")
        content += panel(x, below) + window(x, below, 0, 0, FRAME, FRAME, SHARED)
    content += agent(columns[0], top)
    content += text(columns[0] + PANEL / 2, below + PANEL + 17, "base: a black image", "quiet small")
    content += text(columns[1] + PANEL + GAP / 2, below + PANEL + 17, "whole, once per step", "quiet small")
    content += cells(columns[3], top, COMPUTED, whole=False) + cells(columns[3], below, SHARED, whole=True)
    content += text(columns[3] + PANEL / 2, top + PANEL + 17, "window minus base", "quiet small")
    content += text(columns[3] + PANEL / 2, below + PANEL + 17, "base", "quiet small")
    for row in (top, below):
        for x in columns[:3]:
            content += arrow((x + PANEL + 4, row + PANEL / 2), (x + PANEL + GAP - 4, row + PANEL / 2))
    middle, plus = (top + below + PANEL) / 2, columns[3] + PANEL + 40
    content += arrow((columns[3] + PANEL + 4, top + PANEL / 2), (plus, top + PANEL / 2), (plus, middle - 14))
    content += arrow((columns[3] + PANEL + 4, below + PANEL / 2), (plus, below + PANEL / 2), (plus, middle + 14))
    content += box(plus - 14, middle - 12, 28, 24, ("+",)) + arrow((plus + 14, middle), (plus + 40, middle))
    content += box(
        plus + 42, middle - 34, 110, 68, ("latent", "equal to that of", "the whole frame"), "var(--series-3)"
    )
    return picture(
        plus + 172,
        below + PANEL + 34,
        content,
        "The encoder computes a window around the agent and adds it to a base that all frames share",
    )


def shared_bases() -> str:
    """One room, a strip over it for every wall column, a window over that for every door."""
    content = ""
    titles = ("one room", "20 wall columns", "one wall per trajectory")
    captions = (
        ("encoded whole,", "65 x 65"),
        ("a strip of 65 x 3,", "after two blocks 65 x 15"),
        ("a window of 9 x 9,", "after two blocks 21 x 21"),
    )
    step, top, grown = PANEL + 2 * GAP, 42, 2 * REACH
    for index, (title, lines) in enumerate(zip(titles, captions, strict=True)):
        x = 20 + GAP / 2 + index * step
        content += text(x + PANEL / 2, 26, title) + panel(x, top)
        for line in BORDERS:
            content += solid(x, top, line, 0, 1, FRAME) + solid(x, top, 0, line, FRAME, 1)
        if index == 0:
            content += window(x, top, 0, 0, FRAME, FRAME, SHARED)
        if index == 1:
            content += solid(x, top, WALL - 1, 0, STRIP, FRAME)
            content += window(x, top, WALL - 1 - 2 * grown / 2, 0, STRIP + 2 * grown, FRAME, COMPUTED)
        if index == 2:
            first, last = DOOR - DOOR_WINDOW // 2, DOOR + DOOR_WINDOW // 2 + 1
            content += solid(x, top, WALL - 1, 0, STRIP, first) + solid(x, top, WALL - 1, last, STRIP, FRAME - last)
            side = DOOR_WINDOW + 2 * grown
            content += window(x, top, WALL + 0.5 - side / 2, first - grown, side, side, COMPUTED)
        for line, words in enumerate(lines):
            content += text(x + PANEL / 2, top + PANEL + 17 + 15 * line, words, "quiet small")
        if index < 2:
            content += arrow((x + PANEL + 8, top + PANEL / 2), (x + step - 8, top + PANEL / 2))
    return picture(
        3 * step + 6,
        top + PANEL + 46,
        content,
        "The walls of a data set as a room, strips over it and windows over these",
    )


def panel(x: float, y: float) -> str:
    """The outline of an image."""
    return f'<rect x="{x}" y="{y}" width="{PANEL}" height="{PANEL}" fill="var(--card)" stroke="var(--grid)"/>'


def window(x: float, y: float, column: float, row: float, width: float, height: float, color: str) -> str:
    """A part of an image that is computed, in pixels of the image."""
    place = f'x="{x + column * SCALE:.1f}" y="{y + row * SCALE:.1f}"'
    size = f'width="{width * SCALE:.1f}" height="{height * SCALE:.1f}"'
    return f'<rect {place} {size} fill="{color}" fill-opacity="0.28" stroke="{color}" stroke-width="1.6"/>'


def solid(x: float, y: float, column: float, row: float, width: float, height: float) -> str:
    """Pixels of a wall."""
    place = f'x="{x + column * SCALE:.1f}" y="{y + row * SCALE:.1f}"'
    return f'<rect {place} width="{width * SCALE:.1f}" height="{height * SCALE:.1f}" fill="var(--wall)"/>'


def agent(x: float, y: float) -> str:
    """The agent in a frame."""
    return f'<circle cx="{x + AGENT[0] * SCALE:.1f}" cy="{y + AGENT[1] * SCALE:.1f}" r="4.5" fill="var(--ink)"/>'


def cells(x: float, y: float, color: str, whole: bool) -> str:
    """The cells of the pooling, filled where they are not zero."""
    drawn, side = panel(x, y), PANEL / CELLS
    half, cell = (WINDOW + 4 * REACH) / 2, FRAME / CELLS
    for row in range(CELLS):
        for column in range(CELLS):
            is_touched = all(
                centre - half < (index + 1) * cell and centre + half > index * cell
                for centre, index in zip(AGENT, (column, row), strict=True)
            )
            filled = f'fill="{color}" fill-opacity="0.28"' if whole or is_touched else 'fill="none"'
            place = f'x="{x + column * side:.1f}" y="{y + row * side:.1f}" width="{side:.1f}" height="{side:.1f}"'
            drawn += f'<rect {place} {filled} stroke="var(--grid)"/>'
    return drawn


def main() -> None:
    """Draw both."""
    for name, draw in (("sparse_encoding", sparse_encoding), ("shared_bases", shared_bases)):
        Path(IMAGES / f"{name}.svg").write_text(draw())


if __name__ == "__main__":
    main()
