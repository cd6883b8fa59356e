"""Figures of evaluations, and the matching that images are ranked by."""

import numpy as np
import pytest
from annotated import a_result, an_object, annotated
from matplotlib.colors import to_hex
from PIL import Image

from patnet.detection.figures import draw_best_and_worst, draw_precision_recall, match_results
from patnet.detection.metrics import coco_metrics
from patnet.files import save_figure
from patnet.train.figures import ERROR, HIT

CAT = an_object(5, 5, 5, 25, 25)
CROWD = an_object(7, 40, 0, 80, 60, crowd=True)
FOUND = a_result(7, 5, 5, 5, 25, 24)


@pytest.mark.parametrize(
    ("objects", "results", "f1", "errors"),
    [
        ([], [], 1.0, 0),
        ([CROWD], [], 1.0, 0),
        ([CAT], [FOUND], 1.0, 0),
        ([CAT], [], 0.0, 1),
        ([CAT], [{**FOUND, "score": 0.4}], 0.0, 1),
        ([], [FOUND], 0.0, 1),
        ([CAT], [FOUND, FOUND], 2 / 3, 1),
        ([CAT], [{**FOUND, "category_id": 7}], 0.0, 2),
        ([CAT], [a_result(7, 5, 15, 5, 35, 25)], 0.0, 2),
        ([CAT, CROWD], [FOUND, a_result(7, 7, 45, 5, 60, 20)], 1.0, 0),
        ([CAT, CROWD], [FOUND, a_result(7, 5, 45, 5, 60, 20)], 2 / 3, 1),
    ],
)
def test_f1_of_an_image(objects, results, f1, errors):
    match = match_results(annotated(objects).images[0], results)
    assert (match.f1, match.errors) == (pytest.approx(f1), errors)


@pytest.fixture
def drawn(tmp_path):
    """Draws and writes both figures, and gives the legend of the curves and the axes of the images by their title."""

    def draw(annotations, results):
        curves = draw_precision_recall(coco_metrics(annotations, results, masks=False), ["cat", "dog"], "title")
        sheet = draw_best_and_worst(annotations, results)
        for figure in (curves, sheet):
            with Image.open(save_figure(figure, tmp_path / "drawn.png", dpi=40)) as image:
                assert np.asarray(image).std() > 0
        legends = [axes.get_legend() for axes in curves.axes if axes.get_legend()]
        labels = [text.get_text() for legend in legends for text in legend.get_texts()]
        return labels, {axes.get_title(): axes for axes in sheet.axes if axes.get_title()}

    return draw


@pytest.fixture
def written(tmp_path):
    """Annotations, and their images as files."""

    def make(*objects):
        annotations = annotated(*objects, folder=tmp_path)
        for image in annotations.images:
            Image.new("L", (image.width, image.height), 90).save(image.path)
        return annotations

    return make


def test_the_best_and_the_worst(written, drawn):
    annotations = written([CAT], [CAT], [CAT, CROWD], [])
    results = [FOUND, {**FOUND, "image_id": 13}, a_result(13, 5, 40, 40, 60, 60)]
    labels, images = drawn(annotations, results)
    assert labels[0].startswith("IoU .50: AP50 ")
    assert labels[-1].startswith("cat: AP50 ")  # the only dog is a crowd region
    assert list(images) == [
        "best 1: 0.png\nF1 1.00, 0 wrong, 0 of 1 missed",
        "best 2: 2.png\nF1 0.67, 1 wrong, 0 of 1 missed",
        "worst 1: 1.png\nF1 0.00, 0 wrong, 1 of 1 missed",
    ]
    edges = [to_hex(axes.patches[0].get_edgecolor()) for axes in images.values()]
    assert (edges[0], edges[2]) == (HIT.lower(), ERROR.lower())


@pytest.mark.parametrize("objects", [[[CAT], []], [[]]])
def test_no_results(written, drawn, objects):
    labels, images = drawn(written(*objects), [])
    assert bool(labels) == bool(images) == any(objects)


def test_an_image_that_cannot_be_read(written, drawn):
    annotations = written([CAT])
    annotations.images[0].path.write_bytes(b"no image")
    assert list(drawn(annotations, [FOUND])[1]) == ["0.png: cannot be read"]
