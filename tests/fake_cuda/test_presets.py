"""A step and an evaluation of every preset: one device, no waiting, no copies, no atomics, fakes that are true."""

import json
from pathlib import Path

import pytest
import torch

from jepa_fast.presets import PRESETS, preset
from tests.fake_cuda.device import Watch, running

# Launches of a step, op by op: they may only fall.
CEILINGS = json.loads((Path(__file__).parent / "launches.json").read_text())["eager"]


def assert_clean(watch):
    assert not watch.waits, "\n".join(map(str, watch.waits))
    assert not watch.mixes, "\n".join(map(str, watch.mixes))
    assert not watch.copies, "\n".join(map(str, watch.copies))
    assert not watch.lies, "\n".join(sorted(watch.lies))


def steps(tensor):
    """Strides of the dimensions that are longer than one: those of others mean nothing."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_step_is_the_devices_alone(name, walls, cuda):
    recipe = preset(name)
    amp = "bf16" if "bf16" in recipe.model.amps else "off"
    with running(walls, recipe, amp=amp, batch_size=128) as run:
        run.trainer.step(run.batch)
        with Watch() as watch:
            run.trainer.advance()
        assert_clean(watch)
        assert not watch.atomics, "\n".join(map(str, watch.atomics))
        assert watch.count <= CEILINGS[name]
        for parameter in run.trainer.model.parameters():
            gradient = parameter.grad
            if gradient is not None:
                place = gradient.dtype, gradient.device, steps(gradient)
                assert place == (torch.float32, parameter.device, steps(parameter))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_an_evaluation_is_the_devices_alone(name, walls, cuda):
    recipe = preset(name)
    with running(walls, recipe, batch_size=64) as run:
        model = run.trainer.model.eval()
        encode = model.batch_encoder(run.spec, run.bases)
        with torch.no_grad(), Watch() as watch:
            first = encode(run.batch.frames(slice(1)), model.dropout_clock)
            latents = model.unroll(first, run.batch.actions)
        assert (latents.device.type, latents.shape[:2]) == ("cuda", (64, 17))
        assert_clean(watch)
