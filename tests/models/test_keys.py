import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet import PATNet
from patnet.models.keys import is_authors, native_state_dict

SMALL = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": 4, "feature_dim": 64, "num_classes": 10}


def authors_weights(file):
    reference = safetensors.torch.load_file(file)
    return {key.removeprefix("weights."): v for key, v in reference.items() if key.startswith("weights.")}


def test_the_authors_names_become_ours(authors_file):
    weights = authors_weights(authors_file)
    assert is_authors(weights)
    native = native_state_dict(weights)
    assert {key: value.shape for key, value in native.items()} == {
        key: value.shape for key, value in PATNet(**SMALL).state_dict().items()
    }
    weights["norm4.weight"] = torch.ones(64)
    assert "output_norms.2.weight" in native_state_dict(weights)


@settings(max_examples=20)
@given(
    wrappers=st.lists(st.sampled_from(["state_dict", "model", "state_dict_ema"]), max_size=2),
    prefixes=st.lists(st.sampled_from(["model.", "module.", "_orig_mod."]), max_size=3),
    name=st.sampled_from(["patnet_t0", "fasternet_t0", "resnet18", "vit_tiny_patch16_224"]),
)
def test_wrappers_and_prefixes_come_off(wrappers, prefixes, name):
    weights = timm.create_model(name, device="meta").state_dict()
    checkpoint = {"".join(prefixes) + key: value for key, value in weights.items()}
    for wrapper in wrappers:
        checkpoint = {"epoch": 3, wrapper: checkpoint, "optimizer": {"state": {}}}
    assert native_state_dict(checkpoint).keys() == weights.keys()


@pytest.mark.parametrize("extra", [{"loss.weight": torch.ones(3)}, {3: torch.ones(3)}, {"epoch": 7}])
def test_what_stands_beside_the_weights_does_not_disturb(extra):
    weights = {"model." + key: value for key, value in PATNet(**SMALL).state_dict().items()}
    assert native_state_dict(weights | extra).keys() == PATNet(**SMALL).state_dict().keys()
