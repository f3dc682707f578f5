import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jepa_fast.data.manifest import ChannelGroup
from jepa_fast.data.packing import pack
from jepa_fast.data.shards import open_split
from jepa_fast.data.two_rooms.source import TwoRoomsSource
from jepa_fast.data.windows import bounding_boxes, cut_windows, first_difference
from jepa_fast.errors import InputError

ROOT = Path(__file__).parents[2]
ENCODINGS = ("window", "static", "dense")


def assert_same_frames(source, split, read_frames):
    dots, walls = read_frames(split)
    expected = source.walls if source.walls.ndim == 4 else np.broadcast_to(source.walls[:, None], source.dots.shape)
    np.testing.assert_array_equal(dots, source.dots)
    np.testing.assert_array_equal(walls, expected)
    everything = np.arange(source.count)
    actions = np.empty_like(source.actions)
    split.take("actions", everything, actions)
    np.testing.assert_array_equal(actions, source.actions)
    if source.locations is not None:
        np.testing.assert_array_equal(split.targets("locations", everything), source.locations)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("shard_rows", [None, 7, 40])
def test_every_encoding_gives_the_frames_back(tmp_path, draw_source, read_frames, encoding, shard_rows):
    source = draw_source()
    pack(source, tmp_path, encoding, shard_rows=shard_rows)
    split = open_split(tmp_path, verify=True)
    agent, wall = split.spec.groups
    assert agent.window == ((4, 4) if encoding == "window" else None)
    assert wall.codec == ("dense" if encoding == "dense" else "static")
    assert len(split.manifest.shards) == (1 if shard_rows is None else -(-40 // shard_rows))
    assert_same_frames(source, split, read_frames)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 6),
    frames=st.integers(2, 4),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    ink=st.floats(0, 1),
    moving_wall=st.booleans(),
    encoding=st.sampled_from(ENCODINGS),
    seed=st.integers(0, 1000),
)
def test_any_images_survive_packing(
    tmp_path, draw_source, read_frames, count, frames, height, width, ink, moving_wall, encoding, seed
):
    random = np.random.default_rng(seed)
    source = draw_source(2, frames, 20, 20)
    source.actions = random.standard_normal((count, frames - 1, 2)).astype(np.float32)
    source.locations = None
    source.dots = random.integers(0, 256, (count, frames, height, width)).astype(np.uint8)
    source.dots *= random.random(source.dots.shape) < ink**3
    wall_shape = (count, frames, height, width) if moving_wall else (count, height, width)
    source.walls = random.integers(0, 2, wall_shape).astype(np.uint8)
    folder = tmp_path / "split"
    shutil.rmtree(folder, ignore_errors=True)
    pack(source, folder, encoding, shard_rows=4)
    assert_same_frames(source, open_split(folder, verify=True), read_frames)


def put_noise(source):
    source.dots[23, 2] = np.random.default_rng(1).integers(0, 2, source.dots.shape[2:])


def put_second_dot(source):
    source.dots[23, 2, 0, 0] = source.dots[23, 2, -1, -1] = 9


def put_larger_dot(source):
    source.dots[23, 2] = 0
    source.dots[23, 2, 3:9, 5:10] = 7


@pytest.mark.parametrize(("fault", "window"), [(put_noise, None), (put_second_dot, None), (put_larger_dot, (6, 5))])
@pytest.mark.parametrize("shard_rows", [10, 40])
def test_dots_that_do_not_fit_the_window_are_stored_whole(
    tmp_path, draw_source, read_frames, monkeypatch, caplog, fault, window, shard_rows
):
    monkeypatch.setattr("jepa_fast.data.packing.CHUNK_ROWS", 5)
    source = draw_source()
    fault(source)
    with caplog.at_level(logging.INFO):
        pack(source, tmp_path, shard_rows=shard_rows)
    named = [line for line in caplog.messages if "trajectory 23, step 2" in line]
    assert len(named) == 1
    assert ("as whole frames" if window is None else "as windows of 6 x 5 pixels over black") in named[0]
    split = open_split(tmp_path, verify=True)
    assert split.spec.groups[0].window == window
    assert_same_frames(source, split, read_frames)
    names = {file.name for shard in split.manifest.shards for file in shard.files.values()}
    assert {path.name for path in tmp_path.iterdir()} == names | {"manifest.json"}


