"""`patnet models`: the family, and what it is compared with."""

import json as jsonlib
from typing import Any

import timm
import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from ..benchmark.published import published

DESCRIPTION = "List the models with parameters, GMACs, input size and published accuracy."
EPILOG = """Examples:
  patnet models
  patnet models --all          with their FasterNet counterparts
  patnet models --json         for a program to read"""

VARIANTS = ("t0", "t1", "t2", "s", "m", "l")


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--all", action="store_true", help="List the FasterNet counterparts too.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")


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
        "top1": published()[name].top1 if name in published() else None,
    }


def run(*, all: bool, json: bool) -> int:
    """Print the table."""
    families = ("patnet", "fasternet") if all else ("patnet",)
    rows = [describe(f"{family}_{variant}") for variant in VARIANTS for family in families]
    if json:
        print(jsonlib.dumps(rows, indent=2))
        return 0
    table = Table(title="PATNet and FasterNet" if all else "PATNet")
    table.add_column("model")
    for heading in ("parameters", "GMACs", "input, px", "ImageNet-1K top-1, %"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["model"],
            f"{row['parameters']:,}".replace(",", " "),
            f"{row['gmacs']:.3f}",
            "x".join(map(str, row["input"][1:])),
            "not published here" if row["top1"] is None else f"{row['top1']:.1f}",
        )
    console = Console()
    console.print(table)
    console.print(
        "Accuracies are those published, not measured here; no ImageNet weights are included.", highlight=False
    )
    return 0
