"""Your own trajectories, without a command: `pack` writes any iterable of episodes, `TrajectoryDataset` reads a split.

import jepa_fast as jf

jf.pack(((frames, actions, {"place": places}) for frames, actions, places in mine), "data/mine/train")
frames, actions, targets = jf.TrajectoryDataset("data/mine/train")[0]
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from jepa_fast.data.batches import to_values
from jepa_fast.data.columns import ChannelOrder, Selection
from jepa_fast.data.conversion import convert_columns
from jepa_fast.data.decoding import decoded_frames, stored_rows
from jepa_fast.data.manifest import Encoding, FrameSpec, check_name
from jepa_fast.data.readers.arrays import ArrayFiles
from jepa_fast.data.shards import Split, open_split
from jepa_fast.data.sources import SourceGroup
from jepa_fast.errors import InputError
from jepa_fast.platforms import available_cores

Targets = Mapping[str, ArrayLike]

# What the columns of targets are called while episodes wait.
TARGET = "target."


class Trajectory(NamedTuple):
    """One trajectory of T frames."""

    frames: Tensor  # float32 [T, C, H, W]
    actions: Tensor  # float32 [T - 1, A]; action t leads from frame t to frame t + 1
    targets: dict[str, Tensor]  # float32 [T, size] each


class TrajectoryDataset(Dataset[Trajectory]):
    """The trajectories of a packed split, one by one: a map-style dataset for DataLoaders and notebooks.

    It can be pickled, and each worker of a DataLoader maps the files for itself. Training takes whole batches from the
    shards instead (`jepa_fast.data.loaders`), without making frames of them first.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open the split in `folder`.

        Raises:
            InputError: there is none, or it is not whole.
        """
        self.split: Split = open_split(Path(folder))

    @property
    def spec(self) -> FrameSpec:
        """Sizes, channels and targets."""
        return self.split.spec

    def __len__(self) -> int:
        return self.split.count

    def __getitem__(self, index: int) -> Trajectory:
        """Trajectory `index`; negative ones count from the end.

        Raises:
            IndexError: there is no such trajectory.
        """
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index: got {index}, expected at most {len(self) - 1} in a set of {len(self)}")
        row = np.array([index % len(self)])
        frames = to_values(torch.from_numpy(decoded_frames(self.split, row)[0]), self.spec)
        actions = torch.from_numpy(stored_rows(self.split, "actions", row)[0])
        targets = {name: torch.from_numpy(self.split.targets(name, row)[0]) for name, _ in self.spec.targets}
        return Trajectory(frames, actions, targets)

    def __fspath__(self) -> str:
        """The folder of the split: wherever a path is expected, the data set may stand."""
        return str(self.split.folder)

    def __getstate__(self) -> dict[str, Any]:
        # A mapped array would be pickled with all that it holds.
        return {"folder": self.split.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.split = open_split(state["folder"])


def pack(
    episodes: Iterable[tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, Targets | None]],
    out: str | Path,
    *,
    groups: Sequence[tuple[str, int]] = (),
    channels: ChannelOrder | None = None,
    action_classes: int | None = None,
    scale: float | None = None,
    encoding: Encoding = "window",
    workers: int | None = None,
    validation: float | None = None,
) -> TrajectoryDataset:
    """Write episodes of any length as the split `out`, compare it with them, and open it.

    They are taken one by one, and kept in a temporary folder beside `out` until they are packed.

    Args:
        episodes: frames, actions and, where there are some, targets of each. Frames are uint8, bool or any float,
            [T, C, H, W], [T, H, W, C] or [T, H, W] of one channel; actions are numbers [T - 1, A] or [T - 1], or of
            T, of which the last is left out; targets are numbers [T, size] or [T] by name.
        out: folder of the split; for training, the folder "train" of a data set.
        groups: names and numbers of channels that are stored and encoded in one way; by default one group of all.
        channels: whether channels stand first or last in a frame; by default found from the shape.
        action_classes: number of classes of integer actions [T - 1], which become one-hot.
        scale: value of one uint8 step; by default 1/255 for bytes, and for floats the 255th part of their range.
        encoding: the strongest codec to be used, as in `jepa_fast.data.packing.pack`.
        workers: processes; by default one for each core.
        validation: share of the episodes that becomes `out`/val, beside `out`/train, which is then opened.

    Raises:
        InputError: naming the episode that does not fit the first, or a value that is not finite.
        OSError: a file cannot be written.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-episodes-", dir=out.parent) as folder:
        files = _spool(episodes, Path(folder))
        named = tuple(SourceGroup(check_name(name, "groups"), count) for name, count in groups)
        targets = tuple((name.removeprefix(TARGET), name) for name in files.files if name.startswith(TARGET))
        selection = Selection("frames", "actions", targets, named, channels, action_classes)
        convert_columns(files, selection, out, scale, encoding, workers or available_cores(), validation)
    return TrajectoryDataset(out if validation is None else out / "train")


