import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.models._hub
import torch
from huggingface_hub import CommitInfo, HfApi, ModelCard, RepoUrl
from PIL import Image
from timm.data import create_transform, resolve_data_config

import patnet
from patnet.cli import main
from patnet.models import hub


def logits_of(model, picture):
    transform = create_transform(**resolve_data_config(model=model))
    with torch.no_grad():
        return model(transform(picture)[None])


def loaded(directory):
    return timm.create_model(f"local-dir:{directory}", pretrained=True).eval()


def test_the_directory_is_in_timms_layout(written, tmp_path):
    names = {"README.md", "config.json", "confusion-matrix-test.png", "curves.png", "model.safetensors"}
    assert {file.name for file in written.iterdir()} == names
    assert oct(written.stat().st_mode)[-3:] == "755"
    model = loaded(written)
    timm.models._hub.save_for_hf(model, str(tmp_path / "timms"), safe_serialization=True)
    theirs, ours = (json.loads((d / "config.json").read_text()) for d in (tmp_path / "timms", written))
    assert set(theirs) - set(ours) == set()
    assert ours["architecture"] == "patnet_t0"
    assert ours["label_names"] == ["dark", "light|er"]
    assert ours["pretrained_cfg"]["tag"] == "photos"
    assert "license" not in ours["pretrained_cfg"]
    assert "secret_place" not in json.dumps(ours)


def test_a_network_for_grey_takes_colour_and_answers_the_same(trained, written, picture):
    grey, colour = patnet.from_checkpoint(trained / "run").eval(), loaded(written)
    assert (grey.stem.conv.in_channels, colour.stem.conv.in_channels) == (1, 3)
    shown = Image.open(picture)
    single = shown.convert("L")
    expected = logits_of(grey, single)
    torch.testing.assert_close(logits_of(colour, single.convert("RGB")), expected, rtol=1e-4, atol=1e-5)
    # Pillow rounds the grey of a coloured picture to one of 256 levels.
    torch.testing.assert_close(logits_of(colour, shown), expected, rtol=0.02, atol=0.02)
    green = Image.fromarray(np.full((64, 64, 3), (0, 200, 0), dtype=np.uint8))
    torch.testing.assert_close(logits_of(colour, green), logits_of(grey, green.convert("L")), rtol=0.02, atol=0.02)


def test_grey_is_left_alone_on_request(trained, tmp_path, picture):
    assert main(["hub", str(trained / "run"), "--out", str(tmp_path / "grey"), "--grey"]) == 0
    model = loaded(tmp_path / "grey")
    expected = patnet.from_checkpoint(trained / "run").eval()
    shown = Image.open(picture).convert("L")
    assert torch.equal(logits_of(model, shown), logits_of(expected, shown))
    card = (tmp_path / "grey" / "README.md").read_text()
    assert 'convert("L")' in card
    assert "transformers" not in card


def test_our_own_commands_take_the_directory(trained, written, picture, capfd):
    answers = []
    for source in (trained / "run", written):
        assert main(["predict", str(source), str(picture), "--json", "--accelerator", "cpu"]) == 0
        answers.append(json.loads(capfd.readouterr().out)[0])
    assert answers[0]["label"] == answers[1]["label"]
    assert answers[0]["probability"] == pytest.approx(answers[1]["probability"], abs=0.01)


def test_the_cards_example_runs(written, picture, tmp_path, monkeypatch, capfd):
    code = (written / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert "import patnet" in code
    assert "hf-hub:OWNER/NAME" in code
    monkeypatch.chdir(tmp_path)
    shutil.copy(picture, "photo.png")
    exec(code.replace("hf-hub:OWNER/NAME", f"local-dir:{written}"), {})
    printed = capfd.readouterr().out
    assert "'dark': 0." in printed
    assert "'light|er': 0." in printed


class StandIn(HfApi):
    """The Hub's client, whose uploads land in a folder here."""

    place: Path
    called: list

    def create_repo(self, repo_id, **options):
        inspect.signature(HfApi.create_repo).bind(self, repo_id, **options)
        self.called.append(("create_repo", repo_id, options))
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, **options):
        inspect.signature(HfApi.upload_folder).bind(self, **options)
        self.called.append(("upload_folder", options["repo_id"], options))
        shutil.copytree(options["folder_path"], self.place)
        commit = f"https://huggingface.co/{options['repo_id']}/commit/0"
        return CommitInfo(commit_url=commit, commit_message="", commit_description="", oid="0")