@pytest.mark.parametrize("pixels", [1, 2])
def test_a_wall_that_changes_is_stored_per_frame(tmp_path, draw_source, read_frames, monkeypatch, caplog, pixels):
    monkeypatch.setattr("jepa_fast.data.packing.CHUNK_ROWS", 5)
    source = draw_source()
    source.walls = np.repeat(source.walls[:, None], source.frames, axis=1)
    source.walls[31, 3, 0, 0] ^= 1
    source.walls[31, 3, -1, -1] ^= pixels - 1
    with caplog.at_level(logging.INFO):
        pack(source, tmp_path, shard_rows=8)
    assert sum("trajectory 31, step 3: wall: it differs" in line for line in caplog.messages) == 1
    split = open_split(tmp_path, verify=True)
    agent, wall = split.spec.groups
    # One pixel is a window over each trajectory's own wall; two in opposite corners leave whole frames alone.
    expected = ("window", (1, 1), "own") if pixels == 1 else ("dense", None, None)
    assert (wall.codec, wall.window, wall.base) == expected
    assert agent.window == (4, 4)
    assert split.bases == (None, None)
    assert_same_frames(source, split, read_frames)


def test_equal_walls_given_per_frame_are_stored_once(tmp_path, draw_source, read_frames):
    source = draw_source()
    source.walls = np.repeat(source.walls[:, None], source.frames, axis=1)
    pack(source, tmp_path)
    split = open_split(tmp_path)
    assert split.spec.groups[1].codec == "static"
    assert_same_frames(source, split, read_frames)


def test_corners_that_exceed_a_byte_are_stored_in_two(tmp_path, draw_source, read_frames):
    source = draw_source(count=3, height=300, width=20)
    source.dots[1, 1] = 0
    source.dots[1, 1, 298, 3] = 1
    pack(source, tmp_path)
    split = open_split(tmp_path)
    assert split.spec.groups[0].window == (4, 4)
    assert split.arrays["agent.corner"][0].dtype == np.int16
    assert split.arrays["agent.corner"][0][1, 1].tolist() == [296, 3]
    assert_same_frames(source, split, read_frames)


def test_bounding_boxes_match_a_search_pixel_by_pixel():
    random = np.random.default_rng(3)
    images = (random.random((200, 7, 9)) < 0.05).astype(np.uint8)
    boxes = bounding_boxes(images)
    assert any(not image.any() for image in images)
    for image, corner, size in zip(images, boxes.corners, boxes.sizes, strict=True):
        places = np.argwhere(image)
        expected = (places.min(axis=0), np.ptp(places, axis=0) + 1) if len(places) else ([0, 0], [0, 0])
        np.testing.assert_array_equal((corner, size), expected)


def test_verification_finds_a_window_cut_at_the_wrong_place(draw_source):
    dots = draw_source().dots.reshape(-1, 1, 20, 26)
    corners = bounding_boxes(dots[:, 0]).corners
    assert first_difference(dots, cut_windows(dots, corners, (4, 4)), corners) is None
    corners[77, 0] ^= 1
    corners[77, 0] = min(corners[77, 0], 16)
    assert first_difference(dots, cut_windows(dots, corners, (4, 4)), corners) == 77


def test_wall_groups_give_every_wall_back(tmp_path, draw_source):
    source = draw_source(count=60)
    # The first shard knows one base, the last one the other: their own numbering starts at 0 in both.
    source.walls = source.walls[np.argsort(source.walls[:, :, 8].max(axis=1))]
    pack(source, tmp_path, shard_rows=25)
    split = open_split(tmp_path, verify=True)
    assert [shard.files["wall.base"].rows for shard in split.manifest.shards] == [1, 2, 1]
    wall = split.spec.groups[1]
    assert (wall.codec, wall.base, wall.window) == ("static", "images", (3, 1))
    full_walls = np.zeros((2, 20, 26), np.uint8)
    full_walls[0, :, 8] = full_walls[1, :, 15] = 200
    assert {base.tobytes() for base in split.bases[1]} == {wall.tobytes() for wall in full_walls}
    everything = np.arange(60)
    groups, corners = np.empty(60, np.int32), np.empty((60, 2), np.uint8)
    split.take("wall.base_index", everything, groups)
    split.take("wall.corner", everything, corners)
    for wall, group, (row, column) in zip(source.walls, groups, corners, strict=True):
        rebuilt = split.bases[1][group, 0].copy()
        rebuilt[row : row + 3, column] = wall[row : row + 3, column]
        np.testing.assert_array_equal(rebuilt, wall)


