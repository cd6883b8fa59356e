"""Where predictions go: into memory, or into Parquet files."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from ..errors import InputError
from ..files import atomic_write


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        index: Position of the image among all.
        key: Its file, or its index in the data set.
        error: Why the image cannot be read, or None.
        labels: The most probable classes, in descending order.
        probabilities: Their probabilities.
    """

    index: int
    key: Path | int
    error: str | None
    labels: list[str]
    probabilities: list[float]

    @property
    def name(self) -> str:
        """The file or index as text, also if the file's name is not UTF-8."""
        return os.fsencode(self.key).decode(errors="backslashreplace") if isinstance(self.key, Path) else str(self.key)


class Sink:
    """Keeps the predictions.

    Attributes:
        shared: Whether several processes may write to it.
        part_size: Number of images in a part, which one process predicts.
    """

    shared = False
    part_size = 1024

    def __init__(self) -> None:
        self.predictions: list[Prediction] = []

    @property
    def completed(self) -> int:
        """Number of images that are predicted."""
        return len(self.predictions)

    def start(self, manifest: dict[str, Any]) -> None:
        """Prepare for the predictions that `manifest` describes."""

    def claim(self, part: int) -> bool:
        """Whether this process is to predict a part."""
        return True

    def write(self, prediction: Prediction) -> None:
        """Take a prediction."""
        self.predictions.append(prediction)

    def finish(self) -> None:
        """Write what is not written yet."""


# What two commands on one directory must agree in, and how a difference is reported.
AGREE = {
    **dict.fromkeys(("model", "preprocessing", "class_names"), "are of another model"),
    "images": "are of other images",
    "shard_size": "have --shard-size {}",
    "top": "have --top {}",
    "tta": "have --tta {}",
}


class ParquetSink(Sink):
    """Parquet files that are complete or absent: `part-00012.parquet` has the 13th `part_size` images.

    The same command resumes where it was stopped, and several processes may share a directory: each locks a part before
    it predicts it, and the lock ends with the process. Columns: `path` or `index`, `label`, `probability`,
    `top_labels`, `top_probabilities`, and `error` for an image that cannot be read.
    """

    shared = True

    def __init__(self, directory: Path, part_size: int = 1024) -> None:
        super().__init__()
        self.directory, self.part_size = directory, part_size
        self.locks: dict[int, FileLock] = {}
        self.count: int | None = None
        self.schema = pa.schema([])
        self.in_files = 0

    @property
    def completed(self) -> int:
        """Number of images that are predicted, by other processes too."""
        return self.in_files + len(self.predictions)

    def file(self, part: int) -> Path:
        """The file of a part."""
        return self.directory / f"part-{part:05d}.parquet"

    def files(self) -> list[Path]:
        """The files that exist, in order; each is complete."""
        return sorted(self.directory.glob("part-*.parquet"), key=lambda file: int(file.stem.removeprefix("part-")))

    def start(self, manifest: dict[str, Any]) -> None:
        """Write the manifest, or check that the predictions in the directory are of the same images and model.

        Raises:
            InputError: If they are not, or the directory holds something else or cannot be written.
        """
        self.count = manifest["count"]
        text, number = pa.string(), pa.float32()
        key = ("path", text) if manifest["files"] else ("index", pa.int64())
        best = [("label", text), ("probability", number)]
        top = [("top_labels", pa.list_(text)), ("top_probabilities", pa.list_(number))]
        self.schema = pa.schema([key, *best, *top, ("error", text)])
        try:
            (self.directory / ".locks").mkdir(parents=True, exist_ok=True)
            with self._lock("manifest"):
                self._check_manifest({**manifest, "shard_size": self.part_size})
        except NotImplementedError as error:
            lacking = "its file system has no locks, which processes need to share it"
            raise InputError(f"{self.directory}: {lacking}; choose another --parquet") from error
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{self.directory}: cannot be written ({reason}); choose another --parquet") from error
        self._count_files()

    def _lock(self, name: str) -> FileLock:
        return FileLock(self.directory / ".locks" / f"{name}.lock")

    def _count_files(self) -> None:
        self.in_files = min(len(self.files()) * self.part_size, self.count or sys.maxsize)

    def _check_manifest(self, manifest: dict[str, Any]) -> None:
        file = self.directory / "_manifest.json"  # readers of Parquet directories ignore names that begin with _
        if not file.exists():
            if any(not entry.name.startswith(".") for entry in self.directory.iterdir()):
                raise InputError(f"{self.directory}: exists and holds no predictions; choose another --parquet")
            with atomic_write(file, "choose another --parquet") as path:
                path.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        try:
            found = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"{file}: is not what patnet wrote ({error}); choose another --parquet") from error
        for name, difference in AGREE.items():
            if found.get(name) != manifest[name]:
                difference = difference.format(found.get(name))
                raise InputError(f"{self.directory}: the predictions there {difference}; choose another --parquet")

    def claim(self, part: int) -> bool:
        """Lock a part that no process has predicted or is predicting; whether that was possible."""
        if part in self.locks or self.file(part).exists():
            return part in self.locks
        lock = self._lock(f"{part:05d}")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        if self.file(part).exists():  # another process has just finished it
            lock.release()
            return False
        self.locks[part] = lock
        return True

    def write(self, prediction: Prediction) -> None:
        """Take a prediction; the last one of a part writes its file.

        Raises:
            InputError: If the file cannot be written.
        """
        super().write(prediction)
        if (prediction.index + 1) % self.part_size == 0 or prediction.index + 1 == self.count:
            self._write_part()

    def finish(self) -> None:
        """Write the last part of a stream of unknown length; remove what killed processes left."""
        if self.predictions:
            self._write_part()
        if self.in_files == self.count:
            for path in self.directory.glob(".writing-*"):
                shutil.rmtree(path, ignore_errors=True)

    def _write_part(self) -> None:
        part = self.predictions[0].index // self.part_size
        rows = []
        for p in self.predictions:
            answer = (None,) * 4 if p.error else (p.labels[0], p.probabilities[0], p.labels, p.probabilities)
            rows.append((p.name if isinstance(p.key, Path) else p.key, *answer, p.error))
        table = pa.table(list(zip(*rows, strict=True)), schema=self.schema)
        hint = "the files before it are complete, and the same command resumes"
        with atomic_write(self.file(part), hint) as path, path.open("wb") as stream:
            pq.write_table(table, stream)
            stream.flush()
            os.fsync(stream.fileno())
        self.predictions.clear()
        self._count_files()
        lock = self.locks.pop(part, None)
        if lock is not None:
            Path(lock.lock_file).unlink(missing_ok=True)  # the part is complete, so a new lock of it changes nothing
            lock.release()

    def written(self) -> tuple[int, int, int]:
        """Numbers of rows, of rows with an error, and of files that other processes are writing."""
        files, images, unreadable = self.files(), 0, 0
        for file in files:
            data = pq.read_metadata(file)
            images += data.num_rows
            errors = [data.row_group(i).column(data.num_columns - 1) for i in range(data.num_row_groups)]
            unreadable += sum(column.num_values - column.statistics.null_count for column in errors)
        missing = 0 if self.count is None else -(-self.count // self.part_size) - len(files)
        return images, unreadable, missing
