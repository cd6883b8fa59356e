import csv
import json
from importlib.util import find_spec

import pytest
import timm
import torch
from torch import nn

import patnet  # noqa: F401
from patnet import InputError
from patnet.bench import FAMILY, Options, build, count, fold_norms, measure, timing, write
from patnet.bench import measure as package_measure
from patnet.bench.measure import group_by_size
from patnet.bench.networks import usual_size
from patnet.bench.report import describe_machine, draw, machine, table
from patnet.deploy import BACKENDS, Backend, Runner
from patnet.nn import native

module = __import__(package_measure.__module__, fromlist=["measure"])


@pytest.fixture(scope="module", autouse=True)
def short_rounds():
    """Rounds as short as possible, since the numbers are not used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "ROUND_SECONDS", 0.005)
        yield


def options(**changed):
    fields = {"models": ["patnet_t0", "fasternet_t0"], "backends": ["eager"], "img_size": [32], "seconds": 0.05}
    return Options(**fields | changed)


@pytest.fixture(scope="module")
def result(short_rounds):
    lines = []
    found = measure(options(batch_size=[1, 2], img_size=[32, 64]), say=lines.append, command="patnet bench x")
    assert any("min left" in line for line in lines)
    return found


def test_versions_are_those_of_the_distribution_whatever_its_name(tmp_path, monkeypatch):
    """As onnxruntime comes from onnxruntime-gpu."""
    (tmp_path / "runtime.py").touch()
    described = tmp_path / "runtime_gpu-1.2.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: runtime-gpu\nVersion: 1.2\n")
    (described / "RECORD").write_text("runtime.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(BACKENDS["eager"], "packages", ("runtime", "absent"))
    versions = machine()["versions"]
    assert versions["runtime"] == "1.2"
    assert "absent" not in versions


def test_the_machine_says_that_native_functions_are_on(monkeypatch):
    for enabled in (True, False):
        monkeypatch.setattr(native, "_enabled", enabled)
        found = machine()
        assert found.get("native_functions", False) == enabled
        assert (", native functions; python" in describe_machine(found)) == enabled


def test_a_result_says_what_where_and_when(result):
    assert result["complete"]
    assert result["command"] == "patnet bench x"
    assert {"device", "cpu", "cores", "date"} <= set(result["machine"])
    assert {"python", "torch", "timm", "patnet"} <= set(result["machine"]["versions"])
    assert len(result["rows"]) == 2 * 2 * 4  # models, forms, settings
    for row in result["rows"]:
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["images_per_s"] == pytest.approx(1e3 * row["batch_size"] / row["median_ms"], rel=1e-2)
        assert row["computed_in"] == "fp32"
        assert row["rounds"] >= 10


def test_the_fastest_is_compared_with_the_next_and_with_the_other_model(result):
    groups = {}
    for row in result["rows"]:
        groups.setdefault((row["model"], row["batch_size"], row["img_size"]), []).append(row)
        of_baseline = row["model"] == "fasternet_t0"
        assert row["baseline"] == (None if of_baseline else "fasternet_t0")
        assert (row["ratio_same_way"] is None) == of_baseline
        assert (row["ratio_fastest"] is None) == (of_baseline or not row["fastest"])
        for found in filter(None, (row["ratio_same_way"], row["ratio_fastest"])):
            assert 0 < found["low"] <= found["ratio"] <= found["high"]
    for rows in groups.values():
        first, second = sorted(rows, key=lambda row: row["median_ms"])
        assert (first["fastest"], second["fastest"]) == (True, False)
        assert (first["next"], second["next"]) == (second["way"], None)
        assert first["next_ratio"] == pytest.approx(second["median_ms"] / first["median_ms"], rel=1e-2)


def test_files_hold_the_numbers_of_the_result(result, tmp_path):
    files = write(result, tmp_path)
    assert [file.name for file in files] == ["benchmarks.json", "benchmarks.csv", "benchmarks.md", "benchmarks.png"]
    assert json.loads(files[0].read_text()) == result
    text = files[2].read_text()
    for row in result["rows"]:
        line = next(li for li in text.splitlines() if f"| {row['median_ms']:.2f} | {row['p95_ms']:.2f} |" in li)
        assert row["model"] in line
        assert f"{row['images_per_s']:.1f}" in line
    for said in (result["machine"]["date"], result["machine"]["versions"]["torch"], "patnet bench x"):
        assert said in text
    rows = list(csv.DictReader(files[1].open(newline="")))
    assert [float(row["median_ms"]) for row in rows] == [row["median_ms"] for row in result["rows"]]
    assert files[3].stat().st_size > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(f.name for f in sorted(files[:3])), "images"]


def test_the_figure_has_a_panel_for_each_setting_and_a_mark_for_each_row(result):
    figure = draw(result["rows"], "a note")
    assert len(figure.axes) == 4
    assert sum(len(axes.get_lines()) for axes in figure.axes) == len(result["rows"])


def test_what_there_is_no_time_for_is_left_out_for_all_models():
    found = measure(options(minutes=1e-4))
    assert not found["complete"]
    assert [row["form"] for row in found["rows"]] == ["fused", "fused"]
    assert len(found["left_out"]) == 2
    assert all(what.endswith("the time was up") for what in found["left_out"])


def test_an_interruption_keeps_what_was_measured(monkeypatch):
    interleave, calls = module.interleave, []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        interleave(*args, **kwargs)

    monkeypatch.setattr(module, "interleave", interrupted)
    found = measure(options(batch_size=[1, 2]))
    assert found["incomplete_because"] == "interrupted"
    assert {row["batch_size"] for row in found["rows"]} == {1}


def test_a_candidate_that_fails_is_named_and_the_others_are_measured(monkeypatch):
    class Failing(Backend):
        name = title = "failing"
        suffix = ".fail"

        def write(self, model, path, request):
            raise RuntimeError("no compiler\nand more")

    monkeypatch.setitem(BACKENDS, "failing", Failing())
    chosen = {"models": ["patnet_t0"], "forms": ["fused"]}
    found = measure(options(**chosen, backends=["eager", "failing"]))
    assert [row["backend"] for row in found["rows"]] == ["eager"]
    expected = "patnet_t0, failing, fused, contiguous, fp32, 32 px, batch size 1: no compiler and more"
    assert found["left_out"] == [expected]
    with pytest.raises(InputError, match=r"nothing could be measured: .*no compiler"):
        measure(options(**chosen, backends=["failing"]))
    with pytest.raises(InputError, match="does not take images of 8x8 px"):
        measure(options(**chosen, img_size=[8]))


def test_candidates_of_all_backends_precisions_and_forms():
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    default = Options().resolved()
    assert default.models == FAMILY
    expected = [("eager", "fused"), ("eager", "unfused"), ("onnx", "fused"), ("openvino", "fused")]
    expected += [("executorch", "fused")] if find_spec("executorch") else []
    assert [way[:2] for way in default.ways()] == expected
    chosen = Options(precision=["fp32", "int8"], backends=["openvino", "eager"], memory_format=["channels_last"])
    assert list(chosen.resolved().ways()) == [
        ("eager", "fused", "fp32", "channels_last"),
        ("eager", "unfused", "fp32", "channels_last"),
        ("openvino", "fused", "fp32", "contiguous"),
        ("openvino", "fused", "int8", "contiguous"),
    ]


def test_kernels_are_of_fused_networks_alone():
    options = Options(backends=["eager", "triton"], forms=["fused", "unfused"], precision=["fp16"], device="cuda")
    found = {way[:2] for way in options.ways()}
    assert found == {("eager", "fused"), ("eager", "unfused"), ("triton", "fused")}


def test_a_named_backend_without_any_of_the_forms_is_refused(monkeypatch):
    class Toy(Backend):
        name = title = "toy"
        forms = ("fused",)

    monkeypatch.setitem(BACKENDS, "toy", Toy())
    with pytest.raises(InputError, match="--backends toy: has none of --forms unfused; leave it out"):
        options(backends=["eager", "toy"], forms=["unfused"]).resolved()


def test_models_are_grouped_by_size():
    assert group_by_size(["patnet_t0", "fasternet_t0", "fasternet_s", "patnet_s", "resnet18"]) == [
        ["patnet_t0", "fasternet_t0"],
        ["patnet_s", "fasternet_s"],
        ["resnet18"],
    ]
    assert group_by_size(["resnet18", "vgg11", "patnet_t0"]) == [["resnet18", "vgg11", "patnet_t0"]]


@pytest.mark.parametrize("model", ["fasternet_t0", "mobilenetv2_035", "resnet10t", "starnet_s050"])
def test_folded_norms_compute_the_same(model, settled):
    network = settled(timm.create_model(model, num_classes=7))
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(3 / layer.weight[0].numel() ** 0.5)
    folded = fold_norms(network)
    left, before = (sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (folded, network))
    assert left < before
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = network(images), folded(images)
    assert torch.isfinite(expected).all()
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("model", ["patnet_t0", "fasternet_t0"])
def test_a_fused_network_has_no_norms_left(model):
    fused, unfused = build(model), build(model, unfused=True)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert count(fused, 64)[1] <= count(unfused, 64)[1]


def test_a_run_is_measured_at_its_own_size(run_dir):
    found = measure(options(models=[str(run_dir)], img_size=[], forms=["fused"]))
    assert [row["img_size"] for row in found["rows"]] == [64]


def test_a_run_named_as_a_model_is_measured_at_its_own_size(run_dir, tmp_path, monkeypatch):
    (tmp_path / "resnet14t").symlink_to(run_dir)
    monkeypatch.chdir(tmp_path)
    assert usual_size("resnet14t") == 64


def test_a_runner_says_in_which_precision_it_computes(monkeypatch):
    class Toy(Backend):
        name = title = "toy"

        def prepare(self, model, request, threads=None):
            return Runner(model, "bf16")

    monkeypatch.setitem(BACKENDS, "toy", Toy())
    (row,) = measure(options(models=["patnet_t0"], backends=["toy"]))["rows"]
    headings, (cells,) = table([row])
    assert dict(zip(headings, cells, strict=True))["precision"] == "fp32 (computed in bf16)"
