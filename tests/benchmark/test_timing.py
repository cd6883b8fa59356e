import pytest
import torch

from patnet.benchmark.timing import Turns, best_chunk, ceiling, in_turns, percentile, ratio, use_threads


class Machine:
    """A clock, and models whose runs move it on; the machine gets slower with time."""

    def __init__(self, drift=0.0):
        self.now = 0.0
        self.drift = drift
        self.log = []

    def clock(self):
        return self.now

    def model(self, name, seconds):
        def run():
            self.log.append(name)
            self.now += seconds * (1 + self.drift * self.now)

        return run


def test_percentiles():
    assert percentile([3, 1, 2], 50) == 2
    assert percentile([1, 2], 50) == 1.5
    assert percentile(list(range(101)), 95) == 95
    assert percentile([7], 95) == 7


def test_models_take_turns_and_the_order_is_reversed():
    machine = Machine()
    models = [machine.model("a", 0.2), machine.model("b", 0.1)]
    turns = in_turns(models, seconds=0, min_rounds=3, clock=machine.clock)
    # Two runs each beforehand say how often one is repeated; a repeated one's first run is not counted.
    assert "".join(machine.log) == "ab" + "ab" + "ba" + "ab"
    assert [len(t.rounds) for t in turns] == [3, 3]


def test_fast_models_run_several_times_a_round():
    machine = Machine()
    fast, slow = in_turns(
        [machine.model("a", 0.01), machine.model("b", 0.5)], seconds=0, min_rounds=2, clock=machine.clock
    )
    assert [len(turn) for turn in fast.rounds] == [5, 5]
    assert [len(turn) for turn in slow.rounds] == [1, 1]
    assert machine.log.count("a") == 1 + 2 * 6  # each round's first finds cold caches


def test_rounds_end_with_the_time():
    machine = Machine()
    (turns,) = in_turns([machine.model("a", 1.0)], seconds=20, min_rounds=3, clock=machine.clock)
    assert len(turns.rounds) == 19
    (turns,) = in_turns([machine.model("a", 1.0)], seconds=1e9, max_rounds=30, clock=machine.clock)
    assert len(turns.rounds) == 30


def test_a_machine_that_gets_slower_does_not_change_the_ratio():
    machine = Machine(drift=0.1)
    a, b = in_turns([machine.model("a", 0.2), machine.model("b", 0.1)], seconds=8, clock=machine.clock)
    assert a.runs[-1] > 1.5 * a.runs[0]
    spread = ratio(a, b)
    assert spread.ratio == pytest.approx(2, rel=0.05)
    assert spread.paired == pytest.approx(2, rel=0.05)
    assert spread.low <= spread.paired <= spread.high
    assert spread.rounds == len(a.rounds)


def test_a_ratio_and_its_spread():
    spread = ratio(Turns([[2.0], [2.0, 4.0, 2.0], [6.0]]), Turns([[1.0], [2.0], [1.0]]))
    assert spread.ratio == 2.0
    assert (spread.low, spread.paired, spread.high) == (1.5, 2.0, 4.0)


@pytest.mark.parametrize(
    ("times", "chunk", "tried"),
    [
        ({1: 5, 2: 4, 4: 3, 8: 3.1, 16: 3.5}, 4, [1, 2, 4, 8, 16]),
        ({1: 5, 2: 4, 4: 6}, 2, [1, 2, 4]),
        ({1: 5, 2: 4, 4: 3, 8: 2, 16: 1}, 16, [1, 2, 4, 8, 16]),
    ],
)
def test_the_best_chunk(times, chunk, tried):
    found, seconds = best_chunk(16, times.__getitem__)
    assert found == chunk
    assert list(seconds) == tried


def test_chunks_divide_the_batch():
    assert list(best_chunk(12, lambda c: 1 / c)[1]) == [1, 2, 4, 12]
    assert list(best_chunk(16, lambda c: 1 / c, chunks=(4, 1))[1]) == [1, 4]
    assert list(best_chunk(6, lambda c: 1 / c, chunks=(4,))[1]) == [6]
    assert list(best_chunk(16, lambda c: 1 / c, give_up=lambda: True)[1]) == [1]


def test_threads_are_set_and_restored():
    before = torch.get_num_threads()
    with use_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_the_ceiling_is_a_matrix_product():
    product, flops = ceiling("fp32")
    assert tuple(product().shape) == (1024, 1024)
    assert flops == 2 * 1024**3
    assert ceiling("int8") is None
