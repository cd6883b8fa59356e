"""The page of the mechanism tests: answers with intervals, and for each test accuracy against difficulty."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from paired import Estimate, difference, holm, mean
from pool import RESULTS, read
from report import format_p, points

from patnet.bench import markdown_table
from patnet.files import atomic_write, write_text
from patnet.train.figures import COLORS

from .protocol import BATCH_SIZE, MARGIN, SEEDS, TEST_IMAGES, TESTS, Claim, Test
from .training import keys_of

SOLVED = 0.75  # accuracy
UNMOVED = 0.01  # RMS of a table of positions that starts at 0
Accuracies = Mapping[tuple[str, str, str], Mapping[int, float]]  # by task, form and level, then by seed


def by_level(runs: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[int, float]]:
    """Accuracies by task, form and level, then by seed."""
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for run in runs:
        for level, accuracy in run["accuracy"].items():
            found.setdefault((run["task"], run["form"], level), {})[run["seed"]] = accuracy
    return found


def compare(claim: Claim, found: Accuracies) -> Estimate | None:
    """The difference of a claim's two sides, over the seeds that all of its levels have; None with fewer than two."""

    def of(form: str) -> list[Mapping[int, float]]:
        return [found.get((claim.task, form, f"{level:g}"), {}) for level in claim.levels]

    first = of(claim.first)
    seeds = sorted(set.intersection(*({*level} for level in first)))
    second = of(claim.second) if isinstance(claim.second, str) else [dict.fromkeys(seeds, claim.second)]
    seeds = [seed for seed in seeds if all(seed in level for level in second)]
    if len(seeds) < 2:
        return None
    values, others = ([float(np.mean([level[seed] for level in side])) for seed in seeds] for side in (first, second))
    return difference(values, others)


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
        values = [found.get((task, form, f"{level:g}"), {0: 1.0}).values() for form in test.forms]
        return max(float(np.mean(list(accuracies))) for accuracies in values)

    beyond = [level for level in test.test if test.train and level not in test.train]
    return {level for level in beyond for task in test.controls if best(task, level) < SOLVED}


def answers(test: Test, runs: list[dict[str, Any]]) -> list[tuple[Claim, Estimate | None, float | None, str]]:
    """Each claim with its difference, corrected p value and answer."""
    found = by_level(runs)
    compared = [compare(claim, found) for claim in test.claims]
    p, without = holm([estimate and estimate.p for estimate in compared]), untold(test, found)
    words = [
        "invalid" if without & {*claim.levels} else answer(claim.expected, difference, q)
        for claim, difference, q in zip(test.claims, compared, p, strict=True)
    ]
    return list(zip(test.claims, compared, p, words, strict=True))


def draw(test: Test, runs: list[dict[str, Any]]) -> Figure:
    """Accuracy against difficulty, a panel for each task and a line for each form, with 95 % intervals of the mean."""
    found = by_level(runs)
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
            estimates = [mean(list(found.get((task, form, f"{level:g}"), {0: np.nan}).values())) for level in test.test]
            middle = np.array([e.mean for e in estimates])
            low, high = (np.array([np.nan if e[k] is None else e[k] for e in estimates], float) for k in (2, 3))
            shift = 0.05 * (j - (len(test.forms) - 1) / 2)
            bars = 100 * np.stack((middle - low, high - middle))
            style = {"marker": "osD^v"[j % 5], "ms": 4, "lw": 1.4, "capsize": 2, "color": COLORS[j % len(COLORS)]}
            axes.errorbar(places + shift, 100 * middle, np.nan_to_num(bars), label=form, **style)
        axes.set_title(f"{task}{' (control)' * (task in test.controls)}", fontsize=10)
        axes.set_xticks(places, [f"{level:g}" for level in test.test], fontsize=8)
        axes.set_ylim(45, 101.5)
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
    whole = len(keys_of(test)) * len(SEEDS)
    cost = sum(run["seconds"] for run in runs) / 60
    lines = ["", f"## {name}", "", f"{test.question} {test.steps} steps; learning rate {test.lr:g}.", ""]
    lines.append(f"{len(runs)} of {whole} runs, {cost:.0f} min in all: `python experiments/mechanisms/run.py {name}`")
    still = sorted({r["form"] for r in runs if r["moved"] is not None and r["moved"] < UNMOVED})
    if still:
        lines[-1] += f". Tables of positions that did not move from 0 in some run: {', '.join(still)}."
    rows = []
    for claim, found, p, word in answers(test, runs):
        second = claim.second if isinstance(claim.second, str) else "chance"
        levels = ", ".join(f"{level:g}" for level in claim.levels)
        cells = [
            claim.text,
            f"{claim.task} at {levels}",
            f"{claim.first} {'>' * (claim.expected == 'higher') or '='} {second}",
        ]
        numbers = [points(found), str(found.n), format_p(p)] if found else ["-", "0", "-"]
        rows.append([*cells, *numbers, word])
    headings = ["claim", "task", "comparison", "points (95 % CI)", "seeds", "p", "answer"]
    lines += ["", *markdown_table(headings, rows, left=3)]
    if levels := sorted(untold(test, by_level(runs))):
        shown = ", ".join(f"{level:g}" for level in levels)
        lines += ["", f"Invalid: at {shown} no form solves the control either, so accuracy there tells nothing."]
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
            with atomic_write(page.parent / "mechanisms" / f"{name}.png") as file:
                draw(test, runs).savefig(file, dpi=110)
    counts = ", ".join(
        f"{words.count(word)} {word}" for word in ("seen", "not seen", "undecided", "invalid", "not measured")
    )
    intro = f"""# Mechanisms on synthetic tasks

Small networks of the package's blocks on tasks whose right answer is known: images and labels are drawn anew in every
step, both labels equally often. Each test has a control in which the mechanism cannot help. The protocol (networks,
budgets, seeds, comparisons and their order) is `experiments/mechanisms/protocol.py`, which a run refuses to change
afterwards; the tasks are `experiments/mechanisms/tasks.py`. Results of three seeds were seen before two tests changed,
and dropped: of `position`, where the networks took the mean over positions and none solved the control at new sizes,
and of `paths`, where half of the steps at three times the learning rate taught some seeds nothing. Of `relation` a
network with smaller initial weights was seen once, with seed 0.

Of {len(words)} comparisons: {counts}.

Differences of accuracy are paired by seed, means over the levels named, with t intervals; p is corrected after Holm
within a test. *Seen*: significant, beyond {100 * MARGIN:g} points and as expected, or for "=" an interval within
+-{100 * MARGIN:g} points. *Not seen*: significantly the other way, or for ">" an interval within +-{100 * MARGIN:g}
points. *Invalid*: at a level that was not trained no form solves the control. Otherwise *undecided*. An interval of 0
and an undefined p: both networks solve the task in every seed, so that a difference on harder ones is not excluded.
Batches of {BATCH_SIZE} images, {TEST_IMAGES} test images at each level, {len(SEEDS)} seeds planned; answers from fewer
are preliminary, for which p is not corrected. Minutes are those of a busy machine.

`make mechanisms` runs what is missing and writes this page."""
    write_text(page, intro + "\n" + "\n".join(lines) + "\n")
    return f"{page}: {counts}"
