"""Training end to end on packed two-room shards, through the command that users type."""

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import jepa_fast
from jepa_fast.config import JEPAConfig, LoopOptions, Recipe, RunConfig, Stage, VICRegConfig
from jepa_fast.data.host import HostLoader, gather, group_bases
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import open_split
from jepa_fast.engine.checkpoint import checkpoint_folder, load_checkpoint, save_checkpoint
from jepa_fast.engine.loop import train
from jepa_fast.engine.record import read_metrics
from jepa_fast.engine.step import Trainer
from jepa_fast.errors import InputError, RunError
from jepa_fast.kernels import extension
from jepa_fast.runs import create_run
from jepa_fast.train import Arguments, DataArguments, main
from tests.forked import Command, finished

SMALL = JEPAConfig(channels=4, blocks=1, dim=16)


def configuration(data, **changes):
    config = RunConfig(
        preset="test", recipe=Recipe(model=SMALL), seed=3, steps=12, batch_size=8, amp="off", compile=False,
        device="cpu", data=str(data), loader="host", kernels="reference", sparse=True,
    )  # fmt: skip
    return replace(config, **changes)


def run(folder, config, resume=False):
    if not resume:
        create_run(folder, config)
    return train(config, folder, LoopOptions(resume=resume))


def trainer_for(config):
    split = open_split(Path(config.data) / "train")
    return Trainer(config, split.spec, group_bases(split, torch.device(config.device)))


def command(*arguments):
    """The command as a user starts it, from the checkout under test."""
    return Command("-m", "jepa_fast.train", *arguments)


def wait_for_checkpoint(folder, step):
    deadline = time.monotonic() + 300
    while not any(path.name >= f"step-{step:09d}.pt" for path in checkpoint_folder(folder).glob("step-*.pt")):
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.01)


def assert_same_state(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        if isinstance(value, dict):
            assert_same_state(value, theirs[key])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, theirs[key]), key
        else:
            assert value == theirs[key], key


@pytest.mark.posix
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, two_rooms):
    flags = ("--data", two_rooms, "--data.batch-size", 6, "--steps", 11, "--checkpoint-minutes", 0, "--seed", 5)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with command("--out", whole, *flags) as process:
        assert process.wait() == 0

    with command("--out", killed, *flags) as process:
        wait_for_checkpoint(killed, 3)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert load_checkpoint(killed)["step"] < 11

    with command("--resume", killed) as process:
        assert process.wait() == 0
    assert_same_state(load_checkpoint(killed), load_checkpoint(whole))
    timeless = [
        [{k: v for k, v in line.items() if k != "trajectories_per_s"} for line in read_metrics(folder)]
        for folder in (whole, killed)
    ]
    assert timeless[0] == timeless[1]
    assert [line["step"] for line in timeless[0]] == [10, 11]


@pytest.mark.posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_saves_says_how_to_go_on_and_leaves(tmp_path, two_rooms, number):
    process = command("--out", tmp_path / "run", "--data", two_rooms, "--data.batch-size", 2, "--steps", 10_000)
    deadline = time.monotonic() + 300
    # The file is there before training is ready for signals, a line not.
    while not read_metrics(tmp_path / "run"):
        assert time.monotonic() < deadline, "training did not start"
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 128 + number
    step = load_checkpoint(tmp_path / "run")["step"]
    assert f"{number.name}: saved at step {step}; go on with --resume {tmp_path / 'run'}" in error
    assert "Traceback" not in error
    assert read_metrics(tmp_path / "run")[-1]["step"] == step


def test_resuming_in_process_mid_epoch_and_mid_stage_equals_an_uninterrupted_run(tmp_path, two_rooms):
    recipe = Recipe(
        model=SMALL,
        objective=VICRegConfig(targets="ema", sides="both"),
        stages=(Stage(1), Stage(1, {"invariance": 40.0, "variance": 10.0})),
    )
    config = configuration(two_rooms, recipe=recipe)
    run(tmp_path / "whole", config)

    trainer, split = trainer_for(config), open_split(two_rooms / "train")
    sampler = Sampler(split.count, 8, config.seed)
    create_run(tmp_path / "halved", config)
    for batch in HostLoader(split).batches(sampler.steps(0, 8)):
        trainer.step(batch)
    whole = load_checkpoint(tmp_path / "whole")
    position = {**whole["position"], "epoch": 1, "batch": 2}
    save_checkpoint(tmp_path / "halved", 8, {"position": position, **trainer.state()})

    run(tmp_path / "halved", config, resume=True)
    assert_same_state(load_checkpoint(tmp_path / "halved"), whole)


