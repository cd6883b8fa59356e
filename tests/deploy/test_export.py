import functools
import importlib.metadata
import importlib.util
import json
import warnings

import pytest
import timm
import torch
from torch import nn

import patnet
from patnet import InputError
from patnet.deploy import BACKENDS, Backend, ExportInfo, export, load_exported

LABELS = ["a", 'é "quoted" <b> & \\ \n', "日本"]
# Largest difference relative to the largest logit. int8 is a coarser network.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2, "int8": 0.3}
FILE_BACKENDS = [name for name, backend in BACKENDS.items() if backend.suffix]
slow = pytest.mark.slow


def some_slow(cases, is_slow):
    """Arguments of a test; those of slow cases with the marker."""
    return [pytest.param(*case, marks=slow if is_slow(*case) else []) for case in cases]


def info_of(backend, precision="fp32", batch_size=2, img_size=(64, 64), **others):
    preprocessing = {"input_size": [3, 64, 64], "mean": [0.5, 0.4, 0.3], "interpolation": "bicubic"}
    fields = {"model": "tiny", "source": "runs/first", "label_names": LABELS, "data_config": preprocessing} | others
    return ExportInfo(backend=backend, precision=precision, batch_size=batch_size, img_size=img_size, **fields)


def files_of(path, backend):
    return [path, *map(path.with_suffix, BACKENDS[backend].companions)]


@pytest.fixture(scope="module")
def exported(model, images, need, tmp_path_factory):
    """Exports the network once for each backend and its options; gives the path, alone in its folder."""

    @functools.cache
    def path_of(backend, precision, fused):
        need(backend, precision)
        path = tmp_path_factory.mktemp("exported") / f"my.first{BACKENDS[backend].suffix}"
        info = info_of(backend, precision, fused=fused)
        agreement = export(model, path, images(5), info=info, calibration=images(16, seed=2))
        assert agreement.images == 5
        assert agreement.relative <= TOLERANCES[precision]
        assert sorted(path.parent.iterdir()) == sorted(files_of(path, backend))
        return path

    return lambda backend, precision="fp32", fused=True: path_of(backend, precision, fused)


@pytest.mark.parametrize(
    ("backend", "precision"),
    some_slow(
        [(backend, precision) for backend in FILE_BACKENDS for precision in BACKENDS[backend].precisions],
        lambda backend, precision: (
            backend == "aotinductor"
            or (backend == "onnx" and precision != "fp32")
            or (backend, precision) == ("executorch", "int8")
        ),
    ),
)
def test_a_file_gives_the_logits_of_the_network_for_any_number_of_images_and_holds_its_metadata(
    model, images, exported, assert_same, backend, precision
):
    found = load_exported(exported(backend, precision), threads=1)
    for count in (1, 2, 5):
        x = images(count, seed=count)
        before = x.clone()
        assert_same(found(x), model, x, TOLERANCES[precision])
        assert torch.equal(x, before)
    assert found(images(0)).shape == (0, len(LABELS))
    first, second = found(images(2, seed=1)), found(images(2, seed=2))
    assert torch.equal(first, found(images(2, seed=1)))
    assert not torch.equal(first, second)

    versions = found.info.versions
    assert found.info == info_of(backend, precision, versions=versions)
    assert (versions["patnet"], versions["torch"]) == (patnet.__version__, torch.__version__)
    for package in BACKENDS[backend].packages:
        assert importlib.metadata.version(package).split("-")[0] in versions[package]


SHAPES = ((None, None), (None, (64, 96)), (1, None))


@pytest.mark.parametrize(
    ("backend", "batch_size", "img_size"),
    some_slow(
        # AOTInductor compiles for minutes.
        [
            (b, *shape)
            for b in FILE_BACKENDS
            for shape in (SHAPES[:1] if b == "aotinductor" else SHAPES)
            if b != "executorch"
        ],
        lambda *case: case != ("onnx", None, None),
    ),
)
def test_dynamic_batch_and_image_size(model, images, need, assert_same, tmp_path, backend, batch_size, img_size):
    need(backend)
    path = tmp_path / f"net{BACKENDS[backend].suffix}"
    info = info_of(backend, batch_size=batch_size, img_size=img_size)
    export(model, path, images(2, *(img_size or (80, 64))), info=info)
    found = load_exported(path)
    assert (found.info.batch_size, found.info.img_size) == (batch_size, img_size)
    for shape in ((1, 64, 64), (3, 96, 128), (2, 70, 90), (1, 64, 200)) if img_size is None else ((4, 64, 96),):
        x = images(*shape)
        assert_same(found(x), model, x)
    if img_size is None:
        with pytest.raises(InputError, match="at least 64x64 px, not 1x3x64x32"):
            found(images(1, 64, 32))


@pytest.mark.parametrize("backend", some_slow([("torch",), ("onnx",), ("openvino",)], lambda name: name != "torch"))
def test_an_unfused_file_gives_the_same(model, images, exported, assert_same, backend):
    unfused = load_exported(exported(backend, fused=False))
    assert not unfused.info.fused
    assert_same(unfused(images(3)), model, images(3))


