"""Measure prefill and decoding of each configuration on one CPU thread, with random weights."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from gpt import GPT, Cache
from grid import flops, model_config

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
) -> dict:
    """Tokens/s, and memory of the cache in bytes, by configuration."""
    longest, calls, timings, rows = max(positions), [], [], {}
    for name in names:
        model = GPT(model_config(size, name, vocab_size, longest + DECODED)).eval()
        some = {n: model.cache(1, n).nbytes() for n in (1, longest)}
        rows[name] = {
            "flops": flops(model.config),
            "cache_token": (some[longest] - some[1]) / (longest - 1),
            "cache": some[longest],
        }
        for n in positions:
            cache, prompt = model.cache(), torch.randint(vocab_size, (1, n))
            model(prompt, cache)
            both: list[tuple[str, int, Callable[[], None]]] = [("prefill", n, partial(prefill, model, prompt))]
            both.append(("decode", DECODED, partial(decode, model, cache, n)))
            for what, tokens, call in both:
                timings.append(Timing())
                calls.append((call, rows[name], f"{what}_{n}", tokens))
    with use_threads(1):
        interleave([call for call, *_ in calls], timings, seconds=seconds, min_rounds=7)
    for (_, row, key, tokens), timing in zip(calls, timings, strict=True):
        row[key] = tokens / timing.median
        low, high = (
            tokens / t for t in torch.tensor(timing.medians).quantile(torch.tensor([0.75, 0.25]).double()).tolist()
        )
        row[f"{key}_quartiles"] = [low, high]
    return {
        "size": size,
        "machine": machine(),
        "positions": list(positions),
        "date": time.strftime("%Y-%m-%d"),
        "rows": rows,
    }
