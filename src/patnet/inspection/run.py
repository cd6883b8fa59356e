"""Looking at pictures in files with the network of a run: sheets, single panels and arrays in a folder."""

import io
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from ..data import eval_transform, read_image, walk_pictures
from ..deploy.load import EXPORTED, LoadedNetwork, load_network
from ..errors import InputError, nearest
from ..files import save_figure, write_bytes
from . import figures
from .grad_cam import grad_cam
from .network import BlockShares, Inspection, inspect_network
from .position import draw_position, position_maps

__all__ = ["ARRAYS", "PANELS", "arrays_of", "inspect_pictures"]

ARRAYS = ("npz", "json")


class _Looked:
    """A picture that was looked at, and what its panels are drawn from."""

    def __init__(
        self, network: LoadedNetwork, file: Path, position: tuple[int, int] | None, target: int | None, with_cam: bool
    ) -> None:
        config = network.data_config
        pixels = eval_transform(config)(read_image(file, "L" if config["input_size"][0] == 1 else "RGB"))
        self.file, self.names, self.position = file, network.class_names, position
        self.found: Inspection = inspect_network(network.model, pixels.unsqueeze(0))
        self.target = int(self.found.logits.argmax()) if target is None else target
        self.notes: list[str] = []
        self.cam: np.ndarray | None = None
        if with_cam:
            try:
                self.cam = grad_cam(network.model, pixels.unsqueeze(0), self.target)
            except InputError as error:
                self.notes.append(str(error)[:1].upper() + str(error)[1:] + ".")
        mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
        seen = (255 * (pixels * std + mean)).round().clamp(0, 255).byte().permute(1, 2, 0)
        self.picture = seen.expand(-1, -1, 3).numpy() if seen.shape[2] == 1 else seen[:, :, :3].numpy()

    def cam_or_error(self) -> np.ndarray:
        if self.cam is None:
            raise InputError(" ".join(self.notes))
        return self.cam

    def sheet(self) -> Figure:
        likeliest = self.names[int(self.found.logits.argmax())]
        return figures.draw_sheet(
            self.found,
            self.picture,
            self.names,
            cam=self.cam,
            cam_of=self.names[self.target],
            position=self.position,
            title=f"{self.file.name}: {likeliest}",
            notes=self.notes,
        )


# A panel is drawn from what was found of a picture.
PANELS: dict[str, Callable[[_Looked], Figure]] = {
    "sheet": _Looked.sheet,
    "cam": lambda p: figures.draw_grad_cam(p.picture, p.cam_or_error(), p.names[p.target]),
    "spatial": lambda p: figures.draw_spatial_gates(p.found, p.picture),
    "channel": lambda p: figures.draw_channel_gates(p.found),
    "attention": lambda p: figures.draw_attention(p.found, p.picture, p.position),
    "shares": lambda p: figures.draw_shares(p.found),
}
# Of the network, not of a picture.
POSITION = "position"


