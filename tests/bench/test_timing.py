import pytest
import torch

from patnet.bench import Timing, interleave, ratio, use_threads


class Machine:
    """A clock, and calls that move it on; the machine gets slower with time."""

    def __init__(self, drift=0.0):
        self.now, self.drift, self.log = 0.0, drift, []

    def clock(self):
        return self.now

    def call(self, name, seconds):
        def run():
            self.log.append(name)
            self.now += seconds * (1 + self.drift * self.now)

        return run


def interleaved(machine, *seconds, **options):
    """Timings of calls `a`, `b`, ... of these durations."""
    calls = [machine.call(name, s) for name, s in zip("ab", seconds, strict=False)]
    timings = [Timing() for _ in calls]
    interleave(calls, timings, clock=machine.clock, **options)
    return timings


def test_all_run_in_every_round_and_the_order_is_reversed():
    machine = Machine()
    timings = interleaved(machine, 0.2, 0.1, seconds=0, min_rounds=3)
    # One run each first decides how often a call is repeated in a round.
    assert "".join(machine.log) == "ab" + "ab" + "ba" + "ab"
    assert [len(timing.rounds) for timing in timings] == [3, 3]


def test_fast_calls_run_several_times_a_round_and_the_first_is_not_counted():
    machine = Machine()
    fast, slow = interleaved(machine, 0.01, 0.5, seconds=0, min_rounds=2)
    assert [len(runs) for runs in fast.rounds] == [5, 5]
    assert [len(runs) for runs in slow.rounds] == [1, 1]
    assert machine.log.count("a") == 1 + 2 * 6


def test_rounds_end_with_the_time():
    (timing,) = interleaved(Machine(), 1.0, seconds=20, min_rounds=3)
    assert len(timing.rounds) == 19
    (timing,) = interleaved(Machine(), 1.0, seconds=1e9, max_rounds=30)
    assert len(timing.rounds) == 30


def test_an_interruption_keeps_complete_rounds():
    machine = Machine()
    timings = [Timing(), Timing()]

    def interrupted():
        if len(machine.log) > 5:
            raise KeyboardInterrupt
        machine.call("b", 1.0)()

    with pytest.raises(KeyboardInterrupt):
        interleave([machine.call("a", 1.0), interrupted], timings, seconds=100, clock=machine.clock)
    assert [len(timing.rounds) for timing in timings] == [2, 2]


def test_a_machine_that_gets_slower_does_not_change_the_ratio():
    a, b = interleaved(Machine(drift=0.1), 0.2, 0.1, seconds=8)
    assert a.runs[-1] > 1.5 * a.runs[0]
    found = ratio(a, b)
    assert found["ratio"] == pytest.approx(2, rel=0.05)
    assert found["low"] <= found["ratio"] <= found["high"]


def test_a_ratio_is_the_median_of_the_rounds():
    first, second = Timing([[2.0], [2.0, 4.0, 2.0], [6.0]]), Timing([[1.0], [2.0], [1.0]])
    assert ratio(first, second) == {"ratio": 2.0, "low": 1.5, "high": 4.0}
    assert (first.median, first.runs) == (2.0, [2.0, 2.0, 4.0, 2.0, 6.0])


def test_threads_are_set_and_restored():
    before = torch.get_num_threads()
    with use_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
