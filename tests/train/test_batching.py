import pytest
from hypothesis import given
from hypothesis import strategies as st

from patnet import InputError
from patnet.train import TrainConfig
from patnet.train.batching import work_out


def config(**options):
    return TrainConfig(data="photos", out="run", **options)


@given(st.integers(1, 12), st.integers(0, 8), st.integers(1, 64))
def test_the_global_batch_holds_or_the_refusal_says_what_would(devices, doublings, size):
    whole = 48 * 2**doublings
    share = whole // devices
    if whole % devices or share % min(size, share):
        with pytest.raises(InputError, match=r"give \d+| does$"):
            work_out(config(global_batch_size=whole, batch_size=size), devices)
    else:
        found = work_out(config(global_batch_size=whole, batch_size=size), devices)
        assert found.whole == whole
        assert found.per_device <= size


def test_it_is_said_as_it_is():
    assert str(work_out(config(global_batch_size=4096, batch_size=256), 8)) == (
        "global batch 4096: 256 pictures x 2 times on 8 devices"
    )
    assert work_out(config(batch_size=64), 4).whole == 256
    assert work_out(config(global_batch_size=8, batch_size=64), 1).per_device == 8
    with pytest.raises(InputError, match=r"3 devices do not divide it; give 4095 or 4098"):
        work_out(config(global_batch_size=4096, batch_size=64), 3)
    with pytest.raises(InputError, match=r"--batch_size 100: .* 64 does"):
        work_out(config(global_batch_size=4096, batch_size=100), 1)
