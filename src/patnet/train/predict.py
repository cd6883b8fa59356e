"""Prediction: images of any number in, rows of Arrow tables out, in one process or on a Ray cluster."""

import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from threading import Thread
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import IterableDataset, get_worker_info

from .. import __version__
from ..data import check_unreadable, eval_transform
from ..data.images import normalise
from ..data.loading import Loader
from ..data.sources import Reader, absolute, chunks
from ..deploy import BACKENDS, Exported
from ..deploy.backend import HalfPrecision
from ..deploy.backend import computed_in as backend_precision
from ..deploy.pytorch import has_bf16
from ..errors import InputError, require
from ..files import sha256
from ..models import Loaded, fuse
from .answers import Answers
from .callbacks import format_duration, progress_bar
from .config import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Probability

Precision = Literal["fp32", "bf16", "fp16"]
ENOUGH = 10_000  # images after which too many unreadable ones end a prediction

__all__ = [
    "Network",
    "Predicted",
    "check_classifier",
    "class_probabilities",
    "computed_in",
    "launch",
    "predict",
    "tta_views",
]


def check_classifier(loaded: Loaded, tta: int = 1, precision: Precision | None = None) -> Loaded:
    """Check that a network can classify images, and that its images have `tta` views of one shape.

    Returns:
        The network in the precision; None leaves it in its own.

    Raises:
        InputError: If not.
    """
    if loaded.task != "classification":
        raise InputError(f"{loaded.file}: is a detector; use patnet detect")
    if not loaded.pretrained:
        raise InputError("the network has random weights; give a run directory or a checkpoint")
    height, width = loaded.data_config["input_size"][-2:]
    if tta not in (1, 2, 4, 8):
        raise InputError(f"--tta {tta}: must be one of 1, 2, 4, 8")
    if tta == 8 and height != width:
        raise InputError(f"--tta 8: rotates images by 90 degrees, and these are {height}x{width} px; use 4")
    model = loaded.model
    own = model.info.precision if isinstance(model, Exported) else "fp32"
    if precision in (None, own):
        return loaded
    if isinstance(model, Exported):
        can = precision in BACKENDS[model.info.backend].precisions
        hint = (
            f"export it again with --precision {precision}"
            if can
            else f"backend {model.info.backend} does not have {precision}"
        )
        raise InputError(f"--precision {precision}: {loaded.file} is a file in {own}; {hint}")
    if precision == "bf16" and not has_bf16("cuda" if torch.cuda.is_available() else "cpu"):
        warnings.warn("this processor has no bf16 instructions: PyTorch emulates them, slower than fp32", stacklevel=2)
    return replace(loaded, model=HalfPrecision(model, precision))


def tta_views(images: Tensor, tta: int) -> Iterator[Tensor]:
    """The first `tta` of the 8 views of images `(N, C, H, W)`: flipped left-right, flipped upside down, transposed."""
    for view in range(tta):
        x = images.transpose(2, 3) if view & 4 else images
        flipped = [dim for dim, bit in ((3, 1), (2, 2)) if view & bit]
        yield x.flip(flipped) if flipped else x


@torch.inference_mode()  # the network alone: what a data set makes in it could not be changed outside
def class_probabilities(model: nn.Module, images: Tensor, tta: int = 1) -> Tensor:
    """Probabilities `(N, classes)`, the mean over `tta` views of images `(N, C, H, W)`.

    Raises:
        InputError: If they are not finite.
    """
    probs = [model(view).float().softmax(dim=1) for view in tta_views(images, tta)]
    mean = torch.stack(probs).mean(0) if tta > 1 else probs[0]
    if not mean.isfinite().all():
        raise InputError("the network computes NaN for an image; its weights are damaged, or overflow in float16")
    return mean


def computed_in(loaded: Loaded) -> str:
    """The precision that a network is computed in; of an exported file what its runtime says, if it does."""
    model = loaded.model
    if isinstance(model, Exported):
        return backend_precision(model.run) or model.info.precision
    return model.precision if isinstance(model, HalfPrecision) else "fp32"


