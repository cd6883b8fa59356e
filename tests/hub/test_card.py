import json
import os

import pytest
import timm
import yaml
from huggingface_hub import ModelCard

from patnet import InputError
from patnet.hub import model_card
from patnet.train.inference import load_trained


def card_of(run, **options):
    card, _, left_out = model_card(load_trained(run, options.get("which", "best")), **options)
    return ModelCard(str(card)), left_out  # as the Hub reads it


def test_the_card_holds_what_was_measured(run):
    measured = json.loads((run / "evaluation-test" / "metrics.json").read_text())
    card, left_out = card_of(run, repo_id="me/first", license="cc-by-4.0")
    assert left_out == []
    assert card.data.model_name == "first"
    found = {result.metric_type: result for result in card.data.eval_results}
    assert found["accuracy"].metric_value == round(measured["top1"], 4)
    assert found["balanced_accuracy"].metric_value == round(measured["balanced_accuracy"], 4)
    assert {(r.dataset_name, r.dataset_type, r.dataset_split) for r in found.values()} == {
        ("photos", "imagefolder", "test")
    }
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "timm"
    assert card.data.pipeline_tag == "image-classification"
    assert {"timm", "patnet"} <= set(card.data.tags)
    assert f"| Top-1 accuracy | {100 * measured['top1']:.1f} |" in card.text
    row = measured["per_class"]["light|er"]
    cells = [f"{100 * row[key]:.1f}" for key in ("precision", "recall", "f1")]
    assert f"| light\\|er | {' | '.join(cells)} | 4 |" in card.text
    model = load_trained(run).model
    parameters = f"{sum(p.numel() for p in model.parameters()):,}".replace(",", " ")
    assert f"| parameters | {parameters} |" in card.text
    assert f"timm {timm.__version__}" in card.text
    assert 'create_model("hf-hub:me/first"' in card.text
    assert "\n\n\n" not in card.text


def test_the_metadata_is_what_the_hub_takes(run):
    data = ModelCard(str(card_of(run, license="apache-2.0")[0])).data.to_dict()
    assert yaml.safe_load(yaml.safe_dump(data)) == data
    (entry,) = data["model-index"]
    (result,) = entry["results"]
    assert result["task"] == {"type": "image-classification"}
    assert all(0 <= metric["value"] <= 1 for metric in result["metrics"])
    assert set(data) == {"library_name", "license", "metrics", "model-index", "pipeline_tag", "tags"}


def test_a_run_that_was_not_evaluated_says_so(run):
    for file in (run / "evaluation-test").iterdir():
        file.unlink()
    card, _ = card_of(run)
    assert not card.data.eval_results
    assert "metrics" not in card.data.to_dict()
    assert "were not evaluated" in card.text
    assert "Top-1 accuracy" not in card.text
    assert "the best on the validation pictures" in card.text  # which are said to have chosen it


def test_figures_of_other_weights_are_left_out(run):
    (run / "best" / "model.safetensors").write_bytes((run / "last" / "model.safetensors").read_bytes())
    file = run / "evaluation-test" / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["weights_sha256"] = "0" * 64
    file.write_text(json.dumps(metrics))
    card, left_out = card_of(run)
    assert len(left_out) == 1
    assert "evaluation-test: left out" in left_out[0]
    assert not card.data.eval_results
    assert "were not evaluated" in card.text


def test_figures_without_a_digest_count_if_they_are_newer_than_the_weights(run):
    file, weights = run / "evaluation-test" / "metrics.json", run / "best" / "model.safetensors"
    metrics = json.loads(file.read_text())
    del metrics["weights_sha256"]
    file.write_text(json.dumps(metrics))
    changed = weights.stat().st_mtime
    os.utime(file, (changed + 1, changed + 1))
    assert card_of(run)[0].data.eval_results
    assert not card_of(run, which="last")[0].data.eval_results
    os.utime(file, (changed - 1, changed - 1))
    assert not card_of(run)[0].data.eval_results


def test_a_single_view_comes_before_the_mean_of_eight(run):
    metrics = json.loads((run / "evaluation-test" / "metrics.json").read_text())
    (run / "evaluation-eight").mkdir()
    (run / "evaluation-eight" / "metrics.json").write_text(json.dumps({**metrics, "views": 8, "top1": 0.125}))
    card, _ = card_of(run)
    names = [result.metric_name for result in card.data.eval_results]
    assert names[0] == "Top-1 accuracy"
    assert "Top-1 accuracy, mean over 8 views" in names
    assert card.text.index("patnet evaluate --views 8") < card.text.index("| Top-1 accuracy | 12.5 |")


def test_the_options_are_told_without_the_places_on_this_machine(trained, run):
    card, _ = card_of(run)
    options = yaml.safe_load(card.text.partition("```yaml\n")[2].partition("```")[0])
    assert options["data"] == "photos"
    assert options["model_args"]["depths"] == [1, 1]
    assert "out" not in options
    assert "cache_dir" not in options
    assert str(trained) not in str(card)
    assert "secret_place" not in str(card)
    assert "2 of 2 epochs on photos from random weights, at 64 px" in card.text


def test_what_is_known_of_the_data_is_said(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "data": "elpv"}))
    card, _ = card_of(run)
    assert "ELPV: cc-by-nc-sa-4.0" in card.text
    assert "deitsch2019automatic" in card.text
    assert "None is stated for the weights" in card.text
    assert card.data.license is None
    assert "The weights: mit." in card_of(run, license="mit")[0].text


def test_a_data_set_of_the_hub_is_named_as_there(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "data": "hfds/food/101"}))
    assert card_of(run)[0].data.datasets == ["food/101"]


def test_weights_without_a_run_say_that_nothing_is_known(run):
    card, _ = card_of(run / "best")
    assert "How these weights were trained is not known" in card.text
    assert "were not evaluated" in card.text


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"data": "photos"}'])
def test_damaged_figures_are_refused(run, text):
    (run / "evaluation-test" / "metrics.json").write_text(text)
    with pytest.raises(InputError, match="not the figures of an evaluation"):
        card_of(run)
