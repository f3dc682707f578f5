"""Files are written as they are read back, whatever their pieces, and tell their own hash."""

import errno
import hashlib

import numpy as np
import pytest

from jepa_fast.data import writing
from jepa_fast.data.manifest import Field
from jepa_fast.data.writing import ArrayWriter


@pytest.mark.parametrize("sizes", [(0, 3, 1), (5, 0, 700, 2), (1200,)])
def test_pieces_of_any_size_become_one_file_that_knows_its_hash(tmp_path, monkeypatch, sizes):
    for name, bytes_ in (("LARGE", 1000), ("READ_BACK", 512), ("FLUSHED", 2000)):
        monkeypatch.setattr(writing, name, bytes_)
    rows = np.random.default_rng(0).integers(0, 256, (sum(sizes), 3), np.uint8)
    path = tmp_path / "rows.npy"
    with ArrayWriter(path, Field("|u1", (3,)), len(rows)) as writer:
        for piece in np.split(rows, np.cumsum(sizes)[:-1]):
            writer.write(piece)
        record = writer.finish()
    np.testing.assert_array_equal(np.load(path), rows)
    assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (record.rows, record.bytes) == (len(rows), path.stat().st_size)
    assert [one.name for one in tmp_path.iterdir()] == ["rows.npy"]


class Forgetful:
    """A file on a disk that gives back one bit otherwise than it was given."""

    def __init__(self, file, place):
        self._file, self._place = file, place

    def readinto(self, buffer):
        first = self._file.tell()
        count = self._file.readinto(buffer)
        if first <= self._place < first + count:
            buffer[self._place - first] ^= 1
        return count

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_a_disk_that_gives_back_other_bytes_is_an_error_with_the_file_s_name_and_leaves_nothing(tmp_path):
    rows = np.zeros((3_000_000,), np.uint8)
    with ArrayWriter(tmp_path / "rows.npy", Field("|u1", ()), len(rows)) as writer:
        writer._file = Forgetful(writer._file, 2_000_000)
        with pytest.raises(OSError, match=r"reads otherwise than it was written: '.*rows\.npy'") as caught:
            writer.write(rows)
        assert caught.value.errno == errno.EIO
    assert list(tmp_path.iterdir()) == []


def test_a_flush_that_fails_is_an_error_with_the_file_s_name(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, "flush_file", full)
    monkeypatch.setattr(writing, "FLUSHED", 10)
    with (
        ArrayWriter(tmp_path / "rows.npy", Field("|u1", ()), 100) as writer,
        pytest.raises(OSError, match=r"No space left on device: '.*rows\.npy'"),
    ):
        writer.write(np.zeros(100, np.uint8))
    assert list(tmp_path.iterdir()) == []
