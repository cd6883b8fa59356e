"""The reports of several experiments in one folder, without the runs, and a page that leads to them."""

import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from ..benchmark.report import markdown_table
from ..errors import InputError
from ..files import save_small, write_text
from ..train.progress import say_time
from .catalogue import EXPERIMENTS
from .folder import ExperimentFolder
from .report import verdict

__all__ = ["publish"]

INTRODUCTION = """# The paper's claims, tried

Each report holds the claim, what the data show and what they cannot show, accuracies and costs, and the command that
made it. `patnet experiment list` lists all experiments; `patnet experiment report` writes this page."""


def publish(folder: str | Path, out: str | Path) -> Path:
    """Copy the reports of the experiments in a folder, and write `results.md`, a table of what they found.

    Args:
        folder: Whose folders are experiments; others are passed over.
        out: Takes `NAME/report.md` with its pictures and `NAME/results.json`; what else is in it stays.

    Returns:
        The page.

    Raises:
        InputError: If there is no experiment with a report, one is damaged, or `out` cannot be written.
    """
    found = {path.parent: _results(path) for path in sorted(Path(folder).glob("*/results.json"))}
    order = list(EXPERIMENTS)
    found = dict(sorted(found.items(), key=lambda entry: order.index(entry[1]["experiment"])))
    if not found:
        raise InputError(f"{folder}: none of its folders is an experiment with a report; give their common folder")
    rows = []
    try:
        for path, results in found.items():
            source, target = ExperimentFolder(path), Path(out) / path.name
            target.mkdir(parents=True, exist_ok=True)
            for file in source.shown():
                _copy(file, target / file.name)
            shutil.rmtree(target / "analysis", ignore_errors=True)
            if (path / "analysis").is_dir():
                shutil.copytree(path / "analysis", target / "analysis", copy_function=_copy)
            rows.append(_row(path.name, results))
        headings = ["experiment", "claim", "what the data show", "runs", "time of training"]
        page = Path(out) / "results.md"
        write_text(page, "\n".join([INTRODUCTION, "", *markdown_table(headings, rows, left=5), ""]))
    except OSError as error:
        raise InputError(f"{error.filename or out}: cannot be copied ({error.strerror})") from error
    return page


def _copy(file: str | Path, target: str | Path) -> None:
    """Copy a file; drawings are made smaller."""
    if Path(file).suffix == ".png":
        with Image.open(file) as picture:
            save_small(picture, Path(target))
    else:
        shutil.copyfile(file, target)


def _results(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found["claim"], found["runs"], found["costs"], found["finding"], EXPERIMENTS[found["experiment"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: is damaged; the experiment's command writes it anew") from error
    return found


def _row(name: str, results: dict[str, Any]) -> list[str]:
    done = [run for run in results["runs"] if run["top1"] is not None]
    seconds = sum(run["training_s"] or 0 for run in done)
    ran = f"{len(done)} of {len(results['runs'])}" if results["runs"] else "cost alone"
    return [f"[{name}]({name}/report.md)", results["claim"], verdict(results), ran, say_time(seconds) if done else ""]
