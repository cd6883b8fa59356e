"""The report of an experiment, in Markdown: what the data show, and what they cannot show."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..benchmark.report import markdown_table, say_machine
from ..train.progress import say_time

__all__ = ["accuracy_table", "agreement", "cost_table", "difference_table", "limits", "to_markdown", "verdict"]

LEVEL = 0.05


def _points(value: float | None, signed: bool = True) -> str:
    return "" if value is None else f"{100 * value:+.2f}" if signed else f"{100 * value:.2f}"


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _between(row: Mapping[str, Any], signed: bool = True) -> str:
    return "none" if row["low"] is None else f"{_points(row['low'], signed)} to {_points(row['high'], signed)}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def verdict(results: Mapping[str, Any]) -> str:
    """What the data show, in a sentence or three: the comparison, the paper's word on it, and the analysis."""
    return " ".join(filter(None, (_shown(results), _agreements(results["differences"]), results["finding"])))


def _shown(results: Mapping[str, Any]) -> str:
    differences = results["differences"]
    if not results["accuracies"]:
        costs = results["costs"]
        if not costs or len(costs["networks"]) < 2:
            return "Nothing was trained, so the data say nothing about accuracy."
        first = costs["rows"][0]
        rows = [r for r in costs["rows"] if r["batch"] == first["batch"] and r["size_px"] == first["size_px"]]
        fast, slow = (choose(rows, key=lambda r: r["ratio"]) for choose in (min, max))
        return (
            f"At {first['size_px']} px the times lie between {fast['ratio']:.2f} ({fast['configuration']}) and "
            f"{slow['ratio']:.2f} ({slow['configuration']}) times the baseline's; nothing was trained, so the data "
            "say nothing about accuracy."
        )
    if len(results["configurations"]) == 1:
        (row,) = results["accuracies"]
        return f"{row['configuration']} reaches {_points(row['mean'], False)} %."
    if not differences:
        return "There is no pair of runs with the same seed yet to compare."
    if all(row["low"] is None for row in differences):
        best = max(differences, key=lambda row: abs(row["mean"]))
        return (
            f"With one seed there is no interval and no test; the largest difference is {_points(best['mean'])} points "
            f"({best['configuration']} less {best['against']}), which may be chance."
        )
    told = [row for row in differences if _told(row)]
    pairs = min(row["n"] for row in differences)
    if all(row["low"] == row["high"] == 0 for row in differences):
        return (
            f"All configurations are equally accurate in each of {_plural(pairs, 'pair')} of runs: "
            "after this training, what they differ by makes no difference."
        )
    if not told:
        widest = max((row["high"] - row["low"]) / 2 for row in differences if row["low"] is not None)
        return (
            f"No difference can be told from chance with {_plural(pairs, 'pair')} of runs (paired t-tests, "
            f"corrected for {_plural(len(differences), 'comparison')}); the intervals reach up to "
            f"{100 * widest:.1f} points to either side."
        )
    said = " and ".join(
        f"{row['configuration']} is {_points(abs(row['mean']), False)} points "
        f"{'more' if row['mean'] > 0 else 'less'} accurate than {row['against']} "
        f"({_between(row)}, p {'' if row['p_corrected'] < 0.001 else '= '}{_p(row['p_corrected'])})"
        for row in told
    )
    rest = len(differences) - len(told)
    others = f"; the other {_plural(rest, 'difference')} may be chance" if rest else ""
    return f"With {_plural(pairs, 'pair')} of runs {said}{others}."


def _told(row: Mapping[str, Any]) -> bool:
    """Whether a difference can be told from chance."""
    return row["p_corrected"] is not None and row["p_corrected"] < LEVEL


def agreement(row: Mapping[str, Any]) -> str:
    """Whether a difference is what the paper says: "seen", "contradicted" or "cannot be told".

    Equal accuracy is seen where the interval lies within a point to either side.
    """
    if not row["paper"]:
        return ""
    if row["paper"] == "as":
        near = row["low"] is not None and max(abs(row["low"]), abs(row["high"])) <= 0.01
        return "contradicted" if _told(row) else "seen" if near else "cannot be told"
    if not _told(row):
        return "cannot be told"
    return "seen" if (row["mean"] > 0) == (row["paper"] == "more") else "contradicted"


