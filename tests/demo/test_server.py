import contextlib
import importlib.util
import os
import socket
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from patnet.cli import main
from patnet.demo import server
from patnet.errors import InputError


def test_the_next_port_is_taken_where_one_is_in_use():
    with server.open_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with server.open_socket("127.0.0.1", port) as second:
            assert port < second.getsockname()[1] < port + 100


def test_only_this_machine_is_local():
    assert all(map(server.is_local, ("127.0.0.1", "127.0.0.2", "::1")))
    assert not any(map(server.is_local, ("0.0.0.0", "192.168.1.5", "::")))
    with server.open_socket("localhost", 0) as opened:
        assert server.is_local(opened.getsockname()[0])


@pytest.mark.parametrize(
    ("host", "port", "sentence"),
    [
        ("203.0.113.7", 0, "is no address of this machine"),
        ("no such host", 0, "is no address of this machine"),
        ("127.0.0.1", 70000, "must lie between 0 and 65535"),
    ],
)
def test_addresses_that_are_none_are_told(host, port, sentence):
    with pytest.raises(InputError, match=sentence):
        server.open_socket(host, port)


def test_what_is_not_local_is_warned_of():
    with server.open_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert list(server._announce(first, port)) == [f"Open http://127.0.0.1:{port}/ in a browser; Ctrl-C ends it."]
        assert f"Port 80 is in use, {port} is taken instead." in server._announce(first, 80)
    with server.open_socket("0.0.0.0", 0) as everywhere:
        warning, where = server._announce(everywhere, 0)
    assert warning.startswith("Warning: at 0.0.0.0 whoever reaches this machine")
    assert where.startswith("Open http://127.0.0.1:")


def test_every_port_may_be_in_use(monkeypatch):
    monkeypatch.setattr(server, "PORTS", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="is in use, and so are"):
            server.open_socket("127.0.0.1", taken.getsockname()[1])


def refused(capfd, *argv):
    assert main(["demo", *argv]) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("patnet: ")
    return said


def test_without_gradio_it_says_how_to_get_it(monkeypatch, capfd):
    find = importlib.util.find_spec
    monkeypatch.setattr(server, "find_spec", lambda name: None if name == "gradio" else find(name))
    assert "pip install 'patnet[demo]'" in refused(capfd)


def test_without_a_run_it_says_how_to_make_one(monkeypatch, capfd, tmp_path):
    pytest.importorskip("gradio")
    monkeypatch.chdir(tmp_path)
    assert "make demo makes it" in refused(capfd)
    assert "must be a number above 0" in refused(capfd, "run", "--max_mb", "0")


def test_the_settings_are_restored_and_the_folder_goes(monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "mine")
    most = Image.MAX_IMAGE_PIXELS
    with contextlib.suppress(KeyboardInterrupt), server._settings(1000):
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.parent == Path(tempfile.gettempdir())
        (folder / "upload.png").write_text("a picture")
        assert Image.MAX_IMAGE_PIXELS == 1000
        raise KeyboardInterrupt
    assert not folder.exists()
    assert os.environ["GRADIO_TEMP_DIR"] == "mine"
    assert most == Image.MAX_IMAGE_PIXELS
