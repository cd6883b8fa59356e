"""`patnet runs compare`: the options and results in which runs differ."""

import json as jsonlib
import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import check_figure, save_figure
from ..train.callbacks import format_duration
from ..train.figures import draw_comparison
from ..train.summary import RunSummary, differing_options, summarise_run, tested_top1
from .tables import print_lines, print_table

SUMMARY = "Compare runs: the options that differ, the best results, and the curves in one figure."
EXAMPLES = """Example:
  patnet runs compare runs/first runs/wide --out first_or_wide.png"""
EXTRA = ("train", ("lightning", "jsonargparse", "matplotlib", "rich", "filelock"))
POSITIONAL = {"runs": "+"}


def run(runs: list[str], *, out: str = "comparison.png", json: bool = False) -> int:
    """Compare runs.

    Args:
        runs: Run directories, two or more.
        out: PNG, PDF or SVG file for the curves.
        json: Print JSON.
    """
    if len({Path(path).resolve() for path in runs}) < max(2, len(runs)):
        raise InputError("compare: give two runs or more, each once, as in patnet runs compare runs/first runs/second")
    check_figure(out, "--out")
    summaries = [summarise_run(path) for path in runs]
    for summary in summaries:
        if summary.reason:
            raise InputError(summary.reason)
    names = _short_names(runs)
    options = differing_options([summary.config for summary in summaries])
    results = [_results(summary) for summary in summaries]
    histories = {name: summary.history for name, summary in zip(names, summaries, strict=True)}
    save_figure(draw_comparison(histories, "Comparison of runs; dots: best epochs"), Path(out))
    if json:
        rows = [{"run": path, **result} for path, result in zip(runs, results, strict=True)]
        print(jsonlib.dumps({"runs": rows, "options": options, "curves": out}, indent=2, default=str))
        return 0
    lines: list[list[Any]] = []
    for option, values in options.items():
        flag = f"--{option.replace('_', '-') if '.' not in option else option}"
        lines.append([flag, *("not set" if value is None else value for value in values)])
    for label in results[0]:
        if any(result[label] is not None for result in results):
            lines.append([label, *(_cell(label, result[label]) for result in results)])
    print_table(["", *names], lines, left=1 + len(names))
    print_lines(f"Curves {out}")
    return 0


def _short_names(paths: list[str]) -> list[str]:
    """The paths without their common part."""
    resolved = [Path(path).resolve() for path in paths]
    common = Path(os.path.commonpath(resolved))
    return paths if common in resolved else [str(path.relative_to(common)) for path in resolved]


def _results(summary: RunSummary) -> dict[str, Any]:
    return {
        "state": summary.state,
        "epochs": summary.epochs,
        "best epoch": summary.best.get("epoch"),
        "validation top-1": summary.best_top1,
        "validation AP": summary.best_ap,
        "validation loss": summary.best.get("val_loss"),
        "training loss": summary.best.get("train_loss"),
        "test top-1": tested_top1(summary.run),
        "seconds": summary.seconds,
        "images/s": summary.history[-1].get("images_per_s") if summary.history else None,
    }


def _cell(label: str, value: Any) -> str:
    if value is None:
        return "none"
    if label.endswith("top-1"):
        return f"{100 * value:.2f} %"
    if label.endswith(("loss", "AP")):
        return f"{value:.3f}"
    return format_duration(value) if label == "seconds" else str(value)
