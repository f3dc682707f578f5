"""Files in the layouts of other libraries, made as they make them, convert to what they hold; faults are named."""

import json
import logging
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jepa_fast.convert import convert
from jepa_fast.data.dataset import TrajectoryDataset
from jepa_fast.data.readers import open_reader
from jepa_fast.errors import InputError
from tests.forked import finished

ROOT = Path(__file__).parents[2]
LENGTHS = (5, 9, 3, 12)
SIZE = (16, 24)


def draw(channels=3, lengths=LENGTHS, seed=0):
    """Per episode frames uint8 [L, H, W, C], actions [L, 2] whose last is NaN, and a state [L, 4]."""
    random = np.random.default_rng(seed)
    for length in lengths:
        frames = np.repeat(random.integers(0, 256, (1, *SIZE, channels), np.uint8), length, axis=0)
        for step in range(length):
            frames[step, step : step + 3, 2 * step : 2 * step + 2] = 255
        actions = random.normal(size=(length, 2)).astype(np.float32)
        actions[-1] = np.nan
        yield frames, actions, random.normal(size=(length, 4))


def assert_holds(folder, episodes, close=0):
    """A split holds the episodes, with a target called agent."""
    data = TrajectoryDataset(folder)
    episodes = list(episodes)
    assert len(data) == len(episodes)
    for found, (frames, actions, state) in zip(data, episodes, strict=True):
        # The brightest byte stands for 1.
        assert abs(255 * found.frames.numpy() - np.moveaxis(frames, -1, 1)).max() <= close + 1e-4
        np.testing.assert_array_equal(found.actions, actions[:-1])
        np.testing.assert_array_equal(found.targets["agent"], state.astype(np.float32))


