"""Figures of detections against pycocotools', and results of several processes."""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.utilities import dim_zero_cat

from patnet import InputError
from patnet.data.annotations import AnnotatedObject, AnnotatedPicture, Annotations
from patnet.data.masks import decode_mask, encode_mask, mask_area
from patnet.detection.evaluation import FIGURES, GatheredResults, evaluate_results, results_of, unclassed

HEIGHT, WIDTH = 150, 180


def block(x1, y1, x2, y2, height=HEIGHT, width=WIDTH):
    mask = np.zeros((height, width), np.uint8)
    mask[y1:y2, x1:x2] = 1
    return encode_mask(mask)


def an_object(category, x1, y1, x2, y2, *, crowd=False, polygon=False):
    segmentation = [[x1, y1, x2, y1, x2, y2, x1, y2]] if polygon else block(x1, y1, x2, y2)
    return AnnotatedObject(category, (x1, y1, x2, y2), mask_area(segmentation, HEIGHT, WIDTH), crowd, segmentation)


def a_result(image_id, category, x1, y1, x2, y2, score):
    box = [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
    return {
        "image_id": image_id,
        "category_id": category,
        "bbox": box,
        "score": score,
        "segmentation": block(x1, y1, x2, y2),
    }


def annotated(*objects, names=("cat", "dog")):
    """A picture for each list of objects; ids that are not 1, 2, ..."""
    pictures = [AnnotatedPicture(7 + 3 * i, Path(f"{i}.png"), WIDTH, HEIGHT, list(o)) for i, o in enumerate(objects)]
    return Annotations(Path("truth.json"), {5 + 2 * k: name for k, name in enumerate(names)}, pictures)


@st.composite
def boxes(draw):
    x1, y1 = draw(st.integers(0, WIDTH - 3)), draw(st.integers(0, HEIGHT - 3))
    return x1, y1, draw(st.integers(x1 + 2, WIDTH)), draw(st.integers(y1 + 2, HEIGHT))


@st.composite
def data(draw):
    """Pictures with and without objects, crowd regions, and results near objects and elsewhere, of equal scores too."""
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
    for picture in truth.pictures:
        for o in picture.objects:
            for _ in range(draw(st.integers(0, 2))):
                dx, dy = draw(st.integers(-6, 6)), draw(st.integers(-6, 6))
                x1, y1, x2, y2 = o.box
                moved = (max(0, x1 + dx), max(0, y1 + dy), min(WIDTH, x2 + dx), min(HEIGHT, y2 + dy))
                if moved[2] - moved[0] > 1 and moved[3] - moved[1] > 1:
                    category = draw(st.sampled_from([o.category, o.category, draw(categories)]))
                    results.append(a_result(picture.id, category, *moved, draw(scores)))
        elsewhere = draw(st.lists(st.tuples(categories, boxes(), scores), max_size=3))
        results += [a_result(picture.id, category, *box, score) for category, box, score in elsewhere]
    return truth, results


def by_pycocotools(truth, results, kind):
    """The twelve figures, and AP and AP50 of each category."""
    name, field = {"box": ("bbox", "bbox"), "mask": ("segm", "segmentation")}[kind]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **truth.as_coco()}
        coco.createIndex()
        if results:
            keys = ("image_id", "category_id", "score", field)
            found = coco.loadRes([{key: result[key] for key in keys} for result in results])
        else:
            found = COCO()
            found.dataset = {**coco.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(coco, found, name)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    classes = [(precision[:, :, k], precision[0, :, k]) for k in range(precision.shape[2])]
    return evaluation.stats, [[part.mean() if part.max() > -1 else -1 for part in parts] for parts in classes]


def same(ours, theirs):
    return ours is None if theirs == -1 else ours == pytest.approx(theirs, abs=1e-6)


@settings(max_examples=120)
@given(drawn=data())
def test_figures_are_those_of_pycocotools(drawn):
    truth, results = drawn
    before = [dict(result) for result in results]
    figures = evaluate_results(truth, results)
    assert results == before
    for kind in ("box", "mask"):
        whole, classes = by_pycocotools(truth, results, kind)
        assert all(same(figures[kind][name], value) for name, value in zip(FIGURES, whole, strict=True))
        for row, (ap, ap50) in zip(figures[kind]["per_class"].values(), classes, strict=True):
            assert same(row["AP"], ap)
            assert same(row["AP50"], ap50)
    whole, _ = by_pycocotools(*unclassed(truth, results), "box")
    agnostic = evaluate_results(truth, results, kinds=["box"], class_agnostic=True)["box"]
    assert all(same(agnostic[name], value) for name, value in zip(FIGURES, whole, strict=True))
    assert set(agnostic["per_class"]) == {"all classes"}


def test_nothing_found_and_nothing_to_find():
    truth = annotated([an_object(5, 10, 10, 60, 60), an_object(5, 0, 0, 9, 9, crowd=True)], [])
    figures = evaluate_results(truth, [])
    for kind in ("box", "mask"):
        assert (figures[kind]["AP"], figures[kind]["AR100"], figures[kind]["AP_large"]) == (0, 0, None)
        assert figures[kind]["per_class"] == {
            "cat": {"AP": 0, "AP50": 0, "objects": 1},
            "dog": {"AP": None, "AP50": None, "objects": 0},
        }
        assert figures[kind]["curves"]["50"].shape == (2, 101)
        assert np.isnan(figures[kind]["curves"]["mean"][1]).all()
    nothing = evaluate_results(annotated([], []), [a_result(7, 5, 0, 0, 9, 9, 0.9)])
    assert nothing["box"]["AP"] is None
    assert nothing["mask"]["per_class"]["cat"] == {"AP": None, "AP50": None, "objects": 0}


def test_an_object_found_as_two_classes():
    truth = annotated([an_object(5, 10, 10, 60, 60)])
    results = [a_result(7, 7, 10, 10, 60, 60, 0.9), a_result(7, 5, 10, 10, 60, 58, 0.8)]
    assert evaluate_results(truth, results)["box"]["AP50"] == 1
    assert [result["score"] for result in unclassed(truth, results)[1]] == [0.9]
    agnostic = evaluate_results(truth, results, class_agnostic=True)
    assert agnostic["box"]["AP"] == agnostic["mask"]["AP"] == 1


def test_masks_are_small_or_large_by_their_own_area():
    corner = AnnotatedObject(5, (0, 0, 100, 100), 300.0, False, [[0, 0, 100, 0, 100, 6]])
    found = {**a_result(7, 5, 0, 0, 100, 100, 0.9), "segmentation": encode_mask(decode_mask(corner[4], HEIGHT, WIDTH))}
    figures = evaluate_results(annotated([corner]), [found])
    assert figures["mask"]["AP_small"] == 1
    assert figures["mask"]["AP_large"] is None


def test_classes_of_one_name_stay_apart():
    figures = evaluate_results(annotated([an_object(7, 1, 1, 9, 9)], names=("cell", "cell")), [])
    assert {name: row["objects"] for name, row in figures["box"]["per_class"].items()} == {
        "cell (5)": 0,
        "cell (7)": 1,
    }


def test_evaluation_says_nothing(capsys):
    evaluate_results(annotated([an_object(5, 1, 1, 9, 9)]), [a_result(7, 5, 1, 1, 9, 9, 0.5)])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": 8}, "has no image_id 8, which a result names"),
        ({"category_id": 1}, "has no category_id 1, which a result names"),
        ({"segmentation": None}, "a result has no mask; evaluate other kinds"),
    ],
)
def test_results_that_do_not_fit(change, said):
    result = {**a_result(7, 5, 1, 1, 9, 9, 0.5), **change}
    result = {key: value for key, value in result.items() if value is not None}
    with pytest.raises(InputError, match=said):
        evaluate_results(annotated([an_object(5, 1, 1, 9, 9)]), [result])


