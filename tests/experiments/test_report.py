"""What a report says follows from its numbers."""

import pytest

from patnet.experiments.figures import draw_experiment
from patnet.experiments.report import agreement, limits, to_markdown, verdict
from patnet.experiments.statistics import difference, holm, mean

MACHINE = {
    "device": "CPU",
    "cpu": "A processor",
    "cores": 2,
    "instructions": "AVX2",
    "threads": [1],
    "versions": {"torch": "2.15"},
    "date": "2026-11-23",
}


def made(found, seeds=3, paper=None, **more):
    """Results with these accuracies by configuration, the first of which is the baseline."""
    paper = paper or {}
    names = list(found)
    base = found[names[0]]
    differences = [
        {
            "configuration": n,
            "against": names[0],
            "paper": paper.get(n),
            **difference(found[n], base)._asdict(),
            "pairs": [a - b for a, b in zip(found[n], base, strict=True)],
        }
        for n in names[1:]
        if found[n]
    ]
    for row, p in zip(differences, holm([row["p"] for row in differences]), strict=True):
        row["p_corrected"] = p
    networks = {n: {"parameters": 1234567, "gmacs": {"64": 0.1}, "model": "patnet_t0", "model_args": {}} for n in names}
    rows = [
        {"configuration": n, "size_px": 64, "batch": b, "median_ms": 2.0, "p95_ms": 3.0, "images_per_s": 500.0 * b}
        | {"ratio": 1 + i / 4, "quartiles": [0.9, 1.3], "rounds": 5}
        for b in (16, 1)
        for i, n in enumerate(names)
    ]
    runs = [
        {"configuration": n, "seed": s, "state": "finished" if s < len(found[n]) else "not begun", "epochs": 1}
        | {"top1": found[n][s] if s < len(found[n]) else None, "training_s": 100.0, "folder": "x"}
        for n in names
        for s in range(seeds)
    ]
    settings = {"data": "elpv", "model": "patnet_t0", "model_args": {}, "size": 64, "in_chans": 1, "epochs": 12}
    return {
        "experiment": "ratio",
        "claim": "A quarter is enough.",
        "baseline": names[0],
        "complete": all(r["top1"] is not None for r in runs),
        "command": "patnet experiment ratio",
        "settings": settings | {"batch_size": 32, "lr": 1e-4, "seed": 0, "seeds": seeds, "views": 1},
        "configurations": names,
        "seeds": list(range(seeds)),
        "split": "test",
        "pictures": 656,
        "confidence": 0.95,
        "runs": runs,
        "accuracies": [{"configuration": n, **mean(found[n])._asdict()} for n in names if found[n]],
        "differences": differences,
        "costs": {"machine": MACHINE, "runtime": "eager", "networks": networks, "rows": rows},
        "matched": False,
        "finding": "",
        "analysis": [],
        **more,
    }


CLEAR = {"1-4": [0.80, 0.81, 0.82], "1-8": [0.70, 0.711, 0.722], "1-2": [0.79, 0.83, 0.81]}


def test_a_clear_difference_is_told_and_the_other_is_not():
    results = made(CLEAR)
    said = verdict(results)
    assert said.startswith("With 3 pairs of runs 1-8 is 9.90 points less accurate than 1-4 (")
    assert said.endswith("; the other 1 difference may be chance.")
    assert "n = 3 is small" in limits(results)
    assert "ImageNet" in limits(results)
    text = to_markdown(results, "report.png")
    assert "| 1-8 | 3 | 71.10 | 68.37 to 73.83 |" in text
    assert "| 1-8 | 1-4 | -9.90 | -10.15 to -9.65 | < 0.001 | < 0.001 |" in text
    assert "the paper's" not in text
    assert "| 1-4 | 1 234 567 | 0.100 | 8000.0 | 1 | 2.00 | 1 |" in text
    for part in ("A quarter is enough.", "656 test pictures", "patnet experiment ratio", "A processor", "report.png"):
        assert part in text
    assert "Incomplete" not in text


@pytest.mark.parametrize(
    ("paper", "found", "said"),
    [
        ("less", [0.70, 0.711, 0.722], "seen"),
        ("more", [0.70, 0.711, 0.722], "contradicted"),
        ("as", [0.70, 0.711, 0.722], "contradicted"),
        ("more", [0.79, 0.83, 0.81], "cannot be told"),
        ("as", [0.79, 0.83, 0.81], "cannot be told"),
        ("as", [0.801, 0.8095, 0.8208], "seen"),
    ],
)
def test_what_the_paper_says_is_held_against_the_data(paper, found, said):
    results = made({"1-4": [0.80, 0.81, 0.82], "1-8": found}, paper={"1-8": paper})
    assert agreement(results["differences"][0]) == said
    untold = " from chance" if said == "cannot be told" else ""
    assert verdict(results).endswith(f"Of the paper's 1 comparison: {'1 ' + said}{untold}.")
    assert f"| {said} |" in to_markdown(results)


def test_chance_is_called_chance():
    results = made({"1-4": [0.80, 0.81, 0.82], "1-8": [0.82, 0.80, 0.84]})
    assert verdict(results).startswith("No difference can be told from chance with 3 pairs of runs")


def test_equal_accuracies_are_called_equal():
    results = made({"1-4": [0.80, 0.81, 0.82], "1-8": [0.80, 0.81, 0.82]})
    assert verdict(results).startswith("All configurations are equally accurate in each of 3 pairs of runs: ")


@pytest.mark.parametrize("extra", [{}, {"1-2": []}])
def test_one_seed_has_neither_interval_nor_test(extra):
    results = made({"1-4": [0.80], "1-8": [0.90], **extra}, seeds=1)
    assert "no interval and no test" in verdict(results)
    text = to_markdown(results)
    assert "--seeds 3" in text
    assert "| 1-8 | 1 | 90.00 | none |" in text
    assert "| 1-8 | 1-4 | +10.00 | none |  |  |" in text
    assert ("**Incomplete: 1 of 3 runs are not there yet" in text) == bool(extra)
    draw_experiment(results)


def test_without_training_there_is_cost_alone():
    results = made({"1-4": [], "1-8": []}) | {"runs": [], "complete": False, "pictures": None, "split": None}
    assert "1.00 (1-4) and 1.25 (1-8) times the baseline's" in verdict(results)
    text = to_markdown(results)
    assert "## Accuracy" not in text
    assert "## Cost" in text
    assert len(draw_experiment(results).axes) == 1
    assert len(draw_experiment(made(CLEAR)).axes) == 3


def test_an_analysis_is_in_the_report():
    results = made(CLEAR, finding="All are alike.", analysis=["| layer |"])
    assert "## Analysis\n\n| layer |" in to_markdown(results)
    assert verdict(results).endswith("may be chance. All are alike.")