def test_training_lowers_the_energy_and_moves_every_parameter(tmp_path, two_rooms):
    recipe = Recipe(model=replace(SMALL, dropout=0.0))
    config = configuration(two_rooms, recipe=recipe, steps=60, batch_size=16)
    before = trainer_for(config).model.state_dict()
    run(tmp_path / "run", config)
    metrics = read_metrics(tmp_path / "run")
    assert metrics[-1]["total"] < 0.5 * metrics[0]["total"]
    after = load_checkpoint(tmp_path / "run")["model"]
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_the_energy_weights_follow_the_stages(two_rooms):
    recipe = Recipe(model=SMALL, stages=(Stage(1), Stage(1, {"invariance": 40.0, "variance": 10.0, "covariance": 2.0})))
    config = configuration(two_rooms, recipe=recipe, steps=4)
    split = open_split(two_rooms / "train")
    trainer = trainer_for(config)
    for number, batch in enumerate(HostLoader(split).batches(Sampler(split.count, 8, 0).steps(0, 4))):
        total, *terms, _ = trainer.step(batch).metrics.clone()
        weights = (25.0, 25.0, 1.0) if number < 2 else (40.0, 10.0, 2.0)
        expected = sum(weight * term for weight, term in zip(weights, terms, strict=True))
        torch.testing.assert_close(total, expected)


def test_ema_targets_follow_the_encoder_with_the_given_decay(two_rooms):
    config = configuration(two_rooms, recipe=Recipe(model=SMALL, objective=VICRegConfig(targets="ema", ema_decay=0.75)))
    split = open_split(two_rooms / "train")
    trainer = trainer_for(config)
    before = {k: v.clone() for k, v in trainer.target_encoder.state_dict().items()}
    trainer.step(gather(split, np.arange(8)))
    for name, value in trainer.target_encoder.state_dict().items():
        expected = 0.75 * before[name] + 0.25 * trainer.model.encoder.state_dict()[name]
        torch.testing.assert_close(value, expected)
        assert not torch.equal(value, before[name])


def test_fused_ops_train_to_the_same_energy_as_plain_pytorch(tmp_path, two_rooms):
    recipe = Recipe(model=SMALL, objective=VICRegConfig(sides="both", steps="each"))
    for kernels in ("reference", "fused", "triton"):
        run(tmp_path / kernels, configuration(two_rooms, recipe=recipe, kernels=kernels))
    plain, *others = (read_metrics(tmp_path / kernels)[-1] for kernels in ("reference", "fused", "triton"))
    for other in others:
        for term in ("total", "invariance", "variance", "covariance"):
            assert other[term] == pytest.approx(plain[term], rel=1e-4)


@pytest.mark.parametrize(
    ("reason", "flag", "expected"),
    [
        (None, "auto", "fused"),
        (None, "fused", "fused"),
        (None, "reference", "reference"),
        ("no library here", "auto", "reference"),
        ("no library here", "reference", "reference"),
    ],
)
def test_auto_takes_the_compiled_ops_where_they_are(tmp_path, two_rooms, monkeypatch, caplog, reason, flag, expected):
    monkeypatch.setattr(extension, "load", lambda: reason)
    monkeypatch.setattr(extension, "has_kernel", lambda operator, device: reason is None)
    data = DataArguments(path=two_rooms, batch_size=8)
    with caplog.at_level("INFO"):
        main(Arguments(out=tmp_path / "run", steps=1, kernels=flag, data=data))
    assert RunConfig.load(tmp_path / "run" / "config.json").kernels == expected
    announced = [record.getMessage() for record in caplog.records if record.getMessage().startswith("vicreg: ")]
    assert announced == ["vicreg: " + ("compiled cpu kernel" if expected == "fused" else "plain PyTorch")]


def test_compiled_ops_asked_for_by_name_and_missing_are_refused(tmp_path, two_rooms, monkeypatch):
    monkeypatch.setattr(extension, "load", lambda: "no library here")
    data = DataArguments(path=two_rooms, batch_size=8)
    with pytest.raises(InputError, match="--kernels: got 'fused', expected auto or reference: no library here"):
        main(Arguments(out=tmp_path / "run", steps=1, kernels="fused", data=data))
    assert not (tmp_path / "run").exists()


def test_bf16_stays_close_to_float32_and_keeps_its_weights_in_float32(tmp_path, two_rooms):
    run(tmp_path / "float32", configuration(two_rooms))
    run(tmp_path / "bf16", configuration(two_rooms, amp="bf16"))
    exact, ours = (read_metrics(tmp_path / name)[-1]["total"] for name in ("float32", "bf16"))
    assert ours != exact
    assert abs(ours - exact) < 0.05 * exact
    assert all(v.dtype == torch.float32 for v in load_checkpoint(tmp_path / "bf16")["model"].values())


def test_run_folder_holds_configuration_environment_metrics_and_tensorboard(tmp_path, two_rooms):
    data = DataArguments(path=two_rooms, batch_size=8)
    main(Arguments(out=tmp_path / "run", steps=2, data=data))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.json", "environment.json", "metrics.jsonl", "spectra.jsonl", "tensorboard", "checkpoints"}
    assert RunConfig.load(tmp_path / "run" / "config.json").steps == 2
    model = jepa_fast.load(tmp_path / "run")
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == 293_344


def test_load_gives_the_trained_weights(tmp_path, two_rooms):
    run(tmp_path / "run", configuration(two_rooms, steps=2))
    model = jepa_fast.load(tmp_path / "run")
    assert_same_state(dict(model.state_dict()), dict(load_checkpoint(tmp_path / "run")["model"]))
    assert model.config == SMALL


