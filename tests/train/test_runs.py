"""The state of a run is what it is, and damaged runs are named."""

import multiprocessing
import os
import signal
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patnet import InputError
from patnet.train import TrainConfig
from patnet.train.figures import draw_comparison, save_figure
from patnet.train.run import RunFolder, RunLock
from patnet.train.runs import differing_options, find_runs, read_history, summarise_run

HEADER = "epoch,train_loss,val_loss,val_top1,seconds,best\n"
MAIN_PROCESS = SimpleNamespace(is_global_zero=True)


def make(path, epochs=2, done=0, **options):
    folder = RunFolder(path)
    folder.start(TrainConfig(data="photos", out=str(path), epochs=epochs, **options))
    if done:
        rows = (f"{i + 1},1.5,{2 - i / 10},{0.5 + i / 100},2.5,{i == done // 2}\n" for i in range(done))
        folder.metrics.write_text(HEADER + "".join(rows))
    return folder


def hold(folder, ready=None):
    lock = RunLock(folder)
    lock.setup(MAIN_PROCESS, None, "fit")
    if ready is None:
        return lock
    ready.set()
    while True:
        time.sleep(1)


def test_the_state_follows_the_epochs_and_the_lock(tmp_path):
    folder = make(tmp_path / "run", epochs=3)
    assert summarise_run(folder.path).state == "interrupted"
    lock = hold(folder)
    assert summarise_run(folder.path).state == "running"
    with pytest.raises(InputError, match=f"process {os.getpid()} on .* is training this run"):
        hold(folder)
    assert summarise_run(folder.path).state == "running"  # the refused one left the lock where it was
    lock.on_exception(MAIN_PROCESS, None, KeyboardInterrupt())
    assert summarise_run(folder.path).state == "interrupted"
    assert not folder.running.exists()
    hold(folder).teardown(MAIN_PROCESS, None, "fit")
    done = summarise_run(make(tmp_path / "done", done=2).path)
    assert (done.state, done.epochs, done.of, done.best_epoch, done.best_top1) == ("finished", 2, 2, 2, 0.51)
    assert done.seconds == 5


def test_a_killed_process_lets_go_of_its_run(tmp_path):
    folder = make(tmp_path / "run")
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=hold, args=(folder, ready))
    child.start()
    assert ready.wait(20)
    assert summarise_run(folder.path).state == "running"
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert folder.running.exists()
    assert summarise_run(folder.path).state == "interrupted"
    hold(folder).teardown(MAIN_PROCESS, None, "fit")


def test_a_loader_process_does_not_keep_the_lock(tmp_path):
    folder = make(tmp_path / "run")
    lock = hold(folder)
    loader = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    loader.start()
    lock.teardown(MAIN_PROCESS, None, "fit")
    hold(folder).teardown(MAIN_PROCESS, None, "fit")
    loader.kill()
    loader.join()


def test_without_locks_the_age_of_the_last_change_tells(tmp_path, monkeypatch):
    def none_here(file, kind):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none_here)
    folder = make(tmp_path / "run")
    hold(folder)
    assert summarise_run(folder.path).state == "running"
    os.utime(folder.config, (1e9, 1e9))
    assert summarise_run(folder.path).state == "interrupted"


def test_other_processes_of_the_run_leave_the_lock_alone(tmp_path):
    folder = make(tmp_path / "run")
    RunLock(folder).setup(SimpleNamespace(is_global_zero=False), None, "fit")
    assert not folder.running.exists()


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.yaml", b"data: [", "not the configuration of a run"),
        ("config.yaml", b"", "not the configuration of a run"),
        ("config.yaml", b"data: photos\nout: run\nepochs: many\n", "epochs is 'many'"),
        ("config.yaml", b"\xff\xfe\x00", "not the configuration of a run"),
        ("metrics.csv", b"", "do not count from 1"),
        ("metrics.csv", b"a,b\n1,2\n", "no column 'epoch'"),
        ("metrics.csv", HEADER.encode() + b"1,x,1,1,1,True\n", "could not convert string to float"),
        ("metrics.csv", HEADER.encode() + b"1,1,1", "line 2 is cut short"),
        ("metrics.csv", HEADER.encode() + b"2,1,1,1,1,True\n", "do not count from 1"),
        ("metrics.csv", b"\x00\xff\x89PNG", "not the metrics"),
    ],
)
def test_a_damaged_run_is_listed_with_the_reason(tmp_path, file, content, said):
    make(tmp_path / "whole", done=2)
    folder = make(tmp_path / "broken", done=1)
    (folder.path / file).write_bytes(content)
    broken, whole = find_runs(tmp_path)
    assert whole.state == "finished"
    assert broken.state == "damaged"
    assert said in broken.reason
    assert "\n" not in broken.reason


@given(content=st.binary(max_size=200))
def test_other_bytes_are_one_sentence(tmp_path_factory, content):
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    folder.metrics.write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.csv: not the metrics of a run"):
        read_history(folder)


def test_runs_are_found_at_any_depth_but_not_inside_a_run(tmp_path):
    make(tmp_path / "b" / "c" / "deep")
    folder = make(tmp_path / "a")
    (folder.path / "wandb").mkdir()
    (folder.path / "wandb" / "config.yaml").write_text("_wandb: {}")
    assert [run.run for run in find_runs(tmp_path)] == [str(tmp_path / "a"), str(tmp_path / "b" / "c" / "deep")]
    assert [run.run for run in find_runs(tmp_path / "a")] == [str(tmp_path / "a")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no run"):
        find_runs(tmp_path / "empty")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        find_runs(tmp_path / "nowhere")


@given(
    lr=st.sampled_from([1e-3, 3e-3]),
    args=st.dictionaries(st.sampled_from(["partial_ratio", "num_heads"]), st.integers(1, 2)),
)
def test_only_what_differs_is_compared(lr, args):
    first = TrainConfig(data="photos", out="first")
    second = replace(first, out="second", lr=lr, model_args=args)
    expected = {f"model_args.{name}": [None, value] for name, value in args.items()}
    assert differing_options([asdict(first), asdict(second)]) == expected | ({"lr": [1e-3, lr]} if lr != 1e-3 else {})


@pytest.mark.parametrize("runs", [2, 14])
def test_curves_of_all_runs_are_drawn(tmp_path, runs):
    rows = [{"epoch": i + 1, "train_loss": 1.0, "best": i == 0} for i in range(3)]
    histories = {f"run {i}": rows for i in range(runs)}
    histories["validated"] = [{**row, "val_loss": 1.0, "val_top1": 0.5} for row in rows]
    histories["not begun"] = []
    figure = draw_comparison(histories, "title")
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[2].get_lines()}
    assert len(looks) == runs + 2
    assert len(figure.legends[0].get_texts()) == runs + 2
    save_figure(figure, tmp_path / "curves.png")


def test_a_resumed_run_goes_on_at_weights_and_biases(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.wandb_id() is None
    for stamp in ("offline-run-20261123_145835-a5s929yh", "run-20261123_160000-a5s929yh"):
        (tmp_path / "wandb" / stamp).mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").mkdir()
    assert folder.wandb_id() == "a5s929yh"
