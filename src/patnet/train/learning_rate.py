"""`--find-lr`: the learning rates at which the loss falls, by Lightning's range test."""

import contextlib
import io
import sys
import tempfile
from dataclasses import replace
from functools import partial
from typing import Any

from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.plugins.environments import LightningEnvironment
from matplotlib.figure import Figure
from rich.console import Console

from ..data.batches import Batches, seed_all
from ..errors import InputError
from .batch_size import choose_batch_size
from .classifier import Classifier, follow_weights
from .config import TrainConfig
from .data import ClassificationData
from .run import interruptible, make_trainer

__all__ = ["draw_range_test", "find_lr"]

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 100


class _RangeTest(LearningRateFinder):
    """Lightning's finder without the training after it."""

    def __init__(self, steps: int) -> None:
        super().__init__(LOWEST, HIGHEST, steps, update_attr=False)
        self._early_exit = True


class _LayerRates(Classifier):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Scale the rates of the layers, which Lightning sets to one, as timm's schedules do."""
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)
        super().on_before_optimizer_step(optimizer)


def find_lr(config: TrainConfig, *, steps: int = STEPS, console: Console | None = None) -> tuple[float, dict[str, Any]]:
    """Train some steps while the learning rate rises, on one device and without a run directory.

    Args:
        config: Options of the run; the weights, the data and the losses are its own, the learning rates are not.
        steps: Number of steps, each with a higher rate.
        console: Where to print.

    Returns:
        The learning rate at which the loss falls fastest, and lists of `lr` and smoothed `loss`.

    Raises:
        InputError: If the options or the data cannot be used, or the loss falls at none of the rates.
    """
    config.check()
    config = replace(follow_weights(config), head_epochs=0)  # the rate of all layers
    data, make_module = ClassificationData(config), partial(_LayerRates, config)
    if config.batch_size == "auto":
        config = choose_batch_size(config, data, make_module, 1, console or Console())
    data = data.with_batches(Batches.of(int(config.batch_size), config.global_batch_size, 1))
    seed_all(config.seed)
    finder = _RangeTest(steps)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"precision": config.precision, "gradient_clip_val": config.clip_grad}
        options |= {"limit_val_batches": 0, "max_epochs": -1, "accumulate_grad_batches": data.batches.accumulate}
        trainer = make_trainer(
            config.accelerator,
            "1",
            plugins=[LightningEnvironment()],
            callbacks=[finder],
            default_root_dir=folder,
            **options,
        )
        hidden = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
        with interruptible(trainer), hidden:  # Lightning's progress bar
            trainer.fit(make_module(data, None), data.train_loader())
    found: Any = finder.optimal_lr
    suggested = found.suggestion(skip_begin=5)
    if suggested is None:
        raise InputError("--find-lr: the loss falls at none of the learning rates; give more images or --epochs")
    # Lightning divides the loss of a part by the parts of a step.
    losses = [loss * data.batches.accumulate for loss in found.results["loss"]]
    return suggested, {**found.results, "loss": losses}


def draw_range_test(results: dict[str, Any], suggested: float) -> Figure:
    """The loss over the learning rate, and the suggested one."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(results["lr"], results["loss"])
    axes.axvline(suggested, color="0.5", linestyle="--", label=f"steepest fall, {suggested:.1e}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss, smoothed", title="Learning-rate range test")
    axes.legend(frameon=False)
    return figure
