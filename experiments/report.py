"""The report of an experiment in Markdown, from its `results.json`: what the data show, and what they cannot show."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from catalogue import EXPERIMENTS
from figures import draw_experiment
from PIL import Image
from study import MOVED

from patnet import InputError
from patnet.bench import describe_machine, markdown_table
from patnet.files import save_figure, write_text
from patnet.train.callbacks import format_duration

LEVEL = 0.05
MARGIN = 0.01  # accuracies are equal if the interval of their difference is within one point
EXPECTED = {"higher": "more accurate", "lower": "less accurate", "equal": "as accurate"}
SEEN, NOT_SEEN, UNDECIDED = "seen", "not seen", "undecided"


def percent(value: float, sign: str = "") -> str:
    """A share in percent, or a difference of shares in percentage points (`sign="+"`)."""
    return f"{100 * value:{sign}.2f}"


def format_p(p: float | None, equal: str = "") -> str:
    """A p value, such as `0.041` or `< 0.001`; the former after `equal`."""
    return "undefined" if p is None else "< 0.001" if p < 0.001 else f"{equal}{p:.3f}"


def interval(row: Mapping[str, Any], sign: str = "") -> str:
    """The 95 % interval of an estimate."""
    return "none" if row["low"] is None else f"{percent(row['low'], sign)} to {percent(row['high'], sign)}"


def plural(count: int, noun: str) -> str:
    """`3 runs`, `1 run`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def significant(row: Mapping[str, Any]) -> bool:
    """Whether a difference is significant after the correction for all differences."""
    return row["p_corrected"] is not None and row["p_corrected"] < LEVEL


def outcome(row: Mapping[str, Any]) -> str:
    """Whether a difference is what the paper states: seen, not seen or undecided; empty if the paper states none."""
    if row["expected"] == "equal":
        equal = row["low"] is not None and max(abs(row["low"]), abs(row["high"])) <= MARGIN
        return NOT_SEEN if significant(row) else SEEN if equal else UNDECIDED
    if row["expected"] is None or not significant(row):
        return UNDECIDED if row["expected"] else ""
    return SEEN if (row["mean"] > 0) == (row["expected"] == "higher") else NOT_SEEN


def unmoved(results: Mapping[str, Any]) -> dict[tuple[str, str], list[float]]:
    """The RMS changes of components that training did not move, by configuration and component."""
    found: dict[tuple[str, str], list[float]] = {}
    for run in results["runs"]:
        for component, rms in run["unmoved"].items():
            found.setdefault((run["configuration"], component), []).append(rms)
    return found


def verdict(results: Mapping[str, Any]) -> str:
    """What the data show: the comparison, the paper's claims, invalid runs, and the finding of the analysis."""
    parts = [_comparison(results) if results["accuracies"] else _costs(results)]
    counts = Counter(outcome(row) for row in results["differences"] if row["expected"])
    if counts:
        listed = ", ".join(f"{counts[word]} {word}" for word in (SEEN, NOT_SEEN, UNDECIDED) if counts[word])
        parts.append(f"Of the paper's {plural(counts.total(), 'comparison')}: {listed}.")
    for (name, component), changes in unmoved(results).items():
        parts.append(
            f"Invalid: {plural(len(changes), 'run')} of {name}, in which the parameters of {component} hardly moved "
            f"from their initial values (RMS change at most {max(changes):.4f}, and {MOVED} is required)."
        )
    return " ".join([*parts, *([results["finding"]] if results.get("finding") else [])])


def _costs(results: Mapping[str, Any]) -> str:
    untrained = "Nothing was trained, so the data show nothing about accuracy."
    costs = results["costs"]
    if not costs or len(costs["networks"]) < 2:
        return untrained
    first = costs["rows"][0]
    size, batch = first["size_px"], first["batch"]
    rows = [row for row in costs["rows"] if (row["size_px"], row["batch"]) == (size, batch)]
    low, high = (choose(rows, key=lambda row: row["ratio"]) for choose in (min, max))
    return (
        f"At {size} px, batch {batch}, latencies are between {low['ratio']:.2f} ({low['configuration']}) and "
        f"{high['ratio']:.2f} ({high['configuration']}) times that of {results['baseline']}. {untrained}"
    )