def test_metadata_that_is_something_else_is_refused():
    text = info_of("onnx").to_json()
    assert ExportInfo.from_json(text) == info_of("onnx")
    fields = json.loads(text)
    wrong = ["", "no JSON", "[]", "3", "null", "{}"]
    for other in [*wrong, json.dumps(fields | {"img_size": "ab"}), json.dumps(fields | {"x": 1})]:
        with pytest.raises(ValueError, match=r"."):
            ExportInfo.from_json(other)


def test_the_onnx_graph_is_valid_and_its_nodes_are_named_after_modules(exported):
    onnx = pytest.importorskip("onnx")
    path = exported("onnx")
    onnx.checker.check_model(path, full_check=True)
    proto = onnx.load(path)
    names = [node.name for node in proto.graph.node]
    assert len(set(names)) == len(names)
    assert any(name.startswith("stages.1.blocks.0.mixer") for name in names)
    assert not proto.graph.node[0].metadata_props
    assert ([v.name for v in proto.graph.input], [v.name for v in proto.graph.output]) == (["images"], ["logits"])


@slow
def test_an_onnx_file_is_hardly_larger_than_the_parameters(tmp_path, images, need, assert_same):
    need("onnx")
    network = timm.create_model("patnet_t0").eval()
    path, x = tmp_path / "t0.onnx", images(2, 224, 224)
    info = info_of("onnx", batch_size=1, img_size=(224, 224), label_names=[str(i) for i in range(1000)])
    export(network, path, x, info=info)
    assert path.stat().st_size <= 1.05 * 4 * sum(p.numel() for p in network.parameters())
    assert_same(load_exported(path)(x), network, x)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("failure", ["other logits", "nan", KeyboardInterrupt, MemoryError])
def test_a_failed_export_changes_nothing(model, images, need, tmp_path, monkeypatch, backend, earlier, failure):
    """NaN as from a network that overflows in 16 bits."""
    need(backend)

    def write(network, path, request):
        for file in files_of(path, backend):
            file.write_text("a new file")
        if failure is KeyboardInterrupt:
            raise failure

    def load(path, threads=None):
        if failure is MemoryError:
            raise failure
        wrong = torch.nan if failure == "nan" else 1.0
        return torch.no_grad()(lambda x: model(x) + wrong), info_of(backend)

    monkeypatch.setattr(BACKENDS[backend], "write", write)
    monkeypatch.setattr(BACKENDS[backend], "load", load)
    path = tmp_path / f"my.first{BACKENDS[backend].suffix}"
    before = dict.fromkeys(files_of(path, backend), "an earlier file") if earlier else {}
    for file, text in before.items():
        file.write_text(text)
    message = r"does not agree with the network.*nothing was written" if isinstance(failure, str) else None
    with pytest.raises(InputError if message else failure, match=message):
        export(model, path, images(4), info=info_of(backend))
    assert {file: file.read_text() for file in tmp_path.iterdir()} == before


