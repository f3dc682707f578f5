"""Stems of patches and with strides: the cells are a convolution's, and windows of pixels show in them exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_fast.config import JEPAConfig
from jepa_fast.data.batches import Batch, GroupBatch
from jepa_fast.data.host import gather, group_bases
from jepa_fast.data.manifest import ChannelGroup, FrameSpec
from jepa_fast.data.packing import pack
from jepa_fast.data.shards import open_split
from jepa_fast.errors import InputError
from jepa_fast.models.convnext import BatchNorm, Branch, Encoder
from jepa_fast.models.jepa import build_jepa
from jepa_fast.models.sparse_encoder import Rewrites, SparseEncoder
from jepa_fast.models.stem import PIXELS, Stem
from jepa_fast.models.window_encoder import WindowEncoder
from jepa_fast.models.window_grid import WindowGrid
from jepa_fast.presets import preset
from tests.data.conftest import GroupSource, draw_group
from tests.models.exactness import assert_equal_to_plain

STEMS = [(2, 2), (4, 4), (3, 2), (7, 4), (8, 8), (5, 1)]


@pytest.mark.parametrize(("side", "stride"), STEMS)
@pytest.mark.parametrize("image", [(16, 24), (17, 30), (5, 9)])
def test_cells_are_those_of_a_convolution_that_sees_every_pixel(side, stride, image):
    stem, filters = Stem(side, stride), torch.randn(6, 3, side, side, dtype=torch.float64)
    images = torch.randn(2, *image, 3, dtype=torch.float64)
    before, (height, width) = (side - stride) // 2, (-(-size // stride) for size in image)
    padded = F.pad(images.permute(0, 3, 1, 2), (before, side, before, side))
    expected = F.conv2d(padded, filters, stride=stride)[:, :, :height, :width]
    cells = stem.apply(images, filters)
    assert stem.cells(image) == (height, width)
    torch.testing.assert_close(cells.permute(0, 3, 1, 2), expected, rtol=1e-12, atol=1e-12)
    # A change of any pixel changes a cell.
    last = stem.apply(images + F.pad(torch.ones(1, 1, 1, 3), (0, 0, image[1] - 1, 0, image[0] - 1, 0)), filters)
    assert not torch.equal(last, cells)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_windows_of_pixels_show_in_windows_of_cells_and_nowhere_else(data):
    def whole(low, high):
        return data.draw(st.integers(low, high))

    stem = Stem(whole(1, 9), 1)
    stem = Stem(stem.side, whole(1, stem.side))
    image = whole(1, 30), whole(1, 30)
    size = whole(1, image[0]), whole(1, image[1])
    corners = torch.tensor([[whole(0, image[axis] - size[axis]) for axis in (0, 1)] for _ in range(3)])
    pixels = torch.randn(3, *size, 2, dtype=torch.float64)
    filters = torch.randn(4, 2, stem.side, stem.side, dtype=torch.float64)
    place = WindowGrid(corners, torch.arange(3), size, image)
    cells = stem.cell_grid(place)
    whole_images = torch.zeros(3, *image, 2, dtype=torch.float64)
    for each, (row, column), window in zip(whole_images, corners.tolist(), pixels, strict=True):
        each[row : row + size[0], column : column + size[1]] = window
    expected = stem.apply(whole_images, filters)
    shown = stem.apply_windows(pixels, place, cells, filters)
    pasted = cells.paste(shown, torch.zeros_like(expected), 0)
    torch.testing.assert_close(pasted, expected, rtol=1e-12, atol=1e-12)


def small_encoder(split, stem, seed=0, **options):
    torch.manual_seed(seed)
    groups = [(group.name, group.channels) for group in split.spec.groups]
    encoder = Encoder(8, 2, options.pop("dim", 16), 0.1, groups=groups, stem=Stem(*stem), **options)
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return encoder


def packed(folder, kinds, size=(44, 61), window=(3, 5), offset=0.0):
    arrays = {
        "abc"[number]: draw_group(kind, count=16, frames=3, seed=number, size=size, window=window)
        for number, kind in enumerate(kinds)
    }
    pack(GroupSource(arrays, np.zeros((16, 2, 5), np.float32), scale=1 / 255, offset=offset), folder)
    split = open_split(folder)
    return split, gather(split, np.arange(16))


@pytest.mark.parametrize("stem", [(2, 2), (7, 4), (5, 3)])
@pytest.mark.parametrize("kernels", ["reference", "fused", "triton"])
def test_every_codec_is_exact_through_any_stem(tmp_path, stem, kernels):
    split, batch = packed(tmp_path, ["images", "static over images", "own"], offset=-0.5)
    encoder = small_encoder(split, stem, kernels=kernels, white=0.7)
    assert_equal_to_plain(encoder, batch, split.spec, group_bases(split), Rewrites())


@pytest.mark.parametrize(
    ("kinds", "options"),
    [
        (["black", "static"], {"fusion": True}),
        (["static", "own"], {"fusion": True}),
        (["black"], {"head": "softargmax"}),
        (["own"], {"head": "spatial", "dim": 72}),
        (["black", "static over images"], {"head": "spatial", "dim": 72, "norm_after_add": True}),
        (["images", "static"], {"apart": "b"}),
        (["static over images", "own"], {"batch_norm": True}),
        (["black"], {"batch_norm": True, "head": "spatial", "dim": 72}),
    ],
)
@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_every_head_and_branch_is_exact_through_a_stride(tmp_path, kinds, options, kernels):
    split, batch = packed(tmp_path, kinds)
    encoder = small_encoder(split, (5, 3), kernels=kernels, **options)
    assert_equal_to_plain(encoder, batch, split.spec, group_bases(split), Rewrites())


@pytest.mark.parametrize(("side", "stride"), [(1, 1), (4, 4), (7, 4), (3, 2)])
@pytest.mark.parametrize("size", [(70, 93), (40, 200)])
def test_an_even_image_is_encoded_by_a_small_one(side, stride, size):
    torch.manual_seed(0)
    branch = Branch(8, 1, 12, "fused", inputs=3, stem=Stem(side, stride)).double()
    encoder, image = WindowEncoder(branch), torch.full((1, 3, *size), 0.3, dtype=torch.float64)
    whole, even = encoder.bases(image), encoder.even_base(image)
    for ours, theirs in zip(even[:4], whole[:4], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_rgb_on_a_background_at_224_pixels_is_exact(kernels):
    """Two rooms as others draw them: a round agent, soft at its edge, on a white floor with black walls."""
    random = torch.Generator().manual_seed(0)
    base = torch.full((1, 3, 224, 224), 255, dtype=torch.uint8)
    base[:, :, 10:14] = base[:, :, :, 10:14] = base[:, :, :, 107:117] = 0
    corners = torch.tensor([[[0, 0], [141, 141]], [[141, 0], [37, 88]]])
    pixels = torch.randint(0, 256, (2, 2, 3, 83, 83), generator=random).to(torch.uint8)
    part = GroupBatch(pixels, corners.to(torch.uint8), torch.zeros(2, dtype=torch.int32))
    spec = FrameSpec(2, 224, 224, 1 / 255, (ChannelGroup("frames", 3, "window", (83, 83), "images"),), 2)
    batch = Batch(torch.arange(2), (part,), torch.zeros(2, 1, 2))
    torch.manual_seed(0)
    encoder = Encoder(8, 2, 16, 0.0, kernels, groups=[("frames", 3)], stem=Stem(4, 4))
    sparse = SparseEncoder(encoder, spec, (base,))
    assert sparse.plan(batch).groups == ("windows",)
    assert_equal_to_plain(encoder, batch, spec, (base,), Rewrites())


def test_white_pixels_are_seen_as_one():
    torch.manual_seed(0)
    plain, ours = Branch(8, 1, 12, inputs=3), Branch(8, 1, 12, inputs=3, white=255.0)
    ours.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 9, 11)
    torch.testing.assert_close(ours(255 * images), plain(images), rtol=1e-4, atol=1e-5)


def test_what_a_head_reads_is_standardised_over_the_batch_and_by_averages_in_evaluation():
    torch.manual_seed(0)
    norm = BatchNorm(5, decay=0.75)
    batches = [3 + 0.001 * torch.randn(64, 5) for _ in range(40)]
    for batch in batches:
        out = norm(batch)
        torch.testing.assert_close(out.mean(dim=0), torch.zeros(5), rtol=0, atol=1e-3)
        torch.testing.assert_close(out.std(dim=0, correction=0), torch.ones(5), rtol=1e-3, atol=0)
    torch.testing.assert_close(norm.mean, torch.full((5,), 3.0), rtol=1e-3, atol=0)
    assert norm.eval()(batches[0]).std() == pytest.approx(1, abs=0.2)
    # One alone is normalised as in any company, and a batch that is not finite leaves no trace.
    torch.testing.assert_close(norm(batches[0])[:1], norm(batches[0][:1]))
    before = norm.mean.clone(), norm.variance.clone()
    norm.train()(torch.full((4, 5), torch.nan))
    assert torch.equal(norm.mean, before[0])
    assert torch.equal(norm.variance, before[1])


def test_frames_that_hardly_differ_have_latents_that_do():
    """Of frames that are white but for a few pixels, where without it all latents are the same but for little."""
    torch.manual_seed(0)
    frames = torch.full((32, 3, 64, 64), 255.0)
    for number, frame in enumerate(frames):
        frame[1:, 8 + number : 12 + number, 2 * number % 50 : 2 * number % 50 + 4] = 0
    spread = []
    for batch_norm in (False, True):
        branch = Branch(16, 2, 32, inputs=3, stem=Stem(4, 4), white=255.0, batch_norm=batch_norm)
        latents = branch(frames).detach()
        spread.append(float(latents.std(dim=0).mean() / latents.square().mean().sqrt()))
    assert spread[0] < 0.1
    assert spread[1] > 0.8


@pytest.mark.parametrize(
    ("size", "stride"),
    [((8, 8), 1), ((28, 28), 1), ((48, 80), 2), ((64, 64), 4), ((96, 96), 4), ((128, 128), 8), ((224, 224), 8),
     ((512, 512), 32)],
)  # fmt: skip
def test_the_generic_preset_goes_by_the_data(size, stride):
    groups = (ChannelGroup("rgb", 3, "dense"), ChannelGroup("depth", 1, "dense"))
    spec = FrameSpec(5, *size, 2 / 255, groups, 7, offset=-1.5)
    config = preset("generic").model.for_data(spec)
    assert (config.stride, config.stem, config.white, config.action_size) == (stride, None, 1.5, 7)
    model = build_jepa(replace(config, channels=8, dim=16))
    assert (model.encoder.rgb.cells, model.channels) == (Stem(stride, stride), 4)
    assert model.rollout(torch.rand(2, 4, *size), torch.randn(2, 3, 7)).shape == (2, 4, 16)
    # What was said stays.
    assert replace(config, stride=3, white=2.0).for_data(spec) == replace(config, stride=3, white=2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 0}, r"model\.stride: got 0, expected at least 1"),
        ({"stride": 4, "stem": 3}, r"model\.stem: got 3, expected at least the stride, 4, so that every pixel is seen"),
        ({"stride": None, "stem": 3}, r"model\.stem: got 3, expected None where the stride is None"),
        ({"white": 0.0}, r"model\.white: got 0\.0, expected a positive number"),
    ],
)  # fmt: skip
def test_impossible_stems_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        JEPAConfig(**settings)


def test_the_default_has_no_stride():
    assert build_jepa().encoder.agent.cells == PIXELS
