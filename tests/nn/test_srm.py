import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet.nn import SRM

sides = st.integers(1, 6)


@settings(max_examples=15)
@given(batch=st.integers(1, 3), dim=st.integers(1, 9), height=sides, width=sides)
def test_equals_the_equations(settled, batch, dim, height, width):
    srm = settled(SRM(dim, dtype=torch.float64))
    x = torch.randn(batch, dim, height, width, dtype=torch.float64)
    for n in range(batch):
        for c in range(dim):
            values = x[n, c].flatten()
            sigma = values.std() if len(values) > 1 else torch.tensor(0.0)
            z = srm.mix[c, 0] * values.mean() + srm.mix[c, 1] * sigma
            norm = srm.norm
            z = (z - norm.running_mean[c]) / (norm.running_var[c] + norm.eps).sqrt() * norm.weight[c] + norm.bias[c]
            expected = x[n, c] / (1 + torch.exp(-z))
            torch.testing.assert_close(srm(x)[n, c], expected, rtol=1e-5, atol=1e-5)


def test_starts_with_every_gate_at_one_half():
    x = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(SRM(5)(x), 0.5 * x)