def _comparison(results: Mapping[str, Any]) -> str:
    rows = results["differences"]
    if len(results["configurations"]) == 1:
        return f"The top-1 accuracy of {results['baseline']} is {percent(results['accuracies'][0]['mean'])} %."
    if not rows:
        return "No two configurations have a finished run with the same seed."
    pairs = plural(min(row["n"] for row in rows), "pair")
    if all(row["low"] is None for row in rows):
        row = max(rows, key=lambda row: abs(row["mean"]))
        return (
            "With one seed there is no interval and no test; the largest difference is "
            f"{percent(row['mean'], '+')} points ({row['configuration']} - {row['baseline']})."
        )
    if all(row["low"] == row["high"] == 0 for row in rows):
        return f"All configurations are equally accurate in each of {pairs} of runs."
    tests = f"paired t-tests over {pairs} of runs, p corrected for {plural(len(rows), 'comparison')}"
    listed = [
        f"{row['configuration']} is {percent(abs(row['mean']))} points {'more' if row['mean'] > 0 else 'less'} "
        f"accurate than {row['baseline']} (p {format_p(row['p_corrected'], '= ')}, 95 % CI {interval(row, '+')})"
        for row in rows
        if significant(row)
    ]
    if not listed:
        smallest = min((row["p_corrected"] for row in rows if row["p_corrected"] is not None), default=None)
        widest = max((row for row in rows if row["low"] is not None), key=lambda row: row["high"] - row["low"])
        return (
            f"No difference is significant ({tests}; smallest p {format_p(smallest, '= ')}, widest 95 % CI "
            f"{interval(widest, '+')} points)."
        )
    rest = len(rows) - len(listed)
    others = f" {plural(rest, 'other difference')} {'is' if rest == 1 else 'are'} not significant." if rest else ""
    return f"{'; '.join(listed)} ({tests}).{others}"


def limits(results: Mapping[str, Any]) -> str:
    """What the data cannot show."""
    seeds, images = len(results["seeds"]), results["images"]
    model = results["settings"]["model"]
    sentences = [f"Other data, sizes and networks than {model}, or longer training, may give other results."]
    if results["accuracies"]:
        sentences.append(
            f"All runs are tested on the same {images} images; the 95 % CI of a single accuracy of 80 % over other "
            f"images would be +-{196 * (0.8 * 0.2 / images) ** 0.5:.1f} points."
        )
        if 2 <= seeds < 10:
            sentences.append(
                f"With {seeds} seeds only large differences are significant; the t-test assumes normality."
            )
    return " ".join(sentences)


def accuracy_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: each configuration with its mean accuracy, its interval and its runs."""
    invalid = {name for name, _ in unmoved(results)}
    means = {row["configuration"]: row for row in results["accuracies"]}
    rows = []
    for name in results["configurations"]:
        runs = [run for run in results["runs"] if run["configuration"] == name]
        estimate = [percent(means[name]["mean"]), interval(means[name])] if name in means else ["", ""]
        cells = [run["state"] if run["top1"] is None else percent(run["top1"]) for run in runs]
        seconds = sum(run["training_s"] or 0 for run in runs)
        rows.append([name + " (invalid)" * (name in invalid), *estimate, *cells, format_duration(seconds)])
    seeds = [f"seed {seed}" for seed in results["seeds"]]
    return ["configuration", "top-1, %", "95 % CI", *seeds, "training"], rows


def difference_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: each comparison, and whether it is as the paper states."""
    invalid = {name for name, _ in unmoved(results)}
    rows = []
    for row in results["differences"]:
        here = "invalid" if invalid & {row["configuration"], row["baseline"]} else outcome(row)
        estimate = [percent(row["mean"], "+"), interval(row, "+"), format_p(row["p"]), format_p(row["p_corrected"])]
        rows.append([row["configuration"], row["baseline"], *estimate, EXPECTED.get(row["expected"], ""), here])
    columns = 8 if any(row[-1] for row in rows) else 6
    headings = ["configuration", "baseline", "points", "95 % CI", "p", "p, corrected", "in the paper", "here"]
    return headings[:columns], [row[:columns] for row in rows]


