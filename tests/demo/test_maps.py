import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from patnet.demo.maps import Cell, cell_at, describe_attention, draw_attention, draw_gates, enlarged, weights_of

SIDES = st.integers(1, 40)


@given(rows=SIDES, columns=SIDES, stride=st.sampled_from([1, 4, 32]), rest=st.integers(0, 31), data=st.data())
def test_the_middle_of_a_cell_is_in_it(rows, columns, stride, rest, data):
    cell = Cell(data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1)))
    # A border that is narrower than a cell belongs to none.
    border = min(rest, stride - 1) if stride == 32 else 0
    picture = Image.new("L", (columns * stride + border, rows * stride + border))
    scale = 512 / max(picture.size)
    x, y = (cell.column + 0.5) * stride * scale, (cell.row + 0.5) * stride * scale
    assert cell_at(x, y, picture, (rows, columns)) == cell


def test_positions_on_the_edge_belong_to_the_last_cell():
    picture = Image.new("L", (128, 96))
    assert cell_at(512, 384, picture, (3, 4)) == (2, 3)
    assert cell_at(-1, 0, picture, (3, 4)) == (0, 0)
    assert cell_at(511, 383, Image.new("L", (143, 100)), (3, 4)) == (2, 3)


def test_weights_are_of_one_head_or_the_mean():
    attention = np.random.default_rng(0).random((2, 3, 4, 3, 4))
    np.testing.assert_array_equal(weights_of(attention, Cell(1, 2), 1), attention[1, 1, 2])
    np.testing.assert_allclose(weights_of(attention, Cell(1, 2)), attention[:, 1, 2].mean(0))


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (4, 2)])
def test_what_is_attended_to_is_bright_and_the_query_is_framed(size):
    weights = np.zeros((2, 4), np.float32)
    weights[1, 3] = 1
    drawn = draw_attention(Image.new("RGB", size, "black"), weights, Cell(0, 0))
    assert max(drawn.size) == 512
    assert drawn.size == enlarged(Image.new("RGB", size)).size
    pixels = np.asarray(drawn, float).sum(2)
    height, width = pixels.shape
    assert pixels[int(0.75 * height), int(0.875 * width)] > 300
    assert pixels[int(0.75 * height), int(0.375 * width)] == 0
    assert pixels[2, int(0.125 * width)] > 300  # the frame's upper edge
    assert pixels[int(0.25 * height), int(0.125 * width)] == 0  # and nothing within it


def test_gates_are_drawn_on_their_own_scale_which_the_caption_says():
    gates = {"1.1": np.array([[0.2, 0.4]], np.float32), "2.1": np.full((2, 2), 0.5, np.float32)}
    (first, caption), (even, same) = draw_gates(Image.new("RGB", (8, 8), "black"), gates)
    assert (caption, same) == ("1.1: 0.20 to 0.40", "2.1: 0.50 to 0.50")
    pixels = np.asarray(first, float).sum(2)
    assert pixels[:, :90].max() == 0
    assert pixels[:, -90:].min() > 300
    assert np.asarray(even).max() == 0


def test_the_sentence_says_where_and_how_much():
    weights = np.array([[0.1, 0.2], [0.7, 0.0]])
    said = describe_attention(weights, Cell(0, 1))
    assert said.startswith("Row 1, column 2 of 2x2 attends most to row 2, column 1, with 70 %, and least with 0 %")
    assert said.endswith("25 %.")
    assert "to itself" in describe_attention(weights, Cell(1, 0))
