import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from jepa_fast.data.manifest import Manifest
from jepa_fast.data.packing import pack
from jepa_fast.data.shards import open_split
from jepa_fast.errors import InputError
from tests.forked import finished

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, draw_source):
    """40 trajectories in shards of 15, 15 and 10."""
    pack(draw_source(), tmp_path / "split", shard_rows=15)
    return tmp_path / "split"


def rewrite_manifest(folder: Path, change) -> None:
    path = folder / "manifest.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def record_hash(folder: Path, field: str, shard: int) -> None:
    """Make the manifest agree with a file that was changed."""

    def change(record):
        file = record["shards"][shard]["files"][field]
        content = (folder / file["name"]).read_bytes()
        file["sha256"], file["bytes"] = hashlib.sha256(content).hexdigest(), len(content)

    rewrite_manifest(folder, change)


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def flip_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def resave(path: Path, convert) -> None:
    np.save(path, convert(np.load(path)))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: shutil.rmtree(f), r"split/manifest\.json: not found; the split is missing"),
        (lambda f: (f / "manifest.json").unlink(), r"manifest\.json: not found; .* packing did not finish"),
        (lambda f: (f / "manifest.json").write_text("{"), r"manifest\.json: not JSON .*, expected a jepa_fast"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"), r"manifest\.json: not JSON"),
        (lambda f: (f / "manifest.json").write_text("[]"), r"manifest\.json: content: found \[\], expected a JSON"),
        (
            lambda f: (f / "agent.pixels-00001.npy").unlink(),
            r"agent.pixels-00001\.npy: not found, expected a file of 1328 bytes",
        ),
        (
            lambda f: (f / "wall.pixels-00002.npy").write_bytes((f / "wall.pixels-00002.npy").read_bytes()[:-1]),
            r"wall.pixels-00002\.npy: found 5327 bytes, expected 5328 \(truncated\)",
        ),
        (
            lambda f: (f / "wall.pixels-00000.npy").write_bytes(b""),
            r"wall.pixels-00000\.npy: found 0 bytes, expected 7928",
        ),
        (
            lambda f: append(f / "actions-00000.npy", b"\0"),
            r"actions-00000\.npy: found 609 bytes, expected 608 \(trailing bytes\)",
        ),
        (
            lambda f: resave(f / "agent.pixels-00000.npy", lambda a: a.view(np.int8)),
            r"agent.pixels-00000\.npy: dtype: found int8, expected uint8",
        ),
        (
            lambda f: resave(f / "actions-00000.npy", lambda a: a.astype(">f4")),
            r"actions-00000\.npy: dtype: found >f4, expected float32",
        ),
        (
            lambda f: resave(f / "wall.pixels-00000.npy", lambda a: a.reshape(15, 1, 26, 20)),
            r"wall.pixels-00000\.npy: shape: found \(15, 1, 26, 20\), expected \(15, 1, 20, 26\)",
        ),
        (
            lambda f: resave(f / "wall.pixels-00000.npy", np.asfortranarray),
            r"wall.pixels-00000\.npy: order: found Fortran, expected C",
        ),
        (
            lambda f: flip_byte(f / "wall.pixels-00000.npy", 0),
            r"wall.pixels-00000\.npy: found no \.npy header .*, expected one",
        ),
        (
            lambda f: flip_byte(f / "wall.pixels-00000.npy", 10),
            r"wall.pixels-00000\.npy: found no \.npy header .*, expected one",
        ),
        (
            lambda f: flip_byte(f / "wall.pixels-00000.npy", 7),
            r"wall.pixels-00000\.npy: found \.npy version \(1, 1\), expected",
        ),
    ],
)
def test_a_broken_file_is_refused_by_name(folder, break_it, message):
    break_it(folder)
    with pytest.raises(InputError, match=message) as raised:
        open_split(folder)
    assert "\n" not in str(raised.value)


def test_every_flipped_bit_of_a_header_is_refused_or_changes_nothing(tmp_path, draw_source):
    pack(draw_source(count=2), tmp_path)
    path = tmp_path / "actions-00000.npy"
    intact = path.read_bytes()
    values = np.load(path)
    messages = []
    for place, bit in np.ndindex(128, 8):
        content = bytearray(intact)
        content[place] ^= 1 << bit
        path.write_bytes(content)
        try:
            array = open_split(tmp_path).arrays["actions"][0]
        except InputError as error:
            messages.append(str(error))
        else:
            np.testing.assert_array_equal(array, values)
    assert len(messages) > 900
    assert all(message.startswith(f"{path}: ") and "expected" in message for message in messages)


def test_trailing_bytes_are_refused_even_when_the_manifest_counts_them(folder):
    append(folder / "wall.pixels-00001.npy", bytes(520))
    record_hash(folder, "wall.pixels", 1)
    with pytest.raises(InputError, match=r"wall.pixels-00001\.npy: size: found 8448, expected 7928"):
        open_split(folder)


