import pytest

from patnet import InputError
from patnet.benchmark.profile import PROFILERS, profile
from patnet.cli import main


@pytest.mark.parametrize("runtime", PROFILERS)
def test_the_convolutions_are_there_with_their_times(runtime):
    found = profile("patnet_t0", runtime=runtime, size=32, calls=2)
    convolutions = [value for kind, value in found.items() if kind.startswith("Conv")]
    assert sum(runs for _, runs in convolutions) >= 46  # stem, merging, and three for each of the 14 blocks
    times = [ms for ms, _ in found.values()]
    assert times == sorted(times, reverse=True)
    assert min(times) > 0


def test_a_runtime_without_a_profile_is_named(capsys):
    with pytest.raises(InputError, match="eager"):
        profile("patnet_t0", runtime="eager")
    assert main(["bench", "patnet_t0", "--runtimes", "eager", "--profile"]) == 2
    assert "no profile" in capsys.readouterr().err
