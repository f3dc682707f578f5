"""The step: the same losses eager, compiled and captured; nothing read back; a step gone wrong changes nothing."""

import copy
import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jepa_fast.config import InfoNCEConfig, JEPAConfig, Recipe, RunConfig, Stage, VICRegConfig
from jepa_fast.data.host import gather, group_bases
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import open_split
from jepa_fast.engine.step import Trainer
from jepa_fast.presets import preset

SMALL = JEPAConfig(channels=4, blocks=1, dim=16)
VARIED = replace(SMALL, bias=False, head="softargmax", fusion=True, norm_before_add=False, history=2)
CONTRASTIVE = Recipe(SMALL, InfoNCEConfig(), stages=(Stage(1),))
STEPS = 8
needs_cuda = pytest.mark.gpu


def configuration(data, **changes):
    config = RunConfig(
        preset="test", recipe=Recipe(model=SMALL), seed=3, steps=STEPS, batch_size=8, amp="off", compile=False,
        device="cpu", data=str(data), loader="host", kernels="reference", sparse=True,
    )  # fmt: skip
    return replace(config, **changes)


def trainer_for(config):
    split = open_split(Path(config.data) / "train")
    return Trainer(config, split.spec, group_bases(split, torch.device(config.device)))


def batches(config):
    split = open_split(Path(config.data) / "train")
    return [gather(split, rows) for rows in Sampler(split.count, config.batch_size, config.seed).steps(0, STEPS)]


def losses(config):
    """The metrics [STEPS, 5] of a run."""
    trainer = trainer_for(config)
    return torch.stack([trainer.step(batch).metrics.clone() for batch in batches(config)]).cpu()


class NoReadBack(TorchDispatchMode):
    """Refuses what makes the host wait for the device, or a capture fail."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique_dim"):
            raise AssertionError(f"the step reads back: {function}")
        return function(*arguments, **(keywords or {}))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler's look at the gradient of states
def test_compiled_steps_have_the_losses_of_eager_ones(two_rooms, monkeypatch):
    """Traced, differentiated and partitioned as for the default backend, which takes minutes to build C++ from it.

    That one is compared in bench_step.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    recipe = Recipe(model=SMALL, objective=VICRegConfig(targets="ema"), flips=True)
    config = configuration(two_rooms, kernels="fused", recipe=recipe)
    torch.testing.assert_close(losses(replace(config, compile=True)), losses(config), rtol=2e-4, atol=1e-6)


@needs_cuda
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kernels", ["reference", "triton"])
def test_captured_steps_have_the_losses_of_eager_ones(two_rooms, compiled, kernels):
    recipe = Recipe(model=SMALL, objective=VICRegConfig(targets="ema"))
    config = configuration(two_rooms, device="cuda", kernels=kernels, compile=compiled, recipe=recipe)
    eager = losses(replace(config, compile=False))
    torch.testing.assert_close(losses(replace(config, capture=True)), eager, rtol=2e-4, atol=1e-6)
    # Kernels round in their own way, and eight steps of training carry it on.
    torch.testing.assert_close(eager, losses(replace(config, device="cpu")), rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(SMALL),
        Recipe(SMALL, VICRegConfig(targets="ema")),
        Recipe(SMALL, flips=True),
        CONTRASTIVE,
        Recipe(VARIED),
        preset("gated_features"),
        preset("gated_pixels"),
        preset("gated_convnext"),
    ],
    ids=["shared", "ema", "flips", "infonce", "varied model", "gated features", "gated pixels", "gated convnext"],
)
@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_a_step_reads_nothing_back_and_leaves_its_result_in_place(two_rooms, recipe, kernels):
    config = configuration(two_rooms, recipe=recipe, kernels=kernels)
    trainer, (first, *others) = trainer_for(config), batches(config)
    place = trainer.step(first).metrics.data_ptr()
    input_place = trainer._batch.groups[0].pixels.data_ptr()
    for batch in others:
        with NoReadBack():
            result = trainer.step(batch)
        assert result.metrics.data_ptr() == place
        assert trainer._batch.groups[0].pixels.data_ptr() == input_place
    assert trainer.clock.tolist() == [config.seed, STEPS, 0]


def test_a_step_that_is_not_finite_changes_nothing_and_neither_do_those_after_it(two_rooms):
    config = configuration(two_rooms, recipe=Recipe(model=SMALL, objective=VICRegConfig(targets="ema")))
    trainer, all_batches = trainer_for(config), batches(config)
    for batch in all_batches[:3]:
        trainer.step(batch)
    before = copy.deepcopy(trainer.state())
    bad = all_batches[3]._replace(actions=torch.full_like(all_batches[3].actions, float("inf")))
    metrics = dict(zip(trainer.names, trainer.step(bad).metrics.tolist(), strict=True))
    assert not torch.tensor(metrics["invariance"]).isfinite()
    for batch in all_batches[4:6]:
        later = trainer.step(batch)
    assert later.metrics.isfinite().tolist() == [torch.tensor(value).isfinite() for value in metrics.values()]
    assert float(trainer.failed) == 1
    after = trainer.state()
    for state in (before, after):
        # Looked up anew in every step.
        del state["optimizer"]["param_groups"][0]["lr"]
    assert_same(after, before)


def assert_same(ours, theirs):
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, list):
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    else:
        assert ours == theirs


def test_under_bf16_statistics_energy_and_optimiser_state_are_float32(two_rooms):
    config = configuration(two_rooms, amp="bf16", recipe=Recipe(model=SMALL, objective=VICRegConfig(sides="both")))
    trainer, (first, *_) = trainer_for(config), batches(config)
    seen = {}
    objective_loss = trainer.forward.objective.loss

    def looked_at(predicted, encoded, *others):
        loss = objective_loss(predicted, encoded, *others)
        seen["predicted"], seen["terms"] = predicted.dtype, [term.dtype for term in (loss.total, *loss.terms.values())]
        return loss

    trainer.forward.objective.loss = looked_at
    with DtypesOf("addmm", "sqrt", "mse_loss") as statistics:
        result = trainer.step(first)
    assert seen["terms"] == [torch.float32] * 4
    assert statistics.found["mse_loss"] == statistics.found["sqrt"] == {torch.float32}
    assert result.metrics.dtype == torch.float32
    for state in trainer.optimizer.parts[0].adam.state.values():
        assert {value.dtype for value in state.values()} == {torch.float32}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert torch.bfloat16 in statistics.found["addmm"]


class DtypesOf(TorchDispatchMode):
    """Notes the dtypes of the first argument of some ops."""

    def __init__(self, *names):
        super().__init__()
        self.found = {name: set() for name in names}

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        if name in self.found:
            self.found[name].add(arguments[0].dtype)
        return function(*arguments, **(keywords or {}))


def test_float32_is_no_tf32(two_rooms, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    trainer_for(configuration(two_rooms))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_convolutions_have_gradients_of_the_same_bits(two_rooms, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    trainer_for(configuration(two_rooms))
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


def test_a_batch_of_another_shape_is_refused_by_name(two_rooms):
    config = configuration(two_rooms)
    trainer, (first, *_) = trainer_for(config), batches(config)
    trainer.step(first)
    with pytest.raises(ValueError, match=r"batch: actions: got shape \(4, 16, 2\), expected \(8, 16, 2\)"):
        trainer.step(first._replace(actions=first.actions[:4]))
