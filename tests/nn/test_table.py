import pytest

from patnet.nn.table import look_up


def test_finds_an_entry():
    assert look_up({"gaussian": 1, "none": 2}, "none", "channel_attn") == 2


def test_unknown_name_is_answered_with_the_argument_the_nearest_and_the_choices():
    with pytest.raises(ValueError, match=r"^unknown channel_attn 'gausian' ") as raised:
        look_up({"gaussian": 1, "none": 2}, "gausian", "channel_attn")
    assert str(raised.value) == (
        "unknown channel_attn 'gausian' (did you mean 'gaussian'?): choose from gaussian, none"
    )


def test_no_nearest_name_is_made_up():
    with pytest.raises(ValueError, match=r"^unknown mixer 'xyz': choose from pconv$"):
        look_up({"pconv": 1}, "xyz", "mixer")
