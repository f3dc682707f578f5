"""Rules of the transition, against exact geometry, and images, against their formula."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from jepa_fast.data.two_rooms import WORLD, is_solid, render_dots, render_walls, step

exhaustive = settings(max_examples=1500, derandomize=True, deadline=None)

# Multiples of 1/4: faces, jambs and corners are hit exactly and often, and mirroring is exact in float32.
coordinate = st.integers(4 * 4, 4 * 60).map(lambda quarters: quarters / 4)
place = st.tuples(coordinate, coordinate)
short = st.integers(-16, 16).map(lambda quarters: quarters / 4)
action = st.one_of(st.tuples(short, short), st.tuples(*[st.floats(-80, 80, width=32)] * 2))
wall_x = st.integers(20, 44)
door_y = st.integers(10, 54)


@st.composite
def near_the_door(draw):
    """Location, wall column and door row with the location within 8 pixels of the door's centre."""
    column, row = draw(wall_x), draw(door_y)
    offset = st.integers(-32, 32).map(lambda quarters: quarters / 4)
    return (column + draw(offset), min(max(row + draw(offset), 4.0), 60.0)), column, row


situation = st.one_of(st.tuples(place, wall_x, door_y), near_the_door())


def open_interval_hit(start, move, low, high):
    """Times t at which low < start + t move < high, as an open interval (first, last); None for never."""
    if move == 0:
        return (Fraction(-1), Fraction(2)) if low < start < high else None
    times = sorted([(low - start) / move, (high - start) / move])
    return times[0], times[1]


def touches_solid(start, goal, column, row):
    """Whether the way from start to goal runs through the interior of solid wall or ends on it: exact arithmetic."""
    if is_solid(goal, column, row):
        return True
    (x, y), (to_x, to_y) = ([Fraction(float(number)) for number in point] for point in (start, goal))
    beyond = Fraction(1000)
    for low_y, high_y in ((-beyond, Fraction(int(row) - 4)), (Fraction(int(row) + 4), beyond)):
        in_columns = open_interval_hit(x, to_x - x, Fraction(int(column) - 1), Fraction(int(column) + 1))
        in_rows = open_interval_hit(y, to_y - y, low_y, high_y)
        if in_columns is None or in_rows is None:
            continue
        first, last = max(in_columns[0], in_rows[0]), min(in_columns[1], in_rows[1])
        # The move is the closed interval [0, 1] of times.
        if first < last and first < 1 and last > 0:
            return True
    return False


def touches_border(start, goal):
    return any(min(a, b) <= border <= max(a, b) for a, b in zip(start, goal, strict=True) for border in (4, 60))


@exhaustive
@given(situation, action)
@example(((31.0, 20.0), 32, 24), (0.0, 0.0))  # on the corner of face and jamb
@example(((30.0, 19.0), 32, 24), (2.0, 2.0))  # into the wall exactly by that corner
@example(((30.0, 40.0), 32, 24), (1.0, 0.0))  # exactly onto a face
@example(((31.0, 24.0), 32, 24), (2.0, 0.0))  # from face to face through the door
@example(((33.0, 28.0), 32, 24), (-2.0, 0.0))  # along the jamb
@example(((29.0, 40.0), 32, 24), (6.0, 0.0))  # across the whole wall
def test_a_move_is_blocked_exactly_where_its_way_meets_a_border_or_solid_wall(situation, action):
    start, column, row = situation
    assume(not is_solid(start, column, row))
    goal = np.float32(start) + np.float32(action)
    blocked = touches_border(np.float32(start), goal) or touches_solid(start, goal, column, row)
    np.testing.assert_array_equal(step(start, action, column, row), np.float32(start) if blocked else goal)


@exhaustive
@given(situation, action)
def test_a_mirrored_move_ends_at_the_mirrored_place(situation, action):
    (x, y), column, row = situation
    move_x, move_y = np.round(np.float32(action) * 4) / 4
    end_x, end_y = step((x, y), (move_x, move_y), column, row)
    np.testing.assert_array_equal(step((64 - x, y), (-move_x, move_y), 64 - column, row), (64 - end_x, end_y))
    np.testing.assert_array_equal(step((x, 64 - y), (move_x, -move_y), column, 64 - row), (end_x, 64 - end_y))


@exhaustive
@given(situation)
def test_the_zero_action_moves_nothing(situation):
    start, column, row = situation
    np.testing.assert_array_equal(step(start, (0.0, 0.0), column, row), np.float32(start))


def random_moves(count, reach):
    """Legal starts, half of them within 8 pixels of the door, actions up to `reach` pixels along each axis, walls."""
    generator = np.random.default_rng(20)
    columns, rows = generator.integers(20, 45, count), generator.integers(10, 55, count)
    starts = generator.uniform(4.001, 59.999, (count, 2))
    near = generator.random(count) < 0.5
    starts[near] = (np.stack([columns, rows], axis=-1) + generator.uniform(-8, 8, (count, 2)))[near]
    starts = starts.clip(4.001, 59.999).astype(np.float32)
    legal = ~is_solid(starts, columns, rows)
    actions = generator.uniform(-reach, reach, (count, 2)).astype(np.float32)
    return starts[legal], actions[legal], columns[legal], rows[legal]


