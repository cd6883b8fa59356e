"""The result: as JSON and CSV for programs, as Markdown for people."""

import csv
import io
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .candidates import Candidate, Options
from .published import family_of, published, sources
from .timing import Spread, Turns, percentile

__all__ = [
    "Comparison",
    "Measurement",
    "Result",
    "fastest_tables",
    "machine",
    "markdown_table",
    "ratio_lines",
    "say_machine",
    "to_csv",
    "to_markdown",
]

RATIOS = "Below 1 the first is faster. Round by round: median and, in brackets, quartiles of the ratios of the rounds."

KINDS = {
    "models": "One model over another, each in its fastest form and runtime",
    "gain": "A model's fastest form and runtime over the same model as trained, in eager PyTorch",
    "precision": "A model's precisions over float32, each in its fastest runtime",
    "size": "Larger pictures over the smallest, the same model",
}


@dataclass
class Measurement:
    """What was measured of a candidate.

    Attributes:
        chunk: Pictures at a time; the batch is computed in so many parts.
        parameters: Of the form measured.
        gmacs: For one picture, of the form measured.
        preparing: Seconds that preparing it took: fusing, exporting, compiling, finding the chunk.
        trial: Runs beside the model's other candidates.
        turns: Runs beside other models, which the reported time is from where there are any.
        ceilings: FLOP/s of a large matrix product, measured in the same turns.
        peak_mib: Peak memory in MiB; on a GPU that PyTorch allocated, on the CPU that stayed resident.
        fastest: Whether it is its model's fastest in its setting.
    """

    candidate: Candidate
    chunk: int
    parameters: int
    gmacs: float
    preparing: float
    trial: Turns = field(default_factory=Turns)
    turns: list[Turns] = field(default_factory=list)
    ceilings: list[float] = field(default_factory=list)
    peak_mib: float | None = None
    fastest: bool = False

    def row(self) -> dict[str, Any]:
        """The measurement as a line of the report; times are of a whole batch."""
        setting = self.candidate.setting
        runs = [run for turn in self.turns for run in turn.runs] or self.trial.runs
        median = percentile(runs, 50)
        top = percentile(self.ceilings, 50) if self.ceilings else None
        entry = published().get(self.candidate.model)
        fits = entry is not None and entry.size == setting.size
        return {
            "model": self.candidate.model,
            "family": family_of(self.candidate.model),
            "form": self.candidate.form,
            "runtime": self.candidate.runtime,
            "precision": setting.precision,
            "size_px": setting.size,
            "batch": setting.batch,
            "chunk": self.chunk,
            "memory_format": self.candidate.memory_format,
            "threads": setting.threads,
            "fastest": self.fastest,
            "median_ms": round(1e3 * median, 4),
            "p95_ms": round(1e3 * percentile(runs, 95), 4),
            "runs": len(runs),
            "images_per_s": round(setting.batch / median, 3),
            "parameters": self.parameters,
            "gmacs": round(self.gmacs, 4),
            "ceiling_gflop_per_s": round(top / 1e9, 2) if top else None,
            "share_of_ceiling": round(2e9 * self.gmacs * setting.batch / median / top, 4) if top else None,
            "peak_mib": None if self.peak_mib is None else round(self.peak_mib, 1),
            "preparing_s": round(self.preparing, 1),
            "top1": entry.top1 if entry and fits else None,
            "top1_source": entry.source if entry and fits else None,
            "distilled": bool(entry and fits and entry.distilled),
        }


@dataclass
class Comparison:
    """One candidate's time over another's, measured in turns."""

    kind: str
    first: Measurement
    second: Measurement
    spread: Spread

    def __str__(self) -> str:
        a, b = self.first.candidate, self.second.candidate
        s = self.spread
        return f"{a} / {b}, {a.setting}: {s.ratio:.3f} (paired {s.low:.3f} to {s.high:.3f})"

    def row(self) -> dict[str, Any]:
        """The comparison as a line of the report."""
        sides: dict[str, Any] = {}
        for side, m in (("numerator", self.first), ("denominator", self.second)):
            c = m.candidate
            sides[side] = {
                "model": c.model,
                "form": c.form,
                "runtime": c.runtime,
                "memory_format": c.memory_format,
                "precision": c.setting.precision,
                "size_px": c.setting.size,
                "chunk": m.chunk,
            }
        setting = self.first.candidate.setting
        return {
            "kind": self.kind,
            **sides,
            "batch": setting.batch,
            "threads": setting.threads,
            "ratio": round(self.spread.ratio, 4),
            "paired_median": round(self.spread.paired, 4),
            "quartiles": [round(self.spread.low, 4), round(self.spread.high, 4)],
            "rounds": self.spread.rounds,
        }


