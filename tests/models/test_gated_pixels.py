"""The model on pixels: what it may know, what it computes, that nothing of it is given."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jepa_fast.config import GatedPixelsConfig, VICRegConfig
from jepa_fast.data.batches import expand_frames
from jepa_fast.data.host import gather
from jepa_fast.data.shards import open_split
from jepa_fast.data.two_rooms import render_walls
from jepa_fast.errors import InputError
from jepa_fast.kernels.gated import mixture_nll
from jepa_fast.models.gated_pixels import GatedPixels
from jepa_fast.models.softargmax import soft_argmax
from jepa_fast.objectives.vicreg import regularisers
from jepa_fast.presets import preset
from tests.models.exactness import images_of, stored_dense
from tests.objective_terms import mixture

SMALL = GatedPixelsConfig(dim=16, channels=3, hidden=12)
WEIGHTS = torch.tensor([1.0, 0.5, 10.0, 1.0])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GatedPixels(SMALL)


def scenes(count=200):
    """Positions [N, 1, 2] in pixels, walls [N, 65, 65] and actions [N, 1, 2], close to borders, wall and door."""
    generator = torch.Generator().manual_seed(1)
    columns = torch.randint(20, 45, (count,), generator=generator)
    doors = torch.randint(10, 55, (count,), generator=generator)
    rooms = torch.from_numpy(render_walls(columns.numpy(), doors.numpy())).double() / 255
    near = torch.stack([columns, doors], dim=1).double()
    near[::4, 0] = 4
    near[1::4, 1] = 60
    positions = near + 6 * torch.rand(count, 2, generator=generator, dtype=torch.float64) - 3
    actions = 3 * torch.rand(count, 1, 2, generator=generator, dtype=torch.float64) - 1.5
    return positions[:, None], rooms, actions


def positions_of(model, encoded):
    """What states stand for, in pixels."""
    with torch.no_grad():
        return 32 + 32 * model.lift.positions(encoded.latents)


def test_parameters_stay_below_three_hundred_thousand_and_all_are_trained(batch_and_spec):
    config = preset("pixels300k").model
    torch.manual_seed(0)
    model = GatedPixels(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 24_082 <= 300_000
    # Nothing fixed and random is kept beside them.
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    batch, spec = batch_and_spec
    encoded = model.batch_encoder(spec)(batch, model.dropout_clock)
    terms, _ = mixture(model)(encoded, batch.actions, WEIGHTS)
    terms.total.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_windows_give_what_two_convolutions_and_a_softmax_of_whole_frames_give(two_rooms, kernel):
    """Values and all gradients, in float64; the frames' dots lie at borders too."""
    split = open_split(two_rooms / "probe_wall" / "val")
    corners = gather(split, np.arange(split.count)).groups[0].corners.flatten(1)
    at_borders = np.flatnonzero(((corners == 0) | (corners == 55)).any(dim=1))
    assert len(at_borders) > 1
    batch, spec = gather(split, np.union1d(at_borders, np.arange(6))), split.spec
    torch.manual_seed(0)
    model = GatedPixels(replace(SMALL, kernel=kernel)).double()
    encoder = model.encoder
    with torch.no_grad():
        # Logits far from flat, positive and negative.
        encoder.spread.weight *= 8
    weights = torch.randn(
        *batch.groups[0].pixels.shape[:2], 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )

    def dense():
        """Written out anew: black all around, both convolutions without any padding of their own, the frame cut out."""
        frames = F.pad(
            images_of(batch, spec, "agent")[:, :, 0].flatten(0, 1).double() * spec.scale / SMALL.white,
            (2 * kernel - 2,) * 4,
        )
        hidden = F.relu(F.conv2d(frames[:, None], encoder.look.weight))
        logits = F.conv2d(hidden, encoder.spread.weight.flip(-1, -2).transpose(0, 1))[:, 0]
        cut = slice(kernel - 1, logits.shape[-1] - kernel + 1)
        return soft_argmax(logits[:, cut, cut], encoder.log_temperature.exp()).view_as(weights)

    def windows():
        states = model.batch_encoder(spec)(batch, model.dropout_clock).latents
        return 32 + 32 * model.lift.positions(states)

    results = []
    for function in (dense, windows):
        model.zero_grad()
        found = function()
        (found * weights).sum().backward()
        parameters = (encoder.look.weight, encoder.spread.weight, encoder.log_temperature)
        results.append((found.detach(), *(parameter.grad.clone() for parameter in parameters)))
    assert results[0][0].std() > 0.01
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_batch_is_encoded_as_its_frames_are(model, batch_and_spec):
    batch, spec = batch_and_spec
    encoded = model.batch_encoder(spec)(batch, model.dropout_clock)
    frames = expand_frames(batch, spec)
    predicted, following = model(frames, batch.actions)
    torch.testing.assert_close(encoded.latents[:, 1:], following, rtol=0, atol=1e-4)
    torch.testing.assert_close(model.rollout(frames[:, 0], batch.actions)[:, 1:], predicted, rtol=0, atol=1e-4)
    for name in ("agent", "wall"):
        batch, spec = stored_dense(batch, spec, name)
    found = model.batch_encoder(spec)(batch, model.dropout_clock)
    torch.testing.assert_close(tuple(found), tuple(encoded), rtol=0, atol=1e-4)


