"""What the configurations cost: parameters, GMACs, and the latency of the fused networks, measured interleaved."""

import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from protocol import BASE, Protocol
from torch import nn

from patnet import InputError, fuse
from patnet.bench import Timing, count, interleave, machine, ratio, use_threads
from patnet.bench.networks import random_images
from patnet.deploy import prepare

BATCH = 16  # images of a batch at the size of training; at the larger size one image is measured
LARGE = 224
WIDTHS = range(8, 34, 2)  # with an odd width the heads would not divide the channels of the last stage


@torch.inference_mode()
def measure_latency(networks: Mapping[Any, nn.Module], size: int, batch: int, seconds: float) -> dict[Any, Timing]:
    """Interleaved runs of the fused networks in eager PyTorch on a batch of noise, with one CPU thread.

    Durations are CPU time, which with one thread does not depend on what else runs.
    """
    timings = {name: Timing() for name in networks}
    calls = []
    with use_threads(1):
        for network in networks.values():
            images = random_images(network, batch, size)
            call = prepare(fuse(network), images, backend="eager", threads=1)
            call(images)
            calls.append(partial(call, images))
        interleave(calls, list(timings.values()), seconds=seconds, clock=time.process_time)
    return timings


def measure_costs(protocol: Protocol, seconds: float) -> dict[str, Any]:
    """Parameters, GMACs and latency of each configuration; `ratio`, `low` and `high` relative to `base`."""
    found: dict[str, dict[str, Any]] = {}
    for name in protocol.configurations:
        parameters, gmacs = count(protocol.network(name, device="meta"), protocol.img_size)
        found[name] = {"parameters": parameters, "gmacs": round(gmacs, 5), "latency": {}}
    for size, batch in ((protocol.img_size, BATCH), (LARGE, 1)):
        networks = {name: protocol.network(name) for name in protocol.configurations}
        timings = measure_latency(networks, size, batch, seconds / 2)
        for name, timing in timings.items():
            latency = {"ms": round(1e3 * timing.median / batch, 4), **ratio(timing, timings[BASE])}
            found[name]["latency"][f"{size} px"] = latency
    return {"machine": machine("cpu"), "configurations": found}


def match_width(protocol: Protocol, name: str, seconds: float) -> dict[int, float]:
    """Latency of a configuration relative to `base` by `embed_dim`, for the widths that its network takes."""
    networks: dict[Any, nn.Module] = {BASE: protocol.network(BASE)}
    for width in WIDTHS:
        with suppress(InputError):
            networks[width] = protocol.network(name, embed_dim=width)
    timings = measure_latency(networks, protocol.img_size, BATCH, seconds)
    return {width: ratio(timings[width], timings[BASE])["ratio"] for width in networks if width != BASE}
