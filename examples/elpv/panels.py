"""Compose images of solar panels from ELPV's solar cells, with a box and a mask for each cell, in COCO's format."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from rich.console import Console

from patnet import InputError
from patnet.cli import main
from patnet.data.elpv import TWO_CLASSES, SolarCell, solar_cells
from patnet.files import atomic_directory
from patnet.train.callbacks import progress_bar
from patnet.train.config import NonNegativeInt, PositiveInt

NAME = "examples/elpv/panels.py"
SUMMARY = __doc__
EXAMPLES = """Examples:
  python examples/elpv/panels.py --out runs/panels
  python examples/elpv/panels.py --out few --train 16 --test 4 --seed 1 --size 320 --cells 4
  patnet data check runs/panels --split train

Training panels show training cells only, test panels test cells only. The same options give the same files."""
EXTRA = ("elpv", ("elpv_dataset", "jsonargparse", "rich"))

MIN_VISIBLE, MIN_SIDE = 0.1, 8.0  # share of a cell's area, and side of its box in px, below which it is no object


def _shape(rng: np.random.Generator, size: int, max_cells: int) -> tuple[int, int, int, int]:
    """Width and height of the image in px, and the panel's columns and rows, with a similar aspect ratio."""
    short = int(size * rng.uniform(0.62, 1.0))
    width, height = (size, short) if rng.random() < 0.7 else (short, size)
    columns = int(rng.integers(2, max_cells + 1))
    rows = int(np.clip(round(columns * height / width * rng.uniform(0.75, 1.3)), 2, max_cells))
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
    """The panel's corners in the image: rotated, in perspective, complete or cut off by the borders."""
    centred = corners - corners.mean(axis=0)
    angle = np.deg2rad(rng.uniform(-12, 12))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shown = centred * (1 + rng.uniform(-0.06, 0.06, (4, 2))) @ rotation.T
    fitting = (np.array([width, height]) / np.ptp(shown, axis=0)).min()
    cut = rng.random() < 0.4
    scale = fitting * (rng.uniform(1.1, 1.5) if cut else rng.uniform(0.82, 0.98))
    free = np.array([width, height]) - np.ptp(shown, axis=0) * scale
    offset = np.where(free > 0, free * rng.uniform(0, 1, 2), free * rng.uniform(0.1, 0.9, 2))
    return (shown - shown.min(axis=0)) * scale + offset


def _clipped(polygon: np.ndarray, width: int, height: int) -> np.ndarray:
    """The part of a convex polygon `(n, 2)` inside the image (Sutherland and Hodgman's algorithm)."""
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


def _chosen(rng: np.random.Generator, pool: Sequence[SolarCell], count: int) -> list[SolarCell]:
    """Solar cells of one module type, with a random share of defective ones."""
    module = "mono" if rng.random() < 0.4 else "poly"
    defective = rng.random(count) < rng.uniform(0.1, 0.6)
    parts = [[c for c in pool if c.module == module and (c.probability >= 0.5) == wrong] for wrong in (False, True)]
    if not all(parts):
        raise InputError(f"data set elpv: has no functional or no defective {module} cells to compose panels of")
    orders = [rng.permutation(len(part)) for part in parts]
    return [parts[wrong][orders[wrong][i % len(parts[wrong])]] for i, wrong in enumerate(defective.astype(int))]


def _texture(
    rng: np.random.Generator, chosen: Sequence[SolarCell], columns: int, side: int, gap: int, edge: int
) -> Image.Image:
    """The panel from the front: cells of `side` px with gaps of `gap` px, in a frame of `edge` px."""
    rows = len(chosen) // columns
    width, height = (n * (side + gap) - gap + 2 * edge for n in (columns, rows))
    panel = Image.new("L", (width, height), int(rng.integers(6, 40)))
    upright = rng.random() < 0.5
    for i, cell in enumerate(chosen):
        with Image.open(cell.path) as opened:
            image = opened.convert("L").resize((side, side), Image.Resampling.BOX)
        if upright:
            image = image.transpose(Image.Transpose.ROTATE_90)
        for flip in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
            if rng.random() < 0.5:
                image = image.transpose(flip)
        row, column = divmod(i, columns)
        panel.paste(image, (edge + column * (side + gap), edge + row * (side + gap)))
    return panel


