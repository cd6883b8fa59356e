"""One run of a mechanism test: train a network on new images in every step, and test it at each level."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .protocol import BATCH_SIZE, TEST_IMAGES, Test
from .tasks import TASKS, Rng

Task = Callable[[Rng, int, Any], tuple[Tensor, Tensor]]
DRAWN = 20  # steps whose images are drawn at once, which is faster


class Run(NamedTuple):
    """A network of a form and width, trained on a task with a seed."""

    task: str
    form: str
    width: int
    seed: int


def runs_of(test: Test, seeds: Sequence[int]) -> list[Run]:
    """All runs, a seed of everything before the next seed."""
    keys = product(seeds, test.tasks, test.forms, test.widths)
    return [Run(task, form, width, seed) for seed, task, form, width in keys]


def batches(task: Task, rng: Rng, levels: Sequence[float], steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches that have images of all levels, as the statistics of the norms do; of `DRAWN` steps at once."""
    counts = [len(part) for part in np.array_split(np.arange(BATCH_SIZE), len(levels))]
    for start in range(0, steps, DRAWN):
        drawn = [task(rng, DRAWN * count, level) for count, level in zip(counts, levels, strict=True)]
        images, labels = ([part[i].split(count) for part, count in zip(drawn, counts, strict=True)] for i in (0, 1))
        for step in range(min(DRAWN, steps - start)):
            yield torch.cat([part[step] for part in images]), torch.cat([part[step] for part in labels])


def train(test: Test, run: Run, steps: int = 0, images: int = TEST_IMAGES) -> dict[str, Any]:
    """Train, and test on `images` at each level; the same seed gives the same images to all forms."""
    start, task = time.perf_counter(), TASKS[run.task]
    steps = steps or test.steps
    torch.manual_seed(run.seed)
    rng = np.random.default_rng([run.seed, 0])
    x, y = task(np.random.default_rng(0), 2, test.test[0])
    network = test.make(run.form, x.shape[1], y.shape[1], **({"width": run.width} if run.width else {}))
    optimiser = torch.optim.AdamW(network.parameters(), test.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, test.lr, steps, pct_start=0.1)
    for x, y in batches(task, rng, test.train or (run.width,), steps):
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(network(x), y).backward()
        optimiser.step()
        schedule.step()
    network.eval()
    accuracy = {}
    for level in [run.width] if run.width else test.test:
        rng = np.random.default_rng([run.seed, 1])
        right = []
        with torch.inference_mode():
            for _ in range(0, images, BATCH_SIZE):
                x, y = task(rng, BATCH_SIZE, level)
                right.append(((network(x) > 0) == (y > 0.5)).float().mean().item())
        accuracy[str(level)] = float(np.mean(right or 0))
    tables = [value for name, value in network.named_parameters() if name.endswith("position.table")]
    moved = min((value.square().mean().sqrt().item() for value in tables), default=None)
    return {**run._asdict(), "accuracy": accuracy, "moved": moved, "lr": test.lr, "steps": steps} | {
        "seconds": time.perf_counter() - start
    }
