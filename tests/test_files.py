import errno
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from patnet.errors import InputError, nearest, require
from patnet.files import (
    atomic_directory,
    atomic_write,
    distinct_stems,
    read_lines,
    save_figure,
    sha256,
    shown,
    write_text,
)


def test_a_file_is_replaced_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file.txt"
    for text in ("first", "second"):
        with atomic_write(path) as temporary:
            assert temporary.suffix == ".txt"
            temporary.write_text(text)
            assert text not in (path.read_text() if path.exists() else "")
        assert path.read_text() == text
    assert sha256(path) == hashlib.sha256(b"second").hexdigest()
    write_text(path, "ä\n")
    assert path.read_bytes() == b"\xc3\xa4\n"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), ValueError("other"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("write", [atomic_write, atomic_directory])
def test_nothing_is_left_after_a_failure(tmp_path, write, failure):
    path = tmp_path / "file"
    expected = InputError if isinstance(failure, OSError) else type(failure)

    def write_half():
        with write(path, hint="make room") as temporary:
            (temporary / "part" if write is atomic_directory else temporary).write_text("half")
            raise failure

    with pytest.raises(expected) as raised:
        write_half()
    if expected is InputError:
        assert str(raised.value) == f"{path}: cannot be written (No space left on device); make room"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a $5_$ b", "$x^", "caf\udce9", "100 %"])
def test_figures_show_any_name_as_it_is(tmp_path, name):
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 1000], label=name)
    axes.set(title=name, yscale="log")
    axes.set_xticks([0, 1], [shown(name), "other"])
    axes.legend()
    figure.suptitle(name)
    assert save_figure(figure, tmp_path / "figure.png").stat().st_size > 1000


def test_lines_are_utf_8(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_bytes("\ufeff Käse \r\n\n\tBrot".encode())
    assert read_lines(file) == ["Käse", "Brot"]
    file.write_bytes("Käse".encode("latin-1"))
    with pytest.raises(InputError, match=r"classes\.txt: byte 2 is not UTF-8; save"):
        read_lines(file)


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/below: cannot be written \(.*\); choose another path"):
        write_text(tmp_path / "file" / "below", "text")
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path, "text")


def test_a_directory_must_be_new_or_empty(tmp_path):
    for _ in range(2):
        (tmp_path / "new").mkdir(exist_ok=True)
        with atomic_directory(tmp_path / "new") as temporary:
            assert not list((tmp_path / "new").iterdir())
            (temporary / "a").touch()
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]
        (tmp_path / "new" / "a").unlink()
    (tmp_path / "file").touch()
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="exists and is not an empty directory"), atomic_directory(taken):
            pass


def test_errors_name_the_nearest_and_what_is_missing():
    assert nearest("gausian", ["gaussian", "none"]) == " (did you mean 'gaussian'?)"
    assert nearest("xyz", ["gaussian"]) == ""
    require(["torch", "timm"], "train", "patnet train")
    message = r"patnet train needs nowhere, which is not installed: pip install 'patnet\[train\]'"
    with pytest.raises(InputError, match=message):
        require(["torch", "nowhere"], "train", "patnet train")


@given(st.lists(st.sampled_from(["x/a.png", "a-2.png", "y/A.jpg", "z/a.gif", "b.png"]), max_size=8))
def test_files_of_one_name_get_distinct_stems(names):
    stems = distinct_stems(map(Path, names))
    assert len({stem.casefold() for stem in stems}) == len(stems) == len(names)
    assert all(stem.startswith(Path(name).stem) for stem, name in zip(stems, names, strict=True))
    assert distinct_stems([Path("a.png"), Path("b/a.png")]) == ["a", "a-2"]