@pytest.mark.parametrize(("name", "bases"), [("train", 20), ("probe_wall_other/val", 5)])
def test_two_rooms_has_one_wall_base_for_each_wall_column(tmp_path, name, bases):
    source = TwoRoomsSource(name, 900, seed=1)
    pack(source, tmp_path, shard_rows=400)
    split = open_split(tmp_path, verify=True)
    assert split.spec.groups == (
        ChannelGroup("agent", 1, "window", (10, 10), "black"),
        ChannelGroup("wall", 1, "static", (9, 9), "images"),
    )
    assert len(split.bases[1]) == bases
    # A wall base is the room with the wall and no door: three full columns besides the borders' two.
    np.testing.assert_array_equal((split.bases[1][:, 0] == 255).all(axis=1).sum(axis=1), np.full(bases, 5))
    walls, groups, corners = (
        np.empty((900, *row), kind) for row, kind in (((1, 65, 65), np.uint8), ((), np.int32), ((2,), np.uint8))
    )
    for field, out in (("wall.pixels", walls), ("wall.base_index", groups), ("wall.corner", corners)):
        split.take(field, np.arange(900), out)
    np.testing.assert_array_equal(walls, source.chunk(0, 900).groups[1])
    differs = (walls != split.bases[1][groups])[:, 0]
    for image, (row, column) in zip(differs, corners, strict=True):
        assert image.any()
        image[row : row + 9, column : column + 9] = False
        assert not image.any()


def test_walls_without_likeness_get_no_groups(tmp_path, draw_source, read_frames):
    source = draw_source()
    source.walls = np.random.default_rng(2).integers(0, 256, source.walls.shape).astype(np.uint8)
    pack(source, tmp_path)
    split = open_split(tmp_path)
    assert split.spec.groups[1].window is None
    assert split.bases == (None, None)
    assert_same_frames(source, split, read_frames)


def test_too_many_distinct_walls_end_the_search_for_groups(tmp_path, draw_source, monkeypatch):
    monkeypatch.setattr("jepa_fast.data.bases.MOST_DISTINCT", 4)
    source = draw_source(count=60)
    pack(source, tmp_path)
    assert open_split(tmp_path).bases == (None, None)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.actions.__setitem__((13, 2, 1), np.nan), "trajectory 13, step 2: actions: found .*nan"),
        (lambda s: s.actions.__setitem__((13, 2, 0), -np.inf), "trajectory 13, step 2: actions: found .*-inf"),
        (lambda s: s.locations.__setitem__((9, 4, 0), np.inf), "trajectory 9, step 4: locations: found .*inf"),
        (lambda s: setattr(s, "dots", s.dots.astype(np.float32)), r"agent: found float32 .* expected uint8"),
        (lambda s: setattr(s, "actions", s.actions.astype(np.float64)), r"actions: found float64 .* expected float32"),
        (lambda s: setattr(s, "actions", s.actions[:, 1:]), r"actions: found .*\[40, 3, 2\], expected .*\[40, 4, 2\]"),
        (
            lambda s: setattr(s, "walls", s.walls[:, 1:]),
            r"wall: found .*\[40, 1, 19, 26\], expected .*\[40, 1, 20, 26\]",
        ),
        (lambda s: setattr(s, "dots", s.dots[:, :1]), "source: found 40 trajectories of 1 frames"),
        (lambda s: setattr(s, "dots", s.dots[:0]), "source: found 0 trajectories"),
    ],
)
def test_bad_source_data_is_refused_by_name(tmp_path, draw_source, spoil, message):
    source = draw_source()
    spoil(source)
    with pytest.raises(InputError, match=message) as raised:
        pack(source, tmp_path)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
