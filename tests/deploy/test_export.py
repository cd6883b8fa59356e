import copy
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
SIZE = (64, 64)
# Largest difference relative to the largest logit. int8 is a coarser network.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.3}
FILE_BACKENDS = [name for name, backend in BACKENDS.items() if backend.suffix]
slow = pytest.mark.slow


def info_of(backend, precision="fp32", batch_size=2, img_size=SIZE, **others):
    fields = {
        "model": "tiny",
        "source": "runs/first",
        "label_names": LABELS,
        "data_config": {"input_size": [3, 64, 64], "mean": [0.5, 0.4, 0.3], "interpolation": "bicubic"},
    }
    return ExportInfo(backend=backend, precision=precision, batch_size=batch_size, img_size=img_size, **fields | others)


def need(backend, precision="fp32"):
    for package in BACKENDS[backend].needs(precision):
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def exported(model, images, tmp_path_factory):
    """Exports the network once for each backend and its options; gives the path."""
    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def path_of(backend, precision="fp32", batch_size=2, img_size=SIZE, fused=True):
        need(backend, precision)
        name = f"{backend}-{precision}-{batch_size}-{img_size}-{fused}".replace(" ", "")
        path = folder / f"{name}{BACKENDS[backend].suffix}"
        info = info_of(backend, precision, batch_size, img_size, fused=fused)
        agreement = export(model, path, images(5), info=info, calibration=images(16, seed=2))
        assert agreement.images == 5
        assert agreement.relative <= TOLERANCES[precision]
        return path

    return path_of


@pytest.fixture
def empty(tmp_path):
    """A directory in which an export fails, and that must be empty afterwards."""
    folder = tmp_path / "empty"
    folder.mkdir()
    yield folder
    assert sorted(folder.iterdir()) == []


@pytest.fixture
def replace_method(monkeypatch):
    """Replaces a method of a backend."""
    return lambda name, **methods: [monkeypatch.setattr(BACKENDS[name], key, value) for key, value in methods.items()]


