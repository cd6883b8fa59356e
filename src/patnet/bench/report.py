"""The result as JSON and CSV for programs, and as tables, Markdown and a figure for people."""

import csv
import io
import json
import os
import platform
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from .. import __version__
from ..deploy import BACKENDS
from ..files import save_figure, write_text
from ..nn.native import uses_native
from ..train.figures import COLORS

MARKERS = "osD^vP<>Xh"


def machine(device: str = "cpu") -> dict[str, Any]:
    """Device, versions and date of a measurement."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    packages = ["torch", "timm", *(p for b in BACKENDS.values() if device in b.devices for p in b.packages)]
    names = metadata.packages_distributions()  # onnxruntime may come from onnxruntime-gpu
    versions = {package: metadata.version(names[package][0]) for package in dict.fromkeys(packages) if package in names}
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **({"cuda": torch.version.cuda} if device == "cuda" else {}),
        **({"native_functions": True} if device == "cpu" and uses_native() else {}),  # see patnet.nn.use_native
        "versions": {"python": platform.python_version(), "patnet": __version__, **versions},
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
    }


def describe_machine(stated: dict[str, Any]) -> str:
    """The machine in one line."""
    gpu = "" if stated["device"] == "CPU" else f"{stated['device']} (CUDA {stated['cuda']}), "
    versions = ", ".join(f"{name} {version}" for name, version in stated["versions"].items())
    usable = stated["usable_cores"]
    cores = f"{stated['cores']} cores" + (f", pinned to {usable}" if usable < stated["cores"] else "")
    native = ", native functions" if stated.get("native_functions") else ""
    return f"{gpu}{stated['cpu']}, {cores}, {stated['instructions']}{native}; {versions}; {stated['date']}"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """The lines of a Markdown table whose first `left` columns are text, the others numbers."""
    marks = ["---" if i < left else "---:" for i in range(len(headings))]
    return [f"| {' | '.join(cells)} |" for cells in ([*headings], marks, *rows)]


def _precision(row: dict[str, Any]) -> str:
    other = row["computed_in"] not in (None, row["precision"])
    return f"{row['precision']} (computed in {row['computed_in']})" if other else row["precision"]


def _relative(row: dict[str, Any], key: str) -> str:
    found = row[key]
    return f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f}) of {row['baseline']}" if found else ""


def table(rows: Sequence[dict[str, Any]], fastest: bool = True) -> tuple[list[str], list[list[str]]]:
    """The headings and the cells of a table, three columns of text first: each model in its fastest backend, or all."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "model": lambda row: row["model"],
        "backend": lambda row: row["way"],
        "precision": _precision,
        "px": lambda row: str(row["img_size"]),
        "batch": lambda row: str(row["batch_size"]),
        "threads": lambda row: str(row["threads"]),
        "GMACs": lambda row: f"{row['gmacs']:.3f}",
        "median, ms": lambda row: f"{row['median_ms']:.2f}",
        "95 %, ms": lambda row: f"{row['p95_ms']:.2f}",
        "images/s": lambda row: f"{row['images_per_s']:.1f}",
    }
    if fastest:
        columns["next fastest"] = lambda row: f"{row['next']}, {row['next_ratio']:.2f} times" if row["next"] else ""
        columns["relative time"] = lambda row: _relative(row, "ratio_fastest")
    else:
        columns["relative time, same backend"] = lambda row: _relative(row, "ratio_same_way")
    chosen = [row for row in rows if row["fastest"] or not fastest]
    return list(columns), [[cell(row) for cell in columns.values()] for row in chosen]


METHOD = """Weights and images are random, since speed does not depend on them; int8 is calibrated with random images.
All candidates of a group of models run in the same rounds, one after the other, so that a machine whose speed drifts
treats all equally. The first table has each model in the candidate with the lowest median in these rounds, and the next
fastest one. Relative times are the median and, in parentheses, the quartiles over the rounds; below 1 the
model is faster than the one that it is compared with. The second table also compares models in the same backend."""


def to_markdown(result: dict[str, Any], figure: str | None = None) -> str:
    """The result of `measure` as a document, which links to the figure by its relative path."""
    lines = ["# Benchmarks", ""]
    if not result["complete"]:
        lines += [f"**Incomplete: {result['incomplete_because']}.**", ""]
    minutes = f"{result['seconds'] / 60:.1f} min"
    lines += [f"Measured by `{result['command']}` in {minutes} on {describe_machine(result['machine'])}.", ""]
    lines += [f"![Latency of each model]({figure})", ""] if figure else []
    lines += [METHOD, ""]
    for title, fastest in (("Each model in its fastest backend", True), ("All candidates", False)):
        lines += [f"## {title}", "", *markdown_table(*table(result["rows"], fastest), left=3), ""]
    if result["left_out"]:
        lines += ["## Left out", "", *(f"- {what}" for what in result["left_out"]), ""]
    return "\n".join(lines)


def to_csv(result: dict[str, Any]) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    rows = [{k: v["ratio"] if isinstance(v, dict) else v for k, v in row.items()} for row in result["rows"]]
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["model"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def draw(rows: Sequence[dict[str, Any]], note: str) -> Figure:
    """A panel for each setting and precision, a line for each model, on it a mark for each backend; a note below."""
    keys = ("img_size", "batch_size", "threads", "precision")
    panels: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        panels.setdefault(tuple(row[key] for key in keys), []).append(row)
    ways = sorted({row["way"] for row in rows})
    heights = [len({row["model"] for row in panel}) + 2 for panel in panels.values()]
    figure = Figure(figsize=(9, 1.4 + 0.3 * sum(heights) + 0.3 * len(heights)), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (setting, panel) in zip(grid, panels.items(), strict=True):
        models = list(dict.fromkeys(row["model"] for row in panel))
        for row in panel:
            i, y = ways.index(row["way"]), models.index(row["model"])
            style = {"marker": MARKERS[i % len(MARKERS)], "color": COLORS[i % len(COLORS)], "label": ways[i]}
            size = 9 if row["fastest"] else 6
            axes.plot(row["median_ms"], y, ls="", ms=size, alpha=0.9, **style)
            if row["fastest"]:
                place = {"textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 9}
                axes.annotate(f"{row['median_ms']:.3g}", (row["median_ms"], y), (-8, 0), **place)
        axes.set_yticks(range(len(models)), models, fontsize=9.5)
        axes.set(xscale="log", ylim=(len(models) - 0.4, -0.6), xlabel="median time of a batch, ms (log scale)")
        axes.set_title("{} px, batch size {}, threads {}, {}".format(*setting), fontsize=10.5)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.1)
        axes.grid(alpha=0.3)
    handles = {h.get_label(): h for axes in grid for h in axes.get_lines()}
    look: dict[str, Any] = {"ncols": 4, "frameon": False, "fontsize": 9.5}
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", **look)
    figure.supxlabel(fill(note, 130), fontsize=7.5, color="0.35")
    return figure


def write(result: dict[str, Any], out: Path, name: str = "benchmarks") -> list[Path]:
    """Write `NAME.json`, `NAME.csv`, `NAME.md` and `images/NAME.png` into a directory; give the files.

    Raises:
        InputError: If the directory cannot be written.
    """
    files = [out / f"{name}{suffix}" for suffix in (".json", ".csv", ".md")]
    figure = f"images/{name}.png" if result["rows"] else None
    if figure:
        files.append(save_figure(draw(result["rows"], describe_machine(result["machine"])), out / figure))
    texts = (json.dumps(result, indent=1) + "\n", to_csv(result), to_markdown(result, figure))
    for file, text in zip(files, texts, strict=False):
        write_text(file, text)
    return files