def test_resuming_a_finished_run_changes_nothing(tmp_path, two_rooms):
    config = configuration(two_rooms, steps=2)
    run(tmp_path / "run", config)
    before = load_checkpoint(tmp_path / "run")
    assert run(tmp_path / "run", config, resume=True) == 2
    assert_same_state(load_checkpoint(tmp_path / "run"), before)


def test_a_run_on_another_data_set_is_not_resumed(tmp_path, two_rooms):
    from jepa_fast.generate import generate

    config = configuration(two_rooms, steps=2)
    run(tmp_path / "run", config)
    generate(tmp_path / "other", trajectories=48, splits=("train",), seed=1, workers=1)
    with pytest.raises(InputError, match="resume: fingerprint"):
        run(tmp_path / "run", replace(config, data=str(tmp_path / "other")), resume=True)


def test_a_run_of_another_model_is_not_resumed(tmp_path, two_rooms):
    config = configuration(two_rooms, steps=2)
    run(tmp_path / "run", config)
    larger = replace(config, recipe=Recipe(model=replace(SMALL, dim=32)))
    with pytest.raises(InputError, match=r"run: its checkpoint is not of the model in its config\.json"):
        run(tmp_path / "run", larger, resume=True)


def test_an_energy_that_is_not_finite_stops_the_run_by_name_and_is_not_saved(tmp_path, two_rooms, monkeypatch):
    step = Trainer.step

    def poisoned(self, batch):
        with torch.no_grad():
            if self.clock[1] == 4:
                self.model.predictor.project.bias[0] = float("inf")
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", poisoned)
    create_run(tmp_path / "run", configuration(two_rooms))
    with pytest.raises(RunError, match="step 5: invariance is"):
        train(configuration(two_rooms), tmp_path / "run", LoopOptions(checkpoint_minutes=0))
    state = load_checkpoint(tmp_path / "run")
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "best"}, "--preset: got 'best', expected one of"),
        ({"steps": 0}, "--steps: got 0"),
        ({"epochs": 0}, "--epochs: got 0"),
        ({"epochs": 1, "steps": 1}, "--steps, --epochs: got both"),
        ({"seed": -1}, "--seed: got -1"),
        ({"checkpoint_minutes": -1.0}, "--checkpoint-minutes: got -1.0"),
        ({"batch_size": 49}, "--data.batch-size: got 49, expected from 2 to the 48 trajectories"),
        ({"batch_size": 1}, "--data.batch-size: got 1"),
        ({"path": Path("nowhere")}, "nowhere/train/manifest.json: not found"),
        ({"resume": Path("nowhere")}, "nowhere/config.json: no such file"),
        pytest.param({"out": Path("/proc/run")}, "--out: /proc/run cannot be written", marks=pytest.mark.linux),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(tmp_path, two_rooms, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    data = DataArguments(path=arguments.pop("path", two_rooms), batch_size=arguments.pop("batch_size", 8))
    with pytest.raises(InputError, match=message):
        main(Arguments(data=data, **arguments))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_not_overwritten(tmp_path, two_rooms):
    config = configuration(two_rooms)
    create_run(tmp_path / "run", config)
    with pytest.raises(InputError, match="already holds a run; continue it with --resume"):
        create_run(tmp_path / "run", replace(config, seed=4))
    save_checkpoint(tmp_path / "run", 1, {"step": 1})
    with pytest.raises(InputError, match="already holds a run; continue it with --resume"):
        create_run(tmp_path / "run", config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "explorejepa_writeup"}, "--preset: got 'explorejepa_writeup', expected 'test'"),
        ({"steps": 99}, "--steps: got 99, expected 12"),
        ({"seed": 4}, "--seed: got 4, expected 3"),
        ({"amp": "bf16"}, "--amp: got 'bf16', expected 'off'"),
        ({"out": Path("elsewhere")}, "--out: got .* to be left out with --resume"),
        ({"data": DataArguments(batch_size=4)}, "--data.batch-size: got 4, expected 8"),
    ],
)
def test_resume_refuses_flags_that_would_change_the_run(tmp_path, two_rooms, arguments, message):
    create_run(tmp_path / "run", configuration(two_rooms))
    with pytest.raises(InputError, match=message):
        main(Arguments(resume=tmp_path / "run", **arguments))


def test_a_damaged_configuration_is_named(tmp_path):
    path = tmp_path / "config.json"
    for text in ("{", "[]", json.dumps({"preset": "x"}), json.dumps({"recipe": {}})):
        path.write_text(text)
        with pytest.raises(InputError, match=r"config\.json: not a run configuration"):
            RunConfig.load(path)


def test_bad_input_ends_the_command_with_one_line_and_status_2(tmp_path, two_rooms):
    process = command("--data", two_rooms, "--out", tmp_path / "run", "--seed", "-1", "--data.batch-size", "8")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 2
    assert error.startswith("error: --seed: got -1")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_training_that_the_collector_finds_waits_for_nothing(tmp_path, two_rooms):
    """Not even its thread, whose lock may be held where the collector runs."""
    done = finished("-m", "tests.collecting", two_rooms, "training", tmp_path)
    assert done.returncode == 0, done.stderr
