"""The model card of trained weights: what was measured, how they were trained, what they are for, how they are used."""

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
from ..data import ABOUT, is_timms
from ..errors import InputError
from ..files import sha256
from ..models import PATNet
from ..train.config import CHANGEABLE, TrainConfig
from ..train.inference import Trained
from ..train.run import RunFolder
from ..train.runs import read_history

__all__ = ["PLACEHOLDER", "model_card", "public_name", "read_evaluations"]

# Where the name of the repository is not known yet.
PLACEHOLDER = "OWNER/NAME"

# Figures of an evaluation: key, heading, and the Hub's name of the metric where it has one.
FIGURES = [
    ("top1", "Top-1 accuracy", "accuracy"),
    ("top5", "Top-5 accuracy", "accuracy"),
    ("balanced_accuracy", "Balanced accuracy", "balanced_accuracy"),
    ("calibration_error", "Calibration error (expected, 15 bins)", None),
]


def public_name(name: str) -> str:
    """The name of a data set or checkpoint without the folders that it lies in, which are nobody else's business."""
    return name if is_timms(name) else Path(name).name or name


def read_evaluations(run: RunFolder, weights: Path) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
    """What `patnet evaluate` measured of these weights, the test split and single views first.

    Args:
        run: Whose folders `evaluation-*` are read.
        weights: File of the weights; what was measured of others is left out.

    Returns:
        The folder and the content of `metrics.json` of each evaluation, and a sentence for each that is left out.

    Raises:
        InputError: If a `metrics.json` is damaged.
    """
    measured: dict[tuple, tuple[Path, dict[str, Any]]] = {}
    said = []
    digest = sha256(weights)
    for file in sorted(run.path.glob("evaluation-*/metrics.json")):
        try:
            metrics = json.loads(file.read_text(encoding="utf-8"))
            what = (metrics["split"] != "test", metrics["data"], metrics["split"], metrics["size"], metrics["views"])
            # Evaluations of earlier versions name no digest.
            if known := metrics.get("weights_sha256"):
                same = known == digest
            else:
                same = metrics["weights"] == weights.parent.name and file.stat().st_mtime >= weights.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{file}: not the figures of an evaluation ({error}); patnet evaluate them again"
            ) from error
        if not same:
            said.append(f"{file.parent}: left out, for it evaluated other weights than {weights}")
        else:
            measured.setdefault(what, (file.parent, metrics))
    return [measured[what] for what in sorted(measured)], said


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _cell(text: str) -> str:
    """Text in a cell of a table in Markdown."""
    return " ".join(text.split()).replace("|", "\\|")


def _described(folder: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    """An evaluation as the template takes it."""
    picture = folder / "confusion_matrix.png"
    return {
        "title": f"On {public_name(metrics['data'])}, {metrics['split']} split, {metrics['size']} px",
        "pictures": metrics["pictures"],
        "views": metrics["views"],
        "figures": [(heading, _percent(metrics[key])) for key, heading, _ in FIGURES if key in metrics],
        "per_class": [
            [_cell(name), *(_percent(row[key]) for key in ("precision", "recall", "f1")), row["pictures"]]
            for name, row in metrics["per_class"].items()
        ],
        "picture": f"confusion-matrix{folder.name.removeprefix('evaluation')}.png" if picture.is_file() else None,
    }


def _dataset_type(data: str) -> str:
    """The Hub's identifier of a data set: its own name of one that it has, `imagefolder` for a folder."""
    prefix, _, rest = data.partition("/")
    if is_timms(data):
        return rest if prefix.lower() in ("hfds", "hfids") else data.replace("/", "-")
    return data if data in ABOUT else "imagefolder"


def _eval_results(metrics: dict[str, Any]) -> list[EvalResult]:
    """An evaluation as the Hub's index of models has it."""
    views = f", mean over {metrics['views']} views" if metrics["views"] > 1 else ""
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=_dataset_type(metrics["data"]),
            dataset_name=public_name(metrics["data"]),
            dataset_split=metrics["split"],
            metric_type=kind,
            metric_name=f"{heading}{views}",
            metric_value=round(metrics[key], 4),
        )
        for key, heading, kind in FIGURES
        if key in metrics and kind
    ]


def _training(config: TrainConfig, history: list[dict[str, Any]]) -> str:
    """The course of a run in a sentence."""
    start = f"the weights {public_name(config.weights)}" if config.weights else "random weights"
    minutes = sum(row.get("seconds", 0.0) for row in history) / 60
    return (
        f"{len(history)} of {config.epochs} epochs on {public_name(config.data)} from {start}, at {config.size} px, "
        f"in {minutes:.0f} min."
    )


