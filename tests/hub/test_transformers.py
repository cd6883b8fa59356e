"""The directories that `patnet hub` writes, in the hands of transformers."""

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


def test_logits_and_labels_are_timms(written, picture):
    processor = transformers.AutoImageProcessor.from_pretrained(written)
    model = transformers.AutoModelForImageClassification.from_pretrained(written).eval()
    assert isinstance(processor, transformers.TimmWrapperImageProcessor)
    assert isinstance(model, transformers.TimmWrapperForImageClassification)
    assert model.config.id2label == {0: "dark", 1: "light|er"}
    assert model.config.label2id == {"dark": 0, "light|er": 1}
    theirs = timm.create_model(f"local-dir:{written}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=theirs))
    shown = Image.open(picture)
    pixels = processor(shown, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, transform(shown)[None])
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, theirs(pixels), rtol=1e-5, atol=1e-6)
        features = transformers.AutoModel.from_pretrained(written).eval()(pixels)
        torch.testing.assert_close(features.last_hidden_state, theirs.forward_features(pixels), rtol=1e-5, atol=1e-6)


def test_the_pipeline_answers_as_patnet_predict(written, picture, capfd):
    classify = transformers.pipeline("image-classification", str(written))
    found = {answer["label"]: answer["score"] for answer in classify(str(picture))}
    capfd.readouterr()
    assert main(["predict", str(written), str(picture), "--json", "--top", "2", "--accelerator", "cpu"]) == 0
    expected = {a["label"]: a["probability"] for a in json.loads(capfd.readouterr().out)[0]["top"]}
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_run_folder_loads_too(trained):
    model = transformers.AutoModelForImageClassification.from_pretrained(trained / "run" / "best")
    assert model.config.num_labels == 2
    assert model(torch.zeros(1, 1, 64, 64)).logits.shape == (1, 2)


def test_fine_tuned_by_transformers_it_goes_back_to_timm(written, picture, tmp_path):
    model = transformers.AutoModelForImageClassification.from_pretrained(
        written, num_labels=3, ignore_mismatched_sizes=True
    )
    model.train()
    before = model.timm_model.stem.conv.weight.detach().clone()
    loss = model(torch.rand(4, 3, 64, 64), labels=torch.tensor([0, 1, 2, 0])).loss
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(model.timm_model.stem.conv.weight, before)
    model.eval().save_pretrained(tmp_path / "tuned")
    again = timm.create_model(f"local-dir:{tmp_path / 'tuned'}", pretrained=True).eval()
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels), model(pixels).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: code.strip().splitlines()[-1])
def test_the_examples_of_the_page_run(written, picture, tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(written, "first")
    shutil.copy(picture, "photo.jpg")
    exec(compile(code, str(DOCS), "exec"), {})


def test_the_page_has_examples_of_each():
    assert {"timm.create_model", "pipeline(", "AutoImageProcessor", "patnet.from_pretrained"} <= {
        word
        for code in EXAMPLES
        for word in re.findall(r"timm\.create_model|pipeline\(|AutoImageProcessor|patnet\.from_pretrained", code)
    }
