"""Packages that import in one direction, and an import that costs little."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import patnet

ROOT = Path(patnet.__file__).parent
# Each imports from the lines above its own, and not from its neighbours in the line.
LAYERS = [
    ("errors",),
    ("files",),
    ("nn",),
    ("models",),
    ("deploy", "data"),
    ("train",),
    ("detection", "inspection", "hub"),
    ("loading",),
    ("bench", "demo"),
    ("cli",),
]
LAYER = {name: i for i, names in enumerate(LAYERS) for name in names}
FILES = [file for file in ROOT.rglob("*.py") if file.parent != ROOT or file.stem in LAYER]


def imports_of(file):
    """The names that a file imports from patnet, lazily or not, as parts below `patnet`."""
    package = ["patnet", *file.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1:] for alias in node.names if alias.name.split(".")[0] == "patnet")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            if base[0] == "patnet":
                yield from ([*base[1:], alias.name] for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_in_one_direction_and_at_public_names(file):
    own = file.relative_to(ROOT).with_suffix("").parts[0]
    assert own in LAYER
    for name in imports_of(file):
        if name[0] == own or name == ["__version__"]:
            continue
        assert LAYER[name[0]] < LAYER[own], f"imports {'.'.join(name)}"
        assert not any(part.startswith("_") for part in name), f"imports the private {'.'.join(name)}"


def run(code):
    env = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    return json.loads(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout)


def test_importing_adds_little_to_torch_and_timm_and_needs_nothing_else():
    code = """
import json, sys, tempfile, time, torch, timm
before, start = set(sys.modules), time.process_time()
import patnet
seconds, imported = time.process_time() - start, sorted(set(sys.modules) - before)
with tempfile.TemporaryDirectory() as directory:
    patnet.save_checkpoint(timm.create_model("patnet_t0"), directory)
    patnet.fuse(patnet.load(directory).model)
print(json.dumps([seconds, imported, sorted(set(sys.modules) - before)]))
"""
    seconds, imported, used = run(code)
    assert seconds < 0.3 or run(code)[0] < 0.3  # a busy machine may be slow once
    packages = {name.removeprefix("patnet.").split(".")[0] for name in imported if name.startswith("patnet.")}
    assert packages == {"errors", "files", "nn", "models"}
    heavy = {"lightning", "torchmetrics", "matplotlib", "rich", "jsonargparse", "pyarrow", "scipy", "tensorboard"}
    assert not heavy & {name.split(".")[0] for name in used}


def test_lazy_names_are_there():
    assert set(patnet.__all__) <= {*vars(patnet), "export", "load", "push_to_hub"}
    for name in ("export", "load", "push_to_hub"):
        assert callable(getattr(patnet, name))
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        patnet.exprot  # noqa: B018
