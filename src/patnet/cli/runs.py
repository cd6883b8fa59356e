"""`patnet runs`: the runs in a folder."""

import json as jsonlib
import time
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..train.callbacks import format_duration
from ..train.summary import RunSummary, find_runs

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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("state\ntime", no_wrap=True)
    table.add_column("model\ndata", overflow="fold", min_width=9)
    table.add_column("epochs", justify="right", no_wrap=True)
    table.add_column("best\nat epoch", justify="right", no_wrap=True)
    table.add_column("started\nlast change", no_wrap=True)
    for s in found:
        table.add_row(
            escape(s.run),
            f"[{STYLES[s.state]}]{s.state}[/]\n{format_duration(s.seconds) if s.seconds else ''}",
            escape(f"{s.model or ''}\n{s.data or ''}"),
            f"{s.epochs}/{s.of}" if s.of is not None else "",
            f"{_best(s)}\n{s.best_epoch or ''}",
            f"{_clock(s.started)}\n{_clock(s.changed)}",
        )
    console = Console()
    console.print(table)
    for s in found:
        if s.reason:
            console.print(f"damaged: {s.reason}", highlight=False, soft_wrap=True, markup=False)
    return 0


def _best(summary: RunSummary) -> str:
    if summary.best_ap is not None:
        return f"AP {summary.best_ap:.3f}"
    return "" if summary.best_top1 is None else f"{100 * summary.best_top1:.1f} %"


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _as_json(summary: RunSummary) -> dict[str, Any]:
    fields = asdict(summary)
    del fields["config"], fields["history"]
    for name in ("started", "changed"):
        if fields[name] is not None:
            fields[name] = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(fields[name]))
    return fields
