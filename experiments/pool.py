"""Runs in processes, resumed where a result is missing, and bound to the protocol with which they began."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import torch

from patnet import InputError
from patnet.files import write_text


class Job(NamedTuple):
    """A run: the file that it writes last, and a function that computes it and returns a line on what was found."""

    result: Path
    work: Callable[..., str]
    arguments: tuple[Any, ...]


def start_worker(threads: int) -> None:
    """Called in each process: it ends when the one that started it does, however that ended."""

    def follow() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    torch.set_num_threads(threads)
    Thread(target=follow, daemon=True).start()


def finish(jobs: Sequence[Job], processes: int, threads: int = 1) -> int:
    """Compute the jobs without a result, in their order; returns how many failed."""
    left, began, failed = [job for job in jobs if not job.result.exists()], time.perf_counter(), 0
    print(f"{len(jobs) - len(left)} of {len(jobs)} runs have results", flush=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, start_worker, (threads,)) as pool:
        futures = {pool.submit(job.work, *job.arguments): job for job in left}
        for done, future in enumerate(as_completed(futures), start=1):
            error = future.exception()
            failed += error is not None
            line = f"{futures[future].result}: {type(error).__name__}: {error}" if error else future.result()
            hours = (time.perf_counter() - began) / done * (len(left) - done) / 3600
            print(f"{line}; {len(left) - done} left, about {hours:.1f} h", flush=True)
    return failed


def fix(protocol: Mapping[str, Any], copy: Path, begun: bool) -> None:
    """Keep a copy of the protocol with the runs; once they have begun, no other is taken.

    Raises:
        InputError: If the copy is of another protocol; it names the differences.
    """
    text = json.dumps(protocol, indent=1) + "\n"
    if begun:
        try:
            before, now = (dict(_entries(json.loads(content))) for content in (copy.read_text(encoding="utf-8"), text))
        except (OSError, ValueError) as error:
            raise InputError(f"{copy}: cannot be read, but there are runs ({error}); choose another --out") from error
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            listed = "; ".join(
                f"{key} was {before.get(key, 'absent')} and is {now.get(key, 'absent')}" for key in changed[:5]
            )
            raise InputError(
                f"{copy}: the protocol was changed after the first run ({listed}); undo it or choose another --out"
            )
    write_text(copy, text)


def _entries(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dictionaries with their path of keys."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _entries(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
