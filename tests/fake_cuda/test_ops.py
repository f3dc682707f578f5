"""What ops return on CUDA has the shapes, strides and dtypes that their fakes promise, for inputs of any layout."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from jepa_fast.kernels.convnext_block import convnext_block, convnext_block_keep
from jepa_fast.kernels.dwconv_norm import dwconv_norm
from jepa_fast.kernels.hidden import hidden_pool, norm_mlp
from jepa_fast.kernels.rollout import RolloutWeights, rollout
from jepa_fast.kernels.window import crop, depthwise, difference, window_pool
from tests.fake_cuda.device import Watch

C, N, H, W = 16, 6, 9, 8
LAYOUTS = ("contiguous", "permuted", "expanded")


def tensor(layout, *shape, dtype=torch.float32):
    """A leaf's view on the device: as it is, with its last two axes swapped in memory, or one row for all."""
    if layout == "permuted":
        made = torch.empty(*shape[:-2], shape[-1], shape[-2], dtype=dtype, device="cuda").requires_grad_()
        return made.transpose(-1, -2)
    made = torch.empty((1, *shape[1:]) if layout == "expanded" else shape, dtype=dtype, device="cuda").requires_grad_()
    return made.expand(shape)


def vector(*shape):
    return torch.empty(shape, device="cuda", requires_grad=True)


def block():
    return vector(C, 1, 7, 7), vector(C), vector(C), vector(4 * C, C), vector(C, 4 * C)


def places():
    return torch.zeros(N, 2, dtype=torch.int64, device="cuda"), torch.zeros(N, dtype=torch.int64, device="cuda")


def predictor(dim):
    shapes = [(dim,), (dim,), (dim, 2), (dim,), (dim,), (dim,), (4 * dim, dim)]
    shapes += [(4 * dim,), (4 * dim,), (4 * dim,), (dim, 4 * dim), (dim,)]
    return RolloutWeights(*(vector(*shape) for shape in shapes))


def clock():
    return torch.zeros(3, dtype=torch.int64, device="cuda")


OPS = {
    "convnext_block": lambda x: convnext_block(x(N, H, W, C), *block()),
    "convnext_block over bases": lambda x: convnext_block(
        x(N, H, W, C), *block(), addend=x(N, H + 6, W + 6, C), padding=6
    ),
    "convnext_block kept": lambda x: convnext_block_keep(x(N, H, W, C), *block(), is_fused=True),
    "dwconv_norm": lambda x: dwconv_norm(x(N, H, W, C), *block()[:3]),
    "crop": lambda x: crop(x(2, H, W, C), *places(), (1, 1), (4, 5), is_fused=True),
    "crop, plain": lambda x: crop(x(2, H, W, C), *places(), (1, 1), (4, 5)),
    "window_difference": lambda x: difference(x(N, 4, 5, C), x(2, H, W, C), *places(), (1, 1), is_fused=True),
    "window_difference, plain": lambda x: difference(x(N, 4, 5, C), x(2, H, W, C), *places(), (1, 1)),
    "window_pool": lambda x: window_pool(x(N, 4, 5, C), places()[0], (1, 1), (H, W)),
    "depthwise": lambda x: depthwise(x(N, H, W, C), vector(C, 1, 7, 7), (3, 3), x(N, H, W, C)),
    "norm_mlp": lambda x: norm_mlp(x(N, H, W, C), *block()[1:], 1e-5),
    "hidden_pool": lambda x: hidden_pool(
        x(N, H, W, C), *block()[1:4], *(torch.empty(N, 6, side, device="cuda") for side in (H, W)), 1e-5
    ),
    "rollout": lambda x: rollout(x(N, C), x(N, 4, 2), predictor(C), clock(), dropout=0.1),
}


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", sorted(OPS))
def test_fakes_tell_the_truth(name, layout, amp, cuda):
    with FakeTensorMode(), Watch() as watch:
        with torch.autocast("cuda", torch.bfloat16, enabled=amp):
            outputs = OPS[name](lambda *shape: tensor(layout, *shape))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.backward(outputs, [torch.empty_like(one) for one in outputs])
        outputs = None
    assert sum(watch.calls.values()) >= 2, "forward and backward"
    assert not watch.lies, "\n".join(sorted(watch.lies))
    assert not watch.mixes
    assert not watch.waits
