"""Two processes of one run, forked with the environment that torchrun sets: no second import of torch."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any


def in_two_processes(function: Callable[[], Any]) -> list[Any]:
    """What `function` returns in each of two processes."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    common |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": 0}
    results = context.Queue()

    def ranked(rank: int) -> None:
        os.environ.update({k: str(v) for k, v in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()})
        results.put((rank, function()))

    children = [context.Process(target=ranked, args=(rank,)) for rank in range(2)]
    for child in children:
        child.start()
    found = dict(results.get(timeout=60) for _ in children)
    for child in children:
        child.join()
    return [found[rank] for rank in range(2)]
