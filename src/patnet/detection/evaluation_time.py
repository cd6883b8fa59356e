"""How long the figures of detections take to compute, and by pycocotools."""

import contextlib
import io
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..data.annotations import AnnotatedObject, AnnotatedPicture, Annotations
from .evaluation import FIGURES, evaluate_results

__all__ = ["measure_evaluation"]

WIDTH, HEIGHT = 640, 480


def _outlines(rng: np.random.Generator, boxes: np.ndarray, points: int = 16) -> np.ndarray:
    """A wavy outline `(n, 2 * points)` inside each of the boxes `(n, 4)`, x1, y1, x2, y2 in px."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radii = rng.uniform(0.7, 1.0, (len(boxes), points))
    middle, half = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2, (boxes[:, None, 2:] - boxes[:, None, :2]) / 2
    outlines = middle + half * radii[..., None] * np.stack((np.cos(angles), np.sin(angles)), -1)
    return outlines.reshape(len(boxes), 2 * points)


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes `(count, 4)` of 8 px to the whole picture, as many small as large ones."""
    sides = np.exp(rng.uniform(np.log(8), np.log(HEIGHT), (count, 2)))
    corners = rng.uniform(0, 1, (count, 2)) * ((WIDTH, HEIGHT) - sides)
    return np.concatenate((corners, corners + sides), 1)


def _data(rng: np.random.Generator, pictures: int, detections: int, classes: int, objects: float) -> Any:
    """Random truth, and results of which some lie near each object and the others anywhere, with lower scores."""
    from pycocotools import mask as library

    annotated, results = [], []
    for number in range(1, pictures + 1):
        count = int(rng.poisson(objects))
        boxes, labels = _boxes(rng, count), rng.integers(1, classes + 1, count)
        outlines = _outlines(rng, boxes)
        held = [
            AnnotatedObject(
                int(label), tuple(box), (box[2] - box[0]) * (box[3] - box[1]) * 0.6, rng.random() < 0.01, [outline]
            )
            for label, box, outline in zip(labels, boxes.tolist(), outlines.tolist(), strict=True)
        ]
        annotated.append(AnnotatedPicture(number, Path(f"{number}.jpg"), WIDTH, HEIGHT, held))
        near = np.repeat(np.arange(count), 4)[:detections]
        sides = np.tile(boxes[near, 2:] - boxes[near, :2], 2)
        found = np.concatenate(
            (boxes[near] + rng.normal(0, 0.08, (len(near), 4)) * sides, _boxes(rng, detections - len(near)))
        )
        found = np.sort(found.clip(0, (WIDTH, HEIGHT, WIDTH, HEIGHT)).reshape(-1, 2, 2), 1).reshape(-1, 4)
        guessed = rng.integers(1, classes + 1, detections)
        guessed[: len(near)] = np.where(rng.random(len(near)) < 0.8, labels[near], guessed[: len(near)])
        scores = np.concatenate((rng.beta(2, 2, len(near)), rng.beta(1, 8, detections - len(near))))
        masks = library.frPyObjects(list(_outlines(rng, found)), HEIGHT, WIDTH)
        results += [
            {
                "image_id": number,
                "category_id": label,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": mask["counts"].decode("ascii")},
            }
            for label, (x1, y1, x2, y2), score, mask in zip(
                guessed.tolist(), found.tolist(), scores.tolist(), masks, strict=True
            )
        ]
    return Annotations(Path("random"), {k: f"class {k}" for k in range(1, classes + 1)}, annotated), results


def _by_pycocotools(truth: Annotations, results: list[dict[str, Any]], kind: str) -> list[float]:
    """The twelve figures."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    name, field = {"box": ("bbox", "bbox"), "mask": ("segm", "segmentation")}[kind]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **truth.as_coco()}
        coco.createIndex()
        keys = ("image_id", "category_id", "score", field)
        found = coco.loadRes([{key: result[key] for key in keys} for result in results])
        evaluation = COCOeval(coco, found, name)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def measure_evaluation(
    pictures: int = 5000,
    detections: int = 100,
    *,
    classes: int = 80,
    objects: float = 7.0,
    seed: int = 0,
    compare: bool = False,
) -> dict[str, Any]:
    """Time the figures of boxes and masks, from results as dictionaries to figures, on random pictures of 640x480 px.

    Args:
        pictures: As many as COCO's validation has.
        detections: Results in each, a mask with each.
        classes: Of objects.
        objects: In a picture, in the mean.
        seed: Of everything that is drawn.
        compare: Whether to time pycocotools on the same data, which takes minutes.

    Returns:
        For `box` and `mask` the `seconds` and the `AP`, with `compare` also `pycocotools_seconds` and the
        `largest_difference` of the twelve figures; their sum of `seconds`; and what was asked for.

    Raises:
        InputError: If a library is not installed.
    """
    truth, results = _data(np.random.default_rng(seed), pictures, detections, classes, objects)
    measured: dict[str, Any] = {"pictures": pictures, "detections": detections, "classes": classes, "objects": objects}
    for kind in ("box", "mask"):
        start = time.perf_counter()
        figures = evaluate_results(truth, results, kinds=[kind])[kind]
        measured[kind] = {"seconds": time.perf_counter() - start, "AP": figures["AP"]}
        if compare:
            start = time.perf_counter()
            theirs = _by_pycocotools(truth, results, kind)
            measured[kind]["pycocotools_seconds"] = time.perf_counter() - start
            ours = [-1.0 if figures[name] is None else figures[name] for name in FIGURES]
            measured[kind]["largest_difference"] = float(np.abs(np.subtract(ours, theirs)).max())
    measured["seconds"] = measured["box"]["seconds"] + measured["mask"]["seconds"]
    return measured
