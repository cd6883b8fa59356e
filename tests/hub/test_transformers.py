"""The directories for the Hub, loaded by transformers."""

import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from patnet.cli import main

transformers = pytest.importorskip("transformers")

DOCS = Path(__file__).parents[2] / "docs" / "hub.md"
EXAMPLES = [
    code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if '"first"' in code or ":first" in code
]


def test_logits_and_labels_are_those_of_timm(written, image):
    processor = transformers.AutoImageProcessor.from_pretrained(written)
    model = transformers.AutoModelForImageClassification.from_pretrained(written).eval()
    assert isinstance(processor, transformers.TimmWrapperImageProcessor)
    assert isinstance(model, transformers.TimmWrapperForImageClassification)
    assert model.config.id2label == {0: "dark", 1: "light|er"}
    theirs = timm.create_model(f"local-dir:{written}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=theirs))
    pixels = processor(Image.open(image), return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, transform(Image.open(image))[None])
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, theirs(pixels), rtol=1e-5, atol=1e-6)
        features = transformers.AutoModel.from_pretrained(written).eval()(pixels)
        torch.testing.assert_close(features.last_hidden_state, theirs.forward_features(pixels), rtol=1e-5, atol=1e-6)


def test_the_pipeline_predicts_as_patnet_predict(written, image, capfd):
    classify = transformers.pipeline("image-classification", str(written))
    found = {answer["label"]: answer["score"] for answer in classify(str(image))}
    capfd.readouterr()
    assert main(["predict", str(written), str(image), "--json", "--top", "2", "--accelerator", "cpu"]) == 0
    expected = {a["label"]: a["probability"] for a in json.loads(capfd.readouterr().out)[0]["top"]}
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_run_loads_and_what_transformers_fine_tunes_loads_in_timm(trained, written, tmp_path):
    model = transformers.AutoModelForImageClassification.from_pretrained(trained / "run" / "best")
    assert model(torch.zeros(1, 1, 64, 64)).logits.shape == (1, 2)
    options = {"num_labels": 3, "ignore_mismatched_sizes": True}
    model = transformers.AutoModelForImageClassification.from_pretrained(written, **options).train()
    before = model.timm_model.stem.conv.weight.detach().clone()
    model(torch.rand(4, 3, 64, 64), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(model.timm_model.stem.conv.weight, before)
    model.eval().save_pretrained(tmp_path / "tuned")
    again = timm.create_model(f"local-dir:{tmp_path / 'tuned'}", pretrained=True).eval()
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels), model(pixels).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: code.strip().splitlines()[-1])
def test_the_examples_of_the_page_run(written, image, tmp_path, monkeypatch, code):
    ways = ("timm.create_model", "pipeline(", "AutoImageProcessor", "patnet.load")
    assert all(any(way in code for code in EXAMPLES) for way in ways)  # the page has one of each way to load
    monkeypatch.chdir(tmp_path)
    shutil.copytree(written, "first")
    shutil.copy(image, "photo.jpg")
    exec(compile(code, str(DOCS), "exec"), {})
