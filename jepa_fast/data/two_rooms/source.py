"""The two-room simulator as a source of frames for the packer."""

from dataclasses import asdict, dataclass
from typing import Any

from jepa_fast.data.sources import Chunk, SourceGroup
from jepa_fast.data.two_rooms import CHANNEL_GROUPS, SPLITS, WORLD, render_dots, render_walls, simulate

# Square windows, as data sets of this world have had them from the beginning.
GROUPS = tuple(SourceGroup(name, channels, square=True) for name, channels in CHANNEL_GROUPS)


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
    def lengths(self) -> None:
        """All trajectories of a split have the same length."""

    @property
    def is_plain(self) -> bool:
        """Frames are drawn."""
        return False

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
    def offset(self) -> float:
        """Value of byte 0."""
        return 0.0

    @property
    def groups(self) -> tuple[SourceGroup, ...]:
        """The agent's channel and the wall's."""
        return GROUPS

    @property
    def action_size(self) -> int:
        """(x, y) in pixels per step."""
        return 2

    @property
    def targets(self) -> tuple[tuple[str, int], ...]:
        """Where the agent is, (x, y) in pixels."""
        return (("locations", 2),)

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
            groups=(
                render_dots(trajectories.locations)[:, :, None],
                render_walls(trajectories.wall_x, trajectories.door_y)[:, None],
            ),
            actions=trajectories.actions,
            targets=(trajectories.locations,),
        )
