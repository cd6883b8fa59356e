import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

import patnet
from patnet import InputError
from patnet.models.hub import fetch, upload


@pytest.fixture
def endpoint(monkeypatch, tmp_path):
    """Lets the Hub's client ask at another address, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return lambda address: monkeypatch.setattr(constants, "ENDPOINT", address)


@pytest.fixture
def refusing(endpoint):
    """A server that refuses with a status and the Hub's code for the reason."""
    servers = []

    def start(status, reason):
        class Refusal(BaseHTTPRequestHandler):
            def do_GET(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                self.send_header("X-Error-Code", reason)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_POST = do_GET

            def log_message(self, *_):
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Refusal))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        endpoint(f"http://127.0.0.1:{servers[-1].server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("load", [patnet.from_pretrained, patnet.from_checkpoint])
def test_without_a_network_there_is_one_sentence(endpoint, load):
    endpoint("http://127.0.0.1:9")  # where nobody listens
    start = time.monotonic()
    with pytest.raises(
        InputError, match=r"hf-hub:some/thing: the Hugging Face Hub cannot be reached .*no copy"
    ) as said:
        load("hf-hub:some/thing")
    assert "\n" not in str(said.value)
    assert time.monotonic() - start < 10


def test_a_path_that_is_not_there_is_looked_for_on_the_hub_and_said(endpoint):
    endpoint("http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"hf-hub:runs/absent: .* or give a local directory"):
        patnet.from_pretrained("runs/absent")


def test_a_name_that_none_can_have_is_refused():
    for name in ("hf-hub:a/b/c", "hf-hub:a b/c", "hf-hub:a/b@c@d"):
        with pytest.raises(InputError, match="not a name on the Hugging Face Hub"):
            fetch(name)


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (404, "RepoNotFound", "no such model or revision, or it is private"),
        (404, "RevisionNotFound", "no such model or revision, or it is private"),
        (403, "GatedRepo", "grants access on request"),
    ],
)
def test_a_refusal_to_fetch_is_told(refusing, status, reason, message):
    refusing(status, reason)
    with pytest.raises(InputError, match=message):
        fetch("hf-hub:some/thing@v1")


def test_a_refusal_to_upload_is_told(refusing, tmp_path):
    refusing(401, "")
    with pytest.raises(InputError, match=r"some/thing: not uploaded .*hf auth login gives access"):
        upload(tmp_path, "some/thing")


def test_uploading_without_a_network_is_told(endpoint, tmp_path):
    endpoint("http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"some/thing: not uploaded .*connect, and try again"):
        upload(tmp_path, "some/thing")


def test_a_card_that_the_hub_does_not_take_is_told(monkeypatch, tmp_path):
    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, **_):
            raise ValueError("Invalid metadata in README.md.\n- Error: bad")

    monkeypatch.setattr("patnet.models.hub.HfApi", Api)
    with pytest.raises(InputError, match=r"not taken by the Hugging Face Hub \(Invalid metadata in README.md. - Error"):
        upload(tmp_path, "some/thing")
