"""The two-room world: its simulator, and all that the data know of an agent and a wall."""

from jepa_fast.data.two_rooms.simulator import (
    SPLITS,
    Plans,
    Split,
    Trajectories,
    draw_block,
    expert_actions,
    simulate,
)
from jepa_fast.data.two_rooms.world import WORLD, is_solid, render_dots, render_walls, step

# Names and numbers of the channels of a frame.
CHANNEL_GROUPS = (("agent", 1), ("wall", 1))

__all__ = [
    "CHANNEL_GROUPS",
    "SPLITS",
    "WORLD",
    "Plans",
    "Split",
    "Trajectories",
    "draw_block",
    "expert_actions",
    "is_solid",
    "render_dots",
    "render_walls",
    "simulate",
    "step",
]
