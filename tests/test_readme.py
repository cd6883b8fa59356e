"""The README's Python runs as it stands, for what needs no files of the reader's own."""

import re
from pathlib import Path

import pytest
import torch

from patnet import PATNet
from patnet.data.panels import write_panels
from patnet.deploy import ExportInfo, export

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = [code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if ".pth" not in code]


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: code.strip().splitlines()[0])
def test_examples_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures = torch.randn(2, 3, 64, 64)
    if "first.onnx" in code:
        pytest.importorskip("onnxruntime")
        network = PATNet(num_classes=2, embed_dim=8, depths=(1, 1), mixers=("pat_ch", "pat_sf"), num_heads=2).eval()
        info = ExportInfo("small", "test", ["cat", "dog"], {}, None, (64, 64), 3, "fp32", True, "onnx")
        export(network, "first.onnx", pictures, info=info)
    if "segmentation_models_pytorch" in code:
        pytest.importorskip("segmentation_models_pytorch")
    if '"panels"' in code:
        write_panels(tmp_path / "panels", train=2, test=1, size=96, most=2)
    exec(compile(code, "README.md", "exec"), {"pictures": pictures})


def test_there_are_examples_and_pictures():
    assert len(EXAMPLES) >= 2
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README.read_text())
    assert pictures
    assert all((README.parent / picture).is_file() for picture in pictures)
