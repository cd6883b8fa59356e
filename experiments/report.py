"""The report: an answer for each claim, and a table and a figure for each experiment, in docs/experiments.md."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cost import BATCH, LARGE
from matplotlib.figure import Figure
from paired import Estimate, holm, mean, over_seeds
from PIL import Image
from pool import RESULTS, read
from protocol import BASE, HIGHER, NOT_LOWER, Claim, Experiment, Protocol

from patnet import InputError
from patnet.bench import describe_machine, markdown_table
from patnet.files import save_figure, write_text
from patnet.train.figures import COLORS

SEEN, NOT_SEEN, UNDECIDED = "seen", "not seen", "undecided"
MOVED = 0.01  # smaller relative changes move a gate by less than 1 %, so the component was not trained
MARKS = "<!-- results -->", "<!-- end of results -->"
CAPS = {"capsize": 5, "elinewidth": 1.5}  # wider than a marker, which may hide the interval


@dataclass(frozen=True)
class Results:
    """What the runs found: results by configuration, then by seed and device, and costs by configuration."""

    runs: Mapping[str, Mapping[tuple[int, str], Mapping[str, Any]]]
    costs: Mapping[str, Any]
    machine: dict[str, Any] | None

    def top1(self, configuration: str, other: str | None = None) -> dict[int, float]:
        """Accuracy by seed, a mean over devices; only of runs whose seed and device the other configuration has too."""
        runs, wanted = self.runs.get(configuration, {}), self.runs.get(other or configuration, {})
        found: dict[int, list[float]] = {}
        for seed, device in sorted({*runs} & {*wanted}):
            found.setdefault(seed, []).append(runs[seed, device]["top1"])
        return {seed: mean(values).mean for seed, values in found.items()}

    def difference(self, first: str, second: str) -> Estimate | None:
        """Accuracy of a configuration minus that of another, over the seeds that both have on one device."""
        return over_seeds(self.top1(first, second), self.top1(second, first))

    def std(self) -> float | None:
        """Std of the accuracy between the seeds of a configuration on a device, pooled; None without two of one."""
        groups: dict[tuple[str, str], list[float]] = {}
        for name, runs in self.runs.items():
            for (_, device), run in runs.items():
                groups.setdefault((name, device), []).append(run["top1"])
        squares = sum(float(np.var(group)) * len(group) for group in groups.values())
        freedom = sum(len(group) - 1 for group in groups.values())
        return (squares / freedom) ** 0.5 if freedom else None

    def unmoved(self, configuration: str) -> list[str]:
        """Components that hardly moved from their initial values in some run, which is invalid."""
        found = (c for run in self.runs.get(configuration, {}).values() for c, v in run["moved"].items() if v < MOVED)
        return sorted(set(found))

    def latency(self, first: str, second: str, size: str) -> str:
        """Latency of a configuration relative to another at a size, with quartiles if one of them is `base`.

        Both were measured relative to `base`, in interleaved rounds.
        """
        if not {first, second} <= set(self.costs):
            return "not measured"
        a, b = (self.costs[name]["latency"][size] for name in (first, second))
        middle = f"{a['ratio'] / b['ratio']:.2f}"
        if first == second or BASE not in (first, second):
            return middle
        low, high = (a["low"], a["high"]) if second == BASE else (1 / b["high"], 1 / b["low"])
        return f"{middle} ({low:.2f} to {high:.2f})"


@dataclass(frozen=True)
class Comparison:
    """The difference of two configurations over the seeds that both have; without a claim if the protocol has none."""

    claim: Claim
    estimate: Estimate
    p: float | None = None  # corrected

    def answer(self, test: Mapping[str, float]) -> str:
        """Whether the claim is seen, after the rule in the protocol."""
        low, high, margin = self.estimate.low, self.estimate.high, test["margin"]
        if not self.claim.text or low is None or high is None:
            return UNDECIDED
        significant = self.p is not None and self.p < test["level"]
        lower = significant and self.estimate.mean < 0
        if self.claim.expected == NOT_LOWER:
            return SEEN if low > -margin else NOT_SEEN if lower else UNDECIDED
        if lower or (-margin < low and high < margin):
            return NOT_SEEN
        return SEEN if significant else UNDECIDED


def read_results(protocol: Protocol, out: Path) -> Results:
    """The results below a directory, as far as there are any.

    Raises:
        InputError: If a file is damaged, or has runs of several learning rates.
    """
    runs: dict[str, dict[tuple[int, str], Any]] = {}
    seeds = {seed for stage in protocol.seeds for seed in stage}
    for result in read(out / RESULTS):
        name, seed = result["configuration"], result["seed"]
        if not result["val_fraction"] and name in protocol.configurations and seed in seeds:
            runs.setdefault(name, {})[seed, result["device"]] = result
    if len(chosen := {(run["lr"], run["epochs"]) for found in runs.values() for run in found.values()}) > 1:
        raise InputError(f"{out}: has runs of several learning rates or epochs ({chosen}), which differ in two things")
    file = out / "costs.json"
    try:
        costs = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError as error:
        raise InputError(f"{file}: is damaged ({error}); remove it and run the command costs") from error
    return Results(runs, costs.get("configurations", {}), costs.get("machine"))


def compare(experiment: Experiment, results: Results) -> list[Comparison]:
    """The claims of an experiment, then the configurations that no claim compares with the baseline."""
    claims = list(experiment.claims)
    compared = [{experiment.baseline}, *({claim.configuration, claim.baseline} for claim in claims)]
    others = [name for name in experiment.configurations if {name, experiment.baseline} not in compared]
    claims += [Claim(name, HIGHER, experiment.baseline, "") for name in others]
    estimates = [results.difference(claim.configuration, claim.baseline) for claim in claims]
    corrected = holm([estimate and estimate.p for estimate in estimates])
    return [Comparison(c, e, p) for c, e, p in zip(claims, estimates, corrected, strict=True) if e]


def points(estimate: Estimate, sign: str = "+") -> str:
    """An estimate with its interval in percent or percentage points."""
    middle, *interval = (f"{100 * value:{sign}.2f}" for value in estimate[1:4] if value is not None)
    return f"{middle} ({' to '.join(interval)})" if interval else middle


def format_p(p: float | None) -> str:
    """A p value; undefined if all pairs of runs differ by the same amount, or there is one."""
    return "undefined" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def claims_table(protocol: Protocol, results: Results) -> list[str]:
    """A row for each claim: answer, difference, latency, cost, and the configurations to train."""
    rows = []
    for name, experiment in protocol.experiments.items():
        found = {comparison.claim: comparison for comparison in compare(experiment, results)}
        for claim in experiment.claims:
            pair, comparison = [claim.configuration, claim.baseline], found.get(claim)
            cells, cost = ["not run", "", ""], ""
            if comparison:
                invalid = [component for c in pair for component in results.unmoved(c)]
                answer = f"invalid: {invalid[0]} hardly moved" if invalid else comparison.answer(protocol.test)
                n, planned = comparison.estimate.n, sum(map(len, protocol.seeds))
                answer = f"{answer}, preliminary ({n} of {planned} seeds)" if n < planned else f"**{answer}**"
                cells = [answer, points(comparison.estimate), format_p(comparison.p)]
                cost = f"{sum(run['seconds'] for c in pair for run in results.runs[c].values()) / 3600:.1f} h"
            cells += [results.latency(*pair, f"{protocol.img_size} px"), cost, f"`--only {' '.join(pair)}`"]
            rows.append([claim.text, f"[{name}](#{name})", *cells])
    headings = ["claim", "tested in", "answer", "difference, points", "p, corrected", "latency", "training", "command"]
    return markdown_table(headings, rows, left=3)


def experiment_table(protocol: Protocol, experiment: Experiment, results: Results) -> list[str]:
    """A row for each configuration: accuracy, difference to the baseline, and cost."""
    rows, sizes = [], [f"{size} px" for size in (protocol.img_size, LARGE)]
    for name in experiment.configurations:
        seeds, cost = results.top1(name), results.costs.get(name)
        other = results.difference(name, experiment.baseline)
        compared = "baseline" if name == experiment.baseline else points(other) if other else ""
        compared += f", n = {other.n}" if other and other.n < len(seeds) else ""
        accuracy = points(mean(list(seeds.values())), "") if seeds else "not run"
        cells = [name + " (invalid)" * bool(results.unmoved(name)), str(len(seeds)), accuracy, compared]
        cells += [f"{cost['parameters'] / 1e6:.2f}", f"{1e3 * cost['gmacs']:.1f}"] if cost else ["", ""]
        rows.append([*cells, *(results.latency(name, experiment.baseline, size) for size in sizes)])
    headings = ["configuration", "seeds", "top-1, %", "difference, points", "parameters, M", "MMACs"]
    headings += [f"latency, {size}" for size in sizes]
    return markdown_table(headings, rows)


def draw(protocol: Protocol, experiment: Experiment, results: Results) -> Figure:
    """Accuracy against latency, and the differences with their intervals beside the smallest that counts."""
    comparisons, trained = compare(experiment, results), [c for c in experiment.configurations if results.top1(c)]
    figure = Figure(figsize=(9, 1.9 + 0.3 * max(len(comparisons), 5)), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, name in enumerate(trained):
        estimate, cost = mean(list(results.top1(name).values())), results.costs.get(name)
        x = cost["latency"][f"{protocol.img_size} px"]["ms"] if cost else i
        style = {"fmt": "osD^vP*X"[i % 8], "color": COLORS[i % 7], "label": name}
        left.errorbar(x, 100 * estimate.mean, 100 * estimate.half, **CAPS, **style)
    low, high = left.get_xlim()
    left.set_xlim(min(low, 0.9 * high), max(high, low / 0.9))  # where latencies that are nearly equal look so
    left.locator_params(axis="x", nbins=6)
    left.set_xlabel(f"ms for an image, {protocol.img_size} px" if results.costs else "latency not measured")
    left.set_ylabel("top-1, %")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=6, frameon=False, fontsize=8)
    margin, level = 100 * protocol.test["margin"], range(len(comparisons))
    right.axvspan(-margin, margin, color="0.92")
    right.axvline(0, color="0.55", lw=1)
    for y, comparison in zip(level, comparisons, strict=True):
        estimate = comparison.estimate
        right.errorbar(100 * estimate.mean, y, xerr=100 * estimate.half, fmt="o", color=COLORS[0], **CAPS)
    right.set_yticks(level, [f"{c.claim.configuration} - {c.claim.baseline}" for c in comparisons], fontsize=8)
    right.set_ylim(len(comparisons) - 0.5, -0.5)
    right.set_xlabel("points of top-1 with 95 % interval")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def to_markdown(protocol: Protocol, results: Results) -> str:
    """The generated part of the page."""
    done = sum(len(results.top1(name)) for name in results.runs)
    total = len(protocol.configurations) * sum(map(len, protocol.seeds))
    first = next((run for runs in results.runs.values() for run in runs.values()), None)
    parts = ["## Claims", f"{done} of {total} runs have results."]
    if first is not None:
        parts[-1] += f" Learning rate {first['lr']:g}, {first['epochs']} epochs, {first['images']} test images."
        counts = Counter(run["machine"] for runs in results.runs.values() for run in runs.values())
        listed = "; ".join(f"{n} on {machine}" for machine, n in counts.most_common())
        parts[-1] += f" Runs, {counts.total() - done} of them on both devices: {listed}."
    table = claims_table(protocol, results)
    answers = (f"{sum(f'**{answer}**' in row for row in table)} {answer}" for answer in (SEEN, NOT_SEEN, UNDECIDED))
    parts += [f"Of {len(table) - 2} claims and open questions, with all seeds: {', '.join(answers)}.", "\n".join(table)]
    if std := results.std():
        parts += [f"The std between seeds of one configuration is {100 * std:.2f} points, pooled over configurations."]
    for name, experiment in protocol.experiments.items():
        parts.append(f"### {experiment.title} {{#{name}}}")
        if not results.costs and not compare(experiment, results):
            parts.append("Not run.")
            continue
        parts.append("\n".join(experiment_table(protocol, experiment, results)))
        if unmoved := {c: results.unmoved(c) for c in experiment.configurations if results.unmoved(c)}:
            listed = "; ".join(f"{', '.join(components)} of {c}" for c, components in unmoved.items())
            parts.append(f"Invalid, since components hardly moved from their initial values: {listed}.")
        if compare(experiment, results):
            parts.append(f"![Accuracy and latency of {name}](images/experiment-{name}.png)")
    if results.machine:
        how = f"fused, eager PyTorch, one thread, CPU time; {BATCH} images at {protocol.img_size} px, one at {LARGE} px"
        parts.append(f"Latency: {how}. {describe_machine(results.machine)}")
    return "\n\n".join(parts)


def insert(page: Path, text: str) -> None:
    """Put text between the marks of a page.

    Raises:
        InputError: If it has none.
    """
    before, _, rest = (page.read_text(encoding="utf-8") if page.is_file() else "").partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not last:
        raise InputError(f"{page}: has no lines {MARKS[0]} and {MARKS[1]}, between which the results belong")
    write_text(page, "\n\n".join([before + MARKS[0], text, MARKS[1] + after]))


def publish(protocol: Protocol, out: Path, docs: Path) -> Path:
    """Write the results between the marks of the page, and the figures beside it.

    Raises:
        InputError: If the page has no marks, or a result is damaged.
    """
    results, page = read_results(protocol, out), docs / "experiments.md"
    insert(page, to_markdown(protocol, results))
    for name, experiment in protocol.experiments.items():
        if compare(experiment, results):
            figure = draw(protocol, experiment, results)
            file = save_figure(figure, docs / "images" / f"experiment-{name}.png", dpi=100)
            with Image.open(file) as image:  # 256 colours take a third of the space
                image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    return page
