"""What the configurations cost: parameters, GMACs, and the latency of the fused networks, measured interleaved."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from protocol import Protocol
from torch import nn

from patnet import InputError, fuse
from patnet.bench import Timing, count, interleave, machine, ratio, use_threads
from patnet.bench.networks import random_images
from patnet.deploy import prepare

BASE = "base"
BATCH = 16  # images of a batch at the size of training; at the larger size one image is measured
LARGE = 224
WIDTHS = range(8, 34, 2)  # with an odd width the heads would not divide the channels of the last stage


@torch.inference_mode()
def measure_latency(networks: Mapping[str, nn.Module], size: int, batch: int, seconds: float) -> dict[str, Timing]:
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


def match_width(protocol: Protocol, name: str, seconds: float, say: Callable[[str], None]) -> int:
    """The `embed_dim` at which a configuration is as fast as `base`, as close as widths permit, by bisection."""
    widths = []
    for width in WIDTHS:
        with suppress(InputError):
            protocol.network(name, embed_dim=width)
            widths.append(width)
    ratios: dict[int, float] = {}
    low, high = 0, len(widths) - 1
    while low <= high:
        width = widths[middle := (low + high) // 2]
        pair = {BASE: protocol.network(BASE), name: protocol.network(name, embed_dim=width)}
        timings = measure_latency(pair, protocol.img_size, BATCH, seconds)
        ratios[width] = ratio(timings[name], timings[BASE])["ratio"]
        say(f"{name}, embed_dim {width}: {ratios[width]:.2f} times the latency of {BASE}")
        low, high = (middle + 1, high) if ratios[width] < 1 else (low, middle - 1)
    return min(ratios, key=lambda width: abs(math.log(ratios[width])))
