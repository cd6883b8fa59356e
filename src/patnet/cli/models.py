"""`patnet models`: the family, and the FasterNets it is compared with."""

import json as jsonlib
from typing import Any

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from ..models import PUBLISHED

SUMMARY = "List the models with parameters, GMACs, input size and published accuracy."
EXAMPLES = """Examples:
  patnet models
  patnet models --all          with their FasterNet counterparts
  patnet models --json         for a program to read"""
EXTRA = None
HELP = {"all": "List the FasterNet counterparts too.", "json": "Print JSON."}

VARIANTS = ("t0", "t1", "t2", "s", "m", "l")


def describe(name: str) -> dict[str, Any]:
    """Parameters, GMACs (convolutions, linear layers, attention) and input of a model, without allocating it."""
    model: Any = timm.create_model(name, device="meta").eval()
    size = model.pretrained_cfg["input_size"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, *size, device="meta"))
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "gmacs": counter.get_total_flops() / 2e9,
        "input": list(size),
        "top1": PUBLISHED.get(name),
    }


def run(*, all: bool = False, json: bool = False) -> int:
    """Print the table."""
    families = ("patnet", "fasternet") if all else ("patnet",)
    rows = [describe(f"{family}_{variant}") for variant in VARIANTS for family in families]
    if json:
        print(jsonlib.dumps(rows, indent=2))
        return 0
    print(f"{'model':<14}{'parameters':>12}{'GMACs':>9}{'input, px':>11}{'ImageNet-1K top-1, %':>22}")
    for row in rows:
        size = "x".join(map(str, row["input"][1:]))
        top1 = "-" if row["top1"] is None else f"{row['top1']:.1f}"
        print(f"{row['model']:<14}{row['parameters']:>12,}{row['gmacs']:>9.3f}{size:>11}{top1:>22}")
    print("Accuracies are those published, not measured here; no ImageNet weights are included.")
    return 0