@pytest.fixture
def on_hub(tmp_path, monkeypatch):
    """The stand-in in the place of the Hub: what is uploaded can be fetched, by us and by timm."""
    monkeypatch.setattr(StandIn, "place", tmp_path / "on_hub", raising=False)
    monkeypatch.setattr(StandIn, "called", [], raising=False)
    monkeypatch.setattr(hub, "HfApi", StandIn)

    def snapshot(repo_id, *, revision, allow_patterns):
        assert repo_id == "me/first"
        return str(StandIn.place)

    def file(repo_id, filename, **options):
        assert repo_id == "me/first"
        return str(StandIn.place / filename)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", file)
    return StandIn


def test_a_run_is_uploaded_and_fetched(trained, written, on_hub, picture, capfd):
    address = patnet.push_to_hub(trained / "run", "me/first", license="cc-by-4.0", private=True)
    assert address == "https://huggingface.co/me/first/commit/0"
    (created, (kind, repo_id, options)) = on_hub.called
    assert created == ("create_repo", "me/first", {"private": True, "exist_ok": True})
    assert (kind, repo_id) == ("upload_folder", "me/first")
    assert not options["create_pr"]
    assert {file.name for file in on_hub.place.iterdir()} == {file.name for file in written.iterdir()}
    card = ModelCard.load(on_hub.place / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert "OWNER/NAME" not in str(card)

    expected = logits_of(loaded(written), Image.open(picture))
    for model in (
        timm.create_model("hf-hub:me/first", pretrained=True).eval(),
        patnet.from_pretrained("me/first"),
        patnet.from_pretrained("hf-hub:me/first@main"),
        patnet.from_checkpoint("hf-hub:me/first").eval(),
        patnet.from_pretrained(written),
    ):
        assert not model.training
        assert torch.equal(logits_of(model, Image.open(picture)), expected)
    capfd.readouterr()
    assert main(["predict", "hf-hub:me/first", str(picture), "--json", "--accelerator", "cpu"]) == 0
    assert json.loads(capfd.readouterr().out)[0]["label"] in ("dark", "light|er")


def test_a_directory_is_uploaded_as_it_was_edited(written, on_hub, tmp_path, capfd):
    edited = shutil.copytree(written, tmp_path / "edited")
    with (edited / "README.md").open("a") as file:
        file.write("\nA remark by hand.\n")
    (edited / "more.txt").write_text("more")
    assert main(["hub", str(edited), "--push", "me/first", "--create-pr"]) == 0
    assert capfd.readouterr().out == "https://huggingface.co/me/first/commit/0\n"
    text = (on_hub.place / "README.md").read_text()
    assert text.endswith("A remark by hand.\n")
    assert "hf-hub:me/first" in text
    assert (on_hub.place / "more.txt").read_text() == "more"
    assert on_hub.called[-1][2]["create_pr"]


def test_written_and_uploaded_at_once(trained, on_hub, tmp_path, capfd):
    out = tmp_path / "new" / "first"
    assert main(["hub", str(trained / "run"), "--out", str(out), "--push", "me/first", "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["url"].endswith("/commit/0")
    assert printed["files"] == sorted(file.name for file in on_hub.place.iterdir())
    assert (out / "README.md").read_bytes() == (on_hub.place / "README.md").read_bytes()


def test_figures_of_other_weights_are_said_to_be_left_out(run, tmp_path, capfd):
    file = run / "evaluation-test" / "metrics.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "weights_sha256": "0"}))
    assert main(["hub", str(run), "--out", str(tmp_path / "out")]) == 0
    assert "evaluation-test: left out" in capfd.readouterr().err
    assert not (tmp_path / "out" / "confusion-matrix-test.png").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("run", "give --out"),
        ("run --private --out x", "for --push"),
        ("absent --out x", "absent: no such checkpoint"),
        ("run --out run", "run: exists and is not empty"),
        ("run --out run/config.yaml", "is not empty"),
        ("run --out run/config.yaml/x", "run/config.yaml/x: cannot be written"),
        ("run --out x --license 'My own'", "as the Hugging Face Hub writes it"),
        ("first --push me/first --license mit", "leave out other options"),
        ("first/config.json --out x", "first/config.json"),
        ("net.onnx --out x", "is exported already"),
        ("run --push 'a b'", "a b: not a name on the Hugging Face Hub"),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(run, written, tmp_path, monkeypatch, capfd, argv, message):
    import shlex

    shutil.copytree(written, tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["hub", *shlex.split(argv)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("patnet: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_help_teaches_by_example(capfd):
    with pytest.raises(SystemExit) as left:
        main(["hub", "--help"])
    assert left.value.code == 0
    assert capfd.readouterr().out.count("  patnet ") >= 3
