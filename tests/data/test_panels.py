import hashlib
import json
from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.ops import masks_to_boxes

from patnet import InputError
from patnet.data.detection import DetectionPictures, open_annotations
from patnet.data.elpv import cells
from patnet.data.panels import compose_panel, write_panels


@pytest.fixture(scope="module")
def panels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("composed") / "panels"
    write_panels(folder, train=6, test=3, seed=3, size=256, most=4)
    return folder


def digests(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def annotated(folder, split):
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


def test_the_same_seed_gives_the_same_bytes(panels, tmp_path):
    counted = []
    write_panels(tmp_path / "again", train=6, test=3, seed=3, size=256, most=4, done=lambda: counted.append(1))
    assert digests(tmp_path / "again") == digests(panels)
    assert len(counted) == 9
    write_panels(tmp_path / "more", train=1, test=1, seed=4, size=256, most=4)
    other = digests(tmp_path / "more")
    assert not set(other.values()) & set(digests(panels).values())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["again", "more"]


def test_training_panels_show_training_cells_only(panels):
    by_name = {cell.path.name: cell for cell in cells()}
    for split, test in (("train", False), ("test", True)):
        shown = annotated(panels, split)["annotations"]
        assert all(by_name[one["cell"]].test is test for one in shown)
        assert all((by_name[one["cell"]].probability >= 0.5) == (one["category_id"] == 2) for one in shown)
        assert {one["category_id"] for one in shown} == {1, 2}


def test_panels_are_annotations_without_fault(panels):
    for split, number in (("train", 6), ("test", 3)):
        found = open_annotations(panels, split=split, max_faults=0)
        assert found.faults == []
        assert found.class_names == ["functional", "defective"]
        assert found.has_masks
        pictures = DetectionPictures(found)
        assert len(pictures) == number
        for image, target in pictures:
            assert max(image.shape) == 256
            around = masks_to_boxes(target["masks"]) + torch.tensor([0, 0, 1, 1])
            assert (around - target["boxes"]).abs().max() <= 1.01
            overlap = target["masks"].sum(0)
            assert (overlap > 1).float().mean() < 0.01
            areas = target["masks"].sum((1, 2))
            assert torch.allclose(areas.float(), target["area"], rtol=0.1, atol=12)


def test_cells_are_brighter_than_what_is_around_them():
    pool = [cell for cell in cells() if cell.probability == 0 or cell.probability == 1][::40]
    for seed in range(3):
        picture, objects = compose_panel(np.random.default_rng(seed), pool, size=200, most=3)
        pixels = np.asarray(picture, dtype=float)
        for one in objects:
            x, y = np.reshape(one["segmentation"][0], (-1, 2)).mean(0).astype(int)
            assert pixels[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4].mean() > 30
        assert Counter(one["cell"] for one in objects).total() <= 9


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train": 0}, "one panel or more"),
        ({"seed": -1}, "--seed -1"),
        ({"most": 1}, "--cells 1"),
        ({"size": 100}, "--size 100: must lie in 192"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        write_panels(tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for out in (tmp_path / "full", tmp_path / "full" / "mine.txt"):
        with pytest.raises(InputError, match="not an empty folder"):
            write_panels(out, train=1, test=1)
    with pytest.raises(InputError, match="cannot be written"):
        write_panels(tmp_path / "full" / "mine.txt" / "below", train=1, test=1)
    (tmp_path / "empty").mkdir()
    write_panels(tmp_path / "empty", train=1, test=1, size=128, most=2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "full"]


def test_an_interruption_leaves_nothing_behind(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_panels(tmp_path / "out", train=2, test=1, size=128, most=2, done=interrupt)
    assert list(tmp_path.iterdir()) == []
