import numpy as np
import pytest
from PIL import Image

from patnet.demo.uploads import read_upload
from patnet.errors import InputError

NOISE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def strange_pictures():
    """Pictures of kinds that trip programs up, by name."""
    grey16 = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)
    turned = Image.fromarray(NOISE)
    turned.getexif()[0x0112] = 6
    return {
        "one.png": Image.new("RGB", (1, 1), "red"),
        "grey.png": Image.fromarray(NOISE).convert("L"),
        "grey16.png": grey16,
        "cmyk.jpg": Image.fromarray(NOISE).convert("CMYK"),
        "clear.png": Image.fromarray(NOISE).convert("RGBA"),
        "palette.gif": Image.fromarray(NOISE).convert("P"),
        "turned.jpg": turned,
    }


@pytest.mark.parametrize("name", strange_pictures())
def test_pictures_of_every_kind_are_read_and_removed(name, tmp_path):
    file = tmp_path / name
    picture = strange_pictures()[name]
    picture.save(file, exif=picture.getexif())
    read = read_upload(file, max_pixels=10_000)
    assert read.mode == "RGB"
    assert read.size == ((30, 40) if name == "turned.jpg" else picture.size)
    assert not file.exists()


def refused(file, max_pixels=10_000):
    with pytest.raises(InputError) as raised:
        read_upload(file, max_pixels=max_pixels)
    assert not file.exists()
    sentence = str(raised.value)
    assert sentence.startswith(f"{file.name}: ")
    assert str(file.parent) not in sentence
    return sentence


def test_what_is_no_picture_is_refused_by_its_name_alone_and_removed(tmp_path):
    file = tmp_path / "photo.png"
    file.write_text("no picture")
    assert "is not a picture; give BMP" in refused(file)
    file.write_bytes(b"")
    assert "is empty" in refused(file)
    Image.fromarray(NOISE).save(file, "EPS")  # a program in PostScript
    assert "is not a picture" in refused(file)
    Image.fromarray(NOISE).save(file)
    file.write_bytes(file.read_bytes()[:500])
    assert "damaged or cut short" in refused(file)


def test_pictures_of_too_many_pixels_are_refused(tmp_path):
    file = tmp_path / "large.png"
    Image.new("1", (400, 300)).save(file)
    assert "400x300 px, more than the 0.1 million pixels" in refused(file, 100_000)
    Image.new("1", (400, 300)).save(file)
    assert read_upload(file, max_pixels=120_000).size == (400, 300)
