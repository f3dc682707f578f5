"""Converting the course layout: what comes out is what went in, and what is wrong is told by file, trajectory, step."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_fast.convert import convert
from jepa_fast.data import conversion
from jepa_fast.data.columns import quantise
from jepa_fast.data.decoding import decoded_frames, stored_rows
from jepa_fast.data.shards import open_split
from jepa_fast.data.two_rooms import WORLD
from jepa_fast.errors import InputError
from tests.course_layout import course_arrays, save
from tests.forked import finished

ROOT = Path(__file__).parents[1]
TWO_ROOMS = ("agent:1", "wall:1")


# What a byte stands for: the brightest is 1.
BYTE = 1 / 255


def frames_of(folder):
    """Frames float64 [N, T, 2, H, W] of a split, from its files alone."""
    split = open_split(folder, verify=True)
    return decoded_frames(split, np.arange(split.count)) * split.spec.scale + split.spec.offset


@pytest.mark.parametrize("kind", ["uint8", "float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("encoding", ["window", "static", "dense"])
def test_every_kind_of_states_comes_back(tmp_path, monkeypatch, kind, encoding):
    monkeypatch.setattr(conversion, "CHUNK_ROWS", 7)
    states, actions, locations = course_arrays()
    given_states = states if kind == "uint8" else (states * WORLD.scale).astype(kind)
    files = save(tmp_path / "course", given_states, actions.astype(np.float64), locations)
    manifest = convert(**files, out=tmp_path / "split", encoding=encoding, groups=TWO_ROOMS, workers=1)
    error, scale = manifest.source["largest_error"], manifest.spec.scale
    assert scale == BYTE if kind == "uint8" else abs(scale / WORLD.scale - 1) < 1e-3
    meant = states * BYTE if kind == "uint8" else given_states
    worst = abs(frames_of(tmp_path / "split") - meant).max()
    assert worst == pytest.approx(error, rel=1e-12, abs=0)
    assert error <= scale / 2 * (1 + 1e-6)
    # Here the floats are multiples of the scale, up to their own rounding.
    assert error <= (0 if kind == "uint8" else 5e-4 if kind == "float16" else 1e-7) * states.max() * scale
    split = open_split(tmp_path / "split")
    assert split.spec.groups[0].window == ((10, 10) if encoding == "window" else None)
    assert split.spec.groups[1].codec == ("dense" if encoding == "dense" else "static")
    np.testing.assert_array_equal(split.targets("locations", np.arange(30)), locations)
    np.testing.assert_array_equal(stored_rows(split, "actions", np.arange(30)), actions)


@settings(max_examples=200)
@given(st.floats(0, 1e6, width=32), st.floats(1e-6, 1e6))
def test_rounding_is_to_the_nearest_step(largest, scale):
    values = np.linspace(0, min(largest, 255 * scale), 9).astype(np.float32)
    restored = quantise(values, scale).astype(np.float64) * scale
    assert (abs(restored - values) <= scale * 0.5001).all()


def test_the_largest_error_is_what_the_data_lose(tmp_path):
    states, actions, _ = course_arrays(6)
    values = np.random.default_rng(0).random(states.shape)
    files = save(tmp_path / "course", values, actions)
    manifest = convert(**files, out=tmp_path / "split", workers=1)
    scale = values.max() / 255
    assert manifest.spec.scale == scale
    assert manifest.source["largest_error"] == abs(np.rint(values / scale) * scale - values).max()
    assert manifest.spec.groups[0].codec == "dense"
    assert manifest.spec.targets == ()


def test_a_wall_that_moves_is_kept_frame_by_frame(tmp_path):
    states, actions, locations = course_arrays()
    states = states.copy()
    states[17, 9:, 1] = states[18, 9:, 1]
    files = save(tmp_path / "course", states, actions, locations)
    manifest = convert(**files, out=tmp_path / "split", groups=TWO_ROOMS, workers=1)
    agent, wall = manifest.spec.groups
    assert wall.codec == "window"
    assert agent.window == (10, 10)
    np.testing.assert_array_equal(frames_of(tmp_path / "split"), states * BYTE)


def test_arrays_in_other_orders_are_read_as_numpy_reads_them(tmp_path):
    states, actions, locations = course_arrays(9)
    files = save(tmp_path / "course", np.asfortranarray(states), np.asfortranarray(actions), locations)
    convert(**files, out=tmp_path / "split", workers=1)
    np.testing.assert_array_equal(frames_of(tmp_path / "split"), states * BYTE)


def test_a_scale_of_ones_own_is_taken_or_refused(tmp_path):
    states, actions, _ = course_arrays(5)
    files = save(tmp_path / "course", states, actions)
    manifest = convert(**files, out=tmp_path / "bytes", scale=WORLD.scale, workers=1)
    assert manifest.spec.scale == WORLD.scale
    files = save(tmp_path / "course", states.astype(np.float32), actions)
    with pytest.raises(InputError, match=r"--scale: got 0\.5, expected at least 1\.0: .*states\.npy holds 255\.0"):
        convert(**files, out=tmp_path / "floats", scale=0.5, workers=1)
    assert convert(**files, out=tmp_path / "floats", scale=2.0, workers=1).source["largest_error"] == 1.0


def test_many_workers_write_the_same_bits(tmp_path, monkeypatch):
    states, actions, locations = course_arrays(40)
    files = save(tmp_path / "course", (states * WORLD.scale).astype(np.float32), actions, locations)
    monkeypatch.setattr(conversion, "CHUNK_ROWS", 8)
    assert convert(**files, out=tmp_path / "one", workers=1) == convert(**files, out=tmp_path / "two", workers=2)


def zipped_array():
    stream = io.BytesIO()
    np.savez(stream, np.zeros(3))
    return stream.getvalue()


def spoil(place, value, which="states"):
    def change(arrays):
        arrays[which][place] = value

    return change


def swap(which, convert_array):
    def change(arrays):
        arrays[which] = convert_array(arrays[which])

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil((13, 2, 1, 5, 5), np.nan), r"states\.npy: trajectory 13, step 2: found nan, expected finite numbers"),
        (spoil((13, 2, 0, 5, 5), np.inf), r"states\.npy: trajectory 13, step 2: found inf, expected finite"),
        (spoil((9, 3, 1), np.nan, "actions"), r"actions\.npy: trajectory 9, step 3: found nan, expected finite"),
        (spoil((9, 4, 0), -np.inf, "locations"), r"locations\.npy: trajectory 9, step 4: found -inf, expected finite"),
        (
            spoil((9, 4, 0), 1e300, "locations"),
            r"locations\.npy: trajectory 9, step 4: found 1e\+300, expected float32",
        ),
        (
            swap("states", lambda a: a[:, :, :1]),
            r"states\.npy: .* \[20, 17, 1, 65, 65\], expected the channels of --groups",
        ),
        (
            swap("states", lambda a: a[0, 0]),
            r"states\.npy: found float32 \[2, 65, 65\], expected float, bool or uint8 \[N",
        ),
        (swap("states", lambda a: np.repeat(a, 9, axis=2)), r"states\.npy: found shape .*, expected 1 to 16 channels"),
        (
            swap("states", lambda a: a[..., :2]),
            r"states\.npy: found shape .*, expected to be told whether channels are",
        ),
        (swap("states", lambda a: a.astype(np.int32)), r"states\.npy: found int32 .*, expected float, bool or uint8"),
        (swap("states", lambda a: a[:0]), r"states\.npy: found float32 \[0, .*, expected"),
        (swap("states", lambda a: a[:, :1]), r"states\.npy: found float32 \[20, 1, .*, expected .* T >= 2"),
        (swap("actions", lambda a: a[1:]), r"actions\.npy: found float32 \[19, 16, 2\], expected float \[20, 16, A\]"),
        (swap("actions", lambda a: a[:, 1:]), r"actions\.npy: found .*\[20, 15, 2\], expected float \[20, 16, A\], as"),
        (
            swap("actions", lambda a: a.astype(np.int64)[..., 0]),
            r"actions\.npy: found int64 .*, expected floats, or the",
        ),
        (swap("actions", lambda a: a.astype(complex)), r"actions\.npy: found complex128 .*, expected float"),
        (
            swap("locations", lambda a: a[:, 1:]),
            r"locations\.npy: found .*\[20, 16, 2\], expected float \[20, 17, size\]",
        ),
        (swap("locations", lambda a: a[..., None]), r"locations\.npy: found .*\[20, 17, 2, 1\], expected float"),
    ],
)
@pytest.mark.parametrize("rows", [6, 512])
def test_wrong_arrays_are_refused_by_file_trajectory_and_step(tmp_path, monkeypatch, change, message, rows):
    monkeypatch.setattr(conversion, "CHUNK_ROWS", rows)
    states, actions, locations = course_arrays(20)
    arrays = {
        "states": (states * WORLD.scale).astype(np.float32),
        "actions": actions.copy(),
        "locations": locations.astype(np.float64),
    }
    change(arrays)
    with pytest.raises(InputError, match=message) as raised:
        convert(**save(tmp_path / "course", **arrays), out=tmp_path / "split", groups=TWO_ROOMS, workers=1)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "split").exists()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda path: path.unlink(), r"states\.npy: not found, expected a \.npy file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"states\.npy: not an array that can be mapped \(mmap"),
        (lambda path: path.write_bytes(b""), r"states\.npy: not an array that can be mapped"),
        (lambda path: path.write_text("1, 2, 3"), r"states\.npy: not an array that can be mapped"),
        (
            lambda path: np.save(path, np.array([{}]), allow_pickle=True),
            r"states\.npy: not an array that can be mapped",
        ),
        (lambda path: path.write_bytes(zipped_array()), r"states\.npy: not an array that can be mapped"),
    ],
)
def test_files_that_are_no_arrays_are_refused_by_name(tmp_path, break_it, message):
    states, actions, _ = course_arrays(3)
    files = save(tmp_path, states, actions)
    break_it(files["states"])
    with pytest.raises(InputError, match=message):
        convert(**files, out=tmp_path / "split", workers=1)


CONVERT_LIMITED = """
import resource, sys
from pathlib import Path
from jepa_fast.convert import convert
folder = Path(sys.argv[1])
if __name__ == "__main__":
    private = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1])
    before = private()
    import threading
    most, done = [0], threading.Event()
    def watch():
        while not done.wait(0.005):
            most[0] = max(most[0], private())
    watcher = threading.Thread(target=watch)
    watcher.start()
    convert(folder / "states.npy", folder / "actions.npy", folder / "split", workers=1)
    done.set()
    watcher.join()
    print((most[0] - before) // 1024)
"""


@pytest.mark.linux
def test_memory_does_not_grow_with_the_set(tmp_path):
    """A set of 460 MB passes through a part of that, which does not depend on its size: files are mapped, not read."""
    states, actions, _ = course_arrays(200)
    large = np.lib.format.open_memmap(tmp_path / "states.npy", "w+", np.float64, (400, *states.shape[1:]))
    for low in range(0, 400, 200):
        large[low : low + 200] = states * WORLD.scale
    large.flush()
    np.save(tmp_path / "actions.npy", np.tile(actions, (2, 1, 1)))
    done = subprocess.run(
        [sys.executable, "-c", CONVERT_LIMITED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert large.nbytes > 450e6
    assert int(done.stdout) < 250


@pytest.mark.posix
def test_the_command_says_what_it_did_and_what_is_wrong(tmp_path):
    states, actions, locations = course_arrays(10)
    files = save(tmp_path / "course", (states * WORLD.scale).astype(np.float32), actions, locations)
    words = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    command = ["-m", "jepa_fast.convert", *words, "--out", tmp_path / "split", "--workers", 1]
    done = finished(*command)
    assert done.returncode == 0, done.stderr
    assert "every frame, action and target on disk compared with its source: equal after rounding" in done.stderr
    files["actions"].unlink()
    done = finished(*command)
    assert done.returncode == 2
    assert done.stderr == f"error: {files['actions']}: not found, expected a .npy file\n"


def draw_states(shape, kind, seed=0):
    """Noise that moves in one corner of frames [N, T, C, H, W]; the rest of each trajectory stands still."""
    random = np.random.default_rng(seed)
    states = np.repeat(random.integers(0, 256, (shape[0], 1, *shape[2:])), shape[1], axis=1)
    states[..., :5, :7] = random.integers(0, 256, (*shape[:3], 5, 7))
    return states.astype(np.uint8) if kind == "uint8" else (states / 127.5 - 1).astype(kind)


@pytest.mark.parametrize("kind", ["uint8", "float16", "float32"])
@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("shape", [(9, 4, 3, 20, 34), (9, 2, 1, 28, 28), (3, 5, 16, 17, 40)])
def test_frames_of_any_channels_and_size_come_back(tmp_path, kind, order, shape):
    states = draw_states(shape, kind)
    actions = np.random.default_rng(1).standard_normal((*shape[:2], 7))
    files = save(tmp_path / "given", states if order == "first" else np.moveaxis(states, 2, -1), actions)
    manifest = convert(**files, out=tmp_path / "split", workers=1)
    spec, split = manifest.spec, open_split(tmp_path / "split", verify=True)
    assert (spec.channels, spec.height, spec.width, spec.action_size) == (*shape[2:], 7)
    assert spec.groups[0].name == "frames"
    assert spec.offset == (0 if kind == "uint8" else -1)
    meant = states * BYTE if kind == "uint8" else states
    worst = abs(frames_of(tmp_path / "split") - meant).max()
    assert worst == pytest.approx(manifest.source["largest_error"], rel=1e-12)
    assert worst <= spec.scale / 2 * (1 + 1e-6)
    # Of T actions the last is left out.
    expected = actions[:, :-1].astype(np.float32)
    np.testing.assert_array_equal(stored_rows(split, "actions", np.arange(shape[0])), expected)


def test_integer_actions_become_one_hot_and_targets_have_names(tmp_path):
    states = draw_states((6, 4, 3, 20, 24), "uint8")
    actions, places = np.arange(18).reshape(6, 3) % 5, np.random.default_rng(2).random((6, 4))
    files = save(tmp_path / "given", states, actions)
    np.save(tmp_path / "given" / "angle.npy", places)
    targets = (f"angle={tmp_path / 'given' / 'angle.npy'}",)
    convert(**files, out=tmp_path / "split", targets=targets, action_classes=5, groups=("rgb:3",), workers=1)
    split = open_split(tmp_path / "split")
    assert (split.spec.action_size, split.spec.targets) == (5, (("angle", 1),))
    np.testing.assert_array_equal(stored_rows(split, "actions", np.arange(6)), np.eye(5)[actions])
    np.testing.assert_array_equal(split.targets("angle", np.arange(6))[..., 0], places.astype(np.float32))
    with pytest.raises(InputError, match=r"actions\.npy: trajectory 1, step 1: found 4, expected a class from 0 to 3"):
        convert(**files, out=tmp_path / "other", action_classes=4, workers=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ("rgb",)}, "--groups: got 'rgb', expected NAME:CHANNELS, such as rgb:3"),
        ({"groups": ("a-b:3",)}, "--groups: got the name 'a-b', expected a Python identifier"),
        ({"groups": ("a:1", "a:2")}, r"--groups: got \['a', 'a'\], expected names that differ"),
        ({"groups": ("a:1", "b:1")}, "expected the channels of --groups a:1, b:1"),
        ({"targets": ("place",)}, "--targets: got 'place', expected NAME=FILE"),
        ({"action_classes": 1}, "--action-classes: got 1, expected at least 2"),
        ({"action_classes": 3}, r"actions\.npy: found float64 \[6, 3, 2\], expected integers \[6, 3\]"),
    ],
)
def test_options_that_do_not_fit_are_one_line(tmp_path, options, message):
    files = save(tmp_path / "given", draw_states((6, 4, 3, 20, 24), "uint8"), np.zeros((6, 3, 2)))
    with pytest.raises(InputError, match=message):
        convert(**files, out=tmp_path / "split", workers=1, **options)
    assert not (tmp_path / "split").exists()
