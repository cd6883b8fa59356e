import shutil
import socket

import pytest

from patnet.cli import main
from patnet.demo.server import check_host
from patnet.errors import InputError

pytest.importorskip("gradio", reason="gradio is not installed")


def test_only_addresses_of_this_machine_are_accepted_and_others_are_warned_of():
    assert not any(map(check_host, ("127.0.0.1", "127.0.0.2", "localhost")))
    assert check_host("0.0.0.0")
    for host in ("203.0.113.7", "no such host"):
        with pytest.raises(InputError, match="is no address of this machine"):
            check_host(host)


@pytest.fixture
def refused(run, monkeypatch, tmp_path, capfd):
    """Runs `patnet demo` and gives its error message."""
    monkeypatch.chdir(tmp_path)

    def refuse(*argv):
        assert main(["demo", *map(str, argv)]) == 2
        lines = capfd.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("patnet: ")
        assert not any("Traceback" in line for line in lines)
        return lines[-1]

    return refuse


def test_options_and_checkpoints_that_cannot_be_used(refused, run, detector, tmp_path):
    damaged = shutil.copytree(run / "best", tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((run / "best" / "model.safetensors").read_bytes()[:1000])
    for argv, message in (
        ([], "make demo creates it"),
        ([run, "--max-mb", "0"], "must be a number above 0"),
        ([run, "--port", "70000"], "must lie in 1 to 65535"),
        ([run, "--host", "203.0.113.7"], "is no address of this machine"),
        ([run, "--detector", run], "holds no detector"),
        ([tmp_path / "absent"], "no such checkpoint"),
        ([damaged], "damaged or cut short"),
        ([detector], "holds a detector"),
    ):
        assert message in refused(*argv)


def test_a_port_in_use_is_refused(refused, run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: not free" in refused(run, "--port", port)


def test_a_missing_package_is_an_error_message(refused, run, monkeypatch):
    monkeypatch.setattr("patnet.errors.find_spec", lambda name: None if name == "gradio" else True)
    assert "pip install 'patnet[demo]'" in refused(run)