def test_kinds_that_do_not_fit():
    boxes_alone = annotated([AnnotatedObject(5, (1, 1, 9, 9), 64.0)])
    with pytest.raises(InputError, match="an object has no mask; evaluate boxes alone"):
        evaluate_results(boxes_alone, [])
    assert set(evaluate_results(boxes_alone, [], kinds=["box"])) == {"box"}
    with pytest.raises(ValueError, match="no kind 'segm': choose from box, mask"):
        evaluate_results(boxes_alone, [], kinds=["segm"])


def test_results_of_a_detector():
    boxes = torch.tensor([[10.5, 20.25, 40.5, 60.0], [0.0, 0.0, 5.0, 7.0]])
    masks = torch.rand(2, 1, HEIGHT, WIDTH)
    found = {"boxes": boxes, "labels": torch.tensor([2, 1]), "scores": torch.tensor([0.75, 0.5])}
    results = results_of(3, {**found, "masks": masks}, [5, 90])
    assert [(r["image_id"], r["category_id"], r["score"]) for r in results] == [(3, 90, 0.75), (3, 5, 0.5)]
    assert results[0]["bbox"] == [10.5, 20.25, 30.0, 39.75]
    for result, mask in zip(results, masks, strict=True):
        assert (decode_mask(result["segmentation"], HEIGHT, WIDTH) == (mask[0] > 0.5).numpy()).all()
    assert all("segmentation" not in result for result in results_of(3, found, [5, 90]))
    assert results_of(3, {key: value[:0] for key, value in {**found, "masks": masks}.items()}, [5, 90]) == []


RESULTS = [a_result(7, 5, 1, 2, 30, 40, 0.1 + 0.2), a_result(7, 7, 0, 0, 9, 9, 1 / 3), a_result(10, 5, 3, 3, 8, 8, 0.5)]


def test_results_of_one_process():
    gathered = GatheredResults()
    gathered.update([])
    assert gathered.compute() == []
    gathered.update(RESULTS[:2])
    gathered.update([])
    gathered.update(RESULTS[2:])
    assert gathered.compute() == RESULTS
    assert gathered.lines[0].dtype == torch.uint8


def test_results_of_several_processes():
    """Of which one has none, and one was never given any."""
    processes = [GatheredResults() for _ in range(3)]
    processes[0].update(RESULTS[:2])
    processes[2].update(RESULTS[2:])
    processes[2].update([])

    def gather(mine, group=None):
        others = [dim_zero_cat(process.lines) for process in processes if len(process.lines)]
        assert {part.dtype for part in [mine, *others]} == {torch.uint8}  # as what they pad and send must be
        return [dim_zero_cat(p.lines) if len(p.lines) else mine[:0] for p in processes]

    for process in processes:
        process.dist_sync_fn, process.distributed_available_fn = gather, lambda: True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the second was given nothing
            assert process.compute() == RESULTS
