import csv
import json
import re

import pytest
import torch
from torch import nn

import patnet
from patnet.benchmark import Options, measure, redraw, timing, write
from patnet.benchmark import run as running
from patnet.benchmark.__main__ import main as plain_main
from patnet.benchmark.candidates import Candidate, Setting, build, expand, fold_norms
from patnet.benchmark.memory import peak_of
from patnet.cli import main

QUICK = ("--runtimes", "eager", "--size", "32", "--seconds", "0.1")


@pytest.fixture(scope="module", autouse=True)
def short_turns():
    """Turns that take no longer than they must, for here nobody reads the numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "TURN_SECONDS", {"cpu": 0.005, "cuda": 0.005})
        yield


@pytest.fixture(scope="module")
def result(short_turns):
    options = Options(["patnet_t0", "fasternet_t0"], runtimes=["eager"], batch=[1, 2], size=[32, 128], seconds=0.05)
    lines = []
    found = measure(options, lines.append, "patnet bench")
    assert any("min left" in line for line in lines)
    return found.as_dict()


def test_a_result_says_what_where_and_when(result):
    assert result["complete"]
    assert result["command"] == "patnet bench"
    assert {"device", "cpu", "cores", "threads", "date"} <= set(result["machine"])
    assert {"python", "torch", "timm", "patnet"} <= set(result["machine"]["versions"])
    assert len(result["rows"]) == 2 * 2 * 4  # models, forms, settings
    for row in result["rows"]:
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["images_per_s"] == pytest.approx(1e3 * row["batch"] / row["median_ms"], rel=1e-2)
        assert row["batch"] % row["chunk"] == 0
    for row in (r for r in result["rows"] if r["fastest"]):
        rate = 2 * row["gmacs"] * row["batch"] / row["median_ms"] * 1e3
        assert row["share_of_ceiling"] == pytest.approx(rate / row["ceiling_gflop_per_s"], rel=0.02)


def test_one_candidate_is_the_fastest_in_each_setting(result):
    counts = {}
    for row in result["rows"]:
        key = row["model"], row["batch"], row["size_px"]
        counts[key] = counts.get(key, 0) + row["fastest"]
    assert set(counts.values()) == {1}


def test_ratios_of_models_forms_and_sizes(result):
    kinds = [r["kind"] for r in result["ratios"]]
    assert kinds.count("models") == 4
    assert kinds.count("size") == 4
    for r in result["ratios"]:
        assert r["quartiles"][0] <= r["paired_median"] <= r["quartiles"][1]
        if r["kind"] == "models":
            assert (r["numerator"]["model"], r["denominator"]["model"]) == ("patnet_t0", "fasternet_t0")
        if r["kind"] == "size":
            assert (r["numerator"]["size_px"], r["denominator"]["size_px"]) == (128, 32)
            assert r["ratio"] > 1


def test_the_document_holds_the_numbers_of_the_json(result, tmp_path):
    files = write(result, tmp_path)
    assert [f.name for f in files][:3] == ["benchmarks.json", "benchmarks.csv", "benchmarks.md"]
    assert json.loads(files[0].read_text()) == result
    text = files[2].read_text()
    for row in result["rows"]:
        line = next(li for li in text.splitlines() if f"| {row['median_ms']:.2f} | {row['p95_ms']:.2f} |" in li)
        assert row["model"] in line
        assert f"{row['images_per_s']:.1f}" in line
    for r in result["ratios"]:
        assert f"| {r['ratio']:.3f} |" in text
    for said in (result["machine"]["date"], result["machine"]["versions"]["torch"], "patnet bench"):
        assert said in text
    rows = list(csv.DictReader(files[1].open(newline="")))
    assert [float(row["median_ms"]) for row in rows] == [row["median_ms"] for row in result["rows"]]
    assert not list(tmp_path.rglob(".writing*"))


def test_the_picture_has_a_line_for_each_family(result, tmp_path):
    from patnet.benchmark.figures import draw

    assert draw(result) is None  # at 128 px no accuracy was published
    rows = []
    for i, (model, family, top1) in enumerate(
        [("patnet_t2", "PATNet", 80.2), ("patnet_s", "PATNet", None)]
        + [(f"fasternet_{v}", "FasterNet", 70.0 + i) for i, v in enumerate(("t0", "t1"))]
        + [(f"resnet{n}", "ResNet", 70.0 + n / 10) for n in (18, 34)]
    ):
        speed = {"images_per_s": 10.0 * (i + 1), "precision": "fp32", "threads": 1, "fastest": True}
        rows += [{"model": model, "family": family, "top1": top1, "batch": b, **speed} for b in (1, 16)]
    figure = draw({"rows": rows, "machine": result["machine"]})
    assert len(figure.axes) == 2
    for axes in figure.axes:
        lines = {line.get_label(): line.get_xdata() for line in axes.get_lines() if line.get_label()[0] != "_"}
        assert {name: len(x) for name, x in lines.items()} == {"PATNet": 1, "FasterNet": 2, "ResNet": 2}
    from patnet.benchmark.figures import save

    assert save(figure, tmp_path / "picture.png").stat().st_size > 10_000


def test_ctrl_c_keeps_what_was_measured(tmp_path, monkeypatch, capfd):
    trial, calls = running._Bench._trial, []

    def interrupted(self, prepared):
        calls.append(prepared)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return trial(self, prepared)

    monkeypatch.setattr(running._Bench, "_trial", interrupted)
    out = tmp_path / "bench"
    assert main(["bench", "patnet_t0", "fasternet_t0", *QUICK, "--batch", "1", "--out", str(out)]) == 130
    found = json.loads((out / "benchmarks.json").read_text())
    assert not found["complete"]
    assert found["incomplete_because"] == "interrupted"
    assert any(row["model"] == "patnet_t0" and row["fastest"] for row in found["rows"])
    assert "**Incomplete: interrupted.**" in (out / "benchmarks.md").read_text()


def test_what_there_was_no_time_for_is_named():
    options = Options(["patnet_t0", "fasternet_t0"], runtimes=["eager"], size=[32], seconds=0.1, minutes=1e-3)
    found = measure(options).as_dict()
    assert not found["complete"]
    assert any(what.startswith("fasternet_t0") for what in found["left_out"])


def test_a_candidate_that_fails_is_named_and_the_others_go_on(monkeypatch):
    prepare = running.prepare

    def failing(network, example, **options):
        if options["runtime"] == "compile":
            raise RuntimeError("no compiler\nand more")
        return prepare(network, example, **options)

    monkeypatch.setattr(running, "prepare", failing)
    options = Options(["patnet_t0"], runtimes=["eager", "compile"], forms=["fused"], size=[32], batch=[1], seconds=0.1)
    found = measure(options).as_dict()
    assert [row["runtime"] for row in found["rows"]] == ["eager"]
    assert found["left_out"] == ["patnet_t0 fused, compile at 32 px, batch 1, fp32, one thread: no compiler"]
    monkeypatch.setattr(running, "prepare", lambda *_, **__: 1 / 0)
    with pytest.raises(patnet.InputError, match="nothing could be measured"):
        measure(options)


def test_all_runtimes_and_int8_if_installed():
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    found = Options(["patnet_t0"], precision=["fp32", "int8"]).checked()
    settings = expand("patnet_t0", found)
    assert {s.precision for s in settings} == {"fp32", "int8"}
    for setting, candidates in settings.items():
        runtimes = {c.runtime for c in candidates}
        assert runtimes == ({"onnxruntime", "openvino"} if setting.precision == "int8" else runtimes)
        assert not any(c.form == "trained" and c.runtime != "eager" for c in candidates)


def test_the_full_product_where_forms_or_runtimes_are_named():
    options = Options(["patnet_t0"], runtimes=["eager", "compile"], memory_formats=["contiguous", "channels_last"])
    settings = expand("patnet_t0", options.checked())
    assert [len(candidates) for candidates in settings.values()] == [8, 8]


@pytest.mark.parametrize("model", ["fasternet_t0", "mobilenetv2_035", "resnet10t", "starnet_s050"])
def test_folded_norms_compute_the_same(model, settled):
    import timm

    network = settled(timm.create_model(model, num_classes=7))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(3 / module.weight[0].numel() ** 0.5)
    folded = fold_norms(network)
    left = sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert left < sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = network(pictures), folded(pictures)
    assert torch.isfinite(expected).all()
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_fused_network_has_no_norms_left():
    for model in ("patnet_t0", "fasternet_t0"):
        assert not any(isinstance(m, nn.BatchNorm2d) for m in build(model, "fused").modules())


def test_peak_memory_of_a_process_of_its_own():
    peak = peak_of(Candidate("patnet_t0", Setting(64, 1, "fp32", 1), "trained", "eager"), 1, seed=0)
    assert peak is None or 15 < peak < 200  # 16 MiB of weights


def test_without_the_command_line(tmp_path, capfd):
    out = tmp_path / "bench"
    options = ["patnet_t0", "--runtimes", "eager", "--size", "32", "--batch", "1", "--seconds", "0.1"]
    assert plain_main([*options, "--out", str(out)]) == 0
    assert json.loads((out / "benchmarks.json").read_text())["command"].startswith("python -m patnet.benchmark patnet")
    assert plain_main(["patnet_t7"]) == 2
    assert "did you mean 'patnet_t" in capfd.readouterr().err
    if not torch.cuda.is_available():
        assert plain_main(["--gpu", "--out", str(tmp_path / "gpu")]) == 2
        assert "no GPU" in capfd.readouterr().err
        assert not (tmp_path / "gpu").exists()


def test_a_result_is_redrawn(result, tmp_path):
    write(result, tmp_path / "a", "gpu")
    files = redraw(tmp_path / "a" / "gpu.json", tmp_path / "b", "again")
    assert (tmp_path / "a" / "gpu.md").read_text() == files[2].read_text()
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(patnet.InputError, match="holds no result"):
        redraw(tmp_path / "other.json", tmp_path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("patnet_t9", "did you mean 'patnet_t"),
        ("--runtimes onnxrntime", "did you mean 'onnxruntime'"),
        ("--runtimes compil", "did you mean 'compile'"),
        ("--forms fussed", "did you mean 'fused'"),
        ("--precision fp23", "did you mean 'fp32'"),
        ("--precision int8 --runtimes eager", "none of eager computes in it"),
        ("--precision bf16", "computes in it on a cpu"),
        ("--memory-formats chanels_last", "did you mean 'channels_last'"),
        ("--threads 0", "--threads 0: must be at least 1"),
        ("--threads 9999", "cores here"),
        ("--batch 0", "--batch 0: must be at least 1"),
        ("--batch 1 many", "many"),
        ("--minutes 0", "--minutes 0"),
        ("--seconds 0", "--seconds 0"),
        ("patnet_t0 --size 8", "patnet_t0 does not take pictures of 8x8 px"),
        ("--calibration 2", "--calibration 2: must be at least the batch size"),
        ("--device tpu", "--device tpu: unknown"),
        ("--runtmes eager", "did you mean '--runtimes'"),
        ("--redraw absent.json", "absent.json"),
        ("patnet_t0 --out file/here", "cannot be written"),
    ],
)
def test_bad_input_gets_one_sentence(argv, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running._Bench, "_group", lambda *_: pytest.fail("it was measured"))
    (tmp_path / "file").touch()
    assert main(["bench", *argv.split()]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert re.fullmatch(r"(counting .*\n)?patnet: .*\n", err), err
    assert sorted(p.name for p in tmp_path.iterdir()) in (["file"], ["file", "runs"])


def test_a_runtime_that_is_not_installed_says_what_to_install(monkeypatch, capfd):
    from patnet.benchmark import candidates

    monkeypatch.setattr(candidates, "find_spec", lambda package: None)
    assert main(["bench", "patnet_t0", "--runtimes", "openvino"]) == 2
    assert "pip install 'patnet[openvino]'" in capfd.readouterr().err
