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


def test_what_cannot_be_served_is_one_error_message(run, detector, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    damaged = shutil.copytree(run / "best", tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((run / "best" / "model.safetensors").read_bytes()[:1000])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for argv, message in (
            ([], "make demo creates it"),
            ([run, "--max-mb", "0"], "must be a number above 0"),
            ([run, "--port", "70000"], "must lie in 1 to 65535"),
            ([run, "--port", port], f"--port {port}: not free"),
            ([run, "--host", "203.0.113.7"], "is no address of this machine"),
            ([run, "--detector", run], "holds no detector"),
            ([tmp_path / "absent"], "no such checkpoint"),
            ([damaged], "damaged or cut short"),
            ([detector], "holds a detector"),
        ):
            assert main(["demo", *map(str, argv)]) == 2
            error = capfd.readouterr().err
            assert error.strip().splitlines()[-1].startswith("patnet: ")
            assert message in error
            assert "Traceback" not in error
    monkeypatch.setattr("patnet.errors.find_spec", lambda name: None if name == "gradio" else True)
    assert main(["demo", str(run)]) == 2
    assert "pip install 'patnet[demo]'" in capfd.readouterr().err
