"""Stages: triggers fire where they should, what is frozen keeps its bits, and a run resumes across a stage's end."""

import copy
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from jepa_fast.config import EnergyConfig, LoopOptions, ModelConfig, Recipe, RunConfig, Stage
from jepa_fast.data.host import gather, wall_bases
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import open_split
from jepa_fast.engine import pace
from jepa_fast.engine.checkpoint import load_checkpoint
from jepa_fast.engine.loop import train, training
from jepa_fast.engine.record import read_metrics, read_spectra
from jepa_fast.engine.schedule import schedule_table
from jepa_fast.engine.stages import StageClock
from jepa_fast.engine.step import Trainer
from jepa_fast.errors import InputError
from jepa_fast.objectives.objective import share_of_gradient
from jepa_fast.objectives.vicreg import energy, fused_energy
from jepa_fast.presets import preset
from jepa_fast.runs import create_run
from jepa_fast.stages import EpochReached, Plateau, RankReached
from tests.engine.test_step import NoReadBack

SMALL = ModelConfig(channels=4, blocks=1, dim=16)
AGENT = "encoder.agent"
STEPS = 40


def staged(*stages, **changes):
    return Recipe(model=SMALL, stages=stages, **changes)


def configuration(data, recipe, **changes):
    config = RunConfig(
        preset="test", recipe=recipe, seed=3, steps=STEPS, batch_size=8, amp="off", compile=False, device="cpu",
        data=str(data), loader="host", kernels="reference", exact_shortcuts=True,
    )  # fmt: skip
    return replace(config, **changes)


def trainer_for(config):
    split = open_split(Path(config.data) / "train")
    return Trainer(config, split.spec, wall_bases(split, torch.device(config.device)))


def batches(config, first=0, stop=STEPS):
    split = open_split(Path(config.data) / "train")
    for rows in Sampler(split.count, config.batch_size, config.seed).steps(first, stop):
        yield gather(split, rows)


def run(folder, config):
    create_run(folder, config)
    train(config, folder)
    return folder


@pytest.fixture
def reading_every_other_step(monkeypatch):
    monkeypatch.setattr(pace, "READ_EVERY", {"cpu": 2, "cuda": 2})


def fired(until, readings=(), epochs=(), ranks=()):
    """The steps at which a trigger fires, of readings that are ten steps apart."""
    clock = StageClock(staged(Stage(1, 1, 0, 0, until=until), Stage(1, 2, 0, 0)), 1000)
    count = max(map(len, (readings, epochs, ranks)))
    found = []
    for number in range(count):
        seen = {"total": readings[number]} if readings else {}
        epoch, rank = epochs[number] if epochs else 0.0, ranks[number] if ranks else None
        if clock.judge(10 * number + 10, epoch, seen, rank):
            found.append(10 * number + 10)
    return found


def test_a_plateau_is_so_many_readings_that_are_not_clearly_below_the_lowest():
    until = Plateau("total", patience=3, least=0.1)
    assert fired(until, [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]) == []
    # 4.6 and 4.7 are lower than 5, but not by a tenth; 4.4 is, and counting begins anew.
    assert fired(until, [5.0, 4.6, 4.7, 4.4, 4.3, 4.2, 4.1]) == [70]
    assert fired(until, [5.0, 5.0, 6.0, 7.0]) == [40]
    assert fired(until, [-1.0, -1.2, -1.25, -1.3, -1.31]) == [50]


def test_an_epoch_and_a_rank_are_reached_at_the_first_reading_that_says_so():
    assert fired(EpochReached(1.5), epochs=[0.6, 1.2, 1.8])[0] == 30
    assert fired(RankReached(10.0), ranks=[None, 9.9, None, 10.0]) == [40]


