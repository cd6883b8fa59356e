"""The decision threshold of a class: chosen on validation images, used by prediction and exported files."""

import csv
import json
import shutil

import pytest
import torch

from patnet import InputError, load
from patnet.cli import main
from patnet.models import Threshold
from patnet.train.evaluate import choose_threshold, summarise

NAMES = ["good", "bad", "other"]


def test_the_threshold_has_the_precision_and_the_highest_recall():
    of_class = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    labels = torch.tensor([1, 1, 0, 1, 1, 0])
    probs = torch.stack([1 - of_class, of_class], 1)
    found = choose_threshold(probs, labels, ["good", "bad"], "bad", 0.8)
    assert found == Threshold("bad", pytest.approx(0.5), pytest.approx(0.8), 1.0)
    assert choose_threshold(probs, labels, ["good", "bad"], "bad", 1.0).recall == 0.5
    with pytest.raises(InputError, match=r"no such class .did you mean 'bad'"):
        choose_threshold(probs, labels, ["good", "bad"], "bat", 0.8)
    with pytest.raises(InputError, match=r"no threshold has a precision of 0.9 on the 6 validation images, 0 of them"):
        choose_threshold(probs, 0 * labels, ["good", "bad"], "bad", 0.9)


def test_a_class_below_its_threshold_is_the_best_other_one():
    probs = torch.tensor([[0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.5, 0.2, 0.3]])
    threshold = Threshold("bad", 0.7, 1.0, 1.0)
    assert threshold.order(probs, NAMES).tolist() == [[0, 1, 2], [1, 0, 2], [0, 1, 2], [0, 2, 1]]
    low = Threshold("bad", 0.15, 1.0, 1.0)
    assert low.order(probs, NAMES).tolist() == [[1, 0, 2], [1, 0, 2], [1, 0, 2], [1, 0, 2]]
    result = summarise(probs, torch.tensor([0, 1, 0, 0]), NAMES, threshold)
    assert result["top1"] == 1
    assert result["confusion_matrix"][0] == [3, 0, 0]


def test_a_threshold_is_kept_in_the_run_and_its_exports(run_dir, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    words = ["evaluate", str(run), "--workers", "0", "--accelerator", "cpu", "--split", "val"]
    assert main([*words, "--threshold", "b", "--min-precision", "0.3"]) == 0
    assert "b from a probability of" in capsys.readouterr().out
    for option, message in (("--tta=8", "leave out --tta 8"), ("--precision=bf16", "leave out --precision bf16")):
        assert main([*words, "--threshold", "b", option]) == 2
        assert f"is chosen in one view and fp32, as images are predicted; {message}" in capsys.readouterr().err
    assert main([*words, "--min-precision", "0.3"]) == 2
    assert "--min-precision 0.3: belongs to --threshold" in capsys.readouterr().err
    threshold = load(run).threshold
    assert threshold is not None
    assert threshold.recall == 1  # with the precision of the whole split
    metrics = json.loads((run / "evaluation-val" / "metrics.json").read_text())
    assert metrics["threshold"]["probability"] == threshold.probability
    assert main(["export", str(run), "--out", str(tmp_path / "run.pt2"), "--check-images", "2"]) == 0
    assert load(tmp_path / "run.pt2").threshold == threshold
    assert main(["hub", str(run), "--out", str(tmp_path / "hub")]) == 0
    assert load(tmp_path / "hub").threshold == threshold

    content = json.loads((run / "best" / "threshold.json").read_text())
    (run / "best" / "threshold.json").write_text(json.dumps({**content, "probability": 0.0}))
    images = str(run_dir.parent / "images" / "validation")
    capsys.readouterr()
    assert main(["predict", str(run), images, "--csv"]) == 0
    assert {row["label1"] for row in csv.DictReader(capsys.readouterr().out.splitlines())} == {"b"}
    assert main(["inspect", str(run), images, "--out", str(tmp_path / "inside"), "--panels", "shares"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("b from a probability of 0.0000 on")
    labels = [line.split(".png: ")[1].split()[0] for line in rest if ".png: " in line]
    assert labels == ["b"] * 8
    (run / "best" / "threshold.json").write_text(json.dumps({**content, "weights_sha256": "of others"}))
    assert load(run).threshold is None
    (run / "best" / "threshold.json").write_text("[]")
    with pytest.raises(InputError, match=r"threshold\.json: not a threshold .*remove it"):
        load(run)


def test_an_exported_file_keeps_the_threshold_that_it_has(run_dir, tmp_path):
    file = tmp_path / "run.pt2"
    assert main(["export", str(run_dir), "--out", str(file), "--check-images", "2"]) == 0
    data = ["--data", str(run_dir.parent / "images"), "--out", str(tmp_path / "out"), "--workers", "0"]
    assert main(["evaluate", str(file), *data, "--threshold", "b"]) == 2
