"""Draws the pictures of the docs into docs/images/: trajectories.svg, architecture.svg, rollout.svg.

    python -m research.draw_docs

They follow the reader's light or dark theme, with the palette of the reports.
"""

from collections.abc import Sequence
from pathlib import Path

from jepa_fast.data.two_rooms import WORLD, Trajectories, render_walls, simulate
from jepa_fast.probing.evaluation import rectangles
from jepa_fast.report import rooms
from jepa_fast.report.page import THEME

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
ROOM, GAP, CAPTION = 150, 16, 22

# A split of the world, what a trajectory of it is called, and which one shows it well.
SHOWN = (
    ("train", "walk", "stays"),
    ("train", "walk through the door", "crosses"),
    ("probe_wall/val", "push, blocked", "stays"),
    ("probe_wall/val", "push at the door", "crosses"),
    ("probe_wall_other/val", "held-out wall", "stays"),
    ("probe_expert/val", "planned path", "crosses"),
)


def picture(width: float, height: float, content: str, label: str) -> str:
    """A whole SVG file."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{label}"><style>:root {THEME} '
        "text { font:13px system-ui, sans-serif; fill:var(--ink); text-anchor:middle } .quiet { fill:var(--muted) } "
        ".small { font-size:11px } .box { fill:var(--card); stroke:var(--grid); stroke-width:1.2 } "
        ".arrow { fill:none; stroke:var(--muted); stroke-width:1.3; marker-end:url(#tip) }</style>"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path d="M0 0.5 8 4 0 7.5Z" fill="var(--muted)"/></marker></defs>'
        f'<rect width="100%" height="100%" rx="8" fill="var(--page)"/>{content}</svg>\n'
    )


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Words centred on x."""
    return f'<text x="{x}" y="{y}" class="{kind}">{words}</text>'


def box(x: float, y: float, width: float, height: float, lines: Sequence[str], color: str | None = None) -> str:
    """A box with lines of words in its middle, the first of them the title."""
    stroke = f' style="stroke:{color}"' if color else ""
    drawn = f'<rect class="box" x="{x}" y="{y}" width="{width}" height="{height}" rx="5"{stroke}/>'
    top = y + height / 2 + 4.5 - 8 * (len(lines) - 1)
    for index, line in enumerate(lines):
        drawn += text(x + width / 2, top + 16 * index, line, "" if index == 0 else "quiet small")
    return drawn


def arrow(*points: tuple[float, float], dashed: bool = False) -> str:
    """A line through points that ends in a tip."""
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline class="arrow" points="{path}"{dash}/>'


def trajectories() -> str:
    """One trajectory of each kind, seen from above."""
    content = ""
    for place, (split, name, behaviour) in enumerate(SHOWN):
        drawn = simulate(split, 0, 256, seed=1)
        row = find(drawn, behaviour)
        solid = rectangles(render_walls(drawn.wall_x[row : row + 1], drawn.door_y[row : row + 1])[0])
        path = rooms.Path([(float(x), float(y)) for x, y in drawn.locations[row]], "var(--series-2)")
        x = GAP + place % 3 * (ROOM + GAP)
        y = GAP + place // 3 * (ROOM + GAP + CAPTION)
        scale = ROOM / WORLD.size
        content += f'<rect class="box" x="{x}" y="{y}" width="{ROOM}" height="{ROOM}"/>'
        content += f'<g transform="translate({x},{y}) scale({scale:.4f})">{rooms.room_content(solid, [path])}</g>'
        content += text(x + ROOM / 2, y + ROOM + 17, name, "quiet")
    width, height = GAP + 3 * (ROOM + GAP), GAP + 2 * (ROOM + GAP + CAPTION)
    return picture(width, height, content, "Six trajectories of an agent in two rooms")


def find(drawn: Trajectories, behaviour: str) -> int:
    """The trajectory that moves the furthest among those that end in the other room, or that stay in theirs."""
    left = drawn.locations[:, [0, -1], 0] < drawn.wall_x[:, None]
    wanted = (left[:, 0] != left[:, 1]) == (behaviour == "crosses")
    reach = abs(drawn.locations[:, -1] - drawn.locations[:, 0]).sum(axis=-1)
    return int((reach * wanted).argmax())


