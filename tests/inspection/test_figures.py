import numpy as np
import pytest
import timm
import torch

from patnet import InputError, PATNet
from patnet.files import save_figure
from patnet.inspection import (
    Inspection,
    attended_most,
    draw_answer,
    draw_attention,
    draw_channel_gates,
    draw_grad_cam,
    draw_shares,
    draw_sheet,
    draw_spatial_gates,
    inspect_network,
)
from patnet.inspection.figures import _cell_size, _same_place

SMALL = {"num_classes": 3, "embed_dim": 16, "depths": (1, 1, 1, 2), "num_heads": 2, "feature_dim": 8}
PICTURE = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
NAMES = ["cat", "dog", "a name that is much too long for the room beside its bar"]


@pytest.fixture
def seen(settled):
    return inspect_network(settled(PATNet(**SMALL)), torch.randn(1, 3, 96, 128))


def texts(figure):
    return [t.get_text() for t in figure.texts] + [axes.get_title() for axes in figure.axes]


def test_the_sheet_shows_every_block_and_the_answer(seen, tmp_path):
    figure = draw_sheet(seen, PICTURE, NAMES, cam=np.ones((96, 128)), position=(2, 3), title="photo.png")
    said = texts(figure)
    assert {"photo.png", "Spatial gates", "Self-attention", "Channel gates", "Parts of the blocks"} <= set(said)
    for label in ("1.1", "2.1", "3.1", "4.1", "4.2"):
        assert any(text.startswith(f"{label}:  ") for text in said)
    assert any("from row 2, column 3 of 3x4 cells" in text for text in said)
    best = NAMES[int(seen.logits.argmax())]
    assert f"Grad-CAM: what speaks for {best if len(best) < 28 else best[:27] + '…'}" in said
    shown = [text.get_text() for axes in figure.axes for text in axes.texts]
    p = torch.from_numpy(seen.logits).double().softmax(0).sort(descending=True).values
    assert shown == [f"{100 * v:.1f} %" for v in p.tolist()]
    # Nothing reaches over the page, or into the part above it.
    for axes in figure.axes:
        left, bottom, width, height = axes.get_position().bounds
        assert min(left, bottom) >= 0
        assert max(left + width, bottom + height) <= 1
    assert save_figure(figure, tmp_path / "sheet.png", dpi=40).stat().st_size > 1000


def test_single_panels(seen):
    heads = texts(draw_attention(seen, PICTURE))
    assert sum("head " in text for text in heads) == 2 * 2
    row, column = attended_most(seen)
    assert any(f"row {row}, column {column} of 3x4 cells" in text for text in heads)
    weights = seen.attention["4.2"].mean((0, 1, 2))
    assert weights[row, column] == weights.max()
    assert len(draw_spatial_gates(seen, PICTURE).axes) == 5
    assert len(draw_channel_gates(seen).axes) == 2 * 3
    assert len(draw_shares(seen).axes) == 2
    assert len(draw_answer(seen, PICTURE, NAMES).axes) == 2
    assert texts(draw_grad_cam(PICTURE, np.zeros((96, 128)), "dog")) == ["Grad-CAM: nothing speaks for dog"]


@pytest.mark.parametrize("position", [(3, 0), (0, 4), (-1, 0)])
def test_a_position_beyond_the_map_is_refused(seen, position):
    for draw in (
        lambda: draw_attention(seen, PICTURE, position),
        lambda: draw_sheet(seen, PICTURE, NAMES, position=position),
    ):
        with pytest.raises(InputError, match="3x4 cells; give a row from 0 to 2 and a column from 0 to 3"):
            draw()


def test_what_is_not_there_is_said_on_the_sheet_and_refused_alone():
    seen = inspect_network(timm.create_model("resnet10t", num_classes=3), torch.randn(1, 3, 64, 64))
    figure = draw_sheet(seen, PICTURE[:64, :64], NAMES, notes=["Nor is there Grad-CAM."])
    assert any("no block of PATNet's" in text and "Nor is there" in text for text in texts(figure))
    for draw in (draw_channel_gates, draw_shares, lambda s: draw_spatial_gates(s, PICTURE)):
        with pytest.raises(InputError, match="no block of PATNet's"):
            draw(seen)
    with pytest.raises(InputError, match="no self-attention to draw"):
        draw_attention(seen, PICTURE)
    with pytest.raises(InputError, match="no self-attention to draw"):
        draw_sheet(seen, PICTURE, NAMES, position=(0, 0))


def test_cells_lie_where_the_network_put_them():
    assert [_cell_size(100, n) for n in (25, 12, 6, 3)] == [4, 8, 16, 32]  # a border of 4 px is seen by none
    assert _cell_size(63, 1) == 32
    assert _same_place((2, 3), (3, 4), (6, 8)) == (5, 7)
    assert _same_place((5, 7), (6, 8), (3, 4)) == (2, 3)


def test_constant_and_even_maps_are_drawn(tmp_path):
    even = np.full((2, 1, 1, 1, 1), 1.0, np.float32)
    seen = Inspection(np.zeros(3), {"1.1": np.full((8, 8), 0.5)}, attention={"4.1": even})
    assert save_figure(draw_sheet(seen, PICTURE[:32, :32], NAMES), tmp_path / "a.png", dpi=40).is_file()