def write_hdf5(path, episodes=None, **compression):
    """As stable-worldmodel's writer does: growing datasets with a chunk per step, lengths and offsets beside them."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w", libver="latest") as file:
        done = 0
        for frames, actions, state in draw() if episodes is None else episodes:
            columns = {"pixels": frames, "action": actions, "proprio": state, "reward": state[:, 0]}
            for name, values in columns.items():
                if name not in file:
                    shape, chunks = (0, *values.shape[1:]), (1, *values.shape[1:])
                    more = compression if name == "pixels" else {}
                    file.create_dataset(
                        name, shape, values.dtype, maxshape=(None, *values.shape[1:]), chunks=chunks, **more
                    )
                file[name].resize(done + len(values), axis=0)
                file[name][done:] = values
            for name, value, kind in (("ep_len", len(frames), np.int32), ("ep_offset", done, np.int64)):
                if name not in file:
                    file.create_dataset(name, (0,), kind, maxshape=(None,))
                file[name].resize(len(file[name]) + 1, axis=0)
                file[name][-1] = value
            done += len(frames)


def hdf5(tmp_path, **more):
    return convert(
        source=tmp_path / "mine.h5", frames="pixels", actions="action", targets=("agent=proprio",),
        out=tmp_path / "split", workers=1, **more,
    )  # fmt: skip


@pytest.mark.parametrize("compression", [{}, {"compression": "gzip"}, "blosc"])
def test_an_hdf5_file_of_stable_worldmodel_converts_to_what_it_holds(tmp_path, compression):
    if compression == "blosc":
        compression = dict(pytest.importorskip("hdf5plugin").Blosc(cname="lz4"))
    write_hdf5(tmp_path / "mine.h5", **compression)
    # What is not compressed is copied by this process, not handed over from others.
    assert open_reader(tmp_path / "mine.h5").columns["pixels"].is_plain == (not compression)
    manifest = hdf5(tmp_path)
    assert manifest.source["states"] == "pixels"
    assert (manifest.source["format"], manifest.source["file"]) == ("hdf5", "mine.h5")
    assert_holds(tmp_path / "split", draw())


def test_columns_that_are_called_as_usual_need_not_be_named(tmp_path):
    write_hdf5(tmp_path / "mine.h5")
    manifest = convert(source=tmp_path / "mine.h5", out=tmp_path / "split", workers=1)
    assert (manifest.source["states"], manifest.source["actions"]) == ("pixels", "action")


def test_episodes_are_divided_for_validation_once_and_for_all(tmp_path):
    write_hdf5(tmp_path / "mine.h5")
    hdf5(tmp_path, validation=0.25)
    parts = [TrajectoryDataset(tmp_path / "split" / name) for name in ("train", "val")]
    assert [len(part) for part in parts] == [3, 1]
    lengths = [sorted(len(trajectory.frames) for trajectory in part) for part in parts]
    assert sorted(lengths[0] + lengths[1]) == sorted(LENGTHS)
    before = (tmp_path / "split" / "val" / "manifest.json").read_bytes()
    hdf5(tmp_path, validation=0.25)
    assert (tmp_path / "split" / "val" / "manifest.json").read_bytes() == before
    with pytest.raises(InputError, match=r"--validation: got 0\.01, expected a share that leaves both parts of 4"):
        hdf5(tmp_path, validation=0.01)


def test_an_npz_file_may_hold_episodes_of_any_length(tmp_path):
    frames, actions, states = (np.concatenate(each) for each in zip(*draw(), strict=True))
    np.savez(tmp_path / "mine.npz", frames=frames, actions=actions, state=states, ep_len=np.array(LENGTHS))
    convert(source=tmp_path / "mine.npz", targets=("agent=state",), out=tmp_path / "split", workers=1)
    assert_holds(tmp_path / "split", draw())
    equal = [np.stack(each) for each in zip(*draw(lengths=(7, 7)), strict=True)]
    np.savez(tmp_path / "equal.npz", frames=equal[0], actions=equal[1], state=equal[2])
    convert(source=tmp_path / "equal.npz", targets=("agent=state",), out=tmp_path / "equal", workers=1)
    assert_holds(tmp_path / "equal", draw(lengths=(7, 7)))
    ragged = np.empty(2, object)
    ragged[:] = [frames[:3], frames[3:]]
    np.savez(tmp_path / "objects.npz", frames=ragged, actions=equal[1])
    with pytest.raises(InputError, match=r"objects\.npz: frames: found objects, .* stored end to end, with ep_len"):
        convert(source=tmp_path / "objects.npz", out=tmp_path / "small", workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_compressed_npz_file_gives_the_bits_of_one_that_is_not_and_leaves_nothing_behind(tmp_path, workers):
    frames, actions, states = (np.concatenate(each) for each in zip(*draw(), strict=True))
    arrays = {"frames": frames, "actions": actions, "state": states, "ep_len": np.array(LENGTHS)}
    splits = {}
    for name, save in (("plain", np.savez), ("small", np.savez_compressed)):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "mine.npz", **arrays)
        out = tmp_path / name / "split"
        convert(source=tmp_path / name / "mine.npz", targets=("agent=state",), out=out, workers=workers)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["mine.npz", "split"]
        splits[name] = {path.name: path.read_bytes() for path in out.iterdir()}
    assert splits["small"] == splits["plain"]


def test_a_compressed_npz_file_that_is_damaged_or_too_large_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    frames, actions, _ = (np.concatenate(each) for each in zip(*draw(), strict=True))
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, frames=frames, actions=actions, ep_len=np.array(LENGTHS))
    whole = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
        with pytest.raises(InputError, match=r"found 0\.00 GB free"):
            convert(source=path, out=tmp_path / "split", workers=1)
    path.write_bytes(whole[:200] + bytes(200) + whole[400:])
    with pytest.raises(InputError, match=r"mine\.npz: not a whole \.npz file"):
        convert(source=path, out=tmp_path / "split", workers=1)
    assert [one.name for one in tmp_path.iterdir()] == ["mine.npz"]


class Walk:
    """An environment of the library's kind is more than its recorder needs: episodes are buffers."""

    def __init__(self, gymnasium, image):
        self.observation_space = gymnasium.spaces.Dict(
            {"rgb": image, "state": gymnasium.spaces.Box(-9, 9, (4,), np.float64)}
        )
        self.action_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_minari_data_set_converts_to_what_it_holds(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    gymnasium = pytest.importorskip("gymnasium")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    walk = Walk(gymnasium, gymnasium.spaces.Box(0, 255, (*SIZE, 3), np.uint8))
    buffers = []
    for number, (frames, actions, state) in enumerate(draw()):
        steps = len(frames) - 1
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                id=number,
                observations={"rgb": list(frames), "state": list(state)},
                actions=list(actions[:-1]),
                rewards=[0.0] * steps,
                terminations=[False] * steps,
                truncations=[False] * (steps - 1) + [True],
                infos={},
            )
        )
    minari.create_dataset_from_buffers(
        "walk/any-v0",
        buffers,
        observation_space=walk.observation_space,
        action_space=walk.action_space,
        data_format="hdf5",
        jpeg_encoding=False,
        author="nobody",
    )
    convert(
        source=tmp_path / "walk" / "any-v0",
        frames="observations/rgb",
        targets=("agent=observations/state",),
        out=tmp_path / "split",
        workers=1,
    )
    assert_holds(tmp_path / "split", draw())


