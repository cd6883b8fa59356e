"""The page of the mechanism tests: answers with intervals, and for each test accuracy against difficulty."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from paired import Estimate, holm, mean, over_seeds
from pool import RESULTS, read
from report import format_p, insert, points

from patnet.bench import markdown_table
from patnet.files import save_figure
from patnet.train.figures import COLORS

from .protocol import MARGIN, SEEDS, TESTS, Claim, Test
from .training import runs_of

NAME = "experiments/mechanisms/run.py"
SOLVED = 0.75  # accuracy
UNMOVED = 0.002  # RMS of a table of positions that starts at 0: 0.01 over the 225 to 405 of 6 561 entries that are used
Accuracies = dict[tuple[str, str], dict[int, dict[str, float]]]  # by task and form, then by seed, then by level


def collect(runs: list[dict[str, Any]]) -> Accuracies:
    """The accuracies of the runs; those of several widths are levels of one form."""
    found: Accuracies = {}
    for run in runs:
        found.setdefault((run["task"], run["form"]), {}).setdefault(run["seed"], {}).update(run["accuracy"])
    return found


def side(found: Accuracies, task: str, form: str, levels: Sequence[float]) -> dict[int, float]:
    """Mean accuracy of a form over levels, by the seeds that have all of them."""
    names = [f"{level:g}" for level in levels]
    seeds = found.get((task, form), {}).items()
    return {seed: float(np.mean([a[name] for name in names])) for seed, a in seeds if a.keys() >= {*names}}


def compare(claim: Claim, found: Accuracies) -> Estimate | None:
    """The difference of a claim's two sides, over the seeds that both have."""
    first = side(found, claim.task, claim.first, claim.levels)
    chance = isinstance(claim.second, float)
    second = dict.fromkeys(first, claim.second) if chance else side(found, claim.task, claim.second, claim.levels)
    return over_seeds(first, second)


def answer(expected: str, found: Estimate | None, p: float | None) -> str:
    """Whether a claim is seen, in a word; `p` is corrected for the number of comparisons."""
    if found is None or found.low is None or found.high is None:
        return "not measured"
    significant = found.low == found.high or (p is not None and p < 0.05)
    within = max(-found.low, found.high) <= MARGIN
    beyond = significant and abs(found.mean) > MARGIN and not within
    if expected == "equal":
        return "seen" if within else "not seen" if beyond else "undecided"
    if within or (beyond and found.mean < 0):
        return "not seen"
    return "seen" if beyond else "undecided"


def untold(test: Test, found: Accuracies) -> set[float]:
    """Levels beyond those of the training at which no form solves a control, so that they tell nothing."""

    def best(task: str, level: float) -> float:
        return max(np.mean([*side(found, task, form, [level]).values()] or 1) for form in test.forms)

    beyond = [level for level in test.test if test.train and level not in test.train]
    return {level for level in beyond for task in test.controls if best(task, level) < SOLVED}


def answers(test: Test, runs: list[dict[str, Any]]) -> list[tuple[Claim, Estimate | None, float | None, str]]:
    """Each claim with its difference, corrected p value and answer."""
    found = collect(runs)
    compared = [compare(claim, found) for claim in test.claims]
    p, without = holm([estimate and estimate.p for estimate in compared]), untold(test, found)
    words = [
        "void" if without & {*claim.levels} else answer(claim.expected, difference, q)
        for claim, difference, q in zip(test.claims, compared, p, strict=True)
    ]
    return list(zip(test.claims, compared, p, words, strict=True))


def surpassed(claim: Claim, test: Test, found: Accuracies) -> str:
    """The form that is more accurate than both sides of a claim by more than the margin, if there is one."""
    sides = {form: side(found, claim.task, form, claim.levels) for form in test.forms}
    if claim.expected != "higher" or not (seeds := set.intersection(*map(set, sides.values()))):
        return ""
    means = {form: float(np.mean([values[seed] for seed in seeds])) for form, values in sides.items()}
    best, pair = max(means, key=lambda form: means[form]), {*means} & {claim.first, claim.second}
    if means[best] - max(means[form] for form in pair) <= MARGIN:
        return ""
    shown = ", ".join(f"`{form}` {100 * means[form]:.1f} %" for form in means if form in pair)
    levels = ", ".join(f"{level:g}" for level in claim.levels)
    return f"`{best}` with {100 * means[best]:.1f} % in {claim.task} at {levels} ({shown})"


