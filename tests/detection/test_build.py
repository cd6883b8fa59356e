import copy
from operator import attrgetter

import pytest
import torch
from conftest import TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from patnet import InputError, fuse
from patnet.detection import DETECTORS, build
from patnet.detection.single_image import SingleImage

ALL = sorted(DETECTORS)
RCNNS = ["mask_rcnn", "faster_rcnn"]


def target(height, width, count):
    """Random objects in an image of a size."""
    corner = torch.rand(count, 2) * torch.tensor([width / 2, height / 2])
    boxes = torch.cat((corner, corner + (0.2 + 0.3 * torch.rand(count, 2)) * torch.tensor([width, height])), 1)
    masks = torch.zeros(count, height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return {"boxes": boxes, "labels": torch.randint(1, 4, (count,)), "masks": masks}


@pytest.mark.parametrize("detector", ALL)
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_images_of_any_size_train_and_are_detected_in(small, detector, data):
    side = st.integers(20, 150)
    shapes = data.draw(st.lists(st.tuples(side, side), min_size=1, max_size=2))
    counts = [data.draw(st.integers(0, 3)) for _ in shapes]
    model = small(detector, norm=data.draw(st.sampled_from(["frozen", "train"])))
    images = [torch.rand(3, *shape) for shape in shapes]

    losses = model.train()(images, [target(*shape, count) for shape, count in zip(shapes, counts, strict=True)])
    sum(losses.values()).backward()
    assert set(losses) == set(DETECTORS[detector].losses)
    assert all(torch.isfinite(loss) for loss in losses.values())
    # A parameter without gradient would stop training on several devices.
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []

    with torch.no_grad():
        detections = model.eval()(images)
    assert sum(len(found["boxes"]) for found in detections) > 0
    for (height, width), found in zip(shapes, detections, strict=True):
        count = len(found["boxes"])
        assert found["labels"].shape == found["scores"].shape == (count,)
        assert ((found["labels"] >= 1) & (found["labels"] <= 3)).all()
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()
        if detector == "mask_rcnn":
            assert found["masks"].shape == (count, 1, height, width)


def test_channels_of_images_and_backbones(small):
    grey, model = torch.rand(1, 80, 60), small("faster_rcnn", width=16)
    options = {"detector": "retinanet", "backbone": "patnet_t0", "num_classes": 1, "min_size": 64, "width": 16}
    of_one_channel = build(**options, backbone_kwargs={**TINY, "in_chans": 1}).eval()
    with torch.no_grad():
        repeated, rgb = model([grey, grey.expand(3, -1, -1)])
        of_one_channel([grey])
    torch.testing.assert_close(repeated["boxes"], rgb["boxes"])
    assert len(of_one_channel.transform.image_mean) == 1
    with pytest.raises(InputError, match="image_mean has 3 values and backbone patnet_t0 takes images of 1 channels"):
        build(**options, backbone_kwargs={"in_chans": 1}, image_mean=[0.5] * 3)


@pytest.mark.parametrize("detector", RCNNS)
def test_a_flat_first_image_does_not_change_later_detections(small, detector):
    model = small(detector)
    fresh = copy.deepcopy(model)
    image = torch.rand(3, 100, 120)
    with torch.no_grad():
        model([torch.rand(3, 20, 200)])  # resized to 12x128, padded to 32x128
        found, expected = model([image])[0], fresh([image])[0]
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("detector", ALL)
@pytest.mark.parametrize("shape", [(2, 700), (700, 2), (1, 300)])
def test_very_thin_images_keep_a_px(small, detector, shape):
    height, width = shape
    model, image = small(detector, norm="frozen"), torch.rand(3, height, width)
    objects = {"boxes": torch.tensor([[0, 0, width, height], [0.2, 0.3, 0.9 * width, 0.9 * height]])}
    objects |= {"labels": torch.tensor([1, 3]), "masks": torch.ones(2, height, width, dtype=torch.uint8)}
    losses = model.train()([image], [dict(objects)])
    assert all(torch.isfinite(loss) for loss in losses.values())
    images, (resized,) = model.transform([image], [dict(objects)])
    ((h, w),) = images.image_sizes
    assert (min(h, w), max(h, w)) == (1, 128)
    assert resized["masks"].shape == (2, h, w)
    assert resized["boxes"][0].tolist() == [0, 0, w, h]
    with torch.no_grad():
        (found,) = model.eval()([image])
        boxes = SingleImage(model, shape)(image)[0]
    assert (found["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()
    torch.testing.assert_close(boxes, found["boxes"], rtol=1e-3, atol=1e-3)
    if detector == "mask_rcnn":
        assert found["masks"].shape[1:] == (1, height, width)


@settings(max_examples=50)
@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(32, 64), st.integers(64, 99))
def test_images_are_resized_as_by_torchvision_unless_that_leaves_nothing(small, height, width, min_size, max_size):
    model = small("retinanet", width=16, min_size=min_size, max_size=max_size)
    image, theirs = torch.rand(1, height, width), GeneralizedRCNNTransform(min_size, max_size, [0.0], [1.0]).eval()
    try:
        expected = theirs.resize(image)[0]
    except RuntimeError:  # a side of 0 px
        expected = None
    found = model.transform.resize(image)[0]
    assert min(found.shape) > 0
    assert expected is None or torch.equal(found, expected)


@pytest.mark.parametrize("detector", ALL)
def test_autocast_rounds_no_coordinates(small, detector):
    model = small(detector, width=16, min_size=800, max_size=1333)
    anchors, proposals = [], []
    dense = detector == "retinanet"
    (model if dense else model.rpn).anchor_generator.register_forward_hook(lambda _, args, out: anchors.append(out[0]))
    if not dense:
        model.rpn.register_forward_hook(lambda _, args, out: proposals.extend(out[0]))
    image, objects = torch.rand(3, 800, 1200), target(800, 1200, 2)
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            (found,) = model.eval()([image])
            losses = model.train()([image], [dict(objects)])
        assert found["boxes"].dtype == torch.float32
    assert {x.dtype for x in (*anchors, *proposals)} == {torch.float32}
    assert torch.equal(anchors[-1], anchors[0])
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    coders = {id(x): x for x in (getattr(part, "box_coder", None) for part in model.modules()) if x is not None}
    boxes = torch.tensor([[801.3, 333.7, 1100.9, 701.1]])
    assert len(coders) == 2
    for coder in coders.values():
        torch.testing.assert_close(coder.decode_single(torch.zeros(1, 4, dtype=torch.bfloat16), boxes), boxes)


def test_autocast_does_not_change_the_focal_loss_of_a_background(small):
    model, anchors = small("retinanet", width=16), torch.tensor([0.0, 0, 30, 30]).repeat(1000, 1)
    nothing = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]
    outputs = {"cls_logits": 0.3 * torch.randn(1, 1000, 3) - 6, "bbox_regression": torch.zeros(1, 1000, 4)}
    expected = model.compute_loss(nothing, outputs, [anchors])
    with torch.autocast("cpu", torch.bfloat16):
        found = model.compute_loss(nothing, {name: x.bfloat16() for name, x in outputs.items()}, [anchors])
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)