CAMERA = "observation.images.top"


def write_lerobot(root, codebase="v3.0", fps=10):
    """Version 3: two parquet files, two videos of two episodes each, and where every episode lies."""
    av, pa = pytest.importorskip("av"), pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    features = {
        "action": {"dtype": "float32", "shape": [2], "names": None},
        "observation.state": {"dtype": "float32", "shape": [4], "names": None},
        CAMERA: {"dtype": "video", "shape": [*SIZE, 3], "names": ["height", "width", "channels"]},
        **{name: {"dtype": "int64", "shape": [1], "names": None} for name in ("index", "episode_index")},
    }
    info = {
        "codebase_version": codebase,
        "fps": fps,
        "total_episodes": len(LENGTHS),
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
    }
    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (root / "data" / "chunk-000").mkdir(parents=True)
    (root / "videos" / CAMERA / "chunk-000").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    rows, done = [], 0
    episodes = list(draw())
    for file in range(2):
        parts, second = [], 0.0
        with av.open(str(root / "videos" / CAMERA / "chunk-000" / f"file-{file:03d}.mp4"), "w") as container:
            stream = container.add_stream("libx264rgb", rate=Fraction(fps), options={"qp": "0", "g": "2"})
            stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "rgb24"
            for number in range(2 * file, 2 * file + 2):
                frames, actions, state = episodes[number]
                length = len(frames)
                for frame in frames:
                    for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                        container.mux(packet)
                columns = {
                    "action": list(np.nan_to_num(actions)),
                    "observation.state": list(state.astype(np.float32)),
                    "index": np.arange(done, done + length),
                    "episode_index": np.full(length, number),
                }
                parts.append(pa.table(columns))
                rows.append(
                    {
                        "episode_index": number,
                        "length": length,
                        "dataset_from_index": done,
                        "dataset_to_index": done + length,
                        "data/chunk_index": 0,
                        "data/file_index": file,
                        f"videos/{CAMERA}/chunk_index": 0,
                        f"videos/{CAMERA}/file_index": file,
                        f"videos/{CAMERA}/from_timestamp": second,
                        f"videos/{CAMERA}/to_timestamp": second + length / fps,
                        "stats/action/mean": [0.0, 0.0],
                    }
                )
                done, second = done + length, second + length / fps
            for packet in stream.encode():
                container.mux(packet)
        pq.write_table(pa.concat_tables(parts), root / "data" / "chunk-000" / f"file-{file:03d}.parquet")
    pq.write_table(pa.Table.from_pylist(rows), root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")


def test_a_lerobot_data_set_converts_to_what_it_holds(tmp_path):
    write_lerobot(tmp_path / "mine")
    convert(source=tmp_path / "mine", targets=("agent=observation.state",), out=tmp_path / "split", workers=1)
    assert_holds(tmp_path / "split", draw())


def test_a_lerobot_data_set_of_another_version_or_without_a_video_is_refused(tmp_path):
    write_lerobot(tmp_path / "old", codebase="v2.1")
    with pytest.raises(InputError, match=r"old: LeRobot version v2\.1, expected v3\.0; LeRobot's own script"):
        convert(source=tmp_path / "old", out=tmp_path / "split", workers=1)
    write_lerobot(tmp_path / "mine")
    path = tmp_path / "mine" / "videos" / CAMERA / "chunk-000" / "file-001.mp4"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"file-001\.mp4: episode 2: cannot be decoded"):
        convert(source=tmp_path / "mine", out=tmp_path / "split", workers=1)
    path.unlink()
    with pytest.raises(InputError, match=r"file-001\.mp4: not found, expected the file of episode 2"):
        convert(source=tmp_path / "mine", out=tmp_path / "split", workers=1)


