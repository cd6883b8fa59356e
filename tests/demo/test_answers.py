import numpy as np
import pytest
import timm
import torch
from PIL import Image

from patnet.cli import main
from patnet.data import eval_transform
from patnet.demo.answers import Classifying
from patnet.errors import InputError
from patnet.models import save_checkpoint
from patnet.train.config import TrainConfig
from patnet.train.inference import load_trained

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))


def test_the_answer_is_the_networks(network):
    classifying = Classifying(str(network))
    answered = classifying.answer(classifying.prepare(PICTURE)[64])
    trained = load_trained(network)
    with torch.no_grad():
        expected = trained.model(eval_transform(trained.data_config)(PICTURE)[None]).softmax(1)[0]
    assert list(answered.probabilities) == trained.class_names
    torch.testing.assert_close(torch.tensor(list(answered.probabilities.values())), expected)
    assert answered.seconds > 0


def test_larger_sides_give_finer_maps(network):
    classifying = Classifying(str(network))
    prepared = classifying.prepare(PICTURE)
    assert {side: tuple(x.shape) for side, x in prepared.items()} == {
        side: (1, 3, side, side) for side in (64, 128, 256)
    }
    inspection = classifying.inspect(prepared[128])
    assert inspection.attention["4.1"].shape == (2, 4, 4, 4, 4)
    assert inspection.spatial_gates["1.1"].shape == (32, 32)
    seen = np.asarray(classifying.seen(prepared[64]), np.float32)
    plain = np.asarray(PICTURE.resize((64, 64), Image.Resampling.BICUBIC), np.float32)
    assert seen.shape == (64, 64, 3)
    assert abs(seen.mean() - plain.mean()) < 3


def test_other_networks_answer_too_but_have_no_gates(tmp_path):
    model = timm.create_model("test_resnet", num_classes=4)
    save_checkpoint(model, tmp_path, label_names=["crane", "crane", "b", "c"])
    classifying = Classifying(str(tmp_path))
    (side,) = classifying.sides
    pictures = classifying.prepare(PICTURE)[side]
    assert list(classifying.answer(pictures).probabilities) == ["crane (0)", "crane (1)", "b", "c"]
    inspection = classifying.inspect(pictures)
    assert not inspection.attention
    assert "no gates" in inspection.missing[0]


def test_examples_are_pictures_of_the_run_that_it_was_not_trained_on(network, photos, tmp_path):
    root = photos(a=8, b=8)
    run = tmp_path / "run"
    run.mkdir()
    (run / "best").symlink_to(network)
    (run / "config.yaml").write_text(TrainConfig(data=str(root), out=str(run), val_fraction=0.5).to_yaml())
    examples = Classifying(str(run)).examples(6)
    assert [example.truth for example in examples] == ["a"] * 3 + ["b"] * 3
    assert len({example.path for example in examples}) == 6
    assert all(example.path.parent.name == example.truth for example in examples)
    root.rename(tmp_path / "gone")
    assert Classifying(str(run)).examples() == []
    assert Classifying(str(network)).examples() == []


def test_checkpoints_that_cannot_be_used_are_told_in_a_sentence(network, detector, tmp_path, capfd):
    pytest.importorskip("gradio")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text((network / "config.json").read_text())
    (damaged / "model.safetensors").write_bytes((network / "model.safetensors").read_bytes()[:1000])
    for path, sentence in (
        (tmp_path / "nowhere", "no such checkpoint"),
        (damaged, "damaged or cut short"),
        (detector, "holds a detector"),
    ):
        with pytest.raises(InputError, match=sentence):
            Classifying(str(path))
        assert main(["demo", str(path), "--port", "0"]) == 2
        said = capfd.readouterr().err.strip().splitlines()
        assert said[-1].startswith("patnet: ")
        assert sentence in said[-1]
        assert not any("Traceback" in line for line in said)
