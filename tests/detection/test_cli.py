"""Error messages of the commands of `patnet detect`."""

import numpy as np
import pytest
from PIL import Image

from patnet.cli import main
from patnet.detection import save_detector


@pytest.fixture
def saved(small, tmp_path):
    return save_detector(small("retinanet"), tmp_path / "saved", class_names=["a", "b", "c"], category_ids=[1, 2, 3])


@pytest.fixture
def image(tmp_path):
    file = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(file)
    return file


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("export {saved} nothing.png --size 64 96 --out x.onnx", "nothing.png: no such image"),
        ("export {saved} {image} --size 64 96 --out x.pt", "ends in .onnx"),
        ("export {image} {image} --size 64 96 --out x.onnx", "holds no detector"),
        ("export {saved} {image} --out x.onnx", "give --size too; patnet detect export --help"),
        ("export {saved} {image} --size 64 --out x.onnx", "--size"),
        ("predcit", "no command 'predcit' (did you mean 'predict'?)"),
        ("", "detect: give a command: train, evaluate, predict, export"),
        ("evaluate {saved} --chekpoint last", "no option --chekpoint (did you mean '--checkpoint'?)"),
        ("train --data x --out y --lr high", "--lr high: must be a number above 0"),
    ],
)
def test_error_messages(saved, image, capsys, words, message):
    argv = [word.format(saved=saved, image=image) for word in words.split()]
    assert main(["detect", *argv]) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert "Traceback" not in error
