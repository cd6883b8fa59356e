"""Fashion-MNIST from IDX files: what is read, and what is refused."""

import gzip

import numpy as np
import pytest

from patnet import InputError
from patnet.data import fashion_mnist, open_data


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The four files with 30 and 20 images, one of them compressed, and their arrays."""
    shapes, rng = {}, np.random.default_rng(0)
    for name, (_, *size) in fashion_mnist.FILES.items():
        shapes[name] = (30 if name.startswith("train") else 20, *size)
        values = rng.integers(0, 10 if not size else 256, shapes[name], dtype=np.uint8)
        write(tmp_path / name, values)
    monkeypatch.setattr(fashion_mnist, "FILES", shapes)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")
    return tmp_path


def write(file, values):
    header = np.array([0x800 + values.ndim, *values.shape], ">i4").tobytes()
    file.write_bytes(header + values.tobytes())


def read(file):
    content = file.read_bytes()
    dims = content[3]
    shape = np.frombuffer(content[4 : 4 + 4 * dims], ">i4")
    return np.frombuffer(content[4 + 4 * dims :], np.uint8).reshape(shape)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_images_and_labels_are_those_of_the_files(folder, in_chans):
    for name in list(fashion_mnist.FILES)[:2]:  # as the Debian package has them
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    splits = open_data("fashion-mnist", in_chans=in_chans, data_root=str(folder), val_fraction=0.2)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (24, 6, 20)
    assert splits.class_names[9] == "ankle boot"
    pixels, labels = read(folder / "t10k-images-idx3-ubyte"), read(folder / "t10k-labels-idx1-ubyte")
    for i in range(20):
        image, label = splits.test[i]
        assert image.mode == ("L" if in_chans == 1 else "RGB")
        assert label == labels[i]
        assert (np.asarray(image.convert("L")) == pixels[i]).all()
    whole = {np.asarray(image.convert("L")).tobytes() for part in (splits.train, splits.val) for image, _ in part}
    assert whole == {image.tobytes() for image in read(folder / "train-images-idx3-ubyte")}


def test_the_folder_of_the_debian_package_is_found(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", folder)
    assert len(open_data("fashion-mnist", cache_dir=tmp_path / "cache").test) == 20


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def cut_gzip(file):
    file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes())[:-9])
    file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"t10k-images-idx3-ubyte: is cut short: \d+ of \d+ bytes"),
        (cut_gzip, r"t10k-images-idx3-ubyte.gz: is cut short or damaged"),
        (lambda file: write(file, np.zeros((20, 27, 28), np.uint8)), "holds 20x27x28, not 20x28x28 of Fashion-MNIST"),
        (lambda file: file.write_bytes(b"GIF89a" * 9), "holds no IDX file of bytes, not 20x28x28"),
        (lambda file: file.write_bytes(b""), "holds no IDX file of bytes, not 20x28x28"),
        (lambda file: file.unlink(), "has no t10k-images-idx3-ubyte or .*; install the Debian package dataset-fashion"),
    ],
)
def test_a_damaged_or_missing_file_is_named(folder, damage, message):
    damage(folder / "t10k-images-idx3-ubyte")
    with pytest.raises(InputError, match=message):
        open_data("fashion-mnist", data_root=str(folder))


def test_without_files_and_network_the_message_says_what_brings_them(folder, monkeypatch, tmp_path):
    def offline(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(fashion_mnist, "FashionMNIST", offline)
    with pytest.raises(
        InputError, match=r"cannot be downloaded \(Name or .*dataset-fashion-mnist, or give --data-root"
    ):
        open_data("fashion-mnist", cache_dir=tmp_path / "cache")


def test_elpv_takes_no_root():
    with pytest.raises(InputError, match="come with their package"):
        open_data("elpv", data_root="somewhere")