def test_stages_left_share_what_is_left_of_the_run():
    clock = StageClock(staged(*(Stage(epochs, 1, 0, 0) for epochs in (2, 1, 3))), 60)
    assert clock.begins == [0, 20, 30]
    clock.end_stage(8)
    assert clock.begins == [0, 8, 21]
    assert [clock.number(step) for step in (7, 8, 20, 21, 59)] == [0, 1, 1, 2, 2]
    clock.end_stage(12)
    assert clock.begins == [0, 8, 12]


@pytest.mark.usefixtures("reading_every_other_step")
@pytest.mark.parametrize("trigger", ["plateau", "epoch", "rank"])
def test_a_run_changes_stage_at_the_reading_at_which_its_records_say_so(tmp_path, two_rooms, trigger):
    until = {"plateau": Plateau("variance", 2, 0.02), "epoch": EpochReached(1.4), "rank": RankReached(7.0)}[trigger]
    config = configuration(two_rooms, staged(Stage(3, 0, 25, 1, until=until), Stage(1, 25, 0, 0, frozen=(AGENT,))))
    folder = run(tmp_path / "run", config)
    metrics = read_metrics(folder)
    (last,) = [ours["step"] for ours, theirs in pairwise(metrics) if ours["stage"] < theirs["stage"]]
    if trigger == "plateau":
        values = [line["variance"] for line in metrics]
        expected = next(
            2 * (number + 1)
            for number in range(2, len(values))
            if min(values[number - 1 : number + 1]) >= 0.98 * min(values[: number - 1])
        )
    elif trigger == "epoch":
        expected = next(line["step"] for line in metrics if line["epoch"] >= 1.4)
    else:
        expected = next(line["step"] for line in read_spectra(folder) if line["rank"] >= 7.0)
    assert last == expected < 30
    assert load_checkpoint(folder)["stages"]["begins"] == [0, expected]


def moments(trainer):
    """Weights, moments and step counts by parameter name, copied."""
    states = [state for part in trainer.optimizer.parts for state in part.adam.state.items()]
    by_parameter = dict(states)
    return {
        name: {"weight": parameter.detach().clone()}
        | {key: value.clone() for key, value in by_parameter.get(parameter, {}).items()}
        for name, parameter in trainer.world.named_parameters()
    }


@pytest.mark.parametrize("frozen", [(AGENT,), ("encoder",), ("predictor", "encoder.wall")])
@pytest.mark.parametrize("targets", ["shared", "ema"])
def test_frozen_weights_moments_and_counts_keep_their_bits_and_all_others_move(two_rooms, frozen, targets):
    recipe = staged(
        Stage(1, 25, 25, 1),
        Stage(1, 25, 25, 1, frozen=frozen),
        Stage(1, 25, 25, 1),
        energy=EnergyConfig(targets=targets),
    )
    config = configuration(two_rooms, recipe, steps=9)
    trainer, stream = trainer_for(config), batches(config)

    def stage():
        for _ in range(3):
            trainer.step(next(stream))
        return moments(trainer)

    for number, (before, after) in enumerate([(first := stage(), second := stage()), (second, stage())]):
        for name, state in after.items():
            stands = number == 0 and name.startswith(tuple(f"{module}." for module in frozen))
            for key, value in state.items():
                assert torch.equal(value, before[name][key]) == stands, (name, key)
    assert first


@pytest.mark.parametrize("frozen", [("encoder.agent",), ("encoder.wall",), ("encoder",), ("predictor",)])
def test_steps_launched_one_by_one_compute_no_gradients_of_what_is_frozen_and_end_where_captured_ones_do(
    two_rooms, frozen
):
    """A step that is to serve all stages computes them and makes them zero."""
    config = configuration(two_rooms, staged(Stage(2, 25, 25, 1), Stage(3, 25, 25, 1, frozen=frozen)), steps=5)
    each, same = trainer_for(config), trainer_for(config)
    same._same_in_all_stages = True
    for number, batch in enumerate(batches(config, stop=5)):
        each.step(batch), same.step(batch)
        for name, parameter in each.world.named_parameters():
            stands = number >= 2 and name.startswith(tuple(f"{module}." for module in frozen))
            assert (parameter.grad is None) == stands, name
        assert all(parameter.grad is not None for parameter in same.world.parameters())
    for name, weight in each.world.state_dict().items():
        torch.testing.assert_close(same.world.state_dict()[name], weight, rtol=1e-4, atol=1e-6)


