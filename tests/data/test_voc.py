import pytest
from PIL import Image

from patnet import InputError
from patnet.data.detection import DetectionPictures, open_annotations


def xml(name, *objects):
    listed = "".join(
        f"<object><name>{kind}</name><difficult>{hard}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for kind, hard, x1, y1, x2, y2 in objects
    )
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{size}{listed}</annotation>"


@pytest.fixture
def voc(tmp_path):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for name, objects in {
        "a": [("dog", 0, 1, 1, 10, 20), ("cat", 1, 5, 5, 40, 30)],
        "b": [],
        "c": [("bird", 0, 2, 2, 9, 9)],
    }.items():
        (tmp_path / "Annotations" / f"{name}.xml").write_text(xml(f"{name}.jpg", *objects))
        Image.new("RGB", (40, 30)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    return tmp_path


def test_vocs_folders_are_read(voc):
    found = open_annotations(voc)
    assert found.class_names == ["bird", "cat", "dog"]
    assert [p.path.name for p in found.pictures] == ["a.jpg", "b.jpg", "c.jpg"]
    image, target = DetectionPictures(found)[0]
    assert image.shape == (3, 30, 40)
    assert target["labels"].tolist() == [3, 2]
    assert target["boxes"].tolist() == [[0, 0, 10, 20], [4, 4, 40, 30]]
    assert target["iscrowd"].tolist() == [0, 1]
    assert "masks" not in target
    split = open_annotations(voc, split="train")
    assert split.class_names == found.class_names
    assert [p.id for p in split.pictures] == [1, 2]


def test_files_beside_their_pictures_are_read(tmp_path):
    (tmp_path / "one.xml").write_text(xml("one.png", ("screw", 0, 3, 3, 9, 9)))
    Image.new("L", (40, 30)).save(tmp_path / "one.png")
    assert open_annotations(tmp_path).class_names == ["screw"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotation>", "a.xml: not an XML file"),
        ("<other/>", "field annotation is missing"),
        (xml("a.jpg", ("", 0, 1, 1, 2, 2)), "field name is missing"),
        (xml("a.jpg", ("dog", 0, "x", 1, 2, 2)), "field bndbox/xmin is 'x', not a number"),
        (xml("a.jpg").replace("width", "breadth"), "field size/width is missing"),
        (xml("", ("dog", 0, 1, 1, 2, 2)), "field filename is missing"),
        (xml("a.jpg", ("dog", 0, 30, 1, 2, 2)), "1 of 2 annotations.*comes before.*object 1 of a.jpg"),
        (xml("a.jpg", ("dog", 0, 1, 1, 60, 20)), "outside its picture"),
        (xml("gone.jpg", ("dog", 0, 1, 1, 6, 20)), "missing"),
    ],
)
def test_what_is_wrong_is_named(voc, text, said):
    (voc / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(InputError, match=said) as raised:
        open_annotations(voc)
    assert "\n" not in str(raised.value)


def test_splits_are_checked(voc):
    with pytest.raises(InputError, match=r"val\.txt: no such split"):
        open_annotations(voc, split="val")
    (voc / "ImageSets" / "Main" / "val.txt").write_text("z\n")
    with pytest.raises(InputError, match=r"names z, which has no .*z\.xml"):
        open_annotations(voc, split="val")
