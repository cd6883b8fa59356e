import copy
import functools
import importlib.metadata
import importlib.util
import json
import warnings
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

import patnet
from patnet import InputError, PATNet
from patnet.deploy import FORMATS, ExportInfo, export, load_exported

MODULES = {"onnx": "onnxruntime", "openvino": "openvino"}
LABELS = ["a", 'é "quoted" <b> & \\ \n', "日本"]
SIZE = (64, 64)
# Largest difference over the largest logit. int8 is a coarser network.
CLOSE = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.3}
slow = pytest.mark.slow


def tiny(seed=0):
    """A network with every kind of block, lived in: its norms' statistics are not 0 and 1, its logits differ."""
    torch.manual_seed(seed)
    model = PATNet(
        embed_dim=8, depths=(1, 1), mixers=("pat_ch", "pat_sf"), num_heads=2, feature_dim=16, num_classes=len(LABELS)
    )
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape))
        elif key.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape))
    nn.init.normal_(model.get_classifier().weight)
    return model.eval()


def info_of(format, precision="fp32", batch=2, size=SIZE, fused=True, **others):
    fields = {
        "model": "tiny",
        "source": "runs/first",
        "label_names": LABELS,
        "data_config": {"input_size": [3, 64, 64], "mean": [0.5, 0.4, 0.3], "interpolation": "bicubic"},
        "in_chans": 3,
    }
    return ExportInfo(**fields | others, batch=batch, size=size, precision=precision, fused=fused, format=format)


def pictures(count, *size, seed=1):
    return torch.randn(count, 3, *(size or SIZE), generator=torch.Generator().manual_seed(seed))


def relative_error(value, expected):
    assert value.shape == expected.shape
    return ((value - expected).abs().max() / expected.abs().max()).item()


def expected_of(model, x):
    with torch.inference_mode():
        return model(x)


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """Exports the network once for each format and its options; gives the path."""
    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def path_of(format, precision="fp32", batch=2, size=SIZE, fused=True):
        if format in MODULES:
            pytest.importorskip(MODULES[format])
        if precision == "int8":
            pytest.importorskip("nncf")
        name = f"{format}-{precision}-{batch}-{size}-{fused}".replace(" ", "")
        path = folder / f"{name}{FORMATS[format].suffix}"
        info = info_of(format, precision, batch, size, fused)
        agreement = export(model, path, pictures(5), info=info, calibration=pictures(16, seed=2))
        assert agreement.pictures == 5
        assert agreement.relative <= CLOSE[precision]
        return path

    return path_of


@pytest.fixture
def empty(tmp_path):
    """A folder in which an export fails, and that must be as it was afterwards."""
    folder = tmp_path / "empty"
    folder.mkdir()
    yield folder
    assert sorted(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("format", "precision"),
    [
        ("onnx", "fp32"),
        pytest.param("onnx", "fp16", marks=slow),
        pytest.param("onnx", "int8", marks=slow),
        ("openvino", "fp32"),
        pytest.param("openvino", "fp16", marks=slow),
        ("openvino", "int8"),
        ("torch", "fp32"),
        ("torch", "fp16"),
        pytest.param("aotinductor", "fp32", marks=slow),
        pytest.param("aotinductor", "fp16", marks=slow),
    ],
)
def test_a_file_gives_the_networks_logits_for_any_number_of_pictures(model, exported, format, precision):
    path = exported(format, precision)
    found = load_exported(path)
    for count in (1, 2, 5):
        x = pictures(count, seed=count)
        before = x.clone()
        error = relative_error(found(x), expected_of(model, x))
        print(f"{format} {precision}, {count} pictures: relative error {error:.1e}")
        assert error <= CLOSE[precision]
        assert torch.equal(x, before)
    assert found(pictures(0)).shape == (0, len(LABELS))
    first, second = found(pictures(2, seed=1)), found(pictures(2, seed=2))
    assert torch.equal(first, found(pictures(2, seed=1)))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "format",
    ["onnx", *(pytest.param(format, marks=slow) for format in ("openvino", "torch", "aotinductor"))],
)
def test_a_file_for_any_number_and_size(model, exported, format):
    found = load_exported(exported(format, batch=None, size=None))
    assert found.info.batch is None
    assert found.info.size is None
    for count, height, width in ((1, 64, 64), (3, 96, 128), (2, 70, 90), (1, 64, 200)):
        x = pictures(count, height, width)
        assert relative_error(found(x), expected_of(model, x)) <= CLOSE["fp32"], (count, height, width)
    with pytest.raises(InputError, match="at least 64x64 px, not 64x32"):
        found(pictures(1, 64, 32))


@slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("batch", "size"), [(None, (64, 96)), (1, None), (3, (32, 48))])
def test_only_the_number_or_only_the_size_is_free(model, tmp_path, format, batch, size):
    if format in MODULES:
        pytest.importorskip(MODULES[format])
    path = tmp_path / f"net{FORMATS[format].suffix}"
    example = pictures(2, *(size or (80, 64)))
    export(model, path, example, info=info_of(format, batch=batch, size=size))
    found = load_exported(path)
    for x in (example, pictures(4, *(size or (96, 160)))):
        assert relative_error(found(x), expected_of(model, x)) <= CLOSE["fp32"]


@pytest.mark.parametrize(
    "format", ["torch", *(pytest.param(format, marks=slow) for format in ("onnx", "openvino", "aotinductor"))]
)
def test_unfused_gives_the_same(model, exported, format):
    unfused = load_exported(exported(format, fused=False))
    assert not unfused.info.fused
    x = pictures(3)
    assert relative_error(unfused(x), expected_of(model, x)) <= CLOSE["fp32"]
    assert relative_error(unfused(x), load_exported(exported(format))(x)) <= CLOSE["fp32"]


@pytest.mark.parametrize("format", ["onnx", "openvino", "torch", pytest.param("aotinductor", marks=slow)])
def test_a_file_says_what_it_is(exported, format):
    info = load_exported(exported(format)).info
    wanted = info_of(format)
    assert info.label_names == LABELS
    assert info.data_config == wanted.data_config
    assert info.source == "runs/first"
    assert (info.format, info.precision, info.batch, info.size, info.fused) == (format, "fp32", 2, SIZE, True)
    assert info.versions["patnet"] == patnet.__version__
    assert info.versions["torch"] == torch.__version__
    for package in FORMATS[format].packages:
        assert importlib.metadata.version(package).split("-")[0] in info.versions[package]


def test_metadata_that_is_something_else_is_refused():
    text = info_of("onnx").to_json()
    assert ExportInfo.from_json(text) == info_of("onnx")
    fields = json.loads(text)
    wrong = ["", "no JSON", "[]", "3", "null", "{}", json.dumps(fields | {"size": "ab"}), json.dumps(fields | {"x": 1})]
    for other in wrong:
        with pytest.raises(ValueError, match=r"."):
            ExportInfo.from_json(other)


def test_onnxs_checker_passes_and_nodes_have_their_modules_names(exported):
    onnx = pytest.importorskip("onnx")
    for options in ({}, {"batch": None, "size": None}):
        path = exported("onnx", **options)
        onnx.checker.check_model(path, full_check=True)
    proto = onnx.load(exported("onnx"))
    names = [node.name for node in proto.graph.node]
    assert len(set(names)) == len(names)
    assert any(name.startswith("stages.1.blocks.0.mixer") for name in names)
    assert not proto.graph.node[0].metadata_props


@slow
def test_an_onnx_file_is_hardly_larger_than_the_parameters(tmp_path):
    pytest.importorskip("onnxruntime")
    network = timm.create_model("patnet_t0").eval()
    labels = [str(i) for i in range(1000)]
    path = tmp_path / "t0.onnx"
    x = pictures(2, 224, 224)
    export(network, path, x, info=info_of("onnx", batch=1, size=(224, 224), label_names=labels))
    ratio = path.stat().st_size / (4 * sum(p.numel() for p in network.parameters()))
    print(f"{ratio:.3f} times the parameters")
    assert ratio <= 1.05
    assert relative_error(load_exported(path)(x), expected_of(network, x)) <= CLOSE["fp32"]


def replace_format(monkeypatch, name, **changes):
    monkeypatch.setitem(FORMATS, name, FORMATS[name]._replace(**changes))


@pytest.mark.parametrize("earlier", [False, True])
def test_a_file_that_disagrees_is_not_put_in_place(model, tmp_path, monkeypatch, earlier):
    path = tmp_path / "net.pt2"
    if earlier:
        path.write_text("an earlier file")
    write = FORMATS["torch"].write
    replace_format(monkeypatch, "torch", write=lambda _, path, request: write(tiny(seed=5), path, request))
    with pytest.raises(InputError, match=r"does not agree with the network.*nothing was written"):
        export(model, path, pictures(4), info=info_of("torch"))
    assert [file.name for file in tmp_path.iterdir()] == (["net.pt2"] if earlier else [])
    if earlier:
        assert path.read_text() == "an earlier file"


@pytest.mark.parametrize("format", ["onnx", "openvino", "torch"])
def test_a_file_that_gives_no_numbers_is_not_put_in_place(exported, empty, monkeypatch, format):
    """As of a network that overflows in 16 bits."""
    load = FORMATS[format].load
    written = exported(format)
    path = empty / f"net{FORMATS[format].suffix}"

    def broken(path, threads):
        run, info = load(written, threads)
        return lambda x: run(x) * float("nan"), info

    replace_format(monkeypatch, format, write=lambda _, path, request: path.touch(), load=broken)
    with pytest.raises(InputError, match="does not agree"):
        export(tiny(), path, pictures(4), info=info_of(format))


