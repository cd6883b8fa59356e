import copy
import inspect
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.models._hub
import torch
from huggingface_hub import CommitInfo, HfApi, ModelCard, RepoUrl
from PIL import Image
from timm.data import create_transform, resolve_data_config

import patnet.hub.directory
from patnet import InputError
from patnet.cli import main
from patnet.hub import write_hub_directory
from patnet.models import Threshold


def logits_of(model, image):
    transform = create_transform(**resolve_data_config(model=model))
    with torch.no_grad():
        return model(transform(image)[None])


def by_timm(directory):
    return timm.create_model(f"local-dir:{directory}", pretrained=True).eval()


def predicted(source, image, capfd):
    capfd.readouterr()
    assert main(["predict", str(source), str(image), "--json", "--accelerator", "cpu"]) == 0
    return json.loads(capfd.readouterr().out)[0]


def test_the_directory_has_the_layout_of_timm(written, tmp_path):
    names = {"README.md", "config.json", "confusion-matrix-test.png", "curves.png", "model.safetensors"}
    assert {file.name for file in written.iterdir()} == names
    assert oct(written.stat().st_mode)[-3:] == "755"
    timm.models._hub.save_for_hf(by_timm(written), str(tmp_path / "timm"), safe_serialization=True)
    theirs, ours = (json.loads((d / "config.json").read_text()) for d in (tmp_path / "timm", written))
    assert set(theirs) <= set(ours)
    described = (ours["architecture"], ours["label_names"], ours["pretrained_cfg"]["tag"])
    assert described == ("patnet_t0", ["dark", "light|er"], "photos")
    assert "license" not in ours["pretrained_cfg"]
    assert "secret_place" not in json.dumps(ours)


def test_a_network_for_grey_images_takes_rgb_with_the_same_outputs(trained, written, image, capfd):
    loaded = patnet.load(trained / "run")
    grey, rgb = loaded.model, by_timm(written)
    assert (grey.stem.conv.in_channels, rgb.stem.conv.in_channels) == (1, 3)
    shown = Image.open(image)
    expected = logits_of(grey, shown.convert("L"))
    torch.testing.assert_close(logits_of(rgb, shown.convert("L").convert("RGB")), expected, rtol=1e-4, atol=1e-5)
    # Pillow rounds the grey value of a colour to one of 256 levels.
    torch.testing.assert_close(logits_of(rgb, shown), expected, rtol=0.02, atol=0.02)
    green = Image.fromarray(np.full((64, 64, 3), (0, 200, 0), dtype=np.uint8))
    torch.testing.assert_close(logits_of(rgb, green), logits_of(grey, green.convert("L")), rtol=0.02, atol=0.02)
    run, directory = (predicted(source, image, capfd)["probability"] for source in (trained / "run", written))
    assert run == pytest.approx(directory, abs=0.01)


def test_metadata_that_the_hub_refuses_is_reported(trained, monkeypatch):
    def refuse(self, **_):
        raise ValueError("Invalid metadata in README.md.\n- Error: bad")

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: RepoUrl(f"https://huggingface.co/{repo_id}"))
    monkeypatch.setattr(HfApi, "upload_folder", refuse)
    with pytest.raises(InputError, match=r"the Hugging Face Hub refuses it \(Invalid metadata in README.md. - Error"):
        patnet.push_to_hub(trained / "run", "me/first")


def test_a_grey_network_is_kept_on_request(trained, tmp_path, image):
    assert main(["hub", str(trained / "run"), "--out", str(tmp_path / "grey"), "--grey"]) == 0
    shown = Image.open(image).convert("L")
    expected = logits_of(patnet.load(trained / "run").model, shown)
    assert torch.equal(logits_of(by_timm(tmp_path / "grey"), shown), expected)
    card = (tmp_path / "grey" / "README.md").read_text()
    assert ('convert("L")' in card, "transformers" in card) == (True, False)


