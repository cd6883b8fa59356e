"""The page's figure and tables, from the results of the runs."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from grid import BASELINE, CONFIGURATIONS, FAMILY, RATES, SEARCH_SEED, SIZES

from patnet import InputError
from patnet.bench import describe_machine, markdown_table
from patnet.files import save_figure, write_text

sys.path.append(str(Path(__file__).parents[1]))
from paired import Estimate, difference, holm, mean  # of the other experiments

HELD_OUT = ("kernel", "python")  # the mean of their bits per byte is what is compared
MARGIN = 1.0  # %: a smaller difference does not count
MARKS = ("<!-- results: lm.py report -->", "<!-- end of results -->")
Runs = dict[tuple[str, str], dict[int, dict[str, Any]]]  # by size and configuration, then by seed


def read_runs(out: Path) -> Runs:
    """The results of the runs."""
    runs: Runs = {}
    for path in sorted(out.glob("*-seed*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if run["seed"] != SEARCH_SEED:
            runs.setdefault((run["size"], run["configuration"]), {})[run["seed"]] = run
    return runs


def bits(run: dict[str, Any], texts: tuple[str, ...] = HELD_OUT) -> float:
    """Mean of a run's bits per byte over texts."""
    return sum(run["texts"][text]["bits_per_byte"] for text in texts) / len(texts)


def compare(runs: Runs, size: str, name: str, texts: tuple[str, ...] = HELD_OUT) -> Estimate | None:
    """The difference of bits per byte from the baseline in %, paired by seed, or None without runs of both."""
    ours, full = (runs.get((size, n), {}) for n in (name, BASELINE))
    if not (seeds := sorted(ours.keys() & full.keys())):
        return None
    relative = [100 * (bits(ours[s], texts) / bits(full[s], texts) - 1) for s in seeds]
    return difference(relative, [0.0] * len(relative))


def shown(found: Estimate | None, digits: int = 2) -> str:
    """An estimate with its interval."""
    if found is None:
        return "not measured"
    interval = f" ({found.low:.{digits}f} to {found.high:.{digits}f})" if found.low is not None else ""
    return f"{found.mean:.{digits}f}{interval}"


def verdict(found: Estimate, p: float | None) -> str:
    """What a difference from the baseline in % shows."""
    if found.low is None or found.high is None:
        return "one seed"
    if max(-found.low, found.high) <= MARGIN:
        return "within 1 %"
    if p is None or p >= 0.05:
        return f"not significant (p = {p:.2f})" if p is not None else "undecided"
    return f"{'worse' if found.mean > 0 else 'better'} (p = {p:.3f})"


def main_tables(runs: Runs, decoding: dict[str, Any], size: str) -> list[str]:
    """Costs and bits per byte of each configuration of a size, and the differences from the baseline."""
    names = [name for name in CONFIGURATIONS if (size, name) in runs]
    texts = list(next(iter(runs[size, names[0]].values()))["texts"])
    keys = [f"{what}_{n}" for what in ("prefill", "decode") for n in (256, 2048)]
    costs, rows, found = [], [], {name: compare(runs, size, name) for name in names if name != BASELINE}
    for name in names:
        run, speed = next(iter(runs[size, name].values())), decoding.get("rows", {}).get(name)
        speeds = [f"{speed[key]:.0f}" for key in keys] if speed else ["not measured"] * 4
        cache = f"{speed['cache_token']:.0f}" if speed else "not measured"
        estimates = [mean([bits(r, (t,)) for r in runs[size, name].values()]) for t in texts]
        costs.append(
            [name, str(len(runs[size, name])), str(run["parameters"]), f"{run['flops'] / 1e6:.2f}", cache, *speeds]
        )
        costs[-1] += [f"{e.mean:.4f}" for e in estimates]
    corrected = holm([e.p if e else None for e in found.values()])
    for (name, e), p in zip(found.items(), corrected, strict=True):
        others = [shown(compare(runs, size, name, (text,))) for text in texts if text not in (*HELD_OUT, "validation")]
        rows.append([name, shown(e), *others, verdict(e, p) if e else ""])
    other = [text for text in texts if text not in (*HELD_OUT, "validation")]
    head = ["configuration", "seeds", "parameters", "MFLOPs a token", "cache, bytes a token"]
    head += [f"{key.replace('_', ' at ')}, tokens/s" for key in keys]
    lines = [*markdown_table([*head, *texts], costs), ""]
    lines += ["The texts' columns are mean bits per byte. Differences from `full` in %, with 95 % intervals:", ""]
    return [*lines, *markdown_table(["configuration", "held-out text", *other, "verdict on held-out text"], rows), ""]