def test_openvinos_two_files_replace_earlier_ones_together(model, exported, tmp_path, monkeypatch):
    written = exported("openvino")

    def write(_, path, request):
        path.write_bytes(written.read_bytes())
        path.with_suffix(".bin").write_bytes(written.with_suffix(".bin").read_bytes())

    path = tmp_path / "my.first.xml"
    for file in (path, tmp_path / "my.first.bin"):
        file.write_text("an earlier file")
    replace_format(monkeypatch, "openvino", write=write)
    with pytest.raises(InputError, match="does not agree"):
        export(tiny(seed=5), path, pictures(4), info=info_of("openvino"))
    assert {file.read_text() for file in tmp_path.iterdir()} == {"an earlier file"}
    export(model, path, pictures(4), info=info_of("openvino"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["my.first.bin", "my.first.xml"]
    assert load_exported(path)(pictures(1)).shape == (1, len(LABELS))


@pytest.mark.parametrize("when", ["write", "load"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_export_leaves_nothing(model, empty, monkeypatch, when, stop):
    def stopped(*arguments):
        if when == "write":
            arguments[1].write_text("half a file")
        raise stop

    replace_format(monkeypatch, "torch", **{when: stopped})
    training = copy.deepcopy(model).train()
    with pytest.raises(stop), pytest.warns(UserWarning, match="training mode"):
        export(training, empty / "net.pt2", pictures(1), info=info_of("torch"))
    assert training.training


def test_the_network_is_left_as_it_was(tmp_path):
    network = tiny().train()
    network.stages[0].eval()
    modes = {name: module.training for name, module in network.named_modules()}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    path = tmp_path / "net.pt2"
    with pytest.warns(UserWarning, match="training mode; it is exported as it is in evaluation") as caught:
        export(network, path, pictures(3), info=info_of("torch", "fp16"))
    assert sum("training mode" in str(warning.message) for warning in caught) == 1
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert relative_error(load_exported(path)(pictures(3)), expected_of(tiny(), pictures(3))) <= CLOSE["fp16"]


def test_in_evaluation_mode_no_warning(model, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export(model, tmp_path / "net.pt2", pictures(3), info=info_of("torch", fused=False))
    assert [str(w.message) for w in caught if "training" in str(w.message)] == []


def test_a_network_and_pictures_in_channels_last(tmp_path):
    network = tiny().to(memory_format=torch.channels_last)
    x = pictures(3).to(memory_format=torch.channels_last)
    export(network, tmp_path / "net.pt2", x, info=info_of("torch"))
    found = load_exported(tmp_path / "net.pt2")
    assert relative_error(found(x), expected_of(tiny(), pictures(3))) <= CLOSE["fp32"]
    assert next(network.stem.parameters()).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onxx"}, "did you mean 'onnx'"),
        ({"format": "coreml"}, "there are onnx, openvino, torch, aotinductor"),
        ({"format": "torch", "precision": "int8"}, "torch is not written in int8: choose fp32, fp16"),
        ({"format": "onnx"}, "must end in .onnx"),
        ({"format": "torch", "size": (64, 96)}, "takes pictures of Nx3x64x96, not 4x3x64x64"),
        ({"format": "torch", "in_chans": 1}, "takes pictures of Nx1x64x64, not 4x3x64x64"),
        ({"format": "openvino", "precision": "int8", "name": "net.xml"}, "int8 needs at least 2 pictures"),
    ],
)
def test_what_cannot_be_written_is_refused_first(model, empty, monkeypatch, options, message):
    for name in FORMATS:
        replace_format(monkeypatch, name, write=lambda *_: pytest.fail("written all the same"), packages=())
    path = empty / options.pop("name", "net.pt2")
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        export(model, path, pictures(4), info=info_of(**options))


def test_a_folder_that_cannot_be_written_is_named(model, empty):
    info = info_of("torch")
    (empty.parent / "file").touch()
    (empty.parent / "taken.pt2").mkdir()
    for path, message in (
        (empty / "absent" / "net.pt2", "No such file or directory"),
        (empty.parent / "file" / "net.pt2", "Not a directory"),
        (empty.parent / "taken.pt2", "is a folder"),
    ):
        with pytest.raises(InputError, match=message):
            export(model, path, pictures(1), info=info)


def test_openvinos_weights_cannot_replace_a_folder(model, exported, tmp_path, monkeypatch):
    written = exported("openvino")

    def write(_, path, request):
        path.write_bytes(written.read_bytes())
        path.with_suffix(".bin").write_bytes(written.with_suffix(".bin").read_bytes())

    replace_format(monkeypatch, "openvino", write=write)
    (tmp_path / "net.bin").mkdir()
    with pytest.raises(InputError, match=r"net\.bin: is a folder"):
        export(model, tmp_path / "net.xml", pictures(1), info=info_of("openvino"))
    assert [file.name for file in tmp_path.iterdir()] == ["net.bin"]


@pytest.mark.parametrize(
    ("format", "missing"), [("onnx", "onnxruntime"), ("openvino", "openvino"), ("openvino", "onnxscript")]
)
def test_a_runtime_that_is_not_installed_is_named(model, empty, monkeypatch, format, missing):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == missing else found(name, *rest)
    )
    path = empty / f"net{FORMATS[format].suffix}"
    with pytest.raises(InputError, match=rf"{missing}, not installed here: pip install 'patnet\[{format}\]'"):
        export(model, path, pictures(1), info=info_of(format))
    path.touch()
    with pytest.raises(InputError, match=rf"needs {missing}, not installed"):
        load_exported(path)
    path.unlink()


def test_int8_without_nncf_is_refused_before_anything_is_traced(model, empty, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "nncf" else SimpleNamespace())
    for format in ("onnx", "openvino"):
        replace_format(monkeypatch, format, write=lambda *_: pytest.fail("traced all the same"))
        path = empty / f"net{FORMATS[format].suffix}"
        with pytest.raises(InputError, match=rf"int8 needs nncf, not installed here: pip install 'patnet\[{format}\]'"):
            export(model, path, pictures(4), info=info_of(format, "int8"), calibration=pictures(4))


def test_pictures_of_another_shape_are_refused(exported):
    found = load_exported(exported("torch"))
    for shape, given in (
        ((1, 3, 64, 96), "1x3x64x96"),
        ((1, 1, 64, 64), "1x1x64x64"),
        ((3, 64, 64), "3x64x64"),
        ((1, 3, 32, 32), "1x3x32x32"),
    ):
        with pytest.raises(InputError, match=f"takes pictures of Nx3x64x64, not {given}"):
            found(torch.randn(shape))


def damaged(path, how):
    """A file spoilt in place: cut short, empty, or text."""
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"these are words\n" * 40}[how])


