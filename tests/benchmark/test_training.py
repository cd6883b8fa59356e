import subprocess

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from patnet.benchmark.step import training_step
from patnet.benchmark.training import measure_training, profile_training, source_of
from patnet.cli import main
from patnet.errors import InputError


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Two versions of a package."""
    root = tmp_path_factory.mktemp("repository")
    (root / "src").mkdir()

    def git(*args):
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *args], cwd=root, check=True)

    git("init", "--quiet")
    for version in ("first", "second"):
        (root / "src" / "version.txt").write_text(version)
        git("add", ".")
        git("commit", "--quiet", "-m", version)
    return root


@pytest.mark.parametrize(("revision", "expected"), [("first", "first"), ("HEAD", "second"), ("HEAD~1", "first")])
def test_a_version_is_written_as_it_was(repository, tmp_path, revision, expected):
    assert (source_of(revision, tmp_path, repository) / "version.txt").read_text() == expected


def test_no_such_version(repository, tmp_path):
    with pytest.raises(InputError, match=r"--against nonsense: .* no such version"):
        source_of("nonsense", tmp_path, repository)


def test_no_repository(tmp_path):
    with pytest.raises(InputError, match="in a clone of the project"):
        source_of("first", tmp_path, tmp_path)


def test_a_step_is_measured():
    options = {"size": 32, "batch": 2, "threads": 1, "against": None, "compiled": False, "seconds": 0}
    found = measure_training("patnet_t0", precisions=("fp32", "bf16"), **options)
    assert list(found) == ["this version, fp32", "this version, bf16"]
    assert all(row["images_per_s"] > 0 for row in found.values())


def test_a_step_in_bf16_computes_in_it():
    kinds = {}
    for precision in ("fp32", "bf16"):
        step = training_step("patnet_t0", 32, 2, precision=precision)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            step()
        kinds[precision] = {event.key for event in profiler.events()}
    assert "ToCopyBackward0" in kinds["bf16"]
    assert "ToCopyBackward0" not in kinds["fp32"]


def test_unknown_precision(capsys):
    assert main(["bench", "--training", "--precision", "fp8"]) == 2
    assert "--precision fp8: with --training it must be one of fp32, bf16" in capsys.readouterr().err


def test_unknown_model(capsys):
    assert main(["bench", "--training", "patnet_t7"]) == 2
    assert "no such model (did you mean 'patnet_t" in capsys.readouterr().err


def test_the_profile_of_a_step_counts_its_operations():
    step = profile_training("patnet_t0", size=64, batch=2, threads=1, calls=1)
    model = timm.create_model("patnet_t0")
    assert sum(ms for ms, _ in step.kinds.values()) > 0
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())
    assert step.kinds["convolutions"][1] >= 2 * convolutions
    # Forward, and twice as much backward but for the pictures' own gradient.
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, 3, 64, 64))
    assert 2.8 * counter.get_total_flops() < 1e9 * step.gflop < 3.01 * counter.get_total_flops()
    assert step.least_ms == pytest.approx(1e3 * step.gflop / step.gflop_per_s)


def test_the_profile_is_printed(capsys):
    arguments = ["--size", "32", "--batch", "2", "--threads", "1"]
    assert main(["bench", "--training", "--profile", "patnet_t0", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "matrix products" in printed
    assert "GFLOP" in printed
