import json

import numpy as np
import pytest
import timm
from PIL import Image

from patnet import InputError, save_checkpoint
from patnet.data import eval_transform, read_image
from patnet.deploy.load import load_network
from patnet.inspection import inspect_network
from patnet.inspection.run import inspect_pictures

CONFIG = {"input_size": (3, 64, 64), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "crop_pct": 1.0}
SMALL = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": 2, "feature_dim": 8, "num_classes": 2}


@pytest.fixture
def checkpoint(settled, tmp_path):
    model = settled(timm.create_model("patnet_t0", **SMALL))
    return save_checkpoint(model, tmp_path / "network", model_args=SMALL, data_config=CONFIG, label_names=["x", "y"])


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for number in range(2):
        (folder / str(number)).mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 255, (80, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / str(number) / "a.png")
    return folder


def test_pictures_of_one_name_get_a_sheet_each_and_numbers(checkpoint, pictures, tmp_path):
    results, unreadable = inspect_pictures(checkpoint, [str(pictures)], tmp_path / "out", arrays="npz")
    assert unreadable == []
    names = ["a-sheet.png", "a.npz", "a-2-sheet.png", "a-2.npz"]
    assert [file for result in results for file in result["files"]] == [str(tmp_path / "out" / name) for name in names]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(names)
    arrays = np.load(tmp_path / "out" / "a-2.npz")
    network = load_network(checkpoint)
    pixels = eval_transform(network.data_config)(read_image(pictures / "1" / "a.png"))
    seen = inspect_network(network.model, pixels.unsqueeze(0))
    assert np.array_equal(arrays["logits"], seen.logits)
    assert np.array_equal(arrays["spatial_gate.2.1"], seen.spatial_gates["2.1"])
    assert np.array_equal(arrays["channel_std.3.1"], seen.channel_gates["3.1"].std)
    assert np.array_equal(arrays["attention.4.1"], seen.attention["4.1"])
    assert list(arrays["blocks"]) == ["1.1", "2.1", "3.1", "4.1"]
    assert arrays["shares.added"][3] == seen.shares["4.1"].added
    assert np.isnan(arrays["shares.channel_gates"][3])
    assert results[1]["label"] == "xy"[int(seen.logits.argmax())]


def test_single_panels_another_size_and_json(checkpoint, pictures, tmp_path):
    results, _ = inspect_pictures(
        checkpoint,
        [str(pictures / "0" / "a.png")],
        tmp_path,
        panels=["attention", "spatial", "channel", "shares", "position"],
        arrays="json",
        position=(2, 3),
        size=[96, 128],
    )
    written = ["a-attention.png", "a-spatial.png", "a-channel.png", "a-shares.png", "a.json", "position.png"]
    assert results[0]["files"] == [str(tmp_path / name) for name in written]
    for name in written:
        if name.endswith("png"):
            with Image.open(tmp_path / name) as image:
                assert image.width > 500
    numbers = json.loads((tmp_path / "a.json").read_text())
    assert np.array(numbers["attention.4.1"]).shape == (2, 3, 4, 3, 4)
    assert numbers["shares.channel_gates"][3] is None


def test_a_picture_that_cannot_be_read_is_named_after_the_others(checkpoint, pictures, tmp_path):
    (pictures / "0" / "b.png").write_text("no picture")
    results, unreadable = inspect_pictures(checkpoint, [str(pictures)], tmp_path / "out", panels=["shares"])
    assert [result["path"] for result in results] == [str(pictures / n / "a.png") for n in "01"]
    assert len(unreadable) == 1
    assert unreadable[0].startswith(str(pictures / "0" / "b.png"))


def test_a_network_without_blocks_gives_what_it_has(pictures, tmp_path):
    model = timm.create_model("resnet10t", num_classes=2)
    checkpoint = save_checkpoint(model, tmp_path / "resnet", data_config=CONFIG)
    picture = [str(pictures / "0" / "a.png")]
    results, _ = inspect_pictures(checkpoint, picture, tmp_path / "out", panels=["sheet", "attention", "position"])
    assert results[0]["files"] == [str(tmp_path / "out" / "a-sheet.png")]
    assert any("no block of PATNet's" in said for said in results[0]["missing"])
    with pytest.raises(InputError, match="nothing to draw of attention: ResNet holds no block"):
        inspect_pictures(checkpoint, picture, tmp_path / "out", panels=["attention"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"position": (2, 0)}, "position 2 0: the attention has 2x2 cells"),
        ({"panels": ["atention"]}, "did you mean 'attention'"),
        ({"target": "z"}, "--target z: no class"),
        ({"size": [16]}, "does not take a picture of 3x16x16"),
        ({"size": [64, 64, 64]}, "give a side"),
    ],
)
def test_bad_options_are_one_sentence(checkpoint, pictures, tmp_path, options, said):
    with pytest.raises(InputError, match="(?s)" + said.replace("(", r"\(")):
        inspect_pictures(checkpoint, [str(pictures)], tmp_path / "out", **options)
    assert not list((tmp_path / "out").glob("*"))


def test_exported_files_and_other_places(checkpoint, pictures, tmp_path):
    (tmp_path / "network.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="an exported file has no parts left to look into"):
        inspect_pictures(tmp_path / "network.onnx", [str(pictures)], tmp_path / "out")
    with pytest.raises(InputError, match="no such checkpoint"):
        inspect_pictures(tmp_path / "nothing", [str(pictures)], tmp_path / "out")
    with pytest.raises(InputError, match="cannot be written"):
        inspect_pictures(checkpoint, [str(pictures)], pictures / "0" / "a.png", panels=["shares"])
    drawn = pictures / "0" / "a-shares.png"
    Image.new("RGB", (64, 64)).save(drawn)
    before = drawn.read_bytes()
    with pytest.raises(InputError, match=r"a-shares.png there is one of the pictures"):
        inspect_pictures(checkpoint, [str(pictures / "0")], pictures / "0", panels=["shares"])
    assert drawn.read_bytes() == before
