"""A room seen from above, with paths in it, as SVG in pixel coordinates. Colours are CSS variables."""

from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]
Rectangle = tuple[int, int, int, int]


@dataclass(frozen=True)
class Path:
    """Locations (x, y) in pixels, drawn in a CSS color `width` pixels wide, an agent where it begins."""

    points: Sequence[Point]
    color: str
    width: float = 0.9


def room(size: tuple[int, int], solid: Sequence[Rectangle], paths: Sequence[Path], label: str) -> str:
    """The <svg> element of a room of `size` (width, height) in pixels; `label` says what it shows."""
    width, height = size
    return (
        f'<svg class="room" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f"{room_content(solid, paths)}</svg>"
    )


def room_content(solid: Sequence[Rectangle], paths: Sequence[Path]) -> str:
    """Walls and paths alone, for an <svg> or <g> in pixel coordinates."""
    walls = "".join(f'<rect x="{x}" y="{y}" width="{w}" height="{h}"/>' for x, y, w, h in solid)
    drawn = "".join(_path(path) for path in paths)
    return f'<g fill="var(--wall)" shape-rendering="crispEdges">{walls}</g>{drawn}'


def _path(path: Path) -> str:
    # A pixel's centre has whole coordinates, its top left corner is half a pixel before.
    points = [(x + 0.5, y + 0.5) for x, y in path.points]
    line = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    x, y = points[0]
    stroke = f'fill="none" stroke="{path.color}" stroke-width="{path.width}"'
    return (
        f'<polyline points="{line}" {stroke} stroke-linejoin="round" stroke-linecap="round"/>'
        f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{path.width + 0.6:.1f}" fill="{path.color}"/>'
    )
