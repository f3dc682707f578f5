"""Captured steps as they ship, bf16 and compiled, at full batch: few kernels, and none of them adds by atomics."""

import json
import re
from pathlib import Path

import pytest
import torch

from jepa_fast.presets import preset
from tests.fake_cuda.device import Watch, running
from tests.fake_cuda.inductor import compiling

# {"captured": {preset: what this test counts}, "eager": {preset: the same, launched op by op}}. They may only fall.
CEILINGS = json.loads((Path(__file__).parent / "launches.json").read_text())
MOST = {"baseline": 250}
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "kernels.md").read_text()


def assert_named(watch, parts):
    """The page has a row for every kernel, and its rows add up."""
    rows = PAGE[PAGE.index("| kernels | launches |") : PAGE.index("| sum |")]
    assert sum(map(int, re.findall(r"\| (\d+) \| [\d.]+ \|$", rows, re.MULTILINE))) == watch.count
    for name in {op.split("::")[1] for _, op in watch.launches if op.startswith("triton::")}:
        assert f"`{name}`" in rows
    # Inductor's names are those of its version.
    if f"(torch {torch.__version__[:4]})" in PAGE:
        for part in parts:
            assert all(f"`{re.sub(r'_[0-9]+$', '', name)}`" in PAGE for name in part.triton)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute",  # the compiler's look at the gradient of latents
    "ignore:.torch._prims_common.check. is deprecated",  # Inductor's own, in torch 2.11
)
@pytest.mark.parametrize("name", sorted(CEILINGS["captured"]))
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
    if name == "baseline":
        assert_named(watch, compiler.parts)
