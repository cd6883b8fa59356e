"""Wheel and source distribution: their content, and whether the wheel works without the sources."""

import email
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import patnet

pytestmark = pytest.mark.slow
pytest.importorskip("build")
pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "patnet"

USER = """\
import patnet
adapted: list[str] = patnet.load_weights(patnet.PATNet(), "weights.pth")
patnet.load_weights(patnet.PATNet(), 3)
"""
# Reading their types takes a minute.
SKIP = """\
[mypy-torch.*,torchvision.*,timm.*,safetensors.*,huggingface_hub.*,numpy.*,openvino.*,onnx.*,onnxruntime.*]
follow_imports = skip
ignore_missing_imports = True
"""


def called(*argv, **options):
    """The output of a program, which must succeed and must not find the sources."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, env=env, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder of the packages: that of `make package`, or a new one; the wheel is built from the sdist."""
    if "DIST" in os.environ:
        return ROOT / os.environ["DIST"]
    folder = tmp_path_factory.mktemp("dist")
    called(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    """The wheel."""
    (wheel,) = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The `bin` folder of an environment with the wheel, and with the other packages of this one."""
    folder = tmp_path_factory.mktemp("env")
    called(sys.executable, "-m", "venv", "--without-pip", folder)
    (site,) = folder.glob("lib/python*/site-packages")
    # A line adds a folder. The .pth files in it, and so an editable install of the sources, are not followed.
    (site / "others.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")))
    python = folder / "bin" / "python"
    called(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    return folder / "bin"


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [file for file in SOURCE.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    own = {f"patnet/{file.relative_to(SOURCE)}" for file in files}
    assert {name for name in names if ".dist-info/" not in name} == own
    assert {"patnet/py.typed", "patnet/hub/card.md", "patnet/train/recipes/elpv.yaml"} <= own
    assert wheel.stat().st_size < 1e6


def test_the_metadata_are_complete(wheel):
    name = f"patnet-{patnet.__version__}.dist-info"
    metadata = email.message_from_bytes(zipfile.ZipFile(wheel).read(f"{name}/METADATA"))
    expected = {"Name": "patnet", "Version": patnet.__version__, "License-Expression": "Apache-2.0"}
    expected |= {"Requires-Python": ">=3.11", "Description-Content-Type": "text/markdown"}
    assert expected.items() <= dict(metadata).items()
    assert metadata["Summary"]
    assert "timm" in metadata["Keywords"]
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert metadata.get_payload().startswith("# patnet")
    assert f"{name}/licenses/LICENSE" in zipfile.ZipFile(wheel).namelist()


def test_the_sdist_is_enough_to_work_on_and_no_more(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        sizes = {m.name.partition("/")[2]: m.size for m in archive.getmembers() if m.isfile()}
    tests = {str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("*.py")}
    others = {"README.md", "LICENSE", "CITATION.cff", "Makefile", "pyproject.toml", "docs/hub.md", "demo/recipe.yaml"}
    assert tests | others | {"tests/data/authors_small.safetensors"} <= set(sizes)
    folders = {name.partition("/")[0] for name in sizes if "/" in name}
    assert folders == {"src", "tests", "docs", "demo", "experiments", "examples", "benchmarks"}
    assert not [name for name in sizes if "__pycache__" in name or name.endswith((".ckpt", ".pyc"))]
    assert max(sizes.values()) < 2e6
    assert sdist.stat().st_size < 5e6


def test_the_readme_renders(dist):
    pytest.importorskip("twine")
    files = [*dist.glob("*.whl"), *dist.glob("*.tar.gz")]
    assert called(sys.executable, "-m", "twine", "check", "--strict", *files).count("PASSED") == 2


def test_the_wheel_works_alone(installed, tmp_path):
    code = (
        "import json, patnet, timm, patnet.hub, patnet.train.recipes as r, patnet.detection.recipes as d\n"
        "timm.create_model('patnet_t0')\n"
        "print(json.dumps([patnet.__file__, sorted(r.RECIPES), sorted(d.RECIPES)]))"
    )
    where, recipes, detection = json.loads(called(installed / "python", "-c", code, cwd=tmp_path))
    assert where.startswith(str(installed.parent))
    assert recipes == sorted(file.stem for file in (SOURCE / "train" / "recipes").glob("*.yaml"))
    assert detection == sorted(file.stem for file in (SOURCE / "detection" / "recipes").glob("*.yaml"))
    models = json.loads(called(installed / "patnet", "models", "--json", cwd=tmp_path))
    assert [model["model"] for model in models][:2] == ["patnet_t0", "patnet_t1"]
    assert called(installed / "patnet", "--version", cwd=tmp_path).strip().endswith(patnet.__version__)


def test_its_types_are_visible_to_users(installed, tmp_path):
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "mypy.ini").write_text("[mypy]\n" + SKIP)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", str(installed / "python"), "user.py"],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MYPYPATH")},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 1, done.stdout + done.stderr
    assert errors[0].startswith("user.py:3: ")
    assert "[arg-type]" in errors[0]
