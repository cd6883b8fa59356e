import pytest
import torch
from torchvision.models import detection

from patnet.detection import build


def test_labels_from_1_are_torchvisions_from_0(small, target):
    ours = small("retinanet", norm="frozen")
    theirs = detection.RetinaNet(
        ours.backbone, 3, min_size=64, max_size=128, score_thresh=0.01, detections_per_img=10
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    pictures, objects = [torch.rand(3, 90, 70)], target(90, 70, 3)
    objects["labels"] = torch.tensor([1, 2, 3])
    with torch.no_grad():
        found, expected = ours(pictures)[0], theirs(pictures)[0]
        assert len(expected["labels"]) > 0
        assert torch.equal(found["labels"], expected["labels"] + 1)
        ours.head.train(), theirs.head.train()
        ours.training = theirs.training = True  # the backbone, which drops out at random in training, stays as it is
        losses = ours(pictures, [objects])
        from_zero = theirs(pictures, [{**objects, "labels": objects["labels"] - 1}])
    assert losses == from_zero
    assert objects["labels"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("label", [0, 4])
def test_a_label_that_is_no_class_is_refused(small, target, label):
    objects = target(64, 64, 2)
    objects["labels"][1] = label
    with pytest.raises(ValueError, match="labels must lie in 1 to 3"):
        small("retinanet").train()([torch.rand(3, 64, 64)], [objects])


def test_it_learns_the_last_class_and_gives_its_label(target):
    torch.manual_seed(0)
    args = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": 2}
    model = build("retinanet", backbone="patnet_t0", num_classes=3, backbone_args=args, min_size=64, max_size=64)
    picture = torch.zeros(3, 64, 64)
    picture[:, 16:48, 16:48] = 1
    objects = {"boxes": torch.tensor([[16.0, 16, 48, 48]]), "labels": torch.tensor([3])}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(8):
        optimizer.zero_grad()
        sum(model.train()([picture], [objects]).values()).backward()
        optimizer.step()
    logits = model.head(list(model.backbone(model.transform([picture])[0].tensors).values()))["cls_logits"][0]
    assert logits.amax(0).argmax() == 2  # the third of three outputs, not one beyond a background