def test_rate_and_width_begin_anew_where_a_stage_restarts_them():
    stages = Stage(1, 1, 0, 0), Stage(1, 2, 0, 0, restarts=True), Stage(2, 3, 0, 0)
    recipe = replace(preset("wall_apart"), stages=stages)
    table, base = schedule_table(40, recipe).double(), recipe.optimizer.learning_rate
    whole = [base * (1 + math.cos(math.pi * step / 30)) / 2 for step in range(30)]
    assert table[10:, 0].tolist() == pytest.approx(whole)
    assert table[:10, 0].tolist() == pytest.approx(whole[::3])  # a run of its own, a third as long
    assert table[[0, 5, 10, 25], 2].tolist() == pytest.approx([0.5, (0.5 * 0.2) ** 0.5] * 2)
    # Where a stage ends before its time, the next begins with the whole rate and has all steps that are left.
    clock = StageClock(recipe, 40)
    clock.end_stage(5)
    rates = schedule_table(40, recipe, clock)[5:, 0].tolist()
    assert rates == pytest.approx([base * (1 + math.cos(math.pi * step / 35)) / 2 for step in range(35)])


def test_what_is_frozen_does_not_count_in_the_gradient_that_is_clipped(two_rooms):
    config = configuration(two_rooms, staged(Stage(1, 25, 25, 1, frozen=("encoder",))))
    trainer = trainer_for(config)
    readings = dict(zip(trainer.names, trainer.step(next(batches(config))).readings.tolist(), strict=True))
    norms = {part: module_norm(module) for part, module in trainer.world.named_children()}
    assert norms["encoder"] == 0
    # Clipped to half, or left as it was.
    assert norms["predictor"] == pytest.approx(min(readings["gradient_norm"], 0.5), rel=1e-4)


def module_norm(module):
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return sum(gradient.square().sum().item() for gradient in gradients) ** 0.5


def test_a_recipe_that_freezes_nothing_takes_the_steps_of_one_plain_adam(two_rooms):
    config = configuration(two_rooms, staged(Stage(1, 25, 25, 1)), steps=4)
    ours, theirs = trainer_for(config), trainer_for(config)
    rate = torch.zeros(())
    adam = torch.optim.Adam(theirs.world.parameters(), lr=rate, weight_decay=3e-4, fused=True)
    for number, batch in enumerate(batches(config, stop=4)):
        ours.step(batch)
        rate.fill_(ours.rate(number))
        adam.zero_grad()
        terms, _ = theirs.forward(batch, torch.tensor([25.0, 25.0, 1.0]))
        terms.total.backward()
        nn.utils.clip_grad_norm_(theirs.world.parameters(), 0.5)
        adam.step()
        theirs.clock[1] += 1
    for name, weight in theirs.world.state_dict().items():
        assert torch.equal(ours.world.state_dict()[name], weight), name


def test_a_checkpoint_older_than_triggers_is_taken_up_as_planned(two_rooms):
    config = configuration(two_rooms, staged(Stage(1, 25, 25, 1), Stage(1, 30, 25, 1)), steps=6)
    whole, older = trainer_for(config), trainer_for(config)
    for number, batch in enumerate(batches(config, stop=6)):
        if number == 2:
            state = copy.deepcopy(whole.state())
            assert state.pop("stages")["begins"] == [0, 3]
            older.restore(state)
        if number >= 2:
            older.step(batch)
        whole.step(batch)
    for name, weight in whole.world.state_dict().items():
        assert torch.equal(older.world.state_dict()[name], weight), name


