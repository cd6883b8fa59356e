"""A report states what its numbers show."""

import json

import pytest
from catalogue import EXPERIMENTS
from figures import draw_experiment
from paired import mean
from PIL import Image
from report import outcome, publish, to_markdown, verdict
from study import differences

from patnet import InputError

MACHINE = {"device": "CPU", "cpu": "A processor", "cores": 2, "instructions": "AVX2", "date": "2026-11-23"}
MACHINE |= {"versions": {"torch": "2.15"}}
RATIOS = {"1-4": [0.80, 0.81, 0.82], "1-8": [0.70, 0.711, 0.722], "1-2": [0.79, 0.83, 0.81]}


def results_of(accuracies, experiment="ratio", seeds=3, unmoved=()):
    """The content of `results.json` with these accuracies by configuration, of which the first is the baseline."""
    names = list(accuracies)
    by_seed = {name: dict(enumerate(found)) for name, found in accuracies.items()}
    networks = {name: {"parameters": 1234567, "gmacs": {"64": 0.1}, "model_kwargs": {}} for name in names}
    rows = [
        {"configuration": n, "size_px": 64, "batch": b, "median_ms": 2.0, "images_per_s": 500.0 * b}
        | {"ratio": 1 + i / 4, "low": 0.9, "high": 1.3}
        for b in (16, 1)
        for i, n in enumerate(names)
    ]
    runs = [
        {"configuration": n, "seed": s, "state": "finished" if s in by_seed[n] else "not started", "epochs": 1}
        | {"top1": by_seed[n].get(s), "training_s": 100.0, "unmoved": {"GCT": 0.001} if n in unmoved else {}}
        for n in names
        for s in range(seeds)
    ]
    settings = {"data": "elpv", "model": "patnet_t0", "model_kwargs": {}, "img_size": 64, "in_chans": 1, "epochs": 12}
    return {
        "experiment": experiment,
        "baseline": names[0],
        "command": "python experiments/run.py ratio",
        "settings": settings | {"batch_size": 32, "lr": 1e-4, "seed": 0, "seeds": seeds, "tta": 1},
        "configurations": names,
        "seeds": list(range(seeds)),
        "split": "test",
        "images": 656,
        "runs": runs if any(accuracies.values()) else [],
        "accuracies": [{"configuration": n, **mean(found)._asdict()} for n, found in accuracies.items() if found],
        "differences": differences(EXPERIMENTS[experiment], by_seed) if set(names) >= {"1-4"} else [],
        "costs": {"machine": MACHINE, "backend": "eager", "threads": 1, "networks": networks, "rows": rows},
    }


def test_a_clear_difference_is_significant_and_another_is_not():
    results = results_of(RATIOS)
    shown = verdict(results)
    assert shown.startswith("1-8 is 9.90 points less accurate than 1-4 (p < 0.001, 95 % CI -10.15 to -9.65)")
    assert shown.endswith(" 1 other difference is not significant.")
    text = to_markdown(results, ["report.png"])
    assert "| 1-8 | 71.10 | 68.37 to 73.83 | 70.00 | 71.10 | 72.20 | 5 min |" in text
    assert "| 1-8 | 1-4 | -9.90 | -10.15 to -9.65 | < 0.001 | < 0.001 |" in text
    assert "in the paper" not in text
    assert "| 1-4 | 1 234 567 | 0.100 | 8000.0 | 1 | 2.00 | 1 |" in text
    for part in (EXPERIMENTS["ratio"].claim, "656 test images", "run.py ratio", "A processor", "report.png", "3 seeds"):
        assert part in text
    assert "Incomplete" not in text


@pytest.mark.parametrize(
    ("expected", "low", "high", "p", "found"),
    [
        ("lower", -0.11, -0.09, 0.01, "seen"),
        ("higher", -0.11, -0.09, 0.01, "not seen"),
        ("equal", -0.11, -0.09, 0.01, "not seen"),
        ("higher", -0.05, 0.07, 0.6, "undecided"),
        ("equal", -0.05, 0.07, 0.6, "undecided"),
        ("equal", -0.004, 0.006, 0.6, "seen"),
        ("equal", 0.0, 0.0, None, "seen"),
        ("equal", None, None, None, "undecided"),
        (None, -0.11, -0.09, 0.01, ""),
    ],
)
def test_outcome_of_what_the_paper_states(expected, low, high, p, found):
    middle = 0.0 if low is None else (low + high) / 2
    assert outcome({"expected": expected, "mean": middle, "low": low, "high": high, "p_corrected": p}) == found