def set_key(*keys, to):
    def change(record):
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_key("schema", to="other"), "schema: found 'other', expected jepa_fast.trajectories"),
        (set_key("version", to=4), r"version: found 4, expected 1, 2 or 3 \(written by another release\?\)"),
        (set_key("frames", to=5.0), "frames: found 5.0, expected a value of type int"),
        (set_key("frames", to=True), "frames: found True, expected a value of type int"),
        (set_key("frames", to=1), "frames: found 1, expected at least 2"),
        (set_key("frames", to=6), r"fields.agent.pixels: found .*\[5, 1, 4, 4\].* expected .*\[6, 1, 4, 4\]"),
        (
            set_key("groups", 0, "window", to=[21, 4]),
            r"groups\[0\].window: found \[21, 4\], expected \[h, w\] of at most \[20, 26\]",
        ),
        (
            lambda record: record["groups"][0].pop("window"),
            r"groups\[0\].window: found None, expected a value of type list",
        ),
        (
            set_key("groups", 0, "codec", to="zip"),
            r"groups\[0\].codec: found 'zip', expected one of 'static', 'window'",
        ),
        (set_key("groups", 0, "base", to=None), r"groups\[0\].base: found None, expected one of \('black', 'images'"),
        (set_key("groups", 1, "window", to=None), r"groups\[1\].window: found None, expected one with a base alone"),
        (set_key("groups", 1, "name", to="agent"), r"groups: found \['agent', 'agent'\], expected names that differ"),
        (
            set_key("groups", 1, "name", to="target"),
            r"groups\[1\].name: found 'target', expected an identifier that is",
        ),
        (set_key("groups", to=[]), r"groups: found \[\], expected names that differ, at least one"),
        (set_key("action_size", to=3), r"fields.actions: found .*\[4, 2\].* expected .*\[4, 3\]"),
        (lambda record: record.pop("scale"), "scale: found None, expected a value of type float"),
        (
            lambda record: record["fields"].pop("agent.corner"),
            r"fields: found \['actions', 'agent.pixels'.*expected .*agent.corner",
        ),
        (set_key("fields", "actions", "dtype", to="<f8"), "fields.actions: found .*<f8.* expected .*<f4"),
        (lambda record: record["shards"].pop(), "shards: found 30 rows, expected 40 from trajectory 0 on"),
        (lambda record: record["shards"].clear(), "shards: found 0 rows, expected 40 from trajectory 0 on"),
        (lambda record: record["shards"].pop(1), r"shards\[1\].first: found 30, expected 15"),
        (lambda record: record["shards"].reverse(), r"shards\[1\].first: found 15, expected 10"),
        (
            lambda record: record["shards"][0]["files"].pop("wall.pixels"),
            r"shards\[0\].files: found .*expected .*'wall.pixels'",
        ),
        (
            set_key("shards", 0, "files", "wall.pixels", "name", to="../wall.pixels-00000.npy"),
            r"shards\[0\].files.wall.pixels.name: found '../wall.pixels-00000.npy', expected a file name without",
        ),
        (
            set_key("shards", 0, "files", "wall.pixels", "rows", to=14),
            r"shards\[0\].files.wall.pixels.rows: found 14, expected 15",
        ),
    ],
)
def test_a_wrong_manifest_is_refused_by_key(folder, change, message):
    rewrite_manifest(folder, change)
    with pytest.raises(InputError, match=r"manifest\.json: " + message) as raised:
        open_split(folder)
    assert "\n" not in str(raised.value)


def test_only_verification_finds_a_flipped_byte(folder):
    open_split(folder, verify=True)
    flip_byte(folder / "agent.pixels-00001.npy", 1000)
    open_split(folder)
    with pytest.raises(InputError, match=r"agent.pixels-00001\.npy: found sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"):
        open_split(folder, verify=True)


@pytest.mark.parametrize("field", ["actions", "target.locations"])
def test_verification_finds_values_that_are_not_finite(folder, field):
    path = folder / f"{field}-00001.npy"

    def spoil(values):
        values[7, 2, 1] = np.nan
        return values

    resave(path, spoil)
    record_hash(folder, field, 1)
    open_split(folder)
    with pytest.raises(
        InputError, match=rf"{field}-00001\.npy: trajectory 22, step 2: found \[.*, nan\], expected finite"
    ):
        open_split(folder, verify=True)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("agent.corner", 17, r"agent.corner-00000\.npy: found a corner at \[17, 22\], expected at most \[16, 22\]"),
        ("wall.corner", 27, r"wall.corner-00000\.npy: found a corner at .*27.*, expected at most \[17, 25\]"),
        ("wall.base_index", 2, r"wall.base_index-00000\.npy: found base images 0 to 2, expected 0 to 1"),
        ("wall.base_index", -1, r"wall.base_index-00000\.npy: found base images -1 to 1, expected 0 to 1"),
    ],
)
def test_indices_that_reach_outside_are_refused(folder, field, value, message):
    def spoil(values):
        values[3, ...] = value if values.ndim < 3 else values[3]
        if values.ndim == 3:
            values[3, 1, 0] = value
        return values

    resave(folder / f"{field}-00000.npy", spoil)
    with pytest.raises(InputError, match=message):
        open_split(folder)


