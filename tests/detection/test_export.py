import numpy as np
import pytest
import torch
from torch import nn
from torchvision.io import ImageReadMode, decode_image

from patnet import InputError
from patnet.detection import export, export_onnx
from patnet.detection.export import compare

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def photographs():
    """Solar cells, `(3, 300, 300)` in [0, 1]."""
    pytest.importorskip("elpv_dataset")
    from patnet.data.elpv import cells

    return [decode_image(str(cell.path), ImageReadMode.RGB).float() / 255 for cell in cells()[:200:100]]


@pytest.mark.parametrize(
    "detector", [*(pytest.param(n, marks=pytest.mark.slow) for n in ("mask_rcnn", "faster_rcnn")), "retinanet"]
)
def test_the_file_finds_in_photographs_what_the_network_finds(small, photographs, tmp_path, detector):
    model = small(detector)
    file = tmp_path / "detector.onnx"
    agreement = export_onnx(model, file, size=(200, 160), pictures=photographs)
    print(agreement)
    assert agreement.pictures == 2
    assert agreement.detections >= 10
    assert agreement.matched == 1
    assert max(agreement.score, agreement.corner, agreement.mask) <= 1e-4
    assert list(tmp_path.iterdir()) == [file]
    assert any(isinstance(part, nn.BatchNorm2d) for part in model.modules())  # the given one is not fused

    session = ort.InferenceSession(file)
    assert [value.name for value in session.get_inputs()] == ["picture"]
    assert session.get_inputs()[0].shape == [3, 200, 160]
    names = [value.name for value in session.get_outputs()]
    other = torch.rand(3, 200, 160)  # none of those that it was checked with
    with torch.no_grad():
        expected = model([other])[0]
    assert len(expected["scores"]) > 0
    for name, value in zip(names, session.run(None, {"picture": other.numpy()}), strict=True):
        np.testing.assert_allclose(value, expected[name].numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("off", [0.0, 5.0])
def test_a_file_that_disagrees_is_not_written(small, photographs, tmp_path, monkeypatch, off):
    onnx = pytest.importorskip("onnx")
    model = small("retinanet")

    class Session:
        def __init__(self, path):
            pass

        def run(self, names, inputs):
            with torch.no_grad():
                found = model([torch.from_numpy(inputs["picture"])])[0]
            return [(found[name] + off * (name == "boxes")).numpy() for name in names]

    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([], "empty", [value], [value])
    monkeypatch.setattr(export, "onnx_program", lambda *_, **__: onnx.helper.make_model(graph))
    monkeypatch.setattr(export, "onnx_session", Session)
    file = tmp_path / "detector.onnx"
    file.write_text("an earlier one")

    if off == 0:
        assert export_onnx(model, file, size=(64, 64), pictures=photographs).matched == 1
        assert file.read_bytes() != b"an earlier one"
    else:
        with pytest.raises(InputError, match=r"does not agree with the network: .*nothing was written") as error:
            export_onnx(model, file, size=(64, 64), pictures=photographs)
        assert "\n" not in str(error.value)
        assert file.read_text() == "an earlier one"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("detector.pt", {}, "the name of the file must end in .onnx"),
        ("detector.onnx", {"pictures": []}, "give at least one picture to check the file with"),
        ("detector.onnx", {"pictures": [torch.rand(2, 64, 64)]}, "a picture to check with is 2x64x64; give 3xHxW"),
        ("detector.onnx", {"size": (0, 64)}, "give height and width in px"),
        ("nowhere/detector.onnx", {}, "nowhere: cannot be written"),
    ],
)
def test_what_cannot_be_exported(small, tmp_path, name, kwargs, message):
    given = {"size": (64, 64), "pictures": [torch.rand(3, 64, 64)], **kwargs}
    with pytest.raises(InputError, match=message):
        export_onnx(small("retinanet"), tmp_path / name, **given)
    assert list(tmp_path.iterdir()) == []


def detections(count):
    generator = torch.Generator().manual_seed(count)
    return {
        "boxes": torch.rand(count, 4, generator=generator) * 100,
        "labels": torch.randint(1, 4, (count,), generator=generator),
        "scores": torch.rand(count, generator=generator) + 0.1,
        "masks": torch.rand(count, 1, 20, 20, generator=generator),
    }


@pytest.mark.parametrize("count", [0, 1, 20])
def test_the_order_of_equal_detections_does_not_matter(count):
    ours = detections(count)
    order = torch.randperm(count)
    agreement = compare([(ours, {key: value[order] for key, value in ours.items()})], (100, 100), 1e-3)
    assert (agreement.matched, agreement.detections, agreement.score) == (1, count, 0)


@pytest.mark.parametrize(
    ("key", "change"), [("boxes", 1.0), ("labels", 1), ("scores", 0.01), ("masks", 0.01), ("boxes", float("nan"))]
)
def test_a_difference_is_seen(key, change):
    ours = detections(20)
    best = ours["scores"].argmax()
    theirs = {name: value.clone() for name, value in ours.items()}
    theirs[key][best] += change
    assert compare([(ours, theirs)], (100, 100), 1e-3).matched == pytest.approx(1 - 2 / 40)
    fewer = {name: value[torch.arange(20) != best] for name, value in ours.items()}
    assert compare([(ours, fewer)], (100, 100), 1e-3).matched == pytest.approx(1 - 1 / 39)
