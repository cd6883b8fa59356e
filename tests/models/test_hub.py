import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

import patnet
from patnet import InputError
from patnet.hub.directory import upload
from patnet.models.hub import fetch, hub_name


@pytest.fixture
def endpoint(monkeypatch, tmp_path):
    """Sets another address for the Hub's client, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return lambda address: monkeypatch.setattr(constants, "ENDPOINT", address)


@pytest.fixture
def refusing(endpoint):
    """A server that refuses with a status and the Hub's code for the reason, both set by its attribute `answer`."""

    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, reason = server.answer
            self.send_response(status)
            self.send_header("X-Error-Code", reason)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_POST = do_GET

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint(f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


def test_without_a_network_there_is_one_error_message(endpoint, tmp_path):
    endpoint("http://127.0.0.1:9")  # nobody listens there
    start = time.monotonic()
    for load in (patnet.load, patnet.models.load_checkpoint):
        message = r"hf-hub:some/thing: .* cannot be reached .*no copy.* that file"
        with pytest.raises(InputError, match=message) as raised:
            load("hf-hub:some/thing")
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"some/thing: not uploaded .*connect, and try again"):
        upload(tmp_path, "some/thing")
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("name", ["hf-hub:a/b/c", "hf-hub:a b/c", "hf-hub:a/b@c@d"])
def test_an_impossible_name_is_refused(name):
    with pytest.raises(InputError, match="not a name on the Hugging Face Hub"):
        fetch(name)


def test_a_name_of_weights_that_timm_lacks_is_refused_with_those_that_it_has():
    assert hub_name("resnet18.a1_in1k") == "hf-hub:timm/resnet18.a1_in1k"
    with pytest.raises(InputError, match=r"resnet18\.a9_in1k: .*; choose from resnet18\.a1_in1k, resnet18\.a2_in1k"):
        hub_name("resnet18.a9_in1k")
    with pytest.raises(InputError, match=r"patnet_t0\.a9_in1k: .*; give a checkpoint, or another model"):
        hub_name("patnet_t0.a9_in1k")


def test_the_reason_of_a_refusal_is_reported(refusing, tmp_path):
    for status, reason, message in (
        (404, "RepoNotFound", "no such model or revision, or it is private"),
        (404, "RevisionNotFound", "no such model or revision, or it is private"),
        (403, "GatedRepo", "grants access on request"),
    ):
        refusing.answer = status, reason
        with pytest.raises(InputError, match=message):
            fetch("hf-hub:some/thing@v1")
    refusing.answer = 401, ""
    with pytest.raises(InputError, match=r"some/thing: not uploaded .*hf auth login gives access"):
        upload(tmp_path, "some/thing")
