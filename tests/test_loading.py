import shutil

import pytest
import safetensors.torch
import timm
import torch

import patnet
from patnet import InputError
from patnet.models import load_checkpoint, save_checkpoint

X = torch.linspace(-1, 1, 2 * 3 * 64 * 64).sin().view(2, 3, 64, 64)


def test_checkpoints_and_run_directories(checkpoint_dir, tmp_path):
    (tmp_path / "config.yaml").touch()
    for name in ("best", "last"):
        shutil.copytree(checkpoint_dir, tmp_path / name)
    expected = load_checkpoint(checkpoint_dir).model(X)
    for name, checkpoint in ((str(checkpoint_dir), "best"), (tmp_path, "best"), (tmp_path, "last")):
        loaded = patnet.load(name, checkpoint=checkpoint)
        torch.testing.assert_close(loaded.model(X), expected)
        assert loaded.class_names == ["a", "b", "c"]
        assert loaded.data_config["input_size"] == [3, 64, 64]
        assert loaded.run == (tmp_path if name == tmp_path else None)
        assert loaded.file.parent.name == (checkpoint if loaded.run else checkpoint_dir.name)
        assert loaded.pretrained
    assert patnet.load(checkpoint_dir, num_classes=2).class_names == ["0", "1"]
    torch.save({"state_dict": load_checkpoint(checkpoint_dir).model.state_dict()}, tmp_path / "model_best.pth.tar")
    torch.testing.assert_close(patnet.load(tmp_path / "model_best.pth.tar").model(X), expected)


def test_a_checkpoint_that_runs_do_not_have(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(InputError, match="a run has the checkpoints best and last, no 'lst'"):
        patnet.load(tmp_path, checkpoint="lst")
    with pytest.raises(InputError, match="has not finished an epoch yet"):
        patnet.load(tmp_path, checkpoint="last")


def test_models_of_timm_by_name(monkeypatch, tmp_path):
    loaded = patnet.load("patnet_t0", num_classes=4, depths=(1, 1, 1, 1))
    assert not loaded.pretrained
    assert not loaded.model.training
    assert loaded.class_names == ["0", "1", "2", "3"]
    with pytest.raises(InputError, match="patnet_t0: timm cannot make it"):
        patnet.load("patnet_t0", depths=3)
    with pytest.raises(InputError, match="patnet_t00: no such checkpoint"):
        patnet.load("patnet_t00")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "patnet_t0").mkdir()  # a directory of that name comes first
    with pytest.raises(InputError, match="has no model"):
        patnet.load("patnet_t0")


def test_a_checkpoint_without_a_classifier(checkpoint_dir, tmp_path):
    model = load_checkpoint(checkpoint_dir, num_classes=0).model
    save_checkpoint(model, tmp_path)
    with pytest.raises(InputError, match="has no classifier; give num_classes=0"):
        patnet.load(tmp_path)
    loaded = patnet.load(tmp_path, num_classes=0)
    assert loaded.class_names == []
    torch.testing.assert_close(loaded.model(X), model(X))


def test_exported_files(checkpoint_dir, tmp_path):
    from patnet.deploy import ExportInfo, export

    loaded = patnet.load(checkpoint_dir)
    info = ExportInfo(
        backend="torch", img_size=(64, 64), label_names=loaded.class_names, data_config=loaded.data_config
    )
    export(loaded.model, tmp_path / "network.pt2", X, info=info)
    exported = patnet.load(tmp_path / "network.pt2")
    assert exported.class_names == ["a", "b", "c"]
    assert exported.data_config["input_size"] == [3, 64, 64]
    torch.testing.assert_close(exported.model(X), loaded.model(X), rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match=r"network\.pt2: an exported file takes no num_classes, in_chans; give what"):
        patnet.load(tmp_path / "network.pt2", num_classes=3, in_chans=1)
    (tmp_path / "network.onnx").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"network\.onnx"):
        patnet.load(tmp_path / "network.onnx")


def test_detectors(tmp_path):
    from patnet.detection import build, save_detector

    args = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": 2}
    detector = build("retinanet", backbone="patnet_t0", backbone_kwargs=args, num_classes=2, min_size=64, max_size=64)
    save_detector(detector, tmp_path, class_names=["ant", "bee"], category_ids=[3, 7])
    loaded = patnet.load(tmp_path)
    assert (loaded.task, loaded.class_names, loaded.category_ids) == ("detection", ["ant", "bee"], [3, 7])
    assert not loaded.model.training
    with pytest.raises(InputError, match="holds a detector, not a classifier"):
        load_checkpoint(tmp_path)


def test_images_have_the_size_that_the_network_takes():
    for channels, dynamic, size in ((3, False, 96), (1, False, 96), (1, True, 160)):
        args = {"img_size": 96, "dynamic_img_size": dynamic, "in_chans": channels, "num_classes": 2}
        found = patnet.load("test_vit", **args).data_config
        assert (found["input_size"], len(found["mean"])) == ((channels, size, size), channels)


def test_images_have_the_channels_that_the_network_takes(tmp_path):
    model = timm.create_model("patnet_t0", embed_dim=8, in_chans=1, num_classes=2)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "grey.safetensors")
    for loaded in (patnet.load(tmp_path / "grey.safetensors"), patnet.load("patnet_t0", in_chans=1, num_classes=2)):
        found = loaded.data_config
        assert (found["input_size"][0], len(found["mean"]), len(found["std"])) == (1, 1, 1)
        assert loaded.model(torch.zeros(1, *found["input_size"])).shape == (1, 2)