RCNN = {
    "rpn._pre_nms_top_n": {"training": 2000, "testing": 1000},
    "rpn._post_nms_top_n": {"training": 1000, "testing": 1000},
    "rpn.nms_thresh": 0.7,
    "rpn.proposal_matcher.high_threshold": 0.7,
    "rpn.proposal_matcher.low_threshold": 0.3,
    "roi_heads.score_thresh": 0.05,
    "roi_heads.nms_thresh": 0.5,
    "roi_heads.detections_per_img": 100,
    "roi_heads.box_roi_pool.output_size": (7, 7),
    "roi_heads.box_roi_pool.sampling_ratio": 0,
    "roi_heads.box_predictor.cls_score.out_features": 81,  # with the background
}
CONFIGURATION = {
    "faster_rcnn": RCNN,
    "mask_rcnn": {**RCNN, "roi_heads.mask_roi_pool.output_size": (14, 14)},
    "retinanet": {
        "proposal_matcher.high_threshold": 0.5,
        "proposal_matcher.low_threshold": 0.4,
        "score_thresh": 0.05,
        "nms_thresh": 0.5,
        "detections_per_img": 100,
        "head.classification_head.num_classes": 80,
    },
}


@pytest.mark.parametrize("detector", ALL)
def test_detectors_are_those_of_the_configuration(detector):
    model = build(detector, backbone="patnet_t0", num_classes=80)
    for name, value in CONFIGURATION[detector].items():
        assert attrgetter(name)(model) == value, name
    assert (model.transform.min_size, model.transform.max_size) == ((800,), 1333)
    dense = detector == "retinanet"
    sizes = torch.tensor([4 * 2 ** (i / 3) for i in range(3)] if dense else [8.0])  # in strides
    anchors_of_levels = (model if dense else model.rpn).anchor_generator.cell_anchors
    for anchors, stride in zip(anchors_of_levels, (8, 16, 32, 64, 128) if dense else (4, 8, 16, 32, 64), strict=True):
        sides = anchors[:, 2:] - anchors[:, :2]
        torch.testing.assert_close(sides.prod(1).sqrt(), stride * sizes.repeat(3), rtol=0.05, atol=0)
        ratios = torch.tensor([0.5, 1, 2]).repeat_interleave(len(sizes))  # of height to width
        torch.testing.assert_close(sides[:, 1] / sides[:, 0], ratios, rtol=0.06, atol=0)


