import numpy as np
import pytest
from PIL import Image

from patnet.data import UnreadableImage
from patnet.demo.uploads import read_upload

NOISE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def test_images_of_every_mode_are_read_and_removed(tmp_path):
    rotated = Image.fromarray(NOISE)
    rotated.getexif()[0x0112] = 6
    for name, image in {
        "one.png": Image.new("RGB", (1, 1), "red"),
        "grey.png": Image.fromarray(NOISE).convert("L"),
        "grey16.png": Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257),
        "cmyk.jpg": Image.fromarray(NOISE).convert("CMYK"),
        "clear.png": Image.fromarray(NOISE).convert("RGBA"),
        "palette.gif": Image.fromarray(NOISE).convert("P"),
        "rotated.jpg": rotated,
    }.items():
        image.save(tmp_path / name, exif=image.getexif())
        read = read_upload(tmp_path / name, max_pixels=10_000)
        assert (read.mode, read.size) == ("RGB", (30, 40) if name == "rotated.jpg" else image.size)
        assert not (tmp_path / name).exists()


def test_other_files_are_refused_without_their_folder_and_removed(tmp_path, monkeypatch):
    def refused(message, max_pixels=10_000):
        with pytest.raises(UnreadableImage, match=f"^photo.png: .*{message}") as raised:
            read_upload(file, max_pixels=max_pixels)
        assert not file.exists()
        assert str(file.parent) not in str(raised.value)

    file = tmp_path / "photo.png"
    for content, message in ((b"no image", "is not an image; give BMP"), (b"", "is empty")):
        file.write_bytes(content)
        refused(message)
    Image.fromarray(NOISE).save(file, "EPS")  # a program in PostScript
    refused("is not an image")
    Image.fromarray(NOISE).save(file)
    file.write_bytes(file.read_bytes()[:500])
    refused("damaged")
    large = Image.new("1", (400, 300))
    large.save(file)
    refused("400x300 px is above the limit of 0.1 million pixels", 100_000)
    large.save(file)
    assert read_upload(file, max_pixels=120_000).size == (400, 300)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    large.save(file)
    refused("above the limit of 0.001 million pixels", 1000)
