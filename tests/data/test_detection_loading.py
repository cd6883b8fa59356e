import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from patnet import InputError
from patnet.data.annotations import AnnotatedObject, AnnotatedPicture, Annotations
from patnet.data.detection import DetectionPictures
from patnet.data.detection_loading import AspectBatches, collate_pictures, detection_transform
from patnet.data.loading import SeededPictures


def picture(height, width, *boxes):
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
    target = {
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), format="XYXY", canvas_size=(height, width)
        ),
        "masks": tv_tensors.Mask(masks),
        "labels": torch.arange(len(boxes)),
        "image_id": 3,
    }
    return tv_tensors.Image(torch.randint(0, 256, (3, height, width), dtype=torch.uint8)), target


@st.composite
def sizes_and_boxes(draw):
    height, width = draw(st.integers(20, 200)), draw(st.integers(20, 200))
    x1, y1 = draw(st.integers(0, width - 12)), draw(st.integers(0, height - 12))
    return height, width, (x1, y1, draw(st.integers(x1 + 10, width)), draw(st.integers(y1 + 10, height)))


@settings(max_examples=60)
@given(drawn=sizes_and_boxes(), shorter=st.integers(30, 160), flip=st.booleans())
def test_boxes_and_masks_move_together(drawn, shorter, flip):
    height, width, box = drawn
    transform = detection_transform(shorter=shorter, longer=200, hflip=float(flip))
    image, target = transform(*picture(height, width, box))
    assert target["masks"].shape[1:] == image.shape[1:] == target["boxes"].canvas_size
    assert 0 <= image.min() <= image.max() <= 1
    scale = image.shape[-1] / width
    moved = masks_to_boxes(target["masks"])[0] + torch.tensor([0, 0, 1, 1])
    assert (moved - target["boxes"][0]).abs().max() <= 1
    if flip:
        x1, _, x2, _ = box
        assert torch.allclose(target["boxes"][0, [0, 2]], scale * torch.tensor([width - x2, width - x1]), atol=0.01)
    assert target["image_id"] == 3


@given(height=st.integers(50, 2000), width=st.integers(50, 2000))
@settings(max_examples=30)
def test_the_rule_of_both_sides(height, width):
    transform = detection_transform(shorter=80, longer=133)
    image = transform(tv_tensors.Image(torch.zeros(1, height, width, dtype=torch.uint8)), {})[0]
    short, long = sorted(image.shape[1:])
    assert long <= 133
    assert short == 80 or (short < 80 and long == 133)
    assert abs(short / long - min(height, width) / max(height, width)) < 0.02


def test_one_of_several_sides_is_drawn():
    transform = detection_transform(shorter=(32, 64), longer=64)
    assert {transform(*picture(40, 40))[0].shape[1] for _ in range(20)} == {32, 64}
    for shorter, longer in ((0, 5), ((), 5), (6, 5)):
        with pytest.raises(InputError, match="shorter"):
            detection_transform(shorter=shorter, longer=longer)


def test_pictures_of_different_sizes_make_a_batch():
    images, targets = collate_pictures([picture(30, 40, (1, 1, 9, 9)), picture(50, 20)])
    assert [tuple(image.shape) for image in images] == [(3, 30, 40), (3, 50, 20)]
    assert [len(target["labels"]) for target in targets] == [1, 0]


RATIOS = [0.5, 0.75, 1.33, 1.5] * 11 + [0.75]


def test_batches_are_alike_in_shape_and_take_every_picture():
    batches = AspectBatches(RATIOS, 3, seed=1)
    drawn = list(batches)
    assert len(drawn) == len(batches) == 15
    pictures = [draw.picture for batch in drawn for draw in batch]
    assert sorted(pictures) == list(range(45))
    assert [draw.position for batch in drawn for draw in batch] == list(range(45))
    mixed = [batch for batch in drawn if len({batches.groups[draw.picture] for draw in batch}) > 1]
    assert len(mixed) <= 3


def test_batches_follow_from_seed_and_epoch():
    batches, again = AspectBatches(RATIOS, 4, seed=5), AspectBatches(RATIOS, 4, seed=5)
    first = list(batches)
    assert first == list(again)
    again.start = 3
    assert list(again) == first[3:]
    again.epoch, again.start = 1, 0
    assert list(again) != first
    assert list(AspectBatches(RATIOS, 4, seed=6)) != first


def test_processes_share_a_global_batch():
    whole = list(AspectBatches(RATIOS, 4, seed=2))
    parts = [list(AspectBatches(RATIOS, 1, seed=2, accumulate=2, world=2, rank=rank)) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        shared = [draw for micro in (0, 1) for rank in (0, 1) for draw in parts[rank][2 * step + micro]]
        assert shared == batch
    assert AspectBatches(RATIOS[:2], 4, seed=0).__len__() == 1
    with pytest.raises(InputError, match="no global batch of 8"):
        AspectBatches(RATIOS[:7], 4, seed=0, world=2)


def test_draws_follow_from_the_seed_whatever_loads_them(tmp_path):
    pictures = []
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 256, (20, 24 + i), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
        objects = [AnnotatedObject(category=4, box=(1, 2, 9, 8), area=48)]
        pictures.append(AnnotatedPicture(i, tmp_path / f"{i}.png", 24 + i, 20, objects))
    data = DetectionPictures(Annotations(tmp_path, {4: "thing"}, pictures))
    seeded = SeededPictures(data, 3, [(0, detection_transform(shorter=20, longer=40, hflip=0.5))])

    def epoch(**kwargs):
        batches = AspectBatches(data.ratios, 2, seed=3)
        return list(DataLoader(seeded, batch_sampler=batches, collate_fn=collate_pictures, **kwargs))

    first, other = epoch(), epoch(num_workers=1)
    flipped = 0
    for (images, targets, faults), (again, targets_again, _) in zip(first, other, strict=True):
        assert faults == [[], []]
        for image, same, target, same_target in zip(images, again, targets, targets_again, strict=True):
            assert torch.equal(image, same)
            assert torch.equal(target["boxes"], same_target["boxes"])
            flipped += target["boxes"][0, 0].item() != 1
    assert 0 < flipped < 6