@pytest.mark.parametrize("how", ["cut", "empty", "text"])
@pytest.mark.parametrize("format", ["onnx", "openvino", "torch", pytest.param("aotinductor", marks=slow)])
def test_a_damaged_file_is_named_in_one_sentence(exported, tmp_path, capfd, format, how):
    written = exported(format)
    path = tmp_path / written.name
    for suffix in {written.suffix, ".bin"}:
        if written.with_suffix(suffix).exists():
            path.with_suffix(suffix).write_bytes(written.with_suffix(suffix).read_bytes())
    load_exported(path)
    damaged(path, how)
    with pytest.raises(InputError) as refused:
        load_exported(path)
    assert capfd.readouterr().err == ""
    print(refused.value)
    assert path.name in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("how", ["cut", "empty", "text", "missing"])
def test_openvinos_weights_that_do_not_belong_are_refused(exported, tmp_path, how):
    written = exported("openvino")
    path = tmp_path / "net.xml"
    path.write_bytes(written.read_bytes())
    if how != "missing":
        path.with_suffix(".bin").write_bytes(written.with_suffix(".bin").read_bytes())
        damaged(path.with_suffix(".bin"), how)
    with pytest.raises(InputError, match=r"net\.xml") as refused:
        load_exported(path)
    print(refused.value)
    assert "\n" not in str(refused.value)
    assert "bin file" in str(refused.value)


def test_xml_that_is_no_network_is_refused(tmp_path, capfd):
    pytest.importorskip("openvino")
    path = tmp_path / "page.xml"
    path.write_text("<html><body>words</body></html>")
    with pytest.raises(InputError, match="is not a network of OpenVINO's"):
        load_exported(path)
    assert capfd.readouterr().err == ""


def test_other_files_are_refused(tmp_path):
    for name, message in (("absent.onnx", "no such file"), ("net.tflite", r"names end in \.onnx, \.pt2, \.xml")):
        path = tmp_path / name
        if name != "absent.onnx":
            path.touch()
        with pytest.raises(InputError, match=message):
            load_exported(path)


def test_a_program_without_our_metadata_is_refused(model, tmp_path):
    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    program = torch.export.export(Double(), (torch.ones(2),))
    torch.export.save(program, tmp_path / "plain.pt2")
    with pytest.raises(InputError, match="says nothing of its labels and preprocessing"):
        load_exported(tmp_path / "plain.pt2")
    torch.export.save(program, tmp_path / "foreign.pt2", extra_files={"patnet": '{"size": 3}'})
    with pytest.raises(InputError, match="not the metadata"):
        load_exported(tmp_path / "foreign.pt2")
