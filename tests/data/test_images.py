import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from patnet import InputError
from patnet.data import UnreadableImage, find_images, read_image

FORMATS = st.sampled_from(["png", "jpg", "gif", "bmp", "tif", "webp"])
NOISE = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def save(tmp_path, image, name="image.png", **kwargs):
    image.save(tmp_path / name, **kwargs)
    return tmp_path / name


def pixels(file, mode="RGB"):
    return np.asarray(read_image(file, mode))


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    save(tmp_path, Image.fromarray(NOISE))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "self").symlink_to(tmp_path / "folder")
    (tmp_path / "folder" / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "up").symlink_to(tmp_path / "folder")
    (tmp_path / "image.png").rename(tmp_path / "other" / "image.png")
    assert [*find_images([str(tmp_path / "folder")])] == [tmp_path / "folder" / "linked" / "image.png"]


def test_grey_and_rgb_are_read_in_either_mode(tmp_path):
    grey = NOISE[..., 0]
    file = save(tmp_path, Image.fromarray(grey))
    assert np.array_equal(pixels(file, "L"), grey)
    assert np.array_equal(pixels(file), np.stack([grey] * 3, -1))
    assert np.array_equal(pixels(save(tmp_path, Image.fromarray(NOISE))), NOISE)
    with file.open("rb") as opened:
        assert np.array_equal(np.asarray(read_image(opened)), NOISE)


def test_palettes_transparency_and_cmyk(tmp_path):
    palette = Image.new("P", (4, 4))
    palette.putpalette([255, 0, 0, 0, 0, 255] + [0] * 762)
    palette.putdata([0, 1] * 8)
    assert pixels(save(tmp_path, palette))[0, :2].tolist() == [[255, 0, 0], [0, 0, 255]]
    transparent = np.zeros((2, 2, 4), np.uint8)
    transparent[0] = [10, 20, 30, 255]
    shown = pixels(save(tmp_path, Image.fromarray(transparent)))
    assert shown[:, 0].tolist() == [[10, 20, 30], [255] * 3]
    assert pixels(save(tmp_path, Image.new("P", (1, 1)), transparency=0)).ravel().tolist() == [255] * 3
    cyan = save(tmp_path, Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "image.jpg", quality=100)
    red, *others = pixels(cyan)[4, 4]
    assert red < 20
    assert min(others) > 235


def test_sixteen_bits_keep_their_brightness(tmp_path):
    deep = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
    for name in ("image.png", "image.tif"):
        assert pixels(save(tmp_path, Image.fromarray(deep), name), "L").tolist() == [[0, 100], [200, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = Image.fromarray(NOISE)
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that a camera held so would store
    stored = upright.transpose(Image.Transpose(inverse[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(save(tmp_path, stored, exif=exif)), NOISE)


def test_unreadable_images_are_named(tmp_path, monkeypatch):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    save(tmp_path, Image.fromarray(np.ones((2, 2), np.float32)), "float.tif")
    save(tmp_path, Image.new("L", (64, 64)), "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # up to twice as much only warns in Pillow
    for name, reason in {
        "missing.png": "no such image",
        "empty.png": "is empty",
        "text.png": "is not an image",
        "float.tif": "floating-point",
        "bomb.png": "decompression bomb",
        ".": "is a folder",
    }.items():
        with pytest.raises(UnreadableImage, match=reason) as raised:
            read_image(tmp_path / name)
        error = raised.value
        assert str(error) == f"{tmp_path / name}: {error.reason}"
        assert str(pickle.loads(pickle.dumps(error))) == str(error)  # as it comes from a loader process


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60)
@given(data=st.data(), suffix=FORMATS)
def test_an_image_with_wrong_bytes_is_read_or_refused_and_a_truncated_one_is_refused(tmp_path_factory, data, suffix):
    file = tmp_path_factory.mktemp("wrong") / f"image.{suffix}"
    Image.fromarray(NOISE).save(file, exif=Image.Exif())
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    message = str(file)
    try:
        read_image(file)
    except UnreadableImage as error:
        message = str(error)
    assert str(file) in message
    assert "\n" not in message
    file.write_bytes(content[: data.draw(st.integers(0, len(content) // 2))])
    with pytest.raises(UnreadableImage):
        read_image(file)


def test_images_are_found_once_in_the_order_given(images_dir, monkeypatch):
    root = images_dir(**{"b": 2, "a/deep": 1})
    (root / "notes.txt").touch()
    monkeypatch.chdir(root)
    names = [str(file) for file in find_images(["."])]
    assert names == ["a/deep/00.png", "b/00.png", "b/01.png"]
    assert [str(file) for file in find_images(["b/01.png", "b", "**/0?.png"])] == ["b/01.png", "b/00.png", names[0]]
    (root / "empty").mkdir()
    for pattern, message in (("empty", "holds no images"), ("*.gif", "no file matches"), ("c", "no such image")):
        with pytest.raises(InputError, match=message):
            list(find_images([pattern]))
