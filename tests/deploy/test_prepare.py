from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from patnet import InputError, fuse
from patnet.deploy import BACKENDS, ExportInfo, prepare, profile
from patnet.deploy.backend import Request, common_precisions, computed_in, sum_by_operation
from patnet.deploy.openvino import blocked_convolutions
from patnet.deploy.pytorch import Eager

slow = pytest.mark.slow
TOLERANCES = {"fp32": 1e-4, "tf32": 1e-4, "bf16": 5e-2, "fp16": 1e-2, "int8": 0.3}
# What the backends say that they compute in on a CPU, where this is not the precision.
COMPUTED_IN = {
    ("eager", "tf32"): "fp32",
    ("onnx", "fp16"): "",
    ("onnx", "int8"): "",
    ("openvino", "fp16"): "fp32",
    ("openvino", "bf16"): "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32",
    ("executorch", "int8"): "",
}


@pytest.fixture(scope="module")
def fused(model):
    """One for all tests, so that it is traced once for each shape."""
    return fuse(model)


def cases():
    for name, backend in BACKENDS.items():
        for precision in backend.precisions:
            quick = name in ("eager", "openvino") or (name, precision) in (("onnx", "fp32"), ("torch", "fp32"))
            listed = name not in ("compile", "aotinductor") or precision in ("fp32", "bf16")
            if listed and "cpu" in backend.devices:
                yield pytest.param(name, precision, marks=[] if quick else slow)


@pytest.mark.parametrize(("backend", "precision"), list(cases()))
def test_each_backend_gives_the_logits_of_the_network(model, fused, images, need, assert_same, backend, precision):
    need(backend, precision)
    before = {name: value.clone() for name, value in fused.state_dict().items()}
    run = prepare(fused, images(2), backend=backend, precision=precision, threads=1, calibration=images(8, seed=9))
    first = run(images(2, seed=1))
    kept = first.clone()
    for x in (images(2, seed=2), images(2, seed=3).to(memory_format=torch.channels_last)):
        assert_same(run(x), model, x, TOLERANCES[precision])
    assert torch.equal(first, kept), "the next call has overwritten the logits of the first one"
    assert all(torch.equal(value, before[name]) for name, value in fused.state_dict().items())
    assert {p.dtype for p in fused.parameters()} == {torch.float32}
    assert computed_in(run) == COMPUTED_IN.get((backend, precision), precision)


@pytest.mark.parametrize(("backend", "precision"), list(cases()))
def test_each_backend_profiles_in_the_precision_requested(fused, images, need, backend, precision):
    need(backend, precision)
    options = {"backend": backend, "precision": precision, "threads": 1, "calibration": images(8, seed=9)}
    found = profile(fused, images(2), calls=2, **options)
    assert found.precision == precision
    expected = COMPUTED_IN.get((backend, precision), precision)
    stated = {"fp32", "fp16", "int8"} if backend == "onnx" and not expected else {expected}
    assert set(found.computed_in.split(" and ")) <= stated
    times = [ms for ms, _ in found.operations.values()]
    assert times == sorted(times, reverse=True)
    assert min(times) > 0
    if backend in ("onnx", "openvino"):
        convolutions = sum(isinstance(module, nn.Conv2d) for module in fused.modules())
        runs = sum(runs for name, (_, runs) in found.operations.items() if "Conv" in name)
        assert runs == pytest.approx(convolutions) or precision == "int8"


def test_a_profile_sums_events_over_calls():
    events = [("a", 1.0, 1), ("b", 5.0, 2), ("a", 3.0, 1)]
    assert list(sum_by_operation(events, 2).items()) == [("b", (2.5, 1.0)), ("a", (2.0, 1.0))]
    assert common_precisions(["fp32", "int8", "int8"]) == "int8 and fp32"


@pytest.mark.parametrize("backend", ["eager", *(pytest.param(b, marks=slow) for b in ("openvino", "onnx", "compile"))])
def test_an_unfused_network_in_channels_last(model, tiny, images, need, assert_same, backend):
    need(backend)
    network = tiny().to(memory_format=torch.channels_last)
    example = images(2).to(memory_format=torch.channels_last)
    run = prepare(network, example, backend=backend, threads=1)
    for x in (example, images(2, seed=2)):
        assert_same(run(x), model, x)


def test_eager_takes_images_in_the_memory_format_of_the_network(tiny, images):
    seen = []
    for layout in (torch.contiguous_format, torch.channels_last):
        network = tiny().to(memory_format=layout)
        network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        prepare(network, images(2))(images(2))
    assert seen[0].is_contiguous()
    assert seen[1].is_contiguous(memory_format=torch.channels_last)
    assert not any(x.requires_grad for x in seen)


def test_a_network_is_prepared_for_a_gpu_in_the_precision_requested():
    """A CUDA graph keeps the kernels that were chosen when it was captured."""
    seen = []

    class Toy(Eager):
        def callable(self, model, example):
            seen.append((torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32))
            return model

    before = torch.backends.cudnn.benchmark
    for precision in ("fp32", "tf32"):
        for on_gpu in (True, False):
            request = Request(ExportInfo(backend="toy", precision=precision), SimpleNamespace(is_cuda=on_gpu))
            Toy().prepare(nn.Identity(), request)
    assert seen == [(True, False), (before, False), (True, True), (before, False)]
    assert torch.backends.cudnn.benchmark == before


def test_a_network_is_traced_once_for_each_shape_and_weights(images, need, assert_same, monkeypatch):
    for backend in ("onnx", "openvino"):
        need(backend)
    from patnet.deploy import onnx

    traced = []
    trace = onnx.onnx_program
    monkeypatch.setattr(onnx, "onnx_program", lambda *args, **kw: traced.append(len(args[1])) or trace(*args, **kw))
    network = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    for count, backend in ((1, "onnx"), (1, "openvino"), (2, "openvino"), (2, "onnx"), (2, "openvino")):
        x = images(count)
        assert_same(prepare(network, x, backend=backend)(x), network, x)
        if backend == "onnx":
            with torch.no_grad():
                network[0].weight.neg_()
    assert traced == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "opnvino"}, "did you mean 'openvino'"),
        ({"backend": "tensorrt"}, f"choose from {', '.join(BACKENDS)}"),
        ({"precision": "int8"}, "eager has no precision 'int8'; choose from fp32, tf32, fp16, bf16"),
        ({"backend": "openvino", "precision": "int8"}, "int8 needs at least 2 calibration images"),
        ({"backend": "onnx", "example": torch.empty(1, 3, 64, 64, device="meta")}, "runs on cpu, not on meta"),
    ],
)
def test_what_cannot_be_prepared_is_refused(fused, images, need, options, message):
    example = options.pop("example", images(2))
    need(options.get("backend") if options.get("backend") in BACKENDS else "eager", "int8")
    with pytest.raises(InputError, match=message):
        prepare(fused, example, **options)


@pytest.mark.parametrize(("variant", "stages"), [("t0", "123"), ("t1", "23"), ("t2", "0123")])
def test_blocked_kernels_are_requested_where_the_parts_fill_blocks(variant, stages):
    network = timm.create_model(f"patnet_{variant}", device="meta")
    names = blocked_convolutions(fuse(network))
    assert {name.split(".")[1] for name in names if ".blocks." in name} == set(stages)
    assert not any("stages.3" in name and ".mixer." in name for name in names)
    assert blocked_convolutions(network) == []
