"""Every codec of a group of channels, from the packer to the encoder: the plain latents and gradients, in float64."""

import numpy as np
import pytest
import torch

from jepa_fast.data.host import gather, group_bases
from jepa_fast.data.packing import pack
from jepa_fast.data.shards import open_split
from jepa_fast.errors import InputError
from jepa_fast.kernels.dropout import new_clock
from jepa_fast.models.convnext import Encoder
from jepa_fast.models.sparse_encoder import Rewrites, SparseEncoder
from tests.data.conftest import GroupSource, draw_group
from tests.models.exactness import assert_equal_to_plain, relative

SIZES = {"size": (26, 33), "window": (3, 5)}
# Of 16 trajectories of 3 frames: the routes that are cheapest.
ROUTES = {
    "static": "once",
    "static over images": "nested",
    "black": "windows",
    "one image": "windows",
    "images": "windows",
    "own": "windows",
    "dense": "dense",
}


def make_split(folder, kinds, scale=1 / 255, offset=0.0, channels=3):
    """A split with a group of each kind, called "a", "b", ...; the batch of all its trajectories."""
    arrays = {
        "abc"[number]: draw_group(kind, channels, count=16, frames=3, seed=number, **SIZES)
        for number, kind in enumerate(kinds)
    }
    actions = np.zeros((16, 2, 5), np.float32)
    pack(GroupSource(arrays, actions, scale=scale, offset=offset), folder)
    split = open_split(folder)
    return split, gather(split, np.arange(16))


def make_encoder(split, **options):
    torch.manual_seed(0)
    groups = [(group.name, group.channels) for group in split.spec.groups]
    encoder = Encoder(options.pop("width", 4), options.pop("blocks", 2), 16, 0.1, groups=groups, **options)
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return encoder


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ROUTES)
def test_each_codec_is_exact(tmp_path, kind, channels):
    kinds = [kind, "black"] if kind.startswith("static") else [kind]
    split, batch = make_split(tmp_path, kinds, channels=channels)
    encoder = make_encoder(split)
    sparse = SparseEncoder(encoder, split.spec, group_bases(split))
    plan = sparse.plan(batch)
    assert plan.groups[0] == ROUTES[kind]
    assert f"encoder: a {ROUTES[kind]}" in sparse.explain(batch)
    assert (plan.flops < plan.plain_flops) == (kind != "dense")
    assert_equal_to_plain(encoder, batch, split.spec, group_bases(split), Rewrites())


@pytest.mark.parametrize("kind", ["one image", "images", "own", "static over images"])
@pytest.mark.parametrize(
    "rewrites",
    [Rewrites(stem_collapse=False), Rewrites(early_pool=False), Rewrites(windows=False), Rewrites(static=False)],
)
def test_every_rewrite_alone_is_exact(tmp_path, kind, rewrites):
    split, batch = make_split(tmp_path, [kind, "black"])
    assert_equal_to_plain(make_encoder(split), batch, split.spec, group_bases(split), rewrites)


@pytest.mark.parametrize(
    ("blocks", "kernels", "head"), [(1, "reference", "pool"), (3, "triton", "pool"), (2, "reference", "softargmax")]
)
def test_three_channels_are_exact_at_any_depth_with_any_head_and_as_one_op(tmp_path, blocks, kernels, head):
    split, batch = make_split(tmp_path, ["images", "static over images", "own"])
    torch.manual_seed(1)
    # Fused blocks are of eight channels or more.
    encoder = make_encoder(split, width=8, blocks=blocks, kernels=kernels, head=head)
    assert_equal_to_plain(encoder, batch, split.spec, group_bases(split), Rewrites())


