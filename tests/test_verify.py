import pytest

from tests.forked import finished


def verify(folder):
    return finished("-m", "jepa_fast.verify", folder)


def test_every_split_below_a_folder_is_hashed(two_rooms):
    done = verify(two_rooms)
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert len(lines) == 7
    assert all(line.endswith("GB: whole") for line in lines)
    assert any(line.startswith(f"{two_rooms / 'train'}: 48 trajectories") for line in lines)


@pytest.mark.parametrize("place", [500, -1])
def test_a_flipped_bit_is_found_and_named(tmp_path, two_rooms, place):
    for path in (two_rooms / "train").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "wall.pixels-00000.npy").read_bytes())
    content[place] ^= 4
    (tmp_path / "wall.pixels-00000.npy").write_bytes(content)
    done = verify(tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/wall.pixels-00000.npy: found sha256 ")
    assert done.stderr.count("\n") == 1


def test_a_folder_without_a_split_says_so(tmp_path):
    done = verify(tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}: found no manifest.json, expected a split or a folder of splits\n"