def _agreements(differences: Sequence[Mapping[str, Any]]) -> str:
    """How the paper's comparisons fared, in a sentence; empty where there are none."""
    counts = Counter(agreement(row) for row in differences if row["paper"])
    if not counts:
        return ""
    parts = ", ".join(f"{counts[word]} {word}" for word in ("seen", "contradicted") if counts[word])
    untold = f"{counts['cannot be told']} cannot be told from chance" if counts["cannot be told"] else ""
    return f"Of the paper's {_plural(counts.total(), 'comparison')}: {', '.join(filter(None, (parts, untold)))}."


def limits(results: Mapping[str, Any]) -> str:
    """What the data cannot show: the end of the sentence "They cannot show ..."."""
    s = results["settings"]
    said = [f"whether it is so on ImageNet, with other networks than {s['model']}, other sizes and longer training"]
    if results["accuracies"]:
        if results["pictures"]:
            # Two standard deviations of a share of 80 %, of which the differences between networks see a part.
            spread = 200 * (0.8 * 0.2 / results["pictures"]) ** 0.5
            said.append(
                f"what other pictures would give, for all runs are tested on the same {results['pictures']} "
                f"(a single accuracy of 80 % is uncertain by {spread:.1f} points for that alone)"
            )
        if 2 <= len(results["seeds"]) < 10:
            said.append(
                f"small differences, for n = {len(results['seeds'])} is small, and the t-test takes them for normal"
            )
    return f"{'; nor '.join(said)}."


def accuracy_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines: each configuration with its accuracy."""
    lines = [
        [row["configuration"], str(row["n"]), _points(row["mean"], False), _between(row, False)]
        for row in results["accuracies"]
    ]
    return ["configuration", "runs", "accuracy, %", "95 % interval"], lines


def difference_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines: each comparison, and whether it is as the paper says."""
    headings = ["configuration", "less", "points", "95 % interval", "p", "p, corrected", "in the paper", "here"]
    lines = []
    for row in results["differences"]:
        line = [row["configuration"], row["against"], _points(row["mean"]), _between(row), _p(row["p"])]
        said = {"more": "more accurate", "less": "less accurate", "as": "as accurate"}.get(row["paper"], "")
        lines.append([*line, _p(row["p_corrected"]), said, agreement(row)])
    if not any(row["paper"] for row in results["differences"]):
        headings, lines = headings[:-2], [line[:-2] for line in lines]
    return headings, lines


