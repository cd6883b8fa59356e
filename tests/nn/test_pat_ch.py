import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet.nn import CHANNEL_ATTENTIONS, Full_ch, PAT_ch

sides = st.integers(1, 6)


@settings(max_examples=50)
@given(
    convolved=st.integers(1, 5),
    attended=st.integers(1, 12),
    batch=st.integers(1, 3),
    height=sides,
    width=sides,
    channel_attn=st.sampled_from(list(CHANNEL_ATTENTIONS)),
    form=st.sampled_from(["untouched", "all", "full"]),
)
def test_equals_the_equations(settled, equations, convolved, attended, batch, height, width, channel_attn, form):
    options = {"channel_attn": channel_attn, "dtype": torch.float64}
    dim = attended if form == "full" else convolved + attended
    x = torch.randn(batch, dim, height, width, dtype=torch.float64)
    if form == "full":
        block = settled(Full_ch(dim, **options))
        y = equations.batch_norm(block.attn(F.conv2d(x, block.conv.weight, padding=1)), block.norm)
    else:
        block = settled(PAT_ch(dim, convolved / dim, ch_norm_position=form, **options))
        y1 = F.conv2d(x[:, :convolved], block.conv.weight, padding=1)
        y2 = block.attn(x[:, convolved:])
        if form == "all":
            y = equations.batch_norm(torch.cat((y1, y2), dim=1), block.norm_all)
        else:
            y = torch.cat((y1, equations.batch_norm(y2, block.norm)), dim=1)
    torch.testing.assert_close(block(x), y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PAT_ch(8, 1.0), "to attend to"),
        (lambda: PAT_ch(2, 0.25), "to convolve"),
        (lambda: PAT_ch(8, channel_attn="gaussan"), r"unknown channel_attn 'gaussan' \(did you mean 'gaussian'\?\)"),
        (lambda: PAT_ch(8, ch_norm_position="al"), r"unknown ch_norm_position 'al' \(did you mean 'all'\?\)"),
        (lambda: Full_ch(8, channel_attn="see"), r"unknown channel_attn 'see' \(did you mean 'se'\?\)"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
