"""Data of one's own, of every kind that is promised: from a file by the documented commands to a report."""

import logging

import numpy as np
import pytest

from jepa_fast import cli, convert, evaluate, train
from jepa_fast.data.shards import open_split
from jepa_fast.errors import InputError
from jepa_fast.report import __main__ as report


def moving(count, frames, size, channels=3, seed=0):
    """Frames uint8 [N, T, C, H, W] with a square at (x, y), and where it is [N, T, 2]."""
    random = np.random.default_rng(seed)
    height, width = size
    images = np.repeat(random.integers(0, 256, (count, 1, channels, height, width)).astype(np.uint8), frames, axis=1)
    places = random.integers(0, [width - 4, height - 4], (count, frames, 2))
    for row, step in np.ndindex(count, frames):
        x, y = places[row, step]
        images[row, step, :, y : y + 4, x : x + 4] = 255
    return images, places.astype(np.float32)


def save(folder, frames, actions, places):
    """The files, and the words of the command that converts them."""
    for name, array in (("frames", frames), ("actions", actions), ("places", places)):
        np.save(folder / f"{name}.npy", array)
    names = [str(folder / f"{name}.npy") for name in ("frames", "actions", "places")]
    return ["--frames", names[0], "--actions", names[1], "--targets", f"place={names[2]}"]


def run(module, *words):
    """A command, as its line would."""
    module.main(cli.parse(module.Arguments, "", [str(word) for word in words], getattr(module, "defaults", None)))


def convert_by(words, out, *more):
    """`python -m jepa_fast.convert`."""
    words = [*words, "--out", str(out), "--workers", "1", *more]
    convert.main(cli.parse(convert.ConvertArguments, "", words))


SMALL = ("--preset", "generic", "--model.channels", "4", "--model.dim", "8", "--data.batch-size", "4", "--steps", "2")


def trained(tmp_path, *more, small=SMALL):
    """Train on data/, probe where there is enough to probe, and report."""
    run(train, "--data.path", tmp_path / "data", "--out", tmp_path / "run", *small, *more)
    run(evaluate, tmp_path / "run")
    run(report, tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "place" in page
    return open_split(tmp_path / "data")


def cases():
    images, places = moving(8, 6, (64, 64))
    actions = np.random.default_rng(1).normal(size=(8, 5, 7)).astype(np.float32)
    yield "rgb of 64 x 64 with 7 actions", images, actions, places, ()
    two, at = moving(6, 4, (96, 96), channels=2)
    yield "floats of 2 channels", (two / 200 - 0.5).astype(np.float32), actions[:6, :3], at, ()
    yield "channels last", np.moveaxis(images[:, :4], 2, -1), actions[:, :4], places[:, :4], ()
    yield "half floats", (images[:, :4, :, :32, :32] / 255).astype(np.float16), actions[:, :3], places[:, :4], ()
    wide, at = moving(8, 4, (48, 80))
    yield "48 x 80", wide, actions[:, :3], at, ()
    grey, at = moving(8, 5, (28, 28), channels=1)
    yield "28 x 28 grey", grey[:, :, 0], actions[:, :5], at, ()
    yield "flags", grey > 99, actions[:, :4], at, ()
    yield "two frames", grey[:, :2], actions[:, :1], at[:, :2], ()
    yield "integers", grey, np.random.default_rng(0).integers(0, 5, (8, 4)), at, ("--action-classes", "5")
    yield "two integers", grey, np.random.default_rng(0).integers(0, 5, (8, 4, 2)), at, ()
    long, at = moving(4, 200, (16, 16), channels=1)
    yield "200 frames", long, np.zeros((4, 199, 2)), at, ()


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0])
def test_every_kind_of_frames_and_actions_trains_and_ends_with_a_report(tmp_path, case):
    name, frames, actions, places, more = case
    convert_by(save(tmp_path, frames, actions, places), tmp_path / "data", *more)
    split = trained(tmp_path)
    assert split.spec.frames == frames.shape[1]
    assert split.spec.action_size == (5 if name == "integers" else actions.shape[2])


def test_episodes_of_5_to_300_frames_in_one_file_train_and_end_with_a_report(tmp_path):
    h5py = pytest.importorskip("h5py")
    lengths = np.array([5, 300, 40, 7, 90, 12, 33, 64])
    images, places = moving(1, int(lengths.sum()), (32, 32))
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file["pixels"], file["proprio"] = images[0], places[0]
        file["action"] = np.random.default_rng(0).normal(size=(lengths.sum(), 2))
        file["ep_len"], file["ep_offset"] = lengths, np.cumsum(lengths) - lengths
    words = [str(tmp_path / "mine.h5"), "--targets", "place=proprio", "--validation", "0.25"]
    convert_by(words, tmp_path / "data")
    run(train, "--data.path", tmp_path / "data", "--data.frame-skip", "2", "--out", tmp_path / "run", *SMALL)
    run(evaluate, tmp_path / "run")
    run(report, tmp_path / "run")
    assert "place" in (tmp_path / "run" / "report.html").read_text()