@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        pytest.param(
            backend,
            precision,
            marks=slow
            if backend == "aotinductor" or (backend, precision) in (("onnx", "fp16"), ("onnx", "int8"))
            else [],
        )
        for backend in FILE_BACKENDS
        for precision in BACKENDS[backend].precisions
    ],
)
def test_a_file_gives_the_logits_of_the_network_for_any_number_of_images(
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
    assert found.info.precision == precision


@pytest.mark.parametrize(
    ("backend", "batch_size", "img_size"),
    [
        pytest.param(backend, *shape, marks=[] if backend == "onnx" and shape == (None, None) else slow)
        for backend in FILE_BACKENDS
        for shape in ((None, None), (None, (64, 96)), (1, None))
        if backend != "aotinductor" or shape == (None, None)  # it compiles for minutes
    ],
)
def test_dynamic_batch_and_image_size(model, images, exported, assert_same, tmp_path, backend, batch_size, img_size):
    need(backend)
    example = images(2, *(img_size or (80, 64)))
    path = tmp_path / f"net{BACKENDS[backend].suffix}"
    export(model, path, example, info=info_of(backend, batch_size=batch_size, img_size=img_size))
    found = load_exported(path)
    assert (found.info.batch_size, found.info.img_size) == (batch_size, img_size)
    for shape in ((1, 64, 64), (3, 96, 128), (2, 70, 90), (1, 64, 200)) if img_size is None else ((4, 64, 96),):
        x = images(*shape)
        assert_same(found(x), model, x)
    if img_size is None:
        with pytest.raises(InputError, match="at least 64x64 px, not 1x3x64x32"):
            found(images(1, 64, 32))


@pytest.mark.parametrize("backend", ["torch", *(pytest.param(name, marks=slow) for name in ("onnx", "openvino"))])
def test_an_unfused_file_gives_the_same(model, images, exported, assert_same, backend):
    unfused = load_exported(exported(backend, fused=False))
    assert not unfused.info.fused
    assert_same(unfused(images(3)), model, images(3))


@pytest.mark.parametrize("backend", [pytest.param(b, marks=slow if b == "aotinductor" else []) for b in FILE_BACKENDS])
def test_a_file_holds_its_metadata(exported, backend):
    info = load_exported(exported(backend)).info
    versions = info.versions
    assert info == info_of(backend, versions=versions)
    assert versions["patnet"] == patnet.__version__
    assert versions["torch"] == torch.__version__
    for package in BACKENDS[backend].packages:
        assert importlib.metadata.version(package).split("-")[0] in versions[package]


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
def test_an_onnx_file_is_hardly_larger_than_the_parameters(tmp_path, images, assert_same):
    need("onnx")
    network = timm.create_model("patnet_t0").eval()
    path, x = tmp_path / "t0.onnx", images(2, 224, 224)
    info = info_of("onnx", batch_size=1, img_size=(224, 224), label_names=[str(i) for i in range(1000)])
    export(network, path, x, info=info)
    assert path.stat().st_size <= 1.05 * 4 * sum(p.numel() for p in network.parameters())
    assert_same(load_exported(path)(x), network, x)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_file_that_disagrees_is_not_moved_into_place(model, tiny, images, tmp_path, replace_method, earlier):
    path = tmp_path / "net.pt2"
    if earlier:
        path.write_text("an earlier file")
    write = BACKENDS["torch"].write
    replace_method("torch", write=lambda _, path, request: write(tiny(seed=5), path, request))
    with pytest.raises(InputError, match=r"does not agree with the network.*nothing was written"):
        export(model, path, images(4), info=info_of("torch"))
    assert [file.name for file in tmp_path.iterdir()] == (["net.pt2"] if earlier else [])
    assert not earlier or path.read_text() == "an earlier file"


@pytest.mark.parametrize("backend", ["onnx", "openvino", "torch"])
def test_a_file_that_gives_nan_is_not_moved_into_place(model, images, exported, empty, replace_method, backend):
    """As of a network that overflows in 16 bits."""
    run, info = BACKENDS[backend].load(exported(backend), None)

    def write(model, path, request):
        for file in (path, *map(path.with_suffix, BACKENDS[backend].companions)):
            file.touch()

    replace_method(backend, write=write, load=lambda path, threads: (lambda x: run(x) * float("nan"), info))
    with pytest.raises(InputError, match="does not agree"):
        export(model, empty / f"net{BACKENDS[backend].suffix}", images(4), info=info_of(backend))


def test_the_two_files_of_openvino_are_replaced_together(model, tiny, images, exported, tmp_path, replace_method):
    written = exported("openvino")

    def write(_, path, request):
        for suffix in (".xml", ".bin"):
            path.with_suffix(suffix).write_bytes(written.with_suffix(suffix).read_bytes())

    path = tmp_path / "my.first.xml"
    for file in (path, tmp_path / "my.first.bin"):
        file.write_text("an earlier file")
    replace_method("openvino", write=write)
    with pytest.raises(InputError, match="does not agree"):
        export(tiny(seed=5), path, images(4), info=info_of("openvino"))
    assert {file.read_text() for file in tmp_path.iterdir()} == {"an earlier file"}
    export(model, path, images(4), info=info_of("openvino"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["my.first.bin", "my.first.xml"]
    assert load_exported(path)(images(1)).shape == (1, len(LABELS))


@pytest.mark.parametrize("when", ["write", "load"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_export_leaves_nothing(model, images, empty, replace_method, when, stop):
    def stopped(*arguments):
        if when == "write":
            arguments[1].write_text("half a file")
        raise stop

    replace_method("torch", **{when: stopped})
    training = copy.deepcopy(model).train()
    with pytest.raises(stop), pytest.warns(UserWarning, match="training mode"):
        export(training, empty / "net.pt2", images(1), info=info_of("torch"))
    assert training.training


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
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert {p.dtype for p in network.parameters()} == {torch.float32}
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
    ],
)
def test_what_cannot_be_written_is_refused_first(model, images, empty, monkeypatch, options, message):
    for backend in {type(backend): backend for backend in BACKENDS.values()}.values():
        monkeypatch.setattr(backend, "write", lambda *_: pytest.fail("it was written"))
        monkeypatch.setattr(backend, "packages", ())
    path = empty / options.pop("name", "net.pt2")
    with pytest.raises(InputError, match=message):
        export(model, path, images(4), info=info_of(**options))


def test_a_path_that_cannot_be_written_is_named(model, images, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "taken.pt2").mkdir()
    (tmp_path / "net.bin").mkdir()
    for name, backend, message in (
        ("file/net.pt2", "torch", "cannot be written"),
        ("taken.pt2", "torch", "is a directory"),
        ("net.xml", "openvino", r"net\.bin: is a directory"),
    ):
        need(backend)
        with pytest.raises(InputError, match=message):
            export(model, tmp_path / name, images(1), info=info_of(backend))


@pytest.mark.parametrize(
    ("backend", "precision", "missing"),
    [("onnx", "fp32", "onnxruntime"), ("openvino", "fp32", "onnxscript"), ("onnx", "int8", "nncf")],
)
def test_a_package_that_is_not_installed_is_named(model, images, empty, monkeypatch, backend, precision, missing):
    def find_spec(name, *rest):
        return None if name == missing else found(name, *rest)

    found = importlib.util.find_spec
    monkeypatch.setattr("patnet.errors.find_spec", find_spec)
    path = empty / f"net{BACKENDS[backend].suffix}"
    message = rf"{missing}, which is not installed: pip install 'patnet\[{backend}\]'"
    with pytest.raises(InputError, match=message):
        export(model, path, images(2), info=info_of(backend, precision), calibration=images(4))
    if precision != "int8":
        path.touch()
        with pytest.raises(InputError, match=message):
            load_exported(path)
        path.unlink()


def test_images_of_another_shape_are_refused(exported):
    found = load_exported(exported("torch"))
    for shape in ((1, 3, 64, 96), (1, 1, 64, 64), (3, 64, 64), (1, 3, 32, 32)):
        with pytest.raises(InputError, match=f"takes images of shape Nx3x64x64, not {'x'.join(map(str, shape))}"):
            found(torch.randn(shape))


def damage(path, how):
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"these are words\n" * 40}[how])


@pytest.mark.parametrize("how", ["cut", "empty", "text", "weights cut", "weights missing"])
@pytest.mark.parametrize("backend", [pytest.param(b, marks=slow if b == "aotinductor" else []) for b in FILE_BACKENDS])
def test_a_damaged_file_is_named_in_one_line(exported, tmp_path, capfd, backend, how):
    written = exported(backend)
    path = tmp_path / written.name
    files = [path, *map(path.with_suffix, BACKENDS[backend].companions)]
    for file in files:
        file.write_bytes(written.with_suffix(file.suffix).read_bytes())
    load_exported(path)
    if how.startswith("weights"):
        for file in files[1:]:
            damage(file, "cut") if how == "weights cut" else file.unlink()
        if not files[1:]:
            pytest.skip("one file")
    else:
        damage(path, how)
    with pytest.raises(InputError) as refused:
        load_exported(path)
    assert capfd.readouterr().err == ""
    assert path.name in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    assert not how.startswith("weights") or "bin file" in str(refused.value)


def test_other_files_are_refused(tmp_path, capfd):
    pytest.importorskip("openvino")
    (tmp_path / "page.xml").write_text("<html><body>words</body></html>")
    (tmp_path / "net.tflite").touch()
    for name, message in (
        ("absent.onnx", "no such file"),
        ("net.tflite", r"its suffix must be \.onnx, \.pt2, \.xml"),
        ("page.xml", "is not an OpenVINO network"),
    ):
        with pytest.raises(InputError, match=message):
            load_exported(tmp_path / name)
    assert capfd.readouterr().err == ""


def test_a_program_without_our_metadata_is_refused(tmp_path):
    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    program = torch.export.export(Double(), (torch.ones(2),))
    torch.export.save(program, tmp_path / "plain.pt2")
    with pytest.raises(InputError, match="has no class names and no preprocessing"):
        load_exported(tmp_path / "plain.pt2")
    torch.export.save(program, tmp_path / "foreign.pt2", extra_files={"patnet": '{"img_size": 3}'})
    with pytest.raises(InputError, match="not that of an exported network"):
        load_exported(tmp_path / "foreign.pt2")


def test_a_backend_without_a_file_format_says_so(model, tmp_path):
    for call in (
        lambda: Backend.load(BACKENDS["eager"], tmp_path),
        lambda: BACKENDS["eager"].write(model, tmp_path, None),
    ):
        with pytest.raises(InputError, match="backend eager has no file format"):
            call()
