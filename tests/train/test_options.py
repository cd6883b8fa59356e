"""What the options of a run do to its steps."""

import pytest
import timm
import torch
import yaml
from rich.console import Console

from patnet import InputError, from_checkpoint
from patnet.models.checkpoint import save_checkpoint
from patnet.train import TrainConfig, fit
from patnet.train.classifier import Classifier
from patnet.train.recipes import RECIPES, recipe_file

QUIET = Console(quiet=True)
TINY = {
    "model_args": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": 2, "feature_dim": 32},
    "size": 32,
    "batch_size": 4,
    "workers": 0,
    "epochs": 1,
    "warmup_epochs": 0,
    "accelerator": "cpu",
}


@pytest.fixture
def data(photos):
    return str(photos(**{"train/a": 12, "train/b": 4, "val/a": 2, "val/b": 2}))


@pytest.fixture
def steps(monkeypatch):
    """What the training steps were given and what came of them, one entry for each."""
    seen = []
    step = Classifier.training_step

    def noted(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        seen.append({"module": self, "size": batch[0].shape[-1], "labels": batch[1].tolist(), "loss": loss.item()})
        return loss

    monkeypatch.setattr(Classifier, "training_step", noted)
    return seen


def train(data, out, **options):
    return fit(TrainConfig(data=data, out=str(out), **{**TINY, **options}), console=QUIET)


def test_pictures_grow_at_their_epoch(data, tmp_path, steps):
    train(data, tmp_path / "run", epochs=3, size=64, early_size=32, early_epochs=2)
    assert [step["size"] for step in steps] == [32] * 8 + [64] * 4


def test_parts_of_a_step_are_one_step(data, tmp_path, steps):
    train(data, tmp_path / "run", global_batch_size=8, batch_size=2)
    assert len(steps) == 8
    assert steps[-1]["module"].trainer.global_step == 2
    with pytest.raises(InputError, match="no global batch of 32"):
        train(data, tmp_path / "none", global_batch_size=32)


def test_frozen_stages_stay_as_they_are(data, tmp_path, steps):
    train(data, tmp_path / "run", freeze_stages=2)
    torch.manual_seed(0)
    trained = steps[-1]["module"].model
    optimised = {p for group in steps[-1]["module"].trainer.optimizers[0].param_groups for p in group["params"]}
    for name, parameter in trained.named_parameters():
        assert (parameter in optimised) == name.startswith(("stages.2", "stages.3", "conv_head", "classifier"))
    assert trained.stages[1].blocks[0].mlp.norm.num_batches_tracked == 0
    assert trained.stages[2].blocks[0].mlp.norm.num_batches_tracked == 4
    with pytest.raises(InputError, match="has 4 stages"):
        train(data, tmp_path / "five", freeze_stages=5)


def test_rates_fall_towards_the_stem(data, tmp_path, steps):
    train(data, tmp_path / "run", layer_decay=0.5, lr=1e-3)
    module = steps[-1]["module"]
    rate = {p: group["lr_scale"] for group in module.trainer.optimizers[0].param_groups for p in group["params"]}
    model = module.model
    assert (
        rate[model.stem.conv.weight] < rate[model.stages[1].blocks[0].mlp.conv1.weight] < rate[model.classifier.weight]
    )
    assert rate[model.classifier.weight] == 1
    groups = module.trainer.optimizers[0].param_groups
    assert all(group["lr"] == pytest.approx(1e-5 * group["lr_scale"], rel=1e-6) for group in groups)


def test_uneven_classes_are_made_up_for(data, tmp_path, steps):
    train(data, tmp_path / "weights", balance="weights")
    weights = steps[0]["module"].class_weights
    assert weights.tolist() == pytest.approx([16 / 24, 16 / 8])
    steps.clear()
    train(data, tmp_path / "sampling", balance="sampling", epochs=4)
    labels = [label for step in steps for label in step["labels"]]
    assert 0.35 < sum(labels) / len(labels) < 0.65


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_teacher_is_followed(data, tmp_path, steps, kind):
    # A teacher that answers b whatever it sees.
    teacher = timm.create_model("patnet_t0", num_classes=2, **TINY["model_args"])
    with torch.no_grad():
        teacher.classifier.weight.zero_()
        teacher.classifier.bias.copy_(torch.tensor([-9.0, 9.0]))
    save_checkpoint(teacher, tmp_path / "teacher")
    options = {"distill_alpha": 1.0, "distillation": kind, "teacher": str(tmp_path / "teacher")}
    train(data, tmp_path / "run", **options, epochs=6, lr=3e-2)
    assert steps[-1]["loss"] < 0.3 < steps[0]["loss"]
    student = from_checkpoint(tmp_path / "run" / "last").eval()
    assert student(torch.randn(4, 3, 32, 32)).argmax(1).tolist() == [1] * 4
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert not any("teacher" in key for key in saved["state_dict"])


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"num_classes": 3}, "knows 3 classes, and the data set has 2"),
        ({"in_chans": 1, "num_classes": 2}, "takes 1 channels"),
        ("regnety_1600", "neither a checkpoint nor a model of timm's .did you mean"),
    ],
)
def test_a_teacher_of_another_kind_is_refused(data, tmp_path, teacher, message):
    name = teacher
    if isinstance(teacher, dict):
        save_checkpoint(timm.create_model("patnet_t0", **TINY["model_args"], **teacher), tmp_path / "teacher")
        name = str(tmp_path / "teacher")
    with pytest.raises(InputError, match=message):
        train(data, tmp_path / "run", teacher=name)
    assert not (tmp_path / "run").exists()


