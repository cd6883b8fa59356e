import hashlib
import json

import numpy as np
import panels as panels_script
import pytest
import torch
from torchvision.ops import masks_to_boxes

from patnet.cli import main
from patnet.data import DetectionDataset, open_annotations
from patnet.data.elpv import solar_cells


@pytest.fixture(scope="module")
def panels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("composed") / "panels"
    panels_script.write_panels(folder, train=6, test=3, seed=3, size=256, max_cells=4)
    return folder


def digests(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_same_seed_gives_the_same_panel_as_ever():
    """The digests were computed when the published results were."""
    pool = [cell for cell in solar_cells() if not cell.test]
    image, objects = panels_script.compose_panel(np.random.default_rng((0, 0, 1)), pool, size=256, max_cells=4)
    assert hashlib.sha256(np.asarray(image).tobytes()).hexdigest().startswith("acba1c2fdfc30dd2")
    assert hashlib.sha256(json.dumps(objects).encode()).hexdigest().startswith("8f7c231bd3f35a09")


def test_the_same_seed_gives_the_same_files(panels, tmp_path, capfd):
    options = ["--train", "6", "--test", "3", "--seed", "3", "--size", "256", "--cells", "4"]
    assert main(["--out", str(tmp_path / "again"), *options], panels_script) == 0
    assert "6 training and 3 test panels in" in capfd.readouterr().out
    assert digests(tmp_path / "again") == digests(panels)
    panels_script.write_panels(tmp_path / "other", train=1, test=1, seed=4, size=256, max_cells=4)
    assert not set(digests(tmp_path / "other").values()) & set(digests(panels).values())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["again", "other"]


def test_training_panels_show_training_cells_only(panels):
    by_name = {cell.path.name: cell for cell in solar_cells()}
    for split, test in (("train", False), ("test", True)):
        shown = json.loads((panels / "annotations" / f"instances_{split}.json").read_text())["annotations"]
        assert all(by_name[one["cell"]].test is test for one in shown)
        assert all((by_name[one["cell"]].probability >= 0.5) == (one["category_id"] == 2) for one in shown)
        assert {one["category_id"] for one in shown} == {1, 2}


def test_panels_are_annotations_without_faults(panels):
    for split, number in (("train", 6), ("test", 3)):
        found = open_annotations(panels, split=split, max_invalid=0)
        assert found.faults == []
        assert found.class_names == ["functional", "defective"]
        assert len(found.images) == number
        for image, target in DetectionDataset(found, masks=True):
            assert max(image.size) == 256
            around = masks_to_boxes(target["masks"]) + torch.tensor([0, 0, 1, 1])
            assert (around - target["boxes"]).abs().max() <= 1.01
            assert (target["masks"].sum(0) > 1).float().mean() < 0.01
            areas = target["masks"].sum((1, 2)).float()
            assert torch.allclose(areas, target["area"], rtol=0.1, atol=12)
            for mask in target["masks"]:  # cells are brighter than the gaps between them
                assert np.asarray(image)[..., 0][mask.numpy() > 0].mean() > 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train", "0"], "--train 0: must be an integer above 0"),
        (["--cells", "1"], "--cells 1"),
        (["--size", "100"], "--size 100: must lie in 192"),
        (["--out", "full"], "not an empty directory"),
        (["--out", "full/mine.txt/below"], "cannot be written"),
    ],
)
def test_bad_options_are_one_message(tmp_path, monkeypatch, capfd, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    assert main(["--out", "out", *options], panels_script) == 2
    err = capfd.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["full"]