def _spool(episodes: Iterable[Any], folder: Path) -> ArrayFiles:
    """Write episodes end to end: a file of frames, one of actions and one of each target."""
    files: dict[str, _GrowingArray] = {}
    try:
        for number, episode in enumerate(episodes):
            frames, actions, *rest = episode
            targets = (rest[0] if rest else None) or {}
            arrays = {"frames": np.asarray(frames), "actions": np.asarray(actions)}
            arrays |= {TARGET + check_name(name, "targets"): _floats(values) for name, values in targets.items()}
            if not files:
                files = {name: _GrowingArray(folder / f"{name}.npy", array) for name, array in arrays.items()}
            if arrays.keys() != files.keys():
                raise InputError(f"episode {number}: found {sorted(arrays)}, expected {sorted(files)} as in episode 0")
            for name, array in arrays.items():
                files[name].append(array, f"episode {number}: {name}")
        if not files:
            raise InputError("episodes: found none, expected at least one")
        lengths = {name: np.array(file.lengths, np.int64) for name, file in files.items()}
        return ArrayFiles({name: file.finish() for name, file in files.items()}, lengths)
    finally:
        for file in files.values():
            file.close()


def _floats(values: ArrayLike) -> NDArray[Any]:
    """Numbers as floats, so that whole ones in one episode go with others in the next."""
    array = np.asarray(values)
    return array.astype(np.float64) if array.dtype.kind in "iub" else array


class _GrowingArray:
    """A .npy file that gets longer episode by episode, and the number of rows of each."""

    def __init__(self, path: Path, first: NDArray[Any]) -> None:
        self._path, self._shape, self._dtype = path, first.shape[1:], first.dtype
        self.lengths: list[int] = []
        if self._dtype.kind not in "fiub" or not first.ndim:
            raise InputError(
                f"episode 0: {path.stem}: found {self._dtype} {list(first.shape)}, expected numbers [T, ...]"
            )
        self._file = path.open("wb")
        self._write_header(0)
        self._start = self._file.tell()

    def append(self, array: NDArray[Any], what: str) -> None:
        """Write one episode, whose rows are of the type and shape of the first one's."""
        if not array.ndim or array.shape[1:] != self._shape or array.dtype != self._dtype:
            expected = f"{self._dtype} {['T', *self._shape]} as in episode 0".replace("'", "")
            raise InputError(f"{what}: found {array.dtype} {list(array.shape)}, expected {expected}")
        self._file.write(np.ascontiguousarray(array).data)
        self.lengths.append(len(array))

    def finish(self) -> Path:
        """The whole file."""
        self._file.seek(0)
        self._write_header(sum(self.lengths))
        # NumPy leaves room in a header for a first axis of any length.
        assert self._file.tell() == self._start
        self._file.close()
        return self._path

    def close(self) -> None:
        """Give the file back, whole or not."""
        self._file.close()

    def _write_header(self, rows: int) -> None:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (rows, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)
