import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image

import patnet
from patnet.cli import main
from patnet.models.checkpoint import save_checkpoint

SMALL = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": 2, "feature_dim": 8, "num_classes": 2}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with the checkpoint `network` and a picture."""
    config = {"input_size": (3, 64, 64), "crop_pct": 1.0}
    model = timm.create_model("patnet_t0", **SMALL)
    save_checkpoint(model, tmp_path / "network", model_args=SMALL, data_config=config, label_names=["x", "y"])
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_was_written_is_listed(here, capfd):
    options = ["--out", "inside", "--panels", "shares", "attention", "--position", "1", "0"]
    assert main(["inspect", "network", "a.png", *options]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    first, *files = out.splitlines()
    assert re.fullmatch(r"a.png: [xy] \d+\.\d %, in \d+\.\d s", first)
    assert [file.strip() for file in files] == ["inside/a-shares.png", "inside/a-attention.png"]
    assert main(["inspect", "network", "a.png", "--out", "inside", "--panels", "shares", "--json"]) == 0
    (result,) = json.loads(capfd.readouterr().out)
    assert result["files"] == ["inside/a-shares.png"]
    assert result["label"] in ("x", "y")


def test_a_broken_picture_is_named_after_the_others(here, capfd):
    (here / "b.png").write_text("")
    assert main(["inspect", "network", "b.png", "a.png", "--out", "inside", "--panels", "shares"]) == 2
    out, err = capfd.readouterr()
    assert "inside/a-shares.png" in out
    assert err == "patnet: b.png: the file is empty; give a PNG, JPEG or another format that Pillow reads\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nothing", "a.png", "--out", "inside"], "no such checkpoint"),
        (["network", "c.png", "--out", "inside"], "no such picture"),
        (["network", "a.png"], "give --out too"),
        (["network", "a.png", "--out", "inside", "--panels", "attention", "--position", "2", "9"], "2x2 cells"),
        (["network", "a.png", "--out", "inside", "--positon", "2", "1"], "did you mean '--position'"),
    ],
)
def test_bad_input_is_one_sentence(here, capfd, argv, said):
    assert main(["inspect", *argv]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("patnet: ")
    assert err.count("\n") == 1
    assert said in err


def test_the_command_imports_nothing_of_training(here):
    """Lightning and the metrics take longer than all that it does itself."""
    code = """
import sys
from patnet.cli import main
assert main(["inspect", "network", "a.png", "--out", "inside", "--panels", "shares"]) == 0
print(sorted({"lightning", "torchmetrics", "captum", "tensorboard"} & {m.split(".")[0] for m in sys.modules}))
"""
    env = {**os.environ, "PYTHONPATH": str(Path(patnet.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
