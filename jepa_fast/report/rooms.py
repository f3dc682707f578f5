"""A room seen from above, with paths in it, as SVG in pixel coordinates. Colours are CSS variables."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from jepa_fast.report.page import html

Point = tuple[float, float]
Rectangle = tuple[int, int, int, int]


@dataclass(frozen=True)
class Path:
    """Locations (x, y) in pixels, drawn in a CSS color `width` pixels wide, an agent where it begins.

    With `every` a dot marks every so many steps, and the path can be walked along.
    """

    points: Sequence[Point]
    color: str
    width: float = 0.9
    every: int = 0

    def marks(self) -> list[tuple[int, float, float]]:
        """Steps that are marked, and where."""
        steps = range(self.every, len(self.points), self.every) if self.every else ()
        return [(step, *self.points[step]) for step in steps]


def room(size: tuple[int, int], solid: Sequence[Rectangle], paths: Sequence[Path], label: str) -> Markup:
    """The <svg> element of a room of `size` (width, height) in pixels; `label` says what it shows."""
    return html("room", *size, label, solid, paths)


def room_content(solid: Sequence[Rectangle], paths: Sequence[Path]) -> Markup:
    """Walls and paths alone, for an <svg> or <g> in pixel coordinates."""
    return html("room_content", solid, paths)
