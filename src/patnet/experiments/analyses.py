"""What is done with the trained networks of an experiment beyond comparing them: see `Experiment.analyse`.

Each writes all its numbers as JSON and its pictures into the folder `analysis` of the experiment, for the network of
the first seed.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from ..data import eval_transform
from ..data.loading import eval_loader
from ..errors import InputError
from ..files import write_text
from ..inspection import position
from ..nn import RelativePosition
from ..train.figures import save_figure
from ..train.fit import open_run_data
from ..train.inference import load_trained
from . import gaussianity, redundancy

__all__ = ["Analysis", "analyse_gaussianity", "analyse_position", "analyse_redundancy"]

Runs = Mapping[str, Sequence[Path]]


class Analysis(NamedTuple):
    """What was found.

    Attributes:
        finding: In a sentence.
        lines: In Markdown, with the pictures.
    """

    finding: str
    lines: list[str]


def _open(run: Path) -> tuple[Any, Any, tuple[int, ...]]:
    """The network of a run, batches of the pictures that it was tested on, and their `(C, H, W)`."""
    trained = load_trained(run)
    assert trained.run is not None
    splits = open_run_data(trained.run.read_config())
    pictures: Any = splits.val if splits.test is None else splits.test
    pictures.transform = eval_transform(trained.data_config)
    return trained.model, eval_loader(pictures, 64, num_workers=0), tuple(trained.data_config["input_size"])


def _write(folder: Path, name: str, result: Mapping[str, Any], figures: Mapping[str, Figure]) -> list[str]:
    """The files of an analysis, and the lines that show its pictures."""
    target = folder / "analysis"
    target.mkdir(exist_ok=True)
    write_text(target / f"{name}.json", json.dumps(result) + "\n")
    lines = []
    for kind, figure in figures.items():
        file = save_figure(figure, target / f"{name}-{kind}.png")
        lines += ["", f"![{name}, {kind}](analysis/{file.name})"]
    return lines


def _first(runs: Runs) -> tuple[str, Path]:
    """The first configuration, and its run with the first seed."""
    name = next(iter(runs))
    return name, runs[name][0]


def analyse_gaussianity(folder: Path, runs: Runs) -> Analysis:
    """How near to normal the values of the first configuration are."""
    name, run = _first(runs)
    model, pictures, _ = _open(run)
    result = gaussianity.gaussianity(model, pictures)
    figures = {"moments": gaussianity.draw_moments(result), "histograms": gaussianity.draw_histograms(result)}
    drawn = _write(folder, "gaussianity", result, figures)
    lines = [f"Of {name}, {run.name}.", "", *gaussianity.to_markdown(result).splitlines(), *drawn]
    return Analysis(gaussianity.finding(result), lines)


def analyse_redundancy(folder: Path, runs: Runs) -> Analysis:
    """How alike the channels of the first configuration are."""
    name, run = _first(runs)
    model, pictures, _ = _open(run)
    result = redundancy.redundancy(model, pictures)
    figures = {"rank": redundancy.draw_redundancy(result), "correlations": redundancy.draw_correlations(result)}
    drawn = _write(folder, "redundancy", result, figures)
    lines = [f"Of {name}, {run.name}.", "", *redundancy.to_markdown(result).splitlines(), *drawn]
    return Analysis(redundancy.finding(result), lines)


def analyse_position(folder: Path, runs: Runs) -> Analysis:
    """What the relative positions of every configuration that has them learned, over the offsets of its last map."""
    lines: list[str] = []
    spreads: list[str] = []
    for name, paths in runs.items():
        model, pictures, (_, height, width) = _open(paths[0])
        if not any(isinstance(module, RelativePosition) for module in model.modules()):
            continue
        result = position.position_maps(model, height // 32, width // 32, pictures=pictures)
        drawn = _write(folder, f"position-{name}", result, {"maps": position.draw_position(result)})
        spreads.append(f"{position.largest_spread(result):.2g} ({name})")
        lines += [f"Of {name}, {paths[0].name}.", "", *position.to_markdown(result).splitlines(), *drawn, ""]
    if not lines:
        raise InputError("no configuration has relative positions")
    return Analysis(f"Between two offsets what was learned differs by at most {', '.join(spreads)}.", lines)
