from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import timm
import torch

from patnet import InputError, PATNet
from patnet.files import shown
from patnet.inspection import PANELS, Inspection, View, draw, inspect_network
from patnet.inspection.figures import SHEET, render

NAMES = ["cat", "dog", "a name that is much too long for the space next to its bar"]


@pytest.fixture(scope="module")
def view(settled):
    model = settled(PATNet(num_classes=3, embed_dim=16, depths=(1, 1, 1, 2), num_heads=2, feature_dim=8))
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    seen = inspect_network(model, torch.randn(1, 3, 96, 128))
    return View(seen, image, NAMES, np.ones((96, 128)), position=(2, 3), title="image.png")


def texts(figure):
    return [t.get_text() for t in figure.texts] + [axes.get_title() for axes in figure.axes]


def test_the_sheet_has_every_panel_and_nothing_reaches_over_its_edges(view):
    figures = [panel(view) for panel in SHEET]
    said = [text for figure in figures for text in texts(figure)]
    assert {"Spatial gates", "Self-attention", "Channel gates", "Parts of the blocks"} <= set(said)
    assert [text[:3] for text in texts(figures[1]) if ":  " in text] == ["1.1", "2.1", "3.1", "4.1", "4.2"]
    assert any("row 2, column 3 of 3x4" in text for text in said)
    best = NAMES[int(view.inspection.logits.argmax())]
    assert f"Grad-CAM of {best if len(best) < 24 else best[:23] + '…'}" in said
    p = torch.from_numpy(view.inspection.logits).double().softmax(0).sort(descending=True).values
    shown = [text.get_text() for axes in figures[0].axes for text in axes.texts]
    assert shown == [f"{100 * v:.1f} %" for v in p.tolist()]
    for axes in [axes for figure in figures for axes in figure.axes]:
        left, bottom, right, top = axes.get_position().extents
        assert 0 <= min(left, bottom) < max(right, top) <= 1
        assert axes.has_data()
    sheet = draw("sheet", view)
    assert sheet.width == 990
    assert draw("sheet", replace(view, notes=["A note."])).height > sheet.height


def test_single_panels(view):
    figures = {name: panel(view) for name, panel in PANELS.items()}
    attention = texts(figures["attention"])
    assert sum("head " in text for text in attention) == 2 * 2
    assert {name: len(figure.axes) for name, figure in figures.items()} == {
        "cam": 3,
        "spatial": 1 + 5,  # the colour scale, and the blocks
        "attention": 1 + 2 * (2 + 2),
        "channel": 2 * 3,
        "shares": 2,
        "position": 2 * 2 + 1,
    }
    classes = PANELS["cam"](replace(view, class_names=["crane", "crane", "tree"])).axes[-1]
    assert [round(bar.get_y() + bar.get_height() / 2) for bar in classes.patches] == [0, 1, 2]
    assert sorted(label.get_text() for label in classes.get_yticklabels()) == ["crane", "crane", "tree"]
    nothing = replace(view, cam=np.zeros((96, 128)), target=1)
    assert "Grad-CAM: no evidence for dog" in texts(PANELS["cam"](nothing))
    assert all(draw(name, view).width == 990 for name in PANELS)


@pytest.mark.parametrize("name", ["a $5_$ b", "$1-$5", "$x^", "caf\udce9"])
def test_any_name_is_drawn_as_it_is(view, name):
    named = replace(view, class_names=[name, name, "other"], target=0, title=f"{name}.jpg: {name}")
    assert draw("sheet", named).width == 990
    figure = PANELS["cam"](named)
    render(figure)
    labels = figure.axes[-1].get_yticklabels()
    assert sorted(label.get_text() for label in labels) == sorted([shown(name), shown(name), "other"])
    for label in (*labels, figure.axes[1].title):
        assert "$" not in label.get_text() or not label.get_parse_math()


def test_positions_outside_of_the_map_and_maps_that_are_not_there_are_refused(view):
    for panel, position in product(("attention", "sheet"), ((3, 0), (0, 4), (-1, 0))):
        with pytest.raises(InputError, match="3x4 positions; give a row from 0 to 2 and a column from 0 to 3"):
            draw(panel, replace(view, position=position))
    with pytest.raises(InputError, match=r"no panel 'spatal' \(did you mean 'spatial'\?\); choose from sheet, cam"):
        draw("spatal", view)
    seen = inspect_network(timm.create_model("resnet10t", num_classes=3), torch.randn(1, 3, 64, 64))
    plain = View(seen, np.zeros((64, 64, 3), np.uint8), NAMES)
    assert [draw(name, plain) for name in PANELS if name != "cam"] == [None] * 5
    assert draw("sheet", plain).width == 990
    for panel in ("attention", "sheet"):
        with pytest.raises(InputError, match="no self-attention to draw: ResNet has no block"):
            draw(panel, replace(plain, position=(0, 0)))


@pytest.mark.parametrize("shape", [(32, 32), (16, 200), (200, 16)])
def test_constant_maps_and_long_images_are_drawn(shape):
    uniform = np.full((2, 1, 1, 1, 1), 1.0, np.float32)
    seen = Inspection(np.zeros(3), {"1.1": np.full((8, 8), 0.5)}, attention={"4.1": uniform})
    view = View(seen, np.zeros((*shape, 3), np.uint8), NAMES)
    assert draw("sheet", view).width == draw("attention", view).width == 990
