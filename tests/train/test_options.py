"""What the options of a run do to its steps."""

import io
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from rich.console import Console
from train.running import OPTIONS, QUIET, rows, run, write_noise

from patnet import InputError, load, save_checkpoint
from patnet.train import TrainConfig
from patnet.train.callbacks import UnreadableImages
from patnet.train.classifier import Classifier
from patnet.train.recipes import RECIPES, recipe_file

KWARGS = OPTIONS["model_kwargs"]


@pytest.fixture
def data(images_dir):
    return images_dir(**{"train/a": 12, "train/b": 4, "val/a": 2, "val/b": 2})


@pytest.fixture
def steps(monkeypatch):
    """The training steps: module, image size, labels and loss of each."""
    seen = []
    step = Classifier.training_step

    def noting(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        seen.append({"module": self, "size": batch[0].shape[-1], "labels": batch[1].tolist(), "loss": loss.item()})
        return loss

    monkeypatch.setattr(Classifier, "training_step", noting)
    return seen


def test_progressive_resizing(data, tmp_path, steps):
    run(data, tmp_path / "run", epochs=3, img_size=64, progressive_size=32, progressive_epochs=2)
    assert [step["size"] for step in steps] == [32] * 8 + [64] * 4


def test_accumulated_batches_are_one_step(data, tmp_path, steps):
    run(data, tmp_path / "run", epochs=1, global_batch_size=8, batch_size=2)
    assert len(steps) == 8
    assert steps[-1]["module"].trainer.global_step == 2
    with pytest.raises(InputError, match="less than one global batch of 32"):
        run(data, tmp_path / "none", global_batch_size=32)


def test_frozen_stages_do_not_change(data, tmp_path, steps):
    run(data, tmp_path / "run", epochs=1, freeze_stages=2)
    module = steps[-1]["module"]
    optimised = {p for group in module.trainer.optimizers[0].param_groups for p in group["params"]}
    for name, parameter in module.model.named_parameters():
        assert (parameter in optimised) == name.startswith(("stages.2", "stages.3", "conv_head", "classifier"))
    assert module.model.stages[1].blocks[0].mlp.norm.num_batches_tracked == 0
    assert module.model.stages[2].blocks[0].mlp.norm.num_batches_tracked == 4
    with pytest.raises(InputError, match="has 4 stages"):
        run(data, tmp_path / "five", freeze_stages=5)


def test_learning_rates_decay_towards_the_stem(data, tmp_path, steps):
    run(data, tmp_path / "run", epochs=1, warmup_epochs=0, layer_decay=0.5)
    module = steps[-1]["module"]
    groups = module.trainer.optimizers[0].param_groups
    scale = {p: group["lr_scale"] for group in groups for p in group["params"]}
    weights = module.model.stem.conv, module.model.stages[1].blocks[0].mlp.conv1, module.model.classifier
    stem, block, classifier = (scale[layer.weight] for layer in weights)
    assert stem < block < classifier == 1
    assert all(group["lr"] == pytest.approx(1e-5 * group["lr_scale"], rel=1e-6) for group in groups)
    assert float(rows(tmp_path / "run")[-1]["lr"]) == pytest.approx(1e-5, rel=1e-6)


def test_balanced_classes(data, tmp_path, steps, monkeypatch):
    run(data, tmp_path / "weights", epochs=1, balance="weights")
    assert steps[0]["module"].class_weights.tolist() == pytest.approx([16 / 24, 16 / 8])
    module, batch = steps[0]["module"], [torch.randn(4, 3, 32, 32), torch.tensor([0, 0, 0, 1]), []]
    module.eval()
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    whole = module.training_step(batch, 0)
    parts = [module.training_step([part[i : i + 2] for part in batch], 0) for i in (0, 2)]
    assert whole.item() == pytest.approx(sum(part.item() for part in parts) / 2)  # as of one batch, so of its parts
    steps.clear()
    run(data, tmp_path / "sampling", balance="sampling", epochs=4)
    labels = [label for step in steps for label in step["labels"]]
    assert 0.35 < sum(labels) / len(labels) < 0.65


@pytest.mark.parametrize("distillation", ["hard", "soft"])
def test_a_student_follows_its_teacher(data, tmp_path, steps, distillation):
    teacher = timm.create_model("patnet_t0", num_classes=2, **KWARGS)
    with torch.no_grad():  # predicts b for any image
        teacher.classifier.weight.zero_()
        teacher.classifier.bias.copy_(torch.tensor([-9.0, 9.0]))
    save_checkpoint(teacher, tmp_path / "teacher")
    options = {"distill_alpha": 1.0, "distillation": distillation, "teacher": str(tmp_path / "teacher")}
    run(data, tmp_path / "run", **options, epochs=6, lr=3e-2)
    assert steps[-1]["loss"] < 0.3 < steps[0]["loss"]
    student = load(tmp_path / "run", checkpoint="last").model
    assert student(torch.randn(4, 3, 32, 32)).argmax(1).tolist() == [1] * 4
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert not any("teacher" in key for key in saved["state_dict"])


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"num_classes": 3}, r"has 3 classes \(0, 1, 2\), but the data set has 2 \(a, b\)"),
        ({"in_chans": 1, "num_classes": 2}, "takes 1 channels"),
        ("regnety_1600", "neither a checkpoint nor a model of timm's .did you mean"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(data, tmp_path, teacher, message):
    name = teacher
    if isinstance(teacher, dict):
        save_checkpoint(timm.create_model("patnet_t0", **KWARGS, **teacher), tmp_path / "teacher")
        name = str(tmp_path / "teacher")
    with pytest.raises(InputError, match=message):
        run(data, tmp_path / "run", teacher=name)
    assert not (tmp_path / "run").exists()


def test_the_ema_model_is_evaluated_and_saved(data, tmp_path, steps):
    run(data, tmp_path / "run", epochs=1, model_ema_decay=0.99, lr=1e-2)
    module = steps[-1]["module"]
    saved = load(tmp_path / "run", checkpoint="last").model.state_dict()
    again = load(tmp_path / "run" / "checkpoints" / "last.ckpt").model.state_dict()
    assert all(torch.equal(saved[key], value) for key, value in module.ema.module.state_dict().items())
    assert all(torch.equal(saved[key], again[key]) for key in saved)
    assert not torch.equal(saved["classifier.weight"], module.model.classifier.weight)


def test_gradient_checkpointing_changes_no_loss(data, tmp_path, steps):
    for checkpointing in (False, True):
        run(data, tmp_path / str(checkpointing), epochs=1, grad_checkpointing=checkpointing)
    assert [s["loss"] for s in steps[:4]] == pytest.approx([s["loss"] for s in steps[4:]], abs=1e-5)


def test_the_limit_of_unreadable_images_is_the_same_for_any_number_of_processes(tmp_path):
    found = UnreadableImages(tmp_path / "unreadable.txt", 0.01, QUIET)
    trainer = SimpleNamespace(world_size=8, datamodule=SimpleNamespace(train_size=900, val_size=100))
    found._add(trainer, [f"{i}.png: cut short" for i in range(10)])
    with pytest.raises(InputError, match="11 of 1000 images cannot be read"):
        found._add(trainer, ["more.png: cut short"])


def test_unreadable_images_are_listed_up_to_a_limit(data, tmp_path):
    broken = data / "train" / "a" / "03.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(InputError, match=r"1 of 20 images cannot be read, more than --max-unreadable 0.01 .*03\.png"):
        run(data, tmp_path / "refused", epochs=3)
    run(data, tmp_path / "run", epochs=3, max_unreadable=0.1)
    (line,) = (tmp_path / "run" / "unreadable.txt").read_text().splitlines()
    assert "03.png" in line
    with pytest.raises(InputError, match=r"03\.png"):
        run(data, tmp_path / "strict", epochs=3, strict=True, max_unreadable=0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_validation_images_are_left_out_up_to_the_same_limit(data, tmp_path, workers):
    whole = run(data, tmp_path / "whole", workers=workers)
    broken = data / "val" / "a" / "broken.jpg"
    broken.write_bytes(b"not an image")
    with pytest.raises(
        InputError, match=r"1 of 21 images cannot be read, more than --max-unreadable 0.01 .*broken\.jpg"
    ):
        run(data, tmp_path / "refused", workers=workers)
    said = io.StringIO()
    left_out = run(data, tmp_path / "run", workers=workers, max_unreadable=0.1, console=Console(file=said))
    assert said.getvalue().count(f"Warning: 1 image cannot be read, so left out: {broken}: ") == 1
    assert (tmp_path / "run" / "unreadable.txt").read_text().startswith(f"{broken}: ")
    assert left_out.best["val_loss"] == pytest.approx(whole.best["val_loss"])
    with pytest.raises(InputError, match=r"broken\.jpg"):
        run(data, tmp_path / "strict", workers=workers, strict=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wandb_project": "project"}, "needs wandb"),
        ({"aa": "strongest"}, "--aa strongest: timm has no such policy"),
        ({"accelerator": "tpu"}, "--accelerator tpu .*not available here"),
        ({"batch_size": 3, "global_batch_size": 9}, "--batch-size 3: must be even"),
    ],
)
def test_a_run_that_cannot_start_leaves_no_directory(data, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        run(data, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_the_recipes_are_the_papers(tmp_path):
    # lr, weight decay, drop path, Mixup, RandAugment, gradient norm, global batch size
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
        c = TrainConfig(data="imagenet", out="run", **options)
        c.check()
        assert (c.lr, c.weight_decay, c.drop_path, c.mixup) == (lr, decay, path, mixup)
        assert (c.clip_grad, c.global_batch_size) == (clip, batch)
        assert c.aa == (policy and f"rand-{policy}-mstd0.5-inc1")
        assert (c.epochs, c.progressive_size, c.progressive_epochs, c.img_size) == (300, 192, 280, 224)
        assert (c.opt, c.min_lr, c.warmup, c.cutmix) == ("adamw", 1e-5, 20, 1.0)
        assert (c.smoothing, c.color_jitter, c.reprob, c.scale) == (0.1, 0, 0, [0.08, 1.0])
    assert set(RECIPES) == {f"patnet_{variant}" for variant in table} | {"elpv"}
    elpv = TrainConfig(out="run", **yaml.safe_load(recipe_file("elpv").read_text(encoding="utf-8")))
    elpv.check()
    assert (elpv.data, elpv.val_fraction) == ("elpv", 0)  # nothing is chosen on the test images
    (tmp_path / "mine.yaml").touch()
    assert recipe_file(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    with pytest.raises(InputError, match=r"neither a recipe .did you mean 'patnet_t0'.. nor a YAML file"):
        recipe_file("patnet-t0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "vit_tiny_patch16_224", "model_kwargs": {}, "img_size": 64}, "takes images of 224 px alone"),
        ({"model": "test_resnet", "model_kwargs": {"act_layer": "gulu"}}, "does not take these options .'gulu'"),
        ({"mixup": 0.2, "batch_size": 64}, "15 training images are an odd batch"),
        ({"opt": "fusedadam"}, "--opt fusedadam: cannot be used here"),
    ],
)
def test_what_would_fail_in_the_first_step_is_refused_before_the_run_is_created(tmp_path, options, message):
    data = write_noise(tmp_path / "images", a=8, b=7)
    with pytest.raises(InputError, match=message):
        run(data, tmp_path / "run", **{"val_fraction": 0.0, **options})
    assert not (tmp_path / "run").exists()


def test_the_learning_rate_never_rises_above_its_maximum(data, tmp_path):
    run(data, tmp_path / "run", lr=1e-7, epochs=3)
    assert all(float(row["lr"]) <= 1e-7 for row in rows(tmp_path / "run"))