def test_the_average_of_the_weights_is_evaluated_and_kept(data, tmp_path, steps):
    train(data, tmp_path / "run", ema_decay=0.99, lr=1e-2)
    module = steps[-1]["module"]
    kept = from_checkpoint(tmp_path / "run" / "last").state_dict()
    again = from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").state_dict()
    assert all(torch.equal(kept[key], value) for key, value in module.ema.module.state_dict().items())
    assert all(torch.equal(kept[key], again[key]) for key in kept)
    assert not torch.equal(kept["classifier.weight"], module.model.classifier.weight)


def test_gradient_checkpointing_changes_nothing_but_memory(data, tmp_path, steps):
    train(data, tmp_path / "plain")
    train(data, tmp_path / "saving", grad_checkpointing=True)
    assert [s["loss"] for s in steps[:4]] == pytest.approx([s["loss"] for s in steps[4:]], abs=1e-5)


def test_pictures_that_cannot_be_read_are_listed_up_to_a_share(data, tmp_path):
    broken = tmp_path / "photos" / "train" / "a" / "03.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(InputError, match=r"03\.png.*1 of 16 pictures cannot be read.*--max_unreadable"):
        train(data, tmp_path / "refused", epochs=3)
    train(data, tmp_path / "run", epochs=3, max_unreadable=0.1)
    listed = (tmp_path / "run" / "unreadable.txt").read_text().splitlines()
    assert len(listed) == 1
    assert "03.png" in listed[0]
    with pytest.raises(InputError, match=r"03\.png"):
        train(data, tmp_path / "strict", epochs=3, strict=True, max_unreadable=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup": 0.2, "batch_size": 5}, "must be even for --mixup"),
        ({"early_epochs": 3}, "give --early_size too"),
        ({"balance": "sampling", "aug_repeats": 3}, "choose one of them"),
        ({"layer_decay": 1.5}, r"--layer_decay 1.5: must lie in"),
        ({"mixup": -1}, "must not be negative"),
        ({"clip_grad": 0}, "--clip_grad 0: must be above 0"),
        ({"wandb": "project"}, "wandb is not installed"),
    ],
)
def test_options_that_do_not_go_together(data, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        train(data, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_the_recipes_are_the_papers():
    # lr, weight decay, drop path, Mixup, RandAugment, gradient norm, global batch
    table = {
        "t0": (0.004, 0.005, 0, 0.05, None, None, 4096),
        "t1": (0.004, 0.01, 0.02, 0.1, "m3", None, 4096),
        "t2": (0.004, 0.02, 0.05, 0.1, "m5", None, 4096),
        "s": (0.004, 0.03, 0.1, 0.3, "m7", None, 4096),
        "m": (0.002, 0.05, 0.2, 0.5, "m7", 1.0, 2048),
        "l": (0.002, 0.05, 0.3, 0.7, "m7", 0.01, 2048),
    }
    for variant, (lr, decay, path, mixup, policy, clip, batch) in table.items():
        options = yaml.safe_load(recipe_file(f"patnet_{variant}").read_text(encoding="utf-8"))
        config = TrainConfig(data="imagenet", out="run", **options)
        config.check()
        assert (config.lr, config.weight_decay, config.drop_path_rate, config.mixup) == (lr, decay, path, mixup)
        assert (config.clip_grad, config.global_batch_size) == (clip, batch)
        assert config.auto_augment == (policy and f"rand-{policy}-mstd0.5-inc1")
        assert (config.epochs, config.early_size, config.early_epochs, config.size) == (300, 192, 280, 224)
        assert (config.opt, config.min_lr, config.warmup_epochs, config.cutmix) == ("adamw", 1e-5, 20, 1.0)
        assert (config.label_smoothing, config.color_jitter, config.random_erase) == (0.1, 0, 0)
    assert set(RECIPES) == {f"patnet_{variant}" for variant in table} | {"elpv", "elpv_painted", "elpv_tuned"}


@pytest.mark.parametrize(
    ("recipe", "data"), [("elpv", "elpv"), ("elpv_tuned", "elpv"), ("elpv_painted", "elpv-painted")]
)
def test_the_recipes_of_the_built_in_data_are_some(recipe, data):
    options = yaml.safe_load(recipe_file(recipe).read_text(encoding="utf-8"))
    TrainConfig(out="run", **options).check()
    assert options["data"] == data
    # No choice is made by the test cells where none but they are left to choose by.
    assert (options["val_fraction"] == 0) == (data == "elpv")