def draw(test: Test, runs: list[dict[str, Any]]) -> Figure:
    """Accuracy against difficulty, a panel for each task and a line for each form: seeds, mean, and 95 % interval."""
    found = collect(runs)
    columns = min(len(test.tasks), 3)
    rows = -(-len(test.tasks) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.4, 2.9 * rows + 0.7), layout="constrained")
    places = np.arange(len(test.test))
    for i, task in enumerate(test.tasks):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.axhline(50, color="0.5", lw=1, ls=":", label="chance")
        if test.ceiling:
            label = "highest possible"
            axes.plot(places, [100 * test.ceiling[level] for level in test.test], color="0.5", ls="--", label=label)
        for j, form in enumerate(test.forms):
            seeds = [[*side(found, task, form, [level]).values()] or [np.nan] for level in test.test]
            estimates = [mean(values) for values in seeds]
            middle, bars = 100 * np.array([(e.mean, e.half) for e in estimates]).T
            shift = 0.05 * (j - (len(test.forms) - 1) / 2)
            style = {"marker": "osD^v"[j % 5], "ms": 4, "lw": 1.4, "capsize": 2, "color": COLORS[j % len(COLORS)]}
            axes.errorbar(places + shift, middle, bars, label=form, **style)
            for place, values in zip(places + shift, seeds, strict=True):  # some learn a task that others do not
                axes.plot([place] * len(values), 100 * np.array(values), ".", ms=4, alpha=0.35, color=style["color"])
        axes.set_title(f"{task}{' (control)' * (task in test.controls)}", fontsize=10)
        axes.set_xticks(places, [f"{level:g}" for level in test.test], fontsize=8)
        axes.set_ylim(42, 101.5)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if i % columns == 0:
            axes.set_ylabel("accuracy, %", fontsize=9)
    figure.supxlabel(test.difficulty, fontsize=9)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def section(name: str, runs: list[dict[str, Any]]) -> list[str]:
    """The lines of a test."""
    test = TESTS[name]
    cost = sum(run["seconds"] for run in runs) / 60
    lines = ["", f"## {name}", "", f"{test.question} {test.steps} steps; learning rate {test.lr:g}.", ""]
    lines.append(f"{len(runs)} of {len(runs_of(test, SEEDS))} runs, {cost:.0f} min in all: `python {NAME} {name}`")
    tested = [run for run in runs if run["task"] not in test.controls]  # in a control no position has to be learned
    still = sorted({run["form"] for run in tested if run["moved"] is not None and run["moved"] < UNMOVED})
    if still:
        lines[-1] += f". Tables of positions that did not move from 0 in some run: {', '.join(still)}."
    rows = []
    for claim, found, p, word in answers(test, runs):
        second = claim.second if isinstance(claim.second, str) else "chance"
        levels = ", ".join(f"{level:g}" for level in claim.levels)
        compared = f"{claim.first} {'>' if claim.expected == 'higher' else '='} {second}"
        numbers = [points(found), str(found.n), format_p(p)] if found else ["-", "0", "-"]
        rows.append([claim.text, f"{claim.task} at {levels}", compared, *numbers, word])
    headings = ["claim", "task", "comparison", "points (95 % CI)", "seeds", "p", "answer"]
    lines += ["", *markdown_table(headings, rows, left=3)]
    if better := [text for claim in test.claims if (text := surpassed(claim, test, collect(runs)))]:
        lines += ["", f"More accurate than both sides of a comparison, by more than the margin: {'; '.join(better)}."]
    if levels := sorted(untold(test, collect(runs))):
        shown = ", ".join(f"{level:g}" for level in levels)
        lines += ["", f"Void: at {shown} no form solves the control either, so accuracy there tells nothing."]
    if runs:
        lines += ["", f"![Accuracy of the test {name} against difficulty](mechanisms/{name}.png)"]
    return lines


def publish(out: Path, page: Path) -> str:
    """Write the page and its figures from the results in `out`; gives a line of what was found."""
    lines, words = [], []
    for name, test in TESTS.items():
        runs = read(out / name / RESULTS)
        lines += section(name, runs)
        words += [word for *_, word in answers(test, runs)]
        if runs:
            save_figure(draw(test, runs), page.parent / "mechanisms" / f"{name}.png")
    kinds = ("seen", "not seen", "undecided", "void", "not measured")
    counts = ", ".join(f"{words.count(kind)} {kind}" for kind in kinds)
    insert(page, "\n".join([f"Of {len(words)} comparisons: {counts}.", *lines]))
    return f"{page}: {counts}"
