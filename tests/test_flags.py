"""Every setting of a recipe is a flag over a preset; what it changes, and nothing else, is what trains."""

import re
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest

import jepa_fast as jf
from jepa_fast import cli, train
from jepa_fast.config import RunConfig, Stage
from jepa_fast.engine.checkpoint import load_checkpoint
from jepa_fast.errors import InputError
from jepa_fast.presets import ALIASES, DEFAULT_PRESET, PRESETS, listing, preset


def parse(*words):
    return cli.parse(train.Arguments, "", [str(word) for word in words], train.defaults)


def recipe_of(*words):
    arguments = parse(*words)
    return train.changed(preset(arguments.preset or DEFAULT_PRESET), arguments)


def leaves(tree, flag):
    """Flags of all fields in a tree of dataclasses and tuples of them."""
    if is_dataclass(tree):
        for field in fields(tree):
            yield from leaves(getattr(tree, field.name), f"{flag}.{field.name.replace('_', '-')}")
    elif isinstance(tree, tuple) and any(map(is_dataclass, tree)):
        for number, each in enumerate(tree):
            yield from leaves(each, f"{flag}.{number}")
    elif isinstance(tree, Mapping) and tree:
        yield from (f"{flag}.{name}" for name in tree)
    else:
        yield flag


@pytest.mark.parametrize("name", PRESETS)
def test_every_field_of_every_preset_is_a_flag_in_its_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--preset", name, "--help")
    assert not stopped.value.code
    shown = set(re.findall(r"--[\w.-]+", capsys.readouterr().out))
    recipe = preset(name)
    for field in fields(recipe):
        # The batch size is the one field that a run stores beside its recipe.
        flag = "--data.batch-size" if field.name == "batch_size" else train.RECIPE_FLAGS[field.name][0]
        tree = getattr(recipe, field.name)
        for leaf in leaves(tree, flag):
            assert leaf in shown, leaf


def test_without_flags_a_recipe_is_its_preset_s():
    for name in PRESETS:
        assert recipe_of("--preset", name) == preset(name)


def test_flags_change_what_they_name_and_nothing_else():
    base = preset("short_rollouts")
    found = recipe_of(
        "--preset", "short_rollouts", "--model.dim", 64, "--model.channels", 32, "--model.no-bias",
        "--optimizer.learning-rate", "1e-3", "--objective.horizon", "None", "--objective.targets", "shared",
        "--stages.2.epochs", 2, "--stages.0.weights.variance", 5, "--objective.covariance", 0.01, "--data.flips",
    )  # fmt: skip
    first, middle, last = base.stages
    assert found == replace(
        base,
        model=replace(base.model, dim=64, channels=32, bias=False),
        optimizer=replace(base.optimizer, learning_rate=1e-3),
        objective=replace(base.objective, horizon=None, targets="shared", covariance=0.01),
        stages=(
            replace(first, weights={**first.weights, "variance": 5.0}),
            middle,
            replace(last, epochs=2.0),
        ),
        flips=True,
    )


def test_a_weight_that_no_stage_would_take_is_refused():
    base = preset("staged")
    weights = [{**stage.weights, "variance": 2.0} for stage in base.stages]
    base = replace(base, stages=tuple(replace(one, weights=two) for one, two in zip(base.stages, weights, strict=True)))
    flag = train.Arguments(objective=replace(base.objective, variance=7.0))
    with pytest.raises(InputError, match=r"--objective\.variance: got 7\.0, expected --stages\.0\.weights\.variance"):
        train.changed(base, flag)
    assert train.changed(base, train.Arguments(objective=replace(base.objective, invariance=7.0)))


