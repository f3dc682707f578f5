"""Run folders: one writer, made after all checks, and a run that was killed before its first checkpoint goes on."""

import json
import signal
import time

import pytest
import torch

import jepa_fast
from jepa_fast import cli, train
from jepa_fast.engine.checkpoint import checkpoint_folder, load_checkpoint, newest_step
from jepa_fast.engine.record import read_metrics
from jepa_fast.errors import InputError
from jepa_fast.generate import generate
from jepa_fast.train import Arguments, DataArguments, main
from tests.forked import Command

SMALL = ["--model.channels", 4, "--model.blocks", 1, "--model.dim", 16, "--data.batch-size", 4]


def started(*words):
    """The command as a user starts it."""
    return Command("-m", "jepa_fast.train", *words)


def until(condition, limit_s=300):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def parsed(*words):
    """What the command makes of the words."""
    return cli.parse(Arguments, "", [str(word) for word in words], train.defaults)


def same(ours, theirs):
    """Whether two nested states are equal bit for bit."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[name], theirs[name]) for name in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


@pytest.mark.posix
def test_of_two_that_train_in_one_folder_the_second_leaves_and_says_why(tmp_path, two_rooms):
    run = tmp_path / "run"
    first = started("--data.path", two_rooms, "--steps", 100_000, "--out", run, *SMALL)
    try:
        until(lambda: len(read_metrics(run)) >= 1)
        for words in (("--resume", run), ("--out", run, "--data.path", two_rooms, "--steps", 100_000, *SMALL)):
            with pytest.raises(InputError, match=rf"{run}: in use by process {first.pid} on \S+ since \d"):
                main(parsed(*words))
    finally:
        first.send_signal(signal.SIGTERM)
        _, error = first.communicate(timeout=300)
    assert first.returncode == 128 + signal.SIGTERM, error
    done = newest_step(run)
    assert [line["step"] for line in read_metrics(run)][-1] == done
    assert [path.name for path in run.glob(".*")] == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory, two_rooms):
    """The last checkpoint of a short run, and the words that start it."""
    words = ["--data.path", two_rooms, "--steps", 12, *SMALL]
    folder = tmp_path_factory.mktemp("whole") / "run"
    main(parsed("--out", folder, *words))
    return load_checkpoint(folder), words


@pytest.mark.posix
@pytest.mark.parametrize("how", ["--resume", "--out"])
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_at_step_0(tmp_path, whole, how, caplog):
    state, words = whole
    process = started("--out", tmp_path / "run", *words, "--checkpoint-minutes", 100)
    until((tmp_path / "run" / "metrics.jsonl").exists)
    process.kill()
    process.communicate()
    assert newest_step(tmp_path / "run") is None
    with caplog.at_level("INFO"):
        main(parsed(how, tmp_path / "run", *(words if how == "--out" else ())))
    assert "taken over from process" in caplog.text
    if how == "--resume":
        assert "was stopped before its first checkpoint; begins at step 0" in caplog.text
    assert same(load_checkpoint(tmp_path / "run"), state)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [10, 12]


@pytest.fixture(scope="module")
def small_frames(tmp_path_factory):
    """Trajectories of 8 x 8 frames, packed like two rooms."""
    import numpy as np

    folder = tmp_path_factory.mktemp("small")
    draw = np.random.default_rng(0)
    episodes = [
        (draw.integers(0, 256, (5, 2, 8, 8), dtype=np.uint8), draw.standard_normal((4, 2), np.float32))
        for _ in range(8)
    ]
    jepa_fast.pack(episodes, folder / "train", groups=(("agent", 1), ("wall", 1)), channels="first", workers=1)
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective.horizon", 7], "objective.horizon: got 7, expected a divisor of 16 steps"),
        (["--preset", "gated_features", "--model.frame", 64], "model.frame: got 64"),
        (["--data.batch-size", 49], "--data.batch-size: got 49, expected from 2 to the 48 trajectories"),
        (["--steps", 2_000_000_000_000], "--steps: got 2000000000000, expected from 1 to 999,999,999"),
        (["--epochs", "inf"], "--epochs: got inf"),
        (["--epochs", "1e300"], "--steps: got"),
        (["--minutes", "nan"], "--minutes: got nan"),
        (["--optimizer.learning-rate", "inf"], "recipe.optimizer.learning_rate: got inf"),
        (["--stages.0.epochs", "inf"], "--epochs: got inf"),
        (["--model.dim", 10**20], "model.dim: got 100000000000000000000"),
        (["--model.blocks", 10**7], "model.blocks: got 10000000"),
        (["--stages.0.frozen", "encoder.nobody"], "encoder.nobody"),
    ],
)
def test_everything_is_checked_before_the_folder_is_made(tmp_path, two_rooms, words, message):
    with pytest.raises(InputError) as refused:
        main(parsed("--data.path", two_rooms, "--out", tmp_path / "deep" / "run", "--data.batch-size", 8, *words))
    assert message in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_frames_that_the_model_cannot_take_are_refused_before_the_folder_is_made(tmp_path, small_frames):
    with pytest.raises(InputError, match=r"model.frame: got 65, expected the data's 8 x 8 pixels"):
        main(
            parsed(
                "--preset",
                "gated_features",
                "--data.path",
                small_frames,
                "--out",
                tmp_path / "run",
                "--data.batch-size",
                4,
            )
        )
    assert list(tmp_path.iterdir()) == []


def test_what_a_model_made_in_python_raises_comes_before_the_folder(tmp_path, two_rooms):
    """A layer of the wrong size is found when the first frame is encoded."""
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(100, 8))
    model = jepa_fast.JEPA(encoder, jepa_fast.MLPPredictor(dim=8, action_dim=2), jepa_fast.VICReg())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        jepa_fast.fit(model, two_rooms, steps=2, batch_size=4, out=tmp_path / "run", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_trying_out_changes_no_bit(tmp_path, two_rooms, monkeypatch):
    """Not of a model that draws random numbers and keeps statistics of what it has seen, either."""

    def fitted(out):
        torch.manual_seed(0)
        layers = [torch.nn.Flatten(), torch.nn.Linear(2 * 65 * 65, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5)]
        predictor = jepa_fast.MLPPredictor(dim=8, action_dim=2)
        model = jepa_fast.JEPA(torch.nn.Sequential(*layers), predictor, jepa_fast.VICReg())
        jepa_fast.fit(model, two_rooms, steps=3, batch_size=4, out=out, device="cpu", loader="host")
        return load_checkpoint(out)

    tried = fitted(tmp_path / "tried")
    monkeypatch.setattr("jepa_fast.engine.loop.try_out", lambda *_: None)
    assert same(tried, fitted(tmp_path / "untried"))


def test_a_second_generation_of_one_data_set_is_refused(tmp_path):
    words = ["--out", tmp_path, "--splits", "train", "--workers", 1, "--trajectories", 200_000]
    first = Command("-m", "jepa_fast.generate", *words)
    until((tmp_path / "train" / ".lock").exists)
    until(lambda: (tmp_path / "train" / ".lock").read_bytes())
    with pytest.raises(InputError, match=rf"train: in use by process {first.pid} on "):
        generate(tmp_path, trajectories=200_000, splits=("train",), workers=1)
    first.kill()
    first.wait()
    generate(tmp_path, trajectories=64, splits=("train",), workers=1)
    assert json.loads((tmp_path / "train" / "manifest.json").read_text())["trajectories"] == 64
    assert not (tmp_path / "train" / ".lock").exists()


def test_damaged_checkpoints_fall_back_and_are_put_aside(tmp_path, two_rooms, caplog):
    run = tmp_path / "run"
    words = ["--data.path", two_rooms, "--steps", 6, "--checkpoint-minutes", 0, *SMALL]
    main(parsed("--out", run, *words))
    whole = load_checkpoint(run)
    newest = checkpoint_folder(run) / "step-000000006.pt"
    content = bytearray(newest.read_bytes())
    # Torch takes a weight of which a bit is flipped.
    values = max(whole["model"].values(), key=torch.Tensor.numel)
    place = bytes(content).index(values.numpy().tobytes())
    content[place] ^= 1
    newest.write_bytes(content)
    torch.load(newest, weights_only=True)
    with caplog.at_level("WARNING"):
        main(Arguments(resume=run, checkpoint_minutes=0, data=DataArguments()))
    assert "step-000000006.pt: does not open (its content is not what its checksum was made of)" in caplog.text
    assert "trying the one before" in caplog.text
    assert same(load_checkpoint(run), whole)