def test_retinanets_further_levels_come_from_the_backbone_also_where_the_widths_agree():
    detector = build("retinanet", backbone="patnet_t0", num_classes=1)
    backbone = detector.backbone.eval()  # its last level has 256 channels
    inputs = []
    backbone.fpn.extra_blocks.p6.register_forward_hook(lambda _, args, out: inputs.append(args[0]))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = backbone(images)
        last = backbone.body(images)[-1]
    assert [x.shape[-1] for x in maps.values()] == [8, 4, 2, 1, 1]
    assert torch.equal(inputs[0], last)


def test_retinanets_labels_from_1_are_torchvisions_from_0(small):
    ours = small("retinanet", norm="frozen")
    options = {"min_size": 64, "max_size": 128, "score_thresh": 0.01, "detections_per_img": 10}
    theirs = detection.RetinaNet(ours.backbone, 3, **options).eval()
    theirs.load_state_dict(ours.state_dict())
    images, objects = [torch.rand(3, 90, 70)], {**target(90, 70, 3), "labels": torch.tensor([1, 2, 3])}
    with torch.no_grad():
        found, expected = ours(images)[0], theirs(images)[0]
        assert len(expected["labels"]) > 0
        assert torch.equal(found["labels"], expected["labels"] + 1)
        ours.head.train(), theirs.head.train()
        ours.training = theirs.training = True  # but for the backbone, which has dropout
        from_zero = theirs(images, [{**objects, "labels": objects["labels"] - 1}])
        assert ours(images, [objects]) == from_zero
    assert objects["labels"].tolist() == [1, 2, 3]
    for label in (0, 4):
        objects["labels"][1] = label
        with pytest.raises(ValueError, match="labels must lie in 1 to 3"):
            small("retinanet").train()(images, [objects])


@pytest.mark.parametrize("detector", ALL)
def test_a_fused_detector_detects_the_same(small, detector):
    model = small(detector)
    for name, buffer in model.backbone.body.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(0.5 * name.endswith("var") + torch.rand(buffer.shape))
    fused = fuse(model)
    images = [torch.rand(3, 70, 100), torch.rand(3, 120, 60)]
    with torch.no_grad():
        for found, expected in zip(fused(images), model(images), strict=True):
            assert len(expected["boxes"]) > 0
            for key in expected:
                torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=1e-3)
    left = [name for name, part in fused.named_modules() if isinstance(part, nn.BatchNorm2d)]
    assert left
    assert all("output_norms" in name for name in left)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        fused.train()


def test_pretrained_norms_are_frozen_by_default(tmp_path):
    options = {"detector": "faster_rcnn", "backbone": "patnet_t0", "num_classes": 1, "width": 16}
    model = build(**options)
    torch.save(model.backbone.body.model.state_dict(), tmp_path / "w")
    norms = [build(**options, weights=tmp_path / "w", norm=norm).backbone.norm for norm in (None, "train")]
    assert [model.backbone.norm, *norms] == ["train", "frozen", "train"]


def test_a_new_entry_of_the_table_is_built_by_its_name(monkeypatch):
    entry = DETECTORS["faster_rcnn"]._replace(defaults=lambda: {"box_detections_per_img": 7})
    monkeypatch.setitem(DETECTORS, "mine", entry)
    assert build("mine", backbone="patnet_t0", num_classes=1).roi_heads.detections_per_img == 7


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"detector": "mask-rcnn"}, r"unknown detector 'mask-rcnn' \(did you mean 'mask_rcnn'\?\)"),
        ({"norm": "eval"}, "unknown norm 'eval': choose frozen or train"),
        ({"num_classes": 0}, "num_classes is 0: give the number of classes, at least 1"),
        ({"width": 4}, "width is 4: give the number of channels, at least 8"),
        ({"box_score_tresh": 0.1}, r"no argument 'box_score_tresh' \(did you mean 'box_score_thresh'\?\)"),
        ({"backbone": "patnet_xl"}, "backbone 'patnet_xl': no such model"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**{"detector": "mask_rcnn", "backbone": "patnet_t0", "num_classes": 2, **kwargs})
