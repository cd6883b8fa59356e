from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from patnet import load, save_checkpoint
from patnet.data import eval_transform
from patnet.demo.classifier import ImageClassifier
from patnet.deploy import Exported, ExportInfo
from patnet.inspection import draw
from patnet.models import Threshold

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))


def test_the_answer_is_that_of_the_network_and_larger_inputs_give_finer_maps(checkpoint_dir):
    loaded = load(checkpoint_dir)
    classifier = ImageClassifier(loaded, "network")
    assert classifier.sides == [64, 128, 256]
    view, seconds = classifier.classify(IMAGE, 64)
    with torch.no_grad():
        expected = loaded.model(eval_transform(loaded.data_config)(IMAGE)[None]).softmax(1)[0]
    torch.testing.assert_close(torch.from_numpy(view.inspection.probabilities).float(), expected)
    assert (view.class_names, seconds > 0) == (loaded.class_names, True)
    view, _ = classifier.classify(IMAGE, 128)
    assert view.inspection.attention["4.1"].shape == (2, 4, 4, 4, 4)
    assert view.inspection.spatial_gates["1.1"].shape == (32, 32)
    assert view.image.shape == (128, 128, 3)
    plain = np.asarray(IMAGE.resize((128, 128), Image.Resampling.BICUBIC), np.float32)
    assert abs(view.image.astype(np.float32).mean() - plain.mean()) < 3


def test_the_page_decides_by_the_threshold_of_a_class(checkpoint_dir):
    pytest.importorskip("gradio", reason="gradio is not installed")
    from patnet.demo.page import ImageTab

    loaded = load(checkpoint_dir)
    for name in loaded.class_names:
        classifier = ImageClassifier(replace(loaded, threshold=Threshold(name, 0.0, 1.0, 1.0)), "run")
        assert f">{name}, " in ImageTab(classifier, 10**6).answer(IMAGE, classifier.sides[0], None, -1)[0]


def test_other_networks_have_one_size_and_no_gates(tmp_path):
    model = timm.create_model("test_resnet", num_classes=4)
    save_checkpoint(model, tmp_path, label_names=["crane", "crane", "b", "c"])
    classifier = ImageClassifier(load(tmp_path), "resnet")
    (side,) = classifier.sides
    view, _ = classifier.classify(IMAGE, side)
    assert view.class_names == ["crane (0)", "crane (1)", "b", "c"]
    assert not view.inspection.attention
    assert "no gates" in view.inspection.missing[0]
    assert classifier.examples() == []


def test_an_exported_file_has_classes_and_hides_its_layers(checkpoint_dir):
    loaded = load(checkpoint_dir)
    info = ExportInfo(backend="onnx", img_size=(64, 64), model="patnet_t0", label_names=loaded.class_names)
    exported = replace(loaded, model=Exported(Path("network.onnx"), loaded.model, info))
    classifier = ImageClassifier(exported, "network.onnx")
    assert (classifier.architecture, classifier.sides) == ("patnet_t0, exported", [64])
    view, _ = classifier.classify(IMAGE, 64)
    expected = ImageClassifier(loaded, "network").classify(IMAGE, 64)[0].inspection.logits
    assert np.array_equal(view.inspection.logits, expected)
    assert "hides its layers" in view.inspection.missing[0]
    assert draw("sheet", view).width == 990


def test_examples_are_held_out_images_of_each_class(run):
    examples = ImageClassifier(load(run), str(run)).examples(4)
    assert [example.label for example in examples] == ["cat"] * 2 + ["dog"] * 2
    assert len({example.file for example in examples}) == 4
    assert all(example.file.parent.name == example.label for example in examples)
    images = run.parent / "images"
    images.rename(run.parent / "gone")
    assert ImageClassifier(load(run), str(run)).examples() == []
    (run.parent / "gone").rename(images)
