"""What the configurations cost: parameters, GMACs, and latency measured interleaved."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import timm
from config import ExperimentConfig

from patnet import InputError, fuse
from patnet.bench import Timing, count, interleave, machine, ratio, use_threads
from patnet.bench.networks import random_images
from patnet.deploy import find_backend, prepare

Say = Callable[[str], None]
Networks = Mapping[str, Mapping[str, Any]]  # arguments of the model by configuration
WIDTH_STEP = 2  # channels; with an odd width the heads would not divide the channels of the last stage


def create(model: str, model_kwargs: Mapping[str, Any]) -> Any:
    """The network of a configuration, in evaluation mode.

    Raises:
        InputError: If the model does not take its arguments.
    """
    try:
        return timm.create_model(model, **model_kwargs).eval()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"--model {model}: does not take these arguments ({error})") from error


def measure_latency(
    networks: Networks, size: int, batch: int, config: ExperimentConfig, seconds: float
) -> dict[str, Timing]:
    """Runs of each fused network on a batch of noise, interleaved.

    Raises:
        InputError: If a network does not run.
    """
    calls, timings = [], {name: Timing() for name in networks}
    with use_threads(config.cost_threads):
        for name, model_kwargs in networks.items():
            network = fuse(create(config.model, model_kwargs)).to(config.device)
            images = random_images(network, batch, size).to(config.device)
            try:
                call = prepare(network, images, backend=config.backend, threads=config.cost_threads)
                call(images)
            except InputError:
                raise
            except Exception as error:  # each backend and network raises its own
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise InputError(f"configuration {name}: does not run in {config.backend} ({reason})") from error
            calls.append(partial(call, images))
        interleave(calls, list(timings.values()), seconds=seconds, min_rounds=3, device=config.device)
    return timings


def match_widths(networks: Networks, baseline: str, config: ExperimentConfig, say: Say) -> dict[str, Any]:
    """The networks with the `embed_dim` at which each is as fast as the baseline, as close as widths permit.

    Batches of the size of training are measured; the width is found by bisection between half and twice the baseline's.

    Raises:
        InputError: If a network does not take any of these widths.
    """
    reference = create(config.model, networks[baseline]).feature_info[0]["num_chs"]
    matched = dict(networks)
    for name in networks:
        if name == baseline:
            continue
        candidates = {}
        for width in range(max(WIDTH_STEP, reference // 2), 2 * reference + 1, WIDTH_STEP):
            with suppress(InputError):
                create(config.model, model_kwargs := {**networks[name], "embed_dim": width})
                candidates[width] = model_kwargs
        if not candidates:
            raise InputError(f"configuration {name}: takes no width from {reference // 2} to {2 * reference}")
        ratios: dict[int, float] = {}
        widths, low, high = list(candidates), 0, len(candidates) - 1
        while low <= high:
            middle = (low + high) // 2
            width = widths[middle]
            pair = {baseline: networks[baseline], name: candidates[width]}
            timings = measure_latency(pair, config.img_size, config.cost_batch, config, config.cost_seconds / 45)
            ratios[width] = ratio(timings[name], timings[baseline])["ratio"]
            say(f"{name}, width {width}: {ratios[width]:.2f} times the latency of {baseline}")
            low, high = (middle + 1, high) if ratios[width] < 1 else (low, middle - 1)
        matched[name] = candidates[min(ratios, key=lambda w: abs(math.log(ratios[w])))]
    return matched


def measure_costs(
    networks: Networks, baseline: str, sizes: Sequence[int], config: ExperimentConfig, say: Say
) -> dict[str, Any]:
    """Parameters and GMACs of the unfused networks, and the latency of the fused ones, measured interleaved.

    As in the paper, images have three channels and there are 1 000 classes. A batch is measured at the first size only.

    Returns:
        The content of `costs.json`; `ratio`, `low` and `high` are the latency relative to the baseline, median and
        quartiles over rounds.

    Raises:
        InputError: If a network does not take a size or does not run in the backend.
    """
    find_backend(config.backend)
    found: dict[str, dict[str, Any]] = {}
    for name, model_kwargs in networks.items():
        network = create(config.model, {**model_kwargs, "device": "meta"})  # where attention is counted
        counts = {str(size): count(network, size) for size in sizes}
        gmacs = {size: round(value, 4) for size, (_, value) in counts.items()}
        found[name] = {"parameters": counts[str(sizes[0])][0], "gmacs": gmacs, "model_kwargs": dict(model_kwargs)}
    settings = dict.fromkeys([(sizes[0], config.cost_batch), *((size, 1) for size in sizes)])
    rows = []
    for size, batch in settings:
        say(f"measuring the latency of {len(networks)} networks, {size} px, batch {batch}")
        timings = measure_latency(networks, size, batch, config, config.cost_seconds / len(settings))
        for name, timing in timings.items():
            row = {"configuration": name, "size_px": size, "batch": batch, "median_ms": round(1e3 * timing.median, 4)}
            row["images_per_s"] = round(batch / timing.median, 2)
            rows.append(row | ratio(timing, timings[baseline]))
    how = {"machine": machine(config.device), "backend": config.backend, "threads": config.cost_threads}
    return {**how, "networks": found, "rows": rows}
