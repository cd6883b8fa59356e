"""Images of folders, patterns, lists, tar and Parquet files, local and in a store, each once."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from images import refuse_to_list, write_images
from torchvision.transforms.v2.functional import pil_to_tensor

from patnet import InputError
from patnet.data import read_image
from patnet.data.sources import Reader, chunks, digests


def reader(size=4):
    return Reader(lambda image: pil_to_tensor(image.resize((8, 8))), "RGB", size)


def read(source, read_with=None, size=4):
    """Pixels and errors by name, of all that a source holds."""
    found = {}
    for chunk in chunks([str(source)], size):
        for batch in (read_with or reader(size))(chunk.names, chunk.group):
            assert len(batch["path"]) <= size
            assert len(batch["pixels"]) == len(batch["path"])
            for name, pixels, error in zip(batch["path"], batch["pixels"], batch["error"], strict=True):
                assert name not in found
                found[name] = (pixels, error)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """11 images in a folder, and the same ones in all other kinds of sources beside it."""
    root = tmp_path_factory.mktemp("sources")
    files = sorted(write_images(root / "images", a=7, b=4).rglob("*.png"))
    (root / "list.txt").write_text("\n".join(f"images/{f.parent.name}/{f.name}" for f in files) + "\n\n")
    with tarfile.open(root / "shard-0.tar", "w") as tar:
        for i, file in enumerate(files):
            tar.add(file, f"{i}.png")
            info = tarfile.TarInfo(f"{i}.json")
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
    contents = [file.read_bytes() for file in files]
    paths = [f"images/{f.parent.name}/{f.name}" for f in files]
    pq.write_table(pa.table({"path": paths}), root / "paths.parquet")
    pq.write_table(pa.table({"bytes": contents}), root / "bytes.parquet", row_group_size=5)
    hugging_face = [{"bytes": content, "path": None} for content in contents]
    pq.write_table(pa.table({"label": range(11), "image": hugging_face}), root / "image.parquet")
    return root


@pytest.mark.parametrize(
    "name",
    ["images", "images/*/*.png", "list.txt", "shard-*.tar", "paths.parquet", "bytes.parquet", "image.parquet"],
)
def test_each_kind_of_source_gives_the_same_images(folder, name):
    expected = [reader()._read(str(file), None)[0] for file in sorted((folder / "images").rglob("*.png"))]
    found = read(folder / name)
    assert len(found) == 11
    assert all(error == "" for _, error in found.values())
    assert all(torch.equal(a, b) for a, (b, _) in zip(expected, found.values(), strict=True))
    total = sum(chunk.images for chunk in chunks([str(folder / name)], 3))
    assert total == (0 if name.endswith("tar") else 11)


def test_a_list_in_the_working_directory_names_images_beside_it(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert len(read("list.txt")) == 11
    assert not any(error for _, error in read("list.txt").values())


def test_chunks_come_in_the_order_of_the_sources(folder):
    sources = [str(folder / name) for name in ("images/a", "shard-0.tar", "images/b")]
    assert [chunk.images for chunk in chunks(sources, 16)] == [7, 0, 4]


def test_images_of_parquet_files_are_named_after_their_files(folder, tmp_path):
    """So that those of one file are not taken for those of another that are done."""
    image = next((folder / "images").rglob("*.png")).read_bytes()
    for name in "ab":
        pq.write_table(pa.table({"path": ["0.png", None], "bytes": [image, image]}), tmp_path / f"{name}.parquet")
    read_with = reader()
    read_with.done = np.sort(digests(read(tmp_path / "a.parquet")))
    found = read(tmp_path / "b.parquet", read_with)
    assert list(found) == [f"{tmp_path}/b.parquet/0.png", f"{tmp_path}/b.parquet/1"]


def test_images_that_are_done_are_left_out(folder):
    names = list(read(folder / "bytes.parquet"))
    for count in (1, 6, 11):
        read_with = reader()
        read_with.done = np.sort(digests(names[:count]))
        assert list(read(folder / "bytes.parquet", read_with)) == names[count:]


def test_what_cannot_be_read_is_a_row_with_an_error(folder, tmp_path):
    (tmp_path / "list.txt").write_text(f"absent.png\n{folder}/images/a/00.png\n{folder}/list.txt.png\n")
    found = list(read(tmp_path / "list.txt").values())
    assert [bool(error) for _, error in found] == [True, False, True]
    assert "absent.png: no such image" in found[0][1]
    whole = (folder / "shard-0.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    found = read(tmp_path / "cut.tar")
    assert 2 < len(found) < 11
    assert "cut.tar" in list(found.values())[-1][1]
    (tmp_path / "no.tar").write_bytes(whole[100:])
    ((name, (_, error)),) = read(tmp_path / "no.tar").items()
    assert name.endswith("no.tar")
    assert "no.tar" in error


@pytest.mark.parametrize("bad", ["ftp2://bucket/x.png", "ftp2://bucket/x.tar", "absent.tar"])
def test_names_after_one_that_cannot_be_opened_are_read(folder, tmp_path, bad):
    good = sorted(map(str, (folder / "images").rglob("*.png")))
    (tmp_path / "list.txt").write_text("\n".join([*good[:2], bad, *good[2:]]))
    found = read(tmp_path / "list.txt", size=64)
    bad = bad if "://" in bad else f"{tmp_path}/{bad}"
    assert {name: bool(error) for name, (_, error) in found.items()} == dict.fromkeys(good, False) | {bad: True}
    assert bad in found[bad][1]


def test_a_store_is_read_as_a_folder_is(folder):
    store = MemoryFileSystem()
    store.put(str(folder), "/bucket", recursive=True)
    try:
        for name in ("images", "images/*/*.png", "list.txt", "*.tar", "bytes.parquet"):
            found = read(f"fsspec+memory://bucket/{name}")
            assert len(found) == 11
            assert all(name.startswith("fsspec+memory://bucket/") and not error for name, (_, error) in found.items())
    finally:
        store.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.txt", "no such image"),
        ("empty", "holds no images"),
        ("*.jpg", "no file matches"),
        ("other.parquet", "has no column path, nor one of bytes"),
        ("broken.parquet", r"broken.parquet: cannot be read \("),
        ("empty.txt", "empty.txt: names no images"),
        ("fsspec+memory://nothing/there", "holds no images|cannot be listed"),
        ("ftp2://bucket/images", "cannot be opened"),
    ],
)
def test_sources_that_cannot_be_used_are_named(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match=message):
        list(chunks([source], 4))


def test_a_folder_without_rights_is_named(folder, monkeypatch):
    refuse_to_list(monkeypatch, folder / "images" / "b")
    with pytest.raises(InputError, match=r"images: cannot be listed \(.*Permission denied: .*images/b'\)"):
        list(chunks([str(folder / "images")], 4))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"image": ["text"]}, "its column image must hold the encoded images, .* but is string"),
        ({"bytes": [7]}, "its column bytes must hold the encoded images, .* but is int64"),
        ({"img": [{"path": "0.png"}]}, "its column img must hold the encoded images, .* but is struct<path: string>"),
        ({"img": [{"bytes": "text"}]}, "its column img must hold the encoded images, .* but is struct<bytes: string>"),
        ({"path": [7], "bytes": [b""]}, "its column path must be text, but is int64"),
        ({"path": [7]}, "its column path must be text, but is int64"),
        ({"path": pa.nulls(2)}, "its column path must be text, but is null"),
        ({"path": ["0.png", None]}, "has rows without a path"),
    ],
)
def test_parquet_columns_of_other_types_are_named(table, message, tmp_path):
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=f"x.parquet: {message}"):
        read(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"bytes": pa.large_binary(), "path": pa.large_string()}, "0.png"),
        ({"bytes": pa.binary_view(), "path": pa.string_view()}, "0.png"),
        ({"bytes": pa.binary(), "path": pa.null()}, "0"),
    ],
)
def test_parquet_columns_have_any_type_of_bytes_and_text(folder, columns, name, tmp_path):
    image = next((folder / "images").rglob("*.png")).read_bytes()
    values = {"bytes": image, "path": None if name == "0" else name}
    pq.write_table(pa.table({k: pa.array([values[k]], kind) for k, kind in columns.items()}), tmp_path / "x.parquet")
    ((found, (_, error)),) = read(tmp_path / "x.parquet").items()
    assert (found, error) == (f"{tmp_path}/x.parquet/{name}", "")


def test_paths_may_be_a_dictionary(folder, tmp_path):
    path = str(next((folder / "images").rglob("*.png")))
    pq.write_table(pa.table({"path": pa.array([path]).dictionary_encode()}), tmp_path / "x.parquet")
    assert [error for _, error in read(tmp_path / "x.parquet").values()] == [""]


def test_a_bucket_without_rights_is_named(monkeypatch):
    """A server that answers as S3 does where the key has no rights."""
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Forbidden(BaseHTTPRequestHandler):
        def do_GET(self):
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self.send_response(403)
            self.send_header("x-amz-bucket-region", "us-east-1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_PUT = do_POST = do_GET

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Forbidden)
    Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    try:
        with pytest.raises(
            InputError, match=r"s3://forbidden-bucket/images: cannot be (opened|listed).*(?i:access.?denied)"
        ):
            list(chunks(["s3://forbidden-bucket/images"], 4))
    finally:
        server.shutdown()


def test_pixels_are_those_of_the_files(folder):
    name, (pixels, _) = next(iter(read(folder / "images").items()))
    assert torch.equal(pixels, pil_to_tensor(read_image(name).resize((8, 8))))
