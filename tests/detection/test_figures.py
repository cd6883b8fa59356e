"""Drawings of evaluations, and the F1 that pictures are ranked by."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patnet.data.annotations import AnnotatedObject, AnnotatedPicture, Annotations
from patnet.detection.evaluation import evaluate_results
from patnet.detection.figures import draw_best_and_worst, draw_precision_recall, picture_f1
from patnet.train.figures import save_figure

CLASSES = {3: "cat", 8: "dog"}


def an_object(category, box, crowd=False):
    x1, y1, x2, y2 = box
    return AnnotatedObject(category, box, (x2 - x1) * (y2 - y1), crowd, [[x1, y1, x2, y1, x2, y2, x1, y2]])


def a_result(image_id, category, x1, y1, x2, y2, score=0.9):
    box = [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
    return {"image_id": image_id, "category_id": category, "bbox": box, "score": score}


def a_picture(number, *objects, folder=Path()):
    return AnnotatedPicture(number, folder / f"{number}.png", 80, 60, list(objects))


CAT = an_object(3, (5.0, 5.0, 25.0, 25.0))
CROWD = an_object(8, (40.0, 0.0, 80.0, 60.0), crowd=True)
FOUND = a_result(1, 3, 5, 5, 25, 24)


@pytest.mark.parametrize(
    ("objects", "results", "f1", "mistakes"),
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
def test_f1_of_a_picture(objects, results, f1, mistakes):
    assert picture_f1(a_picture(1, *objects), results) == (pytest.approx(f1), mistakes)


def drawn(annotations, results, folder):
    """Evaluates and draws, and gives the texts of the sheet."""
    evaluated = evaluate_results(annotations, results, kinds=["box"])
    curves = draw_precision_recall(evaluated, annotations.class_names, "title")
    sheet = draw_best_and_worst(annotations, results)
    for name, figure in (("curves", curves), ("sheet", sheet)):
        with Image.open(save_figure(figure, folder / f"{name}.png", dpi=40)) as image:
            assert np.asarray(image).std() > 0
    labels = [text.get_text() for axes in curves.axes if (legend := axes.get_legend()) for text in legend.get_texts()]
    return labels, [axes.get_title() for axes in sheet.axes if axes.get_title()]


@pytest.fixture
def annotated(tmp_path):
    def make(*objects_of_pictures):
        pictures = [a_picture(i, *objects, folder=tmp_path) for i, objects in enumerate(objects_of_pictures, start=1)]
        for picture in pictures:
            Image.new("L", (80, 60), 90).save(picture.path)
        return Annotations(tmp_path / "truth.json", CLASSES, pictures)

    return make


def test_the_best_and_the_worst(annotated, tmp_path):
    annotations = annotated([CAT], [CAT], [CAT, CROWD], [])
    results = [FOUND, {**FOUND, "image_id": 3}, a_result(3, 3, 40, 40, 60, 60)]
    labels, titles = drawn(annotations, results, tmp_path)
    assert labels[0].startswith("IoU .50: AP50 ")
    assert labels[-1].startswith("cat, IoU .50: AP50 ")  # there is no dog but in a crowd
    assert [title.split("\n")[0] for title in titles if title.startswith(("best", "worst"))] == [
        "best 1: 1.png, F1 1.00, 0 mistakes",
        "worst 1: 2.png, F1 0.00, 1 mistake",
        "best 2: 3.png, F1 0.67, 1 mistake",
    ]


@pytest.mark.parametrize("objects", [[[CAT], []], [[]]])
def test_nothing_found(annotated, tmp_path, objects):
    labels, titles = drawn(annotated(*objects), [], tmp_path)
    assert bool(labels) == bool(titles) == any(objects)


def test_a_picture_that_cannot_be_read(annotated, tmp_path):
    annotations = annotated([CAT])
    annotations.pictures[0].path.write_bytes(b"no picture")
    assert drawn(annotations, [FOUND], tmp_path)[1] == ["1.png: cannot be read"]
