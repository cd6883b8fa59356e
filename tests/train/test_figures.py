import numpy as np
import pytest
from PIL import Image

from patnet.files import save_figure
from patnet.train.classifier import Classifier
from patnet.train.figures import ERROR, HIT, draw_comparison, draw_confusion, draw_curves, draw_image_grid


@pytest.mark.parametrize("classes", [2, 12, 60])
def test_a_confusion_matrix_has_hits_and_errors_in_different_colours(tmp_path, classes):
    matrix = np.eye(classes, dtype=int) + np.eye(classes, k=1, dtype=int)
    figure = draw_confusion(matrix, [f"class {i}" for i in range(classes)], "title")
    errors, hits = figure.axes[0].images
    assert hits.get_cmap().name != errors.get_cmap().name
    with Image.open(save_figure(figure, tmp_path / "new" / "matrix.png")) as image:
        assert min(image.size) > 300
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["matrix.png"]


@pytest.mark.parametrize("epochs", [1, 60])
def test_curves_show_what_was_recorded(tmp_path, epochs):
    history = [{"epoch": i + 1, "train_loss": 1 / (i + 1), "lr": 1e-3, "best": True} for i in range(epochs)]
    figure = draw_curves(history, Classifier.curves, "title")
    assert [axes.get_title() for axes in figure.axes] == ["Loss", "Learning rate"]
    history = [{**row, "train_top1": 0.5, "val_loss": 1.0, "val_top1": 0.4} for row in history]
    figure = draw_curves(history, Classifier.curves, "title")
    assert [len(axes.get_lines()) for axes in figure.axes] == [2, 3, 1]  # with a line at the best epoch
    save_figure(figure, tmp_path / "curves.png")


@pytest.mark.parametrize("runs", [2, 14])
def test_a_comparison_shows_all_runs(tmp_path, runs):
    rows = [{"epoch": i + 1, "train_loss": 1.0, "best": i == 0} for i in range(3)]
    histories = {f"run {i}": rows for i in range(runs)}
    assert len(draw_comparison(histories, "title").axes) == 1
    histories["validated"] = [{**row, "val_loss": 1.0, "val_top1": 0.5} for row in rows]
    histories["not begun"] = []
    figure = draw_comparison(histories, "title")
    assert len(figure.axes) == 3
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[2].get_lines()}
    assert len(looks) == runs + 2
    assert len(figure.legends[0].get_texts()) == runs + 2
    save_figure(figure, tmp_path / "curves.png")


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_grid_holds_every_image(tmp_path, count):
    images = ([Image.new("L", (30, 20)), Image.new("RGB", (20, 30))] * 4)[:count]
    figure = draw_image_grid(images, ["caption"] * count, [HIT, ERROR, *[HIT] * 6][:count], "title")
    assert sum(len(axes.images) for axes in figure.axes) == count
    save_figure(figure, tmp_path / "grid.png")
