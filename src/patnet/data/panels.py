"""Pictures of solar panels, composed from ELPV's real cells, with a box and a mask for each cell, in COCO's format."""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ..errors import InputError
from .elpv import TWO_CLASSES, Cell, cells

__all__ = ["compose_panel", "write_panels"]

LEAST_SHARE, LEAST_SIDE = 0.1, 8.0  # of a cell's area, and of its box in px, for the cell to count as an object


def _shape(rng: np.random.Generator, size: int, most: int) -> tuple[int, int, int, int]:
    """Width and height of the picture in px, and the panel's columns and rows, of about the same shape."""
    short = int(size * rng.uniform(0.62, 1.0))
    width, height = (size, short) if rng.random() < 0.7 else (short, size)
    columns = int(rng.integers(2, most + 1))
    rows = int(np.clip(round(columns * height / width * rng.uniform(0.75, 1.3)), 2, most))
    return width, height, columns, rows


def _homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The matrix `(3, 3)` that maps four points onto four others."""
    rows = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return np.append(np.linalg.solve(np.array(rows), target.ravel()), 1.0).reshape(3, 3)


def _mapped(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points `(n, 2)` through a homography."""
    homogeneous = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def _placed(rng: np.random.Generator, corners: np.ndarray, width: int, height: int) -> np.ndarray:
    """Where the panel's corners come to lie in the picture: turned, seen at an angle, whole or cut by the borders."""
    centred = corners - corners.mean(axis=0)
    angle = np.deg2rad(rng.uniform(-12, 12))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    seen = centred * (1 + rng.uniform(-0.06, 0.06, (4, 2))) @ turn.T
    fitting = (np.array([width, height]) / np.ptp(seen, axis=0)).min()
    cut = rng.random() < 0.4
    scale = fitting * (rng.uniform(1.1, 1.5) if cut else rng.uniform(0.82, 0.98))
    free = np.array([width, height]) - np.ptp(seen, axis=0) * scale
    offset = np.where(free > 0, free * rng.uniform(0, 1, 2), free * rng.uniform(0.1, 0.9, 2))
    return (seen - seen.min(axis=0)) * scale + offset


def _clipped(polygon: np.ndarray, width: int, height: int) -> np.ndarray:
    """The part of a convex polygon `(n, 2)` that lies in the picture, cut side by side (Sutherland and Hodgman)."""
    for axis, bound, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        inside = sign * (polygon[:, axis] - bound)
        kept = []
        for i in range(len(polygon)):
            before = i - 1
            if (inside[i] >= 0) != (inside[before] >= 0):
                share = inside[before] / (inside[before] - inside[i])
                kept.append(polygon[before] + share * (polygon[i] - polygon[before]))
            if inside[i] >= 0:
                kept.append(polygon[i])
        if len(kept) < 3:
            return np.empty((0, 2))
        polygon = np.array(kept)
    return polygon


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2) if len(polygon) else 0.0


def _chosen(rng: np.random.Generator, pool: Sequence[Cell], count: int) -> list[Cell]:
    """Cells of one module type; the share of defective ones differs from panel to panel."""
    module = "mono" if rng.random() < 0.4 else "poly"
    defective = rng.random(count) < rng.uniform(0.1, 0.6)
    parts = [[c for c in pool if c.module == module and (c.probability >= 0.5) == wrong] for wrong in (False, True)]
    if not all(parts):
        raise InputError(f"data set elpv: has no functional or no defective {module} cells to compose panels of")
    orders = [rng.permutation(len(part)) for part in parts]
    return [parts[wrong][orders[wrong][i % len(parts[wrong])]] for i, wrong in enumerate(defective.astype(int))]


def _texture(
    rng: np.random.Generator, chosen: Sequence[Cell], columns: int, side: int, gap: int, edge: int
) -> Image.Image:
    """The panel seen from the front: cells of `side` px, `gap` px apart, in a frame of `edge` px."""
    rows = len(chosen) // columns
    width, height = (n * (side + gap) - gap + 2 * edge for n in (columns, rows))
    panel = Image.new("L", (width, height), int(rng.integers(6, 40)))
    upright = rng.random() < 0.5
    for i, cell in enumerate(chosen):
        with Image.open(cell.path) as opened:
            picture = opened.convert("L").resize((side, side), Image.Resampling.BOX)
        if upright:
            picture = picture.transpose(Image.Transpose.ROTATE_90)
        for flip in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
            if rng.random() < 0.5:
                picture = picture.transpose(flip)
        row, column = divmod(i, columns)
        panel.paste(picture, (edge + column * (side + gap), edge + row * (side + gap)))
    return panel


