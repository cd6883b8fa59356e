"""Metrics of detections against pycocotools, and results of several processes."""

import contextlib
import io

import numpy as np
import pytest
import torch
import torch.distributed as dist
from annotated import HEIGHT, WIDTH, a_result, an_object, annotated
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from patnet import InputError
from patnet.data.annotations import AnnotatedObject
from patnet.data.masks import decode_mask, encode_mask
from patnet.detection.metrics import METRICS, coco_metrics, coco_results, gather_results, merge_classes


@st.composite
def boxes(draw):
    x1, y1 = draw(st.integers(0, WIDTH - 3)), draw(st.integers(0, HEIGHT - 3))
    return x1, y1, draw(st.integers(x1 + 2, WIDTH)), draw(st.integers(y1 + 2, HEIGHT))


@st.composite
def data(draw):
    """Images with and without objects, crowd regions, and results near objects and elsewhere, of equal scores too."""
    names = ["cat", "dog", "never"][: draw(st.integers(1, 3))]
    categories = st.sampled_from([5 + 2 * k for k in range(len(names))])
    objects = st.builds(
        lambda category, box, crowd, polygon: an_object(category, *box, crowd=crowd, polygon=polygon),
        categories,
        boxes(),
        st.sampled_from([False, False, False, True]),
        st.booleans(),
    )
    truth = annotated(*draw(st.lists(st.lists(objects, max_size=5), min_size=1, max_size=4)), names=names)
    results = []
    scores = st.sampled_from([0.1, 0.25, 0.5, 0.9, 0.99])
    for image in truth.images:
        for o in image.objects:
            for _ in range(draw(st.integers(0, 2))):
                dx, dy = draw(st.integers(-6, 6)), draw(st.integers(-6, 6))
                x1, y1, x2, y2 = o.box
                moved = (max(0, x1 + dx), max(0, y1 + dy), min(WIDTH, x2 + dx), min(HEIGHT, y2 + dy))
                if moved[2] - moved[0] > 1 and moved[3] - moved[1] > 1:
                    category = draw(st.sampled_from([o.category, o.category, draw(categories)]))
                    results.append(a_result(image.id, category, *moved, draw(scores)))
        elsewhere = draw(st.lists(st.tuples(categories, boxes(), scores), max_size=3))
        results += [a_result(image.id, category, *box, score) for category, box, score in elsewhere]
    return truth, results


