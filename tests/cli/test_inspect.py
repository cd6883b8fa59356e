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


def test_written_files_and_unreadable_images_are_listed(here, capfd, json_of):
    (here / "b.png").write_text("")
    options = ["--out", "inside", "--panels", "shares", "attention", "--position", "1", "0"]
    assert main(["inspect", "network", "b.png", "a.png", *options]) == 2
    out, err = capfd.readouterr()
    assert err == "patnet: b.png: the file is empty; give a PNG, JPEG or another format that Pillow reads\n"
    first, *files = out.splitlines()
    assert re.fullmatch(r"a.png: [abc] \d+\.\d %, in \d+\.\d s", first)
    assert [file.strip() for file in files] == ["inside/a-shares.png", "inside/a-attention.png"]
    (result,) = json_of("inspect", "network", "a.png", "--out", "inside", "--panels", "shares")
    assert (result["path"], result["files"], result["label"] in "abc") == ("a.png", ["inside/a-shares.png"], True)


def test_names_that_are_not_utf_8_are_escaped(here, capfd):
    try:
        (here / "a.png").rename(here / "\udcff.png")
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    assert main(["inspect", "network", "\udcff.png", "--out", "inside"]) == 0
    first, second = capfd.readouterr().out.splitlines()
    assert first.startswith("\\xff.png: ")
    assert second.strip() == "inside/\\xff-sheet.png"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("nothing a.png --out inside", "no such checkpoint"),
        ("network c.png --out inside", "no such image"),
        ("network a.png", "give --out too"),
        ("network a.png --out inside --panels attention --position 2 9", "the attention map has 2x2 positions"),
        ("network a.png --out inside --panels atention", "did you mean 'attention'"),
        ("network a.png --out inside --target z", "--target z: no class"),
        ("network a.png --out inside --img-size 16", "does not take an image of 3x16x16"),
        ("network a.png --out inside --img-size 64 64 64", "give one side"),
        ("network a.png --out inside --img-size 0", "--img-size 0: give one side"),
        ("network a.png --out inside --positon 2 1", "did you mean '--position'"),
        ("network a.png --out network/config.json", "cannot be written"),
    ],
)
def test_bad_input_is_one_error_message(here, refused, argv, message):
    assert message in refused("inspect", *argv.split())
    assert not (here / "inside").exists()
