"""The exact rewrites against the plain encoder: same states, same gradients, whatever route is taken."""

import pytest
import torch
from torch import Tensor

from jepa_fast.config import VICRegConfig
from jepa_fast.data.batches import Batch, GroupBatch
from jepa_fast.kernels.dropout import new_clock
from jepa_fast.models.convnext import Encoder
from jepa_fast.models.sparse_encoder import Rewrites, SparseEncoder
from tests.models.exactness import (
    assert_equal_to_plain,
    images_of,
    relative,
    states_and_gradients,
    stored_dense,
    with_group,
    without_bases,
)
from tests.objective_terms import energy

ROUTES = {
    "all": Rewrites(),
    "static wall alone": Rewrites(windows=False, stem_collapse=False, early_pool=False),
    "windows, no stem collapse": Rewrites(stem_collapse=False),
    "windows, no early pooling": Rewrites(early_pool=False),
    "no windows": Rewrites(windows=False),
    "stem collapse and early pooling alone": Rewrites(static=False, windows=False),
    "none": Rewrites(static=False, windows=False, stem_collapse=False, early_pool=False),
}


def make_encoder(channels: int = 16, blocks: int = 2, dim: int = 32) -> Encoder:
    torch.manual_seed(channels + blocks)
    encoder = Encoder(channels, blocks, dim, dropout=0.1)
    for parameter in encoder.parameters():
        # LayerNorms start at the identity, which would hide a missing weight or bias.
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return encoder


@pytest.mark.parametrize("route", ROUTES)
def test_each_rewrite_gives_the_plain_states_and_gradients(drawn, route):
    batch, spec, bases = drawn(0)
    assert_equal_to_plain(make_encoder(), batch, spec, bases, ROUTES[route])


@pytest.mark.parametrize("channels", [16, 32])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_all_rewrites_are_exact_at_any_depth_and_width(drawn, channels, blocks):
    batch, spec, bases = drawn(blocks)
    encoder = make_encoder(channels, blocks)
    plan = SparseEncoder(encoder, spec, bases).plan(batch)
    assert plan.groups[0] == "windows"
    assert_equal_to_plain(encoder, batch, spec, bases, Rewrites())


@pytest.mark.parametrize(("size", "window"), [((65, 65), 10), ((34, 31), 1), ((28, 39), 28)])
def test_image_and_window_sizes_odd_even_and_as_high_as_the_image(drawn, size, window):
    batch, spec, bases = drawn(3, frames=2, size=size, window=window)
    assert_equal_to_plain(make_encoder(), batch, spec, bases, Rewrites())


def test_evaluation_mode_is_exact(drawn):
    batch, spec, bases = drawn(4)
    assert_equal_to_plain(make_encoder().eval(), batch, spec, bases, Rewrites())


def test_masks_differ_from_frame_to_frame_on_a_wall_encoded_once(drawn):
    batch, spec, bases = drawn(4)
    encoder = make_encoder()
    agent, wall = batch.groups
    batch = batch._replace(groups=(agent._replace(pixels=torch.zeros_like(agent.pixels)), wall))
    states = SparseEncoder(encoder, spec, bases)(batch, new_clock(1))
    assert not torch.equal(states[:, 0], states[:, 1])
    states = SparseEncoder(encoder.eval(), spec, bases)(batch, new_clock(1))
    assert torch.allclose(states[:, 0], states[:, 1], atol=1e-6)


def test_a_rollout_brings_frame_zero_alone(drawn):
    batch, spec, bases = drawn(6, trajectories=9)
    encoder = make_encoder().double().eval()
    batch_encoder = SparseEncoder(encoder, spec, bases)
    encoder.requires_grad_(False)
    first = batch.frames(slice(1))
    states = batch_encoder(first, new_clock())
    assert states.shape[1] == 1
    assert relative(states[:, 0], batch_encoder(batch, new_clock())[:, 0]) < 1e-12
    assert relative(SparseEncoder(encoder, spec, bases, "off")(first, new_clock()), states) < 1e-12


def test_frames_packed_whole_are_encoded_whole(drawn):
    batch, spec, bases = drawn(7)
    whole, spec = stored_dense(batch, spec, "agent")
    batch_encoder = SparseEncoder(make_encoder(), spec, bases)
    assert batch_encoder.plan(whole).groups[0] == "dense"
    assert "agent is stored frame by frame" in batch_encoder.explain(whole)
    noisy, spec = stored_dense(whole, spec, "agent", torch.randint_like(whole.groups[0].pixels, 256))
    assert_equal_to_plain(make_encoder(), noisy, spec, bases, Rewrites())


def test_walls_that_change_over_time_are_encoded_per_frame(drawn):
    batch, spec, bases = drawn(8)
    moving = images_of(batch, spec, "wall").clone()
    moving[:, 1:] = moving[:, 1:].roll(1, dims=-1)
    moving_batch, spec = stored_dense(batch, spec, "wall", moving)
    batch_encoder = SparseEncoder(make_encoder(), spec)
    assert batch_encoder.plan(moving_batch).groups[1] == "dense"
    assert "wall is stored frame by frame" in batch_encoder.explain(moving_batch)
    assert_equal_to_plain(make_encoder(), moving_batch, spec, bases, Rewrites())


