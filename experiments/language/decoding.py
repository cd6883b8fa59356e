"""Measure prefill and decoding of each configuration on one CPU thread, with random weights."""

from collections.abc import Callable
from typing import Any

import torch

from patnet.bench import Timing, interleave, machine, use_threads

from .gpt import GPT, Cache
from .protocol import CONFIGURATIONS, model_config

POSITIONS = (256, 2048)
DECODED = 8  # tokens in a run


@torch.inference_mode()
def measure(size: str, vocab_size: int, seconds: float) -> dict[str, Any]:
    """Tokens/s, the median over rounds, and memory of the cache in bytes a token, by configuration."""
    rows: dict[str, dict[str, float]] = {}
    counts: list[tuple[str, str, int]] = []  # number of tokens
    calls: list[Callable[[], object]] = []
    for name in CONFIGURATIONS:
        caches = []
        model = GPT(model_config(size, name, vocab_size, max(POSITIONS) + DECODED))
        for n in POSITIONS:
            prompt, cache = torch.randint(vocab_size, (1, n)), Cache(n + DECODED)
            model(prompt, cache)

            def decode(model: GPT = model, cache: Cache = cache, n: int = n) -> None:
                cache.length = n
                for _ in range(DECODED):  # which tokens makes no difference to the time
                    model(torch.zeros(1, 1, dtype=torch.long), cache)

            calls += [lambda model=model, prompt=prompt: model(prompt, Cache(prompt.shape[1])), decode]
            counts += [(name, f"prefill_{n}", n), (name, f"decode_{n}", DECODED)]
            caches.append(cache.nbytes())
        # The last inputs of convolutions and the statistics take the same memory at any length.
        rows[name] = {"cache": (caches[1] - caches[0]) / (POSITIONS[1] - POSITIONS[0])}
    timings = [Timing() for _ in calls]
    with use_threads(1):
        interleave(calls, timings, seconds=seconds, min_rounds=7)
    for (name, key, count), timing in zip(counts, timings, strict=True):
        rows[name][key] = count / timing.median
    return {"size": size, "machine": machine(), "rows": rows}