@dataclass
class Result:
    """All that was measured, and where, with what and when."""

    command: str
    machine: dict[str, Any]
    settings: Options
    measurements: list[Measurement] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    incomplete: str = ""
    calibration: str = ""
    seconds: float = 0.0

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A line for each candidate."""
        return [m.row() for m in self.measurements]

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON holds it."""
        named = {row["top1_source"] for row in self.rows} - {None}
        return {
            "complete": not self.incomplete,
            "incomplete_because": self.incomplete or None,
            "command": self.command,
            "machine": self.machine,
            "took_s": self.seconds,
            "int8_calibration": self.calibration or None,
            "rows": self.rows,
            "ratios": [c.row() for c in self.comparisons],
            "left_out": self.left_out,
            "sources": {name: entry for name, entry in sources().items() if name in named},
        }

    def to_json(self) -> str:
        """The result as JSON text."""
        return json.dumps(self.as_dict(), indent=1) + "\n"


def machine(options: Options) -> dict[str, Any]:
    """Device, versions and date: what a number means nothing without."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    stated: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "CPU",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "threads": list(options.threads),
    }
    if options.device == "cuda":
        stated["cuda"] = torch.version.cuda
    versions = {"python": platform.python_version()}
    for package in ("patnet", "torch", "timm", *(("onnxruntime", "openvino") if options.device == "cpu" else ())):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            module = sys.modules.get(package)
            if module is not None and hasattr(module, "__version__"):
                versions[package] = module.__version__
    return {**stated, "versions": versions, "date": datetime.now().astimezone().isoformat(timespec="minutes")}


def to_csv(result: dict[str, Any]) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(result["rows"][0]) if result["rows"] else ["model"])
    writer.writeheader()
    writer.writerows(result["rows"])
    return text.getvalue()


def _thousands(value: int) -> str:
    return f"{value:,}".replace(",", " ")


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A Markdown table whose first `left` columns are text, the others numbers."""
    marks = ["---" if i < left else "---:" for i in range(len(headings))]
    return [f"| {' | '.join(cells)} |" for cells in ([*headings], marks, *rows)]


def say_machine(stated: dict[str, Any]) -> str:
    """The machine in a sentence."""
    device = stated["cpu"]
    if stated["device"] != "CPU":
        device = f"{stated['device']} (CUDA {stated['cuda']}), {device}"
    threads = " and ".join("one thread" if n == 1 else f"{n} threads" for n in stated["threads"])
    versions = ", ".join(f"{name} {version}" for name, version in stated["versions"].items())
    return f"{device}, {stated['cores']} cores, {stated['instructions']}, {threads}; {versions}; {stated['date']}"


def _heading(row: dict[str, Any]) -> str:
    threads = "one thread" if row["threads"] == 1 else f"{row['threads']} threads"
    return f"Batch {row['batch']}, {row['precision']}, {threads}"


def _accuracy(row: dict[str, Any]) -> str:
    if row["top1"] is None:
        return ""
    mark = " (the paper's)" if row["family"] == "PATNet" else "†" if row["distilled"] else ""
    return f"{row['top1']:.1f}{mark}"


