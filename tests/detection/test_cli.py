"""The commands of `patnet detect` that stand on functions tested elsewhere."""

import json

import numpy as np
import pytest
from PIL import Image

from patnet.cli import main
from patnet.detection import save_detector


@pytest.fixture
def saved(small, tmp_path):
    return save_detector(small("retinanet"), tmp_path / "saved", class_names=["a", "b", "c"], category_ids=[1, 2, 3])


@pytest.fixture
def photograph(tmp_path):
    file = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(file)
    return file


def test_a_detector_is_exported(saved, photograph, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    out = tmp_path / "found.onnx"
    assert (
        main(["detect", "export", str(saved), str(photograph), "--size", "64", "96", "--out", str(out), "--json"]) == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert said["pictures"] == 1
    assert said["matched"] >= 0.98
    assert said["bytes"] == out.stat().st_size


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("export {saved} nothing.png --size 64 96 --out x.onnx", "nothing.png: no such picture"),
        ("export {saved} {photo} --size 64 96 --out x.pt", "must end in .onnx"),
        ("export {photo} {photo} --size 64 96 --out x.onnx", "holds no detector"),
        ("export {saved} {photo} --out x.onnx", "give --size too; patnet detect export --help"),
        ("export {saved} {photo} --size 64 --out x.onnx", "--size"),
        ("predcit", "no command 'predcit' (did you mean 'predict'?)"),
        ("", "detect: give a command: train, evaluate, predict, export, bench"),
        ("evaluate {saved} --whihc last", "no option --whihc (did you mean '--which'?); patnet detect evaluate --help"),
        ("train --data x --out y --lr high", "--lr high: must be a number"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(saved, photograph, capsys, words, said):
    argv = [word.format(saved=saved, photo=photograph) for word in words.split()]
    assert main(["detect", *argv]) == 2
    error = capsys.readouterr().err
    assert said in " ".join(error.split())
    assert "Traceback" not in error