def test_an_untrained_encoder_hardly_tells_frames_apart(batch_and_spec):
    """Before training all positions lie within a pixel or two, in the middle of the frame."""
    batch, spec = batch_and_spec
    for seed in range(10):
        torch.manual_seed(seed)
        model = GatedPixels(preset("pixels300k").model)
        found = positions_of(model, model.batch_encoder(spec)(batch, model.dropout_clock))
        assert (found - 32).abs().max() < 2


def test_light_draws_positions_from_the_start(batch_and_spec):
    """Were they pushed away, the variance term would have to pass through a collapse first."""
    batch, spec = batch_and_spec
    agent = batch.groups[0]
    lit = agent.pixels.flatten(2).float().argmax(dim=2)
    brightest = torch.stack([lit % 10, lit // 10], dim=-1) + agent.corners.flip(-1)
    for seed in range(10):
        torch.manual_seed(seed)
        model = GatedPixels(preset("pixels300k").model)
        found = positions_of(model, model.batch_encoder(spec)(batch, model.dropout_clock))
        for axis in range(2):
            pairs = torch.stack([found[..., axis].flatten(), brightest[..., axis].flatten()])
            assert torch.corrcoef(pairs)[0, 1] > 0.9


def test_an_untrained_gate_is_half_open_whatever_lies_ahead():
    positions, rooms, actions = scenes()
    for seed in range(5):
        torch.manual_seed(seed)
        _, log_move = GatedPixels(preset("pixels300k").model).double().predictor.log_chances(positions, rooms, actions)
        assert 0.3 < log_move.exp().min() < log_move.exp().max() < 0.7


@pytest.mark.parametrize("change", ["mirror x", "mirror y", "mirror both", "shift"])
def test_gates_see_what_is_around_alone(model, change):
    """Mirrored and shifted scenes give the same gates: nothing is known of where things are."""
    predictor = model.double().predictor
    positions, rooms, actions = scenes()
    signs = torch.ones(2, dtype=torch.float64)
    if change == "shift":
        after = positions + torch.tensor([2.0, -3.0], dtype=torch.float64), F.pad(rooms, (2, -2, -3, 3)), actions
    else:
        axes = {"mirror x": [0], "mirror y": [1], "mirror both": [0, 1]}[change]
        signs[axes] = -1
        after = (positions - 32) * signs + 32, rooms.flip([2 - axis for axis in axes]), actions * signs
    _, before = predictor.log_chances(positions, rooms, actions)
    torch.testing.assert_close(predictor.log_chances(*after)[1], before)
    assert before.std() > 1e-3


def test_the_gate_looks_at_the_dot_and_at_its_aim_as_far_as_the_lattice_reaches(model):
    predictor = model.double().predictor
    room = torch.zeros(1, 65, 65, dtype=torch.float64)
    positions = torch.tensor([[[30.0, 20.0]]], dtype=torch.float64)
    actions = torch.tensor([[[1.0, -7.0]]], dtype=torch.float64)
    plain = predictor.seen(positions, room, actions)
    assert plain.shape[-1] == 2 * 25 + 2
    assert plain[0, 0].tolist() == [0.0] * 50 + [1.0, 7.0]
    for row, column in np.ndindex(65, 65):
        marked = room.clone()
        marked[0, row, column] = 1
        seen = (predictor.seen(positions, marked, actions) - plain).abs().sum()
        reached = [max(abs(column - x), abs(row - y)) <= 2 for x, y in ((30, 20), (31, 13))]
        assert seen == pytest.approx(sum(reached), abs=1e-9)


def test_between_pixels_the_wall_is_interpolated(model):
    predictor = model.double().predictor
    positions, rooms, actions = scenes(20)
    seen = predictor.seen(positions, rooms, actions)
    centre = 25 // 2
    for row, (x, y) in enumerate(positions[:, 0].tolist()):
        left, top = int(np.floor(x)), int(np.floor(y))
        right, down = x - left, y - top
        around = F.pad(rooms[row], (8,) * 4)[top + 8 : top + 10, left + 8 : left + 10]
        weights = torch.tensor([[(1 - right) * (1 - down), right * (1 - down)], [(1 - right) * down, right * down]])
        assert seen[row, 0, centre].item() == pytest.approx((around * weights).sum().item(), abs=1e-6)


def test_the_gradient_of_a_gate_reaches_the_position_it_looks_from(model):
    """So a position that is found somewhere else than the dot is would be corrected by what the wall does."""
    predictor = model.double().predictor
    positions, rooms, actions = scenes(6)
    positions.requires_grad_()
    assert torch.autograd.gradcheck(lambda place: predictor.log_chances(place, rooms, actions), (positions,))
    predictor.log_chances(positions, rooms, actions)[1].sum().backward()
    assert positions.grad.abs().max() > 1e-4


def test_its_terms_are_the_nll_and_the_regularisers_of_positions(model, batch_and_spec):
    batch, spec = batch_and_spec
    encoded = model.batch_encoder(spec)(batch, model.dropout_clock)
    weights = torch.tensor([2.0, 0.3, 5.0, 7.0])
    terms, latents = mixture(model)(encoded, batch.actions, weights)
    predicted = model.transition(model.frames(encoded, slice(-1)), batch.actions)
    following, sigma = encoded.latents[:, 1:], torch.tensor(0.3 * 20 / 32)
    nll = mixture_nll(*predicted, following, sigma).mean()
    assert torch.equal(latents, predicted.mean)
    torch.testing.assert_close(terms.nll, nll)
    positions = (positions_of(model, encoded) - 32) / 32
    variance, covariance = regularisers(positions, VICRegConfig())
    torch.testing.assert_close((terms.variance, terms.covariance), (variance, covariance), rtol=1e-4, atol=1e-6)
    std = positions.flatten(0, 1).double().var(dim=0).add(1e-4).sqrt()
    assert terms.variance.item() == pytest.approx((1 - std).mean().item(), abs=1e-5)
    torch.testing.assert_close(terms.total, 2 * nll + 5 * variance + 7 * covariance)


def test_standing_still_is_a_step_like_any_other(model, batch_and_spec):
    batch, spec = batch_and_spec
    encoded = model.batch_encoder(spec)(batch, model.dropout_clock)
    outcome = model.transition(model.frames(encoded, slice(-1)), torch.zeros_like(batch.actions))
    assert torch.equal(outcome.mean, outcome.stayed)
    assert outcome.log_move.isfinite().all()


@pytest.mark.parametrize("setting", [{"dim": 1}, {"frame": 1}, {"white": 0.0}, {"kernel": 0}, {"kind": "x"}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(InputError, match=rf"model\.{next(iter(setting))}: got"):
        GatedPixelsConfig(**setting)
