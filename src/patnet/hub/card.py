"""The model card: what was measured of these weights, how they were trained, what they are for, how to use them."""

import copy
import json
import re
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch.utils.flop_counter import FlopCounterMode

from .. import __version__
from ..data import ABOUT, is_timm
from ..errors import InputError
from ..files import sha256
from ..models import Loaded, PATNet
from ..train.config import CHANGEABLE, TrainConfig
from ..train.run import RunDirectory
from ..train.summary import read_history

PLACEHOLDER = "OWNER/NAME"  # where the name of the repository is not known yet

# Key in metrics.json, heading, and the Hub's name of the metric if it has one.
METRICS = (
    ("top1", "Top-1 accuracy", "accuracy"),
    ("top5", "Top-5 accuracy", "accuracy"),
    ("balanced_accuracy", "Balanced accuracy", "balanced_accuracy"),
    ("calibration_error", "Calibration error (expected, 15 bins)", None),
)


def public_name(name: str) -> str:
    """The name of a data set or checkpoint without the path of its folder, which is private."""
    return name if is_timm(name) else Path(name).name or name


def read_evaluations(loaded: Loaded) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
    """What `patnet evaluate` measured of the weights of a run, the test split and single views first.

    Returns:
        The folder and the content of `metrics.json` of each evaluation, and a message for each that is left out because
        it evaluated other weights, or used another decision threshold.

    Raises:
        InputError: If a `metrics.json` is damaged.
    """
    if loaded.run is None or loaded.file is None:
        return [], []
    measured: dict[tuple, tuple[Path, dict[str, Any]]] = {}
    messages = []
    digest = sha256(loaded.file)
    for file in sorted(loaded.run.glob("evaluation-*/metrics.json")):
        try:
            metrics = json.loads(file.read_text(encoding="utf-8"))
            data, split, same = metrics["data"], metrics["split"], metrics["weights_sha256"] == digest
            same_threshold = metrics.get("threshold") == (loaded.threshold and asdict(loaded.threshold))
            key = (split != "test", data, split, metrics["tta"], *metrics["input_size"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}: not metrics of an evaluation ({error}); run patnet evaluate again") from error
        if not same:
            messages.append(f"{file.parent}: left out because it evaluated other weights than {loaded.file}")
        elif not same_threshold:
            messages.append(
                f"{file.parent}: left out because it used another decision threshold than {loaded.file} has"
            )
        else:
            measured.setdefault(key, (file.parent, metrics))
    return [measured[key] for key in sorted(measured)], messages


def _on_hub(data: str) -> bool:
    return data.lower().startswith(("hfds/", "hfids/"))


def _dataset_type(data: str) -> str:
    """The Hub's identifier of a data set; `imagefolder` for a folder."""
    if is_timm(data):
        return data.partition("/")[2] if _on_hub(data) else data.replace("/", "-")
    return data if data in ABOUT else "imagefolder"


def _eval_results(metrics: dict[str, Any]) -> list[EvalResult]:
    """An evaluation in the form of the Hub's index of results."""
    tta = f", TTA with {metrics['tta']} views" if metrics["tta"] > 1 else ""
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=_dataset_type(metrics["data"]),
            dataset_name=public_name(metrics["data"]),
            dataset_split=metrics["split"],
            metric_type=metric,
            metric_name=f"{heading}{tta}",
            metric_value=round(metrics[key], 4),
        )
        for key, heading, metric in METRICS
        if key in metrics and metric
    ]