def draw(runs: Runs, decoding: dict[str, Any], size: str, path: Path) -> None:
    """Bits per byte against latency of decoding and against training FLOPs, a point for each configuration."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for i, name in enumerate(n for n in CONFIGURATIONS if (size, n) in runs):
        found = list(runs[size, name].values())
        e, speed, budget = mean([bits(run) for run in found]), decoding.get("rows", {}).get(name), found[0]["budget"]
        error = [[e.mean - e.low], [e.high - e.mean]] if e.low is not None and e.high is not None else None
        flops = 3 * found[0]["flops"] * budget["steps"] * budget["batch"] * budget["context"]
        format = ("s" if name == BASELINE else "o") + ("C1" if name.startswith("pat") else "C0")
        for axis, x in ((axes[0], 1000 / speed["decode_2048"] if speed else None), (axes[1], flops / 1e12)):
            if x is not None:
                axis.errorbar([x], [e.mean], error, fmt=format, capsize=2, linewidth=0.8)
                axis.annotate(name, (x, e.mean), (5, (4, -10)[i % 2]), textcoords="offset points", fontsize=8)
    axes[0].set(xlabel="decoding after 2 048 tokens, ms a token (one CPU thread)", ylabel="bits per byte, held-out")
    axes[1].set(xlabel="training, TFLOPs")
    for axis in axes:
        axis.margins(x=0.12)
    save_figure(figure, path)
    plt.close(figure)


def publish(out: Path, page: Path) -> None:
    """Write tables between the marks of the page, and the figure into `images/language.png` beside it.

    Raises:
        InputError: If there are no results, or the page has no marks.
    """
    runs, text = read_runs(out), page.read_text(encoding="utf-8") if page.exists() else ""
    if not runs:
        raise InputError(f"{out}: no results; train first, with lm.py train")
    if any(mark not in text for mark in MARKS):
        raise InputError(f"{page}: without the lines {' and '.join(MARKS)}, between which the results go")
    sizes = [size for size in SIZES if any(key[0] == size for key in runs)]
    measured = {s: json.loads(p.read_text()) for s in sizes if (p := out / f"decoding-{s}.json").exists()}
    lines = ["![Bits per byte against latency and training FLOPs](images/language.png)", ""]
    draw(runs, measured.get(sizes[0], {}), sizes[0], page.parent / "images" / "language.png")
    one = next(iter(next(iter(runs.values())).values()))
    lines += [f"Trained on: {one['device']}, torch {one['torch']}, {one['date']}."]
    lines += [f"Speed of `{s}`: {describe_machine(m['machine'])}, one thread." for s, m in measured.items()]
    for size in sizes:
        lines += ["", f"### Size `{size}`", "", *main_tables(runs, measured.get(size, {}), size)]
    names = [name for name in CONFIGURATIONS if sum((size, name) in runs for size in sizes) > 1 and name != BASELINE]
    rows = [[name, *(shown(compare(runs, size, name)) for size in sizes)] for name in names]
    lines += ["### Scaling", "", "Difference from `full` on held-out text in %, by size:", ""]
    lines += [*markdown_table(["configuration", *sizes], rows), "", "### nanoGPT's model", ""]
    plain, full = runs.get((sizes[0], "nanogpt"), {}), runs.get((sizes[0], BASELINE), {})
    pairs = [
        (full[s]["texts"][t]["perplexity"], plain[s]["texts"][t]["perplexity"])
        for s in full.keys() & plain.keys()
        for t in HELD_OUT
    ]
    ratio = f"{100 * (sum(a / b for a, b in pairs) / len(pairs) - 1):+.2f} %" if pairs else "not measured"
    lines += [f"Perplexity of `full` relative to it on held-out text: {ratio}.", "", "### Learning rates", ""]
    searched = {}
    for path in out.glob(f"*-seed{SEARCH_SEED}.json"):
        run = json.loads(path.read_text(encoding="utf-8"))
        searched[run["configuration"], run["rate"]] = f"{run['texts']['validation']['bits_per_byte']:.4f}"
    rows = [[n, *(searched.get((n, rate), "not measured") for rate in RATES)] for n in dict.fromkeys(FAMILY.values())]
    lines += ["Bits per byte of validation text:", "", *markdown_table(["configuration", *map(str, RATES)], rows), ""]
    before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    write_text(page, f"{before}{MARKS[0]}\n\n" + "\n".join(lines) + f"\n{MARKS[1]}{after}")
