"""The comparison of five starts: what its parts see, and how its table reaches the page."""

import json

import pytest
import transfer
from transfer import EPOCHS, FOLDS, RATES, SIZES, STARTS, Cells, Study, Trial, write_crops, write_page

from patnet import InputError
from patnet.data.elpv import solar_cells

OPTIONS = {"accelerator": "cpu", "workers": 0, "cache_dir": None}


def test_folds_are_training_cells_each_held_out_once():
    cells = solar_cells()
    folds = Cells().folds()
    held_out = [i for _, part in folds for i in part]
    assert sorted(held_out) == [i for i, cell in enumerate(cells) if not cell.test]
    for training, part in folds:
        assert not set(training) & set(part)
        assert len(training) + len(part) == len(held_out)
        share = sum(cells[i].probability >= 0.5 for i in part) / len(part)
        assert share == pytest.approx(0.313, abs=0.01)


def test_all_starts_get_the_same_trials(tmp_path, monkeypatch):
    best = Trial(RATES[-1], SIZES[-1], EPOCHS[-1])
    loss = lambda trial: -sum(vars(trial)[name] == value for name, value in vars(best).items())  # noqa: E731
    monkeypatch.setattr(Study, "score", lambda self, key, trial: {"log_loss": loss(trial)})
    trials = {key: list(Study(tmp_path / key, None, OPTIONS).trials(key)) for key in STARTS}
    assert {len(set(found)) for found in trials.values()} == {5}
    assert {found[-1] for found in trials.values()} == {best}


def test_the_teacher_of_a_fold_must_be_there(tmp_path):
    study = Study(tmp_path, None, OPTIONS, Cells(30))
    for _ in range(2):
        with pytest.raises(InputError, match=r"learns from start \(a\)"):
            study.train_cells("c", Trial(), tmp_path / "c", [0, 1], 0, "fold-0")
        (tmp_path / "a" / "fold-0").mkdir(parents=True, exist_ok=True)  # begun, but not complete
    with pytest.raises(InputError, match="give --painted"):
        study.train_cells("d", Trial(), tmp_path / "d", [0, 1], 0, "fold-0")


def test_the_plan_has_each_run(tmp_path):
    parts = list(Study(tmp_path, "painted", OPTIONS).parts("abcde", 3))
    assert sum(part == "final runs" for _, part, *_ in parts) == 15
    assert sum(part == "cross-validation" for _, part, *_ in parts) == 5 * 5 * FOLDS
    assert sum(part == "unlabelled crops" for _, part, *_ in parts) == 2 * (FOLDS + 3)
    assert {config.img_size for _, part, config, _ in parts if part == "final runs"} == {max(SIZES)}
    assert all(config.precision == "32-true" for key, _, config, _ in parts if key == "a")


def test_crops_are_images_without_classes(tmp_path):
    write_crops(tmp_path / "crops", [0, 5], seed=0)
    assert len(list((tmp_path / "crops").iterdir())) == 2 * transfer.CROPS


def test_the_table_goes_between_the_marks(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "latencies", lambda study, keys: dict.fromkeys(keys, (1.5, "openvino")))
    for seed in range(2):
        file = tmp_path / "b" / f"seed-{seed}" / "test.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"top1_1": 0.8 + seed / 50, "top1_8": 0.9, "auc": 0.95, "recall_at_90": 0.5}))
    chosen = {**vars(Trial()), "log_loss": 0.3, "top1": 0.8}
    (tmp_path / "b" / "chosen.json").write_text(json.dumps(chosen))
    text = transfer.table(Study(tmp_path, None, OPTIONS), 3)
    assert (
        "| (b) PATNet-T0, random weights | 0.0003, 96, 12 | 0.300 | 81.00 ± 1.41 | 90.00 ± 0.00 | 0.9500 ± 0.0000 |"
        in text
    )
    assert "1.50 (openvino)" in text
    page = tmp_path / "page.md"
    page.write_text(f"before\n{transfer.BEGIN}\nold\n{transfer.END}\nafter\n")
    write_page(page, text)
    assert page.read_text() == f"before\n{transfer.BEGIN}\n{text}\n{transfer.END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(InputError, match="lacks the marks"):
        write_page(page, text)