def arrays_of(inspection: Inspection, cam: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """All numbers under flat names: what it is, a dot, and the block's label.

    Shares of blocks are arrays over the blocks that `blocks` labels, NaN where a block has no such gates.
    """
    arrays = {"logits": inspection.logits}
    if cam is not None:
        arrays["grad_cam"] = cam
    arrays |= {f"spatial_gate.{label}": gate for label, gate in inspection.spatial_gates.items()}
    for label, gates in inspection.channel_gates.items():
        arrays |= {f"channel_{name}.{label}": value for name, value in asdict(gates).items()}
    arrays |= {f"attention.{label}": weights for label, weights in inspection.attention.items()}
    if inspection.shares:
        arrays["blocks"] = np.array(list(inspection.shares))
        for name in (f.name for f in fields(BlockShares)):
            values = [getattr(block, name) for block in inspection.shares.values()]
            arrays[f"shares.{name}"] = np.array([math.nan if v is None else v for v in values])
    return arrays


def _as_json(arrays: dict[str, np.ndarray]) -> bytes:
    """The arrays as nested lists; JSON has no NaN, so null stands for it."""
    listed = {
        name: [None if isinstance(v, float) and math.isnan(v) else v for v in values.tolist()]
        for name, values in arrays.items()
    }
    return (json.dumps(listed) + "\n").encode()


def _as_npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _load(run: str | Path, which: str, size: Sequence[int] | None) -> LoadedNetwork:
    if Path(run).suffix in EXPORTED and not Path(run).is_dir():
        raise InputError(
            f"{run}: an exported file has no parts left to look into; give the run or the checkpoint that it came from"
        )
    network = load_network(run, which)
    if size is not None:
        if len(size) > 2 or min(size) < 1:
            raise InputError(f"--size {' '.join(map(str, size))}: give a side, or a height and a width, in px")
        height, width = size[0], size[-1]
        network.data_config["input_size"] = (network.data_config["input_size"][0], height, width)
    return network


def _class_number(name: str | None, names: Sequence[str]) -> int | None:
    if name is not None and name not in names:
        raise InputError(f"--target {name}: no class of this network{nearest(name, names)}")
    return None if name is None else list(names).index(name)


def inspect_pictures(
    run: str | Path,
    images: Sequence[str],
    out: str | Path,
    *,
    panels: Sequence[str] = ("sheet",),
    arrays: str | None = None,
    position: tuple[int, int] | None = None,
    target: str | None = None,
    size: Sequence[int] | None = None,
    which: str = "best",
) -> tuple[list[dict[str, Any]], list[str]]:
    """Look at pictures with the network of a run, and draw what there is to be seen.

    Args:
        run: A run folder, or any checkpoint of a classifier.
        images: Files, folders and glob patterns.
        out: Folder for the files: `NAME-sheet.png`, `NAME-attention.png` ... of each picture `NAME`, and
            `position.png`, the learned relative positions, of the network.
        panels: Names in `PANELS`, and `"position"`.
        arrays: Write the numbers too, `"npz"` or `"json"`; see `arrays_of`.
        position: Row and column of the cell that attention is drawn from, from 0 at the upper left of the last block's
            map; the cell that is attended to most if None.
        target: Class that Grad-CAM is of; the likeliest if None.
        size: Side, or height and width, to look at the pictures in, in px; the training's if None.
        which: `"best"` or `"last"` weights of a run folder.

    Returns:
        For each readable picture `path`, `label`, `probability`, the `files` written, the `seconds` that it took, and
        `missing`, a sentence for each thing that is not there; and a sentence for each picture that cannot be read.

    Raises:
        InputError: If the checkpoint cannot be used or looked into, a name or the position fits nothing, there is
            nothing of what `panels` asks for, or the folder cannot be written.
    """
    files = list(walk_pictures(images))
    for panel in panels:
        if panel not in PANELS and panel != POSITION:
            known = [*PANELS, POSITION]
            raise InputError(f"--panels {panel}: there are {', '.join(known)}{nearest(panel, known)}")
    folder = Path(out)
    network = _load(run, which, size)
    number = _class_number(target, network.class_names)
    with_cam = arrays is not None or any(panel in panels for panel in ("sheet", "cam"))
    results: list[dict[str, Any]] = []
    unreadable: list[str] = []
    taken: set[str] = set()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        console = Console(stderr=True)
        silent = len(files) < 2 or not console.is_terminal
        for file in track(files, "Pictures", console=console, transient=True, disable=silent):
            start = time.perf_counter()
            try:
                looked = _Looked(network, file, position, number, with_cam)
            except InputError as error:
                if not str(error).startswith(f"{file}: "):  # it is not the file that is wrong
                    raise
                unreadable.append(str(error))
                continue
            stem = _free_name(file.stem, taken)
            results.append(_write(looked, folder, stem, panels, arrays, set(files)))
            if POSITION in panels and len(results) == 1:
                _draw_position(network, looked, folder, results[0])
            results[-1]["seconds"] = round(time.perf_counter() - start, 2)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    asked = [panel for panel in panels if panel != "sheet"]
    if results and asked and not any(result["files"] for result in results):
        raise InputError(f"nothing to draw of {', '.join(asked)}: {' '.join(results[0]['missing'])}")
    return results, unreadable


def _free_name(stem: str, taken: set[str]) -> str:
    """`stem`, or with a number where another picture has it already."""
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name


def _write(
    looked: _Looked, folder: Path, stem: str, panels: Sequence[str], arrays: str | None, pictures: set[Path]
) -> dict[str, Any]:
    """Draw the panels and write the arrays of a picture; say what was made."""
    found = looked.found
    powers = np.exp(found.logits.astype(np.float64) - found.logits.max())
    best = int(found.logits.argmax())
    missing = [*found.missing, *looked.notes]
    written: list[str] = []
    for panel in panels:
        file = folder / f"{stem}-{panel}.png"
        if panel == POSITION:
            continue
        if file in pictures:
            raise InputError(f"--out {folder}: {file.name} there is one of the pictures; give another folder")
        try:
            figure = PANELS[panel](looked)
        except InputError as error:
            if looked.position is not None and found.attention:
                raise
            missing += [] if any(said in str(error) for said in missing) else [str(error)]
            continue
        written.append(str(save_figure(figure, file)))
    if arrays is not None:
        file = folder / f"{stem}.{arrays}"
        write_bytes(file, (_as_npz if arrays == "npz" else _as_json)(arrays_of(found, looked.cam)))
        written.append(str(file))
    return {
        "path": str(looked.file),
        "label": looked.names[best],
        "probability": float(powers[best] / powers.sum()),
        "files": written,
        "missing": missing,
    }


def _draw_position(network: LoadedNetwork, looked: _Looked, folder: Path, result: dict[str, Any]) -> None:
    """The relative positions, over the map of the last block's attention."""
    try:
        if not looked.found.attention:
            raise InputError("the network has no relative positions, for no mixer of it is PAT_sf")
        rows, columns = list(looked.found.attention.values())[-1].shape[1:3]
        figure = draw_position(position_maps(network.model, rows, columns))
    except InputError as error:
        result["missing"].append(f"{str(error)[:1].upper()}{str(error)[1:]}.")
        return
    result["files"].append(str(save_figure(figure, folder / "position.png")))