def fastest_tables(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Every model in what is fastest for it: for each setting a heading, the columns' names, and the lines.

    The first two columns are text, the others numbers.
    """
    tables = []
    for heading in dict.fromkeys(map(_heading, rows)):
        chosen = [row for row in rows if _heading(row) == heading and row["fastest"]]
        columns: dict[str, Callable[[dict[str, Any]], str]] = {
            "model": lambda r: r["model"],
            "form, runtime": _how,
            "top-1, %": _accuracy,
            "px": lambda r: str(r["size_px"]),
            "parameters": lambda r: _thousands(r["parameters"]),
            "GMACs": lambda r: f"{r['gmacs']:.3f}",
        }
        if chosen and chosen[0]["batch"] == 1:
            columns["median, ms"] = lambda r: f"{r['median_ms']:.2f}"
            columns["95 %, ms"] = lambda r: f"{r['p95_ms']:.2f}"
        else:
            columns["chunk"] = lambda r: str(r["chunk"])
            columns["ms per image"] = lambda r: f"{r['median_ms'] / r['batch']:.3f}"
        columns["images/s"] = lambda r: f"{r['images_per_s']:.1f}"
        if any(r["share_of_ceiling"] is not None for r in chosen):
            columns["of the ceiling, %"] = lambda r: (
                "" if r["share_of_ceiling"] is None else f"{100 * r['share_of_ceiling']:.1f}"
            )
        if any(r["peak_mib"] is not None for r in chosen):
            columns["peak, MiB"] = lambda r: "" if r["peak_mib"] is None else f"{r['peak_mib']:.0f}"
        tables.append((heading, list(columns), [[cell(row) for cell in columns.values()] for row in chosen]))
    return tables


def _how(row: dict[str, Any]) -> str:
    layout = "" if row["memory_format"] == "contiguous" else f", {row['memory_format']}"
    return f"{row['form']}, {row['runtime']}{layout}"


def ratio_lines(ratios: Sequence[dict[str, Any]]) -> list[list[str]]:
    """For each ratio the first, the second, what holds for both, the ratio of medians, and the rounds' spread."""
    lines = []
    for r in ratios:
        a, b = r["numerator"], r["denominator"]
        px = f"{a['size_px']} px" if a["size_px"] == b["size_px"] else f"{a['size_px']} and {b['size_px']} px"
        low, high = r["quartiles"]
        lines.append(
            [
                f"{a['model']} ({_side(a, b)})",
                f"{b['model']} ({_side(b, a)})",
                f"{_heading({**a, **r}).lower()}, {px}",
                f"{r['ratio']:.3f}",
                f"{r['paired_median']:.3f} ({low:.3f} to {high:.3f}, {r['rounds']} rounds)",
            ]
        )
    return lines


def _ratios(ratios: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["## Ratios of times", "", RATIOS, ""]
    for kind, title in KINDS.items():
        chosen = [r for r in ratios if r["kind"] == kind]
        if chosen:
            headings = ["first", "second", "both", "ratio of medians", "round by round"]
            lines += [f"### {title}", "", *markdown_table(headings, ratio_lines(chosen), left=3), ""]
    return lines


def _side(side: dict[str, Any], other: dict[str, Any]) -> str:
    extra = [f"{side['size_px']} px"] if side["size_px"] != other["size_px"] else []
    extra += [side["precision"]] if side["precision"] != other["precision"] else []
    return ", ".join([_how(side), *extra])


def to_markdown(result: dict[str, Any], picture: str | None = None) -> str:
    """The result as a document.

    Args:
        result: As `Result.as_dict` gives it.
        picture: Path of the picture, as seen from the document.
    """
    stated = result["machine"]
    lines = ["# Benchmarks", ""]
    if not result["complete"]:
        lines += [f"**Incomplete: {result['incomplete_because']}.**", ""]
    lines += [f"Measured by `{result['command']}` in {result['took_s'] / 60:.1f} min on {say_machine(stated)}.", ""]
    if picture:
        caption = "Published ImageNet-1K top-1 against the measured speed, a line for each family"
        lines += [f"![{caption}]({picture})", "", f"*{caption}.*", ""]
    lines += _method(result)
    for heading, names, cells in fastest_tables(result["rows"]):
        lines += [f"## {heading}", "", *markdown_table(names, cells, left=2), ""]
    if result["ratios"]:
        lines += _ratios(result["ratios"])
    rows = [
        [
            *(r["model"], _how(r), f"{_heading(r).lower()}, {r['size_px']} px", str(r["chunk"])),
            *(f"{r['median_ms']:.2f}", f"{r['p95_ms']:.2f}", f"{r['images_per_s']:.1f}", str(r["runs"])),
        ]
        for r in result["rows"]
    ]
    headings = ["model", "form, runtime", "setting", "chunk", "median, ms", "95 %, ms", "images/s", "runs"]
    lines += ["## All candidates", "", "Times are of a whole batch.", "", *markdown_table(headings, rows, left=3), ""]
    if result["left_out"]:
        lines += ["## Left out", "", *(f"- {what}" for what in result["left_out"]), ""]
    if result["sources"]:
        lines += ["## Sources of the accuracies", ""]
        lines += [f"- {name}: {entry['what']}, <{entry['url']}>" for name, entry in result["sources"].items()]
        lines += [""]
    return "\n".join(lines)


def _method(result: dict[str, Any]) -> list[str]:
    """How the numbers were made, and what they mean."""
    gpu = result["machine"]["device"] != "CPU"
    lines = [
        "Weights and pictures are random, for speed does not depend on them. Each model stands in the form and runtime "
        "that a short trial of all found fastest for it; two models are then run in turns, round after round, so that "
        "a machine whose speed drifts treats both alike. *Of the ceiling* is the share of the rate that a large matrix "
        f"product in PyTorch reaches on {'this GPU' if gpu else 'as many threads'}, in the same turns and precision.",
        "",
        "Accuracies are those published for pictures of the size measured, not measured here; PATNet's are the "
        "paper's. A model without one is listed without. † trained with a teacher.",
        "",
    ]
    if not gpu and any(row["batch"] > 1 for row in result["rows"]):
        lines += ["A batch is computed in chunks of the number of pictures that a trial found fastest.", ""]
    if any(row["peak_mib"] is not None for row in result["rows"]):
        what = (
            "what PyTorch allocated for the model, its maps and, when compiled, the compilation"
            if gpu
            else "what stayed resident in a process of its own while it ran, beyond PyTorch and the runtime's libraries"
        )
        lines += [f"*Peak* is {what}.", ""]
    if result["int8_calibration"]:
        lines += [f"int8 was calibrated with {result['int8_calibration']}.", ""]
    return lines