@pytest.mark.usefixtures("reading_every_other_step")
@pytest.mark.parametrize("cut", [5, 15, 16, 27])
def test_a_run_resumed_before_at_or_after_a_stage_s_end_gives_the_same_bits(tmp_path, two_rooms, cut):
    """Stage 1 ends at a plateau, stage 2 at an epoch, both while it runs; the plateau's count is resumed too."""
    recipe = staged(
        Stage(3, 0, 25, 1, until=Plateau("variance", 2, 0.02)),
        Stage(2, 25, 5, 1, stop_gradient=True, until=EpochReached(4.2)),
        Stage(1, 25, 0, 0, frozen=(AGENT,), stop_gradient=True),
    )
    config = configuration(two_rooms, recipe)
    whole = load_checkpoint(run(tmp_path / "whole", config))
    assert whole["stages"]["begins"] == [0, 16, 26]
    create_run(tmp_path / "cut", config)
    steps = training(config, tmp_path / "cut", LoopOptions(checkpoint_minutes=0))
    while next(steps).done < cut:
        pass
    steps.close()
    assert load_checkpoint(tmp_path / "cut")["step"] == cut
    train(config, tmp_path / "cut", LoopOptions(resume=True))
    again = load_checkpoint(tmp_path / "cut")
    assert again["stages"] == whole["stages"]
    assert len(whole["optimizer"]["parts"]) == 2
    for ours, theirs in zip(leaves(again), leaves(whole), strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
    assert [line["stage"] for line in read_metrics(tmp_path / "cut")] == [
        line["stage"] for line in read_metrics(tmp_path / "whole")
    ]


def leaves(state):
    values = state.values() if isinstance(state, dict) else state
    for value in values:
        if isinstance(value, (dict, list, tuple)):
            yield from leaves(value)
        else:
            yield value


def test_a_reading_that_only_an_interruption_brings_judges_nothing(two_rooms):
    """Stopped at step 7, a run reads and looks there; one that goes through does not."""
    config = configuration(two_rooms, Recipe(model=SMALL), steps=1000)

    class Stopped:
        received = 15

    alone = pace.Ranks()
    due = pace.Pace(config, LoopOptions(), alone, Stopped()).after(7)
    assert (due.reading, due.look, due.end) == (True, True, True)
    assert due.planned == (False, False)
    assert pace.Pace(config, LoopOptions(), alone, Stopped()).after(40).planned == (True, True)
    assert pace.Pace(config, LoopOptions(), alone, Stopped()).after(50).planned == (True, False)


@pytest.mark.parametrize("compute", [energy, fused_energy])
@pytest.mark.parametrize(("share", "targets"), [(0.0, "stop_gradient"), (1.0, "shared")])
def test_a_share_of_gradient_is_shared_targets_or_none(compute, share, targets):
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(4, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    weights = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    found = []
    for config in (EnergyConfig(targets=targets, sides="both"), EnergyConfig(targets="ema", sides="both")):
        predicted, encoded = (side.clone().requires_grad_() for side in sides)
        given = share_of_gradient(encoded, torch.tensor(share)) if config.targets == "ema" else None
        terms = compute(predicted, encoded, weights, config, given)
        terms.total.backward()
        found.append([*terms, predicted.grad, encoded.grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


FREEZING = staged(Stage(1, 0, 25, 1), Stage(1, 25, 0, 0, stop_gradient=True), Stage(1, 25, 0, 0, frozen=(AGENT,)))


def test_a_staged_step_reads_nothing_back_and_a_stage_is_changed_in_place(two_rooms):
    """What a captured step looks at stays where it is."""
    config = configuration(two_rooms, FREEZING, kernels="fused")
    trainer, stream = trainer_for(config), batches(config)
    trainer.step(next(stream))
    places = [tensor.data_ptr() for tensor in (trainer._schedule, *(part.skipped for part in trainer.optimizer.parts))]
    for ended in (True, False, True, False):
        with NoReadBack():
            trainer.step(next(stream))
        if ended:
            trainer.end_stage(int(trainer.clock[1]))
    assert trainer.stages.begins == [0, 2, 4]
    assert trainer.optimizer.parts[0].skipped == 1
    after = [trainer._schedule, *(part.skipped for part in trainer.optimizer.parts)]
    assert [tensor.data_ptr() for tensor in after] == places


@pytest.mark.gpu
def test_a_captured_step_goes_through_stages_like_an_eager_one(two_rooms):
    found = []
    for capture in (False, True):
        config = configuration(two_rooms, FREEZING, device="cuda", capture=capture)
        trainer = trainer_for(config)
        for number, batch in enumerate(batches(config, stop=18)):
            readings = trainer.step(batch).readings.clone()
            if number in (5, 11):
                trainer.end_stage(number + 1)
                frozen = moments(trainer)
        after = moments(trainer)
        assert all(torch.equal(after[name]["weight"], frozen[name]["weight"]) for name in after if AGENT in name)
        found.append(readings)
    torch.testing.assert_close(*found, rtol=2e-3, atol=1e-5)


def test_stages_are_read_back_and_older_ones_have_no_triggers(tmp_path, two_rooms):
    recipe = staged(
        Stage(0.25, 0.0, 25.0, 1.0, until=Plateau("variance", 3)),
        Stage(0.5, 25.0, 0.0, 0.0, ("encoder", "predictor"), stop_gradient=True, until=RankReached(9.0)),
        Stage(0.25, 1.0, 0.0, 0.0, until=EpochReached(0.5)),
    )
    config = configuration(two_rooms, recipe)
    config.save(tmp_path / "config.json")
    assert RunConfig.load(tmp_path / "config.json") == config
    plain = configuration(two_rooms, Recipe())
    plain.save(tmp_path / "config.json")
    text = (tmp_path / "config.json").read_text()
    for field in ('"frozen": [],', '"restarts": false,', '"stop_gradient": false,', '"until": null'):
        text = text.replace(field, "")
    (tmp_path / "config.json").write_text(text.replace('"covariance": 1.0,', '"covariance": 1.0'))
    assert RunConfig.load(tmp_path / "config.json") == plain


def test_stages_that_make_no_sense_are_refused(two_rooms):
    with pytest.raises(InputError, match=r"stage\.epochs: got 0, expected a positive number"):
        Stage(0, 1, 0, 0)
    with pytest.raises(InputError, match=r"stage\.until\.term: got 'surprise', expected one of total, invariance"):
        staged(Stage(1, 1, 0, 0, until=Plateau("surprise")), Stage(1, 1, 0, 0))
    with pytest.raises(InputError, match=r"stage\.stop_gradient: got True, expected False unless"):
        staged(Stage(1, 1, 0, 0, stop_gradient=True), energy=EnergyConfig(targets="ema"))
    with pytest.raises(InputError, match=r"stage\.until\.rank: got 1, expected more than 1"):
        RankReached(1)
    with pytest.raises(InputError, match=r"stage\.frozen: got 'encoder\.agnet', expected a module with parameters"):
        trainer_for(configuration(two_rooms, staged(Stage(1, 1, 0, 0, frozen=("encoder.agnet",)))))
    with pytest.raises(InputError, match=r"stage\.frozen: got 'encoder, predictor', expected modules that leave"):
        trainer_for(configuration(two_rooms, staged(Stage(1, 1, 0, 0), Stage(1, 1, 0, 0, ("encoder", "predictor")))))


def test_the_preset_goes_from_spreading_to_predicting_to_a_frozen_agent_encoder():
    recipe = preset("staged")
    spread, predict, settle = recipe.stages
    assert (spread.invariance, predict.variance, settle.variance) == (0, 0, 0)
    assert settle.frozen == (AGENT,)
    assert recipe.epochs == preset("baseline").epochs
    assert math.isclose(sum(stage.epochs for stage in recipe.stages), 1)