class Untraceable(nn.Module):
    """A network whose layers depend on the values of the images."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        x = self.layer(x.mean((2, 3)))
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_a_network_that_cannot_be_traced_is_refused_in_one_line(images, need, tmp_path, backend):
    need(backend)
    path = tmp_path / f"net{BACKENDS[backend].suffix}"
    with pytest.raises(InputError, match=rf"net.*: backend {backend} cannot export the network \(.*u0.*\)") as error:
        export(Untraceable().eval(), path, images(4), info=info_of(backend))
    assert str(error.value).isprintable()
    assert list(tmp_path.iterdir()) == []


def test_the_network_is_not_changed(tiny, images, tmp_path, assert_same):
    network = tiny().train().to(memory_format=torch.channels_last)
    network.stages[0].eval()
    modes = {name: module.training for name, module in network.named_modules()}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = images(3).to(memory_format=torch.channels_last)
    with pytest.warns(UserWarning, match="training mode; it is exported in evaluation mode") as caught:
        export(network, tmp_path / "net.pt2", x, info=info_of("torch", "fp16"))
    assert sum("training mode" in str(warning.message) for warning in caught) == 1
    assert {name: module.training for name, module in network.named_modules()} == modes
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert_same(load_exported(tmp_path / "net.pt2")(x), tiny(), images(3), TOLERANCES["fp16"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export(tiny(), tmp_path / "net.pt2", x, info=info_of("torch", fused=False))
    assert not [warning for warning in caught if "training" in str(warning.message)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "onxx"}, "did you mean 'onnx'"),
        ({"backend": "coreml"}, f"choose from {', '.join(BACKENDS)}"),
        ({"backend": "torch", "precision": "int8"}, "backend torch has no precision 'int8'; choose from fp32, fp16"),
        ({"backend": "onnx"}, "must be .onnx"),
        ({"backend": "eager"}, "the backend has no file format"),
        ({"backend": "torch", "img_size": (64, 96)}, "takes images of shape Nx3x64x96, not 4x3x64x64"),
        ({"backend": "torch", "in_chans": 1}, "takes images of shape Nx1x64x64, not 4x3x64x64"),
        ({"backend": "openvino", "precision": "int8", "name": "net.xml"}, "int8 needs at least 2 calibration images"),
        ({"backend": "executorch", "img_size": None, "name": "net.pte"}, "takes one batch size and one image size"),
        ({"backend": "torch", "name": "file/net.pt2"}, "cannot be written"),
        ({"backend": "torch", "name": "taken.pt2"}, "is a directory"),
        ({"backend": "openvino", "name": "taken.xml"}, r"taken\.bin: is a directory"),
    ],
)
def test_what_cannot_be_written_is_refused_first(model, images, tmp_path, monkeypatch, options, message):
    for backend in {type(backend): backend for backend in BACKENDS.values()}.values():
        monkeypatch.setattr(backend, "write", lambda *_: pytest.fail("it was written"))
        monkeypatch.setattr(backend, "packages", ())
    (tmp_path / "file").touch()
    (tmp_path / "taken.pt2").mkdir()
    (tmp_path / "taken.bin").mkdir()
    path = tmp_path / options.pop("name", "net.pt2")
    with pytest.raises(InputError, match=message):
        export(model, path, images(4), info=info_of(**options))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("backend", "precision", "missing"),
    [("onnx", "fp32", "onnxruntime"), ("openvino", "fp32", "onnxscript"), ("onnx", "int8", "nncf")],
)
def test_a_package_that_is_not_installed_is_named(model, images, tmp_path, monkeypatch, backend, precision, missing):
    found = importlib.util.find_spec
    monkeypatch.setattr("patnet.errors.find_spec", lambda name, *rest: None if name == missing else found(name, *rest))
    path = tmp_path / f"net{BACKENDS[backend].suffix}"
    message = rf"{missing}, which is not installed: pip install 'patnet\[{backend}\]'"
    with pytest.raises(InputError, match=message):
        export(model, path, images(2), info=info_of(backend, precision), calibration=images(4))
    assert not path.exists()
    if precision != "int8":
        path.touch()
        with pytest.raises(InputError, match=message):
            load_exported(path)


def test_images_of_another_shape_are_refused(exported):
    found = load_exported(exported("torch"))
    for shape in ((1, 3, 64, 96), (1, 1, 64, 64), (3, 64, 64), (1, 3, 32, 32)):
        with pytest.raises(InputError, match=f"takes images of shape Nx3x64x64, not {'x'.join(map(str, shape))}"):
            found(torch.randn(shape))


@pytest.mark.parametrize("backend", some_slow([(b,) for b in FILE_BACKENDS], lambda b: b == "aotinductor"))
def test_a_damaged_file_is_named_in_one_line(exported, tmp_path, capfd, backend):
    written = files_of(exported(backend), backend)
    path, *weights = files = [tmp_path / file.name for file in written]
    whole = [file.read_bytes() for file in written]
    damages = [(path, content) for content in (whole[0][: len(whole[0]) // 2], b"", b"these are words\n" * 40)]
    damages += [(file, content[: len(content) // 2]) for file, content in zip(weights, whole[1:], strict=True)]
    damages += [(file, None) for file in weights]
    for damaged, content in damages:
        for file, bytes_of in zip(files, whole, strict=True):
            file.write_bytes(bytes_of)
        load_exported(path)
        damaged.unlink() if content is None else damaged.write_bytes(content)
        with pytest.raises(InputError) as refused:
            load_exported(path)
        assert capfd.readouterr().err == ""
        message = str(refused.value)
        assert path.name in message
        assert "\n" not in message
        assert len(message) < 400
        assert damaged == path or "bin file" in message


def test_other_files_are_refused(tmp_path, capfd):
    pytest.importorskip("openvino")
    (tmp_path / "page.xml").write_text("<html><body>words</body></html>")
    (tmp_path / "net.tflite").touch()
    program = torch.export.export(nn.ReLU(), (torch.ones(2),))
    torch.export.save(program, tmp_path / "plain.pt2")
    torch.export.save(program, tmp_path / "foreign.pt2", extra_files={"patnet": '{"img_size": 3}'})
    for name, message in (
        ("absent.onnx", "no such file"),
        ("net.tflite", r"its suffix must be \.onnx, \.pt2, \.pte, \.xml"),
        ("page.xml", "is not an OpenVINO network"),
        ("plain.pt2", "has no class names and no preprocessing"),
        ("foreign.pt2", "not that of an exported network"),
    ):
        with pytest.raises(InputError, match=message):
            load_exported(tmp_path / name)
    assert capfd.readouterr().err == ""


def test_a_backend_without_a_file_format_says_so(model, tmp_path):
    for call in (
        lambda: Backend.load(BACKENDS["eager"], tmp_path),
        lambda: BACKENDS["eager"].write(model, tmp_path, None),
    ):
        with pytest.raises(InputError, match="backend eager has no file format"):
            call()
