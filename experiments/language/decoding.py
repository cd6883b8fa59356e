"""Measure prefill and decoding of each configuration on one CPU thread, with random weights."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from gpt import GPT, Cache
from grid import model_config

from patnet.bench import Timing, interleave, machine, use_threads

POSITIONS = (256, 2048)
DECODED = 8  # tokens in a run


def prefill(model: GPT, tokens: torch.Tensor) -> None:
    """Read a prompt into an empty cache."""
    model(tokens, model.cache(1, tokens.shape[1]))


def decode(model: GPT, cache: Cache, position: int) -> None:
    """Generate tokens after a number of positions; which tokens makes no difference to the time."""
    cache.length = position
    for _ in range(DECODED):
        model(torch.zeros(1, 1, dtype=torch.long), cache)


@torch.inference_mode()
def measure(
    size: str, names: Sequence[str], vocab_size: int, seconds: float, positions: Sequence[int] = POSITIONS
) -> dict[str, Any]:
    """Tokens/s, the median over rounds, and memory of the cache in bytes, by configuration."""
    longest = max(positions)
    rows: dict[str, dict[str, float]] = {}
    calls: dict[tuple[str, str], tuple[int, Callable[[], None]]] = {}  # with the number of tokens
    for name in names:
        model = GPT(model_config(size, name, vocab_size, longest + DECODED)).eval()
        one, full = (model.cache(1, n).nbytes() for n in (1, longest))
        rows[name] = {"cache_token": (full - one) / (longest - 1), "cache": full}
        for n in positions:
            cache, prompt = model.cache(), torch.randint(vocab_size, (1, n))
            model(prompt, cache)
            calls[name, f"prefill_{n}"] = n, partial(prefill, model, prompt)
            calls[name, f"decode_{n}"] = DECODED, partial(decode, model, cache, n)
    timings = [Timing() for _ in calls]
    with use_threads(1):
        interleave([call for _, call in calls.values()], timings, seconds=seconds, min_rounds=7)
    for (name, key), timing in zip(calls, timings, strict=True):
        rows[name][key] = calls[name, key][0] / timing.median
    return {"size": size, "machine": machine(), "rows": rows}
