"""The files of a measurement of detectors: JSON, Markdown and a picture."""

import json
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure

from ..files import write_text
from .figures import BASELINE, OURS, save
from .report import markdown_table, say_machine
from .write import check_folder

__all__ = ["NAME", "detection_tables", "draw_detection", "write_detection"]

NAME = "detection-speed"
# A shade for each runtime, of its model's colour.
SHADES = {"eager": 0.35, "compile": 0.55, "onnxruntime": 0.7, "openvino": 1.0}


def _part(part: str) -> str:
    return "Backbone" if part == "backbone" else f"Whole {part}"


def detection_tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Ratios, then times: for each a title, the columns' names, and the lines, of which the first two are text."""
    ratios, times = [], []
    for r in result["ratios"]:
        a, b = r["numerator"], r["denominator"]
        how = a["runtime"] if a["runtime"] == b["runtime"] else f"{a['runtime']} and {b['runtime']}"
        low, high = r["quartiles"]
        ratios.append(
            [
                f"{a['model']} / {b['model']}",
                f"{_part(r['part'])}, {how}{', the fastest' if r['fastest'] and r['part'] == 'backbone' else ''}",
                f"{r['ratio']:.3f}",
                f"{r['paired_median']:.3f} ({low:.3f} to {high:.3f}, {r['rounds']} rounds)",
            ]
        )
    for row in result["rows"]:
        times.append(
            [
                row["model"],
                f"{_part(row['part'])}, {row['runtime']}",
                f"{row['median_ms']:.1f}",
                f"{row['p95_ms']:.1f}",
                "" if row["gmacs"] is None else f"{row['gmacs']:.1f}",
                "" if row["objects"] is None else str(row["objects"]),
            ]
        )
    return [
        ("Ratios of times", ["first / second", "of what", "ratio of medians", "round by round"], ratios),
        ("Times", ["model", "what", "median, ms", "95 %, ms", "GMACs", "objects given"], times),
    ]


def draw_detection(result: dict[str, Any]) -> Figure | None:
    """Backbones above, detectors below: a bar for each time, with the ratios of the fastest; None without times."""
    if not result["rows"]:
        return None
    parts = list(dict.fromkeys(row["part"] for row in result["rows"]))
    heights = [sum(row["part"] == part for row in result["rows"]) for part in parts]
    figure = Figure(figsize=(10, 1.6 + 0.3 * sum(heights) + 0.5 * len(parts)), layout="constrained")
    panels = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    firsts = {r["numerator"]["model"] for r in result["ratios"]}
    for axes, part in zip(panels, parts, strict=True):
        rows = [row for row in result["rows"] if row["part"] == part]
        best = [r for r in result["ratios"] if r["part"] == part and r["fastest"]]
        said = {r["numerator"]["model"]: f"{r['ratio']:.2f} of {r['denominator']['model']}'s" for r in best}
        rows = sorted(rows, key=lambda row: list(dict.fromkeys(r["model"] for r in rows)).index(row["model"]))
        bars = axes.barh(
            [f"{row['model']}, {row['runtime']}" for row in rows],
            [row["median_ms"] for row in rows],
            color=[OURS if row["model"] in firsts else BASELINE for row in rows],
        )
        for bar, row in zip(bars, rows, strict=True):
            bar.set_alpha(SHADES.get(row["runtime"], 0.5) if part == "backbone" else 1.0)
        labels = [
            f"{row['median_ms']:.0f} ms"
            + (f", {said[row['model']]}" if row["fastest"] and row["model"] in said else "")
            for row in rows
        ]
        axes.bar_label(bars, labels, padding=3, fontsize=8.5)
        axes.invert_yaxis()
        axes.margins(x=0.22)
        axes.tick_params(axis="y", labelsize=8.5)
        axes.set(title=_part(part), xlabel="median for one picture, ms")
        axes.grid(axis="x", alpha=0.3)
    height, width = result["size_px"]
    figure.suptitle(f"One picture of {height}x{width} px, {result['precision']}, fused")
    figure.supxlabel(fill(say_machine(result["machine"]), 130), fontsize=7.5, color="0.35")
    return figure


def to_markdown(result: dict[str, Any], picture: str | None) -> str:
    """The result as a document."""
    height, width = result["size_px"]
    lines = ["# Backbones under detectors", ""]
    if not result["complete"]:
        lines += ["**Incomplete: interrupted.**", ""]
    lines += [
        f"Measured by `{result['command']}` in {result['took_s'] / 60:.1f} min on {say_machine(result['machine'])}.",
        "",
        *([f"![Times of backbones and detectors]({picture})", ""] if picture else []),
        f"One picture of {height}x{width} px (height by width) at a time, {result['precision']}. Weights and picture "
        "are random. All is fused, and norms that this leaves behind a convolution are folded into it. Backbones give "
        "the four maps that a feature pyramid takes, and are compared in each runtime and each in what is fastest for "
        "it. Detectors run in PyTorch; so that they have equal work whatever their weights, they take every proposal "
        "for an object and give as many objects as they may, 100. What is compared runs in turns, so that a machine "
        "whose speed drifts treats both alike.",
        "",
        "A ratio below 1 says that the first is faster. *Round by round*: median and quartiles of the ratios of the "
        "rounds.",
        "",
    ]
    for title, headings, cells in detection_tables(result):
        lines += [f"## {title}", "", *markdown_table(headings, cells, left=2), ""]
    if result["left_out"]:
        lines += ["## Left out", "", *(f"- {what}" for what in result["left_out"]), ""]
    return "\n".join(lines)


def write_detection(result: dict[str, Any], out: Path, name: str = NAME) -> list[Path]:
    """Write `NAME.json`, `NAME.md` and `images/NAME.png`; give the files.

    Raises:
        InputError: If the folder cannot be written.
    """
    check_folder(out)
    files = [out / f"{name}.json", out / f"{name}.md"]
    figure = draw_detection(result)
    if figure is not None:
        files.append(save(figure, out / "images" / f"{name}.png"))
    write_text(files[0], json.dumps(result, indent=1) + "\n")
    write_text(files[1], to_markdown(result, f"images/{name}.png" if figure else None))
    return files
