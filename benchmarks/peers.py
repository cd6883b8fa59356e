"""Measure PATNet and networks of other families with published accuracies: a table, and accuracy against latency."""

import json as jsonlib
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from rich.console import Console
from torch import nn

from patnet import InputError
from patnet.bench import Options, describe_machine, markdown_table, measure
from patnet.cli import main
from patnet.deploy import BACKENDS
from patnet.deploy.backend import Request
from patnet.deploy.openvino import MANY_WEIGHTS, OpenVINO, request_blocked
from patnet.deploy.quantize import quantize
from patnet.errors import nearest
from patnet.files import make_directory, save_figure, write_text
from patnet.train.config import PositiveFloat, PositiveInt

NAME = "benchmarks/peers.py"
SUMMARY = __doc__
EXAMPLES = """Examples:
  python benchmarks/peers.py                                  all families, on one CPU core about half an hour
  python benchmarks/peers.py --families FasterNet RepViT
  python benchmarks/peers.py --precision int8 --name benchmarks-peers-int8
  python benchmarks/peers.py --device cuda --precision fp16 --batch-size 128 --minutes 25

Each network is measured in its fastest backend, in the same rounds as the PATNet of about its accuracy. Accuracies are
those published, for images of the size measured; published.json names their sources."""
EXTRA = ("train", ("lightning", "torchmetrics", "jsonargparse", "matplotlib", "rich"))

PUBLISHED: dict[str, Any] = jsonlib.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
FIRST: dict[str, Any] = {
    "PATNet": {"color": "#D55E00", "marker": "*", "markersize": 14, "linewidth": 2.2, "zorder": 5},
    "FasterNet": {"color": "#0072B2", "marker": "o", "markersize": 6, "linewidth": 2.2, "zorder": 4},
}
OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7a5c48", "#8a8f98", "#98a000")
OTHERS += ("#33417a", "#a83255", "#7b3fb5", "#222222", "#1fb5b5", "#5fbf2f")
ABOUT_EQUAL = 0.3  # points of top-1
MARKERS = "sD^vP<>Xhdp8H"


class BlockedOpenVINO(OpenVINO):
    """OpenVINO with the kernels requested for all convolutions that `patnet export` requests for those of PATNet."""

    name = "openvino-blocked"
    title = "OpenVINO, blocked kernels"
    precisions = ("fp32",)

    def write(self, model: nn.Module, path: Path, request: Request) -> None:
        """Write the network, with the request."""
        super().write(model, path, request)
        request_blocked(path)


class NNCFOpenVINO(OpenVINO):
    """OpenVINO with all operations in int8 that NNCF quantises by default."""

    name = "openvino-nncf"
    title = "OpenVINO, NNCF's operations"
    precisions = ("int8",)

    def quantized(self, graph: Any, batches: Iterable[Any]) -> Any:
        """The `openvino.Model` in int8."""
        return quantize(graph, batches, [])


def run(
    *,
    families: list[str] = [],  # noqa: B006  # read only
    backends: list[str] = [],  # noqa: B006
    precision: str = "fp32",
    batch_size: PositiveInt = 1,
    threads: PositiveInt = 1,
    device: Literal["cpu", "cuda"] = "cpu",
    seconds: PositiveFloat = 20.0,
    minutes: PositiveFloat | None = None,
    out: str = "runs/bench",
    name: str = "benchmarks-peers",
    json: bool = False,
) -> int:
    """Measure, write NAME.json, NAME.md and images/NAME.png, and print the table.

    Args:
        families: Families to measure with PATNet; default: all of published.json.
        backends: Backends to choose the fastest from; default: those of patnet bench, and openvino-blocked or, in int8,
            openvino-nncf.
        precision: Precision of all networks.
        batch_size: Images per call.
        threads: CPU threads.
        device: Device to measure on.
        seconds: Duration of the rounds of a group of networks.
        minutes: Time limit.
        out: Directory of the files.
        name: Name of the files without suffix.
        json: Print JSON.
    """
    groups = group(families)
    for backend in (BlockedOpenVINO(), NNCFOpenVINO()):
        if precision in backend.precisions:
            BACKENDS[backend.name] = backend
    options = Options(
        models=[model for models in groups for model in models],
        backends=backends,
        forms=["fused"],
        precision=[precision],
        batch_size=[batch_size],
        threads=[threads],
        device=device,
        seconds=seconds,
        minutes=minutes,
    )
    make_directory(Path(out))
    progress = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    command = shlex.join(["python", NAME, *sys.argv[1:]])
    result = measure(options, groups=groups, say=progress.print, command=command)
    result["rows"] = [{**row, **published(row["model"])} for row in result["rows"]]
    files = write(result, Path(out), name)
    if json:
        print(jsonlib.dumps(result, indent=1))
    else:
        print("\n".join(markdown_table(*table(result["rows"]), left=2)))
        print(describe_machine(result["machine"]), *files, sep="\n")
    return 130 if result["incomplete_because"] == "interrupted" else 0