@pytest.mark.parametrize("reach", [1.8, 6.0, 80.0])
def test_moves_from_legal_starts_stay_within_the_borders_and_out_of_the_wall(reach):
    starts, actions, columns, rows = random_moves(200_000, reach)
    ends = step(starts, actions, columns, rows)
    assert (ends > 4).all()
    assert (ends < 60).all()
    assert not is_solid(ends, columns, rows).any()
    moved = (ends != starts).any(axis=-1)
    assert 0.02 < moved.mean() < 0.98
    np.testing.assert_array_equal(ends[moved], (starts + actions)[moved])


def test_the_wall_is_passed_only_through_the_door():
    starts, actions, columns, rows = random_moves(200_000, 6.0)
    ends = step(starts, actions, columns, rows)
    side = np.sign(starts[:, 0] - columns)
    passed = (side * (starts[:, 0] - columns) > 1) & (side * (ends[:, 0] - columns) < -1)
    assert passed.sum() > 1000
    starts, ends, columns, rows = (part[passed].astype(np.float64) for part in (starts, ends, columns, rows))
    for face in (-1, 1):
        share = (columns + face - starts[:, 0]) / (ends[:, 0] - starts[:, 0])
        assert (abs(starts[:, 1] + share * (ends[:, 1] - starts[:, 1]) - rows) <= 4 + 1e-9).all()


def test_a_step_does_not_depend_on_how_many_are_taken_together():
    starts, actions, columns, rows = random_moves(300, 3.0)
    together = step(starts, actions, columns, rows)
    for index in range(len(starts)):
        alone = step(starts[index], actions[index], columns[index], rows[index])
        np.testing.assert_array_equal(alone, together[index])
        assert alone.dtype == together.dtype == np.float32


def test_one_move_can_be_tried_in_many_worlds():
    columns = np.array([*range(20, 29), *range(32, 45)])
    ends = step(np.array([[30.0, 20.0]]), np.array([2.5, 0.0]), columns, 40)
    np.testing.assert_array_equal(ends, [step((30.0, 20.0), (2.5, 0.0), column, 40) for column in columns])
    # Left faces at 31 and at 32 are between 30 and 32.5; the next is at 33.
    np.testing.assert_array_equal(columns[ends[:, 0] == 30], [32, 33])


def test_a_dot_image_is_the_rounded_gaussian_bit_for_bit():
    generator = np.random.default_rng(0)
    edges = np.array([4, 4.6, 4.999, 31.4, 31.6, 32, 55.4, 55.41, 59.6, 60], np.float32)
    on_edges = np.stack(np.meshgrid(edges, edges), axis=-1).reshape(-1, 2)
    beyond_the_image = generator.uniform(-12, 77, (500, 2))
    inside = generator.uniform(4, 60, (2700, 2))
    locations = np.concatenate([on_edges, beyond_the_image, inside]).astype(np.float32).reshape(-1, 11, 2)
    images = render_dots(locations)
    rows, columns = np.mgrid[:65, :65]
    for path, drawn in zip(locations.astype(np.float64), images, strict=True):
        x, y = path.T[:, :, None, None]
        formula = np.rint(255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 1.69)))
        np.testing.assert_array_equal(drawn, formula)
    assert images.dtype == np.uint8


def test_a_dot_at_a_pixel_centre_peaks_at_255_and_spans_nine_pixels():
    (image,) = render_dots(np.array([[[20.0, 40.0]]], np.float32))[0]
    assert image[40, 20] == image.max() == 255
    assert np.flatnonzero(image.any(axis=0)).tolist() == list(range(16, 25))
    assert np.flatnonzero(image.any(axis=1)).tolist() == list(range(36, 45))


def test_no_frames_render_to_no_images():
    assert render_dots(np.empty((0, 17, 2), np.float32)).shape == (0, 17, 65, 65)
    assert render_walls(np.empty(0, np.int64), np.empty(0, np.int64)).shape == (0, 65, 65)


def test_wall_images_show_borders_wall_and_door():
    layouts = np.array([(column, row) for column in range(20, 45) for row in range(10, 55)])
    images = render_walls(*layouts.T)
    rows, columns = np.mgrid[:65, :65]
    for (wall_x, door_y), image in zip(layouts, images, strict=True):
        border = (rows == 4) | (rows == 60) | (columns == 4) | (columns == 60)
        solid = border | ((abs(columns - wall_x) <= 1) & (abs(rows - door_y) > 4))
        np.testing.assert_array_equal(image, 255 * solid)
    assert images.dtype == np.uint8


def test_the_brightest_pixel_is_worth_the_gaussian_peak():
    assert WORLD.peak == pytest.approx(0.094175, abs=5e-7)
    assert 255 * WORLD.scale == pytest.approx(WORLD.peak, rel=1e-15)
