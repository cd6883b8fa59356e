import copy
import json

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard

from patnet import InputError, load
from patnet.hub import model_card


def card_of(run, **options):
    card, _, left_out = model_card(load(run), **options)
    return ModelCard(str(card)), left_out  # as the Hub reads it


def change(file, **values):
    """Change values of a JSON or YAML file."""
    read, write = (json.loads, json.dumps) if file.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    file.write_text(write({**read(file.read_text()), **values}))


def test_the_card_has_what_was_measured(run):
    measured = json.loads((run / "evaluation-test" / "metrics.json").read_text())
    (run / "evaluation-8").mkdir()
    (run / "evaluation-8" / "metrics.json").write_text(json.dumps({**measured, "tta": 8, "top1": 0.125}))
    card, left_out = card_of(run, repo_id="me/first", license="cc-by-4.0")
    assert left_out == []
    rows = [
        " | ".join(f"{100 * row[key]:.1f}" for key in ("precision", "recall", "f1"))
        for row in measured["per_class"].values()
    ]
    parameters = f"{sum(p.numel() for p in load(run).model.parameters()):,}".replace(",", " ")
    lines = [
        f"| parameters | {parameters} |",
        f"timm {timm.__version__}",
        'create_model("hf-hub:me/first"',
        "On photos, test split, 64x64 px: 8 images.",
        f"| Top-1 accuracy | {100 * measured['top1']:.1f} |",  # of a single view, which comes before TTA
        f"| dark | {rows[0]} | 4 |\n| light\\|er | {rows[1]} | 4 |",
        "patnet evaluate --tta 8",
        "| Top-1 accuracy | 12.5 |",
        "2 of 2 epochs on photos from random weights, at 64 px",
        "The weights: cc-by-4.0.",
    ]
    places = [card.text.find(line) for line in lines]
    assert min(places) > 0
    assert places == sorted(places)
    assert "\n\n\n" not in card.text
    options = yaml.safe_load(card.text.partition("```yaml\n")[2].partition("```")[0])
    assert (options["data"], options["model_kwargs"]["depths"]) == ("photos", [1, 1])
    assert not {"out", "cache_dir"} & set(options)
    assert "secret_place" not in str(card)


def test_a_network_in_use_stays_as_it_is(run):
    loaded = load(run)
    loaded.model.bfloat16().train()
    before = copy.deepcopy(loaded.model.state_dict())
    model_card(loaded)
    assert loaded.model.training
    torch.testing.assert_close(loaded.model.state_dict(), before, rtol=0, atol=0)


def test_the_metadata_is_the_hubs(run):
    measured = json.loads((run / "evaluation-test" / "metrics.json").read_text())
    data = card_of(run, repo_id="me/first", license="cc-by-4.0")[0].data.to_dict()
    assert yaml.safe_load(yaml.safe_dump(data)) == data
    (model,) = data.pop("model-index")
    (result,) = model["results"]
    assert (model["name"], result["task"]) == ("first", {"type": "image-classification"})
    assert result["dataset"] == {"name": "photos", "type": "imagefolder", "split": "test"}
    assert [(m["type"], m["name"], m["value"]) for m in result["metrics"]] == [
        ("accuracy", "Top-1 accuracy", round(measured["top1"], 4)),
        ("balanced_accuracy", "Balanced accuracy", round(measured["balanced_accuracy"], 4)),
    ]
    assert data == {
        "library_name": "timm",
        "license": "cc-by-4.0",
        "metrics": ["accuracy", "balanced_accuracy"],
        "pipeline_tag": "image-classification",
        "tags": ["patnet", "image-classification", "timm"],
    }


@pytest.mark.parametrize("source", ["other weights", "other threshold", "not evaluated", "no run"])
def test_metrics_are_of_these_weights_or_absent(run, source):
    if source == "other weights":
        change(run / "evaluation-test" / "metrics.json", weights_sha256="0" * 64)
    elif source == "other threshold":
        chosen = {"label": "dark", "probability": 0.7, "precision": 0.9, "recall": 0.8}
        change(run / "evaluation-test" / "metrics.json", threshold=chosen)
    elif source == "not evaluated":
        (run / "evaluation-test" / "metrics.json").unlink()
    card, left_out = card_of(run / "best" if source == "no run" else run)
    assert not {"metrics", "model-index"} & set(card.data.to_dict())
    assert "were not evaluated" in card.text
    assert "Top-1 accuracy" not in card.text
    assert ["evaluation-test: left out" in message for message in left_out] == [True] * source.startswith("other")
    assert ("How these weights were trained is not known" in card.text) == (source == "no run")
    assert ("best on the validation images" in card.text) == (source != "no run")  # which selected the epoch


def test_the_data_set_is_described_and_named_as_on_the_hub(run):
    change(run / "config.yaml", data="elpv")
    card, _ = card_of(run)
    for text in ("ELPV: cc-by-nc-sa-4.0", "deitsch2019automatic", "No licence is stated for the weights"):
        assert text in card.text
    assert card.data.license is None
    change(run / "config.yaml", data="hfds/food/101")
    assert card_of(run)[0].data.datasets == ["food/101"]


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"data": "photos"}'])
def test_damaged_metrics_are_refused(run, text):
    (run / "evaluation-test" / "metrics.json").write_text(text)
    with pytest.raises(InputError, match="not metrics of an evaluation"):
        card_of(run)
