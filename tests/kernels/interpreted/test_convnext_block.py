import pytest
import torch

from jepa_fast.kernels import convnext_block as op
from jepa_fast.kernels.convnext_block import convnext_block_reference
from jepa_fast.kernels.triton import convnext_block as module
from jepa_fast.kernels.triton.convnext_block import block_forward
from jepa_fast.kernels.triton.convnext_block_backward import block_backward


def draw(*shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * scale


def block(channels):
    """weight, gamma, beta, expand, project: of a size that makes every part of the block matter."""
    gamma, beta = draw(channels) + 1.5, draw(channels + 1)[1:]
    expand, project = draw(4 * channels, channels, scale=channels**-0.5), draw(channels, 4 * channels, scale=0.2)
    return draw(channels, 1, 7, 7, scale=0.2), gamma, beta, expand, project


def exact(x, parameters, addend, padding, dy=None):
    """Output, and with dy the gradients of x, addend and the parameters, in float64."""
    leaves = [None if leaf is None else leaf.double().requires_grad_() for leaf in (x, *parameters, addend)]
    y = convnext_block_reference(*leaves, padding=padding)
    y.backward(dy(y.shape).double())
    gradients = [None if leaf is None else leaf.grad for leaf in leaves]
    return y.detach(), [gradients[0], gradients[-1], *gradients[1:-1]]


NAMES = ("x", "z", "weight", "gamma", "beta", "expand", "project")
CASES = [
    ((2, 9, 8, 16), (3, 3), False),
    ((2, 4, 5, 16), (6, 6), True),
    ((1, 1, 1, 16), (3, 3), False),
    ((1, 3, 4, 32), (3, 3), True),
    ((1, 1, 2, 96), (3, 3), True),
]


@pytest.mark.parametrize(("shape", "padding", "has_addend"), CASES, ids=str)
def test_values_and_gradients_match_float64(shape, padding, has_addend, error):
    count, height, width, channels = shape
    out = (count, height + 2 * padding[0] - 6, width + 2 * padding[1] - 6, channels)
    x, parameters = draw(*shape), block(channels)
    addend = draw(*out, scale=0.5) if has_addend else None
    truth, gradients = exact(x, parameters, addend, padding, lambda shape: draw(*shape))
    y, z, _ = block_forward(x, *parameters, addend, padding, 1e-5)
    assert error(y, truth) < 2e-6
    ours = block_backward(draw(*out), None, None, x, z, *parameters, padding, 1e-5)
    for name, gradient, wanted in zip(NAMES, ours, gradients, strict=True):
        if wanted is not None:
            assert error(gradient, wanted) < 1e-5, name


def test_strips_of_rows_give_the_same_values(monkeypatch, error):
    x, parameters = draw(1, 9, 5, 16), block(16)
    whole = block_forward(x, *parameters, None, (3, 3), 1e-5)
    monkeypatch.setattr(module, "strip_rows", lambda *_: 5)
    strips = block_forward(x, *parameters, None, (3, 3), 1e-5)
    assert error(strips[0], whole[0]) < 1e-6
    assert torch.equal(strips[1], whole[1])


def test_a_kept_block_has_its_update_and_takes_gradients_of_all_three(error):
    shape = (2, 5, 6, 16)
    x, parameters = draw(*shape), block(16)
    gradients = [draw(*shape), draw(*shape, scale=0.5), draw(*shape).flip(0)]
    leaves = [leaf.double().requires_grad_() for leaf in (x, *parameters)]
    z = torch.nn.functional.conv2d(leaves[0].permute(0, 3, 1, 2), leaves[1], padding=3, groups=16).permute(0, 2, 3, 1)
    normed = torch.nn.functional.layer_norm(z, (16,), *leaves[2:4], 1e-5)
    update = torch.nn.functional.gelu(normed @ leaves[4].t()) @ leaves[5].t()
    torch.autograd.backward([leaves[0] + update, z, update], [gradient.double() for gradient in gradients])
    ours = block_forward(x, *parameters, None, (3, 3), 1e-5, keep=True)
    for one, wanted in zip(ours, (leaves[0] + update, z, update), strict=True):
        assert error(one, wanted.detach()) < 2e-6
    dx, _, *others = block_backward(*gradients, x, ours[1], *parameters, (3, 3), 1e-5)
    for name, one, leaf in zip(("x", *NAMES[2:]), (dx, *others), leaves, strict=True):
        assert error(one, leaf.grad) < 1e-5, name


def test_the_op_itself_takes_the_kernels(monkeypatch, error):
    """What stands between the public function and the launches: strides, order of gradients."""
    monkeypatch.setattr(op, "runs_in_triton", lambda *_: True)
    x = draw(2, 5, 16, 4).permute(0, 1, 3, 2)
    parameters = list(block(16))
    parameters[3] = parameters[3].t().contiguous().t()
    addend = draw(2, 11, 16, 10).permute(0, 1, 3, 2)
    truth, gradients = exact(x, parameters, addend, (6, 6), lambda shape: draw(*shape))
    leaves = [leaf.requires_grad_() for leaf in (x, *parameters, addend)]
    y = op.convnext_block(*leaves, padding=6)
    assert error(y.detach(), truth) < 2e-6
    y.backward(draw(*y.shape).transpose(1, 2).contiguous().transpose(1, 2))
    for leaf, wanted in zip(leaves, [gradients[0], *gradients[2:], gradients[1]], strict=True):
        assert error(leaf.grad, wanted) < 1e-5