def _chosen(history: list[dict[str, Any]], which: str) -> str:
    """Which epoch the weights are of, and by what it was chosen."""
    if not history:
        return ""
    best = [row for row in history if row["best"]] or history
    row = best[-1] if which == "best" else history[-1]
    if which != "best" or "val_top1" not in row:
        return f"The weights are those of epoch {row['epoch']} of {len(history)}, the last one."
    return (
        f"The weights are those of epoch {row['epoch']} of {len(history)}, the best on the validation pictures: "
        f"{_percent(row['val_top1'])} % of them right. As that chose the epoch, it says little of other pictures."
    )


def _options(config: TrainConfig) -> str:
    """What the run was told to learn, without where it ran and where its files lie."""
    options = {name: value for name, value in asdict(config).items() if name not in CHANGEABLE}
    for name in ("data", "weights", "teacher"):
        options[name] = options[name] and public_name(options[name])
    return yaml.safe_dump(options, sort_keys=False).rstrip()


def model_card(
    trained: Trained,
    *,
    repo_id: str | None = None,
    which: str = "best",
    license: str | None = None,
    spread: bool = False,
) -> tuple[ModelCard, dict[str, Path], list[str]]:
    """The model card of a trained network, with the figures that were measured of these weights and no others.

    Args:
        trained: The network as it is given away.
        repo_id: Its repository, `OWNER/NAME`; None writes a placeholder.
        which: Its weights in the run, `"best"` or `"last"`.
        license: Of the weights, as the Hub writes it, such as apache-2.0; None says that none was stated.
        spread: Whether a network for grey pictures was made to take colour.

    Returns:
        The card, the pictures that it shows (name there, file here), and a sentence for each evaluation that it
        leaves out.

    Raises:
        InputError: If a file of the run is damaged.
    """
    model, run = trained.model, trained.run
    architecture = model.pretrained_cfg["architecture"]
    channels, height, width = trained.data_config["input_size"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, channels, height, width))

    config = run.read_config() if run else None
    history = read_history(run) if run else []
    found, left_out = read_evaluations(run, trained.file) if run and trained.file else ([], [])
    evaluations = [_described(folder, metrics) for folder, metrics in found]
    pictures = {
        described["picture"]: folder / "confusion_matrix.png"
        for described, (folder, _) in zip(evaluations, found, strict=True)
        if described["picture"]
    }
    if run and run.curves.is_file():
        pictures["curves.png"] = run.curves

    ours = isinstance(model, PATNet)
    data = config.data if config else None
    on_hub = data is not None and is_timms(data) and data.lower().startswith(("hfds/", "hfids/"))
    results = [result for _, metrics in found for result in _eval_results(metrics)]
    name = (repo_id or "").rpartition("/")[2] or " on ".join(filter(None, [architecture, data and public_name(data)]))
    card_data = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        license=license,
        tags=[
            *(["patnet"] if ours else []),
            "image-classification",
            "timm",
            *(["transformers"] if channels == 3 else []),
        ],
        datasets=[_dataset_type(data)] if data and on_hub else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    classes = trained.class_names
    shown = ", ".join(classes[:20]) + (f" and {len(classes) - 20} more, see config.json" if len(classes) > 20 else "")
    card = ModelCard.from_template(
        card_data,
        template_path=str(files(__package__) / "card.md"),
        name=name,
        model=architecture,
        ours=ours,
        classes=classes,
        class_list=shown,
        data=data and public_name(data),
        about=ABOUT.get(data or ""),
        parameters=f"{sum(p.numel() for p in model.parameters()):,}".replace(",", " "),
        gmacs=f"{counter.get_total_flops() / 2e9:.3f}",
        channels=channels,
        height=height,
        width=width,
        spread=spread,
        versions=f"patnet {__version__}, torch {torch.__version__}, timm {timm.__version__}",
        repo_id=repo_id or PLACEHOLDER,
        evaluations=evaluations,
        chosen=_chosen(history, which),
        training=_training(config, history) if config else None,
        curves="curves.png" if "curves.png" in pictures else None,
        options=_options(config) if config else None,
        licence=license,
    )
    card.text = re.sub(r"\n{3,}", "\n\n", card.text).rstrip() + "\n"
    return card, pictures, left_out
