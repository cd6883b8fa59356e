import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from patnet.cli import main


@pytest.fixture
def here(checkpoint_dir, tmp_path, monkeypatch):
    """A working directory with the checkpoint `network` and an image."""
    shutil.copytree(checkpoint_dir, tmp_path / "network")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_written_files_are_listed(here, capfd):
    options = ["--out", "inside", "--panels", "shares", "attention", "--position", "1", "0"]
    assert main(["inspect", "network", "a.png", *options]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    first, *files = out.splitlines()
    assert re.fullmatch(r"a.png: [abc] \d+\.\d %, in \d+\.\d s", first)
    assert [file.strip() for file in files] == ["inside/a-shares.png", "inside/a-attention.png"]
    assert main(["inspect", "network", "a.png", "--out", "inside", "--panels", "shares", "--json"]) == 0
    (result,) = json.loads(capfd.readouterr().out)
    assert result["files"] == ["inside/a-shares.png"]
    assert result["label"] in "abc"


def test_an_unreadable_image_is_reported_after_the_others(here, capfd):
    (here / "b.png").write_text("")
    assert main(["inspect", "network", "b.png", "a.png", "--out", "inside", "--panels", "shares"]) == 2
    out, err = capfd.readouterr()
    assert "inside/a-shares.png" in out
    assert err == "patnet: b.png: the file is empty; give a PNG, JPEG or another format that Pillow reads\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothing", "a.png", "--out", "inside"], "no such checkpoint"),
        (["network", "c.png", "--out", "inside"], "no such image"),
        (["network", "a.png"], "give --out too"),
        (["network", "a.png", "--out", "inside", "--panels", "attention", "--position", "2", "9"], "2x2 positions"),
        (["network", "a.png", "--out", "inside", "--img-size", "0"], "--img-size 0: give one side"),
        (["network", "a.png", "--out", "inside", "--positon", "2", "1"], "did you mean '--position'"),
    ],
)
def test_bad_input_is_one_error_message(here, capfd, argv, message):
    assert main(["inspect", *argv]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("patnet: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (here / "inside").exists()
