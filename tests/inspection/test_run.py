import json

import numpy as np
import pytest
import timm
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
    folder = tmp_path / "images"
    for number in range(2):
        (folder / str(number)).mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 255, (80, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / str(number) / "a.png")
    return folder


def test_images_of_one_name_get_a_sheet_and_arrays_each(loaded, images, tmp_path):
    results, unreadable = inspect_images(loaded, [str(images)], tmp_path / "out", arrays="npz")
    assert unreadable == []
    names = ["a-sheet.png", "a.npz", "a-2-sheet.png", "a-2.npz"]
    assert [file for result in results for file in result["files"]] == [str(tmp_path / "out" / name) for name in names]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(names)
    arrays = np.load(tmp_path / "out" / "a-2.npz")
    pixels = eval_transform(loaded.data_config)(read_image(images / "1" / "a.png"))
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
    results, _ = inspect_images(loaded, [str(images / "0" / "a.png")], tmp_path, **options)
    names = [*(f"a-{panel}.png" for panel in panels), "a.json"]
    assert results[0]["files"] == [str(tmp_path / name) for name in names]
    for name in names[:-1]:
        with Image.open(tmp_path / name) as image:
            assert image.width == 990
    numbers = json.loads((tmp_path / "a.json").read_text())
    assert np.array(numbers["attention.4.1"]).shape == (2, 3, 4, 3, 4)
    assert numbers["shares.channel_gates"][3] is None


def test_a_network_without_blocks_gives_what_it_has(images, tmp_path):
    config = {"input_size": (3, 64, 64), "crop_pct": 1.0}
    model = timm.create_model("resnet10t", num_classes=2)
    resnet = load(save_checkpoint(model, tmp_path / "resnet", data_config=config))
    image = [str(images / "0" / "a.png")]
    results, _ = inspect_images(resnet, image, tmp_path / "out", panels=["sheet", "attention", "position"])
    assert results[0]["files"] == [str(tmp_path / "out" / "a-sheet.png")]
    assert any("no block of patnet.nn" in line for line in results[0]["missing"])
    with pytest.raises(InputError, match="nothing to draw of attention: ResNet has no block"):
        inspect_images(resnet, image, tmp_path / "out", panels=["attention"])


def test_exported_files_are_refused_and_images_are_not_overwritten(loaded, images, tmp_path):
    exported = Loaded(object.__new__(Exported), ["a"], {}, file=tmp_path / "network.onnx")
    with pytest.raises(InputError, match=r"network.onnx: an exported file hides its layers"):
        inspect_images(exported, [str(images)], tmp_path / "out")
    drawn = images / "0" / "a-shares.png"
    Image.new("RGB", (64, 64)).save(drawn)
    before = drawn.read_bytes()
    with pytest.raises(InputError, match=r"a-shares.png is one of the images"):
        inspect_images(loaded, [str(images / "0")], images / "0", panels=["shares"])
    assert drawn.read_bytes() == before
