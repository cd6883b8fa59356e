import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet.nn.statistics import spatial_mean_std, spatial_quantiles

sides = st.integers(1, 6)


@settings(max_examples=30)
@given(batch=st.integers(1, 3), dim=st.integers(1, 9), height=sides, width=sides, shift=st.floats(-100, 100))
def test_statistics_are_torchs_mean_and_unbiased_deviation(batch, dim, height, width, shift):
    x = shift + torch.randn(batch, dim, height, width, dtype=torch.float64)
    mean, std = spatial_mean_std(x)
    torch.testing.assert_close(mean, x.mean((2, 3)))
    if height * width > 1:
        torch.testing.assert_close(std, x.std((2, 3)), rtol=1e-6, atol=1e-6)
    else:
        torch.testing.assert_close(std, torch.zeros(batch, dim, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("level", [0.0, 1e3, 3e4])
def test_statistics_of_large_half_precision_maps_are_those_of_float32(dtype, level):
    x = (level + 1e3 * torch.randn(2, 4, 32, 32)).to(dtype)
    mean, std = spatial_mean_std(x)
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, x.double().mean((2, 3)).float(), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(std, x.double().std((2, 3)).float(), rtol=1e-4, atol=1e-2)


@settings(max_examples=30)
@given(
    parts=st.integers(2, 9),
    batch=st.integers(1, 3),
    dim=st.integers(1, 9),
    height=sides,
    width=sides,
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_quantiles_are_torchs(parts, batch, dim, height, width, dtype):
    x = torch.randn(batch, dim, height, width).to(dtype)
    expected = torch.stack([x.double().flatten(2).quantile(i / parts, dim=2) for i in range(1, parts)], dim=2)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(spatial_quantiles(x, parts), expected.to(dtype), **tolerance)