def _lit(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Light that falls off over the picture, blur and noise of a camera."""
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.7)))
    pixels = np.asarray(picture, dtype=np.float64)
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in pixels.shape), indexing="ij")
    slope, centre = rng.uniform(-0.22, 0.22, 2), rng.uniform(-0.4, 0.4, 2)
    light = 1 + slope[0] * x + slope[1] * y - rng.uniform(0, 0.16) * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2)
    noise = rng.uniform(0.5, 3.5) * rng.standard_normal(pixels.shape)
    lit = pixels * light.clip(0.3) * rng.uniform(0.75, 1.2) + noise + rng.uniform(0, 8)
    return Image.fromarray(lit.round().clip(0, 255).astype(np.uint8))


def compose_panel(
    rng: np.random.Generator, pool: Sequence[Cell], *, size: int = 480, most: int = 6
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """A grey picture of a panel, and its cells as COCO's annotations without ids of their own or of the picture.

    Args:
        rng: Decides everything.
        pool: Cells to choose from.
        size: The picture's longer side in px.
        most: Cells along a side of the panel at most.

    Each annotation also names the `cell` it shows, and the `visible` share of its area.
    """
    width, height, columns, rows = _shape(rng, size, most)
    chosen = _chosen(rng, pool, rows * columns)
    # About as many px as in the picture, for what is reduced by a change of perspective is not smoothed.
    side = max(16, round(1.1 * max(width / columns, height / rows)))
    gap, edge = round(side * rng.uniform(0.02, 0.1)), round(side * rng.uniform(0.03, 0.3))
    panel = _texture(rng, chosen, columns, side, gap, edge)
    corners = np.array([[0, 0], [panel.width, 0], [panel.width, panel.height], [0, panel.height]], dtype=np.float64)
    placed = _placed(rng, corners, width, height)
    back = _homography(placed, corners)
    picture = panel.transform(
        (width, height),
        Image.Transform.PERSPECTIVE,
        (back / back[2, 2]).ravel()[:8].tolist(),
        Image.Resampling.BICUBIC,
        fillcolor=int(rng.integers(0, 14)),
    )
    forth = _homography(corners, placed)
    objects = []
    for i, cell in enumerate(chosen):
        row, column = divmod(i, columns)
        x, y = edge + column * (side + gap), edge + row * (side + gap)
        whole = _mapped(forth, np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]], dtype=np.float64))
        polygon = _clipped(whole, width, height).round(2)
        area, visible = _area(polygon), _area(polygon) / _area(whole)
        if visible < LEAST_SHARE or np.ptp(polygon, axis=0).min() < LEAST_SIDE:
            continue
        x1, y1, x2, y2 = np.concatenate([polygon.min(axis=0), polygon.max(axis=0)]).tolist()
        objects.append(
            {
                "category_id": 2 if cell.probability >= 0.5 else 1,
                "bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
                "segmentation": [polygon.ravel().tolist()],
                "area": round(area, 2),
                "iscrowd": 0,
                "cell": cell.path.name,
                "visible": round(visible, 3),
            }
        )
    return _lit(rng, picture), objects


def _write_split(folder: Path, name: str, number: int, seed: int, done: Callable[[], None], **of_panel: Any) -> None:
    """The pictures of a split and its annotation file."""
    test = name == "test"
    pool = [cell for cell in cells() if cell.test == test]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / name).mkdir()
    for i in range(1, number + 1):
        # Of the panel's own numbers, so that more panels begin with the same ones.
        picture, objects = compose_panel(np.random.default_rng((seed, int(test), i)), pool, **of_panel)
        file_name = f"{i:05d}.png"
        picture.save(folder / name / file_name)
        images.append({"id": i, "file_name": file_name, "width": picture.width, "height": picture.height})
        annotations += [{"id": len(annotations) + k, "image_id": i, **one} for k, one in enumerate(objects, start=1)]
        done()
    content = {
        "info": {
            "description": f"Solar panels composed from the {'test' if test else 'training'} cells of ELPV",
            "contributor": "Deitsch et al., Solar Energy 185, 2019 (the cells)",
            "seed": seed,
        },
        "licenses": [{"id": 1, "name": "CC BY-NC-SA 4.0", "url": "https://creativecommons.org/licenses/by-nc-sa/4.0/"}],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(TWO_CLASSES, start=1)],
    }
    file = folder / "annotations" / f"instances_{name}.json"
    file.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def write_panels(
    out: Path,
    *,
    train: int = 400,
    test: int = 100,
    seed: int = 0,
    size: int = 480,
    most: int = 6,
    done: Callable[[], None] = lambda: None,
) -> None:
    """Write `train/`, `test/` and `annotations/instances_{train,test}.json` into a new or empty folder.

    Training panels show training cells only, test panels test cells only. The same arguments give the same bytes.

    Args:
        out: The folder, which is whole or not there.
        train: Training panels.
        test: Test panels.
        seed: Of everything that is drawn.
        size: Longer side of the pictures in px.
        most: Cells along a side of a panel at most.
        done: Called after each picture.

    Raises:
        InputError: If `out` is not empty or cannot be written, a number does not fit, or `elpv-dataset` is missing.
    """
    if train < 1 or test < 1:
        raise InputError(f"--train {train} --test {test}: give one panel or more for each")
    if seed < 0:
        raise InputError(f"--seed {seed}: must be 0 or more")
    if not 2 <= most <= 12:
        raise InputError(f"--cells {most}: must lie in 2 to 12")
    if not 32 * most <= size <= 4096:
        raise InputError(f"--size {size}: must lie in {32 * most} to 4096 px, for cells of 32 px or more")
    out = out.absolute()
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"--out {out}: is not an empty folder; give a new one, or empty it")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".writing-") as aside:
            folder = Path(aside) / "panels"
            (folder / "annotations").mkdir(parents=True)
            for name, number in (("train", train), ("test", test)):
                _write_split(folder, name, number, seed, done, size=size, most=most)
            os.replace(folder, out)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror or error})") from error
