"""Codecs of channel groups: the packer finds each where it is exact, of any channels and size, and version 1 opens."""

import json
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa_fast.data.batches import expand_pixels
from jepa_fast.data.host import gather, group_bases
from jepa_fast.data.manifest import ChannelGroup
from jepa_fast.data.packing import pack
from jepa_fast.data.shards import open_split
from jepa_fast.data.two_rooms.source import TwoRoomsSource
from jepa_fast.errors import InputError
from tests.data.conftest import KINDS

# A set of each encoding, made at commit d6d67db, the last that wrote version 1.
VERSION_1 = Path(__file__).with_name("version1.zip")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("channels", "size", "window"), [(3, (20, 26), (4, 6)), (1, (33, 17), (7, 3)), (4, (12, 40), (12, 5))]
)
def test_the_cheapest_codec_is_found_and_every_frame_comes_back(
    tmp_path, draw_kind, read_frames, kind, channels, size, window
):
    source = draw_kind(kind, channels, size=size, window=window)
    pack(source, tmp_path, shard_rows=10)
    split = open_split(tmp_path, verify=True)
    group = split.spec.groups[0]
    codec, base = KINDS[kind]
    # What has no third of the image for a window has no base images either.
    if kind == "static over images" and window[0] == size[0]:
        base = None
    assert (group.codec, group.base) == (codec, base)
    if codec == "window":
        assert group.window == window
    found = read_frames(split)[0]
    np.testing.assert_array_equal(found.reshape(source.first.shape), source.first)
    batch = gather(split, np.arange(source.count))
    expected = np.concatenate(list(source.arrays.values()), axis=2)
    np.testing.assert_array_equal(expand_pixels(batch, split.spec, group_bases(split)), expected)
    np.testing.assert_array_equal(batch.actions, source.actions)


def test_the_log_says_what_was_found_and_what_it_saves(tmp_path, draw_kind, caplog):
    with caplog.at_level(logging.INFO):
        pack(draw_kind("own"), tmp_path / "own", label="mine")
        pack(draw_kind("dense"), tmp_path / "dense", label="noise")
        pack(draw_kind("static over images"), tmp_path / "static", label="still")
    # (5 x 3 x 4 x 6 + 5 x 2 + 3 x 20 x 26) / (5 x 3 x 20 x 26)
    line = "mine: rgb: windows of 4 x 6 pixels over each trajectory's background, 24.7% of the bytes of whole frames"
    # 2 of the 5 frames' worth for the backgrounds' two blocks, and 10 x 12 + 16 x 18 pixels for each window
    assert f"{line}, 59.2% of an encoder's work on them" in caplog.messages
    noise = next(line for line in caplog.messages if line.startswith("noise: rgb: "))
    assert "every frame, as 100% of the pixels change from one frame to the next, 100.0% of the bytes" in noise
    still = next(line for line in caplog.messages if line.startswith("still: rgb: "))
    assert "one image per trajectory, a window of 4 x 6 pixels over 3 base images, 20.1% of the bytes" in still


def test_square_windows_are_square_where_the_image_allows(tmp_path, draw_kind):
    source = draw_kind("black", 3, size=(40, 60), window=(4, 6))
    source.square = True
    assert pack(source, tmp_path).spec.groups[0].window == (6, 6)


def test_frames_that_never_change_are_stored_per_frame_in_one_group(tmp_path, draw_kind, read_frames):
    """A batch's number of frames is read off a group that has some."""
    source = draw_kind("static")
    del source.arrays["spot"]
    pack(source, tmp_path)
    split = open_split(tmp_path)
    assert (split.spec.groups[0].codec, split.spec.groups[0].window) == ("window", (1, 1))
    np.testing.assert_array_equal(read_frames(split)[0], source.first)
    assert gather(split, np.array([0])).length == 5


def test_a_name_that_cannot_be_a_group_is_refused(tmp_path, draw_kind):
    source = draw_kind("dense")
    source.arrays = {"target": source.first}
    with pytest.raises(InputError, match="got the name 'target', expected a Python identifier other than"):
        pack(source, tmp_path, label="mine")
    with pytest.raises(InputError, match="mine: encoding: got 'full', expected one of window, static, dense"):
        pack(draw_kind("dense"), tmp_path, "full", label="mine")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def version_1(tmp_path_factory):
    folder = tmp_path_factory.mktemp("version1")
    with zipfile.ZipFile(VERSION_1) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("train", "window"),
        ("probe_wall_other/val", "window"),
        ("probe_normal/val", "static"),
        ("probe_wall/val", "dense"),
    ],
)
def test_a_version_1_set_opens_with_the_batches_of_a_new_one(version_1, tmp_path, name, encoding, caplog):
    assert json.loads((version_1 / name / "manifest.json").read_text())["version"] == 1
    old = open_split(version_1 / name, verify=True)
    source = TwoRoomsSource(name, old.count, 0)
    pack(source, tmp_path / "new", encoding)
    new = open_split(tmp_path / "new")
    assert old.spec == new.spec
    assert (old.spec.groups[1].base == "images") == (name == "probe_wall_other/val")
    for ours, theirs in zip(old.bases, new.bases, strict=True):
        np.testing.assert_array_equal(ours, theirs) if theirs is not None else ours is None
    everything = np.arange(old.count)
    wanted = gather(new, everything).tensors()
    for part, tensor in gather(old, everything).tensors().items():
        assert (tensor is None) == (wanted[part] is None)
        if tensor is not None:
            assert tensor.dtype == wanted[part].dtype
            assert torch.equal(tensor, wanted[part]), part
    np.testing.assert_array_equal(old.targets("locations", everything), new.targets("locations", everything))
    # Packing it once more keeps it as it is.
    before = (version_1 / name / "manifest.json").read_bytes()
    with caplog.at_level(logging.INFO):
        assert pack(source, version_1 / name, encoding).version == 1
    assert "already there" in caplog.text
    assert (version_1 / name / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("key", ["fields", "window", "encoding", "shards"])
def test_a_version_1_manifest_that_is_not_whole_is_refused_by_name(version_1, tmp_path, key):
    record = json.loads((version_1 / "train" / "manifest.json").read_text())
    del record[key]
    (tmp_path / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"manifest\.json: not a whole manifest of version 1"):
        open_split(tmp_path)


def test_a_group_is_found_by_its_name(version_1):
    spec = open_split(version_1 / "train").spec
    assert (spec.index("agent"), spec.index("wall"), spec.channels) == (0, 1, 2)
    assert spec.groups[0] == ChannelGroup("agent", 1, "window", (10, 10), "black")
    with pytest.raises(LookupError):
        spec.index("rgb")
