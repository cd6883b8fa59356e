"""Prediction over any number of pictures, into Parquet shards that are whole or not there."""

import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from timm.data.dataset import ImageDataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ..data import eval_transform, open_split, read_image, walk_pictures
from ..deploy.export import Exported
from ..errors import InputError
from .classifier import Classifier
from .inference import Trained, load_trained, run_predict
from .progress import progress_bar
from .views import check_views

__all__ = ["Shards", "Written", "predict_shards"]


class Shards:
    """A folder of shards, `part-00012.parquet` with the answers for the 13th `size` pictures.

    A process locks a shard before it works on it. The lock ends with the process, however that ends, so any number of
    processes share the work, and what one leaves another takes up.

    Args:
        folder: The folder; there must be one.
        size: Pictures in a shard but the last.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.locks = (folder / ".locks").open("ab")
        self.held: set[int] = set()  # for a process is never refused its own lock

    def file(self, number: int) -> Path:
        """Where a shard is, once it is whole."""
        return self.folder / f"part-{number:05d}.parquet"

    def files(self) -> list[Path]:
        """The shards that are whole, in their order."""
        return sorted(self.folder.glob("part-*.parquet"), key=lambda file: int(file.stem.removeprefix("part-")))

    def lock(self, start: int, count: int = 1) -> bool:
        """Lock shards, or all from `start` on where `count` is 0; whether no other process holds one of them.

        Raises:
            InputError: If the file system has no locks.
        """
        try:
            fcntl.lockf(self.locks, fcntl.LOCK_EX | fcntl.LOCK_NB, count, start)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise InputError(
                f"{self.folder}: its file system has no locks ({error.strerror}), by which processes share the work; "
                "give a --parquet on another"
            ) from error
        return True

    def claim(self, number: int) -> bool:
        """Lock a shard that is still to do; whether there was one."""
        if number in self.held or self.file(number).exists() or not self.lock(number):
            return False
        if self.file(number).exists():  # another process finished it just before
            fcntl.lockf(self.locks, fcntl.LOCK_UN, 1, number)
            return False
        self.held.add(number)
        return True

    def write(self, number: int, table: pa.Table) -> None:
        """Write a shard aside, move it into place, and unlock it.

        Raises:
            InputError: If it cannot be written.
        """
        aside = self.folder / f".writing-{number:05d}"  # what a killed process left is written over
        try:
            with aside.open("wb") as stream:
                pq.write_table(table, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(aside, self.file(number))
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise InputError(
                f"{self.file(number)}: cannot be written ({error.strerror or error}); the shards before it are whole, "
                "and the same command goes on"
            ) from error
        self.held.discard(number)
        fcntl.lockf(self.locks, fcntl.LOCK_UN, 1, number)

    def start(self, manifest: dict[str, Any]) -> None:
        """Write what the shards are of, or check that they are of the same.

        Raises:
            InputError: If the folder holds something else.
        """
        file = self.folder / "_manifest.json"  # a name that readers of Parquet folders pass over
        if not file.exists():
            if any(not entry.name.startswith(".") for entry in self.folder.iterdir()) and not file.exists():
                raise InputError(f"{self.folder}: exists and holds no predictions; give another --parquet")
            with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=".writing-", encoding="utf-8") as aside:
                json.dump(manifest, aside, indent=2)
                aside.flush()
                os.fsync(aside.fileno())
                Path(aside.name).chmod(0o644)
                with suppress(FileExistsError):  # which a link, unlike a move, raises where another process was first
                    file.hardlink_to(aside.name)
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: is not what patnet wrote ({error}); give another --parquet") from error
        here = json.loads(json.dumps(manifest))
        for name, words in {
            "digest": "are by another model",
            "preprocessing": "are by another model",
            "class_names": "are by another model",
            "pictures": "are of other pictures",
            "shard_size": f"have --shard_size {there.get('shard_size')}",
            "top": f"have --top {there.get('top')}",
        }.items():
            if there.get(name) != here[name]:
                raise InputError(f"{self.folder}: the predictions there {words}; give another --parquet for these")


class _Batch(NamedTuple):
    """Pictures of one shard, in the three parts that `Classifier.predict_step` takes."""

    pictures: Tensor
    keys: list[tuple[Any, str]]  # which picture each is, and why it cannot be read
    part: tuple[int, bool]  # the shard, and whether it ends with this batch


class _Item(NamedTuple):
    key: Any
    shard: int
    last: bool


class _ShardBatches(Sampler[list[_Item]]):
    """Batches of the shards that no process has done, each claimed before its first batch."""

    def __init__(self, keys: Callable[[], Iterable[Any]], shards: Shards, batch_size: int) -> None:
        self.keys, self.shards, self.batch_size = keys, shards, batch_size

    def __iter__(self) -> Iterator[list[_Item]]:
        self.shards.held.clear()
        claimed = True
        while claimed:  # once more, for what a process was killed over
            claimed, keys, number = False, iter(self.keys()), 0
            while shard := list(islice(keys, self.shards.size)):
                if self.shards.claim(number):
                    claimed = True
                    for start in range(0, len(shard), self.batch_size):
                        batch = shard[start : start + self.batch_size]
                        last = start + self.batch_size >= len(shard)
                        yield [_Item(key, number, last) for key in batch]
                number += 1


class _Pictures(Dataset):
    """Pictures by their keys; one that cannot be read gives zeros and the reason."""

    def __init__(self, read: Callable[[Any], Any], transform: Callable, shape: Sequence[int]) -> None:
        self.read, self.transform, self.shape = read, transform, tuple(shape)

    def __getitem__(self, item: _Item) -> tuple[Tensor, str, _Item]:
        try:
            return self.transform(self.read(item.key)), "", item
        except Exception as error:  # of one picture in millions, whatever its reader raises
            reason = " ".join(str(error).split()) or type(error).__name__
            return torch.zeros(self.shape), reason, item


def _collate(items: list[tuple[Tensor, str, _Item]]) -> _Batch:
    pictures, reasons, places = zip(*items, strict=True)
    keys = [(item.key, reason) for item, reason in zip(places, reasons, strict=True)]
    return _Batch(torch.stack(pictures), keys, (places[-1].shard, places[-1].last))


class _Stream(IterableDataset):
    """Batches of a stream, whose pictures are numbered in its order, without the shards that are whole."""

    def __init__(self, dataset: Any, name: str, transform: Callable, shards: Shards, batch_size: int) -> None:
        self.dataset, self.name, self.transform = dataset, name, transform
        self.shards, self.batch_size = shards, batch_size

    def __iter__(self) -> Iterator[_Batch]:
        pictures = enumerate(self.dataset)
        following = self._next(pictures, 0)
        items: list[tuple[Tensor, str, _Item]] = []
        done = False
        while following is not None:
            index, (picture, _) = following
            following = self._next(pictures, index + 1)
            number, place = divmod(index, self.shards.size)
            if place == 0:
                done = self.shards.file(number).exists()
            if done:
                continue
            last = following is None or place + 1 == self.shards.size
            items.append((self.transform(picture), "", _Item(index, number, last)))
            if last or len(items) == self.batch_size:
                yield _collate(items)
                items = []

    def _next(self, pictures: Iterator[Any], index: int) -> Any:
        try:
            return next(pictures, None)
        except Exception as error:  # each of timm's readers raises its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"data set {self.name!r}: picture {index} of the stream cannot be read ({reason})") from (
                error
            )


class _Writer(ProgressBar):
    """Puts the answers of each batch into their shard's rows, and those into its file."""

    def __init__(
        self, shards: Shards, key: pa.Field, class_names: list[str], top: int, count: int | None, console: Console
    ) -> None:
        super().__init__()
        self.shards, self.class_names, self.top, self.count = shards, class_names, top, count
        self.schema = pa.schema(
            [
                key,
                ("label", pa.string()),
                ("probability", pa.float32()),
                ("top_labels", pa.list_(pa.string())),
                ("top_probabilities", pa.list_(pa.float32())),
                ("error", pa.string()),
            ]
        )
        self.rows: list[tuple] = []
        self.console = console
        self.bar = progress_bar(console)
        self.task: Any = None

    def disable(self) -> None:
        """Called by Lightning on all processes but the first."""
        self.console.quiet = True

    def _done(self) -> int:
        done = len(self.shards.files()) * self.shards.size
        return done if self.count is None else min(done, self.count)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar over the pictures, at those that are done."""
        self.bar.start()
        self.task = self.bar.add_task("predicting", total=self.count, completed=self._done())

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take the answers of a batch."""
        probs, keys, (number, last) = outputs
        values, indices = probs.topk(self.top)
        for (key, reason), ranked, likeliest in zip(keys, values.tolist(), indices.tolist(), strict=True):
            if isinstance(key, Path):  # of a name that is no UTF-8 too
                key = os.fsencode(key).decode(errors="backslashreplace")
            names = [self.class_names[i] for i in likeliest]
            answer = (None,) * 4 if reason else (names[0], ranked[0], names, ranked)
            self.rows.append((key, *answer, reason or None))
        self.bar.advance(self.task, len(keys))
        if last:
            columns = list(zip(*self.rows, strict=True))
            self.shards.write(number, pa.table(columns, schema=self.schema))
            self.rows = []
            self.bar.update(self.task, completed=self._done())  # by other processes too

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait for the other processes, of which the first one tells."""
        trainer.strategy.barrier()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close the bar."""
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar before anything is said about the exception."""
        self.bar.stop()


class Written(NamedTuple):
    """What the shards in a folder hold.

    Attributes:
        pictures: Rows in all.
        unreadable: Rows with an error.
        missing: Shards that other processes are working on.
    """

    pictures: int
    unreadable: int
    missing: int


def _digest(trained: Trained) -> str:
    """Of the weights, or of the exported file."""
    digest = hashlib.sha256()
    if isinstance(trained.model, Exported):
        file = trained.model.path
        for part in {file, file.with_suffix(".bin")}:  # OpenVINO keeps its weights beside
            if part.is_file():
                digest.update(part.read_bytes())
    else:
        for name, value in trained.model.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def predict_shards(
    run: str | Path,
    images: Sequence[str],
    folder: str | Path,
    *,
    data: str | None = None,
    data_root: str | None = None,
    split: str | None = None,
    shard_size: int = 1024,
    which: str = "best",
    views: int = 1,
    top: int = 5,
    batch_size: int = 64,
    workers: int = 0,
    accelerator: str = "auto",
    devices: str = "1",
    console: Console | None = None,
) -> Written | None:
    """Classes and probabilities of any number of pictures, as Parquet files; goes on where it was stopped.

    Any number of processes may be started on the same folder. A file holds a row for each picture: `path`, or `index`
    for a data set; `label`, `probability`, `top_labels`, `top_probabilities`, and `error` for what cannot be read.

    Args:
        run: A run folder, or any checkpoint.
        images: Files, folders and glob patterns; none with `data`.
        folder: For the files, with a `_manifest.json` that says what they are of.
        data: A data set, as `patnet train` takes it, but of which nothing is learnt.
        data_root: Where timm finds or keeps it.
        split: Its split; by default test where there is one, then validation.
        shard_size: Pictures in a file.
        which: `"best"` or `"last"` weights of a run folder.
        views: Average over so many symmetries of a picture, 1, 2, 4 or 8.
        top: How many classes to give for each picture.
        batch_size: Pictures per step.
        workers: Processes that load pictures.
        accelerator: Device, as Lightning names it.
        devices: How many, as Lightning reads it.
        console: Where to show progress.

    Returns:
        What the folder then holds; None in all processes but the first.

    Raises:
        InputError: If the checkpoint, the pictures or the folder cannot be used.
    """
    for name, value in {"top": top, "shard_size": shard_size, "batch_size": batch_size}.items():
        if value < 1:
            raise InputError(f"--{name} {value}: must be at least 1")
    trained = load_trained(run, which)
    shape = trained.data_config["input_size"]
    check_views(views, shape)
    mode = "L" if shape[0] == 1 else "RGB"
    dataset: Any = None
    count: int | None = 0
    digest = hashlib.sha256()
    if data is None:
        for picture in walk_pictures(images):
            digest.update(os.fsencode(picture) + b"\0")
            count = (count or 0) + 1
    else:
        dataset = open_split(data, split, in_chans=shape[0], data_root=data_root)
        dataset.transform = None
        count = len(dataset) or None
        digest.update(json.dumps([data, data_root, split, count]).encode())
    streamed = isinstance(dataset, IterableDataset)

    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shards = Shards(folder, shard_size)
        top = min(top, len(trained.class_names))
        shards.start(
            {
                "run": str(run),
                "images": [str(name) for name in images] if data is None else {"data": data, "split": split},
                "count": count,
                "shard_size": shard_size,
                "top": top,
                "views": views,
                "pictures": digest.hexdigest(),
                "digest": _digest(trained),
                "preprocessing": trained.data_config,
                "class_names": trained.class_names,
            }
        )
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}); give another --parquet") from error

    transform = eval_transform(trained.data_config)
    if isinstance(dataset, ImageDataset):
        dataset._max_retries = 1  # it would give another picture for one that it cannot read

    def batches(world: int, rank: int) -> DataLoader:
        if streamed:
            if world > 1 or not shards.lock(0, 0):
                raise InputError(f"data set {data!r}: is a stream, which one process reads; start no second one")
            stream = _Stream(dataset, str(data), transform, shards, batch_size)
            return DataLoader(stream, batch_size=None, num_workers=min(workers, 1))
        keys: Callable[[], Iterable[Any]] = (
            (lambda: walk_pictures(images)) if data is None else lambda: range(len(dataset))
        )
        read = (lambda path: read_image(path, mode)) if data is None else lambda index: dataset[index][0]
        return DataLoader(
            _Pictures(read, transform, shape),
            batch_sampler=_ShardBatches(keys, shards, batch_size),
            collate_fn=_collate,
            num_workers=workers,
        )

    key = pa.field("path", pa.string()) if data is None else pa.field("index", pa.int64())
    writer = _Writer(shards, key, trained.class_names, top, count, console or Console(stderr=True))
    module = Classifier(trained.model)
    module.views = views
    if not run_predict(module, batches, writer, accelerator=accelerator, devices=devices):
        return None
    pictures = unreadable = 0
    files = shards.files()
    for file in files:
        rows = pq.read_metadata(file)
        groups = [rows.row_group(i).column(rows.num_columns - 1) for i in range(rows.num_row_groups)]
        pictures += rows.num_rows
        unreadable += sum(column.num_values - column.statistics.null_count for column in groups)
    missing = 0 if streamed or count is None else -(-count // shard_size) - len(files)
    return Written(pictures, unreadable, missing)
