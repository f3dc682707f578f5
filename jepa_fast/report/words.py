"""Sentences that say what a figure shows, made from its numbers."""

import math
from collections.abc import Sequence

# Changes smaller than this share are called none.
STEADY = 0.05


def number(value: float) -> str:
    """Three significant digits; thousands in full."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        return f"{mantissa}e{int(exponent)}"
    return text


def duration(seconds: float) -> str:
    """Seconds for people: 43 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def change(values: Sequence[float]) -> str:
    """How a curve goes from its first to its last value: "falls from 3 to 1.2"."""
    first, last = values[0], values[-1]
    if not (math.isfinite(first) and math.isfinite(last)):
        return f"goes from {number(first)} to {number(last)}"
    if abs(last - first) <= STEADY * max(abs(first), abs(last)):
        return f"stays at about {number(last)}"
    return f"{'rises' if last > first else 'falls'} from {number(first)} to {number(last)}"


def listed(parts: Sequence[str]) -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def root(error_px2: float) -> str:
    """A squared error in pixels^2 as a length: how far off an axis is, in the root mean square."""
    return f"{number(math.sqrt(error_px2))} px"
