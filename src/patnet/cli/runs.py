"""`patnet runs`: the runs in a folder, and how several compare."""

import json as jsonlib
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import InputError
from ..train.figures import draw_comparison, save_figure
from ..train.progress import say_time
from ..train.runs import RunSummary, differing_options, find_runs, summarise_run, tested_top1

DESCRIPTION = "List the runs in a folder with their state and best result, or compare some of them."
EPILOG = """Examples:
  patnet runs runs/
  patnet runs runs/ --json
  patnet runs compare runs/first runs/wide --out first_or_wide.png

A run is finished, running (a process trains it), interrupted (patnet train --resume goes on with it) or damaged.
compare shows the options that differ and the best results beside each other, and draws the curves into one picture.
A folder of the name compare is listed as ./compare."""

STYLES = {"finished": "green", "running": "cyan", "interrupted": "yellow", "damaged": "red"}


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "folders", nargs="+", type=str, help="Folders with runs; or the word compare and two runs or more."
    )
    parser.add_argument(
        "--out", type=str, default="comparison.png", help="PNG or PDF that compare draws the curves into."
    )
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def run(*, folders: list[str], out: str, json: bool) -> int:
    """List or compare."""
    if folders[0] == "compare":
        return _compare(folders[1:], Path(out), json)
    found = [summary for folder in folders for summary in find_runs(folder)]
    if json:
        print(jsonlib.dumps([_as_json(summary) for summary in found], indent=2))
        return 0
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("state\ntook", no_wrap=True)
    table.add_column("model\ndata", overflow="fold", min_width=9)
    table.add_column("epochs", justify="right", no_wrap=True)
    table.add_column("best\nat epoch", justify="right", no_wrap=True)
    table.add_column("started\nlast change", no_wrap=True)
    for s in found:
        table.add_row(
            escape(s.run),
            f"[{STYLES[s.state]}]{s.state}[/]\n{say_time(s.seconds) if s.seconds else ''}",
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


def _names(paths: list[str]) -> list[str]:
    """The paths without what they share at the front."""
    whole = [Path(path).resolve() for path in paths]
    shared = Path(os.path.commonpath(whole))
    return paths if shared in whole else [str(path.relative_to(shared)) for path in whole]


def _compare(paths: list[str], out: Path, json: bool) -> int:
    if len({Path(path).resolve() for path in paths}) < max(2, len(paths)):
        raise InputError("compare: give two runs or more, each once, as in patnet runs compare runs/first runs/second")
    if out.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InputError(f"--out {out}: curves are drawn into a .png, .pdf or .svg file; give such a name")
    summaries = [summarise_run(path) for path in paths]
    for summary in summaries:
        if summary.reason:
            raise InputError(summary.reason)
    names = _names(paths)
    options = differing_options([s.config for s in summaries])
    results = [
        {
            "state": s.state,
            "epochs": s.epochs,
            "best epoch": s.best_epoch,
            "validation top-1": s.best_top1,
            "validation AP": s.best_ap,
            "its validation loss": s.best.get("val_loss"),
            "its training loss": s.best.get("train_loss"),
            "test top-1": tested_top1(path),
            "seconds": s.seconds,
            "images/s": s.history[-1].get("images_per_s") if s.history else None,
        }
        for s, path in zip(summaries, paths, strict=True)
    ]
    try:
        save_figure(
            draw_comparison(
                {n: s.history for n, s in zip(names, summaries, strict=True)}, "Runs compared; dots: best epochs"
            ),
            out,
        )
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}); give another --out") from error
    if json:
        runs = [{"run": path, **result} for path, result in zip(paths, results, strict=True)]
        print(jsonlib.dumps({"runs": runs, "options": options, "curves": str(out)}, indent=2, default=str))
        return 0
    table = Table()
    table.add_column("")
    for name in names:
        table.add_column(escape(name), overflow="fold")
    for option, values in options.items():
        table.add_row(f"--{option}", *("not set" if value is None else escape(str(value)) for value in values))
    table.add_section()
    for label in results[0]:
        if label == "validation AP" and not any(result[label] for result in results):
            continue  # classifiers have none
        table.add_row(label, *(_cell(label, result[label]) for result in results))
    console = Console()
    console.print(table)
    console.print(f"Curves {out}", highlight=False, soft_wrap=True, markup=False)
    return 0


def _cell(label: str, value: Any) -> str:
    if value is None:
        return "none"
    if label.endswith("top-1"):
        return f"{100 * value:.2f} %"
    if label.endswith(("loss", "AP")):
        return f"{value:.3f}"
    return say_time(value) if label == "seconds" else str(value)
