import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patnet.cli import main
from patnet.data import open_annotations
from patnet.data.check import report
from patnet.data.figures import draw_distributions
from patnet.data.masks import encode_mask
from patnet.files import save_figure


def annotation(i, image, category, box, **others):
    x, y, w, h = box
    one = {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": w * h, "iscrowd": 0}
    return {**one, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], **others}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """`mine.json` next to its three images: one object of each size, a crowd, and an image without objects."""
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        Image.new("RGB", (200, 150), (60, 90, 120)).save(f"{name}.png")
    crowd = np.zeros((150, 200), np.uint8)
    crowd[100:140, 20:120] = 1
    content = {
        "images": [{"id": i, "file_name": f"{n}.png", "width": 200, "height": 150} for i, n in enumerate("abc")],
        "annotations": [
            annotation(1, 0, 5, [2, 2, 20, 20]),
            annotation(2, 0, 5, [30, 30, 50, 50]),
            annotation(3, 1, 8, [10, 10, 120, 110]),
            annotation(4, 1, 8, [20, 100, 100, 40], iscrowd=1, segmentation=encode_mask(crowd)),
        ],
        "categories": [{"id": 5, "name": "screw"}, {"id": 8, "name": "nut"}, {"id": 11, "name": "washer"}],
    }

    def write(**changes):
        Path("mine.json").write_text(json.dumps({**content, **changes}))
        return content

    write()
    return write


def test_the_report_and_the_figures(data, capfd, json_of):
    assert main(["data", "check", "mine.json", "--out", "report"]) == 0
    out = capfd.readouterr().out
    for text in ("screw", "3, 1 of them without objects", "1/1/1 (", "remark: class 'washer' has no object"):
        assert text in out
    report = json_of("data", "check", "mine.json", "--decode")
    for file in ("report/samples.png", "report/distributions.png", *report.pop("figures").values()):
        with Image.open(file) as image:
            assert image.width > 500
            assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert report == {
        "source": "mine.json",
        "images": 3,
        "annotations": 4,
        "masks": 4,
        "crowd_regions": 1,
        "images_without_objects": 1,
        "classes": [
            {"label": 1, "category_id": 5, "name": "screw", "annotations": 2, "images": 1},
            {"label": 2, "category_id": 8, "name": "nut", "annotations": 2, "images": 1},
            {"label": 3, "category_id": 11, "name": "washer", "annotations": 0, "images": 0},
        ],
        "sizes": {"small": 1, "medium": 1, "large": 1},
        "objects_per_image": {"min": 0, "median": 2.0, "mean": 1.33, "max": 2},
        "width": dict.fromkeys(("min", "median", "mean", "max"), 200),
        "height": dict.fromkeys(("min", "median", "mean", "max"), 150),
        "invalid": {"annotations": 0, "share": 0.0, "problems": {}, "listed": []},
        "remarks": ["class 'washer' has no object"],
        "usable": True,
    }


def test_any_names_of_classes_are_drawn(data):
    names = ("$1-$5", "$x^", "a $5_$ b", "nut", "nut")
    data(categories=[{"id": id_, "name": name} for id_, name in zip((5, 8, 11, 12, 13), names, strict=True)])
    found = open_annotations("mine.json")
    figure = draw_distributions(found, report(found, 0.01))
    assert save_figure(figure, Path("figure.png")).stat().st_size > 1000
    labels = figure.axes[0].get_yticklabels()
    assert sorted(label.get_text() for label in labels) == sorted(names)
    assert [label.get_parse_math() for label in labels] == ["$" not in label.get_text() for label in labels]
    assert [bar.get_width() for bar in figure.axes[0].patches] == [2, 2, 0, 0, 0]
    assert len({bar.get_y() for bar in figure.axes[0].patches}) == 5


def test_everything_invalid_is_listed(data, capfd):
    content = data()
    more = [
        annotation(5, 0, 5, [2, 2, 20, 20]),
        annotation(6, 0, 5, [50, 50, 0, 9]),
        annotation(7, 0, 77, [50, 50, 9, 9]),
        annotation(8, 0, 5, [50, 50, 90, 90], segmentation=[[50, 50, 70, 50, 70, 70]]),
    ]
    data(annotations=content["annotations"] + more)
    Image.new("RGB", (99, 50)).save("b.png")
    assert main(["data", "check", "mine.json", "--json"]) == 2
    out, err = capfd.readouterr()
    report = json.loads(out)
    listed = "\n".join(report["invalid"]["listed"])
    assert report["invalid"]["annotations"] == 4
    for text in ("annotations[5] of a.png: a box of no area", "category_id 77", "b.png: an image that cannot be used"):
        assert text in listed
    assert report["usable"] is False
    assert any("given twice" in remark for remark in report["remarks"])
    assert any("is not its mask's" in remark for remark in report["remarks"])
    assert "4 of 8 annotations are invalid" in err
    assert err.count("\n") == 1
    assert main(["data", "check", "mine.json", "--max-invalid", "0.5"]) == 0
    assert "4 annotations, 50.00 %" in capfd.readouterr().out


def test_unreadable_images_are_listed(data, capfd):
    noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save("a.png")
    content = Path("a.png").read_bytes()
    Path("a.png").write_bytes(content[: len(content) // 2])
    assert main(["data", "check", "mine.json"]) == 0
    assert main(["data", "check", "mine.json", "--decode"]) == 2  # which alone reads all pixels
    assert "a.png: an image that cannot be used: the image is damaged" in capfd.readouterr().out
    Path("c.png").write_bytes(b"")
    data(annotations=data()["annotations"] * 50)
    assert main(["data", "check", "mine.json"]) == 0
    assert "c.png: an image that cannot be used: the file is empty" in capfd.readouterr().out
    assert main(["data", "check", "mine.json", "--max-invalid", "0"]) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "SOURCE"),
        (["mine.json", "--max-invalid", "2"], "--max-invalid 2: must be a number in [0, 1]"),
        (["mine.json", "--out", "a.png/b"], "cannot be written"),
        (["nowhere.json"], "no such file or folder"),
        (["a.png"], "not a JSON file"),
    ],
)
def test_bad_input_is_one_message(data, refused, argv, message):
    data()
    assert message in refused("data", "check", *argv)


def test_nothing_to_train_on_is_an_error(data, capfd):
    data(annotations=[])
    assert main(["data", "check", "mine.json"]) == 2
    assert "has no object that can be used" in capfd.readouterr().err
