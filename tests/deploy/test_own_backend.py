"""A backend of one's own, a subclass and an entry in the table, is taken by all five commands."""

import json

import pytest
import torch

from patnet.bench import timing
from patnet.cli import main
from patnet.deploy import BACKENDS, Backend, ExportInfo

IMAGES = ("--check-images", "4")


class Pickled(Backend):
    """Saves the whole module with its metadata."""

    name = "toy"
    title = "Toy runtime"
    suffix = ".toy"

    def write(self, model, path, request):
        torch.save((model, request.info.to_json()), path)

    def load(self, path, threads=None):
        model, info = torch.load(path, weights_only=False)
        return torch.inference_mode()(model), ExportInfo.from_json(info)


@pytest.fixture(scope="module", autouse=True)
def toy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, "toy", Pickled())
        patch.setattr(timing, "ROUND_SECONDS", 0.005)
        yield


@pytest.fixture(scope="module")
def exported(run_dir, tmp_path_factory):
    file = tmp_path_factory.mktemp("toy") / "run.toy"
    assert main(["export", str(run_dir), "--out", str(file), *IMAGES]) == 0
    return file


def json_of(capsys, *argv):
    capsys.readouterr()
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_export_predict_and_evaluate(run_dir, exported, tmp_path, capsys):
    images = run_dir.parent / "images"
    found, expected = (json_of(capsys, "predict", name, images / "train") for name in (exported, run_dir))
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    options = ["--data", images, "--split", "val", "--workers", "0"]
    found, expected = (
        json_of(capsys, "evaluate", name, *options, "--out", tmp_path / name.name) for name in (exported, run_dir)
    )
    assert found["confusion_matrix"] == expected["confusion_matrix"]


def test_bench_and_profile(tmp_path, capsys):
    argv = ["bench", "patnet_t0", "--backends", "toy", "eager", "--img-size", "32", "--seconds", "0.05"]
    result = json_of(capsys, *argv, "--out", tmp_path)
    assert {row["backend"] for row in result["rows"]} == {"toy", "eager"}
    assert "Toy runtime" in (tmp_path / "benchmarks.md").read_text()
    (profile,) = json_of(capsys, *argv[:4], "--img-size", "32", "--profile")
    assert list(profile["operations"]) == ["all operations"]
    assert (profile["precision"], profile["computed_in"]) == ("fp32", "")
