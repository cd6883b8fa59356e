"""Runs in processes, whose results are lines of a file: resumed where one is missing, bound to one protocol."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import torch
from gpu import interleave

from patnet import InputError
from patnet.files import write_text

RESULTS = "results.jsonl"


class Job(NamedTuple):
    """A run: the file of results, the fields by which its result is known, and what computes the result.

    That is a function, or a generator function that returns the result and yields after each step.
    """

    store: Path
    run: Any  # a NamedTuple
    work: Callable[..., Any]
    arguments: tuple[Any, ...]


def read(store: Path) -> list[dict[str, Any]]:
    """The results in a file, one a line; what follows the last line break was cut short and does not count.

    Raises:
        InputError: If a line is damaged.
    """
    lines = store.read_text(encoding="utf-8").split("\n") if store.exists() else [""]
    found = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise InputError(f"{store}, line {number}: is damaged ({error}); remove it and compute it again") from error
    return found


def missing(runs: Sequence[Any], store: Path) -> list[Any]:
    """The runs that have no result in a file."""
    done = {tuple(result.get(field) for field in runs[0]._fields) for result in read(store)} if runs else set()
    return [run for run in runs if tuple(run) not in done]


def start_worker() -> None:
    """Called in each process: it ends when the one that started it does, however that ended."""

    def follow() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    torch.set_num_threads(1)
    Thread(target=follow, daemon=True).start()


def result_of(work: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """The result of a job."""
    found = work(*arguments)
    while isinstance(found, Generator):
        try:
            next(found)
        except StopIteration as end:
            found = end.value
    return found


def in_processes(jobs: Sequence[Job], processes: int) -> Iterator[tuple[int, Any]]:
    """The number of a job and its result or error, as they end."""
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), start_worker)
    try:
        futures = {pool.submit(result_of, job.work, *job.arguments): number for number, job in enumerate(jobs)}
        for future in as_completed(futures):
            yield futures[future], future.exception() or future.result()
    finally:  # after Ctrl-C nobody wants what is still being computed
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()


def finish(jobs: Sequence[Job], processes: int, device: str = "cpu") -> int:
    """Compute the jobs without a result, in their order, and add the results; returns how many failed.

    `processes` at a time, each with one thread, on a GPU in this process.
    """
    absent: dict[Path, set[Any]] = {}
    for store in dict.fromkeys(job.store for job in jobs):
        absent[store] = {*missing([job.run for job in jobs if job.store == store], store)}
        write_text(store, "".join(json.dumps(result) + "\n" for result in read(store)))  # without what was cut short
    left, began, failed = [job for job in jobs if job.run in absent[job.store]], time.perf_counter(), 0
    print(f"{len(jobs) - len(left)} of {len(jobs)} runs have results", flush=True)
    if device == "cuda":
        found = interleave([partial(job.work, *job.arguments) for job in left], processes)
    else:
        found = in_processes(left, processes)
    for done, (number, result) in enumerate(found, start=1):
        job, error = left[number], result if isinstance(result, BaseException) else None
        failed += error is not None
        if error is None:
            with job.store.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
        said = f"{type(error).__name__}: {error}" if error else f"{result['seconds']:.0f} s"
        hours = (time.perf_counter() - began) / done * (len(left) - done) / 3600
        name = ", ".join(str(value) for value in job.run)
        print(f"{job.store.parent.name}: {name}: {said}; {len(left) - done} left, about {hours:.1f} h", flush=True)
    return failed


def fix(protocol: Mapping[str, Any], store: Path) -> None:
    """Keep a copy of the protocol beside the results; from the first one on no other is taken.

    Raises:
        InputError: If the copy is of another protocol; it names the differences.
    """
    text, copy = json.dumps(protocol, indent=1) + "\n", store.with_name("protocol.json")
    if read(store):
        try:
            before, now = (dict(_entries(json.loads(content))) for content in (copy.read_text(encoding="utf-8"), text))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{copy}: cannot be read, but there are runs ({error}); choose another folder of results"
            ) from error
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            listed = "; ".join(
                f"{key} was {before.get(key, 'absent')} and is {now.get(key, 'absent')}" for key in changed[:5]
            )
            reason = f"the protocol was changed after the first run ({listed})"
            raise InputError(f"{copy}: {reason}; undo it or choose another folder of results")
    write_text(copy, text)


def _entries(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dictionaries with their path of keys."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _entries(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
