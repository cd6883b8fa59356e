"""The page's figure and tables, from the results of the runs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from paired import Estimate, holm, mean
from report import insert

from patnet import InputError
from patnet.bench import describe_machine, markdown_table
from patnet.files import save_figure

from .decoding import POSITIONS
from .protocol import BASELINE, CONFIGURATIONS, SCALED, SEARCH_SEED, SIZES, Run

HELD_OUT = ("kernel", "python")  # the mean of their bits per byte is what is compared
MARGIN = 1.0  # %: a smaller difference does not count
Runs = dict[str, list[dict[str, Any]]]  # of a size by configuration, in the order of their seeds


def bits(run: dict[str, Any], texts: Sequence[str] = HELD_OUT) -> float:
    """Mean of a run's bits per byte over texts."""
    return sum(run["texts"][text]["bits_per_byte"] for text in texts) / len(texts)


def compare(runs: Runs, name: str, texts: Sequence[str] = HELD_OUT) -> Estimate | None:
    """The difference of bits per byte from the baseline in %, paired by seed, or None without runs of both."""
    full = {run["seed"]: bits(run, texts) for run in runs.get(BASELINE, [])}
    ours = [100 * (bits(run, texts) / full[run["seed"]] - 1) for run in runs.get(name, []) if run["seed"] in full]
    return mean(ours) if ours else None


def shown(found: Estimate | None, digits: int = 2) -> str:
    """An estimate with its interval."""
    if found is None:
        return "not measured"
    middle, *interval = (f"{x:.{digits}f}" for x in (found.mean, found.low, found.high) if x is not None)
    return f"{middle} ({' to '.join(interval)})" if interval else middle


def verdict(found: Estimate | None, p: float | None) -> str:
    """What a difference from the baseline in % shows."""
    if found and found.low is not None and found.high is not None and max(-found.low, found.high) <= MARGIN:
        return "within 1 %"
    if found is None or p is None:
        return "undecided"
    return f"not significant (p = {p:.2f})" if p >= 0.05 else f"{'worse' if found.mean > 0 else 'better'} (p = {p:.3f})"


def tables(runs: Runs, speeds: dict[str, dict[str, float]]) -> list[str]:
    """Costs and bits per byte of each configuration of a size, and the differences from the baseline."""
    texts = list(next(iter(runs.values()))[0]["texts"])
    keys = ["cache", *(f"{what}_{n}" for what in ("prefill", "decode") for n in POSITIONS)]
    costs, others = [], [text for text in texts if text not in HELD_OUT]
    for name, found in runs.items():
        cells = [name, str(len(found)), str(found[0]["parameters"]), f"{found[0]['flops'] / 1e6:.2f}"]
        cells += [f"{speeds[name][key]:.0f}" if name in speeds else "not measured" for key in keys]
        costs.append(cells + [shown(mean([bits(run, [text]) for run in found]), 4) for text in texts])
    differences = {name: compare(runs, name) for name in runs if name != BASELINE}
    corrected = holm([e.p if e and math.isfinite(e.mean) else None for e in differences.values()])
    rows = [
        [name, shown(e), *(shown(compare(runs, name, [text])) for text in others), verdict(e, p)]
        for (name, e), p in zip(differences.items(), corrected, strict=True)
    ]
    head = ["configuration", "seeds", "parameters", "MFLOPs a token", "cache, bytes a token"]
    head += [f"{key.replace('_', ' at ')}, tokens/s" for key in keys[1:]]
    lines = [*markdown_table([*head, *texts], costs), ""]
    lines += ["The texts' columns are bits per byte. Differences from `full` in %; all intervals are of 95 %, those of"]
    lines += ["differences not corrected for the number of comparisons, as p is:", ""]
    return [*lines, *markdown_table(["configuration", "held-out text", *others, "verdict on held-out text"], rows), ""]


