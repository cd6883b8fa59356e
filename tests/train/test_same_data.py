from types import SimpleNamespace

import pytest

from patnet import InputError
from patnet.data import open_data
from patnet.train.fit import same_data as seen


def together(*processes):
    """Lets each process compare, as the strategy of several would; the errors of those that raised."""
    same = all(process.seen == processes[0].seen for process in processes)
    errors = []
    for rank, process in enumerate(processes):
        strategy = SimpleNamespace(
            broadcast=lambda _: processes[0].seen, reduce_boolean_decision=lambda decision, all: decision and same
        )
        try:
            process.on_fit_start(SimpleNamespace(strategy=strategy, global_rank=rank), None)
        except InputError as error:
            errors.append(str(error))
    return errors


@pytest.fixture
def pictures(photos):
    return photos(a=4, b=4)


def test_the_same_files_elsewhere_are_the_same(pictures, tmp_path):
    here = seen(open_data(str(pictures)))
    pictures.rename(tmp_path / "elsewhere")
    assert together(here, seen(open_data(str(tmp_path / "elsewhere")))) == []


def test_another_number_or_other_names_stop_all_processes(pictures):
    before = seen(open_data(str(pictures), val_fraction=0))
    (pictures / "a" / "00.png").rename(pictures / "a" / "zz.png")
    renamed = seen(open_data(str(pictures), val_fraction=0))
    assert len(together(before, renamed)) == 2
    (pictures / "a" / "zz.png").unlink()
    fewer = seen(open_data(str(pictures), val_fraction=0))
    assert "process 1 has 7 training pictures of 2 classes" in together(before, fewer)[1]