def architecture() -> str:
    """Encoder and predictor of the default model, with the sizes of what flows."""
    content = text(190, 30, "encoder") + text(590, 30, "predictor")
    for y, channel, color in ((50, "agent", "var(--series-2)"), (190, "wall", "var(--series-1)")):
        content += box(20, y + 25, 76, 50, (channel, "65 x 65"), color)
        content += arrow((96, y + 50), (122, y + 50))
        lines = ("branch", "1x1 convolution, 1 to 16", "2 ConvNeXt blocks, 7x7", "pool to 6x6", "linear, LayerNorm")
        content += box(124, y, 160, 100, lines, color)
    content += arrow((284, 100), (322, 100), (322, 156)) + arrow((284, 240), (322, 240), (322, 184))
    content += box(308, 158, 28, 24, ("+",)) + arrow((336, 170), (372, 170))
    content += box(374, 145, 66, 50, ("latent", "128"), "var(--series-3)")
    content += arrow((440, 170), (466, 170))
    content += box(468, 145, 92, 50, ("LayerNorm", "128"))
    content += box(374, 240, 66, 50, ("action", "x, y"), "var(--series-4)")
    content += arrow((440, 265), (466, 265)) + box(468, 240, 92, 50, ("linear, LN", "2 to 128"))
    content += arrow((560, 170), (584, 170)) + arrow((560, 265), (600, 265), (600, 184))
    content += box(586, 158, 28, 24, ("+",))
    content += arrow((600, 158), (600, 82), (624, 82))
    content += box(626, 42, 120, 80, ("MLP", "linear to 512", "LayerNorm, GELU", "linear to 128"))
    content += arrow((614, 170), (672, 170)) + arrow((686, 122), (686, 156))
    content += box(674, 158, 28, 24, ("+",)) + arrow((702, 170), (730, 170))
    content += box(732, 145, 84, 50, ("next latent", "128"), "var(--series-3)")
    content += arrow((774, 195), (774, 215), (640, 215), (407, 215), (407, 197), dashed=True)
    content += text(676, 231, "fed back for the next step", "quiet small")
    return picture(836, 310, content, "The encoder adds two branches; the predictor moves a latent by an action")


def rollout() -> str:
    """Frame 0 starts the rollout; later frames are only compared with."""
    content, step, left = "", 180, 110
    content += text(48, 62, "frames", "quiet") + text(48, 152, "encoded", "quiet")
    content += text(48, 242, "predicted", "quiet") + text(48, 322, "actions", "quiet")
    for t in range(4):
        x = left + t * step
        content += box(x, 35, 90, 44, (f"frame {t}",))
        content += arrow((x + 45, 79), (x + 45, 123)) + text(x + 84, 106, "encoder", "quiet small")
        content += box(x, 125, 90, 44, (f"z{t}",), "var(--series-1)")
        if t > 0:
            content += box(x, 215, 90, 44, (f"p{t}",), "var(--series-2)")
            ends = f"M{x + 45} 171 V213"
            content += f'<path class="arrow" style="marker-start:url(#tip)" stroke-dasharray="4 3" d="{ends}"/>'
            content += text(x + 82, 197, "compared", "quiet small")
            content += arrow((x - 90, 237), (x - 2, 237)) + text(x - 45, 228, "predictor", "quiet small")
        if t < 3:
            content += box(x + 112, 295, 46, 40, (f"a{t}",), "var(--series-4)")
            content += arrow((x + 135, 295), (x + 135, 241))
    content += f'<path class="arrow" style="marker-end:none" d="M{left + 45} 169 V237 H{left + 92}"/>'
    return picture(left + 3 * step + 130, 355, content, "A rollout: frame 0 and the actions give every later latent")


def main() -> None:
    """Draw all of them."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, draw in (("trajectories", trajectories), ("architecture", architecture), ("rollout", rollout)):
        (IMAGES / f"{name}.svg").write_text(draw())


if __name__ == "__main__":
    main()
