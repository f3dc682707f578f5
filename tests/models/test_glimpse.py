"""The model whose predictor looks at the first frame: what it sees, what it does not, one encoding for all routes."""

import numpy as np
import pytest
import torch

from jepa_fast.config import GlimpseConfig, Group
from jepa_fast.data.batches import expand_frames
from jepa_fast.data.host import evaluation_batches, group_bases
from jepa_fast.data.shards import open_split
from jepa_fast.errors import InputError
from jepa_fast.models.glimpse import GlimpseJEPA, Scene
from jepa_fast.models.registry import build_model

SMALL = GlimpseConfig(channels=4, blocks=1, dim=6, hidden=8, heads=2, lattice=3, levels=3)


def small(config=SMALL, seed=0):
    torch.manual_seed(seed)
    return build_model(config).eval()


def test_the_default_has_no_more_parameters_than_it_may():
    model = small(GlimpseConfig())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 67_238
    assert count <= 300_000


@pytest.mark.parametrize("context", ["wall", None])
def test_a_batch_and_its_whole_frames_have_the_same_encodings(two_rooms, context):
    model = small(GlimpseConfig(channels=4, blocks=1, dim=6, hidden=8, context=context))
    split = open_split(two_rooms / "train")
    bases = group_bases(split, torch.device("cpu"))
    batch = next(iter(evaluation_batches(split, 5)))
    with torch.no_grad():
        sparse = model.batch_encoder(split.spec, bases)(batch, model.dropout_clock)
        whole = model.encode(expand_frames(batch, split.spec, bases))
    torch.testing.assert_close(sparse.latents, whole.latents, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sparse.context, whole.context)
    assert whole.context.shape == (5, 4, 1 if context else 2, 65, 65)


