"""`patnet runs`: the runs in a folder."""

import json as jsonlib
import time
from typing import Any

from rich.text import Text

from ..train.callbacks import format_duration
from ..train.summary import RunSummary, find_runs
from .tables import print_lines, print_table

SUMMARY = "List the runs in a folder with their state and best result."
EXAMPLES = """Examples:
  patnet runs runs/
  patnet runs runs/ --json
  patnet runs compare runs/first runs/wide --out first_or_wide.png

A run is finished, running (a process trains it), interrupted (patnet train --resume continues it) or damaged.
A folder of the name compare is listed as ./compare."""
EXTRA = ("train", ("lightning", "jsonargparse", "matplotlib", "rich", "filelock"))
POSITIONAL = {"folders": "+"}

STYLES = {"finished": "green", "running": "cyan", "interrupted": "yellow", "damaged": "red"}


def run(folders: list[str], *, json: bool = False) -> int:
    """List runs.

    Args:
        folders: Folders with runs.
        json: Print JSON.
    """
    found = [summary for folder in folders for summary in find_runs(folder)]
    if json:
        print(jsonlib.dumps([_as_json(summary) for summary in found], indent=2))
        return 0
    headings = ("run", "model\ndata", "state\ntime", "started\nlast change", "epochs", "best\nat epoch")
    rows = [
        (
            s.run,
            f"{s.model}\n{s.config.get('data', '')}",
            Text.assemble((s.state, STYLES[s.state]), f"\n{format_duration(s.seconds) if s.seconds else ''}"),
            f"{_clock(s.started)}\n{_clock(s.changed)}",
            f"{s.epochs}/{s.config['epochs']}" if s.config else "",
            f"{_best(s)}\n{s.best.get('epoch', '')}",
        )
        for s in found
    ]
    print_table(headings, rows, left=4)
    print_lines(*(f"damaged: {s.reason}" for s in found if s.reason))
    return 0


def _best(summary: RunSummary) -> str:
    if summary.best_ap is not None:
        return f"AP {summary.best_ap:.3f}"
    return "" if summary.best_top1 is None else f"{100 * summary.best_top1:.1f} %"


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _as_json(s: RunSummary) -> dict[str, Any]:
    names = ("run", "state", "reason", "epochs", "best_top1", "best_ap", "seconds")
    fields = {name: getattr(s, name) for name in names} | {"best_epoch": s.best.get("epoch")}
    fields |= {"model": s.model or None, "data": s.config.get("data"), "of": s.config.get("epochs")}
    for name, seconds in (("started", s.started), ("changed", s.changed)):
        fields[name] = seconds and time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
    return fields
