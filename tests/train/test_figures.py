import numpy as np
import pytest
from PIL import Image

from patnet.train.figures import draw_confusion, draw_curves, draw_sheet, save_figure


@pytest.mark.parametrize("classes", [2, 12, 60])
def test_a_confusion_matrix_of_any_size_is_drawn(tmp_path, classes):
    figure = draw_confusion(np.eye(classes, dtype=int), [f"class {i}" for i in range(classes)], "title")
    with Image.open(save_figure(figure, tmp_path / "new" / "matrix.png")) as picture:
        assert min(picture.size) > 300
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["matrix.png"]


@pytest.mark.parametrize("epochs", [1, 60])
def test_curves_are_drawn_with_and_without_validation(tmp_path, epochs):
    rows = [
        {"epoch": i + 1, "train_loss": 1 / (i + 1), "train_top1": 0.5, "lr": 1e-3, "best": True} for i in range(epochs)
    ]
    figure = draw_curves(rows, "title")
    assert [len(axes.get_lines()) for axes in figure.axes] == [1, 1, 1]
    figure = draw_curves([{**row, "val_loss": 1.0, "val_top1": 0.4} for row in rows], "title")
    assert [len(axes.get_lines()) for axes in figure.axes] == [2, 3, 1]
    save_figure(figure, tmp_path / "curves.png")


@pytest.mark.parametrize("pictures", [0, 1, 7])
def test_a_sheet_holds_every_picture(tmp_path, pictures):
    images = [Image.new("L", (30, 20)), Image.new("RGB", (20, 30))] * 4
    figure = draw_sheet(images[:pictures], ["caption"] * pictures, ["black"] * pictures, "title")
    assert sum(len(axes.images) for axes in figure.axes) == pictures
    save_figure(figure, tmp_path / "sheet.png")