def cost_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines: each configuration with its parameters, GMACs and times at each size."""
    costs = results["costs"]
    sizes = list(next(iter(costs["networks"].values()))["gmacs"])
    settings = list(dict.fromkeys((row["size_px"], row["batch"]) for row in costs["rows"]))
    headings = ["configuration", *(["width"] if results["matched"] else []), "parameters"]
    headings += [f"GMACs, {size} px" for size in sizes]
    for size, batch in settings:
        time = f"ms, {size} px" if batch == 1 else f"images/s, {size} px, batch {batch}"
        headings += [time, "time over the baseline's"]
    lines = []
    for name, network in costs["networks"].items():
        line = [name, *([str(network["model_args"].get("embed_dim", "its own"))] if results["matched"] else [])]
        line += [f"{network['parameters']:,}".replace(",", " "), *(f"{network['gmacs'][size]:.3f}" for size in sizes)]
        rows = {(r["size_px"], r["batch"]): r for r in costs["rows"] if r["configuration"] == name}
        for setting in settings:
            row = rows[setting]
            low, high = row["quartiles"]
            line.append(f"{row['median_ms']:.2f}" if row["batch"] == 1 else f"{row['images_per_s']:.1f}")
            line.append("1" if name == results["baseline"] else f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})")
        lines.append(line)
    return headings, lines


def _runs(results: Mapping[str, Any]) -> list[str]:
    done = {(r["configuration"], r["seed"]): r for r in results["runs"]}
    rows = []
    for name in results["configurations"]:
        cells = [done[name, seed] for seed in results["seeds"]]
        seconds = sum(r["training_s"] or 0 for r in cells)
        shown = [r["state"] if r["top1"] is None else _points(r["top1"], False) for r in cells]
        rows.append([name, *shown, say_time(seconds) if seconds else ""])
    headings = ["configuration", *(f"seed {seed}" for seed in results["seeds"]), "training"]
    return ["## Runs", "", "Accuracy in %.", "", *markdown_table(headings, rows)]


def to_markdown(results: Mapping[str, Any], picture: str | None = None) -> str:
    """The report of an experiment.

    Args:
        results: As `results.json` holds them.
        picture: Path of the picture, as seen from the report.
    """
    costs, s = results["costs"], results["settings"]
    lines = [f"# Experiment: {results['experiment']}", "", f"The claim: {results['claim']}", ""]
    lines += [f"**What the data show:** {verdict(results)}", "", f"**What they cannot show:** {limits(results)}", ""]
    unfinished = [r for r in results["runs"] if r["top1"] is None]
    if unfinished:
        lines += [
            f"**Incomplete: {len(unfinished)} of {_plural(len(results['runs']), 'run')} are not there yet; "
            "the same command goes on.**",
            "",
        ]
    if results["command"]:
        lines += [f"Made by `{results['command']}`.", ""]
    if picture:
        lines += [f"![Cost of the configurations, and what they differ by]({picture})", ""]
    if results["runs"]:
        n = len(results["seeds"])
        headings, rows = accuracy_table(results)
        lines += ["## Accuracy", ""]
        if n < 2:
            lines += ["One seed: there is no interval and no test; `--seeds 3` gives them.", ""]
        else:
            lines += [
                f"Mean over n = {n} seeds, which is {'few' if n < 10 else 'many'}, with t intervals.",
                "",
            ]
        lines += [*markdown_table(headings, rows), ""]
        where = f"the {results['pictures']} {'test' if results['split'] == 'test' else 'validation'} pictures"
        last = "" if results["split"] == "test" else " (the last epoch's weights, for none is chosen by them)"
        args = "".join(f", {k} {v}" for k, v in s["model_args"].items())
        lines += [
            f"Tested on {where} of {s['data']}{last}, {s['size']} px, {_plural(s['in_chans'], 'channel')}, "
            f"{_plural(s['views'], 'view')}; {s['model']}{args}, {_plural(s['epochs'], 'epoch')}, batch "
            f"{s['batch_size']}, learning rate {s['lr']:g}. `experiment.yaml` holds all options.",
            "",
        ]
    if results["differences"]:
        headings, rows = difference_table(results)
        lines += [
            "## Differences",
            "",
            f"Each configuration less {results['baseline']}, the baseline, and less what the paper compares it with, "
            "pair by pair, seed by seed, with t intervals; p is that of the paired t-test, and corrected after Holm "
            "for all comparisons in this table. It is left out where all pairs differ by the same.",
            "",
            *markdown_table(headings, rows, left=2),
            "",
        ]
    if results["analysis"]:
        lines += ["## Analysis", "", *results["analysis"], ""]
    if costs:
        headings, rows = cost_table(results)
        lines += [
            "## Cost",
            "",
            "Parameters and GMACs as trained, for 3 channels and 1 000 classes. Times are of the fused networks in "
            f"{costs['runtime']}, measured in turns, median of the rounds; the ratios are the median, and in brackets "
            "the quartiles, of the rounds.",
            "",
        ]
        if results["matched"]:
            lines += ["Widths were searched until a batch took the same time; the ratio says how near that came.", ""]
        lines += [*markdown_table(headings, rows), "", say_machine(costs["machine"]), ""]
    if results["runs"]:
        lines += [*_runs(results), ""]
    return "\n".join(lines)
