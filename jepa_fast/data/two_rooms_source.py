"""The two-room simulator as a source of frames for the packer."""

from dataclasses import asdict, dataclass
from typing import Any

from jepa_fast.data.encoding import Chunk
from jepa_fast.data.two_rooms import SPLITS, WORLD, render_dots, render_walls, simulate


@dataclass(frozen=True)
class TwoRoomsSource:
    """The first `count` trajectories of a two-room split."""

    split: str
    count: int
    seed: int

    @property
    def frames(self) -> int:
        """T, frames per trajectory."""
        return SPLITS[self.split].frames

    @property
    def height(self) -> int:
        """H, in pixels."""
        return WORLD.size

    @property
    def width(self) -> int:
        """W, in pixels."""
        return WORLD.size

    @property
    def scale(self) -> float:
        """Value of one uint8 step."""
        return WORLD.scale

    @property
    def description(self) -> dict[str, Any]:
        """The simulator's constants, the split's and the seed."""
        # The standard size decides how many there are, not what they are.
        policy = {name: value for name, value in asdict(SPLITS[self.split]).items() if name != "size"}
        return {
            "generator": "jepa_fast two rooms (replica)",
            "split": self.split,
            "seed": self.seed,
            "policy": policy,
            "world": asdict(WORLD),
        }

    def chunk(self, start: int, stop: int) -> Chunk:
        """Trajectories `start` to `stop - 1`."""
        trajectories = simulate(self.split, start, stop, self.seed)
        return Chunk(
            dots=render_dots(trajectories.locations),
            walls=render_walls(trajectories.wall_x, trajectories.door_y),
            actions=trajectories.actions,
            locations=trajectories.locations,
        )
