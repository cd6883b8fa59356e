import pytest
import timm

import patnet  # noqa: F401
from patnet.benchmark.published import FAMILY, family_of, partners, peers, published, sources


def test_every_accuracy_has_a_source():
    for model, entry in published().items():
        assert timm.is_model(model), model
        assert 60 < entry.top1 < 90, model
        assert sources()[entry.source]["url"].startswith("https://"), model
        if entry.source == "timm results":
            assert entry.weights.split(".")[0] == model
    assert {entry.source for entry in published().values()} == set(sources())


def test_what_is_known_for_sure():
    assert published()["patnet_t2"].top1 == 80.2
    assert [published()[m].top1 for m in FAMILY if m.startswith("fasternet")] == [71.9, 76.2, 78.9, 81.3, 83.0, 83.5]
    assert [m for m in published() if m.startswith("patnet")] == ["patnet_t2"]


def test_peers_come_in_families():
    families = {family_of(model) for model in peers()}
    assert {"MobileNetV2", "MobileNetV4", "RepViT", "FastViT", "StarNet", "SHViT", "ConvNeXt", "ResNet"} <= families
    assert not set(peers()) & set(FAMILY)
    assert family_of("vgg11_bn") == "vgg11"


def test_who_is_compared_with_whom():
    assert partners(["patnet_t0", "fasternet_t0", "patnet_s", "fasternet_s"]) == [
        ("patnet_t0", ["fasternet_t0"]),
        ("patnet_s", ["fasternet_s"]),
    ]
    # RepViT-M1.0 is about as accurate as PATNet-T2, ResNet-18 is not.
    assert partners(["patnet_t2", "repvit_m1_0", "resnet18"]) == [("patnet_t2", ["repvit_m1_0"]), ("resnet18", [])]
    assert partners(["resnet18", "vgg11", "patnet_t0"]) == [("resnet18", ["vgg11", "patnet_t0"])]
    assert partners(["patnet_t0"]) == [("patnet_t0", [])]


@pytest.mark.parametrize("models", [FAMILY, (*FAMILY, *peers())])
def test_each_model_is_measured_once(models):
    groups = partners(models)
    assert sorted(m for first, others in groups for m in (first, *others)) == sorted(models)
