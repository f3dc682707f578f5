"""What ships, on a GPU: the default recipe in bf16, compiled and captured; every preset; resume; NCCL, alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from jepa_fast.config import RunConfig
from jepa_fast.data.host import gather, group_bases
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import open_split
from jepa_fast.engine.distributed import ALONE, Ranks
from jepa_fast.engine.step import Trainer
from jepa_fast.models import sparse_encoder
from jepa_fast.presets import PRESETS, preset
from jepa_fast.probing.rollouts import rollout_split

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
BATCH = 16


@pytest.fixture(scope="module")
def walls(walks):
    """A data set whose walls lie on base images."""
    assert open_split(walks / "train").bases[1] is not None
    return walks


def configuration(data, name="baseline", **changes):
    config = RunConfig(
        preset=name, recipe=preset(name), seed=3, steps=100, batch_size=BATCH, amp="off", compile=False, device="cuda",
        data=str(data), loader="host", kernels="triton", sparse=True,
    )  # fmt: skip
    return replace(config, **changes)


def make(config, ranks=ALONE):
    split = open_split(Path(config.data) / "train")
    return Trainer(config, split.spec, group_bases(split, torch.device(config.device)), ranks)


def batches(config, first, last):
    split = open_split(Path(config.data) / "train")
    return [gather(split, rows) for rows in Sampler(split.count, config.batch_size, config.seed).steps(first, last)]


def metrics(trainer, given):
    """Of each step, on the CPU."""
    return torch.stack([trainer.step(batch).metrics.clone() for batch in given]).cpu()


SHIPPED = {"amp": "bf16", "compile": True, "capture": True}


def test_the_default_step_is_one_graph_and_two_runs_have_the_same_bits(walls):
    config = configuration(walls, **SHIPPED)
    given = batches(config, 0, 20)
    first, second = make(config), make(config)
    ours = metrics(first, given)
    assert first._advance._graph is not None
    assert ours.isfinite().all()
    assert torch.equal(metrics(second, given), ours)
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)
    # Rounding differs where parts are compiled; twenty steps carry it on.
    eager = metrics(make(replace(config, compile=False, capture=False)), given)
    torch.testing.assert_close(ours[:5], eager[:5], rtol=5e-2, atol=1e-2)


@pytest.mark.parametrize("route", ["once", "windows", "nested"])
def test_every_route_of_the_walls_is_the_plain_encoder(walls, route, monkeypatch):
    def chosen(self, work):
        return route if route in work else min(work, key=work.__getitem__)

    monkeypatch.setattr(sparse_encoder._GroupEncoder, "cheapest", chosen)
    config = configuration(walls)
    trainer, plain = make(config), make(replace(config, sparse=False, kernels="reference", device="cpu"))
    (batch,) = batches(config, 0, 1)
    assert trainer.forward.encode.plan(batch.to(trainer.device)).groups[1] == route
    torch.testing.assert_close(metrics(trainer, [batch]), metrics(plain, [batch]), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        if theirs.grad is not None:
            assert (ours.grad.cpu() - theirs.grad).norm() <= 1e-3 * theirs.grad.norm() + 1e-6


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_takes_steps_resumes_with_the_same_bits_and_is_evaluated(walls, name):
    recipe = preset(name)
    amp = "bf16" if "bf16" in recipe.model.amps else "off"
    config = configuration(walls, name, amp=amp, capture=True)
    given = batches(config, 0, 10)
    trainer = make(config)
    ours = metrics(trainer, given[:6])
    assert ours.isfinite().all()
    state = {key: _copied(value) for key, value in trainer.state().items()}
    rest = metrics(trainer, given[6:])
    again = make(config)
    again.restore(state)
    assert torch.equal(metrics(again, given[6:]), rest)
    plain = make(replace(config, amp="off", kernels="reference", device="cpu", capture=False))
    expected = metrics(plain, given[:1])
    torch.testing.assert_close(ours[:1], expected, rtol=5e-2, atol=2e-2)
    split = open_split(walls / "probe_normal" / "val")
    rollouts = rollout_split(trainer.model, split, name, batch_size=64)
    assert rollouts.latents.isfinite().all()


def _copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value


def test_a_capture_that_fails_goes_on_with_the_same_state(walls, monkeypatch, caplog):
    config = configuration(walls, capture=True)
    given = batches(config, 0, 8)
    trainer, plain = make(config), make(replace(config, capture=False))
    encode = trainer.forward._encode

    def reads(*arguments):
        encoded = encode(*arguments)
        # Of no use but to wait for the device, which no capture allows.
        assert float(encoded.sum()) is not None
        return encoded

    monkeypatch.setattr(trainer.forward, "_encode", reads)
    assert torch.equal(metrics(trainer, given), metrics(plain, given))
    assert "capture: given up" in caplog.text
    assert trainer._advance._graph is None


def test_one_process_of_nccl_trains_as_one_alone(walls, tmp_path):
    config = configuration(walls)
    given = batches(config, 0, 3)
    dist.init_process_group("nccl", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        shared = metrics(make(config, Ranks(1, 0, dist.group.WORLD)), given)
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(shared, metrics(make(config), given), rtol=1e-4, atol=1e-5)