def by_pycocotools(truth, results, iou_type):
    """The twelve metrics, and AP and AP50 of each category."""
    name, field = {"box": ("bbox", "bbox"), "mask": ("segm", "segmentation")}[iou_type]
    with contextlib.redirect_stdout(io.StringIO()):
        coco, found = COCO(), COCO()
        coco.dataset = {"info": {}, **truth.as_coco()}
        coco.createIndex()
        if results:
            keys = ("image_id", "category_id", "score", field)
            found = coco.loadRes([{key: result[key] for key in keys} for result in results])
        else:
            found.dataset = {**coco.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(coco, found, name)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    classes = [(precision[:, :, k], precision[0, :, k]) for k in range(precision.shape[2])]
    return evaluation.stats, [[part.mean() if part.max() > -1 else -1 for part in parts] for parts in classes]


def assert_same(ours, theirs):
    assert ours == [None if value == -1 else pytest.approx(value, abs=1e-6) for value in theirs]


@settings(max_examples=50)
@given(drawn=data())
def test_metrics_are_those_of_pycocotools(drawn):
    truth, results = drawn
    before = [dict(result) for result in results]
    metrics = coco_metrics(truth, results)
    assert results == before
    for iou_type in ("box", "mask"):
        total, classes = by_pycocotools(truth, results, iou_type)
        assert_same([metrics[iou_type][name] for name in METRICS], total)
        for row, theirs in zip(metrics[iou_type]["per_class"].values(), classes, strict=True):
            assert_same([row["AP"], row["AP50"]], theirs)
    merged = merge_classes(truth, results)
    agnostic = coco_metrics(*merged, masks=False)["box"]
    assert_same([agnostic[name] for name in METRICS], by_pycocotools(*merged, "box")[0])
    assert set(agnostic["per_class"]) == {"all classes"}


def test_no_results_and_no_objects():
    truth = annotated([an_object(5, 10, 10, 60, 60), an_object(5, 0, 0, 9, 9, crowd=True)], [])
    metrics = coco_metrics(truth, [])
    for found in metrics.values():
        assert (found["AP"], found["AR100"], found["AP_large"]) == (0, 0, None)
        cat, dog = {"AP": 0, "AP50": 0, "objects": 1}, {"AP": None, "AP50": None, "objects": 0}
        assert found["per_class"] == {"cat": cat, "dog": dog}
        assert found["curves"]["50"].shape == (2, 101)
        assert np.isnan(found["curves"]["mean"][1]).all()
    nothing = coco_metrics(annotated([], []), [a_result(7, 5, 0, 0, 9, 9, 0.9)])
    assert nothing["box"]["AP"] is None
    assert nothing["mask"]["per_class"]["cat"] == {"AP": None, "AP50": None, "objects": 0}


def test_an_object_detected_as_two_classes():
    truth = annotated([an_object(5, 10, 10, 60, 60)])
    results = [a_result(7, 7, 10, 10, 60, 60, 0.9), a_result(7, 5, 10, 10, 60, 58, 0.8)]
    assert coco_metrics(truth, results)["box"]["AP50"] == 1
    merged = merge_classes(truth, results)
    assert [result["score"] for result in merged[1]] == [0.9]
    assert [found["AP"] for found in coco_metrics(*merged).values()] == [1, 1]


def test_masks_are_small_or_large_by_their_own_area():
    corner = AnnotatedObject(5, (0, 0, 100, 100), 300.0, False, [[0, 0, 100, 0, 100, 6]])
    found = {**a_result(7, 5, 0, 0, 100, 100, 0.9), "segmentation": encode_mask(decode_mask(corner[4], HEIGHT, WIDTH))}
    metrics = coco_metrics(annotated([corner]), [found])
    assert metrics["mask"]["AP_small"] == 1
    assert metrics["mask"]["AP_large"] is None


def test_classes_of_one_name_stay_apart_and_nothing_is_printed(capsys):
    truth = annotated([an_object(7, 1, 1, 9, 9)], names=("cat", "cat"))
    metrics = coco_metrics(truth, [a_result(7, 5, 1, 1, 9, 9, 0.5)])
    assert {name: row["objects"] for name, row in metrics["box"]["per_class"].items()} == {"cat (5)": 0, "cat (7)": 1}
    assert capsys.readouterr() == ("", "")


def test_results_that_do_not_fit():
    truth = annotated([an_object(5, 1, 1, 9, 9)])
    boxes_alone = annotated([AnnotatedObject(5, (1, 1, 9, 9), 64.0)])
    good = a_result(7, 5, 1, 1, 9, 9, 0.5)
    without_mask = {key: value for key, value in good.items() if key != "segmentation"}
    for annotations, result, message in (
        (truth, {**good, "image_id": 8}, "has no image_id 8, which a result has"),
        (truth, {**good, "category_id": 1}, "has no category_id 1, which a result has"),
        (truth, without_mask, "a result has no mask; evaluate boxes alone"),
        (boxes_alone, good, "an object has no mask; evaluate boxes alone"),
    ):
        with pytest.raises(InputError, match=message):
            coco_metrics(annotations, [result])
    assert set(coco_metrics(boxes_alone, [without_mask], masks=False)) == {"box"}


def test_results_of_a_detector():
    corners = torch.tensor([[10.5, 20.25, 40.5, 60.0], [0.0, 0.0, 5.0, 7.0]])
    masks = torch.rand(2, 1, HEIGHT, WIDTH)
    found = {"boxes": corners, "labels": torch.tensor([2, 1]), "scores": torch.tensor([0.75, 0.5])}
    results = coco_results(3, {**found, "masks": masks}, [5, 90])
    assert [(r["image_id"], r["category_id"], r["score"]) for r in results] == [(3, 90, 0.75), (3, 5, 0.5)]
    assert results[0]["bbox"] == [10.5, 20.25, 30.0, 39.75]
    for result, mask in zip(results, masks, strict=True):
        assert (decode_mask(result["segmentation"], HEIGHT, WIDTH) == (mask[0] > 0.5).numpy()).all()
    assert all("segmentation" not in result for result in coco_results(3, found, [5, 90]))
    assert coco_results(3, {key: value[:0] for key, value in {**found, "masks": masks}.items()}, [5, 90]) == []


def test_results_of_several_processes_are_in_the_order_of_the_images(monkeypatch):
    results = [a_result(i, 5, 1, 2, 30, 40, s) for i, s in ((10, 0.1 + 0.2), (7, 1 / 3), (10, 0.5))]
    expected = [results[1], results[0], results[2]]
    assert gather_results(results) == expected
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(
        dist, "all_gather_object", lambda parts, own: parts.__setitem__(slice(3), [own, [], results[1:]])
    )
    assert gather_results(results[:1]) == expected
