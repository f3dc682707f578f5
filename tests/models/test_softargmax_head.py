"""Branches that read off where things are: the coordinates they find, and shortcuts that are exact for them."""

import pytest
import torch

from jepa_fast.config import JEPAConfig
from jepa_fast.errors import InputError
from jepa_fast.models.convnext import Branch, Encoder, locate
from jepa_fast.models.jepa import build_jepa
from jepa_fast.models.sparse_encoder import Rewrites, SparseEncoder
from jepa_fast.models.window_grid import WindowGrid
from jepa_fast.models.window_heads import Coordinates
from jepa_fast.presets import preset
from tests.models.exactness import assert_equal_to_plain


def make_encoder(blocks=2, sharpness=10.0, kernels="reference"):
    torch.manual_seed(blocks)
    encoder = Encoder(16, blocks, 32, 0.1, kernels, head="softargmax")
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    for branch in (encoder.agent, encoder.wall):
        branch.sharpness.data *= sharpness / branch.sharpness.mean()
    return encoder


def activations(branch, images):
    """The last block's output [N, C, H, W]."""
    x = (images.permute(0, 2, 3, 1) * branch.stem.weight.view(-1)).permute(0, 3, 1, 2)
    for block in branch.blocks:
        x = block(x)
    return x


def test_coordinates_are_fractions_of_half_the_image_from_its_middle():
    x = torch.zeros(1, 3, 9, 21)
    x[0, 0, 0, 0] = x[0, 1, 4, 10] = x[0, 2, 8, 15] = 1
    torch.testing.assert_close(locate(x, torch.full((3,), 100.0))[0], torch.tensor([[-1.0, -1], [0, 0], [0.5, 1]]))


def test_a_branch_is_a_linear_layer_on_the_coordinates_of_its_channels():
    branch = make_encoder().wall.double()
    images = torch.rand(3, 1, 20, 23).double()
    x = activations(branch, images)
    weights = (x * branch.sharpness.view(1, -1, 1, 1)).flatten(2).softmax(dim=2)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 20), torch.linspace(-1, 1, 23), indexing="ij")
    found = torch.stack([(weights * axis.flatten()).sum(dim=2) for axis in (columns, rows)], dim=-1)
    torch.testing.assert_close(branch(images), branch.norm(branch.fc(found.flatten(1))), rtol=1e-6, atol=1e-6)


def test_what_is_shifted_is_found_shifted_by_as_much_as_it_stands_out():
    """On black, without biases, only what is shown is not zero; channels that it darkens move the other way."""
    torch.manual_seed(0)
    branch = Branch(8, 2, 16, bias=False, head="softargmax").double()
    images = torch.zeros(2, 1, 41, 41).double()
    images[:, 0, 14:18, 15:19] = torch.rand(4, 4)
    images[1] = images[1].roll((5, 3), dims=(1, 2))
    for sharpness in (1.0, 10.0, 1e4):
        before, after = locate(activations(branch, images), torch.full((8,), sharpness).double())
        moved = 20 * (after - before)  # pixels
        torch.testing.assert_close(moved[:, 0] / 3, moved[:, 1] / 5)
        assert moved.abs().min() > 1e-4
    # All channels have a pixel that stands out; in the end it is all they see.
    torch.testing.assert_close(moved, torch.tensor([3.0, 5]).double().expand(8, 2))


def test_gradients_of_the_head_are_those_of_differences():
    x, sharpness = torch.randn(2, 3, 4, 5).double(), torch.rand(3).double() * 4
    assert torch.autograd.gradcheck(locate, (x.requires_grad_(), sharpness.requires_grad_()))


@pytest.mark.parametrize(
    ("blocks", "sharpness", "kernels"),
    [(1, 10.0, "reference"), (2, 1.0, "reference"), (2, 100.0, "reference"), (3, 10.0, "triton")],
)
def test_shortcuts_are_exact(drawn, blocks, sharpness, kernels):
    batch, spec, bases = drawn(blocks, trajectories=9)
    encoder = make_encoder(blocks, sharpness, kernels)
    assert SparseEncoder(encoder, spec, bases).plan(batch).groups == ("windows", "nested")
    assert_equal_to_plain(encoder, batch, spec, bases, Rewrites())


@pytest.mark.parametrize(("size", "window"), [((34, 31), 1), ((28, 39), 28)])
def test_windows_may_be_a_pixel_or_fill_an_axis(drawn, size, window):
    batch, spec, bases = drawn(3, frames=2, size=size, window=window)
    assert_equal_to_plain(make_encoder(), batch, spec, bases, Rewrites())


def test_a_base_that_weighs_almost_only_under_the_window_does_not_cancel():
    """In float32, with all but 1e-9 of the base's weight replaced."""
    torch.manual_seed(0)
    branch = Branch(1, 1, 4, head="softargmax")
    branch.sharpness.data.fill_(1.0)
    base, image = torch.rand(1, 12, 12, 1), torch.rand(1, 12, 12, 1)
    base[0, 5, 5] = 25
    image[:, :4], image[:, 7:] = base[:, :4], base[:, 7:]
    place = WindowGrid.of(base, torch.zeros(1, 3, 12, 1), torch.tensor([[4, 0]]), None)
    head = Coordinates(branch)
    found = head.window((image - base)[:, 4:7], head.head_cache(base), place, 0)
    torch.testing.assert_close(found, locate(image.permute(0, 3, 1, 2), branch.sharpness), rtol=1e-5, atol=1e-6)


def test_bf16_autocast_rounds_no_coordinate(drawn):
    batch, spec, bases = drawn(2)
    encoder = make_encoder().eval()
    heads = []
    encoder.agent.fc.register_forward_hook(lambda _, inputs, __: heads.append(inputs[0]))
    clock = torch.zeros(3, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        for mode in ("off", "auto"):
            SparseEncoder(encoder, spec, bases, mode)(batch, clock)
    assert all(head.dtype == torch.float32 for head in heads)
    # As far apart as the roundings of the blocks before.
    assert (heads[0].flatten(0) - heads[1].flatten(0)).abs().max() < 0.05


def test_the_preset_has_the_head_in_both_branches_and_the_default_has_it_in_none():
    ours, default = build_jepa(preset("softargmax").model), build_jepa()
    names = {name for name in ours.state_dict() if name.endswith("sharpness")}
    assert names == {"encoder.agent.sharpness", "encoder.wall.sharpness"}
    assert not [name for name in default.state_dict() if name.endswith("sharpness")]
    assert ours.encoder.agent.fc.in_features == 2 * 16
    with pytest.raises(InputError, match=r"model\.head: got 'max', expected 'pool', 'softargmax' or 'spatial'"):
        JEPAConfig(head="max")
