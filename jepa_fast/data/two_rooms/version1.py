"""Manifests of version 1, which knew two rooms alone: an agent's channel and a wall's, actions of two numbers.

Their files had no channel axis and other names. They are read as they lie; nothing is written anew.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jepa_fast.data.manifest import Field

# What version 1 called a field, and what it is called since.
NAMES = {
    "dot": "agent.pixels",
    "window": "agent.pixels",
    "corner": "agent.corner",
    "wall": "wall.pixels",
    "group": "wall.base_index",
    "group_corner": "wall.corner",
    "base": "wall.base",
    "actions": "actions",
    "locations": "target.locations",
}
ENCODINGS = {"window": "window", "wall_once": "static", "full": "dense"}


def stored_field(name: str, field: "Field") -> "Field":
    """How version 1 stored what is the field `name` now."""
    if name.endswith((".pixels", ".base")):
        return replace(field, shape=(*field.shape[:-3], *field.shape[-2:]))
    return replace(field, dtype="|u1") if name.endswith(".corner") else field


def upgraded(record: dict[str, Any]) -> dict[str, Any]:
    """A version 1 manifest with the keys and names of version 2; fields keep the shapes that they are stored in.

    Raises:
        LookupError, TypeError, AttributeError: it is not a whole manifest of version 1.
    """
    fields: dict[str, Any] = record["fields"]
    window, wall_window = record["window"], record["wall_window"]
    agent = {"name": "agent", "channels": 1, "codec": "dense", "window": None, "base": None}
    if window is not None:
        agent |= {"codec": "window", "window": [window, window], "base": "black"}
    wall = {"name": "wall", "channels": 1, "codec": "static", "window": None, "base": None}
    if len(fields["wall"]["shape"]) == 3:
        wall["codec"] = "dense"
    elif wall_window is not None:
        wall |= {"window": [wall_window, wall_window], "base": "images"}
    shards = [
        {**shard, "files": {NAMES[name]: file for name, file in shard["files"].items()}} for shard in record["shards"]
    ]
    return {
        **{name: value for name, value in record.items() if name not in ("window", "wall_window")},
        "encoding": ENCODINGS[record["encoding"]],
        "offset": 0.0,
        "groups": [agent, wall],
        "action_size": 2,
        "targets": [{"name": "locations", "size": 2}] if "locations" in fields else [],
        "fields": {NAMES[name]: field for name, field in fields.items()},
        "shards": shards,
    }
