"""Worlds as Gymnasium environments: `gymnasium.make("jepa_fast/TwoRooms-v0")` after `import jepa_fast.envs`.

They need gymnasium, which `pip install "jepa_fast[envs]"` brings.
"""

from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from jepa_fast.envs.two_rooms import TwoRooms as TwoRooms
    from jepa_fast.envs.two_rooms import TwoRoomsVector as TwoRoomsVector

ENVIRONMENT = "jepa_fast/TwoRooms-v0"

__all__ = ["ENVIRONMENT", "TwoRooms", "TwoRoomsVector"]


def __getattr__(name: str) -> Any:
    if name in ("TwoRooms", "TwoRoomsVector"):
        from jepa_fast.envs import two_rooms

        return getattr(two_rooms, name)
    raise AttributeError(f"module 'jepa_fast.envs' has no attribute {name!r}")


gymnasium.register(
    ENVIRONMENT,
    entry_point="jepa_fast.envs.two_rooms:TwoRooms",
    vector_entry_point="jepa_fast.envs.two_rooms:TwoRoomsVector",
)