def _trained(run: RunDirectory, checkpoint: str) -> dict[str, Any]:
    """How the weights of a run were trained, its options without paths of this machine, and the epoch of a checkpoint.

    `epochs` counts those so far; `selected` says whether validation chose the epoch, whose metrics are `row`.
    """
    config: TrainConfig = run.read_config()
    history = read_history(run)
    options = {name: value for name, value in asdict(config).items() if name not in CHANGEABLE}
    for name in ("data", "weights", "teacher"):
        options[name] = options[name] and public_name(options[name])
    rows = [row for row in history if row["best"]] if checkpoint == "best" else []
    row = (rows or history or [{}])[-1]
    return {
        "config": options,
        "options": yaml.safe_dump(options, sort_keys=False).rstrip(),
        "epochs": len(history),
        "minutes": sum(row.get("seconds", 0.0) for row in history) / 60,
        "row": row,
        "selected": checkpoint == "best" and "val_top1" in row,
        "about": ABOUT.get(config.data),
    }


def _measured(loaded: Loaded) -> dict[str, Any]:
    """Architecture, classes, parameters, GMACs and input of the network, and versions."""
    model: Any = copy.deepcopy(loaded.model).eval()  # its statistics and its mode stay
    channels, height, width = loaded.data_config["input_size"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(next(model.parameters()).new_zeros(1, channels, height, width))
    return {
        "model": model.pretrained_cfg["architecture"],
        "ours": isinstance(model, PATNet),
        "classes": loaded.class_names,
        "parameters": sum(p.numel() for p in model.parameters()),
        "gmacs": counter.get_total_flops() / 2e9,
        "channels": channels,
        "height": height,
        "width": width,
        "versions": f"patnet {__version__}, torch {torch.__version__}, timm {timm.__version__}",
    }


def model_card(
    loaded: Loaded, *, repo_id: str | None = None, license: str | None = None, converted: bool = False
) -> tuple[ModelCard, dict[str, Path], list[str]]:
    """The model card of a network, with the metrics of these very weights and no others.

    Args:
        loaded: The network as it is published, with its run directory, if it has one.
        repo_id: Its repository, `OWNER/NAME`; a placeholder if None.
        license: Licence of the weights, an identifier of the Hub such as apache-2.0; if None, none is stated.
        converted: Whether a network for grey images was converted to take RGB.

    Returns:
        The card, the figures that it shows (name there, file here), and a message for each evaluation that it leaves
        out.

    Raises:
        InputError: If a file of the run is damaged.
    """
    context, data = _measured(loaded), ""
    figures: dict[str, Path] = {}
    found, left_out = read_evaluations(loaded)
    if loaded.run and loaded.file:
        run = RunDirectory(loaded.run)
        data = run.read_config().data
        context |= _trained(run, loaded.file.parent.name)
        if run.curves.is_file():
            figures["curves.png"] = run.curves
    evaluations = []
    for folder, metrics in found:
        figure = f"confusion-matrix{folder.name.removeprefix('evaluation')}.png"
        if (drawn := folder / "confusion_matrix.png").is_file():
            figures[figure] = drawn
        evaluations.append(metrics | {"data": public_name(metrics["data"]), "figure": figure})
    name = (repo_id or "").rpartition("/")[2] or " on ".join(filter(None, [context["model"], public_name(data)]))
    results = [result for _, metrics in found for result in _eval_results(metrics)]
    tags = {"patnet": context["ours"], "image-classification": 1, "timm": 1, "transformers": context["channels"] == 3}
    card = ModelCard.from_template(
        ModelCardData(
            library_name="timm",
            pipeline_tag="image-classification",
            license=license,
            tags=[tag for tag, fits in tags.items() if fits],
            datasets=[_dataset_type(data)] if _on_hub(data) else None,
            metrics=sorted({result.metric_type for result in results}) or None,
            model_name=name if results else None,
            eval_results=results or None,
        ),
        template_path=str(files(__package__) / "card.md"),
        name=name,
        converted=converted,
        repo_id=repo_id or PLACEHOLDER,
        evaluations=evaluations,
        figures=figures,
        metric_names=METRICS,
        licence=license,
        threshold=loaded.threshold,
        **context,
    )
    card.text = re.sub(r"\n{3,}", "\n\n", card.text).rstrip() + "\n"
    return card, figures, left_out
