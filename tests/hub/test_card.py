import json

import pytest
import timm
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
    card, left_out = card_of(run, repo_id="me/first", license="cc-by-4.0")
    assert left_out == []
    assert (card.data.model_name, card.data.license) == ("first", "cc-by-4.0")
    found = {result.metric_type: result for result in card.data.eval_results}
    assert {name: found[name].metric_value for name in ("accuracy", "balanced_accuracy")} == {
        "accuracy": round(measured["top1"], 4),
        "balanced_accuracy": round(measured["balanced_accuracy"], 4),
    }
    described = {(r.dataset_name, r.dataset_type, r.dataset_split) for r in found.values()}
    assert described == {("photos", "imagefolder", "test")}
    row = measured["per_class"]["light|er"]
    cells = [f"{100 * row[key]:.1f}" for key in ("precision", "recall", "f1")]
    parameters = f"{sum(p.numel() for p in load(run).model.parameters()):,}".replace(",", " ")
    for line in (
        f"| Top-1 accuracy | {100 * measured['top1']:.1f} |",
        f"| light\\|er | {' | '.join(cells)} | 4 |",
        f"| parameters | {parameters} |",
        f"timm {timm.__version__}",
        'create_model("hf-hub:me/first"',
        "On photos, test split, 64x64 px: 8 images.",
    ):
        assert line in card.text
    assert "\n\n\n" not in card.text
    data = card.data.to_dict()  # as the Hub takes it
    assert yaml.safe_load(yaml.safe_dump(data)) == data
    (result,) = data["model-index"][0]["results"]
    assert result["task"] == {"type": "image-classification"}
    assert all(0 <= metric["value"] <= 1 for metric in result["metrics"])
    assert set(data) == {"library_name", "license", "metrics", "model-index", "pipeline_tag", "tags"}
    assert (data["library_name"], data["pipeline_tag"]) == ("timm", "image-classification")
    assert {"timm", "patnet"} <= set(data["tags"])


@pytest.mark.parametrize("source", ["other weights", "not evaluated", "no run"])
def test_metrics_are_of_these_weights_or_absent(run, source):
    if source == "other weights":
        change(run / "evaluation-test" / "metrics.json", weights_sha256="0" * 64)
    elif source == "not evaluated":
        (run / "evaluation-test" / "metrics.json").unlink()
    card, left_out = card_of(run / "best" if source == "no run" else run)
    assert not card.data.eval_results
    assert "metrics" not in card.data.to_dict()
    assert "were not evaluated" in card.text
    assert "Top-1 accuracy" not in card.text
    assert ["evaluation-test: left out" in message for message in left_out] == [True] * (source == "other weights")
    assert ("How these weights were trained is not known" in card.text) == (source == "no run")
    assert ("best on the validation images" in card.text) == (source != "no run")  # which selected the epoch


def test_a_single_view_comes_before_test_time_augmentation(run):
    metrics = json.loads((run / "evaluation-test" / "metrics.json").read_text())
    (run / "evaluation-8").mkdir()
    (run / "evaluation-8" / "metrics.json").write_text(json.dumps({**metrics, "tta": 8, "top1": 0.125}))
    card, _ = card_of(run)
    names = [result.metric_name for result in card.data.eval_results]
    assert names[0] == "Top-1 accuracy"
    assert "Top-1 accuracy, TTA with 8 views" in names
    assert card.text.index("patnet evaluate --tta 8") < card.text.index("| Top-1 accuracy | 12.5 |")


def test_the_options_are_listed_without_paths_of_this_machine(trained, run):
    card, _ = card_of(run)
    options = yaml.safe_load(card.text.partition("```yaml\n")[2].partition("```")[0])
    assert options["data"] == "photos"
    assert options["model_kwargs"]["depths"] == [1, 1]
    assert not {"out", "cache_dir"} & set(options)
    assert "secret_place" not in str(card)
    assert "2 of 2 epochs on photos from random weights, at 64 px" in card.text


def test_the_data_set_is_described_and_named_as_on_the_hub(run):
    change(run / "config.yaml", data="elpv")
    card, _ = card_of(run)
    assert "ELPV: cc-by-nc-sa-4.0" in card.text
    assert "deitsch2019automatic" in card.text
    assert "No licence is stated for the weights" in card.text
    assert card.data.license is None
    assert "The weights: mit." in card_of(run, license="mit")[0].text
    change(run / "config.yaml", data="hfds/food/101")
    assert card_of(run)[0].data.datasets == ["food/101"]


def test_damaged_metrics_are_refused(run):
    for text in ("no JSON", "[]", '{"data": "photos"}'):
        (run / "evaluation-test" / "metrics.json").write_text(text)
        with pytest.raises(InputError, match="not metrics of an evaluation"):
            card_of(run)
