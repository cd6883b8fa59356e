from patnet.benchmark.loading import measure_loading
from patnet.cli import main


def test_every_side_is_measured():
    rates = measure_loading(width=80, height=60, size=32, pictures=2, rounds=1)
    assert len(rates) == 3
    assert all(rate > 0 for rate in rates.values())


def test_the_command_prints_a_line_for_each(monkeypatch, capsys):
    monkeypatch.setattr("patnet.cli.bench.measure_loading", lambda: {"patnet": 120.4, "torchvision": 99.6})
    assert main(["bench", "--loading"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        f"{'patnet':<30}   120 images/s",
        f"{'torchvision':<30}   100 images/s",
    ]