@pytest.mark.parametrize(
    ("library", "extra"),
    [("h5py", "hdf5"), ("minari", "minari"), ("pyarrow.parquet", "lerobot"), ("av", "lerobot")],
)
def test_a_library_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, library, extra):
    if extra == "hdf5":
        (tmp_path / "mine.h5").write_bytes(b"")
    elif extra == "minari":
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "metadata.json").write_text("{}")
    else:
        write_lerobot(tmp_path)
    source = tmp_path / "mine.h5" if extra == "hdf5" else tmp_path
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"needs {library.partition('.')[0]} .*: pip install 'jepa_fast\[{extra}\]'"):
        convert(source=source, out=tmp_path / "split", workers=1)


def without(name):
    def change(file):
        del file[name]

    return change


def put(name, place, value):
    def change(file):
        file[name][place] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("pixels"), "column: got 'pixels', expected one of action, proprio, reward, in .*h5: pixels"),
        (without("action"), "column: got 'action', expected one of pixels, proprio"),
        (without("ep_len"), "mine.h5: holds action, ep_offset, .*, expected ep_len beside the columns"),
        (put("action", (7, 1), np.nan), "mine.h5: action: trajectory 1, step 2: found nan, expected finite numbers"),
        (put("proprio", (14, 0), np.inf), "mine.h5: proprio: trajectory 2, step 0: found inf, expected finite"),
        (put("ep_len", 3, 13), r"mine.h5: .*: found 29 rows, expected 30 as ep_offset and ep_len say"),
        (put("ep_offset", 2, -1), "mine.h5: ep_len and ep_offset do not go together"),
    ],
)
def test_a_damaged_hdf5_file_is_refused_in_one_line_and_nothing_is_written(tmp_path, change, message):
    h5py = pytest.importorskip("h5py")
    write_hdf5(tmp_path / "mine.h5")
    with h5py.File(tmp_path / "mine.h5", "r+") as file:
        change(file)
    with pytest.raises(InputError, match=message) as raised:
        hdf5(tmp_path)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.h5"]


def test_a_file_of_no_known_format_and_a_wrong_use_of_flags_are_refused(tmp_path):
    (tmp_path / "mine.csv").write_text("1, 2")
    with pytest.raises(InputError, match=r"mine\.csv: of no known format, expected \.npz, \.h5"):
        open_reader(tmp_path / "mine.csv")
    with pytest.raises(InputError, match=r"none: not found"):
        open_reader(tmp_path / "none")
    (tmp_path / "mine.h5").write_bytes(b"1, 2")
    with pytest.raises(InputError, match=r"mine\.h5: not an HDF5 file that opens"):
        open_reader(tmp_path / "mine.h5")
    write_hdf5(tmp_path / "mine.h5")
    with pytest.raises(InputError, match=r"--states: got .*, expected a column of .*mine\.h5: --frames or --targets"):
        convert(source=tmp_path / "mine.h5", states=tmp_path, out=tmp_path / "split")
    with pytest.raises(InputError, match="SOURCE, --states: got None, expected a file or folder of episodes"):
        convert(out=tmp_path / "split")


def test_the_command_takes_a_file_and_columns_by_name(tmp_path):
    write_hdf5(tmp_path / "mine.h5")
    words = ["mine.h5", "--frames", "pixels", "--actions", "action", "--targets", "agent=proprio", "--out", "split"]
    done = finished("-m", "jepa_fast.convert", *words, "--workers", 1, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert "mine.h5: action: as many actions as frames: the last of every episode leads to no frame" in done.stderr
    assert "channels last" in done.stderr
    assert "split: frames: windows of" in done.stderr
    assert_holds(tmp_path / "split", draw())
    words[2] = "rgb"
    done = finished("-m", "jepa_fast.convert", *words, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    assert done.stderr == "error: column: got 'rgb', expected one of action, pixels, proprio, reward, in mine.h5: rgb\n"


def test_episodes_of_one_frame_are_left_out_by_name_and_may_lie_in_any_order(tmp_path, caplog):
    h5py = pytest.importorskip("h5py")
    episodes = list(draw(lengths=(5, 1, 9, 1, 4)))
    write_hdf5(tmp_path / "mine.h5", episodes)
    with h5py.File(tmp_path / "mine.h5", "r+") as file:
        for name in ("ep_len", "ep_offset"):
            file[name][:] = file[name][:][::-1]
    with caplog.at_level(logging.INFO):
        hdf5(tmp_path)
    assert "2 episodes of fewer than 2 frames are left out: 1, 3" in caplog.text
    assert_holds(tmp_path / "split", [episodes[4], episodes[2], episodes[0]])
