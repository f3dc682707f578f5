"""Minari data sets, read by the library itself: a folder with `data/metadata.json`, as in ~/.minari/datasets/NAME.

An episode has one observation more than actions. Columns of dictionaries are called observations/KEY and so on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.readers import Column, Rows, library
from jepa_fast.errors import InputError

PARTS = ("observations", "actions", "rewards", "terminations", "truncations", "infos")


@dataclass(frozen=True)
class MinariEpisodes:
    """Episodes of one data set.

    Raises:
        InputError: it does not open; minari is missing.
    """

    path: Path

    def __post_init__(self) -> None:
        _ = self.columns

    @cached_property
    def columns(self) -> Mapping[str, Column]:
        """What the first episode holds; observations have a row more than there are steps, and infos may have."""
        data = self._open()
        metadata = data.storage.get_episode_metadata(data.episode_indices)
        steps = np.array([int(episode["total_steps"]) for episode in metadata])
        if not len(steps):
            raise InputError(f"{self.path}: holds no episodes")
        first = _columns(next(iter(data.iterate_episodes(data.episode_indices[:1]))))
        return {
            name: Column(array.dtype, array.shape[1:], steps + (len(array) - int(steps[0])))
            for name, array in first.items()
        }

    @property
    def description(self) -> dict[str, Any]:
        """The name of the folder."""
        return {"format": "minari", "file": self.path.name}

    def label(self, column: str) -> str:
        """Its name."""
        return column

    def where(self, column: str) -> str:
        """The folder and the column."""
        return f"{self.path}: {column}"

    def read(self, names: Sequence[str], episodes: NDArray[np.int64]) -> Rows:
        """Columns of episodes, each of which is read whole."""
        data = self._open()
        numbers = np.asarray(data.episode_indices)[episodes]
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
        for number, episode in zip(numbers, data.iterate_episodes(numbers), strict=True):
            found = _columns(episode)
            for name in names:
                if name not in found:
                    raise InputError(f"{self.path}: episode {number}: found no {name}, expected it as in the first one")
                parts[name].append(found[name])
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    def _open(self) -> Any:
        minari = library("minari", "minari", str(self.path))
        try:
            return minari.MinariDataset(self.path / "data")
        except (ImportError, ValueError, KeyError, OSError) as error:
            raise InputError(
                f"{self.path}: not a Minari data set that opens ({error}): pip install 'jepa_fast[minari]'"
            ) from None


def _columns(episode: Any) -> dict[str, NDArray[Any]]:
    """The arrays of an episode by name."""
    found: dict[str, NDArray[Any]] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, part in value.items():
                add(f"{name}/{key}", part)
        elif isinstance(value, tuple):
            for number, part in enumerate(value):
                add(f"{name}/{number}", part)
        elif isinstance(value, np.ndarray) and value.ndim >= 1:
            found[name] = value

    for part in PARTS:
        add(part, getattr(episode, part, None))
    return found