def test_a_preset_decides_which_fields_there_are():
    assert recipe_of("--preset=wall_apart", "--model.spread", 10).model.spread == 10
    with pytest.raises(InputError, match=r"--model\.spread"):
        recipe_of("--preset=baseline", "--model.spread", 10)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.dmi", "3"], "--model.dmi, 3; did you mean --model.dim?"),
        (["--model.dim", "x"], "--model.dim: invalid literal for int"),
        (["--model.dim", "0"], "model.dim: got 0, expected at least 1"),
        (["--model.channels"], "Missing value for argument '--model.channels'"),
        (["--optimizer.learning-rate", "-1"], "optimizer.learning_rate: got -1.0, expected a positive number"),
        (["--amp", "fp8"], "invalid choice 'fp8' for argument '--amp'"),
        (["--steps", "2", "--epochs", "1", "--data", "DATA"], "--steps, --epochs: got both, expected at most one"),
        (["--minutes", "0", "--data", "DATA"], "--minutes: got 0.0, expected a positive number"),
        (["--epochs", "0", "--data", "DATA"], "--epochs: got 0.0, expected a positive number"),
    ],
)
def test_a_bad_flag_is_one_line_and_status_2(monkeypatch, capsys, tmp_path, two_rooms, words, said):
    monkeypatch.chdir(tmp_path)
    words = [str(two_rooms) if word == "DATA" else word for word in words]
    words = [*words, "--data.batch-size", "8"] if "--data" in words else words
    monkeypatch.setattr(sys, "argv", ["train", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.run(train.main, train.Arguments, "", train.defaults)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_preset_is_met_with_a_line_on_each(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--preset", "best"])
    with pytest.raises(SystemExit):
        cli.run(train.main, train.Arguments, "", train.defaults)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: --preset: got 'best', expected one of baseline, ")
    assert [line.split()[0] for line in lines[1:]] == list(PRESETS)
    assert all(len(line.split()) > 4 for line in listing().splitlines())


def test_an_old_name_is_the_preset_it_became():
    for alias, name in ALIASES.items():
        assert alias not in PRESETS
        assert preset(alias) == preset(name)


def test_what_trains_without_a_preset_is_the_recipe_of_the_demo():
    assert recipe_of() == preset("demo")


SMALL = ("--model.dim", 16, "--model.channels", 4, "--model.blocks", 1, "--data.batch-size", 4)


@pytest.fixture(scope="module")
def started(tmp_path_factory, two_rooms):
    """A run of eight steps that was made by flags."""
    folder = tmp_path_factory.mktemp("started") / "run"
    flags = ("--data", two_rooms, "--out", folder, "--steps", 8, "--objective.gamma", 0.5, "--preset", "demo")
    train.main(parse(*flags, *SMALL))
    return folder


def test_flags_reach_the_trained_model_and_its_stored_configuration(started):
    stored = RunConfig.load(started / "config.json")
    assert stored.preset == "demo"
    assert (stored.recipe.model.dim, stored.recipe.objective.gamma, stored.batch_size) == (16, 0.5, 4)
    weights = load_checkpoint(started)["model"]
    assert any(tensor.shape == (16,) for tensor in weights.values())
    assert not any(128 in tensor.shape for tensor in weights.values())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--model.dim", 32), "--model.dim: got 32, expected 16, as the run was started"),
        (("--objective.gamma", 1.0), "--objective.gamma: got 1.0, expected 0.5"),
        (("--optimizer.learning-rate", 1e-4), "--optimizer.learning-rate: got 0.0001, expected 0.003"),
        (("--stages.0.epochs", 3), "--stages.0.epochs: got 3.0, expected 1"),
        (("--data.flips",), "--data.flips: got True, expected False"),
        (("--preset", "larger"), "--preset: got 'larger', expected 'baseline'"),
        (("--steps", 9), "--steps: got 9, expected 8"),
        (("--minutes", 1), "--minutes: got 1.0, expected to be left out"),
        (("--epochs", 1), "--epochs: got 1.0, expected to be left out"),
    ],
)
def test_a_resumed_run_refuses_what_would_change_it(started, flags, said):
    with pytest.raises(InputError, match=re.escape(said)):
        train.main(parse("--resume", started, *flags))


def test_a_resumed_run_takes_what_it_was_started_with_by_any_of_its_names(started):
    train.main(parse("--resume", started, "--preset", "demo", "--model.dim", 16, "--objective.gamma", 0.5))


def test_arguments_made_in_python_are_those_of_their_preset(two_rooms):
    arguments = train.Arguments(preset="larger", steps=3, data=train.DataArguments(batch_size=4))
    assert train.resolve(arguments, "cpu", two_rooms).recipe == preset("larger")
    resumed = train.resumed(train.resolve(arguments, "cpu", two_rooms), train.Arguments(), "cpu")
    assert resumed.recipe == preset("larger")


def test_stages_share_the_epochs_that_are_asked_for(two_rooms):
    arguments = parse("--preset", "staged", "--epochs", 2.5, "--data.batch-size", 8)
    config = train.resolve(arguments, "cpu", two_rooms)
    assert config.steps == round(2.5 * (48 // 8))
    assert config.recipe == preset("staged")


@pytest.mark.parametrize(
    ("flag", "stored", "given"),
    [("--compile", False, True), ("--no-compile", True, False), ("--no-capture", True, False)],
)
def test_a_switch_is_a_flag_and_its_opposite(two_rooms, flag, stored, given):
    name = flag.removeprefix("--").removeprefix("no-")
    arguments = parse(flag, "--data.batch-size", 8)
    assert getattr(arguments, name) is given
    config = replace(train.resolve(parse("--data.batch-size", 8), "cpu", two_rooms), **{name: stored})
    assert getattr(train.resumed(config, arguments, "cpu"), name) is given


def test_differences_are_named_by_their_flags():
    base = preset("staged")
    other = replace(base, stages=(base.stages[0], replace(base.stages[1], frozen=("encoder",)), base.stages[2]))
    assert list(cli.differences(other, base, "-")) == [("-.stages.1.frozen", ("encoder",), ())]
    assert next(cli.differences((Stage(1),), base.stages, "-"))[0] == "-"
    assert list(cli.differences(base, base, "-")) == []
    assert next(cli.differences(preset("wall_apart").model, base.model, "--model"))[0] == "--model"


def test_the_last_of_a_flag_s_values_is_seen_before_parsing():
    words = ["--preset", "a", "--out", "x", "--preset=b"]
    assert cli.peek(words, "--preset") == "b"
    assert cli.peek(words, "--resume") is None
    assert cli.peek(["--preset"], "--preset") is None


def test_help_of_a_stored_run_shows_its_settings(started, capsys):
    with pytest.raises(SystemExit):
        parse("--resume", started, "--help")
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert re.search(r"--model\.dim INT .*?\(default: 16\)", out)
    assert re.search(r"--objective\.gamma FLOAT .*?\(default: 0\.5\)", out)


def test_a_model_takes_its_groups_and_its_action_size_from_the_data(tmp_path):
    def episodes():
        for shade in range(8):
            yield np.full((4, 3, 20, 24), shade, np.uint8), np.zeros((3, 7), np.float32)

    jf.pack(episodes(), tmp_path / "mine", workers=1)
    config = train.resolve(parse("--data", tmp_path / "mine", "--data.batch-size", 4), "cpu", tmp_path / "mine")
    model = config.recipe.model
    assert sum(group.channels for group in model.groups) == 3
    assert model.action_size == 7
    train.main(parse("--data", tmp_path / "mine", "--steps", 2, "--out", tmp_path / "run", *SMALL))
    assert jf.load(tmp_path / "run").action_size == 7
