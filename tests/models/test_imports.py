"""Rooms that import in one direction, and an import that costs little."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import patnet

ROOT = Path(patnet.__file__).parent
ROOMS = [
    *("nn", "models", "deploy", "data", "train", "detection", "benchmark", "inspection", "experiments"),
    *("hub", "demo", "cli"),
]
SIBLINGS = {  # neither knows of the other
    ("train", "benchmark"),
    ("benchmark", "train"),
    ("detection", "benchmark"),
    ("benchmark", "detection"),
    ("inspection", "detection"),
    ("inspection", "benchmark"),
}


def imported(file):
    """The modules of the package that a file imports, as parts of their names below `patnet`."""
    package = ["patnet", *file.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1:] for alias in node.names if alias.name.split(".")[0] == "patnet")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            if base[0] == "patnet":
                yield from ([*base[1:], alias.name] for alias in node.names)


def test_imports_point_in_one_direction():
    seen = 0
    for file in ROOT.rglob("*.py"):
        room = file.relative_to(ROOT).parts[0]
        if room not in ROOMS:
            continue
        for name in imported(file):
            if name and name[0] in ROOMS:
                seen += 1
                assert ROOMS.index(name[0]) <= ROOMS.index(room), f"{file} imports {'.'.join(name)}"
                assert (room, name[0]) not in SIBLINGS, f"{file} imports {'.'.join(name)}"
    assert seen > 10


def run(code):
    env = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    return json.loads(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout)


def test_importing_adds_little_to_torch_and_timm():
    code = """
import time, torch, timm, json
start = time.process_time()
import patnet
print(json.dumps(time.process_time() - start))
"""
    times = sorted(run(code) for _ in range(3))  # a busy machine may be slow once
    print(f"import patnet: {times[1]:.3f} s beyond torch and timm")
    assert times[0] < 0.3


def test_importing_leaves_out_what_a_network_does_not_need():
    modules = run("import patnet, sys, json; print(json.dumps(sorted(sys.modules)))")
    assert "patnet.models.checkpoint" in modules
    assert not {"lightning", "torchmetrics", "matplotlib", "rich", "jsonargparse"} & {m.split(".")[0] for m in modules}