def test_rows_are_gathered_across_shards(folder, draw_source):
    source = draw_source()
    split = open_split(folder)
    assert (split.count, split.starts.tolist()) == (40, [0, 15, 30, 40])
    for rows in (range(40), [14, 15, 29, 30], [39], [], [3, 3, 16]):
        indices = np.array(rows, np.int64)
        walls = np.empty((len(indices), 1, 20, 26), np.uint8)
        split.take("wall.pixels", indices, walls)
        np.testing.assert_array_equal(walls[:, 0], source.walls[indices])
    shuffled = np.random.default_rng(0).permutation(40)
    np.testing.assert_array_equal(split.targets("locations", shuffled), source.locations[shuffled])


@pytest.mark.parametrize("indices", [[-1, 3], [3, 40], [4, 3]])
def test_rows_out_of_range_or_order_are_refused(folder, indices):
    split = open_split(folder)
    with pytest.raises(IndexError, match=r"expected ascending values in \[0, 40\)"):
        split.take("wall.pixels", np.array(indices), np.empty((2, 1, 20, 26), np.uint8))


def test_rows_are_not_converted_on_the_way(folder):
    split = open_split(folder)
    with pytest.raises(ValueError, match=r"out: found float32 \(2, 1, 20, 26\), expected uint8 \(2, 1, 20, 26\)"):
        split.take("wall.pixels", np.array([0, 1]), np.empty((2, 1, 20, 26), np.float32))


def test_a_split_without_locations_says_so(tmp_path, draw_source):
    source = draw_source()
    source.locations = None
    pack(source, tmp_path)
    with pytest.raises(InputError, match="holds no locations"):
        open_split(tmp_path).targets("locations", np.array([0]))


def test_mapped_arrays_cannot_be_written(folder):
    array = open_split(folder).arrays["wall.pixels"][0]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


def test_the_fingerprint_changes_with_any_byte_of_the_data(tmp_path, draw_source):
    source = draw_source()
    pack(source, tmp_path / "a")
    pack(source, tmp_path / "b")
    source.actions[0, 0, 0] += 1
    pack(source, tmp_path / "c")
    first, same, other = (open_split(tmp_path / name).fingerprint for name in "abc")
    assert first == same == hashlib.sha256((tmp_path / "a" / "manifest.json").read_bytes()).hexdigest()
    assert other != first


def test_a_manifest_survives_json(folder):
    path = folder / "manifest.json"
    manifest = Manifest.parse(path.read_bytes(), path)
    assert manifest.to_json().encode() == path.read_bytes()
    assert Manifest.parse(manifest.to_json().encode(), path) == manifest
    assert manifest.spec.scale == 0.5


OPEN_LIMITED = """
import resource, sys
from pathlib import Path
soft, hard = int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from jepa_fast.data.shards import open_split
split = open_split(Path(sys.argv[1]))
print(split.count, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def open_limited(folder: Path, soft: int, hard: int) -> subprocess.CompletedProcess:
    return finished("-c", OPEN_LIMITED, folder, soft, hard)


@pytest.mark.linux
def test_many_shards_raise_the_limit_on_open_files_or_explain_it(tmp_path, draw_source):
    pack(draw_source(), tmp_path, shard_rows=1)
    enough = 40 * 8 + 64
    raised = open_limited(tmp_path, soft=100, hard=1000)
    assert (raised.stdout, raised.stderr) == (f"40 {enough}\n", "")
    refused = open_limited(tmp_path, soft=100, hard=enough - 1)
    assert refused.returncode == 1
    assert f"320 shard files need a limit of {enough}, found a hard limit of {enough - 1}" in refused.stderr


@pytest.mark.parametrize("encoding", ["window", "static", "dense"])
def test_the_documented_way_to_read_a_frame_gives_the_frame(tmp_path, draw_source, encoding):
    source = draw_source()
    pack(source, tmp_path, encoding, shard_rows=15)
    blocks = (ROOT / "docs" / "data.md").read_text().split("```python\n")[1:]
    (code,) = (block.split("```")[0] for block in blocks if "manifest.json" in block.split("```")[0])
    names = {}
    exec(code.replace('"data/two_rooms/train"', repr(str(tmp_path))), names)
    frame = np.stack([source.dots[3, 2], source.walls[3]]).astype(np.float32) * np.float32(source.scale)
    np.testing.assert_array_equal(names["frame"], frame)
    assert names["frame"].dtype == np.float32
