import json

import numpy as np
import pytest
import timm
from conftest import write_images
from PIL import Image

from patnet import InputError, load, save_checkpoint
from patnet.data import eval_transform, read_image
from patnet.deploy import Exported
from patnet.inspection import inspect_network
from patnet.inspection.run import inspect_images
from patnet.models import Loaded


@pytest.fixture(scope="module")
def loaded(checkpoint_dir):
    return load(checkpoint_dir)


@pytest.fixture
def images(tmp_path):
    """Two folders, each with an image `00.png`."""
    return write_images(tmp_path / "images", a=1, b=1)


def test_images_of_one_name_get_a_sheet_and_arrays_each(loaded, images, tmp_path):
    results, unreadable = inspect_images(loaded, [str(images)], tmp_path / "out", arrays="npz")
    assert unreadable == []
    names = ["00-sheet.png", "00.npz", "00-2-sheet.png", "00-2.npz"]
    assert [file for result in results for file in result["files"]] == [str(tmp_path / "out" / name) for name in names]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(names)
    arrays = np.load(tmp_path / "out" / "00-2.npz")
    pixels = eval_transform(loaded.data_config)(read_image(images / "b" / "00.png"))
    seen = inspect_network(loaded.model, pixels.unsqueeze(0))
    for name, expected in (
        ("logits", seen.logits),
        ("spatial_gate.2.1", seen.spatial_gates["2.1"]),
        ("channel_std.3.1", seen.channel_gates["3.1"].std),
        ("attention.4.1", seen.attention["4.1"]),
    ):
        assert np.array_equal(arrays[name], expected)
    assert list(arrays["blocks"]) == ["1.1", "2.1", "3.1", "4.1"]
    assert arrays["shares.added"][3] == seen.shares["4.1"].added
    assert np.isnan(arrays["shares.channel_gates"][3])
    assert results[1]["label"] == "abc"[int(seen.logits.argmax())]


def test_single_panels_another_size_and_json(loaded, images, tmp_path):
    panels = ["attention", "spatial", "channel", "shares", "position"]
    options = {"panels": panels, "arrays": "json", "position": (2, 3), "img_size": [96, 128]}
    results, _ = inspect_images(loaded, [str(images / "a")], tmp_path, **options)
    names = [*(f"00-{panel}.png" for panel in panels), "00.json"]
    assert results[0]["files"] == [str(tmp_path / name) for name in names]
    for name in names[:-1]:
        with Image.open(tmp_path / name) as image:
            assert image.width == 990
    numbers = json.loads((tmp_path / "00.json").read_text())
    assert np.array(numbers["attention.4.1"]).shape == (2, 3, 4, 3, 4)
    assert numbers["shares.channel_gates"][3] is None


def test_a_network_without_blocks_gives_what_it_has(images, tmp_path):
    model = timm.create_model("resnet10t", num_classes=2)
    resnet = load(save_checkpoint(model, tmp_path / "resnet", data_config={"input_size": (3, 64, 64)}))
    image, out = [str(images / "a")], tmp_path / "out"
    results, _ = inspect_images(resnet, image, out, panels=["sheet", "attention", "position"])
    assert results[0]["files"] == [str(out / "00-sheet.png")]
    assert any("no block of patnet.nn" in line for line in results[0]["missing"])
    with pytest.raises(InputError, match="nothing to draw of attention: ResNet has no block"):
        inspect_images(resnet, image, out, panels=["attention"])


def test_exported_files_are_refused_and_images_are_not_overwritten(loaded, images, tmp_path):
    exported = Loaded(object.__new__(Exported), ["a"], {}, file=tmp_path / "network.onnx")
    with pytest.raises(InputError, match=r"network.onnx: an exported file hides its layers"):
        inspect_images(exported, [str(images)], tmp_path / "out")
    drawn = images / "a" / "00-shares.png"
    drawn.write_bytes((images / "a" / "00.png").read_bytes())
    with pytest.raises(InputError, match=r"00-shares.png is one of the images"):
        inspect_images(loaded, [str(images / "a")], images / "b" / ".." / "a", panels=["shares"])
    assert drawn.read_bytes() == (images / "a" / "00.png").read_bytes()