def published(model: str) -> dict[str, Any]:
    """The entry of a model in published.json, by its name or by that of timm's weights."""
    return next(e for name, e in PUBLISHED["models"].items() if model in (name, e.get("weights")))


def group(families: Sequence[str] = ()) -> list[list[str]]:
    """The networks in groups, each with the PATNet nearest in accuracy at its end, which they are compared with."""
    models = PUBLISHED["models"]
    known = list(dict.fromkeys(entry["family"] for entry in models.values()))
    for family in families:
        if family not in known:
            raise InputError(f"--families {family}: unknown{nearest(family, known)}; choose from {', '.join(known)}")
    groups: dict[str, list[str]] = {name: [] for name in models if name.startswith("patnet_")}
    for name, entry in models.items():
        if entry["family"] == "PATNet" or (families and entry["family"] not in families):
            continue
        twin = name.replace("fasternet_", "patnet_")
        near = min(groups, key=lambda patnet: abs(models[patnet]["top1"] - entry["top1"]))
        groups[twin if twin in groups else near].append(entry.get("weights", name))
    return [[*others, patnet] for patnet, others in groups.items()]


def table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The headings and cells of the table; in bold what is faster and at least as accurate as the PATNet."""
    headings = ["model", "backend", "top-1, %", "px", "parameters, M", "GMACs", "median, ms", "images/s"]
    lines = []
    for row in (row for row in rows if row["fastest"]):
        found, mark, relative = row["ratio_fastest"], "", ""
        if found:
            relative = f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f}) of {row['baseline']}"
            better = found["ratio"] < 1 and row["top1"] >= published(row["baseline"])["top1"]
            mark = "**" if better else ""
        cells = [f"{mark}{row['model']}{mark}", row["way"], _accuracy(row), str(row["img_size"])]
        cells += [f"{row['parameters'] / 1e6:.1f}", f"{row['gmacs']:.3f}", f"{row['median_ms']:.2f}"]
        lines.append([*cells, f"{row['images_per_s']:.1f}", relative])
    return [*headings, "relative time"], lines


def _accuracy(row: dict[str, Any]) -> str:
    """Published accuracy in %, marked if a teacher or more images were used."""
    return f"{row['top1']:.1f}{' †' if row.get('distilled') else ''}{'‡' if row.get('more_data') else ''}"


def better(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """For each PATNet the networks of other families that are faster and about as accurate, the fastest first."""
    fastest = sorted((row for row in rows if row["fastest"]), key=lambda row: row["median_ms"])
    return {
        patnet["model"]: [
            row
            for row in fastest
            if row["family"] != "PATNet"
            and row["median_ms"] < patnet["median_ms"]
            and round(patnet["top1"] - row["top1"], 1) <= ABOUT_EQUAL
        ]
        for patnet in fastest
        if patnet["family"] == "PATNet"
    }


def draw(result: dict[str, Any]) -> Figure:
    """Published accuracy against measured latency, a line for each family."""
    rows = [row for row in result["rows"] if row["fastest"]]
    outline = [withStroke(linewidth=2, foreground="white")]
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    axes = figure.subplots()
    others = [family for family in dict.fromkeys(row["family"] for row in rows) if family not in FIRST]
    for family in dict.fromkeys(row["family"] for row in rows):
        i = others.index(family) if family in others else 0
        style = {
            "color": OTHERS[i % len(OTHERS)],
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 6,
            "linewidth": 1.2,
        }
        style = FIRST.get(family, style)
        own = sorted((row for row in rows if row["family"] == family), key=lambda row: row["median_ms"])
        helped = any(row.get("distilled") or row.get("more_data") for row in own)
        look = {"markerfacecolor": "white", "linestyle": "--"} if helped else {}
        axes.plot([row["median_ms"] for row in own], [row["top1"] for row in own], label=family, **style, **look)
        for ms, top1, model in ((row["median_ms"], row["top1"], row["model"]) for row in own):
            label = re.split(r"[_.]", model, maxsplit=1)[-1].partition(".")[0].removeprefix("conv_") or model
            label = model.removeprefix("resnet").partition(".")[0] if family == "ResNet" else label
            font = {"fontsize": 11 if family in FIRST else 8, "color": style["color"], "path_effects": outline}
            font |= {"fontweight": "bold" if family == "PATNet" else None, "zorder": 6 if family in FIRST else 3}
            place = {"PATNet": (-8, 8), "FasterNet": (5, -12)}.get(family, (4, 4))
            axes.annotate(label, (ms, top1), place, textcoords="offset points", **font)
    first = rows[0]
    threads = "one thread" if first["threads"] == 1 else f"{first['threads']} threads"
    axes.set_title(f"Batch size {first['batch_size']}, {first['precision']}, {threads}, each in its fastest backend")
    axes.set(xscale="log", xlabel="median time of a batch, ms (log scale)", ylabel="ImageNet-1K top-1, published, %")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.08)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9, ncols=2)
    note = "Left is faster, up is more accurate. Dashed: families trained with a teacher or on more images than "
    note += f"ImageNet-1K. {describe_machine(result['machine'])}"
    figure.supxlabel(fill(note, 140), fontsize=7.5)
    return figure


METHOD = """Each network is fused, with random weights, in the backend with the lowest median, measured in the same
rounds as the PATNet nearest in published accuracy. The relative time is the median and, in parentheses, the quartiles
over the rounds; below 1 the network is faster than that PATNet. In bold: networks that are faster than that PATNet and
at least as accurate. Accuracies are published ones, not measured here; † trained with a teacher, ‡ on more images than
ImageNet-1K."""
BLOCKED = """OpenVINO is a candidate twice: with the kernels that it chooses (and, for PATNet, those that
`patnet export` requests), and with kernels for a blocked layout requested for all convolutions."""
INT8 = f"""In OpenVINO and ONNX Runtime int8 leaves additions, multiplications, means, L2 norms, clamps, hard-sigmoids
and matrix products in float32; quantised are, in OpenVINO, products with at least {MANY_WEIGHTS} weights, and in ONNX
Runtime linear layers of vectors. This was chosen on PATNet and is the same for all networks."""
NNCF = """OpenVINO is a candidate twice: with these operations in float32, and with all in int8 that NNCF quantises by
default."""


def _listed(rows: Sequence[dict[str, Any]]) -> str:
    return (
        ", ".join(f"{r['model'].partition('.')[0]} ({_accuracy(r)} %, {r['median_ms']:.1f} ms)" for r in rows) or "none"
    )


def to_markdown(result: dict[str, Any], figure: str) -> str:
    """The result as a document."""
    sources = dict.fromkeys(row["source"] for row in result["rows"])
    backends = {row["backend"] for row in result["rows"]}
    precisions = ", ".join(dict.fromkeys(row["precision"] for row in result["rows"]))
    lines = [f"# Comparison with other families, {precisions}", ""]
    if not result["complete"]:
        lines += [f"**Incomplete: {result['incomplete_because']}.**", ""]
    minutes = f"{result['seconds'] / 60:.1f} min"
    lines += [
        f"Measured by `{result['command']}` in {minutes} on {describe_machine(result['machine'])}.",
        "",
        f"![Published ImageNet-1K top-1 against measured latency]({figure})",
        "",
        METHOD,
        "",
        *([BLOCKED, ""] if BlockedOpenVINO.name in backends else []),
        *([INT8, ""] if "int8" in precisions else []),
        *([NNCF, ""] if NNCFOpenVINO.name in backends else []),
        "## Where PATNet loses",
        "",
        f"Networks of other families that are faster and at most {ABOUT_EQUAL} points less accurate, by their medians,",
        "which are of other rounds where a network was measured with another PATNet:",
        "",
        *(f"- than {patnet}: {_listed(found)}" for patnet, found in better(result["rows"]).items()),
        "",
        "## All networks",
        "",
        *markdown_table(*table(result["rows"]), left=2),
        "",
    ]
    if result["left_out"]:
        lines += ["## Left out", "", *(f"- {what}" for what in result["left_out"]), ""]
    lines += ["## Sources of the accuracies", ""]
    lines += [f"- {s}: {PUBLISHED['sources'][s]['what']}, <{PUBLISHED['sources'][s]['url']}>" for s in sources]
    return "\n".join([*lines, ""])


def write(result: dict[str, Any], out: Path, name: str) -> list[Path]:
    """Write JSON, Markdown and the figure, if anything was measured; give the files."""
    if not result["rows"]:
        return []  # earlier ones stay
    files = [out / f"{name}.json", out / f"{name}.md", save_figure(draw(result), out / "images" / f"{name}.png")]
    write_text(files[0], jsonlib.dumps(result, indent=1) + "\n")
    write_text(files[1], to_markdown(result, f"images/{name}.png"))
    return files


if __name__ == "__main__":
    sys.exit(main(script=sys.modules[__name__]))
