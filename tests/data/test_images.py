import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from patnet import InputError
from patnet.data import read_image


def gradient(channels: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (12, 20, channels), dtype=np.uint8).squeeze()


def save(tmp_path, image, name="picture.png", **kwargs):
    image.save(tmp_path / name, **kwargs)
    return tmp_path / name


def test_grey_and_colour_are_read_in_either_mode(tmp_path):
    grey = gradient(1)
    file = save(tmp_path, Image.fromarray(grey))
    assert np.array_equal(np.asarray(read_image(file, "L")), grey)
    assert np.array_equal(np.asarray(read_image(file, "RGB")), np.stack([grey] * 3, -1))
    colour = gradient(3)
    assert np.array_equal(np.asarray(read_image(save(tmp_path, Image.fromarray(colour)))), colour)


def test_palette_shows_its_colours(tmp_path):
    image = Image.new("P", (4, 4))
    image.putpalette([255, 0, 0, 0, 0, 255] + [0] * 762)
    image.putdata([0, 1] * 8)
    pixels = np.asarray(read_image(save(tmp_path, image)))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[0, 1].tolist() == [0, 0, 255]


def test_transparency_lies_over_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0] = [10, 20, 30, 255]
    pixels = np.asarray(read_image(save(tmp_path, Image.fromarray(rgba))))
    assert pixels[0, 0].tolist() == [10, 20, 30]
    assert pixels[1, 0].tolist() == [255, 255, 255]
    palette = Image.new("P", (1, 1))
    assert np.asarray(read_image(save(tmp_path, palette, transparency=0))).ravel().tolist() == [255] * 3


def test_cmyk_is_seen_in_its_colours(tmp_path):
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    red, green, blue = np.asarray(read_image(save(tmp_path, cyan, "picture.jpg", quality=100)))[4, 4]
    assert red < 20
    assert green > 235
    assert blue > 235


def test_sixteen_bits_keep_their_brightness(tmp_path):
    deep = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
    for name in ("picture.png", "picture.tif"):
        file = save(tmp_path, Image.fromarray(deep), name)
        assert np.asarray(read_image(file, "L")).tolist() == [[0, 100], [200, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path, orientation):
    upright = Image.fromarray(gradient(3))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that a camera held so would store
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = save(tmp_path, stored, exif=exif)
    assert np.array_equal(np.asarray(read_image(file)), np.asarray(upright))


def test_floating_point_pixels_are_refused(tmp_path):
    file = save(tmp_path, Image.fromarray(np.ones((2, 2), np.float32)), "picture.tif")
    with pytest.raises(InputError, match="floating-point"):
        read_image(file)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    file = save(tmp_path, Image.new("L", (64, 64)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # up to twice as much only warns in Pillow
    with pytest.raises(InputError, match="decompression bomb"):
        read_image(file)


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    for name, problem in {
        "missing.png": "no such picture",
        "empty.png": "is empty",
        "text.png": "is not a picture",
    }.items():
        with pytest.raises(InputError, match=f"{name}.*{problem}"):
            read_image(tmp_path / name)
    with pytest.raises(InputError, match="folder"):
        read_image(tmp_path)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60)
@given(data=st.data(), suffix=st.sampled_from(["png", "jpg", "gif", "bmp", "tif", "webp"]))
def test_a_picture_with_wrong_bytes_is_read_or_refused(tmp_path_factory, data, suffix):
    file = tmp_path_factory.mktemp("wrong") / f"picture.{suffix}"
    Image.fromarray(gradient(3)).save(file, exif=Image.Exif())
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    said = ""
    try:
        read_image(file)
    except InputError as error:
        said = str(error)
    assert said == "" or str(file) in said
    assert "\n" not in said


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@settings(max_examples=40)
@given(data=st.data(), suffix=st.sampled_from(["png", "jpg", "gif", "bmp", "tif", "webp"]))
def test_a_picture_cut_short_anywhere_is_an_input_error(tmp_path_factory, data, suffix):
    file = tmp_path_factory.mktemp("cut") / f"picture.{suffix}"
    Image.fromarray(gradient(3)).save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole) // 2))])
    with pytest.raises(InputError, match="picture") as raised:
        read_image(file)
    assert "\n" not in str(raised.value)
