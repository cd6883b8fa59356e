import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from patnet import InputError
from patnet.detection import DETECTORS
from patnet.detection.one_picture import OnePicture, paste


@settings(max_examples=30)
@given(height=st.integers(1, 60), width=st.integers(1, 60), count=st.integers(0, 4), seed=st.integers(0, 1000))
def test_masks_are_pasted_as_torchvision_pastes_them(height, width, count, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, 1, 28, 28, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    side = torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) - corner)
    boxes = torch.cat((corner, corner + side), 1)
    torch.testing.assert_close(
        paste(masks, boxes, (height, width)), paste_masks_in_image(masks, boxes, (height, width)), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("detector", sorted(DETECTORS))
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(height=st.integers(20, 150), width=st.integers(20, 150))
def test_it_finds_what_the_detector_finds(small, detector, height, width):
    model = small(detector)
    network = OnePicture(model, (height, width)).eval()
    picture = torch.rand(3, height, width)
    with torch.no_grad():
        expected = model([picture])[0]
        found = dict(zip(network.outputs, network(picture), strict=True))
    assert sorted(found) == sorted(expected)
    assert len(expected["boxes"]) > 0
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-4)


def test_nothing_to_find(small):
    network = OnePicture(small("mask_rcnn", box_score_thresh=0.9999), (70, 90)).eval()
    with torch.no_grad():
        boxes, labels, scores, masks = network(torch.rand(3, 70, 90))
    assert [tuple(x.shape) for x in (boxes, labels, scores, masks)] == [(0, 4), (0,), (0,), (0, 1, 70, 90)]


def test_other_networks_are_refused():
    with pytest.raises(InputError, match=r"a Conv2d cannot be exported, only the detectors of patnet\.detection"):
        OnePicture(nn.Conv2d(3, 3, 1), (64, 64))
