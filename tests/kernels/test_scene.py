"""Centres and layouts read by the compiled ops, against the same rules in plain PyTorch."""

import pytest
import torch

from jepa_fast.kernels import scene
from jepa_fast.kernels.scene import read_centres, read_centres_reference, read_layout, read_layout_reference
from tests.compiled import needs_library


def images(*shape, solid=1.0, seed=0):
    """Bytes of which a share is not 0."""
    generator = torch.Generator().manual_seed(seed)
    shown = torch.rand(*shape, generator=generator) < solid
    return (torch.randint(1, 256, shape, generator=generator) * shown).to(torch.uint8)


@pytest.mark.parametrize("shape", [(4, 3, 10, 10), (5, 7, 1), (1, 1, 1), (0, 4, 4)])
def test_centres_are_those_of_plain_pytorch(shape):
    agents = images(*shape, solid=0.4)
    corners = torch.randint(-3, 50, (*shape[:-2], 2))
    assert torch.equal(read_centres(agents, corners), read_centres_reference(agents, corners))
    assert torch.equal(read_centres(agents), read_centres_reference(agents))
    strided = agents.transpose(-2, -1).contiguous().transpose(-2, -1)
    assert torch.equal(read_centres(strided, corners.short()), read_centres_reference(agents, corners))


def test_centres_of_whole_frames_are_exact_to_rounding():
    agents = images(3, 65, 65)
    places = torch.arange(65, dtype=torch.float64)
    light = agents.double()
    truth = (
        torch.stack([(light.sum(1) * places).sum(1), (light.sum(2) * places).sum(1)], 1) / light.sum((1, 2))[:, None]
    )
    torch.testing.assert_close(read_centres(agents).double(), truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(6, 20, 24), (3, 1, 5), (2, 9, 1), (0, 4, 4)])
@pytest.mark.parametrize("solid", [0.0, 0.02, 0.5, 0.9, 1.0])
def test_layouts_are_those_of_plain_pytorch(shape, solid):
    walls = images(*shape, solid=solid)
    # Lines from edge to edge, and one with a door.
    if shape[1] > 8 and shape[2] > 8:
        walls[:2, 2] = walls[:2, :, 3] = walls[:1, -2] = 200
        walls[0, :, 11] = 9
        walls[0, 5:8, 11] = 0
    assert torch.equal(read_layout(walls), read_layout_reference(walls))
    assert torch.equal(read_layout(walls.transpose(1, 2).contiguous().transpose(1, 2)), read_layout_reference(walls))


@needs_library
def test_bytes_on_a_cpu_are_compiled_and_floats_are_not():
    walls = images(2, 8, 8)
    assert scene.why_not_compiled(walls) is None
    assert "float32" in (scene.why_not_compiled(walls.float()) or "")
    assert torch.equal(read_layout(walls.float()), read_layout(walls))
    torch.library.opcheck(torch.ops.jepa_fast.read_layout.default, (walls,))
    torch.library.opcheck(torch.ops.jepa_fast.read_centres.default, (walls, torch.zeros(2, 2, dtype=torch.int64)))
    compiled = torch.compile(read_layout, fullgraph=True)
    assert torch.equal(compiled(walls), read_layout(walls))
