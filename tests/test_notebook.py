"""The notebook of the documentation, run cell by cell as Jupyter would."""

import json

import matplotlib
import pytest
from pages import ROOT

import patnet.data.elpv


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    for package in ("elpv_dataset", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    some = patnet.data.elpv.solar_cells()[::30]
    monkeypatch.setattr(patnet.data.elpv, "solar_cells", lambda: some)
    content = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {"__name__": "__main__"}
    code = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    assert len(code) > 5
    for number, source in enumerate(code):
        exec(compile(source.replace("EPOCHS = 4", "EPOCHS = 1"), f"cell {number}", "exec"), names)
    assert (tmp_path / "runs" / "notebook.onnx").is_file()
    assert all(not cell.get("outputs") for cell in content["cells"])
