"""Images of any number, wherever they are: folders, lists, tar and Parquet files, on a disk or in a bucket.

An image has a name: its path or URI. In a tar file it is that of the file, a slash and the member's; in a Parquet file
of images that of the file, a slash and what the column `path` says, or the number of the row.
"""

import hashlib
import io
import os
import posixpath
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from pyarrow import fs

from ..errors import InputError, one_line
from ..files import shown
from .images import IMAGE_SUFFIXES, find_images, read_image

TARS, LISTS = (".tar", ".tar.gz", ".tgz"), (".txt", ".lst")
# Columns of a Parquet file with encoded images, or with structs that have `bytes`; types of these, and of `path`.
BYTES = ("bytes", "image", "img")
BINARY = (pa.binary(), pa.large_binary(), pa.binary_view())
TEXT = (pa.string(), pa.large_string(), pa.string_view())
PROBLEMS = (OSError, pa.ArrowException, tarfile.TarError, ValueError)


@cache
def _connect(root: str) -> tuple[fs.FileSystem, str]:
    return fs.FileSystem.from_uri(root)


def open_store(name: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it.

    Raises:
        InputError: If pyarrow has no such file system, or must not use it.
    """
    scheme, found, rest = name.partition("://")
    if not found:
        return fs.LocalFileSystem(), absolute(name)
    bucket, _, key = rest.partition("/")
    try:
        store, root = _connect(f"{scheme}://{bucket}/")
    except (*PROBLEMS, ImportError) as error:
        raise InputError(f"{name}: cannot be opened ({one_line(error)})") from error
    return store, posixpath.join(root, key)


def absolute(name: str) -> str:
    """A path from the root, a URI as it is."""
    return name if "://" in name else str(Path(name).absolute())


def _walk(store: fs.FileSystem, folder: str) -> Iterator[str]:
    """The files below a folder of a store, ordered by name; memory holds the names of one folder at a time."""
    for info in sorted(store.get_file_info(fs.FileSelector(folder)), key=lambda info: info.path):
        if info.type == fs.FileType.Directory:
            yield from _walk(store, info.path)
        else:
            yield info.path


def _files(source: str) -> Iterator[str]:
    """The names of the files that a file, a folder or a pattern names."""
    try:
        yield from _stored(source) if "://" in source else map(os.fspath, find_images([source]))
    except PROBLEMS as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source}: cannot be listed ({one_line(error)})") from error


def _stored(source: str) -> Iterator[str]:
    """The names of the files that the URI of a file or folder, or a pattern of URIs, names."""
    magic = min((source.find(c) for c in "*?[" if c in source), default=len(source))
    base = source if magic == len(source) else source[: source.rfind("/", 0, magic)]
    store, root = open_store(base)
    if store.get_file_info(root).type == fs.FileType.File:
        yield source
        return
    for path in _walk(store, root.rstrip("/")):
        name = base.rstrip("/") + path[len(root.rstrip("/")) :]
        if fnmatchcase(name, source) if base != source else Path(name).suffix.lower() in IMAGE_SUFFIXES:
            yield name


def _beside(file: str, name: str) -> str:
    """The file that a list in `file` names, relative to its folder."""
    folder, slash, _ = file.rpartition("/")
    return name if "://" in name or name.startswith("/") else folder + slash + name


def _columns(file: str, schema: pa.Schema) -> list[str]:
    """The columns of a Parquet file to read: that of its encoded images, if it has one, and `path`, if it has that.

    Raises:
        InputError: If it has neither, or one of another type.
    """
    types = {f.name: f.type.value_type if pa.types.is_dictionary(f.type) else f.type for f in schema}
    images, path = next((name for name in BYTES if name in types), None), types.get("path")
    if images is None and path is None:
        raise InputError(f"{file}: has no column path, nor one of {', '.join(BYTES)}")
    if images is not None:
        content = types[images]
        if pa.types.is_struct(content) and content.get_field_index("bytes") >= 0:
            content = content.field("bytes").type
        if content not in BINARY:
            expected = "the encoded images, as binary or as a struct with bytes as binary"
            raise InputError(f"{file}: its column {images} must hold {expected}, but is {types[images]}")
    if path not in TEXT and (images is None or path not in (None, pa.null())):
        raise InputError(f"{file}: its column path must be text, but is {path}")
    found = [images] if images is not None else []
    return found if path is None else [*found, "path"]


def _expanded(files: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    """The image files that lists name, and each part of the files that hold images, as a `Chunk` has them."""
    for file in files:
        store, path = open_store(file)
        try:
            if file.endswith(LISTS):
                with store.open_input_stream(path) as stream:
                    lines = map(str.strip, io.TextIOWrapper(stream, encoding="utf-8"))
                    yield from ((_beside(file, line), -1, 1) for line in lines if line)
            elif file.endswith(".parquet"):
                with pq.ParquetFile(store.open_input_file(path)) as parquet:
                    metadata = parquet.metadata
                    if _columns(file, parquet.schema_arrow) != ["path"]:
                        groups = range(metadata.num_row_groups)
                        yield from ((file, group, metadata.row_group(group).num_rows) for group in groups)
                        continue
                    for batch in parquet.iter_batches(columns=["path"]):
                        if batch["path"].null_count:
                            raise InputError(f"{file}: has rows without a path; leave them out")
                        yield from ((_beside(file, name), -1, 1) for name in batch["path"].to_pylist())
            else:
                yield file, -1, 0 if file.endswith(TARS) else 1
        except PROBLEMS as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{file}: cannot be read ({one_line(error)})") from error


class Chunk(NamedTuple):
    """A unit of work: image files, or one tar file, or a row group of a Parquet file (-1: none).

    The number of images is 0 for a tar file, which does not say it.
    """

    names: list[str]
    group: int
    images: int


def chunks(sources: Sequence[str], size: int) -> Iterator[Chunk]:
    """The images of files, folders, patterns, lists, tar and Parquet files, at most `size` files at once.

    Of several sources each image comes once; then their names are in memory.

    Raises:
        InputError: If a source holds none, or cannot be read.
    """
    files: list[str] = []
    seen: set[tuple[str, int]] = set()
    for source in sources:
        count = 0
        for name, group, images in _expanded(_files(source)):
            count += 1
            if len(sources) > 1:
                if (name, group) in seen:
                    continue
                seen.add((name, group))
            if group >= 0 or not images:
                if files:
                    yield Chunk(files, -1, len(files))
                    files = []
                yield Chunk([name], group, images)
                continue
            files.append(name)
            if len(files) == size:
                yield Chunk(files, -1, size)
                files = []
        if not count:
            raise InputError(f"{source}: names no images")
    if files:
        yield Chunk(files, -1, len(files))


class _Member(tarfile.TarInfo):
    """Refuses a file that ends before its end, at which `tarfile` would stop without a word."""

    @classmethod
    def frombuf(cls, buf: Any, *args: Any) -> Any:
        if len(buf) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("the file is cut off")
        return super().frombuf(buf, *args)


def _contents(names: Sequence[str], group: int) -> Iterator[tuple[str, bytes | Exception | None]]:
    """The name of each image of a chunk, and its bytes, None for a file of its own.

    For a file of images that cannot be read, or not to its end, its name and the error.
    """
    for name in names:
        try:
            if group >= 0:
                yield from _rows(name, group)
            elif name.endswith(TARS):
                yield from _members(name)
            else:
                yield name, None
        except PROBLEMS as error:
            yield name, error


def _rows(file: str, group: int) -> Iterator[tuple[str, bytes]]:
    """The images of a row group of a Parquet file."""
    store, path = open_store(file)
    parquet = pq.ParquetFile(store.open_input_file(path))
    columns = _columns(file, parquet.schema_arrow)
    first = sum(parquet.metadata.row_group(g).num_rows for g in range(group))
    for batch in parquet.iter_batches(64, row_groups=[group], columns=columns):
        for row in batch.to_pylist():
            found = row[columns[0]]
            found = found["bytes"] if isinstance(found, dict) else found
            yield f"{file}/{row.get('path') or first}", found or b""
            first += 1


def _members(file: str) -> Iterator[tuple[str, bytes]]:
    """The images of a tar file."""
    store, path = open_store(file)
    with (
        store.open_input_stream(path) as stream,
        tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as tar,
    ):
        for member in tar:
            if member.isfile() and Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                content: Any = tar.extractfile(member)
                yield f"{file}/{member.name}", content.read()


def digests(names: Iterable[str]) -> np.ndarray:
    """16 bytes for each name, by which it is found among those that are done."""
    return np.array([hashlib.blake2b(shown(name).encode(), digest_size=16).digest() for name in names], "S16")


@dataclass
class Reader:
    """Reads and transforms the images of chunks.

    Args:
        transform: From an image to a tensor.
        mode: `"RGB"` or `"L"`.
        size: Images in a batch.
        done: Sorted digests of the images to leave out.
    """

    transform: Callable
    mode: str
    size: int
    done: np.ndarray = field(default_factory=lambda: np.empty(0, "S16"))

    def __call__(self, names: Sequence[str], group: int = -1) -> Iterator[dict[str, Any]]:
        """Batches of `path`, `pixels`, stacked, and `error`, why an image is blank, or ""."""
        contents = _contents(names, group)
        while part := list(islice(contents, self.size)):
            if kept := self._missing(part):
                read = [(shown(name), *self._read(name, content)) for name, content in kept]
                paths, pixels, errors = zip(*read, strict=True)
                yield {"path": list(paths), "pixels": torch.stack(pixels), "error": list(errors)}

    def _missing(self, found: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        if not len(self.done):
            return found
        keys = digests(name for name, _ in found)
        nearest = self.done[np.searchsorted(self.done, keys).clip(max=len(self.done) - 1)]
        return [item for item, done in zip(found, nearest == keys, strict=True) if not done]

    def _read(self, name: str, content: Any) -> tuple[torch.Tensor, str]:
        try:
            if isinstance(content, Exception):
                raise content
            if content is None and "://" in name:
                store, path = open_store(name)
                with store.open_input_stream(path) as stream:
                    content = stream.read()
            file: Any = name if content is None else io.BytesIO(content)
            return self.transform(read_image(file, self.mode, name=name)), ""
        except PROBLEMS as error:
            reason = one_line(error)
            return self.transform(Image.new(self.mode, (32, 32))), reason if name in reason else f"{name}: {reason}"


def list_chunks(_: dict[str, Any], sources: Sequence[str], size: int) -> Iterator[pa.Table]:
    """The chunks of some sources as rows, for Ray."""
    found = chunks(sources, size)
    while part := list(islice(found, 64)):
        yield pa.table({"names": [chunk.names for chunk in part], "group": [chunk.group for chunk in part]})


def read_chunks(rows: pa.Table, reader: Reader, done: Callable[[], np.ndarray]) -> Iterator[dict[str, Any]]:
    """What a reader gives for some of these rows, for Ray."""
    reader.done = done()
    for row in rows.to_pylist():
        for batch in reader(row["names"], row["group"]):
            yield batch | {"pixels": batch["pixels"].numpy()}