def test_what_is_not_significant_is_stated_with_p_and_interval():
    results = results_of({"1-4": [0.80, 0.81, 0.82], "1-8": [0.82, 0.80, 0.84]})
    shown = verdict(results)
    assert shown.startswith("No difference is significant (paired t-tests over 3 pairs of runs, p corrected for 1 ")
    assert "smallest p = 0.423, widest 95 % CI -3.30 to +5.30 points" in shown
    equal = results_of({"1-4": RATIOS["1-4"], "1-8": RATIOS["1-4"]})
    assert verdict(equal).startswith("All configurations are equally accurate in each of 3 pairs of runs")


def test_a_component_that_did_not_move_invalidates_its_comparisons():
    results = results_of({**RATIOS, "1-2": RATIOS["1-2"]}, unmoved=["1-8"])
    assert "Invalid: 3 runs of 1-8, in which the parameters of GCT hardly moved" in verdict(results)
    text = to_markdown(results)
    assert "| 1-8 (invalid) | 71.10 |" in text
    assert "| < 0.001 |  | invalid |" in text


@pytest.mark.parametrize("extra", [{}, {"1-2": []}])
def test_one_seed_has_neither_interval_nor_test(extra):
    results = results_of({"1-4": [0.80], "1-8": [0.90], **extra}, seeds=1)
    assert "no interval and no test; the largest difference is +10.00 points (1-8 - 1-4)" in verdict(results)
    text = to_markdown(results)
    assert "| 1-8 | 90.00 | none | 90.00 |" in text
    assert "| 1-8 | 1-4 | +10.00 | none | undefined | undefined |" in text
    assert ("**Incomplete: 1 of 3 runs is missing" in text) == bool(extra)
    draw_experiment(results)


def test_without_runs_there_are_costs_only():
    results = results_of({"1-4": [], "1-8": []}) | {"images": None, "split": None}
    assert "1.00 (1-4) and 1.25 (1-8) times that of 1-4" in verdict(results)
    text = to_markdown(results)
    assert "## Accuracy" not in text
    assert "## Cost" in text
    assert len(draw_experiment(results).axes) == 1
    assert len(draw_experiment(results_of(RATIOS)).axes) == 3


def test_reports_of_all_experiments_are_published(tmp_path):
    for name, results in (
        ("ratio", results_of(RATIOS)),
        ("redundancy", results_of({"patnet": [0.8]}, "redundancy", 1)),
    ):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "results.json").write_text(json.dumps(results))
    figures = {
        source: {"effective_rank": 3.0, "effective_rank_of_covariance": 2.0}
        for source in ("shuffled", "random weights")
    }
    quantiles = dict.fromkeys(("5", "50", "95"), 0.5)
    figures["network"] = {"effective_rank": 2.0, "effective_rank_of_covariance": 1.0, "nearest": quantiles}
    layer = {"label": "1.1", "channels": 8} | {s: f | {"correlation": quantiles} for s, f in figures.items()}
    analysis = {"configuration": "patnet", "images": 9, "layers": [layer]}
    (tmp_path / "runs" / "redundancy" / "analysis.json").write_text(json.dumps(analysis))
    page = publish(tmp_path / "runs", tmp_path / "docs").read_text()
    assert page.index("| [ratio](ratio/report.md) |") < page.index("| [redundancy](redundancy/report.md) |")
    assert "| 9 of 9 | 15 min |" in page
    assert "80.00 %. Over 9 images the effective rank is 25 % of the channels" in page
    files = {str(file.relative_to(tmp_path / "docs")) for file in (tmp_path / "docs").glob("*/*")}
    assert files == {"ratio/report.md", "ratio/report.png", "redundancy/report.md", "redundancy/rank.png"}
    assert "![Analysis: rank](rank.png)" in (tmp_path / "docs" / "redundancy" / "report.md").read_text()
    with Image.open(tmp_path / "docs" / "ratio" / "report.png") as image:
        assert image.width == 850
    (tmp_path / "runs" / "ratio" / "results.json").write_text("{")
    with pytest.raises(InputError, match="ratio: its results are damaged"):
        publish(tmp_path / "runs", tmp_path / "docs")
    with pytest.raises(InputError, match="none of its folders is an experiment"):
        publish(tmp_path / "docs", tmp_path / "docs")
