import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patnet.inspection import Position, most_attended, overlay, pixels_of, position_at
from patnet.inspection.maps import relative

SIDES = st.integers(1, 40)


@given(rows=SIDES, columns=SIDES, stride=st.sampled_from([1, 4, 32]), rest=st.integers(0, 31), data=st.data())
def test_the_centre_of_a_position_is_in_it(rows, columns, stride, rest, data):
    position = Position(data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1)))
    border = min(rest, stride - 1) if stride == 32 else 0  # narrower than a position, so no position has it
    size = (rows * stride + border, columns * stride + border)
    left, top, right, bottom = pixels_of(position, (rows, columns), size)
    assert (right - left, bottom - top) == (stride, stride)
    assert position_at((left + right) / 2, (top + bottom) / 2, (rows, columns), size) == position


def test_positions_of_other_maps_and_at_the_border():
    assert position_at(128, 96, (3, 4), (96, 128)) == (2, 3)
    assert position_at(-1, 0, (3, 4), (96, 128)) == (0, 0)
    assert position_at(142, 99, (3, 4), (100, 143)) == (2, 3)
    assert Position(2, 3).in_grid((3, 4), (6, 8)) == (5, 7)
    assert Position(5, 7).in_grid((6, 8), (3, 4)) == (2, 3)
    attention = np.full((2, 3, 4, 3, 4), 0.05)
    attention[:, :, :, 1, 2] = 0.4
    assert most_attended(attention) == (1, 2)


@given(st.floats(1e-3, 1e3), st.floats(1, 1.1), st.integers(2, 6))
def test_a_nearly_constant_map_looks_nearly_constant(level, factor, side):
    values = np.full((side, side), level)
    values[0, 0] *= factor
    assert np.abs(relative(values)).max() < 0.07
    image = np.full((4 * side, 4 * side, 3), 100, np.uint8)
    plain = overlay(image, np.full((side, side), level))
    assert np.ptp(plain.astype(int), axis=2).max() == 0  # grey
    assert np.abs(overlay(image, values).astype(int) - plain).max() < 16


def test_the_scale_ends_at_a_quarter_and_at_4_times_uniform():
    values = np.array([[0.25, 1.0, 0.5, 2.0, 1.25]])  # of mean 1
    assert relative(values).tolist()[0][:4] == pytest.approx([-1, 0, -0.5, 0.5])
    assert relative(np.array([0.0, 100.0] + 98 * [0.0])).tolist()[:2] == [-1, 1]
    assert not relative(np.zeros((2, 2))).any()


def test_colours_lie_over_the_pixels_of_their_position():
    values = np.array([[8.0, 1.0], [1.0, 1.0]])
    drawn = overlay(np.full((70, 64, 3), 100, np.uint8), values, (140, 128)).astype(int)
    assert drawn.shape == (140, 128, 3)
    red_over_blue = drawn[..., 0] - drawn[..., 2]
    assert (red_over_blue[:64, :64] > 50).all()
    assert (red_over_blue[:64, 64:] < 0).all()
    assert (red_over_blue[128:] == 0).all()  # the border that the strides leave out
