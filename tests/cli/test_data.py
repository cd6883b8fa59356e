import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patnet.cli import main
from patnet.data.masks import encode_mask


def annotation(i, image, category, box, **others):
    x, y, w, h = box
    polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return {
        "id": i,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": w * h,
        "iscrowd": 0,
        "segmentation": polygon,
        **others,
    }


@pytest.fixture
def data(tmp_path, monkeypatch):
    """`mine.json` beside its three pictures: one object of each size, a crowd, and a picture without objects."""
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
        (tmp_path / "mine.json").write_text(json.dumps({**content, **changes}))
        return content

    write()
    return write


def test_a_data_set_is_reported(data, capfd):
    assert main(["data", "check", "mine.json", "--out", "report"]) == 0
    out = capfd.readouterr().out
    assert "screw" in out
    assert "3, 1 of them without objects" in out
    assert "1/1/1 (" in out
    assert "odd: class 'washer' has no object" in out
    for name in ("samples", "distributions"):
        with Image.open(f"report/{name}.png") as picture:
            assert picture.width > 500
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_the_report_as_json(data, capfd):
    assert main(["data", "check", "mine.json", "--decode", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["pictures"], report["annotations"], report["masks"], report["crowd_regions"]) == (3, 4, 4, 1)
    assert report["sizes"] == {"small": 1, "medium": 1, "large": 1}
    assert report["objects_per_picture"] == {"min": 0, "median": 2.0, "mean": 1.33, "max": 2}
    assert report["width"]["max"] == 200
    assert report["classes"][1] == {"label": 2, "category_id": 8, "name": "nut", "annotations": 2, "pictures": 1}
    assert report["usable"] is True
    assert report["wrong"] == {"annotations": 0, "share": 0.0, "kinds": {}, "listed": []}
    assert report["drawn"]["samples"] == "check/samples.png"


def test_everything_wrong_is_listed(data, capfd):
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
    listed = "\n".join(report["wrong"]["listed"])
    assert report["wrong"]["annotations"] == 4
    for said in ("annotations[5] of a.png: a box of no area", "category_id 77", "b.png: a picture that cannot be used"):
        assert said in listed
    assert report["usable"] is False
    assert any("given twice" in remark for remark in report["remarks"])
    assert any("is not its mask's" in remark for remark in report["remarks"])
    assert "4 of 8 annotations cannot be used" in err
    assert err.count("\n") == 1
    assert main(["data", "check", "mine.json", "--max-faults", "0.5"]) == 0
    assert "4 annotations, 50.00 %" in capfd.readouterr().out
    Image.new("RGB", (200, 150)).save("b.png")
    Path("c.png").write_bytes(b"")
    data(annotations=content["annotations"] * 50)
    assert main(["data", "check", "mine.json"]) == 0
    assert "c.png: a picture that cannot be used: the file is empty" in capfd.readouterr().out
    assert main(["data", "check", "mine.json", "--max_faults", "0"]) == 2


def test_a_picture_that_is_cut_short_is_found_by_decoding(data, capfd):
    noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save("a.png")
    whole = Path("a.png").read_bytes()
    Path("a.png").write_bytes(whole[: len(whole) // 2])
    assert main(["data", "check", "mine.json"]) == 0
    assert main(["data", "check", "mine.json", "--decode"]) == 2
    assert "a.png: a picture that cannot be used: the picture is damaged or cut short" in capfd.readouterr().out


def test_panels_are_composed_and_checked(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    argv = ["--train", "2", "--test", "1", "--size", "128", "--cells", "2"]
    assert main(["data", "elpv-panels", "--out", "panels", *argv]) == 0
    assert "panels/annotations/instances_train.json" in capfd.readouterr().out
    assert main(["data", "check", "panels", "--split", "train"]) == 0
    assert main(["data", "elpv-panels", "--out", "panels", *argv]) == 2
    assert "not an empty folder" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "ACTION"),
        (["panels"], "no action 'panels'"),
        (["elpv_panels"], "did you mean 'elpv-panels'?"),
        (["elpv-panels"], "give --out"),
        (["elpv-panels", "other", "--out", "x"], "takes nothing but options"),
        (["elpv-panels", "--out", "x", "--json"], "--json: is an option of patnet data check"),
        (["elpv-panels", "--out", "x", "--train", "0"], "one panel or more"),
        (["check"], "takes one file or folder"),
        (["check", "mine.json", "other.json"], "takes one file or folder"),
        (["check", "mine.json", "--seed", "0"], "--seed: is an option of patnet data elpv-panels"),
        (["check", "mine.json", "--max_faults", "2"], "must lie in [0, 1]"),
        (["check", "mine.json", "--out", "a.png/b"], "cannot be written"),
        (["check", "mine.json", "--images", "nowhere"], "no such folder"),
        (["check", "nowhere.json"], "no such file or folder"),
        (["check", "a.png"], "not a JSON file"),
    ],
)
def test_bad_input_is_one_sentence(data, capfd, argv, said):
    assert main(["data", *argv]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_a_file_without_objects_cannot_be_used(data, capfd):
    data(annotations=[])
    assert main(["data", "check", "mine.json"]) == 2
    assert "has no object that can be used" in capfd.readouterr().err
