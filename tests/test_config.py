"""Configurations: stored and read back, refused by the name of the field at fault, and those of 0.1 as they were."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest

from jepa_fast.config import (
    CustomConfig,
    GatedPixelsConfig,
    Group,
    InfoNCEConfig,
    JEPAConfig,
    Recipe,
    RunConfig,
    Stage,
    VICRegConfig,
    decode,
    read_recipe,
)
from jepa_fast.errors import InputError
from jepa_fast.presets import PRESETS, preset
from tests.one_step_runs import configuration

# What commit d6d67db, version 0.1, wrote for every preset, by its name then.
STORED = json.loads((Path(__file__).parent / "stored" / "configs.json").read_text())
VARIED = Recipe(
    model=JEPAConfig(channels=8, groups=(Group("rgb", 3), Group("depth")), action_size=7, history=2),
    objective=VICRegConfig(horizon=4, targets="ema", covariance=0.002),
    stages=(Stage(0.5, {"variance": 0.0}), Stage(2, frozen=("encoder.rgb", "predictor"), restarts=True)),
)


def read(fields, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return RunConfig.load(tmp_path / "config.json")


def changed(name, *path, value):
    """The stored configuration of a preset with one field changed."""
    fields = json.loads(json.dumps(STORED[name]))
    *ways, last = path
    place = fields
    for way in ways:
        place = place[way]
    place[last] = value
    return fields


@pytest.mark.parametrize("recipe", [*(make() for make in PRESETS.values()), VARIED], ids=[*PRESETS, "varied"])
def test_a_configuration_is_read_back_as_it_was_stored(tmp_path, recipe):
    config = configuration("baseline", tmp_path, preset="test", recipe=recipe, capture=True)
    config.save(tmp_path / "config.json")
    assert RunConfig.load(tmp_path / "config.json") == config
    assert read_recipe(json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe


@pytest.mark.parametrize("name", STORED)
def test_configurations_of_the_first_version_are_those_of_today_s_presets(tmp_path, name):
    config = read(STORED[name], tmp_path)
    assert config.recipe == preset(config.preset)
    assert (config.seed, config.steps, config.batch_size, config.loader) == (3, 100, 8, "host")
    assert read_recipe(STORED[name]["recipe"]) == config.recipe


@pytest.mark.parametrize("name", ["wall_apart", "features20k", "pixels300k"])
def test_autocast_that_the_gated_family_never_had_is_off_in_what_was_stored(tmp_path, name):
    assert read(changed(name, "amp", value="bf16"), tmp_path).amp == "off"
    assert read(changed("baseline", "amp", value="bf16"), tmp_path).amp == "bf16"


@pytest.mark.parametrize("name", ["gated_convnext", "gated_features", "gated_pixels"])
def test_autocast_is_refused_where_it_would_do_nothing(tmp_path, name):
    with pytest.raises(InputError, match=rf"--amp: got 'bf16', expected off: a {name} model computes in float32"):
        configuration(name, tmp_path, amp="bf16")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("until",), {"kind": "epoch", "epoch": 1.5}, r"stage\.until: got .* stages that end early .* are gone"),
        (("stop_gradient",), True, r"stage\.stop_gradient: got True, expected null or false"),
    ],
)
def test_stages_that_are_gone_are_refused_by_name(tmp_path, path, value, message):
    with pytest.raises(InputError, match=message):
        read(changed("staged", "recipe", "stages", 0, *path, value=value), tmp_path)
    assert read(changed("staged", "recipe", "stages", 0, "until", value=None), tmp_path).recipe == preset("staged")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("recipe", "model", "widht"),
            3,
            r"config\.recipe\.model\.widht: got 3, expected no such field",
        ),
        (("recipe", "model", "kind"), "vit", r"config\.recipe\.model\.kind: got 'vit', expected one of jepa, gated_"),
        (
            ("recipe", "model", "channels"),
            "16",
            r"config\.recipe\.model\.channels: got '16', expected a value of",
        ),
        (("recipe", "model", "channels"), True, r"model\.channels: got True, expected a value of type int"),
        (("recipe", "model", "bias"), 1, r"model\.bias: got 1, expected a value of type bool"),
        (("recipe", "model", "dropout"), "no", r"model\.dropout: got 'no', expected a number"),
        (("recipe", "model", "dropout"), 2, r"model\.dropout: got 2, expected a rate in \[0, 1\)"),
        (("recipe", "model", "groups"), {}, r"config\.recipe\.model\.groups: got \{\}, expected a list"),
        (("recipe", "objective", "horizon"), 1.5, r"objective\.horizon: got 1\.5, expected a value of type int"),
        (
            ("recipe", "objective", "sides"),
            "left",
            r"objective\.sides: got 'left', expected one of",
        ),
        (("recipe", "stages"), [{"weights": {}}], r"config\.recipe\.stages\[0\]\.epochs: got None, expected a value"),
        (("recipe", "stages"), [{"epochs": 1, "weights": {"variance": "a"}}], r"\.weights\.variance: got 'a'"),
        (("recipe", "optimizer"), None, r"config\.recipe\.optimizer: got None, expected a JSON object"),
    ],
)
def test_a_field_at_fault_is_named(tmp_path, path, value, message):
    fields = json.loads(json.dumps(dataclasses.asdict(configuration("baseline", tmp_path))))
    *ways, last = path
    place = fields
    for way in ways:
        place = place[way]
    place[last] = value
    with pytest.raises(InputError, match=message):
        read(fields, tmp_path)


def test_tuples_of_a_fixed_length_keep_to_it():
    assert decode(tuple[int, float], [1, 2], "pair") == (1, 2)
    with pytest.raises(InputError, match=r"pair: got \[1\], expected 2 values"):
        decode(tuple[int, float], [1], "pair")


def test_objectives_go_with_the_models_that_they_are_for(tmp_path):
    assert Recipe(CustomConfig(encoder="CNN"), InfoNCEConfig()).terms == ("contrast", "invariance", "top1")
    with pytest.raises(InputError, match=r"objective\.kind: got 'vicreg', expected mixture, which"):
        Recipe(GatedPixelsConfig())
    with pytest.raises(InputError, match=r"model\.groups: got \['a', 'a'\], expected at least one"):
        JEPAConfig(groups=(Group("a"), Group("a")))
    with pytest.raises(InputError, match=r"model\.groups\.name: got 'a b', expected an identifier"):
        Group("a b")
    with pytest.raises(InputError, match=r"model\.action_size: got 0, expected at least 1"):
        JEPAConfig(action_size=0)


def test_a_stage_overrides_weights_by_name():
    objective = VICRegConfig(variance=3.0)
    assert objective.weights({}) == {"invariance": 25.0, "variance": 3.0, "covariance": 1.0}
    assert objective.weights({"covariance": 0.5})["covariance"] == 0.5
    assert replace(preset("baseline"), stages=(Stage(1, {"covariance": 0.5}),)).terms == tuple(objective.weights({}))


def test_a_decay_without_averaged_targets_is_refused():
    with pytest.raises(
        InputError, match=r"objective\.ema_decay: got 0\.9, expected to be left alone, unless .* is ema"
    ):
        VICRegConfig(ema_decay=0.9)
    assert VICRegConfig(targets="ema", ema_decay=0.9).ema_decay == 0.9
