"""The state of a run, its lock, and damaged runs."""

import os
import time
from contextlib import suppress
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.utilities import rank_zero_only
from train.running import FORK

from patnet import InputError
from patnet.train import RunDirectory, TrainConfig
from patnet.train.summary import differing_options, find_runs, read_history, summarise_run

HEADER = "epoch,train_loss,val_loss,val_top1,seconds,best\n"


def make(path, epochs=2, done=0):
    run = RunDirectory(path)
    run.create(TrainConfig(data="images", out=str(path), epochs=epochs))
    if done:
        rows = (f"{i + 1},1.5,{2 - i / 10},{0.5 + i / 100},2.5,{i == done // 2}\n" for i in range(done))
        run.metrics.write_text(HEADER + "".join(rows))
    return run


def state(run):
    return summarise_run(run.path).state


def in_child(function):
    """A forked process that has called `function` and then sleeps."""
    read, send = FORK.Pipe(duplex=False)

    def call():
        function()
        send.send(None)
        time.sleep(60)

    child = FORK.Process(target=call)
    child.start()
    read.recv()
    return child


def test_the_state_follows_the_epochs_and_the_lock(tmp_path):
    run = make(tmp_path / "run", epochs=3)
    assert state(run) == "interrupted"
    with suppress(KeyboardInterrupt), run.lock():
        assert state(run) == "running"
        with pytest.raises(InputError, match="another process is training this run"), RunDirectory(run.path).lock():
            pass
        with pytest.raises(InputError, match="another process is training this run"):
            run.check(run.read_config(), resume=True)
        assert state(run) == "running"  # those that were refused left the lock
        raise KeyboardInterrupt
    assert state(run) == "interrupted"
    run.check(run.read_config(), resume=True)
    assert [file.name for file in run.path.iterdir()] == ["config.yaml"]
    done = summarise_run(make(tmp_path / "done", done=2).path)
    assert (done.state, done.epochs, done.best["epoch"], done.best_top1) == ("finished", 2, 2, 0.51)
    assert done.seconds == 5


def test_a_killed_process_releases_its_run_although_its_loader_lives(tmp_path):
    run = make(tmp_path / "run")
    child = in_child(run.lock().__enter__)
    assert state(run) == "running"
    child.kill()
    child.join()
    assert state(run) == "interrupted"
    with run.lock():
        loader = in_child(lambda: None)
    with run.lock():
        pass
    loader.kill()


def test_on_a_file_system_without_locks_the_time_of_the_last_change_decides(tmp_path, monkeypatch):
    def no_locks(file, kind):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    run = make(tmp_path / "run")
    with run.lock():
        assert state(run) == "running"
        os.utime(run.config, (1e9, 1e9))
        assert state(run) == "interrupted"


def test_other_processes_of_the_run_take_no_lock(tmp_path, monkeypatch):
    run = make(tmp_path / "run")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with run.lock():
        assert not run.is_running()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", b"data: [", "not the configuration of a run"),
        ("config.yaml", b"", "not the configuration of a run"),
        ("config.yaml", b"data: images\nout: run\nepochs: many\n", "epochs is 'many'"),
        ("config.yaml", b"\xff\xfe\x00", "not the configuration of a run"),
        ("metrics.csv", b"", "do not count from 1"),
        ("metrics.csv", b"a,b\n1,2\n", "no column 'epoch'"),
        ("metrics.csv", HEADER.encode() + b"1,x,1,1,1,True\n", "could not convert string to float"),
        ("metrics.csv", HEADER.encode() + b"1,1,1", "line 2 is cut short"),
        ("metrics.csv", HEADER.encode() + b"2,1,1,1,1,True\n", "do not count from 1"),
        ("metrics.csv", b"\x00\xff\x89PNG", "not the metrics"),
    ],
)
def test_a_damaged_run_is_listed_with_the_reason(tmp_path, file, content, message):
    make(tmp_path / "sound", done=2)
    (make(tmp_path / "broken", done=1).path / file).write_bytes(content)
    broken, sound = find_runs(tmp_path)
    assert (sound.state, broken.state) == ("finished", "damaged")
    assert message in broken.reason
    assert "\n" not in broken.reason


@given(content=st.binary(max_size=200))
def test_other_bytes_are_an_error_message(tmp_path_factory, content):
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    run.metrics.write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.csv: not the metrics of a run"):
        read_history(run)


def test_runs_are_found_at_any_depth_but_not_inside_a_run(tmp_path):
    make(tmp_path / "b" / "c" / "deep")
    run = make(tmp_path / "a")
    (run.path / "wandb").mkdir()
    (run.path / "wandb" / "config.yaml").write_text("_wandb: {}")
    assert [found.run for found in find_runs(tmp_path)] == [str(tmp_path / "a"), str(tmp_path / "b" / "c" / "deep")]
    assert [found.run for found in find_runs(tmp_path / "a")] == [str(tmp_path / "a")]
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
    first = TrainConfig(data="images", out="first")
    second = replace(first, out="second", lr=lr, model_kwargs=args)
    expected = {f"model_kwargs.{name}": [None, value] for name, value in args.items()}
    assert differing_options([asdict(first), asdict(second)]) == expected | ({"lr": [1e-3, lr]} if lr != 1e-3 else {})


def test_a_resumed_run_keeps_its_identifier_at_weights_and_biases(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.wandb_id() is None
    for stamp in ("offline-run-20261123_145835-a5s929yh", "run-20261123_160000-a5s929yh"):
        (tmp_path / "wandb" / stamp).mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").mkdir()
    assert run.wandb_id() == "a5s929yh"
