"""Exported detectors, and the form for a single image that they are exported from."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.transforms.functional import to_pil_image

from patnet import InputError
from patnet.cli import main
from patnet.detection import DETECTORS, export, export_detector, save_detector
from patnet.detection.export import FORMATS, compare
from patnet.detection.single_image import SingleImage, paste_masks

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

IMAGES = [torch.rand(3, 150, 130, generator=torch.Generator().manual_seed(i)) for i in range(2)]


@settings(max_examples=30)
@given(height=st.integers(1, 60), width=st.integers(1, 60), count=st.integers(0, 4), seed=st.integers(0, 1000))
def test_masks_are_pasted_as_torchvision_pastes_them(height, width, count, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, 1, 28, 28, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    side = torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) - corner)
    boxes = torch.cat((corner, corner + side), 1)
    expected = paste_masks_in_image(masks, boxes, (height, width))
    torch.testing.assert_close(paste_masks(masks, boxes, (height, width)), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("detector", "fixed"), [*((name, False) for name in sorted(DETECTORS)), ("retinanet", True)])
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(height=st.integers(20, 150), width=st.integers(20, 150))
def test_the_form_for_a_single_image_detects_the_same(small, detector, fixed, height, width):
    model = small(detector)
    network = SingleImage(model, (height, width), fixed).eval()
    image = torch.rand(3, height, width)
    with torch.no_grad():
        expected = model([image])[0]
        found = dict(zip(network.outputs, network(image), strict=True))
    found = {key: value[found["scores"] > 0] for key, value in found.items()}
    assert sorted(found) == sorted(expected)
    assert len(expected["boxes"]) > 0
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-4)


def test_no_detections(small):
    network = SingleImage(small("mask_rcnn", width=16, box_score_thresh=0.9999), (70, 90)).eval()
    with torch.no_grad():
        assert [tuple(x.shape) for x in network(torch.rand(3, 70, 90))] == [(0, 4), (0,), (0,), (0, 1, 70, 90)]


SLOW = [("mask_rcnn", ".onnx"), ("faster_rcnn", ".onnx"), ("mask_rcnn", ".xml"), ("retinanet", ".pte")]


@pytest.mark.parametrize(
    ("detector", "suffix"),
    [("retinanet", ".onnx"), ("retinanet", ".xml"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)],
)
def test_the_file_detects_what_the_detector_detects(small, tmp_path, capsys, detector, suffix):
    for package in FORMATS[suffix].packages:
        pytest.importorskip(package)
    model = small(detector)
    run = save_detector(model, tmp_path / "run", class_names=["a", "b", "c"], category_ids=[1, 2, 3])
    (tmp_path / "images").mkdir()
    for i, image in enumerate(IMAGES):
        to_pil_image(image).save(tmp_path / "images" / f"{i}.png")
    file = tmp_path / f"detector{suffix}"
    file.write_text("an earlier one")
    words = [str(run), str(tmp_path / "images"), "--size", "200", "160", "--out", str(file), "--json"]
    assert main(["detect", "export", *words]) == 0
    printed = json.loads(capsys.readouterr().out)
    written = sum(f.stat().st_size for f in tmp_path.glob("detector.*"))  # of OpenVINO with the weights in .bin
    assert (printed["images"], printed["matched"], printed["bytes"]) == (2, 1, written)
    assert printed["detections"] >= 10
    assert max(printed["score"], printed["corner"], printed["mask"]) <= 1e-4

    names = SingleImage(model, (200, 160)).outputs
    other = torch.rand(3, 200, 160)  # not one that it was checked with
    with torch.no_grad():
        expected = model([other])[0]
    assert len(expected["scores"]) > 0
    found = dict(zip(names, FORMATS[suffix].load(file, len(names))(other), strict=True))
    for name, value in found.items():
        torch.testing.assert_close(value[found["scores"] > 0], expected[name], rtol=1e-3, atol=1e-3)
    if suffix == ".onnx":
        session = ort.InferenceSession(file)
        assert [(value.name, value.shape) for value in session.get_inputs()] == [("image", [3, 200, 160])]
        info = json.loads(session.get_modelmeta().custom_metadata_map["patnet"])
        assert info == {"task": "detection", "class_names": ["a", "b", "c"], "size": [200, 160]}


def test_a_file_that_disagrees_is_not_written(small, tmp_path, monkeypatch):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([], "finds nothing", [value], [value])
    nothing = [np.zeros(shape, np.float32) for shape in ((0, 4), 0, 0)]
    monkeypatch.setattr(export, "onnx_program", lambda *_, **__: onnx.helper.make_model(graph))
    monkeypatch.setattr(export, "onnx_session", lambda path: SimpleNamespace(run=lambda names, inputs: nothing))
    (tmp_path / "detector.onnx").write_text("an earlier one")
    with pytest.raises(InputError, match=r"not written, because the file does not agree with PyTorch") as error:
        export_detector(small("retinanet"), tmp_path / "detector.onnx", size=(64, 64), images=IMAGES)
    assert "\n" not in str(error.value)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["an earlier one"]


def test_a_detector_that_cannot_be_traced_is_refused_in_one_line(small, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("a long\nexplanation") from TypeError("the cause")

    monkeypatch.setattr(export, "onnx_program", failing)
    with pytest.raises(InputError, match=r"detector.onnx: the detector cannot be exported \(the cause\)"):
        export_detector(small("retinanet"), tmp_path / "detector.onnx", size=(64, 64), images=IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported(small, tmp_path):
    options = {"model": small("retinanet", width=16), "size": (64, 64), "images": [torch.rand(3, 64, 64)]}
    for name, changed, message in (
        ("detector.pt", {}, "give a file name that ends in .onnx"),
        ("detector.pte", {"model": small("faster_rcnn", width=16)}, "train --detector retinanet"),
        ("detector.onnx", {"images": []}, "give at least one image to check the file with"),
        ("detector.onnx", {"images": [torch.rand(2, 64, 64)]}, "an image to check with is 2x64x64; give 3xHxW"),
        ("detector.onnx", {"size": (0, 64)}, "give height and width in px"),
        ("detector.onnx", {"model": nn.Conv2d(3, 3, 1)}, r"a Conv2d cannot be exported, only the detectors of patnet"),
    ):
        with pytest.raises(InputError, match=message):
            export_detector(file=tmp_path / name, **{**options, **changed})
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=40)
@given(
    count=st.integers(0, 20),
    key=st.sampled_from(["boxes", "labels", "scores", "masks"]),
    value=st.sampled_from([1.0, float("nan")]),
)
def test_a_difference_is_noticed_and_the_order_is_not(count, key, value):
    generator = torch.Generator().manual_seed(count)
    ours = {
        "boxes": torch.rand(count, 4, generator=generator) * 100,
        "labels": torch.randint(1, 4, (count,), generator=generator),
        "scores": torch.rand(count, generator=generator) + 0.1,
        "masks": torch.rand(count, 1, 20, 20, generator=generator),
    }
    order = torch.randperm(count)
    theirs = {name: tensor[order] for name, tensor in ours.items()}
    agreement = compare([(ours, theirs)], (100, 100))
    assert (agreement.matched, agreement.detections, agreement.score) == (1, count, 0)
    if count > 1:
        best = theirs["scores"].argmax()
        fewer = {name: tensor[torch.arange(count) != best] for name, tensor in theirs.items()}
        assert compare([(ours, fewer)], (100, 100)).matched == pytest.approx(1 - 1 / (2 * count - 1))
        theirs[key][best] += 1 if key == "labels" else value
        assert compare([(ours, theirs)], (100, 100)).matched == pytest.approx(1 - 1 / count)
