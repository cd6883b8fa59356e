"""Prediction on Ray Data: tasks list and decode, a pool of actors holds the network, the driver writes."""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
from rich.console import Console
from torch import nn

from ..data.sources import Reader, list_chunks, read_chunks
from ..deploy import Exported, load_exported
from ..errors import InputError, one_line
from ..models import Loaded, load_checkpoint
from .predict import Network

LIST_CPUS = 0.01  # listing waits most of the time, and must not keep the others from starting
DECODE_CPUS = 0.49  # no number that an actor requests, since Ray would then decode in the process of the network
CHUNK = 4  # batches that a task decodes: Ray starts some hundred tasks per second


class _Actor:
    """A network in a process of its own."""

    def __init__(self, loaded: Loaded, file: str, exported: bool, threads: int, options: dict[str, Any]) -> None:
        # A runtime would take all processors of the machine; Ray has set the threads of PyTorch.
        model = load_exported(file, threads) if exported else load_checkpoint(file).model
        self.network = Network(replace(loaded, model=model), **options)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        return self.network(batch)


def _connect(address: str | None, actor: dict[str, Any], weights: int, console: Console) -> None:
    """Connect to the cluster, or start one here, and check that an actor fits on a node."""
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    host, _, port = address.rpartition(":")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Else a decoder without work for a second is ended, and the next takes seconds to import PyTorch.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    try:
        if port.isdigit() and "/" not in host:
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray would try for ten minutes
        context = ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"--ray-address {address}: no Ray cluster can be reached ({one_line(error)})") from error
    if context.dashboard_url:
        console.print(f"Ray's dashboard: http://{context.dashboard_url}", markup=False, highlight=False)
    # Ray restarts without end what the system kills for its memory, so a network must have twice that of its weights.
    memory = max(actor["memory"] or 0, 2 * weights)
    needs = {"CPU": actor["num_cpus"], "GPU": actor["num_gpus"], "memory": memory}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0) >= need for name, need in needs.items()) for node in nodes):
        wanted = ", ".join(f"{need:g} {name}" for name, need in needs.items())
        hint = "lower --actor-cpus, --actor-gpus or --actor-gb"
        raise InputError(f"no node of the Ray cluster has what one network requests ({wanted}); {hint}")


def predict_on_ray(
    loaded: Loaded,
    sources: Sequence[str],
    reader: Reader,
    options: dict[str, Any],
    actor: dict[str, Any],
    most: int | None,
    address: str | None,
    console: Console,
) -> Iterator[pa.Table]:
    """Predict on Ray; tables of answers in any order.

    Args:
        loaded: A classifier with a file, which each node can read.
        sources: Files, folders, patterns and so on.
        reader: Reads them.
        options: Options of `Network`.
        actor: What a network requests of Ray.
        most: Number of networks, at most.
        address: Address of the cluster.
        console: Where the address of the dashboard is printed.

    Raises:
        InputError: If Ray is not installed or not reached, or a network does not fit.
    """
    import ray
    from ray.data.exceptions import SystemException, UserCodeException

    assert loaded.file is not None
    _connect(address, actor, loaded.file.stat().st_size, console)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.issue_detectors_config.detectors = []
        context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0  # a network takes seconds to start
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        done = ray.put(reader.done)  # once on each node, whose tasks share it
        reader.done = reader.done[:0]
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=most or max(1, int(ray.cluster_resources()["CPU"])))
        data: Any = ray.data  # whose types allow no further arguments of a function
        listed = data.range(1, override_num_blocks=1).map_batches(
            list_chunks, fn_kwargs={"sources": sources, "size": CHUNK * reader.size}, num_cpus=LIST_CPUS
        )
        decoded = listed.repartition(target_num_rows_per_block=1).map_batches(
            read_chunks,
            fn_kwargs={"reader": reader, "done": lambda: ray.get(done)},
            batch_format="pyarrow",
            num_cpus=DECODE_CPUS,
        )
        threads = max(1, int(actor["num_cpus"]))
        exported, without = isinstance(loaded.model, Exported), replace(loaded, model=nn.Identity())
        given = (without, str(loaded.file.absolute()), exported, threads, options)
        answers = decoded.map_batches(_Actor, fn_constructor_args=given, batch_size=reader.size, compute=pool, **actor)
        yield from answers.iter_batches(batch_size=None, batch_format="pyarrow")
    except (ray.exceptions.RayError, UserCodeException, SystemException) as error:
        raise _explained(error) from error
    finally:
        ray.shutdown()


def _explained(error: BaseException) -> BaseException:
    """The `InputError` of a task or actor in place of Ray's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return InputError(str(getattr(cause, "cause", cause)))  # Ray's own has the traceback in it
        cause = getattr(cause, "cause", None) or cause.__cause__
    return error
