"""A process that trains one version of a network, a step for each line on its standard input.

It is run by its path, with the version to be measured first on Python's, so it imports nothing of what it
stands beside.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2

import patnet  # noqa: F401  # registers the networks


def training_step(
    model: str,
    size: int,
    batch: int,
    *,
    compiled: bool = False,
    fused_optimizer: bool = False,
    precision: str = "fp32",
) -> Callable[[], None]:
    """A step of AdamW on random pictures.

    Args:
        model: Name, as timm knows it.
        size: Of the pictures, px.
        batch: Pictures in a step.
        compiled: With `torch.compile`.
        fused_optimizer: One kernel for all weights.
        precision: `fp32`, or `bf16` for torch's autocast to it, as `--precision bf16-mixed` trains.
    """
    torch.manual_seed(0)
    network = timm.create_model(model).to(memory_format=torch.channels_last).train()
    if compiled:
        network.compile()
    fused: dict[str, Any] = {"fused": True} if fused_optimizer else {}
    optimizer = create_optimizer_v2(network, opt="adamw", lr=1e-3, weight_decay=0.05, **fused)
    pictures = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = network(pictures)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    """Warm up, say so, and then say how each step went."""
    parser = argparse.ArgumentParser()
    for name in ("model", "size", "batch", "threads"):
        parser.add_argument(name, type=str if name == "model" else int)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--fused_optimizer", action="store_true")
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    step = training_step(
        args.model,
        args.size,
        args.batch,
        compiled=args.compile,
        fused_optimizer=args.fused_optimizer,
        precision=args.precision,
    )
    for _ in range(3):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        step()
        print("done", flush=True)


if __name__ == "__main__":
    main()
