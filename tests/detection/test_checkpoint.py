"""Detectors are saved, loaded as any network is, and refused where a file is damaged or of something else."""

import json
import shutil

import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

import patnet
from patnet import InputError
from patnet.detection import DETECTORS, DetectorLoaded, build, load_detector, save_detector


@settings(max_examples=8)
@given(st.sampled_from([16, 64]), st.integers(1, 5), st.sampled_from(sorted(DETECTORS)))
def test_saved_detectors_are_loaded(tmp_path_factory, width, classes, detector):
    directory = tmp_path_factory.mktemp("saved")
    options = {"width": width, "min_size": 64, "max_size": 64, "backbone_kwargs": {**TINY, "in_chans": 1}}
    model = build(detector, backbone="patnet_t0", num_classes=classes, **options).eval()
    names, ids = [f"class {i}" for i in range(classes)], [3 * i + 1 for i in range(classes)]
    loaded = patnet.load(save_detector(model, directory, class_names=names, category_ids=ids))
    assert isinstance(loaded, DetectorLoaded)
    assert (loaded.task, loaded.class_names, loaded.category_ids) == ("detection", names, ids)
    assert (loaded.mode, loaded.data_config["input_size"]) == ("L", (1, 64, 64))
    image = [torch.rand(1, 48, 64)]
    with torch.inference_mode():
        for key, value in model(image)[0].items():
            assert torch.equal(loaded.model(image)[0][key], value)


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_another_score_threshold(small, tmp_path, detector):
    save_detector(small(detector, width=16), tmp_path, class_names=["a", "b", "c"], category_ids=[1, 2, 3])
    images = [torch.rand(3, 90, 70)]
    with torch.no_grad():
        scores = load_detector(tmp_path).model(images)[0]["scores"]
        threshold = float(scores[1] + scores[2]) / 2
        found = load_detector(tmp_path, score_thresh=threshold).model(images)[0]["scores"]
    assert torch.equal(found, scores[scores > threshold])


def test_damaged_checkpoints_and_classifiers(trained, checkpoint_dir, tmp_path):
    def expect(message, path=tmp_path / "copy", config=None, weights=None):
        shutil.copytree(trained / "last", tmp_path / "copy", dirs_exist_ok=True)
        if config is not None:
            file = tmp_path / "copy" / "config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
        if weights is not None:
            (tmp_path / "copy" / "model.safetensors").write_bytes(weights)
        with pytest.raises(InputError, match=message):
            load_detector(path)

    expect("no such checkpoint", tmp_path / "nothing")
    expect(r"has no model\.safetensors", tmp_path)
    expect("holds no detector; give a run directory of patnet detect train", checkpoint_dir)
    expect("damaged or cut short", weights=(trained / "last" / "model.safetensors").read_bytes()[:1000])
    build_args = json.loads((trained / "last" / "config.json").read_text())["build"]
    expect("do not fit the detector", config={"build": {**build_args, "width": 24}})
    expect("do not fit the detector", config={"build": {}})
    expect("names 1 classes, but the detector has 3", config={"class_names": ["cat"]})
    expect("holds no detector", config={"category_ids": None})
