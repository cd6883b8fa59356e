"""Figures of evaluations, and the matching that images are ranked by."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from patnet.data.annotations import AnnotatedImage, AnnotatedObject, Annotations
from patnet.detection.figures import draw_best_and_worst, draw_precision_recall, match_results
from patnet.detection.metrics import coco_metrics
from patnet.files import save_figure
from patnet.train.figures import ERROR, HIT

CLASSES = {3: "cat", 8: "dog"}


def an_object(category, box, crowd=False):
    x1, y1, x2, y2 = box
    return AnnotatedObject(category, box, (x2 - x1) * (y2 - y1), crowd, [[x1, y1, x2, y1, x2, y2, x1, y2]])


def a_result(image_id, category, x1, y1, x2, y2, score=0.9):
    box = [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
    return {"image_id": image_id, "category_id": category, "bbox": box, "score": score}


def an_image(number, *objects, folder=Path()):
    return AnnotatedImage(number, folder / f"{number}.png", 80, 60, list(objects))


CAT = an_object(3, (5.0, 5.0, 25.0, 25.0))
CROWD = an_object(8, (40.0, 0.0, 80.0, 60.0), crowd=True)
FOUND = a_result(1, 3, 5, 5, 25, 24)


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
        ([CAT], [{**FOUND, "category_id": 8}], 0.0, 2),
        ([CAT], [a_result(1, 3, 15, 5, 35, 25)], 0.0, 2),
        ([CAT, CROWD], [FOUND, a_result(1, 8, 45, 5, 60, 20)], 1.0, 0),
        ([CAT, CROWD], [FOUND, a_result(1, 3, 45, 5, 60, 20)], 2 / 3, 1),
    ],
)
def test_f1_of_an_image(objects, results, f1, errors):
    match = match_results(an_image(1, *objects), results)
    assert (match.f1, match.errors) == (pytest.approx(f1), errors)


def drawn(annotations, results, folder):
    """Both figures, after they were written."""
    curves = draw_precision_recall(coco_metrics(annotations, results, iou_types=["box"]), ["cat", "dog"], "title")
    sheet = draw_best_and_worst(annotations, results)
    for name, figure in (("curves", curves), ("sheet", sheet)):
        with Image.open(save_figure(figure, folder / f"{name}.png", dpi=40)) as image:
            assert np.asarray(image).std() > 0
    return curves, sheet


def labels_of(curves):
    return [text.get_text() for axes in curves.axes if (legend := axes.get_legend()) for text in legend.get_texts()]


def titles_of(sheet):
    return [axes.get_title() for axes in sheet.axes if axes.get_title()]


@pytest.fixture
def annotated(tmp_path):
    def make(*objects_of_images):
        images = [an_image(i, *objects, folder=tmp_path) for i, objects in enumerate(objects_of_images, start=1)]
        for image in images:
            Image.new("L", (80, 60), 90).save(image.path)
        return Annotations(tmp_path / "truth.json", CLASSES, images)

    return make


def test_the_best_and_the_worst(annotated, tmp_path):
    annotations = annotated([CAT], [CAT], [CAT, CROWD], [])
    results = [FOUND, {**FOUND, "image_id": 3}, a_result(3, 3, 40, 40, 60, 60)]
    curves, sheet = drawn(annotations, results, tmp_path)
    labels, titles = labels_of(curves), titles_of(sheet)
    assert labels[0].startswith("IoU .50: AP50 ")
    assert labels[-1].startswith("cat: AP50 ")  # the only dog is a crowd region
    assert [title for title in titles if title.startswith(("best", "worst"))] == [
        "best 1: 1.png\nF1 1.00, 0 wrong, 0 of 1 missed",
        "best 2: 3.png\nF1 0.67, 1 wrong, 0 of 1 missed",
        "worst 1: 2.png\nF1 0.00, 0 wrong, 1 of 1 missed",
    ]
    of_title = {axes.get_title(): axes for axes in sheet.axes}
    hit, missed = (
        of_title[title].patches[0].get_edgecolor() for title in titles if ": 1.png" in title or "2.png" in title
    )
    assert (to_hex(hit), to_hex(missed)) == (HIT.lower(), ERROR.lower())


@pytest.mark.parametrize("objects", [[[CAT], []], [[]]])
def test_no_results(annotated, tmp_path, objects):
    curves, sheet = drawn(annotated(*objects), [], tmp_path)
    assert bool(labels_of(curves)) == bool(titles_of(sheet)) == any(objects)


def test_an_image_that_cannot_be_read(annotated, tmp_path):
    annotations = annotated([CAT])
    annotations.images[0].path.write_bytes(b"no image")
    assert titles_of(drawn(annotations, [FOUND], tmp_path)[1]) == ["1.png: cannot be read"]
