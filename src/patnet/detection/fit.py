"""Training of a detector: a Lightning run in a run folder."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ..data.annotations import Annotations
from ..data.detection import DetectionPictures, open_annotations
from ..data.detection_loading import AspectBatches, collate_draws, collate_pictures, detection_transform
from ..data.loading import SeededPictures, TrainLoader, eval_loader, seed_all
from ..errors import InputError
from ..train.batching import work_out
from ..train.checkpoints import newest_checkpoint
from ..train.fit import Fitted, is_main_process, run_fit, run_trainer, say_start, start_folder, take_folder
from ..train.progress import RunProgress
from ..train.run import RunRecorder
from ..train.same_data import SameData
from .build import DETECTORS, build
from .checkpoint import read_description, save_detector, start_from
from .config import DetectConfig
from .curves import draw_curves
from .module import DetectorModule

__all__ = ["RunPictures", "build_detector", "fit", "open_run_pictures"]

SPLIT = 103  # what a seed is for


@dataclass
class RunPictures:
    """What a run trains on, and what chooses its best epoch."""

    train: Annotations
    val: Annotations | None


def open_run_pictures(config: DetectConfig) -> RunPictures:
    """The annotations of a run.

    Raises:
        InputError: If they cannot be read, or do not go together.
    """
    split = config.train_split if Path(config.data).is_dir() else None
    train = open_annotations(config.data, config.images, split=split, max_faults=config.max_faults)
    val = None
    if config.val_data is not None or config.val_split is not None:
        val = open_annotations(
            config.val_data or config.data,
            config.val_images or (config.images if config.val_data is None else None),
            split=config.val_split,
            max_faults=config.max_faults,
        )
        if val.categories != train.categories:
            raise InputError(
                f"{val.source}: its categories ({_said(val)}) are not those of {train.source} ({_said(train)}); "
                "give annotations with the same ids and names"
            )
    elif config.val_fraction:
        train, val = _held_out(train, config.val_fraction, config.seed)
    if val is not None and not any(picture.objects for picture in val.pictures):
        raise InputError(f"{val.source}: the {len(val.pictures)} validation pictures show no objects; give others")
    if not any(picture.objects for picture in train.pictures):
        raise InputError(f"{train.source}: the {len(train.pictures)} training pictures show no objects; give others")
    if config.num_classes not in (None, len(train.categories)):
        raise InputError(
            f"--num_classes {config.num_classes}: {train.source} has {len(train.categories)} ({_said(train)}); "
            f"give {len(train.categories)}, or leave it out"
        )
    if not config.keep_empty:
        train = replace(train, pictures=[picture for picture in train.pictures if picture.objects])
    return RunPictures(train, val)


def _said(annotations: Annotations) -> str:
    names = [f"{number} {name}" for number, name in annotations.categories.items()]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _held_out(annotations: Annotations, fraction: float, seed: int) -> tuple[Annotations, Annotations]:
    """Annotations without a random share of their pictures, and that share."""
    count = len(annotations.pictures)
    number = round(fraction * count)
    if not 0 < number < count:
        raise InputError(
            f"--val_fraction {fraction}: is {number} of the {count} pictures in {annotations.source}; "
            "give another, or 0 to validate nothing"
        )
    chosen = set(np.random.default_rng((seed, SPLIT)).permutation(count)[:number].tolist())
    parts: tuple[list, list] = ([], [])
    for index, picture in enumerate(annotations.pictures):
        parts[index in chosen].append(picture)
    return replace(annotations, pictures=parts[0]), replace(annotations, pictures=parts[1])


def build_detector(config: DetectConfig, num_classes: int) -> Any:
    """The detector of a run, with the weights of `config.weights` in its backbone.

    Args:
        config: Options of the run.
        num_classes: Of the data.

    Raises:
        InputError: If the network does not take the options or the weights.
    """
    args: dict[str, Any] = dict(config.backbone_args)
    norm = config.norm
    if config.start is not None:
        there = read_description(config.start)["build"]
        norm, args = norm or there["norm"], {**there["backbone_args"], **args}
    if config.in_chans is not None:
        args["in_chans"] = config.in_chans
    try:
        model: Any = build(
            config.detector,
            backbone=config.backbone,
            num_classes=num_classes,
            weights=config.weights,
            norm=norm,
            backbone_args=args,
            width=config.width,
            min_size=[*config.train_sizes, config.size],
            max_size=config.max_size,
            **config.detector_args,
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--detector {config.detector}: does not take these options ({error})") from error
    return _finished(model, config)


def _finished(model: Any, config: DetectConfig) -> Any:
    """A detector, set to compute as the run asks for."""
    if config.grad_checkpointing:
        try:
            model.backbone.body.model.set_grad_checkpointing()
        except (AssertionError, AttributeError) as error:
            raise InputError(f"--grad_checkpointing: {config.backbone} cannot do it; leave it out") from error
    return model.to(memory_format=torch.channels_last) if config.channels_last else model


def fit(config: DetectConfig, *, resume: bool = False, console: Console | None = None) -> Fitted:
    """Train a detector and leave everything about it in the run folder `config.out`.

    Args:
        config: The options of the run.
        resume: Go on with the run in that folder, from its newest checkpoint.
        console: Where to show progress.

    Raises:
        InputError: If the options, the data or the folder cannot be used.
        patnet.train.fit.Interrupted: On Ctrl-C, SIGTERM and SIGUSR1, after the run was left so that it can be resumed.
    """
    console = console or Console()
    folder = take_folder(config, resume=resume)
    seed_all(config.seed)
    annotated = open_run_pictures(config)
    checkpoint, damaged = newest_checkpoint(folder.checkpoint) if resume else (None, [])
    class_names, category_ids = annotated.train.class_names, annotated.train.category_ids
    title = f"{config.detector} with {config.backbone} on {config.data}, {config.size} px"
    kinds = ("mask", "box") if config.detector == "mask_rcnn" else ("box",)
    recorder = RunRecorder(
        folder,
        measured=(
            *(f"train_{name}" for name in ("loss", *DETECTORS[config.detector].losses)),
            *(f"val_{kind}_{name}" for kind in kinds for name in ("AP", "AP50", "AP75")),
        ),
        merit=lambda row: next((row[f"val_{kind}_AP"] for kind in kinds if f"val_{kind}_AP" in row), None),
        draw=partial(draw_curves, title=title),
        save=partial(save_detector, class_names=class_names, category_ids=category_ids),
    )
    trainer = run_trainer(
        config,
        folder,
        [
            SameData(class_names, _outlines(annotated.train), len(annotated.train.pictures)),
            recorder,
            RunProgress(console, recorder, _say_validated),
        ],
        validate=annotated.val is not None,
    )
    batching = work_out(config, trainer.world_size)
    trainer.accumulate_grad_batches = batching.accumulate
    seed_all(config.seed)
    if checkpoint:  # what the run started from may be gone
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        args = dict(saved["hyper_parameters"]["build"])
        model: Any = _finished(build(args.pop("detector"), **args), config)
    else:
        model = build_detector(config, len(class_names))
    mode = "L" if len(model.transform.image_mean) == 1 else "RGB"
    masks = config.detector == "mask_rcnn"
    pictures = DetectionPictures(annotated.train, mode=mode, masks=masks, crowd=False)
    batches = AspectBatches(
        pictures.ratios,
        batching.per_device,
        config.seed,
        accumulate=batching.accumulate,
        world=trainer.world_size,
        rank=trainer.global_rank,
    )
    loading: dict[str, Any] = {"num_workers": config.workers, "persistent_workers": config.workers > 0}
    transform = detection_transform(shorter=None, hflip=config.hflip, vflip=config.vflip)
    train_loader = TrainLoader(
        SeededPictures(pictures, config.seed, [(0, transform)], strict=config.strict),
        batches,
        collate_fn=collate_draws,
        **loading,
    )
    steps = len(batches) // batching.accumulate * config.epochs
    if config.warmup_steps >= steps:
        raise InputError(
            f"--warmup_steps {config.warmup_steps}: leaves none of the run's {steps} steps after it; lower it"
        )
    val_loader = None
    if annotated.val is not None:
        val_loader = eval_loader(
            DetectionPictures(annotated.val, detection_transform(shorter=None), mode=mode, masks=False),
            batching.per_device,
            world=trainer.world_size,
            rank=trainer.global_rank,
            collate=collate_pictures,
            **loading,
        )
    if config.start is not None and not checkpoint:
        start_from(model, config.start)
    if not resume:
        start_folder(folder, config)
    say_start(console, config, batching, damaged, checkpoint)
    if is_main_process() and annotated.train.faults:
        faults = annotated.train.faults
        console.print(
            f"{len(faults)} faults in {annotated.train.source} are passed over, such as {faults[0]}", highlight=False
        )
    module = DetectorModule(model, config, annotated.val)
    run_fit(trainer, module, batching, train_loader, val_loader, folder, checkpoint)
    return Fitted(folder, recorder.best_epoch(), len(recorder.history))


def _outlines(annotations: Annotations) -> list[str]:
    """What tells one process's pictures from another's."""
    return [
        f"{p.path.name} {p.width} {p.height} {[(o.category, o.box) for o in p.objects]}" for p in annotations.pictures
    ]


def _say_validated(measured: Mapping[str, float]) -> list[str]:
    """What the validation of an epoch came to."""
    return [
        f"val {kind} AP {measured[f'val_{kind}_AP']:.3f} (AP50 {measured[f'val_{kind}_AP50']:.3f})"
        for kind in ("box", "mask")
        if f"val_{kind}_AP" in measured
    ]