@pytest.mark.parametrize("offset", [0.0, -1.0])
@pytest.mark.parametrize(
    ("kinds", "fusion"),
    [
        (["black", "static over images"], "windows"),
        (["static", "own"], "windows"),
        (["images", "static over images", "static"], "windows"),
        (["black", "own"], "dense"),
        (["dense", "static"], "dense"),
    ],
)
def test_the_branch_of_all_channels_is_exact_over_any_bases(tmp_path, kinds, fusion, offset):
    split, batch = make_split(tmp_path, kinds, 2 / 255, offset)
    encoder = make_encoder(split, fusion=True)
    assert SparseEncoder(encoder, split.spec, group_bases(split)).plan(batch).fusion == fusion
    assert_equal_to_plain(encoder, batch, split.spec, group_bases(split), Rewrites())


@pytest.mark.parametrize("kind", ["black", "images", "own", "dense", "static over images"])
def test_a_group_that_is_kept_apart_is_that_of_frame_0(tmp_path, kind):
    split, batch = make_split(tmp_path, ["own", kind])
    encoder = make_encoder(split, apart="b")
    assert_equal_to_plain(encoder, batch, split.spec, group_bases(split), Rewrites())
    latents = SparseEncoder(encoder.eval(), split.spec, group_bases(split))(batch, new_clock())
    assert latents.shape == (16, 3, 32)
    assert torch.equal(latents[:, 2, 16:], latents[:, 0, 16:])
    with pytest.raises(ValueError, match="apart: got 'c', expected one of several groups: a, b"):
        make_encoder(split, apart="c")


def test_a_rollout_brings_frame_zero_alone(tmp_path):
    split, batch = make_split(tmp_path, ["images", "own", "static"])
    encoder = make_encoder(split).double().eval().requires_grad_(False)
    sparse = SparseEncoder(encoder, split.spec, group_bases(split))
    first = sparse(batch.frames(slice(1)), new_clock())
    assert first.shape == (16, 1, 16)
    assert relative(first[:, 0], sparse(batch, new_clock())[:, 0]) < 1e-12


def test_the_compiled_encoder_is_one_graph_on_every_codec_and_equal(tmp_path):
    split, batch = make_split(tmp_path, ["images", "own", "static over images"])
    sparse = SparseEncoder(make_encoder(split), split.spec, group_bases(split))
    compiled = torch.compile(sparse.__call__, backend="aot_eager", fullgraph=True, dynamic=False)
    assert relative(compiled(batch, new_clock(3)).detach(), sparse(batch, new_clock(3)).detach()) < 1e-5


def test_a_batch_is_copied_into_one_that_stays_in_place(tmp_path):
    split, batch = make_split(tmp_path, ["images", "own", "static over images"])
    place = gather(split, np.arange(8)).placed(torch.device("cpu"))
    where = {name: None if tensor is None else tensor.data_ptr() for name, tensor in place.tensors().items()}
    other = gather(split, np.arange(8, 16))
    place.copy_(other)
    for name, tensor in place.tensors().items():
        assert where[name] == (None if tensor is None else tensor.data_ptr())
        assert tensor is None or torch.equal(tensor, other.tensors()[name])
    with pytest.raises(ValueError, match=r"batch: indices: got shape \(16,\), expected \(8,\) as in the first step"):
        place.copy_(batch)
    without = other._replace(groups=(other.groups[0]._replace(base_index=None), *other.groups[1:]))
    with pytest.raises(ValueError, match=r"batch: 0\.base_index: got shape None, expected \(8,\)"):
        place.copy_(without)


def test_data_with_other_groups_than_the_models_are_refused(tmp_path):
    split, _ = make_split(tmp_path, ["own"])
    expected = "groups of channels: the model has agent:1, wall:1, the data a:3"
    with pytest.raises(InputError, match=expected):
        SparseEncoder(Encoder(8, 1, 16, 0.0), split.spec, group_bases(split))


@pytest.mark.parametrize("groups", [[("a", 1), ("a", 2)], [("forward", 1)], [("fusion", 3)], [("branches", 3)]])
def test_groups_are_told_apart_by_names_of_their_own(groups):
    name = groups[-1][0]
    with pytest.raises(
        InputError, match=rf"model\.groups\.name: got '{name}', expected a name that the encoder does not"
    ):
        Encoder(8, 1, 16, 0.0, groups=groups)