@pytest.mark.parametrize("grey", [False, True])
def test_a_network_in_use_is_published_and_stays_as_it_is(trained, tmp_path, grey):
    loaded = patnet.load(trained / "run", act_layer="silu")  # the checkpoint's is another
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        expected = loaded.model(x)
    loaded.model.bfloat16().train()
    before = copy.deepcopy(loaded.model.state_dict())
    write_hub_directory(loaded, tmp_path / "first", grey=grey)
    assert loaded.model.training
    torch.testing.assert_close(loaded.model.state_dict(), before, rtol=0, atol=0)
    with torch.no_grad():
        found = by_timm(tmp_path / "first")(x if grey else x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_stems_of_several_layers_take_rgb_or_are_refused(tmp_path):
    for name, message in (("mobileone_s0", ""), ("nf_regnet_b0", "its first layer is not linear")):
        torch.manual_seed(0)
        model = timm.create_model(name, in_chans=1, num_classes=2)
        config = {"input_size": (1, 64, 64), "mean": (0.5,), "std": (0.2,)}
        directory = patnet.save_checkpoint(model, tmp_path / name, data_config=config, label_names=["a", "b"])
        loaded = patnet.load(directory)
        if message:
            with pytest.raises(InputError, match=message):
                write_hub_directory(loaded, tmp_path / "refused")
            assert not (tmp_path / "refused").exists()
        else:
            write_hub_directory(loaded, tmp_path / "taken")
            x = torch.randn(2, 1, 64, 64)
            with torch.no_grad():
                torch.testing.assert_close(by_timm(tmp_path / "taken")(x.expand(-1, 3, -1, -1)), loaded.model(x))


def test_the_example_of_the_card_runs(written, image, tmp_path, monkeypatch, capfd):
    code = (written / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert "import patnet" in code
    assert "hf-hub:OWNER/NAME" in code
    monkeypatch.chdir(tmp_path)
    shutil.copy(image, "image.png")
    exec(code.replace("hf-hub:OWNER/NAME", f"local-dir:{written}"), {})
    assert re.search(r"'dark': 0\..*'light\|er': 0\.", capfd.readouterr().out)


class LocalHub(HfApi):
    """The Hub's client, whose uploads are written to a local folder."""

    place: Path
    called: dict

    def create_repo(self, repo_id, **options):
        inspect.signature(HfApi.create_repo).bind(self, repo_id, **options)
        self.called["create_repo"] = {"repo_id": repo_id, **options}
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, **options):
        inspect.signature(HfApi.upload_folder).bind(self, **options)
        self.called["upload_folder"] = options
        shutil.copytree(options["folder_path"], self.place)
        url = f"https://huggingface.co/{options['repo_id']}/commit/0"
        return CommitInfo(commit_url=url, commit_message="", commit_description="", oid="0")


@pytest.fixture
def on_hub(tmp_path, monkeypatch):
    """The local client in place of the Hub's: what is uploaded can be downloaded, by us and by timm."""

    def snapshot(repo_id, *, allow_patterns, **options):
        for file in LocalHub.place.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                (tmp_path / "cache").mkdir(exist_ok=True)
                shutil.copy(file, tmp_path / "cache")
        return str(tmp_path / "cache")

    monkeypatch.setattr(LocalHub, "place", tmp_path / "on_hub", raising=False)
    monkeypatch.setattr(LocalHub, "called", {}, raising=False)
    monkeypatch.setattr("patnet.hub.directory.HfApi", LocalHub)
    monkeypatch.setattr("patnet.models.hub.snapshot_download", snapshot)
    download = lambda repo_id, filename, **options: str(LocalHub.place / filename)  # noqa: E731
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", download)
    return LocalHub


def test_a_run_is_uploaded_and_downloaded(trained, written, on_hub, image, capfd):
    url = patnet.push_to_hub(trained / "run", "me/first", license="cc-by-4.0", private=True)
    assert url == "https://huggingface.co/me/first/commit/0"
    assert on_hub.called["create_repo"] == {"repo_id": "me/first", "private": True, "exist_ok": True}
    assert on_hub.called["upload_folder"]["repo_id"] == "me/first"
    assert {file.name for file in on_hub.place.iterdir()} == {file.name for file in written.iterdir()}
    card = ModelCard.load(on_hub.place / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert "OWNER/NAME" not in str(card)
    expected = logits_of(by_timm(written), Image.open(image))
    for model in (
        timm.create_model("hf-hub:me/first", pretrained=True).eval(),
        patnet.load("hf-hub:me/first@main").model,
        patnet.load(written).model,
    ):
        assert torch.equal(logits_of(model, Image.open(image)), expected)
    assert predicted("hf-hub:me/first", image, capfd)["label"] in ("dark", "light|er")


def test_a_decision_threshold_is_downloaded_with_its_weights(trained, on_hub):
    threshold = Threshold("dark", 0.7, 0.9, 0.8)
    patnet.push_to_hub(replace(patnet.load(trained / "run"), threshold=threshold), "me/first")
    assert patnet.load("hf-hub:me/first").threshold == threshold


def test_a_directory_is_uploaded_with_the_users_changes(written, on_hub, tmp_path, capfd):
    edited = shutil.copytree(written, tmp_path / "edited")
    (edited / "more.txt").write_text("more")
    assert main(["hub", str(edited), "--push", "me/first", "--create-pr"]) == 0
    assert capfd.readouterr().out == "https://huggingface.co/me/first/commit/0\n"
    assert "hf-hub:me/first" in (on_hub.place / "README.md").read_text()
    assert (on_hub.place / "more.txt").read_text() == "more"
    assert on_hub.called["upload_folder"]["create_pr"]


def test_an_upload_says_which_metrics_it_leaves_out(run, on_hub, caplog):
    file = run / "evaluation-test" / "metrics.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "weights_sha256": "0"}))
    assert main(["hub", str(run), "--push", "me/first"]) == 0
    assert "evaluation-test: left out" in caplog.text


def test_written_and_uploaded_at_once_without_metrics_of_other_weights(run, on_hub, tmp_path, capfd):
    file, out = run / "evaluation-test" / "metrics.json", tmp_path / "new" / "first"
    file.write_text(json.dumps({**json.loads(file.read_text()), "weights_sha256": "0"}))
    assert main(["hub", str(run), "--out", str(out), "--push", "me/first", "--json"]) == 0
    printed, messages = capfd.readouterr()
    names = sorted(file.name for file in on_hub.place.iterdir())
    assert json.loads(printed)["files"] == names == ["README.md", "config.json", "curves.png", "model.safetensors"]
    assert json.loads(printed)["url"].endswith("/commit/0")
    assert (out / "README.md").read_bytes() == (on_hub.place / "README.md").read_bytes()
    assert "evaluation-test: left out" in messages


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("run", "give --out"),
        ("run --private --out x", "need --push"),
        ("absent --out x", "absent: no such checkpoint"),
        ("run --out run", "run: exists and is not an empty directory"),
        ("run --out run/config.yaml", "is not an empty directory"),
        ("run --out run/config.yaml/x", "run/config.yaml/x: cannot be written"),
        ("run --out x --license 'My own'", "the Hugging Face Hub's identifier"),
        ("first --push me/first --license mit", "leave out other options"),
        ("first/config.json --out x", "first/config.json"),
        ("patnet_t0 --out x", "has random weights"),
        ("run --push 'a b'", "a b: not a name on the Hugging Face Hub"),
    ],
)
def test_bad_input_is_one_error_message_and_leaves_nothing(run, written, tmp_path, monkeypatch, capfd, argv, message):
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
