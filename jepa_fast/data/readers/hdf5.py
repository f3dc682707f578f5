"""HDF5 in the layout of stable-worldmodel: one file, a dataset per column with a row per step, `ep_len`, `ep_offset`.

Actions lead from their own row to the next; the last of an episode is not a number there, and is left out.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.readers import Column, Rows, library
from jepa_fast.errors import InputError

LENGTHS, OFFSETS = "ep_len", "ep_offset"


@dataclass(frozen=True)
class HDF5Episodes:
    """Episodes of one file.

    Raises:
        InputError: it does not open, or is of another layout; h5py is missing.
    """

    path: Path

    def __post_init__(self) -> None:
        with self._open() as file:
            missing = [name for name in (LENGTHS, OFFSETS) if name not in file]
            if missing:
                held = ", ".join(file) or "nothing"
                raise InputError(
                    f"{self.path}: holds {held}, expected {' and '.join(missing)} beside the columns: frames and first "
                    "row of each episode, as stable-worldmodel writes them"
                )

    @cached_property
    def columns(self) -> Mapping[str, Column]:
        """The datasets that have a row for every step."""
        lengths, offsets = self._episodes
        found = {}
        with self._open() as file:
            for name, dataset in file.items():
                if name in (LENGTHS, OFFSETS) or not hasattr(dataset, "shape") or dataset.ndim < 1:
                    continue
                if len(dataset) < (offsets + lengths).max():
                    raise InputError(
                        f"{self.where(name)}: found {len(dataset)} rows, expected {(offsets + lengths).max()} as "
                        f"{OFFSETS} and {LENGTHS} say"
                    )
                is_plain = dataset.id.get_create_plist().get_nfilters() == 0
                found[name] = Column(dataset.dtype, dataset.shape[1:], lengths, is_plain)
        return found

    @property
    def description(self) -> dict[str, Any]:
        """The file's name."""
        return {"format": "hdf5", "file": self.path.name}

    def label(self, column: str) -> str:
        """Its name."""
        return column

    def where(self, column: str) -> str:
        """The file and its dataset."""
        return f"{self.path}: {column}"

    def read(self, names: Sequence[str], episodes: NDArray[np.int64]) -> Rows:
        """Slices of the datasets, decompressed."""
        lengths, offsets = (values[episodes] for values in self._episodes)
        cuts = np.flatnonzero(offsets[1:] != offsets[:-1] + lengths[:-1]) + 1
        # Episodes that follow each other in the file are one slice.
        firsts, stops = offsets[[0, *cuts]], (offsets + lengths)[[*(cuts - 1), -1]]
        with self._open() as file:
            try:
                return {
                    name: np.concatenate([file[name][low:high] for low, high in zip(firsts, stops, strict=True)])
                    if len(firsts) > 1
                    else file[name][firsts[0] : stops[0]]
                    for name in names
                }
            except OSError as error:
                # A filter that is missing, or a file that is damaged; HDF5 says it in many lines.
                what = str(error).partition("\n")[0]
                raise InputError(
                    f"{self.path}: episodes {episodes[0]} to {episodes[-1]}: cannot be read ({what}); compressed by a "
                    "plugin? pip install 'jepa_fast[hdf5]'"
                ) from None

    @cached_property
    def _episodes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        with self._open() as file:
            lengths, offsets = file[LENGTHS][:].astype(np.int64), file[OFFSETS][:].astype(np.int64)
        if lengths.shape != offsets.shape or not len(lengths) or lengths.min() < 0 or offsets.min() < 0:
            raise InputError(
                f"{self.path}: {LENGTHS} and {OFFSETS} do not go together, expected one of each per episode"
            )
        return lengths, offsets

    def _open(self) -> Any:
        h5py = library("h5py", "hdf5", str(self.path))
        with suppress(ImportError):
            # Registers the compressions that h5py does not bring.
            import_module("hdf5plugin")
        try:
            return h5py.File(self.path, "r")
        except OSError as error:
            raise InputError(f"{self.path}: not an HDF5 file that opens ({error})") from None