def test_a_glimpse_is_bilinear_at_points_around_the_one_that_the_latent_asks_for():
    model = small()
    predictor = model.predictor
    image = torch.randn(1, 1, 65, 65)
    context = predictor.blurred(image)
    latents, actions = torch.randn(1, 2, 6), torch.randn(1, 2, 2)
    with torch.no_grad():
        predictor.ahead.weight.copy_(torch.eye(2))
        torch.nn.init.normal_(predictor.shifts, std=0.1)
        action = predictor.action.weight
        moves = latents[0] @ action / action.square().sum(dim=0)
        centre = 32 + 32 * predictor.shifts + torch.stack([moves @ place.T for place in predictor.places], dim=1)
        centre = centre + actions[0][:, None]  # [T, heads, 2]
        predictor.offsets.add_(0.1 * torch.randn_like(predictor.offsets))
        seen = predictor.glimpse(latents, context, actions)[0]
    assert seen.shape == (2, 54)
    for row in range(2):
        for level in range(3):
            for k in range(18):
                x, y = (centre[row, k // 9] + predictor.offsets[k // 9, k % 9].detach() * 2**level).tolist()
                left, top = int(np.floor(x)), int(np.floor(y))
                plane = context[0, level, 0]
                value = sum(
                    plane[top + j, left + i] * (1 - abs(x - left - i)) * (1 - abs(y - top - j))
                    for i in (0, 1) for j in (0, 1)
                )  # fmt: skip
                assert seen[row, 18 * level + k].item() == pytest.approx(float(value), abs=1e-4)


def test_blurred_levels_are_means_over_squares_that_double():
    image = torch.rand(1, 1, 65, 65)
    levels = small().predictor.blurred(image)[0, :, 0]
    torch.testing.assert_close(levels[0], image[0, 0])
    torch.testing.assert_close(levels[1, 20, 30], image[0, 0, 18:23, 28:33].mean())
    torch.testing.assert_close(levels[2, 20, 30], image[0, 0, 16:25, 26:35].mean())


def test_a_rollout_is_its_steps_and_sees_the_first_frame_alone():
    model = small()
    frames, actions = 0.09 * torch.rand(3, 2, 65, 65), torch.randn(3, 5, 2)
    with torch.no_grad():
        latents = model.rollout(frames, actions)
        moving = model.encode(frames[:, None])
        for time in range(5):
            moving = model.advance(moving, actions[:, time : time + 1])
            torch.testing.assert_close(moving.latents[:, 0], latents[:, time + 1])
        trajectory = torch.cat([frames[:, None], torch.rand(3, 1, 2, 65, 65)], dim=1)
        assert torch.equal(model.encode(trajectory).context, moving.context)
    assert isinstance(moving, Scene)


def test_gradients_reach_every_parameter_and_are_those_of_finite_differences():
    model = small().double().train()
    latents, actions = torch.randn(1, 2, 6).double(), torch.randn(1, 2, 2).double()
    context = model.predictor.blurred(torch.rand(1, 1, 9, 9).double())
    torch.nn.init.normal_(model.predictor.mix[-1].weight)
    torch.nn.init.normal_(model.predictor.action.weight)
    torch.autograd.gradcheck(
        lambda z, a: model.predictor(z, context, a), (latents.requires_grad_(), actions.requires_grad_())
    )
    model.predictor(latents, context, actions).sum().backward()
    for name, parameter in model.predictor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_data_of_other_groups_are_taken_over_or_refused(two_rooms):
    split = open_split(two_rooms / "train")
    assert SMALL.for_data(split.spec) == SMALL
    other = GlimpseJEPA(GlimpseConfig(channels=4, blocks=1, groups=(Group("rgb", 3),), context=None))
    with pytest.raises(InputError, match="the model has rgb:3, the data agent:1, wall:1"):
        other.batch_encoder(split.spec)
    with pytest.raises(InputError, match=r"model\.context: got 'sky'"):
        GlimpseConfig(context="sky")


def test_heads_begin_as_four_turns_of_one_map():
    places = small(GlimpseConfig(channels=4, blocks=1, heads=4)).predictor.places
    expected = [[[1, 0], [0, 1]], [[-1, 0], [0, 1]], [[1, 0], [0, -1]], [[-1, 0], [0, -1]]]
    assert torch.equal(places, torch.tensor(expected, dtype=torch.float32))


def test_a_glimpse_follows_what_an_action_moves_whatever_else_the_latent_holds():
    predictor = small().predictor
    context = predictor.blurred(torch.rand(1, 1, 65, 65))
    action, still = torch.tensor([3.0, -2.0]), torch.zeros(1, 1, 2)
    with torch.no_grad():
        predictor.action.weight.copy_(torch.linalg.qr(predictor.action.weight).Q)
        along = predictor.action.weight
        other = torch.randn(1, 1, 6)
        other = other - other @ along @ along.T
        latents = torch.cat([torch.zeros(1, 1, 6), predictor.action(action) + other], dim=1)
        before, after = predictor.glimpse(latents, context, still.expand(-1, 2, -1))[0]
        # A head that lies as the frame does: seen from where it moved to, the image has moved the other way.
        moved = predictor.blurred(torch.roll(context[:, 0], (2, -3), dims=(2, 3)))
        (expected,) = predictor.glimpse(latents[:, :1], moved, still)[0]
    first_head = [row for row in range(54) if row // 9 % 2 == 0]
    torch.testing.assert_close(after[first_head], expected[first_head])
    assert not torch.allclose(after, before, atol=1e-3)


def test_points_of_a_frame_that_is_no_square_are_in_pixels_too():
    predictor = small().predictor
    rows, columns = torch.arange(9.0).view(9, 1).expand(9, 13), torch.arange(13.0).expand(9, 13)
    latents, actions = torch.randn(1, 3, 6), torch.zeros(1, 3, 2)
    with torch.no_grad():
        torch.nn.init.normal_(predictor.action.weight)
        moves = latents[0] @ predictor.action.weight / predictor.action.weight.square().sum(dim=0)
        found = [
            predictor.glimpse(latents, image.expand(1, 3, 1, 9, 13), actions)[0, :, 4] for image in (columns, rows)
        ]
    torch.testing.assert_close(torch.stack(found, dim=1), moves + torch.tensor([6.0, 4.0]))