def test_fewer_trajectories_than_a_batch_are_one_batch_and_one_is_cut_into_clips(tmp_path, caplog):
    images, places = moving(6, 6, (16, 16), channels=1)
    words = save(tmp_path, images, np.zeros((6, 5, 2)), places)
    convert_by(words, tmp_path / "data")
    small = SMALL[: SMALL.index("--data.batch-size")]
    with caplog.at_level(logging.INFO):
        trained(tmp_path, "--steps", "2", small=small)
    assert "batch size: 6, all that there is, in place of 32" in caplog.text
    convert_by(save(tmp_path, images[:1], np.zeros((1, 5, 2)), places[:1]), tmp_path / "one")
    with caplog.at_level(logging.INFO):
        run(train, "--data.path", tmp_path / "one", "--out", tmp_path / "second", *small, "--steps", "2")
    assert "4 clips of 3 frames (--data.frames) from 1 trajectory of 6 frames" in caplog.text


def test_a_folder_of_splits_names_them_and_the_only_one_is_trained_on(tmp_path):
    images, places = moving(6, 3, (16, 16), channels=1)
    words = save(tmp_path, images, np.zeros((6, 2, 2)), places)
    convert_by(words, tmp_path / "data" / "walks")
    run(train, "--data.path", tmp_path / "data", "--out", tmp_path / "run", *SMALL)
    convert_by(words, tmp_path / "data" / "runs")
    with pytest.raises(InputError, match=r"data: holds the splits runs, walks, expected one called train, or the fol"):
        run(train, "--data.path", tmp_path / "data", "--out", tmp_path / "other", *SMALL)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("preset", ["gated_pixels", "gated_features"])
def test_a_preset_for_other_frames_says_so_before_anything_is_made(tmp_path, preset):
    images, places = moving(6, 3, (16, 16), channels=1)
    convert_by(save(tmp_path, images, np.zeros((6, 2, 2)), places), tmp_path / "data")
    with pytest.raises(InputError, match=r"model\.frame: got 65, expected the data's 16 x 16 pixels"):
        run(train, "--data.path", tmp_path / "data", "--out", tmp_path / "run", "--preset", preset)
    assert not (tmp_path / "run").exists()


def test_what_a_step_on_dense_frames_costs_is_said_before_it_starts(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(train, "WORTH_SAYING", 0.0)
    images = np.random.default_rng(0).integers(0, 256, (6, 9, 1, 16, 24)).astype(np.uint8)
    with caplog.at_level(logging.INFO):
        convert_by(save(tmp_path, images, np.zeros((6, 8, 2)), np.zeros((6, 9, 2))), tmp_path / "data")
        run(train, "--data.path", tmp_path / "data", "--out", tmp_path / "run", *SMALL)
    assert "frames: every frame, as 100% of the pixels change from one frame to the next" in caplog.text
    lines = [line for line in caplog.messages if line.startswith("a step encodes 4 x 9 whole frames of 16 x 24 pixels")]
    assert len(lines) == 1
    assert caplog.messages.index(lines[0]) < caplog.messages.index(
        next(m for m in caplog.messages if "2 steps of" in m)
    )


def test_actions_far_beyond_the_usual_are_warned_of(tmp_path, caplog):
    images, places = moving(6, 3, (16, 16), channels=1)
    convert_by(save(tmp_path, images, np.full((6, 2, 2), -54321.0), places), tmp_path / "data")
    assert "actions.npy: actions of up to 5.43e+04: a predictor takes them as they are" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f, a: (np.where(f > 200, np.nan, f), a), r"frames\.npy: trajectory 0, step 0: found nan"),
        (lambda f, a: (f, np.where(np.arange(2) > 0, np.inf, a)), r"actions\.npy: trajectory 0, step 0: found inf"),
        (lambda f, a: (np.array([f[0], f[1, 1:]], object), a), r"frames\.npy: not an array that can be mapped"),
        (lambda f, a: (f, a[:, 1:]), r"actions\.npy: found float64 \[6, 1, 2\], expected float \[6, 2, A\]"),
        (lambda f, a: (f[..., :4, :12], a), r"frames\.npy: found frames of 4 x 12 pixels, expected 8 x 8 to 512 x 512"),
    ],
)
def test_what_cannot_be_taken_is_one_line_and_nothing_is_written(tmp_path, spoil, message):
    images, places = moving(6, 3, (16, 16), channels=1)
    words = save(tmp_path, *spoil(images, np.zeros((6, 2, 2))), places)
    with pytest.raises(InputError, match=message) as raised:
        convert_by(words, tmp_path / "data")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "data").exists()
