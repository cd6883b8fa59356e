"""The model card: what was measured of these weights, how they were trained, what they are for, how to use them."""

import json
import re
from dataclasses import asdict
from importlib.resources import files
from operator import itemgetter
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


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def read_evaluations(run: Path, weights: Path) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
    """What `patnet evaluate` measured of the weights in a file, the test split and single views first.

    Returns:
        The folder and the content of `metrics.json` of each evaluation, and a message for each that is left out because
        it evaluated other weights.

    Raises:
        InputError: If a `metrics.json` is damaged.
    """
    measured: dict[tuple, tuple[Path, dict[str, Any]]] = {}
    messages = []
    digest = sha256(weights)
    for file in sorted(run.glob("evaluation-*/metrics.json")):
        try:
            metrics = json.loads(file.read_text(encoding="utf-8"))
            data, split, same = metrics["data"], metrics["split"], metrics["weights_sha256"] == digest
            key = (split != "test", data, split, metrics["tta"], *metrics["input_size"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}: not metrics of an evaluation ({error}); run patnet evaluate again") from error
        if same:
            measured.setdefault(key, (file.parent, metrics))
        else:
            messages.append(f"{file.parent}: left out because it evaluated other weights than {weights}")
    return [measured[key] for key in sorted(measured)], messages


def _described(folder: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    """An evaluation as the template takes it."""
    _, height, width = metrics["input_size"]
    scores = itemgetter("precision", "recall", "f1")
    figure = f"confusion-matrix{folder.name.removeprefix('evaluation')}.png"
    return metrics | {
        "title": f"On {public_name(metrics['data'])}, {metrics['split']} split, {height}x{width} px",
        "metrics": [(heading, _percent(metrics[key])) for key, heading, _ in METRICS if key in metrics],
        "per_class": [
            [" ".join(name.split()).replace("|", "\\|"), *map(_percent, scores(row)), row["images"]]
            for name, row in metrics["per_class"].items()
        ],
        "figure": figure if (folder / "confusion_matrix.png").is_file() else None,
    }


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


def _trained(config: TrainConfig, history: list[dict[str, Any]], checkpoint: str) -> dict[str, Any]:
    """Sentences on the training and on the selection of the epoch, and the options without paths of this machine."""
    data = public_name(config.data)
    start = f"the weights {public_name(config.weights)}" if config.weights else "random weights"
    minutes = sum(row.get("seconds", 0.0) for row in history) / 60
    options = {name: value for name, value in asdict(config).items() if name not in CHANGEABLE}
    for name in ("data", "weights", "teacher"):
        options[name] = options[name] and public_name(options[name])
    selection = ""
    if history:
        row = ([row for row in history if row["best"]] or history)[-1] if checkpoint == "best" else history[-1]
        selection = f"The weights are those of epoch {row['epoch']} of {len(history)}, "
        selection += (
            f"the best on the validation images, with a top-1 accuracy of {_percent(row['val_top1'])} %. Because that "
            "selected the epoch, it overestimates the accuracy on other images."
            if checkpoint == "best" and "val_top1" in row
            else "the last one."
        )
    return {
        "training": f"{len(history)} of {config.epochs} epochs on {data} from {start}, at {config.img_size} px, in "
        f"{minutes:.0f} min.",
        "selection": selection,
        "options": yaml.safe_dump(options, sort_keys=False).rstrip(),
        "data": data,
        "about": ABOUT.get(config.data),
    }


def _measured(loaded: Loaded) -> dict[str, Any]:
    """Architecture, classes, parameters, GMACs and input of the network, and versions."""
    model: Any = loaded.model
    classes = loaded.class_names
    more = f" and {len(classes) - 20} more, see config.json" if len(classes) > 20 else ""
    channels, height, width = loaded.data_config["input_size"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, channels, height, width))
    return {
        "model": model.pretrained_cfg["architecture"],
        "ours": isinstance(model, PATNet),
        "classes": classes,
        "class_list": ", ".join(classes[:20]) + more,
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}".replace(",", " "),
        "gmacs": f"{counter.get_total_flops() / 2e9:.3f}",
        "channels": channels,
        "height": height,
        "width": width,
        "versions": f"patnet {__version__}, torch {torch.__version__}, timm {timm.__version__}",
    }


def _metadata(
    name: str, license: str | None, context: dict[str, Any], data: str, measured: list[dict[str, Any]]
) -> ModelCardData:
    """The metadata that the Hub reads."""
    tags = {"patnet": context["ours"], "image-classification": 1, "timm": 1, "transformers": context["channels"] == 3}
    results = [result for metrics in measured for result in _eval_results(metrics)]
    return ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        license=license,
        tags=[tag for tag, fits in tags.items() if fits],
        datasets=[_dataset_type(data)] if _on_hub(data) else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )


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
    data, figures, context = "", {}, _measured(loaded)
    found: list[tuple[Path, dict[str, Any]]] = []
    left_out: list[str] = []
    if loaded.run and loaded.file:
        run = RunDirectory(loaded.run)
        config: TrainConfig = run.read_config()
        data = config.data
        context |= _trained(config, read_history(run), loaded.file.parent.name)
        found, left_out = read_evaluations(run.path, loaded.file)
        if run.curves.is_file():
            figures["curves.png"] = run.curves
    evaluations = []
    for folder, metrics in found:
        evaluations.append(_described(folder, metrics))
        if figure := evaluations[-1]["figure"]:
            figures[figure] = folder / "confusion_matrix.png"
    name = (repo_id or "").rpartition("/")[2] or " on ".join(filter(None, [context["model"], context.get("data")]))
    card = ModelCard.from_template(
        _metadata(name, license, context, data, [metrics for _, metrics in found]),
        template_path=str(files(__package__) / "card.md"),
        name=name,
        converted=converted,
        repo_id=repo_id or PLACEHOLDER,
        evaluations=evaluations,
        curves="curves.png" if "curves.png" in figures else None,
        licence=license,
        **context,
    )
    card.text = re.sub(r"\n{3,}", "\n\n", card.text).rstrip() + "\n"
    return card, figures, left_out
