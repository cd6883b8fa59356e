import pytest
import torch
from torch import nn

from patnet import InputError
from patnet.train.classifier import Classifier
from patnet.train.views import VIEWS, check_views, views_of


@pytest.mark.parametrize("views", VIEWS)
def test_the_views_differ_and_the_first_is_the_picture(views):
    picture = torch.randn(1, 2, 4, 4)
    made = list(views_of(picture, views))
    assert torch.equal(made[0], picture)
    assert len({tuple(view.flatten().tolist()) for view in made}) == views


def test_four_views_keep_the_shape():
    assert {view.shape for view in views_of(torch.randn(2, 3, 4, 6), 4)} == {(2, 3, 4, 6)}


@pytest.mark.parametrize(
    ("views", "turn"),
    [
        (2, lambda x: x.flip(3)),
        (4, lambda x: x.flip(2)),
        (4, lambda x: x.rot90(2, (2, 3))),
        (8, lambda x: x.rot90(1, (2, 3))),
        (8, lambda x: x.transpose(2, 3)),
    ],
)
def test_a_prediction_over_views_is_the_same_for_each_of_them(views, turn):
    module = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(32, 3))).eval()
    pictures = torch.randn(5, 2, 4, 4)
    with torch.no_grad():
        plain, turned = (module.predict_step([x, [], []], 0)[0] for x in (pictures, turn(pictures)))
        assert not torch.allclose(plain, turned)
        module.views = views
        averaged, also = (module.predict_step([x, [], []], 0)[0] for x in (pictures, turn(pictures)))
    torch.testing.assert_close(averaged, also)
    torch.testing.assert_close(averaged.sum(1), torch.ones(5))


@pytest.mark.parametrize(
    ("views", "size", "message"), [(3, (3, 4, 4), "must be one of 1, 2, 4, 8"), (8, (3, 4, 6), "these are 4x6 px")]
)
def test_views_that_there_are_not(views, size, message):
    with pytest.raises(InputError, match=message):
        check_views(views, size)
