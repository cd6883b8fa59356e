"""One run: Fashion-MNIST in memory, a plain training loop, the test, and how far each component moved."""

import math
import platform
import time
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from gpu import Step
from protocol import Protocol, Run
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils._pytree import tree_map_only

from patnet import InputError, save_checkpoint
from patnet.data import open_data

TEST_BATCH = 250
CPU_KERNELS = torch.library.Library("aten", "IMPL")


@cache
def compute_bfloat16_in_float32(library: torch.library.Library = CPU_KERNELS) -> None:
    """Replace PyTorch's bfloat16 convolutions and matrix products on CPUs for which it has no fast ones.

    Those are several times slower than in float32, and round partial sums of gradients. These compute in float32 and
    round the results, as the instructions do.
    """

    def replace(name: str) -> None:
        kernel = torch.library.get_kernel(f"aten::{name}", "CPU")

        def compute(keys: Any, *inputs: Any) -> Any:
            if inputs[0].dtype is not torch.bfloat16:
                return kernel.call_boxed(keys, *inputs)
            results = kernel.call_boxed(keys, *(v.float() if isinstance(v, Tensor) else v for v in inputs))
            return tree_map_only(Tensor, Tensor.bfloat16, results)

        library.impl(name, compute, "CPU", with_keyset=True, allow_override=True)

    for name in ("convolution", "convolution_backward", "mm", "addmm"):
        replace(name)


class Images(NamedTuple):
    """Normalised images `(N, 1, 28, 28)`, and their labels `(N,)`."""

    pixels: Tensor
    labels: Tensor
    mean: float = 0.0
    std: float = 1.0

    def batch(self, chosen: Tensor, size: int, mirrored: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images upsampled to `size` px, channels-last, some of them mirrored, and their labels."""
        pixels = self.pixels[chosen]
        if mirrored is not None:
            pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear")
        return pixels.contiguous(memory_format=torch.channels_last), self.labels[chosen]


@cache
def open_images(data: str, data_root: str | None, val_fraction: float, device: str) -> tuple[Images, Images]:
    """The training images, and those to test on: a share of the training images or, without one, the test images."""
    splits = open_data(data, in_chans=1, data_root=data_root, val_fraction=val_fraction)
    parts = []
    for part in (splits.train, splits.val if val_fraction else splits.test):
        if part is None:
            raise InputError(f"data {data}: has no images to test on")
        pixels, labels = zip(*((np.asarray(image), label) for image, label in part), strict=True)
        mean, std = splits.mean or 0.0, splits.std or 1.0
        normalised = (torch.from_numpy(np.stack(pixels))[:, None] / 255 - mean) / std
        parts.append(Images(normalised.to(device), torch.tensor(labels, device=device), mean, std))
    return parts[0], parts[1]


def steps(
    network: nn.Module, images: Images, protocol: Protocol, lr: float, epochs: int, seed: int
) -> Iterator[Tensor]:
    """Train a network; gives the loss of each step."""
    generator = torch.Generator().manual_seed(seed)
    size, batch, device = len(images.labels), protocol.batch_size, images.labels.device
    if device.type == "cpu" and protocol.precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        compute_bfloat16_in_float32()
    network.train().to(device).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(network, opt="adamw", lr=lr, weight_decay=protocol.weight_decay, fused=True)
    chosen = torch.zeros(batch, dtype=torch.long, device=device)
    mirrored = torch.zeros(batch, dtype=torch.bool, device=device)

    def compute() -> Tensor:
        pixels, labels = images.batch(chosen, protocol.img_size, mirrored)
        with torch.autocast(device.type, torch.bfloat16, enabled=protocol.precision == "bf16"):
            logits = network(pixels)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=protocol.smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    step = Step(compute, optimizer, device.type)
    schedule = OneCycleLR(optimizer, lr, epochs * (size // batch), pct_start=protocol.warmup, cycle_momentum=False)
    for _ in range(epochs):
        order = torch.randperm(size, generator=generator)[: size // batch * batch].view(-1, batch).to(device)
        flips = (torch.rand(order.shape, generator=generator) < 0.5).to(device)
        for some, flip in zip(order, flips, strict=True):
            chosen.copy_(some)
            mirrored.copy_(flip)
            loss = step()
            schedule.step()
            yield loss


@torch.inference_mode()
def top1(network: nn.Module, images: Images, size: int) -> float:
    """Share of the images that the network classifies correctly, in float32."""
    network.eval()
    correct = torch.zeros((), dtype=torch.long, device=images.labels.device)
    for chosen in torch.arange(len(images.labels), device=images.labels.device).split(TEST_BATCH):
        pixels, labels = images.batch(chosen, size)
        correct += (network(pixels).argmax(1) == labels).sum()
    return correct.item() / len(images.labels)


def moved(initial: dict[str, Tensor], network: nn.Module) -> dict[str, float]:
    """How far the components of a network moved from their initial values, by their class in `patnet.nn`.

    That is the RMS change of the parameter of its own that moved most, without those values that did not change at all,
    relative to the RMS of its initial values unless these are 0.
    """
    types = {path: type(module) for path, module in network.named_modules()}
    ours = [path for path, kind in types.items() if kind.__module__.startswith(("patnet.nn.", "timm.layers."))]
    changes: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {}
    for name, value in network.named_parameters():
        if owners := [path for path in ours if name.startswith(f"{path}.")]:
            path, before = owners[-1], initial[name].flatten()  # the innermost
            key = types[path].__name__, name.removeprefix(path)
            changes.setdefault(key, []).append((before, value.detach().cpu().flatten() - before))
    found: dict[str, float] = {}
    for (component, _), parts in changes.items():
        before, change = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        rms, change = before.square().mean().sqrt().item(), change[change != 0]
        relative = change.square().mean().sqrt().item() / (rms or 1.0) if len(change) else 0.0
        found[component] = max(found.get(component, 0.0), relative)
    return found


def folder_of(run: Run, networks: Path) -> Path:
    """Folder of the network of a run."""
    return networks / run.device / run.configuration / f"seed-{run.seed}"


def train_run(
    run: Run, protocol: Protocol, networks: Path, data_root: str | None
) -> Generator[None, None, dict[str, Any]]:
    """Train and test a run, and write its network, unless it is one of the search; yields after each step."""
    train, test = open_images(protocol.data, data_root, run.val_fraction, run.device)
    torch.manual_seed(run.seed)
    network = protocol.network(run.configuration)
    initial = {name: value.detach().clone() for name, value in network.named_parameters()}
    began, losses = time.perf_counter(), []
    for loss in steps(network, train, protocol, run.lr, run.epochs, run.seed):
        losses.append(loss)
        yield
    last = torch.stack(losses[-50:]).mean().item()
    seconds, size = time.perf_counter() - began, protocol.img_size
    result: dict[str, Any] = run._asdict() | {
        "top1": round(top1(network, test, size), 6),
        "images": len(test.labels),
        "loss": last if math.isfinite(last) else None,  # a run that diverges has a result too
        "moved": {component: round(value, 5) for component, value in moved(initial, network).items()},
        "parameters": sum(value.numel() for value in initial.values()),
        "seconds": round(seconds, 1),
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {run.device}, "
        f"PyTorch {torch.__version__}",
    }
    if not run.val_fraction:
        save_checkpoint(
            network.cpu().to(memory_format=torch.contiguous_format),
            folder_of(run, networks),
            model_args={**protocol.model_kwargs, **protocol.configurations[run.configuration]},
            data_config={"input_size": (1, size, size), "mean": (test.mean,), "std": (test.std,), "crop_pct": 1.0},
        )
    return result