def launch(model: nn.Module, accelerator: str, devices: str) -> Fabric:
    """Start a process for each device, unless torchrun or SLURM did, and move the model there.

    Args:
        model: The network; an exported one runs on the CPU.
        accelerator: Accelerator, as Lightning names it.
        devices: Number or list of devices, as Lightning reads it.

    Raises:
        InputError: If there are no such devices.
    """
    for name in ("lightning.fabric", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    accelerator = "cpu" if isinstance(model, Exported) else accelerator
    nodes = 1
    if TorchElasticEnvironment.detect():
        devices = os.environ["LOCAL_WORLD_SIZE"]
        nodes = int(os.environ["WORLD_SIZE"]) // int(devices)
    number = int(devices) if devices.isdigit() else devices
    try:
        fabric = Fabric(accelerator=accelerator, devices=number, num_nodes=nodes)
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(
            f"--accelerator {accelerator} --devices {devices}: not available here ({reason}); try --accelerator cpu"
        ) from error
    fabric.launch()
    model.to(fabric.device)
    return fabric


class Network:
    """A classifier that computes tables of answers from the batches of a `Reader`.

    Columns: `path`; `label` and `probability` of the decided class; `top_labels` and `top_probabilities` in
    descending order; `error`, why the image cannot be read, and then the others are null; `model` and `version`, the
    start of the weights' SHA-256; `embedding`, the features before the classifier, where requested. The metadata
    of the schema hold what else there is to know, as JSON under the key `patnet`.

    Args:
        loaded: A classifier, trained or exported.
        tta: Test-time augmentation, the number of views of each image: 1, 2, 4 or 8.
        top: Number of classes for each image.
        precision: Precision to compute in; None for its own.
        fused: Whether to fuse the norms into the convolutions.
        embeddings: Whether to give the embeddings.
        accelerator: Accelerator, as Lightning names it.

    Raises:
        InputError: If the network cannot be used so.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        tta: int = 1,
        top: int = 5,
        precision: Precision | None = None,
        fused: bool = False,
        embeddings: bool = False,
        accelerator: str = "auto",
    ) -> None:
        if isinstance(loaded.model, Exported) and (fused or embeddings):
            flag = "--embeddings" if embeddings else "--fused"
            raise InputError(f"{flag}: {loaded.file} is an exported file, which gives the logits alone; give its run")
        loaded = replace(loaded, model=fuse(loaded.model)) if fused else loaded
        self.loaded = check_classifier(loaded, tta, precision)
        self.tta, self.top = tta, min(top, len(loaded.class_names))
        self.model: Any = self.loaded.model
        self.classifier: Any = None
        if embeddings:
            inner: Any = next(m for m in self.model.modules() if hasattr(m, "get_classifier"))
            self.classifier = inner.get_classifier()
            if not isinstance(self.classifier, nn.Linear):
                kind = type(self.classifier).__name__
                raise InputError(f"--embeddings: the input of this network's classifier, a {kind}, is no vector")
        self.device = launch(self.model, accelerator, "1").device
        weights = {loaded.file, loaded.file.with_suffix(".bin")} if loaded.file else set()  # OpenVINO's are in .bin
        digests = [sha256(file) for file in sorted(weights) if file.is_file()]
        about = {
            "weights": digests,
            "class_names": loaded.class_names,
            "preprocessing": dict(loaded.data_config),
            "computed_in": computed_in(self.loaded),
            "top": self.top,
            "tta": tta,
            "threshold": None if loaded.threshold is None else loaded.threshold.probability,
            "embeddings": embeddings,
            "patnet": __version__,
        }
        self.named = str(loaded.run or loaded.file), "".join(digests)[:12]
        text, number = pa.string(), pa.float32()
        fields = [("path", text), ("label", text), ("probability", number), ("top_labels", pa.list_(text))]
        fields += [("top_probabilities", pa.list_(number)), ("error", text), ("model", text), ("version", text)]
        fields += [("embedding", pa.list_(number, self.classifier.in_features))] if embeddings else []
        self.schema = pa.schema(fields, metadata={"patnet": json.dumps(about)})

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """The answers for a batch."""
        images = normalise(torch.as_tensor(batch["pixels"]).to(self.device), self.loaded.data_config)
        features: list[Tensor] = []
        with ExitStack() as hooks:
            if self.classifier is not None:
                hook = self.classifier.register_forward_pre_hook(lambda _, given: features.append(given[0].float()))
                hooks.callback(hook.remove)
            probs = class_probabilities(self.model, images, self.tta)
        classes = self.loaded.order(probs)[:, : self.top]
        probs = probs.gather(1, classes)
        bad = np.array([bool(error) for error in batch["error"]])
        labels = [[self.loaded.class_names[c] for c in row] for row in classes.tolist()]
        columns: list[Any] = [[row[0] for row in labels], probs[:, 0].tolist(), labels, probs.tolist()]
        columns = [
            pa.array(column, kind, mask=bad) for column, kind in zip(columns, self.schema.types[1:5], strict=True)
        ]
        named = [pa.array([name] * len(bad)) for name in self.named]
        columns = [pa.array(batch["path"]), *columns, pa.array(batch["error"], pa.string(), mask=~bad), *named]
        if features:
            values = pa.array(torch.stack(features).mean(0).cpu().numpy().ravel())
            columns.append(pa.FixedSizeListArray.from_arrays(values, type=self.schema.types[-1], mask=pa.array(bad)))
        return pa.table(columns, schema=self.schema)


@dataclass(eq=False)
class _Read(IterableDataset):
    """What a reader gives for the chunks of some sources; the processes of a loader take turns."""

    reader: Reader
    sources: Sequence[str]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        for number, chunk in enumerate(chunks(self.sources, self.reader.size)):
            if worker is None or number % worker.num_workers == worker.id:
                yield from self.reader(chunk.names, chunk.group)


@dataclass
class Predicted:
    """What `predict` did: the rows of the answers, unless they are in files, and the numbers of images."""

    images: int = 0
    unreadable: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""


def predict(
    loaded: Loaded,
    images: Sequence[str],
    *,
    out: str | None = None,
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    tta: Literal[1, 2, 4, 8] = 1,
    top: PositiveInt = 5,
    precision: Precision | None = None,
    fused: bool = False,
    embeddings: bool = False,
    max_unreadable: Probability = 0.01,
    rows_per_file: PositiveInt = 1024,
    batch_size: PositiveInt = 64,
    workers: NonNegativeInt = 0,
    accelerator: str = "auto",
    actors: PositiveInt | None = None,
    actor_cpus: PositiveFloat = 0.5,
    actor_gpus: NonNegativeFloat = 0.0,
    actor_gb: PositiveFloat | None = None,
    console: Console | None = None,
) -> Predicted:
    """Predict classes and their probabilities.

    Args:
        loaded: A classifier, trained or exported.
        images: Image files, folders and patterns; lists of them (.txt); tar files and Parquet files of images.
        out: Directory or URI for the answers as Parquet files; the same command resumes.
        engine: `"local"`, this process, or `"ray"`, with --out.
        ray_address: Address of a Ray cluster, by default that in RAY_ADDRESS; without one Ray is started here.
        tta: Test-time augmentation, the number of views of each image: 1, 2, 4 or 8.
        top: Number of classes for each image.
        precision: `"fp32"`, `"bf16"` or `"fp16"` to compute in; by default fp32, of an exported file its own.
        fused: Fuse the norms into the convolutions, which is faster.
        embeddings: Write the features before the classifier too, with --out.
        max_unreadable: Share of the images that may be unreadable; they are rows with an error.
        rows_per_file: Images in each Parquet file, at least.
        batch_size: Images per step.
        workers: Number of processes that load images, of engine local.
        accelerator: Accelerator, as Lightning names it.
        actors: Number of networks on Ray, at most; by default as many as fit.
        actor_cpus: CPUs of each network on Ray, 1 or a part of it or more.
        actor_gpus: GPUs of each network on Ray, 0 or a part of one or more; with 0 it runs on the CPU.
        actor_gb: Memory in GB to reserve for each network on Ray.
        console: Where the progress is shown.

    Returns:
        The numbers of images; without `out` also the answers, in the order of the images.

    Raises:
        InputError: If the network, the images, the directory or the cluster cannot be used, or if more images than
            `max_unreadable` cannot be read, of those in files.
    """
    if engine == "ray":
        require(("ray",), "scale", "--engine ray")
        if accelerator not in ("auto", "cpu") and not actor_gpus:
            raise InputError(f"--accelerator {accelerator}: on Ray give --actor-gpus too, the GPUs of each network")
    console = console or Console(stderr=True)
    options: dict[str, Any] = {"tta": tta, "top": top, "precision": precision, "fused": fused}
    options |= {"embeddings": embeddings, "accelerator": accelerator if engine == "local" else "cpu"}
    network = Network(loaded, **options)
    sources = [absolute(source) for source in images] if out else images
    for source in sources:
        next(chunks([source], 1))  # says what is wrong with a source before anything is predicted
    mode = "L" if loaded.data_config["input_size"][0] == 1 else "RGB"
    reader = Reader(eval_transform(loaded.data_config, normalise=False), mode, batch_size)
    found = Predicted()
    answers = None
    if out is not None:
        answers = Answers(absolute(out), network.schema, rows_per_file)
        reader.done = answers.start()
        found.images = len(reader.done)
    if engine == "ray":
        from .on_ray import predict_on_ray

        options["accelerator"] = accelerator if actor_gpus else "cpu"
        actor = {"num_cpus": actor_cpus, "num_gpus": actor_gpus, "memory": actor_gb and int(1e9 * actor_gb)}
        tables = predict_on_ray(loaded, sources, reader, options, actor, actors, ray_address, console)
    else:
        # A fork would share the connections of this process.
        where = {"multiprocessing_context": "spawn"} if workers and any("://" in source for source in sources) else {}
        tables = map(network, Loader(_Read(reader, sources), num_workers=workers, **where))
    hint = "the others are predicted"
    with _Progress(found, sources, console) as progress:
        for table in tables:
            progress.count(table)
            if answers is None:
                found.rows += table.to_pylist()
            else:
                answers.add(table)
            if answers is not None and found.images >= ENOUGH and found.unreadable > max_unreadable * found.images:
                hint = "the prediction stops there, and the same command resumes it"
                break  # the folder or a right is wrong
    if answers is not None:
        answers.finish()
        check_unreadable(found.unreadable, found.images, max_unreadable, found.problem, hint)
    return found


class _Progress:
    """Shows number, rate and time left: as a bar on a terminal, else as a line every minute."""

    def __init__(self, found: Predicted, sources: Sequence[str], console: Console) -> None:
        self.found, self.sources, self.console, self.bar = found, sources, console, progress_bar(console)
        self.task = self.bar.add_task("predicting", total=None)
        self.start = self.shown = time.monotonic()
        self.before = found.images
        self.total = 0

    def __enter__(self) -> "_Progress":
        Thread(target=self._count_all, daemon=True).start()
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def _count_all(self) -> None:
        """Count the images of the sources, beside the prediction; tar files do not say theirs."""
        total = 0
        with suppress(InputError):
            for chunk in chunks(self.sources, 1024):
                if not chunk.images:
                    return
                total += chunk.images
            self.total = total

    def count(self, table: pa.Table) -> None:
        """Add the rows of a table to `found`, and show them."""
        found, errors = self.found, table["error"].drop_null()
        found.images += len(table)
        found.unreadable += len(errors)
        found.problem = found.problem or (errors[0].as_py() if len(errors) else "")
        now = time.monotonic()
        rate = (found.images - self.before) / (now - self.start)
        description = f"predicting, {rate:.0f} images/s"
        self.bar.update(self.task, completed=found.images, total=self.total or None, description=description)
        if not self.console.is_terminal and now - self.shown > 60:
            self.shown = now
            left = f", {format_duration((self.total - found.images) / rate)} left" if self.total else ""
            self.console.print(f"{found.images} images, {rate:.0f} images/s{left}", highlight=False)
