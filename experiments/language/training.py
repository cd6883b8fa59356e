"""Train a model, measure its loss, and keep what was found: the results of runs, and checkpoints."""

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu import Step
from pool import read
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from patnet import InputError
from patnet.bench import machine
from patnet.deploy.pytorch import has_bf16
from patnet.files import atomic_write

from .corpus import Corpus, load
from .gpt import GPT, GPTConfig
from .protocol import SEARCH_SEED, Budget, Run, flops, model_config


def steps(model: GPT, text: Tensor, rate: float, seed: int, budget: Budget) -> Iterator[Tensor]:
    """Train a model, in bfloat16 (autocast) where the device computes in it; gives the loss of each step.

    Args:
        model: The model.
        text: Tokens to train on.
        rate: Highest learning rate: linear warm-up over 5 % of the steps, cosine decay to a tenth.
        seed: Random seed of the order of the text, the same on each device.
        budget: What is read.

    Raises:
        InputError: If the text is shorter than a sequence.
    """
    if len(text) <= budget.context:
        raise InputError(f"{len(text)} tokens to train on; {budget.context + 1} are needed: give more text")
    device = model.tokens.weight.device.type
    bf16 = has_bf16(device)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim != 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, rate, (0.9, 0.95), fused=True)
    warm_up = max(1, budget.steps // 20)
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - budget.context, (budget.steps, budget.batch), generator=generator).to(device)
    text, start, positions = text.to(device), starts[0].clone(), torch.arange(budget.context + 1, device=device)

    def compute() -> Tensor:
        tokens = text[start[:, None] + positions].long()
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.55 + 0.45 * math.cos(math.pi * min(1, (step + 1 - warm_up) / max(1, budget.steps - warm_up)))

    step = Step(compute, optimizer, device)
    schedule = LambdaLR(optimizer, factor)
    for some in starts:
        start.copy_(some)
        loss = step()
        schedule.step()
        yield loss


@torch.inference_mode()
def measure_loss(model: GPT, text: Tensor, token_bytes: Tensor, budget: Budget) -> dict[str, float]:
    """Bits per byte, and loss of a token, over evenly spaced windows without the text before them; in float32.

    Raises:
        InputError: If the text is shorter than a window.
    """
    windows, device = min(budget.windows, len(text) // (budget.context + 1)), model.tokens.weight.device
    if windows == 0:
        raise InputError(f"a text of {len(text)} tokens; {budget.context + 1} are needed: give more text or files")
    nats, size = torch.zeros((), dtype=torch.float64, device=device), 0.0
    for some in torch.linspace(0, len(text) - budget.context - 1, windows, dtype=torch.float64).long().split(8):
        tokens = text[some[:, None] + torch.arange(budget.context + 1)].long()
        logits, targets = model(tokens[:, :-1].to(device)).flatten(0, 1), tokens[:, 1:].flatten()
        nats += F.cross_entropy(logits, targets.to(device), reduction="sum")
        size += token_bytes[targets].sum().item()
    return {"bits_per_byte": nats.item() / math.log(2) / size, "loss": nats.item() / windows / budget.context}


def train_run(run: Run, file: Path, device: str, budget: Budget) -> Generator[None, None, dict[str, Any]]:
    """Train on a corpus and measure the texts of the tests, or validation of the search; yields after each step."""
    corpus, began = load(file, Corpus, "corpus"), time.perf_counter()
    torch.manual_seed(run.seed)
    model = GPT(model_config(run.size, run.configuration, len(corpus.token_bytes), budget.context)).to(device)
    found = []
    for loss in steps(model, corpus.texts["train"], run.rate, run.seed, budget):
        found.append(loss)
        yield
    losses = torch.stack(found).cpu()
    seconds = time.perf_counter() - began
    # No test text is read before the learning rate is chosen.
    names = ["validation"] if run.seed == SEARCH_SEED else [n for n in corpus.texts if n not in ("train", "validation")]
    result = {**run._asdict(), "budget": asdict(budget), "seconds": seconds, "machine": machine(device)}
    result["texts"] = {name: measure_loss(model, corpus.texts[name], corpus.token_bytes, budget) for name in names}
    result |= {"parameters": sum(p.numel() for p in model.parameters()), "flops": flops(model.config)}
    result["losses"] = [some.mean().item() for some in losses.split(math.ceil(budget.steps / 64))]
    return result


def read_results(store: Path) -> dict[Run, dict[str, Any]]:
    """The results by run."""
    return {Run(*(result[field] for field in Run._fields)): result for result in read(store)}


def save_model(path: Path, model: GPT, tokeniser: str) -> None:
    """Write a checkpoint."""
    stored = {"config": asdict(model.config), "tokeniser": tokeniser}
    with atomic_write(path) as file:
        torch.save({**stored, "model": model.state_dict()}, file)


def load_model(path: Path) -> tuple[GPT, str]:
    """A model and its tokeniser from a checkpoint.

    Raises:
        InputError: If it is no checkpoint.
    """

    def make(config: dict[str, Any], model: dict[str, Tensor], tokeniser: str) -> tuple[GPT, str]:
        found = GPT(GPTConfig(**config))
        found.load_state_dict(model)
        return found, tokeniser

    return load(path, make, "demo")
