"""Measure a training step: forward, backward and AdamW, of PATNet eager, native and compiled, and of FasterNet."""

import json as jsonlib
import os
import sys
from collections.abc import Callable
from itertools import product
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2

from patnet import InputError
from patnet.bench import Timing, describe_machine, interleave, machine, markdown_table, ratio, use_threads
from patnet.cli import main
from patnet.deploy.backend import tracing
from patnet.errors import nearest
from patnet.nn import use_native
from patnet.train.config import PositiveFloat, PositiveInt

NAME = "benchmarks/training_step.py"
SUMMARY = __doc__
EXAMPLES = """Examples:
  python benchmarks/training_step.py
  python benchmarks/training_step.py --models patnet_t2 fasternet_t2 --precision fp32 bf16 --no-compiled
  python benchmarks/training_step.py --native --no-compiled
  python benchmarks/training_step.py --models patnet_t0 --profile
  python benchmarks/training_step.py --device cuda --precision bf16 --img-size 224 --batch-size 128

All run in the same rounds; the speed-up is relative to the last model, eager, in the first precision."""
EXTRA = ("train", ("lightning", "torchmetrics", "jsonargparse"))

# Kinds of operations, and what is in the names of torch's operators; the first that fits counts.
KINDS = {
    "convolutions": ("conv",),
    "matrix products": ("::mm", "::addmm", "::bmm", "::baddbmm", "attention"),
    "norms": ("norm",),
    "activations": ("gelu", "relu", "sigmoid", "softmax"),
    "optimizer": ("adam",),
    "copies": ("copy", "::cat", "clone", "::stack"),
}


def run(
    *,
    models: list[str] = ["patnet_t0", "fasternet_t0"],  # noqa: B006  # read only
    img_size: PositiveInt = 96,
    batch_size: PositiveInt = 64,
    precision: list[Literal["fp32", "bf16"]] = ["fp32"],  # noqa: B006
    compiled: bool = True,
    native: bool = False,
    threads: PositiveInt | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    seconds: PositiveFloat = 40.0,
    profile: bool = False,
    json: bool = False,
) -> int:
    """Measure, and print images/s.

    Args:
        models: Models of timm.
        img_size: Side of the images in px.
        batch_size: Images in a step.
        precision: fp32, or bf16 for torch's autocast, as --precision bf16-mixed trains.
        compiled: Measure steps with torch.compile too, which takes minutes to start.
        native: Measure PATNet with its native functions too, see patnet.nn.use_native.
        threads: CPU threads; default: all.
        device: Device to train on.
        seconds: Duration of the rounds.
        profile: Print instead where the time of the first model's eager step goes.
        json: Print JSON.
    """
    for model in models:
        if not timm.is_model(model):
            raise InputError(f"--models {model}: no such model{nearest(model, timm.list_models())}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no GPU; leave it out to measure on the CPU")
    forms = ["eager", *["native"] * native, *["compiled"] * compiled]
    threads = threads or torch.get_num_threads()
    what = f"--models {' '.join(models)} --img-size {img_size} --batch-size {batch_size}"
    with use_threads(threads), tracing(f"{what}: a training step fails"):
        result: dict[str, Any]
        if profile:
            form = "native" if native else "eager"
            step = training_step(models[0], img_size, batch_size, device, form=form, precision=precision[0])
            result = profile_step(step, device)
            headings = ["operations", "ms", "runs", "share, %"]
            total = sum(ms for ms, _ in result.values())
            lines = [[k, f"{ms:.1f}", f"{runs:.0f}", f"{100 * ms / total:.1f}"] for k, (ms, runs) in result.items()]
        else:
            result = measure(models, img_size, batch_size, precision, forms, seconds, device)
            headings = ["step", "images/s", "speed-up (quartiles)"]
            lines = [
                [name, f"{r['images_per_s']:.1f}", f"{r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f})"]
                for name, r in result.items()
            ]
    if json:
        print(jsonlib.dumps(result, indent=2))
        return 0
    print("\n".join(markdown_table(headings, lines)))
    print(f"\n{img_size} px, batch size {batch_size}, {threads} thread(s), {describe_machine(machine(device))}")
    return 0


def training_step(
    model: str,
    img_size: int,
    batch_size: int,
    device: str = "cpu",
    *,
    form: str = "eager",
    precision: str = "fp32",
) -> Callable[[], None]:
    """A step of AdamW on random images, as `patnet train` makes it; `form` is eager, native or compiled."""
    torch.manual_seed(0)
    network = timm.create_model(model).to(device, memory_format=torch.channels_last).train()
    if form == "compiled":
        network.compile()
    optimizer = create_optimizer_v2(network, opt="adamw", lr=1e-3, weight_decay=0.05, fused=True)
    images = torch.randn(batch_size, 3, img_size, img_size).to(device, memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch_size,)).to(device)

    def step() -> None:
        use_native(form == "native")
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            logits = network(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        use_native(False)  # nothing else is computed with them

    return step


def measure(
    models: list[str],
    img_size: int,
    batch_size: int,
    precisions: list[Any],
    forms: list[str],
    seconds: float,
    device: str = "cpu",
) -> dict[str, dict[str, float]]:
    """Images/s of each step, and its speed-up over the last model's eager step with quartiles over the rounds."""
    steps: dict[str, Callable[[], None]] = {}
    for model, precision, form in product(models, precisions, forms):
        if form == "native" and not model.startswith("patnet"):
            continue
        name = f"{model}, {precision}" + (f", {form}" if form != "eager" else "")
        steps[name] = training_step(model, img_size, batch_size, device, form=form, precision=precision)
        for _ in range(3):
            steps[name]()
    timings = {name: Timing() for name in steps}
    interleave(list(steps.values()), list(timings.values()), seconds=seconds, device=device)
    baseline = timings[f"{models[-1]}, {precisions[0]}"]
    return {name: {"images_per_s": batch_size / t.median, **ratio(baseline, t)} for name, t in timings.items()}


def profile_step(step: Callable[[], None], device: str = "cpu", calls: int = 5) -> dict[str, tuple[float, float]]:
    """Time in ms and number of runs of each kind of operation in a step; on a GPU the time of their kernels."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its messages go to standard error
    for _ in range(2):
        step()
    activities = [getattr(torch.profiler.ProfilerActivity, kind.upper()) for kind in {"cpu", device}]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(calls):
            step()
    found = dict.fromkeys([*KINDS, "other"], (0.0, 0.0))
    for event in profiler.key_averages():
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue  # a kernel, counted with the operator that launched it
        us = event.self_cpu_time_total if device == "cpu" else event.self_device_time_total
        kind = next((k for k, parts in KINDS.items() if any(part in event.key.lower() for part in parts)), "other")
        ms, runs = found[kind]
        found[kind] = ms + us / 1e3 / calls, runs + event.count / calls
    return found


if __name__ == "__main__":
    sys.exit(main(script=sys.modules[__name__]))
