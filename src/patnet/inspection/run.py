"""Inspection of image files: sheets, single panels and arrays in a folder."""

import json
import math
import time
from collections.abc import Sequence, Set
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ..data import UnreadableImage, eval_transform, find_images, read_image
from ..deploy import Exported
from ..errors import InputError, nearest
from ..files import atomic_write, distinct_stems
from ..models import Loaded
from .figures import PANELS, View, draw
from .grad_cam import grad_cam
from .network import BlockShares, Inspection, inspect_network

NAMES = ("sheet", *PANELS)


def rgb_of(loaded: Loaded, pixels: Tensor) -> np.ndarray:
    """Preprocessed pixels `(in_chans, H, W)` as an image to look at, `(H, W, 3)` in [0, 255]."""
    mean, std = (torch.tensor(loaded.data_config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    shown = (255 * (pixels * std + mean)).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return np.repeat(shown, 3, axis=2) if shown.shape[2] == 1 else shown[:, :, :3]


def predicted_class(loaded: Loaded, found: Inspection) -> int:
    """The class of the image, by the decision threshold of a class if there is one."""
    return int(loaded.order(torch.from_numpy(found.probabilities)[None])[0, 0])


def view_of(
    loaded: Loaded,
    image: Image.Image,
    *,
    with_cam: bool = False,
    target: int | None = None,
    position: tuple[int, int] | None = None,
    title: str = "",
) -> View:
    """Inspect a network on an image of the mode that it takes, with the preprocessing of `loaded`.

    If Grad-CAM is wanted and not possible, a note says why. The predicted class is added to the title.

    Raises:
        InputError: If the network does not take images of this size.
    """
    pixels = eval_transform(loaded.data_config)(image)
    found = inspect_network(loaded.model, pixels[None])
    predicted, cam, notes = predicted_class(loaded, found), None, []
    target = predicted if target is None else target
    if with_cam:
        try:
            cam = grad_cam(loaded.model, pixels[None], target)
        except InputError as error:
            notes.append(f"{str(error)[:1].upper()}{str(error)[1:]}.")
    title = title and f"{title}: {loaded.class_names[predicted]}"
    return View(found, rgb_of(loaded, pixels), loaded.class_names, cam, target, position, title, notes)


def arrays_of(inspection: Inspection, cam: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """All arrays by a flat name: what it is, a dot, and the block's label.

    Shares are arrays over the blocks that `blocks` names, NaN for a block without such gates.
    """
    arrays = {"logits": inspection.logits} | ({} if cam is None else {"grad_cam": cam})
    arrays |= {f"spatial_gate.{label}": gate for label, gate in inspection.spatial_gates.items()}
    for label, gates in inspection.channel_gates.items():
        arrays |= {f"channel_{name}.{label}": value for name, value in vars(gates).items()}
    arrays |= {f"attention.{label}": weights for label, weights in inspection.attention.items()}
    if inspection.shares:
        arrays["blocks"] = np.array(list(inspection.shares))
        for name in (f.name for f in fields(BlockShares)):
            values = [getattr(block, name) for block in inspection.shares.values()]
            arrays[f"shares.{name}"] = np.array([math.nan if value is None else value for value in values])
    return arrays


def inspect_images(
    loaded: Loaded,
    images: Sequence[str],
    out: Path,
    *,
    panels: Sequence[str] = ("sheet",),
    arrays: str | None = None,
    position: tuple[int, int] | None = None,
    target: str | None = None,
    img_size: Sequence[int] | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Inspect a classifier on image files, folders and glob patterns, and write figures and arrays to the folder `out`.

    The options are those of `patnet inspect`; arrays are described at `arrays_of`.

    Returns:
        For each readable image: `path`, `label`, `probability`, written `files`, `missing`, a line for each thing that
        the network does not have, and `seconds`. And an error message for each image that cannot be read.

    Raises:
        InputError: If the network cannot be inspected, a name or the position is unknown, the network has nothing of
            `panels`, or a file cannot be written.
    """
    loaded = _checked(loaded, panels, target, img_size)
    options: dict[str, Any] = {
        "with_cam": arrays is not None or "sheet" in panels or "cam" in panels,
        "target": None if target is None else loaded.class_names.index(target),
        "position": position,
    }
    files = list(find_images(images))
    inputs = {file.resolve() for file in files}
    results: list[dict[str, Any]] = []
    unreadable: list[str] = []
    console = Console(stderr=True)
    hidden = len(files) < 2 or not console.is_terminal
    named = list(zip(files, distinct_stems(files), strict=True))
    for file, stem in track(named, "Images", console=console, transient=True, disable=hidden):
        start = time.perf_counter()
        try:
            image = read_image(file, "L" if loaded.data_config["input_size"][0] == 1 else "RGB")
        except UnreadableImage as error:
            unreadable.append(str(error))
            continue
        view = view_of(loaded, image, title=file.name, **options)
        best = predicted_class(loaded, view.inspection)
        result = {
            "path": str(file),
            "files": _write(view, out / stem, panels, arrays, inputs),
            "label": loaded.class_names[best],
            "probability": float(view.inspection.probabilities[best]),
            "missing": [*view.inspection.missing, *view.notes],
        }
        results.append(result | {"seconds": round(time.perf_counter() - start, 2)})
    if results and not any(result["files"] for result in results):
        raise InputError(f"nothing to draw of {', '.join(panels)}: {' '.join(results[0]['missing'])}")
    return results, unreadable


def _checked(loaded: Loaded, panels: Sequence[str], target: str | None, img_size: Sequence[int] | None) -> Loaded:
    """The network with the input size that `img_size` says, after a check of the options."""
    if isinstance(loaded.model, Exported):
        raise InputError(f"{loaded.file}: an exported file hides its layers; give the run directory or checkpoint")
    for panel in panels:
        if panel not in NAMES:
            raise InputError(f"--panels {panel}: there are {', '.join(NAMES)}{nearest(panel, NAMES)}")
    if target is not None and target not in loaded.class_names:
        raise InputError(f"--target {target}: no class of this network{nearest(target, loaded.class_names)}")
    if img_size is None:
        return loaded
    if len(img_size) > 2 or min(img_size) < 1:
        raise InputError(f"--img-size {' '.join(map(str, img_size))}: give one side, or height and width, in px")
    size = (loaded.data_config["input_size"][0], img_size[0], img_size[-1])
    return replace(loaded, data_config={**loaded.data_config, "input_size": size})


def _write(view: View, stem: Path, panels: Sequence[str], arrays: str | None, inputs: Set[Path]) -> list[str]:
    """Draw and write the panels that the network has, and the arrays; in JSON, arrays are lists and NaN is null."""
    outputs: dict[Path, Any] = {
        Path(f"{stem}-{panel}.png"): drawn for panel in panels if (drawn := draw(panel, view)) is not None
    }
    if arrays is not None:
        outputs[Path(f"{stem}.{arrays}")] = arrays_of(view.inspection, view.cam)
    for path, content in outputs.items():
        if path.resolve() in inputs:
            raise InputError(f"--out {path.parent}: {path.name} is one of the images; choose another folder")
        with atomic_write(path, "choose another --out") as temporary:
            if isinstance(content, Image.Image):
                content.save(temporary)
            elif arrays == "npz":
                np.savez_compressed(temporary, **content)
            else:
                lists = {
                    name: [None if isinstance(v, float) and math.isnan(v) else v for v in values.tolist()]
                    for name, values in content.items()
                }
                temporary.write_text(json.dumps(lists) + "\n", encoding="utf-8")
    return [str(path) for path in outputs]