def _lit(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """The image with uneven light, and a camera's blur and noise."""
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.7)))
    pixels = np.asarray(image, dtype=np.float64)
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in pixels.shape), indexing="ij")
    slope, centre = rng.uniform(-0.22, 0.22, 2), rng.uniform(-0.4, 0.4, 2)
    light = 1 + slope[0] * x + slope[1] * y - rng.uniform(0, 0.16) * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2)
    noise = rng.uniform(0.5, 3.5) * rng.standard_normal(pixels.shape)
    lit = pixels * light.clip(0.3) * rng.uniform(0.75, 1.2) + noise + rng.uniform(0, 8)
    return Image.fromarray(lit.round().clip(0, 255).astype(np.uint8))


def compose_panel(
    rng: np.random.Generator, pool: Sequence[SolarCell], *, size: int = 480, max_cells: int = 6
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """A grey image of a panel of solar cells in `pool`, and its cells as COCO's annotations without ids.

    The longer side has `size` px; a side of the panel has at most `max_cells` cells. Each annotation also has the file
    name of the `cell`, and the `visible` share of its area.
    """
    width, height, columns, rows = _shape(rng, size, max_cells)
    chosen = _chosen(rng, pool, rows * columns)
    # About as many px as in the image, since the perspective transform does not smooth what it downsamples.
    side = max(16, round(1.1 * max(width / columns, height / rows)))
    gap, edge = round(side * rng.uniform(0.02, 0.1)), round(side * rng.uniform(0.03, 0.3))
    panel = _texture(rng, chosen, columns, side, gap, edge)
    corners = np.array([[0, 0], [panel.width, 0], [panel.width, panel.height], [0, panel.height]], dtype=np.float64)
    placed = _placed(rng, corners, width, height)
    back = _homography(placed, corners)
    image = panel.transform(
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
        corners_of_cell = _mapped(
            forth, np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]], dtype=np.float64)
        )
        polygon = _clipped(corners_of_cell, width, height).round(2)
        area, visible = _area(polygon), _area(polygon) / _area(corners_of_cell)
        if visible < MIN_VISIBLE or np.ptp(polygon, axis=0).min() < MIN_SIDE:
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
    return _lit(rng, image), objects


def _write_split(folder: Path, name: str, number: int, seed: int, done: Callable[[], None], **options: int) -> None:
    """The images of a split and its annotation file."""
    test = name == "test"
    pool = [cell for cell in solar_cells() if cell.test == test]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / name).mkdir()
    for i in range(1, number + 1):
        # Seeded by the panel's number, so that more panels begin with the same ones.
        image, objects = compose_panel(np.random.default_rng((seed, int(test), i)), pool, **options)
        file_name = f"{i:05d}.png"
        image.save(folder / name / file_name)
        images.append({"id": i, "file_name": file_name, "width": image.width, "height": image.height})
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
    max_cells: int = 6,
    done: Callable[[], None] = lambda: None,
) -> None:
    """Write `train/`, `test/` and `annotations/instances_{train,test}.json` into a new or empty folder.

    The folder is either complete or absent; `done` is called after each image.
    """
    if not 2 <= max_cells <= 12:
        raise InputError(f"--cells {max_cells}: must lie in 2 to 12")
    if not 32 * max_cells <= size <= 4096:
        raise InputError(f"--size {size}: must lie in {32 * max_cells} to 4096 px, for cells of 32 px or more")
    with atomic_directory(out, "choose another --out") as folder:
        (folder / "annotations").mkdir()
        for name, number in (("train", train), ("test", test)):
            _write_split(folder, name, number, seed, done, size=size, max_cells=max_cells)


def run(
    *,
    out: str,
    train: PositiveInt = 400,
    test: PositiveInt = 100,
    seed: NonNegativeInt = 0,
    size: PositiveInt = 480,
    cells: PositiveInt = 6,
) -> int:
    """Compose panels.

    Args:
        out: New directory for the panels.
        train: Number of training panels.
        test: Number of test panels.
        seed: Random seed.
        size: Longer side of the images in px.
        cells: Maximum number of cells along a side of a panel.
    """
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("composing panels", total=train + test)
        done = lambda: bar.advance(task)  # noqa: E731
        write_panels(Path(out), train=train, test=test, seed=seed, size=size, max_cells=cells, done=done)
    print(f"{train} training and {test} test panels in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(script=sys.modules[__name__]))
