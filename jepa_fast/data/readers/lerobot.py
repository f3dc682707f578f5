"""LeRobot data sets of version 3: numbers in parquet files, cameras in mp4 files that hold many episodes each.

    meta/info.json                                   fps, features, templates of the paths below
    meta/episodes/chunk-000/file-000.parquet         per episode its length, and where its rows and videos lie
    data/chunk-000/file-000.parquet                  a row per frame
    videos/<camera>/chunk-000/file-000.mp4           episode i from second `from_timestamp` on

An action belongs to its own frame; the last of an episode leads nowhere, and is left out.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.readers import Column, Rows, library
from jepa_fast.errors import InputError, require
from jepa_fast.reading import read_json

# Of an episode's parquet files: numbers of files and rows. Statistics, which are most of them, are left aside.
KEYS = ("episode_index", "length", "dataset_from_index", "data/chunk_index", "data/file_index")
VIDEO_KEYS = ("chunk_index", "file_index", "from_timestamp")
# How frames are stored: in mp4 files, or as encoded images in the rows themselves.
CAMERAS = ("video", "image")


@dataclass(frozen=True)
class LeRobotEpisodes:
    """Episodes of one data set.

    Raises:
        InputError: it is of another version, or a file is missing or damaged; pyarrow or av is missing.
    """

    path: Path

    def __post_init__(self) -> None:
        version = str(self._info.get("codebase_version"))
        if not version.startswith("v3."):
            raise InputError(
                f"{self.path}: LeRobot version {version}, expected v3.0; LeRobot's own script "
                "convert_dataset_v21_to_v30 brings a 2.1 set there"
            )

    @cached_property
    def columns(self) -> Mapping[str, Column]:
        """The features; cameras as uint8 [H, W, 3]."""
        found, lengths = {}, self._episodes["length"]
        for name, feature in self._info["features"].items():
            shape = tuple(feature["shape"])
            if feature["dtype"] in CAMERAS:
                # Stored as [C, H, W] or [H, W, C], as the names of the axes say; decoded as the latter.
                names = feature.get("names") or ()
                if len(shape) == 3 and list(names)[:1] in (["channels"], ["channel"]):
                    shape = (*shape[1:], shape[0])
                found[name] = Column(np.dtype(np.uint8), shape, lengths)
            elif feature["dtype"] != "string":
                found[name] = Column(np.dtype(feature["dtype"]), shape, lengths)
        return found

    @property
    def description(self) -> dict[str, Any]:
        """The name of the folder."""
        return {"format": "lerobot", "file": self.path.name}

    def label(self, column: str) -> str:
        """Its name."""
        return column

    def where(self, column: str) -> str:
        """The folder and the feature."""
        return f"{self.path}: {column}"

    def read(self, names: Sequence[str], episodes: NDArray[np.int64]) -> Rows:
        """Rows of the parquet files, and frames decoded from the videos."""
        videos = [name for name in names if self._info["features"][name]["dtype"] == "video"]
        stored = [name for name in names if name not in videos]
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
        held: tuple[Path, Any, int] | None = None
        for episode in episodes.tolist():
            if stored:
                path = self._file("data_path", episode, "data")
                if held is None or held[0] != path:
                    held = (path, *self._table(path, stored))
                first, length = int(self._episodes["dataset_from_index"][episode]), self._length(episode)
                part = held[1].slice(first - held[2], length)
                if len(part) != length:
                    raise InputError(f"{path}: episode {episode}: found {len(part)} rows, expected {length}")
                for name in stored:
                    parts[name].append(self._array(part[name], name, episode))
            for name in videos:
                parts[name].append(self._frames(name, episode))
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    @cached_property
    def _info(self) -> dict[str, Any]:
        path = self.path / "meta" / "info.json"
        found = read_json(path, "the description of a LeRobot data set")
        right = isinstance(found, dict) and isinstance(found.get("features"), dict)
        require(right, str(path), found, 'a JSON object with "features"')
        info: dict[str, Any] = found
        for name, feature in info["features"].items():
            known = isinstance(feature, dict) and "dtype" in feature
            require(known, f"{path}: features.{name}", feature, 'a JSON object with "dtype"')
        return info

    @cached_property
    def _episodes(self) -> dict[str, NDArray[Any]]:
        """Per key the values of all episodes, in order."""
        parquet = library("pyarrow.parquet", "lerobot", str(self.path))
        paths = sorted((self.path / "meta" / "episodes").glob("*/*.parquet"))
        if not paths:
            raise InputError(f"{self.path}: found no meta/episodes/*/*.parquet")
        videos = [name for name, feature in self._info["features"].items() if feature["dtype"] == "video"]
        keys = [*KEYS, *(f"videos/{name}/{key}" for name in videos for key in VIDEO_KEYS)]
        tables = [parquet.read_table(path, columns=keys) for path in paths]
        for path, table in zip(paths, tables, strict=True):
            missing = [key for key in keys if key not in table.column_names]
            if missing:
                raise InputError(f"{path}: found no {missing[0]}, expected it of every episode")
        values = {key: np.concatenate([table[key].to_numpy() for table in tables]) for key in keys}
        order = np.argsort(values["episode_index"], kind="stable")
        return {key: array[order] for key, array in values.items()}

    def _length(self, episode: int) -> int:
        return int(self._episodes["length"][episode])

    def _file(self, template: str, episode: int, at: str, **more: str) -> Path:
        chunk, file = (int(self._episodes[f"{at}/{key}_index"][episode]) for key in ("chunk", "file"))
        path = self.path / str(self._info[template]).format(chunk_index=chunk, file_index=file, **more)
        if not path.is_file():
            raise InputError(f"{path}: not found, expected the file of episode {episode}")
        return path

    def _table(self, path: Path, names: list[str]) -> tuple[Any, int]:
        """Columns of a parquet file, and the number of its first row in the whole set."""
        parquet = library("pyarrow.parquet", "lerobot", str(path))
        table = parquet.read_table(path, columns=["index", *names])
        return table, int(table["index"][0].as_py())

    def _array(self, column: Any, name: str, episode: int) -> NDArray[Any]:
        """The rows of a parquet column, each of the feature's shape."""
        wanted = self.columns[name]
        if self._info["features"][name]["dtype"] == "image":
            return np.stack([_decoded(row["bytes"]) for row in column.to_pylist()])
        if column.null_count:
            raise InputError(f"{self.where(name)}: episode {episode}: found rows without a value")
        values = np.asarray(column.to_pylist(), dtype=wanted.dtype)
        return values.reshape(len(column), *wanted.shape)

    def _frames(self, name: str, episode: int) -> NDArray[np.uint8]:
        """Frames uint8 [L, H, W, 3] of a camera."""
        av = library("av", "lerobot", str(self.path))
        path, length = self._file("video_path", episode, f"videos/{name}", video_key=name), self._length(episode)
        begin, half = float(self._episodes[f"videos/{name}/from_timestamp"][episode]), 0.5 / float(self._info["fps"])
        frames: NDArray[np.uint8] = np.empty((length, *self.columns[name].shape), np.uint8)
        done = 0
        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                # To the key frame at or before the first one.
                container.seek(int(begin / stream.time_base), stream=stream)
                for frame in container.decode(stream):
                    if frame.time < begin - half:
                        continue
                    image = frame.to_ndarray(format="rgb24")
                    if image.shape != frames.shape[1:]:
                        raise InputError(f"{path}: found frames of {image.shape}, expected {frames.shape[1:]}")
                    frames[done] = image
                    done += 1
                    if done == length:
                        return frames
        except av.FFmpegError as error:
            raise InputError(f"{path}: episode {episode}: cannot be decoded ({error})") from None
        raise InputError(f"{path}: episode {episode}: found {done} frames, expected {length}")


def _decoded(image: bytes) -> NDArray[np.uint8]:
    """An encoded image as uint8 [H, W, C]."""
    from PIL import Image

    array = np.asarray(Image.open(io.BytesIO(image)))
    return array if array.ndim == 3 else array[..., None]