def draw(runs: Runs, speeds: dict[str, dict[str, float]], path: Path) -> None:
    """Bits per byte against latency of decoding and against training FLOPs, a point for each configuration."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.2), sharey=True, layout="constrained")
    colours = plt.get_cmap("tab20").colors[::2] + plt.get_cmap("tab20").colors[1::2]
    for i, (name, found) in enumerate(runs.items()):
        e, budget = mean([bits(run) for run in found]), found[0]["budget"]
        flops = 3 * found[0]["flops"] * budget["steps"] * budget["batch"] * budget["context"]
        form = {"fmt": "s" if name == BASELINE else "o" if name.startswith("pat") else "^", "color": colours[i]}
        latency = 1000 / speeds[name][f"decode_{POSITIONS[1]}"] if name in speeds else None
        for axis, x in zip(axes, (latency, flops / 1e12), strict=True):
            if x is not None:
                axis.errorbar(x, e.mean, e.half, **form, label=name, capsize=3, linewidth=1, markersize=8)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    label = f"decoding after {POSITIONS[1]} tokens, ms a token (one CPU thread)"
    axes[0].set(xmargin=0.12, xlabel=label, ylabel="bits per byte, held-out")
    axes[1].set(xmargin=0.12, xlabel="training, TFLOPs")
    save_figure(figure, path)
    plt.close(figure)


def publish(results: dict[Run, dict[str, Any]], measured: dict[str, dict[str, Any]], page: Path) -> None:
    """Write tables between the marks of the page, and the figure into `images/language.png` beside it.

    Args:
        results: Of the runs.
        measured: Measurements of decoding by size.
        page: The file.

    Raises:
        InputError: If there are no results on the texts of the protocol, or the page has no marks.
    """
    runs: dict[str, Runs] = {}
    order = [*SIZES, *CONFIGURATIONS]
    for job in sorted(results, key=lambda job: (order.index(job.size), order.index(job.configuration), job.seed)):
        if job.seed != SEARCH_SEED:
            runs.setdefault(job.size, {}).setdefault(job.configuration, []).append(results[job])
    if not runs:
        raise InputError("no results: train first, with run.py train")
    first = next(iter(runs.values()))
    one = next(iter(first.values()))[0]
    if not {*HELD_OUT} <= one["texts"].keys():
        raise InputError(f"the report compares the texts {' and '.join(HELD_OUT)}; here are {', '.join(one['texts'])}")
    speeds = {size: measured.get(size, {}).get("rows", {}) for size in runs}
    lines = ["![Bits per byte against latency and training FLOPs](images/language.png)", ""]
    lines += [f"The figure is of size `{next(iter(runs))}`.", ""]
    dated = (run["machine"] | {"date": run["machine"]["date"][:10]} for run in results.values())
    lines += [f"Training: {'; '.join(sorted({*map(describe_machine, dated)}))}."]
    lines += [f"Speed of `{size}`: {describe_machine(m['machine'])}, one thread." for size, m in measured.items()]
    for size, found in runs.items():
        lines += ["", f"### Size `{size}`", "", *tables(found, speeds[size])]
    rows = [[name, *(shown(compare(found, name)) for found in runs.values())] for name in SCALED if name != BASELINE]
    lines += ["### Scaling", "", "Difference from `full` on held-out text in %, by size:", ""]
    lines += [*markdown_table(["configuration", *runs], rows), "", "### nanoGPT's model", ""]
    plain = {run["seed"]: run for run in first.get("nanogpt", [])}
    pairs = [(run, plain[run["seed"]]) for run in first.get(BASELINE, []) if run["seed"] in plain]
    more = [full["texts"][text]["loss"] - plain["texts"][text]["loss"] for full, plain in pairs for text in HELD_OUT]
    ratio = f"{100 * math.expm1(sum(more) / len(more)):+.2f} %" if more else "not measured"
    lines += [f"Perplexity of `full` relative to it on held-out text: {ratio}.", "", "### Learning rates", ""]
    searched = [(job, bits(run, ["validation"])) for job, run in results.items() if job.seed == SEARCH_SEED]
    rows = [[job.configuration, f"{job.rate:g}", f"{found:.4f}"] for job, found in searched]
    lines += [*markdown_table(["configuration", "learning rate", "bits per byte of validation text"], rows), ""]
    insert(page, "\n".join(lines))
    draw(first, speeds[next(iter(runs))], page.parent / "images" / "language.png")
