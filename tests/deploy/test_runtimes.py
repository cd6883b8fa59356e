import importlib.util

import pytest
import timm
import torch
from torch import nn

from patnet import InputError, PATNet, fuse
from patnet.deploy import RUNTIMES, prepare
from patnet.deploy.openvino import blocked_convolutions

slow = pytest.mark.slow
MODULES = {"onnxruntime": "onnxruntime", "openvino": "openvino"}


def tiny():
    """A network with every kind of block whose norms' statistics are not 0 and 1."""
    torch.manual_seed(0)
    model = PATNet(embed_dim=8, depths=(1, 1), mixers=("pat_ch", "pat_sf"), num_heads=2, feature_dim=16, num_classes=3)
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape))
        elif key.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape))
    nn.init.normal_(model.get_classifier().weight)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def fused(model):
    """One for all tests, so that it is traced once for each shape."""
    return fuse(model)


def pictures(seed, count=2):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def relative_error(value, expected):
    assert value.shape == expected.shape
    return ((value.float() - expected).abs().max() / expected.abs().max()).item()


def expected_of(model, x):
    with torch.inference_mode():
        return model(x)


@pytest.mark.parametrize(
    ("runtime", "precision", "close"),
    [
        ("eager", "fp32", 1e-5),
        ("eager", "tf32", 1e-5),  # of a GPU; on a CPU it is fp32
        ("eager", "bf16", 5e-2),
        ("eager", "fp16", 1e-2),
        pytest.param("compile", "fp32", 1e-4, marks=slow),
        pytest.param("compile", "bf16", 5e-2, marks=slow),
        pytest.param("openvino", "int8", 0.3, marks=slow),
        ("openvino", "fp32", 1e-4),
        pytest.param("onnxruntime", "int8", 0.3, marks=slow),
        ("onnxruntime", "fp32", 1e-4),
    ],
)
def test_each_runtime_gives_the_networks_logits(model, fused, runtime, precision, close):
    if runtime in MODULES:
        pytest.importorskip(MODULES[runtime])
    if precision == "int8":
        pytest.importorskip("nncf")
    before = {name: value.clone() for name, value in fused.state_dict().items()}
    call = prepare(
        fused, pictures(0), runtime=runtime, precision=precision, threads=1, calibration=pictures(9, count=8)
    )
    first = call(pictures(1))
    kept = first.clone()
    for x in (pictures(2), pictures(3).to(memory_format=torch.channels_last)):
        error = relative_error(call(x), expected_of(model, x))
        print(f"{runtime} {precision}: relative error {error:.1e}")
        assert error <= close
    assert torch.equal(first, kept), "the next call has overwritten what this one gave"
    assert relative_error(first, expected_of(model, pictures(1))) <= close
    assert all(torch.equal(value, before[name]) for name, value in fused.state_dict().items())
    assert {p.dtype for p in fused.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "runtime", ["eager", *(pytest.param(runtime, marks=slow) for runtime in ("openvino", "onnxruntime", "compile"))]
)
def test_a_network_in_channels_last_that_is_not_fused(model, runtime):
    if runtime in MODULES:
        pytest.importorskip(MODULES[runtime])
    network = tiny().to(memory_format=torch.channels_last)
    example = pictures(0).to(memory_format=torch.channels_last)
    call = prepare(network, example, runtime=runtime, threads=1)
    for x in (example, pictures(1)):
        assert relative_error(call(x), expected_of(model, x)) <= 1e-4


def test_eager_lays_pictures_out_as_the_network_is(fused):
    seen = []
    for layout in (torch.contiguous_format, torch.channels_last):
        network = tiny().to(memory_format=layout)
        network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        prepare(network, pictures(0))(pictures(0))
    assert seen[0].is_contiguous()
    assert seen[1].is_contiguous(memory_format=torch.channels_last)
    assert not any(x.requires_grad for x in seen)


def test_weights_that_have_changed_since_are_those_that_count():
    pytest.importorskip("onnxruntime")
    network = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = pictures(0)
    prepare(network, x, runtime="onnxruntime")
    with torch.no_grad():
        network[0].weight.neg_()
    call = prepare(network, x, runtime="onnxruntime")
    assert relative_error(call(x), expected_of(network, x)) <= 1e-5


def test_a_network_is_traced_once_for_each_shape(monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    traced = []
    from patnet.deploy import runtimes

    trace = runtimes.onnx_program
    monkeypatch.setattr(runtimes, "onnx_program", lambda *args: traced.append(args[1].shape[0]) or trace(*args))
    network = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    for count in (1, 2, 1):
        for runtime in ("onnxruntime", "openvino"):
            call = prepare(network, pictures(0, count), runtime=runtime)
            assert relative_error(call(pictures(1, count)), expected_of(network, pictures(1, count))) <= 1e-4
    assert traced == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "onnxruntim"}, "did you mean 'onnxruntime'"),
        ({"runtime": "tensorrt"}, f"there are {', '.join(RUNTIMES)}"),
        ({"runtime": "eager", "precision": "int8"}, "eager has no precision 'int8'; there are fp32, tf32, fp16, bf16"),
        ({"runtime": "openvino", "precision": "fp16"}, "openvino has no precision 'fp16'; there are fp32, int8"),
        ({"runtime": "openvino", "precision": "int8"}, "int8 needs at least 2 calibration pictures"),
        ({"runtime": "onnxruntime", "precision": "int8", "calibration": pictures(0, 1)}, "needs at least 2"),
    ],
)
def test_what_cannot_be_prepared_is_said_in_one_sentence(fused, options, message):
    if options["runtime"] in MODULES:
        pytest.importorskip(MODULES[options["runtime"]])
    with pytest.raises(InputError) as refused:
        prepare(fused, pictures(0), **options)
    assert message in str(refused.value)


@pytest.mark.parametrize("runtime", MODULES)
def test_a_runtime_that_is_not_installed_is_named(fused, monkeypatch, runtime):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == runtime else found(name, *rest)
    )
    with pytest.raises(InputError, match=rf"{runtime} needs {runtime}, not installed here: pip install 'patnet\["):
        prepare(fused, pictures(0), runtime=runtime)


@pytest.mark.parametrize(("variant", "asked"), [("t0", True), ("t1", False), ("t2", True)])
def test_kernels_with_channels_in_blocks_are_asked_for_where_the_parts_fill_blocks(variant, asked):
    network = timm.create_model(f"patnet_{variant}", device="meta")
    names = blocked_convolutions(fuse(network))
    assert bool(names) == asked
    assert not any("stages.3" in name and ".mixer." in name for name in names)
    assert blocked_convolutions(network) == []
