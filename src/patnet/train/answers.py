"""Parquet files of answers, complete or absent, in a directory or in a bucket; they say what is done already."""

import hashlib
import json
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from ..data.sources import PROBLEMS, digests, open_store
from ..errors import InputError, one_line

# What two commands on one directory must agree in, and how a difference is reported.
AGREE = {
    **dict.fromkeys(("weights", "preprocessing", "class_names"), "are of another model"),
    "computed_in": "are computed in {}",
    "top": "have --top {}",
    "tta": "have --tta {}",
    "threshold": "have the threshold {}",
    "embeddings": "have --embeddings {}",
}
WRITING = ".writing"


@dataclass
class Answers:
    """Files `part-DIGEST.parquet`, named after the images in them.

    Rows with an error are in files `unreadable-DIGEST.parquet`, removed at the next start to read them again.

    Args:
        out: Directory or URI.
        schema: Schema of the files, with what is predicted in its metadata.
        rows_per_file: Rows of a file, at least.
    """

    out: str
    schema: pa.Schema
    rows_per_file: int = 1024
    waiting: dict[str, list[pa.Table]] = field(default_factory=lambda: {"part": [], "unreadable": []}, init=False)
    mark: str = field(default_factory=lambda: f".{uuid.uuid4()}{WRITING}", init=False)

    def start(self) -> np.ndarray:
        """Make the directory, and stop other commands that write there; the sorted digests of the images that are done.

        Raises:
            InputError: If it holds something else or cannot be written.
        """
        store, path = open_store(self.out)
        try:
            store.create_dir(path)
            files = self._files()
            if not all(file.endswith(".parquet") for file in files):
                raise InputError(f"{self.out}: exists and holds no predictions; choose another --out")
            if files:
                self._check(pq.read_schema(files[0], filesystem=store).metadata or {})
            self._remove(f"*{WRITING}")  # what killed processes left, and the marks of other commands, which then stop
            with store.open_output_stream(f"{path}/{self.mark}"):
                pass
            self._remove("unreadable-*.parquet")
            done = [digests(())]
            if files := self._files():  # again, since another command may have written until now
                for batch in ds.dataset(files, self.schema, "parquet", store).to_batches(columns=["path"]):
                    done.append(digests(batch["path"].to_pylist()))
        except PROBLEMS as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.out}: cannot be used ({one_line(error)}); choose another --out") from error
        return np.sort(np.concatenate(done))

    def _files(self) -> list[str]:
        store, path = open_store(self.out)
        found = store.get_file_info(fs.FileSelector(path))
        return [info.path for info in found if not info.base_name.startswith((".", "_"))]

    def _remove(self, pattern: str) -> None:
        store, path = open_store(self.out)
        for info in store.get_file_info(fs.FileSelector(path)):
            if fnmatchcase(info.base_name, pattern):
                store.delete_file(info.path)

    def _check(self, metadata: dict[bytes, bytes]) -> None:
        found, wanted = (json.loads(m.get(b"patnet", b"{}")) for m in (metadata, self.schema.metadata))
        for name, difference in AGREE.items():
            if found.get(name) != wanted[name]:
                difference = difference.format(found.get(name))
                raise InputError(f"{self.out}: the predictions there {difference}; choose another --out")

    def add(self, table: pa.Table) -> None:
        """Take rows, and write a file if there are enough of them.

        Raises:
            InputError: If it cannot be written.
        """
        bad = table["error"].is_valid()
        for kind, rows in (("part", table.filter(pc.invert(bad))), ("unreadable", table.filter(bad))):
            if len(rows):
                self.waiting[kind].append(rows)
            if sum(map(len, self.waiting[kind])) >= self.rows_per_file:
                self._write(kind)

    def _write(self, kind: str) -> None:
        store, path = open_store(self.out)
        table, self.waiting[kind] = pa.concat_tables(self.waiting[kind]).cast(self.schema), []
        name = hashlib.blake2b("\0".join(table["path"].to_pylist()).encode(), digest_size=12).hexdigest()
        content = pa.BufferOutputStream()  # since a stream to a bucket that is closed by an error leaves a file
        pq.write_table(table, content)
        try:
            if store.get_file_info(f"{path}/{self.mark}").type == fs.FileType.NotFound:
                raise InputError(f"{self.out}: another command has started to write there, so this one stops")
            with store.open_output_stream(f"{path}/.{name}{WRITING}") as stream:
                stream.write(content.getvalue())
            store.move(f"{path}/.{name}{WRITING}", f"{path}/{kind}-{name}.parquet")
        except OSError as error:
            hint = "the files before it are complete, and the same command resumes"
            raise InputError(f"{self.out}: cannot be written ({one_line(error)}); {hint}") from error

    def finish(self) -> None:
        """Write what is left.

        Raises:
            InputError: If it cannot be written.
        """
        for kind, tables in self.waiting.items():
            if tables:
                self._write(kind)
        store, path = open_store(self.out)
        with suppress(OSError):  # another command has removed it, or the next one will
            store.delete_file(f"{path}/{self.mark}")
