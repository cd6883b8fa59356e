import pytest
import timm
import torch
from torch.utils.data import Dataset, IterableDataset

from patnet import InputError, save_checkpoint
from patnet.deploy import load_exported
from patnet.train import export as module
from patnet.train.export import _pictures, export_trained, load_any


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint directory of a tiny network for grey pictures, with no run around it."""
    torch.manual_seed(0)
    model = timm.create_model(
        "patnet_t0",
        embed_dim=8,
        depths=(1, 1),
        mixers=("pat_ch", "pat_sf"),
        num_heads=2,
        feature_dim=16,
        num_classes=2,
        in_chans=1,
    )
    folder = tmp_path_factory.mktemp("checkpoint") / "net"
    save_checkpoint(model, folder)
    return folder


class Numbers(Dataset):
    """Picture i is the number i."""

    transform = None

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return self.transform(i), "label"


class Stream(IterableDataset):
    """The same, with no length and no end."""

    transform = None

    def __iter__(self):
        i = 0
        while True:
            yield self.transform(i), "label"
            i += 1


@pytest.mark.parametrize(
    ("dataset", "count", "expected"),
    [
        (Numbers(), 5, [0, 2, 4, 6, 8]),
        (Numbers(), 1, [0]),
        (Numbers(), 3, [0, 3, 6]),
        (Numbers(), 50, list(range(10))),
        (Stream(), 3, [0, 1, 2]),
    ],
)
def test_pictures_are_from_all_over_a_data_set(dataset, count, expected):
    assert _pictures(dataset, count, torch.tensor).tolist() == expected


def test_a_checkpoint_is_exported_with_pictures_named_and_its_channels(checkpoint, photos, tmp_path):
    result = export_trained(
        str(checkpoint), tmp_path / "net.pt2", format="torch", size=[64], data=str(photos(a=8, b=8)), check_pictures=3
    )
    assert result.path.stat().st_size == result.bytes
    assert result.parameter_bytes == 4 * sum(p.numel() for p in load_any(str(checkpoint))[0].model.parameters())
    assert not result.untrained
    info = load_exported(result.path).info
    assert info == result.info
    assert (info.in_chans, info.size, info.batch, info.fused) == (1, (64, 64), 1, True)
    assert info.source == str(checkpoint)
    assert info.label_names == ["0", "1"]
    assert info.data_config["input_size"] == [1, 64, 64]
    assert {"mean", "std", "interpolation", "crop_pct"} <= set(info.data_config)


def test_where_no_pictures_can_be_had_it_says_so(checkpoint, tmp_path, monkeypatch):
    def missing(name, **options):
        raise InputError("elpv_dataset is not installed")

    monkeypatch.setattr(module, "open_data", missing)
    options = {"format": "torch", "size": [64]}
    with pytest.raises(InputError, match=r"real pictures .* are missing \(elpv_dataset is not.*name some with --data"):
        export_trained(str(checkpoint), tmp_path / "net.pt2", **options)
    with pytest.raises(InputError, match=r"^elpv_dataset is not installed$"):
        export_trained(str(checkpoint), tmp_path / "net.pt2", data="elpv", **options)
    assert list(tmp_path.iterdir()) == []


def test_what_a_name_means(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained, untrained = load_any("patnet_t0")
    assert untrained
    assert not trained.model.training
    assert trained.class_names == [str(i) for i in range(1000)]
    assert trained.data_config["input_size"] == timm.get_pretrained_cfg("patnet_t0").input_size
    assert not load_any(str(checkpoint))[1]
    for name, message in (
        ("patnet_t9", "neither a run or checkpoint here nor a model of timm's.*did you mean 'patnet_t"),
        ("absent/net", "no such checkpoint"),
        ("net.onnx", "is exported already"),
        ("net.xml", "is exported already"),
        ("net.pt2", "is exported already"),
    ):
        with pytest.raises(InputError, match=message):
            load_any(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "--batch 0"),
        ({"check_pictures": 0}, "--check_pictures 0"),
        ({"calibration_pictures": -1}, "--calibration_pictures -1"),
        ({"size": [16]}, "--size 16 16: the network takes at least 32x32 px"),
        ({"size": [96, 31]}, "--size 96 31"),
        ({"size": [32], "dynamic_size": True}, "a file for any size is traced at at least 64x64 px"),
    ],
)
def test_options_that_cannot_be_are_refused(checkpoint, tmp_path, options, message):
    with pytest.raises(InputError) as refused:
        export_trained(str(checkpoint), tmp_path / "net.onnx", **options)
    assert message in str(refused.value)
    assert list(tmp_path.iterdir()) == []
