"""The third branch, which reads both channels: what it computes, and shortcuts that are exact for it."""

import pytest
import torch
import torch.nn.functional as F

from jepa_fast.data.batches import GroupBatch
from jepa_fast.kernels.dropout import SITE_FIRST_GROUP, SITE_FUSION, SITE_SECOND_GROUP, dropout_mask, new_clock
from jepa_fast.models.convnext import Encoder
from jepa_fast.models.jepa import build_jepa
from jepa_fast.models.sparse_encoder import Rewrites, SparseEncoder
from jepa_fast.presets import preset
from tests.models.exactness import assert_equal_to_plain, images_of, relative, stored_dense, with_group


def make_encoder(blocks=2, kernels="reference", head="pool"):
    torch.manual_seed(blocks)
    encoder = Encoder(16, blocks, 32, 0.1, kernels, fusion=True, head=head)
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return encoder


def test_the_branch_mixes_both_channels_into_its_first_features():
    encoder = make_encoder().double().eval()
    branch, frames = encoder.fusion, torch.rand(2, 3, 2, 20, 23).double()
    x = F.conv2d(frames.flatten(0, 1), branch.stem.weight)
    for block in branch.blocks:
        x = block(x)
    expected = branch.head(F.adaptive_avg_pool2d(x, 6)).view(2, 3, 32)
    agent, wall = (
        part(frames[:, :, each].flatten(0, 1)[:, None]).view(2, 3, 32)
        for each, part in enumerate((encoder.agent, encoder.wall))
    )
    torch.testing.assert_close(encoder(frames, new_clock()), agent + wall + expected, rtol=1e-12, atol=1e-12)


def test_it_knows_what_two_branches_that_are_added_cannot():
    """A state that is a sum changes with the agent by as much whatever the wall: not so with this branch."""
    frames = torch.rand(2, 2, 2, 20, 20).double()
    frames[1, :, 1] = frames[0, :, 1].roll(5, dims=-1)
    frames[1, :, 0] = frames[0, :, 0]
    frames[:, :, 1] = frames[:, :1, 1]
    gaps = []
    for fusion in (False, True):
        torch.manual_seed(0)
        encoder = Encoder(16, 2, 32, 0.1, fusion=fusion).double().eval()
        change = encoder(frames, new_clock()).diff(dim=1)[:, 0].detach()
        gaps.append(relative(change[1], change[0]))
    assert gaps[0] < 1e-10
    assert gaps[1] > 1e-3


def test_each_branch_has_a_dropout_mask_of_its_own():
    encoder, clock = make_encoder(), new_clock(3)
    ones = torch.ones(2, 3, 32)
    masks = [dropout_mask((2, 3, 32), 0.1, clock, site) for site in (SITE_FIRST_GROUP, SITE_SECOND_GROUP, SITE_FUSION)]
    assert torch.equal(encoder.combine([ones, 10 * ones], clock, 100 * ones), masks[0] + 10 * masks[1] + 100 * masks[2])
    assert not torch.equal(masks[2], masks[0])
    assert not torch.equal(masks[2], masks[1])


@pytest.mark.parametrize(
    ("blocks", "kernels", "head"),
    [
        (1, "reference", "pool"),
        (2, "reference", "pool"),
        (3, "triton", "pool"),
        (2, "reference", "softargmax"),
        (2, "fused", "pool"),
        (3, "fused", "softargmax"),
    ],
)
@pytest.mark.parametrize(("trajectories", "wall"), [(2, "once"), (9, "nested")])
def test_shortcuts_are_exact(drawn, blocks, kernels, head, trajectories, wall):
    batch, spec, bases = drawn(blocks, trajectories=trajectories)
    encoder = make_encoder(blocks, kernels, head)
    plan = SparseEncoder(encoder, spec, bases).plan(batch)
    assert (plan.groups[1], plan.fusion) == (wall, "windows")
    assert_equal_to_plain(encoder, batch, spec, bases, Rewrites())


def test_every_rewrite_alone_is_exact(drawn):
    batch, spec, bases = drawn(10, trajectories=9, frames=1)
    for rewrites in (Rewrites(stem_collapse=False), Rewrites(early_pool=False), Rewrites(windows=False)):
        assert_equal_to_plain(make_encoder(), batch, spec, bases, rewrites)
    base = bases[1][:1]
    part = GroupBatch(base.repeat(9, 1, 1, 1), batch.groups[1].corners, torch.zeros(9, dtype=torch.int32))
    one, spec = with_group(batch, spec, "wall", part)
    plan = SparseEncoder(make_encoder(), spec, (None, base)).plan(one)
    assert (plan.groups[1], plan.fusion) == ("windows", "windows")
    assert_equal_to_plain(make_encoder(), one, spec, (None, base), Rewrites())


def test_frames_packed_whole_and_walls_that_change_are_encoded_whole(drawn):
    batch, spec, bases = drawn(7)
    whole = stored_dense(batch, spec, "agent", torch.randint_like(images_of(batch, spec, "agent"), 256))
    moving = images_of(batch, spec, "wall").clone()
    moving[:, 1:] = moving[:, 1:].roll(1, dims=-1)
    changing = stored_dense(batch, spec, "wall", moving)
    for (kind, stored), known in ((whole, bases), (changing, ())):
        assert SparseEncoder(make_encoder(), stored, known).plan(kind).fusion == "dense"
        assert_equal_to_plain(make_encoder(), kind, stored, known, Rewrites())


def test_a_rollout_brings_frame_zero_alone(drawn):
    batch, spec, bases = drawn(6, trajectories=9)
    batch_encoder = SparseEncoder(make_encoder().double().eval().requires_grad_(False), spec, bases)
    first, states = batch_encoder(batch.frames(slice(0, 1)), new_clock()), batch_encoder(batch, new_clock())
    assert relative(first[:, 0], states[:, 0]) < 1e-12


def test_the_log_names_its_route_and_counts_its_work(drawn):
    batch, spec, bases = drawn(6, trajectories=9)
    batch_encoder = SparseEncoder(make_encoder(), spec, bases)
    assert "agent windows, wall nested, fusion windows: " in batch_encoder.explain(batch)
    two = SparseEncoder(Encoder(16, 2, 32, 0.1), spec, bases)
    assert ", fusion" not in two.explain(batch)
    ours, theirs = batch_encoder.plan(batch), two.plan(batch)
    assert 2 * ours.plain_flops == 3 * theirs.plain_flops
    # All that the other two cost, but for the one black image.
    assert theirs.flops < ours.flops < 2 * theirs.flops


def test_the_compiled_encoder_is_one_graph_and_equal(drawn):
    batch, spec, bases = drawn(13, trajectories=9)
    batch_encoder = SparseEncoder(make_encoder(head="softargmax"), spec, bases)
    compiled = torch.compile(batch_encoder.__call__, backend="aot_eager", fullgraph=True, dynamic=False)
    assert relative(*(each(batch, new_clock(3)).detach() for each in (compiled, batch_encoder))) < 1e-5


def test_the_preset_adds_a_branch_and_changes_no_other():
    ours, default = build_jepa(preset("fusion").model).state_dict(), build_jepa().state_dict()
    added = {name: value for name, value in ours.items() if name not in default}
    assert all(name.startswith("encoder.fusion.") for name in added)
    assert {name: value.shape for name, value in ours.items() if name in default} == {
        name: value.shape for name, value in default.items()
    }
    assert sum(value.numel() for value in added.values()) == 79_872
