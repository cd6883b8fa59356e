import pytest

from patnet.demo.speed import compare_speed
from patnet.errors import InputError


def test_two_models_are_measured_in_turns(network):
    told = []
    speed = compare_speed(str(network), "test_resnet", batch=2, size=64, own=str(network), seconds=0.2, say=told.append)
    names = [row["model"] for row in speed.rows]
    assert sorted(names) == sorted([str(network), "test_resnet"])
    spread = speed.comparison.spread
    assert spread.rounds >= 3
    assert spread.low <= spread.paired <= spread.high
    assert f"takes {spread.ratio:.2f} times as long as" in speed.sentence
    assert "64 px, batch 2" in speed.sentence
    assert all(row["median_ms"] > 0 and row["parameters"] > 0 for row in speed.rows)
    assert told
    assert "torch" in speed.machine
    axes = speed.draw().axes[0]
    assert [len(line.get_xdata()) for line in axes.lines[::2]] == [spread.rounds] * 2


@pytest.mark.parametrize(
    ("models", "options", "sentence"),
    [
        (("patnet_t0", "patnet_t0"), {}, "choose two different models"),
        (("patnet_t0", None), {}, "choose two models"),
        (("patnet_t0", "resnet5O"), {}, "knows no model 'resnet5O' .did you mean 'resnet50'"),
        (("/etc/passwd", "patnet_t0"), {}, "knows no model"),
        (("patnet_t0", "resnet18"), {"batch": 0}, "the batch must be at least 1"),
        (("patnet_t0", "resnet18"), {"runtime": "fast"}, "no runtime 'fast'"),
        (("patnet_t0", "resnet18"), {"batch": 100}, "resnet18 with 100 pictures of 224 px comes to"),
        (("patnet_t0", "vit_tiny_patch16_224"), {"size": 64}, "vit_tiny_patch16_224 does not take pictures of 64x64"),
    ],
)
def test_what_cannot_be_measured_while_one_waits_is_told(models, options, sentence):
    with pytest.raises(InputError, match=sentence):
        compare_speed(*models, **options)