def cost_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: parameters, GMACs and latency of each configuration at each size."""
    costs, matched = results["costs"], EXPERIMENTS[results["experiment"]].matched
    sizes = list(next(iter(costs["networks"].values()))["gmacs"])
    settings = dict.fromkeys((row["size_px"], row["batch"]) for row in costs["rows"])
    headings = ["configuration", "parameters", *(f"GMACs, {size} px" for size in sizes)]
    for size, batch in settings:
        headings += [f"ms, {size} px" if batch == 1 else f"images/s, {size} px, batch {batch}", "relative latency"]
    rows = []
    for name, network in costs["networks"].items():
        width = f", width {network['model_kwargs'].get('embed_dim', 'default')}" if matched else ""
        cells = [name + width, f"{network['parameters']:,}".replace(",", " ")]
        cells += [f"{network['gmacs'][size]:.3f}" for size in sizes]
        for row in (row for row in costs["rows"] if row["configuration"] == name):
            relative = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
            speed = f"{row['median_ms']:.2f}" if row["batch"] == 1 else f"{row['images_per_s']:.1f}"
            cells += [speed, "1" if name == results["baseline"] else relative]
        rows.append(cells)
    return headings, rows


def to_markdown(results: Mapping[str, Any], figures: Sequence[str] = ()) -> str:
    """The report, from the content of `results.json` with `finding` and `analysis`, if any, and names of figures."""
    experiment, costs, s = EXPERIMENTS[results["experiment"]], results["costs"], results["settings"]
    parts = [f"# Experiment: {results['experiment']}", f"Claim: {experiment.claim}"]
    parts += [f"**What the data show:** {verdict(results)}", f"**What they cannot show:** {limits(results)}"]
    missing = sum(run["top1"] is None for run in results["runs"])
    if missing:
        runs = f"{missing} of {plural(len(results['runs']), 'run')} {'is' if missing == 1 else 'are'} missing"
        parts.append(f"**Incomplete: {runs}; the same command resumes.**")
    if results["command"]:
        parts.append(f"Command: `{results['command']}`")
    if "report.png" in figures:
        parts.append("![Latency and accuracy of the configurations](report.png)")
    if results["accuracies"]:
        note = "validation images, which chose the best epoch, so that the last one is tested,"
        note = "test images" if results["split"] == "test" else note
        arguments = "".join(f", {key} {value}" for key, value in s["model_kwargs"].items())
        parts += [
            "## Accuracy",
            f"Top-1 accuracy on the {results['images']} {note} of {s['data']}; mean over seeds with its t interval. "
            f"{s['model']}{arguments}, {s['img_size']} px, {plural(s['in_chans'], 'channel')}, "
            f"{plural(s['epochs'], 'epoch')}, batch size {s['batch_size']}, learning rate {s['lr']:g}, TTA with "
            f"{plural(s['tta'], 'view')}.",
            "\n".join(markdown_table(*accuracy_table(results))),
        ]
    if results["differences"]:
        parts += [
            "## Differences",
            "Differences of accuracy (configuration - baseline) over pairs of runs with the same seed, with t "
            "intervals and paired t-tests; p corrected after Holm for all rows, undefined if all pairs differ equally.",
            "\n".join(markdown_table(*difference_table(results), left=2)),
        ]
    if results.get("analysis"):
        parts += ["## Analysis", results["analysis"]]
        parts += [f"![Analysis: {Path(name).stem}]({name})" for name in figures if name != "report.png"]
    if costs:
        matched = " Widths are chosen for equal latency of a batch." * experiment.matched
        parts += [
            "## Cost",
            "Parameters and GMACs of the unfused networks with 3 channels and 1 000 classes. Latency of the fused "
            f"networks in {costs['backend']} with {plural(costs['threads'], 'thread')}, measured interleaved, median "
            f"over rounds, and relative to that of {experiment.baseline}, with quartiles over rounds.{matched}",
            "\n".join(markdown_table(*cost_table(results))),
            describe_machine(costs["machine"]),
        ]
    return "\n\n".join(parts) + "\n"


def render(path: Path, out: Path) -> dict[str, Any]:
    """Write the report of the experiment in `path` and its figures to `out`; give what it is made of."""
    try:
        results: dict[str, Any] = json.loads((path / "results.json").read_text(encoding="utf-8"))
        module = EXPERIMENTS[results["experiment"]].analysis
        figures = {"report": draw_experiment(results)} if len(results["configurations"]) > 1 else {}
        if module is not None and (path / "analysis.json").exists():
            analysis = json.loads((path / "analysis.json").read_text(encoding="utf-8"))
            if "error" in analysis:
                results["analysis"] = f"There is none: {analysis['error']}."
            else:
                results |= {"finding": module.finding(analysis), "analysis": module.to_markdown(analysis)}
                figures |= module.draw(analysis)
        text = to_markdown(results, [f"{name}.png" for name in figures])
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{path}: its results are damaged ({error!r}); the command of the experiment writes them"
        raise InputError(message) from error
    for name, figure in figures.items():
        file = save_figure(figure, out / f"{name}.png", dpi=100)
        with Image.open(file) as image:  # 256 colours take a third of the space
            image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    write_text(out / "report.md", text)
    return results


def publish(folder: Path, out: Path) -> Path:
    """Write the reports of the experiments in a folder to `out/NAME`, and `results.md`, a table of what they show."""
    rows = {}
    for file in folder.glob("*/results.json"):
        results = render(file.parent, out / file.parent.name)
        done = [run for run in results["runs"] if run["top1"] is not None]
        rows[results["experiment"]] = [
            f"[{file.parent.name}]({file.parent.name}/report.md)",
            EXPERIMENTS[results["experiment"]].claim,
            verdict(results),
            f"{len(done)} of {len(results['runs'])}" if done else "costs only",
            format_duration(sum(run["training_s"] or 0 for run in done)) if done else "",
        ]
    if not rows:
        raise InputError(f"{folder}: none of its folders is an experiment with results; give the folder above them")
    headings = ["experiment", "claim", "what the data show", "runs", "training"]
    table = markdown_table(headings, [rows[name] for name in EXPERIMENTS if name in rows], left=5)
    introduction = (
        "Each report has the claim, what the data show and what they cannot show, accuracies, costs and the command. "
        "`python experiments/run.py report` writes them and this page."
    )
    page = "\n\n".join(["# The paper's claims: results", introduction, "\n".join(table)])
    write_text(out / "results.md", f"{page}\n")
    return out / "results.md"
