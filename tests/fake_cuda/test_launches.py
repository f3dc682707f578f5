"""Captured steps as they ship, bf16 and compiled, at full batch: few kernels, and none of them adds by atomics."""

import json
from pathlib import Path

import pytest

from jepa_fast.presets import PRESETS, preset
from tests.fake_cuda.device import Watch, running
from tests.fake_cuda.inductor import compiling

# {"captured": {preset: what this test counts}, "eager": {preset: the same, launched op by op}}. They may only fall.
CEILINGS = json.loads((Path(__file__).parent / "launches.json").read_text())
MOST = {"baseline": 250}


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute",  # the compiler's look at the gradient of latents
    "ignore:`torch._prims_common.check` is deprecated",  # Inductor's own, in torch 2.11
)
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_captured_step_is_few_kernels_and_none_adds_by_atomics(name, walls, cuda, monkeypatch):
    compiler = compiling(monkeypatch)
    recipe = preset(name)
    amp = "bf16" if "bf16" in recipe.model.amps else "off"
    with running(walls, recipe, amp=amp, compile=True, batch_size=128) as run:
        run.trainer.step(run.batch)
        parts = len(compiler.parts)
        with Watch() as watch:
            run.trainer.advance()
    assert len(compiler.parts) == parts, "compiled again in the second step"
    assert not watch.waits
    assert not watch.lies
    assert not watch.atomics
    for part in compiler.parts:
        assert "tl.atomic" not in part.code
    listed = "\n".join(f"{count:4} {place} {op}" for (place, op), count in sorted(watch.launches.items()))
    assert watch.count <= min(MOST.get(name, watch.count), CEILINGS["captured"][name]), listed
    print(name, watch.count)