def test_walls_without_bases_are_encoded_once_each(drawn):
    batch, spec, _ = drawn(9)
    plain, spec = without_bases(batch, spec, "wall")
    batch_encoder = SparseEncoder(make_encoder(), spec)
    assert batch_encoder.plan(plain).groups[1] == "once"
    assert "wall is stored without bases" in batch_encoder.explain(plain)
    assert_equal_to_plain(make_encoder(), plain, spec, (), Rewrites())


def test_every_wall_route_is_exact(drawn):
    batch, spec, bases = drawn(10, trajectories=9, frames=1)
    batch_encoder = SparseEncoder(make_encoder(), spec, bases)
    assert batch_encoder.plan(batch).groups[1] == "nested"
    assert_equal_to_plain(make_encoder(), batch, spec, bases, Rewrites())
    # One base: nothing to nest, and from there on windows over it.
    base = bases[1][:1]
    part = GroupBatch(base.repeat(9, 1, 1, 1), batch.groups[1].corners, torch.zeros(9, dtype=torch.int32))
    one, spec = with_group(batch, spec, "wall", part)
    assert SparseEncoder(make_encoder(), spec, (None, base)).plan(one).groups[1] == "windows"
    assert_equal_to_plain(make_encoder(), one, spec, (None, base), Rewrites())


def energies_and_gradients(
    encoder: Encoder, batch_encoder: SparseEncoder, batch: Batch, bf16: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """The energy with the encodings of the frame before as predictions."""
    encoder.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        states = batch_encoder(batch, new_clock(2))
    weights = torch.tensor([25.0, 25.0, 1.0], dtype=states.dtype)
    total = energy(states[:, :-1], states[:, 1:], weights, VICRegConfig()).total
    total.backward()
    return total.detach(), {name: weight.grad.double() for name, weight in encoder.named_parameters()}


@pytest.mark.parametrize("bf16", [False, True])
def test_rounding_is_no_worse_than_the_plain_encoders_own(drawn, bf16):
    batch, spec, bases = drawn(12, trajectories=4)
    encoder = make_encoder()
    plain, ours = SparseEncoder(encoder, spec, bases, "off"), SparseEncoder(encoder, spec, bases)
    expected, plain_gradients = energies_and_gradients(encoder, plain, batch, bf16)
    got, gradients = energies_and_gradients(encoder, ours, batch, bf16)
    _, truth = energies_and_gradients(encoder.double(), plain, batch)
    assert float(got) == pytest.approx(float(expected), rel=1e-2 if bf16 else 1e-5)
    # An error of one unit in the last place of the largest gradients is no error.
    floor = (2**-9 if bf16 else 2**-24) * 1e-2 * max(float(gradient.norm()) for gradient in truth.values())
    for name, gradient in gradients.items():
        error, allowed = (float((value[name] - truth[name]).norm()) for value in (gradients, plain_gradients))
        assert error <= 2 * max(allowed, floor), (name, error, allowed, floor, float(gradient.norm()))


def test_the_compiled_encoder_is_one_graph_and_equal(drawn):
    batch, spec, bases = drawn(13)
    encoder = make_encoder()
    batch_encoder = SparseEncoder(encoder, spec, bases)
    expected, truth = states_and_gradients(encoder, batch_encoder, batch, new_clock(3))
    compiled = torch.compile(batch_encoder.__call__, backend="aot_eager", fullgraph=True, dynamic=False)
    got, gradients = states_and_gradients(encoder, compiled, batch, new_clock(3))
    assert relative(got, expected) < 1e-5
    for name, gradient in gradients.items():
        assert relative(gradient, truth[name], 1e-3) < 1e-4, name


def test_gradients_arrive_through_distributed_data_parallel(drawn, tmp_path):
    batch, spec, bases = drawn(14)

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = make_encoder()

        def forward(self, batch: Batch) -> Tensor:
            return SparseEncoder(self.encoder, spec, bases)(batch, new_clock(4))

    step = Step()
    step(batch).square().sum().backward()
    expected = {name: weight.grad.clone() for name, weight in step.named_parameters()}
    step.zero_grad()
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.nn.parallel.DistributedDataParallel(step)(batch).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for name, weight in step.named_parameters():
        assert torch.equal(weight.grad, expected[name]), name


def test_windows_as_large_as_the_image_cost_more_than_whole_images_and_are_not_chosen(drawn):
    batch, spec, bases = drawn(11, size=(24, 24), window=16)
    batch_encoder = SparseEncoder(make_encoder(blocks=2), spec, bases)
    plan = batch_encoder.plan(batch)
    assert plan.groups == ("dense", "once")
    assert plan.flops < plan.plain_flops


def test_mode_is_checked(drawn):
    _, spec, bases = drawn(0)
    with pytest.raises(ValueError, match="mode: got 'on', expected 'auto' or 'off'"):
        SparseEncoder(make_encoder(), spec, bases, "on")
